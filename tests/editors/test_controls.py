"""Controls of AnimateDiff and PIA: what they are told, when they work, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_calls import caller
from torch import Tensor

from mmvideo.editors.animatediff import AnimateDiff
from mmvideo.errors import ConfigError, InputError, WeightsError
from mmvideo.models.adapters.control_encoder import ControlEncoder, control_arguments

FAST = dict(prompt='a car', video_length=4, num_inference_steps=2, guidance_scale=2.0, seed=3)
make = caller(**FAST)
SHARED = dict(
    block_out_channels=[8, 16],
    layers_per_block=1,
    cross_attention_dim=16,
    attention_head_dim=2,
    norm_num_groups=4,
)
SPARSE = dict(
    SHARED,
    _class_name='SparseControlNetModel',
    down_block_types=['CrossAttnDownBlockMotion', 'DownBlockMotion'],
    motion_num_attention_heads=2,
    motion_max_seq_length=8,
)
CONFIGS: dict[str, dict[str, Any]] = {
    'control': dict(
        SHARED,
        _class_name='ControlNetModel',
        down_block_types=['CrossAttnDownBlock2D', 'DownBlock2D'],
        conditioning_embedding_out_channels=[4, 8],
    ),
    'rgb': SPARSE,
    'scribble': dict(
        SPARSE,
        conditioning_channels=3,
        use_simplified_condition_embedding=False,
        conditioning_embedding_out_channels=[4, 8],
    ),
    'wide': dict(
        SHARED,
        _class_name='ControlNetModel',
        down_block_types=['CrossAttnDownBlock2D', 'DownBlock2D'],
        conditioning_embedding_out_channels=[4, 8, 8],
    ),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoders with random weights in diffusers' layout."""
    root = tmp_path_factory.mktemp('controls')
    for name, config in CONFIGS.items():
        torch.manual_seed(len(name))
        net = ControlEncoder(**control_arguments(config))
        tensors = {k: v + 0.1 * torch.randn_like(v) for k, v in net.state_dict().items()
                   if not k.endswith('.pe')}  # fmt: skip
        tensors |= {k: v for k, v in net.state_dict().items() if k.endswith('.pe')}
        (root / name).mkdir()
        (root / name / 'config.json').write_text(json.dumps(config))
        save_file(tensors, root / name / 'diffusion_pytorch_model.safetensors')
    return root


def control(folder: Path, name: str, **settings: Any) -> dict[str, Any]:
    kind = 'SparseCtrl' if name in ('rgb', 'scribble') else 'ControlNet'
    return dict(type=kind, from_pretrained=str(folder / name), **settings)


@pytest.fixture(scope='module')
def editors(build: Callable, folder: Path) -> Callable[..., Any]:
    """AnimateDiff or PIA with the named controls."""
    known: dict[Any, Any] = {}

    def make(*names: str, kind: str = 'AnimateDiff') -> Any:
        if (kind, names) not in known:
            editor = build(kind)
            editor._attach_controls([control(folder, name) for name in names])
            known[kind, names] = editor
        return known[kind, names]

    return make


def clip(seed: int = 0, count: int = 4, side: int = 16) -> Tensor:
    values = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return (values * 255).round() / 255


def differ(a: Tensor, b: Tensor) -> list[bool]:
    """Of each frame, whether it differs."""
    return [float(d) > 1e-4 for d in (a - b).abs().amax((0, 1, 3, 4))]


@pytest.mark.parametrize('kind', ['AnimateDiff', 'PIA'])
@pytest.mark.parametrize('name', ['control', 'rgb', 'scribble'])
def test_what_is_seen_counts(editors: Callable, name: str, kind: str) -> None:
    editor = editors(name, kind=kind)
    shared = dict(image=clip(5)[0]) if kind == 'PIA' else {}
    found = [make(editor, control_videos=[c], **shared) for c in (None, clip(1), clip(2))]
    off = make(editor, control_videos=[clip(1)], control_scale=0, **shared)
    assert torch.equal(found[0], off)
    assert all(differ(found[0], found[1])) and all(differ(found[1], found[2]))


