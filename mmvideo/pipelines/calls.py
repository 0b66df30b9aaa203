"""A call of a pipeline: its generators, its progress, and the function after each step.

N samples, T frames, L tokens, D width; R rows, the samples behind their unguided halves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmvideo.editors.checks import check_whole
from mmvideo.editors.course import OnStep, Step
from mmvideo.errors import InputError


class Bar:
    """Progress on stderr, as a callback of ``infer``.

    Args:
        config: arguments of tqdm.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = dict(config)
        self._bar: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int, total: int, latents: Tensor) -> None:
        if self._bar is None or done == 1:
            self.__exit__()
            self._bar = bar_of(self._config, total=total)
        self._bar.update(1)


def bar_of(config: Mapping[str, Any], iterable: Any = None, total: int | None = None) -> Any:
    """A bar of tqdm as diffusers shows it, over an iterable or for a number of steps."""
    from diffusers.utils.logging import tqdm

    return tqdm(**{'iterable': iterable, 'total': total, **config})


def cpu_generators(generator: Any) -> Any:
    """Generators as an editor takes them: of torch and on the CPU; None stays.

    One of a device, or of numpy, gives the seed of one on the CPU, so that noise depends on no
    device; it moves on by one number.

    Raises:
        InputError: something else.
    """
    if generator is None:
        return None
    if isinstance(generator, (list, tuple)):
        return [_cpu(one) for one in generator]
    return _cpu(generator)


def _cpu(generator: Any) -> torch.Generator:
    if isinstance(generator, torch.Generator):
        if generator.device.type == 'cpu':
            return generator
        drawn = torch.randint(2**62, (1,), generator=generator, device=generator.device)
        return torch.Generator().manual_seed(int(drawn))
    if isinstance(generator, np.random.Generator):
        return torch.Generator().manual_seed(int(generator.integers(2**62)))
    if isinstance(generator, np.random.RandomState):
        return torch.Generator().manual_seed(int(generator.randint(2**31 - 1)))
    raise InputError(
        f'generator is a {type(generator).__name__}: expected a torch.Generator, a generator of '
        'numpy, or a list of them.'
    )


def step_function(
    pipeline: Any,
    callback: Callable | None,
    inputs: Sequence[str],
    legacy: Mapping[str, Any],
) -> OnStep | None:
    """What an editor calls after each step, for callbacks of diffusers' form.

    Args:
        pipeline: handed to the callback; its ``_guidance_scale`` and ``_interrupt`` are obeyed, and
            ``_frames_first`` says how it shows latents.
        callback: ``(pipeline, index, timestep, tensors) -> tensors``.
        inputs: names of the tensors.
        legacy: see ``VideoPipeline._generate``.

    Raises:
        InputError: no function.
    """
    older, every = legacy.get('callback'), legacy.get('callback_steps')
    every = 1 if every is None else every
    check_whole('callback_steps', every, 1)
    for name, value in (('callback_on_step_end', callback), ('callback', older)):
        if value is not None and not callable(value):
            raise InputError(f'{name}={value!r}: expected a function or None.')
    last: dict[str, Tensor] = {}  # negative prompts are shown on when guidance has ended

    def on_step(step: Step) -> None:
        pipeline._num_timesteps = step.count
        if callback is not None:
            shown = {name: _shown(step, name, pipeline) for name in inputs or ()}
            last.update({name: value for name, value in shown.items() if value is not None})
            shown = {name: last.get(name) for name in shown}
            before = {name: _state(value) for name, value in shown.items()}
            returned = callback(pipeline, step.index, step.timestep, shown)
            changed = _changed(returned, shown, before)
            if 'latents' in changed:
                step.latents = _checked(changed['latents'], step.latents, pipeline)
            _apply(step, changed, pipeline._guidance_scale > 1)
        if older is not None and step.index % every == 0:
            older(step.index, step.timestep, step.latents)
        step.stop = bool(pipeline._interrupt)

    return None if callback is None and older is None else on_step


def _state(value: Tensor | None) -> tuple[int, int]:
    """What tells whether a tensor was changed in place."""
    return (id(value), 0 if value is None else value._version)


def _turned(latents: Tensor, pipeline: Any) -> Tensor:
    """Latents [N, C, T, H, W] as a pipeline shows them, and back."""
    return latents.transpose(1, 2) if pipeline._frames_first else latents


def _checked(latents: Tensor, like: Tensor, pipeline: Any) -> Tensor:
    """Latents of a callback, of the shape that it was shown, as the editor has them."""
    found, wanted = (list(x.shape) for x in (latents, _turned(like, pipeline)))
    if found != wanted:
        raise InputError(f'callback_on_step_end: latents of the shape {found}, expected {wanted}.')
    return _turned(latents, pipeline)


def _shown(step: Step, name: str, pipeline: Any) -> Tensor | None:
    """A tensor in the shape that diffusers shows: text for every frame of every row."""
    if name == 'latents':
        return _turned(step.latents, pipeline)
    embeds, rows = step.embeds, len(step.text.rows)
    if name == 'negative_prompt_embeds':
        return embeds[: rows // 2] if step.guided else None
    frames = step.text.num_frames
    whole = embeds if embeds.ndim == 4 else embeds[:, None].expand(-1, frames, -1, -1)
    return whole.flatten(0, 1).clone()


def _changed(
    returned: Any, shown: Mapping[str, Tensor | None], before: Mapping[str, tuple[int, int]]
) -> dict[str, Tensor]:
    if returned is None:
        returned = {}
    if not isinstance(returned, Mapping):
        raise InputError(
            f'callback_on_step_end returned a {type(returned).__name__}: expected a dict of '
            'tensors, such as the one it was given.'
        )
    values = {**shown, **returned}
    known = ('latents', 'prompt_embeds', 'negative_prompt_embeds')
    for name in returned:
        if name not in known:
            raise InputError(f'callback_on_step_end returned {name!r}: expected some of {known}.')
    return {
        name: value
        for name, value in values.items()
        if value is not None and _state(value) != before.get(name)
    }


def _apply(step: Step, changed: Mapping[str, Tensor], guided: bool) -> None:
    """Let text and guidance that a callback changed count from the next step on."""
    ends = step.guided and not guided
    texts = {'prompt_embeds', 'negative_prompt_embeds'} & set(changed)
    if not ends and not texts:
        return
    rows, frames, embeds = len(step.text.rows), step.text.num_frames, step.embeds
    if 'negative_prompt_embeds' in texts and step.guided:
        avoided = changed['negative_prompt_embeds'].to(embeds)
        parts = [avoided, embeds[rows // 2 :]]
        if len({part.ndim for part in parts}) > 1:
            parts = [x if x.ndim == 4 else x[:, None].expand(-1, frames, -1, -1) for x in parts]
        embeds = torch.cat(parts)
    if 'prompt_embeds' in texts:
        embeds = _by_rows(changed['prompt_embeds'], rows, frames).to(embeds)
    step.guided = step.guided and guided
    step.embeds = embeds[-(rows // 2 if ends else rows) :]


def _by_rows(value: Tensor, rows: int, frames: int) -> Tensor:
    """Text of a callback, [k * T, L, D] or [k, L, D], by row; k is R or half of it."""
    for count in (rows, rows // 2):
        if count and len(value) == count * frames:
            return value.unflatten(0, (count, frames))
    if value.ndim == 3 and len(value) in (rows, rows // 2):
        return value
    raise InputError(
        f'callback_on_step_end: prompt_embeds has {len(value)} rows, expected '
        f'{rows * frames}, one for each frame of {rows} rows, or half of that without guidance.'
    )
