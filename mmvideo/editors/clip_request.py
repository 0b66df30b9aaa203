"""The arguments of an image-to-video call without text, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mmvideo.editors.checks import check_range, check_whole
from mmvideo.editors.course import check_course, step_count
from mmvideo.editors.facts import Facts
from mmvideo.editors.options import COMMON, read_options
from mmvideo.editors.request import Request, check_settings
from mmvideo.errors import InputError
from mmvideo.models.conditioning.clip_picture import clip_size
from mmvideo.models.conditioning.image import open_rgb, prepare_condition_image

NUM_FRAMES = 25  # of a clip where neither a call nor the model says it
MOST_BUCKETS = 255
MOST_NOISE = 10.0
# Arguments of ``infer`` that a request holds as they are.
_KEPT = (
    *('fps', 'motion_bucket_id', 'noise_aug_strength'),
    *('num_videos_per_prompt', 'draws', 'timesteps', 'sigmas', 'on_step'),
)


@dataclass
class ClipRequest(Request):
    """What a clip is told besides its picture.

    Attributes:
        fps: frames a second.
        motion_bucket_id: amount of motion, 127 in the middle.
        noise_aug_strength: of the noise on the picture.
        num_videos_per_prompt: samples of each picture.
    """

    fps: float = 7
    motion_bucket_id: float = 127
    noise_aug_strength: float = 0.02
    num_videos_per_prompt: int = 1

    @property
    def time_ids(self) -> tuple[float, float, float]:
        """The numbers as the denoiser takes them; it was trained with one frame a second less."""
        return (self.fps - 1, self.motion_bucket_id, self.noise_aug_strength)


def read_call(values: Mapping[str, Any], facts: Facts) -> tuple[ClipRequest, list[Tensor]]:
    """The arguments of ``infer``, checked, as a request without samples, and its pictures.

    Returns:
        The request, and each picture [3, height, width] in [-1, 1].

    Raises:
        InputError: naming the argument, its value and what was expected.
    """
    if values.get('image') is None:
        raise InputError('image is missing: Stable Video Diffusion animates a picture.')
    frames = values.get('video_length')
    frames = facts.num_frames or NUM_FRAMES if frames is None else frames
    sigmas, timesteps = values.get('sigmas'), values.get('timesteps')
    check_course(timesteps, sigmas, values.get('on_step'), values['draws'])
    settings = dict(
        num_frames=frames,
        num_inference_steps=step_count(values['num_inference_steps'], timesteps, sigmas),
        decode_chunk_size=values['decode_chunk_size'],
        output_type=values['output_type'],
    )
    given_size = values.get('height'), values.get('width')
    edges = [facts.vae_scale if edge is None else edge for edge in given_size]
    check_settings(**settings, height=edges[0], width=edges[1], multiple=facts.vae_scale)
    check_whole('num_videos_per_prompt', values['num_videos_per_prompt'], 1)
    check_range('fps', values['fps'], 1, 1000)
    check_range('motion_bucket_id', values['motion_bucket_id'], 0, MOST_BUCKETS)
    check_range('noise_aug_strength', values['noise_aug_strength'], 0, MOST_NOISE)
    guidance = _guidance(values, frames)
    chosen = {name: values.get(name) for name in ('windows', *COMMON)}
    chosen['guidance_scale'] = guidance
    options = read_options(chosen, frames, facts.max_frames, facts.levels, facts.deepest)
    options.check_steps(settings['num_inference_steps'])
    pictures = _pictures(as_list(values['image']), given_size, facts)
    height, width = pictures[0].shape[-2:]
    kept = {key: values[key] for key in _KEPT}
    request = ClipRequest(
        samples=[],
        height=height,
        width=width,
        options=options,
        **settings,
        **kept,
    )
    return request, pictures


def _guidance(values: Mapping[str, Any], frames: int) -> Any:
    """Guidance over the frames as a timeline takes it."""
    if values.get('guidance_scale') is not None:
        return values['guidance_scale']
    first, last = values['min_guidance_scale'], values['max_guidance_scale']
    check_range('min_guidance_scale', first, 0, 100)
    check_range('max_guidance_scale', last, 0, 100)
    return {0: first, frames - 1: last} if frames > 1 else first


def _pictures(
    images: Sequence[Any], size: tuple[int | None, int | None], facts: Facts
) -> list[Tensor]:
    if not images:
        raise InputError('image is an empty list: expected a picture.')
    prepared = []
    for image in images:
        picture = open_rgb(image, str(image) if isinstance(image, (str, Path)) else 'image')
        height, width = size_of(picture, *size, facts)
        prepared.append(prepare_condition_image(picture, height, width, facts.vae_scale))
    sizes = {f'{picture.shape[2]}x{picture.shape[1]}' for picture in prepared}
    if len(sizes) > 1:
        raise InputError(
            f'images make clips of several sizes ({", ".join(sorted(sizes))}): give height and '
            'width.'
        )
    return prepared


def size_of(picture: Any, height: int | None, width: int | None, facts: Facts) -> tuple[int, int]:
    """Height and width of the clip of an opened picture, see ``clip_size``."""
    coarsest = facts.vae_scale * 2 ** (facts.levels - 1)
    area = facts.default_size**2
    return clip_size((picture.height, picture.width), height, width, area, coarsest)


def as_list(value: Any) -> list[Any]:
    """A single picture as a list."""
    return list(value) if isinstance(value, (list, tuple)) else [value]
