"""The constructor keys of borrowed classes, read from the source of their library.

Every config is checked against these keys, and most mistakes are found there. Importing
``AutoencoderKL`` only to look at its signature takes longer than everything else of such a check,
so the library's files are parsed instead.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from mmvideo.errors import ConfigError

# Where the libraries keep the classes, and the classes that they inherit fields from.
PLACES = {
    'diffusers': ('models/autoencoders/*.py', 'schedulers/*.py'),
    'transformers': ('models/clip/configuration_clip.py', 'configuration_utils.py'),
}


@cache
def constructor_keys(library: str, name: str) -> tuple[str, ...]:
    """The named parameters of a class's constructor, without importing the class.

    Args:
        library: ``'diffusers'`` or ``'transformers'``.
        name: of the class; a constructor that it does not define is that of a dataclass.

    Raises:
        ConfigError: The library is not installed, or its release has no such class.
    """
    spec = find_spec(library)
    if spec is None or spec.origin is None:
        raise ConfigError(f'{name} needs {library}: pip install {library}')
    folder = Path(spec.origin).parent
    node = _find(folder, library, name)
    if node is None:
        raise ConfigError(f'{name} is not in the {library} that is installed ({folder}).')
    return _keys(node, folder, library)


def _find(folder: Path, library: str, name: str) -> ast.ClassDef | None:
    """The class in the library's source; only the file that has it is parsed."""
    head = re.compile(rf'^class {name}\b', re.MULTILINE)
    for pattern in PLACES[library]:
        for path in sorted(folder.glob(pattern)):
            text = path.read_text(encoding='utf-8')
            if head.search(text):
                classes = (n for n in ast.parse(text).body if isinstance(n, ast.ClassDef))
                return next(node for node in classes if node.name == name)
    return None


def _keys(node: ast.ClassDef, folder: Path, library: str) -> tuple[str, ...]:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == '__init__':
            arguments = [*item.args.posonlyargs, *item.args.args, *item.args.kwonlyargs]
            return tuple(a.arg for a in arguments if a.arg != 'self')
    keys: list[str] = []
    for base in reversed(node.bases):
        found = _find(folder, library, base.id) if isinstance(base, ast.Name) else None
        keys += _keys(found, folder, library) if found else ()
    return tuple(dict.fromkeys([*keys, *_fields(node)]))


def _fields(node: ast.ClassDef) -> list[str]:
    """The fields of a dataclass: annotated names that are not of the class itself."""
    return [
        item.target.id
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and not ast.unparse(item.annotation).startswith('ClassVar')
    ]
