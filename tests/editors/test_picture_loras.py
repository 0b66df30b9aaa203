"""LoRAs of the models that animate a picture: trained pair by pair, exported, used as adapters."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine import Config
from torch import Tensor

from mmvideo.apis.inferencer import VideoInferencer
from mmvideo.config import load_config
from mmvideo.editors import StableVideoDiffusion
from mmvideo.errors import ConfigError, InputError, WeightsError
from mmvideo.media.recipe import read_recipe
from mmvideo.models.adapters.lora import LoRA
from mmvideo.models.adapters.textual_inversion import TextualInversion
from mmvideo.models.adapters.trained_lora import FILE_NAME
from mmvideo.registry import MODELS

TESTS = Path(__file__).parents[1]
SVD = TESTS / 'apis' / 'tiny_svd.py'
FAMILIES = {
    'svd': (SVD, {}, {}),
    'i2vgen_xl': (
        TESTS / 'editors' / 'tiny_i2vgen.py',
        dict(caption=['a red fish', 'a blue car']),
        dict(prompt='a red fish', guidance_scale=2.0),
    ),
}
USUAL = r'attentions\..*attn\d\.to_(q|k|v|out\.0)$'
IDLE = ('attn2.to_q', 'attn2.to_k')


def model_config(family: str, **changes: Any) -> dict[str, Any]:
    return {**load_config(FAMILIES[family][0]).model.to_dict(), **changes}


def make(family: str, **changes: Any) -> Any:
    """An editor whose every parameter does something, pairs in training included."""
    torch.manual_seed(0)
    editor = MODELS.build(model_config(family, **changes)).eval()
    with torch.no_grad():
        for parameter in editor.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return editor


def frames(editor: Any, family: str) -> Tensor:
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1))
    call = dict(image=picture, height=16, width=16, video_length=3, num_inference_steps=2, seed=0)
    return editor.infer(**{**call, **FAMILIES[family][2]})['samples']


def step(editor: Any, family: str) -> None:
    """One step of training."""
    trained = [p for p in editor.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0)
    clips = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    torch.manual_seed(0)
    editor.train()(clips, dict(FAMILIES[family][1]), mode='loss')['loss'].backward()
    optimizer.step()
    editor.eval()


@pytest.mark.parametrize('checkpointing', [False, True])
@pytest.mark.parametrize('targets', [[USUAL], ['.']], ids=['usual', 'all'])
@pytest.mark.parametrize('family', FAMILIES)
def test_a_step_changes_every_pair(family: str, targets: list[str], checkpointing: bool) -> None:
    unet = model_config(family)['unet'] | dict(gradient_checkpointing=checkpointing)
    lora = dict(rank=2, targets=targets)
    editor = make(family, unet=unet, lora=lora, condition_dropout=0.0)
    before = {name: p.detach().clone() for name, p in editor.named_parameters()}
    step(editor, family)
    trained = [name for name, p in editor.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * len(editor.lora) > 20
    assert any('temp' in name for name in trained) and all('.low_rank.' in n for n in trained)
    for name, parameter in editor.named_parameters():
        assert torch.equal(parameter, before[name]) != (name in trained), name
        assert (parameter.grad is not None) == (name in trained), name


@pytest.mark.parametrize('family', FAMILIES)
def test_the_adapter_gives_what_was_trained(family: str, tmp_path: Path) -> None:
    editor = make(family, lora=dict(rank=2, alpha=4))
    step(editor, family)
    editor.save_pretrained(tmp_path)
    state = {k: v for k, v in editor.state_dict().items() if '.low_rank.' not in k}
    adapter = dict(type='LoRA', from_pretrained=str(tmp_path / 'lora'), name='trained')
    fresh = make(family, adapters=[adapter])
    fresh.load_state_dict(state)
    expected = frames(editor, family)
    assert (frames(fresh, family) - expected).abs().max() <= 1e-5
    assert fresh.weight_files() == [tmp_path / 'lora' / FILE_NAME]
    assert fresh.adapter_configs() == [{**adapter, 'scale': 1.0}]
    fresh.merge_adapters()
    assert (frames(fresh, family) - expected).abs().max() <= 1e-4
    fresh.unmerge_adapters()
    fresh.set_adapters('trained', 0.5)
    half = frames(fresh, family)
    fresh.remove_adapter('trained')
    without = frames(fresh, family)
    for other in (expected, half):
        assert (other - without).abs().max() > 1e-3
    assert (half - expected).abs().max() > 1e-4


# --- Stable Video Diffusion -----------------------------------------------------------------------


def test_layers_that_do_nothing_get_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr('mmvideo.editors.latent_editor.print_log', lambda *a: said.append(a[0]))
    editor = make('svd', lora=dict(rank=2, targets=[r'attn2\.to_[qkv]$']))
    assert editor.lora and all(name.endswith('attn2.to_v') for name in editor.lora)
    blocks = [name for name, _ in editor.unet.named_modules() if name.endswith('attn2')]
    assert len(editor.lora) == len(blocks)
    expected = f'{2 * len(blocks)} targeted layers do nothing in a StableVideoDiffusion'
    assert len(said) == 1 and expected in said[0]
    make('svd', lora=dict(rank=2, targets=[r'attn2\.to_v$']))
    assert len(said) == 1


def test_a_lora_of_nothing_but_such_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'model\.lora\.targets.*attn2\.to_[qk]\), but none of'):
        make('svd', lora=dict(rank=2, targets=[r'attn2\.to_q', r'attn2\.to_k']))
    editor = make('i2vgen_xl', lora=dict(rank=2, targets=[r'attn2\.to_q', r'attn2\.to_k']))
    assert all(name.endswith(IDLE) for name in editor.lora)


@pytest.fixture(scope='module')
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the LoRA of a small denoiser."""
    folder = tmp_path_factory.mktemp('svd')
    make('svd', lora=dict(rank=2)).save_pretrained(folder)
    return folder / 'lora'


