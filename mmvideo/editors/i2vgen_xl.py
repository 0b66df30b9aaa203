"""I2VGen-XL: a picture and a prompt become a clip (Zhang et al. 2023; one stage is public)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmvideo.editors.checks import check_loss_weight, check_range, check_whole
from mmvideo.editors.course import OnStep
from mmvideo.editors.facts import read_facts
from mmvideo.editors.latent_diffusion import LatentDiffusion
from mmvideo.editors.options import COMMON
from mmvideo.editors.parts import build_part, weight_files
from mmvideo.editors.preprocessor import first_frames, given
from mmvideo.editors.request import (
    Request,
    Sample,
    check_clip_skip,
    check_size,
    make_samples,
    spread,
)
from mmvideo.errors import ConfigError, InputError
from mmvideo.models.conditioning.i2vgen import clip_pixels, frame_pixels, picture_over_time
from mmvideo.models.conditioning.image import check_cover, open_rgb
from mmvideo.registry import MODELS

if TYPE_CHECKING:
    from PIL import Image


@MODELS.register_module()
class I2VGenXL(LatentDiffusion):
    """A denoiser that sees a picture three times: its latent beside the first frame's noise, the
    same latent as tokens, and its CLIP embedding as tokens.

    Args:
        image_encoder: config of ``CLIPVisionModelWithProjection``; it is never trained. None is
            without: the embedding is then always zero, as it is for the unguided half.
        feature_extractor: config of ``CLIPImageProcessor``, whose size, mean and deviation count.
        condition_dropout: probability, per sample, of training without caption and embedding,
            which is what guidance steers away from. ``caption_dropout`` drops the caption alone.
        noise_offset: what is added to the noise of training for each channel of a frame as a
            whole, in deviations; 0.1 for the published weights.
        condition_loss_weight: of the first frame in the training loss, where every other frame
            counts 1; the mean over a clip stays 1. 1 is the published loss.
        clip_fps: frames a second of clips in training whose dataset gives no ``fps``.
        train_clip_skip: layers left out at the end of the text encoder in training; what ``infer``
            leaves out is its ``clip_skip``.
        kwargs: see ``LatentDiffusion``.
    """

    _OPTIONS = ('free_u', *COMMON)
    part_registries = {
        **LatentDiffusion.part_registries,
        'image_encoder': 'MODELS',
        'feature_extractor': 'MODELS',
    }

    def __init__(
        self,
        image_encoder: dict | None = None,
        feature_extractor: dict | None = None,
        condition_dropout: float = 0.0,
        noise_offset: float = 0.0,
        condition_loss_weight: float = 1.0,
        clip_fps: int = 16,
        train_clip_skip: int = 1,
        **kwargs: Any,
    ) -> None:
        _check_parts(image_encoder, feature_extractor)
        _check_training(condition_dropout, noise_offset, clip_fps)
        check_loss_weight(condition_loss_weight)
        own_parts = {} if image_encoder is None else dict(image_encoder=image_encoder)
        weight_files(own_parts)  # a missing file is found before another is read
        super().__init__(**kwargs)
        self._parts.update(own_parts)
        _check_denoiser(self.unet)
        self.image_encoder, self.feature_extractor = None, None
        if image_encoder is not None:
            self.image_encoder = build_part(MODELS, image_encoder).requires_grad_(False)
            self.feature_extractor = build_part(MODELS, feature_extractor)
            _check_width(self.image_encoder, self.unet)
        self.condition_dropout = condition_dropout
        self.noise_offset = noise_offset
        self.condition_loss_weight = condition_loss_weight
        self.clip_fps = clip_fps
        check_clip_skip(train_clip_skip, self.text_encoder.config.num_hidden_layers)
        self.train_clip_skip = train_clip_skip

    def train(self, mode: bool = True) -> I2VGenXL:
        """See ``LatentDiffusion.train``; the image encoder stays as it is."""
        super().train(mode)
        if self.image_encoder is not None:
            self.image_encoder.eval()
        return self

    def infer(
        self,
        prompt: Any = None,
        image: Any = None,
        negative_prompt: Any = None,
        video_length: int = 16,
        target_fps: int = 16,
        height: int = 704,
        width: int = 1280,
        num_inference_steps: int = 50,
        guidance_scale: Any = 9.0,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        eta: float = 0.0,
        num_videos_per_prompt: int = 1,
        decode_chunk_size: int = 1,
        callback: Callable | None = None,
        *,
        clip_skip: int | None = 1,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        on_step: OnStep | None = None,
        free_u: dict[str, Any] | bool | None = None,
        guidance_interval: Sequence[float] | None = None,
        deep_cache: dict[str, Any] | int | bool | None = None,
        output_type: str = 'video',
    ) -> dict[str, Any]:
        """Animate pictures.

        Args:
            prompt: one text, or one for each picture; it may change over the frames.
            image: a path, PIL image, uint8 array [H, W, 3] or float tensor [3, H, W] in [0, 1]; a
                list of them for several samples. It is scaled to cover the video and cut at the
                middle; the image encoder sees its middle square.
            negative_prompt: what to steer away from; one for all, or one for each prompt.
            video_length: frames; the published weights were trained on 16 and 32.
            target_fps: frames a second that the denoiser is told, which sets how far things move
                from frame to frame. The rate of a file is another matter.
            height: pixels, a multiple of the VAE's factor.
            width: pixels, likewise.
            clip_skip: layers left out at the end of the text encoder; the model was trained with
                1. None or 0 uses all.

        Other arguments, result and errors: see ``AnimateDiff.infer``.
        """
        call = dict(locals())
        _check_sizes(height, width, self.vae_scale)
        pictures = _opened(image)
        samples = make_samples(
            prompt,
            negative_prompt,
            num_videos_per_prompt,
            seed,
            generator,
            latents,
            repeat=len(pictures),
            num_frames=video_length,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
        )
        request = self._request(call, samples, height, width)
        self._check(request)
        check_whole('target_fps', target_fps, 1)
        for picture in pictures:
            _check_picture(picture, height, width, self.vae_scale)
        count = len(samples) // num_videos_per_prompt
        if len(pictures) not in (1, count):
            raise InputError(f'{len(pictures)} images for {len(samples)} samples.')
        pictures = spread(pictures, count, 'image')
        for item in samples:
            picture = pictures[item.index // num_videos_per_prompt]
            item.extras = dict(picture=picture, size=(height, width), fps=target_fps)
        return self._infer(request, callback)

    @classmethod
    def check(cls, model: dict, arguments: dict) -> None:
        """See ``LatentDiffusion.check``; the picture and the frames a second too."""
        size = (arguments.get('height', 704), arguments.get('width', 1280))
        multiple = read_facts(model).vae_scale
        _check_sizes(*size, multiple)
        super().check(model, arguments)
        _check_parts(model.get('image_encoder'), model.get('feature_extractor'))
        check_whole('target_fps', arguments.get('target_fps', 16), 1)
        for picture in _opened(arguments.get('image')):
            _check_picture(picture, *size, multiple)

    @classmethod
    def check_training(cls, model: Any) -> None:
        """See ``LatentDiffusion.check_training``; the settings of this editor too."""
        super().check_training(model)
        _check_parts(model.get('image_encoder'), model.get('feature_extractor'))
        _check_training(
            model.get('condition_dropout', 0.0),
            model.get('noise_offset', 0.0),
            model.get('clip_fps', 16),
        )
        check_loss_weight(model.get('condition_loss_weight', 1.0))

    def recipe_picture(self, picture: Any, height: int | None, width: int | None) -> Tensor:
        """A picture as a recipe keeps it: whole, as no smaller one has both of its views."""
        whole = open_rgb(picture)
        return frame_pixels(whole, whole.height, whole.width)

    # Sampling ---------------------------------------------------------------------------------

    def _prepare(self, group: list[Sample], request: Request) -> None:
        # Noise is drawn first, then the sample of the picture's latent.
        for item in group:
            pixels = frame_pixels(item.extras['picture'], *item.extras['size'])
            item.extras['latent'] = self.encode(pixels[None], item.generator)[0]

    def _condition(self, group: list[Sample], request: Request, guided: bool) -> dict[str, Tensor]:
        latent = torch.stack([item.extras['latent'] for item in group]).to(self.device, self.dtype)
        embeds = self._embedded([item.extras['picture'] for item in group], request.width)
        fps = torch.tensor([item.extras['fps'] for item in group], device=self.device)
        over_time = picture_over_time(latent, request.num_frames)
        if guided:
            over_time, fps = torch.cat([over_time] * 2), torch.cat([fps] * 2)
            embeds = torch.cat([torch.zeros_like(embeds), embeds])
        return dict(fps=fps, image_latents=over_time, image_embeddings=embeds)

    def _conditions(
        self, group: list[Sample], request: Request, extra: Any, guided: bool
    ) -> dict[str, Tensor] | None:
        return extra

    @torch.no_grad()
    def _embedded(self, pictures: Sequence[Image.Image], width: int) -> Tensor:
        """CLIP's embeddings of pictures [N, D] for a video of this width; zero without encoder."""
        if self.image_encoder is None:
            shape = (len(pictures), self.unet.cross_attention_dim)
            return torch.zeros(shape, device=self.device, dtype=self.dtype)
        pixels = torch.stack([clip_pixels(p, width, self.feature_extractor) for p in pictures])
        weight = next(self.image_encoder.parameters())
        return self.image_encoder(pixels.to(weight)).image_embeds.to(self.device, self.dtype)

    # Training ---------------------------------------------------------------------------------

    def loss(self, clean: Tensor, data_samples: dict) -> dict[str, Tensor]:
        """The denoising loss; the picture is the clip's first frame.

        ``data_samples`` may have ``fps`` [N].
        """
        dropped = torch.rand(len(clean)) < self.condition_dropout
        captions = given(data_samples, 'caption', 'a text')
        kept = ['' if d else c for d, c in zip(dropped.tolist(), captions, strict=True)]
        first = torch.zeros(len(clean), dtype=torch.long, device=clean.device)
        samples = dict(caption=kept, dropped=dropped.to(clean.device), condition_frame=first)
        return super().loss(clean, {**data_samples, **samples})

    def _clean_latents(self, video: Tensor | None, samples: dict) -> Tensor:
        clean = super()._clean_latents(video, samples)
        if self.image_encoder is not None:
            # Latents from a cache come without frames; without the first, it is decoded.
            if video is None and 'image' in samples:
                samples['pictures'] = samples['image'].cpu()
            elif video is None:
                samples['pictures'] = self.decode(clean[:, :, :1])[:, :, 0]
            else:
                samples['pictures'] = first_frames(video)
        return clean

    def _training_noise(self, clean: Tensor) -> Tensor:
        noise = super()._training_noise(clean)
        if not self.noise_offset:
            return noise
        whole = torch.randn(*clean.shape[:3], 1, 1, device=clean.device, dtype=clean.dtype)
        return noise + self.noise_offset * whole

    def _training_arguments(self, clean: Tensor, samples: dict) -> dict[str, Any]:
        fps = samples.get('fps')
        if fps is None:
            fps = torch.full(clean.shape[:1], self.clip_fps)
        over_time = picture_over_time(clean[:, :, 0], clean.shape[2])
        embeds = self._training_embeddings(clean, samples)
        embeds = embeds.masked_fill(samples['dropped'][:, None], 0)
        conditions = dict(fps=fps.to(clean.device), image_latents=over_time)
        return dict(conditions=dict(conditions, image_embeddings=embeds))

    def _training_embeddings(self, clean: Tensor, samples: dict) -> Tensor:
        if self.image_encoder is None:
            return clean.new_zeros(len(clean), self.unet.cross_attention_dim)
        frames = [open_rgb(frame) for frame in given(samples, 'pictures', 'a first frame')]
        return self._embedded(frames, frames[0].width)

    def _predict_condition(self, inputs: Tensor | None) -> dict[str, Any]:
        """The clips' first frames as pictures, float [0, 1] [C, H, W]."""
        assert inputs is not None, 'I2VGen-XL predicts from clips, whose first frames it animates'
        first = first_frames(inputs)
        return dict(image=list(first), height=first.shape[-2], width=first.shape[-1])


