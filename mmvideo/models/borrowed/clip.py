"""transformers' CLIPTextModel: the prompt encoder of Stable Diffusion 1.x."""

from __future__ import annotations

from typing import Any

from mmvideo.checkpoints.load import cast, load_into, without_weights
from mmvideo.checkpoints.parts import clip_text_tensors
from mmvideo.checkpoints.single_file import read_model_part
from mmvideo.checkpoints.sources import TRANSFORMERS_FILES
from mmvideo.models.borrowed.signatures import constructor_keys
from mmvideo.models.borrowed.source import SOURCE_KEYS, check_keys
from mmvideo.registry import MODELS


@MODELS.register_module(name='CLIPTextModel')
def build_text_encoder(
    from_pretrained: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    dtype: str = 'float32',
    **keys: Any,
) -> Any:
    """Build a ``CLIPTextModel``.

    Args:
        from_pretrained: Folder, hub id, ``package://NAME`` or a file that has the text encoder in
            it; None draws new weights.
        subfolder: Folder of the part inside the source.
        variant: Which files of the source, such as 'fp16'.
        revision: Branch, tag or commit on the hub.
        dtype: 'float32', 'float16' or 'bfloat16'.
        **keys: Fields of ``CLIPTextConfig``; with ``from_pretrained`` they override its config.

    Returns:
        A ``transformers.CLIPTextModel`` in evaluation mode.

    Raises:
        ConfigError: A key that ``CLIPTextConfig`` does not have.
        WeightsError: Weights that are missing, damaged or do not fit.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    check_keys('CLIPTextModel', keys, accepted())
    if from_pretrained is None:
        return cast(CLIPTextModel(CLIPTextConfig(**_ending(keys))), dtype).eval()
    config, tensors = read_model_part(
        from_pretrained, 'text_encoder', subfolder, variant=variant, revision=revision,
        weights=TRANSFORMERS_FILES,
    )  # fmt: skip
    # The config of a whole CLIP nests the text half.
    settings = {**config.get('text_config', config), **keys}
    with without_weights():
        encoder = CLIPTextModel(CLIPTextConfig.from_dict(settings))
    named = clip_text_tensors(tensors, encoder.state_dict())
    return load_into(encoder, named, f'text encoder ({from_pretrained})', dtype).eval()


def _ending(keys: dict[str, Any]) -> dict[str, Any]:
    """The start and end tokens are the last two of a CLIP vocabulary, whatever its size."""
    if 'vocab_size' not in keys:
        return keys
    end = keys['vocab_size'] - 1
    return dict(bos_token_id=end - 1, eos_token_id=end, pad_token_id=end) | keys


def accepted() -> set[str]:
    """Every config key of ``CLIPTextModel``."""
    return {*constructor_keys('transformers', 'CLIPTextConfig'), *SOURCE_KEYS, 'dtype'}


build_text_encoder.accepted = accepted  # type: ignore[attr-defined]
