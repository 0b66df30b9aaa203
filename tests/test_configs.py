"""Every config of the checkout is valid, and the metafiles name what is there. Reads no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mmvideo.apis.zoo import find_config, model_names
from mmvideo.config import load_config
from mmvideo.errors import ConfigError

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(p for p in (ROOT / 'configs').glob('*/*.py') if p.parent.name != '_base_')
METAFILES = sorted((ROOT / 'configs').glob('*/metafile.yml'))
NEEDED = ('Config', 'In Collection', 'Name', 'Results', 'Weights')


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / 'configs').as_posix()


def read(metafile: Path) -> dict[str, Any]:
    return yaml.safe_load(metafile.read_text(encoding='utf-8'))


def models() -> list[dict[str, Any]]:
    return [model for metafile in METAFILES for model in read(metafile)['Models']]


@pytest.mark.parametrize('path', CONFIGS, ids=name_of)
def test_config_is_valid(path: Path) -> None:
    cfg = load_config(path)
    if path.name.startswith('train_'):
        trained = cfg.model.get('trainable') or cfg.model.get('lora')
        assert cfg.model.type == 'Autoencoder' or trained
        assert cfg.train_cfg.type == 'StepTrainLoop' and cfg.train_cfg.max_iters > 0
        assert cfg.train_dataloader.sampler.type == 'ResumableSampler'
    else:
        assert 'prompt' in cfg.infer or 'image' in cfg.infer


@pytest.mark.parametrize('path', CONFIGS, ids=name_of)
def test_a_misspelt_key_of_it_is_refused(path: Path, tmp_path: Path) -> None:
    child = tmp_path / 'child.py'
    child.write_text(
        f"_base_ = '{path.as_posix()}'\nmodel = dict(vea=dict(type='AutoencoderKL'))\n"
    )
    with pytest.raises(ConfigError, match=r"takes no 'vea'\. Did you mean 'vae'"):
        load_config(child)


def test_norm_scopes_and_betas_are_those_of_the_official_code() -> None:
    scopes = {'animatediff-v1': 'clip', 'animatediff-v2': 'frame', 'animatediff-v3': 'frame'}
    scopes['pia'] = 'clip'
    for name, scope in scopes.items():
        model = load_config(find_config(f'{name}_sd15')).model
        assert model.unet.resnet_norm_scope == scope, name
        assert model.motion_module.norm_scope == 'frame', name
        assert model.scheduler.beta_schedule == 'linear', name
        assert model.scheduler.steps_offset == 1 and not model.scheduler.clip_sample, name


def test_trainings_but_those_of_sprites_read_clips() -> None:
    for path in CONFIGS:
        of_sprites = path.parent.name == 'sprites' or 'sprites' in path.stem
        if path.name.startswith('train_') and not of_sprites:
            dataset = load_config(path).train_dataloader.dataset
            assert dataset.type == 'VideoTextDataset', path.name


def test_metafile_entries_have_their_config() -> None:
    for model in models():
        assert not [key for key in NEEDED if key not in model], model
        config = ROOT / model['Config']
        assert config.is_file(), model['Config']
        assert model['Name'] == config.stem
        assert model['Results'] and all('Task' in result for result in model['Results'])


def test_every_model_is_in_a_metafile() -> None:
    listed = {model['Config'] for model in models()}
    there = {f'configs/{name_of(p)}' for p in CONFIGS if not p.name.startswith('train_')}
    assert listed == there


def test_names_are_unique() -> None:
    names = [model['Name'] for model in models()]
    assert len(names) == len(set(names))
    collections = [c['Name'] for metafile in METAFILES for c in read(metafile)['Collections']]
    assert len(collections) == len(set(collections))
    assert {model['In Collection'] for model in models()} == set(collections)


def test_collections_have_a_readme_and_every_model_is_in_it() -> None:
    for metafile in METAFILES:
        for collection in read(metafile)['Collections']:
            text = (ROOT / collection['README']).read_text(encoding='utf-8')
            assert collection['Task'] and collection['Year']
            for model in read(metafile)['Models']:
                assert f'({model["Name"]}.py)' in text, model['Name']


def test_model_index_imports_every_metafile() -> None:
    index = read(ROOT / 'model-index.yml')
    assert index == {'Import': [p.relative_to(ROOT).as_posix() for p in METAFILES]}


def test_names_lead_to_configs() -> None:
    names = model_names()
    assert {model['Name'] for model in models()} <= set(names)
    assert find_config('pia_sprites').resolve() == ROOT / 'configs' / 'sprites' / 'pia_sprites.py'
