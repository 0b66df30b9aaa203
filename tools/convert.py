#!/usr/bin/env python
"""Write weights in another public layout: tensors bit by bit, names as the other programs want."""

from __future__ import annotations

import argparse
import sys

from mmvideo.apis.cli import Parser, run_tool

EXAMPLES = """
examples:
  python tools/convert.py mm_sd_v15_v2.ckpt adapter/              a MotionAdapter of diffusers
  python tools/convert.py pia.ckpt pia-adapter/ --dtype float16
  python tools/convert.py adapter/ mm.safetensors --to original   the way back
  python tools/convert.py v2_lora_ZoomIn.ckpt zoom-in.safetensors --to diffusers
  python tools/convert.py lora_kohya.safetensors lora.safetensors --to peft
  python tools/convert.py dreambooth.safetensors dreambooth/      its UNet, VAE and text encoder
  python tools/convert.py dreambooth/ single.safetensors --to original
  python tools/convert.py any.ckpt any.safetensors --to safetensors

layouts: original, diffusers, comfyui (what its nodes read: original, for LoRAs kohya), kohya,
kohya_ldm, peft, safetensors (the same names); default: diffusers, or back to original
"""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add('source', help='a file, folder, hub id or catalog://NAME')
    add('destination', help='a .safetensors file, or a folder where the layout is one')
    add('--to', metavar='LAYOUT', help='see below')
    add('--dtype', metavar='T', help='float32, float16 or bfloat16; default: as it is')
    add('--force', action='store_true', help='replace files that exist')
    add('--subfolder', metavar='F', help='folder inside the source, such as unet')
    add('--variant', metavar='V', help='which files of the source, such as fp16')
    add('--revision', metavar='R', help='branch, tag or commit on the hub')
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    """Convert, and say what was written."""
    from mmvideo.apis.convert import convert
    from mmvideo.checkpoints.layouts import FAMILIES

    done = convert(
        args.source,
        args.destination,
        args.to,
        dtype=args.dtype,
        force=args.force,
        subfolder=args.subfolder,
        variant=args.variant,
        revision=args.revision,
    )
    for note in done.translation.notes:
        print(f'note: {note}', file=sys.stderr)
    title = FAMILIES[done.translation.family].title
    for piece, path in zip(done.translation.pieces, done.paths, strict=True):
        print(f'{path}: {len(piece.tensors)} tensors of {title}, {done.translation.target}')


def main() -> int:
    """The exit code, see ``run_tool``."""
    return run_tool(run, parse_args(), interrupted='nothing was written')


if __name__ == '__main__':
    sys.exit(main())
