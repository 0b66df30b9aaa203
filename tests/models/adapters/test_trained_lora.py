"""LoRA in training: PEFT's gradients, a frozen model beside it, a file that other programs read."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from mmvideo.apis.train import train
from mmvideo.checkpoints.commit import read_commit
from mmvideo.checkpoints.files import read_metadata, read_tensors
from mmvideo.checkpoints.layouts import recognise
from mmvideo.config import load_config
from mmvideo.errors import ConfigError, InputError
from mmvideo.models.adapters.lora_files import read_pairs
from mmvideo.models.adapters.trained_lora import (
    FILE_NAME,
    LoRASettings,
    add_trained_lora,
    read_settings,
    save_lora,
)
from mmvideo.models.unet import VideoUNet, unet_arguments
from mmvideo.registry import MODELS

TESTS = Path(__file__).parents[2]
RANK, ALPHA = 3, 6.0
TARGETS = ['to_q', 'to_k', 'to_v', 'to_out.0', 'conv1', 'ff.net.2']
PATTERNS = (r'to_[qkv]$', r'to_out\.0', r'conv1', r'ff\.net\.2')


def reference() -> UNet2DConditionModel:
    torch.manual_seed(1)
    return UNet2DConditionModel(
        block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=12,
        attention_head_dim=2, layers_per_block=1,
        down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
        up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
    )  # fmt: skip


def ours(weights: UNet2DConditionModel) -> VideoUNet:
    model = VideoUNet(**unet_arguments(dict(weights.config)))
    model.load_state_dict(weights.state_dict())
    return model.requires_grad_(False)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    sample = torch.randn(2, 4, 8, 6, generator=generator)
    return sample, torch.tensor([500, 20]), torch.randn(2, 5, 12, generator=generator)


@pytest.fixture(scope='module')
def pair() -> tuple[Any, VideoUNet, dict]:
    """PEFT's model and ours with the same pairs, after a backward pass of each."""
    base = reference()
    model = ours(base)
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, init_lora_weights=False
    )
    theirs = peft.get_peft_model(base, config)
    settings = read_settings(dict(rank=RANK, alpha=ALPHA, targets=PATTERNS))
    pairs = add_trained_lora(model, settings)
    for name, found in pairs.items():
        layer = theirs.base_model.model.get_submodule(name)
        found.down.data.copy_(layer.lora_A['default'].weight)
        found.up.data.copy_(layer.lora_B['default'].weight)
    sample, time, text = inputs()
    model(sample[:, :, None], time, text).square().sum().backward()
    theirs(sample, time, text).sample.square().sum().backward()
    return theirs, model, pairs


def test_gradients_are_those_of_peft(pair: Any) -> None:
    theirs, model, pairs = pair
    layers = {
        name.removeprefix('base_model.model.'): module
        for name, module in theirs.named_modules()
        if hasattr(module, 'lora_A')
    }
    assert set(pairs) == set(layers) and len(pairs) > 20
    for name, found in pairs.items():
        for mine, other in ((found.down, 'lora_A'), (found.up, 'lora_B')):
            expected = getattr(layers[name], other)['default'].weight.grad
            scale = max(1.0, float(expected.abs().max()))
            assert float((mine.grad - expected).abs().max()) <= 1e-5 * scale, name
            assert float(expected.abs().max()) > 0, name
    frozen = [p for n, p in model.named_parameters() if 'low_rank' not in n]
    assert not any(p.requires_grad or p.grad is not None for p in frozen)


@torch.no_grad()
def test_diffusers_and_our_adapter_read_the_file(pair: Any, tmp_path: Path) -> None:
    theirs, model, pairs = pair
    path = save_lora(tmp_path / FILE_NAME, pairs)
    sample, time, text = inputs()
    expected = theirs(sample, time, text).sample
    assert float((model(sample[:, :, None], time, text)[:, :, 0] - expected).abs().max()) <= 1e-5
    other = reference()
    assert float((other(sample, time, text).sample - expected).abs().max()) > 1e-2
    other.load_lora_adapter(str(tmp_path), weight_name=FILE_NAME, prefix='unet')
    assert float((other(sample, time, text).sample - expected).abs().max()) <= 1e-5
    assert recognise(read_tensors(path)) == 'diffusers_lora'
    for name, found in read_pairs(path).items():
        kept = pairs[name.removeprefix('unet.')]
        assert torch.equal(found.down, kept.down) and torch.equal(found.up, kept.up)
        assert found.factor == kept.factor == ALPHA / RANK
    half = read_tensors(save_lora(tmp_path / 'half.safetensors', pairs, 'float16'))
    assert {value.dtype for value in half.values()} == {torch.float16}


