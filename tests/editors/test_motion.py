"""PIA's amount of motion: tables that fit the clip, curves, several pictures, a value a sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_calls import pictures
from torch import Tensor

from mmvideo.editors.motion import clip_affinity, condition_frames, spread_motion
from mmvideo.errors import InputError
from mmvideo.models.conditioning.affinity import (
    MOTION_TABLES,
    affinity_at_inference,
    affinity_of_several,
    nearest_condition,
)
from mmvideo.registry import MODELS

FAST = dict(video_length=4, num_inference_steps=2, guidance_scale=1.0)
LOOPS = [name for name in MOTION_TABLES if name.startswith('loop')]


@pytest.fixture
def inputs(pia: Any, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the denoiser gets in every call."""
    seen: list[Tensor] = []
    forward = pia.unet.forward

    def spy(sample: Tensor, *args: Any, **more: Any) -> Tensor:
        seen.append(sample.clone())
        return forward(sample, *args, **more)

    monkeypatch.setattr(pia.unet, 'forward', spy)
    return seen


# --- tables that fit ------------------------------------------------------------------------------


@pytest.mark.parametrize('name', MOTION_TABLES)
def test_a_fitted_table_is_the_official_one_at_16_frames(name: str) -> None:
    fitted = affinity_at_inference(f'fit-{name}', 16)
    assert torch.allclose(fitted, affinity_at_inference(name, 16), atol=1e-6)


@pytest.mark.parametrize('name', LOOPS)
@pytest.mark.parametrize('frames', [2, 8, 16, 24, 61])
@pytest.mark.parametrize('part', [0.0, 0.4, 1.0])
def test_fitted_loops_close(name: str, frames: int, part: float) -> None:
    condition = int(part * (frames - 1))
    affinity = affinity_at_inference(f'fit-{name}', frames, condition)
    assert affinity[0] == affinity[-1] and affinity[condition] == 1
    if frames >= 16:
        assert abs(float(affinity.min()) - min(MOTION_TABLES[name])) <= 0.03


@pytest.mark.parametrize('name', sorted(set(MOTION_TABLES) - set(LOOPS)))
def test_fitted_tables_keep_their_shape(name: str) -> None:
    short, long = (affinity_at_inference(f'fit-{name}', frames) for frames in (16, 46))
    assert torch.allclose(long[::3], short, atol=1e-6)
    assert torch.equal(affinity_at_inference(f'fit-{name}', 46, 45), long.flip(0))
    assert (long.diff() <= 1e-6).all()
    assert affinity_at_inference(f'fit-{name}', 1).tolist() == [MOTION_TABLES[name][0]]


# --- curves and several pictures ------------------------------------------------------------------


def test_keyframes_are_affinities_by_frame() -> None:
    affinity = clip_affinity({0: 1.0, 2: 0.5, 4: 1.0}, 5, (0,))
    assert affinity.tolist() == [1.0, 0.75, 0.5, 0.75, 1.0]
    eased = clip_affinity({0: 1.0, 4: 0.0, 'interpolation': 'ease-in'}, 5, (0,))
    assert eased.tolist() == [1.0, 0.9375, 0.75, 0.4375, 0.0]


def official(frames: int, conditions: list[int], low: float) -> list[float]:
    """The published rule written out, a number at a time."""
    result = [0.0] * frames
    for index, condition in enumerate(conditions):
        each = [1 - abs(f - condition) * (1 - low) / (frames - 1) for f in range(frames)]
        result = [abs(a - b) for a, b in zip(each, result, strict=True)]
        if index:
            least, most = min(result), max(result)
            result = [(value - least) / (most - least) for value in result]
    least, most = min(result), max(result)
    return [(1 - low) * (value - least) / (most - least) + low for value in result]


@pytest.mark.parametrize('conditions', [[0, 15], [0, 7, 15], [3], [15, 0], [2, 9]])
@pytest.mark.parametrize('low', [0.2, 0.5])
def test_the_official_rule_for_several_pictures(conditions: list[int], low: float) -> None:
    ours = affinity_of_several(16, conditions, low)
    assert torch.allclose(ours, torch.tensor(official(16, conditions, low)), atol=1e-6)
    by_argument = clip_affinity([1.0, low], 16, conditions, 'official')
    if len(conditions) > 1:
        assert torch.equal(ours, by_argument)
    else:  # with a single picture its table counts
        assert torch.equal(by_argument, affinity_at_inference([1.0, low], 16, conditions[0]))


def test_the_official_rule_where_nothing_differs() -> None:
    """The published code divides by zero."""
    assert affinity_of_several(2, [0, 1]).tolist() == [1.0, 1.0]


def test_our_rule_takes_the_picture_that_a_frame_resembles_most() -> None:
    affinity = clip_affinity('large', 16, (0, 15))
    each = [affinity_at_inference('large', 16, frame) for frame in (0, 15)]
    assert torch.equal(affinity, torch.maximum(*each))
    assert affinity[0] == affinity[15] == 1 and torch.equal(affinity, affinity.flip(0))


def test_the_nearest_picture() -> None:
    assert nearest_condition(5, [0, 4]).tolist() == [0, 0, 0, 1, 1]
    assert nearest_condition(5, [4, 0]).tolist() == [1, 1, 1, 0, 0]


