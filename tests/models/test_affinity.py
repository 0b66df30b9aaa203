"""PIA's affinity: tables at inference, statistics and scaling in training."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmvideo.errors import InputError
from mmvideo.models.conditioning.affinity import (
    MOTION_TABLES,
    WEBVID_STATISTICS,
    AffinityStatistics,
    affinity_at_inference,
    motion_table,
    normalise_scores,
)


@pytest.mark.parametrize('scale', range(9))
@pytest.mark.parametrize(('frames', 'condition'), [(16, 0), (16, 15), (16, 7), (24, 3), (1, 0)])
def test_integers_are_those_of_diffusers(scale: int, frames: int, condition: int) -> None:
    from diffusers.pipelines.deprecated.pia.pipeline_pia import prepare_mask_coef_by_statistics

    theirs = prepare_mask_coef_by_statistics(frames, condition, scale)
    ours = affinity_at_inference(scale, frames, condition)
    assert torch.equal(ours, torch.tensor(theirs))


def test_names_are_unambiguous() -> None:
    assert list(MOTION_TABLES).index('style-small') == 6
    assert motion_table('style-small') == (0.5, 0.4, 0.4, 0.4, 0.35, 0.3) == motion_table(6)
    assert motion_table('style-large') == (0.5, 0.2) == motion_table(8)
    assert [len(table) for table in MOTION_TABLES.values()] == [6, 7, 13, 16, 16, 16, 6, 9, 2]


@pytest.mark.parametrize('name', ['loop-small', 'loop-moderate', 'loop-large'])
def test_loops_close_in_sixteen_frames(name: str) -> None:
    affinity = affinity_at_inference(name, 16)
    assert affinity[0] == affinity[15] == 1
    assert affinity.min() == affinity[5:11].min() < 0.81


@pytest.mark.parametrize(
    'numbers', [[1.0, 0.5], (1, 0.5), np.array([1.0, 0.5]), torch.tensor([1.0, 0.5])]
)
def test_own_table(numbers: object) -> None:
    assert affinity_at_inference(numbers, 4, 2).tolist() == [0.5, 0.5, 1.0, 0.5]


@pytest.mark.parametrize(
    ('value', 'words'),
    [
        (9, '0 to 8'),
        (-1, '0 to 8'),
        (1.5, 'whole number'),
        (True, 'whole number'),
        (None, 'whole number'),
        ('smal', "Did you mean 'small'"),
        ('loop_large', "Did you mean 'loop-large'"),
        ('3', 'or 0 to 8'),
        ([], 'empty list'),
        ([1.0, 1.2], r'motion_scale\[1\]=1.2'),
        ([-0.1], r'motion_scale\[0\]=-0.1'),
        ([math.nan], r'motion_scale\[0\]=nan'),
        (['small'], r"motion_scale\[0\]='small'"),
    ],
)
def test_wrong_motion_scale(value: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        motion_table(value)


@pytest.mark.parametrize('condition', [-1, 16, 100])
def test_condition_frame_outside(condition: int) -> None:
    with pytest.raises(InputError, match='0 to 15'):
        affinity_at_inference(0, 16, condition)


def test_no_frames() -> None:
    with pytest.raises(InputError, match='num_frames=0'):
        affinity_at_inference(0, 0)


def transcribed(scores: list[float], condition: int, ranges: list[list[float]]) -> list[float]:
    """Step 5 written out, a frame at a time."""
    result = []
    for frame, score in enumerate(scores):
        low, high = ranges[abs(frame - condition)]
        if score > high:
            score = 0.95 * high
        elif score < low:
            score = low
        result.append(1.0 if frame == condition else 1 - 0.8 * score / high)
    return result


def webvid_ranges() -> list[list[float]]:
    pairs = zip(WEBVID_STATISTICS.minimum, WEBVID_STATISTICS.maximum, strict=True)
    return [list(pair) for pair in pairs]


@pytest.mark.parametrize('condition', [0, 6, 15])
def test_normalised_scores(condition: int) -> None:
    generator = torch.Generator().manual_seed(condition)
    scores = torch.rand(16, generator=generator) * 70
    scores[condition] = 0
    scores[(condition + 3) % 16] = 0.001
    ours = normalise_scores(scores, condition, WEBVID_STATISTICS)
    expected = torch.tensor(transcribed(scores.tolist(), condition, webvid_ranges()))
    assert torch.allclose(ours, expected, atol=1e-6, rtol=0)
    assert ours[condition] == 1
    assert ours.min() >= 0.2
    assert ours.max() <= 1


def test_normalised_batch_equals_each() -> None:
    scores = torch.rand(4, 16, generator=torch.Generator().manual_seed(1)) * 60
    condition = torch.tensor([0, 15, 3, 8])
    batch = normalise_scores(scores, condition, WEBVID_STATISTICS.table())
    for row, frame, affinity in zip(scores, condition, batch, strict=True):
        assert torch.equal(normalise_scores(row, int(frame), WEBVID_STATISTICS), affinity)


def test_a_score_beyond_the_largest_counts_as_095() -> None:
    affinity = normalise_scores(torch.tensor([0.0, 1000.0]), 0, WEBVID_STATISTICS)
    assert affinity[1].item() == pytest.approx(1 - 0.8 * 0.95)


def test_a_data_set_in_which_nothing_moves() -> None:
    still = AffinityStatistics((0.0,) * 4, (0.0,) * 4)
    assert normalise_scores(torch.tensor([0.0, 0.0, 0.0, 2.0]), 0, still).tolist() == [1.0] * 4


def test_offsets_beyond_the_statistics() -> None:
    with pytest.raises(InputError, match='17 frames.*16.*affinity_stats'):
        normalise_scores(torch.zeros(17), 0, WEBVID_STATISTICS)


def test_statistics_round_trip(tmp_path) -> None:
    path = tmp_path / 'statistics.json'
    path.write_text(WEBVID_STATISTICS.to_json())
    assert AffinityStatistics.from_json(path) == WEBVID_STATISTICS
    content = json.loads(path.read_text())
    assert content['size'] == [256, 256]
    assert (content['num_frames'], content['stride'], content['dataset']) == (16, 4, 'WebVid')
    at_a_rate = replace(WEBVID_STATISTICS, stride=None, percentile=99.5)
    path.write_text(at_a_rate.to_json())
    assert AffinityStatistics.from_json(path) == at_a_rate


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('not json', 'no JSON'),
        ('[1]', 'version 1'),
        ('{"version": 1, "minimum": [0]}', "lack 'maximum'"),
        ('{"version": 1, "minimum": [0], "maxmum": [0]}', "Did you mean 'maximum'"),
        ('{"version": 1, "minimum": [0], "maximum": [0, 1]}', '1 and 2'),
        ('{"version": 1, "minimum": [], "maximum": []}', 'at least one'),
        ('{"version": 1, "minimum": [0, 3], "maximum": [0, 2]}', 'offset 1'),
        ('{"version": 1, "minimum": [0, 0], "maximum": [0, NaN]}', 'offset 1'),
        ('{"version": 1, "minimum": [0], "maximum": ["a"]}', 'maximum='),
        ('{"version": 1, "minimum": [0], "maximum": [0], "stride": "4"}', 'stride='),
        ('{"version": 1, "minimum": [0], "maximum": [0], "percentile": "99"}', 'percentile='),
    ],
)
def test_damaged_statistics(tmp_path, text: str, words: str) -> None:
    path = tmp_path / 'statistics.json'
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        AffinityStatistics.from_json(path)
    assert str(path) in str(caught.value)


def test_missing_statistics(tmp_path) -> None:
    with pytest.raises(InputError, match='does not exist.*affinity_stats'):
        AffinityStatistics.from_json(tmp_path / 'none.json')
