"""I2VGenXL as an editor: its arguments, its refusals, its training."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from mmvideo.apis.inferencer import VideoInferencer
from mmvideo.checkpoints.load import read_part
from mmvideo.config import load_config
from mmvideo.errors import ConfigError, InputError
from mmvideo.models.conditioning.i2vgen import clip_pixels, picture_over_time
from mmvideo.models.conditioning.image import open_rgb
from mmvideo.models.unet import unet_arguments
from mmvideo.registry import MODELS

CONFIG = Path(__file__).with_name('tiny_i2vgen.py')
PICTURE = Path(__file__).parents[1] / 'apis' / 'tiny.png'
SIZE = dict(height=16, width=24, video_length=3, num_inference_steps=1, guidance_scale=2.0)


def model_config(**changes: Any) -> dict[str, Any]:
    return {**load_config(CONFIG).model.to_dict(), **changes}


def make(**changes: Any) -> Any:
    torch.manual_seed(0)
    editor = MODELS.build(model_config(**changes)).eval()
    with torch.no_grad():
        for parameter in editor.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return editor


@pytest.fixture(scope='module')
def editor() -> Any:
    return make()


def run(editor: Any, **changes: Any) -> Tensor:
    given = dict(SIZE, prompt='a red fish', image=str(PICTURE), seed=3)
    return editor.infer(**{**given, **changes})['samples']


def told(editor: Any, **changes: Any) -> dict[str, Tensor]:
    """The conditions of the denoiser's first call."""
    seen: list[dict[str, Tensor]] = []

    def keep(module: Any, args: Any, kwargs: dict) -> None:
        seen.append(kwargs['conditions'])

    handle = editor.unet.register_forward_pre_hook(keep, with_kwargs=True)
    run(editor, **changes)
    handle.remove()
    return seen[0]


def plain(color: str) -> Image.Image:
    return Image.new('RGB', (30, 20), color)


# --- what the denoiser is told --------------------------------------------------------------------


def test_conditions_of_both_halves(editor):
    found = told(editor, target_fps=7, video_length=4)
    assert found['fps'].tolist() == [7, 7]
    unguided, guided = found['image_embeddings']
    picture = open_rgb(PICTURE)
    pixels = clip_pixels(picture, 24, editor.feature_extractor)[None]
    expected = editor.image_encoder(pixels).image_embeds[0]
    assert not unguided.any() and torch.allclose(guided, expected, atol=1e-6)
    latents = found['image_latents']
    assert torch.equal(latents[0], latents[1])  # the local picture is kept in both
    assert torch.equal(latents, picture_over_time(latents[:, :, 0], 4))


def test_without_guidance_there_is_one_half(editor):
    found = told(editor, guidance_scale=1.0)
    assert found['fps'].shape == (1,) and found['image_embeddings'].any()


def test_every_argument_matters(editor):
    base = run(editor)
    changes = [
        dict(prompt='a blue car'),
        dict(negative_prompt='blue'),
        dict(image=plain('red')),
        dict(target_fps=3),
        dict(guidance_scale=3.0),
        dict(clip_skip=None),
        dict(seed=4),
        dict(num_inference_steps=2),
        dict(free_u=True),
    ]
    for change in changes:
        assert float((run(editor, **change) - base).abs().max()) > 1e-5, change
    assert torch.equal(run(editor, clip_skip=1), base)
    assert torch.equal(run(editor, clip_skip=None), run(editor, clip_skip=0))
    assert torch.allclose(run(editor, decode_chunk_size=3), base, atol=1e-6)


def test_eta_draws_from_the_samples_own_generator(editor):
    steps = dict(num_inference_steps=3)
    noisy = run(editor, eta=1.0, **steps)
    assert float((noisy - run(editor, **steps)).abs().max()) > 1e-4
    assert torch.equal(noisy, run(editor, eta=1.0, **steps))


def test_a_sample_does_not_depend_on_its_batch(editor):
    pictures = [plain('red'), plain('blue')]
    both = run(editor, image=pictures, prompt='a fish', seed=5)
    assert both.shape == (2, 3, 3, 16, 24)
    for index, picture in enumerate(pictures):
        alone = run(editor, image=picture, prompt='a fish', seed=5 + index)
        assert torch.allclose(both[index], alone[0], atol=1e-5)
    twice = run(editor, image=pictures, prompt='a fish', seed=[1, 2, 3, 4], num_videos_per_prompt=2)
    alone = run(editor, image=pictures[1], prompt='a fish', seed=3)
    assert torch.allclose(twice[2], alone[0], atol=1e-5)


