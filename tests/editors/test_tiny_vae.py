"""The small VAE in the place of Stable Diffusion's: built, decoding, and refused in training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny

from mmvideo.datasets.cached import CachedLatents
from mmvideo.editors.autoencoder import Autoencoder
from mmvideo.editors.facts import read_facts
from mmvideo.editors.text_to_image import TextToImage
from mmvideo.errors import ConfigError, InputError
from mmvideo.registry import MODELS

SMALL: dict[str, Any] = dict(
    encoder_block_out_channels=(8, 8),
    decoder_block_out_channels=(8, 8),
    num_encoder_blocks=(1, 1),
    num_decoder_blocks=(1, 1),
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What diffusers writes, below ``vae``."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp('tiny')
    vae = AutoencoderTiny(**SMALL)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    vae.save_pretrained(place / 'vae')
    return place


def part(folder: Path, **more: Any) -> dict:
    return dict(type='AutoencoderTiny', from_pretrained=str(folder), subfolder='vae', **more)


def test_what_diffusers_wrote_is_read(folder: Path) -> None:
    theirs = AutoencoderTiny.from_pretrained(folder / 'vae').eval()
    ours = MODELS.build(part(folder))
    assert type(ours) is AutoencoderTiny and not ours.training
    assert dict(ours.state_dict()).keys() == dict(theirs.state_dict()).keys()
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        assert torch.equal(ours.decode(x).sample, theirs.decode(x).sample)
    assert MODELS.build(part(folder, dtype='bfloat16')).dtype == torch.bfloat16


def test_facts_come_from_either_description(folder: Path) -> None:
    for vae in (part(folder), dict(type='AutoencoderTiny', **SMALL)):
        facts = read_facts(dict(vae=vae, unet=dict(type='VideoUNet', sample_size=8)))
        assert facts.vae_scale == 2 and facts.latent_channels == 4


def test_a_misspelt_key(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no 'num_decoder_block'.*'num_decoder_blocks'"):
        MODELS.build(part(folder, num_decoder_block=(1, 1)))


def test_it_decodes_the_latents_of_an_editor(folder: Path, build: Callable) -> None:
    """Its latents are scaled already; frames come out as the class itself makes them."""
    editor = build('AnimateDiff', vae=part(folder))
    call: dict[str, Any] = dict(prompt='a car', video_length=3, num_inference_steps=2, seed=0)
    latents = editor.infer(**call, output_type='latent')['latents']
    frames = editor.infer(**call, decode_chunk_size=2)['samples']
    with torch.no_grad():
        own = editor.vae.decode(latents[0].transpose(0, 1)).sample
    expected = own.add(1).div(2).clamp(0, 1).transpose(0, 1)[None]
    assert frames.shape == (1, 3, 3, 16, 16)
    assert float((frames - expected).abs().max()) <= 1e-5
    assert float(frames.std()) > 0.01


def test_clips_and_pictures_are_encoded_without_a_draw(folder: Path, build: Callable) -> None:
    editor = build('PIA', vae=part(folder))
    picture = torch.rand(1, 3, 16, 16) * 2 - 1
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    with torch.no_grad():
        latents = editor.encode(picture, generator)
        assert torch.equal(latents, editor.vae.encode(picture).latents)
    assert torch.equal(generator.get_state(), before)
    call: dict[str, Any] = dict(prompt='a car', num_inference_steps=2, video_length=3, seed=0)
    image = torch.rand(3, 16, 16)
    assert editor.infer(image=image, **call)['samples'].isfinite().all()
    with pytest.raises(InputError, match='height=15'):
        editor.infer(image=image, height=15, **call)


def test_training_needs_a_distribution(folder: Path, tmp_path: Path) -> None:
    for kind in (TextToImage, Autoencoder):
        with pytest.raises(ConfigError, match=r"model\.vae: .* type='AutoencoderKL'"):
            kind.check_training(dict(vae=part(folder)))
        kind.check_training(dict(vae=dict(type='AutoencoderKL')))
    dataset = dict(type='SpriteWorld', length=2, num_frames=2, size=16)
    with pytest.raises(ConfigError, match="use 'AutoencoderKL'"):
        CachedLatents(dataset, vae=part(folder), cache_dir=str(tmp_path), num_clips=2)
