"""Settings of an editor that change how much memory it needs: offloading, and the VAE in pieces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmvideo.editors.checks import check_range
from mmvideo.editors.offload import check_mode
from mmvideo.errors import ConfigError, InputError, nearest

_TILING = ('tile', 'overlap')
_WHOLE_CLIPS = 'AutoencoderKLTemporalDecoder'


def check_memory(model: Mapping[str, Any]) -> None:
    """Refuse settings of memory in ``cfg.model`` that cannot be.

    Raises:
        ConfigError: naming the key and the value.
    """
    check_mode(model.get('offload'))
    tiling, slicing = model.get('vae_tiling'), model.get('vae_slicing')
    _read_tiling(tiling)
    if slicing not in (None, True, False):
        raise ConfigError(f'vae_slicing={slicing!r}: expected True or False.')
    kind = (model.get('vae') or {}).get('type')
    for name, value in (('vae_tiling', tiling), ('vae_slicing', slicing)):
        if value and kind == _WHOLE_CLIPS:
            raise ConfigError(
                f'{name}={value!r}: {kind} norms over whole clips, so its pieces would not fit '
                'together. A smaller decode_chunk_size needs less memory.'
            )


def cut_vae(vae: Any, tiling: Any, slicing: bool) -> None:
    """Have a VAE work in pieces.

    Args:
        vae: an ``AutoencoderKL``.
        tiling: True for overlapping tiles of the size of its training, or ``dict(tile=256,
            overlap=0.25)`` in pixels and as a share; a picture that one tile covers is not cut.
        slicing: one picture after the other, whatever the chunk.

    Raises:
        ConfigError: naming the setting.
    """
    if slicing:
        vae.enable_slicing()
    settings = _read_tiling(tiling)
    if settings is None:
        return
    vae.enable_tiling()
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    tile = settings.get('tile', vae.tile_sample_min_size)
    overlap = settings.get('overlap', vae.tile_overlap_factor)
    if tile % scale or int(tile // scale * (1 - overlap)) < 1:
        raise ConfigError(
            f'vae_tiling.tile={tile}: expected a multiple of {scale} pixels, larger than its '
            f'overlap of {overlap}; such as {max(1, tile // scale) * scale + scale}.'
        )
    vae.tile_sample_min_size, vae.tile_latent_min_size = tile, tile // scale
    vae.tile_overlap_factor = overlap


def _read_tiling(value: Any) -> dict[str, Any] | None:
    if value is None or value is False:
        return None
    if value is True:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f'vae_tiling={value!r}: expected True or dict(tile=256, overlap=0.25).')
    for key in value:
        if key not in _TILING:
            hint = nearest(key, _TILING)
            raise ConfigError(f'vae_tiling takes no {key!r}; it takes {", ".join(_TILING)}.{hint}')
    tile = value.get('tile', 8)
    if isinstance(tile, bool) or not isinstance(tile, int) or tile < 1:
        raise ConfigError(f'vae_tiling.tile={tile!r}: expected pixels, a positive integer.')
    try:
        check_range('vae_tiling.overlap', value.get('overlap', 0.25), 0, 0.9)
    except InputError as error:
        raise ConfigError(str(error)) from None
    return dict(value)
