"""Every key of every component of a config, against the signature of the class that takes it.

Which registry a ``dict(type=...)`` belongs to follows from where it stands: ``RULES`` for the
places that MMEngine's runner builds, and inside a component the class's own ``part_registries``,
then ``PART_NAMES``, then the registry of the component around it. Nothing is built here.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from typing import Any

from mmvideo import registry
from mmvideo.errors import ConfigError, nearest


@dataclass(frozen=True)
class Rule:
    """How the runner builds what stands at a place.

    Attributes:
        registry: Name of the registry.
        given: Arguments that the builder supplies itself.
        extra: Keys that the builder takes out before it calls the class.
        default: The type where the config names none.
    """

    registry: str
    given: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    default: str | None = None


_METRIC = Rule('METRICS')
RULES = {
    'model': Rule('MODELS'),
    'data_preprocessor': Rule('MODELS'),
    'model_wrapper_cfg': Rule('MODEL_WRAPPERS', given=('module', 'device_ids', 'device_id')),
    '*_dataloader.dataset': Rule('DATASETS'),
    '*_dataloader.sampler': Rule('DATA_SAMPLERS', given=('dataset', 'seed')),
    '*_dataloader.batch_sampler': Rule('DATA_SAMPLERS', given=('sampler', 'batch_size')),
    '*_dataloader.collate_fn': Rule('FUNCTIONS', given=('data_batch',)),
    '*_dataloader.worker_init_fn': Rule(
        'FUNCTIONS', given=('worker_id', 'num_workers', 'rank', 'seed')
    ),
    'train_cfg': Rule('LOOPS', given=('runner', 'dataloader'), extra=('by_epoch',)),
    'val_cfg': Rule('LOOPS', given=('runner', 'dataloader', 'evaluator'), default='ValLoop'),
    'test_cfg': Rule('LOOPS', given=('runner', 'dataloader', 'evaluator'), default='TestLoop'),
    'optim_wrapper': Rule(
        'OPTIM_WRAPPERS', extra=('constructor', 'paramwise_cfg'), default='OptimWrapper'
    ),
    'optim_wrapper.optimizer': Rule('OPTIMIZERS', given=('params',)),
    'param_scheduler': Rule(
        'PARAM_SCHEDULERS', given=('optimizer', 'param_name'), extra=('convert_to_iter_based',)
    ),
    '*_evaluator.metrics': _METRIC,
    '*_evaluator': _METRIC,
    'default_hooks.*': Rule('HOOKS', extra=('priority',)),
    'custom_hooks': Rule('HOOKS', extra=('priority',)),
    'visualizer': Rule('VISUALIZERS'),
    'visualizer.vis_backends': Rule('VISBACKENDS', given=('save_dir',)),
    'log_processor': Rule('LOG_PROCESSORS', default='LogProcessor'),
    'strategy': Rule('STRATEGIES'),
}
PART_NAMES = {
    'scheduler': 'SCHEDULERS',
    'test_scheduler': 'SCHEDULERS',
    'train_scheduler': 'SCHEDULERS',
    'noise_scheduler': 'SCHEDULERS',
    'tokenizer': 'TOKENIZERS',
    'dataset': 'DATASETS',
    'datasets': 'DATASETS',
    'pipeline': 'TRANSFORMS',
    'transforms': 'TRANSFORMS',
    'metrics': 'METRICS',
    'vis_backends': 'VISBACKENDS',
    'optimizer': 'OPTIMIZERS',
}
# A part that an editor fills from a checkpoint, whatever the part's own constructor takes.
SOURCE_KEYS = ('from_pretrained', 'subfolder', 'variant', 'revision', 'dtype')
FILLED_PARTS = ('unet', 'motion_module', 'condition_module', 'vae', 'text_encoder', 'image_encoder')
EXTRA_KEYS = {'unet': ('ema', 'image_weights')}
# Arguments that the component around a part supplies.
GIVEN_TO_PARTS = {
    'motion_module': ('channels',),
    'transformer_in': ('channels',),
    'temporal_slots.*': ('channels',),
    'embeddings.*': ('sizes',),
}
# Names that are looked up without being a component of their own.
NAMED = {'optim_wrapper.constructor': 'OPTIM_WRAPPER_CONSTRUCTORS', 'runner_type': 'RUNNERS'}
PLAIN = {
    'randomness': ('seed', 'diff_rank_seed', 'deterministic'),
    'auto_scale_lr': ('enable', 'base_batch_size'),
    'custom_imports': ('imports', 'allow_failed_imports'),
    'env_cfg': ('cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'),
    'env_cfg.mp_cfg': ('mp_start_method', 'opencv_num_threads', 'omp_num_threads',
                       'mkl_num_threads'),
    'env_cfg.dist_cfg': ('backend', 'timeout', 'init_backend', 'init_method'),
    'optim_wrapper.clip_grad': ('type', 'max_norm', 'norm_type', 'error_if_nonfinite', 'foreach',
                                'clip_value', 'max_value'),
    'compile': ('target', 'fullgraph', 'dynamic', 'backend', 'mode', 'options', 'disable'),
}  # fmt: skip
# Keys of a dataloader that the runner reads besides those of torch's DataLoader.
_LOADER_EXTRA = ('num_batch_per_epoch', 'disable_subprocess_warning')
# Constructors whose ``**kwargs`` are the arguments of another class that they name.
_OPEN = ('ZeroRedundancyOptimizer',)
# What `infer` says of the files to write, beside the editor's arguments.
FILE_KEYS = ('fps', 'formats', 'out')
_SCOPES = ('mmvideo', 'mmengine')
_OWN_REGISTRIES = ('MODELS', 'SCHEDULERS', 'TOKENIZERS')


@dataclass(frozen=True)
class Place:
    """A dict of a config whose valid keys are known.

    Attributes:
        path: Keys and indices that lead to it.
        value: The dict.
        label: What takes the keys, for messages.
        names: The valid keys.
        required: Keys that must be there.
    """

    path: tuple[str, ...]
    value: Mapping[str, Any]
    label: str
    names: frozenset[str]
    required: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Signature:
    """The named arguments of a constructor, and those without a default."""

    names: frozenset[str]
    required: frozenset[str]


def check(cfg: Mapping[str, Any], source: str) -> None:
    """Refuse the first unknown or missing key of any component.

    Args:
        cfg: A whole config.
        source: Its file, for messages.

    Raises:
        ConfigError: Naming the file, the place, the key and the nearest valid one.
    """
    try:
        for place in survey(cfg):
            _check_place(place)
    except ConfigError as error:
        raise ConfigError(f'{source}: {error}') from error


def survey(cfg: Mapping[str, Any]) -> Iterator[Place]:
    """Every dict of a config whose valid keys are known."""
    for key in cfg:
        if key == 'infer':
            yield from _infer(cfg)
        elif _is_section(key):
            yield from _walk(cfg[key], (key,), (key,), None, {})
    yield from _predict(cfg.get('model'))
    for dotted, kind in NAMED.items():
        name = _get(cfg, dotted)
        if name is not None:
            _resolve(name, kind, tuple(dotted.split('.')))


def _is_section(key: str) -> bool:
    """Whether the runner reads it; other names are variables of the file."""
    spots = {*RULES, *PLAIN, *NAMED}
    return any(fnmatchcase(key, spot.split('.')[0]) for spot in spots)


def locate(cfg: Mapping[str, Any], path: Sequence[str]) -> frozenset[str]:
    """The valid keys of the dict at ``path``; empty where nobody declares them."""
    for place in survey(cfg):
        if place.path == tuple(path):
            return place.names
    return frozenset()


def show(path: Sequence[str]) -> str:
    """``('custom_hooks', '0', 'interval')`` as people write it: ``custom_hooks[0].interval``."""
    text = ''
    for part in path:
        text += f'[{part}]' if part.isdigit() else f'.{part}'
    return text.lstrip('.')


@cache
def signature_of(builder: Callable[..., Any]) -> Signature:
    """What a registered class or builder takes.

    ``builder.accepted()`` lists it where a builder has one. A constructor's ``**kwargs`` lead on
    to the next constructor in line, if the source passes them to ``super().__init__``; arguments
    that the call fills in itself are not the config's to give.
    """
    accepted = getattr(builder, 'accepted', None)
    if accepted is not None:
        return Signature(frozenset(accepted()), frozenset())
    if not inspect.isclass(builder):
        return _own(builder, skip=0)[0]
    names: set[str] = set()
    required: set[str] = set()
    filled: set[str] = set()
    skip = 1
    for cls in builder.__mro__:
        init = vars(cls).get('__init__')
        if init is None or cls is object:
            continue
        own, rest = _own(init, skip)
        names |= own.names - filled
        required |= own.required - filled
        call = _super_call(init, rest) if rest else None
        if call is None:
            break
        skip = 1 + sum(not isinstance(a, ast.Starred) for a in call.args)
        filled |= {keyword.arg for keyword in call.keywords if keyword.arg}
    return Signature(frozenset(names), frozenset(required))


def _walk(
    value: Any,
    path: tuple[str, ...],
    spot: tuple[str, ...],
    around: str | None,
    parts: Mapping[str, str],
) -> Iterator[Place]:
    """``path`` has list indices, ``spot`` has none; ``around`` is the enclosing registry and
    ``parts`` the enclosing class's ``part_registries``."""
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _walk(item, (*path, str(index)), spot, around, parts)
    if not isinstance(value, Mapping):
        return
    rule = _rule(value, spot, around, parts)
    if rule is not None:
        yield from _component(value, path, spot, rule)
        return
    keys = _plain_keys(spot)
    if keys is not None:
        yield Place(path, value, show(path), keys)
    for key in value:
        yield from _walk(value[key], (*path, key), (*spot, key), around, {})


