"""Borrowed parts: the libraries' own classes, built from keys or from files."""

from __future__ import annotations

import os
import subprocess
import sys

import diffusers
import pytest
import torch
import transformers

from mmvideo.checkpoints.files import write_tensors
from mmvideo.checkpoints.load import read_part
from mmvideo.checkpoints.save import save_part, save_scheduler, save_tokenizer
from mmvideo.errors import ConfigError, WeightsError
from mmvideo.models.borrowed import (
    SCHEDULER_NAMES,
    build_text_encoder,
    build_tokenizer,
    build_vae,
    closed_vocabulary,
)
from mmvideo.registry import SCHEDULERS

VAE = dict(
    down_block_types=('DownEncoderBlock2D',) * 2,
    up_block_types=('UpDecoderBlock2D',) * 2,
    block_out_channels=(8, 16),
    norm_num_groups=4,
)
TEXT = dict(
    vocab_size=600,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=24,
)
WORDS = [
    'a',
    'red',
    'fish',
    'moving',
    'left',
    'in',
    'the',
    'field',
    'star',
    'car',
    'ab',
    'cab',
    '7',
]


def assert_same(first, second):
    assert first.state_dict().keys() == second.state_dict().keys()
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def scheduler(name):
    return SCHEDULERS.module_dict[name]


def test_vae_round_trip_is_bit_equal(tmp_path):
    vae = build_vae(**VAE)
    assert isinstance(vae, diffusers.AutoencoderKL)
    save_part(tmp_path / 'vae', dict(vae.config), vae)
    again = build_vae(from_pretrained=str(tmp_path), subfolder='vae')
    assert not again.training and not any(p.is_meta for p in again.parameters())
    assert_same(again, vae)
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(
        again.encode(image).latent_dist.mean, vae.eval().encode(image).latent_dist.mean
    )
    assert_same(diffusers.AutoencoderKL.from_pretrained(tmp_path / 'vae'), vae)


def test_vae_saved_by_diffusers_is_read(tmp_path):
    vae = build_vae(**VAE)
    vae.save_pretrained(tmp_path, safe_serialization=False)
    assert_same(build_vae(from_pretrained=str(tmp_path)), vae)
    vae.save_pretrained(tmp_path / 'half', variant='fp16')
    half = build_vae(from_pretrained=str(tmp_path / 'half'), variant='fp16', dtype='float16')
    assert half.dtype == torch.float16


def test_single_keys_override_the_config_of_the_source(tmp_path):
    vae = build_vae(**VAE)
    save_part(tmp_path, dict(vae.config), vae)
    assert build_vae(from_pretrained=str(tmp_path), scaling_factor=0.5).config.scaling_factor == 0.5
    with pytest.raises(WeightsError, match='of another shape'):
        build_vae(from_pretrained=str(tmp_path), latent_channels=3)
    with pytest.raises(ConfigError, match="Did you mean 'scaling_factor'"):
        build_vae(from_pretrained=str(tmp_path), scalingfactor=0.5)


def test_vae_with_old_attention_names(tmp_path):
    vae = build_vae(**VAE)
    old = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}
    tensors = {}
    for key, value in vae.state_dict().items():
        for new_name, old_name in old.items():
            if f'.attentions.0.{new_name}.' in key:
                key = key.replace(new_name, old_name)
                value = value[:, :, None, None] if key.endswith('weight') else value
        tensors[key] = value
    assert any('proj_attn' in key for key in tensors)
    save_part(tmp_path, {**vae.config, '_class_name': 'AutoencoderKL'}, tensors)
    assert_same(build_vae(from_pretrained=str(tmp_path)), vae)


def test_text_encoder_round_trip(tmp_path):
    encoder = build_text_encoder(**TEXT)
    assert isinstance(encoder, transformers.CLIPTextModel)
    assert (encoder.config.bos_token_id, encoder.config.eos_token_id) == (598, 599)
    save_part(tmp_path / 'ours', encoder.config.to_dict(), encoder)
    encoder.save_pretrained(tmp_path / 'theirs')
    ids = torch.tensor([[598, 5, 7, 599]])
    for folder in ('ours', 'theirs'):
        again = build_text_encoder(from_pretrained=str(tmp_path), subfolder=folder)
        assert_same(again, encoder)
        assert torch.equal(again(ids).last_hidden_state, encoder(ids).last_hidden_state)
    assert_same(transformers.CLIPTextModel.from_pretrained(tmp_path / 'ours'), encoder)


def test_text_encoder_of_older_transformers(tmp_path):
    encoder = build_text_encoder(**TEXT)
    level = '' if any(k.startswith('text_model.') for k in encoder.state_dict()) else 'text_model.'
    old = {level + key: value for key, value in encoder.state_dict().items()}
    old['text_model.embeddings.position_ids'] = torch.arange(24)[None]
    save_part(tmp_path, encoder.config.to_dict(), old)
    assert_same(build_text_encoder(from_pretrained=str(tmp_path)), encoder)


def test_text_encoder_inside_a_whole_clip(tmp_path):
    sizes = {k: v for k, v in TEXT.items() if k != 'vocab_size'}
    text = dict(sizes, vocab_size=600, bos_token_id=598, eos_token_id=599, pad_token_id=599)
    vision = dict(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        image_size=8, patch_size=4,
    )  # fmt: skip
    whole = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision))
    whole.save_pretrained(tmp_path)
    found = build_text_encoder(from_pretrained=str(tmp_path))
    expected = {k: v for k, v in whole.state_dict().items() if k.startswith('text_model.')}
    assert len(expected) == len(found.state_dict())
    for key, value in found.state_dict().items():
        assert torch.equal(
            value, whole.state_dict()['text_model.' + key.removeprefix('text_model.')]
        )


