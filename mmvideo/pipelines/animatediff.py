"""AnimateDiff's pipelines: text to video, video to video, and with controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mmvideo.errors import InputError
from mmvideo.pipelines.clips import Restyled, Start, all_steps, check_latents, clips_of
from mmvideo.pipelines.text import KINDS, MotionPipeline

Generators = torch.Generator | Sequence[torch.Generator] | None


class AnimateDiffPipeline(MotionPipeline):
    """Text to video. Components: see ``MotionPipeline``."""

    def __call__(
        self,
        prompt: Any = None,
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
        output_type: str = 'pil',
        return_dict: bool = True,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ('latents',),
        decode_chunk_size: int = 16,
        **kwargs: Any,
    ) -> Any:
        """Make videos; docs/parameters.md has every argument.

        Args:
            kwargs: further arguments of ``AnimateDiff.infer``, such as ``windows``.

        Returns:
            ``VideoOutput``, or ``(frames,)``.
        """
        return self._animate(locals())


class AnimateDiffControlNetPipeline(MotionPipeline):
    """Text to video, led by a picture for every frame.

    Components: see ``MotionPipeline``; and ``controlnet``, one or several.
    """

    kinds: ClassVar = KINDS | {'controlnet': 'ControlNetModel'}
    _saves_motion_adapter: ClassVar = True

    @property
    def controlnet(self) -> Any:
        """The network, or a list of several."""
        nets = list(self.editor.controls)
        return nets[0] if len(nets) == 1 else nets

    def _controlled(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The editor's arguments about controls."""
        several = len(self.editor.controls) > 1
        frames = given['conditioning_frames']
        if frames is None:
            raise InputError('conditioning_frames is missing: give a picture for every frame.')
        return {
            'control_videos': frames if several else [frames],
            'control_scale': given['controlnet_conditioning_scale'],
            'control_start': given['control_guidance_start'],
            'control_end': given['control_guidance_end'],
            'guess_mode': given['guess_mode'],
        }

    def __call__(
        self,
        prompt: Any = None,
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
        conditioning_frames: Any = None,
        output_type: str = 'pil',
        return_dict: bool = True,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        controlnet_conditioning_scale: Any = 1.0,
        guess_mode: bool = False,
        control_guidance_start: Any = 0.0,
        control_guidance_end: Any = 1.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ('latents',),
        decode_chunk_size: int = 16,
        **kwargs: Any,
    ) -> Any:
        """Make videos, see ``AnimateDiffPipeline``.

        Args:
            conditioning_frames: a clip of ``num_frames`` pictures; one for each ControlNet.
            kwargs: further arguments of ``AnimateDiff.infer``.
        """
        given = locals()
        return self._animate(given, **self._controlled(given))


class AnimateDiffSparseControlNetPipeline(MotionPipeline):
    """Text to video, led by pictures on some frames.

    Components: see ``MotionPipeline``; and ``controlnet``.
    """

    kinds: ClassVar = KINDS | {'controlnet': 'SparseControlNetModel'}

    @property
    def controlnet(self) -> Any:
        """The network."""
        return self.editor.controls[0]

    def __call__(
        self,
        prompt: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int = 16,
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
        conditioning_frames: Any = None,
        output_type: str = 'pil',
        return_dict: bool = True,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        controlnet_conditioning_scale: Any = 1.0,
        controlnet_frame_indices: Sequence[int] = (0,),
        guess_mode: bool = False,
        clip_skip: int | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ('latents',),
        **kwargs: Any,
    ) -> Any:
        """Make videos, see ``AnimateDiffPipeline``.

        Args:
            conditioning_frames: a picture, or several.
            controlnet_frame_indices: which frames they are.
            kwargs: further arguments of ``AnimateDiff.infer``.
        """
        if conditioning_frames is None:
            raise InputError('conditioning_frames is missing: give at least one picture.')
        several = isinstance(conditioning_frames, (list, tuple)) or _is_batch(conditioning_frames)
        return self._animate(
            locals(),
            control_videos=[conditioning_frames if several else [conditioning_frames]],
            control_frames=[_frame_indices(controlnet_frame_indices)],
            control_scale=controlnet_conditioning_scale,
            guess_mode=guess_mode,
        )


