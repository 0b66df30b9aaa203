#!/usr/bin/env python
"""Say what weights are: kind, version, base model, precision, parts, and how a config uses them."""

from __future__ import annotations

import argparse
import json
import sys

from mmvideo.apis.cli import Parser, run_tool

EXAMPLES = """
examples:
  python tools/inspect_weights.py mm_sd_v15_v2.ckpt
  python tools/inspect_weights.py dreambooth.safetensors --json
  python tools/inspect_weights.py guoyww/animatediff-motion-adapter-v1-5-2
  python tools/inspect_weights.py model_folder/                      every part of a pipeline
  python tools/inspect_weights.py model_folder/ --subfolder unet
"""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add('source', help='a file, folder, hub id or catalog://NAME')
    add('--json', action='store_true', help='as JSON, for programs')
    add('--subfolder', metavar='F', help='folder inside the source, such as unet')
    add('--variant', metavar='V', help='which files of the source, such as fp16')
    add('--revision', metavar='R', help='branch, tag or commit on the hub')
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    """Print the facts."""
    from mmvideo.apis.inspect import inspect, lines

    facts = inspect(args.source, args.subfolder, variant=args.variant, revision=args.revision)
    print(json.dumps(facts, indent=2) if args.json else '\n'.join(lines(facts)))


def main() -> int:
    """The exit code, see ``run_tool``."""
    return run_tool(run, parse_args(), interrupted='nothing was written')


if __name__ == '__main__':
    sys.exit(main())
