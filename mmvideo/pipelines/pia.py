"""PIA's pipeline: a picture, a prompt and an amount of motion become a video."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from mmvideo.editors.pia import PIA
from mmvideo.errors import InputError
from mmvideo.pipelines.animatediff import Generators
from mmvideo.pipelines.text import MotionPipeline


class PIAPipeline(MotionPipeline):
    """A picture to video. Components: see ``MotionPipeline``; the motion adapter is PIA's."""

    in_channels: ClassVar = 9

    def _editor(self, **parts: Any) -> Any:
        return PIA(condition_module=dict(type='PIACondition'), **parts)

    def _check_denoiser(self, unet: Any) -> None:
        if unet.in_channels != self.in_channels or unet.max_frames is None:
            raise InputError(
                f'PIAPipeline: the unet takes {unet.in_channels} channels, so it has no weights '
                "for PIA's condition: give motion_adapter=MotionAdapter.from_pretrained("
                "'openmmlab/PIA-condition-adapter'), also to from_pipe."
            )

    def __call__(
        self,
        image: Any,
        prompt: Any = None,
        strength: float = 1.0,
        num_frames: int = 16,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: Any = 7.5,
        negative_prompt: Any = None,
        num_videos_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Sequence[Tensor] | None = None,
        motion_scale: Any = 0,
        output_type: str = 'pil',
        return_dict: bool = True,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ('latents',),
        **kwargs: Any,
    ) -> Any:
        """Make videos, see ``AnimateDiffPipeline``.

        Args:
            image: a picture or several: path, PIL picture, array or tensor; also as one array
                [N, H, W, 3] or tensor [N, 3, H, W].
            motion_scale: 0 to 8, or what ``PIA.infer`` takes beside that.
            kwargs: further arguments of ``PIA.infer``, such as ``condition_frame``.
        """
        return self._animate(locals(), image=as_pictures(image), motion_scale=motion_scale)


def as_pictures(image: Any) -> Any:
    """A batch of pictures in one array or tensor as a list of them."""
    batch = isinstance(image, (np.ndarray, Tensor)) and image.ndim == 4
    return list(image) if batch else image
