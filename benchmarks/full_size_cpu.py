#!/usr/bin/env python
"""Peak memory and time of a full-size animation on a CPU: mmvideo beside diffusers.

Both read the same random weights (tools/make_random_weights.py), take the same steps at the same
size, and run alone in a process of their own, one after another. The peak is the process's
resident set as the system reports it (libraries included); seconds are split into reading the
weights and making the video.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mmvideo.apis.cli import Parser

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / 'results'
EXAMPLES = """
examples:
  python tools/make_random_weights.py /tmp/random --dtype float32
  python benchmarks/full_size_cpu.py /tmp/random
  python benchmarks/full_size_cpu.py /tmp/random --size 512 --threads 16 --families pia
"""
PROMPT, NEGATIVE = 'a boat on the sea', 'a picture'
CONFIGS = {'animatediff': 'animatediff/animatediff-v2_sd15.py', 'pia': 'pia/pia_sd15.py'}
ADAPTERS = {'animatediff': 'motion_adapter', 'pia': 'pia'}


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__, EXAMPLES)
    parser.add_argument('weights', type=Path, help='a folder of tools/make_random_weights.py')
    parser.add_argument('--families', nargs='+', choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument('--libraries', nargs='+', choices=('mmvideo', 'diffusers'),
                        default=['mmvideo', 'diffusers'])  # fmt: skip
    parser.add_argument('--steps', type=int, default=2)
    parser.add_argument('--frames', type=int, default=16)
    parser.add_argument('--size', type=int, default=256, help='height and width, pixels')
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
    parser.add_argument('--out', type=Path, default=RESULTS / 'full_size_cpu.json')
    parser.add_argument('--child', nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def picture(size: int) -> Any:
    """The condition picture."""
    from PIL import Image

    return Image.linear_gradient('L').resize((size, size)).convert('RGB')


def run_mmvideo(args: argparse.Namespace, family: str) -> dict[str, float]:
    """One animation through the inferencer."""
    from diffusers import AutoencoderKL  # noqa: F401 - imports are no part of reading weights
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

    from mmvideo.apis import VideoInferencer

    base = str(args.weights / 'sd15')
    options = {
        f'model.{part}.from_pretrained': base
        for part in ('vae', 'text_encoder', 'tokenizer', 'unet')
    }
    options['model.motion_module.from_pretrained'] = str(args.weights / ADAPTERS[family])
    start = time.perf_counter()
    config = ROOT / 'configs' / CONFIGS[family]
    inferencer = VideoInferencer(config, 'cpu', args.dtype, cfg_options=options)
    inferencer.editor  # noqa: B018 - the weights are read here
    loaded = time.perf_counter()
    call = dict(
        prompt=PROMPT, negative_prompt=NEGATIVE, num_inference_steps=args.steps,
        guidance_scale=7.5, height=args.size, width=args.size, video_length=args.frames, seed=0,
    )  # fmt: skip
    if family == 'pia':
        call.update(image=picture(args.size), motion_scale=1)
    inferencer(out=False, progress=False, **call)
    return dict(read=loaded - start, make=time.perf_counter() - loaded)


def run_diffusers(args: argparse.Namespace, family: str) -> dict[str, float]:
    """The same through diffusers' pipeline, as its documentation calls it."""
    import torch
    from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter, PIAPipeline

    start = time.perf_counter()
    dtype = getattr(torch, args.dtype)
    adapter = MotionAdapter.from_pretrained(args.weights / ADAPTERS[family], dtype=dtype)
    kind = PIAPipeline if family == 'pia' else AnimateDiffPipeline
    pipeline = kind.from_pretrained(
        args.weights / 'sd15', motion_adapter=adapter, dtype=dtype, feature_extractor=None
    )
    del adapter
    pipeline.scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule='linear', clip_sample=False,
        steps_offset=1,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    loaded = time.perf_counter()
    call = dict(
        prompt=PROMPT, negative_prompt=NEGATIVE, num_inference_steps=args.steps,
        guidance_scale=7.5, height=args.size, width=args.size, num_frames=args.frames,
        generator=torch.Generator().manual_seed(0), output_type='pt',
    )  # fmt: skip
    if family == 'pia':
        call.update(image=picture(args.size), motion_scale=1)
    pipeline(**call)
    return dict(read=loaded - start, make=time.perf_counter() - loaded)


def child(args: argparse.Namespace) -> None:
    """What runs in a process of its own; prints its times as JSON."""
    import torch

    torch.set_num_threads(args.threads)
    library, family = args.child
    print(json.dumps((run_mmvideo if library == 'mmvideo' else run_diffusers)(args, family)))


def measure(args: argparse.Namespace, library: str, family: str) -> dict[str, Any]:
    """Times and peak of one child."""
    environment = {**os.environ, 'HF_HUB_OFFLINE': '1', 'CUDA_VISIBLE_DEVICES': '',
                   'OMP_NUM_THREADS': str(args.threads)}  # fmt: skip
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    process = subprocess.Popen(
        [sys.executable, *sys.argv, '--child', library, family], stdout=subprocess.PIPE,
        text=True, env={**environment, 'PYTHONPATH': path},
    )  # fmt: skip
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f'{library} {family}: left with {process.returncode}')
    unit = 1 if sys.platform == 'darwin' else 1024
    times = json.loads(printed.splitlines()[-1])
    return dict(
        library=library,
        family=family,
        peak_gib=round(usage.ru_maxrss * unit / 2**30, 2),
        read_s=round(times['read'], 1),
        make_s=round(times['make'], 1),
        cpu_s=round(usage.ru_utime + usage.ru_stime, 1),
    )


def main() -> None:
    """Measure, print a table, write JSON."""
    args = parse_args()
    if args.child:
        child(args)
        return
    import diffusers
    import torch

    rows = []
    print('family       library    peak GiB   read s   make s    CPU s')
    for family in args.families:
        for library in args.libraries:
            row = measure(args, library, family)
            rows.append(row)
            print(f'{family:12} {library:10} {row["peak_gib"]:8.2f} {row["read_s"]:8.1f} '
                  f'{row["make_s"]:8.1f} {row["cpu_s"]:8.1f}', flush=True)  # fmt: skip
    report = dict(
        settings=dict(steps=args.steps, frames=args.frames, size=args.size, dtype=args.dtype,
                      threads=args.threads, guidance_scale=7.5),
        machine=dict(processor=platform.processor() or platform.machine(), cpus=os.cpu_count()),
        versions=dict(torch=torch.__version__, diffusers=diffusers.__version__),
        rows=rows,
    )  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + '\n')
    print(f'written to {args.out}')


if __name__ == '__main__':
    main()
