"""IP-Adapter's network against diffusers, with the same files of random weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import small_ip_adapters as small
import torch
from diffusers.models.unets.unet_motion_model import UNetMotionModel
from small_ip_adapters import FRAMES, KINDS, TEXT, WORDS
from torch import Tensor, nn

from mmvideo.checkpoints.catalog import place
from mmvideo.errors import ConfigError, InputError, WeightsError
from mmvideo.models.adapters import IPAdapter
from mmvideo.models.adapters.cross_attention import check_scale, cross_attentions, is_silent
from mmvideo.models.adapters.image_projection import projection_of
from mmvideo.models.adapters.ip_adapter import join_keys
from mmvideo.models.unet import VideoUNet

ATOL = 1e-5
SIZE = (8, 8)


def read(path: Path, **keys: Any) -> IPAdapter:
    return IPAdapter(path, image_encoder=None, **keys)


def inputs(clips: int = 2, size: tuple[int, int] = SIZE) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(clips, 4, FRAMES, *size, generator=generator)
    text = torch.randn(clips, WORDS, TEXT, generator=generator)
    return sample, torch.tensor([7, 801])[:clips], text


def run_reference(
    reference: nn.Module, embeds: list[Tensor], masks: list[Tensor] | None = None, size: Any = SIZE
) -> Tensor:
    """diffusers' result as [N, C, T, H, W]; ``embeds`` [N, I, ...], one for each adapter."""
    sample, time, text = inputs(size=size)
    extra = {} if masks is None else {'cross_attention_kwargs': {'ip_adapter_masks': masks}}
    if isinstance(reference, UNetMotionModel):
        text = text.repeat_interleave(FRAMES, 0)
        return reference(
            sample, time, text, added_cond_kwargs={'image_embeds': embeds}, **extra
        ).sample
    pictures = sample.transpose(1, 2).flatten(0, 1)
    every = [e.repeat_interleave(FRAMES, 0) for e in embeds]
    return (
        reference(
            pictures,
            time.repeat_interleave(FRAMES),
            text.repeat_interleave(FRAMES, 0),
            added_cond_kwargs={'image_embeds': every},
            **extra,
        )
        .sample.unflatten(0, (2, FRAMES))
        .transpose(1, 2)
    )


def run(model: VideoUNet, images: Any = None, size: tuple[int, int] = SIZE) -> Tensor:
    sample, time, text = inputs(size=size)
    return model(sample, time, text, images=images)


def keys(adapter: IPAdapter, model: VideoUNet, features: Tensor, **settings: Any) -> Any:
    return adapter.image_keys(model, adapter.tokens(features), size=SIZE, **settings)


@pytest.fixture(scope='module')
def motion() -> Any:
    return small.motion_pair()


@pytest.fixture
def pair(motion: Any) -> tuple[UNetMotionModel, VideoUNet]:
    """diffusers' changes when an adapter is loaded, ours must not."""
    reference, model = motion
    return copy.deepcopy(reference), model


@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_projection(kind: str, tmp_path: Path) -> None:
    """The tokens alone."""
    tensors = small.adapter_tensors(kind)
    reference = copy.deepcopy(small.image_pair()[0])
    small.give_reference(reference, [tensors], 1.0)
    seen = small.features(kind, pictures=2)
    theirs = reference.encoder_hid_proj([seen[:, 0]])[0]
    ours = read(small.write_adapter(tmp_path, kind)).tokens(seen)[:, 0]
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= ATOL


@pytest.mark.parametrize('pictures', [1, 2])
@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_video_network(kind: str, pictures: int, pair: Any, tmp_path: Path) -> None:
    reference, model = pair
    small.give_reference(reference, [small.adapter_tensors(kind)], 0.7)
    seen = small.features(kind, pictures)
    theirs = run_reference(reference, [seen[:, 0]])
    adapter = read(small.write_adapter(tmp_path, kind), scale=0.7)
    ours = run(model, keys(adapter, model, seen))
    assert (ours - theirs).abs().max() <= ATOL
    assert (ours - run(model)).abs().max() > 1e-2  # the pictures do matter


