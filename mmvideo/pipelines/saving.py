"""Pipelines to folders, in the layout that diffusers reads."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmvideo.checkpoints.save import save_part, save_scheduler, save_tokenizer, write_json
from mmvideo.checkpoints.sources import PIPELINE
from mmvideo.editors.parts import export_motion_adapter, export_unet_config
from mmvideo.errors import InputError

_LOG = logging.getLogger(__name__)
_LIBRARIES = {
    'vae': 'diffusers',
    'unet': 'diffusers',
    'scheduler': 'diffusers',
    'motion_adapter': 'diffusers',
    'controlnet': 'diffusers',
}


def save_pipeline(pipeline: Any, folder: Path, variant: str | None = None) -> None:
    """Write every component, and last the index that names them, so a folder with it is whole.

    Raises:
        InputError: what has no folder of its own.
    """
    if variant is not None:
        raise InputError(f'variant={variant!r}: folders are written without one.')
    adapters = [adapter.name for adapter in getattr(pipeline.editor, 'adapters', ())]
    if adapters:
        _LOG.warning('not written, as they stand beside the weights: %s', ', '.join(adapters))
    index: dict[str, Any] = {'_class_name': type(pipeline).__name__}
    for name, value in pipeline.components.items():
        saved = _save(pipeline, name, value, folder / name)
        index[name] = (
            [None, None] if saved is None else [_LIBRARIES.get(name, 'transformers'), saved]
        )
    write_json(folder / PIPELINE, index)


def _save(pipeline: Any, name: str, value: Any, folder: Path) -> str | None:
    """Write a component; the name of the class that reads it."""
    unet = pipeline.editor.unet
    if name == 'unet':
        config = export_unet_config(unet)
        save_part(folder, config, _plain_state(unet))
        return config['_class_name']
    if name == 'motion_adapter':
        if not pipeline._saves_motion_adapter:
            return None  # its modules are in the denoiser, which is all that readers need
        config, tensors = export_motion_adapter(unet)
        save_part(folder, config, tensors)
        return 'MotionAdapter'
    if value is None:
        return None
    if name == 'scheduler':
        save_scheduler(folder, value)
    elif name == 'tokenizer':
        save_tokenizer(folder, getattr(value, 'base', value))
        return 'CLIPTokenizer'
    elif name == 'feature_extractor':
        value.save_pretrained(folder)
        return 'CLIPImageProcessor'  # its other name is unknown to older transformers
    elif name == 'controlnet':
        return _save_controls(value, folder)
    else:
        save_part(folder, _config(value), value)
    return type(value).__name__


def _plain_state(unet: Any) -> dict[str, Any]:
    """The weights, without what adapters keep in the layers."""
    return dict(unet.state_dict())


def _config(module: Any) -> Mapping[str, Any]:
    config = module.config
    return config.to_dict() if hasattr(config, 'to_dict') else dict(config)


def _save_controls(value: Any, folder: Path) -> str:
    nets = value if isinstance(value, list) else [value]
    for place, net in enumerate(nets):
        where = folder if place == 0 else folder.with_name(f'{folder.name}_{place}')
        save_part(where, net.net_config, dict(net.net.state_dict()))
    return nets[0].net_config['_class_name'] if len(nets) == 1 else 'MultiControlNetModel'
