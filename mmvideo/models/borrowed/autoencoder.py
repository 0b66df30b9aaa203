"""diffusers' VAEs: Stable Diffusion's of pictures (Rombach et al. 2022), that of SVD, whose decoder
sees neighbouring frames (Blattmann et al. 2023), and a small one in the latents of the first
(TAESD, github.com/madebyollin/taesd)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from torch import nn

from mmvideo.checkpoints.load import cast, load_into, without_weights
from mmvideo.checkpoints.parts import vae_tensors
from mmvideo.checkpoints.single_file import read_model_part
from mmvideo.checkpoints.sources import DIFFUSERS_FILES
from mmvideo.errors import ConfigError
from mmvideo.models.borrowed.signatures import constructor_keys
from mmvideo.models.borrowed.source import SOURCE_KEYS, check_keys, keys_of
from mmvideo.models.borrowed.temporal_decoder import begin_as
from mmvideo.models.unet.context import check_divides
from mmvideo.registry import MODELS

_GROUPS = 'norm_num_groups'
# Of an AutoencoderKL, what SVD's VAE has as well.
_SHARED = (
    *('in_channels', 'out_channels', 'down_block_types', 'block_out_channels', 'layers_per_block'),
    *('latent_channels', 'sample_size', 'scaling_factor', 'force_upcast', _GROUPS),
)


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
    image_weights: Mapping[str, Any] | None = None,
    norm_num_groups: int | None = None,
    **keys: Any,
) -> Any:
    """Build an ``AutoencoderKLTemporalDecoder``, SVD's VAE; see ``decode_clip``.

    Args:
        from_pretrained: Folder, hub id or ``package://NAME``; None draws new weights.
        subfolder: Folder of the part inside the source.
        variant: Which files of the source, such as 'fp16'.
        revision: Branch, tag or commit on the hub.
        dtype: 'float32', 'float16' or 'bfloat16'.
        image_weights: Where an ``AutoencoderKL`` is, in place of ``from_pretrained``: the same
            architecture and layers, which decode each frame as that one does, see ``begin_as``.
        norm_num_groups: Of every GroupNorm. diffusers has 32, too many for small widths.
        **keys: Architecture keys of the class; with ``from_pretrained`` they override its config.

    Returns:
        A ``diffusers.AutoencoderKLTemporalDecoder`` in evaluation mode.

    Raises:
        ConfigError: A key that the class does not take.
        WeightsError: Weights that are missing, damaged or do not fit.
    """
    where = dict(subfolder=subfolder, variant=variant, revision=revision)
    name = 'AutoencoderKLTemporalDecoder'
    if norm_num_groups is not None:
        keys['norm_num_groups'] = norm_num_groups
    if image_weights is None:
        return _build(name, from_pretrained, where, dtype, keys)
    if from_pretrained is not None:
        raise ConfigError(f'{name} takes from_pretrained or image_weights, not both')
    if not image_weights.get('from_pretrained'):
        raise ConfigError(f'{name}: image_weights needs from_pretrained')
    picture = build_vae(**{k: v for k, v in image_weights.items() if k != 'type'})
    shared = {key: picture.config[key] for key in _SHARED}
    vae = _build(name, None, {}, dtype, shared | keys)
    return cast(begin_as(vae, picture), dtype)


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
        return cast(_made(kind, keys), dtype).eval()
    config, tensors = read_model_part(source, 'vae', **where, weights=DIFFUSERS_FILES)
    settings = {key: value for key, value in config.items() if not key.startswith('_')} | keys
    if name == 'AutoencoderTiny':
        settings.pop('block_out_channels', None)  # the class writes down its decoder's twice
    check_keys(f'the {name} config of {source}', settings, {*keys_of(kind), _GROUPS})
    with without_weights():
        vae = _made(kind, settings)
    return load_into(vae, vae_tensors(tensors), f'vae ({source})', dtype).eval()


def _made(kind: Any, settings: Mapping[str, Any]) -> Any:
    """diffusers' class, with as many groups in its norms as the settings say."""
    if _GROUPS not in settings or _GROUPS in keys_of(kind):
        return kind(**settings)
    with _groups_of(settings[_GROUPS]):
        vae = kind(**{key: value for key, value in settings.items() if key != _GROUPS})
    vae.register_to_config(**{_GROUPS: settings[_GROUPS]})
    return vae


@contextlib.contextmanager
def _groups_of(groups: int) -> Iterator[None]:
    """GroupNorms have this many groups, whatever the code that makes them says."""
    original = nn.GroupNorm.__init__

    def init(self: nn.GroupNorm, num_groups: int, num_channels: int, *args: Any, **kw: Any) -> None:
        check_divides(groups, num_channels, _GROUPS)
        original(self, groups, num_channels, *args, **kw)

    nn.GroupNorm.__init__ = init  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.GroupNorm.__init__ = original  # type: ignore[method-assign]


def _accepted(name: str) -> set[str]:
    own = {'image_weights', _GROUPS} if name == 'AutoencoderKLTemporalDecoder' else set()
    return {*constructor_keys('diffusers', name), *SOURCE_KEYS, 'dtype', *own}


build_vae.accepted = partial(_accepted, 'AutoencoderKL')  # type: ignore[attr-defined]
build_tiny_vae.accepted = partial(_accepted, 'AutoencoderTiny')  # type: ignore[attr-defined]
build_temporal_vae.accepted = partial(  # type: ignore[attr-defined]
    _accepted, 'AutoencoderKLTemporalDecoder'
)
