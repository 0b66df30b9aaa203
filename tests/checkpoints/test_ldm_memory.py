"""Memory of mapped weight files: given back, and never where only this process has the values."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from mmvideo.checkpoints.files import read_tensors, write_tensors
from mmvideo.checkpoints.load import load_into
from mmvideo.checkpoints.memory import MappedFiles

linux = pytest.mark.skipif(sys.platform != 'linux', reason='only Linux tells what is mapped')


def mapped_memory():
    """Bytes of files in this process's memory."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith('RssFile'))


@linux
@pytest.mark.parametrize('name', ['a.safetensors', 'a.ckpt'])
def test_pages_are_dropped_and_read_again(tmp_path, name):
    tensors = {str(i): torch.randn(1024, 1024) for i in range(8)}  # 4 MiB each
    write_tensors(tmp_path / 'a.safetensors', tensors)
    torch.save(tensors, tmp_path / 'a.ckpt')
    read = read_tensors(tmp_path / name)
    before = mapped_memory()
    assert all(torch.equal(read[key], value) for key, value in tensors.items())
    touched = mapped_memory()
    mapped = MappedFiles()
    for value in read.values():
        mapped.drop(value)
    dropped = mapped_memory()
    assert touched - before > 24 * 2**20 and touched - dropped > 24 * 2**20
    assert all(torch.equal(read[key], value) for key, value in tensors.items())


@pytest.mark.parametrize('name', ['a.safetensors', 'a.ckpt'])
def test_what_only_this_process_has_is_never_dropped(tmp_path, name):
    tensors = {'a': torch.randn(512, 1024), 'b': torch.randn(512, 1024)}
    write_tensors(tmp_path / 'a.safetensors', tensors)
    torch.save(tensors, tmp_path / 'a.ckpt')
    read = read_tensors(tmp_path / name)
    read['b'].add_(1)
    own = torch.randn(512, 1024)
    copy = own.clone()
    mapped = MappedFiles()
    assert not mapped.holds(own) and not mapped.holds(read['b'])
    for value in (*read.values(), own):
        mapped.drop(value)
    assert torch.equal(read['b'], tensors['b'] + 1) and torch.equal(own, copy)
    module = torch.nn.Linear(1024, 512, bias=False)
    load_into(module, {'weight': read_tensors(tmp_path / name)['a']})
    (tmp_path / name).unlink()
    assert torch.equal(module.weight, tensors['a'])
