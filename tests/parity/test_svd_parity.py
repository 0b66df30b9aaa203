"""VideoUNet as Stable Video Diffusion's network, against diffusers with the same weights."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.attention import TemporalBasicTransformerBlock
from diffusers.models.resnet import AlphaBlender, SpatioTemporalResBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import Tensor, nn
from two_models import distance, randomised

from mmvideo.checkpoints.files import read_tensors
from mmvideo.checkpoints.load import load_into
from mmvideo.checkpoints.save import save_part
from mmvideo.models.unet import (
    LayerContext,
    VideoUNet,
    diffusers_norm_eps,
    unet_arguments,
    video_config,
)
from mmvideo.models.unet.spatio_temporal import (
    SpatioTemporalResnet,
    SpatioTemporalTransformer,
    TimeBlock,
    TimeMixer,
)

TINY = dict(
    down_block_types=('CrossAttnDownBlockSpatioTemporal', 'DownBlockSpatioTemporal'),
    up_block_types=('UpBlockSpatioTemporal', 'CrossAttnUpBlockSpatioTemporal'),
    block_out_channels=(32, 64),
    layers_per_block=1,
    cross_attention_dim=8,
    num_attention_heads=(2, 4),
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=24,
)


@pytest.fixture(scope='module')
def pair() -> tuple[UNetSpatioTemporalConditionModel, VideoUNet]:
    torch.manual_seed(0)
    reference = randomised(UNetSpatioTemporalConditionModel(**TINY))
    arguments = unet_arguments(dict(reference.config))
    model = VideoUNet(**arguments | {'norm_eps': diffusers_norm_eps(arguments)}).eval()
    model.settings = arguments
    model.load_state_dict(reference.state_dict())
    return reference, model


def inputs(frames: int, size: tuple[int, int], tokens: int) -> tuple:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 8, frames, *size, generator=generator)
    text = torch.randn(2, tokens, 8, generator=generator)
    ids = torch.tensor([[6.0, 127.0, 0.02], [7.0, 40.0, 0.1]])
    return sample, torch.tensor([-1.4, 1.6]), text, ids


def theirs(reference: nn.Module, sample: Tensor, time: Tensor, text: Tensor, ids: Tensor) -> Tensor:
    return reference(sample.transpose(1, 2), time, text, ids).sample.transpose(1, 2)


@pytest.mark.parametrize('tokens', [1, 5])
@pytest.mark.parametrize(('frames', 'size'), [(1, (8, 8)), (3, (5, 7))])
def test_unet(pair, frames, size, tokens):
    reference, model = pair
    sample, time, text, ids = inputs(frames, size, tokens)
    expected = theirs(reference, sample, time, text, ids).detach()
    for grad in (False, True):  # with gradients q, k and v are projected one by one
        with torch.set_grad_enabled(grad):
            ours = model(sample, time, text, conditions={'added_time_ids': ids})
        assert distance(ours, expected) <= 1e-5
    assert expected.abs().max() > 0.5


def test_gradients(pair):
    reference, model = pair
    sample, time, text, ids = inputs(3, (4, 5), 1)
    ours = model(sample, time, text, conditions={'added_time_ids': ids})
    target = torch.randn_like(ours)
    for prediction in (ours, theirs(reference, sample, time, text, ids)):
        nn.functional.mse_loss(prediction, target).backward()
    expected = {name: p.grad for name, p in reference.named_parameters()}
    for name, p in model.named_parameters():
        scale = expected[name].abs().max()
        if p.grad is None:  # one token: what makes the attention's weights cannot matter
            assert 'attn2.to_q' in name or 'attn2.to_k' in name or 'norm2' in name
            assert scale <= 1e-6, name
        else:
            assert distance(p.grad, expected[name]) <= 1e-4 * scale.clamp(min=1e-3), name
        p.grad = None
    reference.zero_grad()


def test_the_official_eps_is_the_default(pair):
    """diffusers runs some norms with 1e-6; with 1e-5 throughout it gives what we give."""
    reference, _ = pair
    arguments = unet_arguments(dict(reference.config))
    assert 'norm_eps' not in arguments
    official = VideoUNet(**arguments).eval()
    official.load_state_dict(reference.state_dict())
    changed = UNetSpatioTemporalConditionModel.from_config(reference.config).eval()
    changed.load_state_dict(reference.state_dict())
    for name, module in changed.named_modules():
        if isinstance(module, nn.GroupNorm) and '.resnets.' in name:
            module.eps = 1e-5
    args = inputs(3, (4, 5), 1)
    with torch.no_grad():
        ours = official(*args[:3], conditions={'added_time_ids': args[3]})
        assert distance(ours, theirs(changed, *args)) <= 1e-5
        assert distance(ours, theirs(reference, *args)) > 1e-5


def test_names_and_shapes_at_full_size():
    """SVD, SVD-XT and XT-1.1 have one network; they differ in the number of frames."""
    with torch.device('meta'):
        reference = UNetSpatioTemporalConditionModel(
            sample_size=96, num_attention_heads=(5, 10, 20, 20), num_frames=14
        )
        model = VideoUNet(**unet_arguments(dict(reference.config)))
    ours = {name: value.shape for name, value in model.state_dict().items()}
    assert ours == {name: value.shape for name, value in reference.state_dict().items()}
    assert sum(p.numel() for p in model.parameters()) == 1_524_623_082
    assert (model.num_frames, model.max_frames) == (14, None)
    assert unet_arguments({'_class_name': 'UNetSpatioTemporalConditionModel'})['num_frames'] == 25


def test_folders_go_both_ways(pair, tmp_path):
    reference, _ = pair
    reference.save_pretrained(tmp_path / 'theirs')
    config = json.loads((tmp_path / 'theirs' / 'config.json').read_text())
    again = VideoUNet(**unet_arguments(config))
    tensors = read_tensors(tmp_path / 'theirs' / 'diffusion_pytorch_model.safetensors')
    load_into(again, tensors)
    save_part(tmp_path / 'ours', video_config(unet_arguments(config)), again)
    back = UNetSpatioTemporalConditionModel.from_pretrained(tmp_path / 'ours')
    assert {k: v for k, v in back.config.items() if k[0] != '_'} == {
        k: v for k, v in config.items() if k[0] != '_'
    }
    for name, value in reference.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


def test_resnet():
    torch.manual_seed(0)
    reference = randomised(SpatioTemporalResBlock(32, 64, 16, eps=1e-5))
    block = SpatioTemporalResnet(32, 64, 16)
    block.load_state_dict(reference.state_dict())
    x, time, only = torch.randn(6, 32, 5, 7), torch.randn(2, 16), images()
    context = LayerContext(3, nn.functional.silu(time), image_only=only)
    expected = reference(x, time.repeat_interleave(3, 0), only)
    assert distance(block(x, context), expected) <= 1e-5


def images() -> Tensor:
    """Which of two times three frames are pictures by themselves."""
    return torch.tensor([[False, True, False], [True, True, True]])


@pytest.mark.parametrize('tokens', [1, 4])
@pytest.mark.parametrize('layers', [1, 2])
def test_transformer(layers, tokens):
    torch.manual_seed(0)
    reference = randomised(
        TransformerSpatioTemporalModel(4, 8, 32, num_layers=layers, cross_attention_dim=12)
    )
    block = SpatioTemporalTransformer(32, 4, 12, layers)
    block.load_state_dict(reference.state_dict())
    x, text, only = torch.randn(6, 32, 5, 3), torch.randn(2, tokens, 12), images()
    expected = reference(x, text.repeat_interleave(3, 0), only).sample
    ours = block(x, LayerContext(3, text=text, image_only=only))
    assert distance(ours, expected) <= 1e-5


@pytest.mark.parametrize('shared', [True, False])
def test_time_block(shared):
    """Each place of a clip attends to the context of the clip's first frame."""
    torch.manual_seed(0)
    reference = randomised(TemporalBasicTransformerBlock(16, 16, 4, 4, 12))
    block = TimeBlock(16, 4, 12)
    block.load_state_dict(reference.state_dict())
    x, text = torch.randn(6, 10, 16), torch.randn(2, 3, 12)
    expected = reference(x, 3, text.repeat_interleave(10, 0))
    if not shared:
        text = torch.stack([text, *torch.randn(2, 2, 3, 12)], dim=1).flatten(0, 1)
    assert distance(block(x, LayerContext(3, text=text)), expected) <= 1e-5


@pytest.mark.parametrize('mixing', ['learned', 'learned_with_images'])
def test_mixer(mixing):
    mixer, reference, only = TimeMixer(mixing, 0.3), AlphaBlender(0.3, mixing), images()
    space, time = torch.randn(2, 6, 8, 5).unbind(0)
    context = LayerContext(3, image_only=only)
    assert distance(mixer(space, time, context), reference(space, time, only)) <= 1e-6
    plain = reference(space, time, torch.zeros_like(only))
    assert distance(mixer(space, time, LayerContext(3)), plain) <= 1e-6
