"""Low-rank changes of linear and convolutional layers, beside the layer's own weight.

    y = W x + sum_i s_i (alpha_i / r_i) up_i(down_i(x))        (Hu et al. 2021, section 4.1)

The tensors live in a child of the layer, as buffers that no ``state_dict`` holds: they follow the
layer to another device or precision, while its parameters and their names stay as they are. A
forward hook adds the change, so a layer under LoRA must be called; code that reads its ``weight``
(such as the trunk's joint product of q, k and v) has to look for hooks.

s_i is a number, or one for each frame of a running call.

Shapes: r rank, I O channels in and out, K kernel size, N batch, T frames, P places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvideo.errors import WeightsError

_CHILD = 'low_rank'


@dataclass(frozen=True)
class Pair:
    """One layer's change, as a file has it.

    Attributes:
        down: [r, I] or [r, I, K, K].
        up: [O, r] or [O, r, 1, 1].
        alpha: the change is scaled by ``alpha / r``; None is r.
        mid: [r, r, K, K] between the two (LyCORIS' Tucker form); ``down`` is then 1x1.
    """

    down: Tensor
    up: Tensor
    alpha: float | None = None
    mid: Tensor | None = None

    @property
    def rank(self) -> int:
        """r; alpha is divided by it."""
        return self.down.shape[0]

    @property
    def factor(self) -> float:
        """``alpha / r``."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


class LowRank(nn.Module):
    """The change that one adapter makes to one layer."""

    down: Tensor
    up: Tensor
    mid: Tensor | None

    def __init__(self, pair: Pair, layer: nn.Module) -> None:
        super().__init__()
        weight = weight_of(layer)
        for name in ('down', 'up', 'mid'):
            value = getattr(pair, name)
            value = None if value is None else _shaped_for(value, layer).to(weight)
            self.register_buffer(name, value, persistent=False)
        self.factor = pair.factor
        self.scale: float | Tensor = 1.0  # or one for each frame, see ``rescale``

    def train_it(self) -> None:
        """Make the tensors parameters, in float32."""
        assert self.mid is None, "a pair in Tucker's form is not trained"
        for name in ('down', 'up'):
            value = getattr(self, name).detach().float().clone()
            delattr(self, name)
            self.register_parameter(name, nn.Parameter(value))

    @property
    def works(self) -> bool:
        """Whether there is anything to add."""
        return isinstance(self.scale, Tensor) or self.scale != 0

    @property
    def strength(self) -> float:
        """The adapter's scale times ``alpha / r``, where all frames have one."""
        assert not isinstance(self.scale, Tensor)
        return self.scale * self.factor

    def scaled(self, x: Tensor, layer: nn.Module) -> Tensor:
        """Times the strength: what a layer sees of frames stands as ``rescale`` says, r for C."""
        if not isinstance(self.scale, Tensor):
            return x * self.strength
        each = (self.scale * self.factor).to(x)
        if each.dim() == 2:
            return (x.unflatten(1, (len(each), -1)) * each[:, None]).flatten(1, 2)
        if isinstance(layer, nn.Linear) and x.dim() == 4:
            return x * each[:, None, None]
        assert len(x) % len(each) == 0, 'a layer without frames has one scale'
        frames = x.unflatten(0, (-1, len(each)))
        return (frames * each.reshape(-1, *[1] * (x.dim() - 1))).flatten(0, 1)

    def forward(self, x: Tensor, layer: nn.Module) -> Tensor:
        """What is added to ``layer(x)``; scaled where there are fewest numbers."""
        if isinstance(layer, nn.Linear):
            return F.linear(self.scaled(F.linear(x, self.down), layer), self.up)
        assert isinstance(layer, nn.Conv2d)
        # The condition's channels of PIA's first convolution come after those that LoRAs know.
        x = x[:, : self.down.shape[1]]
        how: Any = (layer.stride, layer.padding, layer.dilation)
        if self.mid is None:
            inner = F.conv2d(x, self.down, None, *how)
        else:
            inner = F.conv2d(F.conv2d(x, self.down), self.mid, None, *how)
        return F.conv2d(self.scaled(inner, layer), self.up)

    def delta(self) -> Tensor:
        """The change of the weight in float32, [O, I] or [O, I, K, K]."""
        down, up = self.down.float(), self.up.float().flatten(1) * self.strength
        if self.mid is None:
            return (up @ down.flatten(1)).unflatten(1, down.shape[1:])
        mid = self.mid.float()
        return torch.einsum('or,rskl,si->oikl', up, mid, down.flatten(1))


class LowRankSlot(nn.Module):
    """All changes of one layer, by the adapter's name; the order of attaching has no effect."""

    original: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict()
        self.handle: torch.utils.hooks.RemovableHandle | None = None
        self.register_buffer('original', None, persistent=False)

    def part(self, adapter: str) -> LowRank:
        """The change of one adapter."""
        return self.parts[_key(adapter)]  # type: ignore[return-value]

    def active(self) -> list[LowRank]:
        """Changes whose scale is not zero, in the order of their names."""
        parts = [self.parts[key] for key in sorted(self.parts)]
        return [part for part in parts if part.works]  # type: ignore[misc]

    def forward(self, x: Tensor, layer: nn.Module, output: Tensor) -> Tensor:
        """``output`` of ``layer(x)`` with all active changes."""
        for part in self.active():
            output = output + part(x, layer)
        return output


def put(layer: nn.Module, adapter: str, pair: Pair, scale: float = 1.0) -> None:
    """Add a change, for which ``check_fits`` was called, to a layer."""
    slot = getattr(layer, _CHILD, None)
    if slot is None:
        slot = LowRankSlot()
        layer.add_module(_CHILD, slot)
    assert slot.original is None, 'a merged layer takes no adapter'
    part = LowRank(pair, layer)
    part.scale = scale
    slot.parts[_key(adapter)] = part
    _refresh(layer, slot)


def take(layer: nn.Module, adapter: str) -> None:
    """Remove a change; the last one leaves the layer as if there had been none."""
    slot = slot_of(layer)
    assert slot.original is None, 'a merged layer gives no adapter back'
    del slot.parts[_key(adapter)]
    _refresh(layer, slot)
    if not slot.parts:
        delattr(layer, _CHILD)


def rescale(layer: nn.Module, adapter: str, scale: float | Tensor) -> None:
    """Set how strongly a change works; without any strength the layer runs by itself.

    A tensor [T] on the layer's device is for the frames of calls that follow, in layers that see
    [N*T, ..., C], [N, T, P, C] or pictures [N*T, C, H, W]; [T, 1] in those that see [N, T*P, C].
    """
    slot = slot_of(layer)
    assert slot.original is None, 'a merged layer keeps its scales'
    slot.part(adapter).scale = scale
    _refresh(layer, slot)


def merge(layer: nn.Module) -> None:
    """Write the active changes into the weight, computed in float32; the original is kept."""
    slot = slot_of(layer)
    if slot.original is not None or not slot.active():
        return
    weight = weight_of(layer)
    merged = weight.detach().float().clone()
    for part in slot.active():
        delta = part.delta()
        merged[:, : delta.shape[1]] += delta
    slot.original = weight.detach().clone()
    with torch.no_grad():
        weight.copy_(merged)
    _refresh(layer, slot)


def unmerge(layer: nn.Module) -> None:
    """Put the original weight back, bit by bit."""
    slot = slot_of(layer)
    if slot.original is None:
        return
    with torch.no_grad():
        weight_of(layer).copy_(slot.original)
    slot.original = None
    _refresh(layer, slot)


def forget_original(layer: nn.Module) -> None:
    """Let a merged weight stay; what was merged must be taken off before the layer runs."""
    slot_of(layer).original = None


def slot_of(layer: nn.Module) -> LowRankSlot:
    """The changes of a layer that has some."""
    slot = getattr(layer, _CHILD)
    assert isinstance(slot, LowRankSlot)
    return slot


def slotted_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a model that some adapter changes."""
    return [m for m in model.modules() if isinstance(getattr(m, _CHILD, None), LowRankSlot)]


def check_fits(pair: Pair, layer: nn.Module, what: str, leading: bool = False) -> None:
    """Raise WeightsError unless the pair's shapes are those of the layer.

    Args:
        what: the layer's name in messages.
        leading: a pair for the first input channels alone will do.
    """
    if not isinstance(layer, (nn.Linear, nn.Conv2d)) or getattr(layer, 'groups', 1) != 1:
        raise WeightsError(f'{what} is a {type(layer).__name__}, which takes no LoRA')
    down, up, mid, weight = pair.down, pair.up, pair.mid, weight_of(layer)
    inner = down if mid is None else mid
    kernel = tuple(weight.shape[2:]) or (1, 1)
    channels = down.shape[1] if leading and down.ndim > 1 else weight.shape[1]
    fits = (
        all(t.ndim in (2, 4) for t in (down, up, inner))
        and down.shape[1] == channels <= weight.shape[1]
        and up.shape[0] == weight.shape[0]
        and up.shape[1] == inner.shape[0]
        and _kernel(up) == (1, 1)
        and _kernel(inner) == kernel
        and (mid is None or (mid.shape[1] == down.shape[0] and _kernel(down) == (1, 1)))
    )
    if not fits:
        shapes = ' x '.join(str(list(t.shape)) for t in (up, mid, down) if t is not None)
        raise WeightsError(f'{what} has the weight {list(weight.shape)}, the LoRA {shapes}')


def weight_of(layer: nn.Module) -> nn.Parameter:
    """The weight of a linear or convolutional layer."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def _kernel(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape[2:]) or (1, 1)


def _shaped_for(value: Tensor, layer: nn.Module) -> Tensor:
    """Files write 1x1 convolutions as matrices and the reverse."""
    if isinstance(layer, nn.Linear):
        return value.flatten(1)
    return value if value.ndim == 4 else value[:, :, None, None]


def _key(adapter: str) -> str:
    return f'of {adapter}'  # no attribute of a ModuleDict has such a name


def _refresh(layer: nn.Module, slot: LowRankSlot) -> None:
    """Hook the layer if there is something to add, else leave it free for a faster way."""
    wanted = slot.original is None and bool(slot.active())
    if wanted and slot.handle is None:
        slot.handle = layer.register_forward_hook(_add)
    elif not wanted and slot.handle is not None:
        slot.handle.remove()
        slot.handle = None


def _add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return slot_of(layer)(inputs[0], layer, output)
