"""Self-attention over frames, of every place in the picture with itself."""

from __future__ import annotations

from torch import Tensor

from mmvideo.ops.attention import attention


def temporal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend over T at each of P places; tokens stay channels-last, nothing is permuted in memory.

    Places and heads merge into one axis of independent sequences, which leaves [N, T, P*heads, d]:
    a view for separate projections and for one that interleaves q, k, v a head.

    Args:
        q: [N, T, P, heads, d].
        k: as ``q``.
        v: as ``q``.

    Returns:
        [N, T, P, heads*d].
    """
    n, t, p, heads, d = q.shape
    q, k, v = (x.reshape(n, t, p * heads, d).transpose(1, 2) for x in (q, k, v))
    return attention(q, k, v).transpose(1, 2).reshape(n, t, p, heads * d)
