#!/usr/bin/env python
"""What a training step of the motion modules keeps for its backward pass, in bytes.

Every tensor that autograd saves in the forward pass is counted once by its storage, parameters
left out, for mmvideo's VideoUNet and diffusers' UNetMotionModel, each without and with its
gradient checkpointing. Only shapes are computed (PyTorch's fake tensors, CPU kernels' rules, so
attention is the fused one), so full size needs no memory. Optimizer, weights and what a recomputed
layer needs for a moment are not in the figures.

With --run, one forward and backward pass is computed too, on the CPU and in a process of its own:
the most that the process took above the model and its inputs, gradients included, and the time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mmvideo.apis.cli import Parser

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / 'results'
EXAMPLES = """
examples:
  python benchmarks/training_memory.py
  python benchmarks/training_memory.py --run --shapes sd15 --size 256 --frames 8 --dtype float32 \\
      --out benchmarks/results/training_peak.json
"""
SHAPES = {
    'tiny': dict(block_out_channels=(32, 64), cross_attention_dim=32, norm_num_groups=8),
    'sd15': dict(block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768,
                 norm_num_groups=32),
}  # fmt: skip
TOKENS = 77


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__, EXAMPLES)
    parser.add_argument('--shapes', nargs='+', choices=SHAPES, default=list(SHAPES))
    parser.add_argument('--size', type=int, default=512, help='pixels of a side, for sd15')
    parser.add_argument('--frames', type=int, default=16)
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='bfloat16')
    parser.add_argument('--run', action='store_true', help='compute a step as well')
    parser.add_argument('--out', type=Path, default=RESULTS / 'training_memory.json')
    parser.add_argument('--child', nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def stages(levels: int, kind: str) -> dict[str, tuple[str, ...]]:
    """Block names of a model with attention everywhere but in the coarsest level."""
    return dict(
        down_block_types=(f'CrossAttnDownBlock{kind}',) * (levels - 1) + (f'DownBlock{kind}',),
        up_block_types=(f'UpBlock{kind}',) + (f'CrossAttnUpBlock{kind}',) * (levels - 1),
    )


def ours(shape: dict[str, Any], checkpointing: bool) -> torch.nn.Module:
    """mmvideo's denoiser, motion modules trained."""
    from mmvideo.models.unet import VideoUNet

    model = VideoUNet(
        **shape,
        **stages(len(shape['block_out_channels']), '2D'),
        motion_module=dict(type='MotionModule', norm_scope='clip'),
        motion_mid_block=True,
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_('motion_modules' in name)
    model.enable_gradient_checkpointing(checkpointing)
    return model.train()


def theirs(shape: dict[str, Any], checkpointing: bool) -> torch.nn.Module:
    """diffusers' denoiser, likewise."""
    from diffusers import UNetMotionModel

    model = UNetMotionModel(
        **shape, **stages(len(shape['block_out_channels']), 'Motion'), use_motion_mid_block=True
    )
    model.freeze_unet2d_params()
    if checkpointing:
        model.enable_gradient_checkpointing()
    return model.train()


def saved_bytes(forward: Callable[[], torch.Tensor], model: torch.nn.Module) -> int:
    """Bytes of the storages that autograd keeps after ``forward``, parameters left out."""
    own = {value.untyped_storage()._cdata for value in model.state_dict(keep_vars=True).values()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no other takes its address
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        result = forward()
    assert result.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def make_step(
    name: str, library: str, checkpointing: bool, args: argparse.Namespace
) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
    """A model, and the loss of one step."""
    shape = SHAPES[name]
    cells = args.size // 8 if name == 'sd15' else 8
    model = (ours if library == 'mmvideo' else theirs)(shape, checkpointing)
    sample = torch.randn(args.batch, 4, args.frames, cells, cells)
    rows = args.batch * (1 if library == 'mmvideo' else args.frames)
    text = torch.randn(rows, TOKENS, shape['cross_attention_dim'])

    def forward() -> torch.Tensor:
        timestep = torch.tensor([500] * args.batch)
        result = model(sample, timestep, text)
        result = result if isinstance(result, torch.Tensor) else result.sample
        return torch.nn.functional.mse_loss(result.float(), sample.float())

    return model, forward


def measure(name: str, library: str, checkpointing: bool, args: argparse.Namespace) -> int:
    """Bytes kept for one step."""
    with FakeTensorMode():
        model, forward = make_step(name, library, checkpointing, args)
        return saved_bytes(forward, model)


def run_step(args: argparse.Namespace) -> dict[str, float]:
    """What runs in a process of its own: bytes above the model and its inputs, and seconds."""
    name, library, checkpointing = args.child
    _, forward = make_step(name, library, checkpointing == 'True', args)
    before, start = peak_memory(), time.perf_counter()
    forward().backward()
    return dict(seconds=round(time.perf_counter() - start, 1), peak=peak_memory() - before)


def peak_memory() -> int:
    """The most bytes that this process had in memory; models are built without a peak."""
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure_run(name: str, library: str, checkpointing: bool) -> dict[str, float]:
    """``run_step`` in a child with the arguments of this process."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    child = subprocess.run(
        [sys.executable, *sys.argv, '--child', name, library, str(checkpointing)],
        env={**os.environ, 'PYTHONPATH': path, 'CUDA_VISIBLE_DEVICES': ''},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(child.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print a table, write JSON."""
    args = parse_args()
    import diffusers

    torch.set_default_dtype(getattr(torch, args.dtype))  # fake tensors cannot be converted in place
    if args.child:
        print(json.dumps(run_step(args)))
        return
    rows = []
    print('shape  library    checkpointing       MiB kept' + '   MiB peak  seconds' * args.run)
    for name in args.shapes:
        for library in ('mmvideo', 'diffusers'):
            for checkpointing in (False, True):
                size = measure(name, library, checkpointing, args)
                row = dict(shape=name, library=library, checkpointing=checkpointing, bytes=size)
                line = f'{name:6} {library:10} {checkpointing!s:13} {size / 2**20:14.2f}'
                if args.run:
                    taken = measure_run(name, library, checkpointing)
                    row |= taken
                    line += f' {taken["peak"] / 2**20:10.0f} {taken["seconds"]:8.1f}'
                rows.append(row)
                print(line, flush=True)
    settings = dict(size=args.size, frames=args.frames, batch=args.batch, dtype=args.dtype)
    versions = dict(torch=torch.__version__, diffusers=diffusers.__version__)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    report = dict(settings=settings, versions=versions, rows=rows)
    args.out.write_text(json.dumps(report, indent=2) + '\n')
    print(f'written to {args.out}')


if __name__ == '__main__':
    main()
