"""The training of a VAE: what its decoder sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmvideo.editors.autoencoder import Autoencoder
from mmvideo.errors import ConfigError
from mmvideo.registry import MODELS

SCALE = 0.5


def build(**options: Any) -> Any:
    vae = dict(
        type='AutoencoderKL',
        down_block_types=('DownEncoderBlock2D',) * 2,
        up_block_types=('UpDecoderBlock2D',) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=SCALE,
    )
    return MODELS.build(dict(type='Autoencoder', vae=vae, **options))


def decoded(model: Any, monkeypatch: pytest.MonkeyPatch, mode: str) -> tuple[Tensor, Tensor]:
    """Latents [N, C, h, w] as the encoder's mean has them, and as the decoder got them."""
    seen: list[Tensor] = []
    decode = model.vae.decode
    monkeypatch.setattr(
        model.vae, 'decode', lambda z, **over: (seen.append(z.detach()), decode(z, **over))[1]
    )
    frames = torch.rand(6, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    posterior = model.vae.encode(frames.transpose(1, 2).flatten(0, 1)).latent_dist
    monkeypatch.setattr(type(posterior), 'sample', lambda self, generator=None: self.mean)
    torch.manual_seed(1)
    model(frames, mode=mode)
    return posterior.mean.detach(), seen[0]


def test_the_decoder_learns_from_disturbed_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    clean, seen = decoded(build(latent_noise=0.2), monkeypatch, 'loss')
    # In units of the scaled latents, each frame has a level of its own between 0 and 0.2.
    levels = ((seen - clean) * SCALE).flatten(1).std(1)
    assert 0.15 < levels.max() < 0.23 and levels.min() < 0.05
    assert 0.06 < levels.mean() < 0.14


@pytest.mark.parametrize(('noise', 'mode'), [(0.0, 'loss'), (0.2, 'tensor'), (0.2, 'predict')])
def test_nothing_disturbs_latents_otherwise(
    noise: float, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean, seen = decoded(build(latent_noise=noise), monkeypatch, mode)
    assert torch.equal(clean, seen)


@pytest.mark.parametrize('noise', [-0.1, 1.5])
def test_a_noise_that_cannot_be_is_refused(noise: float) -> None:
    with pytest.raises(ConfigError, match=rf'latent_noise={noise}: expected a number between'):
        build(latent_noise=noise)
    unread = dict(vae=dict(type='AutoencoderKL', from_pretrained='./none'), latent_noise=noise)
    with pytest.raises(ConfigError, match=rf'latent_noise={noise}: expected a number between'):
        Autoencoder.check_training(unread)


def test_a_frozen_encoder_keeps_its_scaling_factor(tmp_path) -> None:
    model = build(trainable=[r'^vae\.decoder'], latent_noise=0.1).train()
    model(torch.rand(1, 3, 2, 16, 16), mode='loss')['loss_squared'].backward()
    assert all((p.grad is None) == (not n.startswith('vae.decoder')) for n, p in
               model.named_parameters())  # fmt: skip
    model.save_pretrained(tmp_path)
    assert MODELS.build(
        dict(type='AutoencoderKL', from_pretrained=str(tmp_path), subfolder='vae')
    ).config.scaling_factor == SCALE  # fmt: skip
