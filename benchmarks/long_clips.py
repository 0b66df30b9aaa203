#!/usr/bin/env python
"""Peak memory of clips of growing length: it should stay where it is.

Each length runs in a process of its own, from reading the weights to the finished file, with
windows, so that only latents are there for every frame. ``start`` is the process's memory when the
model is read, before anything is made; ``peak`` is the most that it ever took.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mmvideo.apis.cli import Parser

RESULTS = Path(__file__).parent / 'results'
EXAMPLES = """
examples:
  python benchmarks/long_clips.py
  python benchmarks/long_clips.py --frames 16 64 --size 64 --steps 1 --formats mp4 gif
  python benchmarks/long_clips.py --config configs/sprites/pia_sprites.py
"""
GOAL = 1.10  # of the longest clip's peak over the shortest's


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__, EXAMPLES)
    parser.add_argument('--config', default='configs/sprites/animatediff_sprites.py')
    parser.add_argument('--frames', type=int, nargs='+', default=[32, 128, 512])
    parser.add_argument('--window', type=int, default=16)
    parser.add_argument('--size', type=int, default=64, help='pixels of a side')
    parser.add_argument('--steps', type=int, default=4)
    parser.add_argument('--chunk', type=int, default=8, help='frames decoded at once')
    parser.add_argument('--formats', nargs='+', default=['mp4', 'gif'])
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--out', type=Path, default=RESULTS / 'long_clips.json')
    parser.add_argument('--child', type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def memory(key: str) -> int:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` at most."""
    for line in Path('/proc/self/status').read_text(encoding='ascii').splitlines():
        if line.startswith(f'{key}:'):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f'/proc/self/status has no {key}')


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One clip of ``args.child`` frames."""
    from mmvideo.apis import VideoInferencer

    inferencer = VideoInferencer(args.config, device=args.device)
    inferencer.defaults['formats'] = args.formats
    assert inferencer.editor is not None  # its weights are read
    start, begin = memory('VmRSS'), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        made = inferencer(
            folder,
            progress=False,
            return_samples=False,
            num_frames=args.child,
            windows=args.window,
            num_inference_steps=args.steps,
            decode_chunk_size=args.chunk,
            height=args.size,
            width=args.size,
        )
        files = {path.suffix: path.stat().st_size for path in made['paths']}
    return dict(
        frames=args.child,
        start=start,
        peak=memory('VmHWM'),
        seconds=round(time.perf_counter() - begin, 1),
        files=files,
    )


def main() -> int:
    """Exit code 0 when the longest clip needs at most a tenth more than the shortest."""
    args = parse_args()
    if args.child is not None:
        print(json.dumps(run(args)))
        return 0
    rows = []
    for frames in args.frames:
        command = [sys.executable, *sys.argv, '--child', str(frames)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        ratio = row['peak'] / rows[0]['peak']
        print(
            f'{frames:>5} frames: {row["start"] / 2**20:7.1f} MiB at the start, '
            f'{row["peak"] / 2**20:7.1f} MiB at the peak, ratio {ratio:.3f}, {row["seconds"]} s',
            flush=True,
        )
    ratio = rows[-1]['peak'] / rows[0]['peak']
    options = {k: str(v) for k, v in vars(args).items() if k not in ('out', 'child')}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(dict(options=options, rows=rows, ratio=ratio), indent=1) + '\n')
    return 0 if ratio <= GOAL else 1


if __name__ == '__main__':
    sys.exit(main())
