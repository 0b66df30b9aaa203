"""How a call samples beyond steps and sizes: windows, FreeInit, FreeU, FreeNoise, motion, guidance,
DeepCache.

Each is an argument of ``infer``, so also a key of a config's ``infer``:

    windows=dict(length=16, overlap=4), free_init=dict(num_iters=3), free_u=True,
    guidance_scale={0: 9.0, 8: 5.0}, motion_strength={'up': 0.5}, guidance_interval=[0.0, 0.8],
    guidance_scale={'steps': {0.0: 9.0, 0.5: 5.0}}, deep_cache=dict(interval=3, depth=2)

T frames.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from mmvideo.diffusion.deep_cache import DeepCache
from mmvideo.diffusion.free_init import METHODS, FreeInit
from mmvideo.diffusion.free_noise import NOISES, FreeNoise
from mmvideo.diffusion.free_u import FreeU
from mmvideo.diffusion.windows import FUSIONS, SCHEDULES, WindowPlan, Windows
from mmvideo.editors.checks import check_choice, check_range, check_whole
from mmvideo.editors.timeline import Timeline, number_timeline
from mmvideo.errors import InputError, nearest
from mmvideo.models.adapters.base import is_timeline
from mmvideo.models.unet.context import Controls

# Options that every editor takes which has the trunk in it.
COMMON = ('guidance_interval', 'deep_cache')
OPTIONS = (
    *('windows', 'free_init', 'free_u', 'free_noise', 'motion_scale', 'motion_strength'),
    *COMMON,
)
MOST_MOTION = 10  # largest factor on motion
_USUAL = 16  # frames of a window where nobody says
_BLOCK = re.compile(r'all|mid|(down|up)(\.\d+)?')
_Kind = TypeVar('_Kind')


@dataclass(frozen=True)
class Options:
    """A call's options; what is None is not used.

    Attributes:
        num_frames: T.
        guidance: scale of classifier-free guidance over the frames, or over the steps.
        motion_scale: by block, factor on the temporal attention's queries.
        motion_strength: by block, factor on what motion modules add.
        guidance_interval: shares of the steps between which guidance is on.
        told_guidance: the denoiser is told of the guidance, which needs no second half then.
    """

    num_frames: int
    guidance: Timeline
    windows: Windows | None = None
    free_init: FreeInit | None = None
    free_u: FreeU | None = None
    free_noise: FreeNoise | None = None
    motion_scale: Mapping[str, Timeline] = field(default_factory=dict)
    motion_strength: Mapping[str, Timeline] = field(default_factory=dict)
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    deep_cache: DeepCache | None = None
    told_guidance: bool = False

    @property
    def guided(self) -> bool:
        """Whether any frame is guided by a second half, in any step; a scale up to 1 is not."""
        return max(self.guidance.values) > 1 and not self.told_guidance

    def guides(self, span: tuple[float, float]) -> bool:
        """Whether a step from one share of the sampling to another is guided: if it lies inside,
        and has a scale above 1.
        """
        return self.guided and self._inside(span) and max(self.guidance.at_step(span[0]).values) > 1

    def _inside(self, span: tuple[float, float]) -> bool:
        first, last = self.guidance_interval
        return first <= span[0] and span[1] <= last

    def check_steps(self, steps: int) -> None:
        """Raise InputError where guidance is wanted and none of ``steps`` would have it."""
        spans = ((step / steps, (step + 1) / steps) for step in range(steps))
        if not self.guided or any(map(self._inside, spans)):
            return
        first, last = self.guidance_interval
        low, high = math.floor(first * steps) / steps, math.ceil(last * steps) / steps
        raise InputError(
            f'guidance_interval={[first, last]}: none of {steps} steps lies inside; the nearest '
            f'with one is [{low:g}, {high:g}].'
        )

    def guidance_scale(self, frames: Tensor | None = None, share: float = 0) -> float | Tensor:
        """A number, or [1, 1, t, 1, 1] for some frames or all; a frame without guidance has 1.

        ``share`` of the steps is done.
        """
        guidance = self.guidance.at_step(share)
        if guidance.constant:
            return float(guidance.values[0])
        curve = self._guidance_curve
        return (curve if frames is None else curve[frames.cpu()]).view(1, 1, -1, 1, 1)

    @cached_property
    def _guidance_curve(self) -> Tensor:
        return self.guidance.curve(self.num_frames).clamp(min=1)

    def rounds(self, num_inference_steps: int) -> list[int]:
        """Steps of each sampling of the clip: one, or FreeInit's."""
        if self.free_init is None:
            return [num_inference_steps]
        return self.free_init.steps(num_inference_steps)

    def frame_limit(self, max_frames: int | None) -> int | None:
        """How many frames the clip may have; None where windows make any length possible."""
        return max_frames if self.windows is None and self.free_noise is None else None

    def repeated(self, noise: Tensor, generator: torch.Generator) -> Tensor:
        """Noise [C, T, H, W] as it repeats over the clip, as FreeNoise says, else the windows."""
        by = self.free_noise
        if by is None and self.windows is not None:
            length = self.windows.length
            by = FreeNoise(length, max(1, length // 4), noise_type=self.windows.noise)
        return noise if by is None else by.arranged(noise, generator)

    def plans(self) -> Iterator[WindowPlan | None]:
        """The windows of each step, one after the other; None sees the whole clip."""
        if self.windows is None:
            return itertools.repeat(None)
        return (self.windows.plan(self.num_frames, step) for step in itertools.count())

    def controls(self, blocks: Sequence[str], device: torch.device) -> Controls:
        """What the denoiser's layers do otherwise than usual.

        Args:
            blocks: names of the denoiser's blocks.
            device: where it is.
        """
        # With windows of whole denoising, the attention inside each is plain.
        noise = self.free_noise if self.windows is None else None
        return Controls(
            join=self.free_u,
            windows=None if noise is None else noise.plan(self.num_frames),
            motion_scale=self._factors(self.motion_scale, blocks, device),
            motion_strength=self._factors(self.motion_strength, blocks, device),
        )

    def _factors(
        self, motion: Mapping[str, Timeline], blocks: Sequence[str], device: torch.device
    ) -> dict[str, Tensor]:
        found = {}
        for block in blocks:
            names = (block, block.split('.')[0], 'all')
            timeline = next((motion[name] for name in names if name in motion), None)
            if timeline is not None and timeline.values != (1.0,):
                found[block] = timeline.curve(self.num_frames).to(device)
        return found


def read_options(
    values: Mapping[str, Any],
    num_frames: int,
    max_frames: int | None,
    levels: int,
    deepest: int | None = None,
    told_guidance: bool = False,
) -> Options:
    """Options from arguments of ``infer``; those that are absent are not used.

    Args:
        values: the arguments.
        num_frames: T.
        max_frames: positions of the motion modules, None without such modules.
        levels: stages of the denoiser on its way down.
        deepest: the most layers that ``deep_cache`` can run in every step, None where not known.
        told_guidance: whether the denoiser has guidance in itself.

    Raises:
        InputError: naming the argument, its key and value, and the nearest valid one.
    """
    check_whole('num_frames', num_frames, 1)
    noise = _read_free_noise(values.get('free_noise'), max_frames)
    found = Options(
        num_frames=num_frames,
        guidance=number_timeline(values.get('guidance_scale', 1.0), 'guidance_scale', num_frames),
        windows=read_windows(values.get('windows'), max_frames),
        free_init=_read_free_init(values.get('free_init')),
        free_u=_read_free_u(values.get('free_u')),
        free_noise=noise,
        **{
            name: _read_motion(values.get(name), name, num_frames, levels)
            for name in ('motion_scale', 'motion_strength')
        },
        guidance_interval=read_guidance_interval(values.get('guidance_interval')),
        deep_cache=read_deep_cache(values.get('deep_cache'), deepest),
        told_guidance=told_guidance,
    )
    if told_guidance and not found.guidance.constant:
        raise InputError(
            'guidance_scale: this model is told of one scale for the whole clip; give a number.'
        )
    if told_guidance and found.guidance_interval != (0.0, 1.0):
        raise InputError(
            'guidance_interval: this model has guidance in itself, in every step; leave it out.'
        )
    return found


def block_names(levels: int) -> list[str]:
    """The blocks of a denoiser with ``levels`` stages each way."""
    down, up = ([f'{way}.{i}' for i in range(levels)] for way in ('down', 'up'))
    return [*down, 'mid', *up]


def read_guidance_interval(value: Any) -> tuple[float, float]:
    """The argument ``guidance_interval``: two shares of the steps, None for all of them."""
    if value is None:
        return (0.0, 1.0)
    pair = isinstance(value, (list, tuple)) and len(value) == 2
    if not pair or any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in value):
        raise InputError(
            f'guidance_interval={value!r}: expected two shares of the steps, such as [0.0, 0.8].'
        )
    first, last = (float(share) for share in value)
    if not 0 <= first < last <= 1:
        low, high = sorted(min(max(share, 0.0), 1.0) for share in (first, last))
        hint = f', such as [{low}, {high}]' if low < high else ''
        raise InputError(
            f'guidance_interval={list(value)}: expected 0 <= first < last <= 1{hint}; 0 is where '
            'sampling begins, 1 where it ends.'
        )
    return first, last


def read_windows(value: Any, max_frames: int | None = None) -> Windows | None:
    """The argument ``windows``: a dict of settings, the length of a window, or None."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = {'length': value}
    found = read_settings(Windows, 'windows', value, length=_usual(max_frames))
    if found is None:
        return None
    _check_window('windows.length', found.length, max_frames)
    check_choice('windows.schedule', found.schedule, SCHEDULES)
    check_choice('windows.fusion', found.fusion, FUSIONS)
    check_choice('windows.noise', found.noise, NOISES)
    check_whole('windows.stride', found.stride, 1, 16)
    if found.overlap is not None:
        check_whole('windows.overlap', found.overlap, 0)
        if found.overlap >= found.length:
            raise InputError(
                f'windows.overlap={found.overlap}: expected less than the window, whose length is '
                f'{found.length}; the largest is {found.length - 1}.'
            )
    if found.schedule == 'batched' and found.overlap:
        raise InputError(
            f'windows.overlap={found.overlap}: batched windows do not overlap; use '
            "schedule='static'."
        )
    if found.schedule in ('static', 'batched') and found.stride > 1:
        raise InputError(
            f'windows.stride={found.stride}: {found.schedule!r} windows have adjacent frames; use '
            "schedule='uniform' or 'looped'."
        )
    return found


def _read_free_noise(value: Any, max_frames: int | None) -> FreeNoise | None:
    usual = _usual(max_frames)
    if isinstance(value, Mapping) and value.get('context_length', 0) is None:
        value = {key: item for key, item in value.items() if key != 'context_length'}
    found = read_settings(FreeNoise, 'free_noise', value, context_length=usual)
    if found is None:
        return None
    if max_frames is None:
        raise InputError('free_noise: this model has no motion modules, so no windows either.')
    _check_window('free_noise.context_length', found.context_length, max_frames)
    check_whole('free_noise.context_stride', found.context_stride, 1, found.context_length)
    check_choice('free_noise.weighting_scheme', found.weighting_scheme, FUSIONS)
    check_choice('free_noise.noise_type', found.noise_type, NOISES)
    return found


def _read_free_init(value: Any) -> FreeInit | None:
    found = read_settings(FreeInit, 'free_init', value)
    if found is None:
        return None
    check_whole('free_init.num_iters', found.num_iters, 1, 100)
    check_choice('free_init.method', found.method, METHODS)
    check_range('free_init.order', found.order, 0, 100, open_low=True)
    for name in ('spatial_stop_frequency', 'temporal_stop_frequency'):
        check_range(f'free_init.{name}', getattr(found, name), 0, 1)
    check_choice('free_init.use_fast_sampling', found.use_fast_sampling, (True, False))
    return found


def _read_free_u(value: Any) -> FreeU | None:
    found = read_settings(FreeU, 'free_u', value)
    for name in ('s1', 's2', 'b1', 'b2') if found is not None else ():
        check_range(f'free_u.{name}', getattr(found, name), 0, 10)
    return found


def read_deep_cache(value: Any, deepest: int | None = None) -> DeepCache | None:
    """The argument ``deep_cache``: a dict of settings, the interval, True or None."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = {'interval': value}
    found = read_settings(DeepCache, 'deep_cache', value)
    if found is not None:
        check_whole('deep_cache.interval', found.interval, 1)
        check_whole('deep_cache.depth', found.depth, 1, deepest)
    return found


def _read_motion(value: Any, name: str, num_frames: int, levels: int) -> dict[str, Timeline]:
    """Factors by block; a single one is for all."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or is_timeline(value):
        value = {'all': value}
    blocks = block_names(levels)
    known = ['all', 'down', 'mid', 'up', *blocks]
    for block in value:
        if not isinstance(block, str) or not _BLOCK.fullmatch(block) or block not in known:
            raise InputError(
                f'{name}: there is no block {block!r}; expected frames, or some of '
                f'{", ".join(dict.fromkeys(known))}.{nearest(block, known)}'
            )
    return {
        block: number_timeline(
            item,
            name if block == 'all' else f'{name}[{block!r}]',
            num_frames,
            high=MOST_MOTION,
            steps=False,
        )
        for block, item in value.items()
    }


def read_settings(kind: type[_Kind], name: str, value: Any, **usual: Any) -> _Kind | None:
    """A dict as the dataclass ``kind``; True takes its defaults, None and False nothing."""
    if value is None or value is False:
        return None
    if value is True:
        value = {}
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise InputError(f'{name}={value!r}: expected a dict of settings, True or None.')
    known = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
    for key in value:
        if key not in known:
            raise InputError(
                f'{name} takes no {key!r}; it takes {", ".join(known)}.{nearest(key, known)}'
            )
    return kind(**{**usual, **value})


def _usual(max_frames: int | None) -> int:
    return min(_USUAL, max_frames or _USUAL)


def _check_window(name: str, length: Any, max_frames: int | None) -> None:
    check_whole(name, length, 1)
    if max_frames is not None and length > max_frames:
        raise InputError(
            f'{name}={length}: the motion modules have positions for {max_frames} frames; the '
            f'longest window is {max_frames}.'
        )
