"""Textual inversion: new words of a prompt, each with token vectors of its own (Gal et al. 2022).

The text encoder's vocabulary is not resized. A new word gets ids beyond it, which the embedding
layer answers from a table beside its weight; so the weight is the same before, while and after.

Shapes: V vectors of a word, D width of the text encoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmvideo.checkpoints.files import read_content
from mmvideo.errors import ConfigError, WeightsError
from mmvideo.models.adapters.base import Adapter
from mmvideo.registry import MODELS

# Widths of the text encoders that public files were trained with.
_BASES = {768: 'Stable Diffusion 1.x', 1024: 'Stable Diffusion 2.x', 1280: 'SDXL'}


@MODELS.register_module()
class TextualInversion(Adapter):
    """A word for prompts and negative prompts.

    Args:
        from_pretrained: file of AUTOMATIC1111 (.pt, .safetensors) or diffusers; or a folder or
            hub id with ``learned_embeds``.
        token: the word, such as ``'<cat>'``; None takes the one in the file, or the file's name
            where it has none. Found in prompts in any case, as a whole word.
        name: see ``Adapter``; None takes the source's own name.
        subfolder: see ``Adapter``.
        weight_name: see ``Adapter``.
        revision: see ``Adapter``.
    """

    filenames: ClassVar = ('learned_embeds.safetensors', 'learned_embeds.bin')
    has_scale: ClassVar = False

    def __init__(
        self,
        from_pretrained: str | Path,
        token: str | None = None,
        name: str | None = None,
        subfolder: str | None = None,
        weight_name: str | None = None,
        revision: str | None = None,
    ) -> None:
        super().__init__(from_pretrained, name, subfolder, weight_name, revision)
        written, self.vectors = read_vectors(self.path)
        self.token = check_token(written if token is None else token)

    @classmethod
    def check(cls, config: Mapping[str, Any]) -> None:
        """See ``Adapter.check``: the word."""
        if config.get('token') is not None:
            check_token(config['token'])

    def __repr__(self) -> str:
        return f'TextualInversion({self.name!r}, token={self.token!r}, vectors={len(self.vectors)})'

    def attach(self, editor: Any) -> None:
        """Teach the editor the word.

        Raises:
            WeightsError: vectors of another width than the text encoder's.
            ConfigError: the tokenizer knows the word already.
        """
        words = known_words(editor.tokenizer)
        width = editor.text_encoder.get_input_embeddings().weight.shape[1]
        if self.vectors.shape[1] != width:
            raise WeightsError(
                f'{self.source} has vectors of {_with_base(self.vectors.shape[1])}, the text '
                f'encoder here of {_with_base(width)}'
            )
        room = editor.tokenizer.model_max_length - 2
        if len(self.vectors) > room:
            raise WeightsError(
                f'{self.source}: a word of {len(self.vectors)} vectors does not fit into the '
                f'{room} tokens that the text encoder sees at once'
            )
        taken = {word.lower() for word in words} | set(editor.tokenizer.get_vocab())
        if self.token.lower() in taken:
            raise ConfigError(
                f'token={self.token!r} is a word of the tokenizer already: give another token'
            )
        _teach(editor, {**words, self.token: self.vectors})

    def detach(self, editor: Any) -> None:
        """Make the editor forget the word."""
        words = known_words(editor.tokenizer)
        _teach(editor, {word: v for word, v in words.items() if word != self.token})


class WordTokenizer:
    """A tokenizer that knows more words; everything else is the base's.

    Args:
        base: a CLIP tokenizer.
        words: word to vectors [V, D].
        first: id of the first vector of the first word; the others count on from it.
    """

    def __init__(self, base: Any, words: Mapping[str, Tensor], first: int) -> None:
        self.base, self.words = base, dict(words)
        self._ids: dict[str, list[int]] = {}
        for word, vectors in words.items():
            self._ids[word.lower()] = list(range(first, first + len(vectors)))
            first += len(vectors)
        # The longest word that fits counts; one that starts or ends like a word stands alone.
        longest = sorted(words, key=len, reverse=True)
        self._pattern = re.compile('|'.join(map(_whole, longest)), re.IGNORECASE)

    def units(self, text: str) -> list[list[int]]:
        """Token ids of a prompt, in groups that must stay together."""
        found, end = [], 0
        for match in self._pattern.finditer(text):
            found += [[i] for i in self._plain(text[end : match.start()])]
            found.append(self._ids[match[0].lower()])
            end = match.end()
        return found + [[i] for i in self._plain(text[end:])]

    def _plain(self, text: str) -> list[int]:
        options = dict(add_special_tokens=False, truncation=False, verbose=False)
        return self.base(text, **options)['input_ids'] if text.strip() else []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.base(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name == 'base':  # asked for while it is being copied
            raise AttributeError(name)
        return getattr(self.base, name)


class WordEmbedding(nn.Embedding):
    """An embedding layer that shares another's weight and answers ids beyond it from a table."""

    vectors: Tensor

    def __init__(self, plain: nn.Embedding, vectors: Tensor) -> None:
        super().__init__(plain.num_embeddings, plain.embedding_dim, _weight=plain.weight.detach())
        self.weight = plain.weight
        self.register_buffer('vectors', vectors.to(plain.weight.detach()), persistent=False)
        self.__dict__['plain'] = plain  # not a child, or its weight would be named twice

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [...] -> [..., D]."""
        count = self.num_embeddings
        known = super().forward(ids.clamp(max=count - 1))
        return torch.where(
            ids.lt(count)[..., None], known, self.vectors[(ids - count).clamp(min=0)]
        )

    def restored(self) -> nn.Embedding:
        """The layer that this one stands for, with the weight as it is now."""
        plain = self.__dict__['plain']
        plain.weight = self.weight
        return plain


def read_vectors(path: str | Path) -> tuple[str, Tensor]:
    """The word that a file names, or the file's own name, and its vectors [V, D].

    Raises:
        WeightsError: it is no textual inversion, or one for two text encoders.
    """
    path = Path(path)
    content = read_content(path)
    if isinstance(content, Tensor):
        return path.stem, _vectors(content, path)
    if not isinstance(content, Mapping):
        raise WeightsError(f'{path} holds a {type(content).__name__}, expected token vectors')
    if 'clip_g' in content:
        raise WeightsError(f'{path} is a textual inversion for SDXL, with two text encoders')
    if isinstance(content.get('string_to_param'), Mapping):
        vectors = content['string_to_param'].get('*')
        return str(content.get('name') or path.stem), _vectors(vectors, path)
    if 'emb_params' in content:
        return path.stem, _vectors(content['emb_params'], path)
    if len(content) == 1:
        word, vectors = next(iter(content.items()))
        return str(word), _vectors(vectors, path)
    keys = ', '.join(map(repr, list(content)[:5])) or 'nothing'
    raise WeightsError(f'{path} is no textual inversion; it holds {keys}')


def check_token(token: Any) -> str:
    """The word as it will be looked for.

    Raises:
        ConfigError: it is empty or has spaces around it.
    """
    if not isinstance(token, str) or not token or token != token.strip():
        raise ConfigError(
            f"token={token!r}: expected a word such as '<cat>', without spaces around"
        )
    return token


def known_words(tokenizer: Any) -> dict[str, Tensor]:
    """The words that textual inversions have taught a tokenizer."""
    return dict(tokenizer.words) if isinstance(tokenizer, WordTokenizer) else {}


def _teach(editor: Any, words: Mapping[str, Tensor]) -> None:
    """Let the editor know exactly these words."""
    tokenizer, encoder = editor.tokenizer, editor.text_encoder
    base = tokenizer.base if isinstance(tokenizer, WordTokenizer) else tokenizer
    layer = encoder.get_input_embeddings()
    plain = layer.restored() if isinstance(layer, WordEmbedding) else layer
    if words:
        layer = WordEmbedding(plain, torch.cat([v.float() for v in words.values()]))
        tokenizer = WordTokenizer(base, words, plain.num_embeddings)
    else:
        layer, tokenizer = plain, base
    encoder.set_input_embeddings(layer)
    editor.tokenizer = tokenizer


def _vectors(value: Any, path: Path) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim not in (1, 2) or not value.numel():
        raise WeightsError(f'{path} is no textual inversion: expected vectors [V, D]')
    if not value.is_floating_point():
        raise WeightsError(f'{path} is no textual inversion: its values are {value.dtype}')
    return value.detach().reshape(-1, value.shape[-1]).clone()


def _whole(word: str) -> str:
    before = r'(?<!\w)' if re.match(r'\w', word) else ''
    after = r'(?!\w)' if re.search(r'\w$', word) else ''
    return before + re.escape(word) + after


def _with_base(width: int) -> str:
    base = _BASES.get(width)
    return f'width {width} ({base})' if base else f'width {width}'
