"""What a recognised motion module brings into an editor, and what it refuses."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmvideo.checkpoints.files import read_tensors, sha256
from mmvideo.checkpoints.layouts import ANIMATEDIFF, FAMILIES
from mmvideo.checkpoints.load import read_part
from mmvideo.checkpoints.save import save_part
from mmvideo.editors.parts import (
    build_unet,
    export_motion_adapter,
    export_unet_config,
    with_trained_betas,
)
from mmvideo.errors import ConfigError, UserError, WeightsError
from mmvideo.registry import SCHEDULERS

BETAS = {'beta_schedule': 'linear', 'beta_start': 0.00085, 'beta_end': 0.012}


@pytest.fixture(scope='module')
def parts(build: Callable, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A plain UNet's folder, and motion modules for it as their authors save them."""
    folder = tmp_path_factory.mktemp('parts')
    image = build('TextToImage').unet
    save_part(folder / 'unet', export_unet_config(image), image)
    found = {'unet': folder / 'unet'}
    for kind in ('PIA', 'AnimateDiff'):
        _, tensors = export_motion_adapter(build(kind).unet)
        found[kind] = folder / f'{kind}.ckpt'
        torch.save(ANIMATEDIFF.to_theirs(tensors), found[kind])
    return found


def configs(parts: dict[str, Path], kind: str, **motion: Any) -> tuple[dict, dict]:
    heads = {'num_attention_heads': 2, 'norm_num_groups': 4, **motion}
    unet = {'type': 'VideoUNet', 'from_pretrained': str(parts['unet'])}
    return unet, {'type': 'MotionModule', 'from_pretrained': str(parts[kind]), **heads}


def state(unet: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in unet.state_dict().items()}


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_pia_in_two_models_shares_nothing(parts: dict[str, Path]) -> None:
    """Loaded twice, with both choices: neither model, nor the files, nor a later load changes."""
    before = {name: sha256(path) for name, path in parts.items() if path.is_file()}
    channels = {'in_channels': 9}
    pia = build_unet(*configs(parts, 'PIA'), **channels, first_channels='pia')
    base = build_unet(*configs(parts, 'PIA'), **channels, first_channels='base')
    kept = state(base)
    _, image = read_part(str(parts['unet']))
    own = read_tensors(parts['PIA'])
    assert torch.equal(base.conv_in.weight[:, :4], image['conv_in.weight'])
    assert torch.equal(base.conv_in.bias, image['conv_in.bias'])
    assert torch.equal(pia.conv_in.weight, own['conv_in.weight'])
    assert torch.equal(pia.conv_in.bias, own['conv_in.bias'])
    assert torch.equal(base.conv_in.weight[:, 4:], own['conv_in.weight'][:, 4:])
    assert not torch.equal(base.conv_in.weight[:, :4], pia.conv_in.weight[:, :4])
    with torch.no_grad():
        for parameter in pia.parameters():
            parameter.zero_()
    assert_same(state(base), kept)
    assert_same(state(build_unet(*configs(parts, 'PIA'), **channels, first_channels='base')), kept)
    assert {name: sha256(parts[name]) for name in before} == before


def test_the_choice_of_first_channels_is_a_key_of_the_config(
    parts: dict[str, Path], build: Callable
) -> None:
    unet, motion = configs(parts, 'PIA')
    chosen = build('PIA', unet=unet, motion_module=motion, first_channels='pia')
    default = build('PIA', unet=unet, motion_module=motion)
    difference = chosen.unet.conv_in.weight[:, :4] - default.unet.conv_in.weight[:, :4]
    assert difference.abs().max() > 0.01


def refusal(parts: dict[str, Path], kind: str, unet: dict | None = None, **motion: Any) -> str:
    settings, module = configs(parts, kind, **motion)
    with pytest.raises(UserError) as caught:
        build_unet({**settings, **(unet or {})}, module)
    assert isinstance(caught.value, (ConfigError, WeightsError))
    return str(caught.value)


def test_what_the_config_contradicts_is_refused_by_both_names(parts: dict[str, Path]) -> None:
    text = refusal(parts, 'AnimateDiff', {'motion_mid_block': True})
    assert 'motion_mid_block=True' in text and 'motion_mid_block=False' in text
    text = refusal(parts, 'AnimateDiff', max_positions=5)
    assert 'max_positions=5' in text and 'frame positions' in text
    text = refusal(parts, 'PIA')
    assert 'PIA condition and motion modules' in text and "model.type='PIA'" in text


def test_modules_of_another_width_are_refused_by_both_sides(
    parts: dict[str, Path], tmp_path: Path
) -> None:
    from diffusers import MotionAdapter

    other = MotionAdapter(block_out_channels=(32, 64), motion_num_attention_heads=2)
    save_part(tmp_path, dict(other.config), other)
    text = refusal({**parts, 'other': tmp_path}, 'other')
    assert 'block_out_channels=[32, 64]' in text and 'does not fit this UNet' in text


def test_a_scheduler_follows_the_family_unless_it_says(
    parts: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    unet = build_unet(*configs(parts, 'PIA'), in_channels=9)
    assert unet.trained_betas is None  # of no published width
    unet.trained_betas = FAMILIES['pia'].betas
    plain = {'type': 'DDIMScheduler', 'clip_sample': False}
    followed = with_trained_betas(SCHEDULERS.build(plain), plain, unet)
    assert {key: followed.config[key] for key in BETAS} == BETAS
    assert followed.config.clip_sample is False
    said = {**plain, **BETAS, 'beta_end': 0.02}
    with caplog.at_level(logging.WARNING):
        kept = with_trained_betas(SCHEDULERS.build(said), said, unet)
    assert kept.config.beta_end == 0.02
    assert 'beta_end=0.02; the motion modules were trained with' in caplog.text
    caplog.clear()
    agreed = {**plain, **BETAS}
    with_trained_betas(SCHEDULERS.build(agreed), agreed, unet)
    unknown = copy.copy(unet)
    unknown.trained_betas = None
    built = SCHEDULERS.build(plain)
    assert with_trained_betas(built, plain, unknown) is built
    assert caplog.text == ''
