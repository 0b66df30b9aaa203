"""From a picture's features to tokens that cross-attention reads (IP-Adapter).

Parameter names are those of the public files below ``image_proj.``.

Source: tencent-ailab/IP-Adapter, ip_adapter/ip_adapter.py and ip_adapter/resampler.py.

Shapes: B pictures, S tokens of the image encoder, E its width, L tokens, D width of the prompt's
tokens, Q width inside the resampler.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmvideo.errors import WeightsError
from mmvideo.ops import attention

_HEAD = 64  # channels of a head in every published resampler


class PooledProjection(nn.Module):
    """One vector a picture becomes a few tokens: ip-adapter_sd15 and its kin."""

    hidden = False  # reads the encoder's projected embedding

    def __init__(self, features: int, width: int, tokens: int) -> None:
        super().__init__()
        self.features, self.width, self.tokens = features, width, tokens
        self.proj = nn.Linear(features, tokens * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, E] -> [B, L, D]."""
        return self.norm(self.proj(x).unflatten(-1, (self.tokens, self.width)))


class FullProjection(nn.Module):
    """Every token of the picture, by itself: ip-adapter-full-face."""

    hidden = True  # reads the encoder's last but one layer

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.features, self.width = features, width
        self.proj = nn.Sequential(
            nn.Linear(features, features),
            nn.GELU(),
            nn.Linear(features, width),
            nn.LayerNorm(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, E] -> [B, S, D]."""
        return self.proj(x)


class Resampler(nn.Module):
    """Learned queries gather from every token of the picture: ip-adapter-plus, plus-face.

    The Perceiver resampler of Flamingo (Alayrac et al. 2022, section 2.1).
    """

    hidden = True

    def __init__(
        self,
        features: int,
        width: int,
        inner: int,
        queries: int,
        heads: int,
        depth: int = 4,
        growth: int = 4,
    ) -> None:
        super().__init__()
        self.features, self.width = features, width
        self.latents = nn.Parameter(torch.randn(1, queries, inner) / inner**0.5)
        self.proj_in = nn.Linear(features, inner)
        self.proj_out = nn.Linear(inner, width)
        self.norm_out = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.ModuleList([Gather(inner, heads), _feed_forward(inner, growth)])
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, E] -> [B, L, D], L the number of queries."""
        x = self.proj_in(x)
        queries = self.latents.expand(len(x), -1, -1)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            queries = queries + layer[0](x, queries)
            queries = queries + layer[1](queries)
        return self.norm_out(self.proj_out(queries))


class Gather(nn.Module):
    """Attention of the queries to the picture and to each other."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, heads * _HEAD, bias=False)
        self.to_kv = nn.Linear(channels, 2 * heads * _HEAD, bias=False)
        self.to_out = nn.Linear(heads * _HEAD, channels, bias=False)

    def forward(self, x: Tensor, queries: Tensor) -> Tensor:
        """[B, S, Q], [B, L, Q] -> [B, L, Q]."""
        queries = self.norm2(queries)
        k, v = self.to_kv(torch.cat([self.norm1(x), queries], dim=1)).chunk(2, dim=-1)
        q, k, v = (
            y.unflatten(-1, (self.heads, _HEAD)).transpose(1, 2) for y in (self.to_q(queries), k, v)
        )
        return self.to_out(attention(q, k, v).transpose(1, 2).flatten(2))


def _feed_forward(channels: int, growth: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(channels),
        nn.Linear(channels, growth * channels, bias=False),
        nn.GELU(),
        nn.Linear(growth * channels, channels, bias=False),
    )


Projection = PooledProjection | FullProjection | Resampler


def projection_of(tensors: Mapping[str, Tensor], what: str) -> Projection:
    """The module that tensors belong to; its values are not filled in.

    Args:
        tensors: of a public file, without ``image_proj.``.
        what: the file, for messages.

    Raises:
        WeightsError: none that this project computes, such as a FaceID adapter.
    """
    shapes = {key: value.shape for key, value in tensors.items()}
    try:
        if 'proj.weight' in shapes:
            width = shapes['norm.weight'][0]
            out, features = shapes['proj.weight']
            return PooledProjection(features, width, out // width)
        if 'proj.3.weight' in shapes:
            return FullProjection(shapes['proj.0.weight'][1], shapes['proj.3.weight'][0])
        if 'latents' in shapes:
            return _resampler(shapes)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise WeightsError(f'{what}: its image projection is incomplete ({error})') from error
    if any(key.startswith('perceiver_resampler.') for key in shapes) or 'proj.2.weight' in shapes:
        raise WeightsError(
            f'{what} is a FaceID adapter: it reads the embedding of a face recogniser, which '
            'mmvideo does not compute; expected ip-adapter, -plus, -plus-face or -full-face'
        )
    shown = ', '.join(list(shapes)[:4])
    raise WeightsError(f'{what} has no image projection that is known, only {shown or "nothing"}')


def _resampler(shapes: Mapping[str, torch.Size]) -> Resampler:
    _, queries, inner = shapes['latents']
    numbers = [int(key.split('.')[1]) for key in shapes if key.startswith('layers.')]
    return Resampler(
        features=shapes['proj_in.weight'][1],
        width=shapes['proj_out.weight'][0],
        inner=inner,
        queries=queries,
        heads=shapes['layers.0.0.to_q.weight'][0] // _HEAD,
        depth=max(numbers) + 1,
        growth=shapes['layers.0.1.1.weight'][0] // inner,
    )
