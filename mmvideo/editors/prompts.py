"""Prompts of a group of samples as embeddings, also where they change over the frames.

N batch, T frames, t frames of a window, K keys, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mmvideo.editors.timeline import Timeline


@dataclass(frozen=True)
class PromptTrack:
    """The embeddings of every key, and how the frames mix them.

    Only the keys are kept, so a clip may be as long as it likes.

    Attributes:
        states: [K of row 0 + K of row 1 + ..., L, D].
        rows: timeline of each row: the samples, behind their negative prompts with guidance.
        num_frames: T.
    """

    states: Tensor
    rows: Sequence[Timeline]
    num_frames: int

    def at(self, frames: Tensor | None = None) -> Tensor:
        """Embeddings for some frames, or for all.

        Returns:
            [rows, L, D] where no prompt changes, else [rows * t, L, D], the frames of a row
            adjacent.
        """
        keys = [len(row.keys) for row in self.rows]
        if max(keys) == 1:
            return self.states
        each = zip(self._shares, self.states.split(keys), strict=True)
        return torch.cat([_mixed(shares, states, frames) for shares, states in each])

    @cached_property
    def _shares(self) -> list[Tensor]:
        """What each row's frames take of its keys, [T, K] each."""
        return [row.mixture(self.num_frames).to(self.states.device) for row in self.rows]


def _mixed(shares: Tensor, states: Tensor, frames: Tensor | None) -> Tensor:
    """[T, K] and [K, L, D] to [t, L, D]; a frame that takes one key alone has exactly that."""
    if frames is not None:
        shares = shares[frames.to(shares.device)]
    return torch.einsum('tk,kld->tld', shares, states.float()).to(states.dtype)
