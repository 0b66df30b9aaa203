"""I2VGenXL end to end against diffusers' pipeline: the same folders, prompts, pictures and noise.

diffusers adds the picture's channels once, the official code twice; the editor is told to do as
diffusers. The pipeline draws the picture's latent from torch's global generator.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, I2VGenXLPipeline, I2VGenXLUNet
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from two_models import disturb

from mmvideo.models.conditioning.i2vgen import clip_pixels
from mmvideo.registry import MODELS, SCHEDULERS, TOKENIZERS

FRAMES = 3
HEIGHT, WIDE = 16, 24  # pixels
PROMPTS = ['a red fish moving left', 'a blue car in the city']
NEGATIVE = 'blurry'
WIDTH = 16  # of text and image embeddings
SEEN = 24  # pixels along a side of what CLIP sees
SCHEDULE = dict(
    beta_schedule='squaredcos_cap_v2',
    prediction_type='v_prediction',
    rescale_betas_zero_snr=True,
    set_alpha_to_one=True,
    clip_sample=False,
    steps_offset=1,
    timestep_spacing='leading',
)


def write_pipeline(folder: Path) -> I2VGenXLPipeline:
    """Write the folders of a pipeline with random weights."""
    torch.manual_seed(0)
    words = sorted({*' '.join(PROMPTS).split(), NEGATIVE})
    tokenizer = TOKENIZERS.build(dict(type='CLIPTokenizer', vocab=words, model_max_length=20))
    parts = modules(tokenizer)
    for name, module in parts.items():
        disturb(module)
        module.eval().save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / 'tokenizer')
    seen = CLIPImageProcessor(size={'shortest_edge': SEEN}, crop_size=SEEN)
    seen.save_pretrained(folder / 'feature_extractor')
    pipeline = I2VGenXLPipeline(
        **parts,
        tokenizer=tokenizer,
        feature_extractor=seen,
        scheduler=diffusers.DDIMScheduler(**SCHEDULE),
    )
    pipeline.set_progress_bar_config(disable=True)
    text = pipeline.text_encoder
    if not hasattr(text, 'text_model'):  # diffusers asks for it with clip_skip
        text.__dict__['text_model'] = text
    return pipeline


def modules(tokenizer: Any) -> dict[str, nn.Module]:
    """The parts that have weights."""
    return dict(
        vae=AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=['DownEncoderBlock2D'] * 2,
            up_block_types=['UpDecoderBlock2D'] * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=32,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                hidden_size=WIDTH,
                intermediate_size=24,
                num_attention_heads=4,
                num_hidden_layers=3,
                max_position_embeddings=20,
                vocab_size=1000,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        ),
        image_encoder=CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=8,
                intermediate_size=12,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=SEEN,
                patch_size=8,
                projection_dim=WIDTH,
            )
        ),
        unet=I2VGenXLUNet(
            down_block_types=('CrossAttnDownBlock3D', 'DownBlock3D'),
            up_block_types=('UpBlock3D', 'CrossAttnUpBlock3D'),
            block_out_channels=(8, 16),
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=4,
        ),
    )


def editor_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """``cfg.model`` over the folders of ``write_pipeline``."""

    def part(kind: str, name: str) -> dict:
        return dict(type=kind, from_pretrained=str(folder), subfolder=name)

    return dict(
        type='I2VGenXL',
        vae=part('AutoencoderKL', 'vae'),
        text_encoder=part('CLIPTextModel', 'text_encoder'),
        tokenizer=part('CLIPTokenizer', 'tokenizer'),
        image_encoder=part('CLIPVisionModelWithProjection', 'image_encoder'),
        feature_extractor=part('CLIPImageProcessor', 'feature_extractor'),
        unet=part('VideoUNet', 'unet'),
        scheduler=dict(type='DDIMScheduler', **SCHEDULE),
    ) | dict(changes)


@pytest.fixture(scope='module')
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """diffusers' pipeline and our editor of the same weights."""
    folder = tmp_path_factory.mktemp('i2vgen')
    pipeline = write_pipeline(folder)
    editor = MODELS.build(editor_config(folder, trainable=['^unet'])).eval()
    editor.unet.image_latents_temporal_encoder.gain = 1.0
    return pipeline, editor


