"""Recipes: what they hold, and what is refused in one that a stranger made."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from mmvideo.apis import images
from mmvideo.errors import InputError, UserError, WeightsError
from mmvideo.media.recipe import (
    DEPTH_LIMIT,
    FORMAT,
    SIZE_LIMIT,
    check_weights,
    make_recipe,
    parse_recipe,
    plain,
    read_recipe,
    recipe_text,
    weight_entries,
)
from mmvideo.media.writers import write_video
from mmvideo.models.conditioning.image import prepare_condition_image


def recipe(**changes: Any) -> dict[str, Any]:
    made = make_recipe(
        'test', {'model': {'type': 'PIA', 'sizes': (1, 2)}, 'train_cfg': {}},
        {'prompt': 'a', 'seed': 1}, 8, [], {'device': 'cpu'},
    )  # fmt: skip
    return {**made, **changes}


def test_holds_the_model_arguments_and_versions() -> None:
    made = recipe()
    assert made['config'] == {'model': {'type': 'PIA', 'sizes': [1, 2]}}
    assert made['versions']['torch'] == torch.__version__.split('+')[0] or made['versions']['torch']
    assert {'python', 'mmvideo', 'torch', 'diffusers', 'transformers', 'numpy'} <= set(
        made['versions']
    )
    assert parse_recipe(recipe_text(made), 'here') == made


@pytest.mark.parametrize('value', [float('nan'), float('inf'), torch.zeros(1), {1}, object()])
def test_what_json_cannot_hold_is_named(value: object) -> None:
    with pytest.raises(InputError, match=r'arguments\.a\[1\]'):
        plain({'a': [0, value]}, 'arguments')


def deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


HOSTILE = {
    'not json': 'import os',
    'python': "{'format': 'x'}",
    'cut off': recipe_text(recipe())[:-5],
    'nan': recipe_text(recipe()).replace('"fps":8', '"fps":NaN'),
    'long number': recipe_text(recipe()).replace('"fps":8', '"fps":' + '9' * 5000),
    'a list': '[]',
    'a text': '"recipe"',
    'another format': json.dumps(recipe(format='mmvideo recipe 99')),
    'no arguments': json.dumps({k: v for k, v in recipe().items() if k != 'arguments'}),
    'wrong section': json.dumps(recipe(weights={})),
    'true for a number': json.dumps(recipe(fps=True)),
    'other sections': json.dumps(recipe(config={'model': {}, 'custom_imports': {}})),
    'weights without hash': json.dumps(recipe(weights=[{'name': 'a'}])),
    'too deep': recipe_text(recipe(arguments={'a': deep(DEPTH_LIMIT + 5)})),
    'bottomless': '{"a":' + '[' * 100_000 + ']' * 100_000 + '}',
    'too large': ' ' * (SIZE_LIMIT + 1),
}


@pytest.mark.parametrize('text', HOSTILE.values(), ids=HOSTILE)
def test_hostile_recipe_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match='here'):
        parse_recipe(text, 'here')
    path = tmp_path / 'a.png'
    info = PngImagePlugin.PngInfo()
    info.add_itxt('mmvideo', text)
    Image.new('RGB', (4, 4)).save(path, pnginfo=info)
    with pytest.raises(InputError, match=r'a\.png'):
        read_recipe(path)


@pytest.mark.parametrize(
    'model',
    [
        {'type': 'subprocess.getoutput', 'cmd': 'true'},
        {'type': 'PIA', 'vae': {'type': 'os.system'}},
        {'type': 'AnimateDif'},
        {'type': 'PIA', '_delete_': True, 'custom_imports': {'imports': ['os']}},
    ],
)
def test_hostile_model_is_refused_by_the_config(model: dict) -> None:
    from mmvideo.config import recipe_to_config

    found = parse_recipe(json.dumps(recipe(config={'model': model})), 'here')
    with pytest.raises(UserError):
        recipe_to_config(found['config'])


def test_too_large_is_refused_when_written(tmp_path: Path) -> None:
    frames = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(InputError, match='characters'):
        write_video(tmp_path / 'a.png', frames, recipe=recipe(name='x' * SIZE_LIMIT))
    assert not list(tmp_path.iterdir())


def test_files_without_a_recipe(tmp_path: Path) -> None:
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    for suffix in ('.mp4', '.gif', '.webp'):
        path = write_video(tmp_path / f'a{suffix}', frames)
        with pytest.raises(InputError, match='holds no recipe'):
            read_recipe(path)
    with pytest.raises(InputError, match="no such file.*Did you mean 'a.mp4'"):
        read_recipe(tmp_path / 'b.mp4')
    with pytest.raises(InputError, match='a recipe lies in'):
        read_recipe(tmp_path / 'b.txt')


@pytest.mark.parametrize('suffix', ['.mp4', '.gif', '.webp', '.png'])
@pytest.mark.parametrize(
    'content',
    [b'', b'<html>', b'#EXTM3U\nhttp://127.0.0.1:9/a.ts\n', bytes(range(256)) * 9],
    ids=['empty', 'html', 'playlist', 'bytes'],
)
def test_other_files_under_a_media_name(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f'a{suffix}'
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf'a\{suffix}'):
        read_recipe(path)


@pytest.mark.parametrize('suffix', ['.mp4', '.gif', '.webp', '.png'])
def test_damaged_files_never_crash(tmp_path: Path, suffix: str) -> None:
    """Truncated or with flipped bytes: the recipe, or a UserError; nothing else."""
    rng = np.random.default_rng(0)
    given = recipe(name='x' * 3000)
    whole = write_video(tmp_path / f'a{suffix}', np.zeros((1, 8, 8, 3), np.uint8), recipe=given)
    content = whole.read_bytes()
    damaged = tmp_path / f'b{suffix}'
    for _ in range(60):
        cut = bytearray(content[: rng.integers(1, len(content) + 1)])
        for at in rng.integers(0, len(cut), 3):
            cut[at] = rng.integers(256)
        damaged.write_bytes(cut)
        with contextlib.suppress(InputError):
            assert read_recipe(damaged)['format'] == FORMAT


# --- weights -------------------------------------------------------------------------------------


def test_weights_are_compared_by_content(tmp_path: Path) -> None:
    folders = [tmp_path / name / 'model' / 'vae' for name in ('one', 'two')]
    for folder, content in zip(folders, (b'same', b'same'), strict=True):
        folder.mkdir(parents=True)
        (folder / 'w.safetensors').write_bytes(content)
    here, there = ([folder / 'w.safetensors'] for folder in folders)
    recorded = weight_entries(here)
    assert recorded[0]['name'] == 'model/vae/w.safetensors' and recorded[0]['size'] == 4
    assert str(tmp_path) not in json.dumps(recorded)
    check_weights(recorded, weight_entries(there), there)
    there[0].write_bytes(b'other')
    with pytest.raises(WeightsError, match=r'two/model/vae/w\.safetensors is not'):
        check_weights(recorded, weight_entries(there), there)
    with pytest.raises(WeightsError, match='names 1 weight files, the config loads 0'):
        check_weights(recorded, [], [])


# --- pictures ------------------------------------------------------------------------------------


def noise_image(path: Path, size: tuple[int, int]) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def prepare(image: Any) -> torch.Tensor:
    return prepare_condition_image(image)


def test_small_picture_is_kept_as_it_is(tmp_path: Path) -> None:
    path = noise_image(tmp_path / 'a.jpg', (90, 70))
    entry = json.loads(json.dumps(images.pack_image(str(path), prepare)))
    before = prepare(path)
    path.unlink()
    images.check_entry(entry)
    with images.unpacked(entry) as found:
        assert torch.equal(prepare(found), before)
    assert not Path(found).exists()


def test_large_picture_is_kept_as_the_model_saw_it(tmp_path: Path) -> None:
    path = noise_image(tmp_path / 'a.png', (700, 560))
    assert path.stat().st_size > images.EMBED_LIMIT
    entry = images.pack_image(str(path), prepare)
    before = prepare(path)
    assert 'path' not in entry
    with images.unpacked(entry) as found:
        assert torch.equal(prepare(found), before)


def test_huge_picture_is_named_and_compared(tmp_path: Path) -> None:
    path = noise_image(tmp_path / 'a.png', (900, 800))
    entry = images.pack_image(path, lambda p: prepare_condition_image(p, 800, 896))
    assert entry['path'] == str(path) and 'data' not in entry
    with images.unpacked(entry) as found:
        assert found == str(path)
    noise_image(path, (10, 10))
    with pytest.raises(InputError, match='has changed'), images.unpacked(entry):
        pass
    path.unlink()
    with pytest.raises(InputError, match='--image'), images.unpacked(entry):
        pass


@pytest.mark.parametrize(
    'image',
    [
        Image.new('L', (40, 24), 77),
        np.full((24, 40, 3), 9, np.uint8),
        torch.rand(3, 24, 40),
    ],
    ids=['pil', 'array', 'tensor'],
)
def test_pictures_that_are_no_files(image: Any) -> None:
    with images.unpacked(images.pack_image(image, prepare)) as found:
        assert torch.equal(prepare(found), prepare(image))


@pytest.mark.parametrize(
    'entry',
    [
        {},
        {'name': 'a', 'sha256': 'x', 'data': '%%%'},
        {'name': 'a', 'sha256': 'x', 'data': 'AAAA'},
        {'name': 'a', 'sha256': 'x', 'data': 5},
        {'name': 'a', 'sha256': 'x', 'command': 'x'},
    ],
)
def test_damaged_pictures_are_refused(entry: dict) -> None:
    with pytest.raises(InputError, match='picture in'):
        images.check_entry(entry)


def test_pictures_of_a_config(tmp_path: Path) -> None:
    assert images.find_image('a.png', tmp_path) == str(tmp_path / 'a.png')
    assert images.find_image('/x/a.png', tmp_path) == '/x/a.png'
    assert images.find_image('package://a/b.png', tmp_path).endswith('mmvideo/weights/a/b.png')
    with pytest.raises(InputError, match='inside the package'):
        images.find_image('package://../../etc/passwd', tmp_path)
