"""Controls of an editor: pictures or clips that say where things are (ControlNet, SparseCtrl).

N samples, T frames, t frames of a window, K pictures of a control, C channels, H W latent size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmvideo.editors.adapters import check_adapters
from mmvideo.editors.checks import check_range
from mmvideo.editors.denoising import Denoising, Span
from mmvideo.editors.options import Options
from mmvideo.editors.request import Request, Sample
from mmvideo.editors.timeline import Timeline, number_timeline
from mmvideo.errors import ConfigError, InputError
from mmvideo.models.adapters.base import adapter_name
from mmvideo.models.adapters.control_encoder import Residuals
from mmvideo.models.adapters.controlnet import MOST_SCALE, ControlNet
from mmvideo.models.conditioning.annotators import Annotator, read_annotator
from mmvideo.models.conditioning.clip import prepare_clip
from mmvideo.models.unet.context import FrameWindows
from mmvideo.registry import MODELS

ARGUMENTS = (
    'control_videos',
    'control_frames',
    'control_scale',
    'control_start',
    'control_end',
    'control_annotator',
    'guess_mode',
)
_KINDS = ('ControlNet', 'SparseCtrl')
_FEATURES = 16  # frames whose features are computed at once, for a clip that has windows


@dataclass(frozen=True)
class Setting:
    """What a control's config says, for a call that does not say it."""

    name: str
    sparse: bool
    scale: Any = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class ControlInput:
    """What one control is told in a call.

    Attributes:
        index: of the control.
        pictures: [K, 3, H, W] in [-1, 1], pixels.
        frames: which frames they are.
        scale: over the frames, or over the steps.
        start: share of the steps after which it begins.
        end: share of the steps after which it stops.
        guess: see ``AnimateDiff.infer``.
        annotator: makes what it sees of the pictures, where these are footage.
    """

    index: int
    pictures: Tensor
    frames: tuple[int, ...]
    scale: Timeline
    start: float
    end: float
    guess: bool
    annotator: Annotator | None = None

    def annotated(self) -> ControlInput:
        """With what the annotator makes of the pictures."""
        if self.annotator is None:
            return self
        return replace(self, pictures=self.annotator(self.pictures), annotator=None)

    def works(self, span: Span) -> bool:
        """Whether it works in a step from one share of the sampling to another."""
        inside = self.start <= span[0] and span[1] <= self.end
        return inside and any(self.scale.at_step(span[0]).values)


def check_controls(configs: Any) -> None:
    """Refuse controls that cannot work, without reading a weight file.

    Raises:
        ConfigError, WeightsError: see ``check_adapters``.
    """
    if isinstance(configs, (str, Mapping)) or not isinstance(configs, Sequence):
        raise ConfigError(
            f"model.controls={configs!r:.80}: expected a list of dict(type='ControlNet', ...)"
        )
    for config in configs:
        kind = config.get('type') if isinstance(config, Mapping) else None
        if kind not in _KINDS:
            raise ConfigError(f'model.controls: type {kind!r}, expected one of {_KINDS}')
    check_adapters(configs)
    for setting in settings_of(configs):
        try:
            number_timeline(setting.scale, f'{setting.name}: scale', None, 0, MOST_SCALE)
        except InputError as fault:
            raise ConfigError(str(fault)) from None


def settings_of(configs: Sequence[Mapping[str, Any]]) -> list[Setting]:
    """``model.controls`` as settings."""
    keys = ('scale', 'start', 'end')
    return [
        Setting(
            adapter_name(c['from_pretrained'], c.get('name'), c.get('weight_name')),
            MODELS.get(c['type']).sparse,
            **{key: c[key] for key in keys if key in c},
        )
        for c in configs
    ]


