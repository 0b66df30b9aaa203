"""From a config to files and back: a real editor of a kilobyte's size, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from mmengine import Config
from PIL import Image

from mmvideo.apis import VideoInferencer, read_recipe
from mmvideo.config import load_config
from mmvideo.errors import ConfigError, InputError, UserError, WeightsError
from mmvideo.media.writers import to_frames

CONFIG = Path(__file__).with_name('tiny_pia.py')


def tiny(config: Any = CONFIG, **options: Any) -> VideoInferencer:
    """An inferencer whose random weights are the same every time."""
    inferencer = VideoInferencer(config, device='cpu', **options)
    torch.manual_seed(0)
    assert inferencer.editor is inferencer.editor
    return inferencer


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format='rgb24') for f in container.decode(video=0)])


@pytest.fixture(scope='module')
def inferencer() -> VideoInferencer:
    return tiny()


@pytest.fixture
def with_weights(tmp_path: Path) -> Path:
    """The tiny config with the VAE's weights in a folder."""
    from mmvideo.checkpoints.save import save_part

    vae = tiny().editor.vae
    save_part(tmp_path / 'model' / 'vae', dict(vae.config), vae)
    cfg = Config.fromfile(CONFIG)
    cfg.model.vae = dict(
        type='AutoencoderKL', from_pretrained=str(tmp_path / 'model'), subfolder='vae'
    )
    cfg.infer.image = str(CONFIG.with_name('tiny.png'))
    path = tmp_path / 'with_weights.py'
    path.write_text(cfg.pretty_text)
    return path


def test_video_file_and_recipe(inferencer: VideoInferencer, tmp_path: Path) -> None:
    seen = []
    out = inferencer(tmp_path / 'a.mp4', progress=False, on_file=seen.append, num_frames=5)
    assert out['samples'].shape == (1, 3, 5, 16, 16)
    assert out['samples'].min() >= 0 and out['samples'].max() <= 1
    assert out['paths'] == seen == [tmp_path / 'a.mp4']
    assert len(decoded(seen[0])) == 5
    found = read_recipe(seen[0])
    arguments = found['arguments']
    assert (arguments['prompt'], arguments['seed'], arguments['video_length']) == (
        'a red fish',
        0,
        5,
    )
    assert arguments['motion_scale'] == 0 and arguments['eta'] == 0.0
    assert found['machine']['dtype'] == 'float32'
    assert {k: v for k, v in found.items() if k != 'output'} == out['recipe']


def test_replay_gives_the_same_frames(inferencer: VideoInferencer, tmp_path: Path) -> None:
    made = inferencer(tmp_path / 'a.mp4', progress=False, seed=5, motion_scale='loop-small', fps=6)
    again = tiny(tmp_path / 'a.mp4')
    assert again.notes == []
    result = again(tmp_path / 'b.mp4', progress=False)
    assert torch.equal(made['samples'], result['samples'])
    assert (tmp_path / 'a.mp4').read_bytes() == (tmp_path / 'b.mp4').read_bytes()
    other = again(out=False, progress=False, seed=6)
    assert not torch.equal(made['samples'], other['samples']) and other['paths'] == []


@pytest.mark.parametrize('suffix', ['.gif', '.webp', '.png'])
def test_replay_from_every_format(inferencer: VideoInferencer, tmp_path: Path, suffix: str) -> None:
    made = inferencer(tmp_path / f'a{suffix}', progress=False, seed=9)
    result = tiny(made['paths'][0])(out=False, progress=False)
    assert torch.equal(made['samples'], result['samples'])


def test_every_video_is_as_if_made_alone(inferencer: VideoInferencer, tmp_path: Path) -> None:
    both = inferencer(tmp_path, progress=False, seed=[3, 4], prompt=['a fish', 'a red'])
    names = ['tiny_pia-0-s3.mp4', 'tiny_pia-0-s4.mp4', 'tiny_pia-1-s3.mp4', 'tiny_pia-1-s4.mp4']
    assert [path.name for path in both['paths']] == names
    alone = inferencer(out=False, progress=False, seed=4, prompt='a red')
    assert torch.equal(both['samples'][3], alone['samples'][0])
    assert read_recipe(both['paths'][3])['arguments']['seed'] == 4


