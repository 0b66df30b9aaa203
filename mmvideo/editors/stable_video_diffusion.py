"""Stable Video Diffusion: a picture becomes a clip, without any text (Blattmann et al. 2023).

N batch, C channels, T frames, H W latent size, D width of the picture's token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmvideo.checkpoints.save import save_part
from mmvideo.diffusion.edm import noised
from mmvideo.editors.adapters import Adaptable
from mmvideo.editors.clip_noise import clip_noise, picture_noise
from mmvideo.editors.clip_parts import check_parts, check_scheduler, upcast
from mmvideo.editors.clip_request import (
    NUM_FRAMES,
    ClipRequest,
    as_list,
    read_call,
    size_of,
)
from mmvideo.editors.course import OnStep
from mmvideo.editors.facts import SAMPLE_SIZE, Facts, read_facts
from mmvideo.editors.latent_editor import check_lora
from mmvideo.editors.memory import check_memory
from mmvideo.editors.offload import check_mode
from mmvideo.editors.options import COMMON
from mmvideo.editors.out_of_memory import decode_clip_frugally
from mmvideo.editors.parts import build_part, build_unet, check_clip_vae, weight_files
from mmvideo.editors.picture_training import PictureTraining
from mmvideo.editors.preprocessor import build_preprocessor
from mmvideo.editors.prompts import PromptTrack
from mmvideo.editors.request import Request, Sample, check_seeds, check_size, make_samples
from mmvideo.models.conditioning.clip_picture import clip_input
from mmvideo.models.conditioning.image import open_rgb
from mmvideo.registry import MODELS, SCHEDULERS


@MODELS.register_module()
class StableVideoDiffusion(Adaptable, PictureTraining):
    """A denoiser that sees the picture as a CLIP token and, with little noise, beside every frame.

    Args:
        vae: config of ``AutoencoderKLTemporalDecoder``; this and the next three may be the part
            itself.
        image_encoder: config of ``CLIPVisionModelWithProjection``.
        unet: config of ``VideoUNet`` with ``temporal_mixing``.
        scheduler: config of ``EulerDiscreteScheduler``, continuous and with v-prediction.
        trainable: regular expressions over parameter names (``^unet``,
            ``temporal_transformer_blocks``); a parameter is trained when one matches. The
            published image encoder was frozen; a new one can be trained along.
        lora: in place of ``trainable``, see ``LatentDiffusion``.
        sigma_mean: of the logarithm of training's noise levels. (SVD-XT was trained with 1.0.)
        sigma_std: likewise, the standard deviation.
        augmentation_mean: of the logarithm of the strength of noise on training's pictures.
        augmentation_std: likewise, the standard deviation.
        condition_dropout: probability, per sample, of each of three ways to train without a
            condition: without the token, without the picture's latent, without both.
        train_fps: frames a second of clips whose data set gives no ``fps``.
        train_motion_bucket_id: of clips whose data set gives no ``motion_bucket_id``.
        predict: arguments of ``infer`` when a runner tests or validates.
        data_preprocessor: see ``VideoPreprocessor``.
        offload: weights wait in main memory, see ``mmvideo.editors.offload``.
        adapters: configs of ``LoRA``, for the denoiser.
    """

    _OPTIONS = ('windows', *COMMON)
    not_taken = dict.fromkeys(
        ('prompt', 'negative_prompt'), 'takes no text; the picture alone says what is seen'
    )
    adapter_types = ('LoRA',)
    part_registries = {
        'vae': 'MODELS',
        'image_encoder': 'MODELS',
        'unet': 'MODELS',
        'scheduler': 'SCHEDULERS',
        'adapters': 'MODELS',
    }

    def __init__(
        self,
        vae: dict,
        image_encoder: dict,
        unet: dict,
        scheduler: dict,
        trainable: Sequence[str] = (),
        lora: dict | None = None,
        sigma_mean: float = 0.7,
        sigma_std: float = 1.6,
        augmentation_mean: float = -3.0,
        augmentation_std: float = 0.5,
        condition_dropout: float = 0.1,
        train_fps: float = 7,
        train_motion_bucket_id: float = 127,
        predict: dict | None = None,
        data_preprocessor: dict | None = None,
        offload: str | None = None,
        adapters: Sequence[dict] = (),
    ) -> None:
        super().__init__(build_preprocessor(data_preprocessor))
        check_mode(offload)
        self.offload_mode = offload
        self._set_training(
            sigma_mean=sigma_mean,
            sigma_std=sigma_std,
            augmentation_mean=augmentation_mean,
            augmentation_std=augmentation_std,
            condition_dropout=condition_dropout,
            train_fps=train_fps,
            train_motion_bucket_id=train_motion_bucket_id,
        )
        self._parts = dict(vae=vae, image_encoder=image_encoder, unet=unet)
        weight_files(self._parts)  # a missing file is found before another is read
        self.check_adapters(adapters)
        self.scheduler = build_part(SCHEDULERS, scheduler)
        check_scheduler(self.scheduler.config)
        unet_ = build_unet(unet)
        self.vae = build_part(MODELS, vae)
        self.image_encoder = build_part(MODELS, image_encoder)
        self.unet = unet_  # last, as its place says where its optimizer state is
        check_parts(self.vae, self.image_encoder, self.unet)
        self.predict_arguments = dict(predict or {})
        check_lora(dict(lora=lora, trainable=trainable))
        self.set_trainable(trainable)
        self._train_lora(lora)
        self._attach_adapters(adapters)

    # Parts ------------------------------------------------------------------------------------

    def weight_files(self) -> list[Path]:
        """The files that the weights came from, for a recipe to name."""
        return list(dict.fromkeys([*weight_files(self._parts), *self.adapter_files()]))

    def _facts(self) -> Facts:
        size = self.unet.sample_size or SAMPLE_SIZE
        return Facts(
            vae_scale=self.vae_scale,
            latent_channels=self.vae.config.latent_channels,
            sample_size=size if isinstance(size, int) else size[0],
            max_frames=self.unet.max_frames,
            levels=len(self.unet.down_blocks),
            num_frames=self.unet.num_frames,
            deepest=self.unet.deepest,
        )

    # Sampling ---------------------------------------------------------------------------------

    def infer(
        self,
        image: Any,
        video_length: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 25,
        min_guidance_scale: float = 1.0,
        max_guidance_scale: float = 3.0,
        fps: float = 7,
        motion_bucket_id: float = 127,
        noise_aug_strength: float = 0.02,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        num_videos_per_prompt: int = 1,
        decode_chunk_size: int = 8,
        callback: Callable | None = None,
        *,
        guidance_scale: Any = None,
        sigmas: Sequence[float] | None = None,
        timesteps: Sequence[float] | None = None,
        on_step: OnStep | None = None,
        draws: str = 'official',
        windows: dict[str, Any] | int | None = None,
        guidance_interval: Sequence[float] | None = None,
        deep_cache: dict[str, Any] | int | bool | None = None,
        output_type: str = 'video',
    ) -> dict[str, Any]:
        """Animate pictures.

        Args:
            image: a path, PIL image, uint8 array [H, W, 3] or float tensor [3, H, W] in [0, 1]; a
                list of them for several samples.
            video_length: frames; None is the model's own (14 for SVD, 25 for SVD-XT).
            height: pixels, a multiple of 8. With neither ``height`` nor ``width`` the clip has
                the picture's shape and as many pixels as in training; an edge that is not given
                is rounded to a multiple of 64, as in training. The picture is scaled to cover the
                clip and cut at the centre, so nothing is distorted.
            width: pixels, likewise.
            num_inference_steps: noise levels.
            min_guidance_scale: guidance of the first frame, from which it goes in even steps
            max_guidance_scale: to that of the last.
            fps: frames a second, at least 1.
            motion_bucket_id: 0 to 255; more is more motion.
            noise_aug_strength: noise on the picture; more is less like it, and more motion.
            seed: of the first sample, the others count on; or one each.
            generator: CPU generators in place of seeds.
            latents: noise [N, C, T, H, W] of unit variance in place of drawn.
            num_videos_per_prompt: samples for each picture.
            decode_chunk_size: frames that a layer of the decoder sees at once; it changes memory
                and time, not the pictures.
            callback: called as ``(steps done, steps, latents)``.
            guidance_scale: in place of the two: a number, one for each frame, or keyframes.
            sigmas: noise levels in place of the scheduler's, falling to a last 0.
            timesteps: likewise as timesteps.
            on_step: see ``AnimateDiff.infer``; the text is the pictures' token.
            draws: how the noise on pictures is drawn: ``'official'``, for each sample from its own
                generator; or ``'diffusers'``, once for each picture, from the one generator or the
                first ones of a list.
            windows: for clips longer than the model's: ``dict(length=14, overlap=4)`` or a length.
            guidance_interval: see ``AnimateDiff.infer``.
            deep_cache: likewise.
            output_type: ``'video'``, or ``'latent'`` for what ``decode`` takes.

        Returns:
            ``dict(samples=...)``: float in [0, 1], [N, 3, T, H, W], on the CPU; or ``latents``.

        Raises:
            InputError: naming the argument, before anything is computed.
        """
        arguments = dict(
            image=image,
            video_length=video_length,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            min_guidance_scale=min_guidance_scale,
            max_guidance_scale=max_guidance_scale,
            fps=fps,
            motion_bucket_id=motion_bucket_id,
            noise_aug_strength=noise_aug_strength,
            num_videos_per_prompt=num_videos_per_prompt,
            decode_chunk_size=decode_chunk_size,
            guidance_scale=guidance_scale,
            sigmas=sigmas,
            timesteps=timesteps,
            on_step=on_step,
            draws=draws,
            windows=windows,
            guidance_interval=guidance_interval,
            deep_cache=deep_cache,
            output_type=output_type,
        )
        request, pictures = read_call(arguments, self._facts())
        request.samples = make_samples(
            '', None, num_videos_per_prompt, seed, generator, latents, repeat=len(pictures)
        )
        for item in request.samples:
            item.extras['picture'] = pictures[item.index // num_videos_per_prompt]
        self._check_latents(request)
        return self._infer(request, callback)

    @classmethod
    def check(cls, model: dict, arguments: dict) -> None:
        """Refuse arguments of ``infer`` that cannot work, from the config alone.

        Args:
            model: ``cfg.model``.
            arguments: what ``infer`` will be called with.

        Raises:
            InputError: naming the argument, its value and what was expected.
        """
        check_memory(model)
        check_clip_vae(model.get('vae'))
        known = cls.check_names(arguments)
        values = {k: p.default for k, p in known.items() if p.default is not p.empty}
        values |= arguments
        check_seeds(values['seed'])
        request, _ = read_call(values, read_facts(model))
        cls.check_adapters(model.get('adapters') or (), num_frames=request.num_frames)

    @classmethod
    def complete(cls, model: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See ``LatentEditor.complete``: the number of frames, and the size of the clip."""
        facts, filled = read_facts(model), {}
        if arguments.get('video_length') is None:
            filled['video_length'] = facts.num_frames or NUM_FRAMES
        edges = {name: arguments.get(name) for name in ('height', 'width')}
        for name, edge in edges.items():
            if edge is not None:
                check_size(name, edge, facts.vae_scale)
        if arguments.get('image') is not None and None in edges.values():
            picture = open_rgb(as_list(arguments['image'])[0])
            filled['height'], filled['width'] = size_of(picture, **edges, facts=facts)
        return filled

    @torch.no_grad()
    def _infer(self, request: Request, callback: Callable | None) -> dict[str, Tensor]:
        assert isinstance(request, ClipRequest)
        strength = torch.tensor([request.noise_aug_strength])
        # The official order of random draws: the pictures' noise, then the clips'.
        noises = picture_noise(request)
        for item, noise in zip(request.samples, noises.split(1), strict=True):
            picture = item.extras['picture'][None]
            item.extras['latent'] = self._picture_latents(picture, noise, strength)[0]
            item.extras['token'] = self._embed(picture)[0]
        return super()._infer(request, callback)

    def _groups(self, request: Request) -> list[list[Sample]]:
        return [request.samples]

    def _draw(self, group: list[Sample], request: Request) -> Tensor:
        if any(item.latents is not None for item in group):
            return super()._draw(group, request)
        noise = clip_noise(group, self._noise_shape(request))
        repeated = request.options.repeated
        return torch.stack(
            [repeated(one, item.generator) for one, item in zip(noise, group, strict=True)]
        )

    def _context(self, group: list[Sample], guided: bool, request: Request) -> PromptTrack:
        """The pictures' tokens [rows, 1, D]; zeros without guidance's condition."""
        tokens = torch.stack([item.extras['token'] for item in group]).to(self.dtype)
        rows = [item.prompt for item in group]
        if guided:
            tokens, rows = torch.cat([torch.zeros_like(tokens), tokens]), rows * 2
        return PromptTrack(tokens, rows, request.num_frames)

    def _condition(self, group: list[Sample], request: Request, guided: bool) -> Any:
        """The pictures' latents [rows, C, 1, H, W]."""
        latents = torch.stack([item.extras['latent'] for item in group])[:, :, None]
        latents = latents.to(self.device, self.dtype)
        return torch.cat([torch.zeros_like(latents), latents]) if guided else latents

    def _conditions(
        self, group: list[Sample], request: Request, extra: Any, guided: bool
    ) -> dict[str, Tensor] | None:
        assert isinstance(request, ClipRequest)
        rows = len(group) * (2 if guided else 1)
        ids = torch.tensor(request.time_ids, dtype=torch.float32, device=self.device)
        return {'added_time_ids': ids.expand(rows, -1)}

    def _model_input(self, latents: Tensor, extra: Any, frames: Tensor | None) -> Tensor:
        return torch.cat([latents, extra.expand(-1, -1, latents.shape[2], -1, -1)], dim=1)

    def _embed(self, pictures: Tensor) -> Tensor:
        """[N, 3, height, width] in [-1, 1] to tokens [N, 1, D]."""
        encoder = self.image_encoder
        pixels = clip_input(pictures.to(self.device), encoder.config.image_size)
        return encoder(pixels.to(encoder.dtype)).image_embeds[:, None]

    @torch.no_grad()
    def _picture_latents(self, pictures: Tensor, noise: Tensor, strength: Tensor) -> Tensor:
        """Noisy pictures as latents [N, C, H, W], the most likely, not scaled: as in training."""
        noisy = noised(pictures, noise, strength)
        with upcast(self.vae):
            noisy = noisy.to(self.device, self.vae.dtype)
            return self.vae.encode(noisy).latent_dist.mode().float()

    def decode(self, latents: Tensor, chunk_size: int = 8) -> Tensor:
        """Latents [N, C, T, H, W] to float32 pictures in [0, 1] on the CPU, as whole clips."""
        clips = [
            torch.cat(list(self.decode_chunks(clip.transpose(0, 1), chunk_size)))
            for clip in latents
        ]
        return torch.stack(clips).transpose(1, 2).contiguous()

    @torch.no_grad()
    def decode_chunks(self, frames: Tensor, chunk_size: int = 8) -> Iterator[Tensor]:
        """Latents [T, C, H, W] of one clip to pictures [t, 3, H, W] in its order.

        The decoder's norms see the whole clip, so between layers all its frames are in memory;
        where that of the device is too small, in main memory, with half as many frames at once.

        Raises:
            InputError: the memory is too small for one frame.
        """
        pixels = decode_clip_frugally(self.vae, frames, chunk_size, self.device)
        for part in pixels.split(chunk_size):
            yield part.float().add(1).div(2).clamp(0, 1).cpu()

    # Export -----------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, dtype: str | None = None) -> None:
        """Write denoiser and image encoder, where trained, in the hub's layout below ``folder``."""
        folder = Path(folder)
        if not self._frozen_picture:
            config = self.image_encoder.config.to_dict()
            save_part(folder / 'image_encoder', config, self.image_encoder, dtype=dtype)
        self._save_denoiser(folder, dtype)