def test_a_new_pair_changes_nothing_and_starts_with_gradients_up() -> None:
    model = ours(reference())
    sample, time, text = inputs()
    with torch.no_grad():
        before = model(sample[:, :, None], time, text)
    pairs = add_trained_lora(model, LoRASettings(alpha=8.0))
    assert all('attentions' in name for name in pairs)
    after = model(sample[:, :, None], time, text)
    assert float((after.detach() - before).abs().max()) <= 1e-5
    after.square().sum().backward()
    for found in pairs.values():
        assert float(found.up.grad.abs().max()) > 0 and float(found.down.grad.abs().max()) == 0
        assert float(found.down.abs().max()) > 0


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ('yes', 'expected dict'),
        (dict(rnak=3), "Did you mean 'rank'"),
        (dict(rank=0), r'rank=0: expected 1 to'),
        (dict(rank=True), 'rank=True'),
        (dict(alpha=0), 'alpha=0'),
        (dict(alpha=float('nan')), 'alpha=nan'),
        (dict(targets='to_q'), 'a list of expressions'),
        (dict(targets=[]), 'a list of expressions'),
        (dict(targets=['to_(q']), 'no regular expression'),
    ],
)
def test_settings_that_cannot_be_are_refused(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_settings(config)


def test_a_target_that_no_layer_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'to_qq' is found in the name of no linear layer"):
        add_trained_lora(ours(reference()), LoRASettings(targets=('to_q', 'to_qq')))


# --- through editors and the runner ---------------------------------------------------------------

TRAIN = TESTS / 'engine' / 'tiny_train.py'
# New motion modules end in zeros: at first only a pair of their last layer has a gradient.
MOTION = r'motion_modules.*(to_(q|k|v|out\.0)|proj_out)$'


def config_with(folder: Path, base: Path, lora: dict) -> Path:
    path = folder / 'lora.py'
    path.write_text(
        f'_base_ = {str(base)!r}\n'
        f'model = dict(trainable=[], lora={lora!r})\n'
        'train_cfg = dict(max_iters=2)\n'
        "custom_hooks = [dict(type='EMAHook', decay=0.5), dict(type='ExportHook')]\n"
    )
    return path


def test_a_motion_lora_is_trained_resumed_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = config_with(tmp_path, TRAIN, dict(rank=2, alpha=4, targets=[MOTION]))
    train(path, 'run', cfg_options=['train_cfg.max_iters=1'])
    train(path, 'run', resume=True)
    train(path, 'whole')
    tensors, whole = (read_commit(tmp_path / run / 'iter_2')[0] for run in ('run', 'whole'))
    assert len(tensors['model']) > 8
    for group in ('model', 'ema', 'optimizer'):
        assert tensors[group].keys() == whole[group].keys()
        assert all(torch.equal(v, whole[group][k]) for k, v in tensors[group].items()), group
    assert all('.low_rank.' in name for name in tensors['model'])
    assert sorted(p.name for p in (tmp_path / 'run' / 'export').iterdir()) == ['lora']
    file = tmp_path / 'run' / 'export' / 'lora' / FILE_NAME
    assert recognise(read_tensors(file)) == 'motion_lora'
    assert 'unet.lora_alpha' in read_metadata(file)['lora_adapter_metadata']
    averages = {name.split('.low_rank.')[0]: value for name, value in tensors['ema'].items()
                if name.endswith('.up')}  # fmt: skip
    pairs = read_pairs(file)
    assert pairs.keys() == averages.keys()
    assert all(torch.equal(pair.up, averages[name]) for name, pair in pairs.items())
    assert all(pair.factor == 2.0 for pair in pairs.values())
    assert any(float(pair.up.abs().max()) > 0 for pair in pairs.values())


def test_the_adapter_gives_what_was_trained(tmp_path: Path) -> None:
    model = load_config(TRAIN).model.to_dict()
    model |= dict(trainable=[], lora=dict(rank=2, targets=['attn', 'conv2']))
    torch.manual_seed(0)
    editor = MODELS.build(model).eval()
    for found in editor.lora.values():
        torch.nn.init.normal_(found.up, std=0.2)
    editor.save_pretrained(tmp_path)
    state = {k: v for k, v in editor.state_dict().items() if '.low_rank.' not in k}
    plain = MODELS.build(model | dict(lora=None)).eval()
    plain.load_state_dict(state)

    def made(one: Any) -> Tensor:
        given = dict(video_length=2, height=16, width=16, num_inference_steps=2, seed=0)
        return one.infer('a red fish', **given)['samples']

    without = made(plain)
    plain.add_adapter(dict(type='LoRA', from_pretrained=str(tmp_path / 'lora')))
    assert float((made(plain) - made(editor)).abs().max()) <= 1e-5
    assert float((made(plain) - without).abs().max()) > 1e-3
    with pytest.raises(InputError, match='being trained'):
        editor.merge_adapters()
    assert not plain.lora


@pytest.mark.parametrize(
    ('base', 'targets'),
    [
        (TESTS / 'apis' / 'tiny_svd.py', ['temporal_transformer_blocks', r'attn2\.to_v']),
        (TESTS / 'editors' / 'tiny_i2vgen.py', ['temp_attentions.*to_q', 'transformer_in.*to_v']),
    ],
    ids=['svd', 'i2vgen_xl'],
)
def test_other_editors_train_and_export_one(tmp_path: Path, base: Path, targets: list) -> None:
    model = load_config(base).model.to_dict() | dict(
        trainable=[], lora=dict(rank=2, targets=targets)
    )
    editor = MODELS.build(copy.deepcopy(model))
    named = {n for n, p in editor.named_parameters() if p.requires_grad}
    assert named and all('.low_rank.' in name for name in named)
    for found in editor.lora.values():
        torch.nn.init.normal_(found.up)
    editor.save_pretrained(tmp_path)
    pairs = read_pairs(tmp_path / 'lora' / FILE_NAME)
    assert {name.removeprefix('unet.') for name in pairs} == set(editor.lora)
    with pytest.raises(ConfigError, match=r'leave model\.trainable empty'):
        MODELS.build(model | dict(trainable=['^unet']))


def test_it_is_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError('nothing is built for a mistake')

    monkeypatch.setattr('mmvideo.registry.MODELS.build', forbidden)

    def call(lora: dict) -> None:
        train(config_with(tmp_path, TRAIN, lora), str(tmp_path / 'run'))

    with pytest.raises(ConfigError, match='rank=0'):
        call(dict(rank=0))
    with pytest.raises(ConfigError, match="'target'.*'targets'"):
        call(dict(target=['a']))
