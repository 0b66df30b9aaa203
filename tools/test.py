#!/usr/bin/env python
"""Measure the model of a config on its test set."""

from __future__ import annotations

import argparse
import sys

from mmvideo.apis.cli import Parser, count, run_tool

EXAMPLES = """
examples:
  python tools/test.py configs/sprites/animatediff_sprites.py
  python tools/test.py configs/sprites/pia_sprites.py --out pia.json
  python tools/test.py configs/sprites/pia_sprites.py --dtype bfloat16 --limit 48
  python tools/test.py CONFIG --checkpoint work_dirs/NAME/iter_2000
  python tools/test.py CONFIG --cfg-options model.predict.num_inference_steps=15
  torchrun --nproc-per-node 8 tools/test.py CONFIG --launcher pytorch
"""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__, EXAMPLES)
    parser.add_argument('config', help='a config file with a test_dataloader and test_evaluator')
    parser.add_argument('--work-dir', help='where logs go; default work_dirs/NAME-OF-CONFIG')
    parser.add_argument(
        '--checkpoint', help='a training checkpoint (iter_N) to test: its EMA copy, if it has one'
    )
    parser.add_argument(
        '--out', metavar='FILE.json', help='write the figures there too; figures.json is in the log'
    )
    parser.add_argument(
        '--dtype', choices=('float32', 'bfloat16'), default='float32',
        help='precision of the whole model, as in tools/infer.py',
    )  # fmt: skip
    parser.add_argument('--limit', type=count, metavar='N', help='test the first N clips only')
    parser.add_launcher()
    parser.add_cfg_options()
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    """Measure, and print the figures."""
    from mmvideo.apis.train import test

    figures = test(
        args.config,
        args.work_dir,
        args.checkpoint,
        args.launcher,
        args.cfg_options,
        out=args.out,
        dtype=args.dtype,
        limit=args.limit,
        progress=True,
    )
    for name, value in figures.items():
        print(f'{name}: {value:.2f}')


def main() -> int:
    """The exit code, see ``run_tool``."""
    return run_tool(run, parse_args(), interrupted='no figures were written')


if __name__ == '__main__':
    sys.exit(main())
