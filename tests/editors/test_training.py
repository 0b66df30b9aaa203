"""The training loss of the editors: what is trained, dropped and drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmvideo.checkpoints.load import read_part
from mmvideo.checkpoints.motion import read_motion
from mmvideo.diffusion.objective import min_snr_weights, prediction_target
from mmvideo.editors.latent_diffusion import LatentDiffusion
from mmvideo.errors import ConfigError, InputError
from mmvideo.registry import MODELS

CAPTIONS = ['a red fish', 'a blue car', 'a car', 'a fish']


def clips(count: int = 4, frames: int = 3) -> Tensor:
    return torch.randn(count, 4, frames, 8, 8, generator=torch.Generator().manual_seed(8))


def gradients(editor: Any, clean: Tensor, **samples: Any) -> dict[str, Tensor]:
    editor.zero_grad()
    torch.manual_seed(0)
    editor.loss(clean, dict(caption=CAPTIONS[: len(clean)], **samples))['loss'].backward()
    return {n: p.grad.clone() for n, p in editor.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ('patterns', 'inside'),
    [
        (['motion_modules'], 'motion_modules'),
        ([r'^unet\.conv_in'], 'unet.conv_in'),
        (['^text_encoder'], 'text_encoder'),
        ([r'attn2\.to_[kv]'], 'attn2.to_'),
    ],
)
def test_patterns_choose_what_is_trained(build: Callable, patterns: list, inside: str) -> None:
    editor = build('AnimateDiff', trainable=patterns).train()
    found = gradients(editor, clips())
    trained = {n for n, p in editor.named_parameters() if p.requires_grad}
    assert trained and all(inside in name for name in trained)
    assert set(found) == trained
    assert all(gradient.abs().max() > 0 for gradient in found.values())


def test_nothing_is_trained_unless_named(build: Callable) -> None:
    assert not any(p.requires_grad for p in build('PIA').parameters())


def test_a_pattern_without_a_parameter_is_refused(build: Callable) -> None:
    with pytest.raises(ConfigError, match="'motion_module_s' matches no parameter"):
        build('AnimateDiff', trainable=['motion_module_s'])


def test_frozen_parts_stay_in_evaluation_mode(build: Callable) -> None:
    editor = build('AnimateDiff', trainable=['motion_modules']).train()
    assert editor.unet.training
    assert not editor.vae.training and not editor.text_encoder.training
    assert build('AnimateDiff', trainable=['text_encoder']).train().text_encoder.training


def dropped(editor: Any, runs: int, monkeypatch: pytest.MonkeyPatch) -> list[list[bool]]:
    """For each run, which captions of a batch the text encoder was not shown."""
    seen: list[list[str]] = []

    def encode(tokenizer: Any, encoder: Any, prompts: list[str], *_: Any) -> Tensor:
        seen.append(list(prompts))
        return torch.zeros(len(prompts), 12, 16)

    monkeypatch.setattr('mmvideo.editors.latent_diffusion.encode_prompts', encode)
    torch.manual_seed(0)
    for _ in range(runs):
        editor._training_context(CAPTIONS, 4)
    for prompts in seen:
        assert all(p in ('', c) for p, c in zip(prompts, CAPTIONS, strict=True))
    return [[p == '' for p in prompts] for prompts in seen]


def test_captions_are_dropped_sample_by_sample(
    build: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = dropped(build('AnimateDiff', caption_dropout=0.3), 500, monkeypatch)
    rate = sum(map(sum, rows)) / (500 * 4)
    assert abs(rate - 0.3) < 0.04
    mixed = sum(0 < sum(row) < 4 for row in rows) / 500
    assert mixed > 0.6  # whole batches would give 0; independent samples 0.75


@pytest.mark.parametrize(('rate', 'expected'), [(0.0, False), (1.0, True)])
def test_caption_dropout_at_its_ends(
    build: Callable, monkeypatch: pytest.MonkeyPatch, rate: float, expected: bool
) -> None:
    rows = dropped(build('AnimateDiff', caption_dropout=rate), 20, monkeypatch)
    assert all(flag is expected for row in rows for flag in row)


def test_captions_that_change_are_seen_frame_by_frame(build: Callable) -> None:
    """The same context as a prompt that changes has, and gradients reach the text encoder."""
    lines = '0: a red fish\n2: a blue car\ninterpolation: step'
    editor = build('AnimateDiff', caption_dropout=0.0, changing_captions=True).train()
    context = editor._training_context([lines, 'a car'], 3)
    plain = build('AnimateDiff', caption_dropout=0.0)
    fish, blue, car = plain._training_context(['a red fish', 'a blue car', 'a car'], 3)
    torch.testing.assert_close(context, torch.stack([fish, fish, blue, car, car, car]))
    assert plain._training_context([lines, 'a car'], 3).shape[0] == 2  # one text as it stands
    torch.testing.assert_close(editor._training_context(['a red fish'], 3)[0], fish)
    trained = build('AnimateDiff', changing_captions=True, trainable=['^text_encoder']).train()
    loss = trained.loss(clips(2), dict(caption=[lines, 'a car']))['loss']
    loss.backward()
    assert all(p.grad is not None for p in trained.text_encoder.parameters())


def test_a_caption_that_changes_beyond_its_clip_is_refused(build: Callable) -> None:
    editor = build('AnimateDiff', caption_dropout=0.0, changing_captions=True)
    with pytest.raises(InputError, match='key 3 lies beyond the clip'):
        editor.loss(clips(1), dict(caption=['0: a fish\n3: a car']))


def test_condition_is_dropped_sample_by_sample(build: Callable) -> None:
    config = dict(type='PIACondition', condition_dropout=0.5)
    module = build('PIA', condition_module=config).condition_module
    torch.manual_seed(0)
    latents, picture, affinity = clips(), clips()[:, :, 0], torch.ones(4, 3)
    kept = torch.stack(
        [module.training_inputs(latents, picture, affinity)[:, 4, 0, 0, 0] for _ in range(300)]
    )
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert abs(float(kept.mean()) - 0.5) < 0.05
    assert float(((kept.sum(1) > 0) & (kept.sum(1) < 4)).float().mean()) > 0.7


def test_pia_draws_its_condition_frame_from_the_whole_clip(
    build: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dict(type='PIACondition', condition_dropout=0.0, statistics='webvid')
    editor = build('PIA', condition_module=config, caption_dropout=0.0)
    clean, drawn = clips(frames=4), []
    scores = torch.zeros(4, 4, 4)

    def keep(latents: Tensor, condition: Tensor, affinity: Tensor) -> Tensor:
        frames = [
            next(t for t in range(4) if torch.equal(clean[n, :, t], condition[n])) for n in range(4)
        ]
        assert all(affinity[n, t] == 1 for n, t in enumerate(frames))
        drawn.append(frames)
        return torch.zeros(4, 9, 4, 8, 8)

    monkeypatch.setattr(editor.condition_module, 'training_inputs', keep)
    monkeypatch.setattr(editor.unet, 'forward', lambda sample, *_: sample[:, :4])
    torch.manual_seed(0)
    for _ in range(100):
        editor.loss(clean, dict(caption=CAPTIONS, affinity_scores=scores))
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=4)
    assert counts.min() > 60  # of 400 draws over four frames
    assert sum(len(set(frames)) > 1 for frames in drawn) > 80  # each sample by itself


@pytest.mark.parametrize('gamma', [None, 5.0])
def test_the_condition_frame_weighs_more_in_the_loss(
    build: Callable, monkeypatch: pytest.MonkeyPatch, gamma: float | None
) -> None:
    """The loss is the weighted mean of the frames' own, by hand."""
    config = dict(type='PIACondition', condition_dropout=0.0, statistics='webvid')
    editor = build(
        'PIA', condition_module=config, condition_loss_weight=4.0, min_snr_gamma=gamma,
        timestep_range=(500, 501),
    )  # fmt: skip
    errors = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    drawn: dict[str, Tensor] = {}

    def predict(*_: Any, **__: Any) -> Tensor:
        return drawn['noise'] + errors.sqrt()[:, None, :, None, None]

    def keep_noise(like: Tensor) -> Tensor:
        drawn['noise'] = torch.zeros_like(like)
        return drawn['noise']

    clean = clips(2)
    monkeypatch.setattr(editor, '_training_noise', keep_noise)
    monkeypatch.setattr(editor.unet, 'forward', predict)
    samples = dict(
        caption=CAPTIONS[:2],
        affinity=torch.ones(2, 3),
        condition_frame=torch.tensor([0, 2]),
        condition_latent=clean[:, :, 0],
    )
    loss = LatentDiffusion.loss(editor, clean, samples)['loss']
    by_hand = (4 * 1 + 2 + 3) / 6 + (4 + 5 + 4 * 6) / 6
    if gamma is not None:
        bar = editor.train_scheduler.alphas_cumprod[[500]]
        by_hand *= float(min_snr_weights('epsilon', bar, gamma))
    assert float(loss) == pytest.approx(by_hand / 2, rel=1e-5)


