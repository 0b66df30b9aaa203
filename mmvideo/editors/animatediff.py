"""AnimateDiff: motion modules on a frozen text-to-image model (Guo et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mmvideo.checkpoints.save import save_part
from mmvideo.editors.latent_diffusion import LatentDiffusion
from mmvideo.editors.parts import export_motion_adapter
from mmvideo.editors.request import Request, make_samples
from mmvideo.registry import MODELS


@MODELS.register_module()
class AnimateDiff(LatentDiffusion):
    """A text-to-image model whose layers alternate with motion modules.

    Args: see ``LatentDiffusion``; ``motion_module`` is required.
    """

    def __init__(self, motion_module: dict, **kwargs: Any) -> None:
        super().__init__(motion_module=motion_module, **kwargs)

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
    ) -> dict[str, Any]:
        """Animate prompts.

        Args:
            prompt: one text or several.
            negative_prompt: what to steer away from; one for all, or one for each prompt.
            video_length: frames.
            height: pixels, a multiple of the VAE's factor; None is the model's own size.
            width: pixels, likewise.
            num_inference_steps: calls of the scheduler.
            guidance_scale: 1 or less runs without guidance, at half the cost.
            seed: sample i draws from ``seed + i``; or a list with one seed a sample.
            generator: CPU generators in place of seeds.
            latents: noise [N, C, T, H, W] of unit variance in place of drawn noise.
            eta: DDIM's eta.
            num_videos_per_prompt: samples a prompt.
            decode_chunk_size: frames the VAE decodes at once.
            callback: called after each step as ``(steps done, steps, latents)``.

        Returns:
            ``dict(samples=...)``: float in [0, 1], [N, C, T, H, W], on the CPU.

        Raises:
            InputError: before anything is computed.
        """
        request = Request(
            samples=make_samples(
                prompt, negative_prompt, num_videos_per_prompt, seed, generator, latents
            ),
            num_frames=video_length,
            height=height or self.default_size,
            width=width or self.default_size,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            eta=eta,
            decode_chunk_size=decode_chunk_size,
        )
        self._check(request)
        return self._infer(request, callback)

    def _save_unet(self, folder: Path, dtype: str | None) -> None:
        """Write the motion adapter, and the whole UNet when more of it was trained."""
        config, tensors = export_motion_adapter(self.unet)
        save_part(folder / 'motion_adapter', config, tensors, dtype=dtype)
        trained = [n for n, p in self.unet.named_parameters() if p.requires_grad]
        if not all('motion_modules' in n or n.startswith('conv_in') for n in trained):
            super()._save_unet(folder, dtype)
