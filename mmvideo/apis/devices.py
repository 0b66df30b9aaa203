"""Where to compute and in which precision, from what a user wrote."""

from __future__ import annotations

import torch

from mmvideo.errors import InputError, nearest

DTYPES = {
    'float32': torch.float32,
    'bfloat16': torch.bfloat16,
    'float16': torch.float16,
}
_SHORT = {'fp32': 'float32', 'bf16': 'bfloat16', 'fp16': 'float16'}


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The device called ``name``; None is the first GPU, or the CPU where there is none.

    Raises:
        InputError: no such device here.
    """
    if name is None:
        return torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
    except RuntimeError:
        hint = nearest(name, ['cpu', 'cuda', 'mps'])
        raise InputError(f'device={name!r}: expected cpu, cuda, cuda:1 or mps.{hint}') from None
    if device.type not in ('cpu', 'cuda', 'mps'):
        raise InputError(f'device={name!r}: expected cpu, cuda, cuda:1 or mps.')
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f'device={name!r}: this machine has {torch.cuda.device_count()} CUDA devices that '
            'torch can use; expected cpu.'
            if not torch.cuda.device_count()
            else f'device={name!r}: expected cuda:0 to cuda:{torch.cuda.device_count() - 1}.'
        )
    if device.type == 'mps' and not torch.backends.mps.is_available():
        raise InputError(f'device={name!r}: torch cannot use it here; expected cpu.')
    return torch.device('cuda', 0) if device == torch.device('cuda') else device


def pick_dtype(name: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The precision called ``name``; None is bfloat16 on CUDA and float32 elsewhere.

    Raises:
        InputError: no such precision, or one that the device has no kernels for.
    """
    if name is None:
        return torch.bfloat16 if device.type == 'cuda' else torch.float32
    text = str(name).removeprefix('torch.')
    text = _SHORT.get(text, text)
    if text not in DTYPES:
        hint = nearest(text, [*DTYPES, *_SHORT])
        raise InputError(f'dtype={name!r}: expected {", ".join(DTYPES)}.{hint}')
    if text == 'float16' and device.type == 'cpu':
        raise InputError('dtype=float16: too imprecise and slow on a CPU; use bfloat16 or float32.')
    return DTYPES[text]


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` is ``'bfloat16'``."""
    return str(dtype).removeprefix('torch.')
