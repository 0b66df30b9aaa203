"""tools/test.py: figures of a test set, in a precision, of the first clips, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope

from mmvideo.apis.train import test as measure
from mmvideo.apis.train import train
from mmvideo.checkpoints.commit import read_commit
from mmvideo.datasets import FirstItems
from mmvideo.editors.animatediff import AnimateDiff
from mmvideo.errors import ConfigError

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'test.py'
TRAIN = ROOT / 'tests' / 'engine' / 'tiny_train.py'
TEST = """
model = dict(predict=dict(num_inference_steps=2, video_length=4, height=32, width=32))
test_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(type='SpriteWorld', length=5, num_frames=4, size=32),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
)
test_cfg = dict(type='TestLoop')
test_evaluator = dict(type='SpriteMetric', style='flat')
"""


@pytest.fixture(autouse=True)
def _scope() -> Iterator[None]:
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a config to test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    (tmp_path / 'tiny.py').write_text(f'_base_ = {str(TRAIN)!r}\n{TEST}')
    return tmp_path


@pytest.fixture
def tool(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The tool's ``main`` in this process: the same code, without seconds of imports."""
    spec = importlib.util.spec_from_file_location('test_tool', TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments)])
        try:
            return module.main()
        except SystemExit as stop:
            return int(str(stop.code))

    return call


