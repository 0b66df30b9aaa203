"""The sprite tracker against the truth it was drawn from, and the metrics built on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmvideo.datasets.sprites import (
    PLACES,
    STYLES,
    Scene,
    SpriteWorld,
    background,
    caption,
    path,
    render,
    sample_scene,
)
from mmvideo.evaluation.sprite_tracking import track
from mmvideo.evaluation.sprites import SpriteMetric, psnr, to_frames
from mmvideo.registry import METRICS

ATTRIBUTES = ('kind', 'colour', 'place', 'heading', 'style', 'pace')
SCENE = Scene('car', 'red', 'desert', 'right', 'steady', 'flat', (20.0, 30.0), 16.0)


def degrade(video: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur by 0.8 px and add noise of sigma 8."""
    kernel = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 0.8**2))
    kernel /= kernel.sum()
    size = video.shape[1]
    soft = np.pad(video.astype(np.float32), ((0, 0), (2, 2), (2, 2), (0, 0)), mode='edge')
    soft = sum(k * soft[:, i : i + size] for i, k in enumerate(kernel))
    soft = sum(k * soft[:, :, i : i + size] for i, k in enumerate(kernel))
    return np.clip(soft + rng.normal(0, 8, soft.shape) + 0.5, 0, 255).astype(np.uint8)


def scenes(style: str, count: int) -> list[Scene]:
    rng = np.random.default_rng(11)
    return [sample_scene(rng, style, paths=('steady', 'loose')[i % 2]) for i in range(count)]


def judge(*samples: dict, **options: object) -> dict[str, float]:
    metric = SpriteMetric(**options)
    metric.process(None, samples)
    return metric.evaluate(len(samples))


def sample(scene: Scene, text: str | None = None, **more: object) -> dict:
    video = torch.from_numpy(render(scene)).permute(0, 3, 1, 2)
    return {'video': video, 'caption': text or caption(scene), **more}


@pytest.mark.parametrize('style', STYLES)
def test_finds_everything_in_what_was_drawn(style):
    wrong = 0
    for scene in scenes(style, 40):
        found = track(render(scene))
        wrong += any(getattr(found, name) != getattr(scene, name) for name in ATTRIBUTES)
        assert np.abs(found.positions - path(scene, 16)).max() < 0.5
        assert found.confidence > 0.95 and not found.lost_frames.any()
    assert wrong == 0


@pytest.mark.parametrize('style', STYLES)
def test_finds_almost_everything_in_degraded_clips(style):
    rng = np.random.default_rng(5)
    right = 0
    for scene in scenes(style, 40):
        found = track(degrade(render(scene), rng))
        right += all(getattr(found, name) == getattr(scene, name) for name in ATTRIBUTES[:5])
    assert right >= 39


@pytest.mark.parametrize('size', [32, 96, 128])
def test_tracks_at_other_sizes(size):
    for scene in scenes('flat', 4) + scenes('neon', 4):
        found = track(render(scene, 16, size))
        assert all(getattr(found, name) == getattr(scene, name) for name in ATTRIBUTES)
        assert np.abs(found.positions - path(scene, 16) * size / 64).max() < 0.5


@pytest.mark.parametrize('style', STYLES)
def test_background_alone_is_lost(style):
    rng = np.random.default_rng(0)
    for place in PLACES:
        empty = np.repeat(background(place, style, 64)[None], 4, axis=0)
        for video in (empty, degrade(empty, rng)):
            found = track(video)
            assert found.lost and found.kind is None and found.colour is None
            assert (found.place, found.style) == (place, style)
            assert found.lost_frames.all() and found.confidence == 0
            assert np.isnan(found.displacement).all() and np.isnan(found.excursion)


def test_shapes_that_are_no_sprite_are_lost():
    y, x = np.mgrid[:64, :64] + 0.5
    cross = (np.abs(x - 24) < 3) | (np.abs(y - 42) < 3)
    ring = np.abs(np.hypot(x - 32, y - 32) - 11) < 2
    for mask in (ring, cross & (np.abs(x - 32) < 14) & (np.abs(y - 32) < 14)):
        picture = background('field', 'flat', 64).copy()
        picture[mask] = (225, 28, 38)
        assert track(np.repeat(picture[None], 4, axis=0)).lost


def test_noise_is_no_known_place():
    noise = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    found = track(noise)
    assert found.lost and found.place is None and found.style is None


def test_a_sprite_that_vanishes_is_lost_in_those_frames():
    video = render(SCENE).copy()
    video[12:] = background('desert', 'flat', 64)
    found = track(video)
    assert found.kind == 'car' and found.lost_frames.tolist() == [False] * 12 + [True] * 4


@pytest.mark.parametrize(
    'video',
    [
        np.zeros((2, 64, 64, 3), np.float32),
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((2, 64, 48, 3), np.uint8),
        np.zeros((0, 64, 64, 3), np.uint8),
        np.zeros((2, 16, 16, 3), np.uint8),
    ],
)
def test_refuses_what_is_no_clip(video):
    with pytest.raises(ValueError, match='sprite clip'):
        track(video)


def test_metric_of_true_clips_is_perfect():
    world = SpriteWorld(length=12, seed=2)
    items = [world[index] for index in range(12)]
    images = [{'image': item['video'][0], 'condition_frame': 0, 'style': 'flat'} for item in items]
    figures = judge(*({**item, **image} for item, image in zip(items, images, strict=True)))
    for name in ('object', 'colour', 'place', 'all_three', 'facing', 'direction', 'style'):
        assert figures[f'sprites/{name}'] == 100, name
    assert figures['sprites/lost'] == 0
    assert figures['sprites/condition_frame_psnr'] == 100
    assert figures['sprites/median_displacement'] > 0


