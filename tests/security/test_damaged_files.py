"""Damaged weight files, drawn from seeds over all formats: each refused at once, by one error."""

from __future__ import annotations

import io
import json
import random
import time
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save

from mmvideo.checkpoints.files import read_tensors
from mmvideo.checkpoints.header import MAX_HEADER, count_values, read_header
from mmvideo.errors import WeightsError

LIMIT = 10.0  # seconds, and thousands of times what it takes


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        'first.weight': torch.randn(8, 12, generator=generator),
        'first.bias': torch.randn(12, generator=generator).half(),
        'second.weight': torch.randn(30, generator=generator),
        'steps': torch.tensor(7),
    }


def torch_file(zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors(), buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


WHOLE = {
    'safetensors': save(tensors()),
    'zip': torch_file(True),
    'legacy': torch_file(False),
}


def refused(tmp_path, data: bytes, name: str = 'weights.ckpt') -> str:
    """The message by which a file with these bytes is refused."""
    path = tmp_path / name
    path.write_bytes(data)
    start = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        read_tensors(path)
    assert time.monotonic() - start < LIMIT
    message = str(caught.value)
    assert name in message and len(message) < 2000
    return message


@pytest.mark.parametrize('kind', WHOLE)
def test_the_whole_files_are_read(tmp_path, kind):
    (tmp_path / 'weights.ckpt').write_bytes(WHOLE[kind])
    found = read_tensors(tmp_path / 'weights.ckpt')
    assert all(torch.equal(found[key], value) for key, value in tensors().items())


@pytest.mark.parametrize('kind', WHOLE)
@pytest.mark.parametrize('suffix', ['ckpt', 'safetensors'])
def test_fifty_truncations_of_each_format_and_name(tmp_path, kind, suffix):
    whole = WHOLE[kind]
    draw = random.Random(f'{kind} {suffix}')
    cuts = [0, 1, 7, 8, 9, len(whole) - 1, *draw.sample(range(10, len(whole) - 1), 44)]
    for cut in cuts:
        message = refused(tmp_path, whole[:cut], f'weights.{suffix}')
        assert 'run code' not in message or kind == 'legacy'


# --- headers of safetensors ----------------------------------------------------------------------


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], 'little')
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: Any, values: bytes, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, 'little') + raw + values


def edited(edit: Callable[[dict[str, Any], random.Random], Any]) -> Callable[..., bytes]:
    """A fault that changes the entry of one tensor, or the whole header."""

    def fault(draw: random.Random) -> bytes:
        header, values = parts(WHOLE['safetensors'])
        return joined(edit(header, draw) or header, values)

    return fault


def on_entry(edit: Callable[[dict[str, Any], random.Random], None]) -> Callable[..., bytes]:
    def change(header: dict[str, Any], draw: random.Random) -> None:
        edit(header[draw.choice(sorted(header))], draw)

    return edited(change)


def set_key(key: str, *values: Any) -> Callable[..., bytes]:
    return on_entry(lambda entry, draw: entry.update({key: draw.choice(values)}))


def claim(draw: random.Random) -> bytes:
    header, values = parts(WHOLE['safetensors'])
    huge = draw.choice([2**63, 2**40, MAX_HEADER + 1, 10**6, len(WHOLE['safetensors'])])
    return joined(header, values, huge + draw.randrange(1000))


def short_claim(draw: random.Random) -> bytes:
    data = WHOLE['safetensors']
    length = draw.randrange(1, int.from_bytes(data[:8], 'little'))
    return length.to_bytes(8, 'little') + data[8:]


def repeated(draw: random.Random) -> bytes:
    header, values = parts(WHOLE['safetensors'])
    name = draw.choice(sorted(header))
    raw = json.dumps(header)[:-1] + f', {json.dumps(name)}: {json.dumps(header[name])}}}'
    return joined(raw.encode(), values)


def nested(draw: random.Random) -> bytes:
    depth = draw.choice([1_000, 100_000, 1_000_000])
    return joined(b'{"a":' + b'[' * depth + b']' * depth + b'}', b'')


def digits(draw: random.Random) -> bytes:
    number = b'9' * draw.randrange(5000, 9000)
    return joined(b'{"a":{"dtype":"F32","shape":[' + number + b']}}', b'')


def not_utf8(draw: random.Random) -> bytes:
    header, values = parts(WHOLE['safetensors'])
    raw = bytearray(json.dumps(header).encode())
    raw[draw.randrange(1, len(raw))] = draw.choice([0xFF, 0xC0, 0x80])
    return joined(bytes(raw), values)


def overlap(header: dict[str, Any], draw: random.Random) -> None:
    """Two tensors share bytes; each is consistent in itself."""
    first, second = header['first.weight'], header['second.weight']
    size = second['data_offsets'][1] - second['data_offsets'][0]
    begin = first['data_offsets'][0] + 4 * draw.randrange(10)
    second['data_offsets'] = [begin, begin + size]


