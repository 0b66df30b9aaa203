"""StableVideoDiffusion: what a call may say, what becomes of pictures, and the training loss."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine import Config
from PIL import Image
from torch import Tensor

from mmvideo.editors import StableVideoDiffusion
from mmvideo.errors import ConfigError, InputError
from mmvideo.models.conditioning.clip_picture import clip_size
from mmvideo.registry import MODELS

TINY = Path(__file__).parents[1] / 'apis' / 'tiny_svd.py'
TEMPORAL = [r'^unet\..*(temporal_|time_pos_embed|time_mixer)']


def model_config(**changes: Any) -> dict:
    return {**Config.fromfile(TINY).model.to_dict(), **changes}


def make(**changes: Any) -> Any:
    torch.manual_seed(0)
    editor = MODELS.build(model_config(**changes)).eval()
    with torch.no_grad():
        for parameter in editor.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return editor


@pytest.fixture(scope='module')
def editor() -> Any:
    return make()


def picture(height: int = 16, width: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def frames(editor: Any, **arguments: Any) -> Tensor:
    call = dict(image=picture(), num_inference_steps=2, seed=0) | arguments
    return editor.infer(**call)['samples']


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(video_length=0), 'num_frames=0: expected an integer >= 1'),
        (dict(decode_chunk_size=0), 'decode_chunk_size=0: expected an integer >= 1'),
        (dict(num_inference_steps=0), 'num_inference_steps=0'),
        (dict(fps=0), r'fps=0: expected a number in \[1, '),
        (dict(motion_bucket_id=-1), r'motion_bucket_id=-1: expected a number in \[0, 255\]'),
        (dict(motion_bucket_id=256), 'motion_bucket_id=256'),
        (dict(noise_aug_strength=-0.1), 'noise_aug_strength=-0.1'),
        (dict(min_guidance_scale=float('nan')), 'min_guidance_scale=nan'),
        (dict(max_guidance_scale='3'), "max_guidance_scale='3'"),
        (dict(guidance_scale=[1.0, 2.0]), 'guidance_scale: 2 numbers for 3 frames'),
        (dict(height=15), 'height=15: expected a positive multiple of 2, such as 14 or 16'),
        (dict(width=0), 'width=0'),
        (dict(sigmas=[10.0, 1.0]), r'sigmas=\[10.0, 1.0\]: expected noise levels that fall'),
        (dict(sigmas=[1.0, 10.0, 0.0]), 'sigmas='),
        (dict(sigmas=[0.0]), 'sigmas='),
        (dict(sigmas='a'), 'sigmas='),
        (dict(image=None), 'image is missing'),
        (dict(image=[]), 'image is an empty list'),
        (dict(image=torch.rand(3, 1, 1)), 'image is 1x1 px: expected at least 2x2'),
        (dict(image=torch.rand(3, 2, 900)), 'image is 900x2 px, too narrow'),
        (dict(image=[picture(), picture(16, 32)]), 'clips of several sizes'),
        (dict(seed=-1), 'seed=-1'),
        (dict(num_videos_per_prompt=0), 'num_videos_per_prompt=0: expected an integer >= 1'),
        (dict(draws='diffuser'), "draws='diffuser'.*Did you mean 'diffusers'"),
        (dict(output_type='pil'), "output_type='pil'"),
        (dict(windows=dict(length=0)), 'windows.length=0'),
        (dict(prompt='a fish'), "prompt='a fish': StableVideoDiffusion takes no text"),
        (dict(moton_bucket_id=1), "takes no 'moton_bucket_id'. Did you mean 'motion_bucket_id'"),
    ],
)  # fmt: skip
def test_a_call_that_cannot_be_is_refused_by_the_config_alone(
    arguments: dict, message: str
) -> None:
    call = {'image': picture(), **arguments}
    with pytest.raises(InputError, match=message):
        StableVideoDiffusion.check(model_config(), call)


def test_a_call_that_can_be_is_not_refused() -> None:
    StableVideoDiffusion.check(model_config(), dict(image=picture(), sigmas=[700, 1, 0], fps=30))


@pytest.mark.parametrize('kind', ['AutoencoderKL', 'AutoencoderTiny'])
def test_a_vae_that_sees_no_time_is_refused_before_anything_is_read(kind: str) -> None:
    model = model_config() | dict(vae=dict(type=kind, from_pretrained='./none'))
    for refuse in (
        lambda: StableVideoDiffusion.check(model, dict(image=picture())),
        lambda: StableVideoDiffusion.check_training(model),
    ):
        with pytest.raises(ConfigError, match=f'{kind} decodes each frame by itself.*take type='):
            refuse()


def test_infer_refuses_what_check_does(editor: Any) -> None:
    with pytest.raises(InputError, match='fps=0'):
        editor.infer(picture(), fps=0)
    with pytest.raises(InputError, match=r'latents has the shape \[1, 4, 3, 8, 9\]: expected'):
        editor.infer(picture(), latents=torch.zeros(1, 4, 3, 8, 9))
    with pytest.raises(InputError, match='num_videos_per_prompt=0'):
        editor.infer(picture(), num_videos_per_prompt=0)


def test_parts_that_do_not_fit_are_refused() -> None:
    scheduler = dict(type='EulerDiscreteScheduler', prediction_type='epsilon')
    with pytest.raises(ConfigError, match="prediction_type='epsilon', but Stable Video"):
        MODELS.build(model_config(scheduler=scheduler))
    unet = dict(model_config()['unet'], embeddings=None)
    with pytest.raises(ConfigError, match="model.unet: .*expected 8 channels and 'add_embedding'"):
        MODELS.build(model_config(unet=unet))
    encoder = dict(model_config()['image_encoder'], projection_dim=12)
    with pytest.raises(ConfigError, match='projection_dim=12, but model.unet has'):
        MODELS.build(model_config(image_encoder=encoder))


# --- pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('given', 'height', 'width', 'expected'),
    [
        ((1080, 1920), None, None, (576, 1024)),
        ((576, 1024), None, None, (576, 1024)),
        ((512, 512), None, None, (768, 768)),
        ((1920, 1080), None, None, (1024, 576)),
        ((100, 4000), None, None, (128, 4864)),
        ((480, 640), 576, None, (576, 768)),
        ((480, 640), None, 520, (384, 520)),
        ((480, 640), 72, 80, (72, 80)),
    ],
)
def test_sizes_of_clips(given: tuple, height: Any, width: Any, expected: tuple) -> None:
    assert clip_size(given, height, width, 768**2, 64) == expected


@pytest.mark.parametrize(('shape', 'size'), [((1, 300), (None, None)), ((1, 300), (64, None))])
def test_a_picture_that_is_too_narrow(shape: tuple, size: tuple) -> None:
    with pytest.raises(InputError, match='image is 300x1 px, too narrow'):
        clip_size(shape, *size, 768**2, 64)


def test_pictures_of_any_kind_give_the_same_clip(editor: Any, tmp_path: Path) -> None:
    pixels = (picture().permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    path = tmp_path / 'a.png'
    Image.fromarray(pixels).save(path)
    opaque = np.concatenate([pixels, np.full((16, 16, 1), 255, np.uint8)], axis=2)
    reference = frames(editor, image=pixels)
    for same in (path, str(path), Image.fromarray(pixels), opaque, torch.tensor(pixels / 255.0)
                 .permute(2, 0, 1)):  # fmt: skip
        assert torch.equal(frames(editor, image=same), reference)
    grey = pixels[:, :, 0]
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert torch.equal(frames(editor, image=grey), frames(editor, image=deep))


def test_alpha_lies_on_white(editor: Any) -> None:
    clear = np.zeros((16, 16, 4), np.uint8)
    white = np.full((16, 16, 3), 255, np.uint8)
    assert torch.equal(frames(editor, image=clear), frames(editor, image=white))


def test_the_clip_has_the_picture_s_shape(editor: Any) -> None:
    wide = frames(editor, image=picture(10, 40))
    assert wide.shape == (1, 3, 3, 8, 32)  # as many pixels as 16x16, multiples of 4
    # The picture's middle is what is seen: bands above and below do not count.
    middle = picture(8, 16)
    padded = torch.cat([torch.zeros(3, 4, 16), middle, torch.ones(3, 4, 16)], dim=1)
    cut = dict(height=8, width=16)
    assert torch.equal(frames(editor, image=padded, **cut), frames(editor, image=middle, **cut))


# --- sampling -----------------------------------------------------------------------------------


def test_a_sample_depends_on_its_seed_alone(editor: Any) -> None:
    pair = frames(editor, image=[picture(), picture(seed=1)], seed=[5, 9])
    alone = frames(editor, image=picture(seed=1), seed=9)
    assert (pair[1] - alone[0]).abs().max() <= 1e-4
    both = frames(editor, num_videos_per_prompt=2, seed=5)
    assert (both[0] - pair[0]).abs().max() <= 1e-4
    assert (both[0] - both[1]).abs().max() > 1e-3


def test_given_noise_replaces_the_drawn(editor: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    torch.randn(1, 3, 16, 16, generator=generator)  # the picture's
    noise = torch.randn(3, 4, 8, 8, generator=generator).transpose(0, 1)[None]
    assert torch.equal(frames(editor, latents=noise), frames(editor))


def test_the_order_of_diffusers_shares_a_picture_s_noise(editor: Any) -> None:
    seen: list[Tensor] = []
    real = editor._picture_latents
    editor._picture_latents = lambda *given: seen.append(given[1]) or real(*given)
    call = dict(image=[picture(), picture(seed=1)], num_videos_per_prompt=2, seed=[1, 2, 3, 4])
    frames(editor, **call)
    frames(editor, **call, draws='diffusers')
    del editor._picture_latents
    seeds = [torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(s))
             for s in (1, 2, 3, 4)]  # fmt: skip
    for noise, index in zip(seen, [0, 1, 2, 3, 0, 0, 1, 1], strict=True):
        assert torch.equal(noise, seeds[index])


def test_the_chunk_of_decoding_does_not_matter(editor: Any) -> None:
    whole = frames(editor, decode_chunk_size=3)
    assert (frames(editor, decode_chunk_size=1) - whole).abs().max() <= 1e-5
    latents = editor.infer(picture(), num_inference_steps=2, seed=0, output_type='latent')
    assert torch.equal(editor.decode(latents['latents'], 3), whole)


def test_guidance_as_a_ramp_numbers_and_keyframes(editor: Any) -> None:
    ramp = frames(editor, min_guidance_scale=1.0, max_guidance_scale=5.0)
    for same in ([1.0, 3.0, 5.0], {0: 1.0, 2: 5.0}):
        assert torch.allclose(frames(editor, guidance_scale=same), ramp, atol=1e-6)
    assert (frames(editor, guidance_scale=5.0) - ramp).abs().max() > 1e-3
    plain = frames(editor, max_guidance_scale=1.0)
    assert torch.equal(frames(editor, guidance_scale=1.0), plain)


def test_windows(editor: Any) -> None:
    assert torch.equal(frames(editor, windows=3), frames(editor))
    longer = frames(editor, windows=dict(length=3, overlap=1), video_length=5)
    assert longer.shape[2] == 5 and longer.isfinite().all()
    assert (longer - frames(editor, video_length=5)).abs().max() > 1e-4


@pytest.mark.parametrize('noise', ['shuffle_context', 'repeat_context', 'random'])
def test_windows_share_their_noise(editor: Any, noise: str) -> None:
    seen: list[Tensor] = []
    hook = editor.unet.register_forward_pre_hook(lambda unet, args: seen.append(args[0][0, :4]))
    windows = dict(length=3, overlap=0, noise=noise)
    frames(editor, windows=windows, video_length=6, num_inference_steps=1, guidance_scale=1.0)
    hook.remove()
    first, second = seen  # frames 0 to 2 and 3 to 5; a quarter of 3 is one, so none changes place
    assert torch.equal(first, second) is (noise != 'random')


def test_what_a_call_leaves_open_is_said() -> None:
    complete = StableVideoDiffusion.complete
    assert complete(model_config(), dict(image=picture(10, 40))) == dict(
        video_length=3, height=8, width=32
    )
    said = dict(image=picture(), video_length=5, height=8, width=8)
    assert complete(model_config(), said) == {}


# --- training -----------------------------------------------------------------------------------


def clips(count: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize('patterns', [['^unet'], TEMPORAL])
def test_what_is_trained_has_a_gradient(patterns: list[str]) -> None:
    editor = make(trainable=patterns, condition_dropout=0.0).train()
    assert not editor.image_encoder.training and not editor.vae.training
    torch.manual_seed(0)
    editor(clips(), {}, mode='loss')['loss'].backward()
    trained = {n for n, p in editor.named_parameters() if p.requires_grad}
    got = {n for n, p in editor.named_parameters() if p.grad is not None}
    assert got <= trained and all(n.startswith('unet.') for n in trained)
    assert trained == got
    # With one token, what makes the attention's weights cannot matter, so that is frozen.
    left = {n for n in dict(editor.named_parameters()) if n.startswith('unet.')} - trained
    one_token = r'transformer_blocks\.\d+\.(attn2\.to_[qk]|norm2)\.'
    if patterns is not TEMPORAL:
        assert left and all(re.search(one_token, name) for name in left)
    if patterns is TEMPORAL:
        assert not any('spatial_res_block' in n or '.transformer_blocks' in n for n in trained)


def test_only_denoiser_and_image_encoder_are_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='vae.* is frozen here'):
        make(trainable=['vae.decoder'])
    editor = make(trainable=['image_encoder', '^unet'], condition_dropout=0.0).train()
    assert editor.image_encoder.training and not editor.vae.training
    torch.manual_seed(0)
    editor(clips(), {}, mode='loss')['loss'].backward()
    assert all(p.grad is not None for p in editor.parameters() if p.requires_grad)
    assert any(p.grad.abs().sum() > 0 for p in editor.image_encoder.parameters())
    editor.save_pretrained(tmp_path)
    source = dict(from_pretrained=str(tmp_path), subfolder='image_encoder')
    again = MODELS.build(dict(type='CLIPVisionModelWithProjection', **source))
    picture = torch.rand(1, 3, 32, 32)
    editor.eval()
    assert torch.equal(again(picture).image_embeds, editor.image_encoder(picture).image_embeds)


def test_conditions_are_dropped_one_by_one() -> None:
    editor = make(condition_dropout=0.2)
    torch.manual_seed(0)
    kinds = {}
    for _ in range(5):
        token, latent, ids = editor._training_condition(clips(160)[:, :, 0], {'fps': 9})
        assert ids.shape == (160, 3) and (ids[:, 0] == 8).all() and (ids[:, 1] == 127).all()
        flags = zip((token != 0).any(2).flatten(), (latent != 0).flatten(1).any(1), strict=True)
        for kind in ((bool(a), bool(b)) for a, b in flags):
            kinds[kind] = kinds.get(kind, 0) + 1 / 800
    assert abs(kinds[True, True] - 0.4) < 0.06
    for kind in ((False, True), (False, False), (True, False)):
        assert abs(kinds[kind] - 0.2) < 0.05


def test_the_strength_of_noise_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    editor = make(condition_dropout=0.0)
    seen: list[Tensor] = []
    real = editor._picture_latents
    monkeypatch.setattr(editor, '_picture_latents', lambda p, n, s: seen.append(s) or real(p, n, s))
    torch.manual_seed(0)
    samples = dict(fps=torch.tensor([7.0, 25.0]), motion_bucket_id=torch.tensor([3, 200]))
    ids = editor._training_condition(clips()[:, :, 0], samples)[2]
    assert torch.equal(ids[:, 2], seen[0]) and seen[0].unique().numel() == 2
    assert ids[:, 0].tolist() == [6, 24] and ids[:, 1].tolist() == [3, 200]


def test_cached_latents_need_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    editor = make()
    posterior = 'diffusers.models.autoencoders.vae.DiagonalGaussianDistribution.sample'
    monkeypatch.setattr(posterior, lambda self, generator=None: self.mode())
    monkeypatch.setattr('torch.randn_like', lambda like, **_: torch.sin(like * 50))
    video = clips()
    with torch.no_grad():
        moments = editor.vae.encode(video.transpose(1, 2).flatten(0, 1)).latent_dist
    exact = torch.full_like(moments.mean, -30.0)
    latents = torch.cat([moments.mean, exact], 1).unflatten(0, (2, 3)).transpose(1, 2)
    picture = video[:, :, 0].add(1).mul(127.5).round().to(torch.uint8)
    with pytest.raises(InputError, match="no 'image' .its first frame"):
        editor(None, dict(latents=latents), mode='loss')
    losses = []
    for call in ((video, {}), (None, dict(latents=latents, image=picture))):
        torch.manual_seed(3)
        losses.append(float(editor(*call, mode='loss')['loss'].detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_it_learns() -> None:
    """One clip, learnt by heart: the loss falls by half."""
    editor = make(trainable=['^unet'], condition_dropout=0.0, sigma_std=0.3).train()
    video = clips(1)[..., :8, :8]
    samples = {'picture': video[:, :, 0].expand(4, -1, -1, -1)}
    clean = editor._clean_latents(video, {}).expand(4, -1, -1, -1, -1)
    optimizer = torch.optim.AdamW([p for p in editor.parameters() if p.requires_grad], lr=5e-3)
    torch.manual_seed(0)
    losses = []
    for _ in range(24):
        loss = editor.loss(clean, samples)['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4]), losses


def test_exported_weights_are_read_back(tmp_path: Path) -> None:
    editor = make(trainable=['^unet'])
    editor.save_pretrained(tmp_path)
    unet = dict(type='VideoUNet', from_pretrained=str(tmp_path), subfolder='unet')
    scheduler = dict(
        type='EulerDiscreteScheduler', from_pretrained=str(tmp_path), subfolder='scheduler'
    )
    again = MODELS.build(model_config(unet=unet, scheduler=scheduler)).eval()
    for part in ('vae', 'image_encoder'):
        getattr(again, part).load_state_dict(getattr(editor, part).state_dict())
    assert torch.equal(frames(again), frames(editor))
    assert editor.weight_files() == [] and len(again.weight_files()) == 1


@pytest.mark.parametrize(
    ('name', 'value'),
    [('condition_dropout', 0.4), ('sigma_std', -1), ('train_fps', 0), ('augmentation_std', -1)],
)
def test_settings_of_training_that_cannot_be(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f'model.{name}={value}: expected'):
        StableVideoDiffusion.check_training({name: value})


def test_predict_goes_on_from_first_frames() -> None:
    editor = make(predict=dict(num_inference_steps=1))
    found = editor(clips(), dict(index=[4, 5]), mode='predict')
    assert [item['video'].shape for item in found] == [(3, 3, 16, 16)] * 2
    first = clips()[:, :, 0].add(1).div(2)
    assert torch.allclose(torch.stack([item['image'] for item in found]), first)
