"""LoRA and MotionLoRA: low-rank changes of a denoiser and its text encoder, from public files.

Sources: Hu et al. 2021; Guo et al. 2023, section 4.3 (MotionLoRA); kohya-ss/sd-scripts (alpha).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from mmvideo.errors import ConfigError, WeightsError, nearest
from mmvideo.models.adapters.base import Adapter
from mmvideo.models.adapters.lora_files import read_pairs
from mmvideo.models.adapters.low_rank import Pair, check_fits, put, rescale, take
from mmvideo.registry import MODELS

Scale = float | Mapping[str, float]

_SHOWN = 5


@MODELS.register_module()
class LoRA(Adapter):
    """Low-rank changes of linear and convolutional layers, beside the weights.

    Args:
        from_pretrained: file of kohya (LoRA, LoCon), diffusers, PEFT or AnimateDiff's domain
            adapter; or a folder or hub id with ``pytorch_lora_weights``.
        scale: 1 is as trained, 0 is off. A dict gives one to each part of the model by the
            beginning of its layers' names, such as ``{'text_encoder': 0.5,
            'unet.up_blocks.1': 0.2}``: the longest that fits counts, 1 where none does.
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
            put(layers[key], self.name, pair, scale_at(self.scale, key))
        self._layers = layers

    def detach(self, editor: Any) -> None:
        """Take the changes off; the layers are as they were."""
        for layer in self._layers.values():
            take(layer, self.name)
        self._layers = {}

    def set_scale(self, scale: Scale) -> None:
        """Set a scale for all layers, or one for each part, see the class.

        Raises:
            ConfigError: no number, or a part that this LoRA does not change.
        """
        check_scale(scale)
        if isinstance(scale, Mapping):
            _check_beginnings(scale, self.pairs, self.name)
            scale = dict(scale)
        self.scale = scale
        for key, layer in self._layers.items():
            rescale(layer, self.name, scale_at(scale, key))


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
    """Raise ConfigError unless ``scale`` is a finite number, or a dict of them by part."""
    values = scale.values() if isinstance(scale, Mapping) else [scale]
    for value in values:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise ConfigError(f'scale={value!r}: expected a finite number')


def scale_at(scale: Scale, layer: str) -> float:
    """The scale of one layer, such as ``unet.conv_in``."""
    if not isinstance(scale, Mapping):
        return float(scale)
    fitting = [begin for begin in scale if _begins(layer, begin)]
    return float(scale[max(fitting, key=len)]) if fitting else 1.0


def _begins(layer: str, beginning: str) -> bool:
    return layer == beginning or layer.startswith(f'{beginning}.')


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
            f'{source} is a LoRA for {_base(asked[0])}, the model here is {_base(here)}'
        )


def _base(width: int) -> str:
    known = _BASES.get(width)
    return f'{known} (prompts of width {width})' if known else f'a model of prompt width {width}'


def _absent(absent: list[str], pairs: Mapping[str, Pair], editor: Any, source: str) -> str:
    shown = ', '.join(absent[:_SHOWN])
    more = f', and {len(absent) - _SHOWN} more' if len(absent) > _SHOWN else ''
    hint = ''
    if any('text_encoder_2' in key for key in absent):
        hint = (
            f' It is a LoRA for SDXL, the model here is {_base(editor.unet.cross_attention_dim)}.'
        )
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