def test_latents_in_place_of_noise_and_as_result(editor):
    noise = torch.randn(1, 4, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    latents = editor.infer(
        'a fish', PICTURE, latents=noise, generator=generator, output_type='latent', **SIZE
    )['latents']
    assert latents.shape == noise.shape
    generator = torch.Generator().manual_seed(2)
    video = run(editor, prompt='a fish', latents=noise, generator=generator)
    assert torch.allclose(editor.decode(latents, 1), video, atol=1e-6)


def test_a_prompt_may_change_over_the_frames(editor):
    changing = run(editor, prompt={0: 'a red fish', 2: 'a blue car'})
    assert float((changing - run(editor)).abs().max()) > 1e-5


def test_without_an_image_encoder_the_embedding_is_zero():
    editor = make(image_encoder=None, feature_extractor=None)
    assert not told(editor)['image_embeddings'].any()
    assert float((run(editor, image=plain('red')) - run(editor)).abs().max()) > 1e-4


@pytest.mark.parametrize(
    ('mode', 'size'), [('RGBA', (9, 7)), ('L', (2, 2)), ('I;16', (40, 3)), ('P', (3, 30))]
)
def test_pictures_of_any_kind(editor, mode, size):
    assert torch.isfinite(run(editor, image=Image.new(mode, size), num_inference_steps=1)).all()


# --- refusals -------------------------------------------------------------------------------------

WRONG = [
    (dict(video_length=0), r'num_frames=0: expected an integer >= 1'),
    (dict(target_fps=0), r'target_fps=0: expected an integer >= 1'),
    (dict(target_fps=2.5), r'target_fps=2\.5: expected an integer'),
    (dict(height=-8), r'height=-8: expected an integer >= 2'),
    (dict(height=None), r'height=None: expected an integer'),
    (dict(width=0), r'width=0: expected an integer >= 2'),
    (dict(width=25), r'width=25: expected a positive multiple of 2, such as 24 or 26'),
    (dict(num_inference_steps=0), r'num_inference_steps=0'),
    (dict(decode_chunk_size=0), r'decode_chunk_size=0'),
    (dict(eta=2), r'eta=2: expected a number'),
    (dict(clip_skip=2), r'clip_skip=2: expected None or an integer from 0 to 1'),
    (dict(image=None), r'image is missing: I2VGen-XL animates a picture'),
    (dict(image=[]), r'image is an empty list'),
    (dict(image='no.png'), r'no\.png does not exist'),
    (dict(image=Image.new('RGB', (100_000, 1))), r'100000x1 px: expected at least 2x2'),
    (dict(prompt=None), r'prompt is missing'),
]


@pytest.mark.parametrize(('change', 'message'), WRONG, ids=lambda value: str(value)[:30])
def test_wrong_arguments(editor, change, message):
    with pytest.raises(InputError, match=message):
        run(editor, **change)
    arguments = dict(SIZE, prompt='a red fish', image=str(PICTURE))
    with pytest.raises(InputError, match=message):
        type(editor).check(model_config(), {**arguments, **change})


def test_wrong_arguments_of_the_call_alone(editor):
    with pytest.raises(InputError, match='2 images for 3 samples'):
        run(editor, image=[PICTURE] * 2, prompt=['a', 'a', 'a'])
    with pytest.raises(InputError, match=r'latents has the shape \[1, 4, 2, 8, 12\]'):
        run(editor, latents=torch.zeros(1, 4, 2, 8, 12))
    with pytest.raises(InputError, match="I2VGenXL takes no 'windows'"):
        type(editor).check(model_config(), dict(prompt='a', image=PICTURE, windows=4))


def test_wrong_settings():
    with pytest.raises(ConfigError, match=r'model\.feature_extractor is missing'):
        make(feature_extractor=None)
    with pytest.raises(ConfigError, match=r'model\.condition_dropout=2'):
        make(condition_dropout=2)
    with pytest.raises(ConfigError, match=r'image_encoder gives 8 values.* takes 16'):
        make(image_encoder={**model_config()['image_encoder'], 'projection_dim': 8})
    unet = {**model_config()['unet']}
    unet['embeddings'] = {'fps_embedding': dict(type='FpsEmbedding')}
    with pytest.raises(ConfigError, match=r"takes the conditions \['fps'\]"):
        make(unet=unet)


# --- files ----------------------------------------------------------------------------------------


def test_a_video_is_made_again_from_its_recipe(tmp_path, monkeypatch):
    torch.manual_seed(0)
    weights = make(trainable=['^unet'])
    weights.save_pretrained(tmp_path / 'unet_only')
    cfg = load_config(CONFIG)
    cfg.model.unet = dict(
        type='VideoUNet', from_pretrained=str(tmp_path / 'unet_only'), subfolder='unet'
    )
    for name in ('vae', 'text_encoder', 'image_encoder'):
        module = getattr(weights, name)
        module.save_pretrained(tmp_path / name)
        cfg.model[name] = dict(type=cfg.model[name].type, from_pretrained=str(tmp_path / name))
    shutil.copy(PICTURE, tmp_path / 'picture.png')
    # A picture that is too large for a recipe is kept whole, not at the size of the video.
    monkeypatch.setattr('mmvideo.apis.images.EMBED_LIMIT', 3000)
    Image.effect_noise((30, 20), 60).convert('RGB').save(tmp_path / 'big.bmp')
    Image.new('RGB', (64, 40), 'red').save(tmp_path / 'plain.bmp')
    for name in ('picture.png', 'plain.bmp'):
        made = VideoInferencer(cfg)(
            out=tmp_path / f'{name}.mp4', image=str(tmp_path / name), progress=False
        )
        again = VideoInferencer(made['paths'][0])(out=False, progress=False)
        assert torch.equal(again['samples'], made['samples']), name
        assert made['samples'].shape == (1, 3, 3, 16, 24)
    plan = VideoInferencer(cfg).plan(image=str(PICTURE), video_length=5)
    assert (plan.frames, plan.height, plan.width) == (5, 16, 24)
    assert {part.name for part in plan.parts} >= {'image_encoder', 'feature_extractor'}
    files = {path.parent.name for path in VideoInferencer(cfg).editor.weight_files()}
    assert files == {'unet', 'vae', 'text_encoder', 'image_encoder'}


def test_frames_have_two_names(tmp_path):
    inferencer = VideoInferencer(load_config(CONFIG))
    work = inferencer.prepare(out=False, image=str(PICTURE), num_frames=4)
    assert work.jobs[0].arguments['video_length'] == 4


def test_what_is_trained_is_exported(tmp_path):
    editor = make(trainable=['temp_convs', 'temp_attentions', 'transformer_in'])
    trained = {n for n, p in editor.named_parameters() if p.requires_grad}
    assert trained and all('temp' in name or 'transformer_in' in name for name in trained)
    editor.save_pretrained(tmp_path)
    config, tensors = read_part(str(tmp_path), 'unet')
    assert config['_class_name'] == 'I2VGenXLUNet'
    assert set(tensors) == set(editor.unet.state_dict())
    again = make(unet=dict(type='VideoUNet', from_pretrained=str(tmp_path), subfolder='unet'))
    settings = unet_arguments(config)
    assert settings['temporal_slots'] == model_config()['unet']['temporal_slots']
    assert again.unet.image_latents_temporal_encoder.gain == 2.0


# --- training -------------------------------------------------------------------------------------


def clips(count: int = 2, frames: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(8)
    video = torch.randint(0, 256, (count, 3, frames, 16, 16), generator=generator)
    return video.float() / 127.5 - 1


def training_conditions(editor: Any, inputs: Any, **samples: Any) -> dict[str, Tensor]:
    seen: list[dict[str, Tensor]] = []
    handle = editor.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs['conditions']), with_kwargs=True
    )
    torch.manual_seed(0)
    count = len(samples.get('latents', inputs))
    editor(inputs, dict(caption=['a fish'] * count, **samples), mode='loss')
    handle.remove()
    return seen[0]


