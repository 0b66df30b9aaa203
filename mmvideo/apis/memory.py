"""How much memory a call needs with which switches, predicted from its plan; nothing is read.

A call has three phases: texts and pictures are encoded, latents are denoised, frames are decoded.
Each needs its working memory (``mmvideo.apis.plan`` says how that is estimated) and weights: all of
them, or with ``offload`` those of the phase. Beside the models there is what the libraries take.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmvideo.apis.devices import DTYPES
from mmvideo.apis.plan import Plan
from mmvideo.errors import InputError

# What the libraries take before any model: of a process, or of CUDA's context on a device.
LIBRARIES = 512 * 2**20
TILE = 256  # pixels of a side
# The largest stage and the largest layer of the denoiser, as a share of its weights: of Stable
# Diffusion 1.5 with motion modules.
LARGEST = {'model': 1.0, 'group': 0.28, 'sequential': 0.04}
_DENOISER = ('unet', 'motion_module', 'control')
_NEEDED_BY_ALL = ('condition_module',)
_UNITS = {'': 1, 'K': 10**3, 'M': 10**6, 'G': 10**9, 'T': 10**12}
_SIZE = re.compile(r'(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?', re.IGNORECASE)


@dataclass(frozen=True)
class Switches:
    """What may be changed to need less memory; None leaves it as the call has it.

    Attributes:
        chunk: frames decoded at once.
        tile: pixels of the VAE's tiles.
        offload: see ``mmvideo.editors.offload``.
        dtype: precision.
    """

    chunk: int | None = None
    tile: int | None = None
    offload: str | None = None
    dtype: str | None = None

    @property
    def flags(self) -> str:
        """As arguments of ``tools/infer.py``."""
        parts = (
            ('--decode-chunk', self.chunk),
            ('--vae-tiling', self.tile),
            ('--offload', self.offload),
            ('--dtype', self.dtype),
        )
        return ' '.join(f'{name} {value}' for name, value in parts if value is not None)

    @property
    def options(self) -> dict[str, Any]:
        """As ``cfg_options`` of ``VideoInferencer``; the chunk and the precision are arguments."""
        options: dict[str, Any] = {}
        if self.tile is not None:
            options['model.vae_tiling'] = dict(tile=self.tile)
        if self.offload is not None:
            options['model.offload'] = self.offload
        return options


# By what they cost: first what changes nothing but a little time, then what changes the pictures
# or much of the time.
LADDER = (
    Switches(),
    Switches(chunk=4),
    Switches(chunk=1),
    Switches(chunk=1, offload='model'),
    Switches(dtype='bfloat16'),
    Switches(chunk=1, dtype='bfloat16'),
    Switches(chunk=1, tile=TILE),
    Switches(chunk=1, tile=TILE, dtype='bfloat16'),
    Switches(chunk=1, offload='model', dtype='bfloat16'),
    Switches(chunk=1, tile=TILE, offload='model', dtype='bfloat16'),
    Switches(chunk=1, tile=TILE, offload='group', dtype='bfloat16'),
    Switches(chunk=1, tile=TILE, offload='sequential', dtype='bfloat16'),
)


@dataclass(frozen=True)
class Row:
    """A set of switches, and what it would need.

    Attributes:
        switches: they.
        needed: bytes.
    """

    switches: Switches
    needed: int


def predict(plan: Plan, switches: Switches = Switches()) -> int:
    """Bytes at the peak of a call, on its device.

    Raises:
        InputError: a weight file is not here yet, or the size of the video is not known.
    """
    if plan.weights_bytes is None or plan.denoising is None or plan.decoding is None:
        raise InputError(
            f'{plan.name}: its memory is not known before all its files are here; fetch them with '
            'tools/download.py.'
        )
    item = torch.empty(0, dtype=DTYPES[switches.dtype or plan.dtype]).element_size()
    frames = plan.chunk if switches.chunk is None else min(switches.chunk, plan.chunk)
    tile = switches.tile if plan.tile is None else plan.tile
    working = {
        'texts': 0,
        'denoising': plan.denoising,
        'decoding': plan.decoding.values(frames, tile if plan.can_tile else None),
    }
    weights = _weights(plan, switches.offload or plan.offload)
    values = max(weights[phase] + working[phase] for phase in working)
    return values * item + LIBRARIES


def rows(plan: Plan) -> list[Row]:
    """What each rung of the ladder would need, without those that cost more and save nothing."""
    found: list[Row] = []
    for switches in LADDER:
        if switches.offload is not None and not _has_own_memory(plan.device):
            continue
        if switches.dtype == plan.dtype or (switches.tile is not None and not plan.can_tile):
            continue
        if switches.dtype is not None and plan.dtype != 'float32':
            continue
        row = Row(switches, predict(plan, switches))
        if not found or row.needed < found[-1].needed:
            found.append(row)
    return found


def cheapest(table: Sequence[Row], limit: int) -> Row | None:
    """The first that fits, or None."""
    return next((row for row in table if row.needed <= limit), None)


def read_size(text: str) -> int:
    """Bytes of ``'6GiB'``, ``'6 GB'``, ``'512M'``; units with an i count in 1024.

    Raises:
        InputError: no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise InputError(f'{text!r} is no amount of memory: expected one such as 6GiB or 500MB.')
    number, unit, binary = match.groups()
    factor = _UNITS[unit.upper()]
    if binary:
        factor = 2 ** (10 * list(_UNITS).index(unit.upper()))
    return int(float(number) * factor)


def free_memory(device: str) -> int | None:
    """Bytes that a new process could take on a device now; None where nothing tells."""
    place = torch.device(device)
    if place.type == 'cuda':
        return torch.cuda.mem_get_info(place)[0]
    return _free_main_memory()


def _free_main_memory() -> int | None:
    try:
        with open('/proc/meminfo', encoding='ascii') as file:
            lines = dict(line.split(':', 1) for line in file)
        return int(lines['MemAvailable'].split()[0]) * 1024
    except (OSError, KeyError):
        return None


def _has_own_memory(device: str) -> bool:
    """Whether weights in main memory take none of the device's."""
    return torch.device(device).type == 'cuda'


def _weights(plan: Plan, offload: str | None) -> dict[str, int]:
    """Values of the weights that each phase has on the device."""
    each = list(_counts(plan))
    total = sum(count for _, count in each)
    if offload is None:
        return dict.fromkeys(('texts', 'denoising', 'decoding'), total)
    denoiser = sum(count for name, count in each if name in _DENOISER)
    others = [count for name, count in each if name not in (*_DENOISER, 'vae', *_NEEDED_BY_ALL)]
    return {
        'texts': max(others, default=0),
        'denoising': int(denoiser * LARGEST[offload]),
        'decoding': sum(count for name, count in each if name == 'vae'),
    }


def _counts(plan: Plan) -> Iterator[tuple[str, int]]:
    for part in plan.parts:
        if part.parameters:
            yield part.name, part.parameters
