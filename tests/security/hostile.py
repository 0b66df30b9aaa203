"""Thirty-odd hostile weight files, assembled opcode by opcode; nothing is run to make them.

Each would run ``touch CANARY``, or write there, if a reader executed what it says.
"""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from pathlib import Path

import torch

PROTOCOL, STOP = b'\x80\x02', b'.'


def text(value: str) -> bytes:
    raw = value.encode()
    return b'X' + struct.pack('<I', len(raw)) + raw


def name(module: str, attribute: str) -> bytes:
    return b'c' + f'{module}\n{attribute}\n'.encode()


def stacked(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b'\x93'


def called(function: bytes, *arguments: bytes) -> bytes:
    return function + b'(' + b''.join(arguments) + b't' + b'R'


def state(value: bytes, protocol: bytes = PROTOCOL) -> bytes:
    """The pickle of ``{'weight': value}``."""
    return protocol + b'}' + text('weight') + value + b's' + STOP


def archive(pickle: bytes, **more: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as target:
        target.writestr('archive/data.pkl', pickle)
        target.writestr('archive/byteorder', b'little')
        target.writestr('archive/data/0', bytes(64))
        target.writestr('archive/version', b'3\n')
        for path, data in more.items():
            target.writestr(f'archive/{path}', data)
    return buffer.getvalue()


def storage(count: int, old: bool = False) -> bytes:
    """A tensor's storage as ``torch.save`` refers to it."""
    inner = text('storage') + name('torch', 'FloatStorage') + text('0') + text('cpu')
    view = b'N' if old else b''
    return b'(' + inner + b'\x8a\x08' + struct.pack('<q', count) + view + b't' + b'Q'


def tensor(count: int, offset: int, size: int, stride: int) -> bytes:
    numbers = [b'\x8a\x08' + struct.pack('<q', n) for n in (offset, size, stride)]
    hooks = called(name('collections', 'OrderedDict'))
    return called(
        name('torch._utils', '_rebuild_tensor_v2'),
        storage(count),
        numbers[0],
        b'(' + numbers[1] + b't',
        b'(' + numbers[2] + b't',
        b'\x89',
        hooks,
    )


def legacy(**changed: bytes) -> bytes:
    """A file of torch before 1.6, one of whose pickles may be another."""
    buffer = io.BytesIO()
    torch.save({'w': torch.ones(4)}, buffer, _use_new_zipfile_serialization=False)
    whole = buffer.getvalue()
    ends = [0] + [i + 1 for i in range(len(whole)) if whole[i : i + 2] == b'.\x80'][:4]
    names = ('magic', 'protocol', 'system', 'main')
    pieces = {n: whole[ends[i] : ends[i + 1]] for i, n in enumerate(names)}
    last = whole[ends[4] :]
    end = last.index(b'.') + 1
    pieces |= {'keys': last[:end], 'values': last[end:]}
    return b''.join({**pieces, **changed}.values())


def tar(command: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as target:
        for path in ('storages', 'tensors', 'pickle'):
            entry = tarfile.TarInfo(path)
            entry.size = len(command)
            target.addfile(entry, io.BytesIO(command))
    return buffer.getvalue()


def bomb(size: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as target:
        target.writestr('archive/data.pkl', state(storage(size // 4)))
        target.writestr('archive/data/0', bytes(size))
    return buffer.getvalue()


def doubled(good: bytes, bad: bytes) -> bytes:
    """Two files of one name: which one a reader takes depends on the reader."""
    raw = archive(good, **{'dbta.pkl': bad})
    return raw.replace(b'archive/dbta.pkl', b'archive/data.pkl')


def itself() -> bytes:
    """A state dict that is its own state dict."""
    return PROTOCOL + b'}q\x00' + text('state_dict') + b'h\x00s' + STOP


def payloads(canary: Path) -> dict[str, tuple[str, bytes]]:
    """Name to (file name, bytes)."""
    line = text(f'touch {canary}')
    path = text(str(canary))
    system = called(name('os', 'system'), line)
    code = text(f'open({str(canary)!r}, "w")')
    imported = called(name('builtins', '__import__'), text('os'))
    ordered = called(name('collections', 'OrderedDict'))
    pickles: dict[str, bytes] = {
        'reduce': state(system),
        'reduce_posix': state(called(name('posix', 'system'), line)),
        'stack_global': state(called(stacked('os', 'system'), line), b'\x80\x04'),
        'stack_global_memo': b'\x80\x04'
        + text('os')
        + b'\x94'
        + text('system')
        + b'\x94'
        + b'h\x00h\x01\x93'
        + line
        + b'\x85R.',
        'getattr_chain': state(
            called(called(name('builtins', 'getattr'), imported, text('system')), line)
        ),
        'dotted_attribute': state(
            called(stacked('torch', 'serialization.os.system'), line), b'\x80\x04'
        ),
        'through_globals': state(
            called(stacked('collections', 'OrderedDict.fromkeys.__globals__'), line), b'\x80\x04'
        ),
        'eval': state(called(name('builtins', 'eval'), code)),
        'exec': state(called(name('builtins', 'exec'), code)),
        'old_builtins': state(called(name('__builtin__', 'eval'), code)),
        'open_for_writing': state(called(name('builtins', 'open'), path, text('w'))),
        'popen_new': state(name('subprocess', 'Popen') + b'(' + line + b't\x81'),
        'new_with_keywords': state(
            name('subprocess', 'Popen') + b'()' + b'}' + text('args') + line + b's\x92', b'\x80\x04'
        ),
        'instance_opcode': PROTOCOL + b'(' + line + b'ios\nsystem\n' + STOP,
        'object_opcode': PROTOCOL + b'(' + name('os', 'system') + line + b'o' + STOP,
        'set_state': state(ordered + b'}' + text('__class__') + name('os', 'system') + b'sb'),
        'build_on_class': state(
            name('collections', 'OrderedDict') + b'}' + text('__new__') + system + b'sb'
        ),
        'extension': state(b'\x82\x01'),
        'persistent_id': state(b'(' + text('module') + system + text('0') + b'tQ'),
        'persistent_storage': state(
            b'(' + text('storage') + name('os', 'system') + line + text('cpu') + b'K\x04tQ'
        ),
        'nested_load': state(called(name('torch', 'load'), path)),
        'hub_load': state(called(name('torch.hub', 'load'), text('owner/name'), text('model'))),
        'url': state(called(name('urllib.request', 'urlopen'), text('http://127.0.0.1:9/'))),
        'connect': state(called(name('socket', 'create_connection'), text('127.0.0.1'))),
        'remove': state(called(name('shutil', 'rmtree'), path)),
        'library': state(called(name('ctypes', 'CDLL'), path)),
        'huge_text': PROTOCOL + b'X\xff\xff\xff\xff' + b'a' * 8 + STOP,
        'huge_bytes': b'\x80\x04\x8e' + struct.pack('<Q', 2**62) + STOP,
        'tensor_outside': state(tensor(16, 0, 2**40, 1)),
        'tensor_before': state(tensor(16, -(2**30), 4, 1)),
        'storage_outside': state(tensor(2**40, 0, 4, 1)),
        'storage_of_another': state(tensor(20, 0, 20, 1)),
        'itself': itself(),
        'deep': PROTOCOL + b']' * 100_000 + b'a' * 99_999 + STOP,
    }
    files = {key: (f'{key}.ckpt', archive(data)) for key, data in pickles.items()}
    evil = state(system)
    return files | {
        'legacy_magic': ('a.pt', legacy(magic=evil)),
        'legacy_main': ('b.pt', legacy(main=evil)),
        'legacy_keys': ('c.pt', legacy(keys=PROTOCOL + system + STOP)),
        'legacy_huge': ('d.bin', legacy(main=state(storage(2**40, old=True)))),
        'pickle_alone': ('e.pth', evil),
        'pickle_named_safetensors': ('f.safetensors', evil),
        'pickle_of_text': ('g.ckpt', b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."),
        'tar': ('h.ckpt', tar(evil)),
        'torchscript': ('i.pt', archive(evil, **{'constants.pkl': evil, 'code/a.py': b'1/0'})),
        'archive_in_archive': ('j.ckpt', archive(archive(evil))),
        'two_of_one_name': ('k.ckpt', doubled(state(ordered), evil)),
        'bomb': ('l.ckpt', bomb(100_000_000)),
    }
