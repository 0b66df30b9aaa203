"""Scales of LoRAs, guidance and controls that change over frames or over steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine import Config
from safetensors.torch import save_file
from small_calls import caller, distance
from torch import Tensor, nn

from mmvideo.apis import VideoInferencer
from mmvideo.config import load_config
from mmvideo.editors.options import Options
from mmvideo.editors.timeline import number_timeline
from mmvideo.errors import ConfigError, InputError
from mmvideo.models.adapters.control_encoder import ControlEncoder, control_arguments
from mmvideo.models.adapters.lora import sees_frames
from mmvideo.models.adapters.low_rank import LowRank, Pair, slot_of, slotted_layers
from mmvideo.registry import MODELS

APIS = Path(__file__).parents[1] / 'apis'
PIA, SVD = APIS / 'tiny_pia.py', APIS / 'tiny_svd.py'
CALL = dict(prompt='a red fish', negative_prompt='blue', seed=1, video_length=4, height=16,
            width=16, num_inference_steps=2, guidance_scale=3.0, output_type='latent')  # fmt: skip
make = caller('latents', **CALL)
STEP = {'interpolation': 'step'}
MOTION = r'.motion_modules.'
NAMES = {
    'every': lambda name: True,
    'pictures': lambda name: MOTION not in name and sees_frames(f'unet.{name}'),
    'attention': lambda name: '.attentions.' in name and 'attn2.to_k' in name,
    'motion': lambda name: MOTION in name,
    'time': lambda name: 'time_emb' in name,
}


def write(path: Path, model: nn.Module, prefix: str, wanted: Callable[[str], bool]) -> Path:
    """A LoRA of PEFT for all linear layers and 2-d convolutions that are wanted."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and wanted(name):
            rows, *rest = layer.weight.shape
            stem, ones = f'{prefix}{name}', [1] * (layer.weight.ndim - 2)
            tensors[f'{stem}.lora_A.weight'] = torch.randn(2, *rest, generator=generator) / 4
            tensors[f'{stem}.lora_B.weight'] = torch.randn(rows, 2, *ones, generator=generator) / 4
    assert tensors
    save_file(tensors, path)
    return path