def test_a_weight_of_the_condition_frame_that_cannot_be_is_refused(build: Callable) -> None:
    with pytest.raises(ConfigError, match='condition_loss_weight=0'):
        build('PIA', condition_module=dict(type='PIACondition'), condition_loss_weight=0)


def test_gradient_checkpointing_gives_the_same_gradients(build: Callable) -> None:
    editor = build('AnimateDiff', trainable=['motion_modules', '^unet.conv']).train()
    plain = gradients(editor, clips())
    editor.unet.enable_gradient_checkpointing()
    again = gradients(editor, clips())
    assert set(plain) == set(again) and len(plain) > 10
    for name, gradient in plain.items():
        assert torch.allclose(gradient, again[name], rtol=1e-5, atol=1e-7), name


def test_gradient_checkpointing_recomputes_every_layer(build: Callable) -> None:
    editor = build('AnimateDiff', trainable=['motion_modules']).train()
    module = next(m for n, m in editor.named_modules() if n.endswith('motion_modules.0'))
    calls = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    gradients(editor, clips())
    assert len(calls) == 1
    editor.unet.enable_gradient_checkpointing()
    gradients(editor, clips())
    assert len(calls) == 3


def test_cached_latents_are_drawn_from_their_posterior(build: Callable) -> None:
    editor = build('AnimateDiff')
    mean, logvar = clips(2), torch.full((2, 4, 3, 8, 8), -2.0)
    moments = dict(latents=torch.cat([mean, logvar], 1))
    torch.manual_seed(0)
    drawn = torch.stack([editor._clean_latents(None, moments) for _ in range(200)])
    scaling = editor.vae.config.scaling_factor
    assert torch.allclose(drawn.mean(0) / scaling, mean, atol=0.2)
    assert abs(float((drawn / scaling - mean).std()) - torch.exp(torch.tensor(-1.0))) < 0.01


