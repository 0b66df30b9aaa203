#!/usr/bin/env python
"""Train the whole sprite family: VAE, text to image, motion modules, PIA, personalised model,
Stable Video Diffusion, I2VGen-XL."""

from __future__ import annotations

import argparse
import sys

from mmvideo.apis.cli import Parser, run_tool

EXAMPLES = """
Every stage reads what the stages before it exported. A stage that is done is skipped and one that
was interrupted goes on, so the same command can be repeated.

All stages take about 10 hours on 2 CPU cores: computed, as the minutes a step that each stage was
seen to take there beside other work, times the steps of its config. On a GPU no time was measured.

examples:
  python tools/train_sprites.py --out work_dirs/sprites/weights
  python tools/train_sprites.py --out w --stages vae t2i_near --steps-scale 0.1
  python tools/infer.py configs/sprites/pia_sprites.py --cfg-options \\
      model.motion_module.from_pretrained=work_dirs/sprites/weights
"""
STAGES = (
    'vae',
    'vae_decoder',
    't2i_near',
    't2i',
    'animatediff_centred',
    'animatediff',
    'animatediff_joint',
    'animatediff_turning',
    'pia_still',
    'pia_short',
    'pia',
    'sketch',
    'svd_vae',
    'svd_frames',
    'svd',
    'i2vgen-xl_short',
    'i2vgen-xl',
)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__, EXAMPLES)
    parser.add_argument(
        '--out', default='work_dirs/sprites/weights', help='folder for the finished weights'
    )
    parser.add_argument(
        '--work-dir', default='work_dirs/sprites', help='folder for checkpoints, caches and logs'
    )
    parser.add_argument(
        '--stages', nargs='+', choices=STAGES, default=list(STAGES), help='default: all'
    )
    parser.add_argument(
        '--steps-scale', type=float, default=1.0, metavar='X',
        help='multiply steps and clips of every stage, for a trial',
    )  # fmt: skip
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    """Train."""
    from mmvideo.apis.sprites import train_family

    train_family(args.out, args.work_dir, args.stages, args.steps_scale)


def main() -> int:
    """The exit code, see ``run_tool``."""
    return run_tool(run, parse_args(), interrupted='the same command continues')


if __name__ == '__main__':
    sys.exit(main())
