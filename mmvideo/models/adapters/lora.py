"""LoRA and MotionLoRA: low-rank changes of a denoiser and its text encoder, from public files.

Sources: Hu et al. 2021; Guo et al. 2023, section 4.3 (MotionLoRA); kohya-ss/sd-scripts (alpha).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from mmvideo.errors import ConfigError, WeightsError, nearest
from mmvideo.models.adapters.base import Adapter, is_timeline
from mmvideo.models.adapters.lora_files import read_pairs
from mmvideo.models.adapters.low_rank import Pair, check_fits, put, rescale, take
from mmvideo.registry import MODELS

# A number or a timeline, or one of these for each part.
Scale = float | Mapping[Any, Any]

_SHOWN = 5
_TEXT = 'text_encoder'
# Beginnings of layers of the denoiser that see frames; others are told of time or of conditions.
_FRAMED = ('conv_in', 'transformer_in', 'down_blocks', 'mid_block', 'up_blocks', 'conv_out')
# Of these, the layers that see no single frame, in Stable Video Diffusion too.
_UNFRAMED = re.compile(r'\.time_emb_proj$|\.temporal_transformer_blocks\.\d+\.attn2\.')
_CLIPS = re.compile(r'\.temporal_transformer_blocks\.\d+\.ff\.')  # [N, T*P, C]


@MODELS.register_module()
class LoRA(Adapter):
    """Low-rank changes of linear and convolutional layers, beside the weights.

    Args:
        from_pretrained: file of kohya (LoRA, LoCon), diffusers, PEFT or AnimateDiff's domain
            adapter; or a folder or hub id with ``pytorch_lora_weights``.
        scale: 1 is as trained, 0 is off. A dict gives one to each part of the model by the
            beginning of its layers' names, such as ``{'text_encoder': 0.5,
            'unet.up_blocks.1': 0.2}``: the longest that fits counts, 1 where none does. In place of
            any number there may be a timeline, ``{0: 1.0, 8: 0.0}`` over frames or ``{'steps':
            {0.0: 1.0, 0.5: 0.0}}``, see ``mmvideo.editors.timeline``. It works in ``infer`` alone,
            is not for the text encoder, which sees neither frames nor steps, and layers that see no
            single frame, such as those of the time embedding, have its mean over the clip.
        name: what the editor's methods call it; None takes the source's own name.
        subfolder: folder inside the source.
        weight_name: file inside the source, where it has several.
        revision: branch, tag or commit on the hub.
    """

    filenames: ClassVar = (
        'pytorch_lora_weights.safetensors',
        'pytorch_lora_weights.bin',
        'diffusion_pytorch_model.safetensors',
        'adapter_model.safetensors',
    )

    def __init__(
        self,
        from_pretrained: str | Path,
        scale: Scale = 1.0,
        name: str | None = None,
        subfolder: str | None = None,
        weight_name: str | None = None,
        revision: str | None = None,
    ) -> None:
        super().__init__(from_pretrained, name, subfolder, weight_name, revision)
        check_scale(scale)
        self.pairs = read_pairs(self.path)
        self._layers: dict[str, nn.Module] = {}
        self.set_scale(scale)

    @classmethod
    def check(cls, config: Mapping[str, Any]) -> None:
        """See ``Adapter.check``: the scale."""
        check_scale(config.get('scale', 1.0))

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.name!r}, scale={self.scale!r})'

    def attach(self, editor: Any) -> None:
        """Add the changes to the layers of ``editor.unet`` and ``editor.text_encoder``.

        Raises:
            WeightsError: a layer that the model lacks, or of another shape.
        """
        layers = match_layers(self.pairs, editor, self.source)
        for key, pair in self.pairs.items():
            put(layers[key], self.name, pair, _resting(scale_at(self.scale, key)))
        self._layers = layers

    def detach(self, editor: Any) -> None:
        """Take the changes off; the layers are as they were."""
        for layer in self._layers.values():
            take(layer, self.name)
        self._layers = {}

    def set_scale(self, scale: Scale) -> None:
        """Set a scale for all layers, or one for each part, see the class.

        Raises:
            ConfigError: no number, a part that this LoRA does not change, or a timeline for the
                text encoder.
        """
        check_scale(scale)
        if isinstance(scale, Mapping):
            if not is_timeline(scale):
                _check_beginnings(scale, self.pairs, self.name)
            _check_text(scale, self.pairs, self.name)
            scale = dict(scale)
        self.scale = scale
        for key, layer in self._layers.items():
            rescale(layer, self.name, _resting(scale_at(scale, key)))

    def changing(self) -> dict[str, Mapping[Any, Any]]:
        """The timelines of layers that have one, by the layer's name; equal ones are one object."""
        scales = {key: scale_at(self.scale, key) for key in self._layers}
        return {key: scale for key, scale in scales.items() if isinstance(scale, Mapping)}

    def tell(self, layers: Iterable[str], scale: float | Tensor) -> None:
        """Give layers a scale for the calls that follow, until ``rest``.

        Args:
            layers: their names; with a tensor those of which ``sees_frames`` is true.
            scale: a number, or one for each frame that the denoiser is given, [T] on its device.
        """
        for key in layers:
            own = scale
            if isinstance(scale, Tensor) and _holds_clips(key):
                own = scale[:, None]
            rescale(self._layers[key], self.name, own)

    def rest(self) -> None:
        """End what ``tell`` began: where a scale is a timeline, the LoRA is off."""
        self.tell(self.changing(), 0.0)