@pytest.mark.parametrize('kind', ['epsilon', 'v_prediction', 'sample'])
def test_targets_agree_with_each_other(kind: str) -> None:
    """x_0 recovered from a perfect prediction of each kind is x_0."""
    clean, noise = clips(2), torch.randn(2, 4, 3, 8, 8)
    bar = torch.tensor([0.9, 0.05])
    a, s = bar.sqrt().view(2, 1, 1, 1, 1), (1 - bar).sqrt().view(2, 1, 1, 1, 1)
    noisy, target = a * clean + s * noise, prediction_target(kind, clean, noise, bar)
    recovered = dict(
        epsilon=(noisy - s * target) / a, v_prediction=a * noisy - s * target, sample=target
    )[kind]
    assert torch.allclose(recovered, clean, atol=1e-4)


def test_min_snr_weights() -> None:
    bar = torch.tensor([0.5, 0.99, 0.01])  # signal-to-noise ratios 1, 99 and 1/99
    assert torch.allclose(min_snr_weights('epsilon', bar, 5.0), torch.tensor([1, 5 / 99, 1.0]))
    assert torch.allclose(
        min_snr_weights('v_prediction', bar, 5.0), torch.tensor([0.5, 5 / 100, 0.01])
    )


def test_unknown_mode_and_prediction_type(build: Callable, tiny_config: Callable) -> None:
    with pytest.raises(ConfigError, match="mode='los'"):
        build('AnimateDiff')(None, {}, mode='los')
    scheduler = dict(tiny_config('AnimateDiff')['scheduler'], prediction_type='flow')
    with pytest.raises(ConfigError, match="prediction_type='flow'"):
        build('AnimateDiff', scheduler=scheduler)


