"""A sound file in the wrong place: the message names what it is and what was expected."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmvideo.checkpoints.files import write_tensors
from mmvideo.checkpoints.load import load_into
from mmvideo.checkpoints.motion import read_motion
from mmvideo.checkpoints.single_file import read_single_file
from mmvideo.errors import WeightsError

ATTENTION = 'down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k'
SPARSE = 'controlnet_cond_embedding'
BLOCK = 'temporal_transformer.transformer_blocks.0.attention_blocks.0'
MODULE = f'down_blocks.0.motion_modules.0.{BLOCK}'
# Title of the file, and keys by which it is known.
KINDS = {
    'an AutoencoderKL': ['encoder.conv_in.weight', 'decoder.conv_in.weight'],
    'a CLIP text encoder': ['text_model.embeddings.token_embedding.weight'],
    'a LoRA of kohya': [f'lora_unet_{ATTENTION}.lora_{w}.weight' for w in ('down', 'up')],
    'an image UNet': ['conv_in.weight', 'down_blocks.0.resnets.0.conv1.weight'],
    'a SparseCtrl encoder (rgb)': [f'{SPARSE}.weight', 'conv_in.weight'],
    'a full checkpoint': ['model.diffusion_model.input_blocks.0.0.weight', 'alphas_cumprod'],
    'a MotionLoRA': [
        f'{MODULE}.transformer_blocks.0.attention_blocks.0.processor.to_q_lora.down.weight'
    ],
}


def file_of(tmp_path, keys):
    # 2048 is the width of what SDXL's attention sees.
    return write_tensors(tmp_path / 'other.safetensors', {k: torch.ones(2, 2048) for k in keys})


@pytest.mark.parametrize('title', KINDS)
def test_no_motion_modules(tmp_path, title):
    path = file_of(tmp_path, KINDS[title])
    with pytest.raises(WeightsError) as caught:
        read_motion(path)
    message = str(caught.value)
    assert title in message and 'expected motion modules' in message and path.name in message


@pytest.mark.parametrize('part', ['unet', 'vae', 'text_encoder'])
@pytest.mark.parametrize('title', ['a LoRA of kohya', 'a SparseCtrl encoder (rgb)', 'a MotionLoRA'])
def test_no_part_of_a_model(tmp_path, part, title):
    path = file_of(tmp_path, KINDS[title])
    with pytest.raises(WeightsError) as caught:
        read_single_file(path, part)
    message = str(caught.value)
    assert title in message and 'expected' in message and path.name in message


def test_another_architecture_lists_the_differences_of_both_sides():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    larger = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2), nn.Linear(2, 2)).state_dict()
    with pytest.raises(WeightsError) as caught:
        load_into(model, larger, 'the toy')
    message = str(caught.value)
    for part in (
        '6 tensors for 4',
        '0.weight is [4, 5], expected [4, 3]',
        '2 not part of this model',
    ):
        assert part in message
