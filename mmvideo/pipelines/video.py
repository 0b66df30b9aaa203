"""Pipelines that make a picture to a video with networks of their own: SVD and I2VGen-XL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from mmvideo.editors.i2vgen_xl import I2VGenXL
from mmvideo.editors.stable_video_diffusion import StableVideoDiffusion
from mmvideo.errors import InputError
from mmvideo.pipelines.animatediff import Generators
from mmvideo.pipelines.base import VideoPipeline, _Part
from mmvideo.pipelines.handles import single_file
from mmvideo.pipelines.loading import SVD_SCHEDULER
from mmvideo.pipelines.pia import as_pictures
from mmvideo.pipelines.text import TextPipeline


class StableVideoDiffusionPipeline(VideoPipeline):
    """Stable Video Diffusion: a picture to video, without text."""

    kinds: ClassVar = {
        'vae': 'AutoencoderKLTemporalDecoder',
        'image_encoder': 'CLIPVisionModelWithProjection',
        'unet': 'VideoUNet',
        'scheduler': 'EulerDiscreteScheduler',
        'feature_extractor': 'CLIPImageProcessor?',
    }
    _frames_first: ClassVar = True
    _file_scheduler: ClassVar = SVD_SCHEDULER
    image_encoder = _Part()

    def _make_editor(self, parts: dict[str, Any]) -> Any:
        self._own_parts = {'feature_extractor': parts.pop('feature_extractor', None)}
        return StableVideoDiffusion(**parts)

    @property
    def feature_extractor(self) -> Any:
        """What was given; pictures are prepared without it, in the same way."""
        return self._own_parts['feature_extractor']

    def __call__(
        self,
        image: Any,
        height: int | None = 576,
        width: int | None = 1024,
        num_frames: int | None = None,
        num_inference_steps: int = 25,
        sigmas: Sequence[float] | None = None,
        min_guidance_scale: float = 1.0,
        max_guidance_scale: float = 3.0,
        fps: int = 7,
        motion_bucket_id: int = 127,
        noise_aug_strength: float = 0.02,
        decode_chunk_size: int | None = None,
        num_videos_per_prompt: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str = 'pil',
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ('latents',),
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Make videos; docs/parameters.md has every argument.

        Args:
            image: a picture or several, see ``PIAPipeline``.
            latents: noise [N, T, C, H, W], as diffusers has it here; so are those that the
                callback sees and those of ``output_type='latent'``.
            kwargs: further arguments of ``StableVideoDiffusion.infer``, such as ``windows``.

        Returns:
            A ``VideoOutput``; with ``return_dict=False`` its ``frames``, not in a tuple.
        """
        arguments = dict(
            image=as_pictures(image),
            height=height,
            width=width,
            video_length=num_frames,
            num_inference_steps=num_inference_steps,
            sigmas=sigmas,
            min_guidance_scale=min_guidance_scale,
            max_guidance_scale=max_guidance_scale,
            fps=fps,
            motion_bucket_id=motion_bucket_id,
            noise_aug_strength=noise_aug_strength,
            num_videos_per_prompt=num_videos_per_prompt,
            latents=None if latents is None else latents.transpose(1, 2),
            draws='diffusers',
        )
        if decode_chunk_size is not None:
            arguments['decode_chunk_size'] = decode_chunk_size
        result = self._generate(
            generator=generator,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            guidance=max_guidance_scale,
            **arguments,
            **self._more(kwargs, list(arguments)),
        )
        if output_type == 'latent':
            result.frames = result.frames.transpose(1, 2)
        return result if return_dict else result.frames


class I2VGenXLPipeline(TextPipeline):
    """I2VGen-XL: a picture and a prompt to video."""

    kinds: ClassVar = {
        'vae': 'AutoencoderKL',
        'text_encoder': 'CLIPTextModel',
        'tokenizer': 'CLIPTokenizer',
        'image_encoder': 'CLIPVisionModelWithProjection',
        'feature_extractor': 'CLIPImageProcessor',
        'unet': 'VideoUNet',
        'scheduler': 'DDIMScheduler',
    }
    image_encoder = _Part()  # type: ignore[assignment]
    feature_extractor = _Part()  # type: ignore[assignment]

    def _make_editor(self, parts: dict[str, Any]) -> Any:
        self._own_parts = {}
        return I2VGenXL(**parts)

    @classmethod
    def from_single_file(
        cls, pretrained_model_link_or_path: str | Path, **arguments: Any
    ) -> I2VGenXLPipeline:
        """Raise InputError: the family's file holds one component of seven."""
        file, _ = single_file(pretrained_model_link_or_path)
        raise InputError(
            f'{cls.__name__}: a file of I2VGen-XL holds the network alone. Read the other parts '
            f"from a pipeline's folder or hub id: {cls.__name__}.from_pretrained("
            f"'ali-vilab/i2vgen-xl', unet={file!r}); tools/convert.py makes the file a folder."
        )

    def __call__(
        self,
        prompt: Any = None,
        image: Any = None,
        height: int = 704,
        width: int = 1280,
        target_fps: int = 16,
        num_frames: int = 16,
        num_inference_steps: int = 50,
        guidance_scale: Any = 9.0,
        negative_prompt: Any = None,
        eta: float = 0.0,
        num_videos_per_prompt: int = 1,
        decode_chunk_size: int | None = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = 'pil',
        return_dict: bool = True,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        clip_skip: int | None = 1,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ('latents',),
        **kwargs: Any,
    ) -> Any:
        """Make videos; docs/parameters.md has every argument.

        Args:
            image: a picture or several, see ``PIAPipeline``.
            decode_chunk_size: frames that the VAE decodes at once; None is all.
            kwargs: further arguments of ``I2VGenXL.infer``.
        """
        if image is None:
            raise InputError('image is missing: I2VGen-XL animates a picture.')
        return self._call(
            locals(),
            image=as_pictures(image),
            video_length=num_frames,
            target_fps=target_fps,
            height=height,
            width=width,
            decode_chunk_size=num_frames if decode_chunk_size is None else decode_chunk_size,
        )