def test_figures_of_the_first_clips_in_bfloat16(
    folder: Path,
    tool: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    kinds, captions = set(), []
    infer = AnimateDiff.infer

    def watched(self: AnimateDiff, prompt: list[str], **arguments: object) -> dict:
        kinds.update({p.dtype for p in self.parameters()})
        captions.extend(prompt)
        return infer(self, prompt, **arguments)

    monkeypatch.setattr(AnimateDiff, 'infer', watched)
    assert tool('tiny.py', '--limit', 3, '--dtype', 'bfloat16', '--out', 'a.json') == 0
    assert kinds == {torch.bfloat16} and len(captions) == 3
    found = json.loads((folder / 'a.json').read_text())
    assert (found['clips'], found['dtype'], found['device']) == (3, 'bfloat16', 'cpu')
    assert found['config'] == 'tiny.py'
    assert found['checkpoint'] is None and found['weights'] is None
    assert 'sprites/direction' in found['figures'] and found['seconds'] > 0
    each = found['each']['SpriteMetric']
    assert [clip['caption'] for clip in each] == captions
    right = [clip['direction'] for clip in each if 'direction' in clip]
    assert found['figures']['sprites/direction'] == pytest.approx(100 * sum(right) / len(right))
    [log] = (folder / 'work_dirs' / 'tiny').glob('*/*.log')
    assert json.loads((log.parent / 'figures.json').read_text()) == found
    printed = capsys.readouterr()
    for name, value in found['figures'].items():
        assert f'{name}: {value:.2f}' in printed.out
    shown = [line for line in printed.err.splitlines() if line.startswith('testing')]
    assert len(shown) == 2
    assert re.fullmatch(r'testing: clip 2/3 \(66 %\), [\d.]+ s left', shown[0])
    assert printed.out.count('Iter(test)') == 1  # the figures, once


def test_two_processes_share_the_clips(folder: Path) -> None:
    # A model to run, of which nothing is trained.
    frozen = (folder / 'tiny.py').read_text().replace('dict(predict', 'dict(trainable=[], predict')
    (folder / 'tiny.py').write_text(frozen)
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    found = {}
    for name, launcher, last in (('one', [], []), ('two', launch, ['--launcher', 'pytorch'])):
        done = subprocess.run(
            [sys.executable, *launcher, TOOL, 'tiny.py', '--out', f'{name}.json', *last],
            env={**os.environ, 'PYTHONPATH': str(ROOT), 'CUDA_VISIBLE_DEVICES': ''},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found[name] = json.loads((folder / f'{name}.json').read_text())
    assert found['two']['clips'] == 5
    assert found['two']['figures'] == pytest.approx(found['one']['figures'])
    captions = {
        k: [clip['caption'] for clip in v['each']['SpriteMetric']] for k, v in found.items()
    }
    assert captions['two'] == captions['one'] and len(captions['one']) == 5


@pytest.mark.parametrize(('hooks', 'kind'), [([], 'model'), ([dict(type='EMAHook')], 'ema')])
def test_a_checkpoint_is_what_is_tested(
    folder: Path, monkeypatch: pytest.MonkeyPatch, hooks: list, kind: str
) -> None:
    train('tiny.py', 'run', cfg_options=['train_cfg.max_iters=1', f'custom_hooks={hooks}'])
    seen: dict[str, torch.Tensor] = {}
    infer = AnimateDiff.infer

    def watched(self: AnimateDiff, *arguments: object, **named: object) -> dict:
        seen.update({n: p.detach().clone() for n, p in self.named_parameters() if p.requires_grad})
        return infer(self, *arguments, **named)

    monkeypatch.setattr(AnimateDiff, 'infer', watched)
    assert measure('tiny.py', 'tested', 'run/iter_1', limit=1, out='a.json')
    assert json.loads((folder / 'a.json').read_text())['weights'] == kind
    saved = read_commit(folder / 'run' / 'iter_1')[0]
    assert set(saved[kind]) == set(seen)
    assert all(torch.equal(saved[kind][name], value) for name, value in seen.items())
    if kind == 'ema':  # which is not the same
        assert not all(torch.equal(saved['model'][name], value) for name, value in seen.items())


def test_what_ends_early_writes_no_figures(
    folder: Path,
    tool: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr('mmvideo.evaluation.sprites.SpriteMetric.process', stop)
    assert tool('tiny.py', '--limit', 1, '--out', 'a.json') == 130
    assert 'interrupted: no figures were written' in capsys.readouterr().err
    assert not (folder / 'a.json').exists() and not list(folder.rglob('figures.json'))


MISTAKES = [
    (['missing.py'], 'missing.py'),
    (['tiny.py', '--limit', '0'], 'at least 1'),
    (['tiny.py', '--dtype', 'float17'], "'bfloat16'"),
    (['tiny.py', '--checkpoint', 'run/iter_1'], 'expected a folder iter_N'),
    (['tiny.py', '--out', 'a.txt'], '.json'),
    (['tiny.py', '--out', 'none/a.json'], 'no folder'),
    (['tiny.py', '--outt', 'a.json'], "Did you mean '--out'?"),
    (['tiny.py', '--cfg-options', 'test_dataloader.dataset.lenght=3'], "Did you mean 'length'?"),
    (['tiny.py', '--cfg-options', 'test_dataloader.dataset.paces=[fats]'], "Did you mean 'fast'?"),
    ([TRAIN], 'test_dataloader'),
]


@pytest.mark.parametrize(('arguments', 'message'), MISTAKES, ids=[str(a[-1]) for a, _ in MISTAKES])
def test_mistakes_are_one_line_and_exit_code_2(
    folder: Path,
    tool: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: list,
    message: str,
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError('nothing is built for a mistake')

    monkeypatch.setattr('mmvideo.registry.MODELS.build', forbidden)
    assert tool(*arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith('error: ') and message in line
    assert not list(folder.rglob('*.json'))


def test_a_nearby_checkpoint_is_named(
    folder: Path, tool: Callable[..., int], capsys: pytest.CaptureFixture
) -> None:
    (folder / 'run' / 'iter_300').mkdir(parents=True)
    for named, hint in (('run/iter_30', "Did you mean 'iter_300'?"), ('run', "'iter_300'")):
        assert tool('tiny.py', '--checkpoint', named) == 2
        assert hint in capsys.readouterr().err


def test_first_items_are_those_of_the_dataset() -> None:
    source = dict(type='SpriteWorld', length=5, num_frames=2, size=32)
    few, all_ = FirstItems(source, 2), FirstItems(source, 9)
    assert (len(few), len(all_)) == (2, 5)
    assert torch.equal(few[-1]['video'], few.dataset[1]['video'])
    with pytest.raises(IndexError, match='item 2 of 2'):
        _ = few[2]
    for count in (0, -1, True, 1.5):
        with pytest.raises(ConfigError, match='count'):
            FirstItems(source, count)