def test_a_frame_without_scale_is_left_alone(editors: Callable) -> None:
    """Motion modules carry what a frame sees to the others, so these are off."""
    editor = editors('control')
    shared = dict(control_videos=[clip(1)], motion_strength=0)
    plain, none = make(editor, **shared), make(editor, **shared, control_scale=0)
    for scale in ([[1.0, 0.0, 1.0, 0.0]], {0: 1, 1: 0, 2: 1, 3: 0}):
        found = make(editor, **shared, control_scale=scale)
        assert differ(found, none) == [True, False, True, False]
        assert differ(found, plain) == [False, True, False, True]


def test_shares_of_the_steps(editors: Callable) -> None:
    editor = editors('control')
    calls: list[float] = []
    hook = editor.controls[0].net.register_forward_hook(
        lambda _, inputs, output: calls.append(float(inputs[1]))
    )
    steps: list[float] = []
    for start, end, count in ((0, 1, 4), (0, 0.5, 2), (0.5, 1, 2), (0.3, 0.4, 0)):
        calls.clear()
        make(editor, control_videos=[clip(1)], control_start=start, control_end=end,
             num_inference_steps=4)  # fmt: skip
        steps = steps or list(calls)
        assert calls == (steps[:count] if start == 0 else steps[4 - count :])
    hook.remove()


def test_guess_mode_leaves_the_other_half_alone(editors: Callable) -> None:
    """With a guidance scale of 0 only the half without a prompt would count."""
    editor = editors('control')
    sizes: list[int] = []
    hook = editor.controls[0].net.register_forward_hook(
        lambda _, inputs, output: sizes.append(len(inputs[0]))
    )
    plain = make(editor, control_videos=[clip(1)])
    guess = make(editor, control_videos=[clip(1)], guess_mode=True)
    hook.remove()
    assert sizes == [2, 2, 1, 1]
    assert all(differ(plain, guess))


def test_several_add_up_and_a_single_one_may_be_off(editors: Callable) -> None:
    both, first = editors('control', 'scribble'), editors('control')
    one = make(first, control_videos=[clip(1)])
    assert torch.equal(one, make(both, control_videos=[clip(1), None]))
    sketch = clip(2, 1)
    two = make(both, control_videos=[clip(1), sketch])
    assert all(differ(one, two))
    assert torch.equal(one, make(both, control_videos=[clip(1), sketch], control_scale=[1.0, 0]))


def test_places_of_sparse_pictures(editors: Callable) -> None:
    editor = editors('scribble')
    first = make(editor, control_videos=[clip(1, 1)])
    assert torch.equal(first, make(editor, control_videos=[clip(1, 1)], control_frames=[[0]]))
    last = make(editor, control_videos=[clip(1, 1)], control_frames=[3])
    assert all(differ(first, last))


@pytest.mark.parametrize('names', [('control',), ('scribble',), ('rgb',)])
def test_samples_do_not_depend_on_each_other(editors: Callable, names: tuple) -> None:
    editor = editors(*names)
    shared = dict(control_videos=[clip(1)])
    both = make(editor, prompt=['a car', 'a fish'], seed=[3, 4], **shared)
    alone = make(editor, prompt='a fish', seed=4, **shared)
    assert float((both[1] - alone[0]).abs().max()) < 1e-4


def test_with_windows_a_clip_and_keyframes(editors: Callable) -> None:
    editor = editors('control', 'rgb')
    found = make(
        editor,
        video_length=12,
        windows=8,
        video=clip(3, 12),
        num_inference_steps=4,
        prompt={0: 'a car', 11: 'a fish'},
        control_videos=[clip(1, 12), clip(2, 2)],
        control_frames=[None, [0, 11]],
        control_scale=[{0: 1.0, 11: 0.1}, 0.5],
    )
    assert found.shape[2] == 12 and torch.isfinite(found).all()
    with_noise = make(
        editor, video_length=12, free_noise=dict(context_length=8),
        control_videos=[clip(1, 12), clip(2, 1)],
    )  # fmt: skip
    assert torch.isfinite(with_noise).all()


def test_controls_are_frozen_and_named_in_the_recipe(editors: Callable, folder: Path) -> None:
    editor = editors('control')
    assert not any(p.requires_grad for p in editor.controls.parameters())
    file = folder / 'control' / 'diffusion_pytorch_model.safetensors'
    assert file in editor.weight_files()


