"""Pictures as prompts of the editors: what is refused, and without an image encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import small_ip_adapters as small
import small_ip_editor
import torch
from small_ip_adapters import FRAMES, HIDDEN, PROJECTED, SEEN
from small_ip_editor import (
    FILES,
    LAYERS,
    SIZE,
    adapter,
    config,
    infer,
    picture,
)

from mmvideo.config_check import check
from mmvideo.errors import ConfigError, InputError, WeightsError
from mmvideo.registry import MODELS

folder, build = small_ip_editor.folder, small_ip_editor.build


# Refusals, from the config alone --------------------------------------------------------------

HALF = torch.ones(SIZE, SIZE // 2)
REFUSALS = [
    (1, {}, 'ip_adapter_image is missing: the IP-Adapter .plain. needs a picture'),
    (0, dict(ip_adapter_image=picture(1)), 'the model has no IP-Adapter'),
    (0, dict(ip_adapter_scale=0.5), 'ip_adapter_scale is given, but'),
    (1, dict(ip_adapter_image='gone.png'), 'gone.png does not exist'),
    (1, dict(ip_adapter_image=[]), 'ip_adapter_image has 0 entries for 1 IP-Adapters'),
    (1, dict(ip_adapter_image=[[]]), 'ip_adapter_image is an empty list'),
    (2, dict(ip_adapter_image=picture(1)), 'has one entry for 2 IP-Adapters: expected a list of 2'),
    (2, dict(ip_adapter_image=[picture(1)] * 3), '3 entries for 2 IP-Adapters'),
    (2, dict(ip_adapter_image=[picture(1), None]), "the IP-Adapter 'plus' needs a picture"),
    (1, dict(ip_adapter_image={'frame': []}), "a dict with 'frame'.*Did you mean 'frames'"),
    (1, dict(ip_adapter_image={'frames': [picture(1)] * 4}), 'for 4 frames, the clip has 3'),
    (
        1,
        dict(ip_adapter_image={'frames': [picture(1), [picture(1)] * 2, picture(1)]}),
        'from 1 to 2 pictures a frame',
    ),
    (1, dict(ip_adapter_image=3), 'image is a int'),
    (
        1,
        dict(ip_adapter_image=picture(1), ip_adapter_image_embeds=torch.zeros(2, 1, PROJECTED)),
        'give one of them',
    ),
    (1, dict(ip_adapter_image_embeds=torch.zeros(PROJECTED)), r'\[2 or 1, I, E\]'),
    (1, dict(ip_adapter_image_embeds=torch.zeros(3, 1, PROJECTED)), r'shape \[3, 1, 10\]'),
    (1, dict(ip_adapter_image_embeds='gone.safetensors'), 'gone.safetensors does not exist'),
    (1, dict(ip_adapter_image_embeds=[3]), 'holds a int: expected a tensor'),
    (1, dict(ip_adapter_image=picture(1), ip_adapter_scale={'dwon': 1}), "Did you mean 'down'"),
    (1, dict(ip_adapter_image=picture(1), ip_adapter_scale=[1, 2]), '2 scales for 1 pictures'),
    (2, dict(ip_adapter_image=[picture(1)] * 2, ip_adapter_scale=[1]), '1 entries for 2'),
    (
        1,
        dict(ip_adapter_image=picture(1), ip_adapter_masks=[HALF, HALF]),
        '2 masks for 1 pictures',
    ),
    (
        1,
        dict(ip_adapter_image=picture(1), ip_adapter_masks=HALF),
        r'8x16 px, which is another shape than the clip \(16x16\)',
    ),
    (
        1,
        dict(ip_adapter_image=picture(1), ip_adapter_masks=torch.full((SIZE, SIZE), 2.0)),
        'values from 2 to 2: expected 0 to 1',
    ),
    (
        1,
        dict(ip_adapter_image=picture(1), ip_adapter_masks=torch.ones(2, SIZE, SIZE)),
        r'\[2, 16, 16\]: expected \[height, width\], or \[3, height, width\]',
    ),
    (
        1,
        dict(ip_adapter_image=[[picture(1)] * 2], ip_adapter_masks=[[HALF, HALF.T]]),
        'expected one size',
    ),
    (1, dict(ip_adapter_image=picture(1), ip_adapter_masks=torch.ones(3)), r'shape \[3\]'),
]


@pytest.mark.parametrize(('adapters', 'arguments', 'message'), REFUSALS)
def test_refusals(
    adapters: int, arguments: dict, message: str, folder: Path, build: Callable
) -> None:
    kinds = list(FILES)[:adapters]
    model = config(folder, *(adapter(folder, kind) for kind in kinds))
    call = dict(prompt='a fish', video_length=FRAMES, height=SIZE, width=SIZE, **arguments)
    with pytest.raises((InputError, WeightsError), match=message):
        build().check(model, call)
    with pytest.raises((InputError, WeightsError), match=message):
        build(*kinds).infer(**call)


BUILT = [
    ('plain', dict(ip_adapter_image_embeds=torch.zeros(2, 1, 7)), r'expects \[2 or 1, I, 10\]'),
    (
        'plus',
        dict(ip_adapter_image_embeds=torch.zeros(2, 1, HIDDEN)),
        r'has the shape \[2, 1, 16\].*expects \[2 or 1, I, S, 16\]',
    ),
    (
        'plain',
        dict(ip_adapter_image=picture(1), ip_adapter_scale={'up': {'block_0': 1}}),
        "'block_0', which has no cross-attention",
    ),
]


@pytest.mark.parametrize(('kind', 'arguments', 'message'), BUILT)
def test_refusals_that_need_the_model(
    kind: str, arguments: dict, message: str, build: Callable
) -> None:
    with pytest.raises(InputError, match=message):
        infer(build(kind), **arguments)


def test_without_an_image_encoder(build: Callable) -> None:
    editor = build('plain', image_encoder=None)
    with pytest.raises(InputError, match='has no image encoder; name one'):
        infer(editor, ip_adapter_image=picture(1))
    infer(editor, ip_adapter_image_embeds=torch.ones(1, 1, PROJECTED))
    with pytest.raises(InputError, match='give both halves'):
        infer(
            build('plus', image_encoder=None),
            ip_adapter_image_embeds=torch.ones(1, 1, SEEN, HIDDEN),
        )


def test_an_image_encoder_that_is_not_there(folder: Path, build: Callable) -> None:
    wrong = adapter(folder, image_encoder='image_encodr')
    model = config(folder, wrong)
    with pytest.raises(WeightsError, match="image_encodr.*Did you mean 'image_encoder'"):
        MODELS.build(model)
    with pytest.raises(WeightsError, match="Did you mean 'image_encoder'"):
        build().check(model, dict(prompt='a fish', ip_adapter_image=picture(1)))


def test_the_image_encoder_of_another_adapter(folder: Path, tmp_path: Path) -> None:
    small.write_encoder(tmp_path, projection_dim=12)
    kind, source = 'CLIPVisionModelWithProjection', str(tmp_path / 'image_encoder')
    other = dict(type=kind, from_pretrained=source)
    editor = MODELS.build(config(folder))
    with pytest.raises(WeightsError, match='reads 10 features, its image encoder gives 12'):
        editor.add_adapter(adapter(folder, image_encoder=other))
    assert not editor.adapters and not hasattr(editor, 'ip_adapters')


def test_an_adapter_of_another_model(folder: Path, tmp_path: Path) -> None:
    small.write_adapter(tmp_path / 'ip', 'plain', text=2048, layers=LAYERS)
    editor = MODELS.build(config(folder))
    with pytest.raises(WeightsError, match=r'2048 channels \(SDXL\); this model has 12'):
        editor.add_adapter(adapter(tmp_path, image_encoder=None))
    assert not editor.adapters and not hasattr(editor, 'ip_adapters')


def test_keys_of_the_config(folder: Path) -> None:
    encoder = dict(type='CLIPVisionModelWithProjection', from_pretrained=str(folder))
    processor = dict(type='CLIPImageProcessor', image_size=16)
    whole = adapter(folder, image_encoder=encoder, image_processor=processor, scale=0.5)
    images = dict(prompt='a fish', ip_adapter_image='a.png', ip_adapter_scale={'up': 1})
    check(dict(model=config(folder, whole), infer=images), 'x.py')
    encoder['subfoldr'] = 'ip'
    with pytest.raises(ConfigError, match="takes no 'subfoldr'.*Did you mean 'subfolder'"):
        check(dict(model=config(folder, whole)), 'x.py')
    with pytest.raises(ConfigError, match="Did you mean 'ip_adapter_image'"):
        check(dict(model=config(folder), infer=dict(ip_adapter_imge='a.png')), 'x.py')
    with pytest.raises(ConfigError, match="takes no 'scal'.*Did you mean 'scale'"):
        MODELS.build(config(folder, adapter(folder, scal=1)))
    with pytest.raises(ConfigError, match='scale='):
        MODELS.build(config(folder, adapter(folder, scale='much')))