@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_image_network(kind: str, tmp_path: Path) -> None:
    reference, model = small.image_pair()
    small.give_reference(reference, [small.adapter_tensors(kind)], 1.0)
    seen = small.features(kind, 1)
    theirs = run_reference(reference, [seen[:, 0]])
    ours = run(model, keys(read(small.write_adapter(tmp_path, kind)), model, seen))
    assert (ours - theirs).abs().max() <= ATOL


@torch.no_grad()
def test_two_adapters(pair: Any, tmp_path: Path) -> None:
    reference, model = pair
    small.give_reference(
        reference,
        [small.adapter_tensors('plain', 0), small.adapter_tensors('plus', 1)],
        [0.5, -0.8],
    )
    seen = [small.features('plain', 1), small.features('plus', 2)]
    theirs = run_reference(reference, [s[:, 0] for s in seen])
    adapters = [
        read(small.write_adapter(tmp_path, 'plain', 0), scale=0.5),
        read(small.write_adapter(tmp_path, 'plus', 1), scale=-0.8),
    ]
    parts = [keys(a, model, s) for a, s in zip(adapters, seen, strict=True)]
    assert (run(model, join_keys(parts)) - theirs).abs().max() <= ATOL


@pytest.mark.parametrize('size', [(8, 8), (8, 16)])
@pytest.mark.parametrize('scale', [0.9, [0.5, 1.2]])
@torch.no_grad()
def test_masks(scale: Any, size: tuple[int, int], pair: Any, tmp_path: Path) -> None:
    reference, model = pair
    small.give_reference(reference, [small.adapter_tensors('plain')], [scale])
    masks = torch.zeros(1, 2, 8 * size[0], 8 * size[1])
    masks[:, 0, :, : 3 * size[1]] = 1
    masks[:, 1, 2 * size[0] :, 4 * size[1] :] = 1
    seen = small.features('plain', 2)
    theirs = run_reference(reference, [seen[:, 0]], [masks], size)
    adapter = read(small.write_adapter(tmp_path, 'plain'))
    tokens = adapter.tokens(seen)
    ours = adapter.image_keys(model, tokens, scale, masks[0][:, None], size)
    assert (run(model, ours, size) - theirs).abs().max() <= ATOL
    assert (run(model, keys(adapter, model, seen), size) - theirs).abs().max() > 1e-2


@pytest.mark.parametrize(
    'scale',
    [
        {'up': {'block_1': [0.0, 1.0, 0.5]}},
        {'down': {'block_1': [0.3, 1.0]}, 'up': 0.5},
        {'down': 1.0, 'mid': 0.4},
        {'up': [0.1, 0.2, 0.3], 'mid': [0.7]},
    ],
)
@torch.no_grad()
def test_scale_by_block(scale: dict, pair: Any, tmp_path: Path) -> None:
    reference, model = pair
    small.give_reference(reference, [small.adapter_tensors('plain')], [scale])
    seen = small.features('plain', 1)
    theirs = run_reference(reference, [seen[:, 0]])
    adapter = read(small.write_adapter(tmp_path, 'plain'))
    check_scale(scale, cross_attentions(model))
    ours = run(model, keys(adapter, model, seen, scale=scale))
    assert (ours - theirs).abs().max() <= ATOL
    assert (ours - run(model, keys(adapter, model, seen))).abs().max() > 1e-3


@torch.no_grad()
def test_frames_with_one_picture_are_the_clip_with_it(motion: Any, tmp_path: Path) -> None:
    model, adapter = motion[1], read(small.write_adapter(tmp_path, 'plus'))
    shared = small.features('plus', 2)
    each = shared.expand(-1, FRAMES, -1, -1, -1)
    whole = run(model, keys(adapter, model, shared))
    assert (run(model, keys(adapter, model, each)) - whole).abs().max() <= ATOL


