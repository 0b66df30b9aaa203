"""What pipelines with prompts and motion modules do alike: prompts, adapters, and their calls.

N samples, T frames, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmvideo.editors.animatediff import AnimateDiff
from mmvideo.errors import InputError
from mmvideo.models.conditioning.text import chunks_needed, encode_prompts
from mmvideo.pipelines.adapters import Adapters
from mmvideo.pipelines.base import VideoPipeline, _Part
from mmvideo.pipelines.features import ImageFeatures, MotionFeatures
from mmvideo.pipelines.handles import MotionAdapter, controls_of

KINDS = {
    'vae': 'AutoencoderKL',
    'text_encoder': 'CLIPTextModel',
    'tokenizer': 'CLIPTokenizer',
    'unet': 'VideoUNet',
    'motion_adapter': 'MotionAdapter?',
    'scheduler': 'DDIMScheduler',
    'feature_extractor': 'CLIPImageProcessor?',
    'image_encoder': 'CLIPVisionModelWithProjection?',
}
# Names of a call that the editor has others for, or that are no matter of the editor.
_SHARED = (
    *('prompt', 'negative_prompt', 'num_inference_steps', 'guidance_scale', 'latents', 'eta'),
    *('num_videos_per_prompt', 'prompt_embeds', 'negative_prompt_embeds', 'ip_adapter_image'),
    *('ip_adapter_image_embeds', 'clip_skip', 'decode_chunk_size', 'timesteps', 'sigmas'),
    *('strength', 'generator', 'output_type', 'return_dict'),
    *('callback_on_step_end', 'callback_on_step_end_tensor_inputs'),
)


class TextPipeline(Adapters, ImageFeatures, VideoPipeline):
    """Prompts and adapters over an editor with a text encoder."""

    text_encoder = _Part()
    tokenizer = _Part()
    _callback_tensor_inputs: ClassVar = ('latents', 'prompt_embeds', 'negative_prompt_embeds')
    _clip_skip: int | None = None
    _cross_attention_kwargs: Mapping[str, Any] | None = None

    @property
    def clip_skip(self) -> int | None:
        """Of the last call."""
        return self._clip_skip

    @property
    def cross_attention_kwargs(self) -> Mapping[str, Any] | None:
        """Of the last call."""
        return self._cross_attention_kwargs

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None,
        device: torch.device | str | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | Sequence[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings of prompts, [N, L, D], and of negative prompts where guidance needs them.

        A prompt longer than the text encoder sees is encoded in chunks; nothing is cut off.
        """
        if prompt is None and prompt_embeds is None:
            raise InputError('encode_prompt: give a prompt or prompt_embeds.')
        texts = [] if prompt is None else [prompt] if isinstance(prompt, str) else list(prompt)
        count = len(texts) if prompt_embeds is None else len(prompt_embeds)
        avoided = self._negatives(negative_prompt, count)
        chunk = self.tokenizer.model_max_length
        chunks = 1 if prompt_embeds is None else max(1, prompt_embeds.shape[1] // chunk)
        wanted = [*texts, *(avoided if negative_prompt_embeds is None else ())]
        chunks = max([chunks, *(chunks_needed(self.tokenizer, text) for text in wanted)])

        def encoded(found: list[str], skip: int | None) -> Tensor:
            return encode_prompts(self.tokenizer, self.text_encoder, found, chunks, skip)

        with self._attention(None if lora_scale is None else {'scale': lora_scale}):
            if prompt_embeds is None:
                prompt_embeds = encoded(texts, clip_skip)
            if do_classifier_free_guidance and negative_prompt_embeds is None:
                negative_prompt_embeds = encoded(avoided, None)
        place = dict(device=device or self.device, dtype=self.text_encoder.dtype)
        shown = prompt_embeds.repeat_interleave(num_images_per_prompt, 0).to(**place)
        if not do_classifier_free_guidance or negative_prompt_embeds is None:
            return shown, None
        return shown, negative_prompt_embeds.repeat_interleave(num_images_per_prompt, 0).to(**place)

    @staticmethod
    def _negatives(negative: str | Sequence[str] | None, count: int) -> list[str]:
        listed = (
            [negative or ''] if negative is None or isinstance(negative, str) else list(negative)
        )
        if len(listed) not in (1, count):
            raise InputError(f'{len(listed)} negative prompts for {count} prompts.')
        return listed * count if len(listed) == 1 else listed

    def _share_adapters(self, editor: Any) -> None:
        for name in ('_adapters', '_off', '_merged'):
            setattr(self.editor, name, getattr(editor, name))
        if self._ip_adapters():
            self.editor.ip_adapters = editor.ip_adapters

    def _refuse_loras(self) -> None:
        names = [adapter.name for adapter in self._loras()]
        if names and not self.editor.merged:
            raise InputError(
                f'motion_adapter: the denoiser is made anew, without the LoRAs {names}: '
                'unload_lora_weights() first, and load them into the new pipeline.'
            )

    def _call(self, given: Mapping[str, Any], **changes: Any) -> Any:
        """Call the editor with what ``__call__`` was given.

        Args:
            given: its arguments by name, as ``locals()`` has them.
            changes: of the editor's arguments.
        """
        arguments = {name: given[name] for name in _SHARED if name in given} | changes
        kwargs = dict(given.get('kwargs') or {})
        legacy = {name: kwargs.pop(name, None) for name in ('callback', 'callback_steps')}
        arguments |= self._options | self._more(kwargs, list(arguments))
        guidance = arguments['guidance_scale']
        self._clip_skip = arguments.get('clip_skip')
        self._cross_attention_kwargs = given.get('cross_attention_kwargs')
        with self._attention(self._cross_attention_kwargs) as masks:
            return self._generate(
                guidance=_largest(guidance), legacy=legacy, **{**arguments, **masks}
            )


class MotionPipeline(MotionFeatures, TextPipeline):
    """AnimateDiff and what is built on it.

    Args:
        components: ``vae``, ``text_encoder``, ``tokenizer``, ``unet``, ``scheduler``, and where the
            ``unet`` has no motion modules a ``motion_adapter``; for IP-Adapters, if they have none
            of their own, ``image_encoder`` and ``feature_extractor``.
        others: see ``VideoPipeline``.
    """

    kinds: ClassVar = KINDS
    #: Whether diffusers' pipeline of that name needs its folder to have one.
    _saves_motion_adapter: ClassVar = False

    def _make_editor(self, parts: dict[str, Any]) -> Any:
        names = ('image_encoder', 'feature_extractor')
        self._own_parts = {name: parts[name] for name in names if name in parts}
        return self._editor(
            vae=parts['vae'],
            text_encoder=parts['text_encoder'],
            tokenizer=parts['tokenizer'],
            unet=parts['unet'],
            scheduler=parts['scheduler'],
            motion_module=None,
            controls=self._controls(parts),
        )

    def _editor(self, **parts: Any) -> Any:
        return AnimateDiff(**parts)

    def _controls(self, parts: Mapping[str, Any]) -> list[Any]:
        return controls_of(parts['controlnet']) if 'controlnet' in parts else []

    def _check_denoiser(self, unet: Any) -> None:
        if unet.max_frames is None:
            raise InputError(
                f'{type(self).__name__}: the unet has no motion modules; give a motion_adapter, '
                "such as MotionAdapter.from_pretrained('guoyww/animatediff-motion-adapter-v1-5-2')."
            )
        if unet.in_channels != unet.out_channels:
            raise InputError(
                f'{type(self).__name__}: the unet takes {unet.in_channels} channels, as '
                "PIA's does: use PIAPipeline."
            )

    @property
    def motion_adapter(self) -> Any:
        """What was given, as it is now in the denoiser; None where that came with its modules."""
        return MotionAdapter.of_denoiser(self.unet) if self._adapted else None

    def _animate(self, given: Mapping[str, Any], **changes: Any) -> Any:
        """``_call`` with the names of AnimateDiff's editor."""
        size = self.editor.default_size
        return self._call(
            given,
            **{
                'video_length': given.get('num_frames'),
                'height': given['height'] or size,
                'width': given['width'] or size,
                'negative_clip_skip': 0,  # diffusers leaves no layer out there
                'draws': 'diffusers',
                **changes,
            },
        )


def _largest(guidance: Any) -> Any:
    """The largest of a scale that may change over the frames or steps."""
    if isinstance(guidance, Mapping):
        guidance = [_largest(value) for value in guidance.values()]
    if not isinstance(guidance, (list, tuple)):
        return guidance
    numbers = [v for v in guidance if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return max(numbers, default=1.0)


__all__ = ['KINDS', 'MotionPipeline', 'TextPipeline']
