"""Sampling that starts from a clip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_calls import caller, clip

from mmvideo.editors.animatediff import AnimateDiff
from mmvideo.editors.pia import PIA
from mmvideo.errors import InputError
from mmvideo.registry import MODELS

FAST = dict(prompt='a car', video_length=4, num_inference_steps=5, guidance_scale=2.0, seed=3)
make = caller(**FAST)


def test_the_weaker_the_closer_to_the_clip(animatediff: Any) -> None:
    """The decoder's picture of the clip's own latents is where strength 0 would end."""
    shared = dict(video=clip(), num_inference_steps=100, guidance_scale=1.0)
    near = make(animatediff, **shared, strength=0.01)
    far = make(animatediff, **shared, strength=0.1)
    generator = torch.Generator().manual_seed(FAST['seed'])
    torch.randn(4, 4, 8, 8, generator=generator)  # the noise comes first
    with torch.no_grad():
        latents = animatediff.encode(clip() * 2 - 1, generator)
    own = animatediff.decode(latents.transpose(0, 1)[None])
    distances = [float((video - own).abs().mean()) for video in (near, far)]
    assert distances[0] < 0.1 and distances[0] < 0.7 * distances[1], distances


@pytest.mark.parametrize('kind', ['animatediff', 'pia'])
def test_strength_shortens_the_sampling(kind: str, request: Any) -> None:
    editor = request.getfixturevalue(kind)
    for strength, steps in ((None, 4), (0.4, 2), (1.0, 5)):
        taken: list[int] = []
        make(editor, video=clip(), strength=strength, callback=lambda *s: taken.append(s[1]))  # noqa: B023
        assert taken == [steps] * steps


def test_samples_do_not_depend_on_each_other(animatediff: Any) -> None:
    both = make(animatediff, prompt=['a car', 'a fish'], video=clip(), seed=[3, 4])
    alone = make(animatediff, prompt='a fish', video=clip(), seed=4)
    assert float((both[1] - alone[0]).abs().max()) < 1e-5
    assert float((both[1] - both[0]).abs().max()) > 1e-3


def test_size_follows_the_clip_or_the_call(animatediff: Any) -> None:
    assert make(animatediff, video=clip(side=24)).shape[-2:] == (24, 24)
    assert make(animatediff, video=clip(side=24), height=16, width=16).shape[-2:] == (16, 16)


def test_pia_takes_its_picture_from_the_clip(pia: Any) -> None:
    shared = dict(motion_scale=2, strength=0.6)
    for frame in (0, 2):
        own = make(pia, video=clip(), condition_frame=frame, **shared)
        given = make(pia, video=clip(), image=clip()[frame], condition_frame=frame, **shared)
        assert torch.equal(own, given)
    other = make(pia, video=clip(), image=clip(9)[0], **shared)
    assert not torch.allclose(own, other, atol=1e-3)


def test_pia_starts_from_the_clip_and_not_from_its_picture(pia: Any) -> None:
    shared = dict(image=clip()[0], strength=0.4)
    assert not torch.allclose(make(pia, **shared), make(pia, video=clip(1), **shared), atol=1e-3)


@pytest.mark.parametrize('draws', ['official', 'diffusers'])
def test_windows_share_their_noise(animatediff: Any, calls: list[dict], draws: str) -> None:
    """What two windows of one clip see differs by the clip alone."""
    shared = dict(num_inference_steps=10, guidance_scale=1.0, strength=1.0, draws=draws)
    between = {}
    for noise in ('repeat_context', 'random'):
        calls.clear()
        windows = dict(length=2, overlap=0, noise=noise)
        make(animatediff, video=clip()[:1].repeat(4, 1, 1, 1), windows=windows, **shared)
        first, second = (call['sample'] for call in calls[:2])
        between[noise] = float((second - first).std())
    assert between['repeat_context'] < 0.3 * between['random']


@pytest.mark.parametrize('kind', ['animatediff', 'pia'])
def test_with_windows_and_free_init(kind: str, request: Any) -> None:
    editor = request.getfixturevalue(kind)
    taken: list[int] = []
    result = make(
        editor, video=clip(count=6), video_length=6, windows=4, free_init=dict(num_iters=2),
        strength=0.4, callback=lambda *state: taken.append(state[1]),
    )  # fmt: skip
    assert torch.isfinite(result).all() and result.shape[2] == 6
    assert len(taken) == 4  # two samplings of two steps each


@pytest.mark.parametrize('kind', ['animatediff', 'pia'])
def test_free_init_over_one_window_is_plain(kind: str, request: Any) -> None:
    editor = request.getfixturevalue(kind)
    shared = dict(video=clip(), strength=0.4, free_init=dict(num_iters=2))
    plain = make(editor, **shared)
    assert float((plain - make(editor, **shared, windows=4)).abs().max()) <= 1e-5
    assert not torch.allclose(plain, make(editor, video=clip(), strength=0.4), atol=1e-3)


def test_the_callers_checks(tiny_config: Callable) -> None:
    model, pia = tiny_config('AnimateDiff'), tiny_config('PIA')
    AnimateDiff.check(model, dict(FAST, video=clip()))
    PIA.check(pia, dict(FAST, video=clip()))
    for cls, config, wrong, expected in (
        (AnimateDiff, model, dict(strength=0.5), 'without a video'),
        (AnimateDiff, model, dict(video=clip(count=3)), 'has only 3 frames'),
        (PIA, pia, dict(video=clip(count=3)), 'has only 3 frames'),
        (AnimateDiff, model, dict(video=clip(count=5)), 'has 5 frames'),
        (AnimateDiff, model, dict(video=clip(), strength=1.5), 'strength=1.5'),
        (AnimateDiff, model, dict(video='absent.mp4'), 'absent.mp4 does not exist'),
        (PIA, pia, {}, 'image is missing'),
    ):
        with pytest.raises(InputError, match=expected):
            cls.check(config, {**FAST, **wrong})
    with pytest.raises(InputError, match='without a video'):
        MODELS.build(model).infer(**FAST, strength=0.5)
