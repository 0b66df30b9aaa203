"""What Stable Diffusion 1.5's parts are, for a plan that is made before their files are here.

The numbers are those of the published files: widths from their ``config.json``, counts of their
values. Of motion modules it is AnimateDiff v2's count, the largest of the family; those without a
module in the middle have 417,137,600.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EDITORS = ('TextToImage', 'AnimateDiff', 'PIA')
_WIDTHS = (320, 640, 1280, 1280)
SETTINGS: dict[str, dict[str, Any]] = {
    'vae': dict(block_out_channels=(128, 256, 512, 512), latent_channels=4),
    'unet': dict(block_out_channels=_WIDTHS, cross_attention_dim=768, sample_size=64),
    'text_encoder': dict(hidden_size=768, num_hidden_layers=12),
    'motion_module': dict(block_out_channels=_WIDTHS),
}
PARAMETERS = {
    'vae': 83_653_863,
    'unet': 859_520_964,
    'text_encoder': 123_060_480,
    'motion_module': 453_209_280,
}


def fits(editor: str | None, name: str, settings: Mapping[str, Any]) -> bool:
    """Whether a part can be Stable Diffusion 1.5's, from what is known of it.

    Args:
        editor: the model's type.
        name: of the part.
        settings: its ``config.json``; empty where that is not here.
    """
    usual = SETTINGS.get(name)
    if editor not in EDITORS or usual is None:
        return False
    return all(_same(settings.get(key, value), value) for key, value in usual.items())


def _same(found: Any, expected: Any) -> bool:
    return tuple(found) == expected if isinstance(expected, tuple) else found == expected
