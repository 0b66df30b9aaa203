"""Weights into modules, parts from folders, and where sources are looked for."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from mmvideo import shipped
from mmvideo.checkpoints.files import write_tensors
from mmvideo.checkpoints.load import load_into, read_part, without_weights
from mmvideo.checkpoints.parts import clip_text_tensors, vae_tensors
from mmvideo.checkpoints.save import save_part, write_json
from mmvideo.checkpoints.sources import plan, resolve, resolve_weights, with_variant
from mmvideo.errors import UserError, WeightsError

MODEL = 'diffusion_pytorch_model.safetensors'


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer('table', torch.arange(4.0), persistent=False)


def test_every_parameter_is_filled_and_none_aliased():
    torch.manual_seed(0)
    source = Tiny()
    tensors = {k: v.clone() for k, v in source.state_dict().items()}
    with without_weights():
        target = Tiny()
    assert all(p.is_meta for p in target.parameters())
    load_into(target, tensors)
    for key, value in target.state_dict().items():
        assert torch.equal(value, tensors[key])
        assert value.data_ptr() != tensors[key].data_ptr()
    assert torch.equal(target.table, torch.arange(4.0))
    assert all(p.requires_grad for p in target.parameters())
    assert torch.equal(target.first(torch.ones(3)), source.first(torch.ones(3)))


def test_without_weights_ends_with_its_block():
    with pytest.raises(RuntimeError, match='stop'), without_weights():
        raise RuntimeError('stop')
    assert not Tiny().first.weight.is_meta


def test_dtype_is_converted_but_integers_stay():
    tensors = Tiny().state_dict()
    with without_weights():
        target = Tiny()
    load_into(target, tensors, dtype='bfloat16')
    assert target.first.weight.dtype == torch.bfloat16
    assert target.table.dtype == torch.bfloat16
    assert target.norm.num_batches_tracked.dtype == torch.int64
    with pytest.raises(WeightsError, match="Did you mean 'float16'"):
        load_into(target, tensors, dtype='float61')


def test_half_precision_files_fill_a_float32_module():
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in Tiny().state_dict().items()}
    target = load_into(Tiny(), tensors)
    assert target.first.weight.dtype == torch.float32
    assert torch.equal(target.first.weight, tensors['first.weight'].float())


def test_all_differences_are_in_one_message_and_nothing_is_loaded():
    target = Tiny()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    tensors = {k: v + 1 for k, v in before.items()}
    del tensors['first.bias'], tensors['norm.weight']
    tensors['first.weight'] = torch.zeros(4, 5)
    tensors |= {f'extra.{i}': torch.zeros(1) for i in range(7)}
    with pytest.raises(WeightsError) as caught:
        load_into(target, tensors, what='the toy')
    message = str(caught.value)
    for part in (
        'the toy', '2 missing: first.bias, norm.weight', '7 not part of this model', 'and 2 more',
        '1 of another shape: first.weight is [4, 5], expected [4, 3]',
    ):  # fmt: skip
        assert part in message
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


def test_a_part_is_read_back_as_saved(tmp_path):
    module = Tiny()
    save_part(tmp_path / 'unet', {'width': (1, 2)}, module, metadata={'note': 'x'})
    config, tensors = read_part(str(tmp_path), 'unet')
    assert config == {'width': [1, 2], '_class_name': 'Tiny'}
    assert tensors.keys() == module.state_dict().keys()
    assert all(torch.equal(tensors[k], v) for k, v in module.state_dict().items())
    save_part(tmp_path / 'half', {'_class_name': 'X'}, tensors, dtype='float16')
    assert read_part(str(tmp_path), 'half')[1]['first.weight'].dtype == torch.float16


def test_a_config_is_plain_data_or_an_error(tmp_path):
    with pytest.raises(WeightsError, match='plain data only, got Tiny'):
        save_part(tmp_path, {'a': [Tiny()]}, {'_': torch.ones(1)})
    with pytest.raises(WeightsError, match='_class_name'):
        save_part(tmp_path, {'a': 1}, {'_': torch.ones(1)})
    assert not list(tmp_path.iterdir())


def test_shards_are_read_together(tmp_path):
    index = {'weight_map': {'a': 'm-1.safetensors', 'b': 'm-2.safetensors'}}
    write_json(tmp_path / 'config.json', {})
    write_json(tmp_path / f'{MODEL}.index.json', index)
    write_tensors(tmp_path / 'm-1.safetensors', {'a': torch.ones(1)})
    with pytest.raises(WeightsError, match="no m-2.safetensors.*Did you mean 'm-1.safetensors'"):
        read_part(str(tmp_path))
    write_tensors(tmp_path / 'm-2.safetensors', {'b': torch.zeros(1)})
    assert sorted(read_part(str(tmp_path))[1]) == ['a', 'b']
    assert len([f for f in plan(tmp_path) if f.present and f.size]) == 3
    write_tensors(tmp_path / 'm-2.safetensors', {'a': torch.zeros(1)})
    with pytest.raises(WeightsError, match='repeats'):
        read_part(str(tmp_path))
    write_json(tmp_path / f'{MODEL}.index.json', {'weight_map': {'a': '../m-1.safetensors'}})
    with pytest.raises(WeightsError, match='its own folder'):
        read_part(str(tmp_path))


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('model.safetensors', 'model.fp16.safetensors'),
        ('pytorch_model.bin', 'pytorch_model.fp16.bin'),
        ('model.safetensors.index.json', 'model.safetensors.index.fp16.json'),
        ('config.json', 'config.json'),
    ],
)
def test_names_of_variants(name, expected):
    assert with_variant(name, 'fp16') == expected
    assert with_variant(name, None) == name


def test_a_variant_never_falls_back(tmp_path):
    write_tensors(tmp_path / MODEL, {'a': torch.ones(1)})
    with pytest.raises(WeightsError, match=r'fp16\.safetensors'):
        resolve_weights(tmp_path, variant='fp16')
    write_tensors(tmp_path / 'diffusion_pytorch_model.fp16.safetensors', {'a': torch.ones(1)})
    (found,) = resolve_weights(tmp_path, variant='fp16')
    assert found.name == 'diffusion_pytorch_model.fp16.safetensors'


def test_misspelt_folders_name_their_neighbour(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'models' / 'fish' / 'vae').mkdir(parents=True)
    for source, hint in [
        ('./models/fihs', 'fish'),
        ('models/fishh', 'fish'),
        (str(tmp_path / 'model/fish'), 'models'),
    ]:
        with pytest.raises(WeightsError, match=f"Did you mean '{hint}'"):
            resolve(source, filenames=('config.json',))
    with pytest.raises(WeightsError, match="Did you mean 'vae'"):
        resolve('models/fish', 'vea', filenames=('config.json',))
    with pytest.raises(WeightsError, match=r'has no config\.json.*It holds: nothing'):
        resolve('models/fish', 'vae', filenames=('config.json',))


def test_package_sources(tmp_path, monkeypatch):
    (tmp_path / 'weights' / 'sprites').mkdir(parents=True)
    write_json(tmp_path / 'weights' / 'sprites' / 'config.json', {})
    monkeypatch.setattr(shipped, 'ROOT', tmp_path / 'weights')
    found = resolve('package://sprites', filenames=('config.json',))
    assert found == tmp_path / 'weights' / 'sprites' / 'config.json'
    with pytest.raises(WeightsError, match="Did you mean 'sprites'.*Shipped: sprites"):
        resolve('package://sprite', filenames=('config.json',))
    with pytest.raises(UserError, match='expected package://NAME'):
        resolve('package://../secret', filenames=('config.json',))


def test_hub_ids_offline_say_what_would_be_fetched(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'nobody').touch()
    with pytest.raises(WeightsError) as caught:
        resolve('nobody/nothing-here', 'vae', filenames=(MODEL,))
    for part in ('nobody/nothing-here', f'vae/{MODEL}', 'from_pretrained', 'HF_HOME'):
        assert part in str(caught.value)
    files = plan('nobody/nothing-here', 'vae')
    assert [f.name for f in files] == ['vae/config.json', f'vae/{MODEL}']
    assert not any(f.present or f.size for f in files)


def test_hub_files_come_from_the_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    cache = tmp_path / 'cache'
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(cache))
    repository = cache / 'models--some--model'
    commit = 'a' * 40
    folder = repository / 'snapshots' / commit / 'vae'
    save_part(folder, {}, Tiny())
    (repository / 'refs').mkdir()
    (repository / 'refs' / 'main').write_text(commit)
    assert resolve('some/model', 'vae', filenames=(MODEL,)) == folder / MODEL
    assert all(file.present for file in plan('some/model', 'vae'))
    assert sorted(read_part('some/model', 'vae')[1]) == sorted(Tiny().state_dict())


def test_a_config_that_is_no_json_is_named(tmp_path):
    (tmp_path / 'config.json').write_text('{"a": ')
    with pytest.raises(WeightsError, match=r'config\.json is no JSON'):
        read_part(str(tmp_path))
    (tmp_path / 'config.json').write_text(json.dumps([1]))
    with pytest.raises(WeightsError, match='holds a list'):
        read_part(str(tmp_path))


def test_old_vae_attention_names():
    stem = 'decoder.mid_block.attentions.0'
    old = {f'{stem}.{n}.weight': torch.ones(4, 4, 1, 1) for n in ('query', 'key', 'value')}
    old |= {
        f'{stem}.proj_attn.bias': torch.ones(4),
        'encoder.conv_in.weight': torch.ones(4, 3, 1, 1),
    }
    new = vae_tensors(old)
    assert sorted(new) == [
        f'{stem}.to_k.weight', f'{stem}.to_out.0.bias', f'{stem}.to_q.weight',
        f'{stem}.to_v.weight', 'encoder.conv_in.weight',
    ]  # fmt: skip
    assert new[f'{stem}.to_q.weight'].shape == (4, 4)
    assert new['encoder.conv_in.weight'].shape == (4, 3, 1, 1)


@pytest.mark.parametrize('level', ['', 'text_model.'])
@pytest.mark.parametrize('wanted', ['', 'text_model.'])
def test_clip_names_follow_the_installed_model(level, wanted):
    tensors = {
        f'{level}embeddings.position_ids': torch.arange(3)[None],
        f'{level}final_layer_norm.weight': torch.ones(2),
    }
    found = clip_text_tensors(tensors, [f'{wanted}final_layer_norm.weight'])
    assert list(found) == [f'{wanted}final_layer_norm.weight']


def test_the_image_half_of_clip_is_left_out():
    whole = {
        'text_model.a': torch.ones(1), 'vision_model.a': torch.ones(1),
        'logit_scale': torch.ones(1), 'text_projection.weight': torch.ones(1, 1),
    }  # fmt: skip
    assert list(clip_text_tensors(whole, ['a'])) == ['a']
