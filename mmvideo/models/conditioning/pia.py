"""PIA's condition: what the denoiser sees beside the noisy latents.

The input of every frame is its noisy latent, its affinity to the condition frame as a constant
plane, and the latent of the condition picture (Zhang et al. 2023, section 3.2). The weights that
read it are the denoiser's first convolution; in PIA's own checkpoint they are ``conv_in``.

N batch, T frames, C latent channels, H W latent size, K offsets of the statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmvideo.errors import ConfigError
from mmvideo.models.conditioning.affinity import (
    WEBVID_STATISTICS,
    AffinityStatistics,
    normalise_scores,
)
from mmvideo.models.conditioning.image import prepare_condition_image
from mmvideo.registry import MODELS


@MODELS.register_module()
class PIACondition(nn.Module):
    """Joins latents, affinity and condition latent. It has no parameters of its own.

    Args:
        latent_channels: C.
        condition_dropout: part of the training samples that see no condition at all (mask and
            latent zero), drawn for each sample by itself.
        statistics: range of the training data's scores: 'webvid', the path of a file of
            ``tools/affinity_stats.py``, or its content as a dict. Only training needs it.

    Raises:
        ConfigError: a setting out of range.
        InputError: statistics that cannot be read.
    """

    _table: Tensor | None

    def __init__(
        self,
        latent_channels: int = 4,
        condition_dropout: float = 0.2,
        statistics: str | Path | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if latent_channels < 1:
            raise ConfigError(f'latent_channels={latent_channels}: expected at least 1.')
        if not 0 <= condition_dropout <= 1:
            raise ConfigError(
                f'condition_dropout={condition_dropout}: expected a probability, 0 to 1.'
            )
        self.latent_channels = latent_channels
        self.condition_dropout = condition_dropout
        self.statistics = read_statistics(statistics)
        table = self.statistics.table() if self.statistics else None
        self.register_buffer('_table', table, persistent=False)

    @property
    def in_channels(self) -> int:
        """Channels of the denoiser's input: noisy latent, mask, condition latent."""
        return 2 * self.latent_channels + 1

    def inputs(self, latents: Tensor, condition_latent: Tensor, affinity: Tensor) -> Tensor:
        """The denoiser's input [N, 2 * C + 1, T, H, W].

        Args:
            latents: noisy, [N, C, T, H, W].
            condition_latent: of the picture, scaled as ``latents`` are, [N, C, H, W], or
                [N, C, T, H, W] where frames have pictures of their own.
            affinity: of each frame, [N, T].
        """
        samples, channels, frames, height, width = latents.shape
        assert channels == self.latent_channels, (channels, self.latent_channels)
        shared = condition_latent.ndim == 4
        picture = condition_latent.unsqueeze(2) if shared else condition_latent
        expected = (samples, channels, 1 if shared else frames, height, width)
        assert picture.shape == expected, condition_latent.shape
        assert affinity.shape == (samples, frames), affinity.shape
        mask = affinity.to(latents)[:, None, :, None, None].expand(-1, -1, -1, height, width)
        picture = picture.to(latents).expand_as(latents)
        return torch.cat([latents, mask, picture], dim=1)  # the views are written once, here

    def training_inputs(
        self, latents: Tensor, condition_latent: Tensor, affinity: Tensor
    ) -> Tensor:
        """As ``inputs``, with the condition of some samples dropped.

        Each sample is drawn by itself from torch's global CPU generator, so a resumed training
        and another device draw the same. (The official code drops whole micro-batches.)
        """
        kept = torch.rand(len(latents)) >= self.condition_dropout
        kept = kept.to(latents.device, latents.dtype)
        return self.inputs(
            latents,
            condition_latent.to(latents) * kept[:, None, None, None],
            affinity.to(latents) * kept[:, None],
        )

    def training_affinity(self, scores: Tensor, condition_frame: Tensor) -> Tensor:
        """The affinity [N, T] of clips to their condition frames.

        Args:
            scores: every frame against every frame, [N, T, T], from ``affinity_scores``.
            condition_frame: [N], 0 to T - 1.

        Raises:
            ConfigError: there are no statistics to scale by.
            InputError: the clips are longer than the statistics reach.
        """
        if self._table is None:
            raise ConfigError(
                "condition_module.statistics is missing: training PIA needs 'webvid' or a file "
                'of tools/affinity_stats.py.'
            )
        rows = torch.arange(len(scores), device=scores.device)
        against = scores[rows, condition_frame.to(scores.device)].float()  # N T; symmetric
        return normalise_scores(against, condition_frame, self._table.to(scores.device))


def read_statistics(source: str | Path | Mapping[str, Any] | None) -> AffinityStatistics | None:
    """Statistics by name, path or content; None stays None."""
    if source is None:
        return None
    if isinstance(source, Mapping):
        return AffinityStatistics.from_dict(source)
    if source == 'webvid':
        return WEBVID_STATISTICS
    return AffinityStatistics.from_json(source)


__all__ = ['PIACondition', 'prepare_condition_image', 'read_statistics']