def hole(header: dict[str, Any], draw: random.Random) -> None:
    del header[draw.choice(['first.weight', 'first.bias', 'second.weight'])]


def outside(entry: dict[str, Any], draw: random.Random) -> None:
    move = draw.choice([4, 1000, 2**40])
    entry['data_offsets'] = [value + move for value in entry['data_offsets']]


SAFETENSORS = {
    'claims a longer header': claim,
    'claims a shorter header': short_claim,
    'repeats a name': repeated,
    'is nested': nested,
    'has a number of many digits': digits,
    'is no UTF-8': not_utf8,
    'overlaps': edited(overlap),
    'has a hole': edited(hole),
    'leads outside': on_entry(outside),
    'has another dtype': set_key('dtype', 'F31', 'f32', 'O', '', 'float32', 7, None, ['F32'], {}),
    'has another width': set_key('dtype', 'BOOL', 'U8', 'I8', 'F8_E4M3', 'F8_E5M2'),
    'has another shape': set_key('shape', [3], [2**62, 2**62], [1] * 1000, [97]),
    'has no shape': set_key('shape', None, 'x', [-1], [1.5], [True], {'0': 1}, [[1]]),
    'has no offsets': set_key('data_offsets', None, [], [0], [0, 1, 2], [8, 0], [-8, 0], 'ab'),
    'has another key': set_key('stride', 1, [1], 'x'),
    'lacks a key': on_entry(lambda entry, draw: entry.pop(draw.choice(sorted(entry)))),
    'is no entry': edited(lambda h, draw: {**h, 'x': draw.choice([1, [], 'y', None, 1.5])}),
    'has other metadata': edited(
        lambda h, draw: {**h, '__metadata__': draw.choice([1, [], 'y', {'a': 1}, {'a': {}}])}
    ),
    'is followed by more': lambda draw: (
        WHOLE['safetensors'] + draw.randbytes(draw.randrange(1, 99))
    ),
    'is cut in the values': lambda draw: WHOLE['safetensors'][: -draw.randrange(1, 99)],
}


@pytest.mark.parametrize('fault', SAFETENSORS)
def test_ten_wrong_headers_of_each_kind(tmp_path, fault):
    for seed in range(10):
        data = SAFETENSORS[fault](random.Random(f'{fault} {seed}'))
        assert data != WHOLE['safetensors']
        refused(tmp_path, data, 'weights.safetensors')


def test_messages_name_what_was_found_and_expected(tmp_path):
    header, values = parts(WHOLE['safetensors'])
    header['first.weight']['dtype'] = 'BF61'
    message = refused(tmp_path, joined(header, values))
    for part in ("dtype of 'first.weight'", "'BF61'", 'expected one of', "Did you mean 'BF16'"):
        assert part in message
    header['first.weight'].update(dtype='F32', shape=[8, 13])
    assert '384 bytes, expected 416 bytes for F32 [8, 13]' in refused(
        tmp_path, joined(header, values)
    )


def test_a_good_header_is_read_without_the_values(tmp_path):
    path = tmp_path / 'w.safetensors'
    path.write_bytes(WHOLE['safetensors'])
    header = read_header(path)
    assert count_values(header) == 8 * 12 + 12 + 30 + 1
    assert header['steps'] == {'dtype': 'I64', 'shape': [], 'data_offsets': [0, 8]}


# --- headers of torch.save -----------------------------------------------------------------------


