"""The download tool as people run it: killed, interrupted, twice at once, without a network."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / 'tools' / 'download.py'
REPO, NAME = 'some/model', 'large.ckpt'
MEGABYTES = 24  # the client library writes blocks of 10


@pytest.fixture
def content(bare_hub):
    data = random.Random(0).randbytes(2**20) * MEGABYTES
    bare_hub.repositories[REPO] = {NAME: data}
    return data


def start(hub, tmp_path, *arguments, **more):
    return subprocess.Popen(
        [sys.executable, str(TOOL), *arguments],
        env={**hub.environment(tmp_path), **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever started the tests in the background had them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def rests(tmp_path):
    return [p for p in tmp_path.rglob('*') if p.name.endswith(('.incomplete', '.part'))]


def until_a_block_is_written(tmp_path):
    end = time.monotonic() + 60
    while not any(path.stat().st_size for path in rests(tmp_path)):
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform == 'win32', reason='signals of POSIX')
def test_killed_and_interrupted_downloads_go_on(bare_hub, content, tmp_path):
    bare_hub.stall = True
    for sent, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        bare_hub.half.clear()
        process = start(bare_hub, tmp_path, REPO, NAME)
        assert bare_hub.half.wait(120)
        until_a_block_is_written(tmp_path)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code, errors
        assert 'Traceback' not in errors
    assert 'interrupted: what has arrived is kept' in errors
    (rest,) = rests(tmp_path)
    assert 0 < rest.stat().st_size < len(content)
    assert not list(tmp_path.rglob(NAME))
    bare_hub.stall = False
    bare_hub.release.set()
    output, errors = start(bare_hub, tmp_path, REPO, NAME).communicate(timeout=120)
    assert Path(output.strip()).read_bytes() == content, errors
    first, second, third = (first for _, first in bare_hub.transfers)
    assert first == 0 < second <= third < len(content)
    assert not rests(tmp_path)
    # Without a terminal progress is a few whole lines.
    lines = [line for line in errors.splitlines() if NAME in line]
    assert lines and lines[-1].endswith('(100 %)') and '\r' not in errors


def test_two_processes_at_once_fetch_once(bare_hub, content, tmp_path):
    both = [start(bare_hub, tmp_path, REPO, NAME) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    paths = {output.strip() for output, _ in results}
    assert len(paths) == 1 and Path(paths.pop()).read_bytes() == content
    assert len(bare_hub.transfers) == 1
    records = json.loads((tmp_path / 'hub.sha256.json').read_text())
    assert [record['size'] for record in records.values()] == [len(content)]
    assert not rests(tmp_path)


def test_records_of_many_processes_are_all_kept(tmp_path):
    """Threads would share the lock's handle, so these are processes."""
    script = (
        'import sys; from pathlib import Path\n'
        'from mmvideo.checkpoints.hashes import Record, record\n'
        'for i in range(20):\n'
        '    record(Path(sys.argv[1]), f"{sys.argv[2]}-{i}", Record("0" * 64, i, "c"))\n'
    )
    run = [sys.executable, '-c', script, str(tmp_path / 'hub')]
    cwd = TOOL.parents[1]
    processes = [subprocess.Popen([*run, name], cwd=cwd) for name in ('a', 'b')]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert len(json.loads((tmp_path / 'hub.sha256.json').read_text())) == 40


def test_offline_the_tool_says_what_is_missing(bare_hub, content, tmp_path):
    process = start(bare_hub, tmp_path, 'pia', '--offline')
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and not output
    assert errors.startswith('error: ') and errors.count('\n') == 1
    for part in ('openmmlab/PIA-condition-adapter', 'tools/download.py pia', 'HF_HOME'):
        assert part in errors
    assert not bare_hub.requests


def test_another_cache_is_used_and_named(bare_hub, content, tmp_path):
    bare_hub.repositories[REPO] = {NAME: content[:5000]}
    other = tmp_path / 'other'
    process = start(bare_hub, tmp_path, REPO, NAME, '--cache-dir', str(other))
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert Path(output.strip()).is_relative_to(other) and f'HF_HUB_CACHE={other}' in errors
    assert not (tmp_path / 'hub').exists()
