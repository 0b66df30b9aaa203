"""The sprite world: what is drawn, where it moves, what is said of it."""

from __future__ import annotations

import hashlib
import itertools
import json

import numpy as np
import pytest
import torch

from mmvideo.datasets.sprites import (
    COLOURS,
    HEADINGS,
    KINDS,
    PACES,
    PLACES,
    STYLES,
    VOCABULARY,
    Scene,
    SpriteWorld,
    background,
    caption,
    captions,
    is_held_out,
    parse_caption,
    path,
    render,
    render_at,
    render_frame,
    sample_scene,
    words,
)
from mmvideo.datasets.sprites.shapes import extent
from mmvideo.datasets.sprites.world import reach, sprite_weights
from mmvideo.evaluation.sprite_tracking import track
from mmvideo.registry import DATASETS

CENTRE = (32.0, 32.0)


def test_item_depends_on_seed_split_and_index_only():
    first, second = SpriteWorld(length=50), SpriteWorld(length=5000)
    _ = second[17]
    one, other = first[3], second[3]
    assert torch.equal(one['video'], other['video'])
    assert one['caption'] == other['caption'] and one['scene'] == other['scene']
    assert one['video'].shape == (16, 3, 64, 64) and one['video'].dtype == torch.uint8
    assert SpriteWorld(length=50, seed=1)[3]['scene'] != one['scene']
    assert first[4]['scene'] != one['scene']


def test_scene_of_an_item_draws_it_again():
    item = SpriteWorld(length=4, style=['sketch', 'neon'], paths='loose')[2]
    attributes = dict(item['scene'])
    start = (attributes.pop('start_x'), attributes.pop('start_y'))
    assert all(isinstance(value, (str, float)) for value in item['scene'].values())
    drawn = render(Scene(**attributes, start=start))
    assert np.array_equal(drawn, item['video'].permute(0, 2, 3, 1).numpy())


def test_splits_share_no_combination():
    def shown(split):
        world = SpriteWorld(split=split, length=1500)
        scenes = [world.scene(index)[0] for index in range(len(world))]
        assert {is_held_out(scene) for scene in scenes} == {split == 'held_out'}
        return {(s.kind, s.colour, s.place, s.heading) for s in scenes}

    assert not shown('train') & shown('held_out')