@pytest.fixture(scope='module')
def files(build: Callable, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """LoRAs by the layers that they change."""
    folder, editor = tmp_path_factory.mktemp('loras'), build('AnimateDiff')
    found = {
        kind: write(folder / f'{kind}.safetensors', editor.unet, 'unet.', wanted)
        for kind, wanted in NAMES.items()
    }
    found['words'] = write(
        folder / 'words.safetensors',
        editor.text_encoder,
        'text_encoder.text_model.',
        lambda name: name.endswith('_proj'),
    )
    return {kind: str(path) for kind, path in found.items()}


@pytest.fixture(scope='module')
def with_lora(build: Callable, files: dict[str, str]) -> Callable[..., Any]:
    """AnimateDiff with one of the LoRAs at a scale."""
    known: dict[str, Any] = {}

    def make(kind: str, scale: Any) -> Any:
        if kind not in known:
            name = 'MotionLoRA' if kind == 'motion' else 'LoRA'
            known[kind] = build(
                'AnimateDiff', adapters=[dict(type=name, from_pretrained=files[kind])]
            )
        known[kind].set_adapters(kind, scale)
        return known[kind]

    return make


def hooks(editor: Any) -> int:
    return sum(len(layer._forward_hooks) for layer in slotted_layers(editor.unet))


# LoRAs over frames --------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', NAMES)
@pytest.mark.parametrize(
    'scale', [{0: 0.7, 3: 0.7}, {0: 0.7}, {'steps': {0.0: 0.7, 0.5: 0.7}}, {'0': 0.7, '2': 0.7}]
)
def test_a_constant_is_plain_to_the_bit(with_lora: Callable, kind: str, scale: Any) -> None:
    plain = make(with_lora(kind, 0.7))
    assert torch.equal(make(with_lora(kind, scale)), plain)
    assert distance(make(with_lora(kind, 0.0)), plain) > 1e-3
    assert hooks(with_lora(kind, scale)) == 0  # between calls the denoiser is as it was


SITUATIONS = {
    'guided': {},
    'unguided': dict(guidance_scale=1.0),
    'a batch': dict(prompt=['a red fish', 'a blue car']),
    'a text that changes': dict(prompt={0: 'a red fish', 3: 'a blue car'}),
    'windows': dict(video_length=12, windows=dict(length=8, overlap=4)),
    'moving windows': dict(video_length=12, windows=dict(length=4, overlap=2, schedule='uniform')),
}


@pytest.mark.parametrize('situation', SITUATIONS)
@pytest.mark.parametrize('kind', ['pictures', 'attention'])
def test_frames_have_their_own_scale(with_lora: Callable, kind: str, situation: str) -> None:
    """With motion off each frame is a picture by itself."""
    changes = dict(motion_strength=0.0, **SITUATIONS[situation])
    turn = 8 if 'windows' in situation else 2
    before, after = (make(with_lora(kind, scale), **changes) for scale in (1.0, 0.3))
    assert distance(before, after) > 1e-3
    mixed = make(with_lora(kind, {0: 1.0, turn: 0.3} | STEP), **changes)
    assert distance(mixed[:, :, :turn], before[:, :, :turn]) <= 1e-5
    assert distance(mixed[:, :, turn:], after[:, :, turn:]) <= 1e-5


@pytest.mark.parametrize('situation', ['guided', 'unguided', 'a batch'])
def test_motion_layers_scale_each_frame(
    build: Callable, with_lora: Callable, situation: str
) -> None:
    """Against hooks of our own on a bare model, whose layers see [N, T, P, C] or [N*T, P, C]."""
    scales = torch.tensor([1.0, 0.75, 0.5, 0.25])
    editor = with_lora('motion', {0: 1.0, 3: 0.25})
    ours = make(editor, **SITUATIONS[situation])
    bare = build('AnimateDiff')
    for key, pair in editor.adapters[0].pairs.items():

        def add(layer: nn.Module, args: tuple, out: Tensor, pair: Pair = pair) -> Tensor:
            change = F.linear(F.linear(args[0], pair.down), pair.up)
            clips = change if change.ndim == 4 else change.unflatten(0, (-1, 4))
            return out + (clips * scales.view(4, 1, 1)).reshape(out.shape)

        bare.unet.get_submodule(key.removeprefix('unet.')).register_forward_hook(add)
    theirs = make(bare, **SITUATIONS[situation])
    assert distance(ours, theirs) <= 1e-5 * theirs.abs().max()
    assert distance(theirs, make(with_lora('motion', 1.0), **SITUATIONS[situation])) > 1e-3


def test_windows_inside_the_attention_know_their_frames(with_lora: Callable) -> None:
    """FreeNoise: the attention sees a part of the clip, the layers around it the whole."""
    editor, seen = with_lora('motion', {0: 1.0, 11: 0.0}), []
    layer = next(m for n, m in editor.unet.named_modules() if n.endswith(f'{MOTION}0.proj_in'))
    inner = next(m for n, m in editor.unet.named_modules() if MOTION in n and n.endswith('to_q'))
    for name, module in (('whole', layer), ('part', inner)):
        module.register_forward_pre_hook(
            lambda module, args, name=name: seen.append(
                (name, slot_of(module).part('motion').scale)
            )
        )
    free_noise = dict(context_length=8, context_stride=4)
    make(editor, video_length=12, free_noise=free_noise, num_inference_steps=1)
    curve = torch.linspace(1, 0, 12)
    expected = [('whole', curve), ('part', curve[:8]), ('part', curve[4:])]
    assert [name for name, _ in seen] == [name for name, _ in expected]
    assert all(
        distance(own, wanted) <= 1e-6 for (_, own), (_, wanted) in zip(seen, expected, strict=True)
    )


def test_layers_of_the_time_embedding_have_the_mean(with_lora: Callable) -> None:
    plain = make(with_lora('time', 0.5))
    assert torch.equal(make(with_lora('time', {0: 1.0, 3: 0.0})), plain)
    assert distance(make(with_lora('time', 1.0)), plain) > 1e-4


def test_parts_with_timelines_of_their_own(with_lora: Callable) -> None:
    whole = make(with_lora('every', {0: 1.0, 3: 0.0}))
    parts = {'unet': {0: 1.0, 3: 0.0}, 'unet.mid_block': 0.4}
    mixed = make(with_lora('every', parts))
    assert distance(whole, mixed) > 1e-4
    again = make(with_lora('every', parts | {'unet.mid_block': {0: 1.0, 3: 0.0}}))
    assert distance(again, whole) <= 1e-6


LAYOUTS = {
    'rows': ((6, 5, 8), nn.Linear(8, 4), lambda x: x.unflatten(0, (2, 3)), lambda y: y),
    'clips': ((2, 3, 5, 8), nn.Linear(8, 4), lambda x: x, lambda y: y),
    'joined': ((2, 15, 8), nn.Linear(8, 4), lambda x: x.unflatten(1, (3, 5)), lambda y: y),
    'pictures': (
        (6, 8, 4, 4),
        nn.Conv2d(8, 4, 3, padding=1),
        lambda x: x.unflatten(0, (2, 3)),
        None,
    ),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts_of_frames(layout: str) -> None:
    shape, layer, clips, _ = LAYOUTS[layout]
    down = torch.randn(2, *layer.weight.shape[1:])
    up = torch.randn(4, 2, *[1] * (layer.weight.ndim - 2))
    x, scales = torch.randn(shape), torch.tensor([1.0, 0.5, -2.0])
    part = LowRank(Pair(down, up, alpha=1.0), layer)
    plain = part(x, layer)
    part.scale = scales[:, None] if layout == 'joined' else scales
    for frame, scale in enumerate(scales):
        one, two = clips(part(x, layer))[:, frame], clips(plain)[:, frame]
        torch.testing.assert_close(one, two * scale)


def test_stable_video_diffusion(tmp_path: Path) -> None:
    """Its temporal blocks see a clip in one row; a LoRA may change every layer."""
    torch.manual_seed(0)
    model = load_config(SVD).model.to_dict()
    bare = MODELS.build(model)
    path = write(tmp_path / 'all.safetensors', bare.unet, 'unet.', lambda name: True)
    editor = MODELS.build(model | dict(adapters=[dict(type='LoRA', from_pretrained=str(path))]))
    image = torch.rand(3, 16, 16)
    call = dict(image=image, height=16, width=16, video_length=3, num_inference_steps=2, seed=0)

    def frames(scale: Any) -> Tensor:
        editor.set_adapters('all', scale)
        return editor.infer(**call, output_type='latent')['latents']

    plain = frames(0.5)
    assert torch.equal(frames({0: 0.5, 2: 0.5}), plain)
    nearly = frames({0: 0.5, 2: 0.5 + 1e-6})
    assert distance(nearly, plain) <= 1e-3 * plain.abs().max()
    assert distance(frames({0: 0.5, 2: 0.0}), plain) > 1e-3


def test_a_recipe_holds_the_timeline(build: Callable, files: dict[str, str]) -> None:
    scale = {0: 1.0, 2: 0.3, 'interpolation': 'step'}
    config = dict(type='LoRA', from_pretrained=files['every'], scale=scale)
    editor = build('AnimateDiff', adapters=[config])
    again = json.loads(json.dumps(editor.adapter_configs()))
    assert torch.equal(make(build('AnimateDiff', adapters=again)), make(editor))


def test_a_config_and_the_recipe_of_its_video(files: dict[str, str], tmp_path: Path) -> None:
    cfg = Config.fromfile(PIA)
    cfg.infer.image = str(PIA.with_name('tiny.png'))
    cfg.infer.guidance_scale = {'steps': {0.0: 3.0, 0.5: 2.0, 'interpolation': 'step'}}
    scale = {'unet': {0: 1.0, 2: 0.3}, 'unet.conv_out': {'steps': {0.0: 1.0, 0.5: 0.0}}}
    cfg.model.adapters = [dict(type='LoRA', from_pretrained=files['pictures'], scale=scale)]
    path = tmp_path / 'with_timelines.py'
    path.write_text(cfg.pretty_text)

    def frames(source: Path, out: Path) -> Tensor:
        inferencer = VideoInferencer(source, device='cpu')
        torch.manual_seed(0)
        inferencer.editor  # noqa: B018
        return inferencer(out, progress=False)['samples']

    first = frames(path, tmp_path / 'a.mp4')
    assert torch.equal(frames(tmp_path / 'a.mp4', tmp_path / 'b.mp4'), first)
    assert any('adapter: LoRA' in line for line in VideoInferencer(path).plan().lines())


# Over steps ---------------------------------------------------------------------------------------


def test_a_scale_for_each_step(with_lora: Callable) -> None:
    editor, seen = with_lora('every', {'steps': {0.0: 1.0, 0.5: 0.25}}), []
    conv = slot_of(editor.unet.conv_in).part('every')
    handle = editor.unet.register_forward_pre_hook(lambda *_: seen.append(conv.scale))
    make(editor, num_inference_steps=4)
    make(with_lora('every', {'steps': {0.0: 1.0, 0.5: 0.25} | STEP}), num_inference_steps=4)
    handle.remove()
    assert seen == [1.0, 0.625, 0.25, 0.25, 1.0, 1.0, 0.25, 0.25]
    assert hooks(editor) == 0


def test_guidance_over_steps(animatediff: Any) -> None:
    plain = make(animatediff, num_inference_steps=4)
    steps = {'steps': {0.0: 3.0}}
    assert torch.equal(make(animatediff, num_inference_steps=4, guidance_scale=steps), plain)
    interval = make(animatediff, num_inference_steps=4, guidance_interval=[0.0, 0.5])
    steps = {'steps': {0.0: 3.0, 0.5: 1.0} | STEP}
    assert torch.equal(make(animatediff, num_inference_steps=4, guidance_scale=steps), interval)
    changing = {'steps': {0.0: 3.0, 0.5: 6.0} | STEP}
    changed = make(animatediff, num_inference_steps=4, guidance_scale=changing)
    assert distance(changed, plain) > 1e-4
    windows = dict(video_length=12, windows=8, guidance_scale=changing)
    assert make(animatediff, **windows).isfinite().all()


def test_guidance_of_each_share() -> None:
    guidance = number_timeline({'steps': {0.0: 9.0, 0.5: 5.0, 1.0: 0.5}}, 'guidance_scale', 4)
    options = Options(4, guidance)
    assert [options.guidance_scale(share=s) for s in (0, 0.25, 0.5)] == [9.0, 7.0, 5.0]
    assert options.guided and options.guides((0.5, 0.75)) and not options.guides((0.95, 1.0))
    assert options.guidance_scale(share=1 - 0.5 - 1e-12) == 5.0


def test_a_control_over_steps(build: Callable, tmp_path: Path) -> None:
    config = dict(
        _class_name='ControlNetModel',
        block_out_channels=[8, 16],
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
        down_block_types=['CrossAttnDownBlock2D', 'DownBlock2D'],
        conditioning_embedding_out_channels=[4, 8],
    )
    net = ControlEncoder(**control_arguments(config))
    save_file(
        {k: v + 0.1 * torch.randn_like(v) for k, v in net.state_dict().items()},
        tmp_path / 'diffusion_pytorch_model.safetensors',
    )
    (tmp_path / 'config.json').write_text(json.dumps(config))
    editor = build('AnimateDiff')
    editor._attach_controls([dict(type='ControlNet', from_pretrained=str(tmp_path))])
    clip = torch.rand(4, 3, 16, 16)
    half = make(editor, control_videos=clip, control_end=0.5, control_scale=0.8)
    steps = {'steps': {0.0: 0.8, 0.5: 0.0} | STEP}
    assert torch.equal(make(editor, control_videos=clip, control_scale=steps), half)
    whole = make(editor, control_videos=clip, control_scale=0.8)
    assert distance(whole, half) > 1e-4
    same = {'steps': {0.2: 0.8}}
    assert torch.equal(make(editor, control_videos=clip, control_scale=same), whole)
    with pytest.raises(InputError, match=r"control_scale\['steps'\]: the key 2.* nearest is 1"):
        make(editor, control_videos=clip, control_scale={'steps': {2: 1.0}})


# What is refused ----------------------------------------------------------------------------------

REFUSED = [
    ({0: 1.0, 'unet': 0.5}, "the key 'unet' is no frame"),
    ({-1: 1.0}, 'the key -1 is no frame.*The nearest is 0'),
    ({0.4: 1.0}, 'the key 0.4 is no frame.*The nearest is 0'),
    ({0: 'a'}, r"every'\[0\]='a': expected a number"),
    ({0: float('nan')}, 'expected a number'),
    ({0: 1.0, 'interpolation': 'liner'}, "Did you mean 'linear'"),
    ({'steps': {0.0: 1.0, 1.5: 0.0}}, 'the key 1.5 is no share of the steps.*The nearest is 1'),
    ({'steps': {0.0: 1.0}, 0: 1.0}, "the key 0 beside 'steps'"),
    ({'steps': 0.5}, "'steps'.=0.5: expected numbers by shares"),
    ({'steps': {0.0: 1.0, 'loop': True}}, "the key 'loop' is no share"),
    ({'unet': {0: 1.0, 'x': 2.0}}, "the key 'x' is no frame"),
]


@pytest.mark.parametrize(('scale', 'words'), REFUSED, ids=str)
def test_refused_before_weights_are_read(
    build: Callable, with_lora: Callable, files: dict[str, str], scale: Any, words: str
) -> None:
    config = dict(type='LoRA', from_pretrained=files['every'], scale=scale)
    with pytest.raises(ConfigError, match=words):
        type(with_lora('every', 1.0)).check_adapters([config])
    editor = with_lora('every', 0.5)
    with pytest.raises(InputError, match=words):
        editor.set_adapters('every', scale)
    assert editor.adapters[0].scale == 0.5


def test_a_key_beyond_the_clip(with_lora: Callable, files: dict[str, str]) -> None:
    words = 'the key 8 lies beyond the clip, whose 4 frames are 0 to 3'
    scale = {0: 1.0, 8: 0.0}
    with pytest.raises(InputError, match=words):
        make(with_lora('every', scale))
    config = dict(type='LoRA', from_pretrained=files['every'], scale=scale)
    with pytest.raises(ConfigError, match=words):
        type(with_lora('every', 1.0)).check_adapters([config], num_frames=4)


def test_not_over_steps(animatediff: Any) -> None:
    for name in ('motion_scale', 'motion_strength'):
        with pytest.raises(InputError, match=f'{name} changes over frames, not over steps'):
            make(animatediff, **{name: {'steps': {0.0: 1.0}}})


def test_not_for_the_text_encoder(build: Callable, files: dict[str, str]) -> None:
    editor = build('AnimateDiff')
    config = dict(type='LoRA', from_pretrained=files['words'], scale={0: 1.0, 2: 0.0})
    for scale in ({0: 1.0, 2: 0.0}, {'text_encoder': {'steps': {0.0: 1.0}}}):
        with pytest.raises(ConfigError, match="changes the text encoder.*'text_encoder': 1.0"):
            editor.add_adapter(config | dict(scale=scale))
    assert editor.adapters == []


def test_not_merged(with_lora: Callable) -> None:
    editor = with_lora('every', {0: 1.0, 2: 0.0})
    with pytest.raises(InputError, match=r"the scale of 'every' changes.*set_adapters\('every'"):
        editor.merge_adapters()
    assert not editor.merged
