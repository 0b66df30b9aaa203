"""The order in which training sees its data."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import numpy as np
import torch
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from mmvideo.registry import DATA_SAMPLERS


class Draw(int):
    """An index that knows which reading of its item it is.

    A dataset that draws something anew in every epoch asks ``rng``: what it gets does not depend on
    the process that reads the item, nor on what was read before it, as a worker's generator would.

    Attributes:
        seed: of the sampler.
        epoch: how often the item was read before.
    """

    seed: int
    epoch: int

    def __new__(cls, index: int, seed: int, epoch: int) -> Draw:
        self = super().__new__(cls, index)
        self.seed, self.epoch = seed, epoch
        return self

    def __getnewargs__(self) -> tuple[int, int, int]:  # type: ignore[override]
        # On its way to a worker.
        return int(self), self.seed, self.epoch

    def rng(self) -> np.random.Generator:
        """Random numbers of this reading of this item."""
        return np.random.default_rng([self.seed, self.epoch, int(self)])


@DATA_SAMPLERS.register_module()
class ResumableSampler(Sampler[int]):
    """An endless order of indices that can start anywhere without reading what came before.

    Every epoch is a permutation drawn from ``(seed, epoch)``; ranks take turns in it. Position p
    of a rank therefore depends on the seed alone, and ``set_start`` jumps there. Indices are
    ``Draw``s, so that what a dataset draws for an item depends on the seed alone, too.

    Args:
        dataset: anything with a length.
        shuffle: permute every epoch.
        seed: None takes the runner's seed, agreed on by all ranks.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None) -> None:
        self.rank, self.world_size = get_dist_info()
        self.length = len(dataset)
        self.shuffle = shuffle
        self.seed = sync_random_seed() if seed is None else seed
        self.start = 0

    def set_start(self, samples: int) -> None:
        """Start after ``samples`` indices of this rank."""
        self.start = samples

    def __iter__(self) -> Iterator[int]:
        position = self.start * self.world_size + self.rank
        epoch, order = -1, []
        while True:
            if position // self.length != epoch:
                epoch = position // self.length
                order = self._order(epoch)
            yield Draw(order[position % self.length], self.seed, epoch)
            position += self.world_size

    def __len__(self) -> int:
        return self.length

    def _order(self, epoch: int) -> list[int]:
        if not self.shuffle:
            return list(range(self.length))
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        return torch.randperm(self.length, generator=generator).tolist()