def _opened(image: Any) -> list[Image.Image]:
    """The pictures of a call, each RGB."""
    if image is None:
        raise InputError('image is missing: I2VGen-XL animates a picture; give its path.')
    entries = list(image) if isinstance(image, (list, tuple)) else [image]
    if not entries:
        raise InputError('image is an empty list; expected at least one picture.')
    return [open_rgb(entry, _name(entry)) for entry in entries]


def _name(image: Any) -> str:
    return image if isinstance(image, str) else 'image'


def _check_sizes(height: Any, width: Any, multiple: int) -> None:
    for name, value in (('height', height), ('width', width)):
        check_whole(name, value, multiple)
        check_size(name, value, multiple)


def _check_picture(picture: Image.Image, height: int, width: int, multiple: int) -> None:
    """The picture must cover the video, and the square that the image encoder sees."""
    if min(picture.size) < multiple:
        raise InputError(
            f'image is {picture.width}x{picture.height} px: expected at least '
            f'{multiple}x{multiple}.'
        )
    check_cover(picture.size, width, height)
    check_cover(picture.size, width, width)


def _check_parts(image_encoder: Any, feature_extractor: Any) -> None:
    if (image_encoder is None) != (feature_extractor is None):
        absent = 'image_encoder' if image_encoder is None else 'feature_extractor'
        raise ConfigError(
            f'model.{absent} is missing: I2VGenXL takes image_encoder and feature_extractor '
            'together, or neither.'
        )


def _check_training(condition_dropout: Any, noise_offset: Any, clip_fps: Any) -> None:
    try:
        check_range('condition_dropout', condition_dropout, 0, 1)
        check_range('noise_offset', noise_offset, 0, 1)
        check_whole('clip_fps', clip_fps, 1)
    except InputError as error:
        raise ConfigError(f'model.{error}') from error


def _check_denoiser(unet: Any) -> None:
    """Only a denoiser that is told of the picture can animate it."""
    taken = {str(unet.get_submodule(name).takes) for name in unet.embedding_names}
    expected = {'fps', 'image_latents', 'image_embeddings'}
    if taken != expected:
        raise ConfigError(
            f'model.unet takes the conditions {sorted(taken)}: an I2VGenXL needs '
            f'{sorted(expected)}, as in an I2VGenXLUNet.'
        )


def _check_width(image_encoder: Any, unet: Any) -> None:
    width = image_encoder.config.projection_dim
    if width != unet.cross_attention_dim:
        raise ConfigError(
            f'model.image_encoder gives {width} values: the denoiser takes '
            f'{unet.cross_attention_dim}.'
        )
