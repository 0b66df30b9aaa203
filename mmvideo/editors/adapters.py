"""Adapters of an editor: added, weighted, merged and removed while it is in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from mmvideo.editors.strengths import changes, check_strength
from mmvideo.errors import ConfigError, InputError, nearest
from mmvideo.models.adapters.base import Adapter, adapter_name, check_local
from mmvideo.models.adapters.lora import LoRA, lora_parts
from mmvideo.models.adapters.low_rank import (
    forget_original,
    merge,
    slot_of,
    slotted_layers,
    unmerge,
    weight_of,
)
from mmvideo.models.borrowed.source import check_keys, keys_of
from mmvideo.registry import MODELS


class Adaptable:
    """What an editor can do with adapters; ``_attach_adapters`` belongs in its constructor."""

    # Types that this kind of editor takes, None for all that are registered.
    adapter_types: tuple[str, ...] | None = None
    _adapters: dict[str, Adapter]
    _off: dict[str, Any]  # scales from before they were switched off
    _merged: list[nn.Module]

    @property
    def adapters(self) -> list[Adapter]:
        """The adapters in the order in which they were added."""
        return list(self._adapters.values())

    def add_adapter(self, config: Mapping[str, Any] | Adapter) -> Adapter:
        """Read an adapter and attach it.

        Args:
            config: such as ``dict(type='LoRA', from_pretrained='x.safetensors', scale=0.8)``, or
                an adapter that was removed.

        Raises:
            ConfigError: no such type or key, one that this editor does not take, or a name that is
                taken.
            WeightsError: weights that are missing or do not fit; the editor is then unchanged.
            InputError: the adapters are merged.
        """
        self._refuse_merged('add')
        if isinstance(config, Adapter):
            adapter = config
            _check_type(type(adapter).__name__, self.adapter_types)
        else:
            self.check_adapters([config], taken=self._adapters)
            adapter = MODELS.build(dict(config))
            adapter.config = dict(config)
        if adapter.name in self._adapters:
            raise ConfigError(_taken(adapter.name))
        adapter.attach(self)
        self._adapters[adapter.name] = adapter
        return adapter

    def set_adapters(self, names: str | Sequence[str], weights: Any = None) -> None:
        """Use these adapters and no others; words of textual inversions stay known.

        Args:
            names: one or several.
            weights: a scale, or one for each name; None takes those that the adapters have, or
                had before they were switched off.

        Raises:
            InputError: a name that no adapter has, another number of weights, or a timeline with
                keys or values that cannot be.
            ConfigError: a scale that an adapter cannot have.
        """
        self._refuse_merged('weight')
        names = [names] if isinstance(names, str) else list(names)
        chosen = [self._adapter(name) for name in names]
        for adapter in chosen:
            if not adapter.has_scale:
                raise InputError(f'{adapter!r} has no weight: it works where a prompt names it')
        scales = self._spread_weights(weights, chosen)
        for adapter, scale in zip(chosen, scales, strict=True):
            check_strength(scale, f'the scale of {adapter.name!r}')
        before = [(adapter, adapter.scale) for adapter in self.adapters if adapter.has_scale]
        try:
            for adapter, scale in zip(chosen, scales, strict=True):
                adapter.set_scale(scale)
        except ConfigError:
            for adapter, scale in before:
                adapter.set_scale(scale)
            raise
        for adapter, scale in before:
            if adapter.name in names:
                self._off.pop(adapter.name, None)
            else:
                self._off.setdefault(adapter.name, scale)
                adapter.set_scale(0.0)

    def remove_adapter(self, name: str) -> Adapter:
        """Detach an adapter, leaving the model as if it had never been there.

        Returns:
            The adapter, which ``add_adapter`` takes again without reading it.
        """
        adapter = self._adapter(name)
        self._refuse_merged('remove')
        adapter.detach(self)
        del self._adapters[name]
        if name in self._off:
            adapter.set_scale(self._off.pop(name))
        return adapter

    def merge_adapters(self) -> None:
        """Write the LoRAs into the weights, for the speed of the bare model.

        The originals are kept for ``unmerge_adapters``. Until then no adapter can be added,
        weighted or removed.

        Raises:
            InputError: a weight to be merged is being trained, or a LoRA changes over frames or
                steps, which no weight can.
        """
        for adapter in self.adapters:
            if isinstance(adapter, LoRA) and changes(adapter.scale):
                raise InputError(
                    f'the scale of {adapter.name!r} changes over frames or steps, a merged weight '
                    f'has one: set_adapters({adapter.name!r}, NUMBER), or leave it beside the '
                    'weights.'
                )
        layers = [layer for part in lora_parts(self).values() for layer in slotted_layers(part)]
        trained = [weight_of(layer) for layer in layers]
        trained += [p for layer in layers for p in slot_of(layer).parameters()]
        if any(parameter.requires_grad for parameter in trained):
            raise InputError('adapters are not merged into weights that are being trained')
        for layer in layers:
            merge(layer)
        self._merged = layers

    def unmerge_adapters(self) -> None:
        """Put the original weights back, bit by bit; the adapters work beside them again."""
        for layer in self._merged:
            unmerge(layer)
        self._merged = []

    @property
    def merged(self) -> bool:
        """Whether LoRAs are merged into the weights."""
        return bool(self._merged)

    def keep_merged(self) -> None:
        """Let merged weights stay as they are: originals and LoRAs in them are forgotten."""
        if not self._merged:
            return
        for layer in self._merged:
            forget_original(layer)
        self._merged = []
        for adapter in self.adapters:
            if isinstance(adapter, LoRA) and adapter.scale:
                self.remove_adapter(adapter.name)

    def adapter_configs(self) -> list[dict[str, Any]]:
        """Configs of the adapters as they are now: what ``model.adapters`` would say."""
        configs = []
        for adapter in self.adapters:
            config = dict(adapter.config) or dict(
                type=type(adapter).__name__, from_pretrained=adapter.source
            )
            config['name'] = adapter.name
            configs.append(config | dict(scale=adapter.scale) if adapter.has_scale else config)
        return configs

    def adapter_files(self) -> list[Path]:
        """The files that the adapters were read from."""
        return [path for adapter in self.adapters for path in adapter.paths]

    @classmethod
    def check_adapters(
        cls,
        configs: Any,
        taken: Sequence[str] | Mapping[str, Any] = (),
        num_frames: int | None = None,
    ) -> None:
        """See ``check_adapters``, for what this kind of editor takes."""
        check_adapters(configs, taken, cls.adapter_types, num_frames)

    def _attach_adapters(self, configs: Sequence[Mapping[str, Any]]) -> None:
        """What the editor's constructor does with its config."""
        self._adapters, self._off, self._merged = {}, {}, []
        self.check_adapters(configs)
        for config in configs:
            self.add_adapter(config)

    def _adapter(self, name: str) -> Adapter:
        if name not in self._adapters:
            there = ', '.join(self._adapters) or 'none'
            raise InputError(
                f'there is no adapter {name!r}.{nearest(name, self._adapters)} There: {there}'
            )
        return self._adapters[name]

    def _spread_weights(self, weights: Any, adapters: Sequence[Adapter]) -> list[Any]:
        """One scale for each adapter."""
        if weights is None:
            return [self._off.get(adapter.name, adapter.scale) for adapter in adapters]
        if isinstance(weights, (list, tuple)):
            if len(weights) != len(adapters):
                raise InputError(
                    f'{len(weights)} weights for {len(adapters)} adapters: give one each'
                )
            return list(weights)
        return [weights] * len(adapters)

    def _refuse_merged(self, action: str) -> None:
        if self._merged:
            raise InputError(f'the adapters are merged: unmerge_adapters() to {action} one')


