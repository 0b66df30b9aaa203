"""Pictures as prompts of the editors: against diffusers' pipeline, and in use."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_ip_adapters as small
import small_ip_editor
import torch
from mmengine import Config
from PIL import Image
from small_ip_adapters import FRAMES
from small_ip_editor import (
    CELLS,
    FILES,
    LAYERS,
    SIZE,
    adapter,
    assert_close,
    config,
    infer,
    picture,
    pipeline,
    reference,
)
from transformers import CLIPImageProcessor

from mmvideo.apis.inferencer import VideoInferencer
from mmvideo.checkpoints.files import write_tensors
from mmvideo.errors import InputError
from mmvideo.registry import MODELS

folder, build = small_ip_editor.folder, small_ip_editor.build


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
    torch.nn.init.normal_(editor.unet.conv_in.weight)
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
