"""Attention layers of the trunk: over the places of one picture, and from picture to prompt.

Shapes: N batch, T frames, C channels, H W latent size, P = H*W places, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvideo.models.unet.context import ImageKeys, LayerContext, check_divides
from mmvideo.models.unet.resnet import ScopedGroupNorm
from mmvideo.ops import attention, geglu


class GEGLU(nn.Module):
    """A linear layer to twice the width, gated: [..., C] -> [..., C_out]."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return geglu(self.proj(x))


class GELU(nn.Module):
    """A linear layer and the activation, without a gate: [..., C] -> [..., C_out]."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class FeedForward(nn.Module):
    """GEGLU, or plain GELU, to four times the width and back."""

    def __init__(self, channels: int, gated: bool = True) -> None:
        super().__init__()
        # the middle entry keeps the place of a dropout that public checkpoints number
        first = (GEGLU if gated else GELU)(channels, 4 * channels)
        self.net = nn.ModuleList([first, nn.Identity(), nn.Linear(4 * channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class Attention(nn.Module):
    """Multi-head attention without q, k, v bias; the caller says what attends to what.

    A head has ``C / heads`` channels unless ``head_channels`` says otherwise.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        context_channels: int | None = None,
        head_channels: int | None = None,
    ) -> None:
        super().__init__()
        if head_channels is None:
            check_divides(heads, channels, 'num_attention_heads')
        self.heads, self.head_channels = heads, head_channels or channels // heads
        width = self.heads * self.head_channels
        source = channels if context_channels is None else context_channels
        self.to_q = nn.Linear(channels, width, bias=False)
        self.to_k = nn.Linear(source, width, bias=False)
        self.to_v = nn.Linear(source, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, channels)])

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Self-attention's three projections: [..., C] -> three of [..., heads, head size]."""
        if not self._one_product_is_cheaper(x):
            return self.split(self.to_q(x)), self.split(self.to_k(x)), self.split(self.to_v(x))
        # Interleaved a head, so that places and heads still merge into one axis as a view.
        weights = (self.to_q.weight, self.to_k.weight, self.to_v.weight)
        each = [weight.unflatten(0, (self.heads, -1)) for weight in weights]
        weight = torch.stack(each, dim=1).flatten(0, 2)  # heads*3*d C
        q, k, v = F.linear(x, weight).unflatten(-1, (self.heads, 3, -1)).unbind(-2)
        return q, k, v

    def split(self, x: Tensor) -> Tensor:
        """[..., heads * d] -> [..., heads, d]."""
        return x.unflatten(-1, (self.heads, -1))

    def merge(self, x: Tensor) -> Tensor:
        """[B, heads, L, d] -> [B, L, heads * d]."""
        return x.transpose(1, 2).flatten(2)

    def out(self, x: Tensor) -> Tensor:
        """The output projection, [..., heads * d] -> [..., C]."""
        return self.to_out[0](x)

    def attend_self(self, x: Tensor) -> Tensor:
        """Every token to the tokens of its row: [B, L, C] -> [B, L, C]."""
        q, k, v = (y.transpose(1, 2) for y in self.qkv(x))
        return self.out(self.merge(attention(q, k, v)))

    def attend_to(self, x: Tensor, context: Tensor, images: Sequence[ImageKeys] = ()) -> Tensor:
        """Every token to the context: [B*R, P, C], [B, L, D] -> [B*R, P, C].

        R rows share one context (the frames of a clip share a prompt), so their queries stand in
        one sequence and the context's keys and values are computed once. Pictures are attended to
        by themselves and added (Ye et al. 2023, IP-Adapter, equation 5).
        """
        q = self.split(self.to_q(x))
        y = self._attend_shared(q, self.split(self.to_k(context)), self.split(self.to_v(context)))
        for image in images:
            seen = self._attend_shared(q, image.k, image.v)
            y = y + (seen if image.mask is None else _masked(seen, image.mask))
        return self.out(y)

    def _attend_shared(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B*R, P, heads, d] and k, v [B, L, heads, d] -> [B*R, P, C]."""
        rows = q.reshape(k.shape[0], -1, self.heads, self.head_channels)
        rows, k, v = (y.transpose(1, 2) for y in (rows, k, v))
        return self.merge(attention(rows, k, v)).reshape(*q.shape[:2], -1)

    def attend_to_one(self, x: Tensor, token: Tensor) -> Tensor:
        """What every token of ``x`` gets from one: [B*R, ..., C], [B, 1, D] -> [B*R, 1..., C].

        A softmax over one score is 1, so neither queries nor keys matter and the result is the
        same for all tokens of a row; it has length 1 where ``x`` has places.
        """
        value = self.out(self.to_v(token)).repeat_interleave(x.shape[0] // token.shape[0], 0)
        return value.reshape(-1, *[1] * (x.dim() - 2), x.shape[-1])

    def _one_product_is_cheaper(self, x: Tensor) -> bool:
        """Whether to join the three weights, anew at each call so that no copy can go stale.

        Joining moves 6 C^2 numbers and saves two reads of the tokens, 2 * rows * C. With gradients
        it would keep the joined copy alive. A layer that something wraps (LoRA, quantisation,
        hooks) must be called itself.
        """
        rows, channels = x.numel() // x.shape[-1], x.shape[-1]
        if torch.is_grad_enabled() or rows < 4 * channels:
            return False
        return all(map(_is_plain_linear, (self.to_q, self.to_k, self.to_v)))


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    """[N*T, P, C] times [1 or T, P, 1], the frames of a clip adjacent."""
    return (x.unflatten(0, (-1, mask.shape[0])) * mask).flatten(0, 1)


def _is_plain_linear(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks)


class SpatialBlock(nn.Module):
    """Self-attention over places, attention to the prompt, feed-forward; each after a LayerNorm."""

    def __init__(self, channels: int, heads: int, context_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, context_channels)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        """[N*T, P, C] -> [N*T, P, C]; ``context.text`` is [N, L, D] or [N*T, L, D]."""
        assert context.text is not None, 'spatial attention needs context.text'
        x = x + self.attn1.attend_self(self.norm1(x))
        x = self.see_text(x, context.text, context.images.get(self.attn2, ()))
        return x + self.ff(self.norm3(x))

    def see_text(self, x: Tensor, text: Tensor, images: Sequence[ImageKeys] = ()) -> Tensor:
        """[B*R, P, C], the context [B, L, D] and pictures -> [B*R, P, C]."""
        if text.shape[1] == 1 and not images:
            return x + self.attn2.attend_to_one(x, text)
        return x + self.attn2.attend_to(self.norm2(x), text, images)


class SpatialTransformer(nn.Module):
    """The image transformer of Stable Diffusion (Rombach et al. 2022, section 3.3)."""

    def __init__(
        self,
        channels: int,
        heads: int,
        context_channels: int,
        num_layers: int = 1,
        groups: int = 32,
        linear_projection: bool = False,
    ) -> None:
        super().__init__()
        self.linear_projection = linear_projection
        self.norm = ScopedGroupNorm(groups, channels, eps=1e-6)
        self.proj_in = _projection(channels, linear_projection)
        self.transformer_blocks = nn.ModuleList(
            SpatialBlock(channels, heads, context_channels) for _ in range(num_layers)
        )
        self.proj_out = _projection(channels, linear_projection)

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        """[N*T, C, H, W] -> [N*T, C, H, W]."""
        y = self.norm(x)
        if self.linear_projection:
            y = self.proj_in(to_tokens(y))
        else:
            y = to_tokens(self.proj_in(y))
        y = self.run_blocks(y, context)
        if self.linear_projection:
            return x + to_pictures(self.proj_out(y), x)
        return x + self.proj_out(to_pictures(y, x))

    def run_blocks(self, x: Tensor, context: LayerContext) -> Tensor:
        """[N*T, P, C] -> [N*T, P, C]."""
        for block in self.transformer_blocks:
            x = block(x, context)
        return x


def _projection(channels: int, linear: bool) -> nn.Module:
    return nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)


def to_tokens(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H*W, C]; a view when ``x`` is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def to_pictures(tokens: Tensor, like: Tensor) -> Tensor:
    """[B, H*W, C] -> [B, C, H, W], a channels-last view with the height and width of ``like``."""
    return tokens.unflatten(1, like.shape[-2:]).permute(0, 3, 1, 2)
