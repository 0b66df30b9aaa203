#!/usr/bin/env python
"""Measure the range of frame differences of a data set, which PIA's training scales by.

The config's train_dataloader.dataset is read; the result goes into condition_module.statistics.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from mmvideo.apis.cli import Parser, count, json_file, run_tool

EXAMPLES = """
examples:
  python tools/affinity_stats.py configs/sprites/train_pia_sprites.py --out statistics.json
  python tools/affinity_stats.py CONFIG --clips 10000 --percentile 99 --out data/affinity.json
  python tools/affinity_stats.py CONFIG --cfg-options train_dataloader.dataset.size=128

afterwards, in the config:
  condition_module=dict(type='PIACondition', statistics='data/affinity.json')
"""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__, EXAMPLES)
    parser.add_argument('config', help='a config file with a train_dataloader')
    parser.add_argument(
        '--clips', type=count, default=2000, metavar='N',
        help='clips to measure, spread over the data set; default 2000, or all if there are fewer',
    )  # fmt: skip
    parser.add_argument(
        '--percentile', type=float, default=100.0, metavar='P',
        help='of the pairs of frames at each distance, the share in percent that the largest score '
        'covers; below 100 a few cuts or odd clips do not set it. Default 100',
    )  # fmt: skip
    parser.add_argument('--out', metavar='FILE.json', help='where to write the statistics')
    parser.add_cfg_options()
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    """Measure, print and write."""
    out = json_file(args.out)
    from mmvideo.checkpoints.files import write_text
    from mmvideo.config import load_config, parse_cfg_options

    cfg = load_config(args.config, parse_cfg_options(args.cfg_options))
    source = clips_config(cfg, args.config)
    statistics = measure(source, args.clips, args.percentile)
    print(report(statistics))
    if out:
        write_text(out, statistics.to_json())
        print(f'written to {out}')


def clips_config(cfg: Any, path: str) -> dict:
    """The config of the dataset that gives frames: what a latent cache was made of."""
    from mmvideo.errors import ConfigError

    loader = cfg.get('train_dataloader') or {}
    dataset = loader.get('dataset')
    while dataset and dataset.get('type') == 'CachedLatents':
        dataset = dataset.get('dataset')
    if not dataset:
        raise ConfigError(f'{path} has no train_dataloader.dataset to measure.')
    return dataset


def measure(source: dict, clips: int, percentile: float) -> Any:
    """The statistics of a dataset's clips, with the protocol they belong to."""
    from mmvideo.datasets.affinity import measure_scores
    from mmvideo.models.conditioning.affinity import AffinityStatistics
    from mmvideo.registry import DATASETS

    dataset = DATASETS.build(source)
    clips = min(clips, len(dataset))
    with progress(clips) as advance:
        found = measure_scores(dataset, clips, advance, percentile)
    return AffinityStatistics(
        minimum=found.minimum,
        maximum=found.maximum,
        dataset=str(source['type']),
        size=found.size,
        num_frames=found.num_frames,
        stride=getattr(dataset, 'stride', 1),
        num_clips=clips,
        percentile=percentile,
    )


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar with the time left in a terminal, a line every tenth elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done: _line(done, total)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task('measuring clips', total=total)
        yield lambda done: bar.update(task, completed=done)


def _line(done: int, total: int) -> None:
    if (done - 1) * 10 // total != done * 10 // total:
        print(f'measured {done} of {total} clips', file=sys.stderr, flush=True)


def report(statistics: Any) -> str:
    """The table as text."""
    height, width = statistics.size
    apart = 'at a rate' if statistics.stride is None else f'stride {statistics.stride}'
    lines = [
        f'{statistics.dataset}: {statistics.num_clips} clips of {statistics.num_frames} frames, '
        f'{width}x{height} px, {apart}; maximum at {statistics.percentile:g} %',
        'offset   minimum   maximum',
    ]
    ranges = zip(statistics.minimum, statistics.maximum, strict=True)
    lines += [f'{offset:6d} {low:9.4f} {high:9.4f}' for offset, (low, high) in enumerate(ranges)]
    return '\n'.join(lines)


def main() -> int:
    """The exit code, see ``run_tool``."""
    return run_tool(run, parse_args(), interrupted='nothing was written')


if __name__ == '__main__':
    sys.exit(main())
