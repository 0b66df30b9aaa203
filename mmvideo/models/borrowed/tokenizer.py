"""transformers' CLIPTokenizer, from files or for a closed vocabulary.

A closed vocabulary is a real byte-level BPE (Sennrich et al. 2016; Radford et al. 2021): each
listed word becomes one token, and every other text still becomes tokens, byte by byte.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmvideo.checkpoints.files import write_text
from mmvideo.checkpoints.save import write_json
from mmvideo.checkpoints.sources import is_weight_file, local_root, resolve
from mmvideo.errors import ConfigError, WeightsError
from mmvideo.registry import TOKENIZERS

START, END = '<|startoftext|>', '<|endoftext|>'
_WORD_END = '</w>'
_CLIP_LENGTH = 77
_NO_LIMIT = 10**6
_FILES = ('vocab.json', 'merges.txt')
_EXTRA = ('tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json')


@TOKENIZERS.register_module(name='CLIPTokenizer')
def build_tokenizer(
    from_pretrained: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    vocab: Sequence[str] | None = None,
    model_max_length: int | None = None,
) -> Any:
    """Build a ``CLIPTokenizer``.

    Args:
        from_pretrained: Folder, hub id or ``package://NAME`` with the files of a CLIP tokenizer.
        subfolder: Folder of the part inside the source.
        revision: Branch, tag or commit on the hub.
        vocab: The words of a closed vocabulary, in place of ``from_pretrained``.
        model_max_length: Tokens of a padded prompt, start and end included; None keeps that of
            the files, and is 77 where there is none.

    Raises:
        ConfigError: Neither or both of ``from_pretrained`` and ``vocab``; a word that cannot be
            one token.
        WeightsError: Files that are missing.
    """
    if (from_pretrained is None) == (vocab is None):
        raise ConfigError("CLIPTokenizer takes either 'from_pretrained' or 'vocab'")
    if model_max_length is not None and model_max_length < 3:
        raise ConfigError(f'CLIPTokenizer: model_max_length={model_max_length}, expected >= 3')
    if vocab is not None:
        return _closed(vocab, model_max_length or _CLIP_LENGTH)
    folder = _folder(str(from_pretrained), subfolder, revision)
    return _read(folder, {'model_max_length': model_max_length} if model_max_length else {})


def closed_vocabulary(words: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The BPE that makes each word one token.

    Merges are learnt word by word: a word is tokenised with the merges so far, and where none
    applies the first two pieces become the next merge. A later merge never precedes an earlier
    one, so words that are already whole stay whole.

    Args:
        words: Lower-case words.

    Returns:
        Token to id, and the merges in order of priority. Ids: 256 bytes, 256 bytes that end a
        word, pieces, start, end.
    """
    letters = byte_letters()
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        pieces = [letters[byte] for byte in word.encode()]
        pieces[-1] += _WORD_END
        while len(pieces) > 1:
            pairs = list(itertools.pairwise(pieces))
            known = [pair for pair in pairs if pair in ranks]
            pair = min(known, key=ranks.__getitem__) if known else pairs[0]
            ranks.setdefault(pair, len(ranks))
            at = pairs.index(pair)
            pieces[at : at + 2] = [''.join(pair)]
    tokens = [*letters, *(letter + _WORD_END for letter in letters), *map(''.join, ranks)]
    tokens = list(dict.fromkeys(tokens)) + [START, END]
    return {token: index for index, token in enumerate(tokens)}, list(ranks)


def byte_letters() -> list[str]:
    """A visible letter for each of the 256 bytes: itself, or one above U+0100 (GPT-2's rule)."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(b if b in visible else 256 + hidden.index(b)) for b in range(256)]


def _closed(words: Sequence[str], length: int) -> Any:
    if isinstance(words, str) or not all(isinstance(word, str) and word for word in words):
        raise ConfigError(f'CLIPTokenizer: vocab is a list of words, got {words!r}')
    vocab, merges = closed_vocabulary(words)
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / 'vocab.json', vocab)
        lines = ''.join(f'{first} {second}\n' for first, second in merges)
        write_text(Path(folder) / 'merges.txt', '#version: 0.2\n' + lines)
        tokenizer = _read(Path(folder), {'model_max_length': length})
    for word in words:
        if (found := tokenizer.tokenize(word)) != [word + _WORD_END]:
            raise ConfigError(
                f'CLIPTokenizer: {word!r} cannot be one token, it splits into {found}; expected '
                'a lower-case word of letters, one digit, or punctuation'
            )
    return tokenizer


def _read(folder: Path, overrides: dict[str, Any]) -> Any:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True, **overrides)
    if tokenizer.model_max_length > _NO_LIMIT:  # files without the key: CLIP's own length
        tokenizer.model_max_length = _CLIP_LENGTH
    return tokenizer


def _folder(source: str, subfolder: str | None, revision: str | None) -> Path:
    """The local folder with the tokenizer's files, fetched where the source is a hub id."""
    if is_weight_file(source):
        raise WeightsError(
            f'tokenizer: {source} is a weight file, which has no vocabulary in it. Name a folder '
            'or hub id with vocab.json and merges.txt, for Stable Diffusion 1.x from_pretrained='
            "'stable-diffusion-v1-5/stable-diffusion-v1-5', subfolder='tokenizer'"
        )
    if local_root(source) is None:
        return _fetched(source, subfolder, revision)
    found = resolve(source, subfolder, filenames=('tokenizer.json', _FILES[0]))
    if found.name == _FILES[0]:
        resolve(source, subfolder, filenames=_FILES[1:])
    return found.parent


def _fetched(source: str, subfolder: str | None, revision: str | None) -> Path:
    from mmvideo.checkpoints import hub

    whole = hub.find(source, subfolder, ('tokenizer.json',), revision)
    if whole is None:
        whole, *_ = [hub.fetch(source, subfolder, (name,), revision) for name in _FILES]
    for name in _EXTRA:
        hub.find(source, subfolder, (name,), revision, optional=True)
    return whole.parent
