"""transformers' CLIPVisionModelWithProjection: the image encoder of IP-Adapter and SVD."""

from __future__ import annotations

from typing import Any

from mmvideo.checkpoints.files import read_json
from mmvideo.checkpoints.load import cast, load_into, without_weights
from mmvideo.checkpoints.parts import clip_vision_tensors
from mmvideo.checkpoints.single_file import read_model_part
from mmvideo.checkpoints.sources import TRANSFORMERS_FILES, resolve
from mmvideo.errors import ConfigError
from mmvideo.models.borrowed.signatures import constructor_keys
from mmvideo.models.borrowed.source import SOURCE_KEYS, check_keys
from mmvideo.registry import MODELS


@MODELS.register_module(name='CLIPVisionModelWithProjection')
def build_image_encoder(
    from_pretrained: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    dtype: str = 'float32',
    **keys: Any,
) -> Any:
    """Build a ``CLIPVisionModelWithProjection``.

    Args:
        from_pretrained: Folder, hub id, ``package://NAME``, or a file, such as Stable Video
            Diffusion's; None draws new weights.
        subfolder: Folder of the part inside the source.
        variant: Which files of the source, such as 'fp16'.
        revision: Branch, tag or commit on the hub.
        dtype: 'float32', 'float16' or 'bfloat16'.
        **keys: Fields of ``CLIPVisionConfig``; with ``from_pretrained`` they override its config.

    Returns:
        A ``transformers.CLIPVisionModelWithProjection`` in evaluation mode.

    Raises:
        ConfigError: A key that ``CLIPVisionConfig`` does not have.
        WeightsError: Weights that are missing, damaged or do not fit.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    check_keys('CLIPVisionModelWithProjection', keys, accepted())
    if from_pretrained is None:
        return cast(CLIPVisionModelWithProjection(CLIPVisionConfig(**keys)), dtype).eval()
    config, tensors = read_model_part(
        from_pretrained,
        'image_encoder',
        subfolder,
        variant=variant,
        revision=revision,
        weights=TRANSFORMERS_FILES,
    )
    # The config of a whole CLIP nests the image half.
    settings = {**config.get('vision_config', config), **keys}
    with without_weights():
        encoder = CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(settings))
    named = clip_vision_tensors(tensors)
    return load_into(encoder, named, f'image encoder ({from_pretrained})', dtype).eval()


def accepted() -> set[str]:
    """Every config key of ``CLIPVisionModelWithProjection``."""
    return {*constructor_keys('transformers', 'CLIPVisionConfig'), *SOURCE_KEYS, 'dtype'}


build_image_encoder.accepted = accepted  # type: ignore[attr-defined]


@MODELS.register_module(name='CLIPImageProcessor')
def build_image_processor(
    from_pretrained: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    image_size: int | None = None,
) -> Any:
    """Build a ``CLIPImageProcessor``: pictures to what a CLIP image encoder takes.

    Args:
        from_pretrained: Folder, hub id or ``package://NAME`` with a ``preprocessor_config.json``.
        subfolder: Folder of the part inside the source.
        revision: Branch, tag or commit on the hub.
        image_size: Pixels of a side, in place of ``from_pretrained``, with CLIP's own mean and
            deviation.

    Raises:
        ConfigError: Neither or both of ``from_pretrained`` and ``image_size``.
        WeightsError: A file that is missing.
    """
    if (from_pretrained is None) == (image_size is None):
        raise ConfigError("CLIPImageProcessor takes either 'from_pretrained' or 'image_size'")
    from transformers import CLIPImageProcessor

    if from_pretrained is None:
        return CLIPImageProcessor(size={'shortest_edge': image_size}, crop_size=image_size)
    names = ('preprocessor_config.json',)
    path = resolve(from_pretrained, subfolder, filenames=names, revision=revision)
    return CLIPImageProcessor.from_dict(read_json(path))
