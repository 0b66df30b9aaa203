"""The original files of SVD and I2VGen-XL: every name there and back, and what is left over."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from mmvideo.apis.convert import convert
from mmvideo.checkpoints.files import read_json, read_tensors, write_tensors
from mmvideo.checkpoints.layouts import i2vgen_xl, recognise, svd
from mmvideo.checkpoints.save import save_part
from mmvideo.checkpoints.single_file import read_single_file
from mmvideo.editors.parts import build_unet, export_unet_config
from mmvideo.errors import WeightsError
from mmvideo.models.borrowed import build_temporal_vae
from mmvideo.models.unet import VideoUNet, unet_arguments

UNETS = {'svd': 'UNetSpatioTemporalConditionModel', 'i2vgen': 'I2VGenXLUNet'}
FACES = dict(
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    projection_dim=6,
    image_size=8,
    patch_size=4,
)


def unet(family: str, widths: tuple[int, ...] = (320, 640, 1280, 1280), device: str = 'meta'):
    """The network's tensors in our names."""
    config = {'_class_name': UNETS[family], 'block_out_channels': widths}
    if family == 'i2vgen' and device != 'meta':
        config |= {'attention_head_dim': 4, 'cross_attention_dim': 8}
    if family == 'svd' and device != 'meta':
        config |= {'num_attention_heads': 1, 'cross_attention_dim': 8}
    with torch.device(device):
        return VideoUNet(**unet_arguments(config)).state_dict()


def vae(widths: tuple[int, ...] = (32, 32, 32, 32)) -> dict[str, Tensor]:
    model = AutoencoderKLTemporalDecoder(
        down_block_types=['DownEncoderBlock2D'] * 4, block_out_channels=widths, layers_per_block=2
    )
    return model.state_dict()


def image_encoder() -> dict[str, Tensor]:
    """Under the names of published files, whatever the installed library's."""
    state = CLIPVisionModelWithProjection(CLIPVisionConfig(**FACES)).state_dict()
    return {k: v for k, v in state.items() if not k.endswith('position_ids')}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_svd_unet_at_full_size():
    ours = unet('svd')
    assert {row.ours for row in svd.UNET.rows} == set(ours)
    theirs = svd.UNET.to_theirs(ours)
    assert len(theirs) == len(ours)
    back = svd.UNET.to_ours(theirs)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in ours.items()}
    assert theirs['label_emb.0.0.weight'].shape == (1280, 768)
    # by hand, a key of each kind
    for their_name, our_name in {
        'input_blocks.4.0.skip_connection.weight': (
            'down_blocks.1.resnets.0.spatial_res_block.conv_shortcut.weight'
        ),
        'input_blocks.11.0.time_stack.out_layers.3.weight': (
            'down_blocks.3.resnets.1.temporal_res_block.conv2.weight'
        ),
        'input_blocks.3.0.op.bias': 'down_blocks.0.downsamplers.0.conv.bias',
        'middle_block.2.time_mixer.mix_factor': 'mid_block.resnets.1.time_mixer.mix_factor',
        'middle_block.1.time_stack.0.ff_in.net.2.bias': (
            'mid_block.attentions.0.temporal_transformer_blocks.0.ff_in.net.2.bias'
        ),
        'output_blocks.8.2.conv.weight': 'up_blocks.2.upsamplers.0.conv.weight',
        'output_blocks.2.1.conv.weight': 'up_blocks.0.upsamplers.0.conv.weight',
        'output_blocks.1.0.time_mixer.mix_factor': 'up_blocks.0.resnets.1.time_mixer.mix_factor',
        'output_blocks.5.1.time_pos_embed.2.weight': (
            'up_blocks.1.attentions.2.time_pos_embed.linear_2.weight'
        ),
    }.items():
        assert list(svd.UNET.to_ours({their_name: theirs[their_name]})) == [our_name]


