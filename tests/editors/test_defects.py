"""What the public pipelines get wrong and no other test here covers: see ``docs/defects.md``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_calls import caller
from torch import Tensor

from mmvideo.checkpoints.motion import read_motion
from mmvideo.checkpoints.save import save_part
from mmvideo.editors.options import read_options
from mmvideo.editors.parts import build_unet, export_motion_adapter, export_unet_config
from mmvideo.errors import InputError
from mmvideo.models.unet import unet_arguments
from mmvideo.models.unet.attention import Attention
from mmvideo.registry import MODELS

ROOT = Path(__file__).parents[2]
FAST = dict(prompt='a car', video_length=4, num_inference_steps=4, guidance_scale=1.0, seed=0)
make = caller(**FAST)


def clip(seed: int = 0) -> Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


# --- sampling -------------------------------------------------------------------------------------


def test_free_init_of_a_video_takes_the_same_timesteps_in_every_round(
    animatediff: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4: the strength was applied again to steps it had shortened already."""
    seen: list[float] = []
    forward = animatediff.unet.forward

    def spy(sample: Tensor, step: Tensor, text: Tensor, **more: Any) -> Tensor:
        seen.append(float(step))
        return forward(sample, step, text, **more)

    monkeypatch.setattr(animatediff.unet, 'forward', spy)
    make(animatediff, video=clip(), strength=0.5)
    plain = list(seen)
    seen.clear()
    make(animatediff, video=clip(), strength=0.5, free_init=dict(num_iters=3))
    assert len(plain) == 2 and seen == plain * 3


def test_free_noise_where_there_are_no_motion_modules(tiny_config: Callable) -> None:
    """8: a model without motion modules failed with an AttributeError."""
    with pytest.raises(InputError, match='free_noise: this model has no motion modules'):
        read_options(dict(free_noise=True), 4, None, 2)
    with pytest.raises(InputError, match="TextToImage takes no 'free_noise'"):
        MODELS.get('TextToImage').check(
            tiny_config('TextToImage'), dict(prompt='a car', free_noise=True)
        )


@pytest.mark.parametrize('frames', [1, 3, 8, 9])
def test_free_noise_of_any_length(animatediff: Any, frames: int) -> None:
    """8: fewer frames than a window were an IndexError."""
    result = make(animatediff, video_length=frames, free_noise=dict(context_length=6))
    assert result.shape[2] == frames and result.isfinite().all()


@pytest.mark.parametrize('middle', [False, True])
def test_free_noise_on_and_off_with_and_without_a_middle(build: Callable, middle: bool) -> None:
    """9: switching it off failed for modules without one in the middle."""
    unet = dict(model_unet(build), motion_mid_block=middle)
    editor = build('AnimateDiff', unet=unet)
    names, plain = list(editor.state_dict()), make(editor)
    assert any('mid_block.motion_modules' in name for name in names) == middle
    for _ in range(2):
        assert make(editor, video_length=10, free_noise=True).isfinite().all()
        assert list(editor.state_dict()) == names and torch.equal(make(editor), plain)


def model_unet(build: Callable) -> dict:
    """The architecture of the tiny editors' denoiser."""
    settings = dict(build('AnimateDiff').unet.settings)
    settings.pop('motion_module')
    return {**settings, 'type': 'VideoUNet'}


def test_loras_and_free_noise_in_any_order(build: Callable, tmp_path: Path) -> None:
    """10: FreeNoise rebuilt the blocks, and the adapters of their layers were lost."""
    editor = build('AnimateDiff')
    file = write_lora(tmp_path / 'zoom.safetensors', editor.unet)
    long = dict(video_length=10, free_noise=dict(context_length=6, context_stride=3))
    plain, plain_long = make(editor), make(editor, **long)
    config = dict(type='LoRA', from_pretrained=str(file), scale=0.5)
    editor.add_adapter(config)
    short, first = make(editor), make(editor, **long)
    assert (short - plain).abs().max() > 1e-4 and (first - plain_long).abs().max() > 1e-4
    assert torch.equal(make(editor), short)
    removed = editor.remove_adapter('zoom')
    assert torch.equal(make(editor, **long), plain_long) and torch.equal(make(editor), plain)
    editor.add_adapter(removed)
    assert torch.equal(make(editor, **long), first)