def test_a_tenth_of_the_triples_is_held_out_and_every_pair_is_trained():
    held_places = held_headings = 0
    for kind, colour in itertools.product(KINDS, COLOURS):
        held = {
            (place, heading): is_held_out(Scene(kind, colour, place, heading, 'still'))
            for place, heading in itertools.product(PLACES, HEADINGS)
        }
        places = sum(all(held[p, h] for h in HEADINGS) for p in PLACES)
        headings = sum(all(held[p, h] for p in PLACES) for h in HEADINGS)
        assert places <= 1 and headings <= 1
        held_places, held_headings = held_places + places, held_headings + headings
    assert 0.08 < held_places / (64 * 6) < 0.12
    assert 0.08 < held_headings / (64 * 4) < 0.12


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'split': 'trian'}, "'train'"),
        ({'length': 0}, 'an empty dataset'),
        ({'style': 'noen'}, "'neon'"),
        ({'style': []}, 'no style'),
        ({'paths': 'stedy'}, "'steady'"),
        ({'size': 16}, '32 to 512'),
        ({'num_frames': 0}, 'num_frames'),
        ({'seed': -1}, 'seed'),
        ({'spread': 1.5}, 'spread is 0 to 1'),
        ({'paces': ['slow', 'fats']}, "'fast'"),
        ({'paces': []}, 'no pace'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpriteWorld(**arguments)


ITEMS = [
    ({}, 'c18dd4066fd49382', [32381569, 29666106, 28228402]),
    (
        dict(split='held_out', num_frames=4, style=['flat', 'neon'], paths='loose', seed=3),
        '4d7b2efcc01ccc34',
        [1779707, 6037754, 3847623],
    ),
    (
        dict(num_frames=1, size=32, spread=0.1, paths='centred'),
        'c3700e171c71141b',
        [506549, 464577, 448470],
    ),
]


@pytest.mark.parametrize(('arguments', 'digest', 'sums'), ITEMS)
def test_items_are_what_they_always_were(arguments, digest, sums):
    """Caches and figures are of these. Scenes are compared to the last bit, pixels by their sum,
    as another processor may round a sine of the drawing otherwise."""
    items = [SpriteWorld(**arguments)[index] for index in (0, 7, 4321)]
    told = json.dumps([[item['caption'], item['scene']] for item in items], sort_keys=True)
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == digest
    for item, usual in zip(items, sums, strict=True):
        assert abs(int(item['video'].long().sum()) - usual) <= usual * 1e-5


def test_paces_are_those_asked_for():
    every = SpriteWorld(split='held_out', length=60, num_frames=2)
    moving = SpriteWorld(
        split='held_out', length=60, num_frames=2, paces=('slow', 'steady', 'fast')
    )
    drawn = [(every.scene(index)[0], moving.scene(index)[0]) for index in range(60)]
    assert {scene.pace for _, scene in drawn} == {'slow', 'steady', 'fast'}
    assert all(is_held_out(scene) for _, scene in drawn)
    assert any(scene.pace == 'still' for scene, _ in drawn)
    assert all(other == scene for scene, other in drawn if scene.pace != 'still')
    assert all('still' not in moving[index]['caption'] for index in range(10))
    assert {SpriteWorld(length=5, paces='fast').scene(i)[0].pace for i in range(5)} == {'fast'}


def test_a_pace_that_is_named_twice_is_shown_twice_as_often():
    world = SpriteWorld(length=600, num_frames=2, paces=('still', 'still', 'fast'))
    shown = [world.scene(i)[0].pace for i in range(600)]
    assert set(shown) == {'still', 'fast'}
    assert 1.6 < shown.count('still') / shown.count('fast') < 2.5


def test_index_out_of_range():
    world = SpriteWorld(length=2)
    with pytest.raises(IndexError):
        world[2]
    assert world[-1]['scene'] == world[1]['scene']


def test_spread_draws_positions_towards_the_middle():
    centres = [
        track(SpriteWorld(length=4, num_frames=2, spread=spread)[2]['video'].movedim(1, 3).numpy())
        for spread in (1.0, 0.5, 0.0)
    ]
    far, near, middle = (found.positions - 32 for found in centres)
    assert np.abs(far).max() > 4
    np.testing.assert_allclose(near, far / 2, atol=0.5)
    np.testing.assert_allclose(middle, 0, atol=0.5)


def test_single_frames_are_moments_of_a_clip():
    world = SpriteWorld(length=30, num_frames=1)
    for index in range(30):
        scene, _ = world.scene(index)
        clip = torch.from_numpy(render(scene)).permute(0, 3, 1, 2)
        video = world[index]['video']
        assert video.shape == (1, 3, 64, 64)
        assert any(torch.equal(video[0], frame) for frame in clip)
    assert SpriteWorld(length=1, num_frames=8, single_frame=True)[0]['video'].shape[0] == 1


def test_builds_from_a_config():
    world = DATASETS.build(dict(type='SpriteWorld', length=3, captions=False, size=32))
    assert world[0]['caption'] == '' and world[0]['video'].shape[-2:] == (32, 32)


def test_captions_round_trip_over_the_whole_grammar():
    seen = set()
    for kind, colour, place, heading, pace in itertools.product(
        KINDS, COLOURS, PLACES, HEADINGS, PACES
    ):
        asked = dict(kind=kind, colour=colour, place=place, heading=heading, pace=pace)
        for text in captions(asked):
            said = parse_caption(text)
            if said['heading'] is None:
                assert pace == 'still'
                said['heading'] = heading
            assert said == asked
            seen.update(words(text))
    assert seen == set(VOCABULARY)


def test_captions_read_as_english():
    scene = Scene('fish', 'red', 'field', 'left', 'slow')
    assert caption(scene) == 'a red fish moving slowly left in the field'
    assert caption(Scene('car', 'orange', 'sea', 'up', 'steady')).startswith(
        'an orange car moving up'
    )
    still = set(captions(Scene('fish', 'red', 'space', 'left', 'still')))
    assert still == {
        'a red fish standing still in space',
        'a red fish facing left, standing still in space',
    }


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a red fihs moving left', "'fish'"),
        ('a red fish moving left and right', "'and'"),
        ('a red fish moving left right', 'two values of heading'),
        ('a red moving left', 'names no kind'),
        ('a fish in space', 'names no colour'),
    ],
)
def test_captions_outside_the_grammar_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_caption(text)