def rezipped(change: Callable[[str, bytes], tuple[str, bytes] | None], **options: Any) -> bytes:
    """The archive with changed files; None leaves one out."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(WHOLE['zip'])) as source,
        zipfile.ZipFile(buffer, 'w', **options) as target,
    ):
        for name in source.namelist():
            changed = change(name, source.read(name))
            if changed is not None:
                target.writestr(*changed)
    return buffer.getvalue()


def without(ending: str) -> bytes:
    return rezipped(lambda name, data: None if name.endswith(ending) else (name, data))


def field(draw: random.Random, signature: bytes, offset: int, width: int) -> bytes:
    """One number of the table of contents claims another value."""
    data = bytearray(WHOLE['zip'])
    places = [i for i in range(len(data)) if data.startswith(signature, i)]
    start = draw.choice(places) + offset
    old = int.from_bytes(data[start : start + width], 'little')
    new = draw.choice([2 ** (8 * width) - 2, old + 10**6])
    data[start : start + width] = (new % 2 ** (8 * width)).to_bytes(width, 'little')
    return bytes(data)


ZIP = {
    'claims larger files': lambda draw: field(draw, b'PK\x01\x02', 24, 4),
    'claims larger packed files': lambda draw: field(draw, b'PK\x01\x02', 20, 4),
    'has its table elsewhere': lambda draw: field(draw, b'PK\x06\x06', 48, 8),
    'is compressed': lambda draw: rezipped(
        lambda name, data: (name, data + b'\0' * draw.randrange(999)),
        compression=draw.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]),
    ),
    'lacks a file': lambda draw: without(
        draw.choice(['/data.pkl', '/data/0', '/data/1', '/data/2', '/data/3'])
    ),
    'has files outside': lambda draw: rezipped(
        lambda name, data: (draw.choice(['../', '/', 'other/', 'archive/../../']) + name, data)
    ),
}


def legacy(draw: random.Random, *, part: int) -> bytes:
    """One of the pickles in front of the values is another number, or no pickle."""
    data = WHOLE['legacy']
    ends = [i + 1 for i in range(200) if data[i : i + 2] == b'.\x80']
    begin, end = ([0, *ends])[part], ends[part]
    number = draw.randrange(2, 2**31).to_bytes(4, 'little')
    wrong = draw.choice([b'\x80\x02J' + number + b'.', b'\x80\x02}.', b'\x80\x02N.', b'\x80\x02('])
    return data[:begin] + wrong + data[end:]


def claims(draw: random.Random) -> bytes:
    """A storage claims more values than the file has."""
    data = WHOLE['legacy']
    old = b'X\x03\x00\x00\x00cpu'
    at = data.index(old) + len(old)
    at = data.index(b'K', at)  # BININT1: the number of values
    number = draw.choice([10**6, 2**30, 2**31 - 1])
    return data[:at] + b'J' + number.to_bytes(4, 'little') + data[at + 2 :]


LEGACY = {
    'has another magic number': lambda draw: legacy(draw, part=0),
    'has another protocol': lambda draw: legacy(draw, part=1),
    'claims more values': claims,
    'begins as another protocol': lambda draw: (
        bytes([0x80, draw.choice([0, 1, 6, 7, 46, 255])]) + WHOLE['legacy'][2:]
    ),
}


@pytest.mark.parametrize('fault', [*ZIP, *LEGACY])
def test_ten_wrong_headers_of_torch_files(tmp_path, fault):
    for seed in range(10):
        data = (ZIP | LEGACY)[fault](random.Random(f'{fault} {seed}'))
        assert data not in WHOLE.values()
        refused(tmp_path, data)


def test_there_are_three_hundred_wrong_headers():
    assert 10 * (len(SAFETENSORS) + len(ZIP) + len(LEGACY)) == 300


# --- what people take for a weight file ----------------------------------------------------------


@pytest.mark.parametrize('name', ['weights.safetensors', 'weights.ckpt'])
@pytest.mark.parametrize(
    ('data', 'found'),
    [
        (b'', 'is empty (0 bytes)'),
        (b'hello, this is no model\n', 'a text file that begins'),
        (b'\xef\xbb\xbf<!DOCTYPE html><title>Sign in</title>', 'a login page'),
        (b'\n\n <html lang="en">', 'a login page'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:ab\n', 'a Git LFS pointer'),
        (b'{"error": "Repository not found"}', 'a JSON text'),
        (b'PK\x05\x06' + b'\0' * 18, 'an empty zip archive'),
        (b'PK\x03\x04' + b'\0' * 100, 'cut off or damaged'),
        (b'\x1f\x8b\x08' + b'\0' * 30, 'a gzip archive'),
        (b'\x93NUMPY\x01\x00' + b'\0' * 30, 'a NumPy array'),
        (b'\x89HDF\r\n\x1a\n' + b'\0' * 30, 'an HDF5 file'),
        (b'GGUF\x03\0\0\0' + b'\0' * 30, 'a GGUF file'),
        (b'\x89PNG\r\n\x1a\n' + b'\0' * 30, 'a PNG picture'),
        (bytes(257) + b'ustar\x0000' + bytes(300), 'a tar archive'),
    ],
)
def test_what_was_found_and_expected_is_said(tmp_path, name, data, found):
    message = refused(tmp_path, data, name)
    assert found in message
    assert 'fetch it again' in message or 'unpack' in message
    assert 'empty (0' in message or 'expected' in message or 'table of contents' in message


def test_a_larger_archive_than_the_file_is_refused_without_unpacking(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data/0', bytes(50_000_000))
        archive.writestr('archive/data.pkl', b'\x80\x02}.')
    message = refused(tmp_path, buffer.getvalue())
    assert 'that become 50000000' in message and 'no compression' in message


def test_a_program_is_refused_as_such(tmp_path):
    data = rezipped(lambda name, data: (name, data))
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, 'a') as archive:
        archive.writestr('archive/constants.pkl', b'\x80\x02}.')
        archive.writestr('archive/code/__torch__.py', b'')
    message = refused(tmp_path, buffer.getvalue())
    assert 'TorchScript' in message and 'state_dict()' in message
