"""Reads every file of a folder while an audit hook watches, and prints what happened as JSON.

Usage: watched_reader.py FOLDER CONTROL
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

from mmvideo.checkpoints.files import read_tensors, write_tensors
from mmvideo.errors import WeightsError

# What a file that holds data has no reason to cause.
FOREIGN = (
    'os.', 'subprocess.', 'socket.', 'shutil.', 'ctypes.', 'urllib.', 'http.', 'ftplib.', 'pty.',
    'pickle.find_class', 'marshal.loads', 'webbrowser.', 'tempfile.', 'exec', 'code.__new__',
    'import', 'mmap.__new__', 'sqlite3.', 'winreg.', 'fcntl.', 'glob.',
)  # fmt: skip
READING = ('os.listdir', 'os.scandir')
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

events: list[str] = []
watching = False


def hook(event: str, arguments: tuple) -> None:
    if not watching:
        return
    if event == 'open':
        _, mode, flags = (*arguments, None, None)[:3]
        if (isinstance(mode, str) and set(mode) & set('wax+')) or (flags or 0) & WRITING:
            events.append(f'open for writing: {arguments[0]!r}')
    elif event.startswith(FOREIGN) and event not in READING:
        events.append(f'{event}: {str(arguments)[:120]}')


def watched(action) -> tuple[list[str], str, float]:
    """What an action caused, the class of its error, and how long it took."""
    global watching
    events.clear()
    start, watching = time.monotonic(), True
    try:
        action()
        ended = 'nothing'
    except BaseException as error:
        ended = type(error).__name__
    finally:
        watching = False
    return list(events), ended, time.monotonic() - start


def controls(folder: Path) -> dict[str, tuple[list[str], str, float]]:
    """Things that the hook must notice."""
    pickles = {path.stem: path.read_bytes() for path in sorted(folder.glob('*.pickle'))}
    return {
        **{name: watched(lambda raw=raw: pickle.loads(raw)) for name, raw in pickles.items()},
        'a command': watched(lambda: os.system('true')),
        'a process': watched(lambda: subprocess.run(['true'])),
        'a socket': watched(lambda: socket.create_connection(('127.0.0.1', 9), timeout=1)),
        'a file': watched(lambda: (folder / 'written').write_text('x')),
        'a descriptor': watched(lambda: os.close(os.open(folder / 'd', os.O_CREAT | os.O_RDWR))),
        'a deletion': watched(lambda: (folder / 'written').unlink()),
        'code': watched(lambda: exec('1')),
    }


def warm_up(folder: Path) -> None:
    """Both formats, good and bad: what is imported late is imported before the watch begins."""
    good = {'w': torch.ones(3)}
    write_tensors(folder / 'good.safetensors', good)
    torch.save(good, folder / 'good.ckpt')
    torch.save(good, folder / 'good.pt', _use_new_zipfile_serialization=False)
    bad = {'w': torch.nn.Linear(1, 1)}
    torch.save(bad, folder / 'bad.ckpt')
    torch.save(bad, folder / 'bad.pt', _use_new_zipfile_serialization=False)
    'names in zip archives'.encode('cp437')
    for path in sorted(folder.glob('*d.*')):
        try:
            read_tensors(path)
        except WeightsError:
            assert path.stem == 'bad', path


def peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    folder, control = map(Path, sys.argv[1:])
    sys.addaudithook(hook)
    warm_up(control)
    found = {'controls': controls(control)}
    before = peak()
    good = control / 'good.ckpt'
    found['good'] = watched(lambda: read_tensors(good))
    found['files'] = {
        path.name: watched(lambda path=path: read_tensors(path))
        for path in sorted(folder.iterdir())
    }
    found['memory'] = peak() - before
    print(json.dumps(found))


if __name__ == '__main__':
    main()
