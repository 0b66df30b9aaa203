"""How a model that animates a picture is trained: noise by level, a picture with a little noise.

N batch, C channels, T frames, H W latent size, D width of the picture's token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmvideo.diffusion.edm import draw_sigmas, noised, output_target, precondition
from mmvideo.diffusion.objective import per_sample, weighted_mse
from mmvideo.editors.clip_request import MOST_BUCKETS
from mmvideo.editors.latent_editor import LatentEditor, check_lora
from mmvideo.editors.parts import check_clip_vae
from mmvideo.editors.preprocessor import given, to_model_range
from mmvideo.errors import ConfigError
from mmvideo.models.unet.attention import SpatialBlock


class PictureTraining(LatentEditor):
    """The training half of ``StableVideoDiffusion``, whose arguments the attributes are."""

    sigma_mean: float
    sigma_std: float
    augmentation_mean: float
    augmentation_std: float
    condition_dropout: float
    train_fps: float
    train_motion_bucket_id: float
    predict_arguments: dict[str, Any]
    image_encoder: Any
    _frozen_picture: bool

    def _embed(self, pictures: Tensor) -> Tensor:
        raise NotImplementedError

    def _picture_latents(self, pictures: Tensor, noise: Tensor, strength: Tensor) -> Tensor:
        raise NotImplementedError

    def _set_training(self, **settings: float) -> None:
        self.check_training(settings)
        for name, value in settings.items():
            setattr(self, name, value)

    @classmethod
    def check_training(cls, model: Mapping[str, Any]) -> None:
        """Refuse settings of training that cannot be, from ``cfg.model`` alone.

        Raises:
            ConfigError: naming the setting.
        """
        check_lora(model)
        check_clip_vae(model.get('vae'))
        limits = dict(
            sigma_std=(0, 100),
            augmentation_std=(0, 100),
            condition_dropout=(0, 1 / 3),
            train_fps=(1, 1000),
            train_motion_bucket_id=(0, MOST_BUCKETS),
        )
        for name, (low, high) in limits.items():
            value = model.get(name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f'model.{name}={value!r}: expected {low} to {high:.4g}.')

    def set_trainable(self, patterns: Sequence[str]) -> None:
        """See ``LatentEditor``; denoiser and image encoder can be trained.

        Of an attention to the picture's one token only the values count (``attend_to_one``), so
        its queries and keys stay frozen: they would get no gradient, and several processes would
        wait for one. For the same reason they get no pairs of a LoRA.
        """
        super().set_trainable(patterns)
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and not name.startswith(('unet.', 'image_encoder.')):
                raise ConfigError(
                    f'model.trainable: {name} is frozen here, use ^unet or ^image_encoder.'
                )
        for name in self._idle_layers():
            self.unet.get_submodule(name).requires_grad_(False)
        self._frozen_picture = not any(p.requires_grad for p in self.image_encoder.parameters())

    def _idle_layers(self) -> set[str]:
        blocks = [n for n, m in self.unet.named_modules() if isinstance(m, SpatialBlock)]
        return {f'{n}.{part}' for n in blocks for part in ('norm2', 'attn2.to_q', 'attn2.to_k')}

    def train(self, mode: bool = True) -> PictureTraining:
        """Training mode for what is trained; the VAE and a frozen encoder stay as they are."""
        super().train(mode)
        if self._frozen_picture:
            self.image_encoder.eval()
        return self

    def _batch_loss(self, inputs: Tensor | None, samples: dict) -> dict[str, Tensor]:
        clean = self._clean_latents(inputs, samples)
        if inputs is not None:
            picture = inputs[:, :, 0]
        else:
            picture = to_model_range(given(samples, 'image', 'its first frame'))
        return self.loss(clean, {**samples, 'picture': picture})

    def loss(self, clean: Tensor, data_samples: dict) -> dict[str, Tensor]:
        """The loss of Karras et al. 2022 (table 1) for clean latents [N, C, T, H, W].

        ``data_samples``: ``picture`` [N, 3, height, width] in [-1, 1], and perhaps ``fps`` and
        ``motion_bucket_id`` of each clip, [N].
        """
        picture = given(data_samples, 'picture', 'its first frame')
        sigma = draw_sigmas(len(clean), self.sigma_mean, self.sigma_std).to(clean.device)
        noise = torch.randn_like(clean)
        factors = precondition(sigma)
        scaled = noised(clean, noise, sigma) * per_sample(factors.scale, clean)
        token, latent, ids = self._training_condition(picture, data_samples)
        output = self.unet(
            self._model_input(scaled, latent[:, :, None].to(scaled), None),
            factors.time,
            token.to(scaled),
            conditions={'added_time_ids': ids},
        )
        return dict(loss=weighted_mse(output, output_target(clean, noise, sigma)))

    def _training_condition(
        self, picture: Tensor, samples: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [N, 1, D], latents [N, C, H, W] and ids [N, 3], each sample drawn by itself."""
        count = len(picture)
        strength = draw_sigmas(count, self.augmentation_mean, self.augmentation_std).to(picture)
        latent = self._picture_latents(picture, torch.randn_like(picture), strength)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen_picture):
            token = self._embed(picture)
        drawn = (torch.rand(count) / self.condition_dropout) if self.condition_dropout else None
        if drawn is not None:  # [0, 1) the token, [1, 2) both, [2, 3) the latent
            has_token, has_latent = drawn >= 2, (drawn < 1) | (drawn >= 3)
            token = token * per_sample(has_token, token)
            latent = latent * per_sample(has_latent, latent)
        usual = {'fps': self.train_fps, 'motion_bucket_id': self.train_motion_bucket_id}
        fps, motion = (
            torch.as_tensor(samples.get(name, value), device=picture.device).float().expand(count)
            for name, value in usual.items()
        )
        return token, latent, torch.stack([fps - 1, motion, strength.float()], dim=1)

    def _predict(self, inputs: Tensor | None, samples: dict) -> list[dict]:
        """Clips that go on from a batch's first frames, one dict each."""
        assert inputs is not None, 'clips whose first frames are animated'
        first = inputs[:, :, 0].float().add(1).div(2).clamp(0, 1).cpu()
        captions = list(samples.get('caption', [''] * len(first)))
        seeds = [int(i) for i in samples.get('index', range(len(first)))]
        size = dict(height=first.shape[-2], width=first.shape[-1], video_length=inputs.shape[2])
        arguments = {**size, **self.predict_arguments}
        videos = self.infer(image=list(first), seed=seeds, **arguments)['samples']
        headings = (samples.get('scene') or {}).get('heading', [None] * len(first))
        return [
            dict(video=video, caption=caption, image=image, heading=heading)
            for video, caption, image, heading in zip(
                videos, captions, first, headings, strict=True
            )
        ]