@pytest.mark.parametrize('kind', ['AnimateDiff', 'PIA'])
def test_exported_adapter_is_read_back(
    build: Callable, tiny_config: Callable, tmp_path: Path, kind: str
) -> None:
    """What a training leaves is what ``from_pretrained`` takes, with the same result."""
    build('TextToImage', trainable=['^unet']).save_pretrained(tmp_path)
    unet = dict(type='VideoUNet', from_pretrained=str(tmp_path), subfolder='unet')
    editor = build(kind, unet=unet, trainable=['motion_modules', '^unet.conv_in'])
    editor.save_pretrained(tmp_path)
    adapter = read_motion(tmp_path, 'motion_adapter')
    assert (adapter.conv_in is not None) == (kind == 'PIA')
    motion = dict(type='MotionModule', from_pretrained=str(tmp_path), subfolder='motion_adapter')
    config = tiny_config(kind, unet=unet, motion_module=motion)
    if kind == 'PIA':
        config['first_channels'] = 'pia'
    loaded = MODELS.build(config).unet.state_dict()
    for name, value in editor.unet.state_dict().items():
        if 'motion_modules' in name or (kind == 'PIA' and name.startswith('conv_in')):
            assert torch.equal(loaded[name], value), name


def test_a_whole_exported_unet_is_read_back(
    build: Callable, tiny_config: Callable, tmp_path: Path
) -> None:
    editor = build('TextToImage', trainable=['^unet', '^text_encoder'])
    editor.save_pretrained(tmp_path)
    parts = {
        name: dict(type=kind, from_pretrained=str(tmp_path), subfolder=name)
        for name, kind in (
            ('unet', 'VideoUNet'), ('text_encoder', 'CLIPTextModel'), ('tokenizer', 'CLIPTokenizer')
        )
    }  # fmt: skip
    again = MODELS.build(tiny_config('TextToImage', **parts)).eval()
    again.vae.load_state_dict(editor.vae.state_dict())
    arguments = dict(prompt='a red fish', num_inference_steps=2, seed=0)
    assert torch.equal(editor.infer(**arguments)['samples'], again.infer(**arguments)['samples'])