def test_training_sees_the_first_frame(editor):
    video = clips()
    found = training_conditions(editor, video)
    assert found['fps'].tolist() == [16, 16]
    pictures = [open_rgb(frame) for frame in video[:, :, 0].add(1).div(2)]
    pixels = torch.stack([clip_pixels(p, 16, editor.feature_extractor) for p in pictures])
    expected = editor.image_encoder(pixels).image_embeds
    assert torch.allclose(found['image_embeddings'], expected, atol=1e-5)
    over_time = found['image_latents']
    assert torch.equal(over_time, picture_over_time(over_time[:, :, 0], 3))
    assert training_conditions(editor, video, fps=torch.tensor([8, 4]))['fps'].tolist() == [8, 4]


def test_latents_of_a_cache_are_decoded_for_clip(editor):
    video = clips()
    frames = video.transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        posterior = editor.vae.encode(frames).latent_dist
    moments = torch.cat([posterior.mean, torch.full_like(posterior.mean, -30)], 1)
    found = training_conditions(editor, None, latents=moments.unflatten(0, (2, 3)).transpose(1, 2))
    latent = posterior.mean.unflatten(0, (2, 3))[:, 0] * editor.vae.config.scaling_factor
    assert torch.allclose(found['image_latents'][:, :, 0], latent, atol=1e-4)
    shown = editor.decode(latent.unsqueeze(2))[:, :, 0]
    expected = editor._embedded([open_rgb(picture) for picture in shown], 16)
    assert torch.allclose(found['image_embeddings'], expected, atol=1e-3)


