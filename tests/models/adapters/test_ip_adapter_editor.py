"""Pictures as prompts of the editors: against diffusers' pipeline, and every refusal."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_ip_adapters as small
import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    UNet2DConditionModel,
)
from mmengine import Config
from PIL import Image
from small_ip_adapters import FRAMES, HIDDEN, PROJECTED, SEEN, TEXT
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModel
from transformers import CLIPVisionModelWithProjection as VisionModel

from mmvideo.apis.inferencer import VideoInferencer
from mmvideo.checkpoints.files import write_tensors
from mmvideo.config_check import check
from mmvideo.errors import ConfigError, InputError, WeightsError
from mmvideo.registry import MODELS, TOKENIZERS

SIZE, CELLS = 16, 8
LAYERS = [8] * 2 + [8] * 3 + [16]  # widths of the cross-attention layers: down, up, middle
BETAS = {'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'linear'}
FILES = {'plain': 'ip-adapter-plain-0.safetensors', 'plus': 'ip-adapter-plus-1.safetensors'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, IP-Adapters and their image encoder, written by diffusers and by us."""
    folder = tmp_path_factory.mktemp('model')
    torch.manual_seed(0)
    for name, module in components().items():
        small.disturb(module)
        module.eval().save_pretrained(folder / name)
    tokenizer().save_pretrained(folder / 'tokenizer')
    small.write_adapter(folder / 'ip', 'plain', 0, layers=LAYERS)
    small.write_adapter(folder / 'ip', 'plus', 1, layers=LAYERS)
    small.write_encoder(folder / 'ip')
    return folder


def tokenizer() -> Any:
    return TOKENIZERS.build(
        dict(type='CLIPTokenizer', vocab=['a', 'red', 'fish'], model_max_length=10)
    )


def components() -> dict[str, Any]:
    widths, groups = (8, 16), 4
    text = CLIPTextConfig(
        **dict(hidden_size=TEXT, intermediate_size=16, num_attention_heads=2),
        **dict(num_hidden_layers=1, max_position_embeddings=10, vocab_size=1000),
        **dict(bos_token_id=tokenizer().bos_token_id, eos_token_id=tokenizer().eos_token_id),
    )
    return dict(
        vae=AutoencoderKL(
            block_out_channels=widths,
            down_block_types=['DownEncoderBlock2D'] * 2,
            up_block_types=['UpDecoderBlock2D'] * 2,
            norm_num_groups=groups,
            sample_size=SIZE,
        ),
        text_encoder=CLIPTextModel(text),
        unet=UNet2DConditionModel(
            block_out_channels=widths,
            sample_size=CELLS,
            down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
            up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
            cross_attention_dim=TEXT,
            attention_head_dim=2,
            norm_num_groups=groups,
        ),
        motion_adapter=MotionAdapter(
            block_out_channels=widths, motion_norm_num_groups=groups, motion_num_attention_heads=2
        ),
    )


def adapter(folder: Path, kind: str = 'plain', **keys: Any) -> dict:
    source = str(folder / 'ip')
    return dict(
        type='IPAdapter', from_pretrained=source, weight_name=FILES[kind], name=kind, **keys
    )


def config(folder: Path, *adapters: dict, **changes: Any) -> dict:
    def part(kind: str, name: str, **more: Any) -> dict:
        return dict(type=kind, from_pretrained=str(folder), subfolder=name, **more)

    return (
        dict(
            type='AnimateDiff',
            vae=part('AutoencoderKL', 'vae'),
            text_encoder=part('CLIPTextModel', 'text_encoder'),
            tokenizer=part('CLIPTokenizer', 'tokenizer'),
            scheduler=dict(type='DDIMScheduler', clip_sample=False, **BETAS),
            unet=part('VideoUNet', 'unet', resnet_norm_scope='frame'),
            motion_module=part('MotionModule', 'motion_adapter', norm_scope='clip'),
            adapters=list(adapters),
        )
        | changes
    )


