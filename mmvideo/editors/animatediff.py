"""AnimateDiff: motion modules on a frozen text-to-image model (Guo et al. 2023)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mmvideo.checkpoints.save import save_part
from mmvideo.editors.controls import ARGUMENTS as CONTROL_ARGUMENTS
from mmvideo.editors.controls import Controlled, check_controls, read_controls, settings_of
from mmvideo.editors.course import OnStep
from mmvideo.editors.facts import read_facts
from mmvideo.editors.latent_diffusion import LatentDiffusion
from mmvideo.editors.options import OPTIONS
from mmvideo.editors.parts import export_image_unet, export_motion_adapter
from mmvideo.editors.request import Request, Sample, make_samples
from mmvideo.editors.starts import Starts, read_inversion, read_strength
from mmvideo.errors import ConfigError
from mmvideo.models.adapters.controlnet import ControlNet
from mmvideo.models.conditioning.clip import prepare_clip
from mmvideo.registry import MODELS, SCHEDULERS


@MODELS.register_module()
class AnimateDiff(Controlled, Starts, LatentDiffusion):
    """A text-to-image model whose layers alternate with motion modules.

    Args: see ``LatentDiffusion``; ``motion_module`` is None where ``unet`` is a denoiser that is
        built already, with its own.
        controls: configs of ``ControlNet`` and ``SparseCtrl``.
    """

    _OPTIONS: tuple[str, ...] = OPTIONS
    _STARTS_FROM_PICTURE = False

    part_registries = LatentDiffusion.part_registries | dict(controls='MODELS')

    def __init__(
        self,
        motion_module: dict | None,
        controls: Sequence[dict | ControlNet] = (),
        **kwargs: Any,
    ) -> None:
        if motion_module is None and isinstance(kwargs.get('unet'), Mapping):
            raise ConfigError(
                f'model.motion_module is missing: a {type(self).__name__} has motion modules.'
            )
        check_controls([control for control in controls if isinstance(control, Mapping)])
        super().__init__(motion_module=motion_module, **kwargs)
        self._attach_controls(controls)

    def infer(
        self,
        prompt: Any = None,
        negative_prompt: Any = None,
        video_length: int = 16,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 25,
        guidance_scale: Any = 7.5,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        eta: float = 0.0,
        num_videos_per_prompt: int = 1,
        decode_chunk_size: int = 16,
        callback: Callable | None = None,
        *,
        video: Any = None,
        strength: float | None = None,
        inversion: dict[str, Any] | str | bool | None = None,
        control_videos: Any = None,
        control_frames: Any = None,
        control_scale: Any = None,
        control_start: Any = None,
        control_end: Any = None,
        control_annotator: Any = None,
        guess_mode: bool = False,
        ip_adapter_image: Any = None,
        ip_adapter_scale: Any = None,
        ip_adapter_masks: Any = None,
        ip_adapter_image_embeds: Any = None,
        clip_skip: int | None = None,
        negative_clip_skip: int | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        on_step: OnStep | None = None,
        draws: str = 'official',
        windows: dict[str, Any] | int | None = None,
        free_init: dict[str, Any] | bool | None = None,
        free_u: dict[str, Any] | bool | None = None,
        free_noise: dict[str, Any] | bool | None = None,
        motion_scale: Any = 1.0,
        motion_strength: Any = 1.0,
        guidance_interval: Sequence[float] | None = None,
        deep_cache: dict[str, Any] | int | bool | None = None,
        output_type: str = 'video',
    ) -> dict[str, Any]:
        """Animate prompts.

        Args:
            prompt: one text or several; a text may change over the frames, as keyframes
                (``{0: 'spring', 8: 'summer'}``) or as lines, see ``mmvideo.editors.timeline``.
            negative_prompt: what to steer away from; one for all, or one for each prompt, which
                may change likewise.
            video_length: frames; more than the motion modules have positions for with ``windows``
                or ``free_noise``.
            height: pixels, a multiple of the VAE's factor; None is the model's own size, or with a
                ``video`` its size (long edge at most 512, multiple of 8).
            width: pixels, likewise.
            num_inference_steps: calls of the scheduler.
            guidance_scale: 1 or less runs without guidance, at half the cost; a number, one for
                each frame, or keyframes.
            seed: sample i draws from ``seed + i``; or a list with one seed a sample.
            generator: CPU generators in place of seeds.
            latents: noise [N, C, T, H, W] of unit variance in place of drawn noise.
            eta: DDIM's eta.
            num_videos_per_prompt: samples a prompt.
            decode_chunk_size: frames the VAE decodes at once.
            callback: called after each step as ``(steps done, steps, latents)``.
            video: a clip of ``video_length`` frames to start from, for all samples: a path, a
                folder of frames, pictures, an array, or a part of a longer one, such as
                ``dict(clip='a.mp4', start=24, stride=2)``; see
                ``mmvideo.models.conditioning.clip.prepare_clip``.
            strength: how much of a ``video`` is made anew: 1 nearly all; None is 0.8, and 1 with an
                ``inversion``.
            inversion: start from the noise that the ``video`` would have come from and not from a
                drawn one, so that another prompt changes the clip and keeps its motion, see
                ``mmvideo.diffusion.inversion.Inversion``: ``'ddim'``, or with settings
                ``dict(type='ddim', num_inference_steps=50, prompt='what the clip shows')``.
            control_videos: what each of the model's controls sees: a clip of ``video_length``
                frames, in the forms of ``video``; for a ``SparseCtrl`` a picture or several; None
                switches a control off. A list with one for each.
            control_frames: which frames the pictures of a ``SparseCtrl`` are, a list for each
                control; None is the first one, or all.
            control_scale: how strongly controls work: a number for all, or a list with one for
                each, which may be a number, one for each frame, or keyframes; None takes the
                config's.
            control_start: share of the steps after which they begin; one, or one for each.
            control_end: share of the steps after which they stop, likewise.
            control_annotator: makes what they see of footage: ``'canny'``, or with settings
                ``dict(type='canny', low=100, high=200)``; or another of
                ``mmvideo.models.conditioning.annotators``. One for all, or a list with one for
                each; None takes ``control_videos`` as they are.
            guess_mode: controls work on the prompted half of guidance alone, and weaker on finer
                layers, so that they are followed even without a prompt.
            ip_adapter_image: pictures as prompts, for each IP-Adapter that the model has; a
                picture is a path, PIL image, array or tensor [3, H, W] in [0, 1]. Forms of this
                and the next three arguments: ``mmvideo.models.conditioning.image_prompt``.
            ip_adapter_scale: how strongly they work, also by blocks or pictures; None takes the
                adapters' own.
            ip_adapter_masks: where in the clip each picture counts.
            ip_adapter_image_embeds: what the image encoder makes of pictures, in their place.
            clip_skip: layers left out at the end of the text encoder; None or 0 uses all. What is
                1 here is called 2 in other programs.
            negative_clip_skip: likewise for negative prompts; None is as ``clip_skip``.
            prompt_embeds: embeddings in place of prompts, [N, L, D], or [N, T, L, D] one for each
                frame.
            negative_prompt_embeds: likewise, of negative prompts; as many tokens.
            timesteps: those that the scheduler shall take, falling, in place of
                ``num_inference_steps``; not all schedulers take them.
            sigmas: likewise as noise levels, which fall to a last 0.
            on_step: called after each step with a ``mmvideo.editors.course.Step``, whose latents
                and text it may change.
            draws: the order of random draws: ``'official'``, noise first; or ``'diffusers'``, where
                noise comes after what a picture or clip to start from needs.
            windows: denoise the clip in windows that slide over it, see
                ``mmvideo.diffusion.windows.Windows``; a number is the length of a window.
            free_init: sample the clip several times, each from the low frequencies of the last,
                see ``mmvideo.diffusion.free_init.FreeInit``; True takes the published settings.
            free_u: weigh the U-Net's skip connections anew, see
                ``mmvideo.diffusion.free_u.FreeU``; likewise.
            free_noise: noise that repeats and temporal attention in windows, see
                ``mmvideo.diffusion.free_noise.FreeNoise``; likewise. With ``windows`` only its
                noise is used.
            motion_scale: how distinct frames are: a factor on the queries of the temporal
                attention, more than 1 moves more. A number, one for each frame, keyframes, or by
                block: ``{'down': 1.0, 'mid': 1.2, 'up.1': {0: 1.0, 8: 1.5}}``.
            motion_strength: how much of what the motion modules do reaches a frame: 1 is all, 0
                leaves a picture for itself. Forms as ``motion_scale``.
            guidance_interval: shares of the steps between which guidance is on: ``[0.0, 0.8]``
                leaves the last fifth without, at half the cost. A step counts if it lies inside.
            deep_cache: reuse what the denoiser computes deep inside, an approximation, see
                ``mmvideo.diffusion.deep_cache.DeepCache``; a number is the interval, True takes the
                usual settings.
            output_type: ``'video'``, or ``'latent'`` for what ``decode_chunks`` turns into pictures
                one chunk of frames after the other, where a whole video is too large.

        Returns:
            ``dict(samples=...)``: float in [0, 1], [N, C, T, H, W], on the CPU; or
            ``dict(latents=...)``, [N, C, T, H, W] in latent cells.

        Raises:
            InputError: before anything is computed.
        """
        call = dict(locals())
        clip = self._clip(video, video_length, height, width)
        if clip is not None:
            height, width = clip.shape[-2:]
        samples = make_samples(
            prompt,
            negative_prompt,
            num_videos_per_prompt,
            seed,
            generator,
            latents,
            num_frames=video_length,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
        )
        size = self.default_size
        height = size if height is None else height
        width = size if width is None else width
        request = self._request(call, samples, height, width, video=clip)
        self._check(request)
        return self._infer(request, callback)

    def _request(
        self,
        call: Mapping[str, Any],
        samples: list[Sample],
        height: int,
        width: int,
        **more: Any,
    ) -> Request:
        """See ``LatentDiffusion._request``; the strength and what controls see too."""
        given = {name: call[name] for name in CONTROL_ARGUMENTS}
        return super()._request(
            call,
            samples,
            height,
            width,
            strength=read_strength(
                call['strength'], call['video'], self._STARTS_FROM_PICTURE, call['inversion']
            ),
            inversion=read_inversion(call, lambda: self.scheduler),
            controls=self._read_controls(call['video_length'], height, width, **given),
            **more,
        )

    @classmethod
    def check(cls, model: dict, arguments: dict) -> None:
        """See ``LatentDiffusion.check``; the clip to start from too."""
        video = arguments.get('video')
        strength = read_strength(
            arguments.get('strength'), video, cls._STARTS_FROM_PICTURE, arguments.get('inversion')
        )
        controls = model.get('controls') or ()
        check_controls(controls)
        super().check(model, {**arguments, 'strength': strength})
        read_inversion(arguments, lambda: SCHEDULERS.build(copy.deepcopy(model['scheduler'])))
        length, multiple = arguments.get('video_length', 16), read_facts(model).vae_scale
        size = arguments.get('height'), arguments.get('width')
        if video is not None:
            prepare_clip(video, length, *size, multiple)
        read_controls(arguments, settings_of(controls), length, size, multiple)

    def _clip(
        self, video: Any, num_frames: int, height: int | None, width: int | None
    ) -> torch.Tensor | None:
        """The clip to start from, [T, 3, H, W] in [-1, 1]."""
        if video is None:
            return None
        return prepare_clip(video, num_frames, height, width, self.vae_scale)

    def _save_unet(self, folder: Path, dtype: str | None) -> None:
        """Write the motion adapter, and the image layers where some of them were trained."""
        config, tensors = export_motion_adapter(self.unet)
        save_part(folder / 'motion_adapter', config, tensors, dtype=dtype)
        trained = [n for n, p in self.unet.named_parameters() if p.requires_grad]
        if not all('motion_modules' in n or n.startswith('conv_in') for n in trained):
            config, tensors = export_image_unet(self.unet)
            save_part(folder / 'unet', config, tensors, dtype=dtype)
