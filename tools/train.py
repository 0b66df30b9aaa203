#!/usr/bin/env python
"""Train the model of a config."""

from __future__ import annotations

import argparse
import sys

from mmvideo.apis.cli import Parser, run_tool

EXAMPLES = """
examples:
  python tools/train.py configs/sprites/train_vae_sprites.py
  python tools/train.py configs/sprites/train_animatediff_sprites.py --work-dir runs/motion --resume
  python tools/train.py CONFIG --cfg-options optim_wrapper.optimizer.lr=2e-4 train_cfg.max_iters=500
  torchrun --nproc-per-node 8 tools/train.py CONFIG --launcher pytorch
"""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__, EXAMPLES)
    parser.add_argument('config', help='a config file')
    parser.add_argument(
        '--work-dir', help='where checkpoints and logs go; default work_dirs/NAME-OF-CONFIG'
    )
    parser.add_argument(
        '--resume', action='store_true', help='continue the newest checkpoint of the work dir'
    )
    parser.add_launcher()
    parser.add_cfg_options(example='train_cfg.max_iters=100')
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    """Train."""
    from mmvideo.apis.train import train

    train(args.config, args.work_dir, args.resume, args.launcher, args.cfg_options)


def main() -> int:
    """The exit code, see ``run_tool``."""
    return run_tool(run, parse_args(), interrupted='continue with --resume')


if __name__ == '__main__':
    sys.exit(main())
