"""Layers and operators of the trunk against their formulas, written out plainly."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from torch import nn

from mmvideo.errors import ConfigError, InputError
from mmvideo.models.unet import LayerContext, MotionModule
from mmvideo.models.unet.attention import Attention
from mmvideo.models.unet.embeddings import timestep_sinusoid
from mmvideo.models.unet.resnet import ResnetBlock
from mmvideo.models.unet.stages import DownStage, MidStage, StageParts, TemporalSlot
from mmvideo.ops import attention, geglu, scoped_group_norm, temporal_attention

CLIPS, FRAMES, CHANNELS, GROUPS, SIZE = 2, 3, 8, 4, (5, 7)


def plain_group_norm(x, groups, weight, bias, eps, frames):
    """Mean and variance of every set of numbers that belongs together, one set at a time."""
    y, per_group = torch.empty_like(x), x.shape[1] // groups
    for start in range(0, x.shape[0], frames):
        for first in range(0, x.shape[1], per_group):
            where = slice(start, start + frames), slice(first, first + per_group)
            part = x[where]
            y[where] = (part - part.mean()) / (part.var(correction=0) + eps).sqrt()
    return y * weight[None, :, None, None] + bias[None, :, None, None]


def plain_conv(x, layer):
    """A 3x3 convolution as the sum of nine shifted products."""
    height, width = x.shape[-2:]
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    y = torch.zeros(x.shape[0], layer.out_channels, height, width) + layer.bias[:, None, None]
    for i in range(3):
        for j in range(3):
            part = padded[:, :, i : i + height, j : j + width]
            y = y + torch.einsum('bchw,oc->bohw', part, layer.weight[:, :, i, j])
    return y


def plain_attention(x, layer, heads):
    """[L, C] -> [L, C], a head at a time."""
    q, k, v = (x @ w.weight.T for w in (layer.to_q, layer.to_k, layer.to_v))
    size = x.shape[1] // heads
    parts = []
    for h in range(heads):
        at = slice(h * size, (h + 1) * size)
        scores = torch.softmax(q[:, at] @ k[:, at].T / math.sqrt(size), dim=1)
        parts.append(scores @ v[:, at])
    return torch.cat(parts, 1) @ layer.to_out[0].weight.T + layer.to_out[0].bias


def plain_layer_norm(x, layer):
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / spread * layer.weight + layer.bias


def plain_position(frame, channels):
    pairs = [frame / 10_000 ** (2 * i / channels) for i in range(channels // 2)]
    return torch.tensor([f(angle) for angle in pairs for f in (math.sin, math.cos)])


def plain_motion_module(module, x, frames, joint):
    """AnimateDiff's motion module, one place of one clip at a time."""
    scope = frames if joint else 1
    norm = plain_group_norm(x, GROUPS, module.norm.weight, module.norm.bias, 1e-6, scope)
    y = torch.empty_like(x)
    positions = torch.stack([plain_position(t, x.shape[1]) for t in range(frames)])
    for start in range(0, x.shape[0], frames):
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                at = slice(start, start + frames), slice(None), i, j
                tokens = norm[at] @ module.proj_in.weight.T + module.proj_in.bias
                for block in module.transformer_blocks:
                    tokens = plain_temporal_block(block, tokens, positions)
                y[at] = x[at] + tokens @ module.proj_out.weight.T + module.proj_out.bias
    return y


def plain_temporal_block(block, x, positions):
    for norm, layer in ((block.norm1, block.attn1), (block.norm2, block.attn2)):
        x = x + plain_attention(plain_layer_norm(x, norm) + positions, layer, layer.heads)
    first, last = block.ff.net[0].proj, block.ff.net[2]
    value, gate = (plain_layer_norm(x, block.norm3) @ first.weight.T + first.bias).chunk(2, -1)
    gated = value * gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
    return x + gated @ last.weight.T + last.bias


def randomised(module: nn.Module) -> nn.Module:
    """Every parameter away from its initial value, so that none can be left out unseen."""
    for p in module.parameters():
        nn.init.normal_(p, 0.2, 0.4)
    return module.eval()


