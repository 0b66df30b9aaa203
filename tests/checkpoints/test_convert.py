"""Public layouts into the others they have, and back bit by bit; other programs read the same."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from mmengine import Config

from mmvideo.apis.convert import convert
from mmvideo.apis.inspect import inspect
from mmvideo.checkpoints.files import read_json, read_metadata, read_tensors, sha256, write_tensors
from mmvideo.checkpoints.layouts import (
    IP_ADAPTER_LAYOUTS,
    SPARSECTRL,
    identify,
    ip_adapter_to_ours,
    lora_kind,
    lora_to_ours,
)
from mmvideo.errors import InputError, WeightsError

_SPEC = importlib.util.spec_from_file_location(
    'public_layouts', Path(__file__).with_name('public_layouts.py')
)
public = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(public)
WIDE = (32, 64, 64, 64)  # diffusers' adapters norm in 32 groups


def same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert torch.equal(found[key], value), key


def saved(path, tensors):
    torch.save(dict(tensors), path)
    return path


# what, its tensors, layouts to go through, suffix of the source
ROUND_TRIPS = {
    'v1': (lambda: public.filled(public.motion(WIDE, 24)), ('diffusers', 'original')),
    'v2 in half': (
        lambda: public.filled(public.motion(WIDE, 32, mid=True), torch.float16),
        ('diffusers', 'comfyui'),
    ),
    'v3 in bfloat16': (
        lambda: public.filled(public.motion(WIDE, 32), torch.bfloat16),
        ('diffusers', 'original'),
    ),
    'PIA': (lambda: public.filled(public.motion(WIDE, 32, pia=True)), ('diffusers', 'original')),
    'MotionLoRA': (
        lambda: public.filled(public.motion_lora()),
        ('diffusers', 'original'),
    ),
    'MotionLoRA by kohya': (lambda: public.filled(public.motion_lora()), ('kohya',)),
    'domain adapter': (
        lambda: public.filled(public.domain_adapter()), ('peft',),
    ),
    'kohya': (lambda: public.filled(public.kohya(), torch.float16), ('diffusers', 'kohya')),
    'LoCon': (lambda: public.filled(public.kohya(locon=True)), ('peft', 'comfyui')),
    'LoCon by LDM': (
        lambda: public.filled(public.kohya(locon=True)), ('kohya_ldm', 'kohya'),
    ),
    'kohya for SDXL': (
        lambda: public.filled(public.kohya(context=2048, text='lora_te1_')),
        ('diffusers', 'kohya'),
    ),
    'diffusers LoRA': (
        lambda: public.filled(public.diffusers_lora()), ('kohya', 'diffusers'),
    ),
    'PEFT': (
        lambda: public.filled(public.diffusers_lora(peft=True)), ('kohya', 'peft'),
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', ROUND_TRIPS)
def test_round_trips_are_bit_equal(tmp_path, name):
    make, targets = ROUND_TRIPS[name]
    tensors = make()
    source = saved(tmp_path / 'source.ckpt', tensors)
    for step, target in enumerate(targets):
        folder = target == 'diffusers' and 'lora' not in identify(read_tensors_of(source)).family
        goal = tmp_path / (f'step{step}' + ('' if folder else '.safetensors'))
        done = convert(source, goal, target)
        assert sum(len(read_tensors(path)) for path in done.paths) > 0
        source = goal
    end = read_tensors(source)
    if len(targets) > 1:
        same(end, tensors)
    else:  # two names for the same: both are ours
        same(lora_to_ours(end), lora_to_ours(tensors))


def read_tensors_of(source):
    found = sorted(source.glob('*.safetensors')) if source.is_dir() else [source]
    return read_tensors(found[0])


def test_an_adapter_is_the_one_of_diffusers(tmp_path):
    from diffusers import MotionAdapter

    tensors = public.filled(public.motion(WIDE, 24, mid=True))
    convert(saved(tmp_path / 'mm.ckpt', tensors), tmp_path / 'adapter')
    loaded, info = MotionAdapter.from_pretrained(tmp_path / 'adapter', output_loading_info=True)
    assert not any(info.values())
    state = loaded.state_dict()
    key = 'up_blocks.3.motion_modules.2.'
    stem = key + 'temporal_transformer.transformer_blocks.0.'
    assert torch.equal(
        state[key + 'transformer_blocks.0.attn2.to_out.0.bias'],
        tensors[stem + 'attention_blocks.1.to_out.0.bias'],
    )
    assert torch.equal(
        state[key + 'transformer_blocks.0.pos_embed.pe'],
        tensors[stem + 'attention_blocks.0.pos_encoder.pe'],
    )
    assert torch.equal(
        state[key + 'transformer_blocks.0.norm3.weight'], tensors[stem + 'ff_norm.weight']
    )
    assert read_json(tmp_path / 'adapter' / 'config.json')['motion_max_seq_length'] == 24


@pytest.mark.parametrize('scribble', [False, True])
def test_sparsectrl_is_the_one_of_diffusers(tmp_path, scribble):
    from diffusers import SparseControlNetModel

    torch.manual_seed(0)
    model = SparseControlNetModel(
        conditioning_channels=3 if scribble else 4,
        use_simplified_condition_embedding=not scribble,
        block_out_channels=WIDE,
        cross_attention_dim=8,
        conditioning_embedding_out_channels=(4, 8, 8, 16),
        motion_max_seq_length=32,
    )
    state = model.state_dict()
    original = SPARSECTRL.to_theirs(state)
    stem = 'down_blocks.1.motion_modules.0.temporal_transformer.transformer_blocks.0.'
    assert {stem + 'attention_blocks.0.pos_encoder.pe', stem + 'norms.0.bias'} <= set(original)
    assert not any('attention_blocks.1' in key for key in original)
    source = saved(tmp_path / 'sparse.ckpt', {'controlnet': original})
    convert(source, tmp_path / 'sparse')
    loaded, info = SparseControlNetModel.from_pretrained(
        tmp_path / 'sparse', output_loading_info=True
    )
    assert not any(info.values())
    same(loaded.state_dict(), state)
    convert(tmp_path / 'sparse', tmp_path / 'back.safetensors', 'original')
    same(read_tensors(tmp_path / 'back.safetensors'), original)


def small_unet():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(1)
    return UNet2DConditionModel(
        block_out_channels=public.TINY,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=2,
    ).eval()


def output(unet):
    generator = torch.Generator().manual_seed(2)
    sample = torch.randn(1, 4, 16, 16, generator=generator)
    text = torch.randn(1, 5, 12, generator=generator)
    with torch.no_grad():
        return unet(sample, 3, text).sample


def kohya_file(tmp_path, alphas):
    tensors = public.filled(public.kohya(context=12, locon=True))
    for number, key in enumerate(k for k in tensors if k.endswith('.alpha')):
        tensors[key] = torch.tensor(float(alphas[number % len(alphas)]))  # of rank 4
    tensors = {k: v * 0.2 if v.ndim else v for k, v in tensors.items()}
    return tensors, write_tensors(tmp_path / 'kohya.safetensors', tensors)


def merged_by_hand(unet, tensors):
    """W + alpha / r * up @ down for each layer, found by the flattened name."""
    for name, module in unet.named_modules():
        key = 'lora_unet_' + name.replace('.', '_')
        if f'{key}.alpha' in tensors:
            down, up = (tensors[f'{key}.lora_{way}.weight'] for way in ('down', 'up'))
            change = up.flatten(1) @ down.flatten(1) * (tensors[f'{key}.alpha'] / 4)
            module.weight.data += change.reshape(module.weight.shape)
    return unet


@pytest.mark.parametrize('alphas', [(2,), (1, 2, 3)])
def test_alphas_reach_diffusers(tmp_path, alphas):
    from diffusers import StableDiffusionPipeline

    tensors, path = kohya_file(tmp_path, alphas)
    expected = output(merged_by_hand(small_unet(), tensors))
    assert (expected - output(small_unet())).abs().max() > 1e-2
    if len(alphas) == 1:  # else diffusers looks for its alphas under the wrong names
        theirs = small_unet()
        state, found = StableDiffusionPipeline.lora_state_dict(str(path))
        theirs.load_lora_adapter(state, prefix='unet', network_alphas=found)
        torch.testing.assert_close(output(theirs), expected, rtol=0, atol=1e-5)
    for target in ('diffusers', 'peft'):
        goal = tmp_path / f'{target}.safetensors'
        convert(path, goal, target)
        assert lora_kind(read_tensors(goal)) == target
        ours = small_unet()
        ours.load_lora_adapter(str(tmp_path), weight_name=goal.name, prefix='unet')
        torch.testing.assert_close(output(ours), expected, rtol=0, atol=1e-5)


def test_alphas_of_the_header_return(tmp_path):
    tensors, path = kohya_file(tmp_path, (1, 2, 3))
    convert(path, tmp_path / 'peft.safetensors', 'peft')
    assert not any(key.endswith('.alpha') for key in read_tensors(tmp_path / 'peft.safetensors'))
    convert(tmp_path / 'peft.safetensors', tmp_path / 'back.safetensors', 'kohya')
    same(read_tensors(tmp_path / 'back.safetensors'), tensors)


def test_alphas_of_pefts_config_become_tensors(tmp_path):
    tensors = public.filled(public.diffusers_lora(peft=True))
    bare = {
        'base_model.model.' + key.removeprefix('unet.'): value
        for key, value in tensors.items()
        if key.startswith('unet.')
    }
    write_tensors(tmp_path / 'adapter_model.safetensors', bare)
    (tmp_path / 'adapter_config.json').write_text(json.dumps({'lora_alpha': 6, 'r': 4}))
    convert(tmp_path, tmp_path / 'kohya.safetensors', 'kohya')
    found = read_tensors(tmp_path / 'kohya.safetensors')
    alphas = [float(value) for key, value in found.items() if key.endswith('.alpha')]
    assert len(alphas) == len(bare) // 2 and set(alphas) == {6.0}


def test_a_motion_lora_changes_diffusers_unet_by_up_times_down(tmp_path):
    from diffusers import UNetMotionModel

    torch.manual_seed(3)
    model = UNetMotionModel(
        block_out_channels=(8, 16, 16, 16), norm_num_groups=4, motion_num_attention_heads=2,
        cross_attention_dim=12, num_attention_heads=2,
    ).eval()  # fmt: skip
    tensors = {k: v * 0.1 for k, v in public.filled(public.motion_lora()).items()}
    convert(saved(tmp_path / 'v2_lora.ckpt', tensors), tmp_path / 'lora.safetensors', 'diffusers')
    merged = {k: v.clone() for k, v in model.state_dict().items()}
    for key, down in tensors.items():
        if key.endswith('.down.weight'):
            name = key.replace('.temporal_transformer', '').replace('.attention_blocks.0', '.attn1')
            name = name.replace('.attention_blocks.1', '.attn2').replace('.processor.', '.')
            name = name.replace('to_out_lora', 'to_out.0').replace('_lora', '')
            merged[name.replace('.down.', '.')] += tensors[key.replace('.down.', '.up.')] @ down
    model.load_lora_adapter(str(tmp_path), weight_name='lora.safetensors', prefix='unet')
    other = UNetMotionModel.from_config(model.config).eval()
    other.load_state_dict(merged)
    sample, text = torch.randn(1, 4, 3, 16, 16), torch.randn(3, 5, 12)
    with torch.no_grad():
        found, expected = (m(sample, 3, text).sample for m in (model, other))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('kind', ['plain', 'plus', 'full'])
def test_ip_adapters_have_diffusers_names(kind):
    tensors = public.filled(public.ip_adapter(kind, public.TINY, context=64), torch.float16)
    ours = ip_adapter_to_ours(tensors)
    projection = small_unet()._convert_ip_adapter_image_proj_to_diffusers(
        {k.removeprefix('image_proj.'): v.float() for k, v in tensors.items() if 'image' in k},
        low_cpu_mem_usage=False,
    )
    expected = {f'image_proj.{k}': v.half() for k, v in projection.state_dict().items()}
    same({k: v for k, v in ours.items() if k.startswith('image_proj.')}, expected)
    names = [n.removesuffix('.processor') for n in small_unet().attn_processors if 'attn2' in n]
    for index, name in enumerate(names):
        key = f'ip_adapter.{2 * index + 1}.to_k_ip.weight'
        assert torch.equal(ours[f'unet.{name}.to_k_ip.weight'], tensors[key])
    layout = {'plain': '', 'plus': '_plus', 'full': '_full'}[kind]
    same(IP_ADAPTER_LAYOUTS['ip_adapter' + layout].to_theirs(ours), tensors)


def test_a_trainers_whole_unet_becomes_two_halves(tmp_path):
    from diffusers import MotionAdapter, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=WIDE, norm_num_groups=32, cross_attention_dim=12, attention_head_dim=8
    )
    motion = public.filled(public.motion(WIDE, 32, pia=True))
    whole = unet.state_dict() | motion
    ddp = {'module.' + key: value for key, value in whole.items()}
    source = saved(tmp_path / 'pia.ckpt', {'state_dict': ddp, 'global_step': 7})
    convert(source, tmp_path / 'model')
    image = UNet2DConditionModel.from_pretrained(tmp_path / 'model' / 'unet').state_dict()
    assert torch.equal(image['conv_in.weight'], motion['conv_in.weight'][:, :4])
    same({k: v for k, v in image.items() if not k.startswith('conv_in')},
         {k: v for k, v in unet.state_dict().items() if not k.startswith('conv_in')})  # fmt: skip
    adapter = MotionAdapter.from_pretrained(tmp_path / 'model' / 'motion_adapter')
    assert torch.equal(adapter.conv_in.weight, motion['conv_in.weight'])


def test_a_pipeline_and_a_single_file_are_each_others_inverse(tmp_path):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    # Shortcuts stand where the width grows, as in the real one.
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64, 96, 96), cross_attention_dim=16, attention_head_dim=8
    )
    unet.save_pretrained(tmp_path / 'sd' / 'unet')
    index = {'_class_name': 'X', 'unet': ['diffusers', 'UNet2DConditionModel']}
    (tmp_path / 'sd' / 'model_index.json').write_text(json.dumps(index))
    convert(tmp_path / 'sd', tmp_path / 'one.safetensors')
    one = read_tensors(tmp_path / 'one.safetensors')
    assert identify(one).family == 'ldm' and len(one) == 686
    convert(tmp_path / 'one.safetensors', tmp_path / 'again')
    same(read_tensors_of(tmp_path / 'again'), unet.state_dict())
    UNet2DConditionModel.from_pretrained(tmp_path / 'again')


def test_dtype_header_and_refusals(tmp_path):
    source = saved(tmp_path / 'mm.ckpt', public.filled(public.motion(public.TINY, 32, pia=True)))
    done = convert(source, tmp_path / 'adapter', dtype='float16')
    assert {v.dtype for v in read_tensors(done.paths[0]).values()} == {torch.float16}
    header = read_metadata(done.paths[0])
    assert header['source_sha256'] == sha256(source)
    assert (header['family'], header['layout']) == ('pia', 'diffusers')
    assert header['mmvideo'] and header['source'] == 'mm.ckpt'
    before = sha256(done.paths[0])
    with pytest.raises(InputError, match='exists already; --force'):
        convert(source, tmp_path / 'adapter')
    assert sha256(done.paths[0]) == before
    convert(source, tmp_path / 'adapter', force=True)
    assert sha256(done.paths[0]) != before
    for goal, to, message in (
        ('x', 'kohya', 'can become: original, diffusers, comfyui, safetensors'),
        ('x', 'diffuser', "Did you mean 'diffusers'"),
        ('x', 'original', "in the layout 'original' already"),
        ('x', 'safetensors', 'expected a name that ends in .safetensors'),
        ('x.ckpt', 'diffusers', 'expected the name of one'),
    ):
        with pytest.raises((InputError, WeightsError), match=message):
            convert(source, tmp_path / goal, to)
    with pytest.raises(WeightsError, match='dtype='):
        convert(source, tmp_path / 'x', dtype='half')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['adapter', 'mm.ckpt']


def test_a_failed_folder_leaves_nothing(tmp_path, monkeypatch):
    source = saved(tmp_path / 'mm.ckpt', public.filled(public.motion(public.TINY)))

    def full(*_, **__):
        raise OSError('disk full')

    monkeypatch.setattr('mmvideo.checkpoints.save.write_json', full)
    with pytest.raises(OSError, match='disk full'):
        convert(source, tmp_path / 'adapter')
    assert [path.name for path in tmp_path.iterdir()] == ['mm.ckpt']


def test_what_a_kohya_header_says_is_kept(tmp_path):
    tensors = public.filled(public.kohya())
    path = write_tensors(tmp_path / 'a.safetensors', tensors, {'ss_network_dim': '4'})
    convert(path, tmp_path / 'b.safetensors', 'safetensors', dtype='bfloat16')
    assert read_metadata(tmp_path / 'b.safetensors')['ss_network_dim'] == '4'


def test_inspecting_tells_the_file_and_how_to_use_it(tmp_path):
    source = saved(tmp_path / 'pia.ckpt', public.filled(public.motion(public.TINY, 32, pia=True)))
    facts = inspect(source)['parts']['']
    assert facts['files'][0]['sha256'] == sha256(source)
    assert (facts['family'], facts['tensors'], facts['positions']) == ('pia', 562, 32)
    assert facts['norm_scopes'] == {'resnet_norm_scope': 'clip', 'motion_norm_scope': 'frame'}
    model = Config.fromstring(facts['config'], '.py').model
    assert model.type == 'PIA' and model.unet.resnet_norm_scope == 'clip'
    assert model.motion_module.from_pretrained == str(source)
    assert 'scheduler' not in model  # nobody knows, for modules of these widths
    json.dumps(inspect(source))