@torch.no_grad()
def test_every_frame_sees_its_own_picture(tmp_path: Path) -> None:
    """Without motion modules frames know nothing of each other, so each equals its own clip."""
    model, adapter = small.image_pair()[1], read(small.write_adapter(tmp_path, 'plain'))
    seen = small.features('plain', 1, frames=FRAMES)
    together = run(model, keys(adapter, model, seen))
    for frame in range(FRAMES):
        alone = run(model, keys(adapter, model, seen[:, frame : frame + 1]))
        assert (together[:, :, frame] - alone[:, :, frame]).abs().max() <= ATOL
    assert (together - alone).abs().max() > 1e-2


@torch.no_grad()
def test_a_mask_by_frame(tmp_path: Path) -> None:
    """The picture counts in the first frame only."""
    model, adapter = small.image_pair()[1], read(small.write_adapter(tmp_path, 'plain'))
    seen = small.features('plain', 1)
    masks = torch.zeros(1, FRAMES, 64, 64)
    masks[:, 0] = 1
    ours = run(model, keys(adapter, model, seen, masks=masks))
    with_picture, without = run(model, keys(adapter, model, seen)), run(model)
    assert (ours[:, :, 0] - with_picture[:, :, 0]).abs().max() <= ATOL
    assert (ours[:, :, 1:] - without[:, :, 1:]).abs().max() <= ATOL
    assert (with_picture - without)[:, :, 1:].abs().max() > 1e-2


@torch.no_grad()
def test_a_part_of_the_clip(tmp_path: Path) -> None:
    """``select`` gives the frames of a window what they had in the whole clip."""
    model, adapter = small.image_pair()[1], read(small.write_adapter(tmp_path, 'plain'))
    seen = small.features('plain', 2, frames=FRAMES)
    masks = torch.rand(2, FRAMES, 64, 64, generator=torch.Generator().manual_seed(2)).round()
    images = keys(adapter, model, seen, masks=masks)
    sample, time, text = inputs()
    whole = model(sample, time, text, images=images)
    frames = torch.tensor([2, 0])
    part = {m: [k.select(frames) for k in found] for m, found in images.items()}
    ours = model(sample[:, :, frames], time, text, images=part)
    assert (ours - whole[:, :, frames]).abs().max() <= ATOL


@torch.no_grad()
def test_with_a_prompt_a_frame(motion: Any, tmp_path: Path) -> None:
    """Prompts and pictures change over the frames independently of each other."""
    model, adapter = motion[1], read(small.write_adapter(tmp_path, 'plain'))
    sample, time, text = inputs()
    images = keys(adapter, model, small.features('plain', 1))
    each = model(sample, time, text.repeat_interleave(FRAMES, 0), images=images)
    assert (each - model(sample, time, text, images=images)).abs().max() <= ATOL


@torch.no_grad()
def test_samples_share_the_pictures(motion: Any, tmp_path: Path) -> None:
    """Two clips a half: rows are the halves of all clips, the unguided first."""
    model, adapter = motion[1], read(small.write_adapter(tmp_path, 'plain'))
    seen = small.features('plain', 1, frames=FRAMES)
    sample, time, text = (x.repeat_interleave(2, 0) for x in inputs())
    sample = sample + torch.tensor([0.0, 0.3, 0.0, 0.3])[:, None, None, None, None]
    ours = model(sample, time, text, images=keys(adapter, model, seen, samples=2))
    for clip in range(2):
        one = slice(clip, None, 2)
        alone = model(sample[one], time[one], text[one], images=keys(adapter, model, seen))
        assert (ours[one] - alone).abs().max() <= ATOL


@torch.no_grad()
def test_a_layer_without_scale_costs_nothing(motion: Any, tmp_path: Path) -> None:
    model, adapter = motion[1], read(small.write_adapter(tmp_path, 'plain'))
    seen = small.features('plain', 1)
    found = keys(adapter, model, seen, scale={'mid': 1.0})
    assert list(found) == [model.mid_block.attentions[0].transformer_blocks[0].attn2]
    assert torch.equal(run(model, keys(adapter, model, seen, scale=0)), run(model))