def _rule(
    value: Mapping, spot: tuple[str, ...], around: str | None, parts: Mapping[str, str]
) -> Rule | None:
    if _plain_keys(spot) is not None:
        return None
    if fnmatchcase('.'.join(spot), '*_evaluator') and 'metrics' in value:
        return Rule('EVALUATOR', default='Evaluator')
    for pattern, rule in RULES.items():
        if spot and len(pattern.split('.')) == len(spot) and fnmatchcase('.'.join(spot), pattern):
            return rule
    name = spot[-1]
    given = GIVEN_TO_PARTS.get(name, GIVEN_TO_PARTS.get('.'.join((*spot[-2:-1], '*')), ()))
    extra: tuple[str, ...] = ()
    if spot[0] == 'model' and name in FILLED_PARTS:
        extra = (*SOURCE_KEYS, *EXTRA_KEYS.get(name, ()))
    if name in parts:
        return Rule(parts[name], given, extra)
    if 'type' in value:
        kind = PART_NAMES.get(name, around)
        if kind is None:
            raise ConfigError(f'{show(spot)}: nothing is built here, so it cannot have a type')
        return Rule(kind, given, extra)
    return None


def _component(
    value: Mapping, path: tuple[str, ...], spot: tuple[str, ...], rule: Rule
) -> Iterator[Place]:
    name = _type_name(value, path, rule)
    builder = _resolve(name, rule.registry, path)
    taken = signature_of(builder)
    names = (taken.names - set(rule.given)) | {*rule.extra, 'type', '_scope_'}
    required = taken.required - set(rule.given)
    if value.get('from_pretrained') is not None:
        required = frozenset()
    if builder.__name__ in _OPEN:
        names |= set(value)
    yield Place(path, value, f'{show(path)}: {name}', frozenset(names), frozenset(required))
    scope = value.get('_scope_', 'mmvideo')
    if scope not in _SCOPES:
        raise ConfigError(f'{show(path)}._scope_={scope!r}: expected one of {_SCOPES}')
    parts = getattr(builder, 'part_registries', {})
    for key in value:
        yield from _walk(value[key], (*path, key), (*spot, key), rule.registry, parts)


