"""Sliding windows over frames: clips longer than a model sees at once.

A denoiser with motion modules sees a limited number of frames. A longer clip is denoised in windows
that overlap, and where they do the predictions are averaged with weights (Bar-Tal et al. 2023,
MultiDiffusion, equation 5). Which windows there are may change with the step, so that no seam stays
in one place; the sequence of shifts is van der Corput's, as AnimateDiff's user interfaces have it.

Averaging does not make windows agree where things are: that is decided in the first steps, by the
noise. With noise of its own each window decides for itself, and the clip fades from one answer to
the next, whatever the overlap. So windows share their noise (Qiu et al. 2023, FreeNoise).

T frames of the clip, L frames of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

SCHEDULES = ('static', 'uniform', 'looped', 'batched')
FUSIONS = ('flat', 'pyramid', 'relative', 'overlap-linear')
_LEAST = 0.01  # weight of a window's outermost frame under 'relative'


@dataclass(frozen=True)
class Windows:
    """How a clip is cut.

    Attributes:
        length: L.
        schedule: ``'static'``: the same windows in every step, the last one moved back to end with
            the clip. ``'uniform'``: moved from step to step. ``'looped'``: also across the end into
            the beginning, which closes the clip to a loop. ``'batched'``: one after the other,
            without overlap, the last one shorter.
        overlap: frames that neighbours share, below ``length``; None is a quarter of it.
        stride: how many spacings there are: 1 has windows of adjacent frames, 2 also of every
            second frame, 3 also of every fourth ... as far as the clip reaches. Only for
            ``'uniform'`` and ``'looped'``.
        fusion: weight of a frame by its place in the window: ``'flat'``: the same. ``'pyramid'``:
            rising to the middle. ``'relative'``: rising from almost nothing, so the middle of a
            window decides. ``'overlap-linear'``: ramps over the overlap, else the same.
        noise: of a clip that is longer than a window. ``'shuffle_context'``: that of the first
            window, shuffled anew from window to window, see ``mmvideo.diffusion.free_noise``.
            Windows that begin with different noise decide differently where things are, and no
            overlap makes them agree. ``'repeat_context'``: the same without shuffling.
            ``'random'``: each frame's own.
    """

    length: int = 16
    schedule: str = 'static'
    overlap: int | None = None
    stride: int = 1
    fusion: str = 'pyramid'
    noise: str = 'shuffle_context'

    @property
    def shared(self) -> int:
        """Frames that neighbours share."""
        if self.schedule == 'batched':
            return 0
        return self.length // 4 if self.overlap is None else self.overlap

    def plan(self, num_frames: int, step: int = 0) -> WindowPlan:
        """The windows of one step; together they cover every frame."""
        frames = tuple(dict.fromkeys(self._windows(num_frames, step)))
        raw = [self._weights(window, num_frames) for window in frames]
        total = [0.0] * num_frames
        for window, weights in zip(frames, raw, strict=True):
            for frame, weight in zip(window, weights, strict=True):
                total[frame] += weight
        shares = (
            tuple(weight / total[frame] for frame, weight in zip(window, weights, strict=True))
            for window, weights in zip(frames, raw, strict=True)
        )
        return WindowPlan(num_frames, frames, tuple(shares))

    def _windows(self, frames: int, step: int) -> Iterator[tuple[int, ...]]:
        if self.schedule == 'looped':
            return self._looped(frames, step)
        if frames <= self.length:
            return iter([tuple(range(frames))])
        if self.schedule == 'batched':
            starts = range(0, frames, self.length)
            return (tuple(range(s, min(s + self.length, frames))) for s in starts)
        return self._shifted(frames, step if self.schedule == 'uniform' else 0)

    def _shifted(self, frames: int, step: int) -> Iterator[tuple[int, ...]]:
        """Windows inside the clip; those that would reach out are moved in."""
        for spacing in self._spacings(frames):
            hop = self.length * spacing - self.shared
            last = frames - self._span(spacing)
            start = int(van_der_corput(step) * hop) - hop
            while start < last + hop:
                begin = min(max(start, 0), last)
                yield tuple(range(begin, begin + self._span(spacing), spacing))
                start += hop

    def _looped(self, frames: int, step: int) -> Iterator[tuple[int, ...]]:
        """Windows on a ring; a clip that fits into one is only turned."""
        shift = round(van_der_corput(step) * frames)
        if frames <= self.length:
            yield tuple((shift + i) % frames for i in range(frames))
            return
        for spacing in self._spacings(frames):
            span = self._span(spacing)
            for start in range(shift, shift + frames, self.length * spacing - self.shared):
                yield tuple(i % frames for i in range(start, start + span, spacing))

    def _spacings(self, frames: int) -> list[int]:
        powers = [2**level for level in range(self.stride)]
        return [spacing for spacing in powers if self._span(spacing) <= frames]

    def _span(self, spacing: int) -> int:
        """Frames from the first to the last of a window, both counted."""
        return (self.length - 1) * spacing + 1

    def _weights(self, window: tuple[int, ...], frames: int) -> list[float]:
        length, middle = len(window), (len(window) - 1) / 2
        if self.fusion == 'pyramid':
            return [float(min(i + 1, length - i)) for i in range(length)]
        if self.fusion == 'relative' and length > 1:
            return [max(_LEAST, 1 - abs(i - middle) / middle) for i in range(length)]
        if self.fusion == 'overlap-linear' and length < frames:
            ends = self.schedule != 'looped'
            return self._ramps(length, ends and window[0] == 0, ends and window[-1] == frames - 1)
        return [1.0] * length

    def _ramps(self, length: int, first: bool, last: bool) -> list[float]:
        """One, with a ramp at each side where a neighbour takes over."""
        ramp = [min(1.0, (i + 1) / (self.shared + 1)) for i in range(length)]
        up = [1.0] * length if first else ramp
        down = [1.0] * length if last else ramp[::-1]
        return [min(pair) for pair in zip(up, down, strict=True)]


@dataclass(frozen=True)
class WindowPlan:
    """The windows of one step.

    Attributes:
        num_frames: T.
        frames: indices of each window's frames, in its order.
        weights: of each window's frames; those of a frame sum to one over the windows.
    """

    num_frames: int
    frames: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...]

    @property
    def longest(self) -> int:
        """Frames of the longest window."""
        return max(map(len, self.frames))

    def fuse(self, function: Callable[[Tensor, Tensor], Tensor], x: Tensor, dim: int) -> Tensor:
        """Apply ``function`` to each window and join the results.

        Args:
            function: ``(part of x, frames [L] on its device) -> result``, of the part's shape but
                for other dimensions than ``dim``.
            x: T along ``dim``; it may lie on another device than ``function`` computes on.
            dim: of the frames.

        Returns:
            As ``x`` in kind and place; sums are taken in float32.
        """
        if self.frames == (tuple(range(self.num_frames)),):
            return function(x, torch.arange(self.num_frames, device=x.device))
        total: Tensor | None = None
        for window, shares in zip(self.frames, self.weights, strict=True):
            frames = torch.tensor(window, device=x.device)
            part = function(x.index_select(dim, frames), frames).to(x.device, torch.float32)
            if total is None:
                shape = list(part.shape)
                shape[dim] = self.num_frames
                total = torch.zeros(shape, device=x.device)
            along = [-1 if axis == dim else 1 for axis in range(x.ndim)]
            weights = torch.tensor(shares, device=x.device).view(along)
            total.index_add_(dim, frames, part * weights)
        assert total is not None
        return total.to(x.dtype)

    def draw(self, columns: int = 64) -> list[str]:
        """A line a window: its first frame, and ``#`` where it sees the clip."""
        width = min(columns, self.num_frames)
        lines = []
        for window in self.frames:
            seen = {frame * width // self.num_frames for frame in window}
            row = ''.join('#' if cell in seen else '.' for cell in range(width))
            lines.append(f'{window[0]:>5} {row}')
        return lines


def van_der_corput(index: int) -> float:
    """The binary digits of ``index`` mirrored at the point: 0, 1/2, 1/4, 3/4, 1/8 ..."""
    digits = bin(index)[2:][::-1]
    return int(digits, 2) / 2 ** len(digits)