def test_i2vgen_at_full_size():
    ours = unet('i2vgen')
    theirs = i2vgen_xl.UNET.to_theirs(ours)
    back = i2vgen_xl.UNET.to_ours(theirs)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in ours.items()}
    assert sum(v.numel() for v in theirs.values()) == 1_420_469_224
    assert len(theirs) == len(ours) - 2  # q, k and v of the local encoder are one
    assert recognise(theirs) == 'i2vgen_xl'
    assert theirs['local_temporal_encoder.layers.0.0.fn.to_qkv.weight'].shape == (24, 4)
    assert theirs['input_blocks.0.1.proj_in.weight'].shape == (512, 320, 1)
    for their_name, our_name in {
        'input_blocks.1.0.temopral_conv.conv1.2.bias': 'down_blocks.0.temp_convs.0.conv1.2.bias',
        'middle_block.3.temopral_conv.conv4.3.bias': 'mid_block.temp_convs.1.conv4.3.bias',
        'middle_block.3.in_layers.0.weight': 'mid_block.resnets.1.norm1.weight',
        'middle_block.2.proj_out.weight': 'mid_block.temp_attentions.0.proj_out.weight',
        'input_blocks.6.op.weight': 'down_blocks.1.downsamplers.0.conv.weight',
        'output_blocks.2.1.conv.weight': 'up_blocks.0.upsamplers.0.conv.weight',
        'output_blocks.5.3.conv.weight': 'up_blocks.1.upsamplers.0.conv.weight',
        'output_blocks.9.2.transformer_blocks.0.attn2.to_k.weight': (
            'up_blocks.3.temp_attentions.0.transformer_blocks.0.attn2.to_k.weight'
        ),
        'local_image_embedding.5.bias': 'image_latents_context_embedding.5.bias',
        'local_temporal_encoder.layers.0.1.net.0.0.weight': (
            'image_latents_temporal_encoder.ff.net.0.proj.weight'
        ),
    }.items():
        assert list(i2vgen_xl.UNET.to_ours({their_name: theirs[their_name]})) == [our_name]


def test_i2vgen_values_go_both_ways():
    ours = unet('i2vgen', (32, 32, 32, 32), 'cpu')
    theirs = i2vgen_xl.UNET.to_theirs(ours)
    assert_same(i2vgen_xl.UNET.to_ours(theirs), ours)
    with pytest.raises(WeightsError, match=r'1 tensors are no part of I2VGen-XL.*zero_y'):
        i2vgen_xl.UNET.to_ours(theirs | {'zero_y': torch.zeros(1)})


@pytest.fixture(scope='module')
def svd_parts() -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(0)
    encoder = image_encoder()
    assert any(k.startswith('vision_model.') for k in encoder), list(encoder)[:3]
    return {
        'unet': unet('svd', (32, 32, 32, 32), 'cpu'),
        'vae': vae(),
        'image_encoder': encoder,
    }


def test_an_svd_file_goes_both_ways(svd_parts):
    file = svd.diffusers_to_svd(svd_parts)
    assert recognise(file) == 'svd' and svd.is_svd(file)
    for key in (
        'model.diffusion_model.label_emb.0.2.bias',
        'first_stage_model.decoder.conv_out.time_mix_conv.weight',
        'first_stage_model.decoder.up.3.block.0.mix_factor',
        'first_stage_model.decoder.mid.block_1.time_stack.in_layers.2.weight',
        'conditioner.embedders.3.encoder.encoder.down.0.block.0.norm1.weight',
        'conditioner.embedders.3.encoder.quant_conv.bias',
        'conditioner.embedders.0.open_clip.model.visual.transformer.resblocks.1.attn.in_proj_bias',
    ):
        assert key in file
    assert file['first_stage_model.decoder.mid.attn_1.q.weight'].ndim == 4
    for part, tensors in svd.svd_to_diffusers(file).items():
        assert_same(tensors, svd_parts[part])


def test_what_an_svd_file_holds_besides(svd_parts):
    file = svd.diffusers_to_svd({'vae': svd_parts['vae']})
    besides = (
        'first_stage_model.encoder.conv_in.weight',
        'conditioner.embedders.3.encoder.decoder.conv_in.weight',
        'conditioner.embedders.3.encoder.post_quant_conv.bias',
        'conditioner.embedders.0.open_clip.model.token_embedding.weight',
        'conditioner.embedders.0.open_clip.model.logit_scale',
    )
    parts, leftovers = svd.sort_svd(file | dict.fromkeys(besides, torch.zeros(1)))
    assert list(parts) == ['vae'] and len(parts['vae']) == len(file)
    assert sorted(key for keys in leftovers.values() for key in keys) == sorted(besides)
    with pytest.raises(
        WeightsError, match=r'x.safetensors: 1 tensors are of no known use.*: extra'
    ):
        svd.sort_svd(file | {'extra': torch.zeros(1)}, 'x.safetensors')
    with pytest.raises(WeightsError, match="'clip' is no part of Stable Video Diffusion"):
        svd.diffusers_to_svd({'clip': {}})


