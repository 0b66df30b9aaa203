"""benchmarks/accelerators.py as it is run, on the shipped sprites."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = ('full', 'deep_cache-2-1', 'guidance_interval-0.8')


def benchmark(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / 'benchmarks' / 'accelerators.py'), *arguments]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    environment = {**os.environ, 'PYTHONPATH': path, 'CUDA_VISIBLE_DEVICES': ''}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope='module')
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess, dict]:
    """A short run of three rows, and what it wrote."""
    folder = tmp_path_factory.mktemp('benchmark')
    found = benchmark(
        folder, '--steps', '4', '--repeats', '1', '--threads', '1', '--device', 'cpu',
        '--rows', *ROWS, '--arguments', 'video_length=2', 'height=32', 'width=32',
        '--out', 'results/table.json',
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return found, json.loads((folder / 'results' / 'table.json').read_text(encoding='utf-8'))


def test_errors_against_the_full_result(done: tuple) -> None:
    """The full call has none, what loses something has a finite one, and each took its time."""
    rows = {row['row']: row for row in done[1]['rows']}
    assert set(rows) == set(ROWS)
    assert rows['full']['psnr'] is None and rows['full']['max_abs'] == 0
    assert rows['full']['speedup'] == 1
    for name in ROWS[1:]:
        assert math.isfinite(rows[name]['psnr']) and rows[name]['psnr'] > 10
        assert 0 < rows[name]['max_abs'] <= 1
    assert all(row['seconds'] > 0 for row in rows.values())


def test_errors_are_printed_with_what_was_run(done: tuple) -> None:
    found, result = done
    lines = {line.split()[0]: line.split()[1:] for line in found.stdout.splitlines()[1:]}
    assert list(lines) == [row['row'] for row in result['rows']]
    for row in result['rows']:
        shown = 'equal' if row['psnr'] is None else f'{row["psnr"]:.2f}'
        assert lines[row['row']][2:] == [shown, f'{row["max_abs"]:.4f}']
    assert result['settings']['arguments']['num_inference_steps'] == 4
    assert result['machine'] == dict(device='cpu', dtype='torch.float32', threads=1)
    assert result['versions']


def test_a_row_that_there_is_not(tmp_path: Path) -> None:
    found = benchmark(tmp_path, '--steps', '4', '--rows', 'deep_cach-2-1', '--out', 'a.json')
    assert found.returncode != 0 and "Did you mean 'deep_cache-2-1'" in found.stderr
    assert not list(tmp_path.iterdir())
