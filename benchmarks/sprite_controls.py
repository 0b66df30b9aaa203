#!/usr/bin/env python
"""What the controls of AnimateDiff and PIA do, measured on the sprite world by its tracker.

Clips are made from captions that ask for motion, of combinations that training never showed, and
each figure stands beside the bar it should reach. The exit code is 1 when one is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmvideo.apis.cli import Parser

ROOT = Path(__file__).parents[1]
CONFIGS = {
    'animatediff': ROOT / 'configs/sprites/animatediff_sprites.py',
    'pia': ROOT / 'configs/sprites/pia_sprites.py',
}
EXAMPLES = """
examples:
  python benchmarks/sprite_controls.py --bf16
  python benchmarks/sprite_controls.py --clips 4 --steps 12 --only windows loop
  python benchmarks/sprite_controls.py --only windows --windows schedule=static overlap=4
"""
LONG, LOOP, TURN = 64, 32, 8  # frames of a long clip and of a loop; where a prompt turns
# A sprite goes away and comes back: near the picture at both ends, far from it in between.
AFFINITY = {0: 1.0, 4: 0.6, 11: 0.6, 15: 0.95}


@dataclass(frozen=True)
class Figure:
    """A row of the table."""

    name: str
    value: float
    unit: str
    bar: float | None = None
    most: bool = False  # whether the bar is a largest value

    @property
    def met(self) -> bool:
        """Whether it reaches its bar; a figure that is not a number does not."""
        if self.bar is None:
            return True
        return self.value <= self.bar if self.most else self.value >= self.bar

    def row(self) -> str:
        """A line of the table."""
        sign = '<=' if self.most else '>='
        bar = '' if self.bar is None else f'{sign} {self.bar:g}'
        verdict = '' if self.bar is None else ('met' if self.met else 'MISSED')
        return f'{self.name:<46} {self.value:>8.2f} {self.unit:<5} {bar:>8}  {verdict}'


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__, EXAMPLES)
    parser.add_argument('--clips', type=int, default=12, help='clips of each figure')
    parser.add_argument('--steps', type=int, default=25)
    parser.add_argument('--guidance', type=float, help="default: what each config's tests take")
    parser.add_argument('--seed', type=int, default=0, help='of the first clip')
    parser.add_argument('--only', nargs='+', choices=GROUPS, default=list(GROUPS))
    parser.add_argument('--bf16', action='store_true', help='autocast to bfloat16')
    parser.add_argument('--device', default=None, help="'cpu', 'cuda', ...; the best by default")
    parser.add_argument('--windows', nargs='*', default=[], metavar='KEY=VALUE',
                        help='settings of the windows of long clips and loops')  # fmt: skip
    parser.add_argument('--out', type=Path, help='write the table as JSON')
    return parser.parse_args()


class Bench:
    """The two models, read when they are needed, and what clips are made with."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.windows = {'length': 16} | dict(_setting(text) for text in args.windows)

    @cached_property
    def animatediff(self) -> Any:
        """The editor of ``animatediff_sprites``."""
        return self._editor('animatediff')

    @cached_property
    def pia(self) -> Any:
        """The editor of ``pia_sprites``."""
        return self._editor('pia')

    def _editor(self, name: str) -> Any:
        from mmvideo.apis import VideoInferencer

        return VideoInferencer(CONFIGS[name], self.args.device).editor

    def scenes(self, **changes: str) -> Iterator[tuple[int, Any]]:
        """(seed, scene) of every clip: held out, moving, and changed by ``changes``."""
        from mmvideo.datasets.sprites import SpriteWorld

        world, found, index = SpriteWorld(split='held_out'), 0, 0
        while found < self.args.clips:
            scene, _ = world.scene(index)
            index += 1
            if scene.pace == 'still':
                continue
            yield self.args.seed + found, replace(scene, **changes)
            found += 1

    def make(self, editor: Any, seed: int, prompt: Any, frames: int, **more: Any) -> np.ndarray:
        """A clip, uint8 [T, 64, 64, 3]."""
        from mmvideo.evaluation.sprites import to_frames

        device = editor.device.type
        more = self._guidance(editor) | more
        with torch.autocast(device, torch.bfloat16, enabled=self.args.bf16):
            video = editor.infer(
                [prompt],
                video_length=frames,
                height=64,
                width=64,
                num_inference_steps=self.args.steps,
                seed=seed,
                **more,
            )['samples'][0]
        return to_frames(video, 'CTHW')

    def _guidance(self, editor: Any) -> dict[str, Any]:
        if self.args.guidance is not None:
            return dict(guidance_scale=self.args.guidance)
        told = editor.predict_arguments
        return {name: value for name, value in told.items() if name.startswith('guidance_')}


