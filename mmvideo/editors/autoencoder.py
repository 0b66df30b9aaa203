"""Training of the image VAE that the latent models work in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel

from mmvideo.checkpoints.save import save_part
from mmvideo.editors.latent_editor import select_trainable
from mmvideo.editors.parts import check_trained_vae
from mmvideo.editors.preprocessor import build_preprocessor
from mmvideo.errors import ConfigError
from mmvideo.registry import MODELS


@MODELS.register_module()
class Autoencoder(BaseModel):
    """Trains diffusers' ``AutoencoderKL`` on frames (Rombach et al. 2022, section 3.1, without
    the adversarial term): squared and absolute error, and a small KL penalty.

    With ``AutoencoderKLTemporalDecoder`` the frames of a clip are decoded together.

    Args:
        vae: config of either.
        kl_weight: weight of the KL divergence, which is summed over a latent and divided by the
            number of pixels' values, so it compares with the mean squared error.
        l1_weight: weight of the absolute error, which keeps edges sharp.
        latent_noise: largest standard deviation of Gaussian noise that training adds to the
            latents before they are decoded, where latents have unit variance (``scaling_factor``);
            each frame draws its own between 0 and this. A decoder that saw it forgives the small
            errors of a denoiser.
        trainable: regular expressions over parameter names, such as ``^vae.decoder``; the rest is
            frozen.
        data_preprocessor: see ``VideoPreprocessor``.
    """

    part_registries = {'vae': 'MODELS'}

    def __init__(
        self,
        vae: dict,
        kl_weight: float = 1e-6,
        l1_weight: float = 0.1,
        latent_noise: float = 0.0,
        trainable: Sequence[str] = ('^vae',),
        data_preprocessor: dict | None = None,
    ) -> None:
        _check_noise(latent_noise)
        super().__init__(build_preprocessor(data_preprocessor))
        self.vae = MODELS.build(vae)
        self.kl_weight = kl_weight
        self.l1_weight = l1_weight
        self.latent_noise = latent_noise
        select_trainable(self, trainable)
        self._latent_std = 0.0  # running standard deviation of the latents' means

    @classmethod
    def check_training(cls, model: Mapping[str, Any]) -> None:
        """Refuse what cannot be trained so, from ``cfg.model`` alone."""
        check_trained_vae(model.get('vae'))
        _check_noise(model.get('latent_noise', 0.0))

    def forward(
        self, inputs: torch.Tensor, data_samples: dict | None = None, mode: str = 'tensor'
    ) -> Any:
        """Reconstruct frames [N, C, T, H, W] in [-1, 1], or give the losses (``mode='loss'``)."""
        frames = inputs.transpose(1, 2).flatten(0, 1).to(self.vae.dtype)
        posterior = self.vae.encode(frames).latent_dist
        if mode == 'loss':
            return self._losses(frames, posterior, inputs.shape[2])
        decoded = self._decode(posterior.mode(), inputs.shape[2])
        video = decoded.unflatten(0, (inputs.shape[0], -1)).transpose(1, 2)
        return video if mode == 'tensor' else reconstructions(video, inputs)

    def _decode(self, latents: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Frames [N*T, C, H, W] of latents, the frames of a clip adjacent."""
        over_time = {'num_frames': num_frames} if hasattr(self.vae.decoder, 'time_conv_out') else {}
        return self.vae.decode(latents, **over_time).sample

    def _losses(
        self, frames: torch.Tensor, posterior: Any, num_frames: int
    ) -> dict[str, torch.Tensor]:
        decoded = self._decode(self._disturbed(posterior.sample()), num_frames).float()
        squared = F.mse_loss(decoded, frames)
        psnr = 10 * torch.log10(4 / squared.detach())
        self._track_std(posterior.mean)
        kl = posterior.kl().float().mean() / frames[0].numel()
        return dict(
            loss_squared=squared,
            loss_absolute=self.l1_weight * F.l1_loss(decoded, frames),
            loss_kl=self.kl_weight * kl,
            psnr=psnr,
        )

    def _disturbed(self, latents: torch.Tensor) -> torch.Tensor:
        if not self.latent_noise:
            return latents
        largest = self.latent_noise / self.vae.config.scaling_factor
        deviation = largest * torch.rand(len(latents), 1, 1, 1, device=latents.device)
        return latents + deviation.to(latents.dtype) * torch.randn_like(latents)

    @torch.no_grad()
    def _track_std(self, mean: torch.Tensor) -> None:
        std = float(mean.float().std())
        self._latent_std = std if not self._latent_std else 0.99 * self._latent_std + 0.01 * std

    @torch.no_grad()
    def draw(self, batch: dict) -> torch.Tensor:
        """Originals, then their reconstructions: [2N, C, 1, H, W] in [0, 1] for N <= 8."""
        inputs = self.data_preprocessor(batch)['inputs'][:8, :, :1]
        return torch.cat([inputs, self(inputs)]).float().add(1).div(2).clamp(0, 1).cpu()

    def save_pretrained(self, folder: str | Path, dtype: str | None = None) -> None:
        """Write ``folder/vae`` in the hub's layout.

        Its ``scaling_factor`` is what gives the latents of the training data unit variance.
        """
        # A frozen encoder keeps the factor that others know it with.
        if self._latent_std and next(self.vae.encoder.parameters()).requires_grad:
            self.vae.register_to_config(scaling_factor=1 / self._latent_std)
        save_part(Path(folder) / 'vae', dict(self.vae.config), self.vae, dtype=dtype)


def _check_noise(latent_noise: float) -> None:
    if not 0 <= latent_noise <= 1:
        raise ConfigError(
            f'model.latent_noise={latent_noise!r}: expected a number between 0 and 1.'
        )


def reconstructions(video: torch.Tensor, target: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Per sample, the reconstruction and its target as float [0, 1] [C, T, H, W]."""
    shown = [t.float().add(1).div(2).clamp(0, 1) for t in (video, target)]
    return [dict(video=v, target=t) for v, t in zip(*shown, strict=True)]
