"""The arguments of a call, checked and spread over the videos to make.

Every video is a call of the editor by itself, with a seed of its own and all arguments stated, so
that its recipe says exactly how it was made, whatever was made beside it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmvideo.errors import ConfigError, InputError, nearest

# Other names for arguments.
ALIASES = {
    'num_frames': 'video_length',
    'steps': 'num_inference_steps',
}
# Keys of a config's ``infer`` that are not the editor's.
OUTPUT_KEYS = ('fps', 'out', 'formats')
# Arguments that a caller passes on its own behalf and that no recipe can hold.
_LIVE = (
    *('callback', 'on_step', 'generator', 'latents', 'output_type'),
    *('prompt_embeds', 'negative_prompt_embeds'),
)
_SPREAD = ('prompt', 'negative_prompt', 'image')


@dataclass(frozen=True)
class Job:
    """One video to make.

    Attributes:
        arguments: of the editor's ``infer``, complete, with one prompt and one seed.
        suffix: what tells its file from those of the other jobs; empty when there is one job.
    """

    arguments: dict[str, Any]
    suffix: str


def infer_parameters(editor: type) -> dict[str, Any]:
    """Names and defaults of what ``editor.infer`` takes from a user.

    Raises:
        ConfigError: the model cannot make videos.
    """
    infer = getattr(editor, 'infer', None)
    if infer is None:
        raise ConfigError(
            f'model.type={editor.__name__!r} can be trained but makes no videos: it has no infer().'
        )
    parameters = list(inspect.signature(infer).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.name not in _LIVE}


def merge_arguments(
    editor: type, defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The editor's own defaults, then a config's, then a caller's.

    A caller's ``video`` without an ``image`` also takes the place of a config's image.

    Raises:
        InputError: an argument that the editor does not take, naming the nearest it does.
    """
    parameters = infer_parameters(editor)
    empty = inspect.Parameter.empty
    merged = {name: None if value is empty else value for name, value in parameters.items()}
    for values in (defaults, given):
        for key, value in values.items():
            name = key if key in parameters else ALIASES.get(key, key)
            if key in OUTPUT_KEYS and values is defaults:
                continue
            if name not in parameters:
                raise InputError(_unknown(editor, key, value, parameters))
            merged[name] = value
    if given.get('video') is not None and 'image' in merged and 'image' not in given:
        merged['image'] = None  # a caller's clip has its own picture, not the config's
    return merged


def _unknown(editor: type, key: str, value: Any, parameters: Mapping[str, Any]) -> str:
    reason = getattr(editor, 'not_taken', {}).get(key)
    if reason is not None:
        return f'{key}={value!r}: {editor.__name__} {reason}.'
    listed = ', '.join(parameters)
    return f'{editor.__name__} takes no {key!r}.{nearest(key, parameters)} It takes: {listed}.'


def make_jobs(arguments: Mapping[str, Any]) -> list[Job]:
    """One job for each prompt or image, and seed.

    Prompts, negative prompts and images go together one by one, a single one with all; so do
    amounts of motion that are not one table. With several condition frames, an image of a video is
    a list of as many. A list of
    seeds makes every one of these with each seed. ``num_videos_per_prompt`` counts on from a
    single seed. Without a seed one is drawn and recorded.

    Raises:
        InputError: lists whose lengths do not go together.
    """
    rows = _rows(arguments)
    seeds = _seeds(arguments.get('seed'), arguments.get('num_videos_per_prompt', 1))
    jobs = []
    for index, row in enumerate(rows):
        for seed in seeds:
            complete = {**arguments, **row, 'seed': seed}
            if 'num_videos_per_prompt' in complete:
                complete['num_videos_per_prompt'] = 1
            number = f'-{index}' if len(rows) > 1 else ''
            jobs.append(Job(complete, f'{number}-s{seed}' if len(seeds) > 1 else number))
    return jobs


def _rows(arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    from mmvideo.editors.motion import clip_images, motion_entries

    columns = {
        name: list(value) if isinstance(value, list | tuple) else [value]
        for name, value in arguments.items()
        if name in _SPREAD
    }
    if 'motion_scale' in arguments:
        columns['motion_scale'] = motion_entries(arguments['motion_scale'])
    frames = arguments.get('condition_frame')
    if isinstance(frames, list | tuple) and arguments.get('image') is not None:
        columns['image'] = clip_images(arguments['image'], len(frames))
    for name, values in columns.items():
        if not values:
            raise InputError(f'{name} is an empty list; expected at least one.')
    count = max((len(values) for values in columns.values()), default=1)
    for name, values in columns.items():
        if len(values) not in (1, count):
            raise InputError(
                f'{len(values)} values of {name}, {count} of another: give one or all.'
            )
    return [{n: v[i % len(v)] for n, v in columns.items()} for i in range(count)]


def _seeds(seed: int | Sequence[int] | None, videos: int) -> list[int]:
    from mmvideo.editors.request import check_seeds, draw_seed

    if not isinstance(videos, int) or isinstance(videos, bool) or videos < 1:
        raise InputError(f'num_videos_per_prompt={videos!r}: expected an integer >= 1.')
    seeds = list(seed) if isinstance(seed, list | tuple) else [seed]
    if not seeds:
        raise InputError('seed is an empty list; expected at least one.')
    if len(seeds) > 1 and videos > 1:
        raise InputError(
            f'{len(seeds)} seeds and num_videos_per_prompt={videos}: give one of them.'
        )
    drawn: list[Any] = [draw_seed() if s is None else s for s in seeds]
    check_seeds(drawn)
    check_seeds(drawn[0], videos)
    if len(set(drawn)) < len(drawn):
        raise InputError(f'seeds {drawn}: one appears twice.')
    return drawn if len(drawn) > 1 else [drawn[0] + i for i in range(videos)]
