"""Guidance in some of the steps, and DeepCache, through ``infer``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from small_calls import caller, picture

from mmvideo.diffusion.deep_cache import DeepCache, DeepMemory
from mmvideo.editors.animatediff import AnimateDiff
from mmvideo.editors.pia import PIA
from mmvideo.errors import InputError

PROMPTS = ['a red fish', 'a blue car']
FAST = dict(video_length=4, num_inference_steps=4, guidance_scale=3.0, seed=0)
make = caller(**FAST)


@pytest.fixture
def rows(animatediff: Any, pia: Any) -> Iterator[dict[str, list]]:
    """Clips in each call of the denoisers, frames in each of their middle."""
    seen: dict[str, list] = dict(trunk=[], middle=[], latents=[])
    hooks = []
    for editor in (animatediff, pia):

        def trunk(_: Any, inputs: tuple) -> None:
            seen['trunk'].append(len(inputs[0]))

        def middle(_: Any, inputs: tuple) -> None:
            seen['middle'].append(len(inputs[0]))

        hooks.append(editor.unet.register_forward_pre_hook(trunk))
        hooks.append(editor.unet.mid_block.register_forward_pre_hook(middle))
    yield seen
    for hook in hooks:
        hook.remove()


# --- guidance -------------------------------------------------------------------------------------


@pytest.mark.parametrize('scale', [0.0, 1.0])
def test_without_guidance_each_clip_is_denoised_once(
    build: Callable, rows: dict, scale: float, animatediff: Any
) -> None:
    make(animatediff, PROMPTS, guidance_scale=scale)
    assert rows['trunk'] == [2] * 4
    rows['trunk'].clear()
    make(animatediff, PROMPTS)
    assert rows['trunk'] == [4] * 4


def test_guidance_in_a_part_of_the_steps(animatediff: Any, pia: Any, rows: dict) -> None:
    shared = dict(pia=dict(image=picture(), motion_scale=2), animatediff={})
    for name, editor in dict(animatediff=animatediff, pia=pia).items():
        states: dict[str, list] = dict(whole=[], part=[])
        for interval, kept in ((None, states['whole']), ([0.0, 0.5], states['part'])):
            rows['trunk'].clear()
            make(editor, PROMPTS, guidance_interval=interval, **shared[name],
                 callback=lambda i, n, x, kept=kept: kept.append(x.clone()))  # fmt: skip
        assert rows['trunk'] == [4, 4, 2, 2]
        for step in (0, 1):  # to the bit where both are guided
            assert torch.equal(states['whole'][step], states['part'][step])
        assert not torch.allclose(states['whole'][2], states['part'][2], atol=1e-3)


def test_the_steps_outside_are_those_without_guidance(animatediff: Any, rows: dict) -> None:
    states: list[list] = [[], []]
    make(animatediff, PROMPTS, guidance_scale=1.0, callback=lambda *s: states[0].append(s[2]))
    make(
        animatediff, PROMPTS, guidance_interval=(0.5, 1), callback=lambda *s: states[1].append(s[2])
    )
    assert torch.equal(states[0][1], states[1][1])
    assert not torch.allclose(states[0][2], states[1][2], atol=1e-3)
    assert rows['trunk'][4:] == [2, 2, 4, 4]


def test_the_whole_interval_changes_nothing(animatediff: Any) -> None:
    settings = dict(guidance_scale={0: 1.0, 3: 4.0}, windows=dict(length=3, overlap=1))
    plain = make(animatediff, PROMPTS, **settings)
    assert torch.equal(plain, make(animatediff, PROMPTS, guidance_interval=(0, 1), **settings))


# --- DeepCache ------------------------------------------------------------------------------------


def test_an_interval_of_one_changes_nothing(animatediff: Any, pia: Any) -> None:
    for depth in (1, 2):
        settings = dict(interval=1, depth=depth)
        plain = make(animatediff, PROMPTS)
        assert torch.equal(plain, make(animatediff, PROMPTS, deep_cache=settings))
    shared = dict(image=picture(), motion_scale=2)
    plain = make(pia, 'a car', **shared)
    assert torch.equal(plain, make(pia, 'a car', **shared, deep_cache=1))


def test_the_middle_runs_in_every_third_step(animatediff: Any, rows: dict) -> None:
    plain = make(animatediff, PROMPTS, num_inference_steps=7)
    assert len(rows['middle']) == 7
    rows['middle'].clear(), rows['trunk'].clear()
    cached = make(animatediff, PROMPTS, num_inference_steps=7, deep_cache=True)
    assert rows['middle'] == [2 * 2 * 4] * 3  # steps 0, 3 and 6: halves, clips, frames
    assert rows['trunk'] == [4] * 7
    assert 0 < float((plain - cached).abs().max()) < 0.5


def test_a_batch_equals_each_alone(animatediff: Any) -> None:
    together = make(animatediff, PROMPTS, deep_cache=2)
    alone = make(animatediff, PROMPTS[1], deep_cache=2, seed=1)
    assert float((together[1:] - alone).abs().max()) <= 1e-5


def test_each_window_has_its_own(animatediff: Any, rows: dict) -> None:
    """Static windows reuse in between; a window that moved there is computed whole."""
    long = dict(video_length=10, deep_cache=2)
    static = dict(windows=dict(length=6, overlap=2))
    cached = make(animatediff, 'a car', **long, **static)
    assert len(rows['trunk']) == 2 * 4 and len(rows['middle']) == 2 * 2
    plain = make(animatediff, 'a car', video_length=10, **static)
    assert 0 < float((plain - cached).abs().max()) < 0.5
    rows['middle'].clear()
    moving = dict(windows=dict(length=4, overlap=0, schedule='looped'))
    make(animatediff, 'a car', video_length=8, deep_cache=3, **moving)
    # They begin at frames 0 and 4 in the first two steps, at 2 and 6 in the others.
    assert len(rows['middle']) == 2 * 2
    one = make(animatediff, 'a car', deep_cache=2, windows=4)
    assert torch.equal(one, make(animatediff, 'a car', deep_cache=2))


def test_both_together(animatediff: Any, rows: dict) -> None:
    """Unguided steps cannot use what the guided ones kept."""
    make(animatediff, 'a car', num_inference_steps=6, deep_cache=4, guidance_interval=(0, 0.5))
    assert rows['trunk'] == [2, 2, 2, 1, 1, 1]
    assert rows['middle'] == [2 * 4, 4]  # steps 0 and 3


def test_every_sampling_of_free_init_begins_anew(animatediff: Any, rows: dict) -> None:
    settings = dict(deep_cache=3, free_init=dict(num_iters=2))
    make(animatediff, 'a car', num_inference_steps=5, **settings)
    assert len(rows['middle']) == 2 * 2 and len(rows['trunk']) == 2 * 5


def test_memory_forgets_what_no_step_can_use() -> None:
    memory = DeepMemory(3)
    one, two = torch.zeros(1), torch.ones(1)
    memory.keep('a', 0, one)
    assert memory.recall('a', 0) is None  # a new sampling
    assert memory.recall('a', 2) is one and memory.recall('a', 3) is None
    assert memory.recall('b', 1) is None
    memory.keep('b', 1, two)
    assert memory.recall('a', 2) is one and memory.recall('b', 3) is two
    memory.keep('b', 3, one)
    assert set(memory._kept) == {'b'}
    memory.keep('a', 0, two)  # the next sampling
    assert set(memory._kept) == {'a'}
    assert DeepCache().interval == 3


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('wrong', 'expected'),
    [
        (dict(guidance_interval=0.8), r'guidance_interval=0\.8: expected two shares'),
        (dict(guidance_interval=[0, 'x']), 'expected two shares'),
        (dict(guidance_interval=[0.8, 0.2]), r'first < last <= 1, such as \[0\.2, 0\.8\]'),
        (dict(guidance_interval=[0.2, 80]), r'such as \[0\.2, 1\.0\]'),
        (dict(guidance_interval=[0.5, 0.5]), 'first < last'),
        (dict(guidance_interval=[0, float('nan')]), 'first < last'),
        (dict(guidance_interval=[0.3, 0.7]), r'none of 4 steps .* is \[0\.25, 0\.75\]'),
        (dict(deep_cache='fast'), "deep_cache='fast': expected a dict"),
        (dict(deep_cache=dict(intervall=3)), "takes no 'intervall'.*'interval'"),
        (dict(deep_cache=dict(interval=0)), r'deep_cache\.interval=0: expected an integer >= 1'),
        (dict(deep_cache=dict(interval=2.5)), r'deep_cache\.interval=2\.5'),
        (
            dict(deep_cache=dict(depth=99)),
            r'deep_cache\.depth=99: expected an integer from 1 to \d',
        ),
        (dict(deep_cache=dict(depth=0)), r'deep_cache\.depth=0'),
    ],
)
def test_mistakes(tiny_config: Callable, animatediff: Any, wrong: dict, expected: str) -> None:
    """Before a model is read, and of one that is."""
    arguments = {**FAST, **wrong, 'prompt': 'a car'}
    with pytest.raises(InputError, match=expected) as early:
        AnimateDiff.check(tiny_config('AnimateDiff'), arguments)
    with pytest.raises(InputError, match=expected):
        PIA.check(tiny_config('PIA'), {**arguments, 'image': picture()})
    with pytest.raises(InputError) as late:
        animatediff.infer(**arguments)
    assert str(late.value) == str(early.value)
