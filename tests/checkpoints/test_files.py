"""Reading and writing weight files: what is damaged is named, what is written is whole."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from mmvideo.checkpoints.files import (
    read_metadata,
    read_tensors,
    sha256,
    unwrap,
    write_tensors,
    write_text,
)
from mmvideo.errors import WeightsError


def some_tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        'a.weight': torch.randn(3, 5, generator=generator),
        'a.bias': torch.randn(3, generator=generator).half(),
        'steps': torch.tensor(7),
        'b': torch.randn(2, 2, generator=generator).bfloat16(),
    }


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize('name', ['w.safetensors', 'deep/er/w.safetensors'])
def test_safetensors_round_trip_is_bit_equal(tmp_path, name):
    path = write_tensors(tmp_path / name, some_tensors(), {'made': 'here'})
    assert_equal(read_tensors(path), some_tensors())
    assert read_metadata(path)['made'] == 'here'
    assert [p.name for p in path.parent.iterdir()] == ['w.safetensors']


@pytest.mark.parametrize('suffix', ['ckpt', 'pt', 'pth', 'bin', 'safetensors'])
@pytest.mark.parametrize('zipped', [True, False])
def test_torch_files_are_known_by_their_bytes(tmp_path, suffix, zipped):
    path = tmp_path / f'w.{suffix}'
    torch.save(some_tensors(), path, _use_new_zipfile_serialization=zipped)
    assert_equal(read_tensors(path), some_tensors())


def test_views_and_shared_storage_are_written_in_full(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    shared = {'whole': base, 'turned': base.T, 'row': base[1], 'again': base}
    path = write_tensors(tmp_path / 'w.safetensors', shared)
    assert_equal(read_tensors(path), {k: v.contiguous() for k, v in shared.items()})


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = write_tensors(tmp_path / 'w.safetensors', some_tensors())
    before = sha256(path)

    def fail(tensors, name, metadata):
        with open(name, 'wb') as file:
            file.write(b'half')
        raise OSError('disk full')

    monkeypatch.setattr('safetensors.torch.save_file', fail)
    with pytest.raises(OSError, match='disk full'):
        write_tensors(path, {'x': torch.zeros(9)})
    assert sha256(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ['w.safetensors']


@pytest.mark.skipif(os.name != 'posix', reason='permissions of POSIX')
def test_written_files_have_ordinary_permissions(tmp_path):
    path = write_tensors(tmp_path / 'w.safetensors', some_tensors())
    other = tmp_path / 'plain'
    other.write_text('x')
    assert path.stat().st_mode == other.stat().st_mode
    assert write_text(tmp_path / 't', 'x').stat().st_mode == other.stat().st_mode


def test_reading_does_not_change_the_file(tmp_path):
    path = write_tensors(tmp_path / 'w.safetensors', some_tensors())
    before = sha256(path)
    for value in read_tensors(path).values():
        value.zero_()
    assert sha256(path) == before
    assert_equal(read_tensors(path), some_tensors())


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'', ['empty', '0 bytes']),
        (b'<!DOCTYPE html><html>401</html>', ['HTML']),
        (b'\n  <html><head>', ['HTML']),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0', ['Git LFS']),
        (b'{"error": "not found"}', ['JSON']),
        (b'Access denied. Please log in and try again later.', ['text file']),
        (bytes(range(128, 255)) + b'\x00' * 20, ['unknown binary']),
    ],
)
def test_what_is_no_weight_file_is_named(tmp_path, content, words):
    path = tmp_path / 'model.ckpt'
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        read_tensors(path)
    for word in ['model.ckpt', *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize('kind', ['safetensors', 'ckpt'])
@pytest.mark.parametrize('kept', [0.3, 0.6, 0.95])
def test_truncated_files_are_refused(tmp_path, kind, kept):
    path = tmp_path / f'w.{kind}'
    tensors = {'x': torch.randn(200, 50), 'y': torch.randn(30)}
    if kind == 'safetensors':
        write_tensors(path, tensors)
    else:
        torch.save(tensors, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(WeightsError, match='cut off'):
        read_tensors(path)


def test_a_safetensors_file_cut_inside_its_header_is_refused(tmp_path):
    path = write_tensors(tmp_path / 'w.safetensors', {'x' * 500: torch.zeros(3)})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match='cut off inside its header'):
        read_tensors(path)


def test_missing_files_name_their_neighbour(tmp_path):
    write_tensors(tmp_path / 'motion.safetensors', some_tensors())
    with pytest.raises(WeightsError, match="Did you mean 'motion.safetensors'"):
        read_tensors(tmp_path / 'motoin.safetensors')
    with pytest.raises(WeightsError, match='folder'):
        read_tensors(tmp_path)


@pytest.mark.parametrize('wrapper', ['state_dict', 'module', 'controlnet'])
@pytest.mark.parametrize('prefix', ['', 'module.', 'model.', 'unet.', 'module.unet.'])
def test_wrappers_and_prefixes_come_off(tmp_path, wrapper, prefix):
    path = tmp_path / 'w.ckpt'
    inner = {prefix + 'a.weight': torch.ones(2), prefix + 'b': torch.zeros(1)}
    torch.save({wrapper: inner, 'epoch': 3, 'animatediff_config': {'x': 'y'}}, path)
    assert_equal(read_tensors(path), {'a.weight': torch.ones(2), 'b': torch.zeros(1)})


def test_a_prefix_that_is_not_shared_stays():
    mixed = {'model.a': torch.ones(1), 'first_stage_model.b': torch.ones(1)}
    assert unwrap(mixed, 'x').keys() == mixed.keys()
    full = {'model.diffusion_model.a': torch.ones(1)}
    assert unwrap(full, 'x').keys() == full.keys()


def test_a_file_without_tensors_is_refused(tmp_path):
    path = tmp_path / 'w.pt'
    torch.save({'epoch': 3, 'note': 'nothing'}, path)
    with pytest.raises(WeightsError, match="no tensors, only 'epoch', 'note'"):
        read_tensors(path)
    torch.save([torch.ones(1)], path)
    with pytest.raises(WeightsError, match='list'):
        read_tensors(path)


def test_a_file_that_would_run_a_command_is_refused(tmp_path):
    """In a child process: were the payload to run, it would leave a file behind."""
    script = textwrap.dedent("""
        import os, sys, torch
        from mmvideo.checkpoints.files import read_tensors
        from mmvideo.errors import WeightsError

        class Payload:
            def __reduce__(self):
                return os.system, (f'touch {sys.argv[1]}/ran',)

        path = sys.argv[1] + '/evil.ckpt'
        torch.save({'state_dict': {'a': torch.ones(1), 'b': Payload()}}, path)
        try:
            read_tensors(path)
        except WeightsError as error:
            assert 'evil.ckpt' in str(error) and 'run code' in str(error), error
            assert 'system' in str(error) and 'weights_only' not in str(error), error
            sys.exit(7)
    """)
    done = subprocess.run([sys.executable, '-c', script, str(tmp_path)], env=child_environment())
    assert done.returncode == 7
    assert not (tmp_path / 'ran').exists()


def child_environment():
    return {**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}


def test_torch_files_need_a_torch_without_known_holes(tmp_path, monkeypatch):
    path = tmp_path / 'w.ckpt'
    torch.save(some_tensors(), path)
    monkeypatch.setattr(torch, '__version__', '2.9.1+cpu')
    with pytest.raises(WeightsError, match=r'2\.10 or later'):
        read_tensors(path)
    write_tensors(tmp_path / 'w.safetensors', some_tensors())
    assert_equal(read_tensors(tmp_path / 'w.safetensors'), some_tensors())


def test_sha256_of_known_bytes(tmp_path):
    (tmp_path / 'x').write_bytes(b'abc')
    assert sha256(tmp_path / 'x').startswith('ba7816bf8f01cfea414140de5dae2223')
