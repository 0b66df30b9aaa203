#!/usr/bin/env python
"""Say how much memory a config needs here, and which switches make it fit; read no weights."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from mmvideo.apis.cli import Parser, count, run_tool
from mmvideo.apis.flags import given_arguments

if TYPE_CHECKING:
    from mmvideo.apis.memory import Row

EXAMPLES = """
examples:
  python tools/doctor.py configs/sprites/pia_sprites.py
  python tools/doctor.py configs/pia/pia_sd15.py --device cuda --height 512 --width 768
  python tools/doctor.py configs/animatediff/animatediff-v2_sd15.py --num-frames 64 --windows 16
  python tools/doctor.py CONFIG --max-memory 6GiB        for another machine

exit codes: 0 it fits, perhaps with switches; 1 nothing makes it fit; 2 bad input
"""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add('config', help='a config, a model name, or a video with its recipe inside')
    add('--device', metavar='D', help='cpu, cuda, cuda:1, mps; default: a GPU if there is one')
    add('--dtype', metavar='T', help='float32, bfloat16 or float16')
    add('--max-memory', metavar='SIZE', help='such as 6GiB; default: what is free here')
    add('--image', metavar='PATH', help='the picture to animate, which may say the size')
    add('--num-frames', type=count, metavar='N', help='frames of a video')
    add('--windows', type=count, metavar='N', help='windows of N frames')
    add('--height', type=count, metavar='H', help='pixels')
    add('--width', type=count, metavar='W', help='pixels')
    parser.add_cfg_options()
    return parser.parse_args()


def run(args: argparse.Namespace) -> int:
    """Print the table and the proposal; 0 or 1."""
    from mmvideo.apis.inferencer import VideoInferencer
    from mmvideo.apis.memory import cheapest, free_memory, read_size, rows
    from mmvideo.apis.progress import size
    from mmvideo.config import parse_cfg_options
    from mmvideo.errors import InputError

    limit = None if args.max_memory is None else read_size(args.max_memory)
    inferencer = VideoInferencer(
        args.config, args.device, args.dtype, parse_cfg_options(args.cfg_options)
    )
    plan = inferencer.plan(False, **given_arguments(args, inferencer.defaults))
    limit = free_memory(plan.device) if limit is None else limit
    if limit is None:
        raise InputError('how much memory is free cannot be told here: say it with --max-memory.')
    table = rows(plan)
    shape = f'{plan.frames} frames of {plan.width}x{plan.height}'
    print(f'{plan.name}: {shape} on {plan.device} in {plan.dtype}; {size(limit)} to use')
    print('\n'.join(lines(table, limit)))
    chosen = cheapest(table, limit)
    if chosen is None:
        print('Nothing fits: take a smaller size, fewer frames or shorter windows.')
        return 1
    flags = chosen.switches.flags
    print(f'Add {flags}' if flags else 'It fits as it is.')
    return 0


def lines(table: list[Row], limit: int) -> list[str]:
    """The table: what each set of switches should need, cheapest first."""
    from mmvideo.apis.progress import size

    width = max(len(row.switches.flags or 'as it is') for row in table)
    return [
        f'  {row.switches.flags or "as it is":<{width}}  {size(row.needed):>8}  '
        f'{"fits" if row.needed <= limit else "too much"}'
        for row in table
    ]


def main() -> int:
    """Exit code 0 when it fits, 1 when nothing does, 2 for bad input."""
    found: list[int] = []
    failed = run_tool(
        lambda args: found.append(run(args)), parse_args(), interrupted='nothing was written'
    )
    return failed or found[0]


if __name__ == '__main__':
    sys.exit(main())