def windows(bench: Bench) -> list[Figure]:
    """Clips of 64 frames: no seams at the borders of windows, and the motion is kept.

    The pace is slow, the only one at which a sprite could stay inside the frame for so long.
    """
    from mmvideo.datasets.sprites import caption, parse_caption
    from mmvideo.editors.options import read_windows
    from mmvideo.evaluation import motion
    from mmvideo.evaluation.sprite_tracking import track

    chosen = read_windows(bench.windows)
    assert chosen is not None
    borders = motion.border_steps(chosen.plan(LONG).frames, LONG)
    right, ratios, rough = [], [], []
    for seed, scene in bench.scenes(pace='slow'):
        text = caption(scene)
        clip = bench.make(bench.animatediff, seed, text, LONG, windows=bench.windows)
        right.append(motion.keeps_direction(track(clip), parse_caption(text), 64))
        ratios.append(motion.border_ratio(clip, borders))
        rough.append(motion.roughness(clip))
    return [
        Figure('64 frames: direction', _share(right), '%', 90),
        Figure('64 frames: change at borders / elsewhere', _median(ratios), '', 1.5, most=True),
        Figure('64 frames: largest / usual change', _median(rough), ''),
    ]


def loop(bench: Bench) -> list[Figure]:
    """Clips whose end goes on in their beginning."""
    from mmvideo.datasets.sprites import caption
    from mmvideo.evaluation import motion

    ring = bench.windows | dict(schedule='looped')
    plain, looped = [], []
    for seed, scene in bench.scenes():
        text = caption(scene)
        clip = bench.make(bench.animatediff, seed, text, LOOP, windows=ring)
        looped.append(motion.loop_seam(clip))
        plain.append(motion.loop_seam(bench.make(bench.animatediff, seed, text, 16)))
    return [
        Figure('loop of 32: seam / largest step', _median(looped), '', 1.0, most=True),
        Figure('16 frames, no loop: seam / largest step', _median(plain), ''),
    ]


def turn(bench: Bench) -> list[Figure]:
    """A prompt says left and from frame 8 on right."""
    from mmvideo.datasets.sprites import caption, parse_caption
    from mmvideo.evaluation import motion

    done = []
    for seed, scene in bench.scenes(pace='steady'):
        texts = [caption(replace(scene, heading=heading)) for heading in ('left', 'right')]
        prompt = {0: texts[0], TURN: texts[1], 'interpolation': 'step'}
        clip = bench.make(bench.animatediff, seed, prompt, 16)
        done.append(motion.turns(clip, *map(parse_caption, texts), TURN))
    return [Figure('prompt from left to right: turns', _share(done), '%', 80)]


def affinity(bench: Bench) -> list[Figure]:
    """PIA moves where the curve of affinity is low."""
    from mmvideo.editors.motion import clip_affinity
    from mmvideo.evaluation import motion
    from mmvideo.evaluation.sprite_tracking import track

    curve = clip_affinity(AFFINITY, 16, (0,)).tolist()
    away = []
    for seed, text, clip in _pictures(bench):
        found = track(_animate(bench, seed, text, clip[0], motion_scale=AFFINITY))
        away.append(motion.motion_by_affinity(found, curve, 64))
    more = [distance > 0 for distance in away]  # a lost sprite has moved nowhere
    return [
        Figure('curve of affinity: further where lower', _share(more), '%', 80),
        Figure('curve of affinity: how much further', _median(away), 'px'),
    ]