@pytest.fixture(scope='module')
def build(folder: Path) -> Callable[..., Any]:
    """An editor with adapters of these kinds."""
    known: dict[Any, Any] = {}

    def make(*kinds: str, **keys: Any) -> Any:
        key = (kinds, str(keys))
        if key not in known:
            adapters = [adapter(folder, kind, **keys) for kind in kinds]
            known[key] = MODELS.build(config(folder, *adapters)).eval()
        return known[key]

    return make


def pipeline(folder: Path, kinds: list[str], scale: Any) -> AnimateDiffPipeline:
    parts = {name: type(part).from_pretrained(folder / name) for name, part in components().items()}
    made = AnimateDiffPipeline(
        **parts,
        tokenizer=tokenizer(),
        scheduler=DDIMScheduler(clip_sample=False, **BETAS),
        feature_extractor=CLIPImageProcessor(size={'shortest_edge': 16}, crop_size=16),
        image_encoder=VisionModel.from_pretrained(folder / 'ip' / 'image_encoder'),
    )
    made.set_progress_bar_config(disable=True)
    made.load_ip_adapter(
        str(folder),
        subfolder='ip',
        weight_name=[FILES[kind] for kind in kinds],
        low_cpu_mem_usage=False,
    )
    made.set_ip_adapter_scale(scale)
    return made


