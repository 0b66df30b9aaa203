"""LoRA, IP-Adapter and textual inversion through diffusers' names for them, within 1e-4."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs_of_pipelines import Both, call, parts, seeded
from safetensors.torch import save_file
from torch import Tensor, nn

from mmvideo.errors import InputError
from mmvideo.pipelines import AnimateDiffPipeline

sys.path.insert(0, str(Path(__file__).parents[1] / 'models' / 'adapters'))

import small_ip_adapters as ip
import small_loras as lora

# Channels of the cross-attention layers of the small denoiser: down, up, middle.
LAYERS = [8, 8, 8, 8, 8, 16]


def layers(model: nn.Module, wanted: Callable[[str], bool]) -> dict[str, nn.Module]:
    return lora.layers_of(model, wanted)


def write_lora(pair: Both, path: Path, seed: int, motion: bool = False) -> Path:
    """Image layers and the text encoder, or motion modules."""
    unet, text = pair.theirs.unet, pair.theirs.text_encoder
    if motion:
        groups = [lora.peft(layers(unet, lora.is_motion), 'unet.', seed=seed)]
    else:
        groups = [
            lora.peft(layers(unet, lora.is_attention), 'unet.', seed=seed),
            lora.peft(layers(text, lora.is_text), 'text_encoder.', seed=seed),
        ]
    return lora.write(path, *groups)


@pytest.fixture
def pair(make: Callable) -> Iterator[Both]:
    """AnimateDiff, without adapters before and after."""
    both = make('v2')
    yield both
    for pipeline in both:
        pipeline.unload_lora_weights()


def frames(pipeline: Any, **changes: Any) -> Tensor:
    return pipeline(**call(**changes), generator=seeded(11), output_type='pt').frames


def test_loras(pair: Both, tmp_path: Path) -> None:
    plain = frames(pair.ours)
    paths = [
        write_lora(pair, tmp_path / 'a.safetensors', 1),
        write_lora(pair, tmp_path / 'b.safetensors', 2, motion=True),
    ]
    for pipeline in pair:
        pipeline.load_lora_weights(str(paths[0]), adapter_name='a')
    changed = pair.compare(**call())
    assert (changed - plain).abs().max() > 1e-3
    pair.compare(**call(cross_attention_kwargs={'scale': 0.4}))
    pair.theirs._lora_scale = 1.0  # diffusers would scale every LoRA that is loaded later
    for pipeline in pair:
        pipeline.load_lora_weights(str(tmp_path), weight_name='b.safetensors', adapter_name='b')
    assert pair.ours.get_active_adapters() == ['a', 'b']  # they share no layer
    for pipeline in pair:
        pipeline.set_adapters(['a', 'b'], [0.5, 0.7])
    assert sorted(pair.ours.get_active_adapters()) == ['a', 'b']
    found = pair.ours.get_list_adapters()
    expected = pair.theirs.get_list_adapters()
    assert {k: sorted(v) for k, v in found.items()} == {k: sorted(v) for k, v in expected.items()}
    both = pair.compare(**call())
    for pipeline in pair:
        pipeline.delete_adapters('b')
    assert (pair.compare(**call()) - both).abs().max() > 1e-3
    for pipeline in pair:
        pipeline.unload_lora_weights()
    assert torch.equal(frames(pair.ours), plain)


def test_the_newest_of_two_loras(pair: Both, tmp_path: Path) -> None:
    # Both are written before one is loaded, as diffusers renames the layers it changes.
    paths = {n: write_lora(pair, tmp_path / f'{n}.safetensors', i) for i, n in enumerate('ab')}
    for name, path in paths.items():
        for pipeline in pair:
            pipeline.load_lora_weights(str(path), adapter_name=name)
    assert pair.ours.get_active_adapters() == pair.theirs.get_active_adapters() == ['b']
    pair.compare(**call())


def test_weights_by_block(pair: Both, tmp_path: Path) -> None:
    path = write_lora(pair, tmp_path / 'a.safetensors', 1)
    weights = {
        'text_encoder': 0.3,
        'unet': {'down': 0.9, 'mid': 0.2, 'up': {'block_1': [0.1, 0.5, 0.9]}},
    }
    for pipeline in pair:
        pipeline.load_lora_weights(str(path), adapter_name='a')
        pipeline.set_adapters('a', weights)
    by_block = pair.compare(**call())
    pair.ours.set_adapters('a', 0.9)
    assert (frames(pair.ours) - by_block).abs().max() > 1e-3
    with pytest.raises(InputError, match="no side 'dwn'.*Did you mean 'down'"):
        pair.ours.set_adapters('a', {'unet': {'dwn': 1.0}})


def test_a_lora_that_changes_over_the_frames(pair: Both, tmp_path: Path) -> None:
    """Which diffusers cannot do; a factor of the call goes on it too."""
    pair.ours.load_lora_weights(write_lora(pair, tmp_path / 'a.safetensors', 1), adapter_name='a')
    curve = {0: 0.0, 3: 1.0, 'interpolation': 'ease-in'}
    pair.ours.set_adapters('a', {'unet': curve, 'text_encoder': 0.8})
    assert pair.ours.get_active_adapters() == ['a']
    halved = frames(pair.ours, cross_attention_kwargs={'scale': 0.5})
    [adapter] = pair.ours._loras()
    assert adapter.scale == {'unet': curve, 'text_encoder': 0.8}
    curve = {0: 0.0, 3: 0.5, 'interpolation': 'ease-in'}
    pair.ours.set_adapters('a', {'unet': curve, 'text_encoder': 0.4})
    assert torch.equal(frames(pair.ours), halved)


def test_fused_loras(pair: Both, tmp_path: Path) -> None:
    plain = frames(pair.ours)
    path = write_lora(pair, tmp_path / 'a.safetensors', 1)
    weight = pair.ours.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight
    before = weight.detach().clone()
    pair.ours.load_lora_weights(path)
    pair.ours.set_adapters('default_0', 0.6)
    beside = frames(pair.ours)
    pair.ours.fuse_lora(safe_fusing=True)
    assert not torch.equal(weight, before)
    assert (frames(pair.ours) - beside).abs().max() <= 1e-4
    with pytest.raises(InputError, match='the LoRAs are fused'):
        frames(pair.ours, cross_attention_kwargs={'scale': 0.5})
    pair.ours.unfuse_lora()
    assert torch.equal(weight, before) and torch.equal(frames(pair.ours), beside)
    pair.ours.fuse_lora(lora_scale=0.5, components=['unet', 'text_encoder'])
    half = frames(pair.ours)
    pair.ours.unload_lora_weights()  # as with diffusers, what was fused stays
    assert torch.equal(frames(pair.ours), half) and not pair.ours.get_list_adapters()
    assert (half - beside).abs().max() > 1e-3
    pair.theirs.load_lora_weights(str(path), adapter_name='a')
    pair.theirs.set_adapters('a', 0.3)
    assert (frames(pair.theirs) - half).abs().max() <= 1e-4
    fresh = AnimateDiffPipeline.from_pretrained(pair.folder).components
    for name in ('unet', 'text_encoder'):
        getattr(pair.ours, name).load_state_dict(fresh[name].state_dict())
    assert torch.equal(frames(pair.ours), plain)


def test_a_lora_of_tensors_is_saved_and_read(pair: Both, tmp_path: Path) -> None:
    path = write_lora(pair, tmp_path / 'a.safetensors', 1)
    pair.ours.load_lora_weights(path)
    expected = frames(pair.ours)
    pair.ours.unload_lora_weights()
    unet = lora.peft(layers(pair.theirs.unet, lora.is_attention), '', seed=1)
    text = lora.peft(layers(pair.theirs.text_encoder, lora.is_text), '', seed=1)
    AnimateDiffPipeline.save_lora_weights(tmp_path / 'saved', unet, text)
    for pipeline in pair:
        pipeline.load_lora_weights(str(tmp_path / 'saved'))
    assert torch.equal(frames(pair.ours), expected)
    pair.compare(**call())
    pair.ours.unload_lora_weights()
    named = {f'unet.{k}': v for k, v in unet.items()}
    named |= {f'text_encoder.{k}': v for k, v in text.items()}
    pair.ours.load_lora_weights(named)
    assert torch.equal(frames(pair.ours), expected)


def test_other_pipelines_have_the_same_adapters(pair: Both, tmp_path: Path) -> None:
    from mmvideo.pipelines import AnimateDiffVideoToVideoPipeline

    pair.ours.load_lora_weights(write_lora(pair, tmp_path / 'a.safetensors', 1), adapter_name='a')
    other = AnimateDiffVideoToVideoPipeline.from_pipe(pair.ours)
    assert other.get_active_adapters() == ['a']
    other.disable_lora()
    assert pair.ours.get_active_adapters() == []
    other.enable_lora()
    assert pair.ours.get_active_adapters() == ['a']


def write_ip(folder: Path, seed: int) -> Path:
    tensors = ip.adapter_tensors('plain', seed, layers=LAYERS, text=parts.TEXT)
    path = folder / f'ip_{seed}.safetensors'
    save_file(tensors, path)
    return path


def test_an_ip_adapter_with_pictures(pair: Both, tmp_path: Path) -> None:
    path = write_ip(tmp_path, 0)
    ip.write_encoder(tmp_path)
    picture = ip_picture()
    plain = frames(pair.ours)
    for pipeline in pair:
        pipeline.load_ip_adapter(str(tmp_path), subfolder='', weight_name=path.name)
        pipeline.set_ip_adapter_scale(0.7)
    try:
        seen = pair.compare(**call(ip_adapter_image=picture))
        assert (seen - plain).abs().max() > 1e-3
        assert pair.ours.image_encoder is not None and pair.ours.feature_extractor is not None
        mask = torch.zeros(1, 1, parts.SIZE, parts.SIZE)
        mask[..., : parts.SIZE // 2] = 1
        masked = dict(cross_attention_kwargs={'ip_adapter_masks': [mask]})
        half = pair.compare(**call(ip_adapter_image=[[picture]], **masked))
        assert (half - seen).abs().max() > 1e-3
    finally:
        for pipeline in pair:
            pipeline.unload_ip_adapter()
    pair.theirs.image_encoder = None
    assert torch.equal(frames(pair.ours), plain)


def ip_picture() -> Any:
    from PIL import Image

    values = torch.randint(0, 256, (16, 16, 3), generator=seeded(4), dtype=torch.uint8)
    return Image.fromarray(values.numpy())


def test_two_ip_adapters_with_embeddings(pair: Both, tmp_path: Path) -> None:
    paths = [write_ip(tmp_path, seed) for seed in (0, 1)]
    embeds = [torch.randn(2, 1, ip.PROJECTED, generator=seeded(seed)) for seed in (5, 6)]
    for pipeline in pair:
        pipeline.load_ip_adapter(
            [str(tmp_path)] * 2,
            subfolder=['', ''],
            weight_name=[path.name for path in paths],
            image_encoder_folder=None,
        )
        pipeline.set_ip_adapter_scale([0.5, {'up': {'block_1': [0.0, 1.0, 0.3]}}])
    try:
        pair.compare(**call(ip_adapter_image_embeds=embeds))
        with pytest.raises(InputError, match='3 scales for 2 IP-Adapters'):
            pair.ours.set_ip_adapter_scale([1.0, 1.0, 1.0])
    finally:
        for pipeline in pair:
            pipeline.unload_ip_adapter()


def test_a_word_of_several_vectors(pair: Both, tmp_path: Path) -> None:
    # Of its own, as diffusers forgets only the first of a word's vectors.
    pair = Both(pair.folder, type(pair.theirs).from_pretrained(pair.folder), pair.ours)
    path = tmp_path / 'word.safetensors'
    save_file({'emb_params': torch.randn(2, parts.TEXT, generator=seeded(1))}, path)
    plain = frames(pair.ours, prompt='a <cat> moving left')
    for pipeline in pair:
        pipeline.load_textual_inversion(str(path), token='<cat>')
    try:
        taught = pair.compare(**call(prompt='a <cat> moving left'))
        assert (taught - plain).abs().max() > 1e-3
    finally:
        for pipeline in pair:
            pipeline.unload_textual_inversion('<cat>')
    assert torch.equal(frames(pair.ours, prompt='a <cat> moving left'), plain)
    with pytest.raises(InputError, match="there is no word '<dog>'"):
        pair.ours.unload_textual_inversion('<dog>')
