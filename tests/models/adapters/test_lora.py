"""LoRA and MotionLoRA at run time: against diffusers and PEFT, and without a trace afterwards."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import small_loras as small
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from small_loras import FRAMES, LENGTH, TEXT
from torch import Tensor, nn

from mmvideo.errors import ConfigError
from mmvideo.models.adapters import LoRA, MotionLoRA
from mmvideo.models.adapters.low_rank import merge, slot_of, slotted_layers, unmerge

ATOL = 1e-5


def run(model: nn.Module, cells: int = small.CELLS) -> Tensor:
    """Ours and diffusers', on the same input: [N*T, C, H, W]."""
    generator = torch.Generator().manual_seed(3)
    ours = hasattr(model, 'max_frames')
    channels = model.in_channels if ours else model.config.in_channels
    sample = torch.randn(2, channels, FRAMES, cells, cells, generator=generator)
    text = torch.randn(2, LENGTH, TEXT, generator=generator)
    time = torch.tensor([7, 801])
    with torch.no_grad():
        if ours:
            return model(sample, time, text).transpose(1, 2).flatten(0, 1)
        frames_text = text.repeat_interleave(FRAMES, 0)
        if hasattr(model.config, 'motion_max_seq_length'):
            return model(sample, time, frames_text).sample.transpose(1, 2).flatten(0, 1)
        flat = sample.transpose(1, 2).flatten(0, 1)
        return model(flat, time.repeat_interleave(FRAMES), frames_text).sample


def load_into_diffusers(reference: Any, tensors: dict[str, Tensor], **more: Any) -> None:
    named, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(dict(tensors), **more)
    StableDiffusionLoraLoaderMixin.load_lora_into_unet(named, alphas, reference)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=ATOL)


def changes(ours: Tensor, base: Tensor) -> None:
    """The change is far above the tolerance, or the comparison says nothing."""
    assert (ours - base).abs().max() > 100 * ATOL


IMAGE_LAYERS = {
    'attention': small.is_attention,
    'locon': lambda name: name != 'conv_norm_out' and 'motion' not in name,
}


@pytest.mark.parametrize('motion', [False, True])
@pytest.mark.parametrize('kind', IMAGE_LAYERS)
def test_kohya_with_alpha_is_that_of_diffusers(tmp_path: Path, kind: str, motion: bool) -> None:
    reference, model = small.unet_pair(motion)
    layers = small.layers_of(model, IMAGE_LAYERS[kind])
    assert any(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in layers.values()) == (
        kind == 'locon'
    )
    tensors = small.kohya(layers, 'lora_unet_', rank=3, alpha=2.0)
    base = run(model)
    lora = LoRA(small.write(tmp_path / 'x.safetensors', tensors), scale=1.0)
    assert {pair.alpha for pair in lora.pairs.values()} == {2.0}
    lora.attach(small.editor(model))
    load_into_diffusers(reference, tensors)
    ours = run(model)
    changes(ours, base)
    assert_close(ours, run(reference))
    lora.set_scale(0.4)
    reference.set_adapters(reference.active_adapters(), 0.4)
    assert_close(run(model), run(reference))


def test_peft_names_without_alpha_mean_the_rank(tmp_path: Path) -> None:
    reference, model = small.unet_pair(True)
    tensors = small.peft(small.layers_of(model, small.is_attention), 'unet.')
    lora = LoRA(small.write(tmp_path / 'x.safetensors', tensors))
    lora.attach(small.editor(model))
    load_into_diffusers(reference, tensors)
    assert_close(run(model), run(reference))
    assert slot_of(model.get_submodule(_first(lora))).active()[0].factor == 1.0


def _first(lora: LoRA) -> str:
    return next(iter(lora.pairs)).partition('.')[2]


