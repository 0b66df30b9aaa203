"""SVD's VAE: built and read like any part, decoded in chunks as if whole."""

from __future__ import annotations

import diffusers
import pytest
import torch
from torch import Tensor

from mmvideo.checkpoints.save import save_part
from mmvideo.errors import ConfigError, InputError
from mmvideo.models.borrowed import build_temporal_vae, decode_clip

KEYS = dict(
    down_block_types=('DownEncoderBlock2D',) * 2, block_out_channels=(32, 32), layers_per_block=2
)


@pytest.fixture(scope='module')
def vae():
    torch.manual_seed(0)
    vae = build_temporal_vae(**KEYS)
    for parameter in vae.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return vae


def latents(frames: int) -> Tensor:
    return torch.randn(2, 4, frames, 4, 3, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def whole(vae, z: Tensor) -> Tensor:
    """The clips as diffusers decodes them at once."""
    frames = vae.decode(z.transpose(1, 2).flatten(0, 1), num_frames=z.shape[2]).sample
    return frames.unflatten(0, (-1, z.shape[2])).transpose(1, 2)


@pytest.mark.parametrize('frames', [1, 5])
def test_chunks_give_the_whole_clip(vae, frames):
    z = latents(frames)
    expected = whole(vae, z)
    assert expected.shape == (2, 3, frames, 8, 6)
    for chunk in (None, 1, 2, 3, 99):
        found = decode_clip(vae, z, chunk)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)
    assert torch.equal(decode_clip(vae, z, 2, store='cpu'), decode_clip(vae, z, 2))


def test_chunks_by_themselves_are_other_clips(vae):
    """What ``joined=False`` is, and why it is not the default."""
    z = latents(5)
    apart = decode_clip(vae, z, 2, joined=False)
    each = torch.cat([whole(vae, part) for part in z.split(2, dim=2)], dim=2)
    assert (apart - each).abs().max() <= 1e-5
    assert (apart - whole(vae, z)).abs().max() > 1e-2
    assert (decode_clip(vae, z, joined=False) - whole(vae, z)).abs().max() <= 1e-5


def test_a_chunk_is_all_that_a_layer_sees(vae):
    seen = set()
    hooks = [
        module.register_forward_pre_hook(lambda module, args: seen.add(args[0].shape[0]))
        for module in vae.decoder.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    decode_clip(vae, latents(5), 2)
    for hook in hooks:
        hook.remove()
    assert seen == {1, 2}


def test_half_precision_stays_near(vae, tmp_path):
    save_part(tmp_path, dict(vae.config), vae)
    half = build_temporal_vae(from_pretrained=str(tmp_path), dtype='bfloat16')
    z = latents(3)
    found, expected = decode_clip(half, z.bfloat16(), 2), whole(vae, z)
    assert found.dtype == torch.bfloat16
    reference = (whole(half, z.bfloat16()).float() - expected).norm()
    assert (found.float() - expected).norm() <= 1.5 * reference


def test_folders_go_both_ways(vae, tmp_path):
    assert isinstance(vae, diffusers.AutoencoderKLTemporalDecoder) and not vae.training
    save_part(tmp_path / 'vae', dict(vae.config), vae)
    again = build_temporal_vae(from_pretrained=str(tmp_path), subfolder='vae')
    theirs = diffusers.AutoencoderKLTemporalDecoder.from_pretrained(tmp_path / 'vae')
    for name, value in vae.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
        assert torch.equal(theirs.state_dict()[name], value), name


def test_mistakes(vae):
    with pytest.raises(ConfigError, match="'scalingfactor'.*Did you mean 'scaling_factor'"):
        build_temporal_vae(scalingfactor=1)
    with pytest.raises(InputError, match='chunk=0: expected at least 1'):
        decode_clip(vae, latents(2), 0)
    with pytest.raises(InputError, match=r'expected \[N, 4, T, H, W\]'):
        decode_clip(vae, latents(2)[0])
