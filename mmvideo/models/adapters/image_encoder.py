"""Where an IP-Adapter's image encoder is, and how pictures are prepared for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmvideo.checkpoints.catalog import find_entry, is_listed
from mmvideo.checkpoints.sources import TRANSFORMERS_FILES, local_root, resolve_weights

USUAL_FOLDER = 'image_encoder'
_CATALOGUE = 'catalog://ip-adapter-image-encoder'


def encoder_config(
    encoder: str | Mapping[str, Any] | None,
    source: str | Path,
    subfolder: str | None,
    revision: str | None,
) -> dict[str, Any] | None:
    """The config of the image encoder that ``IPAdapter.image_encoder`` stands for."""
    if encoder is None:
        return None
    if not isinstance(encoder, str):
        return dict(encoder)
    config: dict[str, Any] = dict(type='CLIPVisionModelWithProjection')
    if encoder == USUAL_FOLDER and _of_the_catalogue(source):
        return dict(config, from_pretrained=_CATALOGUE, revision=revision)
    root = local_root(source)
    if root is not None and root.is_file():
        return dict(config, from_pretrained=str(root.parent / encoder))
    folder = encoder if '/' in encoder or not subfolder else f'{subfolder}/{encoder}'
    return dict(config, from_pretrained=str(source), subfolder=folder, revision=revision)


def _of_the_catalogue(source: str | Path) -> bool:
    """Whether the catalogue lists an IP-Adapter whose encoder it lists by itself."""
    if not isinstance(source, str) or not is_listed(source):
        return False
    entry = find_entry(source)
    return entry.family.startswith('ip_adapter') and entry.base == 'sd15'


def encoder_files(config: Mapping[str, Any] | None) -> list[Path]:
    """The weight files that a config of an image encoder names."""
    if config is None or config.get('from_pretrained') is None:
        return []
    keys = ('subfolder', 'variant', 'revision')
    where = {key: config[key] for key in keys if config.get(key) is not None}
    return resolve_weights(config['from_pretrained'], filenames=TRANSFORMERS_FILES, **where)


def processor_config(encoder: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The folder's own preprocessing, where it says one; CLIP's elsewhere."""
    config: dict[str, Any] = dict(type='CLIPImageProcessor')
    source, subfolder = encoder.get('from_pretrained'), encoder.get('subfolder')
    root = None if source is None else local_root(source)
    folder = None if root is None else root / (subfolder or '')
    if folder is not None and (folder / 'preprocessor_config.json').is_file():
        return dict(config, from_pretrained=str(folder))
    return dict(config, image_size=size)
