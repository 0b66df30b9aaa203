"""Configs: MMEngine's text style, refused before anything is built if a key cannot be right.

MMEngine takes a misspelt key for a new one and trains with the default. Here every name is checked
against what will read it: top-level names against the runner's, keys of a component against the
signature of its class (``config_check``). A config that travelled inside a media file is data and
never becomes Python.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from mmvideo.config_check import check, locate, show
from mmvideo.errors import ConfigError, nearest

RUNNER_KEYS = (
    'model', 'work_dir', 'experiment_name', 'train_dataloader', 'val_dataloader',
    'test_dataloader', 'train_cfg', 'val_cfg', 'test_cfg', 'optim_wrapper', 'param_scheduler',
    'val_evaluator', 'test_evaluator', 'default_hooks', 'custom_hooks', 'data_preprocessor',
    'load_from', 'resume', 'launcher', 'env_cfg', 'log_processor', 'log_level', 'visualizer',
    'default_scope', 'randomness', 'auto_scale_lr', 'custom_imports', 'model_wrapper_cfg',
    'find_unused_parameters', 'sync_bn', 'compile', 'activation_checkpointing',
    'efficient_conv_bn_eval', 'runner_type', 'strategy',
)  # fmt: skip
OWN_KEYS = ('infer',)
TOP_KEYS = RUNNER_KEYS + OWN_KEYS
SUFFIXES = ('.py', '.json', '.yaml', '.yml')
_PLACEHOLDER = re.compile(r'\{\{\s*(?!_base_)[^{}]*\}\}')
_WORDS = {'true': True, 'false': False, 'none': None, 'null': None}
_EXECUTION_ERRORS = (
    NameError, KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError,
    ImportError, OSError, RuntimeError, SyntaxError,
)  # fmt: skip


def load_config(path: str | Path, cfg_options: Mapping[str, Any] | None = None) -> Config:
    """Read a config with what it inherits, and check all of it.

    Args:
        path: A config file.
        cfg_options: Overrides as ``{'model.scheduler.beta_end': 0.02}``.

    Returns:
        The config, with ``default_scope='mmvideo'``.

    Raises:
        ConfigError: Naming the file, the key and the nearest valid one.
    """
    path = Path(path).expanduser()
    files = _chain(path)
    try:
        cfg = Config.fromfile(path, lazy_import=False)
    except _EXECUTION_ERRORS as error:
        raise ConfigError(f'{path}: {type(error).__name__}: {_text(error)}') from error
    if not cfg.keys():
        raise ConfigError(f"{path} is empty; expected at least 'model = dict(type=...)'")
    _check_top(cfg, str(path), files)
    return _finish(cfg, str(path), cfg_options)


def recipe_to_config(
    recipe: Mapping[str, Any], cfg_options: Mapping[str, Any] | None = None
) -> Config:
    """The config that a media file carries: plain data, checked as a file is, never executed.

    Raises:
        ConfigError: It holds anything but plain data, asks for an import, or fails the checks.
    """
    if not isinstance(recipe, Mapping) or not recipe:
        raise ConfigError(f'recipe: expected a JSON object with settings, got {recipe!r:.80}')
    data = _plain_data(recipe, 'recipe')
    for key in ('custom_imports', '_base_'):
        if key in data:
            raise ConfigError(f'recipe: {key!r} is refused, a recipe is data and imports nothing')
    cfg = Config(data)
    _check_top(cfg, 'recipe')
    return _finish(cfg, 'recipe', cfg_options)


def parse_cfg_options(options: Iterable[str]) -> dict[str, Any]:
    """``['train_cfg.max_iters=10', 'model.unet.down=[1,2]']`` as a dict of Python values.

    A value is a Python literal; ``true``, ``false``, ``none`` in any case; a bracketed list whose
    words need no quotes; or else the text itself.

    Raises:
        ConfigError: An option without ``=`` or without a key, or a key given twice.
    """
    parsed: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition('=')
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f'cfg-options {option!r}: expected KEY=VALUE, such as model.type=PIA')
        if key in parsed:
            raise ConfigError(f'cfg-options {key!r} is given twice')
        parsed[key] = _value(value.strip())
    return parsed


def apply_options(cfg: Config, options: Mapping[str, Any], source: str = 'config') -> None:
    """Set dotted keys in place; each must exist, or be one that its component takes.

    A dict without a ``type`` is merged into the one that is there; with one it takes its place.

    Raises:
        ConfigError: Naming the option and the nearest key that exists.
    """
    for dotted, value in options.items():
        where = f'{source}: option {dotted!r}'
        *parents, last = str(dotted).split('.')
        if not all([*parents, last]):
            raise ConfigError(f'{where}: expected names joined by single dots')
        _check_root(cfg, [*parents, last][0], where)
        target = _descend(cfg, parents, where)
        if isinstance(target, list):
            target[_index(target, last, where)] = _adopted(value)
            continue
        _check_last(cfg, parents, target, last, where)
        there = target.get(last)
        if isinstance(value, Mapping) and 'type' not in value and isinstance(there, Mapping):
            apply_options(cfg, {f'{dotted}.{k}': v for k, v in value.items()}, source)
        else:
            target[last] = _adopted(value)


def _finish(cfg: Config, source: str, options: Mapping[str, Any] | None) -> Config:
    cfg.setdefault('default_scope', 'mmvideo')
    if cfg.default_scope != 'mmvideo':
        raise ConfigError(f"{source}: default_scope={cfg.default_scope!r}, expected 'mmvideo'")
    check(cfg, source)
    if options:
        apply_options(cfg, options, source)
        check(cfg, source)
    return cfg


@dataclass(frozen=True)
class _File:
    """A config in Python's syntax.

    Attributes:
        wanted: what the files that inherit from it read of it, as ``_base_.x``.
    """

    path: Path
    tree: ast.Module
    wanted: frozenset[str]

    @cached_property
    def sets(self) -> frozenset[str]:
        """Variables that it assigns."""
        return frozenset(_names(self.tree, ast.Store))

    @cached_property
    def reads(self) -> frozenset[str]:
        """Variables that it reads, or that are read of it."""
        return self.wanted | _names(self.tree, ast.Load)


def _check_top(cfg: Config, source: str, files: Sequence[_File] = ()) -> None:
    for key in cfg:
        if key in TOP_KEYS:
            continue
        setting = [file for file in files if key in file.sets]
        idle = next((file for file in setting if key not in file.reads), None)
        if idle is None and any(key in file.reads for file in setting or files):
            continue
        readers = [file.path for file in setting if key in file.reads]
        raise ConfigError(f'{idle.path if idle else source}: {_unknown(key, readers)}')


def _unknown(key: str, readers: Sequence[Path]) -> str:
    if readers:
        return (
            f'nothing reads {key!r}: {readers[0]} has used its own value already; set the settings '
            'that are computed from it.'
        )
    return (
        f'unknown setting {key!r}.{nearest(key, TOP_KEYS)} '
        'A helper variable must be used in the file or by one that inherits from it.'
    )


def _chain(
    path: Path, above: tuple[Path, ...] = (), wanted: frozenset[str] = frozenset()
) -> list[_File]:
    """A config and all it inherits from; ``wanted`` is what those ``above`` read of it."""
    if not path.is_file():
        raise ConfigError(_missing(path, above))
    if path.suffix not in SUFFIXES:
        raise ConfigError(f'{path}: expected a config ending in one of {", ".join(SUFFIXES)}')
    if path.resolve() in above:
        raise ConfigError(f'{path} inherits from itself: {" -> ".join(p.name for p in above)}')
    if path.suffix != '.py':
        return []
    tree = _parse(path)
    bases = [path.parent / base for base in _bases(tree, path)]
    inner = wanted | _names_of_bases(tree)
    chains = [_chain(base, (*above, path.resolve()), inner) for base in bases]
    return [_File(path, tree, wanted), *(file for chain in chains for file in chain)]


def _parse(path: Path) -> ast.Module:
    try:
        # MMEngine fills {{ placeholders }} in before Python reads the file.
        text = _PLACEHOLDER.sub('None', path.read_text(encoding='utf-8'))
        tree = ast.parse(text, str(path))
    except SyntaxError as error:
        line = (error.text or '').strip()
        raise ConfigError(f'{path}, line {error.lineno}: {error.msg}: {line}') from error
    except (UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f'{path} is no text file: {error}') from error
    for node in ast.walk(tree):
        if isinstance(node, ast.With) or (isinstance(node, ast.ImportFrom) and node.level):
            raise ConfigError(
                f"{path}, line {node.lineno}: expected the text style, _base_ = ['...'] and types "
                'as strings; read_base() and relative imports are another style'
            )
    return tree


def _bases(tree: ast.Module, path: Path) -> list[str]:
    for node in tree.body:
        names = [t.id for t in getattr(node, 'targets', []) if isinstance(t, ast.Name)]
        if not isinstance(node, ast.Assign) or '_base_' not in names:
            continue
        try:
            value = ast.literal_eval(node.value)
        except ValueError as error:
            raise ConfigError(
                f'{path}, line {node.lineno}: _base_ must be a file name or a list of them'
            ) from error
        bases = [value] if isinstance(value, str) else list(value)
        for base in bases:
            if not isinstance(base, str) or '::' in base:
                raise ConfigError(
                    f'{path}, line {node.lineno}: _base_ {base!r}: expected a path relative to '
                    'this file'
                )
        return bases
    return []


def _names(tree: ast.Module, context: type[ast.expr_context]) -> frozenset[str]:
    """Plain names that are read (``ast.Load``) or assigned (``ast.Store``)."""
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return frozenset(node.id for node in names if isinstance(node.ctx, context))


def _names_of_bases(tree: ast.Module) -> frozenset[str]:
    """What is read as ``_base_.x``."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return frozenset(_first_attribute(node) for node in nodes if _root(node) == '_base_')


