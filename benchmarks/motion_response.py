#!/usr/bin/env python
"""How far things move by what a model is told: one test run for each value of an argument.

The same pictures, captions and seeds each time; medians of the sprite tracker.
"""

from __future__ import annotations

import argparse
import json
import sys

from mmvideo.apis.cli import Parser

EXAMPLES = """
examples:
  python benchmarks/motion_response.py configs/svd/svd_sprites.py motion_bucket_id 0 64 127 191 255
  python benchmarks/motion_response.py configs/svd/svd_sprites.py fps 6 8 12 16
  python benchmarks/motion_response.py configs/i2vgen_xl/i2vgen-xl_sprites.py target_fps 6 8 12 16
"""
COLUMNS = ('median_displacement', 'median_excursion', 'direction', 'condition_frame_psnr', 'lost')


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__, EXAMPLES)
    parser.add_argument('config', help='a config with a SpriteMetric')
    parser.add_argument('argument', help="of the model's infer, such as motion_bucket_id")
    parser.add_argument('values', nargs='+', help='what to give it')
    parser.add_argument('--clips', type=int, default=48, metavar='N', help='of each value')
    parser.add_argument('--dtype', default='float32', help='of the model, such as bfloat16')
    parser.add_argument('--work-dir', metavar='D', help='for logs')
    parser.add_argument('--out', metavar='FILE.json', help='where to write the figures')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The figures by value, printed as they come."""
    from mmvideo.apis.train import test

    figures: dict[str, dict[str, float]] = {}
    print('\t'.join((args.argument, *COLUMNS)), flush=True)
    for value in args.values:
        options = [f'model.predict.{args.argument}={value}',
                   f'test_dataloader.dataset.length={args.clips}', *args.cfg_options]  # fmt: skip
        found = test(args.config, work_dir=args.work_dir, cfg_options=options, dtype=args.dtype)
        figures[value] = {name: found[f'sprites/{name}'] for name in COLUMNS
                          if f'sprites/{name}' in found}  # fmt: skip
        cells = (f'{figures[value].get(name, float("nan")):.1f}' for name in COLUMNS)
        print('\t'.join((value, *cells)), flush=True)
    return figures


def main() -> int:
    """Measure; exit code 2 for bad input."""
    args = parse_args()
    from mmvideo.errors import UserError

    try:
        figures = measure(args)
        if args.out is not None:
            from mmvideo.checkpoints.files import write_text

            write_text(args.out, json.dumps(figures, indent=2) + '\n')
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
