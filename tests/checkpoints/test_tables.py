"""The table engine, and the names of low-rank adapters that stand outside of the round trips."""

from __future__ import annotations

import pytest
import torch

from mmvideo.checkpoints.layouts import Change, Layout, Row, lora_to_ours
from mmvideo.errors import WeightsError

TURN = Change(to_ours=lambda value: value.T, to_theirs=lambda value: value.T)
TABLE = Layout(
    'a toy',
    (
        Row('a.{side}.qkv', 'x.{side}.{part}', parts=('q', 'k', 'v')),
        Row('b.{copy}', 'y', copies=('0', '1')),
        Row('c', 'z', change=TURN),
        Row('old.c', 'z', change=TURN, only_read=True),
        Row('d.{side}.{side}', 'w.{side}'),
    ),
    {'side': 'left|right'},
)


def toy():
    return {
        'a.left.qkv': torch.arange(12.0).reshape(6, 2),
        'b.0': torch.ones(2),
        'b.1': torch.ones(2),
        'c': torch.arange(6.0).reshape(2, 3),
        'd.right.right': torch.zeros(1),
    }


def test_joined_copied_and_changed_tensors_go_both_ways():
    ours = TABLE.to_ours(toy())
    assert list(ours) == ['x.left.q', 'x.left.k', 'x.left.v', 'y', 'z', 'w.right']
    assert torch.equal(ours['x.left.k'], torch.tensor([[4.0, 5], [6, 7]]))
    assert ours['z'].shape == (3, 2)
    back = TABLE.to_theirs(ours)
    assert back.keys() == toy().keys()
    assert all(torch.equal(back[key], value) for key, value in toy().items())


def test_a_form_that_is_only_read_is_not_written():
    ours = TABLE.to_ours({'old.c': torch.ones(2, 3)})
    assert list(TABLE.to_theirs(ours)) == ['c']


def test_what_cannot_be_translated_is_named():
    ours = TABLE.to_ours(toy())
    del ours['x.left.k']
    with pytest.raises(WeightsError, match=r'a\.left\.qkv needs q, k, v; k is missing'):
        TABLE.to_theirs(ours)
    with pytest.raises(WeightsError, match='1 tensors are no part of a toy: d.left.right'):
        TABLE.to_ours({**toy(), 'd.left.right': torch.ones(1)})
    with pytest.raises(WeightsError, match='no part of a toy: stray'):
        TABLE.to_theirs({'stray': torch.ones(1)})
    with pytest.raises(WeightsError, match='differs from its other copy'):
        TABLE.to_ours({**toy(), 'b.1': torch.zeros(2)})
    assert TABLE.knows('d.left.left') and not TABLE.knows('d.left.right')


UNET = 'unet.mid_block.attentions.0.proj_in'
TEXT = 'text_encoder.text_model.encoder.layers.0.mlp.fc1'


@pytest.mark.parametrize(
    ('down', 'up', 'layer'),
    [
        ('mid_block.attentions.0.proj_in.lora_A.weight', 'B', UNET),
        ('unet.mid_block.attentions.0.proj_in.lora_A.default.weight', 'B', UNET),
        ('base_model.model.mid_block.attentions.0.proj_in.lora_A.weight', 'B', UNET),
        ('mid_block.attentions.0.proj_in.lora.down.weight', 'up', UNET),
        ('lora_unet_mid_block_attentions_0_proj_in.lora_down.weight', 'up', UNET),
        ('lora_unet_middle_block_1_proj_in.lora_down.weight', 'up', UNET),
        ('text_encoder.encoder.layers.0.mlp.fc1.lora_A.weight', 'B', TEXT),
        ('text_encoder.encoder.layers.0.mlp.fc1.lora_linear_layer.down.weight', 'up', TEXT),
        ('base_model.model.text_model.encoder.layers.0.mlp.fc1.lora_A.weight', 'B', TEXT),
        ('base_model.model.encoder.layers.0.mlp.fc1.lora_A.default.weight', 'B', TEXT),
        ('lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight', 'up', TEXT),
        ('lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight', 'up', TEXT),
        (
            'lora_te2_text_model_encoder_layers_31_mlp_fc1.lora_down.weight',
            'up',
            'text_encoder_2.text_model.encoder.layers.31.mlp.fc1',
        ),
        (
            'unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.processor'
            '.to_out_lora.down.weight',
            'up',
            'unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0',
        ),
        (
            'text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.down.weight',
            'up',
            'text_encoder.text_model.encoder.layers.0.self_attn.out_proj',
        ),
        (
            'lora_unet_output_blocks_2_1_conv.lora_down.weight',
            'up',
            'unet.up_blocks.0.upsamplers.0.conv',
        ),
        (
            'lora_unet_input_blocks_4_0_skip_connection.lora_down.weight',
            'up',
            'unet.down_blocks.1.resnets.0.conv_shortcut',
        ),
    ],
)
def test_names_of_every_trainer(down, up, layer):
    other = down.replace('_A', '_B') if up == 'B' else down.replace('down.weight', 'up.weight')
    tensors = {down: torch.zeros(2, 4), other: torch.ones(6, 2)}
    found = lora_to_ours(tensors)
    assert found.keys() == {f'{layer}.lora_A.weight', f'{layer}.lora_B.weight'}
    assert found[f'{layer}.lora_A.weight'].shape == (2, 4)


@pytest.mark.parametrize(
    ('keys', 'message'),
    [
        (['lora_unet_conv_in.hada_w1_a', 'lora_unet_conv_in.alpha'], 'LoHa'),
        (['lora_unet_conv_in.lokr_w1'], 'LoKr'),
        (['lora_unet_conv_in.lora_down.weight', 'lora_unet_conv_in.dora_scale'], 'DoRA'),
        (['lora_unet_conv_in.lora_down.weight'], 'has no unet.conv_in.lora_B.weight beside it'),
        (['lora_unet_conv_in.alpha'], 'has no unet.conv_in.lora_A.weight beside it'),
        (['lora_unet_wrong_place.lora_down.weight'], 'no part of a LoRA of kohya.*wrong_place'),
        (['something'], 'are no LoRA; the first are: something'),
    ],
)
def test_what_is_no_plain_lora_is_refused(keys, message):
    with pytest.raises(WeightsError, match=message):
        lora_to_ours(dict.fromkeys(keys, torch.zeros(2, 2)))
