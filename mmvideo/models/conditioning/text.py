"""Prompts become token embeddings, however long they are.

A text encoder sees ``tokenizer.model_max_length`` tokens (77 for CLIP), two of which mark start
and end. Longer prompts are cut into chunks of the rest, each encoded by itself, and the results
joined along the tokens; nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def token_chunks(tokenizer: Any, prompt: str, count: int | None = None) -> list[list[int]]:
    """Token ids of a prompt in chunks of exactly ``model_max_length``.

    Args:
        tokenizer: a CLIP tokenizer.
        prompt: any length; an empty one gives one empty chunk.
        count: pad with empty chunks to this many.
    """
    length = tokenizer.model_max_length
    ids = tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False)['input_ids']
    room = length - 2
    pieces = [ids[i : i + room] for i in range(0, len(ids), room)] or [[]]
    pieces += [[]] * ((count or 0) - len(pieces))
    return [_framed(tokenizer, piece, length) for piece in pieces]


def encode_prompts(
    tokenizer: Any, text_encoder: torch.nn.Module, prompts: Sequence[str], count: int | None = None
) -> torch.Tensor:
    """Embeddings [N, chunks * L, D] of prompts that need the same number of chunks.

    Args:
        tokenizer: a CLIP tokenizer.
        text_encoder: transformers' ``CLIPTextModel``.
        prompts: N strings.
        count: chunks each is padded to; None takes the longest.
    """
    count = count or max(chunks_needed(tokenizer, prompt) for prompt in prompts)
    chunks = [token_chunks(tokenizer, prompt, count) for prompt in prompts]
    device = next(text_encoder.parameters()).device
    ids = torch.tensor(chunks, device=device).flatten(0, 1)
    states = text_encoder(ids).last_hidden_state
    return states.reshape(len(prompts), -1, states.shape[-1])


def chunks_needed(tokenizer: Any, prompt: str) -> int:
    """How many chunks a prompt fills, at least one."""
    return len(token_chunks(tokenizer, prompt))


def _framed(tokenizer: Any, piece: list[int], length: int) -> list[int]:
    framed = [tokenizer.bos_token_id, *piece, tokenizer.eos_token_id]
    return framed + [tokenizer.pad_token_id] * (length - len(framed))
