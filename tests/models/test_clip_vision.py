"""CLIP's image encoder and its preprocessing, as borrowed parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from mmvideo.checkpoints.load import read_part
from mmvideo.checkpoints.save import save_part
from mmvideo.errors import ConfigError, WeightsError
from mmvideo.models.borrowed import build_image_encoder, build_image_processor

SMALL = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
VISION = dict(SMALL, projection_dim=10, image_size=8, patch_size=4)


def assert_same(first: torch.nn.Module, second: torch.nn.Module) -> None:
    assert first.state_dict().keys() == second.state_dict().keys()
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_round_trip_is_bit_equal(tmp_path: Path) -> None:
    encoder = build_image_encoder(**VISION)
    assert isinstance(encoder, transformers.CLIPVisionModelWithProjection)
    save_part(tmp_path / 'models' / 'image_encoder', encoder.config.to_dict(), encoder)
    again = build_image_encoder(from_pretrained=str(tmp_path), subfolder='models/image_encoder')
    assert_same(again, encoder)
    assert not again.training and not any(p.is_meta for p in again.parameters())
    pixels = torch.rand(2, 3, 8, 8)
    assert torch.equal(again(pixels).image_embeds, encoder(pixels).image_embeds)


def test_the_image_half_of_a_whole_clip(tmp_path: Path) -> None:
    config = transformers.CLIPConfig(
        text_config=dict(SMALL, vocab_size=50, max_position_embeddings=8),
        vision_config=VISION,
        projection_dim=10,
    )
    torch.manual_seed(0)
    whole = transformers.CLIPModel(config).eval()
    whole.save_pretrained(tmp_path)
    encoder = build_image_encoder(from_pretrained=str(tmp_path))
    pixels = torch.rand(1, 3, 8, 8)
    expected = whole.get_image_features(pixels)
    expected = getattr(expected, 'pooler_output', expected)
    assert (encoder(pixels).image_embeds - expected).abs().max() <= 1e-6


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    encoder = build_image_encoder(**VISION)
    save_part(tmp_path, encoder.config.to_dict(), encoder)
    with pytest.raises(WeightsError, match='image encoder'):
        build_image_encoder(from_pretrained=str(tmp_path), projection_dim=12)
    config, tensors = read_part(str(tmp_path))
    save_part(tmp_path, config, tensors | {'vision_model.extra': torch.zeros(1)})
    with pytest.raises(WeightsError, match='not part of this model: vision_model.extra'):
        build_image_encoder(from_pretrained=str(tmp_path))
    with pytest.raises(ConfigError, match="takes no 'hiden_size'.*Did you mean 'hidden_size'"):
        build_image_encoder(hiden_size=16)


def test_processor(tmp_path: Path) -> None:
    picture = Image.fromarray(np.full((8, 12, 3), 128, np.uint8))
    processor = build_image_processor(image_size=8)
    assert isinstance(processor, transformers.CLIPImageProcessor)
    pixels = processor(picture, return_tensors='pt').pixel_values
    assert pixels.shape == (1, 3, 8, 8)
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    expected = ((128 / 255 - mean) / std)[:, None, None].expand(3, 8, 8)
    assert (pixels[0] - expected).abs().max() <= 1e-5
    transformers.CLIPImageProcessor(crop_size=6, size={'shortest_edge': 7}).save_pretrained(
        tmp_path
    )
    again = build_image_processor(from_pretrained=str(tmp_path))
    assert again(picture, return_tensors='pt').pixel_values.shape == (1, 3, 6, 6)


def test_settings_of_a_processor(tmp_path: Path) -> None:
    for keys in ({}, dict(from_pretrained=str(tmp_path), image_size=8)):
        with pytest.raises(ConfigError, match="either 'from_pretrained' or 'image_size'"):
            build_image_processor(**keys)
    with pytest.raises(WeightsError, match='preprocessor_config.json'):
        build_image_processor(from_pretrained=str(tmp_path))
