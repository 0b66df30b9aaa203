"""What all editors with a latent denoiser share: parts, prompts, sampling, decoding, the loss."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseModel

from mmvideo.checkpoints.save import save_part, save_scheduler, save_tokenizer
from mmvideo.diffusion.objective import (
    PREDICTION_TYPES,
    add_noise,
    min_snr_weights,
    prediction_target,
    weighted_mse,
)
from mmvideo.diffusion.sampling import guide, sample
from mmvideo.editors.facts import read_facts
from mmvideo.editors.parts import build_unet, export_unet_config, weight_files
from mmvideo.editors.preprocessor import build_preprocessor, given
from mmvideo.editors.request import (
    Request,
    Sample,
    as_prompts,
    check_seeds,
    check_settings,
)
from mmvideo.errors import ConfigError, InputError, nearest
from mmvideo.models.conditioning.text import chunks_needed, encode_prompts
from mmvideo.registry import MODELS, SCHEDULERS, TOKENIZERS

_SAMPLE_SIZE = 64  # latent cells a side, of Stable Diffusion 1.5
_SHARED_SETTINGS = ('num_inference_steps', 'guidance_scale', 'eta', 'decode_chunk_size')


class LatentDiffusion(BaseModel):
    """A VAE, a text encoder, a denoiser and a scheduler, to sample from and to train.

    Args:
        vae: config of ``AutoencoderKL``.
        text_encoder: config of ``CLIPTextModel``.
        tokenizer: config of ``CLIPTokenizer``.
        unet: config of ``VideoUNet``.
        scheduler: config of the sampler; it also says what the denoiser predicts.
        train_scheduler: config of the noise schedule in training; None takes ``scheduler``.
        motion_module: config of ``MotionModule``, for editors that animate.
        trainable: regular expressions over parameter names (``unet.down_blocks...``,
            ``text_encoder...``); a parameter is trained when one matches.
        caption_dropout: probability, per sample, of training without its caption.
        min_snr_gamma: None for the plain mean squared error.
        timestep_range: training draws its timesteps from ``[first, last)``; None is all of them.
        predict: arguments of ``infer`` when a runner tests or validates.
        data_preprocessor: see ``VideoPreprocessor``.
    """

    part_registries = {
        'vae': 'MODELS',
        'text_encoder': 'MODELS',
        'tokenizer': 'TOKENIZERS',
        'unet': 'MODELS',
        'scheduler': 'SCHEDULERS',
        'train_scheduler': 'SCHEDULERS',
        'motion_module': 'MODELS',
        'condition_module': 'MODELS',
    }

    def __init__(
        self,
        vae: dict,
        text_encoder: dict,
        tokenizer: dict,
        unet: dict,
        scheduler: dict,
        train_scheduler: dict | None = None,
        motion_module: dict | None = None,
        trainable: Sequence[str] = (),
        caption_dropout: float = 0.1,
        min_snr_gamma: float | None = None,
        timestep_range: Sequence[int] | None = None,
        predict: dict | None = None,
        data_preprocessor: dict | None = None,
    ) -> None:
        super().__init__(build_preprocessor(data_preprocessor))
        self._parts = dict(
            vae=vae, text_encoder=text_encoder, unet=unet, motion_module=motion_module
        )
        weight_files(self._parts)  # a missing file is found before another is read
        self.scheduler = SCHEDULERS.build(scheduler)
        self.train_scheduler = SCHEDULERS.build(train_scheduler or scheduler)
        self.tokenizer = TOKENIZERS.build(tokenizer)
        self.vae = MODELS.build(vae)
        self.text_encoder = MODELS.build(text_encoder)
        self.unet = build_unet(unet, motion_module, **self._unet_options())
        self.caption_dropout = caption_dropout
        self.min_snr_gamma = min_snr_gamma
        self.timestep_range = self._check_timestep_range(timestep_range)
        self.predict_arguments = dict(predict or {})
        self._check_prediction_type()
        self.set_trainable(trainable)

    # Parts ------------------------------------------------------------------------------------

    def _unet_options(self) -> dict[str, Any]:
        """How this editor builds the denoiser, beside its config."""
        return {}

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the denoiser computes in."""
        return next(self.unet.parameters()).dtype

    @property
    def vae_scale(self) -> int:
        """Pixels along one side of a latent cell."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def default_size(self) -> int:
        """Side of a picture in pixels when a call names none."""
        size = self.unet.sample_size or _SAMPLE_SIZE
        return (size if isinstance(size, int) else size[0]) * self.vae_scale

    def weight_files(self) -> list[Path]:
        """The files that the weights came from, for a recipe to name."""
        return weight_files(self._parts)

    def set_trainable(self, patterns: Sequence[str]) -> None:
        """Train the parameters that a pattern matches, freeze all others.

        Raises:
            ConfigError: a pattern that matches nothing.
        """
        compiled = [re.compile(p) for p in patterns]
        names = [name for name, _ in self.named_parameters()]
        for pattern in compiled:
            if not any(pattern.search(name) for name in names):
                raise ConfigError(f'model.trainable: {pattern.pattern!r} matches no parameter.')
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(any(p.search(name) for p in compiled))
        self._frozen_text = not any(p.requires_grad for p in self.text_encoder.parameters())

    def _check_prediction_type(self) -> None:
        kind = self.scheduler.config.prediction_type
        if kind not in PREDICTION_TYPES:
            raise ConfigError(f'scheduler.prediction_type={kind!r}: expected {PREDICTION_TYPES}.')

    def _check_timestep_range(self, given: Sequence[int] | None) -> tuple[int, int]:
        count = self.train_scheduler.config.num_train_timesteps
        if given is None:
            return (0, count)
        bounds = tuple(given)
        if len(bounds) != 2 or not all(isinstance(bound, int) for bound in bounds):
            raise ConfigError(f'model.timestep_range={given!r}: expected two integers.')
        first, last = bounds
        if not 0 <= first < last <= count:
            raise ConfigError(
                f'model.timestep_range={given!r}: expected 0 <= first < last <= {count}.'
            )
        return (first, last)

    def train(self, mode: bool = True) -> LatentDiffusion:
        """Training mode for the denoiser; the VAE and a frozen text encoder stay as they are."""
        super().train(mode)
        self.vae.eval()
        if self._frozen_text:
            self.text_encoder.eval()
        return self

    # Sampling ---------------------------------------------------------------------------------

    @classmethod
    def check(cls, model: dict, arguments: dict) -> None:
        """Refuse arguments of ``infer`` that cannot work, from the config alone.

        Args:
            model: ``cfg.model``.
            arguments: what ``infer`` will be called with.

        Raises:
            InputError: naming the argument, its value and what was expected.
        """
        known = inspect.signature(cls.infer).parameters
        for name in arguments:
            if name not in known or name == 'self':
                raise InputError(f'{cls.__name__} takes no {name!r}.{nearest(name, known)}')
        facts = read_facts(model)
        values = {k: p.default for k, p in known.items() if p.default is not p.empty}
        values.update(arguments)
        as_prompts(values.get('prompt'))
        check_seeds(values.get('seed'))
        size = facts.default_size
        settings = {
            name: values[name] for name in (*_SHARED_SETTINGS, 'strength') if name in values
        }
        check_settings(
            **settings,
            num_frames=values.get('video_length', 1),
            height=values.get('height') or size,
            width=values.get('width') or size,
            multiple=facts.vae_scale,
            max_frames=facts.max_frames,
        )

    def _check(self, request: Request) -> None:
        """``check`` for a model that is built."""
        check_settings(
            **{name: getattr(request, name) for name in (*_SHARED_SETTINGS, 'strength')},
            num_frames=request.num_frames,
            height=request.height,
            width=request.width,
            multiple=self.vae_scale,
            max_frames=self.unet.max_frames,
        )
        expected = self._noise_shape(request)
        for item in request.samples:
            if item.latents is not None and tuple(item.latents.shape) != expected:
                found = [len(request.samples), *item.latents.shape]
                raise InputError(
                    f'latents has the shape {found}: expected {[found[0], *expected]}, '
                    '[N, C, T, H, W] in latent cells.'
                )

    @torch.no_grad()
    def _infer(self, request: Request, callback: Callable | None) -> dict[str, torch.Tensor]:
        latents = [self._denoise(group, request, callback) for group in self._groups(request)]
        order = [i for group in self._groups(request) for i in (s.index for s in group)]
        ordered = torch.cat(latents)[torch.tensor(order).argsort()]
        return dict(samples=self.decode(ordered, request.decode_chunk_size))

    def _groups(self, request: Request) -> list[list[Sample]]:
        """Samples whose prompts need equally many chunks, so that none is padded for another."""
        groups: dict[int, list[Sample]] = {}
        for item in request.samples:
            needed = max(
                chunks_needed(self.tokenizer, text) for text in (item.prompt, item.negative_prompt)
            )
            groups.setdefault(needed, []).append(item)
        return list(groups.values())

    def _denoise(
        self, group: list[Sample], request: Request, callback: Callable | None
    ) -> torch.Tensor:
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(request.num_inference_steps)
        timesteps = self._timesteps(scheduler, request)
        latents = self._start(group, request, scheduler, timesteps)
        guided = request.guidance_scale > 1
        context = self._context(group, guided)
        extra = self._condition(group, request, guided)

        def denoise(scaled: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            halves = torch.cat([scaled] * 2) if guided else scaled
            halves = self._model_input(halves.to(self.dtype), extra)
            prediction = self.unet(halves, timestep.to(self.device), context).to(scaled)
            return guide(prediction, request.guidance_scale) if guided else prediction

        generators = [item.generator for item in group]
        return sample(denoise, scheduler, latents, timesteps, generators, request.eta, callback)

    def _timesteps(self, scheduler: Any, request: Request) -> torch.Tensor:
        return scheduler.timesteps

    def _start(
        self, group: list[Sample], request: Request, scheduler: Any, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Latents at the noise level of the first timestep, float32 on the device."""
        noise = torch.stack([self._noise(item, request) for item in group]).to(self.device)
        return noise * scheduler.init_noise_sigma

    def _noise(self, item: Sample, request: Request) -> torch.Tensor:
        """[C, T, H, W] from the sample's own CPU generator, so it depends on nothing else."""
        if item.latents is not None:
            return item.latents.float()
        return torch.randn(self._noise_shape(request), generator=item.generator)

    def _noise_shape(self, request: Request) -> tuple[int, ...]:
        """(C, T, H, W) of one sample."""
        cells = (request.height // self.vae_scale, request.width // self.vae_scale)
        return (self.vae.config.latent_channels, request.num_frames, *cells)

    def _context(self, group: list[Sample], guided: bool) -> torch.Tensor:
        prompts = [item.prompt for item in group]
        negative = [item.negative_prompt for item in group]
        everything = [*negative, *prompts] if guided else prompts
        count = max(chunks_needed(self.tokenizer, text) for text in [*negative, *prompts])
        context = encode_prompts(self.tokenizer, self.text_encoder, everything, count)
        return context.to(self.dtype)

    def _condition(self, group: list[Sample], request: Request, guided: bool) -> Any:
        """What stays the same in every step and is not text; None here."""
        return None

    def _model_input(self, latents: torch.Tensor, extra: Any) -> torch.Tensor:
        return latents

    def decode(self, latents: torch.Tensor, chunk_size: int = 16) -> torch.Tensor:
        """Latents [N, C, T, H, W] to float32 pictures in [0, 1] on the CPU, by chunks of frames."""
        frames = latents.transpose(1, 2).flatten(0, 1).to(self.vae.dtype)
        frames = frames / self.vae.config.scaling_factor
        decoded = [
            self.vae.decode(chunk).sample.float().add(1).div(2).clamp(0, 1).cpu()
            for chunk in frames.split(chunk_size)
        ]
        return torch.cat(decoded).unflatten(0, (latents.shape[0], -1)).transpose(1, 2).contiguous()

    # Training ---------------------------------------------------------------------------------

    def forward(
        self,
        inputs: torch.Tensor | None,
        data_samples: dict | None = None,
        mode: str = 'tensor',
    ) -> Any:
        """The training loss (``mode='loss'``), or samples for a batch's captions (``'predict'``).

        Args:
            inputs: video [N, C, T, H, W] in [-1, 1], or None when ``data_samples`` has
                ``latents``, the VAE's moments [N, 2C, T, H, W].
            data_samples: ``caption``: N strings, and what the editor's condition needs.
        """
        samples = data_samples or {}
        if mode == 'loss':
            return self.loss(self._clean_latents(inputs, samples), samples)
        if mode == 'predict':
            return self._predict(inputs, samples)
        raise ConfigError(f"mode={mode!r}: expected 'loss' or 'predict'.")

    def loss(self, clean: torch.Tensor, data_samples: dict) -> dict[str, torch.Tensor]:
        """The denoising loss for clean latents [N, C, T, H, W] (Ho et al. 2020, algorithm 1)."""
        config = self.train_scheduler.config
        noise = torch.randn_like(clean)
        timesteps = torch.randint(*self.timestep_range, clean.shape[:1], device=clean.device)
        alpha_bar = self.train_scheduler.alphas_cumprod.to(clean.device)[timesteps]
        noisy = self._training_input(add_noise(clean, noise, alpha_bar), data_samples)
        context = self._training_context(given(data_samples, 'caption', 'a text'))
        prediction = self.unet(noisy, timesteps, context)
        kind = config.prediction_type
        target = prediction_target(kind, clean, noise, alpha_bar)
        gamma = self.min_snr_gamma
        weights = None if gamma is None else min_snr_weights(kind, alpha_bar, gamma)
        return dict(loss=weighted_mse(prediction, target, weights))

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

    def _training_input(self, noisy: torch.Tensor, samples: dict) -> torch.Tensor:
        return noisy

    def _training_context(self, captions: Sequence[str]) -> torch.Tensor:
        dropped = torch.rand(len(captions)) < self.caption_dropout
        texts = ['' if d else c for d, c in zip(dropped.tolist(), captions, strict=True)]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen_text):
            return encode_prompts(self.tokenizer, self.text_encoder, texts)

    def _predict(self, inputs: torch.Tensor | None, samples: dict) -> list[dict]:
        """Samples for a batch's captions, one dict each, with what metrics compare them to."""
        captions = list(given(samples, 'caption', 'a text'))
        seeds = [int(i) for i in samples.get('index', range(len(captions)))]
        condition = self._predict_condition(inputs)
        arguments = {**self.predict_arguments, **condition}
        videos = self.infer(prompt=captions, seed=seeds, **arguments)['samples']
        images = condition.get('image', [None] * len(captions))
        return [
            dict(video=video, caption=caption, image=image)
            for video, caption, image in zip(videos, captions, images, strict=True)
        ]

    def _predict_condition(self, inputs: torch.Tensor | None) -> dict[str, Any]:
        """What ``infer`` gets from a batch beside its captions."""
        return {}

    def draw(self, batch: dict, **arguments: Any) -> torch.Tensor:
        """Samples [N, C, T, H, W] in [0, 1] of ``infer(**arguments)``, for a look in training."""
        return self.infer(**arguments)['samples']

    # Export -----------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, dtype: str | None = None) -> None:
        """Write the parts that are trained, in the hub's layout, below ``folder``."""
        folder = Path(folder)
        if any(p.requires_grad for p in self.text_encoder.parameters()):
            config = self.text_encoder.config.to_dict()
            save_part(folder / 'text_encoder', config, self.text_encoder, dtype=dtype)
            save_tokenizer(folder / 'tokenizer', self.tokenizer)
        if any(p.requires_grad for p in self.unet.parameters()):
            self._save_unet(folder, dtype)
            save_scheduler(folder / 'scheduler', self.scheduler)

    def _save_unet(self, folder: Path, dtype: str | None) -> None:
        save_part(folder / 'unet', export_unet_config(self.unet), self.unet, dtype=dtype)
