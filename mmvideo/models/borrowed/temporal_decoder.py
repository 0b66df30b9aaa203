"""Decode a clip with SVD's VAE in chunks of frames, as if it were decoded whole.

diffusers' AutoencoderKLTemporalDecoder mixes frames in each resnet: two convolutions over three
frames, each after a GroupNorm whose statistics are the clip's. With its default of two layers a
block that is 14 resnets and a last convolution, so a pixel depends on 29 frames to each side and,
through the norms, on all: no overlap of chunks that are decoded by themselves makes them one clip.
Inside a layer it takes little: a chunk needs one frame more on each side and the clip's mean and
variance. So the chunks go through the decoder layer by layer.

Shapes: N batch, T frames, C channels, H W latent size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvideo.checkpoints.load import load_into
from mmvideo.errors import InputError

Layer = Callable[[Tensor], Tensor]
_RESNET = re.compile(r'^(decoder\..*resnets\.\d+)\.')
_OVER_TIME = re.compile(r'\.(temporal_res_block|time_mixer|time_conv_out)\.')


@torch.no_grad()
def decode_clip(
    vae: Any,
    latents: Tensor,
    chunk: int | None = None,
    store: str | torch.device | None = None,
    joined: bool = True,
    device: torch.device | None = None,
) -> Tensor:
    """Pictures of a clip's latents.

    The result is that of the whole clip at once up to rounding, whatever the chunk. What must be
    there at once is one layer's input and output for all frames, in ``store``, and what a layer
    needs for ``chunk`` frames, where the VAE is.

    Args:
        vae: an ``AutoencoderKLTemporalDecoder``.
        latents: [N, C, T, H, W], divided by the scaling factor.
        chunk: frames that a layer sees at once; None for all.
        store: device on which whole clips wait between layers, such as 'cpu'; None for that of
            the VAE.
        joined: False decodes each chunk as a clip of its own, which is faster, shows where chunks
            meet, and is what the official code (14 frames a chunk) and diffusers'
            ``decode_chunk_size`` do.
        device: where the VAE computes, if it comes there only then; None is where it is.

    Returns:
        [N, 3, T, 8*H, 8*W] in about [-1, 1], in ``store``.

    Raises:
        InputError: ``chunk`` is below 1, or ``latents`` have another shape.
    """
    if latents.dim() != 5 or latents.shape[1] != vae.config.latent_channels:
        raise InputError(
            f'latents have shape {tuple(latents.shape)}: expected '
            f'[N, {vae.config.latent_channels}, T, H, W]'
        )
    frames = latents.shape[2]
    chunk = frames if chunk is None else chunk
    if chunk < 1:
        raise InputError(f'chunk={chunk}: expected at least 1 frame')
    device = vae.device if device is None else device
    run = _Chunks(min(chunk, frames), device, vae.dtype, torch.device(store or device))
    decode = run.joined if joined else run.apart
    return torch.stack([decode(vae, clip.transpose(0, 1)).transpose(0, 1) for clip in latents])


@torch.no_grad()
def begin_as(vae: Any, picture: Any) -> Any:
    """Give SVD's VAE the weights of a picture's VAE, and let what sees time begin as nothing.

    Encoder and quantisation are then the other's. Its decoder makes of each frame what the other
    makes of it, but for the outermost pixels: the convolution after quantisation, which this
    decoder has not, is joined to the one behind it, as if the frame went on where it is padded.

    Args:
        vae: an ``AutoencoderKLTemporalDecoder`` of the same architecture.
        picture: an ``AutoencoderKL``.

    Raises:
        WeightsError: naming what does not fit.
    """
    state = picture.state_dict()
    tensors = {_RESNET.sub(r'\1.spatial_res_block.', key): value for key, value in state.items()}
    point, shift = (tensors.pop(f'post_quant_conv.{name}', None) for name in ('weight', 'bias'))
    if point is not None and shift is not None:
        weight = tensors['decoder.conv_in.weight']
        tensors['decoder.conv_in.bias'] = tensors['decoder.conv_in.bias'] + torch.einsum(
            'ochw,c->o', weight, shift
        )
        tensors['decoder.conv_in.weight'] = torch.einsum('omhw,mc->ochw', weight, point[:, :, 0, 0])
    return load_into(vae, _without_motion(vae) | tensors, 'vae')


def _without_motion(vae: Any) -> dict[str, Tensor]:
    """The parameters of what sees time, so that it changes nothing."""
    state = {k: v for k, v in vae.state_dict().items() if _OVER_TIME.search(k)}
    for key, value in state.items():
        if '.temporal_res_block.conv2.' in key or key.startswith('decoder.time_conv_out'):
            state[key] = torch.zeros_like(value)
    middle = state['decoder.time_conv_out.weight'][:, :, 1, 0, 0]
    middle.copy_(torch.eye(len(middle)))
    return state


class _Chunks:
    """Runs layers over the frames of one clip, [T, C, H, W], chunk by chunk."""

    def __init__(
        self, size: int, device: torch.device, dtype: torch.dtype, store: torch.device
    ) -> None:
        self.size, self.device, self.dtype, self.store = size, device, dtype, store

    def apart(self, vae: Any, x: Tensor) -> Tensor:
        return self.each(lambda part: vae.decode(part, num_frames=len(part)).sample, x)

    def joined(self, vae: Any, x: Tensor) -> Tensor:
        for layer in self.layers(vae.decoder):
            x = layer(x)
        return x

    def layers(self, decoder: Any) -> Iterator[Layer]:
        """The decoder, in order, as functions of a whole clip."""
        yield self.by_frame(decoder.conv_in)
        middle = decoder.mid_block
        yield self.resnet(middle.resnets[0])
        for resnet in middle.resnets[1:2]:  # the one attention has one resnet after it
            yield self.by_frame(middle.attentions[0])
            yield self.resnet(resnet)
        for block in decoder.up_blocks:
            yield from map(self.resnet, block.resnets)
            yield from map(self.by_frame, block.upsamplers or ())
        yield self.by_frame(
            nn.Sequential(decoder.conv_norm_out, decoder.conv_act, decoder.conv_out)
        )
        yield self.over_time(decoder.time_conv_out, lambda part: part)

    def by_frame(self, module: nn.Module) -> Layer:
        return lambda x: self.each(module, x)

    def resnet(self, block: Any) -> Layer:
        """A SpatioTemporalResBlock: pictures, then ``mix * temporal + (1 - mix) * pictures``."""

        def run(x: Tensor) -> Tensor:
            x = self.each(lambda part: block.spatial_res_block(part, None), x)
            inner = block.temporal_res_block
            y = self.over_time(inner.conv1, self.norm(inner.norm1, x))(x)
            y = self.over_time(inner.conv2, self.norm(inner.norm2, y))(y)
            # the temporal block is x + y; the decoder's mix counts the temporal side
            mix = block.time_mixer.mix_factor.sigmoid().to(self.store, x.dtype)
            return torch.addcmul(x, y, mix)

        return run

    def norm(self, layer: nn.GroupNorm, x: Tensor) -> Layer:
        """``layer`` with the statistics of all of ``x``, and SiLU, for a part of it."""

        def moments(part: Tensor) -> Tensor:
            grouped = part.float().unflatten(1, (layer.num_groups, -1))
            return torch.stack(torch.var_mean(grouped, (2, 3, 4), correction=0), dim=-1)

        variance, mean = self.each(moments, x, keep=True).to(self.device).unbind(-1)  # T G
        total = (variance + (mean - mean.mean(0)).square()).mean(0)
        per_group = layer.num_channels // layer.num_groups
        scale = torch.rsqrt(total + layer.eps).repeat_interleave(per_group) * layer.weight
        shift = layer.bias - mean.mean(0).repeat_interleave(per_group) * scale

        def normalise(part: Tensor) -> Tensor:
            y = torch.addcmul(shift[:, None, None], part.float(), scale[:, None, None])
            return F.silu(y).to(part.dtype)

        return normalise

    def over_time(self, layer: nn.Conv3d, before: Layer) -> Layer:
        """A convolution over three frames, zeros outside the clip, of what ``before`` gives."""

        def run(x: Tensor) -> Tensor:
            parts = []
            for start in range(0, len(x), self.size):
                end = min(start + self.size, len(x))
                low, high = max(start - 1, 0), min(end + 1, len(x))
                y = before(x[low:high].to(self.device)).transpose(0, 1)  # C t H W
                outside = (low - start + 1, end + 1 - high)
                y = F.pad(y, (0, 0, 0, 0, *outside))
                y = F.conv3d(y[None], layer.weight, layer.bias)[0]
                parts.append(y.transpose(0, 1).to(self.store))
            return torch.cat(parts)

        return run

    def each(self, function: Layer, x: Tensor, keep: bool = False) -> Tensor:
        """``function`` of each chunk; it sees no frame but those, in the VAE's precision."""
        parts = x.split(self.size)
        dtype = None if keep else self.dtype
        return torch.cat([function(p.to(self.device, dtype)).to(self.store) for p in parts])
