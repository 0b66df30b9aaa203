"""Textual inversion and clip-skip against diffusers, and the text encoder untouched by them."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small_loras as small
import torch
from diffusers.loaders import TextualInversionLoaderMixin
from safetensors.torch import save_file
from torch import Tensor

from mmvideo.checkpoints.files import read_tensors
from mmvideo.checkpoints.layouts import recognise
from mmvideo.errors import ConfigError, WeightsError
from mmvideo.models.adapters import TextualInversion
from mmvideo.models.adapters.textual_inversion import WordTokenizer, read_vectors
from mmvideo.models.conditioning.text import chunks_needed, encode_prompts, token_chunks
from mmvideo.registry import TOKENIZERS

WORDS = ['a', 'photo', 'of', 'red', 'fish', 'in', 'the', 'field']
LENGTH = 12


def make_editor() -> SimpleNamespace:
    """A text encoder and its tokenizer, the same at each call."""
    config = dict(type='CLIPTokenizer', vocab=WORDS, model_max_length=LENGTH)
    encoder = small.text_encoder()
    return SimpleNamespace(tokenizer=TOKENIZERS.build(config), text_encoder=encoder)


def vectors(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, small.TEXT, generator=torch.Generator().manual_seed(seed))


def write(folder: Path, layout: str, value: Tensor, word: str = '<cat>') -> Path:
    """A file in one of the public layouts."""
    path = folder / f'my-cat.{"safetensors" if "safetensors" in layout else "pt"}'
    if layout == 'a1111 pt':
        content = dict(
            string_to_token={'*': 265}, string_to_param={'*': value}, name=word, step=99,
            sd_checkpoint=None, sd_checkpoint_name=None,
        )  # fmt: skip
        torch.save(content, path)
    elif layout == 'original pt':
        held = torch.nn.ParameterDict({'*': torch.nn.Parameter(value)})
        torch.save(dict(string_to_token={'*': torch.tensor(265)}, string_to_param=held), path)
    elif layout == 'original pt before archives':
        held = torch.nn.ParameterDict({'*': torch.nn.Parameter(value)})
        content = dict(string_to_token={'*': torch.tensor(265)}, string_to_param=held)
        torch.save(content, path, _use_new_zipfile_serialization=False)
    elif layout == 'a1111 safetensors':
        save_file({'emb_params': value}, path)
    elif layout == 'diffusers safetensors':
        save_file({word: value}, path)
    elif layout == 'diffusers pt':
        torch.save({word: value}, path)
    else:
        torch.save(value, path)
    return path


class Diffusers(TextualInversionLoaderMixin):
    """diffusers' loader and its way from a prompt to embeddings."""

    components: dict = {}

    def __init__(self) -> None:
        editor = make_editor()
        self.tokenizer, self.text_encoder = editor.tokenizer, editor.text_encoder
        self.hf_device_map = None

    def embed(self, prompt: str, clip_skip: int | None = None) -> Tensor:
        prompt = self.maybe_convert_prompt(prompt, self.tokenizer)
        ids = self.tokenizer(
            prompt,
            padding='max_length',
            max_length=LENGTH,
            truncation=True,
            return_tensors='pt',
        ).input_ids
        if clip_skip is None:
            return self.text_encoder(ids)[0]
        states = self.text_encoder(ids, output_hidden_states=True)[-1]
        # diffusers' own line asks for a level that transformers 5 has not.
        return self.text_encoder.final_layer_norm(states[-(clip_skip + 1)])


def embed(editor: Any, prompt: str, clip_skip: int | None = None) -> Tensor:
    with torch.no_grad():
        return encode_prompts(editor.tokenizer, editor.text_encoder, [prompt], clip_skip=clip_skip)


