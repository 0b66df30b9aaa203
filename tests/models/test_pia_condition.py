"""PIA's condition module, and the picture it starts from."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmvideo.errors import ConfigError, InputError
from mmvideo.models.conditioning.affinity import WEBVID_STATISTICS
from mmvideo.models.conditioning.pia import PIACondition, prepare_condition_image
from mmvideo.registry import MODELS


def tensors(samples: int = 2, frames: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(samples, 4, frames, 5, 6, generator=generator)
    condition = torch.randn(samples, 4, 5, 6, generator=generator)
    affinity = torch.rand(samples, frames, generator=generator)
    return latents, condition, affinity


def test_inputs_are_latent_mask_condition() -> None:
    latents, condition, affinity = tensors()
    module = MODELS.build(dict(type='PIACondition'))
    result = module.inputs(latents, condition, affinity)
    assert result.shape == (2, 9, 3, 5, 6)
    assert module.in_channels == 9
    for n in range(2):
        for t in range(3):
            assert torch.equal(result[n, :4, t], latents[n, :, t])
            assert torch.equal(result[n, 4, t], affinity[n, t].expand(5, 6))
            assert torch.equal(result[n, 5:, t], condition[n])


def test_inputs_keep_dtype_and_gradient() -> None:
    latents, condition, affinity = tensors()
    latents = latents.half().requires_grad_()
    result = PIACondition().inputs(latents, condition, affinity)
    assert result.dtype == torch.float16
    result.sum().backward()
    assert torch.equal(latents.grad, torch.ones_like(latents))


def test_no_parameters_and_nothing_in_checkpoints() -> None:
    module = PIACondition(statistics='webvid')
    assert not list(module.parameters())
    assert not module.state_dict()
    assert PIACondition(latent_channels=16).in_channels == 33


@pytest.mark.parametrize(
    ('dropout', 'low', 'high'), [(0.0, 0, 0), (0.2, 340, 460), (1.0, 2000, 2000)]
)
def test_dropout_frequency(dropout: float, low: int, high: int) -> None:
    torch.manual_seed(3)
    module = PIACondition(condition_dropout=dropout)
    latents, condition = torch.ones(2000, 4, 1, 1, 1), torch.ones(2000, 4, 1, 1)
    result = module.training_inputs(latents, condition, torch.ones(2000, 1))
    assert (result[:, :4] == 1).all()
    mask, picture = result[:, 4, 0, 0, 0], result[:, 5:].flatten(1)
    assert (picture == mask[:, None]).all()  # both or none
    assert low <= int((mask == 0).sum()) <= high  # 0.2: 3.3 standard deviations


def test_dropout_is_drawn_for_each_sample() -> None:
    torch.manual_seed(4)
    module = PIACondition(condition_dropout=0.5)
    ones = torch.ones(2, 4, 1, 1, 1), torch.ones(2, 4, 1, 1), torch.ones(2, 1)
    seen = [tuple(module.training_inputs(*ones)[:, 4, 0, 0, 0].tolist()) for _ in range(400)]
    for pair in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        assert 65 <= seen.count(pair) <= 135  # 100 expected, deviation 8.7


def test_dropout_follows_the_global_generator() -> None:
    module = PIACondition(condition_dropout=0.5)
    latents, condition, affinity = tensors(8)
    torch.manual_seed(7)
    first = module.training_inputs(latents, condition, affinity)
    second = module.training_inputs(latents, condition, affinity)
    torch.manual_seed(7)
    assert torch.equal(module.training_inputs(latents, condition, affinity), first)
    assert not torch.equal(first, second)


def test_training_affinity() -> None:
    module = PIACondition(statistics='webvid')
    scores = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1)) * 60
    scores = scores + scores.transpose(1, 2)
    affinity = module.training_affinity(scores, torch.tensor([0, 9, 15]))
    assert affinity.shape == (3, 16)
    for n, condition in enumerate([0, 9, 15]):
        assert affinity[n, condition] == 1
        frame = 5
        high = WEBVID_STATISTICS.maximum[abs(frame - condition)]
        score = min(scores[n, frame, condition].item(), float('inf'))
        score = 0.95 * high if score > high else score
        assert affinity[n, frame].item() == pytest.approx(1 - 0.8 * score / high, abs=1e-6)
    assert affinity.min() >= 0.2


def test_training_needs_statistics() -> None:
    with pytest.raises(ConfigError, match='statistics is missing'):
        PIACondition().training_affinity(torch.zeros(1, 4, 4), torch.tensor([0]))


def test_statistics_from_file_and_mapping(tmp_path: Path) -> None:
    path = tmp_path / 'table.json'
    path.write_text(WEBVID_STATISTICS.to_json())
    assert PIACondition(statistics=str(path)).statistics == WEBVID_STATISTICS
    inline = PIACondition(statistics=dict(minimum=[0, 1], maximum=[0, 5.0]))
    assert inline.statistics.maximum == (0, 5.0)
    with pytest.raises(InputError, match='does not exist'):
        PIACondition(statistics='webvit.json')
    with pytest.raises(ConfigError, match='condition_dropout=1.5'):
        PIACondition(condition_dropout=1.5)


# Pictures


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def official(image: Image.Image) -> torch.Tensor:
    """What the official code does, written out."""
    image = image.convert('RGB')
    width, height = image.size
    factor = 512 / max(width, height) if max(width, height) > 512 else 1
    image = image.resize((int(width * factor), int(height * factor)))
    image = image.resize((image.width // 8 * 8, image.height // 8 * 8))
    array = torch.from_numpy(np.asarray(image).copy()).float()
    return (array / 255 * 2 - 1).permute(2, 0, 1)


@pytest.mark.parametrize(
    ('size', 'expected'),
    [
        ((512, 512), (512, 512)),
        ((1024, 512), (512, 256)),
        ((700, 1000), (352, 512)),
        ((123, 77), (120, 72)),
        ((64, 64), (64, 64)),
        ((561, 300), (504, 272)),
    ],
)
def test_size_and_pixels_are_official(size, expected) -> None:
    image = photo(*size)
    result = prepare_condition_image(image)
    assert (result.shape[2], result.shape[1]) == expected
    assert torch.allclose(result, official(image), atol=1e-6)
    assert result.dtype == torch.float32
    assert result.min() >= -1
    assert result.max() <= 1


def test_explicit_size_covers_and_cuts_the_centre() -> None:
    image = photo(100, 40)
    image.paste((255, 0, 0), (0, 0, 30, 40))
    image.paste((0, 0, 255), (30, 0, 70, 40))
    result = prepare_condition_image(image, 80, 80)
    assert result.shape == (3, 80, 80)
    inner = result[:, :, 2:-2]  # at the cut, bicubic mixes in the neighbour
    assert (inner[2] > 0.9).all()  # the blue middle alone
    assert (inner[0] < -0.9).all()


def test_one_edge_follows_from_the_other() -> None:
    assert prepare_condition_image(photo(200, 100), height=64).shape == (3, 64, 128)
    assert prepare_condition_image(photo(200, 100), width=64).shape == (3, 32, 64)


def test_small_multiple() -> None:
    assert prepare_condition_image(photo(70, 67), multiple=4).shape == (3, 64, 68)
    assert prepare_condition_image(photo(36, 36), 36, 36, multiple=4).shape == (3, 36, 36)


@pytest.mark.parametrize(('height', 'width'), [(60, 64), (64, 0), (-8, 64), (63, 64)])
def test_impossible_size(height: int, width: int) -> None:
    with pytest.raises(InputError, match='expected a multiple of 8'):
        prepare_condition_image(photo(64, 64), height, width)


@pytest.mark.parametrize('suffix', ['png', 'webp', 'bmp', 'gif', 'tiff', 'jpg'])
def test_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f'a.{suffix}'
    photo(48, 32).save(path, **({'quality': 95} if suffix in ('jpg', 'webp') else {}))
    result = prepare_condition_image(str(path))
    error = (result - prepare_condition_image(photo(48, 32))).abs().mean()
    assert error < (0.07 if suffix in ('jpg', 'webp', 'gif') else 1e-6)


def test_grey_and_16_bit(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    Image.fromarray(ramp).save(tmp_path / 'deep.png')
    Image.fromarray(ramp).save(tmp_path / 'deep.tiff')
    expected = torch.from_numpy(ramp / 65535 * 2 - 1).float().expand(3, 64, 64)
    for image in (tmp_path / 'deep.png', tmp_path / 'deep.tiff', ramp, ramp[..., None]):
        assert (prepare_condition_image(image) - expected).abs().max() < 0.005
    grey = prepare_condition_image(photo(64, 64).convert('L'))
    assert torch.equal(grey[0], grey[2])


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:, :8] = (255, 0, 0, 255)
    pixels[:, 8:] = (0, 255, 0, 0)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / 'a.png')
    picture.convert('P').save(tmp_path / 'p.png', transparency=0)
    for image in (picture, pixels, torch.from_numpy(pixels).permute(2, 0, 1), tmp_path / 'a.png'):
        result = prepare_condition_image(image)
        assert result[:, 0, 0].tolist() == [1, -1, -1]
        assert result[:, 0, 15].tolist() == [1, 1, 1]
    half = Image.new('LA', (16, 16), (0, 128))
    assert prepare_condition_image(half)[0, 0, 0].item() == pytest.approx(0, abs=0.01)
    assert prepare_condition_image(tmp_path / 'p.png').shape == (3, 16, 16)


def test_cmyk(tmp_path: Path) -> None:
    photo(64, 64).convert('CMYK').save(tmp_path / 'a.jpg', quality=95)
    error = prepare_condition_image(tmp_path / 'a.jpg') - prepare_condition_image(photo(64, 64))
    assert error.abs().mean() < 0.05


def test_first_frame_of_animations(tmp_path: Path) -> None:
    frames = [Image.new('RGB', (16, 16), colour) for colour in ('red', 'green', 'blue')]
    for name in ('a.gif', 'a.webp'):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        result = prepare_condition_image(tmp_path / name)
        assert result[:, 8, 8].tolist() == pytest.approx([1, -1, -1], abs=0.02)


def test_orientation_of_cameras(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    photo(64, 32).save(tmp_path / 'a.jpg', exif=exif)
    assert prepare_condition_image(tmp_path / 'a.jpg').shape == (3, 64, 32)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_float_tensors(dtype: torch.dtype) -> None:
    image = torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    result = prepare_condition_image(image)
    assert (result - (image.float() * 2 - 1)).abs().max() <= 1 / 255 + 1e-6


def test_the_given_picture_is_not_changed() -> None:
    image = photo(64, 32)
    before = image.tobytes()
    prepare_condition_image(image)
    array = np.asarray(image).copy()
    prepare_condition_image(array)
    assert image.tobytes() == before == array.tobytes()


@pytest.mark.parametrize(
    ('image', 'words'),
    [
        (np.zeros((16, 16, 2), np.uint8), 'channels'),
        (np.zeros((16,), np.uint8), 'shape'),
        (np.zeros((0, 16, 3), np.uint8), 'no pixels'),
        (np.zeros((16, 16, 3), np.int64), 'int64'),
        (np.full((16, 16, 3), np.nan), 'floats in'),
        (np.full((16, 16, 3), 2.0), '2 to 2'),
        (torch.zeros(1, 3, 16, 16), 'tensor'),
        (-torch.ones(3, 16, 16), '-1 to -1'),
        (np.zeros((1, 1, 3), np.uint8), '1x1'),
        (np.zeros((4, 900, 3), np.uint8), '900x4'),
        (np.zeros((9, 2000, 3), np.uint8), 'too narrow'),
        (np.broadcast_to(np.uint8(0), (8000, 8000, 3)), '50 megapixels'),
        (3, 'int'),
        (None, 'NoneType'),
    ],
)
def test_unusable_values(image: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        prepare_condition_image(image)


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ('name', 'content', 'words'),
    [
        ('empty.png', b'', '0 bytes'),
        ('text.png', b'just text', 'no picture of a known format'),
        ('page.jpg', b'<!doctype html><html>not found</html>', 'no picture'),
        ('cut.png', encoded(photo(300, 300), 'PNG')[:2000], 'damaged'),
        ('cut.jpg', encoded(photo(300, 300), 'JPEG')[:2000], 'damaged'),
        ('cut.webp', encoded(photo(300, 300), 'WEBP')[:100], 'damaged|no picture|cannot'),
        ('tiny.png', encoded(photo(1, 1), 'PNG'), '1x1'),
        ('page.pdf', b'%PDF-1.4', 'no picture'),
        ('icon.ico', encoded(photo(32, 32), 'ICO'), 'no picture'),
        ('post.eps', encoded(photo(32, 32), 'EPS'), 'no picture'),
        ('large.png', encoded(Image.new('1', (8000, 8000)), 'PNG'), '50 megapixels'),
        ('bomb.png', encoded(Image.new('1', (16000, 16000)), 'PNG'), 'too large|50 megapixels'),
        ('float.tiff', encoded(Image.new('F', (16, 16)), 'TIFF'), 'floating-point'),
    ],
)
@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_unusable_files(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        prepare_condition_image(path)
    assert str(path) in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    photo(16, 16).save(tmp_path / 'picture.png')
    with pytest.raises(InputError, match="does not exist. Did you mean 'picture.png'"):
        prepare_condition_image(tmp_path / 'pictur.png')
    with pytest.raises(InputError, match='is a folder'):
        prepare_condition_image(tmp_path)
    with pytest.raises(InputError, match='download'):
        prepare_condition_image('https://example.com/a.png')


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF'])
def test_damaged_files_never_raise_anything_else(tmp_path: Path, kind: str) -> None:
    rng = random.Random(kind)
    whole = encoded(photo(60, 40), kind)
    path = tmp_path / 'damaged'
    refused = 0
    for _ in range(60):
        content = bytearray(whole[: rng.choice([len(whole), rng.randrange(1, len(whole))])])
        for _ in range(rng.randrange(1, 8)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            result = prepare_condition_image(path)
        except InputError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert result.shape[0] == 3
    assert refused > 3
