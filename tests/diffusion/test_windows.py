"""Windows over frames: they cover the clip, their weights sum to one, a ring has no seam."""

from __future__ import annotations

import itertools

import pytest
import torch

from mmvideo.diffusion.windows import FUSIONS, SCHEDULES, Windows, van_der_corput

CASES = [
    Windows(length, schedule, overlap, stride, fusion)
    for (length, overlap), schedule, stride, fusion in itertools.product(
        [(16, 4), (8, 7), (5, 0), (1, 0), (16, None)], SCHEDULES, (1, 3), FUSIONS
    )
    if stride == 1 or schedule in ('uniform', 'looped')
]


@pytest.mark.parametrize('frames', [1, 2, 15, 16, 17, 40, 101])
def test_every_frame_is_seen_and_its_weights_sum_to_one(frames: int) -> None:
    for windows, step in itertools.product(CASES, (0, 1, 2, 5, 49)):
        plan = windows.plan(frames, step)
        total = [0.0] * frames
        for window, weights in zip(plan.frames, plan.weights, strict=True):
            assert len(set(window)) == len(window) <= windows.length
            assert all(weight > 0 for weight in weights)
            for frame, weight in zip(window, weights, strict=True):
                total[frame] += weight
        assert all(abs(weight - 1) <= 1e-9 for weight in total), (windows, step)
        assert plan.longest <= windows.length


def starts(windows: Windows, frames: int, step: int = 0) -> list[int]:
    return [window[0] for window in windows.plan(frames, step).frames]


def test_static_windows_end_with_the_clip() -> None:
    windows = Windows(16, 'static', 4)
    assert starts(windows, 40) == [0, 12, 24]
    assert starts(windows, 41) == [0, 12, 24, 25]
    assert windows.plan(41, 0) == windows.plan(41, 7)
    assert starts(Windows(16, 'static', 0), 16) == [0]


def test_batched_windows_share_nothing() -> None:
    plan = Windows(16, 'batched').plan(40)
    assert [len(window) for window in plan.frames] == [16, 16, 8]
    assert sum(plan.frames, ()) == tuple(range(40))


def test_uniform_windows_move_and_stay_inside() -> None:
    windows = Windows(16, 'uniform', 4)
    seams = [tuple(starts(windows, 64, step)) for step in range(4)]
    assert len(set(seams)) == 4
    for step in range(8):
        plan = windows.plan(64, step)
        assert all(list(window) == sorted(window) for window in plan.frames)
        assert plan.frames[0][0] == 0 and plan.frames[-1][-1] == 63


def test_strides_see_further() -> None:
    plan = Windows(4, 'uniform', 1, stride=3).plan(16)
    spacings = {window[1] - window[0] for window in plan.frames}
    assert spacings == {1, 2, 4}
    short = Windows(4, 'uniform', 1, stride=3).plan(6)  # 13 frames do not fit
    assert {window[1] - window[0] for window in short.frames} == {1}


@pytest.mark.parametrize('frames', [16, 40, 41])
def test_looped_windows_wrap(frames: int) -> None:
    """Over the steps the end is seen together with the beginning as any two neighbours are."""
    windows = Windows(16, 'looped', 4)
    together = torch.zeros(frames, dtype=torch.long)
    for step in range(64):
        for window in windows.plan(frames, step).frames:
            for first, second in itertools.pairwise(window):
                assert second == (first + 1) % frames
                together[first] += 1
    assert together[-1] >= 0.8 * together.float().mean()
    if frames > 16:
        assert max(together) <= 1.25 * together.float().mean()


def test_a_clip_that_fits_is_seen_whole() -> None:
    for schedule in ('static', 'uniform', 'batched'):
        assert Windows(16, schedule).plan(12, 3).frames == (tuple(range(12)),)
    turned = Windows(16, 'looped').plan(12, 1).frames
    assert turned == ((6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5),)


def test_weights_of_each_fusion() -> None:
    def raw(fusion: str, overlap: int = 2) -> list[list[float]]:
        plan = Windows(5, 'static', overlap, fusion=fusion).plan(8)
        return [[round(weight, 4) for weight in weights] for weights in plan.weights]

    assert raw('flat') == [[1, 1, 1, 0.5, 0.5], [0.5, 0.5, 1, 1, 1]]
    assert raw('pyramid') == [[1, 1, 1, 0.6667, 0.3333], [0.3333, 0.6667, 1, 1, 1]]
    ramps = raw('overlap-linear')
    assert ramps[0][:3] == [1, 1, 1] and ramps[0][3] > ramps[0][4] > 0 and ramps[1][2:] == [1, 1, 1]
    assert raw('relative')[0][4] < 0.03


def test_fusing_gives_back_what_windows_agree_on() -> None:
    x = torch.randn(2, 3, 21, 4)
    for windows in (Windows(8, 'static', 3), Windows(8, 'looped', 3), Windows(8, 'uniform', 2, 2)):
        plan = windows.plan(21, 3)
        fused = plan.fuse(lambda part, frames: part * (frames.view(-1, 1) + 1), x, 2)
        assert torch.allclose(fused, x * torch.arange(1, 22).view(-1, 1), atol=1e-5)
        assert fused.dtype == x.dtype


def test_one_window_is_the_function_itself() -> None:
    x = torch.randn(1, 2, 7)
    seen: list[torch.Tensor] = []

    def function(part: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        seen.append(part)
        return part.exp()

    assert torch.equal(Windows(16).plan(7).fuse(function, x, 2), x.exp())
    assert seen[0] is x


def test_fusing_keeps_the_precision_of_low_precision_sums() -> None:
    x = torch.full((1, 64), 1.0, dtype=torch.bfloat16)
    plan = Windows(16, 'static', 13).plan(64)
    fused = plan.fuse(lambda part, frames: part, x, 1)
    assert fused.dtype == torch.bfloat16 and torch.equal(fused, x)


def test_drawing() -> None:
    lines = Windows(4, 'static', 2).plan(8).draw()
    assert lines == ['    0 ####....', '    2 ..####..', '    4 ....####']
    wide = Windows(16, 'static', 4).plan(400).draw(columns=50)
    assert all(len(line) == 56 for line in wide)


def test_van_der_corput() -> None:
    assert [van_der_corput(i) for i in range(6)] == [0, 0.5, 0.25, 0.75, 0.125, 0.625]
