"""ControlNet and SparseCtrl out of the original files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmvideo.apis.convert import convert
from mmvideo.checkpoints.control import read_control
from mmvideo.checkpoints.files import read_tensors
from mmvideo.checkpoints.layouts import SPARSECTRL
from mmvideo.checkpoints.layouts.controlnet import CONTROLNET
from mmvideo.checkpoints.load import load_into, without_weights
from mmvideo.errors import WeightsError
from mmvideo.models.adapters.control_encoder import ControlEncoder, control_arguments

# Levels as in Stable Diffusion: the width grows in the two in the middle.
SHARED: dict[str, Any] = dict(
    block_out_channels=(32, 64, 96, 96), cross_attention_dim=16, attention_head_dim=8
)
MOTION = dict(type='MotionModule', attention_blocks=1, max_positions=32)
NETS: dict[str, dict[str, Any]] = {
    'control': SHARED,
    'rgb': dict(SHARED, conditioning_channels=4, embedding_widths=None, motion_module=MOTION),
    'scribble': dict(SHARED, embedding_widths=(16, 32, 32, 32), motion_module=MOTION),
}


def net(name: str) -> ControlEncoder:
    torch.manual_seed(0)
    model = ControlEncoder(**NETS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


def original(name: str, model: ControlEncoder) -> dict[str, Tensor]:
    """The names of the authors' files."""
    layout = CONTROLNET if name == 'control' else SPARSECTRL
    return {k: v.contiguous() for k, v in layout.to_theirs(model.state_dict()).items()}


@torch.no_grad()
def residuals(model: ControlEncoder) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(1, 4, 2, 8, 8, generator=generator)
    text = torch.randn(1, 3, 16, generator=generator)
    channels = model.get_submodule('controlnet_cond_embedding')
    width = next(channels.parameters()).shape[1]
    side = 8 * model.picture_scale
    features = model.embed(torch.rand(1, 2, width, side, side, generator=generator))
    found = model(sample, 7, text, features)
    return [*found.down, found.mid]


@pytest.mark.parametrize('name', NETS)
@pytest.mark.parametrize('form', ['original', 'prefixed', 'ours'])
def test_files(tmp_path: Path, name: str, form: str) -> None:
    model = net(name)
    tensors = dict(model.state_dict()) if form == 'ours' else original(name, model)
    if form == 'prefixed' and name != 'control':
        torch.save({'controlnet': tensors, 'epoch': 3}, tmp_path / 'a.ckpt')
        path = tmp_path / 'a.ckpt'
    else:
        path = tmp_path / 'a.safetensors'
        prefix = 'control_model.' if form == 'prefixed' else ''
        extra = {'model.diffusion_model.out.2.bias': torch.zeros(4)} if prefix else {}
        save_file({**{prefix + k: v for k, v in tensors.items()}, **extra}, path)
    weights = read_control(path)
    assert weights.sparse == (name != 'control')
    with without_weights():
        found = ControlEncoder(**control_arguments(weights.config))
    load_into(found, weights.tensors, 'the file')
    for mine, expected in zip(residuals(found.eval()), residuals(model), strict=True):
        assert torch.equal(mine, expected) and float(mine.abs().max()) > 1e-4


def test_the_original_file_has_as_many_names_as_the_public_one() -> None:
    assert len(original('control', net('control'))) == 340
    names = set(original('control', net('control')))
    assert {'zero_convs.11.0.weight', 'input_hint_block.14.bias', 'middle_block_out.0.weight',
            'input_blocks.3.0.op.weight', 'middle_block.1.norm.weight'} <= names  # fmt: skip


def test_other_files_are_refused(tmp_path: Path) -> None:
    names = ('ip_adapter.1.to_k_ip.weight', 'image_proj.proj.weight')
    save_file({name: torch.zeros(2, 2) for name in names}, tmp_path / 'a.safetensors')
    with pytest.raises(WeightsError, match='expected a ControlNet or a SparseCtrl'):
        read_control(tmp_path / 'a.safetensors')
    short = {k: v for k, v in original('control', net('control')).items() if 'middle' not in k}
    save_file(short, tmp_path / 'b.safetensors')
    with pytest.raises(WeightsError, match='has no mid_block'):
        read_control(tmp_path / 'b.safetensors')


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_a_control_net_goes_both_ways(tmp_path: Path) -> None:
    """Out of the authors' file beside another model, into diffusers' folder and back, bit by bit;
    diffusers' own converter and its class agree."""
    from diffusers import ControlNetModel
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    model = net('control')
    state = dict(model.state_dict())
    theirs = {f'control_model.{k}': v for k, v in original('control', model).items()}
    rest = {'model.diffusion_model.out.2.bias': torch.zeros(4)}
    torch.save({**theirs, **rest}, tmp_path / 'control.pth')
    done = convert(tmp_path / 'control.pth', tmp_path / 'folder')
    assert done.translation.family == 'controlnet_ldm'
    assert done.translation.notes == ('1 tensors left out: no part of the ControlNet',)
    equal(read_tensors(done.paths[0]), state)
    equal(convert_controlnet_checkpoint(dict(theirs), {'layers_per_block': 2}), state)
    loaded, info = ControlNetModel.from_pretrained(tmp_path / 'folder', output_loading_info=True)
    assert not any(info.values())
    equal(loaded.state_dict(), state)
    back = convert(tmp_path / 'folder', tmp_path / 'back.safetensors', 'original')
    assert back.translation.family == 'controlnet' and back.translation.notes == ()
    equal(read_tensors(tmp_path / 'back.safetensors'), theirs)
    again = convert(tmp_path / 'back.safetensors', tmp_path / 'again')
    equal(read_tensors(again.paths[0]), state)
    with pytest.raises(WeightsError, match='already; --to safetensors'):
        convert(tmp_path / 'back.safetensors', tmp_path / 'no', 'original')
