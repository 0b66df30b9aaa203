"""The original layout of Stable Diffusion 1.x: names, variants, leftovers, refusals."""

from __future__ import annotations

import functools

import diffusers
import pytest
import torch
import transformers
from diffusers.loaders import single_file_utils as theirs
from torch import Tensor

from mmvideo.checkpoints.files import read_tensors, write_tensors
from mmvideo.checkpoints.layouts.ldm import (
    LAYOUTS,
    LEFTOVERS,
    PREFIXES,
    UNET,
    diffusers_to_ldm,
    is_ldm,
    ldm_to_diffusers,
    sort_ldm,
)
from mmvideo.checkpoints.single_file import TEXT_ENCODER, describe_part
from mmvideo.checkpoints.single_file import UNET as SD15_UNET
from mmvideo.checkpoints.single_file import VAE as SD15_VAE
from mmvideo.errors import WeightsError

# Tensors of v1-5-pruned-emaonly by part, and parameters; CLIP has one constant more.
COUNTS = {'unet': (686, 859_520_964), 'vae': (248, 83_653_863), 'text_encoder': (197, 123_060_480)}
VAE_ATTENTION = '{}.mid.attn_1.{}.weight'


def public(config: dict) -> dict:
    return {k: v for k, v in config.items() if not k.startswith('_')}


@functools.cache
def full_size(part: str) -> tuple[dict[str, Tensor], dict]:
    """Every tensor of a part of Stable Diffusion 1.5 without memory, and its config."""
    with torch.device('meta'):
        if part == 'unet':
            module = diffusers.UNet2DConditionModel(cross_attention_dim=768)
            return module.state_dict(), dict(module.config)
        if part == 'vae':
            widths = (128, 256, 512, 512)
            module = diffusers.AutoencoderKL(**public(SD15_VAE), block_out_channels=widths)
            return module.state_dict(), dict(module.config)
        text = transformers.CLIPTextConfig(
            vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
            projection_dim=768, **public(TEXT_ENCODER),
        )  # fmt: skip
        state = transformers.CLIPTextModel(text).state_dict()
        named = {'text_model.' + k.removeprefix('text_model.'): v for k, v in state.items()}
        named['text_model.embeddings.position_ids'] = torch.arange(77)[None]
        return named, text.to_dict()


def theirs_to_ours(part: str, tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
    """diffusers' own converter."""
    if part == 'unet':
        return theirs.convert_ldm_unet_checkpoint(tensors, config)
    if part == 'vae':
        return theirs.convert_ldm_vae_checkpoint(tensors, config)
    return theirs.convert_ldm_clip_checkpoint(tensors)


@pytest.mark.parametrize('part', LAYOUTS)
def test_every_key_of_the_real_file_has_one_name_on_either_side(part):
    ours, config = full_size(part)
    file = diffusers_to_ldm({part: ours})
    tensors, parameters = COUNTS[part]
    assert len(file) == tensors == len(ours)
    assert sum(v.numel() for v in file.values() if v.is_floating_point()) == parameters
    assert all(key.startswith(PREFIXES[part]) for key in file)
    back = ldm_to_diffusers(file)[part]
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in ours.items()}
    # An independent reading of the same names.
    level = 'text_model.' if part == 'text_encoder' else ''
    converted = theirs_to_ours(part, dict(file), config)
    found = {level + key.removeprefix(level): value.shape for key, value in converted.items()}
    assert found == {key: value.shape for key, value in back.items()}
    if part != 'text_encoder':
        rows = LAYOUTS[part].rows
        assert len({r.theirs for r in rows}) == len({r.ours for r in rows}) == tensors


