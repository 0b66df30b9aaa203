"""tools/convert.py and tools/inspect_weights.py as people run them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import MotionAdapter

from mmvideo.checkpoints.files import read_tensors, sha256
from mmvideo.checkpoints.layouts import ANIMATEDIFF

ROOT = Path(__file__).parents[2]
CONVERT, INSPECT = (ROOT / 'tools' / f'{name}.py' for name in ('convert', 'inspect_weights'))


@pytest.fixture(scope='module')
def motion_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    adapter = MotionAdapter(block_out_channels=(32, 32, 32, 32), use_motion_mid_block=False)
    path = tmp_path_factory.mktemp('weights') / 'mm.ckpt'
    torch.save(ANIMATEDIFF.to_theirs(adapter.state_dict()), path)
    return path


def run(tool: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'HF_HUB_OFFLINE': '1'}
    return subprocess.run(
        [sys.executable, str(tool), *map(str, arguments)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def load(tool: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f'{tool.stem}_tool', tool)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(tool: Path, monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: object) -> int:
    """The tool's ``main`` in this process: the same code, without a second of imports."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, 'argv', [str(tool), *map(str, arguments)])
    return load(tool).main()


@pytest.mark.parametrize('tool', [CONVERT, INSPECT], ids=['convert', 'inspect'])
def test_help_has_examples(tool: Path, tmp_path: Path) -> None:
    done = run(tool, tmp_path, '--help')
    assert done.returncode == 0 and 'examples:' in done.stdout and done.stderr == ''


def test_no_tool_hides_a_module_of_python() -> None:
    """The folder of a script comes first on its path: tools/inspect.py would break every tool."""
    names = {path.stem for path in (ROOT / 'tools').glob('*.py')}
    assert names & (set(sys.stdlib_module_names) - {'test'}) == set()


def test_there_in_a_process_and_back(
    motion_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(CONVERT, tmp_path, motion_file, 'adapter')
    assert (done.returncode, done.stderr) == (0, '')
    assert 'adapter/diffusion_pytorch_model.safetensors: 540 tensors' in done.stdout
    assert sorted(p.name for p in (tmp_path / 'adapter').iterdir()) == [
        'config.json',
        'diffusion_pytorch_model.safetensors',
    ]
    back = ('adapter', 'back.safetensors', '--to', 'comfyui')
    assert main(CONVERT, monkeypatch, tmp_path, *back) == 0
    found, expected = read_tensors(tmp_path / 'back.safetensors'), read_tensors(motion_file)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_json_for_programs(
    motion_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    assert main(INSPECT, monkeypatch, tmp_path, motion_file, '--json') == 0
    facts = json.loads(capsys.readouterr().out)['parts']['']
    assert facts['family'] == 'animatediff_v3' and facts['version'] == 'v3'
    assert facts['files'][0]['sha256'] == sha256(motion_file)
    assert facts['files'][0]['published_as'] == []


def test_lines_for_people(
    motion_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    assert main(INSPECT, monkeypatch, tmp_path, motion_file) == 0
    text = capsys.readouterr().out
    for part in (
        'AnimateDiff v3 motion modules', 'float32', '560 with',
        "resnet_norm_scope='frame'", 'frame positions: 32', sha256(motion_file),
        'in a config:', "type='MotionModule'",
    ):  # fmt: skip
        assert part in text


def test_every_part_of_a_pipeline_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    adapter = MotionAdapter(block_out_channels=(32, 32, 32, 32))
    adapter.save_pretrained(tmp_path / 'model' / 'motion_adapter')
    index = {'motion_adapter': ['diffusers', 'MotionAdapter'], 'scheduler': ['diffusers', 'X']}
    (tmp_path / 'model' / 'model_index.json').write_text(json.dumps(index))
    assert main(INSPECT, monkeypatch, tmp_path, 'model') == 0
    assert 'model/motion_adapter: AnimateDiff v2' in capsys.readouterr().out


MISTAKES = [
    (CONVERT, ['missing.ckpt', 'x'], 'missing.ckpt does not exist'),
    (CONVERT, ['page.ckpt', 'x'], 'HTML page'),
    (CONVERT, ['MM', 'x', '--to', 'diffuser'], "Did you mean 'diffusers'"),
    (CONVERT, ['MM', 'x', '--to', 'kohya'], 'can become: original, diffusers'),
    (CONVERT, ['MM', 'x', '--dtype', 'float8'], "dtype='float8'"),
    (CONVERT, ['MM', 'page.ckpt'], 'expected the name of one'),
    (CONVERT, ['MM', '.', '--to', 'safetensors'], 'mm.safetensors: exists already'),
    (CONVERT, ['several', 'x'], 'holds 2 weight files, name one of them: a.ckpt, b.ckpt'),
    (INSPECT, ['page.ckpt'], 'HTML page'),
    (INSPECT, ['several/a.ckpt'], 'empty'),
    (INSPECT, ['catalog://piaa'], "Did you mean 'pia'"),
]


@pytest.mark.parametrize(('tool', 'arguments', 'message'), MISTAKES, ids=[m for *_, m in MISTAKES])
def test_mistakes_are_one_line_and_exit_code_2(
    tool: Path,
    arguments: list[str],
    message: str,
    motion_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    (tmp_path / 'page.ckpt').write_text('<!DOCTYPE html><html>log in</html>')
    (tmp_path / 'mm.safetensors').write_text('mine')
    (tmp_path / 'several').mkdir()
    for name in 'ab':
        (tmp_path / 'several' / f'{name}.ckpt').touch()
    before = sorted(path.name for path in tmp_path.iterdir())
    given = [str(motion_file) if a == 'MM' else a for a in arguments]
    assert main(tool, monkeypatch, tmp_path, *given) == 2
    printed = capsys.readouterr()
    [line] = printed.err.splitlines()
    assert printed.out == '' and line.startswith('error: ') and message in line
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / 'mm.safetensors').read_text() == 'mine'


@pytest.mark.parametrize('tool', [CONVERT, INSPECT], ids=['convert', 'inspect'])
def test_interrupted(
    tool: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    module = 'convert' if tool == CONVERT else 'inspect'
    monkeypatch.setattr(f'mmvideo.apis.{module}.open_weights', stop)
    arguments = ['a', 'b'] if tool == CONVERT else ['a']
    assert main(tool, monkeypatch, tmp_path, *arguments) == 130
    assert capsys.readouterr().err.startswith('interrupted')
