"""Batches as datasets give them become tensors as editors take them."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor

from mmvideo.errors import InputError, nearest
from mmvideo.registry import MODELS


@MODELS.register_module()
class VideoPreprocessor(BaseDataPreprocessor):
    """Moves a collated batch to the device; uint8 video becomes float in [-1, 1].

    A batch is a dict: ``video`` uint8 [N, T, C, H, W] or ``latents`` [N, T, C, H, W], and anything
    else (``caption`` list of strings, ``affinity`` [N, T] ...), which is passed on as
    ``data_samples``. The result is ``dict(inputs=[N, C, T, H, W], data_samples=dict)``.
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        """Return ``dict(inputs=..., data_samples=...)`` for the editor's ``forward``."""
        data = self.cast_data(data)
        samples: dict[str, Any] = {k: v for k, v in data.items() if k not in ('video', 'latents')}
        if 'latents' in data:
            samples['latents'] = data['latents'].transpose(1, 2).float()
        video = data.get('video')
        inputs = None if video is None else to_model_range(video).transpose(1, 2)
        return dict(inputs=inputs, data_samples=samples)


def build_preprocessor(config: dict | None) -> BaseDataPreprocessor:
    """The configured preprocessor, by default ``VideoPreprocessor``.

    Built here because ``BaseModel`` builds it from MMEngine's root registry, which finds ours only
    after a default scope was set.
    """
    return MODELS.build(config or dict(type='VideoPreprocessor'))


def to_model_range(video: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 to float -1..1."""
    return video.float().div_(127.5).sub_(1.0)


def first_frames(video: torch.Tensor) -> torch.Tensor:
    """Of clips [N, C, T, H, W] in [-1, 1], as pictures [N, C, H, W] in [0, 1] on the CPU."""
    return video[:, :, 0].float().add(1).div(2).clamp(0, 1).cpu()


def given(data_samples: dict, name: str, what: str) -> Any:
    """What the dataset's items must have.

    Raises:
        InputError: they have it not.
    """
    if name not in data_samples:
        raise InputError(
            f'the dataset gives no {name!r} ({what} for each clip), only '
            f'{", ".join(sorted(data_samples)) or "frames"}.{nearest(name, data_samples)}'
        )
    return data_samples[name]