@pytest.mark.parametrize('part', LAYOUTS)
def test_a_file_tells_the_sizes_of_the_published_models(part):
    ours, _ = full_size(part)
    config = describe_part(part, ours, 'the file')
    if part == 'unet':
        assert config == SD15_UNET | dict(
            in_channels=4, out_channels=4, block_out_channels=[320, 640, 1280, 1280],
            cross_attention_dim=768,
        )  # fmt: skip
    elif part == 'vae':
        assert config['block_out_channels'] == [128, 256, 512, 512]
        assert (config['latent_channels'], config['scaling_factor']) == (4, 0.18215)
    else:
        expected = dict(
            vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
            num_attention_heads=12, max_position_embeddings=77, hidden_act='quick_gelu',
        )  # fmt: skip
        assert expected.items() <= config.items()


# Small tensors under all names of the real file -------------------------------------------------


def small_file(seed: int = 0) -> dict[str, Tensor]:
    """All 1131 names of the published file, in three floating types, with tiny values."""
    generator = torch.Generator().manual_seed(seed)
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    file = {}
    for part, layout in LAYOUTS.items():
        keys = list(full_size(part)[0])
        named = layout.to_theirs({key: torch.zeros(1) for key in keys})
        for i, key in enumerate(named):
            linear = '.attn_1.' in key and key.endswith('weight') and '.norm.' not in key
            shape = (2, 2, 1, 1) if linear else (2,) if '.attn_1.' in key else (2, 4, 1, 1)
            value = torch.randn(shape, generator=generator).to(kinds[i % 3])
            file[PREFIXES[part] + key] = value
    file['cond_stage_model.transformer.text_model.embeddings.position_ids'] = torch.arange(5)[None]
    return file


@pytest.fixture(scope='module')
def published() -> dict[str, Tensor]:
    return small_file()


def with_ema(file: dict[str, Tensor]) -> dict[str, Tensor]:
    """A training file: an EMA copy that differs from the plain weights, and its counters."""
    copies = {
        'model_ema.' + key.removeprefix('model.').replace('.', ''): value + 1
        for key, value in file.items()
        if key.startswith(PREFIXES['unet'])
    }
    counters = {'model_ema.decay': torch.tensor(0.9999), 'model_ema.num_updates': torch.tensor(7)}
    return {**file, **copies, **counters}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key


def test_the_round_trip_is_bit_equal(published, tmp_path):
    path = write_tensors(tmp_path / 'a.safetensors', published)
    read = read_tensors(path)
    parts = ldm_to_diffusers(read)
    assert {name: len(part) for name, part in parts.items()} == {k: v[0] for k, v in COUNTS.items()}
    assert_equal(diffusers_to_ldm(parts), published)
    assert parts['vae']['encoder.mid_block.attentions.0.to_q.weight'].shape == (2, 2)
    again = ldm_to_diffusers(diffusers_to_ldm(parts))
    for name, part in parts.items():
        assert_equal(again[name], part)


def test_nested_and_wrapped_files_are_the_same(published, tmp_path):
    nested = {'state_dict': published, 'global_step': 3, 'epoch': 1}
    wrapped = {f'module.{key}': value for key, value in published.items()}
    for name, content in (('nested.ckpt', nested), ('wrapped.ckpt', wrapped)):
        torch.save(content, tmp_path / name)
        found = read_tensors(tmp_path / name)
        assert is_ldm(found)
        assert_equal(diffusers_to_ldm(ldm_to_diffusers(found)), published)


def test_the_plain_weights_are_taken_unless_ema_is_asked_for(published):
    file = with_ema(published)
    assert sum(key.startswith('model_ema.') for key in file) == 688
    plain, ema = ldm_to_diffusers(file), ldm_to_diffusers(file, ema=True)
    assert_equal(plain['unet'], ldm_to_diffusers(published)['unet'])
    assert_equal(ema['unet'], {key: value + 1 for key, value in plain['unet'].items()})
    assert_equal(ema['vae'], plain['vae'])
    assert len({row.theirs.replace('.', '') for row in UNET.rows}) == 686
    with pytest.raises(WeightsError, match='no EMA weights'):
        ldm_to_diffusers(published, ema=True)
    alone = {k: v for k, v in file.items() if not k.startswith(PREFIXES['unet'])}
    assert_equal(ldm_to_diffusers(alone, ema=True)['unet'], ema['unet'])
    with pytest.raises(WeightsError, match='say ema=True'):
        ldm_to_diffusers(alone)


