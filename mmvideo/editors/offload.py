"""Weights that wait in main memory and come to the device when they are needed.

``'model'``: a part at a time: the text encoder, then the denoiser with its controls, then the VAE.
``'group'``: likewise, and of the denoiser one stage at a time. ``'sequential'``: one layer of a
stage at a time; slowest, and least memory. Results are the same in every mode, bit by bit.

Weights are only read here, so going back is forgetting the copy on the device. A part comes when
any module in it is called, not when its leaves are: attention multiplies with the weights of its
three projections at once, and adapters put their tensors and hooks into layers, so the smallest
thing that moves is a layer with all that is in it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mmvideo.errors import ConfigError, nearest
from mmvideo.models.unet.stages import Stage

MODES = ('model', 'group', 'sequential')
# Parts that compute in turns within a step, so they are on the device together.
_TOGETHER = ('unet', 'controls')


def check_mode(mode: Any) -> None:
    """Raise ConfigError unless ``mode`` is one of ``MODES`` or None."""
    if mode is not None and mode not in MODES:
        raise ConfigError(
            f'offload={mode!r}: expected one of {", ".join(MODES)}, or None.{nearest(mode, MODES)}'
        )


class Unit:
    """Modules that move together.

    Attributes:
        name: of them in the editor.
        seat: units of one seat may be on the device together.
        modules: they.
        loaded: whether they are on the device.
    """

    def __init__(self, name: str, seat: str, modules: list[nn.Module]) -> None:
        self.name, self.seat, self.modules = name, seat, modules
        self._home: list[tuple[Tensor, Tensor]] = []
        self.loaded = False

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def load(self, device: torch.device) -> None:
        """To the device, all or nothing; the values in main memory stay."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.unload)
            for tensor in self._tensors():  # looked up anew: adapters come and go
                self._home.append((tensor, tensor.data))
                tensor.data = tensor.data.to(device)
            undo.pop_all()
        self.loaded = True

    def unload(self) -> None:
        """Back to main memory."""
        for tensor, data in self._home:
            # a VAE is cast for a moment where float16 would overflow
            tensor.data = data.to(tensor.dtype)
        self._home.clear()
        self.loaded = False

    def _tensors(self) -> Iterator[Tensor]:
        seen: set[int] = set()
        for module in self.modules:
            for tensor in itertools.chain(module.parameters(), module.buffers()):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield tensor


class Offloading:
    """Hooks on an editor's modules that bring them to the device and back.

    Args:
        editor: whose children are moved.
        mode: one of ``MODES``.
        device: where to compute.

    Attributes:
        units: all that move.
        moves: called as ``('load' or 'unload', unit)``, for who watches; None.

    Raises:
        ConfigError: no such mode.
    """

    def __init__(self, editor: nn.Module, mode: str, device: torch.device) -> None:
        if mode is None:
            raise ConfigError(f'offload=None: expected one of {", ".join(MODES)}.')
        check_mode(mode)
        self.mode, self.device = mode, device
        self.moves: Callable[[str, Unit], None] | None = None
        self.units: list[Unit] = []
        self._handles: list[Any] = []
        editor.to('cpu')
        for name, part in _parts(editor):
            seat = 'denoiser' if name.split('.')[0] in _TOGETHER else name
            if mode == 'model' or seat != 'denoiser':
                self._follow(Unit(name, seat, [part]), _entries(part))
            else:
                self._split(name, seat, part)

    def _split(self, name: str, seat: str, part: nn.Module) -> None:
        """A denoiser, or a control, in pieces; what is between its stages comes with the whole."""
        pieces = list(_pieces(part, self.mode == 'sequential'))
        inside = {id(m) for _, piece in pieces for m in piece.modules()}
        rest = list(_outermost(part, inside))
        self._follow(Unit(f'{name}.rest', seat, rest), [part, *rest])
        for path, piece in pieces:
            unit = Unit(f'{name}.{path}', seat, [piece])
            self._follow(unit, [piece])
            hook = piece.register_forward_hook(
                lambda *_, unit=unit: self._unload(unit), always_call=True
            )
            self._handles.append(hook)

    def _follow(self, unit: Unit, modules: list[nn.Module]) -> None:
        """Load ``unit`` before any of ``modules`` runs."""
        self.units.append(unit)

        def before(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            if not unit.loaded:
                self._load(unit)
            return tuple(map(self._here, args)), {k: self._here(v) for k, v in kwargs.items()}

        for module in modules:
            self._handles.append(
                module.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
            )

    def _here(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, Tensor) else value

    def _load(self, unit: Unit) -> None:
        for other in self.units:
            if other.loaded and other.seat != unit.seat:
                self._unload(other)
        unit.load(self.device)
        if self.moves is not None:
            self.moves('load', unit)

    def _unload(self, unit: Unit) -> None:
        if not unit.loaded:
            return
        unit.unload()
        if self.moves is not None:
            self.moves('unload', unit)

    def end(self) -> None:
        """All back in main memory, and the hooks taken off."""
        for unit in self.units:
            self._unload(unit)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _parts(editor: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The editor's parts by name; each of a list by itself."""
    for name, child in editor.named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((f'{name}.{i}', module) for i, module in enumerate(child))
        elif name != 'data_preprocessor':
            yield name, child


def _pieces(part: nn.Module, layers: bool) -> Iterator[tuple[str, nn.Module]]:
    """The stages of a denoiser, or the layers in each."""
    stages = [(name, m) for name, m in part.named_modules() if isinstance(m, Stage)]
    for name, stage in stages:
        if not layers:
            yield name, stage
            continue
        for kind, listed in stage.named_children():
            if isinstance(listed, nn.ModuleList):
                yield from ((f'{name}.{kind}.{i}', layer) for i, layer in enumerate(listed))


def _outermost(part: nn.Module, inside: set[int]) -> Iterator[nn.Module]:
    """The largest modules of ``part`` that share nothing with those ``inside``."""
    for child in part.children():
        if id(child) in inside:
            continue
        if any(id(module) in inside for module in child.modules()):
            yield from _outermost(child, inside)
        else:
            yield child


def _entries(part: nn.Module) -> list[nn.Module]:
    """Where calls enter a part: itself and the two levels below, as in ``vae.decoder.conv_in``.

    No deeper, because attention takes another way, which rounds otherwise, where its projections
    have hooks.
    """
    return [module for name, module in part.named_modules() if name.count('.') < 2]