@pytest.mark.parametrize(
    ('text', 'wrong'),
    [
        ('a red car moving left in the desert', {'direction', 'facing'}),
        ('a red car moving up in the desert', {'direction', 'facing'}),
        ('a blue car moving right in the desert', {'colour', 'all_three'}),
        ('a red boat moving right in the desert', {'object', 'all_three'}),
        ('a red car moving right in the snow', {'place', 'all_three'}),
        ('a red car standing still in the desert', {'direction'}),
    ],
)
def test_metric_is_wrong_where_the_caption_differs(text, wrong):
    figures = judge(sample(SCENE, text, style='flat'))
    percentages = ('object', 'colour', 'place', 'all_three', 'facing', 'direction', 'style')
    found = {name for name in percentages if figures.get(f'sprites/{name}') == 0}
    assert found == wrong


def test_direction_needs_a_third_of_the_usual_way():
    text = caption(SCENE)
    assert judge(sample(replace(SCENE, travel=6.0), text))['sprites/direction'] == 100
    assert judge(sample(replace(SCENE, travel=4.5), text))['sprites/direction'] == 0
    assert (
        judge(sample(replace(SCENE, travel=-16.0, start=(40.0, 30.0)), text))['sprites/direction']
        == 0
    )


def test_standing_still_is_right_below_two_pixels():
    still = replace(SCENE, pace='still')
    for travel, right in ((0.0, 100), (1.5, 100), (3.0, 0)):
        figures = judge(sample(replace(still, travel=travel), caption(still)))
        assert figures['sprites/direction'] == right


def test_a_lost_sprite_is_wrong_in_everything_but_its_place():
    empty = np.repeat(background('desert', 'flat', 64)[None], 8, axis=0)
    figures = judge({'video': empty.transpose(0, 3, 1, 2), 'caption': caption(SCENE)})
    assert figures['sprites/lost'] == 100 and figures['sprites/place'] == 100
    for name in ('object', 'colour', 'all_three', 'facing', 'direction'):
        assert figures[f'sprites/{name}'] == 0
    assert 'sprites/median_displacement' not in figures


def test_style_is_compared_with_the_one_expected():
    assert judge(sample(SCENE), style='neon')['sprites/style'] == 0
    assert judge(sample(SCENE), style='flat')['sprites/style'] == 100
    assert judge(sample(replace(SCENE, style='neon')), style='neon')['sprites/style'] == 100
    assert 'sprites/style' not in judge(sample(SCENE))


def test_loop_closure_tells_a_loop_from_a_way():
    loop = replace(SCENE, course='return')
    assert judge(sample(loop))['sprites/loop_closure'] < 0.05
    assert judge(sample(SCENE))['sprites/loop_closure'] > 0.95
    figures = judge(sample(loop))
    assert figures['sprites/median_displacement'] < 0.5 < 14 < figures['sprites/median_excursion']


def test_condition_frame_is_the_one_compared():
    image = torch.from_numpy(render(SCENE)[5]).permute(2, 0, 1)
    right = judge(sample(SCENE, image=image, condition_frame=5))
    first = judge(sample(SCENE, image=image))
    assert right['sprites/condition_frame_psnr'] == 100
    assert first['sprites/condition_frame_psnr'] < 25


def test_psnr_of_a_known_error():
    a = np.full((4, 4, 3), 100, np.uint8)
    assert psnr(a, a + 5) == pytest.approx(10 * np.log10(255**2 / 25))


def test_layouts_and_ranges_are_read_alike():
    frames = render(SCENE, 5)
    clip = torch.from_numpy(frames).permute(0, 3, 1, 2)
    for video in (
        clip,
        clip.transpose(0, 1),
        clip / 255.0,
        (clip / 255.0).transpose(0, 1).double(),
    ):
        assert np.array_equal(to_frames(video), frames)
    three = clip[:3]
    with pytest.raises(ValueError, match='layout='):
        to_frames(three)
    assert np.array_equal(to_frames(three, 'TCHW'), frames[:3])
    assert np.array_equal(to_frames(three.transpose(0, 1), 'CTHW'), frames[:3])
    for bad in (clip * 2.0, clip.float() * float('nan'), clip[0], clip[:, :2]):
        with pytest.raises(ValueError, match='clip'):
            to_frames(bad)


def test_single_pictures_have_no_direction():
    item = SpriteWorld(length=1, num_frames=1)[0]
    figures = judge(item)
    assert figures['sprites/all_three'] == 100 and 'sprites/direction' not in figures


def test_metric_builds_from_a_config_and_names_mistakes():
    metric = METRICS.build(dict(type='SpriteMetric', style='neon'))
    assert metric.style == 'neon'
    with pytest.raises(ValueError, match="'neon'"):
        SpriteMetric(style='noen')
    with pytest.raises(ValueError, match="'fish'"):
        metric.process(None, [sample(SCENE, 'a red fihs moving left')])


def test_without_text_a_sprite_should_go_where_it_faces():
    """The caption's pace says nothing then, and a sprite that stands or goes astray is wrong."""
    options = dict(style='flat', motion='heading')
    slower = replace(SCENE, travel=3.0)
    assert judge(sample(slower, heading='right'), **options)['sprites/direction'] == 100
    assert judge(sample(slower), style='flat')['sprites/direction'] == 0
    for scene in (replace(SCENE, travel=0.5), replace(SCENE, travel=-10.0)):
        assert judge(sample(scene, heading='right'), **options)['sprites/direction'] == 0
    assert judge(sample(SCENE, heading='up'), **options)['sprites/direction'] == 0
    with pytest.raises(ValueError, match='needs a heading'):
        judge(sample(SCENE), **options)
    with pytest.raises(ValueError, match="unknown motion 'headng'. Did you mean 'heading'"):
        SpriteMetric(motion='headng')