def test_what_cannot_be_is_refused(
    tiny_config: Callable, build: Callable, editors: Callable, folder: Path
) -> None:
    plain = tiny_config('AnimateDiff')
    one = {**plain, 'controls': [control(folder, 'control')]}
    sparse = {**plain, 'controls': [control(folder, 'scribble')]}
    seen = dict(control_videos=[clip(1)])
    AnimateDiff.check(one, {**FAST, **seen})
    for model, wrong, expected in (
        (plain, seen, 'has no controls'),
        (one, {}, 'control_videos is missing'),
        (one, dict(control_videos=[clip(1), clip(2)]), '2 of control_videos for 1'),
        (one, dict(control_videos=[clip(1, 3)]), r'control_videos\[0\] has only 3 frames'),
        (one, dict(seen, control_scale=-1), 'control_scale=-1'),
        (one, dict(seen, control_scale={0: 1, 9: 2}), 'the key 9 lies beyond'),
        (one, dict(seen, control_start=0.5, control_end=0.5), 'a start before the end'),
        (one, dict(seen, control_end=1.5), 'control_end=1.5'),
        (one, dict(seen, control_frames=[[0]]), 'a picture for every frame'),
        (one, dict(seen, guess_mode=1), 'guess_mode=1'),
        (sparse, dict(control_videos=[clip(1, 2)]), r'such as control_frames=\[0, 3\]'),
        (sparse, dict(control_videos=[clip(1, 5)]), 'has more than 4 frames'),
        (sparse, dict(control_videos=[clip(1, 1)], control_frames=[4]), 'has 0 to 3'),
        (sparse, dict(control_videos=[clip(1, 2)], control_frames=[1, 1]), 'appears twice'),
    ):
        with pytest.raises(InputError, match=expected):
            AnimateDiff.check(model, {**FAST, **wrong})
    for controls, expected in (
        ('control', 'expected a list'),
        ([dict(type='LoRA', from_pretrained='x')], "type 'LoRA', expected one of"),
        ([control(folder, 'control', strength=2)], "takes no 'strength'"),
        ([control(folder, 'control', start=0.6, end=0.2)], 'start < end'),
        ([control(folder, 'control', scale='much')], "scale='much'"),
        ([control(folder, 'control')] * 2, "named 'control' already"),
    ):
        with pytest.raises(ConfigError, match=expected):
            AnimateDiff.check({**plain, 'controls': controls}, {**FAST, **seen})
    editor = build('AnimateDiff')
    for config, expected in (
        (dict(control(folder, 'rgb'), type='ControlNet'), "its type is 'SparseCtrl'"),
        (dict(control(folder, 'control'), type='SparseCtrl'), "its type is 'ControlNet'"),
        (control(folder, 'wide'), 'pixels of a latent are 4, the model has 2'),
    ):
        with pytest.raises(WeightsError, match=expected):
            editor._attach_controls([config])


def test_features_of_a_long_clip_wait_in_parts(
    editors: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With windows they are computed a few frames at a time, and are the same."""
    editor = editors('control', 'rgb')
    arguments: dict[str, Any] = dict(
        video_length=6, windows=4, control_videos=[clip(count=6), clip(1, 2)],
        control_frames=[None, [0, 5]],
    )  # fmt: skip
    whole = make(editor, **arguments)
    counts: list[int] = []
    for given in editor.controls:
        features = given.features

        def spy(pictures: Tensor, frames: Any, count: int, features: Any = features) -> Tensor:
            counts.append(count)
            return features(pictures, frames, count)

        monkeypatch.setattr(given, 'features', spy)
    monkeypatch.setattr('mmvideo.editors.controls._FEATURES', 4)
    found = make(editor, **arguments)
    assert counts == [4, 2, 4, 2]
    assert (found - whole).abs().max() <= 1e-6


@pytest.mark.parametrize('guess_mode', [False, True])
def test_halves_of_guidance_one_after_the_other(editors: Callable, guess_mode: bool) -> None:
    """Too little memory for both: what controls add is halved with the rest."""
    editor = editors('control')
    arguments = dict(control_videos=clip(), guidance_scale=3.0, guess_mode=guess_mode)
    whole = make(editor, **arguments)
    rows: list[int] = []

    def before(_: Any, args: tuple) -> None:
        rows.append(len(args[0]))
        if len(args[0]) > 1:
            raise torch.OutOfMemoryError('CUDA out of memory.')

    with editor.unet.register_forward_pre_hook(before):
        found = make(editor, **arguments)
    assert rows[:3] == [2, 1, 1] and set(rows[1:]) == {1}
    assert (found - whole).abs().max() <= 1e-5
