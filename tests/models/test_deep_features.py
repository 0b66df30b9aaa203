"""The trunk on deep features of an earlier call: which layers run, and what comes out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmvideo.diffusion.free_u import FreeU
from mmvideo.errors import InputError
from mmvideo.models.unet import VideoUNet
from mmvideo.models.unet.context import Controls, DeepFeatures


@pytest.fixture(scope='module')
def unet() -> VideoUNet:
    torch.manual_seed(0)
    model = VideoUNet(
        down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
        up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
        block_out_channels=(8, 16),
        layers_per_block=2,
        cross_attention_dim=6,
        attention_head_dim=2,
        norm_num_groups=4,
        motion_module=dict(type='MotionModule', num_attention_heads=2, max_positions=8),
        motion_mid_block=True,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.requires_grad_(False)


def inputs(seed: int = 0) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    return dict(
        sample=torch.randn(2, 4, 3, 9, 6, generator=draw),  # an odd side
        timestep=500,
        encoder_hidden_states=torch.randn(2, 5, 6, generator=draw),
    )


def run(unet: VideoUNet, depth: int, kept: Tensor | None, **more: Any) -> tuple[Tensor, list]:
    told: list[Tensor] = []
    controls = more.pop('controls', Controls())
    deep = DeepFeatures(depth, kept, told.append)
    controls = Controls(join=controls.join, deep=deep)
    return unet(**{**inputs(), **more}, controls=controls), told


def test_a_trunk_has_as_many_depths_as_skip_connections_after_the_first(unet: VideoUNet) -> None:
    assert unet.deepest == 5  # two layers, a change of size, two layers


@pytest.mark.parametrize('depth', range(1, 6))
def test_on_features_of_the_same_call_nothing_changes(unet: VideoUNet, depth: int) -> None:
    """To the bit, and only the layers above the features run."""
    plain = unet(**inputs())
    whole, told = run(unet, depth, None)
    assert torch.equal(whole, plain) and len(told) == 1
    calls: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, n=name: calls.append(n))
        for name, module in unet.named_modules()
        if name.split('.')[-2:-1] == ['resnets']
    ]
    try:
        part, kept = run(unet, depth, told[0])
    finally:
        for hook in hooks:
            hook.remove()
    assert torch.equal(part, plain) and not kept
    down = ['down_blocks.0.resnets.0', 'down_blocks.0.resnets.1', 'a change of size',
            'down_blocks.1.resnets.0', 'down_blocks.1.resnets.1'][:depth]  # fmt: skip
    up = [f'up_blocks.{i}.resnets.{j}' for i in range(2) for j in range(3)][5 - depth :]
    assert calls == [name for name in down if name.startswith('down')] + up


def test_features_of_another_call_matter_and_the_shallow_layers_too(unet: VideoUNet) -> None:
    _, told = run(unet, 2, None)
    other = run(unet, 2, run(unet, 2, None, **inputs(1))[1][0])[0]
    assert not torch.allclose(other, unet(**inputs()), atol=1e-3)
    moved = run(unet, 2, told[0], sample=inputs(1)['sample'])[0]
    assert not torch.allclose(moved, unet(**inputs()), atol=1e-3)


def test_with_controls_and_free_u(unet: VideoUNet) -> None:
    """Residuals of the layers that run are added; those of the others are in the features."""
    draw = torch.Generator().manual_seed(2)
    sizes = [(8, 9, 6)] * 3 + [(8, 5, 3)] + [(16, 5, 3)] * 2
    down = [torch.randn(6, *size, generator=draw) for size in sizes]
    added = dict(
        down_block_additional_residuals=down,
        mid_block_additional_residual=torch.randn(6, 16, 5, 3, generator=draw),
        controls=Controls(join=FreeU()),
    )
    for depth in (1, 4):
        whole, told = run(unet, depth, None, **added)
        part, _ = run(unet, depth, told[0], **added)
        assert torch.equal(whole, part)
        assert not torch.allclose(whole, unet(**inputs()), atol=1e-3)


@pytest.mark.parametrize('depth', [0, 6])
def test_a_depth_that_is_not_there(unet: VideoUNet, depth: int) -> None:
    with pytest.raises(InputError, match=rf'depth={depth}: expected an integer from 1 to 5'):
        run(unet, depth, None)
