#!/usr/bin/env python
"""Train the model of a config."""

from __future__ import annotations

import argparse
import sys

EXAMPLES = """
examples:
  python tools/train.py configs/sprites/vae_sprites.py
  python tools/train.py configs/sprites/animatediff_sprites.py --work-dir runs/motion --resume
  python tools/train.py CONFIG --cfg-options optim_wrapper.optimizer.lr=2e-4 train_cfg.max_iters=500
  torchrun --nproc-per-node 8 tools/train.py CONFIG --launcher pytorch
"""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='a config file')
    parser.add_argument(
        '--work-dir', help='where checkpoints and logs go; default work_dirs/NAME-OF-CONFIG'
    )
    parser.add_argument(
        '--resume', action='store_true', help='continue the newest checkpoint of the work dir'
    )
    parser.add_argument(
        '--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none',
        help='how the processes of a distributed job were started',
    )  # fmt: skip
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
        help='override settings of the config, such as train_cfg.max_iters=100',
    )  # fmt: skip
    return parser.parse_args()


def main() -> int:
    """Train; exit code 2 for bad input, 130 when interrupted."""
    args = parse_args()
    from mmvideo.apis.train import train
    from mmvideo.errors import UserError

    try:
        train(args.config, args.work_dir, args.resume, args.launcher, args.cfg_options)
    except UserError as error:
        print('error:', ' '.join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted: continue with --resume', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
