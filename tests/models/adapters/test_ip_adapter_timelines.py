"""Pictures as prompts whose strength changes over frames or over steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_ip_editor
import torch
from small_ip_editor import CELLS, SIZE, adapter, config, picture
from torch import Tensor

from mmvideo.errors import ConfigError, InputError
from mmvideo.registry import MODELS

folder, build = small_ip_editor.folder, small_ip_editor.build
STEP = {'interpolation': 'step'}
FRAMES, TURN = 4, 2
LEFT = torch.cat([torch.ones(SIZE, SIZE // 2), torch.zeros(SIZE, SIZE // 2)], dim=1)


def make(editor: Any, scale: Any = None, frames: int = FRAMES, **changes: Any) -> Tensor:
    """Latents [N, C, T, H, W] of frames that are pictures by themselves."""
    noise = torch.randn(1, 4, frames, CELLS, CELLS, generator=torch.Generator().manual_seed(7))
    call = dict(prompt='a red fish', negative_prompt='red', latents=noise, guidance_scale=3.0)
    call |= dict(num_inference_steps=2, video_length=frames, output_type='latent')
    call |= dict(ip_adapter_image=picture(1), ip_adapter_scale=scale, motion_strength=0.0)
    return editor.infer(**{**call, **changes})['latents']


def distance(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max())


SITUATIONS: dict[str, dict[str, Any]] = {
    'guided': {},
    'unguided': dict(guidance_scale=1.0),
    'masked': dict(ip_adapter_masks=LEFT),
    'a mask a frame': dict(ip_adapter_masks=torch.stack([LEFT, 1 - LEFT, LEFT, LEFT])),
    'a picture a frame': dict(ip_adapter_image={'frames': [picture(i) for i in range(FRAMES)]}),
    'windows': dict(frames=12, windows=dict(length=8, overlap=4)),
}


@pytest.mark.parametrize('situation', SITUATIONS)
def test_frames_have_their_own_strength(build: Callable, situation: str) -> None:
    editor, changes = build('plain'), SITUATIONS[situation]
    turn = 8 if situation == 'windows' else TURN
    before, after = (make(editor, scale, **changes) for scale in (1.0, 0.3))
    assert distance(before, after) > 1e-3
    mixed = make(editor, {0: 1.0, turn: 0.3} | STEP, **changes)
    assert distance(mixed[:, :, :turn], before[:, :, :turn]) <= 1e-5
    assert distance(mixed[:, :, turn:], after[:, :, turn:]) <= 1e-5


@pytest.mark.parametrize('scale', [{0: 0.6, 3: 0.6}, {'0': 0.6}, {'steps': {0.0: 0.6, 0.5: 0.6}}])
def test_a_constant_is_plain_to_the_bit(build: Callable, folder: Path, scale: Any) -> None:
    plain = make(build('plain'), 0.6)
    assert torch.equal(make(build('plain'), scale), plain)
    own = MODELS.build(config(folder, adapter(folder, scale=scale))).eval()
    assert torch.equal(make(own), plain)  # of the config, where the call says none


def test_a_strength_for_each_step(build: Callable) -> None:
    editor = build('plain')
    for windows in (None, dict(length=4, overlap=2)):
        more = dict(frames=6 if windows else FRAMES, windows=windows)
        one = make(editor, {'steps': {0.0: 0.6, 0.5: 0.0} | STEP}, **more)
        other = make(editor, {'steps': {0.0: 0.6, 0.5: 0.6 + 1e-7}}, **more)
        assert distance(other, make(editor, 0.6, **more)) <= 1e-5
        assert distance(one, other) > 1e-4
    # Taken off between the steps by hand: the second step sees no picture.
    seen = []
    handle = editor.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs['images'])), with_kwargs=True
    )
    make(editor, {'steps': {0.0: 0.6, 0.5: 0.0} | STEP})
    handle.remove()
    assert seen[0] > 0 and seen[1] == 0


def test_several_adapters_blocks_and_pictures(build: Callable) -> None:
    editor = build('plain', 'plus')
    images = dict(ip_adapter_image=[[picture(1), picture(2)], picture(3)])
    flat: list[Any] = [[0.5, 0.2], {'down': 0.4, 'up': {'block_1': 0.3}}]
    plain = make(editor, flat, **images)
    turning = {0: 0.5, TURN: 0.0} | STEP
    mixed = make(editor, [[turning, 0.2], flat[1]], **images)
    assert distance(mixed[:, :, :TURN], plain[:, :, :TURN]) <= 1e-5
    without = make(editor, [[0.0, 0.2], flat[1]], **images)
    assert distance(mixed[:, :, TURN:], without[:, :, TURN:]) <= 1e-5
    steps = {'steps': {0.0: 0.4, 1.0: 0.4 + 1e-7}}
    blocks = make(editor, [flat[0], {'down': steps, 'up': {'block_1': {0: 0.3, 1: 0.3}}}], **images)
    assert distance(blocks, plain) <= 1e-5


def test_motion_sees_the_whole_clip(build: Callable) -> None:
    mixed, plain = (
        make(build('plain'), scale, motion_strength=1.0)
        for scale in ({0: 1.0, TURN: 0.3} | STEP, 1.0)
    )
    assert (mixed - plain).abs().amax((0, 1, 3, 4)).min() > 1e-6


REFUSED = [
    ({0: 1.0, 'down': 0.5}, "the key 'down' is no frame"),
    ({0: 'a'}, r"\[0\]='a': expected a number"),
    ({'down': {0: 1.0, -1: 0.5}}, 'the key -1 is no frame'),
    ({'steps': {-0.5: 1.0}}, 'the key -0.5 is no share of the steps.*The nearest is 0'),
    ({0: 1.0, 'interpolation': 'none'}, "interpolation='none', expected one of linear"),
]


@pytest.mark.parametrize(('scale', 'words'), REFUSED, ids=str)
def test_refused(build: Callable, folder: Path, scale: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make(build('plain'), scale)
    with pytest.raises(ConfigError, match=words):
        type(build('plain')).check_adapters([adapter(folder, scale=scale)])


def test_a_key_beyond_the_clip(build: Callable, folder: Path) -> None:
    words = 'the key 4 lies beyond the clip, whose 4 frames are 0 to 3'
    with pytest.raises(InputError, match=f'ip_adapter_scale: {words}'):
        make(build('plain'), {0: 1.0, 4: 0.0})
    with pytest.raises(ConfigError, match=words):
        checked = [adapter(folder, scale={0: 1.0, 4: 0.0})]
        type(build('plain')).check_adapters(checked, num_frames=FRAMES)
