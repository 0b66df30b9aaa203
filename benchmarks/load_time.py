#!/usr/bin/env python
"""Peak memory and time until a model is ready to run: mmvideo beside diffusers.

Stable Diffusion 1.5 and AnimateDiff's v2 motion modules, random values in float16 files, either as
folders in the hub's layout or as they were first published: one file in the original layout and
``mm_sd_v15_v2.ckpt``. Each library loads in a process of its own, one after another, from files
that were just written (the system has them in its cache). The peak is the process's resident set
as the system reports it; what it holds after its imports is listed beside it, and the ratio to the
size of the model's weights is given with and without that.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mmvideo.apis.cli import Parser

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / 'results'
EXAMPLES = """
examples:
  python benchmarks/load_time.py                      6 GB on the disk for a while
  python benchmarks/load_time.py --small --out /tmp/load.json
  python benchmarks/load_time.py --layouts file --dtypes float32 --libraries mmvideo
"""
LAYOUTS, DTYPES, LIBRARIES = ('folder', 'file'), ('float16', 'float32'), ('mmvideo', 'diffusers')
# The levels of the original layout with a tenth of its widths.
SMALL = dict(widths=(32, 64, 128, 128), sample=8, text=48, heads=8, groups=32, layers=2)
BASE, MOTION = 'sd15', 'motion_adapter'
BASE_FILE, MOTION_FILE = 'v1-5-pruned-emaonly.safetensors', 'mm_sd_v15_v2.ckpt'
CONFIG = 'animatediff/animatediff-v2_sd15.py'
# Bytes a kilobyte of ru_maxrss.
UNIT = 1 if sys.platform == 'darwin' else 1024


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__, EXAMPLES)
    parser.add_argument('--small', action='store_true', help='the same files, a hundredth as large')
    parser.add_argument('--layouts', nargs='+', choices=LAYOUTS, default=LAYOUTS)
    parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=DTYPES)
    parser.add_argument('--libraries', nargs='+', choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument('--folder', type=Path, help='where to write the files; a temporary one')
    parser.add_argument('--out', type=Path, default=RESULTS / 'load_time.json')
    parser.add_argument('--child', nargs=3, help=argparse.SUPPRESS)
    parser.add_argument('--write', action='store_true', help=argparse.SUPPRESS)
    return parser.parse_args()


# Files ------------------------------------------------------------------------------------------


def random_weights() -> Any:
    """tools/make_random_weights.py, which is no package."""
    path = ROOT / 'tools' / 'make_random_weights.py'
    spec = importlib.util.spec_from_file_location('make_random_weights', path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_files(folder: Path, small: bool) -> None:
    """Folders and files of the same values, one part at a time."""
    import torch

    from mmvideo.checkpoints.save import save_part

    make = random_weights()
    generator = torch.Generator().manual_seed(0)
    for name, build in make.parts(SMALL if small else make.FULL).items():
        if name == 'pia':
            continue
        with torch.device('meta'):
            module = build()
        values = dict(make.random_tensors(module, torch.float16, generator))
        save_part(folder / name, make.config_of(module), values)
    make.write_rest(folder / BASE)
    write_originals(folder)


def write_originals(folder: Path) -> None:
    """The same weights under the names and in the formats of their first publication."""
    import torch

    from mmvideo.checkpoints.files import write_tensors
    from mmvideo.checkpoints.layouts.ldm import PARTS, diffusers_to_ldm
    from mmvideo.checkpoints.load import read_part
    from mmvideo.checkpoints.motion import original_motion, read_motion

    parts = {name: read_part(str(folder / BASE), name)[1] for name in PARTS}
    write_tensors(folder / BASE_FILE, diffusers_to_ldm(parts))
    del parts
    motion = original_motion(read_motion(folder / MOTION))
    # Its own memory: of mapped tensors torch.save would write the whole file each time.
    torch.save({key: value.clone() for key, value in motion.items()}, folder / MOTION_FILE)


# Loading ----------------------------------------------------------------------------------------


def load_mmvideo(folder: Path, layout: str, dtype: str) -> Iterator[Any]:
    """Yields when all is imported, then the modules."""
    from diffusers import AutoencoderKL  # noqa: F401 - imports are no part of reading weights
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

    from mmvideo.config import load_config
    from mmvideo.registry import MODELS
    from mmvideo.utils import register_all_modules

    register_all_modules()
    yield None
    base = str(folder / (BASE if layout == 'folder' else BASE_FILE))
    options: dict[str, Any] = {f'model.{p}.from_pretrained': base
                               for p in ('vae', 'text_encoder', 'unet')}  # fmt: skip
    options |= {f'model.{p}.dtype': dtype for p in ('vae', 'text_encoder', 'unet')}
    options['model.tokenizer.from_pretrained'] = str(folder / BASE)
    motion = folder / (MOTION if layout == 'folder' else MOTION_FILE)
    options['model.motion_module.from_pretrained'] = str(motion)
    cfg = load_config(ROOT / 'configs' / CONFIG, cfg_options=options)
    editor = MODELS.build(cfg.model)
    yield [editor.unet, editor.vae, editor.text_encoder]


def load_diffusers(folder: Path, layout: str, dtype: str) -> Iterator[Any]:
    """The same as diffusers' documentation does it."""
    import torch
    from diffusers import (
        AnimateDiffPipeline,
        AutoencoderKL,  # noqa: F401 - as above
        MotionAdapter,
        StableDiffusionPipeline,
        UNetMotionModel,  # noqa: F401
    )
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

    yield None
    kind = dict(dtype=getattr(torch, dtype))
    none = dict(safety_checker=None, feature_extractor=None)
    if layout == 'folder':
        adapter = MotionAdapter.from_pretrained(folder / MOTION, **kind)
        pipeline = AnimateDiffPipeline.from_pretrained(
            folder / BASE, motion_adapter=adapter, feature_extractor=None, **kind
        )
    else:
        adapter = MotionAdapter.from_single_file(
            str(folder / MOTION_FILE), config=str(folder / MOTION), local_files_only=True, **kind
        )
        image = StableDiffusionPipeline.from_single_file(
            str(folder / BASE_FILE),
            config=str(folder / BASE),
            local_files_only=True,
            **none,
            **kind,
        )
        parts = {k: v for k, v in image.components.items() if k not in none}
        pipeline = AnimateDiffPipeline(**{**parts, 'image_encoder': None}, motion_adapter=adapter)
        del image, parts
    del adapter
    yield [pipeline.unet, pipeline.vae, pipeline.text_encoder]


