#!/usr/bin/env python
"""Time and error of each way to sample faster, side by side in one run.

Every row is the same call (model, prompts, seeds) with one setting changed, beside the full one.
The rows take turns, so that a machine that becomes slower does so for all; after a turn that is not
counted, the median of the repeats is taken. Fewer steps are rows too: an accelerator is worth its
error only where it beats the plain way to save as much. Errors are against the frames of the full
call, in [0, 1]: PSNR over all values, and the largest difference. They say how far a result moved,
not whether it became worse.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mmvideo.apis.cli import Parser

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / 'results'
EXAMPLES = """
examples:
  python benchmarks/accelerators.py
  python benchmarks/accelerators.py configs/animatediff/animatediff-v2_sd15.py --dtype bfloat16 \\
      --arguments prompt="a boat" --tiny-vae madebyollin/taesd --depths 1 3 7
  python benchmarks/accelerators.py --steps 4 --repeats 1 --rows full deep_cache-2-1
"""
SHARES = (0.8, 0.6, 0.4)
INTERVALS = (2, 3, 5)
STEP_SHARES = (0.75, 0.5, 0.25)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add('config', nargs='?', default=str(ROOT / 'configs/sprites/animatediff_sprites.py'))
    add('--steps', type=int, help='of the full call; default: those of the config')
    add('--arguments', nargs='+', default=[], metavar='KEY=VALUE', help='others of infer')
    add('--depths', nargs='+', type=int, default=[1, 2], help='of deep_cache')
    add('--tiny-vae', metavar='SOURCE', help='an AutoencoderTiny in the place of the VAE')
    add('--rows', nargs='+', metavar='NAME', help='only these; default: all')
    add('--repeats', type=int, default=3)
    add('--threads', type=int, default=torch.get_num_threads())
    add('--device', help='default: a GPU if there is one')
    add('--dtype', choices=('float32', 'bfloat16', 'float16'))
    add('--out', type=Path, default=RESULTS / 'accelerators.json')
    return parser.parse_args()


def make_rows(steps: int, depths: list[int], tiny: bool) -> dict[str, dict[str, Any]]:
    """Changed arguments of ``infer`` by the row's name."""
    rows: dict[str, dict[str, Any]] = {'full': {}}
    for share in STEP_SHARES:
        fewer = max(1, round(share * steps))
        rows[f'steps-{fewer}'] = dict(num_inference_steps=fewer)
    for share in SHARES:
        rows[f'guidance_interval-{share}'] = dict(guidance_interval=[0.0, share])
    for interval in INTERVALS:
        for depth in depths:
            name = f'deep_cache-{interval}-{depth}'
            rows[name] = dict(deep_cache=dict(interval=interval, depth=depth))
    both = dict(deep_cache=dict(interval=3, depth=depths[0]), guidance_interval=[0.0, 0.8])
    rows[f'deep_cache-3-{depths[0]}+guidance_interval-0.8'] = both
    if tiny:
        rows['tiny_vae'] = {}
    return rows


def choose(rows: dict[str, Any], wanted: list[str] | None) -> dict[str, Any]:
    """The rows of these names, and the full one that they are compared with."""
    from mmvideo.errors import nearest

    for name in wanted or ():
        if name not in rows:
            sys.exit(f'error: there is no row {name!r}.{nearest(name, rows)}')
    return {k: v for k, v in rows.items() if wanted is None or k in ('full', *wanted)}


def measure(inferencers: dict[str, Any], rows: dict[str, Any], call: dict, repeats: int) -> Any:
    """Seconds of each repeat, and frames [N, C, T, H, W], by row."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    frames: dict[str, torch.Tensor] = {}
    for turn in range(repeats + 1):
        for name, changed in rows.items():
            inferencer = inferencers.get(name, inferencers['full'])
            start = time.perf_counter()
            frames[name] = inferencer(out=False, progress=False, **{**call, **changed})['samples']
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
        print(f'turn {turn} of {repeats} done', file=sys.stderr, flush=True)
    return seconds, frames


def compare(seconds: dict[str, list[float]], frames: dict[str, torch.Tensor]) -> list[dict]:
    """A dict a row: seconds, times as fast as the full call, PSNR in dB (None: equal), largest
    difference."""
    full = statistics.median(seconds['full'])
    table = []
    for name, spent in seconds.items():
        middle = statistics.median(spent)
        difference = (frames[name] - frames['full']).double()
        error = float(difference.square().mean())
        table.append(
            dict(
                row=name,
                seconds=round(middle, 3),
                speedup=round(full / middle, 3),
                psnr=None if error == 0 else round(-10 * torch.tensor(error).log10().item(), 2),
                max_abs=round(float(difference.abs().max()), 5),
            )
        )
    return table


def show(table: list[dict]) -> None:
    """The table as text."""
    width = max(len(row['row']) for row in table)
    print(f'{"":{width}}  seconds  speedup  PSNR dB  max abs')
    for row in table:
        psnr = 'equal' if row['psnr'] is None else f'{row["psnr"]:.2f}'
        line = f'{row["seconds"]:7.2f}  {row["speedup"]:7.2f}  {psnr:>7}  {row["max_abs"]:7.4f}'
        print(f'{row["row"]:{width}}  {line}')


def main() -> None:
    """Measure, print and write."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    from mmvideo.apis import VideoInferencer
    from mmvideo.config import parse_cfg_options
    from mmvideo.media.recipe import versions

    where = dict(device=args.device, dtype=args.dtype)
    inferencers = {'full': VideoInferencer(args.config, **where)}
    full = inferencers['full']
    call = {'seed': full.defaults.get('seed', 0), **parse_cfg_options(args.arguments)}
    steps = args.steps or full.prepare(out=False, **call).jobs[0].arguments['num_inference_steps']
    call['num_inference_steps'] = steps
    rows = choose(make_rows(steps, args.depths, args.tiny_vae is not None), args.rows)
    for changed in rows.values():
        full.prepare(out=False, **{**call, **changed})  # a mistake is found before all work
    if 'tiny_vae' in rows:
        vae = dict(type='AutoencoderTiny', from_pretrained=args.tiny_vae)
        inferencers['tiny_vae'] = VideoInferencer(
            args.config, cfg_options={'model.vae': vae}, **where
        )
    seconds, frames = measure(inferencers, rows, call, args.repeats)
    table = compare(seconds, frames)
    show(table)
    settings = dict(config=Path(args.config).name, arguments=call, repeats=args.repeats)
    machine = dict(device=str(full.device), dtype=str(full.dtype), threads=args.threads)
    result = dict(settings=settings, machine=machine, versions=versions(), rows=table)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2, default=str) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