def test_missing_weights_are_never_drawn(tmp_path):
    encoder = build_text_encoder(**TEXT)
    save_part(tmp_path, encoder.config.to_dict(), encoder)
    _, tensors = read_part(str(tmp_path))
    lost = sorted(tensors)[0]
    del tensors[lost]
    write_tensors(tmp_path / 'model.safetensors', tensors)
    with pytest.raises(WeightsError, match=f'1 missing: {lost}'):
        build_text_encoder(from_pretrained=str(tmp_path))


@pytest.mark.parametrize('name', SCHEDULER_NAMES)
def test_schedulers_round_trip(tmp_path, name):
    if name == 'LMSDiscreteScheduler':
        pytest.importorskip('scipy')
    built = scheduler(name)(beta_start=0.001, beta_end=0.012)
    assert type(built) is getattr(diffusers, name)
    assert built.config.beta_start == 0.001
    save_scheduler(tmp_path / 'scheduler', built)
    again = scheduler(name)(from_pretrained=str(tmp_path), subfolder='scheduler')
    assert public(again) == public(built)
    assert public(getattr(diffusers, name).from_pretrained(tmp_path / 'scheduler')) == public(built)


def public(built):
    return {key: value for key, value in built.config.items() if not key.startswith('_')}


def test_a_scheduler_takes_the_betas_of_another(tmp_path):
    save_scheduler(tmp_path, scheduler('PNDMScheduler')(beta_start=0.003, steps_offset=1))
    taken = scheduler('DDIMScheduler')(from_pretrained=str(tmp_path), clip_sample=False)
    assert (taken.config.beta_start, taken.config.steps_offset) == (0.003, 1)
    assert taken.config.clip_sample is False
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    save_scheduler(tmp_path, flow)
    with pytest.raises(ConfigError, match='FlowMatchEulerDiscreteScheduler, which has no betas'):
        scheduler('DDIMScheduler')(from_pretrained=str(tmp_path))
    with pytest.raises(ConfigError, match="no 'beta_strat'.*Did you mean 'beta_start'"):
        scheduler('DDIMScheduler')(beta_strat=1)


def test_each_word_is_one_token_and_any_text_has_tokens():
    tokenizer = build_tokenizer(vocab=WORDS, model_max_length=24)
    assert isinstance(tokenizer, transformers.CLIPTokenizer)
    start, end = len(tokenizer) - 2, len(tokenizer) - 1
    for word in WORDS:
        ids = tokenizer(word).input_ids
        assert ids[0] == start and ids[-1] == end and len(ids) == 3, word
        assert tokenizer(word.upper()).input_ids == ids
    assert len(tokenizer('A red fish moving left').input_ids) == 7
    padded = tokenizer('a fish', padding='max_length', truncation=True).input_ids
    assert len(padded) == 24 and set(padded[3:]) == {end}
    strange = tokenizer('zebra, Übermut 東京 <3').input_ids
    assert end not in strange[1:-1] and max(strange) == end
    assert (
        tokenizer.decode(tokenizer('red zebra').input_ids, skip_special_tokens=True) == 'red zebra'
    )


def test_merges_of_later_words_never_break_earlier_ones():
    words = ['ab', 'cab', 'abc', 'bca', 'bcab', 'aaaa', 'aaa', 'aa', 'abab', 'babab', 'cabcab']
    for order in (words, words[::-1], sorted(words)):
        tokenizer = build_tokenizer(vocab=order)
        assert all(len(tokenizer.tokenize(word)) == 1 for word in words), order
    vocab, merges = closed_vocabulary(words)
    assert sorted(vocab.values()) == list(range(len(vocab)))
    assert len(set(merges)) == len(merges)


def test_tokenizers_round_trip_in_both_formats(tmp_path):
    tokenizer = build_tokenizer(vocab=WORDS, model_max_length=24)
    save_tokenizer(tmp_path / 'tokenizer', tokenizer)
    text = 'a red fish, zebra 77'
    again = build_tokenizer(from_pretrained=str(tmp_path), subfolder='tokenizer')
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.model_max_length == 24
    (tmp_path / 'tokenizer' / 'tokenizer.json').unlink()
    old = build_tokenizer(from_pretrained=str(tmp_path), subfolder='tokenizer', model_max_length=9)
    assert old(text, truncation=True).input_ids[:-1] == tokenizer(text).input_ids[:8]
    (tmp_path / 'tokenizer' / 'merges.txt').unlink()
    with pytest.raises(WeightsError, match=r'no merges\.txt'):
        build_tokenizer(from_pretrained=str(tmp_path), subfolder='tokenizer')


@pytest.mark.parametrize(
    ('keys', 'words'),
    [
        ({}, ["either 'from_pretrained' or 'vocab'"]),
        ({'vocab': ['a'], 'from_pretrained': 'x'}, ["either 'from_pretrained' or 'vocab'"]),
        ({'vocab': 'fish'}, ['list of words']),
        ({'vocab': ['fish', '']}, ['list of words']),
        ({'vocab': ['Fish']}, ["'Fish' cannot be one token"]),
        ({'vocab': ['red fish']}, ["'red fish' cannot be one token"]),
        ({'vocab': ['a'], 'model_max_length': 2}, ['model_max_length=2']),
    ],
)
def test_vocabularies_that_cannot_be(keys, words):
    with pytest.raises(ConfigError) as caught:
        build_tokenizer(**keys)
    assert all(word in str(caught.value) for word in words)


def test_importing_the_builders_imports_neither_library():
    script = (
        'import sys, mmvideo.models.borrowed as b; '
        "print([m for m in ('diffusers', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, '-c', script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == '[]'
