"""Motion modules in both layouts, what a file is, and PIA's first convolution."""

from __future__ import annotations

import pytest
import torch
from diffusers import MotionAdapter

from mmvideo.checkpoints.files import write_tensors
from mmvideo.checkpoints.layouts import ANIMATEDIFF, FAMILIES, recognise
from mmvideo.checkpoints.load import load_into
from mmvideo.checkpoints.motion import (
    merge_conv_in,
    original_motion,
    read_motion,
    sinusoid,
    split_motion,
)
from mmvideo.checkpoints.save import save_part
from mmvideo.errors import WeightsError

SD = (320, 640, 1280, 1280)
# levels, positions, middle, input channels of PIA, family, tensors of the original file
PUBLISHED = [
    (SD, 24, False, None, 'animatediff_v1', 560),
    (SD, 32, True, None, 'animatediff_v2', 588),
    (SD, 32, False, None, 'animatediff_v3', 560),
    (SD[:3], 32, False, None, 'animatediff_sdxl', 420),
    (SD, 32, False, 9, 'pia', 562),
]


def adapter(widths=(32, 32, 64, 64), positions=32, middle=False, conv=None):
    torch.manual_seed(0)
    return MotionAdapter(
        block_out_channels=widths,
        motion_max_seq_length=positions,
        use_motion_mid_block=middle,
        conv_in_channels=conv,
    )


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(('widths', 'positions', 'middle', 'conv', 'family', 'count'), PUBLISHED)
def test_published_sizes(widths, positions, middle, conv, family, count):
    """Numbers of tensors as counted in the published files; on the meta device."""
    with torch.device('meta'):
        ours = adapter(widths, positions, middle, conv).state_dict()
    theirs = ANIMATEDIFF.to_theirs(ours)
    assert len(theirs) == count
    assert recognise(theirs) == recognise(ours) == family
    key = 'down_blocks.0.motion_modules.0.temporal_transformer.'
    assert theirs[key + 'norm.weight'].shape == (320,)
    block = key + 'transformer_blocks.0.'
    assert theirs[block + 'attention_blocks.1.pos_encoder.pe'].shape == (1, positions, 320)
    for name in ('attention_blocks.0.to_q.weight', 'norms.1.bias', 'ff_norm.weight'):
        assert block + name in theirs
    assert theirs[block + 'ff.net.0.proj.weight'].shape == (2560, 320)


@pytest.mark.parametrize('kind', ['ckpt', 'safetensors', 'wrapped'])
@pytest.mark.parametrize(('middle', 'conv'), [(False, None), (True, None), (False, 9)])
def test_single_files_fill_a_motion_adapter(tmp_path, kind, middle, conv):
    source = adapter(middle=middle, conv=conv)
    theirs = ANIMATEDIFF.to_theirs(source.state_dict())
    path = tmp_path / ('mm.safetensors' if kind == 'safetensors' else 'mm.ckpt')
    if kind == 'safetensors':
        write_tensors(path, theirs)
    elif kind == 'ckpt':
        torch.save(theirs, path)
    else:
        wrapped = {f'module.{key}': value for key, value in theirs.items()}
        torch.save({'state_dict': wrapped, 'epoch': 1, 'animatediff_config': {}}, path)
    weights = read_motion(path)
    assert (weights.max_positions, weights.mid_block) == (32, middle)
    assert weights.conv_in_channels == conv
    assert (weights.conv_in is None) == (conv is None)
    target = adapter(middle=middle, conv=conv)
    for parameter in target.parameters():
        parameter.data.zero_()
    conv_in = dict(zip(('conv_in.weight', 'conv_in.bias'), weights.conv_in or (), strict=False))
    load_into(target, {**weights.tensors, **conv_in})
    assert_same(target.state_dict(), source.state_dict())
    assert_same(original_motion(weights), theirs)


def test_folders_of_diffusers(tmp_path):
    source = adapter(positions=24)
    save_part(tmp_path / 'adapter', dict(source.config), source)
    weights = read_motion(tmp_path, 'adapter')
    assert weights.family == 'animatediff_v1'
    assert weights.config['motion_num_attention_heads'] == 8
    assert weights.config['block_out_channels'] == [32, 32, 64, 64]
    assert_same(weights.tensors, source.state_dict())


def test_pia_saved_by_us_keeps_its_convolution(tmp_path):
    source = adapter(conv=9)
    source.save_pretrained(tmp_path)
    weights = read_motion(tmp_path)
    assert weights.family == 'pia'
    assert torch.equal(weights.conv_in[0], source.conv_in.weight)
    assert weights.norm_scopes == {'resnet_norm_scope': 'clip', 'motion_norm_scope': 'frame'}


def test_old_configs_without_the_middle_follow_the_tensors():
    source = adapter()
    config = {k: v for k, v in source.config.items() if k != 'use_motion_mid_block'}
    assert split_motion(source.state_dict(), config).mid_block is False


def test_a_config_that_contradicts_its_tensors_is_refused():
    source = adapter()
    with pytest.raises(WeightsError, match='motion_max_seq_length=24, the tensors say 32'):
        split_motion(source.state_dict(), {**source.config, 'motion_max_seq_length': 24})
    with pytest.raises(WeightsError, match='use_motion_mid_block=True'):
        split_motion(source.state_dict(), {**source.config, 'use_motion_mid_block': True})


