"""Hostile weight files, read while an audit hook watches: nothing happens but an error."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# These run with the standard library alone, so they prove that the payloads are real.
UNSAFE = (
    'reduce', 'stack_global', 'stack_global_memo', 'getattr_chain', 'eval', 'exec',
    'open_for_writing', 'instance_opcode', 'object_opcode',
)  # fmt: skip


def hostile():
    """``hostile.py`` beside this file, which is no part of a package."""
    spec = importlib.util.spec_from_file_location('hostile_payloads', HERE / 'hostile.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def seen(tmp_path_factory):
    """What one process found that read all files in turn."""
    root = tmp_path_factory.mktemp('hostile')
    files, control = root / 'files', root / 'control'
    files.mkdir()
    control.mkdir()
    module = hostile()
    for key, (name, data) in module.payloads(root / 'canary').items():
        (files / f'{key}-{name}').write_bytes(data)
    for key in UNSAFE:  # what they do to a reader that trusts them
        _, data = module.payloads(control / f'touched-{key}')[key]
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            (control / f'{key}.pickle').write_bytes(archive.read('archive/data.pkl'))
    done = subprocess.run(
        [sys.executable, str(HERE / 'watched_reader.py'), str(files), str(control)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr
    return root, json.loads(done.stdout.splitlines()[-1])


def test_the_hook_notices_what_a_hostile_file_could_do(seen):
    root, found = seen
    for what, (events, _, _) in found['controls'].items():
        assert events, f'{what} is not noticed'
    for key in UNSAFE:
        assert (root / 'control' / f'touched-{key}').exists(), key


def test_a_good_file_is_read_under_the_hook(seen):
    events, ended, _ = seen[1]['good']
    assert ended == 'nothing'
    assert not [event for event in events if not event.startswith('mmap')]


def test_there_are_at_least_thirty(seen):
    assert len(seen[1]['files']) >= 30


def test_every_hostile_file_ends_in_one_error_and_nothing_else(seen):
    root, found = seen
    for name, (events, ended, spent) in found['files'].items():
        assert ended == 'WeightsError', (name, ended, events)
        assert not events, (name, events)
        assert spent < 10, (name, spent)
    assert sorted(path.name for path in root.iterdir()) == ['control', 'files']
    assert len(list((root / 'files').iterdir())) == len(found['files'])


def test_claims_of_size_take_no_memory(seen):
    assert seen[1]['memory'] < 50e6  # the bomb alone would be 100 MB
