"""The trunk as SVD's and I2VGen-XL's: clips, checkpointing, pictures among frames, messages."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from mmvideo.config_check import check
from mmvideo.errors import ConfigError, InputError, WeightsError
from mmvideo.models.unet import (
    LayerContext,
    MotionModule,
    TemporalConv,
    TemporalTransformer,
    VideoUNet,
    unet_arguments,
    video_config,
)
from mmvideo.models.unet.attention import Attention, SpatialTransformer
from mmvideo.models.unet.resnet import ResnetBlock
from mmvideo.models.unet.spatio_temporal import SpatioTemporalResnet, SpatioTemporalTransformer
from mmvideo.registry import MODELS

TINY = {
    'block_out_channels': [8, 16],
    'layers_per_block': 1,
    'cross_attention_dim': 6,
    'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'],
    'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D'],
}
SVD_CONFIG = TINY | {
    '_class_name': 'UNetSpatioTemporalConditionModel',
    'num_attention_heads': [2, 2],
    'addition_time_embed_dim': 4,
    'projection_class_embeddings_input_dim': 12,
}
I2VGEN_CONFIG = TINY | {
    '_class_name': 'I2VGenXLUNet',
    'attention_head_dim': 4,
    'norm_num_groups': 4,
}
FAMILIES = ['svd', 'i2vgen']


def arguments(family: str) -> dict:
    if family == 'svd':
        return unet_arguments(SVD_CONFIG) | {'norm_num_groups': 4}
    return unet_arguments(I2VGEN_CONFIG)


def tiny(family: str, **changes) -> VideoUNet:
    """A VideoUNet of two levels whose every parameter matters."""
    torch.manual_seed(0)
    model = MODELS.build({'type': 'VideoUNet', **arguments(family), **changes})
    for module in model.modules():
        if isinstance(module, TemporalConv):
            nn.init.normal_(module.conv4[-1].weight, std=0.3)
    return model.eval()


def inputs(family: str, frames: int = 3, clips: int = 2) -> tuple[tuple, dict]:
    torch.manual_seed(1)
    svd, size = family == 'svd', (6, 4)
    sample = torch.randn(clips, 8 if svd else 4, frames, *size)
    text = torch.randn(clips, 1 if svd else 5, 6)
    if svd:
        conditions = {'added_time_ids': torch.rand(clips, 3)}
    else:
        conditions = {
            'fps': torch.tensor([16, 8])[:clips],
            'image_latents': torch.randn(clips, 4, frames, *size),
            'image_embeddings': torch.randn(clips, 6),
        }
    return (sample, torch.tensor([3, 700])[:clips], text), {'conditions': conditions}


def rows(value, index: int):
    """One clip of everything that has one row a clip."""
    if isinstance(value, dict):
        return {key: rows(item, index) for key, item in value.items()}
    return value[index : index + 1]


@pytest.mark.parametrize('frames', [1, 3])
@pytest.mark.parametrize('family', FAMILIES)
def test_a_batch_is_its_clips(family, frames):
    model, (args, others) = tiny(family), inputs(family, frames)
    with torch.no_grad():
        both = model(*args, **others)
        each = [model(*[rows(a, i) for a in args], **rows(others, i)) for i in range(2)]
    assert both.shape == (2, 4, frames, 6, 4)
    assert (both - torch.cat(each)).abs().max() <= 1e-5
    assert (each[0] - each[1]).abs().max() > 1e-2


@pytest.mark.parametrize('family', FAMILIES)
def test_every_condition_matters(family):
    model, (args, others) = tiny(family), inputs(family)
    with torch.no_grad():
        first = model(*args, **others)
        for name, value in others['conditions'].items():
            changed = others['conditions'] | {name: value + 1}
            assert (model(*args, conditions=changed) - first).abs().max() > 1e-4, name
        text = args[2] + 1
        assert (model(args[0], args[1], text, **others) - first).abs().max() > 1e-4


@pytest.mark.parametrize('family', FAMILIES)
def test_channels_last_gives_the_same(family):
    model, (args, others) = tiny(family), inputs(family)
    with torch.no_grad():
        expected = model(*args, **others)
        for parameter in model.parameters():
            if parameter.dim() == 4:  # torch has no such format for a convolution over time
                parameter.data = parameter.data.to(memory_format=torch.channels_last)
        ours = model(*args, **others)
    assert (ours - expected).abs().max() <= 1e-5


@pytest.mark.parametrize('family', FAMILIES)
def test_one_graph(family):
    """torch.compile captures a whole call, with no break."""
    one_level = {
        'block_out_channels': [8],
        'down_block_types': ['CrossAttnDownBlock2D'],
        'up_block_types': ['CrossAttnUpBlock2D'],
        'attention_head_dim': 2,
    }
    model, (args, others) = tiny(family, **one_level), inputs(family)
    with torch.no_grad():
        compiled = torch.compile(model, backend='eager', fullgraph=True)
        torch.testing.assert_close(compiled(*args, **others), model(*args, **others))


BLOCKS = {
    'svd': {SpatioTemporalResnet: 8, SpatioTemporalTransformer: 4},
    'i2vgen': {ResnetBlock: 8, SpatialTransformer: 4, TemporalConv: 8, TemporalTransformer: 5},
}


@pytest.mark.parametrize('family', FAMILIES)
def test_checkpointing_recomputes_every_block(family):
    model, (args, others) = tiny(family), inputs(family)
    blocks = {n: m for n, m in model.named_modules() if type(m) in BLOCKS[family]}
    assert Counter(type(block) for block in blocks.values()) == BLOCKS[family]
    calls: Counter[str] = Counter()
    for name, block in blocks.items():
        block.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    found = []
    for checkpointing in (False, True):
        calls.clear()
        model.enable_gradient_checkpointing(checkpointing)
        model.zero_grad()
        model(*args, **others).square().mean().backward()
        assert calls == dict.fromkeys(blocks, 1 + checkpointing)
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_checkpointing_draws_the_same_dropout():
    model, (args, others) = tiny('i2vgen').train(), inputs('i2vgen')
    gradients = []
    for checkpointing in (False, True):
        model.enable_gradient_checkpointing(checkpointing)
        model.zero_grad()
        torch.manual_seed(7)
        model(*args, **others).square().mean().backward()
        gradients.append(model.conv_in.weight.grad)
    torch.testing.assert_close(*gradients)


def test_pictures_among_frames_are_left_alone():
    """A frame that is a picture by itself comes out as if there were no other."""
    model, (args, others) = tiny('svd'), inputs('svd')
    sample, time, text = args
    with torch.no_grad():
        video = model(*args, **others)
        alone = model(*args, **others, image_only=torch.ones(2, 3, dtype=torch.bool))
        others['image_only'] = torch.ones(2, 1, dtype=torch.bool)
        each = [model(sample[:, :, [t]], time, text, **others) for t in range(3)]
        others['image_only'] = torch.zeros(2, 3, dtype=torch.bool)
        none = model(*args, **others)
    assert (alone - torch.cat(each, dim=2)).abs().max() <= 1e-5
    assert (none - video).abs().max() <= 1e-6
    assert (alone - video).abs().max() > 1e-3


def test_a_clip_of_svd_may_have_any_length():
    """Frame positions are computed, not stored; a motion module's positions are not."""
    model, (args, others) = tiny('svd'), inputs('svd', frames=40)
    assert model.max_frames is None and model.num_frames == 25
    with torch.no_grad():
        assert model(*args, **others).isfinite().all()
    both = tiny('svd', motion_module={'type': 'MotionModule', 'max_positions': 6})
    assert sum(isinstance(m, MotionModule) for m in both.modules()) == 6
    with pytest.raises(InputError, match=r'40 frames.*6 positions.*num_frames <= 6'):
        both(*args, **others)


