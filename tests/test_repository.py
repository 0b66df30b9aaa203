"""The files around the code agree with one another and with the code."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest

from mmvideo.version import __version__

ROOT = Path(__file__).parents[1]
COMMANDS = (
    'pip install -e . && python tools/infer.py configs/sprites/pia_sprites.py',
    'pip install -e ".[tests]" && python -m pytest',
)
PAGES = sorted(
    [*ROOT.glob('*.md'), *(ROOT / 'docs').glob('*.md'), *(ROOT / 'configs').glob('*/README.md')]
)
SOURCES = sorted(
    path
    for folder in ('mmvideo', 'tools', 'tests', 'configs')
    for path in (ROOT / folder).rglob('*.py')
)
# Calls that run what a file or a config says.
FORBIDDEN_NAMES = ('eval', 'exec', 'compile', '__import__')
FORBIDDEN_KEYWORDS = {'strict': False, 'shell': True, 'trust_remote_code': True}


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding='utf-8')


def requirements(name: str) -> list[str]:
    lines = (line.split('#')[0].strip() for line in text(f'requirements/{name}.txt').splitlines())
    return [line for line in lines if line]


def shipped() -> list[Path]:
    """Source files of the package and the tools."""
    return [p for p in SOURCES if p.relative_to(ROOT).parts[0] in ('mmvideo', 'tools')]


@pytest.mark.parametrize('command', COMMANDS)
def test_readme_and_ci_have_the_same_commands(command: str) -> None:
    assert f'```bash\n{command}\n```' in text('README.md')
    assert f"'{command}'" in text('.ci/run')


def test_ci_is_executable_and_stops_at_errors() -> None:
    assert os.access(ROOT / '.ci' / 'run', os.X_OK)
    assert text('.ci/run').startswith('#!/usr/bin/env bash\n') and 'set -euo pipefail' in text(
        '.ci/run'
    )


def test_version_is_a_plain_string() -> None:
    assert re.fullmatch(r'\d+\.\d+\.\d+', __version__)


def test_requirements_are_valid_and_said_once() -> None:
    pattern = r'[a-zA-Z0-9_-]+(>=[\d.]+)?(,<[\d.]+)?(; .+)?'
    for name in ('runtime', 'tests', 'train', 'demo'):
        lines = requirements(name)
        assert lines == sorted(lines, key=str.lower), name
        assert all(re.fullmatch(pattern, line) for line in lines), name
    assert 'torch>=2.10' in requirements('runtime')


def test_what_is_imported_is_required() -> None:
    packages = {
        **{'PIL': 'pillow', 'cv2': 'opencv-python', 'yaml': 'pyyaml', 'mmcv': 'mmcv-lite'},
    }
    wanted = {re.split(r'[>;,]', line)[0] for line in requirements('runtime')}
    for path in shipped():
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for name in {n.split('.')[0] for n in names} - set(_stdlib()) - {'mmvideo'}:
                assert packages.get(name, name) in wanted, f'{path} imports {name}'


def _stdlib() -> frozenset[str]:
    import sys

    return sys.stdlib_module_names


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r'\]\(([^)#\s]+)\)', page.read_text(encoding='utf-8')):
        if '://' not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_name_files_that_exist(page: Path) -> None:
    for name in re.findall(r'\b(?:tools|configs)/[\w./-]+\.(?:py|json)', page.read_text('utf-8')):
        assert (ROOT / name).exists(), name


def test_no_code_runs_what_data_says() -> None:
    for path in shipped():
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            where = f'{path}, line {getattr(node, "lineno", 0)}'
            if isinstance(node, ast.Call):
                name = getattr(node.func, 'id', '')
                assert name not in FORBIDDEN_NAMES, where
                for word in node.keywords:
                    if word.arg in FORBIDDEN_KEYWORDS and not _is_zip(node):
                        value = getattr(word.value, 'value', None)
                        assert value is not FORBIDDEN_KEYWORDS[word.arg], where
            if isinstance(node, ast.ExceptHandler):
                kind = getattr(node.type, 'id', None)
                assert node.type is not None and kind not in ('Exception', 'BaseException'), where


def _is_zip(node: ast.Call) -> bool:
    return getattr(node.func, 'id', '') == 'zip'


def test_torch_load_stands_in_one_file() -> None:
    with_it = [p.name for p in shipped() if re.search(r'\btorch\.load\(', p.read_text('utf-8'))]
    assert with_it == ['files.py']


def test_files_begin_with_future_annotations_and_a_docstring() -> None:
    for path in shipped():
        tree = ast.parse(path.read_text(encoding='utf-8'))
        if tree.body:
            assert ast.get_docstring(tree), f'{path} has no docstring'
        if any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body):
            assert 'from __future__ import annotations' in path.read_text(encoding='utf-8'), path


def test_files_stay_readable() -> None:
    long = [str(p) for p in shipped() if len(p.read_text(encoding='utf-8').splitlines()) > 450]
    assert not long


def test_no_path_of_one_machine() -> None:
    pattern = re.compile(r'(?<![\w.])/(?:home|root|Users|work)/\w')
    for path in [*SOURCES, *PAGES, ROOT / '.ci' / 'run', ROOT / 'setup.py']:
        if path != Path(__file__):
            found = pattern.search(path.read_text(encoding='utf-8'))
            assert not found, f'{path}: {found and found.group()}'


def test_stated_sizes_of_files_are_near_the_truth() -> None:
    """What a family adds to the trunk is a table of files and lines on its page."""
    rows = 0
    for page in (ROOT / 'configs').glob('*/README.md'):
        table = re.findall(r'^\|.*\| (`.*\.py`) \| ([\d, ]+) \|$', text(str(page)), re.M)
        for files, sizes in table:
            paths = [Path(name) for name in re.findall('`(.*?)`', files)]
            for path, size in zip(paths, sizes.split(', '), strict=True):
                here = ROOT / paths[0].parent / path.name
                lines = len(here.read_text(encoding='utf-8').splitlines())
                assert abs(lines - int(size)) <= 0.1 * lines, f'{page}: {path} has {lines} lines'
                rows += 1
    assert rows > 12


def test_nothing_is_written_twice() -> None:
    """No two functions of more than a few lines are the same but for their names."""
    found: dict[str, str] = {}
    for path in shipped():
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.FunctionDef) and _size(node) >= 60:
                where = f'{path.relative_to(ROOT)}: {node.name}'
                assert found.setdefault(_without_names(node), where) == where


def _size(node: ast.FunctionDef) -> int:
    return sum(1 for _ in ast.walk(node))


def _without_names(node: ast.FunctionDef) -> str:
    """What a function does, whatever it calls its variables, without what it says of itself."""
    names: dict[str, str] = {}
    said = ast.get_docstring(node, clean=False) is not None
    for inner in ast.walk(node):
        for field in ('id', 'arg'):
            if isinstance(inner, ast.Name | ast.arg) and hasattr(inner, field):
                name = getattr(inner, field)
                setattr(inner, field, names.setdefault(name, f'name{len(names)}'))
        if isinstance(inner, ast.arg):
            inner.annotation = None
    return ''.join(ast.dump(statement) for statement in node.body[said:])


def test_no_layer_of_the_models_is_defined_twice() -> None:
    """Class names are unique, and no two classes make the same parts under the same names."""
    names: dict[str, Path] = {}
    structures: dict[frozenset[str], str] = {}
    for path in sorted((ROOT / 'mmvideo' / 'models').rglob('*.py')):
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            if not isinstance(node, ast.ClassDef):
                continue
            assert names.setdefault(node.name, path) == path, node.name
            parts = frozenset(_parts(node))
            if len(parts) > 1:
                assert structures.setdefault(parts, node.name) == node.name
    assert len(names) > 60 and len(structures) > 15


def _parts(node: ast.ClassDef) -> list[str]:
    """Names and calls of what a constructor assigns to ``self``."""
    built = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == '__init__']
    assigned = [a for f in built for a in ast.walk(f) if isinstance(a, ast.Assign)]
    return [
        f'{target.attr}={ast.unparse(a.value.func)}'
        for a in assigned
        for target in a.targets
        if isinstance(target, ast.Attribute) and isinstance(a.value, ast.Call)
    ]
