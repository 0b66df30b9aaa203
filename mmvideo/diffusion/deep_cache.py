"""DeepCache: what a U-Net computes deep inside changes slowly over the steps (Ma et al. 2024).

In one step of ``interval`` the whole network runs, and what comes up from below its first layers is
kept. In the steps between, only these first layers and their counterparts on the way up run, on the
kept features (section 3.2, equations 4 and 5). The result is an approximation.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DeepCache:
    """Settings.

    Attributes:
        interval: the whole network runs in every step of that number; 1 is in all.
        depth: layers of the way down that run in every step, besides the first convolution; a layer
            is a resnet with what follows it, or a change of size. The paper's m; 1 is the fastest.
    """

    interval: int = 3
    depth: int = 1

    def memory(self) -> DeepMemory:
        """What is kept during one sampling, or one after the other."""
        return DeepMemory(self.interval)


class DeepMemory:
    """Deep features of what is denoised separately, such as each window of a clip."""

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self._kept: dict[Hashable, tuple[int, Tensor]] = {}  # by key: step and features

    def recall(self, key: Hashable, step: int) -> Tensor | None:
        """The features of ``key``, or None where the whole network should run in this step."""
        if key not in self._kept:
            return None
        made, features = self._kept[key]
        return features if 0 < step - made < self.interval else None

    def keep(self, key: Hashable, step: int, features: Tensor) -> None:
        """Features of a whole run; those that no later step can use are forgotten.

        Steps count from 0 again in a new sampling, so features of later ones are of the last.
        """
        self._kept = {
            other: (made, tensor)
            for other, (made, tensor) in self._kept.items()
            if 0 <= step - made < self.interval
        }
        self._kept[key] = (step, features)
