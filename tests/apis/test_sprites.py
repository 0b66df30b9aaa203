"""The sprite family's trainings, without the training: what each is told, and what is gathered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmvideo.apis import sprites
from mmvideo.checkpoints.files import sha256, write_tensors
from mmvideo.config import load_config, parse_cfg_options
from mmvideo.errors import InputError, UserError
from mmvideo.shipped import shipped_path

MOST_BYTES = 32_000_000  # of all weights in the package
Told = dict[str, tuple[Path, list[str]]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """The config and the options of every stage that was run; its export is one number."""
    runs: Told = {}

    def run(config: Path, folder: Path, options: list[str]) -> None:
        runs[folder.name] = (config, list(options))
        for number, part in enumerate(sprites.STAGES[folder.name].parts):
            value = torch.tensor([float(number + len(runs))])
            (folder / 'export' / part).mkdir(parents=True)
            write_tensors(folder / 'export' / part / 'x.safetensors', {'value': value})

    monkeypatch.setattr(sprites, '_run', run)
    return runs


def test_a_trial_is_what_its_configs_allow(told: Told, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    sprites.train_family(out, tmp_path / 'work', list(sprites.STAGES), steps_scale=0.002)
    assert list(told) == list(sprites.STAGES)
    for name, (config, options) in told.items():
        whole, trial = load_config(config), load_config(config, parse_cfg_options(options))
        assert trial.train_cfg.max_iters == max(1, round(whole.train_cfg.max_iters * 0.002)), name
        assert not trial.param_scheduler
        for key in sprites.STAGES[name].sources:
            assert f'{key}.from_pretrained={out}' in options
        if name not in ('vae', 'vae_decoder', 'svd_vae'):
            loader = trial.train_dataloader
            most = max(loader.batch_size, 0.002 * whole.train_dataloader.dataset.num_clips)
            assert loader.batch_size <= loader.dataset.num_clips <= most


def test_a_whole_training_is_what_the_configs_say(told: Told, tmp_path: Path) -> None:
    sprites.train_family(tmp_path / 'out', tmp_path / 'work', ['vae', 't2i'])
    assert told['vae'][1] == []
    assert all('.from_pretrained=' in option for option in told['t2i'][1])


def test_the_manifest_names_the_files_and_a_stage_that_is_done_is_skipped(
    told: Told, tmp_path: Path
) -> None:
    out = tmp_path / 'out'
    stages = ['t2i', 'vae', 'pia', 't2i_near']
    sprites.train_family(out, tmp_path / 'work', stages)
    assert list(told) == ['vae', 't2i_near', 't2i', 'pia']  # in the family's order
    text, unet = (out / 'manifest.json').read_text(), (out / 'unet' / 'x.safetensors').read_bytes()
    for again in (stages, ['t2i_near']):
        sprites.train_family(out, tmp_path / 'work', again)
    assert len(told) == 4 and (out / 'manifest.json').read_text() == text
    assert (out / 'unet' / 'x.safetensors').read_bytes() == unet  # not that of t2i_near
    manifest = json.loads(text)
    files = {k: v for stage in manifest['stages'].values() for k, v in stage['files'].items()}
    assert set(files) == {f'{part}/x.safetensors' for part in
                          ('vae', 'unet', 'text_encoder', 'tokenizer', 'pia')}  # fmt: skip
    assert all(sha256(out / name) == digest for name, digest in files.items())


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'--steps-scale 0: expected a number above 0'):
        sprites.train_family(tmp_path, tmp_path, ['vae'], steps_scale=0)


def test_a_stage_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sprites, 'ROOT', tmp_path)  # where there is no tools/train.py
    with pytest.raises(UserError, match=r'train_x\.py failed with exit code 2'):
        sprites._run(Path('train_x.py'), tmp_path / 'x', [])


def test_the_weights_in_the_package_are_those_of_its_manifest() -> None:
    folder = shipped_path('package://sprites')
    manifest = json.loads((folder / sprites.MANIFEST).read_text(encoding='utf-8'))
    named = {k: v for stage in manifest['stages'].values() for k, v in stage['files'].items()}
    weights = {path.relative_to(folder).as_posix(): path for path in folder.rglob('*.safetensors')}
    assert set(named) == set(weights)
    assert {name: sha256(path) for name, path in weights.items()} == named
    assert sum(path.stat().st_size for path in weights.values()) <= MOST_BYTES