@pytest.mark.parametrize(
    ('adapters', 'message'),
    [
        ([dict(type='TextualInversion', from_pretrained='{}')], 'TextualInversion: this model'),
        ([dict(type='IPAdapter', from_pretrained='{}')], 'it takes LoRA'),
        ([dict(type='MotionLoRA', from_pretrained='{}')], 'adapter MotionLoRA'),
        ([dict(type='LoRA', from_pretrained='{}', scael=1)], "Did you mean 'scale'"),
        ([dict(type='LoRA', from_pretrained='{}', scale='a')], "scale='a'"),
        ([dict(type='LoRA', from_pretrained='{}')] * 2, 'is named .* already'),
        ([dict(type='LoRA')], "needs 'from_pretrained'"),
        (dict(type='LoRA'), 'expected a list'),
    ],
)
def test_adapters_that_cannot_be(lora: Path, adapters: Any, message: str) -> None:
    if isinstance(adapters, list):
        adapters = [
            {k: str(lora) if v == '{}' else v for k, v in config.items()} for config in adapters
        ]
    model = model_config('svd', adapters=adapters)
    picture = torch.rand(3, 16, 16)
    with pytest.raises(ConfigError, match=message):
        StableVideoDiffusion.check(model, dict(image=picture))
    with pytest.raises(ConfigError, match=message):
        MODELS.build(model)


def test_a_file_that_is_not_there_is_refused_by_the_config_alone() -> None:
    absent = [dict(type='LoRA', from_pretrained='./none.safetensors')]
    with pytest.raises(WeightsError, match='none'):
        StableVideoDiffusion.check(
            model_config('svd', adapters=absent), dict(image=torch.rand(3, 16, 16))
        )


def test_adapters_are_added_later(lora: Path) -> None:
    editor = make('svd')
    before = frames(editor, 'svd')
    other = TextualInversion.__new__(TextualInversion)
    with pytest.raises(ConfigError, match='adapter TextualInversion: this model takes none'):
        editor.add_adapter(other)
    added = editor.add_adapter(LoRA(lora, name='a'))
    assert editor.adapters == [added]
    assert (frames(editor, 'svd') - before).abs().max() > 1e-3
    editor.remove_adapter('a')
    assert torch.equal(frames(editor, 'svd'), before)
    with pytest.raises(InputError, match="there is no adapter 'a'"):
        editor.set_adapters('a')


def test_a_lora_of_a_model_with_text(tmp_path: Path) -> None:
    text = make('i2vgen_xl', lora=dict(rank=2, targets=[r'attn2\.to_v$']))
    text.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match='the model here is one without text.* the width 8'):
        make('svd', adapters=[dict(type='LoRA', from_pretrained=str(tmp_path / 'lora'))])


def test_through_the_inferencer(lora: Path, tmp_path: Path) -> None:
    cfg = Config.fromfile(SVD)
    editor = make('svd')
    for name in ('unet', 'vae', 'image_encoder'):
        part = getattr(editor, name)
        part.save_pretrained(tmp_path / name) if name != 'unet' else None
    editor.set_trainable(['^unet'])
    editor.save_pretrained(tmp_path)
    for name in ('unet', 'vae', 'image_encoder'):
        kind = cfg.model[name].type
        cfg.model[name] = dict(type=kind, from_pretrained=str(tmp_path), subfolder=name)
    shutil.copy(TESTS / 'apis' / 'tiny.png', tmp_path / 'picture.png')
    call = dict(image=str(tmp_path / 'picture.png'), progress=False)
    adapters = [dict(type='LoRA', from_pretrained=str(lora))]
    made = VideoInferencer(cfg, device='cpu', adapters=adapters)(tmp_path / 'a.png', **call)
    kept = read_recipe(made['paths'][0])
    assert [a['type'] for a in kept['config']['model']['adapters']] == ['LoRA']
    assert any(FILE_NAME in entry['name'] for entry in kept['weights'])
    again = VideoInferencer(made['paths'][0], device='cpu')(False, progress=False)
    assert torch.equal(again['samples'], made['samples'])
    del cfg.model['adapters']
    plain = VideoInferencer(cfg, device='cpu')(False, **call)
    assert (plain['samples'] - made['samples']).abs().max() > 1e-3