def test_one_token_needs_no_queries():
    torch.manual_seed(0)
    layer, x, token = Attention(8, 2, 6), torch.randn(6, 5, 8), torch.randn(2, 1, 6)
    expected = layer.attend_to(x, token)
    constant = layer.attend_to_one(x, token)
    assert constant.shape == (6, 1, 8)
    assert (constant - expected).abs().max() <= 1e-6
    layer.to_q = layer.to_k = nn.Identity()  # which would raise for these shapes
    assert torch.equal(layer.attend_to_one(x, token), constant)


def test_a_model_of_one_token_never_asks():
    model, (args, others) = tiny('svd'), inputs('svd')
    asked = []
    for name, module in model.named_modules():
        if name.endswith(('attn2.to_q', 'attn2.to_k')):
            module.register_forward_hook(lambda *_, name=name: asked.append(name))
    with torch.no_grad():
        model(*args, **others)
        assert asked == []
        model(args[0], args[1], args[2].repeat(1, 2, 1), **others)
    assert len(asked) == 16  # spatial and temporal blocks of 4 transformers


def test_conditions_that_cannot_be_right():
    model, (args, others) = tiny('i2vgen'), inputs('i2vgen')
    given = others['conditions']
    cases = [
        ({}, r"needs \['fps', 'image_embeddings', 'image_latents'\]"),
        (given | {'image_latent': given['fps']}, "'image_latent'.*Did you mean 'image_latents'"),
        (given | {'fps': torch.tensor([8])}, r'fps has shape \(1,\), expected \(2,\)'),
        (given | {'image_latents': torch.zeros(2, 4, 1, 6, 4)}, r'expected \(2, 4, 3, 6, 4\)'),
        (given | {'image_embeddings': torch.zeros(2, 5)}, r'image_embeddings.*\(2, 6\)'),
    ]
    for conditions, message in cases:
        with pytest.raises(InputError, match=message):
            model(*args, conditions=conditions)
    svd, (args, others) = tiny('svd'), inputs('svd')
    with pytest.raises(InputError, match=r'added_time_ids has shape \(2, 2\), expected \(2, 3\)'):
        svd(*args, conditions={'added_time_ids': torch.zeros(2, 2)})
    with pytest.raises(InputError, match=r'image_only is torch.float32.*torch.bool \(2, 3\)'):
        svd(*args, **others, image_only=torch.zeros(2, 3))
    plain = VideoUNet(**TINY, norm_num_groups=4, attention_head_dim=2)
    with pytest.raises(InputError, match=r"takes no 'fps', expected none"):
        plain(torch.zeros(1, 4, 1, 4, 4), 1, torch.zeros(1, 1, 6), conditions={'fps': Tensor([8])})


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'temporal_mixing': 'learnt'}, "temporal_mixing='learnt'.*Did you mean 'learned'"),
        ({'norm_eps': [1e-5, 1e-6]}, r'norm_eps=\[1e-05, 1e-06\].*or 6'),
        (
            {'temporal_slots': {'resnets': {'type': 'TemporalConv'}}},
            "'resnets' is taken or no name",
        ),
        ({'temporal_slots': {'a.b': {'type': 'TemporalConv'}}}, "'a.b' is taken or no name"),
        ({'embeddings': {'conv_in': {'type': 'FpsEmbedding'}}}, "'conv_in' is taken or no name"),
        ({'temporal_slots': {'convs': {'dropout': 0.1}}}, "convs has no 'type'"),
        ({'embeddings': {'fps_embedding': {}}}, "fps_embedding has no 'type'"),
        ({'embeddings': {'conv': {'type': 'ConditionlessEmbedding'}}}, 'embeds no condition'),
    ],
)
def test_settings_that_cannot_be_right(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny('svd', **changes)


@MODELS.register_module()
class ConditionlessEmbedding(nn.Module):
    """A registered module that is no embedding."""

    def __init__(self, sizes) -> None:
        super().__init__()


def test_heads_of_a_temporal_transformer():
    with pytest.raises(ConfigError, match='head_channels=3 does not divide 8'):
        TemporalTransformer(8, head_channels=3, norm_num_groups=4)
    wide = TemporalTransformer(8, num_attention_heads=3, head_channels=5, norm_num_groups=4)
    assert wide.proj_in.weight.shape == (15, 8)
    assert wide(torch.zeros(2, 8, 2, 2), LayerContext(2)).shape == (2, 8, 2, 2)


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (SVD_CONFIG | {'norm_num_groups': 4}, "unknown setting 'norm_num_groups'"),
        (SVD_CONFIG | {'cross_attention_dim': [6, 8]}, 'cross_attention_dim='),
        (SVD_CONFIG | {'addition_time_embed_dim': 5}, 'no multiple of addition_time_embed_dim=5'),
        (I2VGEN_CONFIG | {'attention_head_dim': 3}, 'attention_head_dim=3 does not divide'),
        (I2VGEN_CONFIG | {'num_frames': 16}, "unknown setting 'num_frames'"),
    ],
)
def test_diffusers_configs_that_are_another_network(config, message):
    with pytest.raises(WeightsError, match=message):
        unet_arguments(config)