def keyframes(bench: Bench) -> list[Figure]:
    """PIA meets two pictures, the first and the last frame."""
    from mmvideo.evaluation.sprites import psnr

    met: list[list[float]] = []
    for seed, text, clip in _pictures(bench):
        ends = [clip[0], clip[-1]]
        made = _animate(bench, seed, text, ends, motion_scale=1, condition_frame=[0, 15])
        met.append([psnr(made[0], ends[0]), psnr(made[-1], ends[1])])
    first, last = np.median(met, axis=0)
    return [
        Figure('two pictures: first frame', float(first), 'dB', 24),
        Figure('two pictures: last frame', float(last), 'dB', 24),
    ]


def scales(bench: Bench) -> list[Figure]:
    """PIA's three amounts of motion: each a tenth further than the one before, at least."""
    from mmvideo.evaluation.sprite_tracking import track

    medians: list[float] = []
    for scale in range(3):
        found = [
            track(_animate(bench, seed, text, clip[0], motion_scale=scale))
            for seed, text, clip in _pictures(bench)
        ]
        medians.append(_median([item.excursion for item in found]))
    return [
        Figure(f'motion scale {i}: excursion', value, 'px', 1.1 * medians[i - 1] if i else None)
        for i, value in enumerate(medians)
    ]


def loops(bench: Bench) -> list[Figure]:
    """PIA's tables for loops end where they began."""
    from mmvideo.evaluation.sprite_tracking import track

    figures = []
    for scale in (3, 4, 5):
        ends = []
        for seed, text, clip in _pictures(bench):
            found = track(_animate(bench, seed, text, clip[0], motion_scale=scale))
            if not found.lost and found.excursion > 0:
                ends.append(100 * float(np.linalg.norm(found.displacement)) / found.excursion)
        name = f'loop table {scale}: end / largest excursion'
        figures.append(Figure(name, _median(ends), '%', 10, most=True))
    return figures


GROUPS: dict[str, Callable[[Bench], list[Figure]]] = {
    function.__name__: function
    for function in (windows, loop, turn, affinity, keyframes, scales, loops)
}


def _pictures(bench: Bench) -> Iterator[tuple[int, str, np.ndarray]]:
    """(seed, caption, drawn clip uint8 [16, 64, 64, 3]) of scenes that move steadily."""
    from mmvideo.datasets.sprites import caption, render

    for seed, scene in bench.scenes():
        yield seed, caption(scene), render(scene)


def _animate(bench: Bench, seed: int, text: str, image: Any, **more: Any) -> np.ndarray:
    return bench.make(bench.pia, seed, text, 16, image=image, **more)


def _setting(text: str) -> tuple[str, Any]:
    key, _, value = text.partition('=')
    return key, int(value) if value.isdigit() else value


def _share(right: list[Any]) -> float:
    """Percent of what is true."""
    return 100 * float(np.mean([bool(item) for item in right]))


def _median(values: list[float]) -> float:
    """Of those that are numbers; NaN without any."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.median(known)) if known else float('nan')


def main() -> int:
    """Print the table; 1 when a bar is missed."""
    args = parse_args()
    bench, figures = Bench(args), []
    head = f'{"figure":<46} {"value":>8} {"":<5} {"bar":>8}'
    print(f'{args.clips} clips of {args.steps} steps a figure\n{head}')
    for name in args.only:
        start = time.perf_counter()
        for figure in GROUPS[name](bench):
            figures.append(figure)
            print(figure.row(), flush=True)
        print(f'  ({name}: {time.perf_counter() - start:.0f} s)', file=sys.stderr)
    if args.out is not None:
        rows = [asdict(figure) | dict(met=figure.met) for figure in figures]
        args.out.write_text(json.dumps(dict(clips=args.clips, steps=args.steps, rows=rows)))
    return 0 if all(figure.met for figure in figures) else 1


if __name__ == '__main__':
    sys.exit(main())
