#!/usr/bin/env python
"""Write a model of full size with random weights, to try memory and speed without a download.

The folders have the layout that the hub's have: OUT/sd15 (vae, text_encoder, tokenizer, unet,
scheduler), OUT/motion_adapter (AnimateDiff v2) and OUT/pia (PIA's condition adapter). The weights
mean nothing, and neither do the pictures. One part at a time is in memory.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmvideo.apis.cli import Parser, run_tool

EXAMPLES = """
examples:
  python tools/make_random_weights.py /tmp/random                    6 GB, float16
  python tools/make_random_weights.py /tmp/random --dtype float32    12 GB
  python tools/make_random_weights.py /tmp/random --small            the same layout, 2 MB
  python tools/infer.py configs/animatediff/animatediff-v2_sd15.py --cfg-options \\
      model.vae.from_pretrained=/tmp/random/sd15 ...
"""
STD = 0.02
VOCABULARY = 49408  # CLIP's
WORDS = (
    'a', 'and', 'at', 'boat', 'in', 'lake', 'moving', 'mountains', 'of', 'on', 'picture', 'red',
    'sea', 'the', 'with',
)  # fmt: skip
# Widths, latent side, text width, vocabulary: what --small changes.
FULL = dict(widths=(320, 640, 1280, 1280), sample=64, text=768, heads=8, groups=32, layers=12)
SMALL = dict(widths=(32, 64), sample=8, text=32, heads=4, groups=8, layers=1)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__, EXAMPLES)
    parser.add_argument('out', metavar='OUT', type=Path, help='a folder, new or empty')
    parser.add_argument('--family', choices=('sd15',), default='sd15', help='base model')
    parser.add_argument('--dtype', choices=('float16', 'float32'), default='float16')
    parser.add_argument('--seed', type=int, default=0, help='the same seed writes the same files')
    parser.add_argument('--small', action='store_true', help='a kilobyte of each instead')
    return parser.parse_args()


def unet(size: dict[str, Any]) -> Any:
    """SD1.5's image denoiser."""
    from diffusers import UNet2DConditionModel

    levels = len(size['widths'])
    return UNet2DConditionModel(
        sample_size=size['sample'],
        block_out_channels=size['widths'],
        down_block_types=('CrossAttnDownBlock2D',) * (levels - 1) + ('DownBlock2D',),
        up_block_types=('UpBlock2D',) + ('CrossAttnUpBlock2D',) * (levels - 1),
        cross_attention_dim=size['text'],
        attention_head_dim=size['heads'],
        norm_num_groups=size['groups'],
    )


def vae(size: dict[str, Any]) -> Any:
    """SD1.5's image VAE: eight pixels a latent cell at both sizes."""
    from diffusers import AutoencoderKL

    width = size['widths'][0] * 2 // 5 // size['groups'] * size['groups'] or size['groups']
    return AutoencoderKL(
        down_block_types=('DownEncoderBlock2D',) * 4,
        up_block_types=('UpDecoderBlock2D',) * 4,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=size['groups'],
        sample_size=8 * size['sample'],
    )


def text_encoder(size: dict[str, Any]) -> Any:
    """CLIP ViT-L/14's text half."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=size['text'],
            intermediate_size=4 * size['text'],
            num_hidden_layers=size['layers'],
            num_attention_heads=size['text'] // (64 if size['text'] >= 64 else 8),
            bos_token_id=VOCABULARY - 2,
            eos_token_id=VOCABULARY - 1,
            pad_token_id=VOCABULARY - 1,
            architectures=['CLIPTextModel'],
        )
    )


def adapter(size: dict[str, Any], condition: bool) -> Any:
    """AnimateDiff v2's motion modules, or PIA's with its first convolution."""
    from diffusers import MotionAdapter

    return MotionAdapter(
        block_out_channels=size['widths'],
        motion_num_attention_heads=size['heads'],
        motion_norm_num_groups=size['groups'],
        use_motion_mid_block=not condition,
        conv_in_channels=9 if condition else None,
    )


def parts(size: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Every part with weights by its folder."""
    return {
        'sd15/unet': lambda: unet(size),
        'sd15/vae': lambda: vae(size),
        'sd15/text_encoder': lambda: text_encoder(size),
        'motion_adapter': lambda: adapter(size, condition=False),
        'pia': lambda: adapter(size, condition=True),
    }