@MODELS.register_module()
class MotionLoRA(LoRA):
    """A LoRA of motion modules, such as AnimateDiff's camera movements. Arguments: see ``LoRA``."""

    def __init__(
        self,
        from_pretrained: str | Path,
        scale: Scale = 1.0,
        name: str | None = None,
        subfolder: str | None = None,
        weight_name: str | None = None,
        revision: str | None = None,
    ) -> None:
        super().__init__(from_pretrained, scale, name, subfolder, weight_name, revision)
        other = [key for key in self.pairs if '.motion_modules.' not in key]
        if other:
            raise WeightsError(
                f"{self.source} is no MotionLoRA, it changes {other[0]}: use type='LoRA'"
            )


def match_layers(pairs: Mapping[str, Pair], editor: Any, source: str) -> dict[str, nn.Module]:
    """The layer of the editor that each pair changes.

    Raises:
        WeightsError: naming the first layers that are not there or do not fit.
    """
    parts = {name: dict(part.named_modules()) for name, part in lora_parts(editor).items()}
    found, absent = {}, []
    for key in pairs:
        part, _, path = key.partition('.')
        layer = _find(parts.get(part, {}), path)
        if layer is None:
            absent.append(key)
        else:
            found[key] = layer
    _check_base(pairs, editor, source)
    if absent:
        raise WeightsError(_absent(absent, pairs, editor, source))
    for key, pair in pairs.items():
        # A LoRA of an image model knows nothing of the condition that PIA joins to the latents.
        check_fits(pair, found[key], f'{source} does not fit: {key}', key == 'unet.conv_in')
    return found


def lora_parts(editor: Any) -> dict[str, nn.Module]:
    """The networks of an editor whose layers a LoRA may change."""
    parts = {name: getattr(editor, name, None) for name in ('unet', 'text_encoder')}
    return {name: part for name, part in parts.items() if part is not None}


def check_scale(scale: Any) -> None:
    """Raise ConfigError unless ``scale`` is a finite number, or a dict of them by part.

    Timelines pass, see ``is_timeline``.
    """
    by_part = isinstance(scale, Mapping) and not is_timeline(scale)
    for value in scale.values() if by_part else [scale]:
        if is_timeline(value):
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise ConfigError(f'scale={value!r}: expected a finite number')


def scale_at(scale: Scale, layer: str) -> Any:
    """The scale of one layer, such as ``unet.conv_in``: a float, or a timeline."""
    if isinstance(scale, Mapping) and not is_timeline(scale):
        fitting = [begin for begin in scale if _begins(layer, begin)]
        scale = scale[max(fitting, key=len)] if fitting else 1.0
    return scale if isinstance(scale, Mapping) else float(scale)


