"""StableVideoDiffusionPipeline and I2VGenXLPipeline beside diffusers', within 1e-4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_i2vgen_pipeline as i2vgen
import test_svd_pipeline_parity as svd
import torch
from pairs_of_pipelines import Both, both_of, seeded

from mmvideo.errors import InputError
from mmvideo.pipelines import I2VGenXLPipeline, StableVideoDiffusionPipeline


@pytest.fixture(scope='module')
def video(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return both_of(tmp_path_factory.mktemp('svd'), svd.pipeline())


@pytest.fixture(scope='module')
def texts(tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp('i2vgen')
    theirs = i2vgen.write_pipeline(folder / 'parts')
    return both_of(folder / 'whole', theirs)


def svd_call(**changes: Any) -> dict[str, Any]:
    shared = dict(image=svd.picture(0), height=svd.HEIGHT, width=svd.WIDTH, num_frames=svd.FRAMES)
    return shared | dict(num_inference_steps=3) | changes


@pytest.mark.parametrize(
    'arguments',
    [
        dict(fps=12, motion_bucket_id=40, noise_aug_strength=0.3, max_guidance_scale=5.0),
        dict(sigmas=[300.0, 8.0, 0.5, 0.0], num_frames=None),
    ],
    ids=['ids', 'sigmas'],
)
def test_stable_video_diffusion(video: Both, arguments: dict) -> None:
    video.compare(**svd_call(**arguments))


def test_several_videos_of_a_picture(video: Both) -> None:
    """Of one generator, or of one each; the picture's noise is drawn once."""
    arguments = svd_call(num_videos_per_prompt=2, noise_aug_strength=0.5, num_inference_steps=2)
    video.compare(**arguments)
    expected, found = (
        torch.as_tensor(p(**arguments, generator=[seeded(4), seeded(9)], output_type='pt').frames)
        for p in video
    )
    assert (found - expected).abs().max() <= 1e-4
    assert (found[0] - found[1]).abs().max() > 1e-2


