"""benchmarks/load_time.py on small files: what it writes, loads and reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    'libraries', [('mmvideo',), pytest.param(('mmvideo', 'diffusers'), marks=pytest.mark.slow)]
)
def test_the_original_files_are_loaded(tmp_path, libraries):
    out = tmp_path / 'load.json'
    done = subprocess.run(
        [
            sys.executable, str(ROOT / 'benchmarks' / 'load_time.py'), '--small', '--threads', '1',
            '--layouts', 'file', '--dtypes', 'float16', '--out', str(out),
            '--folder', str(tmp_path), '--libraries', *libraries,
        ],
        env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in tmp_path.iterdir()] == ['load.json']
    report = json.loads(out.read_text())
    assert tuple(row['library'] for row in report['rows']) == libraries
    for row in report['rows']:
        # The same weights, all of them in the precision that was asked for.
        assert row['parameters'] == report['rows'][0]['parameters'] > 10_000_000
        assert row['weights_bytes'] == 2 * row['parameters']
        assert row['weights_bytes'] < row['peak_bytes'] and row['seconds'] > 0
        used = row['peak_bytes'] - row['imported_bytes']
        assert row['ratio_without_imports'] == round(used / row['weights_bytes'], 3)
        assert f'{row["ratio"]:.2f}' in done.stdout