@pytest.mark.parametrize('family', ['AnimateDiff', 'PIA'])
def test_image_layers_that_were_trained_are_exported_beside_the_motion_modules(
    build: Callable, tiny_config: Callable, tmp_path: Path, family: str
) -> None:
    trained = ['motion_modules', r'attn2\.', '^unet.conv_in'] if family == 'PIA' else ['^unet']
    editor = build(family, trainable=trained).eval()
    editor.save_pretrained(tmp_path)
    config, image = read_part(str(tmp_path), 'unet')
    assert config['_class_name'] == 'UNet2DConditionModel'
    assert config['in_channels'] == editor.unet.out_channels
    assert not any('motion_modules' in name for name in image)
    assert image['conv_in.weight'].shape[1] == editor.unet.out_channels
    where = dict(from_pretrained=str(tmp_path))
    usual = tiny_config(family)
    parts = dict(
        unet={**{k: v for k, v in usual['unet'].items() if k.endswith('norm_scope')},
              'type': 'VideoUNet', **where, 'subfolder': 'unet'},
        motion_module={**{k: v for k, v in usual['motion_module'].items() if 'scope' in k},
                       'type': 'MotionModule', **where, 'subfolder': 'motion_adapter'},
    )  # fmt: skip
    again = MODELS.build({**usual, **parts}).eval()
    found, expected = again.unet.state_dict(), editor.unet.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_what_the_dataset_lacks_is_named(build: Callable) -> None:
    samples = dict(latents=clips(1).repeat(1, 2, 1, 1, 1), captions=['a red fish'])
    with pytest.raises(InputError, match="no 'caption'.*Did you mean 'captions'"):
        build('AnimateDiff')(None, samples, mode='loss')
    config = dict(type='PIACondition', statistics='webvid')
    with pytest.raises(InputError, match="no 'affinity_scores'"):
        build('PIA', condition_module=config)(None, dict(samples, caption=['a']), mode='loss')


# --- timesteps ----------------------------------------------------------------------------------


def drawn_timesteps(editor: Any, monkeypatch: pytest.MonkeyPatch, runs: int) -> Tensor:
    """The timesteps that the denoiser was asked for in ``runs`` losses of 16 clips."""
    seen: list[Tensor] = []

    def forward(latents: Tensor, timestep: Tensor, *_: Any, **__: Any) -> Tensor:
        seen.append(timestep)
        return torch.zeros_like(latents[:, :4])

    monkeypatch.setattr(editor.unet, 'forward', forward)
    torch.manual_seed(0)
    for _ in range(runs):
        editor.loss(clips(16), dict(caption=CAPTIONS * 4))
    return torch.cat(seen)


@pytest.mark.parametrize(
    ('given', 'inside'),
    [(None, (0, 1000)), ((900, 1000), (900, 1000)), ([0, 8], (0, 8)), ((7, 8), (7, 8))],
)
def test_timesteps_are_drawn_from_the_range(
    build: Callable, monkeypatch: pytest.MonkeyPatch, given: Any, inside: tuple[int, int]
) -> None:
    editor = build('AnimateDiff', timestep_range=given)
    assert editor.timestep_range == inside
    drawn = drawn_timesteps(editor, monkeypatch, runs=16)
    first, last = inside
    assert drawn.shape == (256,) and first <= int(drawn.min()) and int(drawn.max()) < last
    # All of a small range is drawn, and both ends of a large one.
    width = last - first
    assert len(drawn.unique()) == width if width <= 8 else drawn.min() < first + width // 8
    assert int(drawn.max()) >= last - 1 - width // 8


@pytest.mark.parametrize('kind', ['AnimateDiff', 'TextToImage'])
@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ((0, 1001), r'timestep_range=\(0, 1001\): expected 0 <= first < last <= 1000'),
        ((-1, 5), '0 <= first'),
        ((5, 5), 'first < last'),
        ((0, 10, 20), 'expected two integers'),
        ((0.0, 10.0), 'expected two integers'),
        ((False, True), 'expected two integers'),
        (500, 'timestep_range=500: expected two integers'),
        ('01', "timestep_range='01': expected two integers"),
    ],
)
def test_a_range_of_timesteps_that_cannot_be_is_refused(
    tiny_config: Callable, kind: str, given: Any, message: str
) -> None:
    model = tiny_config(kind, timestep_range=given)
    with pytest.raises(ConfigError, match=message):
        MODELS.build(model)
    with pytest.raises(ConfigError, match=message):
        MODELS.get(kind).check_training(model)