@pytest.mark.parametrize('style', STYLES)
@pytest.mark.parametrize('kind', KINDS)
def test_headings_mirror_and_turn(kind, style):
    def sprite(heading):
        scene = Scene(kind, 'pink', 'field', heading, 'fast', style)
        (x, y), _, weights, left = (part[0] for part in sprite_weights(scene, [CENTRE], 64))
        canvas = np.zeros((64, 64, weights.shape[2] + 1))
        canvas[y : y + len(left), x : x + left.shape[1]] = np.dstack([weights, 1 - left])
        return canvas

    left, right, up, down = (sprite(heading) for heading in ('left', 'right', 'up', 'down'))
    assert np.allclose(left, right[:, ::-1], atol=1e-4)
    assert np.allclose(up, down[::-1], atol=1e-4)
    assert np.allclose(down, right.transpose(1, 0, 2), atol=1e-4)
    # It faces: turned around it is another picture.
    assert np.abs(left - right).sum() > 0.3 * right[..., -1].sum()


@pytest.mark.parametrize('paths', ['steady', 'loose', 'centred'])
@pytest.mark.parametrize('frames', [8, 16, 40])
def test_bodies_stay_inside_the_frame(paths, frames):
    rng = np.random.default_rng(0)
    for _ in range(500):
        scene = sample_scene(rng, STYLES[rng.integers(3)], frames, paths)
        left, right, up, down = reach(scene.kind, scene.heading, scene.style)
        x, y = path(scene, frames).T
        assert x.min() - left >= -1e-6 and x.max() + right <= 64 + 1e-6
        assert y.min() - up >= -1e-6 and y.max() + down <= 64 + 1e-6


@pytest.mark.parametrize('kind', KINDS)
def test_bodies_are_a_third_of_the_frame_and_centred(kind):
    front, back, side = extent(kind)
    assert 23 <= front + back <= 28 and abs(front - back) < 2
    assert 5 < side < 13.5


def test_speed_is_the_same_for_clips_of_any_length():
    rng = np.random.default_rng(0)
    for pace, usual in PACES.items():
        for frames in (8, 16):
            travels = [sample_scene(rng, frames=frames, pace=pace).travel for _ in range(200)]
            scaled = np.array(travels) * 15 / (frames - 1)
            assert np.all(np.abs(scaled - usual) <= 0.1 * usual + 1e-9)


def test_steady_paths_have_constant_velocity_along_the_heading():
    scene = sample_scene(np.random.default_rng(4), heading='up', pace='fast')
    steps = np.diff(path(scene, 16), axis=0)
    assert np.allclose(steps, steps[0]) and steps[0, 1] < -1.4 and steps[0, 0] == 0


def test_centred_paths_have_their_middle_in_the_middle():
    rng = np.random.default_rng(2)
    for heading in HEADINGS:
        scene = sample_scene(rng, paths='centred', heading=heading, pace='fast')
        first, *_, last = path(scene, 16)
        np.testing.assert_allclose((first + last) / 2, [32, 32], atol=1)  # noses are no tails
        assert (last - first) @ np.array(HEADINGS[heading]) > 20


def test_loose_paths_move_freely_of_the_pace():
    rng = np.random.default_rng(1)
    scenes = [sample_scene(rng, paths='loose') for _ in range(1500)]
    courses = np.array([scene.course for scene in scenes])
    assert 0.36 < (courses == 'return').mean() < 0.44
    assert 0.17 < (courses == 'ease').mean() < 0.23
    for pace in PACES:
        travels = np.array([scene.travel for scene in scenes if scene.pace == pace])
        assert travels.min() < 1 and travels.max() > 28 and 14 < travels.mean() < 18, pace
    back = next(scene for scene in scenes if scene.course == 'return' and scene.travel > 10)
    centres = path(back, 16)
    assert np.allclose(centres[0], centres[-1])
    first = (centres[1] - centres[0]) @ np.array(HEADINGS[back.heading])
    assert first > 0 and np.abs(centres - centres[0]).max() > 9


def test_pace_shows_in_one_frame():
    for style, kind in itertools.product(STYLES, KINDS):
        pictures = [
            render_frame(Scene(kind, 'red', 'city', 'right', pace, style), CENTRE).astype(int)
            for pace in PACES
        ]
        added = [(np.abs(p - pictures[0]).sum(2) > 90).sum() for p in pictures[1:]]
        assert 5 < added[0] < added[1] < added[2] < 80


@pytest.mark.parametrize('style', STYLES)
def test_sprites_stand_out_of_every_background(style):
    for kind, colour, place in itertools.product(KINDS, COLOURS, PLACES):
        drawn = render_frame(Scene(kind, colour, place, 'left', 'still', style), CENTRE)
        contrast = np.abs(drawn.astype(int) - background(place, style, 64)).sum(2)
        assert (contrast > 100).sum() > 140, (kind, colour, place)