def picture(width: int, height: int, seed: int = 3) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def noise(count: int = 1, frames: int = FRAMES) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(count, 4, frames, HEIGHT // 2, WIDE // 2, generator=generator)


def in_our_names(arguments: dict) -> dict:
    """Arguments of diffusers' pipeline for our editor."""
    return {{'num_frames': 'video_length'}.get(key, key): v for key, v in arguments.items()}


def compare(pair: tuple[Any, Any], ours: dict, theirs: dict, seed: int = 5) -> Tensor:
    """Frames and latents within 1e-4; and the frames are pictures, not a constant."""
    pipeline, editor = pair
    results = []
    for kind in ('latent', 'video'):
        result = editor.infer(height=HEIGHT, width=WIDE, output_type=kind, **in_our_names(ours()))
        torch.manual_seed(seed)
        other = 'latent' if kind == 'latent' else 'pt'
        expected = pipeline(height=HEIGHT, width=WIDE, output_type=other, **theirs()).frames
        if kind == 'video':
            expected = expected.transpose(1, 2)
        result = result['latents' if kind == 'latent' else 'samples']
        assert result.shape == expected.shape
        scale = max(float(expected.abs().max()), 1)
        assert float((result - expected).abs().max()) <= 1e-4 * scale
        results.append(expected)
    assert float(results[1].std()) > 0.02
    assert float(results[1].diff(dim=2).abs().max()) > 1e-3
    return result


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize('guidance', [1.0, 9.0])
@pytest.mark.parametrize('clip_skip', [None, 1, 2])
def test_prompts(pair, clip_skip, guidance):
    shared = dict(
        prompt=PROMPTS[0],
        negative_prompt=NEGATIVE,
        image=picture(40, 24),
        latents=noise(),
        num_frames=FRAMES,
        target_fps=8,
        num_inference_steps=2,
        guidance_scale=guidance,
        clip_skip=clip_skip,
    )
    compare(pair, lambda: dict(shared, generator=seeded(5)), lambda: shared)


@pytest.mark.parametrize('size', [(24, 16), (13, 60), (300, 51), (9, 9), (16, 24)])
def test_pictures_of_any_shape(pair, size):
    shared = dict(
        prompt=PROMPTS[0],
        image=picture(*size),
        latents=noise(),
        num_frames=FRAMES,
        num_inference_steps=1,
        guidance_scale=3.0,
    )
    compare(pair, lambda: dict(shared, generator=seeded(5)), lambda: shared)


def test_drawn_noise_is_that_of_the_seed(pair, monkeypatch):
    """With a posterior without width, so that nothing else is drawn."""
    pipeline, editor = pair
    for vae in (pipeline.vae, editor.vae):
        bias = vae.quant_conv.bias.data.clone()
        bias[4:] = -1000
        monkeypatch.setattr(vae.quant_conv.bias, 'data', bias)
    shared = dict(
        prompt=PROMPTS,
        image=[picture(40, 24), picture(40, 24, seed=4)],
        num_frames=FRAMES,
        num_inference_steps=2,
        guidance_scale=3.0,
    )
    both = compare(
        pair,
        lambda: dict(shared, seed=11),
        lambda: dict(shared, generator=[seeded(11), seeded(12)]),
    )
    assert float((both[0] - both[1]).abs().max()) > 1e-2
    one = dict(shared, prompt=PROMPTS[0], image=shared['image'][0], num_videos_per_prompt=2)
    compare(
        pair,
        lambda: dict(one, seed=11),
        lambda: dict(one, generator=[seeded(11), seeded(12)]),
    )


def test_more_frames_and_one(pair):
    shared = dict(
        prompt=PROMPTS[1],
        image=picture(48, 32),
        latents=noise(frames=5),
        num_frames=5,
        target_fps=24,
        num_inference_steps=7,
        guidance_scale=2.5,
        decode_chunk_size=2,
    )
    compare(pair, lambda: dict(shared, generator=seeded(5)), lambda: shared)
    pipeline, editor = pair
    single = dict(shared, latents=noise(frames=1), num_frames=1)
    given = in_our_names(single)
    result = editor.infer(height=HEIGHT, width=WIDE, generator=seeded(5), **given)['samples']
    torch.manual_seed(5)
    expected = pipeline(height=HEIGHT, width=WIDE, output_type='pt', **single).frames
    assert float((result - expected.transpose(1, 2)).abs().max()) <= 1e-4


def test_training_gradients(pair):
    """The v-objective on the whole denoiser; text one layer short, the picture the first frame."""
    pipeline, editor = pair
    generator = seeded(9)
    video = torch.randint(0, 256, (2, 3, FRAMES, HEIGHT, WIDE), generator=generator)
    video = video.float() / 127.5 - 1
    fps = torch.tensor([8, 16])
    editor.caption_dropout = 0.0
    torch.manual_seed(5)
    batch = dict(caption=PROMPTS, fps=fps)
    loss = editor(video, batch, mode='loss')['loss']
    loss.backward()
    torch.manual_seed(5)
    clean = editor._clean_latents(video, {})
    torch.rand(2)  # the draw of condition_dropout
    noise_, timesteps = torch.randn_like(clean), torch.randint(1000, (2,))
    scheduler = diffusers.DDIMScheduler(**SCHEDULE)
    target = scheduler.get_velocity(clean, noise_, timesteps)
    noisy = scheduler.add_noise(clean, noise_, timesteps)
    expected = nn.functional.mse_loss(theirs(pipeline, editor, video, clean, noisy, timesteps, fps),
                                      target)  # fmt: skip
    pipeline.unet.zero_grad()
    expected.backward()
    assert abs(float(loss.detach()) - float(expected.detach())) <= 1e-5
    others = dict(pipeline.unet.named_parameters())
    trained = [(n, p) for n, p in editor.unet.named_parameters() if p.requires_grad]
    assert len(trained) == len(others)
    for name, parameter in trained:
        scale = float(others[name].grad.abs().max().clamp(min=1e-3))
        assert float((parameter.grad - others[name].grad).abs().max()) <= 1e-4 * scale, name
    editor.zero_grad()


def theirs(pipeline, editor, video, clean, noisy, timesteps, fps) -> Tensor:
    pipeline._guidance_scale = 1.0
    text, _ = pipeline.encode_prompt(PROMPTS, 'cpu', 1, clip_skip=1)
    frames = video[:, :, 0].add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
    seen = torch.stack(
        [clip_pixels(Image.fromarray(f), WIDE, editor.feature_extractor) for f in frames]
    )
    embeds = pipeline.image_encoder(seen).image_embeds[:, None].detach()
    later = [torch.full_like(clean[:, :, :1], k / (FRAMES - 1)) for k in range(1, FRAMES)]
    return pipeline.unet(
        noisy,
        timesteps,
        encoder_hidden_states=text.detach(),
        fps=fps,
        image_latents=torch.cat([clean[:, :, :1], *later], 2),
        image_embeddings=embeds,
    ).sample


def test_the_scheduler_reads_the_published_settings():
    built = SCHEDULERS.build(dict(type='DDIMScheduler', **SCHEDULE))
    built.set_timesteps(50)
    assert built.timesteps[[0, 1, -1]].tolist() == [981, 961, 1]
    assert float(built.alphas_cumprod[-1]) < 1e-6
