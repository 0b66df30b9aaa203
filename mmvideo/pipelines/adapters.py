"""Textual inversion and IP-Adapter of a pipeline, as diffusers' loaders call them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mmvideo.errors import InputError
from mmvideo.models.adapters.ip_adapter import IPAdapter
from mmvideo.models.adapters.textual_inversion import TextualInversion
from mmvideo.pipelines.access import asks_hub
from mmvideo.pipelines.handles import refuse_others
from mmvideo.pipelines.loras import Loras, as_source
from mmvideo.registry import MODELS


class Adapters(Loras):
    """Adapters over the editor's; ``_own_parts`` has an image encoder of the caller, if any."""

    _own_parts: dict[str, Any]

    # Textual inversion ------------------------------------------------------------------------

    @asks_hub
    def load_textual_inversion(
        self,
        pretrained_model_name_or_path: Any,
        token: str | Sequence[str] | None = None,
        tokenizer: Any = None,
        text_encoder: Any = None,
        *,
        weight_name: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        **others: Any,
    ) -> None:
        """Add words of one source or several.

        Args:
            pretrained_model_name_or_path: file, folder, hub id, tensors by word, or a list.
            token: the word, or a list of them; None takes the one in the file.
            tokenizer: refused, as is ``text_encoder``: the pipeline has its own.
            text_encoder: likewise.
            weight_name: file inside the source.
            subfolder: folder inside the source.
            revision: branch, tag or commit on the hub.
        """
        refuse_others('load_textual_inversion', others, ('token', 'weight_name', 'subfolder'))
        if tokenizer is not None or text_encoder is not None:
            raise InputError('load_textual_inversion teaches the tokenizer of the pipeline itself.')
        sources = _as_list(pretrained_model_name_or_path)
        tokens = _as_list(token)
        if len(tokens) == 1:
            tokens = tokens * len(sources)
        if len(tokens) != len(sources):
            raise InputError(f'{len(tokens)} tokens for {len(sources)} textual inversions.')
        for source, word in zip(sources, tokens, strict=True):
            with as_source(source, revision) as (place, tag):
                where = dict(from_pretrained=place, weight_name=weight_name, subfolder=subfolder)
                name = f'word_{self._counted()}'
                config = dict(where, type='TextualInversion', token=word, name=name, revision=tag)
                self.editor.add_adapter(config)

    def unload_textual_inversion(
        self,
        tokens: str | Sequence[str] | None = None,
        tokenizer: Any = None,
        text_encoder: Any = None,
    ) -> None:
        """Forget words; None forgets all."""
        words = [a for a in self.editor.adapters if isinstance(a, TextualInversion)]
        wanted = [word.token for word in words] if tokens is None else _as_list(tokens)
        for token in wanted:
            found = [word for word in words if word.token == token]
            if not found:
                raise InputError(
                    f'there is no word {token!r}; there are: {[w.token for w in words]}'
                )
            self.editor.remove_adapter(found[0].name)

    def _counted(self) -> int:
        self._words = getattr(self, '_words', 0) + 1
        return self._words - 1

    # IP-Adapter -------------------------------------------------------------------------------

    @asks_hub
    def load_ip_adapter(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        subfolder: str | Sequence[str | None] | None = None,
        weight_name: str | Sequence[str | None] | None = None,
        image_encoder_folder: str | None = 'image_encoder',
        *,
        revision: str | None = None,
        **others: Any,
    ) -> None:
        """Take these IP-Adapters in place of those there are; one for each name of a list.

        Args:
            pretrained_model_name_or_path_or_dict: file, folder, hub id or tensors; or a list.
            subfolder: folder of the weights inside the source; one, or one each.
            weight_name: file; one, or one each.
            image_encoder_folder: of the image encoder: a name stands for one beside the weights,
                with a slash for one from the root of the source; None is without. The pipeline's
                own ``image_encoder`` goes before it.
            revision: branch, tag or commit on the hub.
        """
        refuse_others('load_ip_adapter', others, ('subfolder', 'weight_name'))
        columns = [_as_list(pretrained_model_name_or_path_or_dict), _as_list(subfolder)]
        columns.append(_as_list(weight_name))
        count = max(map(len, columns))
        if any(len(column) not in (1, count) for column in columns):
            raise InputError(
                f'load_ip_adapter: {len(columns[0])} sources, {len(columns[1])} subfolders and '
                f'{len(columns[2])} weight names: give one or as many of each.'
            )
        rows = [tuple(column[i % len(column)] for column in columns) for i in range(count)]
        self.unload_ip_adapter()
        own = self._own_parts.get('image_encoder')
        encoder = None if own is not None else image_encoder_folder
        for place, (source, folder, file) in enumerate(rows):
            tensors = isinstance(source, Mapping)
            with as_source(_flat(source), revision) as (where, tag):
                adapter = self.editor.add_adapter(
                    dict(
                        type='IPAdapter',
                        from_pretrained=where,
                        subfolder=folder,
                        weight_name=file,
                        revision=tag,
                        name=f'ip_adapter_{place}',
                        image_encoder=None if tensors else encoder,
                    )
                )
            if own is not None:
                self._give_encoder(adapter, own)

    def _give_encoder(self, adapter: IPAdapter, encoder: nn.Module) -> None:
        adapter.image_encoder = encoder.requires_grad_(False)
        processor = self._own_parts.get('feature_extractor')
        if processor is None:
            size = adapter.image_encoder.config.image_size
            processor = MODELS.build(dict(type='CLIPImageProcessor', image_size=size))
        adapter.image_processor = processor

    def set_ip_adapter_scale(self, scale: Any) -> None:
        """How strongly pictures work: a number or a dict by blocks, or a list with one for each."""
        adapters = self._ip_adapters()
        scales = list(scale) if isinstance(scale, list) else [scale] * len(adapters)
        if not adapters or len(scales) != len(adapters):
            raise InputError(f'{len(scales)} scales for {len(adapters)} IP-Adapters.')
        for adapter, value in zip(adapters, scales, strict=True):
            adapter.set_scale(value)

    def unload_ip_adapter(self) -> None:
        """Remove all IP-Adapters."""
        for adapter in self._ip_adapters():
            self.editor.remove_adapter(adapter.name)

    def _ip_adapters(self) -> list[IPAdapter]:
        return [adapter for adapter in self.editor.adapters if isinstance(adapter, IPAdapter)]

    @property
    def image_encoder(self) -> Any:
        """The caller's, else that of the first IP-Adapter; None without."""
        return self._image_part('image_encoder', 'image_encoder')

    @property
    def feature_extractor(self) -> Any:
        """Likewise, what prepares pictures for it."""
        return self._image_part('feature_extractor', 'image_processor')

    def _image_part(self, name: str, attribute: str) -> Any:
        own = self._own_parts.get(name)
        found = [getattr(adapter, attribute) for adapter in self._ip_adapters()]
        return own if own is not None else next((part for part in found if part is not None), None)


def _flat(source: Any) -> Any:
    """The two groups of an IP-Adapter's ``.bin`` file as names with dots."""
    if not isinstance(source, Mapping) or not any(isinstance(v, Mapping) for v in source.values()):
        return source
    return {
        f'{group}.{name}': value for group, found in source.items() for name, value in found.items()
    }


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
