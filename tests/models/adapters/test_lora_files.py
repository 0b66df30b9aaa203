"""LoRA files and models that do not fit, and the layers of the published files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small_loras as small
import torch
from torch import Tensor, nn

from mmvideo.errors import ConfigError, WeightsError
from mmvideo.models.adapters import LoRA, MotionLoRA
from mmvideo.models.adapters.low_rank import slotted_layers


def full_size() -> Any:
    """Stable Diffusion 1.5 with the motion modules of AnimateDiff v2, without memory."""
    from transformers import CLIPTextConfig, CLIPTextModel

    from mmvideo.models.unet import VideoUNet

    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12
    )
    with torch.device('meta'):
        unet = VideoUNet(motion_module=dict(type='MotionModule'), motion_mid_block=True)
        return small.editor(unet, CLIPTextModel(text))


def test_every_layer_of_the_published_files_is_found(tmp_path: Path) -> None:
    """Counts: 336 tensors of v2_lora_*.ckpt, 256 of v3_sd15_adapter.ckpt, 264 layers of kohya."""
    editor = full_size()
    generator = torch.Generator().manual_seed(0)

    def pair(layer: nn.Module) -> tuple[Tensor, Tensor]:
        return small.random_pair(layer, 1, generator)

    motion = small.motion_lora(small.layers_of(editor.unet, small.is_motion), rank=1)
    adapter = {}
    for name, layer in small.layers_of(editor.unet, small.is_attention).items():
        stem = name.removesuffix('.0').replace('.to_', '.processor.to_') + '_lora.'
        adapter[f'{stem}down.weight'], adapter[f'{stem}up.weight'] = pair(layer)
    image = small.layers_of(editor.unet, lambda name: '.attentions.' in name)
    text = small.layers_of(editor.text_encoder, small.is_text)
    text = {'text_model.' + name.removeprefix('text_model.'): m for name, m in text.items()}
    unet = small.kohya(image, 'lora_unet_', rank=1)
    assert (len(motion), len(adapter), len(image), len(text)) == (336, 256, 192, 72)
    torch.save({'state_dict': motion}, tmp_path / 'v2_lora_ZoomIn.ckpt')
    torch.save({'epoch': 1, 'state_dict': adapter}, tmp_path / 'v3_sd15_adapter.ckpt')
    small.write(tmp_path / 'kohya.safetensors', unet, small.kohya(text, 'lora_te_', rank=1))
    zoom = MotionLoRA(tmp_path / 'v2_lora_ZoomIn.ckpt')
    domain = LoRA(tmp_path / 'v3_sd15_adapter.ckpt')
    style = LoRA(tmp_path / 'kohya.safetensors')
    assert [len(lora.pairs) for lora in (zoom, domain, style)] == [168, 128, 264]
    for lora in (zoom, domain, style):
        lora.attach(editor)
    assert len(slotted_layers(editor.unet)) == 168 + 192
    assert len(slotted_layers(editor.text_encoder)) == 72
    name = 'mid_block.attentions.0.transformer_blocks.0.attn2.to_k'
    xl = small.peft({name: nn.Linear(2048, 1280)}, 'unet.')
    with pytest.raises(WeightsError, match=r'for SDXL .*, the model here is Stable Diffusion 1\.x'):
        LoRA(small.write(tmp_path / 'xl.safetensors', xl)).attach(editor)


def test_names_that_match_nothing(tmp_path: Path) -> None:
    _, model = small.unet_pair(False)
    before = small.weights(model)
    layers = small.layers_of(model, small.is_attention)
    more = {f'down_blocks.7.attentions.{i}.proj_in': model.conv_in for i in range(7)}
    path = small.write(tmp_path / 'x.safetensors', small.kohya({**layers, **more}, 'lora_unet_'))
    with pytest.raises(WeightsError) as error:
        LoRA(path).attach(small.editor(model))
    assert f'7 of its {len(layers) + 7} layers are not in this model' in str(error.value)
    assert 'unet.down_blocks.7.attentions.0.proj_in' in str(error.value)
    assert 'and 2 more' in str(error.value)
    assert not slotted_layers(model) and small.unchanged(before, model)


def test_sdxl_on_another_base_names_both(tmp_path: Path) -> None:
    _, model = small.unet_pair(False)
    stem = 'lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k'
    tensors = {
        f'{stem}.lora_down.weight': torch.ones(2, 2048),
        f'{stem}.lora_up.weight': torch.ones(16, 2),
    }
    path = small.write(tmp_path / 'xl.safetensors', tensors)
    with pytest.raises(WeightsError, match=r'LoRA for SDXL \(.*2048\).*here is a model of .* 16'):
        LoRA(path).attach(small.editor(model))
    te2 = {
        f'lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_{way}.weight': torch.ones(2, 2)
        for way in ('down', 'up')
    }
    path = small.write(tmp_path / 'te2.safetensors', te2)
    with pytest.raises(WeightsError, match='text_encoder_2.*It is a LoRA for SDXL'):
        LoRA(path).attach(small.editor(model))


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    _, model = small.unet_pair(False)
    name = 'mid_block.attentions.0.transformer_blocks.0.attn1.to_q'
    tensors = small.peft({name: nn.Linear(24, 16)}, 'unet.')
    path = small.write(tmp_path / 'x.safetensors', tensors)
    with pytest.raises(WeightsError, match=rf'{name} has the weight \[16, 16\].*\[3, 24\]'):
        LoRA(path).attach(small.editor(model))
    convolution = small.kohya({'conv_out': nn.Conv2d(4, 4, 3)}, 'lora_unet_')
    path = small.write(tmp_path / 'y.safetensors', convolution)
    with pytest.raises(WeightsError, match='conv_out has the weight'):  # no leading channels here
        LoRA(path).attach(small.editor(model))


def test_motion_lora_on_the_wrong_model_and_of_the_wrong_kind(tmp_path: Path) -> None:
    _, motion = small.unet_pair(True)
    _, image = small.unet_pair(False)
    zoom = small.write(
        tmp_path / 'zoom.safetensors', small.motion_lora(small.layers_of(motion, small.is_motion))
    )
    with pytest.raises(WeightsError, match='The model here has no motion modules'):
        MotionLoRA(zoom).attach(small.editor(image))
    del motion.mid_block.motion_modules
    with pytest.raises(WeightsError, match='motion modules here are of another version'):
        MotionLoRA(zoom).attach(small.editor(motion))
    style = small.kohya(small.layers_of(image, small.is_attention), 'lora_unet_')
    path = small.write(tmp_path / 'style.safetensors', style)
    with pytest.raises(WeightsError, match="is no MotionLoRA.*use type='LoRA'"):
        MotionLoRA(path)


@pytest.mark.parametrize('key', ['x.hada_w1_a', 'x.dora_scale', 'x.something.weight'])
def test_other_kinds_of_adapters(tmp_path: Path, key: str) -> None:
    _, model = small.unet_pair(False)
    layers = small.layers_of(model, small.is_attention)
    stem = next(iter(small.kohya(layers, 'lora_unet_'))).partition('.')[0]
    tensors = {**small.kohya(layers, 'lora_unet_'), key.replace('x', stem, 1): torch.ones(2)}
    path = small.write(tmp_path / 'x.safetensors', tensors)
    with pytest.raises(WeightsError, match=r'x\.safetensors'):
        LoRA(path)


def test_name_and_missing_file(tmp_path: Path) -> None:
    _, model = small.unet_pair(False)
    tensors = small.kohya(small.layers_of(model, small.is_attention), 'lora_unet_')
    path = small.write(tmp_path / 'My style v1.2.safetensors', tensors)
    assert LoRA(path).name == 'My_style_v1_2'
    assert LoRA(tmp_path, weight_name=path.name, name='a-b').name == 'a-b'
    with pytest.raises(ConfigError, match='letters, digits'):
        LoRA(path, name='a.b')
    with pytest.raises(WeightsError, match='does not exist.*My style'):
        LoRA(tmp_path / 'My styl v1.2.safetensors')
    with pytest.raises(WeightsError, match='pytorch_lora_weights'):
        LoRA(tmp_path)