def test_alpha_in_the_metadata_of_diffusers(tmp_path: Path) -> None:
    """diffusers writes LoraConfig into the header; a loader that skips it scales wrongly."""
    from peft import LoraConfig

    reference, model = small.unet_pair(False)
    reference.add_adapter(LoraConfig(r=4, lora_alpha=10, target_modules=['to_q', 'to_v']))
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if 'lora_B' in name:
                parameter.normal_()
    reference.save_lora_adapter(tmp_path)
    (file,) = tmp_path.glob('*.safetensors')
    tensors = _read(file)
    metadata = {'lora_adapter_metadata': json.dumps({'unet.lora_alpha': 10, 'unet.r': 4})}
    named = {f'unet.{key}': value for key, value in tensors.items()}
    path = small.write(tmp_path / 'whole.safetensors', named, metadata=metadata)
    LoRA(path).attach(small.editor(model))
    assert_close(run(model), run(reference))


def _read(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


def test_alpha_in_the_config_of_peft(tmp_path: Path) -> None:
    _, model = small.unet_pair(False)
    tensors = small.peft(small.layers_of(model, small.is_attention), 'base_model.model.')
    small.write(tmp_path / 'adapter_model.safetensors', tensors)
    config = dict(r=3, lora_alpha=6, alpha_pattern={'attn1.to_q': 12}, use_rslora=True)
    (tmp_path / 'adapter_config.json').write_text(json.dumps(config))
    lora = LoRA(tmp_path)
    factors = {key: pair.factor for key, pair in lora.pairs.items()}
    for key, factor in factors.items():
        expected = (12 if key.endswith('attn1.to_q') else 6) / 3**0.5
        assert factor == pytest.approx(expected), key


@pytest.mark.parametrize('original', [True, False])
def test_motion_lora_is_that_of_diffusers(tmp_path: Path, original: bool) -> None:
    reference, model = small.unet_pair(True)
    layers = small.layers_of(model, small.is_motion)
    assert any(name.startswith('mid_block.') for name in layers)
    hub = {}  # as on the hub, the only names that diffusers reads
    for name, layer in layers.items():
        stem = 'unet.' + name.removesuffix('.0').replace('.to_', '.processor.to_') + '_lora.'
        generator = torch.Generator().manual_seed(len(hub))
        down, up = small.random_pair(layer, 4, generator)
        hub |= {f'{stem}down.weight': down, f'{stem}up.weight': up}
    file = hub if not original else _as_original(hub)
    base = run(model)
    lora = MotionLoRA(small.write(tmp_path / 'x.safetensors', file), scale=0.7)
    lora.attach(small.editor(model))
    load_into_diffusers(reference, hub)
    reference.set_adapters(reference.active_adapters(), 0.7)
    ours = run(model)
    changes(ours, base)
    assert_close(ours, run(reference))


def _as_original(hub: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in hub.items():
        key = key.removeprefix('unet.').replace('.transformer_blocks.', '.temporal_transformer.X.')
        key = key.replace('X', 'transformer_blocks')
        key = key.replace('.attn1.', '.attention_blocks.0.').replace(
            '.attn2.', '.attention_blocks.1.'
        )
        renamed[key] = value
    return renamed


def test_text_encoder_is_that_of_peft(tmp_path: Path) -> None:
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    ours, theirs = small.text_encoder(), small.text_encoder()
    layers = small.layers_of(ours, small.is_text)
    pairs = small.peft(layers, '')
    stem = 'text_model.' if not next(iter(layers)).startswith('text_model.') else ''
    tensors = small.kohya(
        {stem + name: layer for name, layer in layers.items()}, 'lora_te_', rank=3, alpha=1.5
    )
    ids = torch.randint(0, 997, (2, 9), generator=torch.Generator().manual_seed(0))
    base = ours(ids).last_hidden_state
    _, unet = small.unet_pair(False)
    LoRA(small.write(tmp_path / 'x.safetensors', tensors)).attach(small.editor(unet, ours))
    config = LoraConfig(r=3, lora_alpha=1.5, target_modules=list(layers))
    inject_adapter_in_model(config, theirs)
    left = set_peft_model_state_dict(theirs, {f'base_model.model.{k}': v for k, v in pairs.items()})
    assert not left.unexpected_keys
    changes(ours(ids).last_hidden_state, base)
    assert_close(ours(ids).last_hidden_state, theirs(ids).last_hidden_state)


def three_loras(folder: Path, model: nn.Module, encoder: nn.Module) -> list[LoRA]:
    """A kohya LoRA of both parts, a LoCon, and a MotionLoRA; all change shared layers."""
    text = small.layers_of(encoder, small.is_text)
    images = small.layers_of(model, small.is_attention)
    both = small.kohya({'text_model.' + n: m for n, m in text.items()}, 'lora_te_', seed=1)
    style = small.write(
        folder / 'style.safetensors', both, small.kohya(images, 'lora_unet_', seed=2)
    )
    convs = small.layers_of(model, IMAGE_LAYERS['locon'])
    locon = small.write(folder / 'locon.safetensors', small.kohya(convs, 'lora_unet_', seed=3))
    motion = small.layers_of(model, small.is_motion)
    zoom = small.write(folder / 'zoom.safetensors', small.motion_lora(motion))
    return [LoRA(style, 0.8), LoRA(locon, 0.5), MotionLoRA(zoom, 1.2)]


def test_a_hundred_random_orders_leave_no_trace(tmp_path: Path) -> None:
    _, model = small.unet_pair(True)
    editor = small.editor(model)
    loras = three_loras(tmp_path, model, editor.text_encoder)
    before, base = small.weights(model, editor.text_encoder), run(model)
    names = [name for name, _ in model.named_modules()]
    chance = random.Random(0)
    together = None
    for turn in range(100):
        for lora in chance.sample(loras, 3):
            lora.attach(editor)
            assert small.unchanged(before, model, editor.text_encoder)
        if turn % 20 == 0:
            result = run(model)
            assert together is None or torch.equal(result, together)  # whatever the order
            together = result
        if turn % 10 == 5:
            _merge_and_unmerge(model, editor.text_encoder)
        for lora in chance.sample(loras, 3):
            lora.detach(editor)
    assert small.unchanged(before, model, editor.text_encoder)
    assert [name for name, _ in model.named_modules()] == names
    assert not slotted_layers(model) and not slotted_layers(editor.text_encoder)
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(run(model), base)
    changes(together, base)


def _merge_and_unmerge(*models: nn.Module) -> None:
    layers = [layer for model in models for layer in slotted_layers(model)]
    for layer in layers:
        merge(layer)
    for layer in layers:
        unmerge(layer)


def test_merged_is_the_same_as_beside(tmp_path: Path) -> None:
    _, model = small.unet_pair(True)
    editor = small.editor(model)
    for lora in three_loras(tmp_path, model, editor.text_encoder):
        lora.attach(editor)
    before, beside = small.weights(model), run(model)
    layers = slotted_layers(model)
    for layer in layers:
        merge(layer)
    assert not any(module._forward_hooks for module in model.modules())  # nothing left to compute
    assert not small.unchanged(before, model)
    assert_close(run(model), beside)
    for layer in layers:
        unmerge(layer)
    assert small.unchanged(before, model)
    assert torch.equal(run(model), beside)


def test_tucker_form_beside_and_merged(tmp_path: Path) -> None:
    _, model = small.unet_pair(False)
    name = 'down_blocks.0.resnets.0.conv1'
    stem = 'lora_unet_' + name.replace('.', '_')
    channels = model.get_submodule(name).weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    shapes = dict(down=(3, channels, 1, 1), mid=(3, 3, 3, 3), up=(channels, 3, 1, 1))
    tensors = {
        f'{stem}.lora_{key}.weight': torch.randn(shape, generator=generator) * 0.3
        for key, shape in shapes.items()
    }
    base = run(model)
    LoRA(small.write(tmp_path / 'x.safetensors', tensors)).attach(small.editor(model))
    beside = run(model)
    changes(beside, base)
    for layer in slotted_layers(model):
        merge(layer)
    assert_close(run(model), beside)


def test_joint_projection_of_the_trunk_sees_the_lora(tmp_path: Path) -> None:
    """Many places for few channels: there the trunk multiplies q, k and v by one joint weight."""
    reference, model = small.unet_pair(True)
    attention = model.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    with torch.no_grad():
        assert attention._one_product_is_cheaper(torch.zeros(2 * FRAMES, 16 * 16, 8))
        lora = LoRA(
            small.write(
                tmp_path / 'x.safetensors',
                small.kohya(small.layers_of(model, small.is_attention), 'lora_unet_'),
            )
        )
        lora.attach(small.editor(model))
        assert not attention._one_product_is_cheaper(torch.zeros(2 * FRAMES, 16 * 16, 8))
    load_into_diffusers(reference, _read(lora.path))
    assert_close(run(model, 16), run(reference, 16))
    lora.set_scale(0.0)
    with torch.no_grad():
        assert attention._one_product_is_cheaper(torch.zeros(2 * FRAMES, 16 * 16, 8))


def test_scales_of_blocks(tmp_path: Path) -> None:
    _, model = small.unet_pair(False)
    editor = small.editor(model)
    tensors = small.kohya(small.layers_of(model, small.is_attention), 'lora_unet_')
    path = small.write(tmp_path / 'x.safetensors', tensors)
    only_up = {
        key: value for key, value in tensors.items() if key.startswith('lora_unet_up_blocks')
    }
    part = LoRA(small.write(tmp_path / 'up.safetensors', only_up), scale=0.3)
    part.attach(editor)
    expected = run(model)
    part.detach(editor)
    whole = LoRA(path, scale={'unet': 0, 'unet.up_blocks': 0.3})
    whole.attach(editor)
    assert torch.equal(run(model), expected)
    whole.set_scale({'unet.down_blocks': 0.0, 'unet.mid_block': 0.0})
    part.set_scale(1.0)
    ours = run(model)
    whole.detach(editor)
    part.attach(editor)
    assert torch.equal(run(model), ours)
    with pytest.raises(ConfigError, match=r"nothing in 'unet.up_block'.*'unet.up_blocks'"):
        whole.set_scale({'unet.up_block': 1.0})
    for bad in (True, 'much', float('nan'), {'unet': None}):
        with pytest.raises(ConfigError, match='expected a finite number'):
            whole.set_scale(bad)


def test_conv_in_of_pia_takes_the_first_channels(tmp_path: Path) -> None:
    _, plain = small.unet_pair(True)
    _, pia = small.unet_pair(True, channels=9)
    tensors = small.kohya(small.layers_of(plain, lambda name: name == 'conv_in'), 'lora_unet_')
    lora = LoRA(small.write(tmp_path / 'x.safetensors', tensors))
    lora.attach(small.editor(pia))
    x = torch.randn(2, 9, 8, 8)
    with_lora = pia.conv_in(x)
    lora.set_scale(0.0)
    base = pia.conv_in(x)
    lora.set_scale(1.0)
    lora.detach(small.editor(pia))
    lora.attach(small.editor(plain))
    change = plain.conv_in(x[:, :4]) - plain.conv_in._conv_forward(
        x[:, :4], plain.conv_in.weight, plain.conv_in.bias
    )
    assert_close(with_lora - base, change)
    lora.detach(small.editor(plain))
    lora.attach(small.editor(pia))
    beside = pia.conv_in(x)
    merge(pia.conv_in)
    assert_close(pia.conv_in(x), beside)


def test_another_precision_and_a_copy_of_the_model(tmp_path: Path) -> None:
    _, model = small.unet_pair(True)
    editor = small.editor(model)
    for lora in three_loras(tmp_path, model, editor.text_encoder):
        lora.attach(editor)
    twin = copy.deepcopy(model)
    assert torch.equal(run(twin), run(model))
    before = run(model)
    for layer in slotted_layers(twin):
        slot_of(layer).parts.clear()
    assert torch.equal(run(model), before)  # the copy has its own
    model.double()
    assert all(
        p.down.dtype == torch.float64 for m in slotted_layers(model) for p in slot_of(m).active()
    )


def test_gradients_pass_through_a_frozen_lora(tmp_path: Path) -> None:
    """The domain adapter of AnimateDiff v3 stays on while motion modules are trained."""
    _, model = small.unet_pair(True)
    layers = small.layers_of(model, small.is_attention)
    path = small.write(tmp_path / 'x.safetensors', small.peft(layers, 'unet.'))
    LoRA(path).attach(small.editor(model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_('motion_modules' in name)
    sample = torch.randn(1, 4, FRAMES, 8, 8)
    model(sample, 7, torch.randn(1, LENGTH, TEXT)).square().mean().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None for p in trained)
    assert not any('lora' in name or 'low_rank' in name for name, _ in model.named_parameters())