@pytest.mark.parametrize('config', [SVD_CONFIG, I2VGEN_CONFIG])
def test_diffusers_configs_go_both_ways(config):
    written = video_config(unet_arguments(config))
    assert {key: written[key] for key in config} == config
    assert unet_arguments(written) == unet_arguments(config)
    nameless = {key: value for key, value in config.items() if key != '_class_name'}
    kind = 'SpatioTemporal' if config is SVD_CONFIG else '3D'
    nameless['down_block_types'] = [f'CrossAttnDownBlock{kind}', f'DownBlock{kind}']
    assert unet_arguments(nameless).keys() == unet_arguments(config).keys()


def test_what_diffusers_has_not_is_written_under_our_name():
    settings = arguments('svd') | {'gradient_checkpointing': True}
    for own in (settings, unet_arguments(SVD_CONFIG) | {'temporal_mixing': 'learned'}):
        written = video_config(own)
        assert written['_class_name'] == 'VideoUNet'
        kept = {key: value for key, value in own.items() if key != 'gradient_checkpointing'}
        assert unet_arguments(written) == kept
    with pytest.raises(WeightsError, match="unknown setting 'norm_group'"):
        unet_arguments({'_class_name': 'VideoUNet', 'norm_group': 4})
    assert video_config(unet_arguments({})) is None


