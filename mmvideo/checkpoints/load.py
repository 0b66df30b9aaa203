"""Weights into modules: every parameter filled or named, every key used or named."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmvideo.checkpoints.files import read_json, read_tensors
from mmvideo.checkpoints.memory import MappedFiles
from mmvideo.checkpoints.sources import WEIGHT_FILES, resolve, resolve_weights
from mmvideo.errors import WeightsError, nearest

DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}
_SHOWN = 5


def dtype_of(name: str | torch.dtype) -> torch.dtype:
    """The floating type that a config names.

    Raises:
        WeightsError: ``name`` is not 'float32', 'float16' or 'bfloat16'.
    """
    if isinstance(name, torch.dtype):
        return name
    if name not in DTYPES:
        raise WeightsError(
            f'dtype={name!r}: expected one of {list(DTYPES)}.{nearest(name, DTYPES)}'
        )
    return DTYPES[name]


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Build modules whose parameters hold no memory (meta device) and whose buffers are real.

    Buffers stay real because the values of those that no checkpoint carries are computed in the
    constructor. Such a module becomes whole in ``load_into``.
    """
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.detach().to('meta'), requires_grad=param.requires_grad)
        original(module, name, param)

    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def load_into(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    what: str = 'model',
    dtype: str | torch.dtype | None = None,
) -> nn.Module:
    """Fill a module with weights, all of them, or say what does not fit.

    Args:
        module: A module, also one built in ``without_weights``.
        tensors: Key to tensor in the module's own names. They are copied, never aliased; those of
            a mapped file give their memory back as soon as they are.
        what: The name of the part in messages, such as 'vae'.
        dtype: Floating type of the result. None keeps the type of the module's parameters.

    Returns:
        ``module``.

    Raises:
        WeightsError: A parameter has no tensor, a tensor no parameter, or shapes differ. The
            message counts them all and shows the first of each; the module is untouched.
    """
    expected = module.state_dict(keep_vars=True)
    verify(expected, tensors, what)
    wanted = dtype_of(dtype) if dtype is not None else None
    mapped, filled = MappedFiles(), {}
    for key, like in expected.items():
        filled[key] = _copy(tensors[key], like, wanted)
        mapped.drop(tensors[key])
    module.load_state_dict(filled, assign=True)
    if wanted is not None:
        cast(module, wanted)  # buffers that no checkpoint carries
    left = [name for name, value in _all_tensors(module) if value.is_meta]
    assert not left, f'{what}: still without values: {left[:_SHOWN]}'
    return module


def cast(module: nn.Module, dtype: str | torch.dtype) -> nn.Module:
    """``module.to(dtype)``, past the overrides of libraries that log at each call."""
    return nn.Module.to(module, dtype=dtype_of(dtype))


def verify(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise one WeightsError for all differences of names and shapes."""
    absent = [key for key in expected if key not in tensors]
    unused = [key for key in tensors if key not in expected]
    shapes = [
        f'{key} is {list(tensors[key].shape)}, expected {list(expected[key].shape)}'
        for key in expected
        if key in tensors and tensors[key].shape != expected[key].shape
    ]
    parts = [
        _listed('missing', absent),
        _listed('not part of this model', unused),
        _listed('of another shape', shapes),
    ]
    found = [part for part in parts if part]
    if found:
        raise WeightsError(
            f'the weights of {what} do not fit ({len(tensors)} tensors for {len(expected)} '
            'parameters): ' + '; '.join(found)
        )


def read_part(
    source: str,
    subfolder: str | None = None,
    *,
    variant: str | None = None,
    revision: str | None = None,
    weights: tuple[str, ...] = WEIGHT_FILES,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read one part of a model folder in the Hugging Face layout.

    Args:
        source: Folder, hub id or ``package://NAME``.
        subfolder: Folder of the part inside the source, such as 'vae'.
        variant: Which files, such as 'fp16' for ``diffusion_pytorch_model.fp16.safetensors``.
        revision: Branch, tag or commit on the hub.
        weights: File names to look for, in this order.

    Returns:
        The content of ``config.json`` and the tensors, unmapped.
    """
    where = {'subfolder': subfolder, 'revision': revision}
    config = read_json(resolve(source, filenames=('config.json',), **where))
    paths = resolve_weights(source, filenames=weights, variant=variant, **where)
    return config, read_files(paths)


def read_files(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of one file, or of all shards together.

    Raises:
        WeightsError: Also where two shards hold the same key.
    """
    tensors: dict[str, Tensor] = {}
    for path in paths:
        tensors.update(_shard(path, tensors))
    return tensors


def _shard(path: Path, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = read_tensors(path)
    twice = [key for key in tensors if key in known]
    if twice:
        raise WeightsError(f'{path} repeats {len(twice)} tensors of another shard: {twice[:3]}')
    return tensors


def _copy(value: Tensor, like: Tensor, wanted: torch.dtype | None) -> Tensor:
    """Own memory: file mappings are neither aligned nor safe from a file that shrinks."""
    kind = wanted if wanted is not None and like.is_floating_point() else like.dtype
    device = 'cpu' if like.is_meta else like.device
    return value.to(device=device, dtype=kind, copy=True)


def _all_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _listed(title: str, names: list[str]) -> str:
    if not names:
        return ''
    more = f', and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return f'{len(names)} {title}: {", ".join(names[:_SHOWN])}{more}'