def write_lora(path: Path, unet: torch.nn.Module) -> Path:
    """A LoRA for every projection of the motion modules' attention."""
    generator, tensors = torch.Generator().manual_seed(3), {}
    for name, layer in unet.named_modules():
        if 'motion_modules' in name and isinstance(layer, torch.nn.Linear) and 'attn' in name:
            rows, columns = layer.weight.shape
            tensors[f'unet.{name}.lora_A.weight'] = torch.randn(2, columns, generator=generator)
            tensors[f'unet.{name}.lora_B.weight'] = torch.randn(rows, 2, generator=generator)
    assert tensors
    save_file(tensors, path)
    return path


def test_keyframes_of_a_prompt_need_no_free_noise(animatediff: Any) -> None:
    """12: without FreeNoise a prompt with keyframes was an AttributeError."""
    changing = make(animatediff, prompt={0: 'a red fish', 3: 'a blue car'})
    assert not torch.equal(changing, make(animatediff, prompt='a red fish'))
    both = make(animatediff, prompt=[{0: 'a red fish', 3: 'a blue car'}, 'a car'])
    assert (both[0] - changing[0]).abs().max() <= 1e-5


# --- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('middle', [False, True])
def test_exported_modules_of_several_layers_are_read_back(
    build: Callable, tmp_path: Path, middle: bool
) -> None:
    """15: saved modules were described as having one layer, and could not be loaded."""
    motion = dict(type='MotionModule', num_attention_heads=2, num_layers=2, max_positions=8)
    unet = dict(model_unet(build), motion_mid_block=middle)
    editor = build('AnimateDiff', unet=unet, motion_module=motion, trainable=['^unet'])
    editor.save_pretrained(tmp_path)
    for part in ('unet', 'motion_adapter'):
        assert (tmp_path / part / 'config.json').is_file()
    save_part(tmp_path / 'whole', export_unet_config(editor.unet), editor.unet)
    whole = build_unet(
        dict(type='VideoUNet', from_pretrained=str(tmp_path), subfolder='whole')
    ).state_dict()
    adapter = read_motion(tmp_path, 'motion_adapter').tensors
    for name, value in editor.unet.state_dict().items():
        assert torch.equal(whole[name], value), name
        if 'motion_modules' in name:
            assert torch.equal(adapter[name], value), name
    again = build_unet(
        image_part(build, tmp_path),
        dict(type='MotionModule', from_pretrained=str(tmp_path), subfolder='motion_adapter'),
    )
    layers = again.down_blocks[0].motion_modules[0].transformer_blocks
    assert len(layers) == 2


def image_part(build: Callable, folder: Path) -> dict:
    image = build('TextToImage').unet
    save_part(folder / 'image', export_unet_config(image), image)
    return dict(type='VideoUNet', from_pretrained=str(folder), subfolder='image')


def test_motion_modules_have_groups_of_their_own(build: Callable, tmp_path: Path) -> None:
    """17: the adapter's number of groups was ignored, and its weights were held twice."""
    motion = dict(type='MotionModule', num_attention_heads=2, norm_num_groups=2, max_positions=8)
    unet = build('AnimateDiff', motion_module=motion).unet
    assert unet.settings['norm_num_groups'] == 4
    config, tensors = export_motion_adapter(unet)
    assert config['motion_norm_num_groups'] == 2
    save_part(tmp_path / 'adapter', config, tensors)
    again = build_unet(
        image_part(build, tmp_path),
        dict(type='MotionModule', from_pretrained=str(tmp_path), subfolder='adapter'),
    )
    module = again.down_blocks[0].motion_modules[0]
    assert module.norm.num_groups == 2 and again.conv_norm_out.num_groups == 4
    names = [name for name, _ in again.named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(names)) == len({id(p) for p in again.parameters()})
    held = [name for name in tensors if not name.endswith('.pe')]
    assert sum('motion_modules' in name for name in names) == len(held)


