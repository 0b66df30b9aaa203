"""LoRAs whose alphas and ranks differ by layer, as PEFT's config or diffusers' header says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from mmvideo.apis.convert import convert
from mmvideo.checkpoints.files import read_tensors
from mmvideo.checkpoints.layouts import lora_to_ours
from mmvideo.checkpoints.lora_config import LORA_METADATA, stated_alpha, stated_configs
from mmvideo.errors import WeightsError
from mmvideo.models.adapters.lora_files import read_pairs

TARGETS = ['to_q', 'to_v', 'conv1']
RANKS = {'attn2.to_q': 2, 'conv1': 3}
ALPHAS = {'attn2.to_q': 1.0, 'attn1.to_v': 6.0, 'to_v': 9.0}


def unet() -> UNet2DConditionModel:
    torch.manual_seed(1)
    return UNet2DConditionModel(
        block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=12,
        attention_head_dim=2, layers_per_block=1,
        down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
        up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
    ).eval()  # fmt: skip


def output(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    sample = torch.randn(1, 4, 8, 8, generator=generator)
    text = torch.randn(1, 5, 12, generator=generator)
    with torch.no_grad():
        return model(sample, 500, text).sample


@pytest.fixture(scope='module', params=[False, True], ids=['plain', 'rsLoRA'])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder that PEFT wrote, what its model computes, and the factor of each layer."""
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=TARGETS, rank_pattern=RANKS, alpha_pattern=ALPHAS,
        use_rslora=request.param, init_lora_weights=False,
    )  # fmt: skip
    model = peft.get_peft_model(unet(), config).eval()
    folder = tmp_path_factory.mktemp('peft')
    model.save_pretrained(folder)
    factors = {
        name.removeprefix('base_model.model.'): module.scaling['default']
        for name, module in model.named_modules()
        if hasattr(module, 'scaling')
    }
    assert len(set(factors.values())) >= 4
    return folder, output(model), factors


def test_pairs_have_the_factors_of_peft(made: Any) -> None:
    folder, _, factors = made
    pairs = read_pairs(folder / 'adapter_model.safetensors')
    assert {name.removeprefix('unet.') for name in pairs} == set(factors)
    for name, pair in pairs.items():
        factor = pair.alpha / pair.down.shape[0]
        assert factor == pytest.approx(factors[name.removeprefix('unet.')], rel=1e-6), name
    assert {pair.down.shape[0] for pair in pairs.values()} == {2, 3, 4}


@pytest.mark.parametrize('target', ['kohya', 'diffusers'])
def test_other_layouts_keep_them(made: Any, tmp_path: Path, target: str) -> None:
    folder, expected, factors = made
    convert(folder, tmp_path / 'a.safetensors', target)
    for name, pair in read_pairs(tmp_path / 'a.safetensors').items():
        factor = pair.alpha / pair.down.shape[0]
        assert factor == pytest.approx(factors[name.removeprefix('unet.')], rel=1e-6), name
    tensors = lora_to_ours(read_tensors(tmp_path / 'a.safetensors'))
    assert any(key.endswith('.alpha') for key in tensors) == (target == 'kohya')
    if target == 'diffusers':
        model = unet()
        model.load_lora_adapter(
            str(tmp_path), weight_name='a.safetensors', prefix='unet', use_safetensors=True
        )
        assert float((output(model) - expected).abs().max()) <= 1e-5
        assert float((output(unet()) - expected).abs().max()) > 1e-3


def test_the_first_pattern_that_fits_counts_and_a_header_goes_before_the_config() -> None:
    stated = stated_configs(
        {LORA_METADATA: json.dumps({'unet.lora_alpha': 3})}, {'lora_alpha': 5}, 'a file'
    )
    assert stated['unet'] == {'lora_alpha': 3} and stated['text_encoder'] == {'lora_alpha': 5}
    config = {'lora_alpha': 8, 'alpha_pattern': ALPHAS}
    assert stated_alpha(config, 'mid_block.attn1.to_v', 4) == 6
    assert stated_alpha(config, 'mid_block.attn2.to_v', 4) == 9
    assert stated_alpha(config, 'mid_block.attn2.xto_v', 4) == 8
    assert stated_configs({}, {}, 'a file') == {}


@pytest.mark.parametrize('pattern', ['(a+)+$', '.*to_q', '^mid'])
def test_expressions_of_a_file_are_not_run(pattern: str) -> None:
    with pytest.raises(WeightsError, match='expected the name of a layer'):
        stated_alpha({'lora_alpha': 1, 'alpha_pattern': {pattern: 2}}, 'a' * 60, 4)


@pytest.mark.parametrize('header', ['{', '[1]'])
def test_a_header_that_cannot_be_read_is_named(tmp_path: Path, header: str) -> None:
    layer = 'unet.mid_block.resnets.0.conv1'
    pair = {f'{layer}.lora_A.weight': torch.ones(2, 8, 3, 3), f'{layer}.lora_B.weight':
            torch.ones(8, 2, 1, 1)}  # fmt: skip
    save_file(pair, tmp_path / 'a.safetensors', {LORA_METADATA: header})
    with pytest.raises(WeightsError, match='a.safetensors: its lora_adapter_metadata is'):
        read_pairs(tmp_path / 'a.safetensors')
    with pytest.raises(WeightsError, match='a.safetensors: its lora_adapter_metadata is'):
        convert(tmp_path / 'a.safetensors', tmp_path / 'b.safetensors', 'kohya')