def test_levels_without_attention_need_no_whole_heads():
    config = I2VGEN_CONFIG | {
        'block_out_channels': [12, 16],
        'down_block_types': ['DownBlock3D', 'CrossAttnDownBlock3D'],
        'attention_head_dim': 8,
    }
    assert unet_arguments(config)['attention_head_dim'] == [1, 2]
    with pytest.raises(WeightsError, match='attention_head_dim=8 does not divide'):
        unet_arguments(config | {'down_block_types': ['CrossAttnDownBlock3D'] * 2})


@MODELS.register_module()
class EditorOfATrunk(nn.Module):
    """An editor with no part but the network."""

    def __init__(self, unet) -> None:
        super().__init__()


@pytest.mark.parametrize('family', FAMILIES)
def test_configs_are_checked_key_by_key(family):
    unet = {'type': 'VideoUNet', **arguments(family)}

    def checked(**changes):
        check({'model': {'type': 'EditorOfATrunk', 'unet': unet | changes}}, 'config.py')

    checked()
    with pytest.raises(ConfigError, match="'temporal_slot'.*Did you mean 'temporal_slots'"):
        checked(temporal_slot={})
    convs = {'temp_convs': {'type': 'TemporalConv', 'drop_out': 0.1}}
    with pytest.raises(ConfigError, match="'drop_out'.*Did you mean 'dropout'"):
        checked(temporal_slots=convs)
