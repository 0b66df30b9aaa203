"""The arguments of ``infer``, checked and spread over samples."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mmvideo.diffusion.inversion import Inversion
from mmvideo.editors.checks import check_choice, check_range, check_whole
from mmvideo.editors.course import OnStep
from mmvideo.editors.options import Options
from mmvideo.editors.timeline import Timeline, text_timeline
from mmvideo.errors import InputError
from mmvideo.models.conditioning.image_prompt import AdapterPrompt, ImagePrompts

MAX_SEED = 2**64 - 1  # what a generator of torch takes; on the CPU the last 32 bits count


@dataclass
class Sample:
    """One video to make: what belongs to it alone."""

    index: int
    prompt: Timeline
    negative_prompt: Timeline
    generator: torch.Generator
    latents: torch.Tensor | None = None
    extras: dict[str, Any] = field(default_factory=dict)
    embeds: torch.Tensor | None = None  # in place of the prompt, [L, D] or [T, L, D]
    negative_embeds: torch.Tensor | None = None

    @property
    def texts(self) -> list[str]:
        """Every prompt that is encoded for it."""
        shown = self.prompt.values if self.embeds is None else ()
        avoided = self.negative_prompt.values if self.negative_embeds is None else ()
        return [*shown, *avoided]

    @property
    def row(self) -> Timeline | torch.Tensor:
        """What it shows."""
        return self.prompt if self.embeds is None else self.embeds

    @property
    def negative_row(self) -> Timeline | torch.Tensor:
        """What it steers away from."""
        return self.negative_prompt if self.negative_embeds is None else self.negative_embeds

    def token_count(self, chunk: int, needed: Callable[[str], int], guided: bool) -> int:
        """Tokens of its embeddings.

        Args:
            chunk: tokens that the text encoder sees at once.
            needed: chunks of a text.
            guided: whether the negative half counts beside embeddings.

        Raises:
            InputError: given embeddings are not as long as what the texts need.
        """
        if self.embeds is not None and not guided:
            return self.embeds.shape[-2]
        given = [e.shape[-2] for e in (self.embeds, self.negative_embeds) if e is not None]
        texts = chunk * max((needed(text) for text in self.texts), default=0)
        count = max([*given, texts])
        if any(length != count for length in given) or (texts and count % chunk):
            raise InputError(
                f'prompt_embeds and negative_prompt_embeds have {" and ".join(map(str, given))} '
                f'tokens, the texts beside them {texts}: give both, of one length.'
                if texts
                else f'prompt_embeds has {given[0]} tokens, negative_prompt_embeds {given[1]}: '
                'give both of one length.'
            )
        return count


@dataclass
class Request:
    """A call of ``infer``: the samples, and what they share. Sizes in pixels."""

    samples: list[Sample]
    num_frames: int
    height: int
    width: int
    num_inference_steps: int
    options: Options
    eta: float = 0.0
    decode_chunk_size: int = 16
    strength: float = 1.0
    output_type: str = 'video'
    clip_skip: int | None = None
    image_prompts: ImagePrompts = field(default_factory=ImagePrompts)
    video: torch.Tensor | None = None  # to start from, [T, 3, H, W] in [-1, 1]
    inversion: Inversion | None = None  # of that clip
    controls: list[Any] = field(default_factory=list)  # inputs, see mmvideo.editors.controls
    pictures: list[AdapterPrompt] = field(default_factory=list)  # of each adapter, when checked
    negative_clip_skip: int | None = None  # None is as clip_skip
    timesteps: Sequence[float] | None = None  # of the caller's choice
    sigmas: Sequence[float] | None = None  # likewise, as noise levels
    on_step: OnStep | None = None
    draws: str = 'official'  # see mmvideo.editors.course.DRAWS


def check_settings(
    *,
    num_frames: int,
    height: int,
    width: int,
    num_inference_steps: int,
    eta: float = 0.0,
    decode_chunk_size: int = 16,
    strength: float = 1.0,
    output_type: str = 'video',
    num_videos_per_prompt: int = 1,
    multiple: int = 8,
    max_frames: int | None = None,
) -> None:
    """Refuse settings that cannot work; needs no model.

    Args:
        multiple: height and width must be multiples of this, the VAE's factor.
        max_frames: positions of the motion modules, None for no limit. Windows have none.

    Raises:
        InputError: naming the setting, its value and the nearest valid one.
    """
    for name, value in (
        ('num_frames', num_frames),
        ('num_inference_steps', num_inference_steps),
        ('decode_chunk_size', decode_chunk_size),
        ('num_videos_per_prompt', num_videos_per_prompt),
    ):
        check_whole(name, value, 1)
    if max_frames is not None and num_frames > max_frames:
        raise InputError(
            f'num_frames={num_frames}: the motion modules have positions for {max_frames} frames. '
            f'Ask for at most {max_frames}, or for windows: windows=dict(length={max_frames}).'
        )
    for name, value in (('height', height), ('width', width)):
        check_size(name, value, multiple)
    check_range('eta', eta, 0, 1)
    check_range('strength', strength, 0, 1, open_low=True)
    check_choice('output_type', output_type, ('video', 'latent'))


def check_size(name: str, value: int, multiple: int) -> None:
    """A side in pixels must be a positive multiple of the VAE's factor."""
    if not isinstance(value, int) or value < multiple or value % multiple:
        whole = value if isinstance(value, int) else multiple
        low = max(multiple, whole // multiple * multiple)
        raise InputError(
            f'{name}={value!r}: expected a positive multiple of {multiple}, '
            f'such as {low} or {low + multiple}.'
        )


def check_clip_skip(value: Any, layers: int | None) -> None:
    """Refuse to leave out all ``layers`` of the text encoder, or more; None are unknown."""
    if value is None:
        return
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < 0 or (layers is not None and value >= layers):
        limit = '' if layers is None else f' to {layers - 1}'
        raise InputError(
            f'clip_skip={value!r}: expected None or an integer from 0{limit}, layers to leave out '
            'at the end of the text encoder.'
        )


def check_seeds(seed: int | Sequence[int] | None, count: int | None = None) -> None:
    """Seeds are integers of 64 bits; a list must have one for each of ``count`` samples.

    A single seed counts on from sample to sample.
    """
    if seed is None:
        return
    seeds = list(seed) if isinstance(seed, (list, tuple)) else [seed]
    last = [seed + count - 1] if isinstance(seed, int) and count else []
    for value in [*seeds, *last]:
        if value is None and count is None:
            continue  # it is drawn before it counts
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_SEED:
            raise InputError(f'seed={value!r}: expected an integer from 0 to {MAX_SEED}.')
    if count is not None and isinstance(seed, (list, tuple)) and len(seeds) != count:
        raise InputError(f'{len(seeds)} seeds for {count} samples: give one seed for each, or one.')


def draw_seed() -> int:
    """A seed from the system's entropy; the generators of the process stay as they are."""
    return secrets.randbelow(2**31)


def as_prompts(prompt: Any, name: str = 'prompt', num_frames: int | None = None) -> list[Timeline]:
    """One prompt or several, each a text or keyframes, as a list of timelines.

    Args:
        num_frames: of the clip, which must have every key; None checks no key.
    """
    if prompt is None or (isinstance(prompt, (list, tuple)) and not prompt):
        raise InputError(f'{name} is missing: give a text, or a list of texts.')
    prompts = prompt if isinstance(prompt, (list, tuple)) else [prompt]
    timelines = [text_timeline(value, name) for value in prompts]
    if num_frames is not None:
        check_whole('num_frames', num_frames, 1)
        for timeline in timelines:
            timeline.check(name, num_frames)
    return timelines


def spread(values: Any, count: int, name: str) -> list[Any]:
    """A single value for all samples, or a list with one for each of ``count``."""
    items = list(values) if isinstance(values, (list, tuple)) else [values]
    if len(items) == 1:
        return items * count
    if len(items) != count:
        raise InputError(f'{len(items)} values of {name} for {count} samples: give one or {count}.')
    return items


def make_samples(
    prompt: Any,
    negative_prompt: Any,
    num_videos_per_prompt: int,
    seed: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    latents: torch.Tensor | None,
    repeat: int = 1,
    num_frames: int | None = None,
    prompt_embeds: torch.Tensor | None = None,
    negative_prompt_embeds: torch.Tensor | None = None,
) -> list[Sample]:
    """One ``Sample`` for each prompt and video.

    Each has a CPU generator of its own, seeded ``seed + index`` or by a list, so a sample's
    random numbers depend neither on the batch nor on the device.

    Args:
        repeat: for one prompt with several images, how many samples it stands for.
        num_frames: of the clip, for prompts that change.
        prompt_embeds: embeddings in place of prompts, [N, L, D] or [N, T, L, D].
        negative_prompt_embeds: likewise, of negative prompts.
    """
    if prompt_embeds is None:
        prompts = as_prompts(prompt, num_frames=num_frames)
    else:
        check_embeds('prompt_embeds', prompt_embeds, prompt, num_frames)
        prompts = as_prompts([''] * len(prompt_embeds))
    prompts = prompts * repeat if len(prompts) == 1 else prompts
    check_whole('num_videos_per_prompt', num_videos_per_prompt, 1)
    prompts = [text for text in prompts for _ in range(num_videos_per_prompt)]
    count = len(prompts)
    unwanted = '' if negative_prompt is None else negative_prompt
    negative = as_prompts(unwanted, 'negative_prompt', num_frames)
    if len(negative) * num_videos_per_prompt == count and len(negative) > 1:
        negative = [text for text in negative for _ in range(num_videos_per_prompt)]
    negative = spread(negative, count, 'negative_prompt')
    shown = _spread_embeds(prompt_embeds, count)
    if negative_prompt_embeds is not None:
        check_embeds('negative_prompt_embeds', negative_prompt_embeds, negative_prompt, num_frames)
    avoided = _spread_embeds(negative_prompt_embeds, count)
    generators = make_generators(seed, generator, count)
    if latents is not None and not isinstance(latents, torch.Tensor):
        raise InputError(
            f'latents is a {type(latents).__name__}: expected a tensor [N, C, T, H, W].'
        )
    if latents is not None and (latents.ndim == 0 or not latents.isfinite().all()):
        raise InputError('latents: expected finite numbers [N, C, T, H, W].')
    if latents is not None and latents.shape[0] != count:
        raise InputError(f'latents has {latents.shape[0]} items for {count} samples.')
    return [
        Sample(
            i,
            prompts[i],
            negative[i],
            generators[i],
            None if latents is None else latents[i],
            embeds=shown[i],
            negative_embeds=avoided[i],
        )
        for i in range(count)
    ]


def check_embeds(name: str, embeds: Any, text: Any, num_frames: int | None) -> None:
    """Embeddings of a caller are [N, L, D], or [N, T, L, D], and stand in place of a text."""
    other = name.removesuffix('_embeds')
    if text is not None:
        raise InputError(f'{other} and {name}: give one of them.')
    if not isinstance(embeds, torch.Tensor) or embeds.ndim not in (3, 4) or 0 in embeds.shape:
        found = list(embeds.shape) if isinstance(embeds, torch.Tensor) else type(embeds).__name__
        raise InputError(f'{name} is {found}: expected a tensor [N, L, D] or [N, T, L, D].')
    if embeds.ndim == 4 and embeds.shape[1] != num_frames:
        raise InputError(
            f'{name} has embeddings for {embeds.shape[1]} frames, the clip has {num_frames}.'
        )


def _spread_embeds(embeds: torch.Tensor | None, count: int) -> list[torch.Tensor | None]:
    """One for each of ``count`` samples; adjacent samples share those of a prompt."""
    if embeds is None:
        return [None] * count
    if count % len(embeds):
        raise InputError(f'{len(embeds)} rows of embeddings for {count} samples.')
    return [row for row in embeds for _ in range(count // len(embeds))]


def make_generators(
    seed: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    count: int,
) -> list[torch.Generator]:
    """One CPU generator a sample, from generators, seeds, or fresh entropy."""
    if generator is not None:
        several = generator if isinstance(generator, (list, tuple)) else [generator] * count
        for item in several:
            if not isinstance(item, torch.Generator) or item.device.type != 'cpu':
                raise InputError(f'generator: {item!r}, expected generators of torch on the CPU.')
        if len(several) != count:
            raise InputError(f'{len(several)} generators for {count} samples.')
        return list(several)
    check_seeds(seed, count)
    if seed is None:
        seed = draw_seed()
    seeds = [seed + i for i in range(count)] if isinstance(seed, int) else list(seed)
    return [torch.Generator().manual_seed(value) for value in seeds]
