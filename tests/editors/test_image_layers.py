"""A video denoiser or decoder that begins as the image model whose layers it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmvideo.checkpoints.save import save_part
from mmvideo.editors.parts import build_unet, export_unet_config
from mmvideo.errors import ConfigError, WeightsError
from mmvideo.models.borrowed import decode_clip
from mmvideo.registry import MODELS

SIZES = dict(
    block_out_channels=(8, 16),
    layers_per_block=1,
    cross_attention_dim=12,
    norm_num_groups=4,
    attention_head_dim=4,
)
PICTURES = SIZES | dict(
    down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'),
    up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'),
)
SVD = SIZES | dict(
    in_channels=8,
    down_block_types=('DownBlockSpatioTemporal', 'CrossAttnDownBlockSpatioTemporal'),
    up_block_types=('CrossAttnUpBlockSpatioTemporal', 'UpBlockSpatioTemporal'),
    use_linear_projection=True,
    temporal_mixing='learned_with_images',
    embeddings=dict(add_embedding=dict(type='TimeIdsEmbedding', channels=8)),
)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image U-Net with random weights, in the hub's layout."""
    torch.manual_seed(0)
    unet = build_unet(dict(type='VideoUNet', **PICTURES))
    folder = tmp_path_factory.mktemp('pictures')
    save_part(folder / 'unet', export_unet_config(unet), unet)
    return folder


def begun(pictures: Path, **changes: Any) -> Any:
    image_weights = dict(from_pretrained=str(pictures), subfolder='unet')
    image_weights |= changes.pop('image_weights', {})
    torch.manual_seed(1)
    return build_unet(dict(type='VideoUNet', image_weights=image_weights, **(SVD | changes)))


def test_a_clip_is_first_denoised_as_its_pictures_are(pictures: Path) -> None:
    image = build_unet(dict(type='VideoUNet', from_pretrained=str(pictures), subfolder='unet'))
    video = begun(pictures)
    torch.manual_seed(2)
    noisy, seen = torch.randn(2, 4, 3, 8, 8), torch.randn(2, 4, 3, 8, 8)
    token, ids = torch.randn(2, 1, 12), torch.tensor([[6.0, 127.0, 0.02]] * 2)
    with torch.no_grad():
        expected = image(noisy, 3.0, token)
        given = video(torch.cat([noisy, seen], 1), 3.0, token, conditions={'added_time_ids': ids})
    assert torch.allclose(given, expected, atol=1e-5)
    loss = video(torch.cat([noisy, seen], 1), 3.0, token, conditions={'added_time_ids': ids})
    loss.square().sum().backward()
    time = [p for n, p in video.named_parameters() if 'temporal_res_block.conv2.weight' in n]
    assert time and all(p.grad.abs().sum() > 0 for p in time)  # from nothing, and learning


def test_what_is_left_is_new(pictures: Path) -> None:
    whole = begun(pictures).state_dict()
    left = begun(pictures, image_weights=dict(leave=['^time_embedding'])).state_dict()
    differ = {name for name in whole if not torch.equal(whole[name], left[name])}
    assert differ == {name for name in whole if name.startswith('time_embedding')}
    assert 'image_weights' not in begun(pictures).settings


@pytest.mark.parametrize(
    ('changes', 'kind', 'message'),
    [
        (dict(attention_head_dim=2), WeightsError, r'attention_head_dim=\[2\], but .* has \[4\]'),
        (dict(norm_num_groups=8), WeightsError, 'norm_num_groups='),
        (dict(cross_attention_dim=16), WeightsError, 'of another shape'),
        (dict(block_out_channels=(8, 24)), WeightsError, 'of another shape'),
        (dict(layers_per_block=2), WeightsError, 'of another shape'),
        (dict(image_weights=dict(leave=['^tme'])), ConfigError, "'^tme' matches no parameter"),
        (dict(image_weights=dict(leaf=['a'])), ConfigError, "no 'leaf'. Did you mean 'leave'"),
        (dict(image_weights=dict(from_pretrained=None)), ConfigError, 'needs from_pretrained'),
        (dict(from_pretrained='x'), ConfigError, 'from_pretrained or image_weights, not both'),
    ],
)
def test_what_does_not_fit_is_refused(
    pictures: Path, changes: dict, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message.replace("'^tme'", r"'\^tme'")):
        begun(pictures, **changes)


# --- the decoder --------------------------------------------------------------------------------

VAE = dict(
    layers_per_block=2,  # as many in its middle, which an image VAE always has two of
    block_out_channels=(8, 16),
    down_block_types=('DownEncoderBlock2D',) * 2,
    up_block_types=('UpDecoderBlock2D',) * 2,
    norm_num_groups=4,
    scaling_factor=0.3,
)


def test_frames_are_first_decoded_as_pictures_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    image = MODELS.build(dict(type='AutoencoderKL', **VAE))
    save_part(tmp_path / 'vae', dict(image.config), image)
    source = dict(from_pretrained=str(tmp_path), subfolder='vae')
    vae = MODELS.build(dict(type='AutoencoderKLTemporalDecoder', image_weights=source))
    assert vae.config.scaling_factor == 0.3 and vae.config.norm_num_groups == 4
    pixels = torch.rand(3, 3, 24, 24) * 2 - 1
    with torch.no_grad():
        latents = image.encode(pixels).latent_dist.mode()
        assert torch.equal(vae.encode(pixels).latent_dist.mode(), latents)
        # without its bias, which the frame's padding would have too
        image.post_quant_conv.bias.zero_()
    save_part(tmp_path / 'vae', dict(image.config), image)
    vae = MODELS.build(dict(type='AutoencoderKLTemporalDecoder', image_weights=source))
    with torch.no_grad():
        expected = image.decode(latents).sample
        assert torch.allclose(vae.decode(latents, num_frames=3).sample, expected, atol=1e-5)
    chunks = decode_clip(vae, latents.transpose(0, 1)[None], 2)[0].transpose(0, 1)
    assert torch.allclose(chunks, expected, atol=1e-5)
    save_part(tmp_path / 'time', dict(vae.config), vae)
    own = dict(type='AutoencoderKLTemporalDecoder', from_pretrained=str(tmp_path))
    again = MODELS.build(own | dict(subfolder='time'))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in vae.state_dict().items())
    norms = [m for m in again.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert len(norms) > 10 and all(norm.num_groups == 4 for norm in norms)
    with pytest.raises(ConfigError, match='from_pretrained or image_weights, not both'):
        MODELS.build(own | dict(image_weights=source))
    with pytest.raises(ConfigError, match='norm_num_groups=3 does not divide 8'):
        MODELS.build(dict(own, image_weights=source, from_pretrained=None, norm_num_groups=3))
