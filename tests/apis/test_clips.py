"""Clips and controls through the inferencer: into a recipe, and again out of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine import Config
from PIL import Image
from safetensors.torch import save_file

from mmvideo.apis import VideoInferencer
from mmvideo.errors import InputError
from mmvideo.media.recipe import read_recipe
from mmvideo.media.writers import write_video
from mmvideo.models.adapters.control_encoder import ControlEncoder, control_arguments

TINY = Path(__file__).with_name('tiny_pia.py')
CONTROL = dict(
    _class_name='ControlNetModel',
    block_out_channels=[8, 16],
    layers_per_block=1,
    cross_attention_dim=16,
    attention_head_dim=2,
    norm_num_groups=4,
    down_block_types=['CrossAttnDownBlock2D', 'DownBlock2D'],
    conditioning_embedding_out_channels=[4, 8],
)


def frames(seed: int, count: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A config's folder with a clip, a folder of frames and a ControlNet beside it."""
    shutil.copy(TINY, tmp_path / 'tiny.py')
    write_video(tmp_path / 'clip.gif', frames(1), 8.0)
    (tmp_path / 'poses').mkdir()
    for index, picture in enumerate(frames(2)):
        Image.fromarray(picture).save(tmp_path / 'poses' / f'{index}.png')
    torch.manual_seed(0)
    net = ControlEncoder(**control_arguments(CONTROL))
    tensors = {k: v + 0.1 * torch.randn_like(v) for k, v in net.state_dict().items()}
    (tmp_path / 'net').mkdir()
    (tmp_path / 'net' / 'config.json').write_text(json.dumps(CONTROL))
    save_file(tensors, tmp_path / 'net' / 'diffusion_pytorch_model.safetensors')
    return tmp_path


def control(folder: Path) -> dict[str, Any]:
    return dict(type='ControlNet', from_pretrained=str(folder / 'net'), scale=0.7)


def fixed(inferencer: VideoInferencer) -> VideoInferencer:
    """Without weight files every build is random: the same at each."""
    torch.manual_seed(0)
    assert inferencer.editor is not None
    return inferencer


def test_a_recipe_holds_what_was_seen(folder: Path) -> None:
    first = fixed(VideoInferencer(folder / 'tiny.py', controls=[control(folder)]))
    out = folder / 'out.mp4'
    made = first(
        out,
        progress=False,
        image=None,
        video=str(folder / 'clip.gif'),
        strength=0.7,
        control_videos=[str(folder / 'poses')],
        control_scale={0: 1.0, 3: 0.2},
    )
    recipe = read_recipe(out)
    poses = recipe['arguments']['control_videos'][0]
    assert [entry['name'] for entry in poses] == ['0.png', '1.png', '2.png', '3.png']
    assert recipe['arguments']['video']['name'] == 'clip.gif'
    assert recipe['config']['model']['controls'] == [control(folder)]
    assert any('diffusion_pytorch_model' in entry['name'] for entry in recipe['weights'])
    shutil.rmtree(folder / 'poses')
    (folder / 'clip.gif').unlink()
    again = fixed(VideoInferencer(out))(folder / 'again.mp4', progress=False)
    assert torch.equal(again['samples'], made['samples'])
    other = fixed(VideoInferencer(out))(False, progress=False, control_scale=0)
    assert not torch.equal(other['samples'], made['samples'])


def test_an_annotator_is_in_the_recipe(folder: Path) -> None:
    """Footage with it is what its edges are without, also when the video is made again."""
    footage = np.kron(frames(2), np.ones((1, 2, 2, 1), np.uint8))
    edges = [cv2.Canny(frame, 50, 150)[:, :, None].repeat(3, 2) for frame in footage]
    shared = dict(progress=False, height=32, width=32, image=frames(3)[0])
    first = fixed(VideoInferencer(folder / 'tiny.py', controls=[control(folder)]))
    plain = first(False, **shared, control_videos=[np.stack(edges)])['samples']
    settings = dict(type='canny', low=50, high=150)
    seen = dict(control_videos=[footage], control_annotator=settings)
    made = first(folder / 'a.mp4', **shared, **seen)['samples']
    assert torch.equal(made, plain)
    assert not torch.equal(made, first(False, **shared, control_videos=[footage])['samples'])
    assert read_recipe(folder / 'a.mp4')['arguments']['control_annotator'] == settings
    again = fixed(VideoInferencer(folder / 'a.mp4'))(False, progress=False)['samples']
    assert torch.equal(again, made)
    with pytest.raises(InputError, match="control_annotator='cany'.*Did you mean 'canny'"):
        first(False, control_videos=[footage], **shared, control_annotator='cany')


def test_an_inversion_is_in_the_recipe(folder: Path) -> None:
    settings = dict(type='ddim', num_inference_steps=3, prompt='a fish')
    shared = dict(progress=False, num_inference_steps=2)
    made = fixed(VideoInferencer(folder / 'tiny.py'))(
        folder / 'a.mp4', image=None, video=str(folder / 'clip.gif'), inversion=settings, **shared
    )
    assert read_recipe(folder / 'a.mp4')['arguments']['inversion'] == settings
    again = fixed(VideoInferencer(folder / 'a.mp4'))
    assert torch.equal(again(False, progress=False)['samples'], made['samples'])
    other = again(False, progress=False, inversion=dict(settings, prompt='a red fish'))
    assert not torch.equal(other['samples'], made['samples'])


def test_a_config_names_clips_beside_it(folder: Path) -> None:
    cfg = Config.fromfile(folder / 'tiny.py')
    cfg.infer.update(image=None, video=dict(clip='clip.gif', start=0, stride=1), strength=0.5)
    cfg.dump(folder / 'clip.py')
    inferencer = VideoInferencer(folder / 'clip.py')
    text = '\n'.join(inferencer.plan(False).lines())
    assert '4 frames of 16x16' in text
    sample = fixed(inferencer)(False, progress=False)
    assert sample['samples'].shape == (1, 3, 4, 16, 16)
    assert sample['recipe']['arguments']['video']['clip']['name'] == 'clip.gif'


def test_clips_in_memory_are_kept_as_pictures(folder: Path) -> None:
    inferencer = fixed(VideoInferencer(folder / 'tiny.py'))
    shared = dict(progress=False, image=None, strength=0.5)
    array = inferencer(folder / 'a.mp4', video=frames(3), **shared)
    listed = inferencer(False, video=[Image.fromarray(f) for f in frames(3)], **shared)
    again = fixed(VideoInferencer(folder / 'a.mp4'))(False, progress=False)
    assert torch.equal(array['samples'], listed['samples'])
    assert torch.equal(array['samples'], again['samples'])


def test_what_is_not_there_is_named(folder: Path) -> None:
    inferencer = VideoInferencer(folder / 'tiny.py')
    for video, expected in (
        (str(folder / 'clap.gif'), "clap.gif does not exist. Did you mean 'clip.gif'"),
        (dict(clip=str(folder / 'clip.gif'), begin=3), "takes no 'begin'"),
        (frames(1, 3), 'has only 3 frames'),
    ):
        with pytest.raises(InputError, match=expected):
            inferencer.prepare(False, image=None, video=video)
