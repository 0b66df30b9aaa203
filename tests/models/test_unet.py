"""VideoUNet as a whole: frames, batches, checkpointing, training of parts, messages."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from mmvideo.errors import ConfigError, InputError, WeightsError
from mmvideo.models.unet import MotionModule, VideoUNet, motion_arguments, unet_arguments
from mmvideo.models.unet.attention import SpatialTransformer
from mmvideo.models.unet.resnet import ResnetBlock
from mmvideo.registry import MODELS

MOTION = {'type': 'MotionModule', 'num_attention_heads': 2, 'max_positions': 6}


def tiny(motion=True, **changes) -> VideoUNet:
    """A VideoUNet of two levels whose every parameter matters."""
    torch.manual_seed(0)
    settings = {
        'type': 'VideoUNet',
        'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'],
        'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D'],
        'block_out_channels': [8, 16],
        'layers_per_block': 1,
        'cross_attention_dim': 6,
        'attention_head_dim': 2,
        'norm_num_groups': 4,
        'motion_module': MOTION if motion else None,
        'motion_mid_block': motion,
    }
    model = MODELS.build(settings | changes)
    for module in model.modules():
        if isinstance(module, MotionModule):
            nn.init.normal_(module.proj_out.weight, std=0.3)
    return model.eval()


def inputs(frames=3, clips=2, size=(6, 4)):
    torch.manual_seed(1)
    return (
        torch.randn(clips, 4, frames, *size),
        torch.tensor([3, 700])[:clips],
        torch.randn(clips, 5, 6),
    )


def loss(model, *args):
    return (model(*args) - args[0]).pow(2).mean()


def gradients(model, *args):
    model.zero_grad()
    loss(model, *args).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('scope', ['frame', 'clip'])
@pytest.mark.parametrize('frames', [1, 6])
def test_a_batch_is_its_clips(frames, scope):
    model = tiny(resnet_norm_scope=scope, motion_module=MOTION | {'norm_scope': scope})
    sample, time, text = inputs(frames)
    with torch.no_grad():
        both = model(sample, time, text)
        each = [model(sample[i : i + 1], time[i], text[i : i + 1]) for i in range(2)]
    assert both.shape == sample.shape
    torch.testing.assert_close(both, torch.cat(each), atol=1e-5, rtol=0)


def test_frames_are_apart_without_motion_and_joined_with_it():
    sample, time, text = inputs()
    other = sample.clone()
    other[:, :, 2] += 1
    for motion in (False, True):
        model = tiny(motion)
        with torch.no_grad():
            change = (model(other, time, text) - model(sample, time, text)).abs()
        moved = (change.amax((0, 1, 3, 4)) > 1e-4).tolist()
        assert moved == [motion, motion, True]


def test_timestep_forms_agree():
    model, (sample, _, text) = tiny(), inputs()
    with torch.no_grad():
        first = model(sample, torch.tensor([40, 40]), text)
        for time in (40, 40.0, torch.tensor(40), torch.tensor([40])):
            assert torch.equal(model(sample, time, text), first)
        assert not torch.allclose(model(sample, 41, text), first)


def test_channels_last_gives_the_same():
    model, args = tiny(resnet_norm_scope='clip'), inputs()
    with torch.no_grad():
        expected = model(*args)
        ours = model.to(memory_format=torch.channels_last)(*args)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_one_graph():
    """torch.compile captures a whole call, with no break."""
    model, args = tiny(resnet_norm_scope='clip'), inputs()
    with torch.no_grad():
        compiled = torch.compile(model, backend='eager', fullgraph=True)
        torch.testing.assert_close(compiled(*args), model(*args))


@pytest.mark.parametrize('scope', ['frame', 'clip'])
def test_autocast(scope):
    model = tiny(resnet_norm_scope=scope, motion_module=MOTION | {'norm_scope': scope})
    args = inputs()
    exact = model(*args)
    exact_gradients = gradients(model, *args)
    with torch.autocast('cpu', torch.bfloat16):
        rough = model(*args)
        rough_gradients = gradients(model, *args)
    assert (rough - exact).norm() <= 0.02 * exact.norm()
    assert rough_gradients.keys() == exact_gradients.keys()
    for name in ('conv_in.weight', 'mid_block.motion_modules.0.proj_in.weight'):
        exact, rough = exact_gradients[name], rough_gradients[name]
        assert (rough - exact).norm() <= 0.1 * exact.norm()


def test_checkpointing_recomputes_every_block():
    model, args = tiny(), inputs()
    kinds = (ResnetBlock, SpatialTransformer, MotionModule)
    blocks = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
    calls: Counter[str] = Counter()
    for name, block in blocks.items():
        block.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    plain = gradients(model, *args)
    assert calls == dict.fromkeys(blocks, 1)
    counts = Counter(type(block) for block in blocks.values())
    assert counts == {ResnetBlock: 8, SpatialTransformer: 4, MotionModule: 7}

    calls.clear()
    model.enable_gradient_checkpointing()
    again = gradients(model, *args)
    assert calls == dict.fromkeys(blocks, 2)
    assert plain.keys() == again.keys() == dict(model.named_parameters()).keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, msg=name)

    calls.clear()
    with torch.no_grad():
        model(*args)
    assert calls == dict.fromkeys(blocks, 1)
    assert tiny(gradient_checkpointing=True).gradient_checkpointing


def test_checkpointing_keeps_less():
    sizes = {}
    for checkpointing in (False, True):
        model, kept = tiny(gradient_checkpointing=checkpointing), 0

        def pack(x):
            nonlocal kept
            kept += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss(model, *inputs())
        sizes[checkpointing] = kept
    assert sizes[True] < 0.3 * sizes[False]


@pytest.mark.parametrize('checkpointing', [False, True])
def test_training_only_motion(checkpointing):
    """A frozen base gets no gradients and, before the first motion module, no graph."""
    model, args = tiny(gradient_checkpointing=checkpointing), inputs()
    expected = gradients(model, *args)
    for name, p in model.named_parameters():
        p.requires_grad_('motion_modules' in name)
    found = gradients(model, *args)
    assert set(found) == {name for name in expected if 'motion_modules' in name}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], msg=name)
    seen = []
    first = model.down_blocks[0].attentions[0]
    first.register_forward_hook(lambda module, inp, out: seen.append(out.requires_grad))
    model(*args)
    assert seen == [False]


def test_training_learns():
    model, (sample, time, text) = tiny(), inputs()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    first = loss(model, sample, time, text).item()
    for _ in range(15):
        optimizer.zero_grad()
        loss(model, sample, time, text).backward()
        optimizer.step()
    assert loss(model, sample, time, text).item() < 0.5 * first


def test_residual_counts_are_checked():
    model, args = tiny(), inputs()
    with pytest.raises(InputError, match='2 down_block_additional_residuals: expected 4'):
        model(*args, down_block_additional_residuals=[torch.zeros(1)] * 2)


def test_inputs_that_cannot_be_right():
    model, (sample, time, text) = tiny(), inputs()
    with pytest.raises(InputError, match=r'7 frames.*6 positions.*num_frames <= 6'):
        model(*inputs(frames=7))
    with pytest.raises(InputError, match=r'sample has shape.*expected \[N, 4, T, H, W\]'):
        model(sample[:, :3], time, text)
    with pytest.raises(InputError, match=r'encoder_hidden_states.*expected \[2, L, 6\]'):
        model(sample, time, text[..., :5])
    with pytest.raises(InputError, match=r'has 3 rows: expected 2.*or 6'):
        model(sample, time, torch.zeros(3, 5, 6))
    with pytest.raises(InputError, match=r'timestep has shape \(3,\)'):
        model(sample, torch.tensor([1, 2, 3]), text)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'down_block_types': ['DownBlock2D']}, 'down_block_types names 1 stages.*has 2'),
        ({'up_block_types': ['UpBlock', 'UpBlock2D']}, "'UpBlock'.*Did you mean 'UpBlock2D'"),
        ({'layers_per_block': [1, 2, 3]}, 'layers_per_block=.*2, one for each level'),
        ({'attention_head_dim': 0}, 'attention_head_dim=0: expected a positive'),
        ({'attention_head_dim': 3}, 'num_attention_heads=3 does not divide 8'),
        ({'norm_num_groups': 5}, 'norm_num_groups=5 does not divide 8'),
        ({'resnet_norm_scope': 'clips'}, "norm_scope='clips'.*Did you mean 'clip'"),
        ({'block_out_channels': [7, 8]}, 'expected an even number first'),
        ({'motion_module': None}, 'motion_mid_block=True without a motion_module'),
        ({'motion_module': {'max_positions': 3}}, "motion_module has no 'type'"),
    ],
)
def test_settings_that_cannot_be_right(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**changes)


IMAGE_CONFIG = {
    '_class_name': 'UNet2DConditionModel',
    '_diffusers_version': '0.6.0',
    'act_fn': 'silu',
    'attention_head_dim': 8,
    'block_out_channels': [320, 640, 1280, 1280],
    'center_input_sample': False,
    'cross_attention_dim': 768,
    'down_block_types': ['CrossAttnDownBlock2D'] * 3 + ['DownBlock2D'],
    'downsample_padding': 1,
    'flip_sin_to_cos': True,
    'freq_shift': 0,
    'in_channels': 4,
    'layers_per_block': 2,
    'mid_block_scale_factor': 1,
    'norm_eps': 1e-05,
    'norm_num_groups': 32,
    'only_cross_attention': [False, False, False, False],
    'out_channels': 4,
    'sample_size': 64,
    'up_block_types': ['UpBlock2D'] + ['CrossAttnUpBlock2D'] * 3,
}


def test_image_config():
    arguments = unet_arguments(IMAGE_CONFIG)
    with torch.device('meta'):
        model = VideoUNet(**arguments)
    assert sum(p.numel() for p in model.parameters()) == 859_520_964  # Stable Diffusion 1.5
    assert model.sample_size == 64


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'dual_cross_attention': True}, 'dual_cross_attention=True is not supported'),
        ({'addition_embed_type': 'text_time'}, "addition_embed_type='text_time'.*expected None"),
        ({'time_embedding_dim': 256}, 'time_embedding_dim=256'),
        ({'only_cross_attention': [True, False]}, 'only_cross_attention='),
        ({'cross_attention_dim': [768, 1280]}, 'cross_attention_dim='),
        ({'transformer_layers_per_block': [[1], [2]]}, 'transformer_layers_per_block='),
        ({'block_out_chanels': [8]}, "'block_out_chanels'.*Did you mean 'block_out_channels'"),
        ({'motion_max_seq_length': 32}, "unknown setting 'motion_max_seq_length'"),
        ({'_class_name': 'UNet3DConditionModel'}, "config of a 'UNet3DConditionModel'"),
    ],
)
def test_image_configs_that_are_another_network(changes, message):
    with pytest.raises(WeightsError, match=message):
        unet_arguments(IMAGE_CONFIG | changes)


def test_heads_by_either_name():
    assert unet_arguments({'attention_head_dim': [5, 10]})['attention_head_dim'] == [5, 10]
    config = {'_class_name': 'UNetMotionModel', 'num_attention_heads': 4}
    assert unet_arguments(config)['attention_head_dim'] == 4
    assert unet_arguments({})['attention_head_dim'] == 8


def test_motion_config():
    assert motion_arguments({'conv_in_channels': 9, 'use_motion_mid_block': False}) == {
        'in_channels': 9,
        'motion_mid_block': False,
        'motion_module': {
            'type': 'MotionModule',
            'num_attention_heads': 8,
            'num_layers': 1,
            'max_positions': 32,
            'norm_num_groups': 32,
        },
    }


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'motion_num_attention_heads': [8, 4]}, r'motion_num_attention_heads=\[8, 4\]'),
        ({'motion_transformer_layers_per_mid_block': 2}, 'layers_per_mid_block=2 is not'),
        ({'motion_mid_block_layers_per_block': 2}, 'expected 1'),
        ({'motion_max_seq_lenght': 32}, "Did you mean 'motion_max_seq_length'"),
        ({'_class_name': 'SparseControlNetModel'}, 'expected a MotionAdapter'),
        ({'block_out_channels': [320, 640, 1280]}, 'does not fit this UNet'),
        ({'motion_layers_per_block': 1}, 'does not fit this UNet'),
    ],
)
def test_motion_configs_that_do_not_fit(config, message):
    with pytest.raises(WeightsError, match=message):
        motion_arguments(config, unet_arguments(IMAGE_CONFIG))
