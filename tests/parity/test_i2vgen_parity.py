"""VideoUNet as I2VGen-XL's network, against diffusers with the same weights."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import I2VGenXLUNet
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.unets.unet_i2vgen_xl import I2VGenXLTransformerTemporalEncoder
from torch import Tensor, nn
from two_models import distance, randomised

from mmvideo.checkpoints.files import read_tensors
from mmvideo.checkpoints.load import load_into
from mmvideo.checkpoints.save import save_part
from mmvideo.models.unet import (
    LayerContext,
    TemporalConv,
    TemporalTransformer,
    VideoUNet,
    unet_arguments,
    video_config,
)
from mmvideo.models.unet.conditions import ImageLatentsOverTime, TrunkSizes

TINY = dict(
    down_block_types=('CrossAttnDownBlock3D', 'DownBlock3D'),
    up_block_types=('UpBlock3D', 'CrossAttnUpBlock3D'),
    block_out_channels=(8, 16),
    layers_per_block=1,
    cross_attention_dim=12,
    attention_head_dim=4,
    norm_num_groups=4,
)


def ours_for(reference: I2VGenXLUNet, gain: float) -> VideoUNet:
    arguments = unet_arguments(dict(reference.config))
    arguments['embeddings']['image_latents_temporal_encoder']['gain'] = gain
    model = VideoUNet(**arguments).eval()
    model.load_state_dict(reference.state_dict())
    return model


@pytest.fixture(scope='module')
def pair() -> tuple[I2VGenXLUNet, VideoUNet]:
    torch.manual_seed(0)
    reference = randomised(I2VGenXLUNet(**TINY))
    return reference, ours_for(reference, gain=1.0)


def inputs(frames: int, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    conditions = {
        'fps': torch.tensor([16, 8]),
        'image_latents': random(2, 4, frames, *size),
        'image_embeddings': random(2, 12),
    }
    return random(2, 4, frames, *size), torch.tensor([7, 801]), random(2, 5, 12), conditions


def theirs(reference: nn.Module, sample: Tensor, time: Tensor, text: Tensor, others) -> Tensor:
    return reference(sample, time, encoder_hidden_states=text, **others).sample


@pytest.mark.parametrize(('frames', 'size'), [(1, (8, 8)), (3, (5, 7))])
def test_unet(pair, frames, size):
    reference, model = pair
    args = inputs(frames, size)
    expected = theirs(reference, *args).detach()
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            ours = model(*args[:3], conditions=args[3])
        assert distance(ours, expected) <= 1e-5
    assert expected.abs().max() > 0.5


def test_gradients(pair):
    reference, model = pair
    args = inputs(3, (4, 5))
    target = torch.randn_like(args[0])
    for prediction in (model(*args[:3], conditions=args[3]), theirs(reference, *args)):
        nn.functional.mse_loss(prediction, target).backward()
    expected = {name: p.grad for name, p in reference.named_parameters()}
    for name, p in model.named_parameters():
        scale = expected[name].abs().max().clamp(min=1e-3)
        assert distance(p.grad, expected[name]) <= 1e-4 * scale, name
        p.grad = None
    reference.zero_grad()


def test_the_official_gain_is_the_default(pair):
    """The official code adds the picture's channels twice: diffusers with doubled weights."""
    reference, _ = pair
    arguments = unet_arguments(dict(reference.config))
    official = VideoUNet(**arguments).eval()
    official.load_state_dict(reference.state_dict())
    doubled = I2VGenXLUNet.from_config(reference.config).eval()
    doubled.load_state_dict(reference.state_dict())
    doubled.conv_in.weight.data[:, 4:] *= 2
    args = inputs(3, (4, 5))
    with torch.no_grad():
        ours = official(*args[:3], conditions=args[3])
        assert distance(ours, theirs(doubled, *args)) <= 1e-5
        assert distance(ours, theirs(reference, *args)) > 1e-3


def test_names_and_shapes_at_full_size():
    with torch.device('meta'):
        reference = I2VGenXLUNet(sample_size=32)
        model = VideoUNet(**unet_arguments(dict(reference.config)))
    ours = {name: value.shape for name, value in model.state_dict().items()}
    assert ours == {name: value.shape for name, value in reference.state_dict().items()}
    assert sum(p.numel() for p in model.parameters()) == 1_420_469_224
    assert model.max_frames is None


def test_folders_go_both_ways(pair, tmp_path):
    reference, _ = pair
    reference.save_pretrained(tmp_path / 'theirs')
    config = json.loads((tmp_path / 'theirs' / 'config.json').read_text())
    again = VideoUNet(**unet_arguments(config))
    tensors = read_tensors(tmp_path / 'theirs' / 'diffusion_pytorch_model.safetensors')
    load_into(again, tensors)
    save_part(tmp_path / 'ours', video_config(unet_arguments(config)), again)
    back = I2VGenXLUNet.from_pretrained(tmp_path / 'ours')
    assert {k: v for k, v in back.config.items() if k[0] != '_'} == {
        k: v for k, v in config.items() if k[0] != '_'
    }
    for name, value in reference.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


def test_temporal_convolution():
    torch.manual_seed(0)
    reference = randomised(TemporalConvLayer(8, dropout=0.1, norm_num_groups=4))
    block = TemporalConv(8, 4).eval()
    block.load_state_dict(reference.state_dict())
    x = torch.randn(6, 8, 5, 7)
    for layout in (torch.contiguous_format, torch.channels_last):
        ours = block(x.to(memory_format=layout), LayerContext(3))
        assert distance(ours, reference(x, num_frames=3)) <= 1e-5


@pytest.mark.parametrize('heads', [None, 8])
def test_temporal_transformer(heads):
    torch.manual_seed(0)
    reference = randomised(TransformerTemporalModel(heads or 4, 4, 16, norm_num_groups=4))
    block = TemporalTransformer(16, heads, head_channels=4, norm_num_groups=4)
    block.load_state_dict(reference.state_dict())
    x = torch.randn(6, 16, 5, 3)
    expected = reference(x, num_frames=3).sample
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            assert distance(block(x, LayerContext(3)), expected) <= 1e-5


def test_image_latents_over_time():
    torch.manual_seed(0)
    reference = randomised(I2VGenXLTransformerTemporalEncoder(4, 2, 4, 'gelu', ff_inner_dim=16))
    block = ImageLatentsOverTime(TrunkSizes(4, 8, 32, 12), gain=1.0)
    block.load_state_dict(reference.state_dict())
    x = torch.randn(2, 4, 3, 5, 7)
    places = x.permute(0, 3, 4, 2, 1).flatten(0, 2)
    expected = reference(places).unflatten(0, (2, 5, 7)).permute(0, 4, 3, 1, 2)
    assert distance(block(x, x), expected) <= 1e-5