def random_tensors(module: Any, dtype: Any, generator: Any) -> Iterator[tuple[str, Any]]:
    """Values for a module that has none: norms 1 and 0, biases 0, encodings their formula."""
    import torch

    from mmvideo.checkpoints.motion import sinusoid

    for name, like in module.state_dict().items():
        if name.endswith('pos_embed.pe'):
            value = sinusoid(like.shape[1], like.shape[2])
        elif like.ndim == 1:
            value = torch.full(like.shape, float(name.endswith('weight')))
        else:
            value = torch.empty(like.shape, dtype=torch.float32)
            value.normal_(0, STD, generator=generator)
        yield name, value.to(dtype)


def config_of(module: Any) -> dict[str, Any]:
    """The content of ``config.json``."""
    config = module.config
    if hasattr(config, 'to_dict'):
        return config.to_dict()
    return dict(config, _class_name=type(module).__name__)


def write_tokenizer(folder: Path) -> None:
    """A byte-level CLIP tokenizer with CLIP's number of tokens, whose last two are its marks."""
    from mmvideo.checkpoints.files import write_text
    from mmvideo.models.borrowed.tokenizer import END, START, closed_vocabulary

    vocab, merges = closed_vocabulary(WORDS)
    tokens = [token for token in vocab if token not in (START, END)]
    tokens += [f'unused{i}</w>' for i in range(VOCABULARY - 2 - len(tokens))]
    tokens += [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    table = {token: index for index, token in enumerate(tokens)}
    write_text(folder / 'vocab.json', json.dumps(table, ensure_ascii=False))
    lines = ''.join(f'{first} {second}\n' for first, second in merges)
    write_text(folder / 'merges.txt', '#version: 0.2\n' + lines)
    marks = dict(bos_token=START, eos_token=END, unk_token=END, pad_token=END)
    settings = dict(marks, model_max_length=77, tokenizer_class='CLIPTokenizer', do_lower_case=True)
    write_text(folder / 'tokenizer_config.json', json.dumps(settings, indent=2))
    write_text(folder / 'special_tokens_map.json', json.dumps(marks, indent=2))


def write_rest(folder: Path) -> None:
    """What has no weights: the tokenizer, the scheduler, and diffusers' list of parts."""
    from diffusers import PNDMScheduler

    from mmvideo.checkpoints.files import write_text
    from mmvideo.checkpoints.save import save_scheduler

    write_tokenizer(folder / 'tokenizer')
    betas = dict(beta_start=0.00085, beta_end=0.012, beta_schedule='scaled_linear')
    scheduler = PNDMScheduler(**betas, skip_prk_steps=True, steps_offset=1)
    save_scheduler(folder / 'scheduler', scheduler)
    index = dict(
        _class_name='StableDiffusionPipeline',
        feature_extractor=[None, None],
        safety_checker=[None, None],
        scheduler=['diffusers', 'PNDMScheduler'],
        text_encoder=['transformers', 'CLIPTextModel'],
        tokenizer=['transformers', 'CLIPTokenizer'],
        unet=['diffusers', 'UNet2DConditionModel'],
        vae=['diffusers', 'AutoencoderKL'],
    )
    write_text(folder / 'model_index.json', json.dumps(index, indent=2) + '\n')


def write_all(out: Path, dtype: str, seed: int, small: bool) -> None:
    """Every folder, one part at a time."""
    import torch

    from mmvideo.checkpoints.save import save_part

    generator = torch.Generator().manual_seed(seed)
    for name, build in parts(SMALL if small else FULL).items():
        with torch.device('meta'):
            module = build()
        tensors = dict(random_tensors(module, getattr(torch, dtype), generator))
        path = save_part(out / name, config_of(module), tensors)
        print(f'{path}: {path.stat().st_size / 1e6:.1f} MB', flush=True)
        del tensors
    write_rest(out / 'sd15')


def run(args: argparse.Namespace) -> None:
    """Write, where nothing is yet."""
    from mmvideo.errors import InputError

    try:
        if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
            raise InputError(f'{args.out} is not empty: name a new folder')
        write_all(args.out, args.dtype, args.seed, args.small)
    except OSError as error:
        raise InputError(f'{args.out}: {error.strerror}') from error


def main() -> int:
    """The exit code, see ``run_tool``."""
    return run_tool(run, parse_args(), interrupted='the part in the making was not written')


if __name__ == '__main__':
    sys.exit(main())