def test_what_trainers_leave_behind_is_named():
    one = torch.ones(1)
    schedule = [
        'betas', 'alphas_cumprod', 'alphas_cumprod_prev', 'sqrt_alphas_cumprod', 'logvar',
        'scale_factor', 'sqrt_one_minus_alphas_cumprod', 'log_one_minus_alphas_cumprod',
        'sqrt_recip_alphas_cumprod', 'sqrt_recipm1_alphas_cumprod', 'posterior_variance',
        'posterior_log_variance_clipped', 'posterior_mean_coef1', 'posterior_mean_coef2',
        'lvlb_weights',
    ]  # fmt: skip
    others = [
        'model_ema.decay', 'model_ema.num_updates', 'first_stage_model.loss.logvar', 'loss.logvar',
        'loss.perceptual_loss.net.slice1.0.weight', 'first_stage_model.model_ema.decay',
        'model_ema.encoderconv_inweight', 'cond_stage_model.logit_scale',
        'cond_stage_model.text_projection', 'cond_stage_model.transformer.text_projection.weight',
        'cond_stage_model.transformer.vision_model.pre_layrnorm.weight',
        'embedding_manager.string_to_param_dict.*',
    ]  # fmt: skip
    found = sort_ldm(dict.fromkeys([*schedule, *others], one)).leftovers
    assert sorted(key for keys in found.values() for key in keys) == sorted([*schedule, *others])
    assert found.keys() == LEFTOVERS.keys()
    assert found['the noise schedule, which a config states'] == schedule
    with pytest.raises(WeightsError, match=r'2 tensors are of no known use: betas2, mine\.weight'):
        sort_ldm({'betas2': one, 'mine.weight': one, 'betas': one}, 'x.ckpt')


def test_parts_that_a_file_lacks_are_named(published):
    without = {k: v for k, v in published.items() if not k.startswith(PREFIXES['vae'])}
    assert sorted(ldm_to_diffusers(without)) == ['text_encoder', 'unet']
    with pytest.raises(WeightsError, match=r'x\.ckpt holds no vae \(first_stage_model.*vae=dict'):
        sort_ldm(without, 'x.ckpt').part('vae')
    vae = {k: v for k, v in published.items() if k.startswith(PREFIXES['vae'])}
    with pytest.raises(WeightsError, match='holds no text_encoder .* only vae.*text_encoder=dict'):
        sort_ldm(vae).part('text_encoder')
    with pytest.raises(WeightsError, match='holds no unet'):
        sort_ldm(vae).part('unet')


def test_a_key_of_a_part_that_no_table_knows_is_an_error(published):
    odd = {**published, PREFIXES['unet'] + 'input_blocks.1.2.weight': torch.ones(1)}
    with pytest.raises(WeightsError, match=r'1 tensors are no part of the UNet .*blocks\.1\.2'):
        ldm_to_diffusers(odd)
    assert_equal(sort_ldm(odd).part('vae'), ldm_to_diffusers(published)['vae'])


def test_early_and_lone_names(published):
    text = PREFIXES['text_encoder']
    early = {key.replace(f'{text}text_model.', text): value for key, value in published.items()}
    assert not any('text_model.' in key for key in early)
    assert_equal(
        ldm_to_diffusers(early)['text_encoder'], ldm_to_diffusers(published)['text_encoder']
    )
    prefix = PREFIXES['vae']
    vae = {k.removeprefix(prefix): v for k, v in published.items() if k.startswith(prefix)}
    assert is_ldm(vae) and is_ldm({'encoder.down.0.block.0.norm1.bias': vae['quant_conv.bias']})
    assert_equal(ldm_to_diffusers(vae)['vae'], ldm_to_diffusers(published)['vae'])
    linear = {k: v[:, :, 0, 0] if '.attn_1.' in k and v.ndim == 4 else v for k, v in vae.items()}
    kept = {k: linear[k] for k in vae if '.attn_1.norm' not in k}
    assert kept[VAE_ATTENTION.format('encoder', 'q')].ndim == 2
    found = ldm_to_diffusers({**vae, **kept})['vae']
    assert_equal(found, ldm_to_diffusers(published)['vae'])


