"""The arguments of ``infer``, checked and spread over samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mmvideo.errors import InputError

MAX_SEED = 2**63 - 1


@dataclass
class Sample:
    """One video to make: what belongs to it alone."""

    index: int
    prompt: str
    negative_prompt: str
    generator: torch.Generator
    latents: torch.Tensor | None = None
    extras: dict[str, Any] = field(default_factory=dict)


@dataclass
class Request:
    """A call of ``infer``: the samples, and what they share. Sizes in pixels."""

    samples: list[Sample]
    num_frames: int
    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    eta: float = 0.0
    decode_chunk_size: int = 16
    strength: float = 1.0


def check_settings(
    *,
    num_frames: int,
    height: int,
    width: int,
    num_inference_steps: int,
    guidance_scale: float,
    eta: float = 0.0,
    decode_chunk_size: int = 16,
    strength: float = 1.0,
    multiple: int = 8,
    max_frames: int | None = None,
) -> None:
    """Refuse settings that cannot work; needs no model.

    Args:
        multiple: height and width must be multiples of this, the VAE's factor.
        max_frames: positions of the motion modules, None for no limit.

    Raises:
        InputError: naming the setting, its value and the nearest valid one.
    """
    for name, value in (
        ('num_frames', num_frames),
        ('num_inference_steps', num_inference_steps),
        ('decode_chunk_size', decode_chunk_size),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f'{name}={value!r}: expected an integer >= 1.')
    if max_frames is not None and num_frames > max_frames:
        raise InputError(
            f'num_frames={num_frames}: the motion modules have positions for {max_frames} frames. '
            f'Ask for at most {max_frames}, or use a motion module with more positions.'
        )
    for name, value in (('height', height), ('width', width)):
        check_size(name, value, multiple)
    check_range('guidance_scale', guidance_scale, 0, 100)
    check_range('eta', eta, 0, 1)
    check_range('strength', strength, 0, 1, open_low=True)


def check_size(name: str, value: int, multiple: int) -> None:
    """A side in pixels must be a positive multiple of the VAE's factor."""
    if not isinstance(value, int) or value < multiple or value % multiple:
        low = max(multiple, int(value) // multiple * multiple)
        raise InputError(
            f'{name}={value!r}: expected a positive multiple of {multiple}, '
            f'such as {low} or {low + multiple}.'
        )


def check_range(name: str, value: float, low: float, high: float, open_low: bool = False) -> None:
    """A finite number inside a closed range (or one open below)."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (low <= value <= high) or (open_low and value == low):
        bracket = '(' if open_low else '['
        raise InputError(f'{name}={value!r}: expected a number in {bracket}{low}, {high}].')


def check_seeds(seed: int | Sequence[int] | None, count: int | None = None) -> None:
    """Seeds are integers >= 0; a list must have one for each sample."""
    seeds = [seed] if seed is None or isinstance(seed, int) else list(seed)
    for value in seeds:
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_SEED:
            raise InputError(f'seed={value!r}: expected an integer from 0 to {MAX_SEED}.')
    if count is not None and isinstance(seed, Sequence) and len(seed) != count:
        raise InputError(f'{len(seed)} seeds for {count} samples: give one seed for each, or one.')


def as_prompts(prompt: str | Sequence[str] | None, name: str = 'prompt') -> list[str]:
    """One prompt or several, as a list of strings."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt or [])
    if not prompts:
        raise InputError(f'{name} is missing: give a text, or a list of texts.')
    for text in prompts:
        if not isinstance(text, str):
            raise InputError(f'{name} must be text, got {type(text).__name__} {text!r}.')
    return prompts


def spread(values: Any, count: int, name: str) -> list[Any]:
    """A single value for all samples, or a list with one for each of ``count``."""
    items = list(values) if isinstance(values, (list, tuple)) else [values]
    if len(items) == 1:
        return items * count
    if len(items) != count:
        raise InputError(f'{len(items)} values of {name} for {count} samples: give one or {count}.')
    return items


def make_samples(
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] | None,
    num_videos_per_prompt: int,
    seed: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    latents: torch.Tensor | None,
    repeat: int = 1,
) -> list[Sample]:
    """One ``Sample`` for each prompt and video.

    Each has a CPU generator of its own, seeded ``seed + index`` or by a list, so a sample's
    random numbers depend neither on the batch nor on the device.

    Args:
        repeat: for one prompt with several images, how many samples it stands for.
    """
    prompts = as_prompts(prompt)
    prompts = prompts * repeat if len(prompts) == 1 else prompts
    if not isinstance(num_videos_per_prompt, int) or num_videos_per_prompt < 1:
        raise InputError(f'num_videos_per_prompt={num_videos_per_prompt!r}: expected >= 1.')
    prompts = [text for text in prompts for _ in range(num_videos_per_prompt)]
    count = len(prompts)
    negative = [''] if negative_prompt is None else as_prompts(negative_prompt, 'negative_prompt')
    if len(negative) * num_videos_per_prompt == count and len(negative) > 1:
        negative = [text for text in negative for _ in range(num_videos_per_prompt)]
    negative = spread(negative, count, 'negative_prompt')
    generators = make_generators(seed, generator, count)
    if latents is not None and latents.shape[0] != count:
        raise InputError(f'latents has {latents.shape[0]} items for {count} samples.')
    return [
        Sample(i, prompts[i], negative[i], generators[i], None if latents is None else latents[i])
        for i in range(count)
    ]


def make_generators(
    seed: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    count: int,
) -> list[torch.Generator]:
    """One CPU generator a sample, from generators, seeds, or fresh entropy."""
    if generator is not None:
        if isinstance(generator, torch.Generator):
            return [generator] * count
        if len(generator) != count:
            raise InputError(f'{len(generator)} generators for {count} samples.')
        return list(generator)
    check_seeds(seed, count)
    if seed is None:
        seed = torch.seed() % 2**31
    seeds = [seed + i for i in range(count)] if isinstance(seed, int) else list(seed)
    return [torch.Generator().manual_seed(value) for value in seeds]