def check_adapters(
    configs: Any,
    taken: Sequence[str] | Mapping[str, Any] = (),
    types: Sequence[str] | None = None,
    num_frames: int | None = None,
) -> None:
    """Refuse adapters that cannot work, without reading a weight file.

    Args:
        configs: ``model.adapters``.
        taken: names that other adapters have.
        types: those that the editor takes, None for all.
        num_frames: of the clip, which must have every key of a timeline; None checks no key.

    Raises:
        ConfigError: no list of adapter configs, an unknown key, a name given twice, or a scale
            that cannot be.
        WeightsError: a file that does not exist.
    """
    if isinstance(configs, (str, Mapping)) or not isinstance(configs, Sequence):
        raise ConfigError(
            f"model.adapters={configs!r:.80}: expected a list of dict(type='LoRA', ...)"
        )
    names = set(taken)
    for config in configs:
        kind = config.get('type') if isinstance(config, Mapping) else None
        if kind is None:
            raise ConfigError(f"adapter {config!r:.80}: expected dict(type='LoRA', ...)")
        cls = _adapter_class(kind)
        _check_type(kind, types)
        keys = {k: v for k, v in config.items() if k not in ('type', '_scope_')}
        check_keys(kind, keys, keys_of(cls.__init__))
        source = keys.get('from_pretrained')
        if not isinstance(source, (str, Path)):
            raise ConfigError(f"adapter {kind} needs 'from_pretrained', a file, folder or hub id")
        check_local(source)
        cls.check(keys)
        name = adapter_name(source, keys.get('name'), keys.get('weight_name'))
        if name in names:
            raise ConfigError(_taken(name))
        names.add(name)
        try:
            check_strength(keys.get('scale'), f'the scale of {name!r}', num_frames)
        except InputError as fault:
            raise ConfigError(str(fault)) from None


def _check_type(kind: str, types: Sequence[str] | None) -> None:
    if types is not None and kind not in types:
        raise ConfigError(
            f'adapter {kind}: this model takes none of that type; it takes {", ".join(types)}.'
        )


def _adapter_class(kind: Any) -> type[Adapter]:
    cls = MODELS.get(kind)
    if not isinstance(cls, type) or not issubclass(cls, Adapter):
        known = [n for n in MODELS.names() if _is_adapter(MODELS.get(n))]
        raise ConfigError(f'{kind!r} is no adapter.{nearest(kind, known)} There are: {known}')
    return cls


def _is_adapter(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, Adapter)


def _taken(name: str) -> str:
    return f'an adapter is named {name!r} already: give this one another name'
