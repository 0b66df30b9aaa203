"""What a pipeline gives back, in the forms that diffusers has for it.

N samples, C channels, T frames, H W pixels.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mmvideo.editors.checks import check_choice
from mmvideo.errors import InputError
from mmvideo.media.writers import write_video

_LOG = logging.getLogger(__name__)
OUTPUT_TYPES = ('pil', 'np', 'pt', 'latent')


@dataclass
class VideoOutput:
    """The videos of a call; also read by index, by name and as a tuple, as diffusers' outputs are.

    Attributes:
        frames: for ``'pil'`` N lists of T pictures; for ``'np'`` an array [N, T, H, W, C] in
            [0, 1]; for ``'pt'`` a tensor [N, T, C, H, W] in [0, 1]; for ``'latent'`` a tensor
            [N, C, T, H, W] in latent cells.
    """

    frames: Any

    def to_tuple(self) -> tuple[Any, ...]:
        """``(frames,)``."""
        return (self.frames,)

    def keys(self) -> list[str]:
        """``['frames']``."""
        return ['frames']

    def __getitem__(self, key: str | int | slice) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return 1


def packed(result: dict[str, Tensor], output_type: str, return_dict: bool) -> Any:
    """The result of an editor as a pipeline's."""
    frames = (
        result['latents'] if output_type == 'latent' else _frames(result['samples'], output_type)
    )
    return VideoOutput(frames) if return_dict else (frames,)


def check_output_type(output_type: Any) -> None:
    """Raise InputError for a form that there is not."""
    check_choice('output_type', output_type, OUTPUT_TYPES)


def _frames(samples: Tensor, output_type: str) -> Any:
    video = samples.transpose(1, 2)  # N T C H W
    if output_type == 'pt':
        return video
    arrays = video.permute(0, 1, 3, 4, 2).numpy()
    return arrays if output_type == 'np' else [_pictures(clip) for clip in arrays]


def _pictures(clip: np.ndarray) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(frame) for frame in _bytes(clip)]


def _bytes(frames: np.ndarray) -> np.ndarray:
    if frames.dtype == np.uint8:
        return frames
    return (frames * 255).round().astype(np.uint8)


def export_to_gif(
    image: Any, output_gif_path: str | os.PathLike[str] | None = None, fps: float = 10
) -> str:
    """Write a gif; arguments and result are those of ``diffusers.utils.export_to_gif``.

    Args:
        image: frames: PIL pictures, or arrays [H, W, 3] of uint8 or float in [0, 1].
        output_gif_path: the file; None takes ``animation.gif`` in a new temporary folder.
        fps: frames a second.
    """
    return _export(image, output_gif_path, 'animation.gif', fps)


def export_to_video(
    video_frames: Any,
    output_video_path: str | os.PathLike[str] | None = None,
    fps: float = 10,
    quality: float | None = 5.0,
    bitrate: int | None = None,
    macro_block_size: int | None = 16,
) -> str:
    """Write an mp4 (H.264); see ``export_to_gif``.

    Args:
        quality: without effect, as are the next two: every file has one quality that shows no
            loss, and a frame keeps its size (an odd edge is repeated).
        bitrate: likewise.
        macro_block_size: likewise.
    """
    if (quality, bitrate, macro_block_size) != (5.0, None, 16):
        _LOG.info('quality, bitrate and macro_block_size have no effect: there is one quality')
    return _export(video_frames, output_video_path, 'video.mp4', fps)


def _export(frames: Any, path: str | os.PathLike[str] | None, name: str, fps: float) -> str:
    import tempfile

    listed = list(frames)
    if not listed:
        raise InputError('frames is empty: expected the frames of one video.')
    arrays = np.stack([_bytes(np.asarray(frame)) for frame in listed])
    target = Path(tempfile.mkdtemp()) / name if path is None else Path(path)
    return str(write_video(target, arrays, fps))