LAYOUTS = ['a1111 pt', 'a1111 safetensors', 'diffusers safetensors', 'diffusers pt', 'tensor']


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('count', [1, 3])
def test_embeddings_are_those_of_diffusers(tmp_path: Path, layout: str, count: int) -> None:
    value = vectors(count)
    path = write(tmp_path, layout, value[0] if (count, layout) == (1, 'diffusers pt') else value)
    editor, reference = make_editor(), Diffusers()
    named = 'a1111 pt' in layout or 'diffusers' in layout
    word = TextualInversion(path, token=None if named else '<cat>')
    assert word.token == '<cat>' and word.name == 'my-cat' and len(word.vectors) == count
    word.attach(editor)
    loaded = {'<cat>': value if count > 1 else value[0]}
    reference.load_textual_inversion(loaded)
    for prompt in ('a photo of <cat> in the field', '<cat>', 'red <cat>, <cat> fish', 'a fish'):
        ours, theirs = embed(editor, prompt), reference.embed(prompt)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    plain = make_editor()
    assert (embed(editor, 'a <cat>') - embed(plain, 'a fish')).abs().max() > 1e-2
    assert torch.equal(embed(editor, 'a fish'), embed(plain, 'a fish'))


@pytest.mark.parametrize('skip', [0, 1, 2])
def test_clip_skip_is_that_of_diffusers(skip: int) -> None:
    editor, reference = make_editor(), Diffusers()
    prompt = 'a photo of red fish'
    ours = embed(editor, prompt, skip)
    # Its last hidden state is before the last norm, so that skipping none is no special case.
    torch.testing.assert_close(ours, reference.embed(prompt, skip), rtol=0, atol=1e-5)
    assert torch.equal(ours, embed(editor, prompt)) == (skip == 0)


def test_in_any_order_the_encoder_is_untouched(tmp_path: Path) -> None:
    editor = make_editor()
    tokenizer, layer = editor.tokenizer, editor.text_encoder.get_input_embeddings()
    before, names = small.weights(editor.text_encoder), list(editor.text_encoder.state_dict())
    words = []
    for number, count in enumerate((1, 2, 3)):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = write(folder, 'diffusers pt', vectors(count, number), f'<word-{number}>')
        words.append(TextualInversion(path, name=f'word{number}'))
    prompt = 'a <word-0> of <word-1> in <word-2>'
    results = []
    for on in itertools.permutations(words):
        for word in on:
            word.attach(editor)
            assert small.unchanged(before, editor.text_encoder)
            assert list(editor.text_encoder.state_dict()) == names
        results.append(embed(editor, prompt))
        for word in on[1:] + on[:1]:
            word.detach(editor)
        assert editor.tokenizer is tokenizer
        assert editor.text_encoder.get_input_embeddings() is layer
    assert all(torch.equal(result, results[0]) for result in results)
    assert small.unchanged(before, editor.text_encoder)


def test_weights_that_move_while_a_word_is_known(tmp_path: Path) -> None:
    editor = make_editor()
    layer = editor.text_encoder.get_input_embeddings()
    word = TextualInversion(write(tmp_path, 'diffusers pt', vectors(2)))
    word.attach(editor)
    editor.text_encoder.double()
    assert embed(editor, 'a <cat>').dtype == torch.float64
    word.detach(editor)
    assert editor.text_encoder.get_input_embeddings() is layer
    assert layer.weight.dtype == torch.float64


def test_a_word_is_never_split_over_chunks(tmp_path: Path) -> None:
    editor = make_editor()
    TextualInversion(write(tmp_path, 'diffusers pt', vectors(4))).attach(editor)
    first = editor.text_encoder.config.vocab_size
    word = list(range(first, first + 4))
    for before in range(LENGTH):
        prompt = 'red ' * before + '<cat> fish'
        chunks = token_chunks(editor.tokenizer, prompt)
        assert chunks_needed(editor.tokenizer, prompt) == len(chunks) == (1 if before <= 5 else 2)
        assert all(len(chunk) == LENGTH for chunk in chunks)
        together = [c for c in chunks if any(c[i : i + 4] == word for i in range(LENGTH - 3))]
        assert len(together) == 1, before
        assert sum(i in word for chunk in chunks for i in chunk) == 4
    embed(editor, 'red ' * 9 + '<cat> fish')
    with pytest.raises(WeightsError, match='11 vectors does not fit into the 10 tokens'):
        long = write(tmp_path, 'diffusers pt', vectors(11), '<long>')
        TextualInversion(long).attach(editor)


def test_plain_prompts_are_cut_as_before(tmp_path: Path) -> None:
    editor = make_editor()
    TextualInversion(write(tmp_path, 'diffusers pt', vectors(2))).attach(editor)
    for prompt in ('', 'a', 'a red fish in the field', 'a photo of ' * 9, 'naïve  Fish,red'):
        plain = editor.tokenizer.base(prompt, add_special_tokens=False)['input_ids']
        joined = [i for unit in editor.tokenizer.units(prompt) for i in unit]
        assert joined == plain
        assert token_chunks(editor.tokenizer, prompt) == token_chunks(editor.tokenizer.base, prompt)