class AnimateDiffVideoToVideoPipeline(MotionPipeline):
    """A video made anew, as much as ``strength`` says. Components: see ``MotionPipeline``."""

    def _editor(self, **parts: Any) -> Any:
        return Restyled(**parts)

    def _restyle(self, given: Mapping[str, Any], **changes: Any) -> Any:
        steps, strength = given['num_inference_steps'], given['strength']
        enforced = given['enforce_inference_steps']
        if enforced:
            # All of the asked steps are taken, of a schedule that is so much longer.
            steps, strength = all_steps(steps, strength, given['timesteps'], given['sigmas'])
        changes['num_inference_steps'] = steps
        if given['latents'] is None:
            clips = clips_of(given['video'])
            start = Start(clips if len(clips) > 1 else ())
            changes |= dict(video=clips[0], video_length=len(clips[0]), strength=strength)
        elif given['video'] is not None:
            raise InputError('video and latents: give one of them.')
        else:
            check_latents(given['latents'])
            start = Start(strength=strength, noised=not enforced)
            changes |= dict(video_length=given['latents'].shape[2], strength=None)
        self.editor.start = start
        try:
            return self._animate(given, **changes)
        finally:
            self.editor.start = Start()

    def __call__(
        self,
        video: Any = None,
        prompt: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        enforce_inference_steps: bool = False,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: Any = 7.5,
        strength: float = 0.8,
        negative_prompt: Any = None,
        num_videos_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Sequence[Tensor] | None = None,
        output_type: str = 'pil',
        return_dict: bool = True,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ('latents',),
        decode_chunk_size: int = 16,
        **kwargs: Any,
    ) -> Any:
        """Make videos, see ``AnimateDiffPipeline``.

        Args:
            video: a clip: pictures, an array [T, H, W, 3] or tensor [T, 3, H, W] in [0, 1], a path,
                or ``dict(clip=path, start=0, stride=1)``; or a list of clips, one for each prompt.
            enforce_inference_steps: take ``num_inference_steps`` whatever the strength.
            latents: [N, C, T, H, W] in place of ``video``: at the first step's level of noise, or
                clean with ``enforce_inference_steps``, which adds noise.
            kwargs: further arguments of ``AnimateDiff.infer``.
        """
        return self._restyle(locals())


class AnimateDiffVideoToVideoControlNetPipeline(
    AnimateDiffVideoToVideoPipeline, AnimateDiffControlNetPipeline
):
    """A video made anew, led by a picture for every frame.

    Components: see ``AnimateDiffControlNetPipeline``.
    """

    _saves_motion_adapter: ClassVar = False

    def __call__(  # type: ignore[override]
        self,
        video: Any = None,
        prompt: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        enforce_inference_steps: bool = False,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: Any = 7.5,
        strength: float = 0.8,
        negative_prompt: Any = None,
        num_videos_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Sequence[Tensor] | None = None,
        conditioning_frames: Any = None,
        output_type: str = 'pil',
        return_dict: bool = True,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        controlnet_conditioning_scale: Any = 1.0,
        guess_mode: bool = False,
        control_guidance_start: Any = 0.0,
        control_guidance_end: Any = 1.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ('latents',),
        decode_chunk_size: int = 16,
        **kwargs: Any,
    ) -> Any:
        """Make videos, see ``AnimateDiffVideoToVideoPipeline``."""
        given = locals()
        return self._restyle(given, **self._controlled(given))


def _frame_indices(value: Any) -> list[Any]:
    """The argument ``controlnet_frame_indices``: one frame or several."""
    if isinstance(value, (list, tuple, range)):
        return list(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    raise InputError(
        f'controlnet_frame_indices={value!r}: expected a frame or a list of them, such as [0].'
    )


def _is_batch(value: Any) -> bool:
    return isinstance(value, (np.ndarray, Tensor)) and value.ndim == 4