def read_controls(
    values: Mapping[str, Any],
    settings: Sequence[Setting],
    num_frames: int,
    size: tuple[int | None, int | None],
    multiple: int,
) -> list[ControlInput]:
    """The arguments of ``infer`` that are about controls, one input for each that works.

    Args:
        values: the arguments.
        settings: of each control that the model has.
        num_frames: T.
        size: height and width of the clip in pixels; None where a picture says them.
        multiple: pixels of one latent.

    Raises:
        InputError: naming the argument and what is wrong with it.
    """
    count = len(settings)
    videos = values.get('control_videos')
    guess = False if values.get('guess_mode') is None else values['guess_mode']
    if not isinstance(guess, bool):
        raise InputError(f'guess_mode={guess!r}: expected True or False.')
    if not count:
        for name in ARGUMENTS:
            if values.get(name) is not None and values[name] is not False:
                raise InputError(
                    f'{name}: this model has no controls; give some in the config, such as '
                    "model.controls=[dict(type='ControlNet', from_pretrained='...')]."
                )
        return []
    if videos is None:
        raise InputError(
            f'control_videos is missing: this model has {count} controls '
            f'({", ".join(s.name for s in settings)}); give a clip for each, or None.'
        )
    clips = _each(videos, count, 'control_videos')
    frames = _each_frames(values.get('control_frames'), count)
    spread = {
        name: _each(values.get(f'control_{name}'), count, f'control_{name}')
        for name in ('scale', 'start', 'end')
    }
    annotators = _each(values.get('control_annotator'), count, 'control_annotator')
    inputs = []
    for index, setting in enumerate(settings):
        if clips[index] is None:
            continue
        said = {name: entries[index] for name, entries in spread.items()}
        chosen = {k: getattr(setting, k) if v is None else v for k, v in said.items()}
        found = _read_one(index, setting, clips[index], frames[index], chosen, num_frames, size,
                          multiple, guess)  # fmt: skip
        inputs.append(replace(found, annotator=read_annotator(annotators[index])))
    return inputs


def _read_one(
    index: int,
    setting: Setting,
    clip: Any,
    frames: Any,
    chosen: Mapping[str, Any],
    num_frames: int,
    size: tuple[int | None, int | None],
    multiple: int,
    guess: bool,
) -> ControlInput:
    name = f'control_videos[{index}]'
    for key in ('start', 'end'):
        check_range(f'control_{key}', chosen[key], 0, 1)
    if chosen['start'] >= chosen['end']:
        raise InputError(
            f'control_start={chosen["start"]!r}, control_end={chosen["end"]!r}: expected a start '
            'before the end.'
        )
    scale = number_timeline(chosen['scale'], 'control_scale', num_frames, 0, MOST_SCALE)
    if not setting.sparse:
        if frames is not None:
            raise InputError(
                f'control_frames: {setting.name} is a ControlNet, which takes a picture for every '
                'frame; None stands for it.'
            )
        pictures = prepare_clip(clip, num_frames, *size, multiple, name)
        places = tuple(range(num_frames))
    else:
        known = None if frames is None else len(frames)
        pictures = prepare_clip(clip, known, *size, multiple, name, num_frames)
        places = _places(frames, len(pictures), num_frames, name)
    return ControlInput(index, pictures, places, scale, chosen['start'], chosen['end'], guess)


def _places(frames: Any, pictures: int, num_frames: int, name: str) -> tuple[int, ...]:
    """Which frames the pictures of a SparseCtrl are."""
    if frames is not None:
        for frame in frames:
            if type(frame) is not int or not 0 <= frame < num_frames:
                raise InputError(
                    f'control_frames={list(frames)}: a clip of {num_frames} frames has 0 to '
                    f'{num_frames - 1}.'
                )
        if len(set(frames)) < len(frames):
            raise InputError(f'control_frames={list(frames)}: a frame appears twice.')
        return tuple(frames)
    if pictures in (1, num_frames):
        return tuple(range(pictures))
    raise InputError(
        f'{name} has {pictures} pictures: say which frames they are, such as control_frames='
        f'{[round(i * (num_frames - 1) / (pictures - 1)) for i in range(pictures)]}.'
    )


def _each(value: Any, count: int, name: str) -> list[Any]:
    """One value for all controls, or a list with one for each."""
    if not isinstance(value, (list, tuple)):
        if name == 'control_videos' and count > 1:
            raise InputError(f'one of control_videos for {count} controls: give a list, one each.')
        return [value] * count
    if len(value) != count:
        raise InputError(
            f'{len(value)} of {name} for {count} controls: give a list with one for each; what '
            'has several parts itself is a list in it.'
        )
    return list(value)


def _each_frames(value: Any, count: int) -> list[Any]:
    """``control_frames``: of a single control also without a list around."""
    if count == 1 and isinstance(value, (list, tuple)) and all(type(v) is int for v in value):
        value = [value]
    frames = _each(value, count, 'control_frames')
    for entry in frames:
        if entry is not None and not (isinstance(entry, (list, tuple)) and entry):
            raise InputError(f'control_frames: {entry!r}, expected a list of frames or None.')
    return frames


