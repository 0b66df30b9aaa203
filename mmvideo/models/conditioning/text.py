"""Prompts become token embeddings, however long they are.

A text encoder sees ``tokenizer.model_max_length`` tokens (77 for CLIP), two of which mark start
and end. Longer prompts are cut into chunks of the rest, each encoded by itself, and the results
joined along the tokens; nothing is dropped. A word with several vectors of its own (textual
inversion) is never cut.
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
    pieces = _packed(_units(tokenizer, prompt), length - 2)
    pieces += [[]] * ((count or 0) - len(pieces))
    return [_framed(tokenizer, piece, length) for piece in pieces]


def encode_prompts(
    tokenizer: Any,
    text_encoder: Any,
    prompts: Sequence[str],
    count: int | None = None,
    clip_skip: int | None = None,
) -> torch.Tensor:
    """Embeddings [N, chunks * L, D] of prompts that need the same number of chunks.

    Args:
        tokenizer: a CLIP tokenizer.
        text_encoder: transformers' ``CLIPTextModel``.
        prompts: N strings.
        count: chunks each is padded to; None takes the longest.
        clip_skip: layers left out at the end of the text encoder; its last norm stays. What
            diffusers calls 1, other programs call 2.
    """
    count = count or max(chunks_needed(tokenizer, prompt) for prompt in prompts)
    chunks = [token_chunks(tokenizer, prompt, count) for prompt in prompts]
    device = next(text_encoder.parameters()).device
    ids = torch.tensor(chunks, device=device).flatten(0, 1)
    states = text_encoder(ids, output_hidden_states=bool(clip_skip))
    if clip_skip:
        # The last norm stands one level deeper before version 5 of transformers.
        model = getattr(text_encoder, 'text_model', text_encoder)
        states = model.final_layer_norm(states.hidden_states[-1 - clip_skip])
    else:
        states = states.last_hidden_state
    return states.reshape(len(prompts), -1, states.shape[-1])


def chunks_needed(tokenizer: Any, prompt: str) -> int:
    """How many chunks a prompt fills, at least one."""
    return len(token_chunks(tokenizer, prompt))


def _units(tokenizer: Any, prompt: str) -> list[list[int]]:
    """Token ids in groups that must stay together: for a plain tokenizer, each by itself."""
    if hasattr(tokenizer, 'units'):
        return tokenizer.units(prompt)
    ids = tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False)['input_ids']
    return [[i] for i in ids]


def _packed(units: list[list[int]], room: int) -> list[list[int]]:
    """Groups one after the other in pieces of at most ``room`` ids; at least one piece."""
    pieces: list[list[int]] = [[]]
    for unit in units:
        if len(pieces[-1]) + len(unit) > room:
            pieces.append([])
        pieces[-1] += unit
    return pieces


def _framed(tokenizer: Any, piece: list[int], length: int) -> list[int]:
    framed = [tokenizer.bos_token_id, *piece, tokenizer.eos_token_id]
    return framed + [tokenizer.pad_token_id] * (length - len(framed))
