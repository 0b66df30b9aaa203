"""What every editor with a latent denoiser is, with or without prompts: its parts and training."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel

from mmvideo.checkpoints.save import save_part, save_scheduler
from mmvideo.editors.denoising import Denoising
from mmvideo.editors.facts import SAMPLE_SIZE
from mmvideo.editors.parts import export_unet_config
from mmvideo.editors.request import Request
from mmvideo.errors import ConfigError, InputError, nearest
from mmvideo.models.adapters.low_rank import LowRank
from mmvideo.models.adapters.trained_lora import FILE_NAME as LORA_FILE
from mmvideo.models.adapters.trained_lora import (
    LoRASettings,
    add_trained_lora,
    read_settings,
    save_lora,
    targeted_layers,
)
from mmvideo.models.conditioning.image import prepare_condition_image


def check_lora(model: Mapping[str, Any]) -> None:
    """Refuse settings of a LoRA to be trained that cannot be, from ``cfg.model`` alone.

    Raises:
        ConfigError: naming the setting.
    """
    if model.get('lora') is None:
        return
    read_settings(model['lora'])
    if model.get('trainable'):
        raise ConfigError('model.lora trains beside a frozen model: leave model.trainable empty.')


class LatentEditor(Denoising, BaseModel):
    """A VAE, a denoiser and a scheduler; see ``LatentDiffusion`` and ``StableVideoDiffusion``.

    A class has ``infer`` and ``loss``, and builds ``vae``, ``unet`` and ``scheduler``.
    """

    # What ``offload`` is called with by who runs the editor.
    offload_mode: str | None = None
    lora: dict[str, LowRank]  # pairs in training, by the denoiser's layer
    # Arguments of other editors that ``infer`` has not, each with the reason.
    not_taken: Mapping[str, str] = {}
    # Of the options of a call (``mmvideo.editors.options``) those that this editor takes.
    _OPTIONS: tuple[str, ...] = ()

    @property
    def default_size(self) -> int:
        """Side of a picture in pixels when a call names none."""
        size = self.unet.sample_size or SAMPLE_SIZE
        return (size if isinstance(size, int) else size[0]) * self.vae_scale

    # Arguments --------------------------------------------------------------------------------

    @classmethod
    def check_names(cls, arguments: Mapping[str, Any]) -> Mapping[str, inspect.Parameter]:
        """The parameters of ``infer``; raises InputError for an argument that is none of them."""
        known = inspect.signature(cls.infer).parameters  # type: ignore[attr-defined]
        for name, value in arguments.items():
            if name in cls.not_taken:
                raise InputError(f'{name}={value!r}: {cls.__name__} {cls.not_taken[name]}.')
            if name not in known or name == 'self':
                raise InputError(f'{cls.__name__} takes no {name!r}.{nearest(name, known)}')
        return known

    @classmethod
    def complete(cls, model: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of ``infer`` that a call leaves to the model or its picture, said in full.

        Args:
            model: ``cfg.model``.
            arguments: of the call, not checked yet.
        """
        return {}

    def recipe_picture(self, picture: Any, height: int | None, width: int | None) -> torch.Tensor:
        """A picture as a recipe keeps it, float [3, H, W] in [-1, 1]: what prepares to itself."""
        return prepare_condition_image(picture, height, width, multiple=self.vae_scale)

    def _check_latents(self, request: Request) -> None:
        """Raise InputError for noise of a caller that has another shape than the clip."""
        expected = self._noise_shape(request)
        for item in request.samples:
            if item.latents is not None and tuple(item.latents.shape) != expected:
                found = [len(request.samples), *item.latents.shape]
                raise InputError(
                    f'latents has the shape {found}: expected {[found[0], *expected]}, '
                    '[N, C, T, H, W] in latent cells.'
                )

    # Training ---------------------------------------------------------------------------------

    def set_trainable(self, patterns: Sequence[str]) -> None:
        """Train the parameters that a pattern matches, freeze all others.

        Raises:
            ConfigError: a pattern that matches nothing.
        """
        select_trainable(self, patterns)

    def _train_lora(self, config: Mapping[str, Any] | None) -> None:
        """Train a LoRA of the denoiser, whose config is ``model.lora``; None trains none.

        Raises:
            ConfigError: settings that cannot be.
        """
        self.lora = {}
        if config is None:
            return
        assert not any(parameter.requires_grad for parameter in self.parameters())
        settings, idle = read_settings(config), self._idle_layers()
        self.lora = add_trained_lora(self.unet, settings, idle)
        self._tell_left_out(settings, idle)

    def _idle_layers(self) -> Collection[str]:
        """Names of the denoiser's layers that never run in this kind of model."""
        return ()

    def _tell_left_out(self, settings: LoRASettings, idle: Collection[str]) -> None:
        left = [name for name in targeted_layers(self.unet, settings.targets) if name in idle]
        if left:
            print_log(
                f'model.lora: {len(left)} targeted layers do nothing in a {type(self).__name__} '
                f'and get no pair, such as {left[0]}.',
                'current',
            )

    def train(self, mode: bool = True) -> LatentEditor:
        """Training mode for the denoiser; the VAE stays as it is."""
        super().train(mode)
        self.vae.eval()
        return self

    def forward(
        self,
        inputs: torch.Tensor | None,
        data_samples: dict | None = None,
        mode: str = 'tensor',
    ) -> Any:
        """The training loss (``mode='loss'``), or samples for a batch (``'predict'``).

        Args:
            inputs: video [N, C, T, H, W] in [-1, 1], or None when ``data_samples`` has
                ``latents``, the VAE's moments [N, 2C, T, H, W].
            data_samples: what the editor's condition needs, such as ``caption``: N strings.
        """
        samples = data_samples or {}
        if mode == 'loss':
            return self._batch_loss(inputs, samples)
        if mode == 'predict':
            return self._predict(inputs, samples)
        raise ConfigError(f"mode={mode!r}: expected 'loss' or 'predict'.")

    def _batch_loss(self, inputs: torch.Tensor | None, samples: dict) -> dict[str, torch.Tensor]:
        return self.loss(self._clean_latents(inputs, samples), samples)

    def loss(self, clean: torch.Tensor, data_samples: dict) -> dict[str, torch.Tensor]:
        """The denoising loss for clean latents [N, C, T, H, W]."""
        raise NotImplementedError

    def _predict(self, inputs: torch.Tensor | None, samples: dict) -> list[dict]:
        """Samples for a batch, one dict each, with what metrics compare them to."""
        raise NotImplementedError

    @torch.no_grad()
    def _clean_latents(self, video: torch.Tensor | None, samples: dict) -> torch.Tensor:
        if 'latents' in samples:
            mean, logvar = samples['latents'].chunk(2, dim=1)
            latents = mean + torch.exp(0.5 * logvar.clamp(-30, 20)) * torch.randn_like(mean)
            return latents * self.vae.config.scaling_factor
        if video is None:
            raise InputError('a batch needs `video`, or `latents` from a cache.')
        frames = video.transpose(1, 2).flatten(0, 1)
        latents = self.vae.encode(frames).latent_dist.sample().float()
        latents = latents.unflatten(0, (video.shape[0], -1)).transpose(1, 2)
        return latents * self.vae.config.scaling_factor

    def draw(self, batch: dict, **arguments: Any) -> torch.Tensor:
        """Samples [N, C, T, H, W] in [0, 1] of ``infer(**arguments)``, for a look in training."""
        return self.infer(**arguments)['samples']  # type: ignore[attr-defined]

    # Export -----------------------------------------------------------------------------------

    def _save_denoiser(self, folder: Path, dtype: str | None) -> None:
        """Write what of the denoiser was trained: ``lora``, or the parts of it that a class names;
        then its scheduler too."""
        if self.lora:
            save_lora(folder / 'lora' / LORA_FILE, self.lora, dtype)
        elif any(parameter.requires_grad for parameter in self.unet.parameters()):
            self._save_unet(folder, dtype)
            save_scheduler(folder / 'scheduler', self.scheduler)

    def _save_unet(self, folder: Path, dtype: str | None) -> None:
        save_part(folder / 'unet', export_unet_config(self.unet), self.unet, dtype=dtype)


def select_trainable(model: torch.nn.Module, patterns: Sequence[str]) -> None:
    """Train the parameters that a pattern matches, freeze all others.

    Raises:
        ConfigError: a pattern that matches nothing.
    """
    compiled = [re.compile(p) for p in patterns]
    names = [name for name, _ in model.named_parameters()]
    for pattern in compiled:
        if not any(pattern.search(name) for name in names):
            raise ConfigError(f'model.trainable: {pattern.pattern!r} matches no parameter.')
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(p.search(name) for p in compiled))
