"""The encoders of ControlNet and SparseCtrl against diffusers', within 1e-5."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from control_nets import CONTROL, SCRIBBLE, SPARSE, TEXT
from diffusers import ControlNetModel, SparseControlNetModel
from two_models import disturb

from mmvideo.checkpoints.load import load_into, without_weights
from mmvideo.models.adapters.control_encoder import ControlEncoder, control_arguments

FRAMES, SIDE = 3, 8


def encoder(reference: Any, **changes: Any) -> ControlEncoder:
    """Ours with the reference's weights; diffusers norms SparseCtrl's motion over the clip."""
    arguments = control_arguments(
        {**reference.config, '_class_name': type(reference).__name__}, norm_scope='clip'
    )
    with without_weights():
        ours = ControlEncoder(**{**arguments, **changes})
    load_into(ours, reference.state_dict(), 'the encoder')
    return ours.eval()


def assert_same(ours: Any, theirs: tuple) -> None:
    down, mid = theirs
    assert len(ours.down) == len(down) == 6
    for mine, expected in zip([*ours.down, ours.mid], [*down, mid], strict=True):
        assert mine.shape == expected.shape
        scale = max(1.0, float(expected.abs().max()))
        assert float((mine - expected).abs().max()) <= 1e-5 * scale
        assert float(expected.abs().max()) > 1e-3


@pytest.mark.parametrize('guess', [False, True])
@pytest.mark.parametrize(
    'changes',
    [
        {},
        dict(controlnet_conditioning_channel_order='bgr'),
        dict(global_pool_conditions=True),
        dict(use_linear_projection=True, transformer_layers_per_block=2),
    ],
)
@torch.no_grad()
def test_control_net(changes: dict, guess: bool) -> None:
    torch.manual_seed(0)
    reference = disturb(ControlNetModel(**{**CONTROL, **changes})).eval()
    ours = encoder(reference)
    sample = torch.randn(2, 4, FRAMES, SIDE, SIDE)
    text = torch.randn(2, 5, TEXT)
    pictures = torch.rand(2, FRAMES, 3, 2 * SIDE, 2 * SIDE)
    found = ours(sample, 40, text, ours.embed(pictures), guess_mode=guess).scaled(0.7)
    expected = reference(
        sample.transpose(1, 2).flatten(0, 1),
        40,
        text.repeat_interleave(FRAMES, 0),
        pictures.flatten(0, 1),
        conditioning_scale=0.7,
        guess_mode=guess,
        return_dict=False,
    )
    assert_same(found, expected)


@pytest.mark.parametrize('guess', [False, True])
@pytest.mark.parametrize('kind', ['rgb', 'scribble'])
@torch.no_grad()
def test_sparse_ctrl(kind: str, guess: bool) -> None:
    torch.manual_seed(1)
    reference = disturb(SparseControlNetModel(**(SPARSE if kind == 'rgb' else SCRIBBLE))).eval()
    ours = encoder(reference)
    side, channels = (SIDE, 4) if kind == 'rgb' else (2 * SIDE, 3)
    sample = torch.randn(2, 4, FRAMES, SIDE, SIDE)
    text = torch.randn(2, 5, TEXT)
    mask = torch.zeros(1, 1, FRAMES, side, side)
    mask[:, :, 1] = 1
    pictures = torch.rand(1, channels, FRAMES, side, side) * mask
    features = ours.embed(torch.cat([pictures, mask], 1).transpose(1, 2))
    found = ours(sample, 40, text, features, guess_mode=guess).scaled(1.3)
    expected = reference(
        sample,
        40,
        text.repeat_interleave(FRAMES, 0),
        pictures,
        conditioning_mask=mask,
        conditioning_scale=1.3,
        guess_mode=guess,
        return_dict=False,
    )
    assert_same(found, expected)


@torch.no_grad()
def test_frames_are_scaled_each(guess: bool = False) -> None:
    torch.manual_seed(2)
    ours = encoder(disturb(ControlNetModel(**CONTROL)).eval())
    sample, text = torch.randn(2, 4, FRAMES, SIDE, SIDE), torch.randn(2, 5, TEXT)
    features = ours.embed(torch.rand(1, FRAMES, 3, 2 * SIDE, 2 * SIDE))
    plain = ours(sample, 3, text, features)
    found = plain.scaled(torch.tensor([1.0, 0.0, 0.5]))
    for mine, whole in zip([*found.down, found.mid], [*plain.down, plain.mid], strict=True):
        mine, whole = mine.unflatten(0, (2, FRAMES)), whole.unflatten(0, (2, FRAMES))
        assert torch.equal(mine[:, 0], whole[:, 0])
        assert not mine[:, 1].any()
        assert torch.equal(mine[:, 2], whole[:, 2] * 0.5)