def test_drawn_seed_is_recorded(inferencer: VideoInferencer) -> None:
    out = inferencer(out=False, progress=False, seed=None)
    seed = out['recipe']['arguments']['seed']
    again = inferencer(out=False, progress=False, seed=seed)
    assert torch.equal(out['samples'], again['samples'])


def test_pictures_of_several_sizes(inferencer: VideoInferencer, tmp_path: Path) -> None:
    pictures = [Image.new('RGB', (16, 24), 'red'), Image.new('RGB', (24, 16), 'blue')]
    out = inferencer(tmp_path / 'a.gif', progress=False, image=pictures)
    assert [tuple(s.shape[-2:]) for s in out['samples']] == [(24, 16), (16, 24)]
    assert all('data' in read_recipe(path)['arguments']['image'] for path in out['paths'])


def test_default_place(
    inferencer: VideoInferencer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inferencer.defaults['image'] = str(CONFIG.with_name('tiny.png'))
    paths = [inferencer(progress=False)['paths'][0] for _ in range(2)]
    assert [str(path) for path in paths] == ['outputs/tiny_pia.mp4', 'outputs/tiny_pia-1.mp4']
    [picture] = inferencer(progress=False, num_frames=1)['paths']
    assert str(picture) == 'outputs/tiny_pia.png'


BAD = [
    ({'seed': -1}, 'seed=-1'),
    ({'motion_scal': 1}, "PIA takes no 'motion_scal'"),
    ({'motion_scale': 9}, '9'),
    ({'condition_frame': 16}, '16'),
    ({'image': 'missing.png'}, r'missing\.png'),
    ({'image': None}, 'image is missing'),
    ({'num_frames': 99}, '99'),
    ({'height': 17}, '17'),
    ({'prompt': None}, 'prompt'),
    ({'guidance_scale': float('nan')}, 'guidance_scale'),
    ({'out': 'a.avi'}, 'avi'),
    ({'fps': 1000}, 'fps=1000'),
]


@pytest.mark.parametrize(('call', 'message'), BAD, ids=[str(call) for call, _ in BAD])
def test_bad_calls_fail_before_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: dict, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    inferencer = VideoInferencer(CONFIG, device='cpu')
    with pytest.raises(UserError, match=message):
        inferencer(**call)
    assert inferencer._editor is None
    assert not [p for p in tmp_path.rglob('*') if p.is_file()]


def test_interrupted_sampling_leaves_nothing(
    inferencer: VideoInferencer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inferencer.editor, 'infer', interrupted)
    with pytest.raises(KeyboardInterrupt):
        inferencer(tmp_path / 'a.mp4', progress=False)
    assert not list(tmp_path.iterdir())


def test_no_number_is_never_written(
    inferencer: VideoInferencer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = {'samples': torch.full((1, 3, 2, 16, 16), float('nan'))}
    monkeypatch.setattr(inferencer.editor, 'infer', lambda **_: nothing)
    with pytest.raises(InputError, match='float32'):
        inferencer(tmp_path / 'a.mp4', progress=False)
    assert not list(tmp_path.iterdir())


def test_configs_as_objects_and_options() -> None:
    inferencer = VideoInferencer(
        load_config(CONFIG), device='cpu', cfg_options={'model.scheduler.beta_end': 0.02}
    )
    assert inferencer.cfg.model.scheduler.beta_end == 0.02 and inferencer.name == 'tiny_pia'
    with pytest.raises(ConfigError, match='beta_ende'):
        VideoInferencer(CONFIG, cfg_options={'model.scheduler.beta_ende': 0.02})
    with pytest.raises(ConfigError, match='tiny_pia'):
        VideoInferencer(CONFIG.with_name('tiny_pie.py'))


# --- weights -------------------------------------------------------------------------------------


def test_recipe_verifies_the_weights(with_weights: Path, tmp_path: Path) -> None:
    made = tiny(with_weights)(tmp_path / 'a.mp4', progress=False)
    [entry] = made['recipe']['weights']
    assert entry['name'] == 'model/vae/diffusion_pytorch_model.safetensors'
    again = tiny(tmp_path / 'a.mp4')(out=False, progress=False)
    assert torch.equal(made['samples'], again['samples'])

    from mmvideo.checkpoints.files import read_tensors, write_tensors

    weights = tmp_path / 'model' / 'vae' / 'diffusion_pytorch_model.safetensors'
    tensors = {key: value.clone() for key, value in read_tensors(weights).items()}
    write_tensors(weights, {**tensors, 'decoder.conv_out.bias': torch.ones(3)})
    with pytest.raises(WeightsError, match=r'vae/diffusion_pytorch_model\.safetensors is not'):
        tiny(tmp_path / 'a.mp4')
    other = tiny(tmp_path / 'a.mp4', allow_other_weights=True)(out=False, progress=False)
    assert not torch.equal(made['samples'], other['samples'])


def test_plan_reads_no_weights(with_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError('a plan must not read weights')

    monkeypatch.setattr('mmvideo.checkpoints.files.read_tensors', forbidden)
    monkeypatch.setattr('mmvideo.checkpoints.load.read_part', forbidden)
    inferencer = VideoInferencer(with_weights, device='cpu')
    plan = inferencer.plan(out=False, num_frames=8)
    editor = tiny().editor
    by_name = {part.name: part for part in plan.parts}
    for name in ('vae', 'text_encoder'):
        count = sum(p.numel() for p in getattr(editor, name).parameters())
        assert by_name[name].parameters == count, name
    unet = by_name['unet'].parameters + by_name['motion_module'].parameters
    assert unet == sum(p.numel() for p in editor.unet.parameters())
    assert plan.weights_bytes == 4 * sum(p.numel() for p in editor.parameters())
    assert (plan.frames, plan.height, plan.width, plan.steps) == (8, 16, 16, 3)
    assert plan.peak_bytes is not None and plan.peak_bytes > plan.weights_bytes
    assert by_name['vae'].missing == [] and by_name['vae'].files[1][1] > 0
    text = '\n'.join(plan.lines())
    for word in ('PIA on cpu', 'AutoencoderKL from', 'DDIMScheduler, 3 steps', '8 frames of 16x16'):
        assert word in text
    assert inferencer._editor is None


def test_plan_of_missing_weights_names_the_folder(with_weights: Path) -> None:
    options = {'model.vae.from_pretrained': str(with_weights.parent / 'modle')}
    with pytest.raises(WeightsError, match="Did you mean 'model'"):
        VideoInferencer(with_weights, device='cpu', cfg_options=options).plan(out=False)


# --- samples that a stranger changed -------------------------------------------------------------


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'config': {'model': {'type': 'subprocess.getoutput', 'cmd': 'true'}}}, 'subprocess'),
        ({'arguments': {'prompt': 'a', 'command': 'x'}}, "takes no 'command'"),
        ({'arguments': {'prompt': ['a'] * 3, 'seed': [[1]]}}, 'seed'),
        ({'arguments': {'prompt': 'a', 'image': {'data': 'x'}}}, 'picture'),
        ({'fps': -1}, 'fps'),
    ],
)
def test_changed_recipes_are_refused(
    inferencer: VideoInferencer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict,
    message: str,
) -> None:
    from mmvideo.media.writers import write_video

    monkeypatch.chdir(tmp_path)
    made = inferencer(out=False, progress=False)
    path = write_video(
        tmp_path / 'a.mp4', to_frames(made['samples'][0]), recipe={**made['recipe'], **change}
    )
    with pytest.raises(UserError, match=message):
        VideoInferencer(path, device='cpu').prepare()


def test_name_of_a_recipe_is_no_path(
    inferencer: VideoInferencer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmvideo.media.writers import write_video

    made = inferencer(out=False, progress=False)
    recipe = {**made['recipe'], 'name': '../../evil'}
    path = write_video(tmp_path / 'a.mp4', to_frames(made['samples'][0]), recipe=recipe)
    inside = tmp_path / 'inside'
    inside.mkdir()
    monkeypatch.chdir(inside)
    [[target]] = VideoInferencer(path, device='cpu').prepare().targets
    assert str(target.path) == 'outputs/evil.mp4'
