"""Adapters of whole editors: from a config, changed at run time, replayed from a video."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine import Config
from safetensors.torch import save_file
from small_calls import caller
from torch import Tensor, nn

from mmvideo.apis import VideoInferencer, read_recipe
from mmvideo.config import load_config
from mmvideo.errors import ConfigError, InputError, WeightsError

TINY = Path(__file__).parents[1] / 'apis' / 'tiny_pia.py'
MOTION = 'motion_modules.0.transformer_blocks.0.attn'
CALL = dict(prompt='a red fish', seed=1, video_length=2, num_inference_steps=2, height=16, width=16)
make = caller(**CALL)


def write_lora(path: Path, model: nn.Module, prefix: str, wanted: str, seed: int = 0) -> Path:
    """A LoRA of PEFT for the layers whose names contain ``wanted``."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if wanted in name and isinstance(layer, nn.Linear):
            rows, columns = layer.weight.shape
            down = torch.randn(2, columns, generator=generator)
            up = torch.randn(rows, 2, generator=generator)
            tensors[f'{prefix}{name}.lora_A.weight'] = down
            tensors[f'{prefix}{name}.lora_B.weight'] = up
    assert tensors
    save_file(tensors, path)
    return path


@pytest.fixture(scope='module')
def loras(build: Callable, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A LoRA of the image layers, one of the text encoder, a MotionLoRA, and a new word."""
    folder = tmp_path_factory.mktemp('adapters')
    editor = build('AnimateDiff')
    text = 'text_encoder.text_model.'
    save_file({'<cat>': torch.randn(3, 16)}, folder / 'cat.safetensors')
    return dict(
        style=write_lora(folder / 'style.safetensors', editor.unet, 'unet.', '.attn2.', 1),
        words=write_lora(folder / 'words.safetensors', editor.text_encoder, text, '_proj', 2),
        zoom=write_lora(folder / 'zoom.safetensors', editor.unet, 'unet.', MOTION, 3),
        cat=folder / 'cat.safetensors',
    )  # fmt: skip


def configs(loras: dict[str, Path]) -> list[dict]:
    return [
        dict(type='LoRA', from_pretrained=str(loras['style']), scale=0.8),
        dict(type='LoRA', from_pretrained=str(loras['words']), scale=0.5, name='text'),
        dict(type='MotionLoRA', from_pretrained=str(loras['zoom'])),
        dict(type='TextualInversion', from_pretrained=str(loras['cat'])),
    ]


def state(editor: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in editor.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[k], second[k]) for k in first)


def test_from_a_config_and_off_again(build: Callable, loras: dict) -> None:
    plain = build('AnimateDiff')
    before, expected = state(plain), make(plain)
    editor = build('AnimateDiff', adapters=configs(loras))
    assert [a.name for a in editor.adapters] == ['style', 'text', 'zoom', 'cat']
    assert same(state(editor), before)
    together = make(editor)
    assert (together - expected).abs().max() > 1e-3
    with_word = make(editor, prompt='a <cat> fish', negative_prompt='<cat>')
    assert not torch.equal(with_word, together)
    files = editor.weight_files()
    assert files == list(loras.values())
    for name in ('text', 'cat', 'style', 'zoom'):
        editor.remove_adapter(name)
    assert same(state(editor), before) and editor.adapters == []
    assert torch.equal(make(editor), expected)


def test_at_run_time(build: Callable, loras: dict) -> None:
    editor = build('AnimateDiff')
    before, plain = state(editor), make(editor)
    for config in configs(loras):
        editor.add_adapter(config)
    all_on = make(editor)
    assert torch.equal(all_on, make(build('AnimateDiff', adapters=configs(loras))))
    editor.set_adapters('style', 0.0)
    assert torch.equal(make(editor), plain)
    editor.set_adapters(['zoom', 'style'], [1.0, 0.3])
    scales = {a.name: a.scale for a in editor.adapters if a.has_scale}
    assert scales == dict(style=0.3, text=0.0, zoom=1.0)
    editor.set_adapters(['style', 'text', 'zoom'], [0.8, 0.5, 1.0])
    assert torch.equal(make(editor), all_on)
    editor.set_adapters('zoom')
    editor.set_adapters(['style', 'text', 'zoom'])  # as they were before they were switched off
    assert torch.equal(make(editor), all_on)
    removed = editor.remove_adapter('text')
    editor.add_adapter(removed)
    assert torch.equal(make(editor), all_on)
    assert same(state(editor), before)


def test_merged(build: Callable, loras: dict) -> None:
    editor = build('AnimateDiff', adapters=configs(loras))
    before, beside = state(editor), make(editor)
    editor.merge_adapters()
    editor.merge_adapters()  # again does nothing
    assert not same(state(editor), before) and list(state(editor)) == list(before)
    torch.testing.assert_close(make(editor), beside, rtol=0, atol=1e-4)
    for change in (
        lambda: editor.set_adapters('style', 0.1),
        lambda: editor.remove_adapter('style'),
        lambda: editor.add_adapter(dict(configs(loras)[0], name='again')),
    ):
        with pytest.raises(InputError, match='adapters are merged'):
            change()
    editor.unmerge_adapters()
    assert same(state(editor), before)
    assert torch.equal(make(editor), beside)
    editor.set_trainable(['unet'])
    with pytest.raises(InputError, match='being trained'):
        editor.merge_adapters()
    assert same(state(editor), before)


def test_in_another_precision(build: Callable, loras: dict) -> None:
    editor = build('AnimateDiff', adapters=configs(loras))
    expected = make(editor, prompt='a <cat>')
    editor.to(torch.float64)
    close = make(editor, prompt='a <cat>')
    torch.testing.assert_close(close, expected, rtol=0, atol=1e-3)
    editor.merge_adapters()
    editor.to(torch.float32)
    editor.unmerge_adapters()
    torch.testing.assert_close(make(editor, prompt='a <cat>'), expected, rtol=0, atol=1e-5)


def test_clip_skip_reaches_the_text_encoder(tiny_config: Callable, build: Callable) -> None:
    deeper = {**tiny_config('AnimateDiff')['text_encoder'], 'num_hidden_layers': 3}
    editor = build('AnimateDiff', text_encoder=deeper)
    plain = make(editor)
    assert torch.equal(make(editor, clip_skip=0), plain)
    results = [plain, make(editor, clip_skip=1), make(editor, clip_skip=2)]
    assert all((a - b).abs().max() > 1e-5 for a, b in itertools.pairwise(results))
    model = tiny_config('AnimateDiff', text_encoder=deeper)
    for bad in (3, -1, 'one', True):
        with pytest.raises(InputError, match=r'clip_skip=.*0 to 2'):
            editor.infer(**CALL, clip_skip=bad)
        with pytest.raises(InputError, match=r'clip_skip=.*0 to 2'):
            type(editor).check(model, {**CALL, 'clip_skip': bad})


# Errors -----------------------------------------------------------------------------------------


BAD_CONFIGS = [
    (dict(type='LoRA', scal=1), ConfigError, "LoRA takes no 'scal'.*'scale'"),
    (dict(type='Lora'), KeyError, "unknown model type 'Lora'.*'LoRA'"),
    (dict(type='MotionModule'), ConfigError, "'MotionModule' is no adapter"),
    (dict(type='LoRA', scale='much'), ConfigError, "scale='much': expected a finite number"),
    (dict(type='TextualInversion', scale=1), ConfigError, "takes no 'scale'"),
    (dict(type='TextualInversion', token=' x'), ConfigError, "token=' x'"),
    (dict(type='LoRA', name='a b'), ConfigError, "name='a b'"),
    (dict(type='LoRA', from_pretrained='no/such.safetensors'), WeightsError, 'does not exist'),
    (dict(type='LoRA', from_pretrained=None), ConfigError, "needs 'from_pretrained'"),
    (dict(scale=1), ConfigError, "expected dict.type='LoRA'"),
]


@pytest.mark.parametrize(('config', 'kind', 'message'), BAD_CONFIGS)
def test_bad_adapters_before_any_weight(
    build: Callable, loras: dict, tiny_config: Callable, config: dict, kind: type, message: str
) -> None:
    complete = {'from_pretrained': str(loras['style']), **config}
    editor_class = type(build('AnimateDiff'))
    with pytest.raises(kind, match=message):
        editor_class.check(tiny_config('AnimateDiff', adapters=[complete]), CALL)


def test_names_and_what_does_not_fit(build: Callable, loras: dict) -> None:
    editor = build('AnimateDiff')
    before = state(editor)
    style = configs(loras)[0]
    editor.add_adapter(style)
    with pytest.raises(ConfigError, match="named 'style' already"):
        editor.add_adapter(style)
    with pytest.raises(InputError, match="no adapter 'styl'.*'style'"):
        editor.remove_adapter('styl')
    with pytest.raises(InputError, match='2 weights for 1 adapters'):
        editor.set_adapters('style', [1, 2])
    with pytest.raises(ConfigError, match='expected a finite number'):
        editor.set_adapters('style', float('inf'))
    assert editor.adapters[0].scale == 0.8
    editor.add_adapter(configs(loras)[3])
    with pytest.raises(InputError, match='has no weight'):
        editor.set_adapters('cat', 1.0)
    image = build('TextToImage')
    with pytest.raises(WeightsError, match='no motion modules'):
        image.add_adapter(configs(loras)[2])
    assert image.adapters == [] and same(state(editor), before)


# Through the inferencer -------------------------------------------------------------------------


def write_config(folder: Path, adapters: list[dict]) -> Path:
    cfg = Config.fromfile(TINY)
    cfg.infer.image = str(TINY.with_name('tiny.png'))
    cfg.model.adapters = adapters
    path = folder / 'with_adapters.py'
    path.write_text(cfg.pretty_text)
    return path


def make_inferencer(source: Any, **options: Any) -> VideoInferencer:
    """Random weights that are the same every time, like a file's."""
    inferencer = VideoInferencer(source, device='cpu', **options)
    torch.manual_seed(0)
    inferencer.editor  # noqa: B018
    return inferencer


def test_config_recipe_and_replay(loras: dict, tmp_path: Path) -> None:
    adapters = configs(loras)
    adapters[0]['scale'] = {'unet': 0.8, 'unet.up_blocks': 0.2}
    path = write_config(tmp_path, adapters)
    out = make_inferencer(path)(tmp_path / 'a.mp4', progress=False)
    recipe = read_recipe(out['paths'][0])
    assert recipe['config']['model']['adapters'][0]['scale'] == adapters[0]['scale']
    assert [entry['name'].split('/')[-1] for entry in recipe['weights']] == [
        p.name for p in loras.values()
    ]
    again = make_inferencer(tmp_path / 'a.mp4')
    replayed = again(tmp_path / 'b.mp4', progress=False)
    assert torch.equal(replayed['samples'], out['samples'])
    assert read_recipe(replayed['paths'][0])['config'] == recipe['config']
    plain = make_inferencer(TINY)(False, progress=False, image=str(TINY.with_name('tiny.png')))
    assert not torch.equal(plain['samples'], out['samples'])


def test_added_by_the_call_and_changed_while_in_use(loras: dict, tmp_path: Path) -> None:
    path = write_config(tmp_path, configs(loras)[:1])
    inferencer = make_inferencer(path, adapters=configs(loras)[2:3])
    first = inferencer(tmp_path / 'a.mp4', progress=False)
    assert [c['name'] for c in first['recipe']['config']['model']['adapters']] == ['style', 'zoom']
    inferencer.editor.set_adapters('style', 0.1)
    inferencer.editor.remove_adapter('zoom')
    second = inferencer(tmp_path / 'b.mp4', progress=False)
    (left,) = second['recipe']['config']['model']['adapters']
    assert (left['name'], left['scale']) == ('style', 0.1)
    assert len(second['recipe']['weights']) == 1
    replayed = make_inferencer(tmp_path / 'b.mp4')(False, progress=False)
    assert torch.equal(replayed['samples'], second['samples'])
    # Another LoRA on a finished video is no other weight file.
    more = make_inferencer(tmp_path / 'b.mp4', adapters=configs(loras)[1:2])
    changed = more(False, progress=False)['samples']
    assert not torch.equal(changed, second['samples'])


def test_changed_file_is_refused_at_replay(build: Callable, loras: dict, tmp_path: Path) -> None:
    file = tmp_path / 'style.safetensors'
    file.write_bytes(loras['style'].read_bytes())
    config = dict(type='LoRA', from_pretrained=str(file))
    make_inferencer(write_config(tmp_path, [config]))(tmp_path / 'a.mp4', progress=False)
    write_lora(file, build('AnimateDiff').unet, 'unet.', '.attn2.', seed=9)
    with pytest.raises(WeightsError, match=r'style\.safetensors is not the weight file'):
        make_inferencer(tmp_path / 'a.mp4')


@pytest.fixture(scope='module')
def tool() -> Any:
    """tools/infer.py as a module."""
    path = Path(__file__).parents[2] / 'tools' / 'infer.py'
    spec = importlib.util.spec_from_file_location('infer_tool', path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_flags_make_a_video_and_its_recipe(
    tool: Any, loras: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / 'a.mp4'
    small = ['--num-frames', '2', '--steps', '1', '--quiet', '--out', str(out)]

    def call(*flags: object) -> int:
        monkeypatch.setattr('sys.argv', ['infer.py', str(TINY), *small, *map(str, flags)])
        return tool.main()

    lora, motion = f'{loras["style"]}:0.5', str(loras['zoom'])
    assert call('--lora', lora, '--motion-lora', motion, '--lora', loras['words']) == 0
    found = read_recipe(out)
    adapters = [(a['type'], a['name'], a['scale']) for a in found['config']['model']['adapters']]
    assert adapters == [('LoRA', 'style', 0.5), ('LoRA', 'words', 1.0), ('MotionLoRA', 'zoom', 1.0)]
    assert len(found['weights']) == 3
    out.unlink()
    for wrong in (tmp_path / 'styl.safetensors', f'{loras["words"]}.safetensors:1'):
        assert call('--lora', wrong) == 2
        assert 'does not exist' in capsys.readouterr().err and not out.exists()
    assert call('--lora', lora, '--lora', lora) == 2
    assert "named 'style' already" in capsys.readouterr().err


def test_a_scale_follows_the_last_colon(tool: Any) -> None:
    read = tool.adapter('LoRA')
    for text, source, scale in (
        ('x.safetensors', 'x.safetensors', None),
        ('x.safetensors:0.8', 'x.safetensors', 0.8),
        ('x.safetensors:-1', 'x.safetensors', -1.0),
        (r'C:\x.safetensors', r'C:\x.safetensors', None),
        (r'C:\x.safetensors:2', r'C:\x.safetensors', 2.0),
        ('package://x', 'package://x', None),
    ):
        expected = dict(type='LoRA', from_pretrained=source)
        assert read(text) == (expected if scale is None else {**expected, 'scale': scale})
    with pytest.raises(argparse.ArgumentTypeError, match='finite'):
        read('x.safetensors:nan')


def test_plan_and_config_check(loras: dict, tmp_path: Path) -> None:
    lines = VideoInferencer(write_config(tmp_path, configs(loras)), device='cpu').plan().lines()
    assert any('adapter: LoRA' in line and 'at 0.8' in line for line in lines)
    assert any('zoom.safetensors' in line and 'here' in line for line in lines)
    bad = write_config(tmp_path, [dict(configs(loras)[0], scal=1)])
    with pytest.raises(ConfigError, match=r"model\.adapters\[0\]: LoRA takes no 'scal'.*'scale'"):
        load_config(bad)
