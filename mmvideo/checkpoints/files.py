"""Weight files as bytes: read, write, hash. The only file that calls ``torch.load``.

What a file is follows from its first bytes, never from its name: an HTML error page saved as
``.ckpt`` is the most frequent damaged download. Its table of contents is checked (``header``,
``archive``) before a library reads it. Tensors come memory mapped; nothing is copied until
somebody uses it. Wrappers that trainers put around a state dict are taken off by the rule of
``unwrap``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import reprlib
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError  # the exception only: nothing here unpickles by itself
from typing import TYPE_CHECKING, Any

from mmvideo.checkpoints.archive import check_archive, check_storages
from mmvideo.checkpoints.header import read_header
from mmvideo.errors import WeightsError, nearest

if TYPE_CHECKING:  # torch is imported where tensors are: fetching and hashing need none
    from torch import Tensor

# Before 2.10 weights_only=True could be made to corrupt memory (CVE-2026-24747).
SAFE_TORCH = (2, 10)
SUFFIXES = ('.safetensors', '.ckpt', '.pt', '.pth', '.bin')
_WRAPPERS = ('state_dict', 'module', 'controlnet')
_PREFIXES = ('module.', 'model.', 'unet.')
# Halves of an IP-Adapter and the vectors of a textual inversion stand a level deeper.
_LEVELS = ('image_proj', 'ip_adapter', 'string_to_param')
# What reading a hostile pickle can end in, beside UnpicklingError.
_UNREADABLE = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError,
    RuntimeError, TypeError, ValueError, struct.error,
)  # fmt: skip
# First bytes of what people take for a weight file.
_MAGIC = (
    (b'version https://git-lfs', 'a Git LFS pointer, not the file it points to'),
    (b'PK\x05\x06', 'an empty zip archive'),
    (b'\x1f\x8b', 'a gzip archive; unpack it first'),
    (b'BZh', 'a bzip2 archive; unpack it first'),
    (b'\xfd7zXZ', 'an xz archive; unpack it first'),
    (b'7z\xbc\xaf', 'a 7-Zip archive; unpack it first'),
    (b'Rar!', 'a RAR archive; unpack it first'),
    (b'\x93NUMPY', 'a NumPy array'),
    (b'\x89HDF', 'an HDF5 file, as Keras writes it'),
    (b'GGUF', 'a GGUF file, made for another program'),
    (b'\x89PNG', 'a PNG picture'),
    (b'\xff\xd8\xff', 'a JPEG picture'),
    (b'%PDF', 'a PDF'),
)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read every tensor of a weight file.

    Args:
        path: A safetensors file or a file of ``torch.save`` (.ckpt, .pt, .pth, .bin).

    Returns:
        Key to tensor, on the CPU, backed by the file where its format allows it.

    Raises:
        WeightsError: The file is missing, empty, cut off, no weight file, or holds code.
    """
    return unwrap(read_content(path), path)


def read_content(path: str | Path) -> Any:
    """What a weight file holds, with its wrappers: for files that are no plain state dict.

    Raises:
        WeightsError: As ``read_tensors``.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == 'safetensors':
        return _read_safetensors(path)
    return _read_torch(path, mapped=kind == 'zip')


def read_metadata(path: str | Path) -> dict[str, str]:
    """The text metadata in the header of a safetensors file."""
    path = Path(path)
    if _kind(path) != 'safetensors':
        raise WeightsError(f'{path} is no safetensors file, so it has no metadata')
    return read_header(path).get('__metadata__', {})


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a safetensors file so that ``path`` holds either the old or the new content.

    The bytes go to a neighbour of ``path``, reach the disk, and only then take its name.

    Args:
        path: File to write; its folder is created.
        tensors: Key to tensor, on any device. Views and shared storage are written out in full.
        metadata: Text for the header.
    """
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = _unshared(tensors)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix='.part')
    os.close(handle)
    try:
        save_file(plain, name, metadata={'format': 'pt', **(metadata or {})})
        os.chmod(name, 0o666 & ~_umask())
        publish(Path(name), path)
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def publish(part: Path, path: Path) -> None:
    """Give the finished file ``part`` the name ``path``, durably."""
    _sync(part)
    os.replace(part, path)
    if os.name == 'posix':  # elsewhere a folder cannot be opened
        _sync(path.parent)