def test_gradients_reach_the_adapter(motion: Any, tmp_path: Path) -> None:
    """Also through layers that are computed again in the backward pass."""
    model, adapter = motion[1], read(small.write_adapter(tmp_path, 'plus'))
    adapter.requires_grad_(True)
    seen, found = small.features('plus', 1), []
    for checkpointing in (False, True):
        model.enable_gradient_checkpointing(checkpointing)
        adapter.zero_grad()
        run(model, keys(adapter, model, seen)).square().mean().backward()
        found.append({name: p.grad.clone() for name, p in adapter.named_parameters()})
    model.disable_gradient_checkpointing()
    model.zero_grad()
    assert all(grad.abs().max() > 0 for grad in found[0].values())
    for name, grad in found[0].items():
        assert (grad - found[1][name]).abs().max() <= 1e-5 * grad.abs().max() + 1e-9, name


def test_layers_of_stable_diffusion() -> None:
    """16 layers, as the public files count them: down, up, then the middle."""
    with torch.device('meta'):
        model = VideoUNet()
    found = cross_attentions(model)
    widths = [place.module.to_k.weight.shape for place in found]
    channels = [320] * 2 + [640] * 2 + [1280] * 5 + [640] * 3 + [320] * 3 + [1280]
    assert [tuple(w) for w in widths] == [(c, 768) for c in channels]
    assert [place.part for place in found] == ['down'] * 6 + ['up'] * 9 + ['mid']
    assert [place.level for place in found] == [0, 0, 1, 1, 2, 2, *[2] * 3, *[1] * 3, *[0] * 3, 3]


def test_projections_at_full_size() -> None:
    """The shapes of ip-adapter_sd15, -plus_sd15 and -full-face_sd15."""
    with torch.device('meta'):
        plus = {f'layers.{i}.0.to_q.weight': torch.empty(768, 768) for i in range(4)}
        plus |= {f'layers.{i}.1.1.weight': torch.empty(3072, 768) for i in range(4)}
        plus |= {
            'latents': torch.empty(1, 16, 768),
            'proj_in.weight': torch.empty(768, 1280),
            'proj_out.weight': torch.empty(768, 768),
        }
        counts = {
            'plain': {'proj.weight': torch.empty(3072, 1024), 'norm.weight': torch.empty(768)},
            'plus': plus,
            'full': {'proj.0.weight': torch.empty(1280, 1280), 'proj.3.weight': torch.empty(768)},
        }
        sizes = {
            name: sum(p.numel() for p in projection_of(tensors, name).parameters())
            for name, tensors in counts.items()
        }
    assert sizes['plain'] == 3072 * 1024 + 3072 + 2 * 768
    assert sizes['full'] == 1280 * 1281 + 768 * 1281 + 2 * 768
    layer = 3 * 2 * 768 + 4 * 768**2 + 2 * 4 * 768**2
    assert sizes['plus'] == 4 * layer + 16 * 768 + 768 * 1281 + 768 * 769 + 2 * 768


# What does not fit ----------------------------------------------------------------------------


def test_an_adapter_for_sdxl(motion: Any, tmp_path: Path) -> None:
    path = small.write_adapter(tmp_path, 'plain', text=2048)
    with pytest.raises(WeightsError, match=r'2048 channels \(SDXL\); this model has 12'):
        read(path).check_fits(motion[1])


def test_an_adapter_for_another_number_of_layers(motion: Any, tmp_path: Path) -> None:
    path = small.write_adapter(tmp_path, 'plain', layers=small.unet_widths()[:-1])
    with pytest.raises(WeightsError, match='10 cross-attention layers; this model has 11'):
        read(path).check_fits(motion[1])


def test_an_adapter_for_other_widths(motion: Any, tmp_path: Path) -> None:
    path = small.write_adapter(tmp_path, 'plain', layers=small.unet_widths()[::-1])
    with pytest.raises(WeightsError, match=r'down, block 0 is \[32, 12\]; this model has \[16'):
        read(path).check_fits(motion[1])


