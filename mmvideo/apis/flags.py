"""What flags of a command line stand for: arguments of ``infer``, adapters, settings of a model.

A flag about one setting of an argument, such as the length of its windows, leaves the others as
the config has them. Whether a value can be is for the editor to say, in the words that it has for
configs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from typing import Any

from mmvideo.errors import InputError

# What the value stands for where a config gives one in place of settings.
_SHORT = {'windows': 'length', 'deep_cache': 'interval', 'inversion': 'type'}
# Settings of arguments, by the flag's name in the namespace.
_SETTINGS = {
    'windows': {
        'windows': 'length',
        'window_schedule': 'schedule',
        'window_overlap': 'overlap',
        'window_stride': 'stride',
        'window_fusion': 'fusion',
        'window_noise': 'noise',
    },
    'free_init': {'free_init': 'method'},
    'free_noise': {'free_noise': 'noise_type'},
    'deep_cache': {'deep_cache': 'interval'},
    'inversion': {
        'inversion': 'type',
        'inversion_steps': 'num_inference_steps',
        'inversion_prompt': 'prompt',
    },
}
# Arguments that a flag says as they are, by the flag's name.
_PLAIN = {
    'prompt': 'prompt',
    'negative_prompt': 'negative_prompt',
    'image': 'image',
    'control_video': 'control_videos',
    'annotator': 'control_annotator',
    'control_scale': 'control_scale',
    'control_start': 'control_start',
    'control_end': 'control_end',
    'guess_mode': 'guess_mode',
    'seed': 'seed',
    'num_frames': 'video_length',
    'steps': 'num_inference_steps',
    'eta': 'eta',
    'guidance_scale': 'guidance_scale',
    'guidance_interval': 'guidance_interval',
    'motion_scale': 'motion_scale',
    'condition_frame': 'condition_frame',
    'condition_rule': 'condition_rule',
    'strength': 'strength',
    'motion_bucket_id': 'motion_bucket_id',
    'noise_aug_strength': 'noise_aug_strength',
    'min_guidance_scale': 'min_guidance_scale',
    'max_guidance_scale': 'max_guidance_scale',
    'target_fps': 'target_fps',
    'clip_skip': 'clip_skip',
    'ip_adapter_image': 'ip_adapter_image',
    'decode_chunk': 'decode_chunk_size',
    'height': 'height',
    'width': 'width',
}
# Flags with several values, of which one stands for itself.
_ONE_OR_MORE = (
    *('motion_scale', 'condition_frame', 'annotator'),
    *('control_scale', 'control_start', 'control_end'),
)


def seed(text: str) -> int:
    """A seed of the command line."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**64:
        raise argparse.ArgumentTypeError(f'{text!r}: expected an integer from 0 to 2^64 - 1')
    return value


def motion_scale(text: str) -> int | float | str:
    """A table's number or name, or one affinity of a list."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def adapter(kind: str) -> Callable[[str], dict[str, Any]]:
    """A reader of ``FILE`` or ``FILE:SCALE``."""

    def read(text: str) -> dict[str, Any]:
        source, colon, scale = text.rpartition(':')
        try:
            value = float(scale) if colon and source else None
        except ValueError:
            value = None
        if value is None:
            return dict(type=kind, from_pretrained=text)
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f'{text!r}: expected a finite scale after the colon')
        return dict(type=kind, from_pretrained=source, scale=value)

    return read


def word(text: str) -> dict[str, Any]:
    """A textual inversion: ``FILE``, or ``FILE:TOKEN`` with the word that prompts have for it."""
    source, _, token = text.rpartition(':')
    if not source or '/' in token or '\\' in token:  # the colon is part of the file's name
        return dict(type='TextualInversion', from_pretrained=text)
    return dict(type='TextualInversion', from_pretrained=source, token=token)


def annotator(text: str) -> str | dict[str, Any] | None:
    """``NAME``, ``canny:LOW,HIGH``, ``NAME:WEIGHTS``, or ``none`` for pictures as they are."""
    name, colon, rest = text.partition(':')
    if not colon:
        return None if text == 'none' else text
    if name != 'canny':
        return dict(type=name, from_pretrained=rest)
    try:
        low, high = (int(part) for part in rest.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r}: expected canny:LOW,HIGH') from None
    return dict(type=name, low=low, high=high)


def given_arguments(args: argparse.Namespace, before: Mapping[str, Any]) -> dict[str, Any]:
    """What the command line says about the editor's arguments; what is None is not said.

    Args:
        args: the command line; flags that a tool does not have are not said.
        before: arguments of the config or recipe.

    Raises:
        InputError: flags that do not go together.
    """
    said = {flag: value for flag, value in vars(args).items() if value is not None}
    values: dict[str, Any] = {
        name: _one(flag, said[flag]) for flag, name in _PLAIN.items() if flag in said
    }
    for name, flags in _SETTINGS.items():
        settings = {key: said[flag] for flag, key in flags.items() if flag in said}
        if settings:
            values[name] = joined(name, before.get(name), settings)
    values |= _clip(said) | _control_frames(said) | _free_u(said, before)
    return values


def joined(name: str, before: Any, settings: Mapping[str, Any]) -> dict[str, Any] | bool:
    """An argument with some settings changed; a setting that is True is switched on as it is.

    Args:
        name: of the argument.
        before: its value in the config: settings, what is short for them, True, False or None.
        settings: those that change.
    """
    kept: dict[str, Any] = {}
    if isinstance(before, Mapping):
        kept = dict(before)
    elif name in _SHORT and before is not None and not isinstance(before, bool):
        kept = {_SHORT[name]: before}
    return {**kept, **{k: v for k, v in settings.items() if v is not True}} or True


def memory_options(args: argparse.Namespace) -> dict[str, Any]:
    """Settings of the model that the command line's flags about memory stand for."""
    options: dict[str, Any] = {}
    if args.offload:
        options['model.offload'] = args.offload
    if args.vae_tiling:
        whole = args.vae_tiling is True
        options['model.vae_tiling'] = True if whole else dict(tile=args.vae_tiling)
    if args.vae_slicing:
        options['model.vae_slicing'] = True
    return options


def _one(flag: str, value: Any) -> Any:
    return value[0] if flag in _ONE_OR_MORE and len(value) == 1 else value


def _clip(said: Mapping[str, Any]) -> dict[str, Any]:
    """The clip to start from, or the part of it that the command line asks for."""
    cut = {key: said[f'video_{key}'] for key in ('start', 'stride') if f'video_{key}' in said}
    if cut and 'video' not in said:
        raise InputError('--video-start and --video-stride are about a clip: give it with --video')
    if 'video' not in said:
        return {}
    return {'video': dict(clip=said['video'], **cut) if cut else said['video']}


def _control_frames(said: Mapping[str, Any]) -> dict[str, Any]:
    """The frames are those of the last control."""
    if 'control_frames' not in said:
        return {}
    controls = max(1, len(said.get('control_video', ())))
    return {'control_frames': [*[None] * (controls - 1), said['control_frames']]}


def _free_u(said: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Four factors, or none for those of the config, else the published ones."""
    if 'free_u' not in said:
        return {}
    names, factors = ('s1', 's2', 'b1', 'b2'), said['free_u']
    if len(factors) not in (0, 4):
        raise InputError(
            f'--free-u {" ".join(f"{factor:g}" for factor in factors)}: expected S1 S2 B1 B2, or '
            'nothing for the published factors.'
        )
    changed = dict(zip(names, factors, strict=False))
    return {'free_u': joined('free_u', before.get('free_u'), changed)}