def test_latents_and_a_callback(video: Both) -> None:
    generator = torch.Generator().manual_seed(3)
    shape = (1, svd.FRAMES, 4, svd.HEIGHT // 2, svd.WIDTH // 2)
    latents = torch.randn(shape, generator=generator)

    def halve(pipe: Any, index: int, timestep: Any, tensors: dict) -> dict:
        return {'latents': tensors['latents'] * 0.9}

    video.compare(**svd_call(latents=latents, callback_on_step_end=halve))
    found = [p(**svd_call(), generator=seeded(1), output_type='latent').frames for p in video]
    assert found[0].shape == found[1].shape
    assert (found[0] - found[1]).abs().max() <= 1e-4 * max(1, float(found[0].abs().max()))


@pytest.mark.parametrize('in_place', [True, False])
def test_a_callback_writes_one_frame(video: Both, in_place: bool) -> None:
    """Frames stand before channels, as there."""

    def hold(pipe: Any, index: int, timestep: Any, tensors: dict) -> dict:
        latents = tensors['latents'] if in_place else tensors['latents'].clone()
        latents[:, 2] = latents[:, 0] * 0.5
        return {'latents': latents}

    held = video.compare(**svd_call(callback_on_step_end=hold))
    assert (held - video.compare(**svd_call())).abs().max() > 1e-2


def test_a_callback_with_frames_elsewhere(video: Both) -> None:
    def turn(pipe: Any, index: int, timestep: Any, tensors: dict) -> dict:
        return {'latents': tensors['latents'].transpose(1, 2)}

    with pytest.raises(InputError, match=r'of the shape \[1, 4, 3, 12, 20\], expected \[1, 3, 4,'):
        video.ours(**svd_call(), callback_on_step_end=turn)


@pytest.mark.parametrize('kind', ['pil', 'np', 'pt', 'latent'])
def test_frames_without_a_dict(video: Both, kind: str) -> None:
    """No tuple around them, as there."""
    arguments = svd_call(num_inference_steps=1, output_type=kind, return_dict=False)
    expected, found = (pipeline(**arguments, generator=seeded(1)) for pipeline in video)
    assert type(found) is type(expected)
    if kind == 'pil':
        assert [frame.size for frame in found[0]] == [frame.size for frame in expected[0]]
        found, expected = np.array(found[0]) / 255, np.array(expected[0]) / 255
    assert found.shape == expected.shape
    limit = 1.01 / 255 if kind == 'pil' else 1e-4 * max(1, float(abs(expected).max()))
    assert float(abs(found - expected).max()) <= limit


def test_chunks_of_the_feed_forward(video: Both) -> None:
    """A switch for memory that changes nothing."""
    for pipeline in video:
        pipeline.unet.enable_forward_chunking(chunk_size=1, dim=1)
    try:
        video.compare(**svd_call(num_inference_steps=2))
    finally:
        video.ours.unet.disable_forward_chunking()
        for module in video.theirs.unet.modules():  # which has no way back for this network
            if hasattr(module, 'set_chunk_feed_forward'):
                module.set_chunk_feed_forward(None, dim=0)
    with pytest.raises(InputError, match='dim=2, expected 0 or 1'):
        video.ours.unet.enable_forward_chunking(dim=2)


def test_more_motion_than_there_is(video: Both) -> None:
    with pytest.raises(InputError, match='motion_bucket_id=256: expected .* 255'):
        video.ours(**svd_call(), motion_bucket_id=256)


def test_no_prompt(video: Both) -> None:
    with pytest.raises(InputError, match="StableVideoDiffusionPipeline takes no 'prompt'"):
        video.ours(**svd_call(), prompt='a fish')


def test_no_switches_of_image_models(video: Both) -> None:
    for name in ('enable_freeu', 'enable_vae_tiling', 'load_lora_weights', 'enable_free_init'):
        assert not hasattr(video.ours, name) and not hasattr(video.theirs, name)


def test_official_epsilons(video: Both) -> None:
    official = StableVideoDiffusionPipeline.from_pretrained(video.folder, numerics='official')
    assert set(official.unet.settings.get('norm_eps', [1e-5])) == {1e-5}
    assert 1e-6 in video.ours.unet.settings['norm_eps']


def i2v_call(**changes: Any) -> dict[str, Any]:
    shared = dict(prompt=i2vgen.PROMPTS[0], negative_prompt=i2vgen.NEGATIVE, target_fps=8)
    sizes = dict(height=i2vgen.HEIGHT, width=i2vgen.WIDE, num_frames=i2vgen.FRAMES)
    picture = dict(image=i2vgen.picture(40, 24), num_inference_steps=2)
    return shared | sizes | picture | changes


def test_i2vgen_xl(texts: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a posterior without width, as diffusers draws from the global generator."""
    for pipeline in texts:
        bias = pipeline.vae.quant_conv.bias.data.clone()
        bias[4:] = -1000
        monkeypatch.setattr(pipeline.vae.quant_conv.bias, 'data', bias)
    texts.compare(**i2v_call())
    texts.compare(**i2v_call(clip_skip=None, guidance_scale=1.0, decode_chunk_size=None))
    shown, avoided = texts.ours.encode_prompt(i2vgen.PROMPTS[1], negative_prompt='')
    given = dict(prompt_embeds=shown, negative_prompt_embeds=avoided)
    texts.compare(**i2v_call(prompt=None, negative_prompt=None, **given))
    for pipeline in texts:
        pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    try:
        texts.compare(**i2v_call())
    finally:
        for pipeline in texts:
            pipeline.disable_freeu()


def test_both_are_saved_for_diffusers(texts: Both, video: Both, tmp_path: Path) -> None:
    import diffusers

    for pair in (texts, video):
        folder = tmp_path / type(pair.ours).__name__
        pair.ours.save_pretrained(folder)
        again = getattr(diffusers, type(pair.ours).__name__).from_pretrained(folder)
        again.set_progress_bar_config(disable=True)
        state, expected = again.unet.state_dict(), pair.theirs.unet.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in state)
        assert type(again.scheduler) is type(pair.theirs.scheduler)


def test_i2vgen_xl_needs_a_picture(texts: Both) -> None:
    with pytest.raises(InputError, match='image is missing'):
        texts.ours(prompt='a')
    with pytest.raises(InputError, match='I2VGenXLPipeline needs image_encoder'):
        I2VGenXLPipeline(**{**texts.ours.components, 'image_encoder': None})
