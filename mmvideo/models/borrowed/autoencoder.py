"""diffusers' VAEs: Stable Diffusion's of pictures (Rombach et al. 2022), that of SVD, whose decoder
sees neighbouring frames (Blattmann et al. 2023), and a small one in the latents of the first
(TAESD, github.com/madebyollin/taesd)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from mmvideo.checkpoints.load import cast, load_into, without_weights
from mmvideo.checkpoints.parts import vae_tensors
from mmvideo.checkpoints.single_file import read_model_part
from mmvideo.checkpoints.sources import DIFFUSERS_FILES
from mmvideo.models.borrowed.signatures import constructor_keys
from mmvideo.models.borrowed.source import SOURCE_KEYS, check_keys, keys_of
from mmvideo.registry import MODELS


@MODELS.register_module(name='AutoencoderKL')
def build_vae(
    from_pretrained: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    dtype: str = 'float32',
    **keys: Any,
) -> Any:
    """Build an ``AutoencoderKL``.

    Args:
        from_pretrained: Folder, hub id, ``package://NAME`` or a file that has the VAE in it; None
            draws new weights.
        subfolder: Folder of the part inside the source.
        variant: Which files of the source, such as 'fp16'.
        revision: Branch, tag or commit on the hub.
        dtype: 'float32', 'float16' or 'bfloat16'.
        **keys: Architecture keys of the class; with ``from_pretrained`` they override its config.

    Returns:
        A ``diffusers.AutoencoderKL`` in evaluation mode.

    Raises:
        ConfigError: A key that the class does not take.
        WeightsError: Weights that are missing, damaged or do not fit.
    """
    where = dict(subfolder=subfolder, variant=variant, revision=revision)
    return _build('AutoencoderKL', from_pretrained, where, dtype, keys)


@MODELS.register_module(name='AutoencoderKLTemporalDecoder')
def build_temporal_vae(
    from_pretrained: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    dtype: str = 'float32',
    **keys: Any,
) -> Any:
    """Build an ``AutoencoderKLTemporalDecoder``, SVD's VAE; see ``decode_clip``.

    Args:
        from_pretrained: Folder, hub id or ``package://NAME``; None draws new weights.
        subfolder: Folder of the part inside the source.
        variant: Which files of the source, such as 'fp16'.
        revision: Branch, tag or commit on the hub.
        dtype: 'float32', 'float16' or 'bfloat16'.
        **keys: Architecture keys of the class; with ``from_pretrained`` they override its config.

    Returns:
        A ``diffusers.AutoencoderKLTemporalDecoder`` in evaluation mode.

    Raises:
        ConfigError: A key that the class does not take.
        WeightsError: Weights that are missing, damaged or do not fit.
    """
    where = dict(subfolder=subfolder, variant=variant, revision=revision)
    return _build('AutoencoderKLTemporalDecoder', from_pretrained, where, dtype, keys)


@MODELS.register_module(name='AutoencoderTiny')
def build_tiny_vae(
    from_pretrained: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    dtype: str = 'float32',
    **keys: Any,
) -> Any:
    """Build an ``AutoencoderTiny``: it decodes the latents of another VAE, fast and roughly.

    Its latents are not drawn from a distribution and only near to those of the VAE that it stands
    for, so it is for making videos and not for training on them.

    Args:
        from_pretrained: Folder, hub id or ``package://NAME``; None draws new weights.
        subfolder: Folder of the part inside the source.
        variant: Which files of the source, such as 'fp16'.
        revision: Branch, tag or commit on the hub.
        dtype: 'float32', 'float16' or 'bfloat16'.
        **keys: Architecture keys of the class; with ``from_pretrained`` they override its config.

    Returns:
        A ``diffusers.AutoencoderTiny`` in evaluation mode.

    Raises:
        ConfigError: A key that the class does not take.
        WeightsError: Weights that are missing, damaged or do not fit.
    """
    where = dict(subfolder=subfolder, variant=variant, revision=revision)
    return _build('AutoencoderTiny', from_pretrained, where, dtype, keys)


def has_distribution(config: Mapping[str, Any]) -> bool:
    """Whether the VAE of a config gives a distribution of latents, as training draws from."""
    return config.get('type') != 'AutoencoderTiny'


def _build(
    name: str, source: str | None, where: Mapping[str, Any], dtype: str, keys: dict[str, Any]
) -> Any:
    """diffusers' class of that name, new or from a source."""
    import diffusers

    kind = getattr(diffusers, name)
    check_keys(name, keys, _accepted(name))
    if source is None:
        return cast(kind(**keys), dtype).eval()
    config, tensors = read_model_part(source, 'vae', **where, weights=DIFFUSERS_FILES)
    settings = {key: value for key, value in config.items() if not key.startswith('_')} | keys
    if name == 'AutoencoderTiny':
        settings.pop('block_out_channels', None)  # the class writes down its decoder's twice
    check_keys(f'the {name} config of {source}', settings, keys_of(kind))
    with without_weights():
        vae: Any = kind(**settings)
    return load_into(vae, vae_tensors(tensors), f'vae ({source})', dtype).eval()


def _accepted(name: str) -> set[str]:
    return {*constructor_keys('diffusers', name), *SOURCE_KEYS, 'dtype'}


build_vae.accepted = partial(_accepted, 'AutoencoderKL')  # type: ignore[attr-defined]
build_tiny_vae.accepted = partial(_accepted, 'AutoencoderTiny')  # type: ignore[attr-defined]
build_temporal_vae.accepted = partial(  # type: ignore[attr-defined]
    _accepted, 'AutoencoderKLTemporalDecoder'
)