@pytest.fixture
def clip():
    torch.manual_seed(0)
    return torch.randn(CLIPS * FRAMES, CHANNELS, *SIZE) * 2 + 1


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('frames', [1, FRAMES])
def test_group_norm_scopes(clip, frames, layout):
    weight, bias = torch.randn(CHANNELS), torch.randn(CHANNELS)
    expected = plain_group_norm(clip, GROUPS, weight, bias, 1e-5, frames)
    x = clip.to(memory_format=layout)
    for silu in (False, True):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                y = scoped_group_norm(x, GROUPS, weight, bias, 1e-5, frames, silu)
            wanted = expected * expected.sigmoid() if silu else expected
            torch.testing.assert_close(y, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize('frames', [1, FRAMES])
def test_group_norm_gradients(frames):
    x = torch.randn(6, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def run(*args):
        return scoped_group_norm(args[0], 2, args[1], args[2], 1e-5, frames, silu=True)

    assert torch.autograd.gradcheck(run, (x, weight, bias))


@pytest.mark.parametrize('frames', [1, FRAMES])
def test_group_norm_in_half_precision(clip, frames):
    """A large mean must not eat the variance: statistics are not taken in bfloat16."""
    x = (clip + 50).bfloat16()
    ones, zeros = torch.ones(CHANNELS), torch.zeros(CHANNELS)
    expected = plain_group_norm(x.float(), GROUPS, ones, zeros, 1e-5, frames)
    y = scoped_group_norm(x, GROUPS, ones.bfloat16(), zeros.bfloat16(), 1e-5, frames)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize('scope', ['frame', 'clip'])
def test_resnet_scopes(clip, scope):
    torch.manual_seed(1)
    block = randomised(ResnetBlock(CHANNELS, 12, 6, GROUPS, norm_scope=scope))
    time = torch.randn(CLIPS, 6)
    joint = FRAMES if scope == 'clip' else 1

    def norm(x, layer):
        y = plain_group_norm(x, GROUPS, layer.weight, layer.bias, 1e-5, joint)
        return y * y.sigmoid()

    y = plain_conv(norm(clip, block.norm1), block.conv1)
    shift = time @ block.time_emb_proj.weight.T + block.time_emb_proj.bias
    y = y + torch.stack([shift[b // FRAMES] for b in range(CLIPS * FRAMES)])[:, :, None, None]
    y = plain_conv(norm(y, block.norm2), block.conv2)
    shortcut = torch.einsum('bchw,oc->bohw', clip, block.conv_shortcut.weight[:, :, 0, 0])
    y = y + shortcut + block.conv_shortcut.bias[:, None, None]
    ours = block(clip, LayerContext(FRAMES, time))
    assert (ours - y).abs().max() <= 1e-5 * y.abs().max()


@pytest.mark.parametrize('scope', ['frame', 'clip'])
def test_motion_module_scopes(clip, scope):
    torch.manual_seed(1)
    module = randomised(MotionModule(CHANNELS, 2, 2, FRAMES, GROUPS, scope))
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            ours = module(clip, LayerContext(FRAMES))
        theirs = plain_motion_module(module, clip.clone(), FRAMES, scope == 'clip')
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_motion_module_begins_as_the_identity(clip):
    module = MotionModule(CHANNELS, 2, max_positions=FRAMES, norm_num_groups=GROUPS)
    assert torch.equal(module(clip, LayerContext(FRAMES)), clip)


def test_attention_beyond_the_launch_grid(monkeypatch):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 5, 7, 4, 2).unbind(0)
    expected = attention(q, k, v)
    # the package's attribute of that name is the function
    monkeypatch.setattr(importlib.import_module('mmvideo.ops.attention'), 'MAX_GRID', 3)
    torch.testing.assert_close(attention(q, k, v), expected)
    torch.testing.assert_close(attention(q[:2], k[:2], v[:2]), expected[:2])


def test_temporal_attention_keeps_places_apart():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 6, 2, 3).unbind(0)
    y = temporal_attention(q, k, v)
    other = v.clone()
    other[:, :, 2] += 1
    changed = (temporal_attention(q, k, other) - y).abs().amax((0, 1, 3)) > 1e-6
    assert changed.tolist() == [False, False, True, False, False, False]


def test_temporal_attention_moves_no_memory():
    """The three projections and the joined one both reach attention as views."""
    layer = Attention(16, 4)
    x = torch.randn(2, 3, 40, 16)
    with torch.no_grad():
        joined = layer.qkv(x)
    for parts in (joined, layer.qkv(x)):
        for part in parts:
            merged = part.reshape(2, 3, 160, 4)
            assert merged.data_ptr() == part.data_ptr()
            assert merged._base is not None


def test_geglu():
    x = torch.randn(3, 8)
    value, gate = x[:, :4], x[:, 4:]
    expected = value * gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
    torch.testing.assert_close(geglu(x), expected)


def test_timestep_sinusoid():
    row = timestep_sinusoid(torch.tensor([37.5]), 6)[0]
    angles = [37.5 / 10_000 ** (i / 3) for i in range(3)]
    expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
    torch.testing.assert_close(row, torch.tensor(expected), atol=1e-5, rtol=0)


class Doubled(nn.Module):
    """A wrapped projection, as LoRA or quantisation would put in place."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner, self.weight = inner, inner.weight

    def forward(self, x):
        return 2 * self.inner(x)


@torch.no_grad()
def test_joined_projection_follows_the_weights():
    torch.manual_seed(0)
    layer, x = Attention(8, 2), torch.randn(1, 64, 8)
    assert layer._one_product_is_cheaper(x)
    for change in (
        lambda: None,
        lambda: layer.to_q.weight.data.mul_(3),  # what merging LoRA does: no version counted
        lambda: layer.load_state_dict(Attention(8, 2).state_dict()),
        lambda: layer.double(),
    ):
        change()
        x = x.to(layer.to_q.weight.dtype)
        expected = plain_attention(x[0], layer, 2)[None]
        torch.testing.assert_close(layer.attend_self(x), expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize('how', ['wrapped', 'hooked'])
def test_joined_projection_leaves_adapted_layers_to_themselves(how):
    torch.manual_seed(0)
    layer, x = Attention(8, 2), torch.randn(1, 64, 8)
    before = layer.attend_self(x)
    if how == 'wrapped':
        layer.to_v = Doubled(layer.to_v)
    else:
        layer.to_v.register_forward_hook(lambda module, args, output: 2 * output)
    bias = layer.to_out[0].bias
    torch.testing.assert_close(layer.attend_self(x) - bias, 2 * (before - bias))


def test_a_prompt_for_each_frame(clip):
    layer, text = Attention(CHANNELS, 2, 6), torch.randn(CLIPS, 4, 6)
    tokens = clip.flatten(2).transpose(1, 2)
    shared = layer.attend_to(tokens, text)
    each = layer.attend_to(tokens, text.repeat_interleave(FRAMES, 0))
    torch.testing.assert_close(shared, each)


class Record(nn.Module):
    """Adds one and says its name."""

    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__()
        self.name, self.log = name, log

    def forward(self, x, context):
        self.log.append(self.name)
        return x + 1


@pytest.mark.parametrize('with_attention', [True, False])
def test_temporal_slots_run_where_they_stand(with_attention):
    """The slots of I2VGen-XL: a convolution after the resnet, attention after the transformer."""
    log: list[str] = []

    def part(name):
        return lambda *channels: Record(name, log)

    slots = (
        TemporalSlot('temp_convs', 'resnet', part('conv')),
        TemporalSlot('temp_attentions', 'attention', part('time')),
    )
    parts = StageParts(part('resnet'), part('space') if with_attention else None, slots)
    layer = ['resnet', 'conv', 'space', 'time'] if with_attention else ['resnet', 'conv', 'time']
    down = DownStage(parts, 4, 4, layers=2, downsample=False)
    x, skips = down(torch.zeros(1, 4, 2, 2), LayerContext())
    assert log == 2 * layer
    assert [skip.max().item() for skip in skips] == [len(layer), 2 * len(layer)]
    log.clear()
    MidStage(parts, 4)(x, LayerContext())
    assert log == [*layer, 'resnet', 'conv']


def test_settings_that_cannot_be_right():
    with pytest.raises(ConfigError, match=r'norm_num_groups=3 does not divide 8.*divisor is 2'):
        ResnetBlock(8, 8, 4, groups=3)
    with pytest.raises(ConfigError, match=r"norm_scope='clips'.*Did you mean 'clip'"):
        MotionModule(8, 2, norm_num_groups=4, norm_scope='clips')
    with pytest.raises(ConfigError, match='num_attention_heads=3 does not divide 8'):
        MotionModule(8, 3, norm_num_groups=4)
    with pytest.raises(ConfigError, match='attention_blocks=3: expected 1 or 2'):
        MotionModule(8, 2, norm_num_groups=4, attention_blocks=3)
    with pytest.raises(ConfigError, match='max_positions=0'):
        MotionModule(8, 2, norm_num_groups=4, max_positions=0)
    module = MotionModule(8, 2, norm_num_groups=4, max_positions=2)
    with pytest.raises(InputError, match=r'3 frames.*2 positions.*num_frames <= 2'):
        module(torch.zeros(3, 8, 2, 2), LayerContext(3))