def _root(node: ast.expr) -> str | None:
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _first_attribute(node: ast.Attribute) -> str:
    inner: ast.expr = node
    while isinstance(inner, (ast.Attribute, ast.Subscript)):
        if isinstance(inner, ast.Attribute):
            name = inner.attr
        inner = inner.value
    return name


def _missing(path: Path, above: tuple[Path, ...]) -> str:
    """The message for a config that does not exist, with the nearest that does."""
    folders = [f for f in (path.parent, Path('configs')) if f.is_dir()]
    found = {p for f in folders for s in SUFFIXES for p in f.rglob(f'*{s}')}
    by_name = {p.name: p for p in sorted(found)}
    hint = nearest(path.name, by_name)
    if hint:
        near = by_name[hint.split("'")[1]]
        hint = f" Did you mean '{near.as_posix()}'?"
    child = f'{above[-1]}: _base_ ' if above else ''
    return f'{child}{path} does not exist.{hint}'


def _check_root(cfg: Config, root: str, where: str) -> None:
    if root in TOP_KEYS:
        return
    if root in cfg:
        raise ConfigError(
            f'{where}: {root!r} is a variable of the file, already used when options are applied; '
            'set the settings that are computed from it'
        )
    raise ConfigError(f'{where}: no such setting.{nearest(root, TOP_KEYS)}')