def write_text(path: str | Path, text: str) -> Path:
    """Write a small text file as ``write_tensors`` writes a large one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix='.part')
    try:
        with os.fdopen(handle, 'w', encoding='utf-8') as file:
            file.write(text)
        os.chmod(name, 0o666 & ~_umask())
        publish(Path(name), path)
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object such as a ``config.json``.

    Raises:
        WeightsError: The file is missing or is no JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(missing(path))
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f'{path} is no JSON: {error}') from error
    if not isinstance(content, dict):
        raise WeightsError(f'{path} holds a {type(content).__name__}, expected a JSON object')
    return content


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def missing(path: Path) -> str:
    """The message for a path that does not exist: its nearest existing neighbour is named."""
    ancestor = path.parent
    while not ancestor.is_dir() and ancestor != ancestor.parent:
        path, ancestor = ancestor, ancestor.parent
    neighbours = sorted(entry.name for entry in ancestor.iterdir()) if ancestor.is_dir() else []
    return f'{path} does not exist.{nearest(path.name, neighbours)}'


def unwrap(content: Any, path: str | Path) -> dict[str, Tensor]:
    """Take the wrappers of trainers off a loaded file.

    Descends into ``state_dict``, ``module`` or ``controlnet``; drops what is no tensor (``epoch``,
    ``global_step``, ``animatediff_config``); strips ``module.``, ``model.``, ``unet.`` in this
    order where all keys share the prefix. The levels of an IP-Adapter and of a textual inversion
    are joined by a dot.
    """
    from torch import Tensor

    seen: set[int] = set()  # a hostile file may hold itself
    while (inner := _wrapped(content)) and id(inner) not in seen:
        seen.add(id(inner))
        content = inner
    if not isinstance(content, dict):
        raise WeightsError(f'{path} holds a {type(content).__name__}, expected named tensors')
    tensors = {str(key): value for key, value in _levelled(content) if isinstance(value, Tensor)}
    if not tensors:
        keys = ', '.join(map(reprlib.repr, list(content)[:5])) or 'nothing'
        raise WeightsError(f'{path} holds no tensors, only {keys}')
    for prefix in _PREFIXES:
        tensors = _stripped(tensors, prefix)
    return tensors


def _levelled(content: dict) -> Iterator[tuple[Any, Any]]:
    for name, value in content.items():
        if name in _LEVELS and isinstance(value, dict):
            yield from ((f'{name}.{key}', inner) for key, inner in value.items())
        else:
            yield name, value


def _wrapped(content: Any) -> dict | None:
    if isinstance(content, dict):
        for name in _WRAPPERS:
            if isinstance(content.get(name), dict):
                return content[name]
    return None


def _stripped(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    # 'model.diffusion_model.' is the name of a part of a full checkpoint, not a wrapper.
    if not all(k.startswith(prefix) and not k.startswith('model.diffusion_') for k in tensors):
        return tensors
    return {key[len(prefix) :]: value for key, value in tensors.items()}


def _kind(path: Path) -> str:
    """'safetensors', 'zip' (torch.save since 1.6) or 'legacy', from the first bytes."""
    if not path.exists():
        raise WeightsError(missing(path))
    if path.is_dir():
        raise WeightsError(f'{path} is a folder, expected a weight file')
    size = path.stat().st_size
    if size == 0:
        raise WeightsError(f'{path} is empty (0 bytes); fetch it again')
    with open(path, 'rb') as file:
        head = file.read(512)
    if head[8:9] == b'{' and not _printable(head[:8]):
        return 'safetensors'
    if head.startswith(b'PK\x03\x04'):
        return 'zip'
    if head[:1] == b'\x80' and head[1:2] in (b'\x02', b'\x03', b'\x04', b'\x05'):
        return 'legacy'
    raise WeightsError(
        f'{path} ({size} bytes) is {_what(head)}, expected a safetensors or torch '
        'weight file; fetch it again'
    )


def _what(head: bytes) -> str:
    """What a file is that is no weight file, from its first bytes."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[257:262] == b'ustar':
        return 'a tar archive (a folder, or a file of a torch before 1.0)'
    text = head.lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    if text.startswith((b'<!doctype html', b'<html', b'<?xml', b'<head', b'<body', b'<script')):
        return 'an HTML page (a login page or an error, not the file)'
    if text.startswith((b'{', b'[')):
        return 'a JSON text'
    if _printable(head):
        return f'a text file that begins {reprlib.repr(head[:40].decode("ascii", "replace"))}'
    return 'of an unknown binary format'