def test_conditions_are_dropped_together(monkeypatch):
    editor = make(condition_dropout=0.5, caption_dropout=0.0)
    texts: list[list[str]] = []

    def encode(tokenizer: Any, encoder: Any, prompts: list[str], *_: Any) -> Tensor:
        texts.append(list(prompts))
        return torch.zeros(len(prompts), 12, 16)

    monkeypatch.setattr('mmvideo.editors.latent_diffusion.encode_prompts', encode)
    found = training_conditions(editor, clips(count=24))
    without = [text == '' for text in texts[0]]
    assert 4 < sum(without) < 20
    assert [not row.any() for row in found['image_embeddings']] == without
    assert found['image_latents'][:, :, 0].flatten(1).any(1).all()  # the local picture stays


def test_noise_offset_moves_whole_channels():
    editor = make(noise_offset=0.5)
    clean = torch.zeros(4, 4, 3, 40, 40)
    torch.manual_seed(0)
    noise = editor._training_noise(clean)
    means = noise.mean((-1, -2))
    assert abs(float(means.std()) - 0.5) < 0.12
    assert float((noise - means[..., None, None]).std()) == pytest.approx(1, abs=0.02)


def test_the_first_frame_weighs_more_in_the_loss():
    """All of the loss in the first frame, or the same in each, tell what any weight gives."""

    def loss(weight: float) -> float:
        editor = make(condition_loss_weight=weight)
        torch.manual_seed(0)
        found = editor(clips(), dict(caption=['a fish'] * 2), mode='loss')
        return float(found['loss'].detach())

    first, even, frames = loss(1e9), loss(1.0), clips().shape[2]
    assert loss(4.0) == pytest.approx((3 * first + frames * even) / (3 + frames), rel=1e-4)
    assert first != pytest.approx(even, rel=1e-3)
    with pytest.raises(ConfigError, match='condition_loss_weight=-1'):
        make(condition_loss_weight=-1)


def test_training_leaves_out_a_layer_of_the_text_encoder(monkeypatch):
    editor, skipped = make(), []

    def encode(tokenizer: Any, encoder: Any, prompts: list[str], count: Any, skip: Any) -> Tensor:
        skipped.append(skip)
        return torch.zeros(len(prompts), 12, 16)

    monkeypatch.setattr('mmvideo.editors.latent_diffusion.encode_prompts', encode)
    training_conditions(editor, clips())
    assert skipped == [1]


@pytest.mark.parametrize('patterns', [['^unet'], ['temp_', 'transformer_in']])
def test_the_loss_falls(patterns, monkeypatch):
    """Two clips are learnt, with the whole denoiser and with its temporal layers alone."""
    torch.manual_seed(0)
    editor = MODELS.build(model_config(trainable=patterns, caption_dropout=0.0)).train()
    video = clips()
    trained = [p for p in editor.parameters() if p.requires_grad]
    frozen = {n: p.clone() for n, p in editor.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    batch = dict(caption=['a red fish', 'a blue car'])
    losses = []
    for step in range(60):
        torch.manual_seed(step % 4)
        loss = editor(video, dict(batch), mode='loss')['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    first, last = sum(losses[:4]) / 4, sum(losses[-4:]) / 4
    assert last < (0.5 if patterns == ['^unet'] else 0.85) * first, (first, last)
    for name, before in frozen.items():
        assert torch.equal(before, editor.get_parameter(name)), name
    assert not editor.image_encoder.training and not editor.vae.training and editor.unet.training


def test_predictions_for_metrics(editor, monkeypatch):
    monkeypatch.setattr(
        editor, 'predict_arguments', dict(video_length=3, num_inference_steps=1, target_fps=8)
    )
    found = editor(clips(), dict(caption=['a fish', 'a car'], index=[4, 5]), mode='predict')
    assert [entry['caption'] for entry in found] == ['a fish', 'a car']
    assert found[0]['video'].shape == (3, 3, 16, 16)
    one: Callable = editor.infer
    alone = one('a car', found[1]['image'], seed=5, height=16, width=16, **editor.predict_arguments)
    assert torch.allclose(alone['samples'][0], found[1]['video'], atol=1e-5)