class Controlled(Denoising):
    """The controls of an editor; ``_attach_controls`` belongs in its constructor."""

    controls: nn.ModuleList

    def _attach_controls(self, configs: Sequence[Mapping[str, Any] | ControlNet]) -> None:
        built, self._control_settings = [], []
        for config in configs:
            if isinstance(config, ControlNet):
                control = config
                setting = Setting(
                    config.name, config.sparse, config.scale, config.start, config.end
                )
            else:
                control, (setting,) = MODELS.build(dict(config)), settings_of([config])
            self._control_settings.append(setting)
            assert isinstance(control, ControlNet)
            control.check_fits(self.unet, self.vae_scale)
            built.append(control)
        self.controls = nn.ModuleList(built)

    def weight_files(self) -> list[Path]:
        """See ``LatentDiffusion.weight_files``; those of the controls too."""
        controls = [control for control in self.controls if isinstance(control, ControlNet)]
        own = [path for control in controls for path in control.paths]
        return list(dict.fromkeys([*super().weight_files(), *own]))  # type: ignore[misc]

    def _read_controls(
        self, num_frames: int, height: int, width: int, **values: Any
    ) -> list[ControlInput]:
        size = (height, width)
        inputs = read_controls(values, self._control_settings, num_frames, size, self.vae_scale)
        return [given.annotated() for given in inputs]

    def _prepare(self, group: list[Sample], request: Request) -> None:
        """Draw the latents of pictures for controls that see such, after all other draws."""
        super()._prepare(group, request)
        for item in group:
            item.extras['controls'] = {
                given.index: self.encode(given.pictures, item.generator, request.decode_chunk_size)
                for given in request.controls
                if self.controls[given.index].net.sees_latents
            }

    def _conductor(self, group: list[Sample], request: Request, guided: bool) -> Conductor | None:
        if not request.controls:
            return None
        features = []
        for given in request.controls:
            control = self.controls[given.index]
            pictures = given.pictures[None]
            if control.net.sees_latents:
                pictures = torch.stack([item.extras['controls'][given.index] for item in group])
            features.append(self._features(control, pictures, given.frames, request))
        nets = [self.controls[given.index].net for given in request.controls]
        return Conductor(request.controls, nets, features, request.options, guided)

    def _features(
        self, control: Any, pictures: Tensor, frames: tuple[int, ...], request: Request
    ) -> Tensor:
        """Of pictures [R, K, C, H, W]: [R, T, C, H, W], with windows in main memory."""
        total, place = request.num_frames, self._place(request)
        size = total if request.options.windows is None else _FEATURES
        parts = []
        for first in range(0, total, size):
            count = min(size, total - first)
            inside = [k for k, frame in enumerate(frames) if first <= frame < first + count]
            seen = pictures[:, inside].to(self.device, self.dtype)
            places = tuple(frames[k] - first for k in inside)
            parts.append(control.features(seen, places, count).to(place))
        return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class Conductor:
    """The controls of one sampling: what they add to the denoiser in each step.

    Attributes:
        inputs: of the controls that work.
        nets: their networks.
        features: of their pictures, [N or 1, T, C, H, W] each.
        options: of the call.
        guided: whether an unguided half comes first.
    """

    inputs: Sequence[ControlInput]
    nets: Sequence[Any]
    features: Sequence[Tensor]
    options: Options
    guided: bool

    def __call__(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        frames: Tensor | None,
        span: Span,
        windows: FrameWindows | None,
    ) -> dict[str, Any]:
        """Arguments of the denoiser.

        Args:
            latents: noisy [N, C, t, H, W], or both halves.
            timestep: of the step.
            text: [rows, L, D] or [rows * t, L, D].
            frames: [t] of the clip, None for all.
            span: shares of the sampling where the step begins and ends.
            windows: of the temporal attention.
        """
        total: Residuals | None = None
        for given, net, features in zip(self.inputs, self.nets, self.features, strict=True):
            if not given.works(span):
                continue
            seen = features if frames is None else features[:, frames.to(features.device)]
            seen = seen.to(latents.device)
            half = self.guided and (given.guess or net.pooled)
            sample, prompts = (x.chunk(2)[1] if half else x for x in (latents, text))
            if len(seen) not in (1, len(sample)):  # both halves see the same
                seen = seen.repeat(2, 1, 1, 1, 1)
            found = net(sample, timestep, prompts, seen, given.guess, windows)
            found = found.scaled(self._scale(given, frames, span))
            found = found.behind_zeros() if half else found
            total = found if total is None else total + found
        if total is None:
            return {}
        return {
            'down_block_additional_residuals': total.down,
            'mid_block_additional_residual': total.mid,
        }

    def _scale(self, given: ControlInput, frames: Tensor | None, span: Span) -> float | Tensor:
        scale = given.scale.at_step(span[0])
        if scale.constant:
            return float(scale.values[0])
        curve = scale.curve(self.options.num_frames)
        return curve if frames is None else curve[frames.cpu()]
