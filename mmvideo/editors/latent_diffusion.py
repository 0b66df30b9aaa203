"""What all editors with a latent denoiser share: parts, prompts, sampling, decoding, the loss."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mmvideo.checkpoints.save import save_part, save_tokenizer
from mmvideo.diffusion.objective import (
    PREDICTION_TYPES,
    add_noise,
    condition_weights,
    min_snr_weights,
    prediction_target,
    weighted_mse,
)
from mmvideo.editors.adapters import Adaptable
from mmvideo.editors.checks import timestep_bounds
from mmvideo.editors.course import check_course, step_count
from mmvideo.editors.facts import read_facts, text_layers
from mmvideo.editors.image_prompts import (
    check_image_prompts,
    image_prompts,
    prepare_image_prompts,
)
from mmvideo.editors.latent_editor import LatentEditor, check_lora
from mmvideo.editors.memory import check_memory, cut_vae
from mmvideo.editors.offload import check_mode
from mmvideo.editors.options import Options, read_options
from mmvideo.editors.parts import (
    build_part,
    build_unet,
    check_trained_vae,
    weight_files,
    with_trained_betas,
)
from mmvideo.editors.preprocessor import build_preprocessor, given
from mmvideo.editors.prompts import caption_rows, encode_rows
from mmvideo.editors.request import (
    Request,
    Sample,
    as_prompts,
    check_clip_skip,
    check_seeds,
    check_settings,
)
from mmvideo.editors.strengths import check_strength
from mmvideo.errors import ConfigError, InputError
from mmvideo.models.conditioning.text import encode_prompts
from mmvideo.registry import MODELS, SCHEDULERS, TOKENIZERS

_SHARED_SETTINGS = ('num_inference_steps', 'eta', 'decode_chunk_size', 'output_type')
# Arguments of ``infer`` that a request holds as they are.
_KEPT = (
    *(*_SHARED_SETTINGS, 'clip_skip', 'negative_clip_skip'),
    *('timesteps', 'sigmas', 'on_step', 'draws'),
)


class LatentDiffusion(Adaptable, LatentEditor):
    """A VAE, a text encoder, a denoiser and a scheduler, to sample from and to train.

    Args:
        vae: config of ``AutoencoderKL``; this and the next four may be the part itself.
        text_encoder: config of ``CLIPTextModel``.
        tokenizer: config of ``CLIPTokenizer``.
        unet: config of ``VideoUNet``.
        scheduler: config of the sampler; it also says what the denoiser predicts.
        train_scheduler: config of the noise schedule in training; None takes ``scheduler``.
        motion_module: config of ``MotionModule``, for editors that animate.
        trainable: regular expressions over parameter names (``unet.down_blocks...``,
            ``text_encoder...``); a parameter is trained when one matches.
        lora: in place of ``trainable``, a LoRA of the denoiser to train, such as
            ``dict(rank=8, alpha=8, targets=['attentions.*to_[qkv]'])``, see
            ``mmvideo.models.adapters.trained_lora.LoRASettings``.
        caption_dropout: probability, per sample, of training without its caption.
        changing_captions: read captions in training as prompts are read, where lines such as
            ``8: ...`` are keyframes. Without, a caption with lines is one text as it stands.
        min_snr_gamma: None for the plain mean squared error.
        timestep_range: training draws its timesteps from ``[first, last)``; None is all of them.
        predict: arguments of ``infer`` when a runner tests or validates.
        data_preprocessor: see ``VideoPreprocessor``.
        adapters: configs of ``LoRA``, ``MotionLoRA``, ``TextualInversion``, ....
        vae_tiling: pictures go through the VAE in tiles, see ``cut_vae``.
        vae_slicing: and one after the other.
        offload: weights wait in main memory, see ``mmvideo.editors.offload``.
    """

    # In training, of the frame that is the picture: ``condition_frame`` of the samples.
    condition_loss_weight: float = 1.0
    # Layers at the end of the text encoder that training leaves out.
    train_clip_skip: int | None = None
    part_registries = {
        'vae': 'MODELS',
        'text_encoder': 'MODELS',
        'tokenizer': 'TOKENIZERS',
        'unet': 'MODELS',
        'scheduler': 'SCHEDULERS',
        'train_scheduler': 'SCHEDULERS',
        'motion_module': 'MODELS',
        'condition_module': 'MODELS',
        'adapters': 'MODELS',
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
        lora: dict | None = None,
        caption_dropout: float = 0.1,
        changing_captions: bool = False,
        min_snr_gamma: float | None = None,
        timestep_range: Sequence[int] | None = None,
        predict: dict | None = None,
        data_preprocessor: dict | None = None,
        adapters: Sequence[dict] = (),
        vae_tiling: dict[str, Any] | bool | None = None,
        vae_slicing: bool = False,
        offload: str | None = None,
    ) -> None:
        super().__init__(build_preprocessor(data_preprocessor))
        check_mode(offload)
        self._parts = dict(
            vae=vae, text_encoder=text_encoder, unet=unet, motion_module=motion_module
        )
        weight_files(self._parts)  # a missing file is found before another is read
        self.check_adapters(adapters)
        # The denoiser first: most files that do not fit are its, and it needs no other library.
        unet_ = build_unet(unet, motion_module, **self._unet_options())
        self.scheduler = build_part(SCHEDULERS, scheduler)
        self.train_scheduler = build_part(SCHEDULERS, train_scheduler or scheduler)
        self.tokenizer = build_part(TOKENIZERS, tokenizer)
        self.vae = build_part(MODELS, vae)
        cut_vae(self.vae, vae_tiling, vae_slicing)
        self.offload_mode = offload
        self.text_encoder = build_part(MODELS, text_encoder)
        self.unet = unet_  # last, as its place says where its optimizer state is
        self.scheduler = with_trained_betas(self.scheduler, scheduler, self.unet)
        self.train_scheduler = with_trained_betas(
            self.train_scheduler, train_scheduler or scheduler, self.unet
        )
        self.caption_dropout = caption_dropout
        self.changing_captions = changing_captions
        self.min_snr_gamma = min_snr_gamma
        self.timestep_range = timestep_bounds(timestep_range, self.train_scheduler)
        self.predict_arguments = dict(predict or {})
        self._check_prediction_type()
        check_lora(dict(lora=lora, trainable=trainable))
        self.set_trainable(trainable)
        self._train_lora(lora)
        self._attach_adapters(adapters)

    # Parts ------------------------------------------------------------------------------------

    def _unet_options(self) -> dict[str, Any]:
        """How this editor builds the denoiser, beside its config."""
        return {}

    def weight_files(self) -> list[Path]:
        """The files that the weights came from, for a recipe to name."""
        return list(dict.fromkeys([*weight_files(self._parts), *self.adapter_files()]))

    def set_trainable(self, patterns: Sequence[str]) -> None:
        """Train the parameters that a pattern matches, freeze all others.

        Raises:
            ConfigError: a pattern that matches nothing.
        """
        super().set_trainable(patterns)
        self._frozen_text = not any(p.requires_grad for p in self.text_encoder.parameters())

    def _check_prediction_type(self) -> None:
        kind = self.scheduler.config.prediction_type
        if kind not in PREDICTION_TYPES:
            raise ConfigError(f'scheduler.prediction_type={kind!r}: expected {PREDICTION_TYPES}.')

    @classmethod
    def check_training(cls, model: Mapping[str, Any]) -> None:
        """Refuse settings of training that cannot be, from ``cfg.model`` alone.

        Raises:
            ConfigError: naming the setting.
        """
        check_trained_vae(model.get('vae'))
        check_lora(model)
        if model.get('timestep_range') is not None:
            schedule = SCHEDULERS.build(copy.deepcopy(_training_schedule(model)))
            timestep_bounds(model['timestep_range'], schedule)

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
        known = cls.check_names(arguments)
        check_memory(model)
        facts = read_facts(model)
        values = {k: p.default for k, p in known.items() if p.default is not p.empty}
        values.update(arguments)
        frames = values.get('video_length', 1)
        chosen = {name: values.get(name) for name in ('guidance_scale', *cls._OPTIONS)}
        limits = (facts.max_frames, facts.levels, facts.deepest, facts.told_guidance)
        options = read_options(chosen, frames, *limits)
        cls.check_adapters(model.get('adapters') or (), num_frames=frames)
        check_strength(values.get('ip_adapter_scale'), 'ip_adapter_scale', frames)
        if values.get('prompt_embeds') is None:
            as_prompts(values.get('prompt'), num_frames=frames)
        draws = values.get('draws', 'official')
        check_course(values.get('timesteps'), values.get('sigmas'), draws=draws)
        unwanted = values.get('negative_prompt')
        as_prompts('' if unwanted is None else unwanted, 'negative_prompt', frames)
        check_seeds(values.get('seed'))
        size = facts.default_size
        checked = (*_SHARED_SETTINGS, 'strength', 'num_videos_per_prompt')
        settings = {name: values[name] for name in checked if name in values}
        check_settings(
            **settings,
            num_frames=frames,
            height=size if values.get('height') is None else values['height'],
            width=size if values.get('width') is None else values['width'],
            multiple=facts.vae_scale,
            max_frames=options.frame_limit(facts.max_frames),
        )
        options.check_steps(values['num_inference_steps'])
        if values.get('clip_skip') is not None:
            check_clip_skip(values['clip_skip'], text_layers(model))
        height, width = values.get('height'), values.get('width')
        # else the picture or clip says what is not given
        if 'image' not in known and values.get('video') is None:
            height, width = (size if side is None else side for side in (height, width))
        clip = None if height is None or width is None else (height, width)
        check_image_prompts(model, image_prompts(values), frames, clip)

    def _request(
        self,
        call: Mapping[str, Any],
        samples: list[Sample],
        height: int,
        width: int,
        **more: Any,
    ) -> Request:
        """What a call of ``infer`` asks for.

        Args:
            call: all its arguments.
            samples: made of its prompts and seeds.
            height: pixels, found out where the call leaves it open.
            width: likewise.
            more: what an editor has made of other arguments, see ``Request``.
        """
        frames, kept = call.get('video_length', 1), {n: call[n] for n in _KEPT if n in call}
        timesteps, sigmas = call['timesteps'], call['sigmas']
        check_course(timesteps, sigmas, call['on_step'], call.get('draws', 'official'))
        kept['num_inference_steps'] = step_count(call['num_inference_steps'], timesteps, sigmas)
        return Request(
            samples=samples,
            num_frames=frames,
            height=height,
            width=width,
            options=self._options(call, frames),
            image_prompts=image_prompts(call),
            **kept,
            **more,
        )

    def _options(self, call: Mapping[str, Any], num_frames: int) -> Options:
        """The options among the arguments of ``infer``."""
        chosen = {name: call[name] for name in ('guidance_scale', *self._OPTIONS)}
        levels = len(self.unet.down_blocks)
        told = self.unet.time_cond_proj_dim is not None
        return read_options(
            chosen, num_frames, self.unet.max_frames, levels, self.unet.deepest, told
        )

    def _check(self, request: Request) -> None:
        """``check`` for a model that is built."""
        check_settings(
            **{name: getattr(request, name) for name in (*_SHARED_SETTINGS, 'strength')},
            num_frames=request.num_frames,
            height=request.height,
            width=request.width,
            multiple=self.vae_scale,
            max_frames=request.options.frame_limit(self.unet.max_frames),
        )
        request.options.check_steps(request.num_inference_steps)
        layers = self.text_encoder.config.num_hidden_layers
        check_clip_skip(request.clip_skip, layers)
        check_clip_skip(request.negative_clip_skip, layers)
        self._check_embeds(request)
        self._check_latents(request)
        clip = (request.height, request.width)
        request.pictures = prepare_image_prompts(
            self, request.image_prompts, request.num_frames, clip
        )

    def _check_embeds(self, request: Request) -> None:
        width, guided = self.unet.cross_attention_dim, request.options.guided
        for item in request.samples:
            for embeds in (item.embeds, item.negative_embeds):
                if embeds is not None and embeds.shape[-1] != width:
                    raise InputError(
                        f'prompt_embeds are {embeds.shape[-1]} wide: the denoiser takes {width}.'
                    )
            self._token_count(item, guided)
        free_init = request.options.free_init
        custom = request.timesteps is not None or request.sigmas is not None
        if custom and free_init is not None and free_init.use_fast_sampling:
            raise InputError(
                'free_init.use_fast_sampling=True chooses steps of its own: leave timesteps and '
                'sigmas out.'
            )

    # Training ---------------------------------------------------------------------------------

    def loss(self, clean: torch.Tensor, data_samples: dict) -> dict[str, torch.Tensor]:
        """The denoising loss for clean latents [N, C, T, H, W] (Ho et al. 2020, algorithm 1)."""
        noise = self._training_noise(clean)
        timesteps = torch.randint(*self.timestep_range, clean.shape[:1], device=clean.device)
        alpha_bar = self.train_scheduler.alphas_cumprod.to(clean.device)[timesteps]
        noisy = self._training_input(add_noise(clean, noise, alpha_bar), data_samples)
        context = self._training_context(given(data_samples, 'caption', 'a text'), clean.shape[2])
        others = self._training_arguments(clean, data_samples)
        prediction = self.unet(noisy, timesteps, context, **others)
        kind = self.train_scheduler.config.prediction_type
        target = prediction_target(kind, clean, noise, alpha_bar)
        weights = self._loss_weights(alpha_bar, data_samples, clean.shape[2])
        return dict(loss=weighted_mse(prediction, target, weights))

    def _loss_weights(
        self, alpha_bar: torch.Tensor, samples: dict, num_frames: int
    ) -> torch.Tensor | None:
        """Weights of the loss, see ``weighted_mse``."""
        gamma, kind = self.min_snr_gamma, self.train_scheduler.config.prediction_type
        weights = None if gamma is None else min_snr_weights(kind, alpha_bar, gamma)
        if self.condition_loss_weight == 1:
            return weights
        chosen = samples['condition_frame']
        frames = condition_weights(chosen, num_frames, self.condition_loss_weight)
        return frames if weights is None else frames * weights[:, None]

    def _training_noise(self, clean: torch.Tensor) -> torch.Tensor:
        return torch.randn_like(clean)

    def _training_arguments(self, clean: torch.Tensor, samples: dict) -> dict[str, Any]:
        """What the denoiser is told by name besides input, time and text."""
        return {}

    def _training_input(self, noisy: torch.Tensor, samples: dict) -> torch.Tensor:
        return noisy

    def _training_context(self, captions: Sequence[str], num_frames: int) -> torch.Tensor:
        """[N, L, D], or [N * T, L, D] where a caption changes over the frames."""
        dropped = torch.rand(len(captions)) < self.caption_dropout
        texts = ['' if d else c for d, c in zip(dropped.tolist(), captions, strict=True)]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen_text):
            if self.changing_captions:
                rows = caption_rows(texts, num_frames)
                device = next(self.text_encoder.parameters()).device
                return encode_rows(rows, num_frames, self._encode_captions, device).at()
            return self._encode_captions(texts)

    def _encode_captions(self, texts: Sequence[str]) -> torch.Tensor:
        return encode_prompts(self.tokenizer, self.text_encoder, texts, None, self.train_clip_skip)

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

    # Export -----------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, dtype: str | None = None) -> None:
        """Write the parts that are trained, in the hub's layout, below ``folder``."""
        folder = Path(folder)
        if any(p.requires_grad for p in self.text_encoder.parameters()):
            config = self.text_encoder.config.to_dict()
            save_part(folder / 'text_encoder', config, self.text_encoder, dtype=dtype)
            save_tokenizer(folder / 'tokenizer', self.tokenizer)
        self._save_denoiser(folder, dtype)


def _training_schedule(model: Mapping[str, Any]) -> Any:
    return model.get('train_scheduler') or model.get('scheduler')
