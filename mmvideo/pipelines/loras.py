"""LoRAs of a pipeline, as diffusers' loaders call them."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmvideo.checkpoints.files import write_tensors
from mmvideo.errors import InputError
from mmvideo.models.adapters.lora import LoRA
from mmvideo.pipelines.access import asks_hub
from mmvideo.pipelines.handles import refuse_others, single_file
from mmvideo.pipelines.scales import active_scale, by_layers, times, without_layers

_LORA_FILE = 'pytorch_lora_weights.safetensors'
_PARTS = ('unet', 'text_encoder')


class Loras:
    """LoRAs over the adapters of the editor."""

    editor: Any

    @asks_hub
    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Tensor],
        adapter_name: str | None = None,
        *,
        weight_name: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        **others: Any,
    ) -> None:
        """Add a LoRA or MotionLoRA in any public layout.

        In layers that another one changes too it is the one in use, until ``set_adapters``.

        Args:
            pretrained_model_name_or_path_or_dict: file, folder, hub id, or tensors.
            adapter_name: what it is called; None counts ``default_0``, ``default_1`` ...
            weight_name: file inside the source.
            subfolder: folder inside the source.
            revision: branch, tag or commit on the hub.
        """
        refuse_others('load_lora_weights', others, ('adapter_name', 'weight_name', 'subfolder'))
        taken = [adapter.name for adapter in self._loras()]
        count = len(taken)
        name = f'default_{count}' if adapter_name is None else adapter_name
        with as_source(pretrained_model_name_or_path_or_dict, revision) as (source, tag):
            where = dict(from_pretrained=source, weight_name=weight_name, subfolder=subfolder)
            added = self.editor.add_adapter(dict(where, type='LoRA', name=name, revision=tag))
        for other in self._loras():
            if other is not added:  # in layers of both the newest is in use
                other.set_scale(without_layers(other, added.pairs))

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | Path,
        unet_lora_layers: Mapping[str, Tensor] | None = None,
        text_encoder_lora_layers: Mapping[str, Tensor] | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Any = None,
        safe_serialization: bool = True,
        unet_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_lora_adapter_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write layers of a LoRA, by name, as ``load_lora_weights`` and diffusers read them.

        Raises:
            InputError: no layers, or another format than safetensors.
        """
        if save_function is not None or not safe_serialization:
            raise InputError('save_lora_weights writes safetensors; leave the format out.')
        layers = {'unet': unet_lora_layers, 'text_encoder': text_encoder_lora_layers}
        stated = {
            'unet': unet_lora_adapter_metadata,
            'text_encoder': text_encoder_lora_adapter_metadata,
        }
        tensors = {
            f'{part}.{key}': value.detach().contiguous()
            for part, found in layers.items()
            for key, value in _tensors_of(found).items()
        }
        if not tensors:
            raise InputError(
                'save_lora_weights: give unet_lora_layers or text_encoder_lora_layers.'
            )
        metadata = {f'{p}.{k}': v for p, found in stated.items() for k, v in (found or {}).items()}
        header = {'format': 'pt'}
        if metadata:
            header['lora_adapter_metadata'] = json.dumps(metadata, default=list, sort_keys=True)
        if is_main_process:
            write_tensors(Path(save_directory) / (weight_name or _LORA_FILE), tensors, header)

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: Any = None) -> None:
        """Use these LoRAs and no others.

        Args:
            adapter_names: one or several.
            adapter_weights: a number, a dict by part and block as diffusers has it, or a list with
                one for each name; None is 1.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._use(names, 1.0 if adapter_weights is None else adapter_weights)

    def _use(self, names: Sequence[str], weights: Any) -> None:
        listed = list(weights) if isinstance(weights, (list, tuple)) else [weights] * len(names)
        if len(listed) != len(names):
            raise InputError(f'{len(listed)} adapter_weights for {len(names)} adapter_names.')
        loras = {adapter.name: adapter for adapter in self._loras()}
        chosen = [
            by_layers(weight, loras[name]) if name in loras else weight
            for name, weight in zip(names, listed, strict=True)
        ]
        others = [a for a in self.editor.adapters if a.has_scale and a.name not in loras]
        kept = [adapter.scale for adapter in others]
        self.editor.set_adapters([*names, *(a.name for a in others)], [*chosen, *kept])

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Remove LoRAs."""
        for name in [adapter_names] if isinstance(adapter_names, str) else list(adapter_names):
            self.editor.remove_adapter(name)

    def unload_lora_weights(self) -> None:
        """Remove all LoRAs; what ``fuse_lora`` has written into the weights stays there."""
        self.editor.keep_merged()
        for adapter in self._loras():
            self.editor.remove_adapter(adapter.name)

    def fuse_lora(
        self,
        components: Sequence[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
        **others: Any,
    ) -> None:
        """Write the LoRAs in use into the weights, for the speed of the bare model.

        Args:
            components: ``'unet'`` and ``'text_encoder'``: all that the LoRAs change.
            lora_scale: a factor on their scales.
            safe_fusing: take it back if a weight is no number then.
            adapter_names: of the LoRAs; None are those in use.
        """
        refuse_others('fuse_lora', others, ('components', 'lora_scale', 'adapter_names'))
        loras = {adapter.name: adapter for adapter in self._loras()}
        names = self.get_active_adapters() if adapter_names is None else list(adapter_names)
        changed = {part for name in names if name in loras for part in _parts_of(loras[name])}
        if components is not None and set(components) & set(_PARTS) != changed:
            raise InputError(
                f'components={list(components)}: the LoRAs change {sorted(changed)}, which are '
                'fused together.'
            )
        before = {name: loras[name].scale for name in loras}
        factors = [times(active_scale(loras[n], 1.0), lora_scale) if n in loras else 1.0
                   for n in names]  # fmt: skip
        self._use(names, factors)
        self._fused_scales = before
        self.editor.merge_adapters()
        if safe_fusing and not all(bool(p.isfinite().all()) for p in self.editor.parameters()):
            self.unfuse_lora()
            raise InputError('safe_fusing: with the LoRAs some weights are no numbers.')

    def unfuse_lora(self, components: Sequence[str] | None = None, **others: Any) -> None:
        """Take ``fuse_lora`` back, bit by bit."""
        refuse_others('unfuse_lora', others, ('components',))
        self.editor.unmerge_adapters()
        for adapter in self._loras():
            if adapter.name in getattr(self, '_fused_scales', {}):
                adapter.set_scale(self._fused_scales[adapter.name])

    def enable_lora(self) -> None:
        """Take ``disable_lora`` back."""
        for adapter in self._loras():
            if adapter.name in self._disabled():
                adapter.set_scale(self._disabled().pop(adapter.name))

    def disable_lora(self) -> None:
        """Use no LoRA, until ``enable_lora``."""
        for adapter in self._loras():
            self._disabled().setdefault(adapter.name, adapter.scale)
            adapter.set_scale(0.0)

    def get_active_adapters(self) -> list[str]:
        """Names of the LoRAs in use."""
        return [adapter.name for adapter in self._loras() if _works(adapter.scale)]

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Names of all LoRAs, by the part that they change."""
        found: dict[str, list[str]] = {}
        for adapter in self._loras():
            for part in _parts_of(adapter):
                found.setdefault(part, []).append(adapter.name)
        return found

    def set_lora_device(self, adapter_names: Sequence[str], device: Any) -> None:
        """Nothing to do: a LoRA is where the layers are that it changes."""

    def _loras(self) -> list[LoRA]:
        return [adapter for adapter in self.editor.adapters if isinstance(adapter, LoRA)]

    def _disabled(self) -> dict[str, Any]:
        return self.__dict__.setdefault('_lora_scales_off', {})

    @contextlib.contextmanager
    def _attention(self, kwargs: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
        """``cross_attention_kwargs`` for one call: a factor on LoRAs, and masks of IP-Adapters."""
        given = dict(kwargs or {})
        factor, masks = given.pop('scale', 1.0), given.pop('ip_adapter_masks', None)
        if given:
            raise InputError(
                f"cross_attention_kwargs takes 'scale' and 'ip_adapter_masks', not {sorted(given)}."
            )
        changed = self._loras() if factor != 1 else []
        if changed and self.editor.merged:
            raise InputError("cross_attention_kwargs['scale']: the LoRAs are fused; unfuse_lora().")
        before = [adapter.scale for adapter in changed]
        try:
            for adapter in changed:
                adapter.set_scale(times(adapter.scale, factor))
            yield {} if masks is None else {'ip_adapter_masks': _masks(masks)}
        finally:
            for adapter, scale in zip(changed, before, strict=True):
                adapter.set_scale(scale)


@contextlib.contextmanager
def as_source(source: Any, revision: str | None) -> Iterator[tuple[str, str | None]]:
    """A source as adapters read it; tensors go through a file, which they do not need later."""
    if not isinstance(source, Mapping):
        yield single_file(source, revision)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'tensors.safetensors'
        write_tensors(path, {name: value.detach().contiguous() for name, value in source.items()})
        yield str(path), None


def _tensors_of(layers: Mapping[str, Any] | nn.Module | None) -> Mapping[str, Tensor]:
    return layers.state_dict() if isinstance(layers, nn.Module) else layers or {}


def _masks(masks: Any) -> Any:
    """Masks of diffusers: a list with [1, I, height, width] for each adapter, or one tensor."""
    return list(masks.split(1)) if isinstance(masks, Tensor) else masks


def _parts_of(adapter: LoRA) -> list[str]:
    return list(dict.fromkeys(key.split('.')[0] for key in adapter.pairs))


def _works(scale: Any) -> bool:
    return any(scale.values()) if isinstance(scale, Mapping) else bool(scale)
