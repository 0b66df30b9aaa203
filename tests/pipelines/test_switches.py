"""Sizes, chunks of frames, tiles and guess mode: what would pass unseen if it did nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs_of_pipelines import Both, call, parts, seeded
from test_controls import FRAMES, family, video

from mmvideo.pipelines import AnimateDiffPipeline

WIDE = dict(height=parts.SIZE, width=parts.SIZE + 16)


@pytest.fixture
def own(make: Callable) -> Both:
    """A pair whose VAE nobody else has, for tests that change it."""
    pair = make('v2')
    ours = AnimateDiffPipeline.from_pretrained(pair.folder)
    return Both(pair.folder, pair.theirs, ours)


def seen_by(part: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows a method of a part gets in each call, from now on."""
    counts, method = [], getattr(part, name)

    def counted(rows: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        counts.append(len(rows))
        return method(rows, *args, **kwargs)

    monkeypatch.setattr(part, name, counted)
    return counts


def frames(pipeline: Any, **changes: Any) -> torch.Tensor:
    return pipeline(**call(**changes), generator=seeded(11), output_type='pt').frames


def test_width_and_height(make: Callable) -> None:
    found = make('v2').compare(**call(**WIDE))
    assert found.shape[-2:] == (parts.SIZE, parts.SIZE + 16)
    tall = make('v2').compare(**call(height=parts.SIZE + 16, width=parts.SIZE))
    assert tall.shape[-2:] == (parts.SIZE + 16, parts.SIZE)
    usual = make('v2').compare(**call(height=None, width=None))
    assert usual.shape[-2:] == (parts.SIZE, parts.SIZE)


def test_width_and_height_of_a_picture(make: Callable) -> None:
    values = torch.rand(1, 3, WIDE['height'], WIDE['width'], generator=seeded(3))
    found = make('pia').compare(**call(**WIDE, image=parts.eight_bit(values)))
    assert found.shape[-2:] == tuple(WIDE.values())


def test_chunks_of_frames(own: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = own.compare(**call(5))
    decoded = seen_by(own.ours.vae, 'decode', monkeypatch)
    assert (own.compare(**call(5, decode_chunk_size=2)) - plain).abs().max() <= 1e-5
    assert decoded == [2, 2, 1]
    decoded.clear()
    frames(own.ours, frames=5)
    assert decoded == [5]


def test_chunks_of_a_clip(make: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = family(make, tmp_path, 'AnimateDiffVideoToVideoPipeline')
    settings = dict(call(), video=video(5), strength=0.5, decode_chunk_size=3)
    del settings['num_frames']
    counts = [seen_by(pair.ours.vae, name, monkeypatch) for name in ('encode', 'decode')]
    pair.compare(**settings)
    assert counts == [[3, 1], [3, 1]]


def test_frame_by_frame(own: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = frames(own.ours)
    decoded = seen_by(own.ours.vae, '_decode', monkeypatch)
    own.ours.enable_vae_slicing()
    assert (frames(own.ours) - plain).abs().max() <= 1e-5
    assert decoded == [1] * 4
    decoded.clear()
    own.ours.disable_vae_slicing()
    assert torch.equal(frames(own.ours), plain) and decoded == [4]


def test_tiles(own: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller tiles than the picture show; they are those of diffusers."""
    plain = frames(own.ours)
    for pipeline in own:
        monkeypatch.setattr(pipeline.vae, 'tile_sample_min_size', parts.SIZE // 2)
        monkeypatch.setattr(pipeline.vae, 'tile_latent_min_size', parts.CELLS // 2)
    own.ours.enable_vae_tiling()
    own.theirs.vae.enable_tiling()
    try:
        tiled = own.compare(**call())
    finally:
        own.theirs.vae.disable_tiling()
    assert (tiled - plain).abs().max() > 1e-3
    own.ours.disable_vae_tiling()
    assert torch.equal(frames(own.ours), plain)


def test_guess_mode(make: Callable, tmp_path: Path) -> None:
    """With guidance diffusers cannot add up the halves."""
    pair = family(make, tmp_path, 'AnimateDiffControlNetPipeline', 'first')
    shared = dict(conditioning_frames=video(1), controlnet_conditioning_scale=0.7)
    plain = pair.compare(**call(FRAMES, guidance_scale=1.0, **shared))
    guessed = pair.compare(**call(FRAMES, guidance_scale=1.0, guess_mode=True, **shared))
    assert (guessed - plain).abs().max() > 1e-4
    guided = [
        pair.ours(**call(FRAMES, guess_mode=g, **shared), generator=seeded(1), output_type='pt')
        for g in (False, True)
    ]
    assert (guided[0].frames - guided[1].frames).abs().max() > 1e-4


def test_guess_mode_of_sparse_pictures(make: Callable, tmp_path: Path) -> None:
    pair = family(make, tmp_path, 'AnimateDiffSparseControlNetPipeline', 'scribble')
    shared = dict(conditioning_frames=video(1, 2), controlnet_frame_indices=[0, 3])
    plain = pair.compare(**call(FRAMES, guidance_scale=1.0, **shared))
    guessed = pair.compare(**call(FRAMES, guidance_scale=1.0, guess_mode=True, **shared))
    assert (guessed - plain).abs().max() > 1e-4