def picture(seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def noise(count: int = 1) -> Tensor:
    return torch.randn(count, 4, FRAMES, CELLS, CELLS, generator=torch.Generator().manual_seed(7))


def infer(editor: Any, steps: int = 1, guidance: float = 7.5, count: int = 1, **images: Any) -> Any:
    return editor.infer(
        prompt=['a red fish', 'a fish'][:count],
        negative_prompt='red',
        latents=noise(count),
        guidance_scale=guidance,
        num_inference_steps=steps,
        video_length=FRAMES,
        **images,
    )['samples']


def reference(
    pipe: Any, guidance: float = 7.5, count: int = 1, masks: Any = None, **images: Any
) -> Tensor:
    return pipe(
        prompt=['a red fish', 'a fish'][:count],
        negative_prompt=['red'] * count,
        latents=noise(count),
        guidance_scale=guidance,
        num_inference_steps=2,
        num_frames=FRAMES,
        output_type='pt',
        cross_attention_kwargs=None if masks is None else {'ip_adapter_masks': masks},
        **images,
    ).frames.transpose(1, 2)


def assert_close(ours: Tensor, theirs: Tensor, atol: float = 1e-4) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= atol
    assert float(theirs.std()) > 0.02


# Against the pipeline -------------------------------------------------------------------------


@pytest.mark.parametrize('kind', FILES)
def test_one_adapter(kind: str, folder: Path, build: Callable) -> None:
    pipe, editor = pipeline(folder, [kind], 0.8), build(kind, scale=0.8)
    for guidance in (1.0, 7.5):
        theirs = reference(pipe, guidance, 2, ip_adapter_image=picture(1))
        assert_close(infer(editor, 2, guidance, 2, ip_adapter_image=picture(1)), theirs)
        other = infer(editor, 2, guidance, 2, ip_adapter_image=picture(2))
        assert float((other - theirs).abs().max()) > 1e-2


def test_two_adapters_and_masks(folder: Path, build: Callable) -> None:
    left = torch.zeros(SIZE, SIZE)
    left[:, : SIZE // 2] = 1
    masks = [torch.stack([left, 1 - left])[None], (1 - left)[None, None]]
    images = [[picture(1), picture(2)], picture(3)]
    pipe = pipeline(folder, ['plain', 'plus'], [0.7, 0.4])
    theirs = reference(pipe, masks=masks, ip_adapter_image=images)
    editor = build('plain', 'plus')
    settings = dict(ip_adapter_image=images, ip_adapter_scale=[0.7, 0.4])
    ours = infer(editor, 2, **settings, ip_adapter_masks=masks)
    assert_close(ours, theirs)
    as_files = [[left, 1 - left], Image.fromarray((255 * (1 - left)).byte().numpy())]
    assert torch.equal(infer(editor, 2, **settings, ip_adapter_masks=as_files), ours)
    assert float((infer(editor, 2, **settings) - theirs).abs().max()) > 1e-3


@pytest.mark.parametrize('kind', FILES)
def test_embeddings_and_blocks(kind: str, folder: Path, build: Callable, tmp_path: Path) -> None:
    scale = {'down': {'block_0': [0.2, 1.0]}, 'up': 0.6}
    pipe = pipeline(folder, [kind], [scale])
    (embeds,) = pipe.prepare_ip_adapter_image_embeds([picture(1)], None, 'cpu', 1, True)
    theirs = reference(pipe, ip_adapter_image_embeds=[embeds])
    editor = build(kind)
    assert_close(infer(editor, 2, ip_adapter_image_embeds=[embeds], ip_adapter_scale=scale), theirs)
    ours = infer(editor, ip_adapter_image_embeds=[embeds], ip_adapter_scale=scale)
    for given in (embeds[1:], write_tensors(tmp_path / 'embeds.safetensors', {'x': embeds})):
        again = infer(editor, ip_adapter_image_embeds=given, ip_adapter_scale=scale)
        assert_close(again, ours, 1e-5)  # the unguided half is computed, the file is read
    again = infer(editor, ip_adapter_image=picture(1), ip_adapter_scale=scale)
    assert_close(again, ours, 1e-5)


# Frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', FILES)
def test_frames_with_one_picture_are_the_clip_with_it(kind: str, build: Callable) -> None:
    editor, shown = build(kind), picture(1)
    whole = infer(editor, ip_adapter_image=shown)
    each = infer(editor, ip_adapter_image={'frames': [shown] * FRAMES})
    assert_close(each, whole, 1e-5)
    other = infer(editor, ip_adapter_image={'frames': [shown] * (FRAMES - 1) + [picture(2)]})
    assert float((other - whole)[:, :, -1].abs().max()) > 1e-3


def test_a_picture_of_many_frames_is_encoded_once(build: Callable, monkeypatch: Any) -> None:
    editor, (first, second) = build('plain'), (picture(1), picture(2))
    (ip_adapter,) = editor.ip_adapters
    seen: list[int] = []
    encode = ip_adapter.encode
    monkeypatch.setattr(ip_adapter, 'encode', lambda p: (seen.append(len(p)), encode(p))[1])
    infer(editor, ip_adapter_image={'frames': [first, second, first]})
    assert seen == [2]


def test_masks_and_embeddings_by_frame(build: Callable) -> None:
    editor, shown = build('plain'), picture(1)
    everywhere = [torch.ones(SIZE, SIZE)] * FRAMES
    masked = infer(editor, ip_adapter_image=shown, ip_adapter_masks={'frames': everywhere})
    assert_close(masked, infer(editor, ip_adapter_image=shown), 1e-5)
    first = torch.stack(everywhere) * torch.tensor([1.0, 0, 0])[:, None, None]
    part = infer(editor, ip_adapter_image=shown, ip_adapter_masks=first.numpy())
    assert float((part - masked).abs().max()) > 1e-3
    embeds = editor.ip_adapters[0].encode([shown])[None]
    frames = infer(editor, ip_adapter_image_embeds={'frames': [embeds] * FRAMES})
    assert_close(frames, masked, 1e-5)


def test_windows_see_the_pictures_of_their_frames(build: Callable) -> None:
    """Batched windows without overlap: each is a clip by itself, with its own pictures."""
    editor, shown = build('plain'), [picture(seed) for seed in range(4)]
    shared = dict(prompt='a fish', guidance_scale=3.0, num_inference_steps=2)
    start = torch.randn(1, 4, 4, CELLS, CELLS, generator=torch.Generator().manual_seed(7))
    clip = editor.infer(
        **shared,
        latents=start,
        video_length=4,
        windows=dict(length=2, overlap=0, schedule='batched'),
        ip_adapter_image={'frames': shown},
    )['samples']
    for part in (slice(0, 2), slice(2, 4)):
        alone = editor.infer(
            **shared,
            latents=start[:, :, part],
            video_length=2,
            ip_adapter_image={'frames': shown[part]},
        )['samples']
        assert_close(clip[:, :, part], alone, 1e-5)


def test_free_noise_sees_the_pictures(build: Callable) -> None:
    """Attention in windows of time leaves the pictures where they are, and nothing behind."""
    editor, first, second = build('plain'), picture(0), picture(1)
    call = dict(prompt='a fish', guidance_scale=3.0, num_inference_steps=2, seed=5)
    plain = editor.infer(**call, video_length=4, ip_adapter_image=first)['samples']
    noise = dict(context_length=4, context_stride=2)
    long = dict(call, video_length=8, free_noise=noise)
    one = editor.infer(**long, ip_adapter_image=first)['samples']
    same = editor.infer(**long, ip_adapter_image={'frames': [first] * 8})['samples']
    assert_close(one, same, 1e-5)
    half = {'frames': [first] * 4 + [second] * 4}
    both = editor.infer(**long, ip_adapter_image=half)['samples']
    assert (both - one)[:, :, 4:].abs().amax((0, 1, 3, 4)).min() > 1e-4
    again = editor.infer(**call, video_length=4, ip_adapter_image=first)['samples']
    assert torch.equal(again, plain)


# Attached and detached ------------------------------------------------------------------------


def test_removing_leaves_nothing(folder: Path) -> None:
    editor = MODELS.build(config(folder)).eval()
    before = {key: value.clone() for key, value in editor.state_dict().items()}
    plain, shown = infer(editor), picture(1)
    for kind in FILES:
        editor.add_adapter(adapter(folder, kind))
    assert editor.ip_adapters[0].image_encoder is editor.ip_adapters[1].image_encoder
    both = infer(editor, ip_adapter_image=[shown, shown])
    now = editor.state_dict()
    assert all(torch.equal(now[key], value) for key, value in before.items())
    assert torch.equal(infer(editor, ip_adapter_image=[shown] * 2, ip_adapter_scale=0), plain)
    removed = editor.remove_adapter('plain')
    alone = infer(editor, ip_adapter_image=shown)
    editor.add_adapter(removed)
    again = infer(editor, ip_adapter_image=[shown, shown])
    assert_close(again, both, 1e-5)  # attached in another order
    assert float((alone - both).abs().max()) > 1e-3
    for kind in FILES:
        editor.remove_adapter(kind)
    now = editor.state_dict()
    assert now.keys() == before.keys()
    assert all(torch.equal(now[key], value) for key, value in before.items())
    assert torch.equal(infer(editor), plain)
    assert not hasattr(editor, 'ip_adapters')


def test_scale_of_the_adapter(folder: Path, build: Callable) -> None:
    editor = MODELS.build(config(folder, adapter(folder, scale=0.3))).eval()
    shown = picture(1)
    low = infer(editor, ip_adapter_image=shown)
    assert torch.equal(infer(build('plain'), ip_adapter_image=shown, ip_adapter_scale=0.3), low)
    editor.set_adapters('plain', 0.9)
    assert torch.equal(
        infer(build('plain'), ip_adapter_image=shown, ip_adapter_scale=0.9),
        infer(editor, ip_adapter_image=shown),
    )
    editor.set_adapters([])
    assert torch.equal(infer(editor), infer(build()))  # a silent adapter needs no picture


def test_files_and_precision(folder: Path, build: Callable) -> None:
    editor = build('plain')
    names = [path.name for path in editor.weight_files()]
    assert FILES['plain'] in names and 'model.safetensors' in names
    half = MODELS.build(config(folder, adapter(folder))).to(torch.bfloat16).eval()
    (attached,) = half.ip_adapters
    assert {p.dtype for p in attached.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in attached.parameters())
    shown = infer(half, ip_adapter_image=picture(1))
    assert torch.isfinite(shown).all()


def test_a_nested_file_of_torch(folder: Path, build: Callable, tmp_path: Path) -> None:
    """ip-adapter_sd15.bin: two dicts in a dict, and the encoder in a folder beside it."""
    tensors = small.adapter_tensors('plain', 0, LAYERS)
    torch.save(small.nested(tensors), tmp_path / 'ip-adapter_sd15.bin')
    shutil.copytree(folder / 'ip' / 'image_encoder', tmp_path / 'image_encoder')
    adapters = [
        dict(type='IPAdapter', from_pretrained=str(tmp_path / 'ip-adapter_sd15.bin')),
        dict(type='IPAdapter', from_pretrained=str(tmp_path), name='by_its_folder', scale=0),
    ]
    editor = MODELS.build(config(folder, *adapters)).eval()
    assert [a.name for a in editor.adapters] == ['ip-adapter_sd15', 'by_its_folder']
    ours = infer(editor, ip_adapter_image=[picture(1), None])
    assert torch.equal(ours, infer(build('plain'), ip_adapter_image=picture(1)))


def test_the_folder_says_how_pictures_are_prepared(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / 'ip', tmp_path / 'ip')
    processor = CLIPImageProcessor(
        size={'shortest_edge': 16}, crop_size=16, image_mean=[0.1, 0.2, 0.3]
    )
    processor.save_pretrained(tmp_path / 'ip' / 'image_encoder')
    editor = MODELS.build(config(folder, adapter(tmp_path))).eval()
    assert list(editor.ip_adapters[0].image_processor.image_mean) == [0.1, 0.2, 0.3]


def test_pia_takes_pictures_too(folder: Path) -> None:
    model = config(folder, adapter(folder), type='PIA', condition_module=dict(type='PIACondition'))
    editor = MODELS.build(model).eval()
    shared = dict(prompt='a fish', image=picture(4, (SIZE, SIZE)), seed=1, video_length=FRAMES)
    shared |= dict(num_inference_steps=2, height=SIZE, width=SIZE)
    first = editor.infer(**shared, ip_adapter_image=picture(1))['samples']
    second = editor.infer(**shared, ip_adapter_image=picture(2))['samples']
    assert float((first - second).abs().max()) > 1e-3
    assert torch.equal(first, editor.infer(**shared, ip_adapter_image=picture(1))['samples'])
    type(editor).check(model, dict(prompt='a fish', image=picture(4), ip_adapter_image=picture(1)))


def test_a_text_to_image_model_too(folder: Path) -> None:
    model = config(folder, adapter(folder, 'plus'), type='TextToImage')
    del model['motion_module']
    editor = MODELS.build(model).eval()
    shared = dict(prompt='a fish', seed=1, num_inference_steps=2)
    first = editor.infer(**shared, ip_adapter_image=picture(1))['samples']
    second = editor.infer(**shared, ip_adapter_image=picture(2))['samples']
    assert float((first - second).abs().max()) > 1e-3


# Recipes --------------------------------------------------------------------------------------


def test_a_recipe_makes_the_video_again(folder: Path, tmp_path: Path) -> None:
    """Pictures from a file and from memory, a mask, and a block's scale; the files are gone."""
    picture(1).save(tmp_path / 'first.png')
    mask = torch.zeros(SIZE, SIZE)
    mask[: SIZE // 2] = 1
    settings = dict(
        ip_adapter_image=[{'frames': [str(tmp_path / 'first.png')] * FRAMES}, picture(2)],
        ip_adapter_masks=[mask, None],
        ip_adapter_scale=[{'up': 0.9}, 0.5],
    )
    model = config(folder, adapter(folder, 'plain'), adapter(folder, 'plus'))
    shared = dict(prompt='a fish', video_length=FRAMES, num_inference_steps=1, seed=3)
    made = VideoInferencer(Config(dict(model=model, infer=shared)), device='cpu')(
        tmp_path / 'clip.gif', progress=False, **settings
    )
    (tmp_path / 'first.png').unlink()
    again = VideoInferencer(tmp_path / 'clip.gif', device='cpu')
    entries = again.recipe['arguments']['ip_adapter_image'][0]['frames']  # type: ignore[index]
    assert ['data' in entry for entry in entries] == [True, False, False]
    assert torch.equal(again(False, progress=False)['samples'], made['samples'])
    plan = '\n'.join(again.plan(False).lines())
    assert 'image_encoder: CLIPVisionModelWithProjection' in plan
    with pytest.raises(InputError, match='is missing'):
        again.prepare(False, ip_adapter_image=None)


# Refusals, from the config alone --------------------------------------------------------------

HALF = torch.ones(SIZE, SIZE // 2)
REFUSALS = [
    (1, {}, 'ip_adapter_image is missing: the IP-Adapter .plain. needs a picture'),
    (0, dict(ip_adapter_image=picture(1)), 'the model has no IP-Adapter'),
    (0, dict(ip_adapter_scale=0.5), 'ip_adapter_scale is given, but'),
    (1, dict(ip_adapter_image='gone.png'), 'gone.png does not exist'),
    (1, dict(ip_adapter_image=[]), 'ip_adapter_image has 0 entries for 1 IP-Adapters'),
    (1, dict(ip_adapter_image=[[]]), 'ip_adapter_image is an empty list'),
    (2, dict(ip_adapter_image=picture(1)), 'has one entry for 2 IP-Adapters: expected a list of 2'),
    (2, dict(ip_adapter_image=[picture(1)] * 3), '3 entries for 2 IP-Adapters'),
    (2, dict(ip_adapter_image=[picture(1), None]), "the IP-Adapter 'plus' needs a picture"),
    (1, dict(ip_adapter_image={'frame': []}), "a dict with 'frame'.*Did you mean 'frames'"),
    (1, dict(ip_adapter_image={'frames': [picture(1)] * 4}), 'for 4 frames, the clip has 3'),
    (
        1,
        dict(ip_adapter_image={'frames': [picture(1), [picture(1)] * 2, picture(1)]}),
        'from 1 to 2 pictures a frame',
    ),
    (1, dict(ip_adapter_image=3), 'image is a int'),
    (
        1,
        dict(ip_adapter_image=picture(1), ip_adapter_image_embeds=torch.zeros(2, 1, PROJECTED)),
        'give one of them',
    ),
    (1, dict(ip_adapter_image_embeds=torch.zeros(PROJECTED)), r'\[2 or 1, I, E\]'),
    (1, dict(ip_adapter_image_embeds=torch.zeros(3, 1, PROJECTED)), r'shape \[3, 1, 10\]'),
    (1, dict(ip_adapter_image_embeds='gone.safetensors'), 'gone.safetensors does not exist'),
    (1, dict(ip_adapter_image_embeds=[3]), 'holds a int: expected a tensor'),
    (1, dict(ip_adapter_image=picture(1), ip_adapter_scale={'dwon': 1}), "Did you mean 'down'"),
    (1, dict(ip_adapter_image=picture(1), ip_adapter_scale=[1, 2]), '2 scales for 1 pictures'),
    (2, dict(ip_adapter_image=[picture(1)] * 2, ip_adapter_scale=[1]), '1 entries for 2'),
    (
        1,
        dict(ip_adapter_image=picture(1), ip_adapter_masks=[HALF, HALF]),
        '2 masks for 1 pictures',
    ),
    (
        1,
        dict(ip_adapter_image=picture(1), ip_adapter_masks=HALF),
        r'8x16 px, which is another shape than the clip \(16x16\)',
    ),
    (
        1,
        dict(ip_adapter_image=picture(1), ip_adapter_masks=torch.full((SIZE, SIZE), 2.0)),
        'values from 2 to 2: expected 0 to 1',
    ),
    (
        1,
        dict(ip_adapter_image=picture(1), ip_adapter_masks=torch.ones(2, SIZE, SIZE)),
        r'\[2, 16, 16\]: expected \[height, width\], or \[3, height, width\]',
    ),
    (
        1,
        dict(ip_adapter_image=[[picture(1)] * 2], ip_adapter_masks=[[HALF, HALF.T]]),
        'expected one size',
    ),
    (1, dict(ip_adapter_image=picture(1), ip_adapter_masks=torch.ones(3)), r'shape \[3\]'),
]


@pytest.mark.parametrize(('adapters', 'arguments', 'message'), REFUSALS)
def test_refusals(
    adapters: int, arguments: dict, message: str, folder: Path, build: Callable
) -> None:
    kinds = list(FILES)[:adapters]
    model = config(folder, *(adapter(folder, kind) for kind in kinds))
    call = dict(prompt='a fish', video_length=FRAMES, height=SIZE, width=SIZE, **arguments)
    with pytest.raises((InputError, WeightsError), match=message):
        build().check(model, call)
    with pytest.raises((InputError, WeightsError), match=message):
        build(*kinds).infer(**call)


BUILT = [
    ('plain', dict(ip_adapter_image_embeds=torch.zeros(2, 1, 7)), r'expects \[2 or 1, I, 10\]'),
    (
        'plus',
        dict(ip_adapter_image_embeds=torch.zeros(2, 1, HIDDEN)),
        r'has the shape \[2, 1, 16\].*expects \[2 or 1, I, S, 16\]',
    ),
    (
        'plain',
        dict(ip_adapter_image=picture(1), ip_adapter_scale={'up': {'block_0': 1}}),
        "'block_0', which has no cross-attention",
    ),
]


@pytest.mark.parametrize(('kind', 'arguments', 'message'), BUILT)
def test_refusals_that_need_the_model(
    kind: str, arguments: dict, message: str, build: Callable
) -> None:
    with pytest.raises(InputError, match=message):
        infer(build(kind), **arguments)


def test_without_an_image_encoder(build: Callable) -> None:
    editor = build('plain', image_encoder=None)
    with pytest.raises(InputError, match='has no image encoder; name one'):
        infer(editor, ip_adapter_image=picture(1))
    infer(editor, ip_adapter_image_embeds=torch.ones(1, 1, PROJECTED))
    with pytest.raises(InputError, match='give both halves'):
        infer(
            build('plus', image_encoder=None),
            ip_adapter_image_embeds=torch.ones(1, 1, SEEN, HIDDEN),
        )


def test_an_image_encoder_that_is_not_there(folder: Path, build: Callable) -> None:
    wrong = adapter(folder, image_encoder='image_encodr')
    model = config(folder, wrong)
    with pytest.raises(WeightsError, match="image_encodr.*Did you mean 'image_encoder'"):
        MODELS.build(model)
    with pytest.raises(WeightsError, match="Did you mean 'image_encoder'"):
        build().check(model, dict(prompt='a fish', ip_adapter_image=picture(1)))


def test_the_image_encoder_of_another_adapter(folder: Path, tmp_path: Path) -> None:
    small.write_encoder(tmp_path, projection_dim=12)
    kind, source = 'CLIPVisionModelWithProjection', str(tmp_path / 'image_encoder')
    other = dict(type=kind, from_pretrained=source)
    editor = MODELS.build(config(folder))
    with pytest.raises(WeightsError, match='reads 10 features, its image encoder gives 12'):
        editor.add_adapter(adapter(folder, image_encoder=other))
    assert not editor.adapters and not hasattr(editor, 'ip_adapters')


def test_an_adapter_of_another_model(folder: Path, tmp_path: Path) -> None:
    small.write_adapter(tmp_path / 'ip', 'plain', text=2048, layers=LAYERS)
    editor = MODELS.build(config(folder))
    with pytest.raises(WeightsError, match=r'2048 channels \(SDXL\); this model has 12'):
        editor.add_adapter(adapter(tmp_path, image_encoder=None))
    assert not editor.adapters and not hasattr(editor, 'ip_adapters')


def test_keys_of_the_config(folder: Path) -> None:
    encoder = dict(type='CLIPVisionModelWithProjection', from_pretrained=str(folder))
    processor = dict(type='CLIPImageProcessor', image_size=16)
    whole = adapter(folder, image_encoder=encoder, image_processor=processor, scale=0.5)
    images = dict(prompt='a fish', ip_adapter_image='a.png', ip_adapter_scale={'up': 1})
    check(dict(model=config(folder, whole), infer=images), 'x.py')
    encoder['subfoldr'] = 'ip'
    with pytest.raises(ConfigError, match="takes no 'subfoldr'.*Did you mean 'subfolder'"):
        check(dict(model=config(folder, whole)), 'x.py')
    with pytest.raises(ConfigError, match="Did you mean 'ip_adapter_image'"):
        check(dict(model=config(folder), infer=dict(ip_adapter_imge='a.png')), 'x.py')
    with pytest.raises(ConfigError, match="takes no 'scal'.*Did you mean 'scale'"):
        MODELS.build(config(folder, adapter(folder, scal=1)))
    with pytest.raises(ConfigError, match='scale='):
        MODELS.build(config(folder, adapter(folder, scale='much')))