def _type_name(value: Mapping, path: tuple[str, ...], rule: Rule) -> str:
    default = rule.default
    if path == ('train_cfg',) and 'by_epoch' in value:
        default = 'EpochBasedTrainLoop' if value['by_epoch'] else 'IterBasedTrainLoop'
    name = value.get('type', default)
    if name is None:
        typo = next((key for key in value if nearest(key, ['type'])), None)
        hint = f" Did you mean 'type' where it says {typo!r}?" if typo else ''
        raise ConfigError(f"{show(path)} needs a 'type'.{hint}")
    return name


def _resolve(name: Any, kind: str, path: tuple[str, ...]) -> Callable[..., Any]:
    if not isinstance(name, str):
        shown = getattr(name, '__name__', repr(name))
        raise ConfigError(f'{show(path)}: type must be a registered name in quotes, got {shown}')
    known = getattr(registry, kind, None)
    if known is None:
        raise ConfigError(f'{show(path)}: there is no registry {kind!r}')
    if kind not in _OWN_REGISTRIES:
        import mmengine.runner  # noqa: F401  registers MMEngine's own types, which takes a while
    try:
        return known.get(name)
    except registry.UnknownTypeError as error:
        raise ConfigError(f'{show(path)}: {error}') from error


def _infer(cfg: Mapping[str, Any]) -> Iterator[Place]:
    """``infer`` holds arguments of the editor's ``infer``."""
    value, model = cfg['infer'], cfg.get('model')
    if not isinstance(value, Mapping):
        raise ConfigError(f'infer is {value!r}, expected a dict of arguments')
    if not isinstance(model, Mapping) or 'type' not in model:
        raise ConfigError("infer needs a 'model' whose arguments it holds")
    editor = _resolve(model['type'], 'MODELS', ('model',))
    method = getattr(editor, 'infer', None)
    if method is None:
        raise ConfigError(f'infer: {model["type"]} has no infer()')
    names = _own(method, skip=1)[0].names | set(FILE_KEYS)
    yield Place(('infer',), value, f'infer: {model["type"]}.infer', names)


