"""IP-Adapter: keys of the image projection and of the attention that is added to each layer.

Ours are diffusers' names of the projection behind ``image_proj.``, and for the layers the name of
the cross-attention that they stand beside: ``unet.PATH.attn2.to_k_ip.weight`` [C, D] and
``to_v_ip``. The file numbers those layers: attentions are counted in diffusers' order, which is
down, up, middle; self-attentions take the even numbers, cross-attentions the odd ones.

Published files are nested, ``{'image_proj': {...}, 'ip_adapter': {...}}``; ``read_tensors`` joins
the levels by a dot, as the safetensors files have them.

Source of the names: tencent-ailab/IP-Adapter ip_adapter/{ip_adapter,resampler}.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from mmvideo.checkpoints.layouts.table import Layout, Row
from mmvideo.errors import WeightsError

_P = 'image_proj.'
_PLAIN = (
    Row(_P + 'proj.{kind}', _P + 'image_embeds.{kind}'),
    Row(_P + 'norm.{kind}', _P + 'norm.{kind}'),
)
_FULL = (
    Row(_P + 'proj.0.{kind}', _P + 'ff.net.0.proj.{kind}'),
    Row(_P + 'proj.2.{kind}', _P + 'ff.net.2.{kind}'),
    Row(_P + 'proj.3.{kind}', _P + 'norm.{kind}'),
)
_L = _P + 'layers.{layer}.'
_PLUS = (
    Row(_P + 'latents', _P + 'latents'),
    Row(_P + 'proj_in.{kind}', _P + 'proj_in.{kind}'),
    Row(_P + 'proj_out.{kind}', _P + 'proj_out.{kind}'),
    Row(_P + 'norm_out.{kind}', _P + 'norm_out.{kind}'),
    Row(_L + '0.norm1.{kind}', _L + 'ln0.{kind}'),
    Row(_L + '0.norm2.{kind}', _L + 'ln1.{kind}'),
    Row(_L + '0.to_q.weight', _L + 'attn.to_q.weight'),
    Row(_L + '0.to_kv.weight', _L + 'attn.{part}.weight', parts=('to_k', 'to_v')),
    Row(_L + '0.to_out.weight', _L + 'attn.to_out.0.weight'),
    Row(_L + '1.0.{kind}', _L + 'ff.0.{kind}'),
    Row(_L + '1.1.weight', _L + 'ff.1.net.0.proj.weight'),
    Row(_L + '1.3.weight', _L + 'ff.1.net.2.weight'),
)
_PROJECTIONS = {'ip_adapter': _PLAIN, 'ip_adapter_full': _FULL, 'ip_adapter_plus': _PLUS}
_TITLES = {
    'ip_adapter': 'an IP-Adapter',
    'ip_adapter_full': 'an IP-Adapter with a full projection',
    'ip_adapter_plus': 'an IP-Adapter plus',
}
# Transformer blocks of each level with cross-attention: down, up (coarsest first), middle.
_SD15 = ({0: (1, 1), 1: (1, 1), 2: (1, 1)}, {1: (1,) * 3, 2: (1,) * 3, 3: (1,) * 3}, 1)
_SDXL = ({1: (2, 2), 2: (10, 10)}, {0: (10,) * 3, 1: (2,) * 3}, 10)


def cross_attentions(
    down: Mapping[int, Sequence[int]], up: Mapping[int, Sequence[int]], mid: int
) -> Iterator[str]:
    """Names of a UNet's cross-attentions in the order in which IP-Adapter numbers them.

    Args:
        down: transformer blocks of each layer, by level, finest first.
        up: likewise, coarsest first.
        mid: transformer blocks in the middle.
    """
    stages = [(f'down_blocks.{i}', layers) for i, layers in down.items()]
    stages += [(f'up_blocks.{i}', layers) for i, layers in up.items()]
    for stage, layers in [*stages, ('mid_block', (mid,))]:
        for item, blocks in enumerate(layers):
            for block in range(blocks):
                yield f'{stage}.attentions.{item}.transformer_blocks.{block}.attn2'


def _layers(names: Iterator[str]) -> tuple[Row, ...]:
    return tuple(
        Row(f'ip_adapter.{2 * i + 1}.to_{x}_ip.weight', f'unet.{name}.to_{x}_ip.weight')
        for i, name in enumerate(names)
        for x in 'kv'
    )


IP_ADAPTER_LAYOUTS = {
    kind + end: Layout(_TITLES[kind] + title, (*rows, *_layers(cross_attentions(*unet))))
    for kind, rows in _PROJECTIONS.items()
    for end, title, unet in (('', '', _SD15), ('_sdxl', ' for SDXL', _SDXL))
}


def ip_adapter_kind(tensors: Mapping[str, Tensor]) -> str:
    """Which IP-Adapter a file holds: a key of ``IP_ADAPTER_LAYOUTS``.

    Plus-face has the keys and shapes of plus; no tensor tells them apart.

    Raises:
        WeightsError: A FaceID adapter, which needs a face recogniser, or none at all.
    """
    if any('_lora.' in key or 'perceiver_resampler' in key for key in tensors):
        raise WeightsError(
            'these tensors are an IP-Adapter FaceID, which is not supported; expected IP-Adapter '
            'plain, plus, plus-face or full-face'
        )
    signs = {
        _P + 'latents': 'ip_adapter_plus',
        _P + 'proj.3.weight': 'ip_adapter_full',
        _P + 'proj.weight': 'ip_adapter',
    }
    kind = next((kind for key, kind in signs.items() if key in tensors), None)
    if kind is None:
        shown = ', '.join(list(tensors)[:5])
        raise WeightsError(f'these tensors are no IP-Adapter that is known; the first are: {shown}')
    return kind + ('_sdxl' if ip_adapter_base(tensors) == 'sdxl' else '')


def ip_adapter_base(tensors: Mapping[str, Tensor]) -> str:
    """The base model, 'sd15' or 'sdxl', from the number of layers."""
    numbers = {key.split('.')[1] for key in tensors if key.startswith('ip_adapter.')}
    return 'sdxl' if len(numbers) > 16 else 'sd15'


def ip_adapter_to_ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An IP-Adapter under our names, see the module's head.

    Raises:
        WeightsError: An unknown kind, a key that its table does not know, or layers that are
            missing.
    """
    layout = IP_ADAPTER_LAYOUTS[ip_adapter_kind(tensors)]
    found = layout.to_ours(tensors)
    absent = [
        row.theirs
        for row in layout.rows
        if row.theirs.startswith('ip_adapter.') and row.theirs not in tensors
    ]
    if absent:
        raise WeightsError(f'{layout.name} lacks {len(absent)} tensors: {", ".join(absent[:5])}')
    return found
