"""Latents that are encoded once: equal to the encoder's, resumable, shared by processes."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mmvideo.datasets import cached
from mmvideo.datasets.cached import CachedLatents
from mmvideo.datasets.samplers import Draw, ResumableSampler
from mmvideo.errors import ConfigError, InputError, WeightsError
from mmvideo.registry import DATASETS

ROOT = Path(__file__).parents[2]
SPRITES = dict(type='SpriteWorld', length=50, num_frames=6, size=32)


@pytest.fixture(scope='module')
def vae_folder(tmp_path_factory) -> Path:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('model')
    AutoencoderKL(
        down_block_types=('DownEncoderBlock2D',) * 2,
        up_block_types=('UpDecoderBlock2D',) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
    ).save_pretrained(folder / 'vae')
    return folder


@pytest.fixture
def config(vae_folder: Path, tmp_path: Path) -> dict:
    vae = dict(type='AutoencoderKL', from_pretrained=str(vae_folder), subfolder='vae')
    return dict(
        type='CachedLatents', dataset=SPRITES, vae=vae, cache_dir=str(tmp_path / 'cache'),
        num_clips=10, dtype='float32',
    )  # fmt: skip


def moments(vae_folder: Path, index: int) -> torch.Tensor:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(vae_folder, subfolder='vae')
    video = DATASETS.build(SPRITES)[index]['video']
    with torch.no_grad():
        return vae.encode(video / 127.5 - 1).latent_dist.parameters


def forbid_encoding(monkeypatch) -> None:
    def encode(*arguments: object) -> None:
        raise AssertionError('encoded again')

    monkeypatch.setattr(cached._Encoder, '__init__', encode)


def test_latents_are_those_of_the_encoder(config: dict, vae_folder: Path) -> None:
    dataset = DATASETS.build(config)
    source = DATASETS.build(SPRITES)
    assert len(dataset) == 10
    for index in (0, 7, 9, -1):
        item = dataset[index]
        assert item['caption'] == source[index % 10]['caption']
        assert item['latents'].dtype == torch.float32
        assert item['latents'].shape == (6, 8, 16, 16)
        expected = moments(vae_folder, index % 10)
        assert torch.allclose(item['latents'], expected, atol=2e-3, rtol=1e-3)  # float16 on disk
    with pytest.raises(IndexError):
        dataset[10]


def test_first_frames_are_kept_as_they_are(config: dict) -> None:
    dataset = DATASETS.build({**config, 'first_frame': True})
    source = DATASETS.build(SPRITES)
    for index in (0, 9):
        assert torch.equal(dataset[index]['image'], source[index]['video'][0])
    assert 'image' not in DATASETS.build(config)[0]
    window = DATASETS.build({**config, 'first_frame': True, 'num_frames': 1})
    assert window.folder == dataset.folder
    drawn = [window[2] for _ in range(12)]
    assert all(torch.equal(item['image'], dataset[2]['image']) for item in drawn)
    assert len({float(item['latents'].sum()) for item in drawn}) > 1


def test_numbers_of_a_clip_are_kept(config: dict, monkeypatch) -> None:
    dataset = {**SPRITES, 'fps': [6, 12], 'paths': 'free'}
    first, source = DATASETS.build({**config, 'dataset': dataset}), DATASETS.build(dataset)
    forbid_encoding(monkeypatch)
    for cache in (first, DATASETS.build({**config, 'dataset': dataset})):
        for index in (0, 3, 9):
            for name in ('fps', 'motion_bucket_id'):
                assert cache[index][name] == source[index][name]
    assert len({first[index]['motion_bucket_id'] for index in range(10)}) > 5
    batch = torch.utils.data.default_collate([first[0], first[1]])
    assert batch['fps'].shape == batch['motion_bucket_id'].shape == (2,)


def test_half_precision_encoder_is_near(config: dict, vae_folder: Path) -> None:
    item = DATASETS.build({**config, 'dtype': 'bfloat16'})[3]
    assert torch.allclose(item['latents'], moments(vae_folder, 3), atol=0.05)


def test_a_caption_that_changes_is_kept_and_takes_whole_clips(config: dict) -> None:
    turning = dict(type='TurningSprites', world={**SPRITES, 'num_frames': 8}, share=1.0)
    source, cache = DATASETS.build(turning), DATASETS.build({**config, 'dataset': turning})
    assert cache[3]['caption'] == source[3]['caption'] and '\n' in cache[3]['caption']
    with pytest.raises(ConfigError, match='num_frames=4: the caption of clip 0 changes'):
        DATASETS.build({**config, 'dataset': turning, 'num_frames': 4})


def test_second_use_reads_only(config: dict, monkeypatch) -> None:
    first = DATASETS.build(config)[4]['latents']
    forbid_encoding(monkeypatch)
    again = DATASETS.build({**config, 'num_frames': 1, 'num_workers': 1})  # the same cache
    assert again[4]['latents'].shape == (1, 8, 16, 16)
    assert torch.equal(DATASETS.build(config)[4]['latents'], first)
    other = {**config, 'dataset': {**SPRITES, 'seed': 1}}
    with pytest.raises(AssertionError, match='encoded again'):
        DATASETS.build(other)


@pytest.mark.parametrize(
    ('name', 'same'),
    [('quant_conv.bias', False), ('encoder.conv_in.bias', False), ('decoder.conv_in.bias', True)],
)
def test_another_encoder_makes_another_cache(
    config: dict, vae_folder: Path, tmp_path, name: str, same: bool
) -> None:
    from diffusers import AutoencoderKL

    folder = DATASETS.build(config).folder
    vae = AutoencoderKL.from_pretrained(vae_folder, subfolder='vae')
    with torch.no_grad():
        vae.get_parameter(name).add_(1)
    vae.save_pretrained(tmp_path / 'vae')
    changed = {**config, 'vae': {**config['vae'], 'from_pretrained': str(tmp_path)}}
    assert (DATASETS.build(changed).folder == folder) is same


def test_windows_are_drawn_from_the_global_generator(config: dict) -> None:
    whole = DATASETS.build(config)[2]['latents']
    dataset = DATASETS.build({**config, 'num_frames': 4, 'affinity': True})
    scores = DATASETS.build({**config, 'affinity': True})[2]['affinity_scores']
    torch.manual_seed(0)
    seen = [dataset[2] for _ in range(40)]
    torch.manual_seed(0)
    assert torch.equal(dataset[2]['latents'], seen[0]['latents'])
    starts = []
    for item in seen:
        found = [s for s in range(3) if torch.equal(whole[s : s + 4], item['latents'])]
        assert len(found) == 1
        starts += found
        window = slice(found[0], found[0] + 4)
        assert torch.equal(item['affinity_scores'], scores[window, window])
    assert set(starts) == {0, 1, 2}


@pytest.mark.parametrize('workers', [0, 2])
def test_windows_depend_on_seed_epoch_and_index(config: dict, workers: int) -> None:
    """Not on the process that reads an item, on the order, or on where a training was resumed."""
    dataset = DATASETS.build({**config, 'num_frames': 4})

    def items(start: int, count: int, seed: int = 5) -> list[torch.Tensor]:
        sampler = ResumableSampler(dataset, seed=seed)
        sampler.set_start(start)
        loader = DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=workers)
        return [item['latents'] for item in itertools.islice(loader, count)]

    whole = items(0, 40)
    torch.manual_seed(workers)
    order = list(itertools.islice(ResumableSampler(dataset, seed=5), 40))
    for draw, found in zip(order, whole, strict=True):
        start = int(np.random.default_rng([5, draw.epoch, int(draw)]).integers(3))
        clip = dataset._read('moments', int(draw)).float()
        assert torch.equal(found, clip[start : start + 4])
    assert all(map(torch.equal, items(13, 27), whole[13:]))
    epochs = [dict(zip(map(int, order[i : i + 10]), whole[i : i + 10], strict=True))
              for i in range(0, 40, 10)]  # fmt: skip
    moved = [not torch.equal(epochs[0][i], epochs[e][i]) for i in range(10) for e in (1, 2, 3)]
    assert any(moved) and not all(moved)


def test_an_index_keeps_its_epoch_on_the_way_to_a_worker() -> None:
    draw = pickle.loads(pickle.dumps(Draw(7, seed=3, epoch=2)))
    assert (draw, draw.seed, draw.epoch) == (7, 3, 2)
    assert draw.rng().random() == Draw(7, 3, 2).rng().random() != Draw(7, 3, 1).rng().random()


def test_affinity_joins_an_existing_cache(config: dict, monkeypatch) -> None:
    from mmvideo.datasets.affinity import affinity_scores

    DATASETS.build(config)
    monkeypatch.setattr(cached._Encoder, '_encode', None)  # only scores are lacking
    item = DATASETS.build({**config, 'affinity': True})[5]
    video = DATASETS.build(SPRITES)[5]['video'].permute(0, 2, 3, 1).numpy()
    assert torch.equal(item['affinity_scores'], torch.from_numpy(affinity_scores(video)))


def test_interrupted_encoding_goes_on(config: dict, monkeypatch) -> None:
    monkeypatch.setattr(cached, 'SHARD', 4)
    encode, calls = cached._Encoder._encode, []

    def failing(self: object, frames: torch.Tensor) -> torch.Tensor:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(frames))
        return encode(self, frames)

    monkeypatch.setattr(cached._Encoder, '_encode', failing)
    with pytest.raises(KeyboardInterrupt):
        DATASETS.build(config)
    done = sorted(Path(config['cache_dir']).glob('*/moments-*'))
    assert [path.name for path in done] == [
        'moments-00000.safetensors',
        'moments-00001.safetensors',
    ]
    times = [path.stat().st_mtime_ns for path in done]
    monkeypatch.setattr(cached._Encoder, '_encode', encode)
    whole = DATASETS.build(config)
    assert [path.stat().st_mtime_ns for path in done] == times
    captions = [DATASETS.build(SPRITES)[i]['caption'] for i in range(10)]
    assert [whole[i]['caption'] for i in range(10)] == captions


def test_two_processes_at_once(config: dict) -> None:
    code = (
        'import json, sys, mmvideo.datasets.cached as c;'
        'from mmvideo.registry import DATASETS; c.SHARD = 2;'
        'd = DATASETS.build(json.loads(sys.argv[1]));'
        'print(sum(float(d[i]["latents"].double().sum()) for i in range(10)))'
    )
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-c', code, json.dumps(config)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    sums = [process.communicate(timeout=120)[0].strip().splitlines()[-1] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sums[0] == sums[1]
    names = sorted(path.name for path in Path(config['cache_dir']).glob('*/.*'))
    assert names == []  # nothing half-written stays


def test_workers_and_collation(config: dict) -> None:
    dataset = DATASETS.build({**config, 'affinity': True, 'num_workers': 1})
    dataset[0]
    loader = torch.utils.data.DataLoader(dataset, batch_size=5, num_workers=1)
    batches = list(loader)
    assert batches[1]['latents'].shape == (5, 6, 8, 16, 16)
    assert batches[1]['affinity_scores'].shape == (5, 6, 6)
    assert batches[0]['caption'][2] == dataset[2]['caption']


def test_encoding_leaves_the_training_its_random_numbers(config: dict) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    DATASETS.build(config)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ('change', 'error', 'words'),
    [
        (dict(num_clips=0), ConfigError, 'num_clips=0'),
        (dict(num_clips=51), ConfigError, 'num_clips=51.*only 50'),
        (dict(num_frames=0), ConfigError, 'num_frames=0'),
        (dict(num_frames=7), ConfigError, 'num_frames=7.*have 6'),
        (dict(dtype='bfloat'), ConfigError, "Did you mean 'bfloat16'"),
        (dict(vae=dict(type='AutoencoderKL')), ConfigError, 'needs from_pretrained'),
        (dict(vae=dict(type='AutoencoderKL', from_pretrained='./none')), WeightsError, 'none'),
    ],
)
def test_errors(config: dict, change: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        DATASETS.build({**config, **change})


def test_clips_of_another_kind(config: dict, monkeypatch) -> None:
    from mmvideo.datasets import SpriteWorld

    original = SpriteWorld.__getitem__

    def changed(self: SpriteWorld, index: int) -> dict:
        item = original(self, index)
        return {**item, 'video': item['video'][:, :, : 32 if index != 3 else 16]}

    monkeypatch.setattr(SpriteWorld, '__getitem__', changed)
    with pytest.raises(InputError, match='clip 3 is'):
        DATASETS.build(config)


def test_a_damaged_shard_is_named(config: dict) -> None:
    dataset = DATASETS.build(config)
    path = dataset.path('moments', 0)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match='moments-00000.*cut off'):
        CachedLatents(**{k: v for k, v in config.items() if k != 'type'})