@pytest.mark.parametrize('rule', ['nearest', 'official'])
def test_the_denoiser_sees_each_frames_picture(pia: Any, inputs: list, rule: str) -> None:
    first, last = pictures(2)
    arguments = dict(FAST, prompt='a car', seed=0, motion_scale=2)
    pia.infer(**arguments, image=[first, last], condition_frame=[0, 3], condition_rule=rule)
    pia.infer(**arguments, image=[[first, last]], condition_frame=[0, 3], condition_rule=rule)
    both, again = inputs[0], inputs[2]
    assert torch.equal(both, again)
    latents = both[0, 5:]
    assert torch.equal(latents[:, 0], latents[:, 1]) and torch.equal(latents[:, 2], latents[:, 3])
    assert not torch.allclose(latents[:, 0], latents[:, 3], atol=1e-2)
    assert torch.equal(both[0, 4, :, 0, 0], clip_affinity(2, 4, (0, 3), rule))


def test_each_sample_has_its_pictures(pia: Any) -> None:
    clips = [pictures(4)[:2], pictures(4)[2:]]
    arguments = dict(FAST, condition_frame=[3, 0], strength=0.5, motion_scale='fit-large')
    together = pia.infer('a car', image=clips, seed=[1, 2], **arguments)['samples']
    alone = pia.infer('a car', image=clips[1], seed=2, **arguments)['samples']
    assert float((together[1:] - alone).abs().max()) <= 1e-5


@pytest.mark.parametrize('frame', [1, 3])
def test_any_condition_frame(pia: Any, inputs: list, frame: int) -> None:
    pia.infer('a car', image=pictures(1)[0], condition_frame=frame, motion_scale=0, **FAST)
    mask = inputs[0][0, 4, :, 0, 0]
    assert mask[frame] == 1 and torch.equal(mask, affinity_at_inference(0, 4, frame))


# --- a value a sample -----------------------------------------------------------------------------


def test_motion_of_each_sample(pia: Any, inputs: list) -> None:
    scales = ['small', [1.0, 0.3], {0: 1.0, 3: 0.1}]
    pia.infer('a car', image=pictures(3), motion_scale=scales, seed=0, **FAST)
    for row, scale in zip(inputs[0][:, 4, :, 0, 0], scales, strict=True):
        assert torch.equal(row, clip_affinity(scale, 4, (0,)))


def test_lists_of_numbers_are_one_table() -> None:
    assert spread_motion([1.0, 0.5], 3) == [[1.0, 0.5]] * 3
    assert spread_motion('small', 2) == ['small'] * 2
    assert spread_motion(['small', 'large'], 2) == ['small', 'large']


def test_one_picture_with_a_generator_for_each_prompt(pia: Any) -> None:
    """A public pipeline gives the second generator no picture at all."""
    generators = [torch.Generator().manual_seed(seed) for seed in (4, 9)]
    prompts, image = ['a red fish', 'a car'], pictures(1)[0]
    together = pia.infer(prompts, image=image, generator=generators, **FAST)['samples']
    alone = pia.infer('a car', image=image, seed=9, **FAST)['samples']
    assert float((together[1:] - alone).abs().max()) <= 1e-5


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(motion_scale=-1), '0 to 8'),
        (dict(motion_scale=9), '0 to 8'),
        (dict(motion_scale='fit-smal'), "Did you mean 'fit-small'"),
        (dict(motion_scale=['small', 'lage']), "Did you mean 'large'"),
        (dict(motion_scale={0: 1.5}), r'motion_scale\[0\]=1.5'),
        (dict(motion_scale={0: 1.0, 4: 0.5}), 'motion_scale: the key 4 lies beyond'),
        (dict(condition_frame=4), 'condition_frame=4: a clip of 4 frames has 0 to 3'),
        (dict(condition_frame=-1), 'condition_frame=-1'),
        (dict(condition_frame=[0, 0]), 'a frame appears twice'),
        (dict(condition_frame=[]), 'empty list'),
        (dict(condition_frame=[0, 3]), '1 images for 2 condition frames'),
        (dict(condition_rule='offical'), "Did you mean 'official'"),
        (dict(windows=dict(length=8, overlap=9)), 'overlap=9'),
    ],
    ids=str,
)
def test_refused_with_and_without_weights(
    pia: Any, tiny_config: Callable, change: dict, words: str
) -> None:
    arguments = dict(prompt='a car', image=pictures(1)[0], video_length=4, **change)
    if isinstance(change.get('motion_scale'), list):
        arguments['image'] = pictures(2)
    with pytest.raises(InputError, match=words):
        pia.infer(**arguments)
    with pytest.raises(InputError, match=words):
        MODELS.get('PIA').check(tiny_config('PIA'), arguments)


def test_as_many_values_as_samples(pia: Any) -> None:
    with pytest.raises(InputError, match='2 values of motion_scale for 3 samples'):
        pia.infer('a car', image=pictures(3), motion_scale=['small', 'large'], **FAST)


def test_condition_frames() -> None:
    assert condition_frames(3, 4) == (3,) and condition_frames([3, 0], 4) == (3, 0)
    with pytest.raises(InputError, match='condition_frame=True'):
        condition_frames(True, 4)
