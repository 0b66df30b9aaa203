"""One part of Stable Video Diffusion or I2VGen-XL, out of a single file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from mmvideo.checkpoints.layouts import FAMILIES, i2vgen_xl, recognise, svd
from mmvideo.errors import WeightsError

_LOG = logging.getLogger(__name__)
_Tensors = Mapping[str, Tensor]
Part = tuple[dict[str, Any], dict[str, Tensor]]


def video_part(tensors: _Tensors, part: str, source: str) -> Part | None:
    """A part's config and tensors in our names, of a file of these families.

    Args:
        tensors: of the file, in the original names or in diffusers'.
        part: 'unet', 'vae' or 'image_encoder'.
        source: for messages.

    Returns:
        None where the file is of no such family.

    Raises:
        WeightsError: the family has no such part, or the file has not.
    """
    if svd.is_svd(tensors):
        return _out_of_svd(tensors, part, source)
    family = recognise(tensors)
    if family not in _READERS:
        return None
    its_part, read = _READERS[family]
    if part != its_part:
        raise WeightsError(f'{source} is {FAMILIES[family].title}, expected the {part}')
    return read(tensors, source)


def _out_of_svd(tensors: _Tensors, part: str, source: str) -> Part:
    parts, leftovers = svd.sort_svd(tensors, source)
    for reason, keys in leftovers.items():
        _LOG.info('%s: %d tensors left out: %s', source, len(keys), reason)
    if part not in parts:
        raise WeightsError(
            f'{source} is {FAMILIES["svd"].title} and holds no {part}, only {", ".join(parts)}'
        )
    found = svd.LAYOUTS[part].to_ours(parts[part])
    return svd.describe_svd(part, found, source), found


def _i2vgen(tensors: _Tensors, source: str) -> Part:
    found = i2vgen_xl.UNET.to_ours(tensors)
    return i2vgen_xl.describe_i2vgen(found, source), found


def _i2vgen_in_our_names(tensors: _Tensors, source: str) -> Part:
    return i2vgen_xl.describe_i2vgen(tensors, source), dict(tensors)


def _svd_in_our_names(part: str) -> Callable[[_Tensors, str], Part]:
    return lambda tensors, source: (svd.describe_svd(part, tensors, source), dict(tensors))


# Which part a file of each family is, and how it is read.
_READERS: dict[str, tuple[str, Callable[[_Tensors, str], Part]]] = {
    'svd_unet': ('unet', _svd_in_our_names('unet')),
    'svd_vae': ('vae', _svd_in_our_names('vae')),
    'i2vgen_xl': ('unet', _i2vgen),
    'i2vgen_xl_unet': ('unet', _i2vgen_in_our_names),
}
