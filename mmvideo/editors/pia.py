"""PIA: a picture, a prompt and an amount of motion become an animation (Zhang et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from mmvideo.editors.animatediff import AnimateDiff
from mmvideo.editors.facts import read_facts
from mmvideo.editors.latent_diffusion import LatentDiffusion
from mmvideo.editors.preprocessor import given
from mmvideo.editors.request import Request, Sample, make_samples, spread
from mmvideo.errors import InputError
from mmvideo.models.conditioning.affinity import affinity_at_inference
from mmvideo.models.conditioning.pia import prepare_condition_image
from mmvideo.registry import MODELS


@MODELS.register_module()
class PIA(AnimateDiff):
    """AnimateDiff whose input carries a condition picture and its affinity to each frame.

    Args:
        condition_module: config of ``PIACondition``.
        first_channels: whose first four input channels and bias: ``'base'`` keeps the (perhaps
            personalised) image model's, ``'pia'`` takes those of PIA's checkpoint.
        kwargs: see ``LatentDiffusion``.
    """

    def __init__(
        self, condition_module: dict, first_channels: Literal['base', 'pia'] = 'base', **kwargs: Any
    ) -> None:
        condition = MODELS.build(condition_module)
        # Read while the parent builds the denoiser: plain data, which a module may hold early.
        self.__dict__['_unet_choices'] = dict(
            in_channels=condition.in_channels, first_channels=first_channels
        )
        super().__init__(**kwargs)
        self.condition_module = condition

    def _unet_options(self) -> dict[str, Any]:
        return self._unet_choices

    def infer(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        video_length: int = 16,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 7.5,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        eta: float = 0.0,
        num_videos_per_prompt: int = 1,
        decode_chunk_size: int = 16,
        callback: Callable | None = None,
        *,
        image: Any = None,
        strength: float = 1.0,
        motion_scale: int | str | Sequence[Any] = 0,
        condition_frame: int = 0,
    ) -> dict[str, Any]:
        """Animate pictures.

        Args:
            prompt: one text, or one for each picture.
            image: a path, PIL image, uint8 array [H, W, 3] or float tensor [3, H, W] in [0, 1];
                a list of them for several samples.
            height: pixels; None follows the picture (long edge at most 512, multiple of 8).
            width: pixels, likewise.
            strength: below 1, sampling starts from the noised picture instead of pure noise.
            motion_scale: 0 to 8 or a table's name (``'small'``, ``'loop-large'``, ...), or a list
                of numbers, the affinity by distance from the condition frame.
            condition_frame: which frame the picture is.

        Other arguments, result and errors: see ``AnimateDiff.infer``.
        """
        images = self._images(image, height, width)
        samples = make_samples(
            prompt,
            negative_prompt,
            num_videos_per_prompt,
            seed,
            generator,
            latents,
            repeat=len(images),
        )
        size = images[0].shape[-2:]
        request = Request(
            samples=samples,
            num_frames=video_length,
            height=int(size[0]),
            width=int(size[1]),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            eta=eta,
            decode_chunk_size=decode_chunk_size,
            strength=strength,
        )
        self._check(request)
        if len(images) not in (1, len(samples) // num_videos_per_prompt):
            raise InputError(f'{len(images)} images for {len(samples)} samples.')
        pictures = [p for p in images for _ in range(num_videos_per_prompt)]
        pictures = spread(pictures if len(images) > 1 else images, len(samples), 'image')
        affinity = affinity_at_inference(motion_scale, video_length, condition_frame)
        for item, picture in zip(samples, pictures, strict=True):
            item.extras = dict(image=picture, affinity=affinity)
        return self._infer(request, callback)

    @classmethod
    def check(cls, model: dict, arguments: dict) -> None:
        """See ``LatentDiffusion.check``; the picture and the motion scale too."""
        super().check(model, arguments)
        if arguments.get('image') is None:
            raise InputError('image is missing: PIA animates a picture; give its path.')
        affinity_at_inference(
            arguments.get('motion_scale', 0),
            arguments.get('video_length', 16),
            arguments.get('condition_frame', 0),
        )
        multiple = read_facts(model).vae_scale
        image = arguments['image']
        for item in image if isinstance(image, (list, tuple)) else [image]:
            prepare_condition_image(
                item, arguments.get('height'), arguments.get('width'), multiple=multiple
            )

    def _images(self, image: Any, height: int | None, width: int | None) -> list[torch.Tensor]:
        if image is None:
            raise InputError('image is missing: PIA animates a picture; give its path.')
        images = list(image) if isinstance(image, (list, tuple)) else [image]
        prepared = [
            prepare_condition_image(i, height, width, multiple=self.vae_scale) for i in images
        ]
        if len({tuple(p.shape) for p in prepared}) > 1:
            sizes = sorted({f'{p.shape[2]}x{p.shape[1]}' for p in prepared})
            raise InputError(
                f'images of several sizes ({", ".join(sizes)}): give height and width.'
            )
        return prepared

    def _timesteps(self, scheduler: Any, request: Request) -> torch.Tensor:
        steps = request.num_inference_steps
        skipped = steps - min(int(steps * request.strength), steps)
        if skipped == steps:
            raise InputError(
                f'strength={request.strength} leaves none of {steps} steps: raise one of them.'
            )
        order = getattr(scheduler, 'order', 1)
        if hasattr(scheduler, 'set_begin_index'):
            scheduler.set_begin_index(skipped * order)
        return scheduler.timesteps[skipped * order :]

    def _start(
        self, group: list[Sample], request: Request, scheduler: Any, timesteps: torch.Tensor
    ) -> torch.Tensor:
        # The official order of random draws: noise first, then the sample of the image's latent.
        noise = torch.stack([self._noise(item, request) for item in group]).to(self.device)
        for item in group:
            item.extras['latent'] = self._encode_image(item)
        if request.strength >= 1:
            return noise * scheduler.init_noise_sigma
        clean = torch.stack([item.extras['latent'] for item in group]).to(self.device)
        clean = clean.unsqueeze(2).expand_as(noise)
        return scheduler.add_noise(clean, noise, timesteps[:1].repeat(len(group)))

    def _encode_image(self, item: Sample) -> torch.Tensor:
        picture = item.extras['image'].unsqueeze(0).to(self.device, self.vae.dtype)
        moments = self.vae.encode(picture).latent_dist
        noise = torch.randn(moments.mean.shape, generator=item.generator)
        latent = moments.mean + moments.std * noise.to(moments.mean)
        return latent[0].float() * self.vae.config.scaling_factor

    def _condition(self, group: list[Sample], request: Request, guided: bool) -> Any:
        latent = torch.stack([item.extras['latent'] for item in group]).to(self.device, self.dtype)
        affinity = torch.stack([item.extras['affinity'] for item in group]).to(latent)
        if guided:
            latent, affinity = torch.cat([latent] * 2), torch.cat([affinity] * 2)
        return latent, affinity

    def _model_input(self, latents: torch.Tensor, extra: Any) -> torch.Tensor:
        return self.condition_module.inputs(latents, *extra)

    def _predict_condition(self, inputs: torch.Tensor | None) -> dict[str, Any]:
        """The clips' first frames as pictures, float [0, 1] [C, H, W]."""
        assert inputs is not None, 'PIA predicts from clips, whose first frames it animates'
        first = inputs[:, :, 0].float().add(1).div(2).clamp(0, 1).cpu()
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
        data_samples['condition_latent'] = clean[rows, :, chosen]
        data_samples['affinity'] = self.condition_module.training_affinity(
            given(data_samples, 'affinity_scores', 'every frame against every frame'), chosen
        )
        return LatentDiffusion.loss(self, clean, data_samples)
