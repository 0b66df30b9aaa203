"""Clips that turn: what is drawn, what is said of it, and which combinations are shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mmvideo.datasets.sprites import SpriteWorld, TurningSprites, is_held_out, parse_caption
from mmvideo.datasets.sprites.world import reach
from mmvideo.editors.timeline import text_timeline
from mmvideo.evaluation import motion
from mmvideo.evaluation.sprite_tracking import track
from mmvideo.registry import DATASETS

WORLD = dict(type='SpriteWorld', length=40)


def clip_of(item: dict[str, Any]) -> np.ndarray:
    return item['video'].permute(0, 2, 3, 1).numpy()


def test_a_clip_turns_where_its_caption_changes() -> None:
    moving = dict(WORLD, paces=('slow', 'steady', 'fast'))
    data = DATASETS.build(dict(type='TurningSprites', world=moving, share=1.0))
    for index in range(6):
        item = data[index]
        said = text_timeline(item['caption'], 'caption')
        assert said.keys[0] == 0 and 4 <= said.keys[1] <= 12 and said.interpolation == 'step'
        before, after = map(parse_caption, said.values)
        assert before['heading'] != after['heading'] and before['kind'] == after['kind']
        assert motion.turns(clip_of(item), before, after, said.keys[1])
        assert item['video'].shape == (16, 3, 64, 64) and item['video'].dtype == torch.uint8


def test_a_share_of_the_clips_turns_and_the_others_are_the_worlds() -> None:
    plain, data = SpriteWorld(length=40), TurningSprites(WORLD, share=0.5)
    turned = ['\n' in data[index]['caption'] for index in range(40)]
    assert 10 <= sum(turned) <= 30
    for index in np.flatnonzero(~np.array(turned))[:4]:
        assert torch.equal(data[index]['video'], plain[int(index)]['video'])
        assert data[index]['caption'] == plain[int(index)]['caption']
    assert not any('\n' in TurningSprites(WORLD, share=0.0)[index]['caption'] for index in range(9))
    assert torch.equal(data[-1]['video'], data[39]['video'])


def test_a_clip_that_turns_is_drawn_by_seed_and_stays_inside() -> None:
    data, again = TurningSprites(WORLD, share=1.0), TurningSprites(WORLD, share=1.0)
    other = TurningSprites(dict(WORLD, seed=1), share=1.0)
    for index in range(12):
        item = data[index]
        assert torch.equal(item['video'], again[index]['video'])
        assert not torch.equal(item['video'], other[index]['video'])
        scene = item['scene']
        left, right, up, down = reach(scene['kind'], scene['heading'])
        assert left - 1e-9 <= scene['start_x'] <= 64 - right + 1e-9
        assert up - 1e-9 <= scene['start_y'] <= 64 - down + 1e-9
        for part in (clip_of(item)[:4], clip_of(item)[-4:]):
            assert not track(part, ('flat',)).lost


def test_no_turn_shows_training_what_is_held_out() -> None:
    rng = np.random.default_rng(0)
    for split in ('train', 'held_out'):
        data = TurningSprites(dict(WORLD, split=split, length=300), share=1.0)
        for index in range(300):
            begins, goes_on, _ = data._turn(data.world.scene(index)[0], rng)
            assert begins.heading != goes_on.heading
            assert is_held_out(begins) == (split == 'held_out')
            assert split == 'held_out' or not is_held_out(goes_on)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(share=1.5), 'share is 0 to 1'),
        (dict(world=dict(WORLD, num_frames=7)), 'at least 8 frames'),
        (dict(world=dict(WORLD, single_frame=True)), 'at least 8 frames'),
        (dict(world=dict(WORLD, fps=[6, 8])), 'neither fps nor spread'),
        (dict(world=dict(WORLD, spread=0.5)), 'neither fps nor spread'),
        (dict(world=dict(type='TurningSprites', world=WORLD)), 'is a SpriteWorld'),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TurningSprites(**{'world': WORLD, **arguments})
