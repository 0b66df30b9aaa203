#!/usr/bin/env python
"""Measure the model of a config on its test set."""

from __future__ import annotations

import argparse
import sys

EXAMPLES = """
examples:
  python tools/test.py configs/sprites/animatediff_sprites.py
  python tools/test.py configs/sprites/pia_sprites.py --out pia.json
  python tools/test.py CONFIG --cfg-options test_dataloader.dataset.length=20
"""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='a config file with a test_dataloader and test_evaluator')
    parser.add_argument('--work-dir', help='where logs go; default work_dirs/NAME-OF-CONFIG')
    parser.add_argument('--checkpoint', help='a training checkpoint (iter_N) to test')
    parser.add_argument('--out', help='also write the figures to this JSON file')
    parser.add_argument(
        '--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none',
        help='how the processes of a distributed job were started',
    )  # fmt: skip
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
        help='override settings of the config',
    )  # fmt: skip
    return parser.parse_args()


def main() -> int:
    """Test; exit code 2 for bad input, 130 when interrupted."""
    args = parse_args()
    from mmvideo.apis.train import test
    from mmvideo.errors import UserError

    try:
        figures = test(
            args.config, args.work_dir, args.checkpoint, args.launcher, args.cfg_options, args.out
        )
    except UserError as error:
        print('error:', ' '.join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    for name, value in figures.items():
        print(f'{name}: {value:.2f}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