def test_svd_parts_describe_themselves(svd_parts):
    described = svd.describe_svd('unet', unet('svd'), 'x')
    with torch.device('meta'):
        model = VideoUNet(**unet_arguments(described))
    assert sum(p.numel() for p in model.parameters()) == 1_524_623_082
    assert described['num_attention_heads'] == [5, 10, 20, 20]
    described = svd.describe_svd('vae', svd_parts['vae'], 'x')
    again = AutoencoderKLTemporalDecoder.from_config(described)
    assert again.state_dict().keys() == svd_parts['vae'].keys()
    with pytest.raises(WeightsError, match='x: the unet has no .*conv1.weight; the file is not'):
        svd.describe_svd('unet', {}, 'x')


def test_models_are_read_from_one_file(svd_parts, tmp_path):
    path = str(write_tensors(tmp_path / 'svd.safetensors', svd.diffusers_to_svd(svd_parts)))
    model = build_unet(dict(type='VideoUNet', from_pretrained=path))
    assert model.settings['temporal_mixing'] == 'learned_with_images'
    assert_same(model.state_dict(), svd_parts['unet'])
    assert_same(build_temporal_vae(from_pretrained=path).state_dict(), svd_parts['vae'])
    config, tensors = read_single_file(path, 'image_encoder')
    assert_same(tensors, svd_parts['image_encoder'])
    assert config | FACES | {'num_attention_heads': 1} == config
    with pytest.raises(WeightsError, match='holds no text_encoder, only'):
        read_single_file(path, 'text_encoder')


def test_the_network_of_i2vgen_is_read_from_one_file(tmp_path):
    ours = unet('i2vgen', (32, 32, 32, 32), 'cpu')
    for name, tensors in (('theirs', i2vgen_xl.UNET.to_theirs(ours)), ('ours', ours)):
        path = str(write_tensors(tmp_path / f'{name}.safetensors', tensors))
        model = build_unet(dict(type='VideoUNet', from_pretrained=path))
        assert_same(model.state_dict(), ours)
    with pytest.raises(WeightsError, match='is a UNet of I2VGen-XL, expected the vae'):
        read_single_file(path, 'vae')


def test_a_folder_is_read_and_written(svd_parts, tmp_path):
    """The editors' way: build from a folder, export, build again."""
    config = svd.describe_svd('unet', svd_parts['unet'], 'x')
    save_part(tmp_path / 'first', config, svd_parts['unet'])
    model = build_unet(dict(type='VideoUNet', from_pretrained=str(tmp_path / 'first')))
    exported = export_unet_config(model)
    assert exported == config
    save_part(tmp_path / 'second', exported, model)
    again = UNetSpatioTemporalConditionModel.from_pretrained(tmp_path / 'second')
    assert_same(again.state_dict(), svd_parts['unet'])


@pytest.mark.parametrize('family', ['svd', 'i2vgen_xl'])
def test_networks_and_their_pipelines_are_converted(tmp_path, family):
    name = family.removesuffix('_xl')
    state = unet(name, (32, 32, 32, 32), 'cpu')
    if family == 'svd':
        original = svd.diffusers_to_svd({'unet': state})
    else:
        original = i2vgen_xl.UNET.to_theirs(state)
    done = convert(write_tensors(tmp_path / 'a.safetensors', original), tmp_path / 'a')
    assert done.translation.family == family
    assert_same(read_tensors(done.paths[0]), state)
    assert read_json(tmp_path / 'a' / 'config.json')['_class_name'] == UNETS[name]
    if family == 'i2vgen_xl':  # its original file is the network alone
        convert(tmp_path / 'a', tmp_path / 'alone.safetensors', 'original')
        assert_same(read_tensors(tmp_path / 'alone.safetensors'), original)
    whole = pipeline_around(tmp_path / 'a', UNETS[name])
    back = convert(whole, tmp_path / 'back.safetensors', 'original').translation
    assert_same(read_tensors(tmp_path / 'back.safetensors'), original)
    assert back.family == family
    assert back.notes == ('left out, as the file has no place for them: text_encoder',)


def pipeline_around(network, kind):
    """A pipeline's folder of a network and of a part that no original file has."""
    whole = network.with_name(f'{network.name}-pipeline')
    (whole / 'text_encoder').mkdir(parents=True)
    network.rename(whole / 'unet')
    write_tensors(whole / 'text_encoder' / 'model.safetensors', {'a': torch.zeros(1)})
    (whole / 'text_encoder' / 'config.json').write_text('{}')
    index = {'unet': ['diffusers', kind], 'text_encoder': ['transformers', 'CLIPTextModel']}
    (whole / 'model_index.json').write_text(json.dumps(index))
    return whole