def child(args: argparse.Namespace) -> dict[str, Any]:
    """One library, layout and precision, in this process."""
    import torch

    torch.set_num_threads(args.threads)
    library, layout, dtype = args.child
    load = load_mmvideo if library == 'mmvideo' else load_diffusers
    steps = load(args.folder, layout, dtype)
    next(steps)
    imported, start = peak_bytes(), time.perf_counter()
    modules = next(steps)
    seconds, peak = time.perf_counter() - start, peak_bytes()
    tensors = [t for m in modules for t in m.parameters()]
    assert not any(t.is_meta for t in tensors)
    return dict(
        library=library,
        layout=layout,
        dtype=dtype,
        weights_bytes=sum(t.nbytes for t in tensors),
        in_float16=sum(t.dtype == torch.float16 for t in tensors),
        parameters=sum(t.numel() for t in tensors),
        imported_bytes=imported,
        peak_bytes=peak,
        seconds=round(seconds, 2),
    )


def peak_bytes() -> int:
    """The most resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


# Measuring --------------------------------------------------------------------------------------


def run(args: argparse.Namespace, folder: Path, *extra: str) -> dict[str, Any]:
    """This program again in a process of its own; the JSON that it prints last."""
    environment = {**os.environ, 'HF_HUB_OFFLINE': '1', 'CUDA_VISIBLE_DEVICES': '',
                   'OMP_NUM_THREADS': str(args.threads)}  # fmt: skip
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    small = ['--small'] if args.small else []
    command = [sys.executable, __file__, '--folder', str(folder), *small, *extra]
    command += ['--threads', str(args.threads)]
    done = subprocess.run(
        command, env={**environment, 'PYTHONPATH': path}, stdout=subprocess.PIPE, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f'{" ".join(extra)}: left with {done.returncode}')
    return json.loads(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A row for each library, layout and precision, with its ratios."""
    rows = []
    print('layout  dtype    library     weights GiB  peak GiB  ratio  without imports  seconds')
    for layout in args.layouts:
        for dtype in args.dtypes:
            for library in args.libraries:
                row = run(args, folder, '--child', library, layout, dtype)
                weights, peak = row['weights_bytes'], row['peak_bytes']
                row['ratio'] = round(peak / weights, 3)
                row['ratio_without_imports'] = round((peak - row['imported_bytes']) / weights, 3)
                rows.append(row)
                show(row)
    return rows


def show(row: dict[str, Any]) -> None:
    """A line of the table."""
    sizes = [row[name] / 2**30 for name in ('weights_bytes', 'peak_bytes')]
    print(
        f'{row["layout"]:7} {row["dtype"]:8} {row["library"]:10} {sizes[0]:12.2f} {sizes[1]:9.2f} '
        f'{row["ratio"]:6.2f} {row["ratio_without_imports"]:16.2f} {row["seconds"]:8.1f}',
        flush=True,
    )


def main() -> None:
    """Write, measure, print a table, write JSON."""
    args = parse_args()
    if args.child:
        print(json.dumps(child(args)))
        return
    if args.write:
        write_files(args.folder, args.small)
        print('{}')
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        # In another process: this one's memory would be the floor of the others' peaks.
        run(args, Path(folder), '--write')
        rows = measure(args, Path(folder))
    report = dict(
        settings=dict(small=args.small, threads=args.threads, files='float16'),
        machine=dict(processor=platform.processor() or platform.machine(), cpus=os.cpu_count()),
        versions={name: version(name) for name in ('torch', 'diffusers', 'transformers')},
        rows=rows,
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + '\n')
    print(f'written to {args.out}')


if __name__ == '__main__':
    main()
