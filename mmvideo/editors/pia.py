"""PIA: a picture, a prompt and an amount of motion become an animation (Zhang et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from mmvideo.editors.animatediff import AnimateDiff
from mmvideo.editors.checks import check_loss_weight
from mmvideo.editors.course import OnStep
from mmvideo.editors.facts import read_facts
from mmvideo.editors.latent_diffusion import LatentDiffusion
from mmvideo.editors.motion import (
    clip_affinity,
    clip_images,
    condition_frames,
    motion_entries,
    spread_motion,
)
from mmvideo.editors.options import OPTIONS
from mmvideo.editors.preprocessor import first_frames, given
from mmvideo.editors.request import Request, Sample, make_samples, spread
from mmvideo.errors import InputError
from mmvideo.models.conditioning.affinity import nearest_condition
from mmvideo.models.conditioning.clip import frames_as_pictures
from mmvideo.models.conditioning.pia import prepare_condition_image
from mmvideo.registry import MODELS


@MODELS.register_module()
class PIA(AnimateDiff):
    """AnimateDiff whose input carries a condition picture and its affinity to each frame.

    Args:
        condition_module: config of ``PIACondition``.
        first_channels: whose first four input channels and bias: ``'base'`` keeps the (perhaps
            personalised) image model's, ``'pia'`` takes those of PIA's checkpoint.
        condition_loss_weight: of the condition frame in the training loss, where every other
            frame counts 1; the mean over a clip stays 1. Above 1 a small model holds the picture
            better. 1 is the official loss.
        kwargs: see ``LatentDiffusion``.
    """

    # Here ``motion_scale`` is the affinity.
    _STARTS_FROM_PICTURE = True
    _OPTIONS = tuple(name for name in OPTIONS if name != 'motion_scale')

    def __init__(
        self,
        condition_module: dict,
        first_channels: Literal['base', 'pia'] = 'base',
        condition_loss_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        check_loss_weight(condition_loss_weight)
        condition = MODELS.build(condition_module)
        # Read while the parent builds the denoiser: plain data, which a module may hold early.
        self.__dict__['_unet_choices'] = dict(
            in_channels=condition.in_channels, first_channels=first_channels
        )
        super().__init__(**kwargs)
        self.condition_module = condition
        self.condition_loss_weight = condition_loss_weight

    def _unet_options(self) -> dict[str, Any]:
        return self._unet_choices

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
        image: Any = None,
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
        motion_scale: Any = 0,
        condition_frame: int | Sequence[int] = 0,
        condition_rule: str = 'nearest',
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
        motion_strength: Any = 1.0,
        guidance_interval: Sequence[float] | None = None,
        deep_cache: dict[str, Any] | int | bool | None = None,
        output_type: str = 'video',
    ) -> dict[str, Any]:
        """Animate pictures.

        Args:
            prompt: one text, or one for each picture.
            image: a path, PIL image, uint8 array [H, W, 3] or float tensor [3, H, W] in [0, 1];
                a list of them for several samples. With several condition frames each sample has
                a list of as many pictures.
            height: pixels; None follows the picture (long edge at most 512, multiple of 8).
            width: pixels, likewise.
            video: a clip to start from, see ``AnimateDiff.infer``; without ``image`` its frames at
                ``condition_frame`` are the pictures.
            strength: below 1, sampling starts from the noised picture, or ``video``, instead of
                pure noise. None is 1, and 0.8 with a ``video`` that is not inverted.
            motion_scale: 0 to 8 or a table's name (``'small'``, ``'loop-large'``, ...), made for 16
                frames; ``'fit-small'``, ``'fit-loop-large'``, ...: these stretched to the clip; a
                list of numbers, the affinity by distance from the condition frame; or keyframes,
                the affinity by frame. A list of names, lists or keyframes has one for each sample.
            condition_frame: which frame the picture is; a list for several pictures of a clip.
            condition_rule: how the affinities to several pictures become one, see
                ``mmvideo.editors.motion.clip_affinity``.

        Other arguments, result and errors: see ``AnimateDiff.infer``.
        """
        call = dict(locals())
        frames = condition_frames(condition_frame, video_length)
        if image is None and video is not None:
            image = frames_as_pictures(video, video_length, frames)
        images = self._images(image, height, width, len(frames))
        samples = make_samples(
            prompt,
            negative_prompt,
            num_videos_per_prompt,
            seed,
            generator,
            latents,
            repeat=len(images),
            num_frames=video_length,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
        )
        height, width = images[0].shape[-2:]
        clip = self._clip(video, video_length, height, width)
        request = self._request(call, samples, height, width, video=clip)
        self._check(request)
        self._check_condition()
        count = len(samples) // num_videos_per_prompt
        if len(images) not in (1, count):
            raise InputError(f'{len(images)} images for {len(samples)} samples.')
        pictures, motions = spread(images, count, 'image'), spread_motion(motion_scale, count)
        nearest = nearest_condition(video_length, frames)
        for item in samples:
            place = item.index // num_videos_per_prompt
            affinity = clip_affinity(motions[place], video_length, frames, condition_rule)
            item.extras = dict(image=pictures[place], affinity=affinity, nearest=nearest)
        return self._infer(request, callback)

    @classmethod
    def check(cls, model: dict, arguments: dict) -> None:
        """See ``LatentDiffusion.check``; the picture and the motion scale too."""
        super().check(model, arguments)
        image, video = arguments.get('image'), arguments.get('video')
        if image is None and video is None:
            raise InputError('image is missing: PIA animates a picture; give its path.')
        length = arguments.get('video_length', 16)
        frames = condition_frames(arguments.get('condition_frame', 0), length)
        for motion in motion_entries(arguments.get('motion_scale', 0)):
            clip_affinity(motion, length, frames, arguments.get('condition_rule', 'nearest'))
        multiple = read_facts(model).vae_scale
        if image is None:
            return  # the clip's frames, which were read for its own check
        for pictures in clip_images(image, len(frames)):
            for item in pictures:
                prepare_condition_image(
                    item, arguments.get('height'), arguments.get('width'), multiple=multiple
                )

    def _check_condition(self) -> None:
        """Refuse weights that never saw a picture: another model's, before they are trained."""
        weight = self.unet.conv_in.weight[:, self.condition_module.latent_channels :]
        if not weight.any():
            raise InputError(
                "image: this model's weights have nothing for it, the condition's channels of "
                "conv_in are all zero. Give PIA's own as model.motion_module, or train them."
            )

    def _images(
        self, image: Any, height: int | None, width: int | None, per_clip: int
    ) -> list[torch.Tensor]:
        """The prepared pictures of each sample, [K, 3, H, W]."""
        if image is None:
            raise InputError('image is missing: PIA animates a picture; give its path.')
        prepared = [
            [prepare_condition_image(i, height, width, multiple=self.vae_scale) for i in pictures]
            for pictures in clip_images(image, per_clip)
        ]
        shapes = {tuple(picture.shape) for pictures in prepared for picture in pictures}
        if len(shapes) > 1:
            sizes = sorted(f'{shape[2]}x{shape[1]}' for shape in shapes)
            raise InputError(
                f'images of several sizes ({", ".join(sizes)}): give height and width.'
            )
        return [torch.stack(pictures) for pictures in prepared]

    def _prepare(self, group: list[Sample], request: Request) -> None:
        # The official order of random draws: noise first, then the sample of the image's latent.
        for item in group:
            item.extras['latent'] = self.encode(item.extras['image'], item.generator)
        super()._prepare(group, request)

    def _starts_from(self, item: Sample, request: Request) -> torch.Tensor | None:
        clip = super()._starts_from(item, request)
        if clip is not None or request.strength >= 1:
            return clip
        return item.extras['latent'][item.extras['nearest']].transpose(0, 1)

    def _condition(self, group: list[Sample], request: Request, guided: bool) -> Any:
        latent = torch.stack([item.extras['latent'] for item in group]).to(self.device, self.dtype)
        affinity = torch.stack([item.extras['affinity'] for item in group]).to(latent)
        if guided:
            latent, affinity = torch.cat([latent] * 2), torch.cat([affinity] * 2)
        return latent, affinity, group[0].extras['nearest'].to(self.device)

    def _model_input(
        self, latents: torch.Tensor, extra: Any, frames: torch.Tensor | None
    ) -> torch.Tensor:
        latent, affinity, nearest = extra  # N K C H W, N T, T
        if frames is not None:
            chosen = frames.to(self.device)
            affinity, nearest = affinity[:, chosen], nearest[chosen]
        several = latent.shape[1] > 1
        picture = latent[:, nearest].transpose(1, 2) if several else latent[:, 0]
        return self.condition_module.inputs(latents, picture, affinity)

    def _predict_condition(self, inputs: torch.Tensor | None) -> dict[str, Any]:
        """The clips' first frames as pictures, float [0, 1] [C, H, W]."""
        assert inputs is not None, 'PIA predicts from clips, whose first frames it animates'
        first = first_frames(inputs)
        return dict(image=list(first), height=first.shape[-2], width=first.shape[-1])

    def _training_input(self, noisy: torch.Tensor, samples: dict) -> torch.Tensor:
        return self.condition_module.training_inputs(
            noisy, samples['condition_latent'], samples['affinity']
        )

    def loss(self, clean: torch.Tensor, data_samples: dict) -> dict[str, torch.Tensor]:
        """The denoising loss; the condition is a frame of the clip, drawn uniformly a sample.

        ``data_samples['affinity_scores']``: [N, T, T], see ``affinity_scores``.
        """
        frames = clean.shape[2]
        chosen = torch.randint(frames, clean.shape[:1], device=clean.device)
        rows = torch.arange(len(chosen), device=clean.device)
        data_samples['condition_frame'] = chosen
        data_samples['condition_latent'] = clean[rows, :, chosen]
        data_samples['affinity'] = self.condition_module.training_affinity(
            given(data_samples, 'affinity_scores', 'every frame against every frame'), chosen
        )
        return LatentDiffusion.loss(self, clean, data_samples)
