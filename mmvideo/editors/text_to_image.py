"""Pictures from prompts: the base that motion modules are trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mmvideo.editors.course import OnStep
from mmvideo.editors.latent_diffusion import LatentDiffusion
from mmvideo.editors.options import COMMON
from mmvideo.editors.request import make_samples
from mmvideo.registry import MODELS


@MODELS.register_module()
class TextToImage(LatentDiffusion):
    """A latent text-to-image model (Rombach et al. 2022). Arguments: see ``LatentDiffusion``."""

    _OPTIONS = ('free_u', *COMMON)

    def infer(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
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
        free_u: dict[str, Any] | bool | None = None,
        guidance_interval: Sequence[float] | None = None,
        deep_cache: dict[str, Any] | int | bool | None = None,
        output_type: str = 'video',
    ) -> dict[str, Any]:
        """Draw pictures; arguments as ``AnimateDiff.infer``.

        Returns:
            ``dict(samples=...)``: float in [0, 1], [N, C, 1, H, W], on the CPU; or ``latents``.
        """
        call = dict(locals())
        samples = make_samples(
            prompt,
            negative_prompt,
            num_videos_per_prompt,
            seed,
            generator,
            latents,
            num_frames=1,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
        )
        size = self.default_size
        height = size if height is None else height
        width = size if width is None else width
        request = self._request(call, samples, height, width)
        self._check(request)
        return self._infer(request, callback)