def test_whole_words_in_any_case_the_longest_first() -> None:
    words = {'easy': vectors(1), 'easy-two': vectors(2), '<cat>': vectors(1)}
    tokenizer = WordTokenizer(make_editor().tokenizer, words, 1000)
    found = [
        unit for unit in tokenizer.units('EASY, easy-two <Cat>s easyv2 uneasy') if unit[0] > 999
    ]
    assert found == [[1000], [1001, 1002], [1003]]


# Errors -----------------------------------------------------------------------------------------


def test_vectors_in_a_parameter_dict(tmp_path: Path) -> None:
    """As the first trainer writes them; other programs read such files unsafely or not at all."""
    value = vectors(3)
    path = write(tmp_path, 'original pt', value)
    word, found = read_vectors(path)
    assert word == 'my-cat' and torch.equal(found, value) and not found.requires_grad
    assert recognise(read_tensors(path)) == 'textual_inversion'


def test_a_parameter_dict_that_holds_no_parameters_is_refused(tmp_path: Path) -> None:
    for held in ('text', None, [1]):
        broken = torch.nn.ParameterDict()
        broken.__dict__['_parameters'] = held
        torch.save(dict(string_to_param=broken), tmp_path / 'a.pt')
        with pytest.raises(WeightsError):
            read_vectors(tmp_path / 'a.pt')
    torch.save(dict(string_to_param=torch.nn.Linear(2, 2)), tmp_path / 'b.pt')
    with pytest.raises(WeightsError, match='refused'):
        read_vectors(tmp_path / 'b.pt')
    # Before archives such an object came with the source code of its class.
    with pytest.raises(WeightsError, match='refused'):
        read_vectors(write(tmp_path, 'original pt before archives', vectors(1)))


def test_files_that_are_no_textual_inversion(tmp_path: Path) -> None:
    xl = {'clip_l': vectors(2), 'clip_g': vectors(2)}
    save_file(xl, tmp_path / 'xl.safetensors')
    with pytest.raises(WeightsError, match='for SDXL'):
        TextualInversion(tmp_path / 'xl.safetensors')
    save_file({'a': vectors(2), 'b': vectors(2)}, tmp_path / 'two.safetensors')
    with pytest.raises(WeightsError, match="no textual inversion; it holds 'a', 'b'"):
        TextualInversion(tmp_path / 'two.safetensors')
    torch.save({'<x>': torch.ones(2, 2, 2)}, tmp_path / 'cube.pt')
    with pytest.raises(WeightsError, match=r'expected vectors \[V, D\]'):
        TextualInversion(tmp_path / 'cube.pt')
    torch.save({'<x>': torch.ones(2, 2, dtype=torch.long)}, tmp_path / 'ids.pt')
    with pytest.raises(WeightsError, match=r'its values are torch\.int64'):
        TextualInversion(tmp_path / 'ids.pt')


def test_width_of_another_text_encoder(tmp_path: Path) -> None:
    path = write(tmp_path, 'diffusers pt', torch.ones(2, 1024))
    editor = make_editor()
    expected = r'width 1024 \(Stable Diffusion 2\.x\), the text encoder here of width 16'
    with pytest.raises(WeightsError, match=expected):
        TextualInversion(path).attach(editor)
    assert not isinstance(editor.tokenizer, WordTokenizer)


def test_words_that_are_taken_or_empty(tmp_path: Path) -> None:
    path = write(tmp_path, 'diffusers pt', vectors(1))
    editor = make_editor()
    TextualInversion(path).attach(editor)
    with pytest.raises(ConfigError, match="token='<CAT>' is a word of the tokenizer already"):
        TextualInversion(path, token='<CAT>').attach(editor)
    with pytest.raises(ConfigError, match='is a word of the tokenizer already'):
        TextualInversion(path, token='<|endoftext|>').attach(editor)
    for bad in ('', ' a', 3):
        with pytest.raises(ConfigError, match='expected a word'):
            TextualInversion(path, token=bad)  # type: ignore[arg-type]