def _printable(data: bytes) -> bool:
    return sum(byte in b'\t\n\r' or 32 <= byte < 127 for byte in data) > 0.95 * len(data)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    read_header(path)
    try:
        with safe_open(path, framework='pt', device='cpu') as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, *_UNREADABLE) as error:
        raise WeightsError(f'{path} is a damaged safetensors file. {_first_line(error)}') from error


def _read_torch(path: Path, mapped: bool) -> Any:
    import torch

    found = tuple(int(part) for part in torch.__version__.split('+')[0].split('.')[:2])
    if found < SAFE_TORCH:
        raise WeightsError(
            f'{path} is a file of torch.save, which torch {torch.__version__} cannot read safely. '
            'Update to torch 2.10 or later, or convert the file to safetensors on such a machine.'
        )
    sizes = check_archive(path) if mapped else frozenset()
    try:
        if mapped and path.suffix != '.safetensors':  # torch would believe that name
            content = _load(path, mmap=True)
            check_storages(path, content, sizes)
            return content
        with open(path, 'rb') as file:
            return _load(file)
    except WeightsError:
        raise
    except UnpicklingError as error:
        # torch's own message advises to read the file unsafely, so only its reason is shown.
        reason = re.search(r'[Uu]nsupported [^\n]{1,100}?(?=\. |$)', str(error), re.MULTILINE)
        raise WeightsError(
            f'{path} is refused: it is damaged, or holds more than tensors, and reading that could '
            f'run code from the file. ({reason[0] if reason else "no tensor file"})'
        ) from error
    except _UNREADABLE as error:
        raise WeightsError(
            f'{path} ({path.stat().st_size} bytes) is cut off or damaged; fetch it again. '
            f'{_first_line(error)}'
        ) from error


def _load(file: Any, **how: Any) -> Any:
    """The content of a file of torch. A ``ParameterDict``, in which the first textual inversions
    keep their vectors, becomes a dict.

    Of such an object only what it holds is looked at; a file says what its attributes are.
    """
    import torch

    with torch.serialization.safe_globals([torch.nn.ParameterDict]):
        content = torch.load(file, map_location='cpu', weights_only=True, **how)
    if not isinstance(content, dict):
        return content
    for key, value in content.items():
        if isinstance(value, torch.nn.ParameterDict):
            held = vars(value).get('_parameters')
            content[key] = dict(held) if isinstance(held, dict) else {}
    return content


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines() or ['no message']
    return f'({type(error).__name__}: {text[0][:200]})'


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors of which no two share storage, as safetensors needs them."""
    import torch

    seen: set[int] = set()
    plain = {}
    for key, value in tensors.items():
        value = value.detach()
        whole = value.is_contiguous() and value.nbytes == value.untyped_storage().nbytes()
        if not whole or value.untyped_storage().data_ptr() in seen:
            value = value.clone(memory_format=torch.contiguous_format)
        seen.add(value.untyped_storage().data_ptr())
        plain[key] = value
    return plain


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