def _descend(cfg: Config, parents: Sequence[str], where: str) -> Any:
    node: Any = cfg
    for depth, name in enumerate(parents):
        place = show(parents[:depth]) or 'the config'
        if isinstance(node, list):
            node = node[_index(node, name, where)]
        elif isinstance(node, (Config, Mapping)):
            if name not in node:
                raise ConfigError(f'{where}: {place} has no {name!r}.{nearest(name, node.keys())}')
            node = node[name]
        if not isinstance(node, (Config, Mapping, list)):
            raise ConfigError(
                f'{where}: {show(parents[: depth + 1])} is {node!r}, it has no keys of its own'
            )
    return node


def _check_last(cfg: Config, parents: Sequence[str], target: Any, last: str, where: str) -> None:
    if last in target:
        return
    valid = locate(cfg, parents) if parents else frozenset(TOP_KEYS)
    if last not in valid:
        place = show(parents) or 'the config'
        keys = sorted({*target.keys(), *valid} - {'_scope_'})
        near = nearest(last, keys) or f' Valid: {", ".join(keys) or "nothing"}'
        raise ConfigError(f'{where}: {place} takes no {last!r}.{near}')


def _adopted(value: Any) -> Any:
    return ConfigDict(value) if isinstance(value, Mapping) else value


def _index(values: list, name: str, where: str) -> int:
    if not name.isdigit() or int(name) >= len(values):
        raise ConfigError(f'{where}: expected an index from 0 to {len(values) - 1}, got {name!r}')
    return int(name)


def _plain_data(value: Any, where: str, depth: int = 0) -> Any:
    if depth > 32:
        raise ConfigError(f'{where} is nested more than 32 levels deep')
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key.startswith('__'):
                raise ConfigError(f'{where}: {key!r} cannot be a setting')
        return {key: _plain_data(v, f'{where}.{key}', depth + 1) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_data(v, f'{where}.{i}', depth + 1) for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f'{where}={value}: expected a finite number')
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(f'{where} is a {type(value).__name__}, expected plain data')


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass  # a word without quotes, or a list with such words
    if text[:1] + text[-1:] in ('[]', '()'):
        values = [_value(item) for item in _split(text[1:-1])]
        return values if text[0] == '[' else tuple(values)
    return text


def _split(text: str) -> Iterator[str]:
    """The items between commas that are in no inner bracket."""
    depth, start = 0, 0
    for at, letter in enumerate(text):
        depth += (letter in '[({') - (letter in '])}')
        if letter == ',' and depth == 0:
            yield text[start:at].strip()
            start = at + 1
    if text[start:].strip():
        yield text[start:].strip()


def _text(error: Exception) -> str:
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


__all__ = [
    'TOP_KEYS',
    'apply_options',
    'load_config',
    'parse_cfg_options',
    'recipe_to_config',
]
