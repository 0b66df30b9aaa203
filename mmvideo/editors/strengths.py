"""Strengths of adapters that change during a sampling: of LoRAs, and of pictures as prompts.

What changes is a timeline, over frames or over steps, in place of any number in a scale.

T frames, t frames of a window, N rows of a call, L tokens, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmvideo.editors.timeline import Timeline, number_timeline
from mmvideo.models.adapters.base import Adapter, is_timeline
from mmvideo.models.adapters.lora import LoRA, sees_frames
from mmvideo.models.conditioning.image_prompt import AdapterPrompt
from mmvideo.models.unet.context import FrameWindows, ImageKeys

MOST_STRENGTH = 100.0  # of a timeline, either way
_Keys = Mapping[nn.Module, Sequence[ImageKeys]]


def strength_timeline(scale: Any, name: str, num_frames: int | None) -> Timeline:
    """A scale of an adapter that changes, see ``number_timeline``."""
    return number_timeline(scale, name, num_frames, -MOST_STRENGTH, MOST_STRENGTH)


def changes(scale: Any) -> bool:
    """Whether a timeline stands in a scale."""
    found: list[Any] = []
    _mapped(scale, lambda entry: found.append(is_timeline(entry)))
    return any(found)


def check_strength(scale: Any, name: str, num_frames: int | None = None) -> None:
    """Refuse timelines in a scale that cannot be; its other numbers are the adapter's to check.

    Args:
        scale: of an adapter, in any form that it takes.
        name: what it is called in messages.
        num_frames: T; None checks no frame.

    Raises:
        InputError: naming the key or value, what was expected and the nearest.
    """
    _mapped(scale, lambda entry: _read(entry, name, num_frames))


def check_strengths(
    adapters: Sequence[Adapter], prompts: Sequence[AdapterPrompt], num_frames: int
) -> None:
    """``check_strength`` of all scales of a call.

    Args:
        adapters: of the editor; pictures' scales are taken from ``prompts``.
        prompts: of the IP-Adapters.
        num_frames: T.
    """
    for adapter in adapters:
        if isinstance(adapter, LoRA):
            check_strength(adapter.scale, f'the scale of {adapter.name!r}', num_frames)
    for prompt in prompts:
        check_strength(prompt.scale, 'ip_adapter_scale', num_frames)


class LoraStrengths:
    """LoRAs whose scale changes, in the denoiser's calls of one sampling.

    Args:
        adapters: of the editor.
        num_frames: T.
        device: of the denoiser.
    """

    def __init__(self, adapters: Sequence[Adapter], num_frames: int, device: torch.device) -> None:
        loras = [adapter for adapter in adapters if isinstance(adapter, LoRA)]
        self._parts = [part for lora in loras for part in _parts(lora, num_frames)]
        self._device = device
        self._now: tuple[Tensor | None, float] | None = None

    @property
    def over_frames(self) -> bool:
        """Whether some LoRA differs from frame to frame."""
        return any(part.curve is not None for part in self._parts)

    @contextlib.contextmanager
    def at(self, frames: Tensor | None, share: float) -> Iterator[None]:
        """LoRAs as they are for ``frames`` [t] of the clip, None for all, in a step."""
        before = self._now
        try:
            self._tell((frames, share))
            yield
        finally:
            self._tell(before)

    def windows(self, plan: FrameWindows | None, share: float) -> FrameWindows | None:
        """Windows of the temporal attention, in each of which LoRAs know its frames."""
        return plan if plan is None or not self.over_frames else _ToldWindows(plan, self, share)

    def text(self, text: Tensor, sample: Tensor) -> Tensor:
        """The text of a call with the latents [N, C, t, H, W].

        Where LoRAs differ from frame to frame, so do keys and values of a text: each frame has a
        row of its own, [N*t, L, D].
        """
        if not self.over_frames or len(text) != len(sample):
            return text
        return text.repeat_interleave(sample.shape[2], 0)

    def _tell(self, now: tuple[Tensor | None, float] | None) -> None:
        self._now = now
        for part in self._parts:
            scale = 0.0 if now is None else part.scale(*now)
            at_device = scale.to(self._device) if isinstance(scale, Tensor) else scale
            part.lora.tell(part.layers, at_device)


@dataclass(frozen=True)
class _Part:
    """Layers of a LoRA with one timeline; ``curve`` [T] where it changes over the frames."""

    lora: LoRA
    layers: Sequence[str]
    timeline: Timeline
    curve: Tensor | None

    def scale(self, frames: Tensor | None, share: float) -> float | Tensor:
        """For ``frames``: a number where all have the same, else [t]."""
        if self.curve is None:
            return float(self.timeline.at_step(share).values[0])
        curve = self.curve if frames is None else self.curve[frames.cpu()]
        return curve if curve.min() < curve.max() else float(curve[0])


def _parts(lora: LoRA, num_frames: int) -> Iterator[_Part]:
    """Layers that see no single frame have the mean of a timeline."""
    changing = lora.changing()
    for scale in {id(scale): scale for scale in changing.values()}.values():
        timeline = strength_timeline(scale, f'the scale of {lora.name!r}', num_frames)
        layers = [layer for layer, own in changing.items() if own is scale]
        if timeline.steps or timeline.constant:
            yield _Part(lora, layers, timeline, None)
            continue
        curve = timeline.curve(num_frames)
        mean = Timeline((0,), (float(curve.double().mean()),))
        yield _Part(lora, [layer for layer in layers if sees_frames(layer)], timeline, curve)
        yield _Part(lora, [layer for layer in layers if not sees_frames(layer)], mean, None)


@dataclass(frozen=True)
class _ToldWindows:
    plan: FrameWindows
    strengths: LoraStrengths
    share: float

    @property
    def longest(self) -> int:
        return self.plan.longest

    def fuse(self, function: Callable[[Tensor, Tensor], Tensor], x: Tensor, dim: int) -> Tensor:
        def told(part: Tensor, frames: Tensor) -> Tensor:
            with self.strengths.at(frames, self.share):
                return function(part, frames)

        return self.plan.fuse(told, x, dim)


class PictureKeys:
    """What the denoiser's layers see of pictures, in the calls of one sampling.

    Keys are projected once; in a step, those whose strength changes over the steps are scaled.

    Args:
        make: from prompts with numbers, or curves [T] in place of them, to the layers' keys.
        prompts: of the IP-Adapters.
        num_frames: T.
        waits: what differs from frame to frame waits in main memory.
    """

    def __init__(
        self,
        make: Callable[[Sequence[AdapterPrompt]], _Keys],
        prompts: Sequence[AdapterPrompt],
        num_frames: int,
        waits: bool = False,
    ) -> None:
        steps: list[Timeline] = []

        def read(entry: Any) -> Any:
            timeline = _read(entry, 'ip_adapter_scale', num_frames)
            if not isinstance(timeline, Timeline):
                return entry
            if timeline.constant:
                return float(timeline.values[0])
            if not timeline.steps:
                return timeline.curve(num_frames)
            steps.append(timeline)
            return timeline

        scales = [_mapped(prompt.scale, read) for prompt in prompts]

        def keys(change: Callable[[Any], Any]) -> dict[nn.Module, list[ImageKeys]]:
            chosen = [
                replace(prompt, scale=_mapped(scale, change))
                for prompt, scale in zip(prompts, scales, strict=True)
            ]
            found = make(chosen)
            return {m: [k.waiting() if waits else k for k in each] for m, each in found.items()}

        self._still = keys(lambda entry: 0.0 if isinstance(entry, Timeline) else entry)
        self._over_steps = [(timeline, keys(partial(_only, timeline))) for timeline in steps]

    def at(
        self, frames: Tensor | None, share: float, device: torch.device
    ) -> dict[nn.Module, list[ImageKeys]]:
        """The layers' keys for ``frames`` [t], None for all, in a step."""
        found: dict[nn.Module, list[ImageKeys]] = {}
        parts = [(t.at_step(share).values[0], keys) for t, keys in self._over_steps]
        for strength, images in [(1.0, self._still), *parts]:
            for layer, keys in images.items() if strength else ():
                seen = [key if frames is None else key.select(frames, device) for key in keys]
                scaled = [
                    key if strength == 1 else replace(key, v=key.v * strength) for key in seen
                ]
                found.setdefault(layer, []).extend(scaled)
        return found


def _only(timeline: Timeline, entry: Any) -> float:
    """1 where a timeline stands, 0 elsewhere."""
    return float(entry is timeline)


def _read(entry: Any, name: str, num_frames: int | None) -> Any:
    """A timeline read; anything else as it is."""
    return strength_timeline(entry, name, num_frames) if is_timeline(entry) else entry


def _mapped(scale: Any, change: Callable[[Any], Any]) -> Any:
    """A scale by parts, blocks or pictures, with each of its numbers and timelines changed."""
    if isinstance(scale, Mapping) and not is_timeline(scale):
        return {key: _mapped(entry, change) for key, entry in scale.items()}
    if isinstance(scale, (list, tuple)):
        return [_mapped(entry, change) for entry in scale]
    return change(scale)
