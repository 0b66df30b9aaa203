"""The import rule of docs/architecture.md: imports go one way, also inside functions."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
LEAVES = {'errors', 'version', 'shipped'}
BUILDERS = LEAVES | {'registry'}
BELOW_APIS = BUILDERS | {
    *('config', 'config_check', 'utils', 'ops', 'diffusion', 'media', 'checkpoints', 'models'),
    *('editors', 'datasets', 'evaluation', 'engine'),
}
# Room: the other rooms that it may import. The table of docs/architecture.md.
MAY_IMPORT = {
    '__init__': {'version'},
    'errors': set(),
    'version': set(),
    'shipped': {'errors'},
    'registry': set(),
    'config': {'errors', 'registry', 'config_check'},
    'config_check': {'errors', 'registry'},
    'utils': {'registry'},
    'ops': {'errors'},
    'diffusion': {'errors'},
    'checkpoints': {'errors', 'shipped'},
    'media': LEAVES | {'checkpoints'},
    'models': BUILDERS | {'ops', 'checkpoints', 'media'},
    'editors': BUILDERS | {'models', 'diffusion', 'checkpoints'},
    'datasets': BUILDERS | {'checkpoints', 'media'},
    'evaluation': BUILDERS | {'checkpoints', 'media', 'datasets'},
    'engine': BUILDERS | {'checkpoints', 'media', 'config_check'},
    # MMagic's import paths: names of other rooms, and nothing else.
    'models/editors': {'editors', 'media'},
    'pipelines': BUILDERS | {'models', 'editors', 'checkpoints', 'media'},
    'apis': BELOW_APIS,
    'tools': BELOW_APIS | {'apis'},
}
# Rooms that import torch and nothing else from outside.
TORCH_ONLY = ('ops', 'diffusion')
# Rooms that know nothing of MMEngine.
WITHOUT_MMENGINE = (
    *('errors', 'version', 'ops', 'diffusion', 'media', 'checkpoints', 'models', 'tools'),
    'pipelines',
)


class Import(NamedTuple):
    """One imported module, where it is imported."""

    file: Path
    line: int
    room: str
    module: str

    def __str__(self) -> str:
        return f'{self.file}, line {self.line}: {self.room} imports {self.module}'


def room_of(file: Path) -> str:
    """The room of a file given relative to the checkout."""
    if file.parts[0] != 'mmvideo':
        return file.parts[0]
    return room_named(list(file.parts[1:-1]) or [file.stem])


def room_named(parts: list[str]) -> str:
    """The room of a module below ``mmvideo``; ``models/editors`` is one by itself."""
    return 'models/editors' if parts[:2] == ['models', 'editors'] else parts[0]


def imports(root: Path) -> Iterator[Import]:
    """Every import statement of the package and the tools."""
    for folder in ('mmvideo', 'tools'):
        for path in sorted((root / folder).rglob('*.py')):
            file = path.relative_to(root)
            for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
                for module in imported(node):
                    yield Import(file, node.lineno, room_of(file), module)


def imported(node: ast.AST) -> list[str]:
    """The modules of an import statement; ``from mmvideo import x`` is ``mmvideo.x``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if node.level:
            return ['.' * node.level + (node.module or '')]
        if node.module == 'mmvideo':
            return [f'mmvideo.{alias.name}' for alias in node.names]
        return [str(node.module)]
    return []


def violations(root: Path) -> list[str]:
    """What breaks the rule below ``root``, as sentences."""
    return [f'{found} ({why})' for found in imports(root) if (why := broken(found))]


def broken(found: Import) -> str | None:
    """Why an import is against the rule; None where it is not."""
    top, *inner = found.module.split('.')
    if found.room not in MAY_IMPORT:
        return 'no such room in docs/architecture.md'
    if not top:
        return 'relative'
    if top == 'mmvideo':
        other = room_named(inner or ['__init__'])
        allowed = MAY_IMPORT[found.room] | {found.room}
        return None if other in allowed else f'allowed: {", ".join(sorted(allowed))}'
    if top in sys.stdlib_module_names:
        return None
    if found.room in TORCH_ONLY and top != 'torch':
        return 'torch only'
    if found.room in WITHOUT_MMENGINE and top == 'mmengine':
        return 'no MMEngine here'
    return None


def test_imports_go_one_way() -> None:
    assert not violations(ROOT), '\n'.join(violations(ROOT))


def test_the_check_reads_the_whole_package() -> None:
    seen = {found.file.as_posix() for found in imports(ROOT)}
    assert {'mmvideo/models/unet/video_unet.py', 'mmvideo/config.py', 'tools/infer.py'} <= seen


def test_docs_have_the_same_table() -> None:
    text = (ROOT / 'docs' / 'architecture.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| (`[^|]*) \|', text, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r'`([\w/]+)`', row)} == set(MAY_IMPORT) - {
        '__init__'
    }


@pytest.mark.parametrize(
    ('file', 'text', 'module'),
    [
        ('mmvideo/ops/a.py', 'import numpy', 'numpy'),
        ('mmvideo/ops/a.py', 'from mmvideo.models import unet', 'mmvideo.models'),
        ('mmvideo/diffusion/a.py', 'def f():\n    import diffusers', 'diffusers'),
        ('mmvideo/models/unet/a.py', 'from mmengine.model import BaseModel', 'mmengine.model'),
        ('mmvideo/models/unet/a.py', 'from mmvideo import editors', 'mmvideo.editors'),
        ('mmvideo/apis/a.py', 'import mmvideo.models.editors.x', 'mmvideo.models.editors.x'),
        ('mmvideo/checkpoints/a.py', 'import mmvideo.models.unet', 'mmvideo.models.unet'),
        ('mmvideo/engine/a.py', 'def f():\n    from mmvideo.apis import x', 'mmvideo.apis'),
        ('mmvideo/datasets/a.py', 'from mmvideo.evaluation import x', 'mmvideo.evaluation'),
        ('mmvideo/errors.py', 'from mmvideo.registry import MODELS', 'mmvideo.registry'),
        ('mmvideo/editors/a.py', 'from . import pia', '.'),
        ('mmvideo/newroom/a.py', 'import torch', 'torch'),
    ],
)
def test_a_violation_is_found(tmp_path: Path, file: str, text: str, module: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    (found,) = violations(tmp_path)
    assert f'imports {module} (' in found and file in found


def test_what_is_allowed_is_not_found(tmp_path: Path) -> None:
    path = tmp_path / 'mmvideo' / 'editors' / 'a.py'
    path.parent.mkdir(parents=True)
    path.write_text('import math\nimport torch\nfrom mmvideo.models.unet import VideoUNet\n')
    assert violations(tmp_path) == []
