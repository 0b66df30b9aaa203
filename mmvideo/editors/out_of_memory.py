"""What is done when a device has too little memory: the same again in smaller pieces."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from mmvideo.errors import InputError
from mmvideo.models.borrowed import decode_clip
from mmvideo.models.unet.context import Controls, ImageContext

_LOG = logging.getLogger(__name__)
_Result = TypeVar('_Result')
# What torch's allocator of a CPU says, for which there is no class of errors.
_CPU_ALLOCATOR = ('DefaultCPUAllocator', 'memory')


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and all(word in str(error) for word in _CPU_ALLOCATOR)


def attempt(function: Callable[[], _Result]) -> _Result | None:
    """The result of ``function``, or None when it ran out of memory.

    What it had computed is free again: the error, whose frames hold it, has ended.
    """
    try:
        return function()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def give_up(what: str) -> NoReturn:
    """Raise the error for what cannot be made smaller.

    Raises:
        InputError: naming what else needs less memory.
    """
    raise InputError(
        f'too little memory {what}, even in the smallest pieces: take a smaller height and width, '
        'shorter windows, dtype=bfloat16, vae_tiling=True or offload (tools/doctor.py CONFIG says '
        'what each needs).'
    )


def decode_frugally(
    decode: Callable[[Tensor], Tensor], frames: Tensor, chunk_size: int
) -> tuple[Tensor, int]:
    """Pictures of the first frames, as many as the memory suffices for.

    Args:
        decode: latents [f, C, H, W] to pictures.
        frames: latents [F, C, H, W].
        chunk_size: how many to try first; half as many after each failure.

    Returns:
        The pictures, and the size to go on with.

    Raises:
        InputError: not even one frame.
    """
    size = min(chunk_size, len(frames))
    while True:
        pictures = attempt(partial(decode, frames[:size]))
        if pictures is not None:
            return pictures, chunk_size
        size = chunk_size = smaller(size)


def decode_clip_frugally(vae: Any, frames: Tensor, chunk_size: int, device: torch.device) -> Tensor:
    """Pictures [T, 3, H, W] in [-1, 1] of latents [T, C, H, W], by ``decode_clip``.

    Where the memory of the device is too small, the clip waits between layers in main memory, and
    half as many frames are on the device at once.

    Raises:
        InputError: not even one frame.
    """
    clip = frames.transpose(0, 1)[None].to(device, vae.dtype) / vae.config.scaling_factor
    size, store = min(chunk_size, len(frames)), device
    while True:
        decode = partial(decode_clip, vae, clip, size, store, device=device)
        pixels = attempt(decode)
        if pixels is not None:
            return pixels[0].transpose(0, 1)
        size, store = smaller(size), torch.device('cpu')


def smaller(chunk_size: int) -> int:
    """Half as many frames, said in the log.

    Raises:
        InputError: there was one frame already.
    """
    if chunk_size == 1:
        give_up('to decode a frame')
    _LOG.warning(
        'too little memory to decode %d frames at once: going on with %d',
        chunk_size,
        chunk_size // 2,
    )
    return chunk_size // 2


@dataclass(frozen=True)
class TrunkCall:
    """Arguments of the denoiser that have a row for each sample, or two with guidance.

    Attributes:
        sample: [N, C, T, H, W].
        text: [N, L, D] or [N*T, L, D].
        images: see ``ImageKeys``.
        conditions: [N, ...] each, by name.
        residuals: of controls: [N*T, C, H, W] each, by argument.
        told: numbers that are the same for all rows, by argument.
    """

    sample: Tensor
    text: Tensor
    images: ImageContext = field(default_factory=dict)
    conditions: Mapping[str, Tensor] | None = None
    residuals: Mapping[str, Tensor | Sequence[Tensor]] = field(default_factory=dict)
    told: Mapping[str, float] = field(default_factory=dict)

    def half(self, index: int) -> TrunkCall:
        """The rows without the prompt (0) or with it (1)."""

        def rows(x: Tensor) -> Tensor:
            return x.chunk(2)[index]

        images = {
            layer: [replace(key, k=rows(key.k), v=rows(key.v)) for key in keys]
            for layer, keys in self.images.items()
        }
        conditions = self.conditions
        if conditions is not None:
            conditions = {name: rows(value) for name, value in conditions.items()}
        residuals = {
            name: rows(value) if isinstance(value, Tensor) else [rows(x) for x in value]
            for name, value in self.residuals.items()
        }
        return TrunkCall(
            rows(self.sample), rows(self.text), images, conditions, residuals, self.told
        )


class FrugalTrunk:
    """Calls the denoiser; both halves of guidance at once until the memory is too small for that.

    Args:
        unet: the denoiser.
        guided: whether a call has two halves.
    """

    def __init__(self, unet: nn.Module, guided: bool) -> None:
        self.unet, self.guided = unet, guided
        self.apart = False

    def __call__(self, call: TrunkCall, timestep: Tensor, controls: Controls) -> Tensor:
        """The prediction [N, C, T, H, W].

        Raises:
            InputError: not even one half at a time.
        """
        if not self.apart:
            whole = attempt(partial(self._run, call, timestep, controls))
            if whole is not None:
                return whole
            if not self.guided:
                give_up('to denoise')
            self.apart = True
            _LOG.warning(
                'too little memory for both halves of guidance at once: going on with one after '
                'the other'
            )
        features: list[Tensor] = []
        halves = [
            attempt(partial(self._run, call.half(i), timestep, _half(controls, i, features)))
            for i in range(2)
        ]
        found = [half for half in halves if half is not None]
        if len(found) < 2:
            give_up('to denoise')
        if controls.deep is not None and features:
            controls.deep.keep(torch.cat(features))
        return torch.cat(found)

    def _run(self, call: TrunkCall, timestep: Any, controls: Controls) -> Tensor:
        return self.unet(
            call.sample,
            timestep,
            call.text,
            images=call.images,
            controls=controls,
            conditions=call.conditions,
            **call.residuals,
            **call.told,
        )


def _half(controls: Controls, index: int, features: list[Tensor]) -> Controls:
    """The controls of one half of guidance; its deep features come to ``features``."""
    deep = controls.deep
    if deep is None:
        return controls
    kept = None if deep.kept is None else deep.kept.chunk(2)[index]
    return replace(controls, deep=replace(deep, kept=kept, keep=features.append))