def write(folder: Path, tensors: dict[str, Tensor]) -> Path:
    from mmvideo.checkpoints.files import write_tensors

    return write_tensors(folder / 'x.safetensors', tensors)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    path = write(tmp_path, {'conv_in.weight': torch.zeros(1)})
    with pytest.raises(WeightsError, match='no IP-Adapter: it holds .conv_in.weight'):
        read(path)


def test_a_face_id_adapter(tmp_path: Path) -> None:
    tensors = small.adapter_tensors('plain')
    for name in ('weight', 'bias'):
        tensors[f'image_proj.proj.0.{name}'] = tensors.pop(f'image_proj.proj.{name}')
        tensors[f'image_proj.proj.2.{name}'] = torch.zeros(1)
    with pytest.raises(WeightsError, match='FaceID adapter'):
        read(write(tmp_path, tensors))


@pytest.mark.parametrize('kind', KINDS)
def test_a_file_that_lacks_a_tensor(kind: str, tmp_path: Path) -> None:
    """Whichever it is, an error names the file."""
    tensors = small.adapter_tensors(kind)
    for key in [*tensors][::7]:
        less = {name: value for name, value in tensors.items() if name != key}
        with pytest.raises(WeightsError, match='x.safetensors'):
            read(write(tmp_path, less))


def test_a_file_with_a_tensor_too_many(tmp_path: Path) -> None:
    tensors = small.adapter_tensors('plus') | {'image_proj.time_proj.weight': torch.zeros(2)}
    with pytest.raises(WeightsError, match='not part of this model: image_proj.time_proj.weight'):
        read(write(tmp_path, tensors))


@pytest.mark.parametrize(
    ('scale', 'message'),
    [
        ('big', "ip_adapter_scale='big': expected a finite number"),
        (float('nan'), 'expected a finite number'),
        ({'dwon': 1}, "'dwon'.*Did you mean 'down'"),
        ({'down': {'block_7': 1}}, "'block_7'.*Expected: block_0, block_1"),
        ({'down': {'block_2': 1}}, "'block_2', which has no cross-attention"),
        ({'up': {'block_1': [1, 2]}}, 'has 2 scales: expected one, or 3'),
        ({'mid': {'block_0': 1}}, 'the middle has one block'),
        ({'up': {'block_1': []}}, 'has 0 scales'),
        ({'up': 'x'}, "ip_adapter_scale['up']='x'"),
    ],
)
def test_scales_that_cannot_be(scale: Any, message: str, motion: Any) -> None:
    import re

    pattern = message if '.*' in message else re.escape(message)
    with pytest.raises(InputError, match=pattern):
        check_scale(scale, cross_attentions(motion[1]))


def test_a_scale_of_the_config(tmp_path: Path) -> None:
    path = small.write_adapter(tmp_path, 'plain')
    with pytest.raises(ConfigError, match="scale='x'"):
        read(path, scale='x')
    with pytest.raises(ConfigError, match='scale names .dwon'):
        IPAdapter.check(dict(from_pretrained=path, image_encoder=None, scale={'dwon': 1}))


def test_silence() -> None:
    assert is_silent(0) and is_silent([0, 0.0]) and is_silent({'up': {'block_1': [0, 0]}})
    assert not is_silent(0.1) and not is_silent([0, 1]) and not is_silent({'mid': 1})


@pytest.mark.parametrize('name', ['ip-adapter', 'ip-adapter-plus', 'ip-adapter-plus-face'])
def test_the_catalogue_names_the_encoder_too(name: str) -> None:
    """The file lies beside the encoder's folder, not above it."""
    config = IPAdapter.encoder_of(dict(from_pretrained=f'catalog://{name}'))
    assert config is not None and 'subfolder' not in config
    found = place(config['from_pretrained'], None, config['revision'])
    assert found == ('h94/IP-Adapter', 'models/image_encoder', None)
    other = dict(from_pretrained=f'catalog://{name}', image_encoder='models/other')
    named = IPAdapter.encoder_of(other)
    assert named is not None and named['subfolder'] == 'models/other'