def test_styles_differ_in_the_brightness_of_their_backgrounds():
    mean = {s: [background(p, s, 64).mean() for p in PLACES] for s in STYLES}
    assert max(mean['neon']) < 45 < 65 < min(mean['flat'])
    assert max(mean['flat']) < 190 < 200 < min(mean['sketch'])


def test_backgrounds_are_smooth_enough_for_a_small_vae():
    for place in PLACES:
        picture = background(place, 'flat', 64).astype(float)
        coarse = picture.reshape(16, 4, 16, 4, 3).mean((1, 3)).repeat(4, 0).repeat(4, 1)
        assert 10 * np.log10(255**2 / np.mean((picture - coarse) ** 2)) > 25


@pytest.mark.parametrize('size', [32, 96, 128])
def test_sizes_show_the_same_picture(size):
    scene = Scene('plane', 'yellow', 'desert', 'up', 'steady', 'flat', (30.0, 40.0), 10.0)
    picture, small = render(scene, 2, size)[1], render(scene, 2, 64)[1]
    cells = 32
    coarse = [
        p.astype(float).reshape(cells, p.shape[0] // cells, cells, -1, 3).mean((1, 3))
        for p in (picture, small)
    ]
    assert np.abs(coarse[0] - coarse[1]).mean() < 3


def test_positions_are_sub_pixel():
    scene = Scene('arrow', 'red', 'sea', 'right', 'still')
    drawn = render_at(scene, np.array([[32.0, 32.0], [32.25, 32.0], [33.0, 32.0]])).astype(int)
    still = np.abs(drawn - background('sea', 'flat', 64)).sum(3)
    middle = (still * (np.arange(64) + 0.5)).sum((1, 2)) / still.sum((1, 2))
    assert 0.1 < middle[1] - middle[0] < 0.4 and 0.7 < middle[2] - middle[0] < 1.3


def test_unknown_attributes_are_refused():
    with pytest.raises(ValueError, match="'fish'"):
        Scene('fihs', 'red', 'sea', 'left', 'still')
    with pytest.raises(ValueError, match='unknown attribute'):
        sample_scene(np.random.default_rng(0), sort='fish')
    with pytest.raises(ValueError, match='32 to 512'):
        render(Scene('fish', 'red', 'sea', 'left', 'still'), size=8)
    with pytest.raises(ValueError, match='at least one frame'):
        render(Scene('fish', 'red', 'sea', 'left', 'still'), frames=0)


def test_a_clip_at_a_lower_rate_moves_further():
    """The same scenes at any rate, except for how far they get in a clip."""
    worlds = {fps: SpriteWorld(length=30, fps=[fps]) for fps in (8, 16)}
    usual = SpriteWorld(length=30)
    moved = 0
    for index in range(30):
        slow, fast = worlds[8][index], worlds[16][index]
        assert torch.equal(slow['video'], usual[index]['video']) and 'fps' not in usual[index]
        assert (slow['fps'], fast['fps']) == (8.0, 16.0)
        if slow['scene']['travel'] < 22:  # else it may be cut, to stay inside the frame
            assert fast['scene']['travel'] == pytest.approx(slow['scene']['travel'] / 2, abs=0.01)
            assert fast['motion_bucket_id'] == pytest.approx(slow['motion_bucket_id'], abs=1)
        assert 0 <= slow['motion_bucket_id'] <= 255
        moved += slow['motion_bucket_id'] > 20
    assert moved > 10
    rates = {SpriteWorld(length=40, fps=[6, 24])[i]['fps'] for i in range(40)}
    assert rates == {6.0, 24.0}


def test_free_paths_are_tied_to_nothing_that_a_picture_shows():
    world = SpriteWorld(length=400, num_frames=14, paths='free', fps=[8], captions=False)
    scenes = [world.scene(index)[0] for index in range(400)]
    assert {scene.course for scene in scenes} == {'straight'}
    for pace in PACES:
        travels = [scene.travel for scene in scenes if scene.pace == pace]
        assert min(travels) < 3 and max(travels) > 22 and 10 < np.mean(travels) < 17
    item = world[5]
    bucket = 255 * item['scene']['travel'] / 13 * 15 / 32
    assert item['motion_bucket_id'] == pytest.approx(min(bucket, 255), abs=1)


@pytest.mark.parametrize('fps', [[], [0], [8, 1000]])
def test_rates_that_cannot_be_are_refused(fps):
    with pytest.raises(ValueError, match='fps is some numbers from 1 to 240'):
        SpriteWorld(fps=fps)
