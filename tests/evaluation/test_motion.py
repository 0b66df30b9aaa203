"""Measures of motion on drawn clips, whose answers are known."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmvideo.datasets.sprites import Scene, background, parse_caption, render_at
from mmvideo.diffusion.windows import Windows
from mmvideo.errors import InputError
from mmvideo.evaluation import motion
from mmvideo.evaluation.sprite_tracking import Track, track

CAR = Scene('car', 'red', 'desert', 'right', 'slow')
BENCHMARK = Path(__file__).parents[2] / 'benchmarks' / 'sprite_controls.py'


def drawn(along: np.ndarray, scene: Scene = CAR, y: float = 30.0) -> np.ndarray:
    """A clip whose sprite has its centre at these x."""
    x = np.asarray(along, float)
    return render_at(scene, np.stack([x, np.full_like(x, y)], axis=1), 64)


def steps(*changed: float) -> np.ndarray:
    """A clip whose every pixel changes by these amounts from frame to frame."""
    levels = 10 + np.concatenate([[0], np.cumsum(changed)])
    return np.broadcast_to(levels[:, None, None, None], (len(levels), 4, 4, 3)).astype(np.uint8)


def on_a_line(x: np.ndarray, lost: bool = False) -> Track:
    positions = np.stack([np.asarray(x, float), np.full(len(x), 30.0)], axis=1)
    kind = None if lost else 'car'
    return Track(positions, kind, 'red', 'right', 'slow', 'desert', 'flat', np.ones(len(x)), 0.0)


def test_changes_of_frames() -> None:
    assert motion.changes(steps(1, 0, 5)).tolist() == [1, 0, 5]
    assert motion.changes(steps(1, 0, 5), ring=True).tolist() == [1, 0, 5, 6]


def test_borders_of_windows() -> None:
    plan = Windows(6, 'static', 2).plan(10)  # frames 0 to 5 and 4 to 9
    borders = motion.border_steps(plan.frames, 10, reach=0)
    assert np.flatnonzero(borders).tolist() == [3, 5]  # before the second, after the first
    assert np.flatnonzero(motion.border_steps(plan.frames, 10)).tolist() == [2, 3, 4, 5, 6]
    assert not motion.border_steps([range(10)], 10).any()


def test_a_jump_at_a_border_and_one_elsewhere() -> None:
    borders = np.array([False, False, True, False])
    assert motion.border_ratio(steps(2, 1, 6, 1), borders) == pytest.approx(3)
    assert motion.border_ratio(steps(6, 1, 2, 1), borders) == pytest.approx(1 / 3)
    assert motion.roughness(steps(1, 1, 4, 1, 1)) == pytest.approx(4)
    assert motion.roughness(steps(2, 2, 2)) == pytest.approx(1)
    for none in (np.zeros(4, bool), np.ones(4, bool)):
        with pytest.raises(InputError, match='nothing to compare'):
            motion.border_ratio(steps(1, 1, 1, 1), none)


def test_a_sprite_that_jumps_between_windows() -> None:
    """Even motion has no seam; a sprite that starts again in each window has one."""
    borders = motion.border_steps(Windows(16, 'static', 4).plan(64).frames, 64)
    even = drawn(np.linspace(18, 46, 64))
    assert motion.border_ratio(even, borders) < 1.3
    frames = np.arange(64)
    again = drawn(20 + 0.5 * (frames - 12 * np.minimum(frames // 12, 4)))
    assert motion.border_ratio(again, borders) > 2


def test_seams_of_loops() -> None:
    there_and_back = 32 + 10 * np.sin(np.linspace(0, 2 * np.pi, 32, endpoint=False))
    assert motion.loop_seam(drawn(there_and_back)) < 1.2
    assert motion.loop_seam(drawn(np.linspace(20, 44, 32))) > 3
    assert motion.loop_seam(steps(2, 2, 2)) == pytest.approx(3)


def test_a_long_clip_keeps_its_direction() -> None:
    said = parse_caption('a red car moving slowly right in the desert')
    assert motion.keeps_direction(on_a_line(np.linspace(20, 30, 64)), said, 64) is True
    assert motion.keeps_direction(on_a_line(np.linspace(30, 20, 64)), said, 64) is False
    assert motion.keeps_direction(on_a_line(np.linspace(20, 22, 64)), said, 64) is False
    assert motion.keeps_direction(on_a_line(np.linspace(20, 30, 64), lost=True), said, 64) is False
    assert motion.keeps_direction(track(drawn(np.linspace(20, 32, 64))), said, 64) is True


LEFT, RIGHT = (parse_caption(f'a red car moving {way} in the desert') for way in ('left', 'right'))


def test_turns() -> None:
    half = np.linspace(0, 7, 8)
    left, right = (replace(CAR, heading=way) for way in ('left', 'right'))
    away, back = drawn(35 - half, left), drawn(28 + half, right)
    turning = np.concatenate([away, back])
    assert motion.turns(turning, LEFT, RIGHT, 8)
    assert not motion.turns(turning, RIGHT, LEFT, 8)
    assert motion.turns(drawn(np.concatenate([35 - half, 28 + half])), LEFT, RIGHT, 8)  # in reverse
    assert not motion.turns(drawn(np.linspace(40, 20, 16)), LEFT, RIGHT, 8)
    standing = drawn(np.full(8, 28.0), right)
    assert not motion.turns(np.concatenate([away, standing]), LEFT, RIGHT, 8)
    gone = np.repeat(background('desert', 'flat', 64)[None], 8, axis=0)
    assert not motion.turns(np.concatenate([away, gone]), LEFT, RIGHT, 8)


def test_motion_where_the_affinity_is_low() -> None:
    curve = [1.0, 0.9, 0.6, 0.5, 0.6, 0.95]
    away_and_back = on_a_line([20, 22, 28, 30, 28, 22])
    assert motion.motion_by_affinity(away_and_back, curve, 64) == pytest.approx(26 / 3 - 2)
    assert motion.motion_by_affinity(away_and_back, curve, 128) == pytest.approx(13 / 3 - 1)
    straight = on_a_line([20, 22, 24, 26, 28, 30])
    assert motion.motion_by_affinity(straight, curve, 64) == pytest.approx(0)
    assert np.isnan(motion.motion_by_affinity(on_a_line([20] * 6, lost=True), curve, 64))
    with pytest.raises(InputError, match='never changes'):
        motion.motion_by_affinity(straight, [0.5] * 6, 64)


@pytest.fixture(scope='module')
def benchmark() -> Any:
    """The script that prints the table."""
    spec = importlib.util.spec_from_file_location('sprite_controls', BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def ideal(module: Any, monkeypatch: pytest.MonkeyPatch, obedient: bool) -> None:
    """In place of models, drawings that do what they are asked, or stand still."""
    from mmvideo.editors.motion import clip_affinity

    def make(self: Any, editor: Any, seed: int, prompt: Any, frames: int, **more: Any) -> Any:
        if not obedient:
            x = np.full(frames, 32.0)
            x[frames // 2 + 1 :] += 9  # and jump
            return drawn(x)
        texts = [prompt[0], prompt[8]] if isinstance(prompt, dict) else [prompt]
        said = parse_caption(texts[0])
        place, sign = said['place'], 1 if said['heading'] in ('right', 'down') else -1
        scene = Scene(said['kind'], said['colour'], place, said['heading'], said['pace'])
        time = np.linspace(0, 1, frames)
        scale = more.get('motion_scale')
        if isinstance(prompt, dict):
            along = sign * 8 * np.abs(time - 0.5) * 2
        elif more.get('windows', {}).get('schedule') == 'looped':
            along = 8 * np.sin(2 * np.pi * np.arange(frames) / frames)
        elif isinstance(scale, dict):
            along = 12 * (1 - clip_affinity(scale, frames, (0,)).numpy())
        elif scale in (3, 4, 5):
            along = 8 * np.sin(np.pi * time)
        else:
            along = 14 * time * (1 + (scale or 0)) / 3 if scale is not None else 12 * time
        if 'condition_frame' in more:
            return np.stack([more['image'][0], *[more['image'][1]] * (frames - 1)])
        across = np.full(frames, 32.0)
        axes = [32 + sign * along, across]
        if said['heading'] in ('up', 'down'):
            axes.reverse()
        return render_at(scene, np.stack(axes, axis=1), 64)

    monkeypatch.setattr(module.Bench, 'make', make)
    for name in ('animatediff', 'pia'):
        monkeypatch.setattr(module.Bench, name, None)


@pytest.mark.parametrize('obedient', [True, False])
def test_the_table_and_its_exit_code(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path, obedient: bool
) -> None:
    ideal(benchmark, monkeypatch, obedient)
    out = tmp_path / 'table.json'
    monkeypatch.setattr('sys.argv', ['sprite_controls.py', '--clips', '2', '--out', str(out)])
    assert benchmark.main() == (0 if obedient else 1)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith(('met', 'MISSED')) for line in lines) == 12
    missed = [line for line in lines if line.endswith('MISSED')]
    assert not missed if obedient else len(missed) >= 8
    assert out.is_file()


def test_a_figure_that_is_no_number_misses_its_bar(benchmark: Any) -> None:
    assert not benchmark.Figure('x', float('nan'), '%', 90).met
    assert not benchmark.Figure('x', float('nan'), '%', 10, most=True).met
    assert benchmark.Figure('x', float('nan'), '%').met
    assert benchmark.Figure('x', 9.0, '%', 10, most=True).met
    assert 'MISSED' in benchmark.Figure('x', 11.0, '%', 10, most=True).row()