def test_old_names_of_diffusers_go_back_too(published):
    vae = ldm_to_diffusers(published)['vae']
    names = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}
    old = {}
    for key, value in vae.items():
        stem, _, kind = key.rpartition('.')
        new = next((n for n in names if stem.endswith(f'attentions.0.{n}')), None)
        old[f'{stem.removesuffix(new)}{names[new]}.{kind}' if new else key] = value
    assert any('.query.' in key for key in old)
    expected = {k: v for k, v in published.items() if k.startswith(PREFIXES['vae'])}
    assert_equal(diffusers_to_ldm({'vae': old}), expected)
    bare = ldm_to_diffusers(published)['text_encoder']
    bare = {key.removeprefix('text_model.'): value for key, value in bare.items()}
    expected = {k: v for k, v in published.items() if k.startswith(PREFIXES['text_encoder'])}
    assert_equal(diffusers_to_ldm({'text_encoder': bare}), expected)
    with pytest.raises(WeightsError, match="'decoder' is no part"):
        diffusers_to_ldm({'decoder': {}})


# What is not Stable Diffusion 1.x ---------------------------------------------------------------

_UNET = PREFIXES['unet']


@pytest.mark.parametrize(
    ('extra', 'title'),
    [
        ('conditioner.embedders.0.transformer.text_model.final_layer_norm.weight', 'Diffusion XL'),
        (_UNET + 'label_emb.0.0.weight', 'Diffusion XL'),
        ('cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight', 'Diffusion 2'),
        (_UNET + 'input_blocks.1.1.time_stack.0.ff.net.2.bias', 'Stable Video Diffusion'),
        (_UNET + 'joint_blocks.0.x_block.attn.qkv.weight', 'Diffusion 3'),
        (_UNET + 'double_blocks.0.img_attn.qkv.weight', 'Flux'),
        ('control_model.input_hint_block.0.weight', 'a ControlNet'),
    ],
)
def test_other_models_are_refused_with_both_sides_named(published, extra, title):
    with pytest.raises(WeightsError) as caught:
        ldm_to_diffusers({**published, extra: torch.ones(1)}, source='other.safetensors')
    message = str(caught.value)
    for piece in ('other.safetensors is', title, extra, 'expected Stable Diffusion 1.x'):
        assert piece in message


def test_the_second_generation_without_its_text_encoder_is_refused(published):
    block = _UNET + 'input_blocks.1.1.'
    unet = {k: v for k, v in published.items() if k.startswith(_UNET)}
    unet[block + 'proj_in.weight'] = torch.ones(2, 2)
    unet[block + 'transformer_blocks.0.attn2.to_k.weight'] = torch.ones(2, 1024)
    with pytest.raises(WeightsError, match='Stable Diffusion 2 .*1024 wide.*1x1 convolutions'):
        ldm_to_diffusers(unet)


@pytest.mark.parametrize(('channels', 'whose'), [(9, 'inpainting'), (8, 'InstructPix2Pix')])
def test_wider_inputs_are_refused_for_the_unet_alone(published, channels, whose):
    first = _UNET + 'input_blocks.0.0.weight'
    file = {**published, first: torch.ones(2, channels, 3, 3)}
    message = rf'\[2, {channels}, 3, 3\].*{whose}.* {channels} input channels.*with 4 input'
    with pytest.raises(WeightsError, match=message):
        ldm_to_diffusers(file)
    assert len(sort_ldm(file).part('vae')) == 248
