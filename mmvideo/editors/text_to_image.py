"""Pictures from prompts: the base that motion modules are trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mmvideo.editors.latent_diffusion import LatentDiffusion
from mmvideo.editors.request import Request, make_samples
from mmvideo.models.conditioning.image_prompt import ImagePrompts
from mmvideo.registry import MODELS


@MODELS.register_module()
class TextToImage(LatentDiffusion):
    """A latent text-to-image model (Rombach et al. 2022). Arguments: see ``LatentDiffusion``."""

    _OPTIONS = ('free_u',)

    def infer(
        self,
        prompt: str | Sequence[str],
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
        free_u: dict[str, Any] | bool | None = None,
    ) -> dict[str, Any]:
        """Draw pictures; arguments as ``AnimateDiff.infer``.

        Returns:
            ``dict(samples=...)``: float in [0, 1], [N, C, 1, H, W], on the CPU.
        """
        request = Request(
            samples=make_samples(
                prompt, negative_prompt, num_videos_per_prompt, seed, generator, latents
            ),
            num_frames=1,
            height=self.default_size if height is None else height,
            width=self.default_size if width is None else width,
            num_inference_steps=num_inference_steps,
            options=self._options(1, guidance_scale=guidance_scale, free_u=free_u),
            eta=eta,
            decode_chunk_size=decode_chunk_size,
            clip_skip=clip_skip,
            image_prompts=ImagePrompts(
                ip_adapter_image, ip_adapter_scale, ip_adapter_masks, ip_adapter_image_embeds
            ),
        )
        self._check(request)
        return self._infer(request, callback)