def test_one_operator_does_all_attention_and_no_setting_is_global(
    animatediff: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """19: a choice of backend reached no layer, and changed the whole process."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry

    flags = ('flash_sdp_enabled', 'mem_efficient_sdp_enabled', 'math_sdp_enabled')

    def state() -> list:
        return [Registry._active_backend, *(getattr(torch.backends.cuda, f)() for f in flags)]

    before, calls = state(), []
    function = torch.nn.functional.scaled_dot_product_attention

    def count(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(args[0].shape)
        return function(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention', count)
    layers = sum(isinstance(module, Attention) for module in animatediff.unet.modules())
    with torch.no_grad():
        animatediff.unet(torch.randn(1, 4, 4, 8, 8), 1, torch.randn(1, 12, 16))
    assert len(calls) == layers > 4
    assert state() == before


def test_pia_of_modules_without_its_convolution(
    build: Callable, tiny_config: Callable, tmp_path: Path
) -> None:
    """20: PIA made of AnimateDiff's parts failed in the middle of a call.

    A training begins like this, so it is no mistake of the config.
    """
    config, tensors = export_motion_adapter(build('AnimateDiff').unet)
    save_part(tmp_path / 'adapter', config, tensors)
    motion = dict(type='MotionModule', from_pretrained=str(tmp_path), subfolder='adapter')
    parts = dict(unet=image_part(build, tmp_path), motion_module=motion)
    torch.manual_seed(0)
    editor = MODELS.build(tiny_config('PIA', **parts)).eval()
    with pytest.raises(InputError, match="channels of conv_in are all zero. Give PIA's own"):
        make(editor, image=clip()[0], motion_scale=1)
    with torch.no_grad():
        editor.unet.conv_in.weight[:, 4:].add_(0.1)
    assert make(editor, image=clip()[0], motion_scale=1).isfinite().all()


def test_no_unusable_argument_and_a_prompt_for_the_clip(animatediff: Any) -> None:
    """24: a mask could not fit, and texts had to be repeated for every frame."""
    unet, sample = animatediff.unet, torch.randn(1, 4, 3, 8, 8)
    text = torch.randn(1, 12, 16)
    with torch.no_grad():
        clip_wise = unet(sample, 1, text)
        frame_wise = unet(sample, 1, text.repeat_interleave(3, dim=0))
        assert (clip_wise - frame_wise).abs().max() <= 1e-5
    with pytest.raises(TypeError, match='attention_mask'):
        unet(sample, 1, text, attention_mask=torch.ones(1, 12))


def test_building_prints_nothing(
    build: Callable, capfd: pytest.CaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    """26: every U-Net was announced with a line about modules to be kept in float32."""
    capfd.readouterr()
    make(build('AnimateDiff'), num_inference_steps=1)
    assert capfd.readouterr() == ('', '')
    assert [str(w.message) for w in recwarn if 'float32' in str(w.message)] == []


_WITHOUT_TORCHVISION = """
import json, sys

sys.modules['torchvision'] = None  # as where it is not installed
from PIL import Image
from mmvideo.models.borrowed import build_image_processor

processor = build_image_processor(from_pretrained=sys.argv[1])
pixels = processor(Image.new('RGB', (9, 7), (255, 128, 0)), return_tensors='pt').pixel_values
print(json.dumps([list(pixels.shape), pixels.mean((0, 2, 3)).tolist()]))
"""


def test_pictures_are_prepared_without_torchvision(tmp_path: Path) -> None:
    """28: without torchvision a class took its place under a name that others cannot load."""
    config = dict(image_processor_type='CLIPImageProcessor', crop_size=6,
                  size={'shortest_edge': 6}, do_rescale=True, rescale_factor=1 / 255,
                  image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5])  # fmt: skip
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(config))
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    done = subprocess.run(
        [sys.executable, '-c', _WITHOUT_TORCHVISION, str(tmp_path)],
        env={**os.environ, 'PYTHONPATH': path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    shape, means = json.loads(done.stdout.splitlines()[-1])
    assert shape == [1, 3, 6, 6]
    assert means == pytest.approx([1.0, 2 * 128 / 255 - 1, -1.0], abs=1e-5)


def test_an_exported_network_says_how_deep_its_modules_are(build: Callable) -> None:
    """15: the config of the whole network, likewise."""
    motion = dict(type='MotionModule', num_attention_heads=2, num_layers=2, max_positions=8)
    unet = build('AnimateDiff', motion_module=motion).unet
    again = unet_arguments(export_unet_config(unet))
    assert again['motion_module']['num_layers'] == 2
