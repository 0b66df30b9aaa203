"""What a call needs beside its weights; a rule, not a measurement.

  denoising: halves x T x h x w x C x ACTIVATIONS values, C the width of its first level,
  decoding:  chunk x H x W x C x DECODED values, C the width of the VAE's last level,
in the precision of the run; halves is 2 with guidance, h w the latent size. A decoder that sees
whole clips also keeps T x H x W x C x KEPT values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmvideo.editors.facts import vae_widths

# Per value of the widest map. On a CPU the growth of resident memory, float32: 51 for a denoiser
# with motion modules (widths 32 and 64, latents of 32x32), 8 to 11 for a decoder (128 to 192
# pixels). Elsewhere tensors that are alive at once, counted at full size (Stable Diffusion 1.5 with
# motion modules: 28.1, small ones 29.0; its decoder: 6.0), and a tenth for the rest.
ACTIVATIONS = {'cpu': 52, 'cuda': 32}
DECODED = {'cpu': 11, 'cuda': 7}
KEPT = 4


@dataclass(frozen=True)
class Decoding:
    """What decoding works with.

    Attributes:
        height: of a picture in pixels.
        width: likewise.
        channels: width of the VAE's last level.
        factor: of ``DECODED``.
        kept: frames that wait between its layers; 0 for a decoder of single pictures.
    """

    height: int
    width: int
    channels: int
    factor: int
    kept: int = 0

    def values(self, frames: int, tile: int | None = None) -> int:
        """Numbers in memory for a chunk of frames, which may go through in tiles."""
        whole = self.height * self.width
        pixels = whole if tile is None else min(self.height, tile) * min(self.width, tile)
        # tiles are joined to whole pictures: three channels twice, in tiles and joined
        joined = 0 if pixels == whole else 6 * frames * whole
        return (
            frames * pixels * self.channels * self.factor
            + joined
            + (self.kept * whole * self.channels * KEPT)
        )


def denoising(
    settings: Mapping[str, Mapping[str, Any]],
    size: tuple[int, int] | None,
    halves: int,
    frames: int,
    kind: str,
) -> int | None:
    """Values that a step of the denoiser works with; None where the config does not tell.

    Args:
        settings: of the model's parts, by name.
        size: of the video in pixels.
        halves: 2 with guidance.
        frames: that the denoiser sees at once.
        kind: ``'cpu'`` or ``'cuda'``.
    """
    factor = vae_factor(settings)
    widths = settings.get('unet', {}).get('block_out_channels')
    if not (factor and widths and size):
        return None
    latent = (size[0] // factor) * (size[1] // factor)
    return halves * frames * latent * widths[0] * ACTIVATIONS[kind]


def decoding(
    settings: Mapping[str, Mapping[str, Any]], size: tuple[int, int] | None, kept: int, kind: str
) -> Decoding | None:
    """What decoding works with; arguments as ``denoising``, ``kept`` as ``Decoding``."""
    widths = vae_widths(settings.get('vae', {}))
    if not (widths and size):
        return None
    return Decoding(*size, widths[0], DECODED[kind], kept)


def vae_factor(settings: Mapping[str, Mapping[str, Any]]) -> int | None:
    """Pixels along a side of a latent cell."""
    widths = vae_widths(settings.get('vae', {}))
    return 2 ** (len(widths) - 1) if widths else None


def tile_of(tiling: Any, vae: Mapping[str, Any]) -> int | None:
    """Pixels of the VAE's tiles, from ``model.vae_tiling``; None where it takes pictures whole."""
    if not tiling:
        return None
    usual = vae.get('sample_size', 32)
    return int(tiling.get('tile', usual)) if isinstance(tiling, Mapping) else int(usual)
