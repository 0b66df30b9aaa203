"""Fewer items of a dataset than it has."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from mmvideo.errors import ConfigError
from mmvideo.registry import DATASETS


@DATASETS.register_module()
class FirstItems(Dataset):
    """The first items of another dataset, or all where it has no more.

    Args:
        dataset: config of the dataset.
        count: how many items at most.

    Raises:
        ConfigError: ``count`` is no number of items.
    """

    part_registries = {'dataset': 'DATASETS'}

    def __init__(self, dataset: dict, count: int) -> None:
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigError(f'FirstItems.count={count!r}: expected an integer >= 1.')
        self.dataset = DATASETS.build(dataset)
        self.count = min(count, len(self.dataset))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        """Item ``index`` of the dataset, from the end of these where it is negative."""
        if not -self.count <= index < self.count:
            raise IndexError(f'item {index} of {self.count}')
        return self.dataset[index if index >= 0 else index % self.count]