def sees_frames(layer: str) -> bool:
    """Whether what a layer sees differs from frame to frame, by a name such as ``unet.conv_in``."""
    part, _, path = layer.partition('.')
    framed = part == 'unet' and path.split('.')[0] in _FRAMED
    return framed and not _UNFRAMED.search(layer)


def _holds_clips(layer: str) -> bool:
    """Whether the layer sees the frames of a clip in one row."""
    return _CLIPS.search(layer) is not None


def _resting(scale: Any) -> float:
    """The scale of a layer while no editor runs a call."""
    return 0.0 if is_timeline(scale) else scale


def _begins(layer: str, beginning: str) -> bool:
    return layer == beginning or layer.startswith(f'{beginning}.')


def _check_text(scale: Scale, layers: Iterable[str], name: str) -> None:
    texts = [layer for layer in layers if layer.startswith(f'{_TEXT}.')]
    if any(is_timeline(scale_at(scale, layer)) for layer in texts):
        raise ConfigError(
            f'scale: {name} changes the text encoder, which sees neither frames nor steps; give it '
            f"a number of its own: scale={{'unet': {{0: 1.0, 8: 0.0}}, {_TEXT!r}: 1.0}}"
        )


def _check_beginnings(scale: Mapping[str, float], layers: Iterable[str], name: str) -> None:
    layers = list(layers)
    for beginning in scale:
        if not any(_begins(layer, str(beginning)) for layer in layers):
            pieces = [layer.split('.') for layer in layers]
            valid = {'.'.join(p[:n]) for p in pieces for n in range(1, len(p) + 1)}
            raise ConfigError(
                f'scale: {name} changes nothing in {beginning!r}.{nearest(beginning, valid)}'
            )


def _find(modules: Mapping[str, nn.Module], path: str) -> nn.Module | None:
    """By name; transformers dropped the level ``text_model`` of a text encoder in version 5."""
    if path in modules:
        return modules[path]
    return modules.get(path.removeprefix('text_model.'))


_BASES = {768: 'Stable Diffusion 1.x', 1024: 'Stable Diffusion 2.x', 2048: 'SDXL'}


def _check_base(pairs: Mapping[str, Pair], editor: Any, source: str) -> None:
    """The width of the prompts tells image models apart."""
    asked = [
        pair.down.shape[1]
        for key, pair in pairs.items()
        if key.startswith('unet.') and key.endswith(('attn2.to_k', 'attn2.to_v'))
        if '.motion_modules.' not in key
    ]
    here = editor.unet.cross_attention_dim
    if asked and asked[0] != here:
        raise WeightsError(
            f'{source} is a LoRA for {_base(asked[0])}, the model here is {_here(editor)}'
        )


def _here(editor: Any) -> str:
    width = editor.unet.cross_attention_dim
    if _sees_text(editor):
        return _base(width)
    return f'one without text, whose context has the width {width}'


def _sees_text(editor: Any) -> bool:
    return 'text_encoder' in lora_parts(editor)


def _base(width: int) -> str:
    known = _BASES.get(width)
    return f'{known} (prompts of width {width})' if known else f'a model of prompt width {width}'


def _absent(absent: list[str], pairs: Mapping[str, Pair], editor: Any, source: str) -> str:
    shown = ', '.join(absent[:_SHOWN])
    more = f', and {len(absent) - _SHOWN} more' if len(absent) > _SHOWN else ''
    hint = ''
    if any('text_encoder_2' in key for key in absent):
        hint = f' It is a LoRA for SDXL, the model here is {_here(editor)}.'
    elif not _sees_text(editor) and all(key.startswith('text_encoder.') for key in absent):
        hint = ' The model here has no text encoder.'
    elif all('.motion_modules.' in key for key in absent):
        motion = any('.motion_modules.' in name for name, _ in editor.unet.named_modules())
        hint = (
            ' The motion modules here are of another version.'
            if motion
            else ' The model here has no motion modules.'
        )
    return (
        f'{source}: {len(absent)} of its {len(pairs)} layers are not in this model: {shown}{more}.'
        f'{hint}'
    )