def test_encodings_that_a_file_leaves_out_are_computed():
    source = adapter(positions=24)
    bare = {
        k: v for k, v in ANIMATEDIFF.to_theirs(source.state_dict()).items() if 'pos_enc' not in k
    }
    with pytest.raises(WeightsError, match='give max_positions'):
        split_motion(bare)
    assert_close = split_motion(bare, max_positions=24)
    assert assert_close.tensors.keys() == source.state_dict().keys()
    for key, value in source.state_dict().items():
        torch.testing.assert_close(assert_close.tensors[key], value, rtol=0, atol=1e-6)
    lcm = {
        k: v for k, v in adapter(positions=64, middle=True).state_dict().items() if '.pe' not in k
    }
    weights = split_motion(lcm)
    assert (weights.family, weights.max_positions) == ('animatelcm', 64)


def test_the_sinusoid_is_that_of_diffusers():
    expected = adapter().state_dict()
    key = 'down_blocks.2.motion_modules.0.transformer_blocks.0.pos_embed.pe'
    torch.testing.assert_close(sinusoid(32, 64), expected[key], rtol=0, atol=1e-6)


def test_copies_that_differ_are_refused():
    theirs = ANIMATEDIFF.to_theirs(adapter().state_dict())
    key = next(k for k in theirs if k.endswith('attention_blocks.1.pos_encoder.pe'))
    theirs[key] = theirs[key] + 1
    with pytest.raises(WeightsError, match='differs from its other copy'):
        split_motion(theirs)


def test_unknown_keys_are_refused_in_both_directions():
    ours = adapter().state_dict()
    stray = 'down_blocks.0.motion_modules.0.transformer_blocks.0.attn3.to_q.weight'
    with pytest.raises(WeightsError, match='1 tensors are no part.*attn3'):
        ANIMATEDIFF.to_theirs({**ours, stray: torch.ones(1)})
    theirs = ANIMATEDIFF.to_theirs(ours)
    with pytest.raises(WeightsError, match='no part of'):
        ANIMATEDIFF.to_ours({**theirs, 'up_blocks.0.attentions.0.norm.weight': torch.ones(1)})
    with pytest.raises(WeightsError, match='no motion module: stray'):
        split_motion({**theirs, 'stray': torch.ones(1)})


def test_a_whole_unet_of_the_pia_trainer(tmp_path):
    ours = adapter(conv=9).state_dict()
    whole = ANIMATEDIFF.to_theirs(ours) | {'down_blocks.0.resnets.0.norm1.weight': torch.ones(32)}
    weights = split_motion(whole)
    assert weights.family == 'pia_unet'
    assert list(weights.image) == ['down_blocks.0.resnets.0.norm1.weight']
    assert weights.conv_in[0].shape == (32, 9, 3, 3)
    path = write_tensors(tmp_path / 'whole.safetensors', whole)
    with pytest.raises(WeightsError, match='1 image layers that would be lost'):
        read_motion(path)
    assert read_motion(path, image_layers=True).image.keys() == weights.image.keys()


@pytest.mark.parametrize(
    ('keys', 'family'),
    [
        (
            ['controlnet_cond_embedding.conv_in.weight', 'down_blocks.0.motion_modules.0.x'],
            'sparsectrl_scribble',
        ),
        (
            ['controlnet_cond_embedding.weight', 'down_blocks.0.motion_modules.0.x'],
            'sparsectrl_rgb',
        ),
        (['mid_block.motion_modules.0.a.processor.to_q_lora.down.weight'], 'motion_lora'),
        (['mid_block.attentions.0.a.processor.to_q_lora.down.weight'], 'domain_adapter'),
        (['lora_te_text_model_encoder_layers_0_mlp_fc1.alpha'], 'kohya_lora'),
        (['model.diffusion_model.out.0.weight'], 'ldm'),
        (['down_blocks.0.temporal_attentions.0.x'], 'hotshot_xl'),
        (['encoder.conv_in.weight', 'decoder.conv_in.weight'], 'vae'),
        (['text_model.embeddings.token_embedding.weight'], 'clip_text'),
        (['conv_in.weight', 'down_blocks.0.resnets.0.norm1.weight'], 'unet'),
    ],
)
def test_families_are_known_by_content(keys, family):
    tensors = {key: torch.zeros(4, 4, 3, 3) for key in keys}
    assert recognise(tensors) == family
    with pytest.raises(WeightsError) as caught:
        split_motion(tensors, source='it.ckpt')
    assert FAMILIES[family].title in str(caught.value)


def test_unknown_files_name_their_first_keys():
    with pytest.raises(WeightsError, match='no known kind.*: something'):
        recognise({'something': torch.ones(1)})


@pytest.mark.parametrize('first', ['base', 'pia'])
def test_merged_convolution_aliases_nothing(first):
    base, pia = torch.nn.Conv2d(4, 8, 3), torch.nn.Conv2d(9, 8, 3)
    given = [t.detach() for t in (base.weight, base.bias, pia.weight, pia.bias)]
    before = [t.clone() for t in given]
    weight, bias = merge_conv_in(*given, first)
    source = given if first == 'base' else [None, None, *given[2:]]
    assert torch.equal(weight[:, :4], given[0] if source[0] is not None else given[2][:, :4])
    assert torch.equal(weight[:, 4:], given[2][:, 4:])
    assert torch.equal(bias, given[1] if first == 'base' else given[3])
    weight.zero_(), bias.zero_()
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


def test_merged_convolution_checks_shapes_and_choice():
    base, pia = torch.zeros(8, 4, 3, 3), torch.zeros(16, 9, 3, 3)
    with pytest.raises(WeightsError, match=r'\[16, 9, 3, 3\]'):
        merge_conv_in(base, torch.zeros(8), pia, torch.zeros(16))
    with pytest.raises(WeightsError, match="'base' or 'pia'"):
        merge_conv_in(base, torch.zeros(8), base, torch.zeros(8), 'mine')
