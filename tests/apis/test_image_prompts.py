"""Pictures of IP-Adapters in recipes: what goes in comes out, or a message says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmvideo.apis import image_prompts
from mmvideo.apis.image_prompts import find_prompts, pack_prompts, unpacked_prompts
from mmvideo.apis.images import EMBED_LIMIT
from mmvideo.checkpoints.files import read_tensors, write_tensors
from mmvideo.errors import InputError


def picture(seed: int, side: int = 6) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def pixels(path: Any) -> np.ndarray:
    return np.array(Image.open(path))


def replayed(arguments: dict) -> dict:
    """Packed, written as JSON and read again."""
    return json.loads(json.dumps(pack_prompts(arguments)))


def test_everything_comes_back(tmp_path: Path) -> None:
    picture(1).save(tmp_path / 'a.png')
    embeds = torch.randn(2, 1, 5)
    write_tensors(tmp_path / 'embeds.safetensors', {'x': embeds})
    path, mask = str(tmp_path / 'a.png'), (torch.arange(12).reshape(3, 4) * 20).byte()
    arguments = dict(
        prompt='a fish',
        ip_adapter_image=[path, {'frames': [picture(2), path]}, [picture(2), picture(3)]],
        ip_adapter_masks=[None, mask, (mask / 255).expand(2, 3, 4)],
        ip_adapter_image_embeds=str(tmp_path / 'embeds.safetensors'),
        ip_adapter_scale={'up': 0.5},
    )
    packed = replayed(arguments)
    assert packed['prompt'] == 'a fish' and packed['ip_adapter_scale'] == {'up': 0.5}
    for name in ('a.png', 'embeds.safetensors'):
        (tmp_path / name).unlink()
    with unpacked_prompts(packed) as call:
        first, by_frame, several = call['ip_adapter_image']
        assert np.array_equal(pixels(first), np.array(picture(1)))
        assert by_frame['frames'][1] == first and by_frame['frames'][0] == several[0]
        assert np.array_equal(pixels(several[1]), np.array(picture(3)))
        none, single, frames = call['ip_adapter_masks']
        assert none is None and np.array_equal(pixels(single), mask.numpy())
        assert frames['frames'] == [single, single]
        assert torch.equal(read_tensors(call['ip_adapter_image_embeds'])['x'], embeds)
    assert not Path(first).exists()
    assert pack_prompts(packed) == packed


def test_a_large_file_is_named(tmp_path: Path) -> None:
    large = tmp_path / 'large.bmp'
    picture(1, 600).save(large)
    assert large.stat().st_size > EMBED_LIMIT
    packed = replayed(dict(ip_adapter_image=str(large)))
    assert set(packed['ip_adapter_image']) == {'name', 'sha256', 'path'}
    with unpacked_prompts(packed) as call:
        assert call['ip_adapter_image'] == str(large)
    picture(2, 600).save(large)
    with pytest.raises(InputError, match='has changed.*--ip-adapter-image'):
        unpacked_prompts(packed).__enter__()


def test_the_room_of_a_recipe(tmp_path: Path, monkeypatch: Any) -> None:
    """What is beyond it stays where it is; what is nowhere else is refused before any work."""
    paths = [tmp_path / f'{seed}.png' for seed in range(3)]
    for seed, path in enumerate(paths):
        picture(seed).save(path)
    monkeypatch.setattr(image_prompts, 'ROOM', 2 * paths[0].stat().st_size)
    packed = pack_prompts(dict(ip_adapter_image=list(map(str, paths))))['ip_adapter_image']
    assert ['data' in entry for entry in packed] == [True, True, False]
    with pytest.raises(InputError, match='more than a recipe has room for'):
        pack_prompts(dict(ip_adapter_image=[picture(seed) for seed in range(3)]))


def test_paths_of_a_config(tmp_path: Path) -> None:
    given = dict(
        ip_adapter_image=['a.png', {'frames': ['b.png']}], ip_adapter_masks=[None, 'm.png']
    )
    found = find_prompts(given, tmp_path)
    assert found['ip_adapter_image'] == [
        str(tmp_path / 'a.png'),
        {'frames': [str(tmp_path / 'b.png')]},
    ]
    assert found['ip_adapter_masks'] == [None, str(tmp_path / 'm.png')]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(ip_adapter_image='gone.png'), 'gone.png does not exist'),
        (dict(ip_adapter_image=3), 'image is a int'),
        (dict(ip_adapter_image_embeds=torch.zeros(2, 1, 4)), 'write it to a safetensors file'),
        (dict(ip_adapter_masks=torch.full((4, 4), 0.123)), '256 levels of grey'),
        (dict(ip_adapter_masks=torch.full((4, 4), 2.0)), '256 levels of grey'),
    ],
)
def test_what_no_recipe_can_hold(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pack_prompts(arguments)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(data='!!'), 'no base64'),
        (dict(data='AAAA'), 'sha256 differs'),
        (dict(sha256='../../x'), 'sha256 differs'),
        (dict(name=3), 'is damaged'),
        (dict(extra=1), 'is damaged'),
    ],
)
def test_damaged_entries(change: dict, message: str) -> None:
    packed = pack_prompts(dict(ip_adapter_image=picture(1)))
    packed['ip_adapter_image'] |= change
    with pytest.raises(InputError, match=message):
        unpacked_prompts(packed).__enter__()


def test_an_entry_without_its_content() -> None:
    packed = pack_prompts(dict(ip_adapter_image=picture(1)))
    del packed['ip_adapter_image']['data']
    with pytest.raises(InputError, match="lacks the picture 'picture.png'"):
        unpacked_prompts(packed).__enter__()
