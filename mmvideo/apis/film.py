"""A video between its making and its files: latents that are decoded while the files are written.

T frames, t frames of a part, C channels, H W picture size in pixels.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmvideo.apis.targets import Target
from mmvideo.errors import InputError
from mmvideo.media.writers import VideoWriter, to_frames

_PART = 16  # frames, where an editor says nothing


@dataclass(frozen=True)
class Film:
    """A video that can be read once.

    Attributes:
        num_frames: T.
        parts: float [t, C, H, W] in [0, 1] on the CPU, in the order of time.
    """

    num_frames: int
    parts: Iterator[Tensor]


def make_film(editor: Any, call: Mapping[str, Any], callback: Callable) -> Film:
    """Sample one video; its pictures are decoded as the film is read.

    Args:
        editor: one whose ``infer`` has an ``output_type`` also has ``decode_chunks``; of another
            the samples are taken as they come.
        call: arguments of its ``infer``, for one sample.
        callback: likewise.
    """
    size = call.get('decode_chunk_size') or _PART
    if 'output_type' not in inspect.signature(editor.infer).parameters:
        sample = editor.infer(**call, callback=callback)['samples'][0]
        return Film(sample.shape[1], iter(sample.transpose(0, 1).split(size)))
    latents = editor.infer(**call, callback=callback, output_type='latent')['latents'][0]
    return Film(latents.shape[1], editor.decode_chunks(latents.transpose(0, 1), size))


def write_film(
    film: Film,
    targets: Sequence[Target],
    fps: float,
    recipe: dict[str, Any],
    kept: list[Tensor] | None = None,
) -> Iterator[Path]:
    """Read a film once and write all its files, part by part.

    Args:
        film: it.
        targets: the files.
        fps: frames a second.
        recipe: see ``mmvideo.media.recipe``.
        kept: gets every part; None keeps none.

    Yields:
        Each file, as soon as it is complete.

    Raises:
        InputError: pictures that are no numbers.
    """
    for target in targets:
        target.make_folder()
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(
                VideoWriter(target.path, film.num_frames, fps, recipe, target.overwrite)
            )
            for target in targets
        ]
        for part in film.parts:
            if writers:
                frames = _frames(part)
                for writer in writers:
                    writer.add(frames)
            if kept is not None:
                kept.append(part)
        for writer in writers:
            yield writer.finish()


def _frames(part: Tensor) -> Any:
    if not torch.isfinite(part).all():
        raise InputError(
            'the result has values that are no numbers: this precision is too low for the model, '
            'try --dtype float32.'
        )
    return to_frames(part.transpose(0, 1))
