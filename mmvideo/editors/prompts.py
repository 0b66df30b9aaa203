"""Prompts of a group of samples as embeddings, also where they change over the frames.

N batch, T frames, t frames of a window, K keys, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mmvideo.editors.timeline import Timeline, text_timeline


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

    @classmethod
    def of(cls, states: Tensor, num_frames: int) -> PromptTrack:
        """The track of rows whose embeddings are known: [R, L, D], or [R, T, L, D] by frame."""
        if states.ndim == 3:
            return cls(states, [Timeline((0,), ('',))] * len(states), num_frames)
        frames = Timeline(tuple(range(num_frames)), ('',) * num_frames, 'step')
        return cls(states.flatten(0, 1), [frames] * len(states), num_frames)

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

    def last(self, count: int) -> PromptTrack:
        """The track of the last rows."""
        kept = sum(len(row.keys) for row in self.rows[-count:])
        return PromptTrack(self.states[-kept:], self.rows[-count:], self.num_frames)

    @cached_property
    def _shares(self) -> list[Tensor]:
        """What each row's frames take of its keys, [T, K] each."""
        return [row.mixture(self.num_frames).to(self.states.device) for row in self.rows]


def encode_rows(
    rows: Sequence[Timeline | Tensor],
    num_frames: int,
    encode: Callable[[list[str]], Tensor],
    device: torch.device,
) -> PromptTrack:
    """The embeddings of texts and of rows that come as embeddings.

    Args:
        rows: timelines of texts, or embeddings [L, D] or [T, L, D].
        num_frames: T.
        encode: texts to embeddings [K, L, D], called once where there is a text.
        device: of the result.
    """
    texts = [text for row in rows if isinstance(row, Timeline) for text in row.values]
    encoded = encode(texts) if texts else None
    states, timelines, taken = [], [], 0
    for row in rows:
        if isinstance(row, Timeline):
            assert encoded is not None
            states.append(encoded[taken : taken + len(row.values)])
            timelines.append(row)
            taken += len(row.values)
        else:
            track = PromptTrack.of(row[None], num_frames)
            states.append(track.states.to(device))
            timelines += track.rows
    return PromptTrack(torch.cat([s.to(device).float() for s in states]), timelines, num_frames)


def caption_rows(captions: Sequence[str], num_frames: int) -> list[Timeline]:
    """The captions of T frames as timelines.

    Raises:
        InputError: for a key beyond the clip.
    """
    rows = [text_timeline(caption, 'caption') for caption in captions]
    for row in rows:
        row.check('caption', num_frames)
    return rows


def _mixed(shares: Tensor, states: Tensor, frames: Tensor | None) -> Tensor:
    """[T, K] and [K, L, D] to [t, L, D]; a frame that takes one key alone has exactly that."""
    if frames is not None:
        shares = shares[frames.to(shares.device)]
    return torch.einsum('tk,kld->tld', shares, states.float()).to(states.dtype)