def _predict(model: Any) -> Iterator[Place]:
    """``model.predict`` holds them too, for a runner that tests."""
    value = model.get('predict') if isinstance(model, Mapping) else None
    if not isinstance(value, Mapping) or 'type' not in model:
        return
    method = getattr(_resolve(model['type'], 'MODELS', ('model',)), 'infer', None)
    if method is None:
        return
    signature, rest = _own(method, skip=1)
    if rest is None:  # else it takes any
        what = f'model.predict: {model["type"]}.infer'
        yield Place(('model', 'predict'), value, what, signature.names)


def _check_place(place: Place) -> None:
    for key in place.value:
        if key not in place.names:
            near = nearest(key, place.names)
            valid = '' if near else f' Valid: {", ".join(sorted(place.names - {"_scope_"}))}'
            raise ConfigError(f'{place.label} takes no {key!r}.{near}{valid}')
    absent = sorted(place.required - set(place.value))
    if absent:
        raise ConfigError(f'{place.label} needs {", ".join(map(repr, absent))}')


def _plain_keys(spot: tuple[str, ...]) -> frozenset[str] | None:
    if len(spot) == 1 and spot[0].endswith('_dataloader'):
        return _loader_keys()
    keys = PLAIN.get('.'.join(spot))
    return None if keys is None else frozenset(keys)


@lru_cache(maxsize=1)
def _loader_keys() -> frozenset[str]:
    from torch.utils.data import DataLoader

    return _own(DataLoader.__init__, skip=1)[0].names | set(_LOADER_EXTRA)


def _own(function: Callable[..., Any], skip: int) -> tuple[Signature, str | None]:
    """The arguments of one function after the first ``skip``, and the name of its ``**kwargs``."""
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    rest = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = frozenset(p.name for p in named if p.default is p.empty)
    return Signature(frozenset(p.name for p in named), required), rest


def _super_call(init: Callable[..., Any], rest: str) -> ast.Call | None:
    """The call ``super().__init__(..., **rest)`` in a constructor's source, if there is one."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(init)))
    except (OSError, TypeError):
        return None  # no source: then the arguments stop here
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        target = node.func.value
        is_super = isinstance(target, ast.Call) and getattr(target.func, 'id', '') == 'super'
        passes = any(k.arg is None and getattr(k.value, 'id', None) == rest for k in node.keywords)
        if node.func.attr == '__init__' and is_super and passes:
            return node
    return None


def _get(cfg: Mapping[str, Any], dotted: str) -> Any:
    node: Any = cfg
    for name in dotted.split('.'):
        node = node.get(name) if isinstance(node, Mapping) or hasattr(node, 'get') else None
    return node
