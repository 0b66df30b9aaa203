"""diffusers' AutoencoderKL: the image VAE of Stable Diffusion (Rombach et al. 2022)."""

from __future__ import annotations

from typing import Any

from mmvideo.checkpoints.load import cast, load_into, read_part, without_weights
from mmvideo.checkpoints.parts import vae_tensors
from mmvideo.checkpoints.sources import DIFFUSERS_FILES
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
        from_pretrained: Folder, hub id or ``package://NAME``; None draws new weights.
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
    from diffusers import AutoencoderKL

    check_keys('AutoencoderKL', keys, accepted())
    if from_pretrained is None:
        new: Any = AutoencoderKL(**keys)
        return cast(new, dtype).eval()
    config, tensors = read_part(
        from_pretrained, subfolder, variant=variant, revision=revision, weights=DIFFUSERS_FILES
    )
    settings = {key: value for key, value in config.items() if not key.startswith('_')} | keys
    check_keys(f'the AutoencoderKL config of {from_pretrained}', settings, keys_of(AutoencoderKL))
    with without_weights():
        vae: Any = AutoencoderKL(**settings)
    return load_into(vae, vae_tensors(tensors), f'vae ({from_pretrained})', dtype).eval()


def accepted() -> set[str]:
    """Every config key of ``AutoencoderKL``."""
    from diffusers import AutoencoderKL

    return {*keys_of(AutoencoderKL), *SOURCE_KEYS, 'dtype'}


build_vae.accepted = accepted  # type: ignore[attr-defined]
