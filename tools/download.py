#!/usr/bin/env python
"""Fetch public weights into the hub's cache, list them, or verify what is here."""

from __future__ import annotations

import argparse
import os
import sys

from mmvideo.apis.cli import Parser, run_tool

EXAMPLES = """
examples:
  python tools/download.py --list                       every name, its licence and size
  python tools/download.py pia                          fetch it; run again to resume
  python tools/download.py pia --list                   its files, and which are here
  python tools/download.py pia --verify --offline       hash what is here again
  python tools/download.py sd15 --variant fp16
  python tools/download.py owner/name model.safetensors --cache-dir /data/hub
"""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add('name', nargs='?', help='a name of the catalogue, or a hub id as owner/name')
    add('file', nargs='?', help='one file of the repository; default: those that are read')
    add('--list', action='store_true', help='say what there is; fetch nothing')
    add('--verify', action='store_true', help='hash the files that are here; fetch nothing')
    add('--offline', action='store_true', help='ask no network, as HF_HUB_OFFLINE=1')
    add('--cache-dir', metavar='DIR', help='the cache; default: HF_HUB_CACHE, or hub in HF_HOME')
    add('--variant', metavar='V', help='which files, such as fp16')
    add('--revision', metavar='R', help='branch, tag or commit')
    add('--accept-change', action='store_true',
        help='take a file whose hash is another than the known one, and record it')  # fmt: skip
    args = parser.parse_args()
    if args.name is None and not args.list:
        parser.error('name what to fetch, or --list what there is')
    return args


def run(args: argparse.Namespace) -> None:
    """Do what the command line says."""
    if args.offline:
        os.environ['HF_HUB_OFFLINE'] = '1'  # read when the client library is imported
    from mmvideo.apis import download

    if args.name is None:
        print('\n'.join(download.list_catalog()))
        return
    options = {
        'variant': args.variant,
        'revision': args.revision,
        'cache_dir': args.cache_dir,
    }
    if args.list:
        asked = download.wanted(args.name, args.file, **options)
        print('\n'.join(download.list_files(asked, args.cache_dir)))
        return
    options['accept_change'] = args.accept_change
    if args.verify:
        print('\n'.join(download.verify(args.name, args.file, **options)))
        return
    # In a terminal the client library shows a bar of its own.
    report = None if sys.stderr.isatty() else download.Lines(_say)
    for path in download.download(args.name, args.file, report=report, **options):
        print(path)
    if args.cache_dir:
        _say(f'configs find these files with HF_HUB_CACHE={args.cache_dir}')


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """The exit code, see ``run_tool``."""
    kept = 'what has arrived is kept, the same command goes on'
    return run_tool(run, parse_args(), interrupted=kept)


if __name__ == '__main__':
    sys.exit(main())
