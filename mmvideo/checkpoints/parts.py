"""Older and foreign names of the borrowed parts' weights, mapped onto the installed libraries'.

The mapping follows the names that the target module has, not a library version, and it is
followed by the strict check of ``load_into``: what is not mapped here is named there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

_OLD_ATTENTION = re.compile(r'(.*attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)')
_ATTENTION = {'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'proj_attn': 'to_out.0'}


def vae_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Attention names of diffusers before 0.18 (``query`` ... ``proj_attn``), and 1x1 convolutions
    in place of their linear layers."""
    renamed = {}
    for key, value in tensors.items():
        found = _OLD_ATTENTION.fullmatch(key)
        if found:
            key = f'{found[1]}.{_ATTENTION[found[2]]}.{found[3]}'
        attention = '.attentions.' in key and key.endswith('.weight')
        renamed[key] = value[:, :, 0, 0] if attention and value.ndim == 4 else value
    return renamed


def clip_text_tensors(tensors: Mapping[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """The text encoder's tensors under the names that the installed transformers uses.

    ``position_ids`` (a constant, no weight) is dropped; the image half of a whole CLIP checkpoint
    is left out; the ``text_model.`` level is removed or added as ``expected`` has it.
    """
    both = any(key.startswith('vision_model.') for key in tensors)
    level = 'text_model.'
    wanted = any(key.startswith(level) for key in expected)
    renamed = {}
    for key, value in tensors.items():
        key = key.removeprefix('transformer.')
        if key.endswith('position_ids') or (both and not key.startswith(level)):
            continue
        bare = key.removeprefix(level)
        renamed[level + bare if wanted else bare] = value
    return renamed


def clip_vision_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image encoder's tensors and its projection, out of either half or a whole CLIP.

    ``position_ids`` (a constant, no weight) is dropped; the text half of a whole CLIP checkpoint,
    told by its ``logit_scale``, is left out.
    """
    whole = 'logit_scale' in tensors
    wanted = ('vision_model.', 'visual_projection.')
    return {
        key: value
        for key, value in tensors.items()
        if not key.endswith('position_ids') and (not whole or key.startswith(wanted))
    }
