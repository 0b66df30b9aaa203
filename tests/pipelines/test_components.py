"""Components in several pipelines: shared with their adapters, saved once, held once."""

from __future__ import annotations

import copy
import gc
import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from pairs_of_pipelines import Both, call, image_folder, parts, seeded
from safetensors import safe_open
from test_adapters import write_ip, write_lora
from torch import Tensor

from mmvideo.errors import InputError
from mmvideo.pipelines import AnimateDiffPipeline, AnimateDiffVideoToVideoPipeline, MotionAdapter


def frames(pipeline: Any, **changes: Any) -> Tensor:
    return pipeline(**call(**changes), generator=seeded(11), output_type='pt').frames


def modules(make: Callable) -> Path:
    return make('v2').folder.parent / 'parts' / 'motion_adapter'


@pytest.fixture
def joined(make: Callable, tmp_path: Path) -> Iterator[AnimateDiffPipeline]:
    """A pipeline of an image model and a motion adapter."""
    base = image_folder(make, tmp_path / 'base')
    adapter = MotionAdapter.from_pretrained(modules(make))
    made = AnimateDiffPipeline.from_pretrained(base, motion_adapter=adapter)
    made.set_progress_bar_config(disable=True)
    yield made


@pytest.fixture
def lora(make: Callable, tmp_path: Path) -> Path:
    return write_lora(make('v2'), tmp_path / 'a.safetensors', 1)


def test_components_make_a_pipeline_with_the_same_adapters(
    joined: AnimateDiffPipeline, lora: Path, tmp_path: Path
) -> None:
    plain = frames(joined)
    joined.load_lora_weights(lora, adapter_name='a')
    changed = frames(joined)
    assert (changed - plain).abs().max() > 1e-3
    assert joined.components['motion_adapter'] is not None
    again = AnimateDiffPipeline(**joined.components)
    again.set_progress_bar_config(disable=True)
    assert again.unet is joined.unet and again.get_active_adapters() == ['a']
    assert torch.equal(frames(again), changed)
    again.set_adapters('a', 0.3)
    assert torch.equal(frames(again), frames(joined)) and not torch.equal(frames(again), changed)
    other = AnimateDiffVideoToVideoPipeline(**again.components)
    assert other.get_list_adapters() == {'unet': ['a'], 'text_encoder': ['a']}
    other.load_ip_adapter(
        str(write_ip(tmp_path, 0).parent), '', 'ip_0.safetensors', image_encoder_folder=None
    )
    assert len(AnimateDiffPipeline(**other.components)._ip_adapters()) == 1
    other.unload_ip_adapter()
    other.unload_lora_weights()
    assert torch.equal(frames(joined), plain)


def test_a_copy_of_a_denoiser_has_no_owner(joined: AnimateDiffPipeline, lora: Path) -> None:
    twin = copy.deepcopy(joined.unet)
    joined.load_lora_weights(lora, adapter_name='a')
    made = AnimateDiffPipeline(**{**joined.components, 'unet': twin})
    assert made.get_list_adapters() == {}


def test_new_motion_modules_for_a_pipeline(
    make: Callable, joined: AnimateDiffPipeline, lora: Path
) -> None:
    other = MotionAdapter.from_pretrained(make('v1').folder.parent / 'parts' / 'motion_adapter')
    made = AnimateDiffPipeline.from_pipe(joined, motion_adapter=other)
    assert made.unet is not joined.unet and made.unet.max_frames == 24
    assert joined.unet.max_frames == 32 and made.vae is joined.vae
    joined.load_lora_weights(lora, adapter_name='a')
    with pytest.raises(InputError, match=r"made anew, without the LoRAs \['a'\]"):
        AnimateDiffPipeline.from_pipe(joined, motion_adapter=other)
    joined.unload_lora_weights()


def test_modules_are_held_once(make: Callable, tmp_path: Path) -> None:
    """What was read is let go when it is in the denoiser; the pipeline shows that."""
    base = image_folder(make, tmp_path / 'base')
    adapter = MotionAdapter.from_pretrained(modules(make))
    expected = {name: value.clone() for name, value in adapter.state_dict().items()}
    read = weakref.ref(adapter)
    made = AnimateDiffPipeline.from_pretrained(base, motion_adapter=adapter)
    del adapter
    gc.collect()
    assert read() is None
    state, own = made.motion_adapter.state_dict(), made.unet.state_dict()
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert torch.equal(value, expected[name])
        assert value.data_ptr() == own[name].data_ptr()
    assert AnimateDiffPipeline.from_pretrained(make('v2').folder).motion_adapter is None


def keys_of(folder: Path) -> list[str]:
    found = []
    for path in folder.rglob('*.safetensors'):
        with safe_open(path, 'pt') as file:
            found += [key for key in file.keys() if 'motion_modules' in key]  # noqa: SIM118
    return found


@pytest.mark.parametrize('name', ['AnimateDiffPipeline', 'AnimateDiffVideoToVideoPipeline'])
def test_modules_are_saved_once(joined: AnimateDiffPipeline, tmp_path: Path, name: str) -> None:
    import mmvideo.pipelines

    folder = tmp_path / 'saved'
    getattr(mmvideo.pipelines, name).from_pipe(joined).save_pretrained(folder)
    index = json.loads((folder / 'model_index.json').read_text())
    assert index['motion_adapter'] == [None, None] and not (folder / 'motion_adapter').exists()
    keys = keys_of(folder)
    assert len(keys) == len(set(keys)) > 0
    theirs = getattr(diffusers, name).from_pretrained(folder)
    state = theirs.unet.state_dict()
    assert all(torch.equal(state[key], joined.unet.state_dict()[key]) for key in keys)
    again = getattr(mmvideo.pipelines, name).from_pretrained(folder)
    if name == 'AnimateDiffPipeline':
        theirs.set_progress_bar_config(disable=True)
        assert (frames(theirs) - frames(joined)).abs().max() <= 1e-4
        assert torch.equal(frames(again), frames(joined))


def test_what_stands_beside_the_weights_is_named_when_saving(
    joined: AnimateDiffPipeline, lora: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    joined.save_pretrained(tmp_path / 'plain')
    assert not caplog.records
    joined.load_lora_weights(lora, adapter_name='zoom')
    joined.load_ip_adapter(
        str(write_ip(tmp_path, 0).parent), '', 'ip_0.safetensors', image_encoder_folder=None
    )
    joined.save_pretrained(tmp_path / 'saved')
    [record] = caplog.records
    assert record.levelname == 'WARNING'
    message = 'not written, as they stand beside the weights: zoom, ip_adapter_0'
    assert record.getMessage() == message
    files = [sorted(p.name for p in (tmp_path / n).rglob('*')) for n in ('plain', 'saved')]
    assert files[0] == files[1]
    joined.unload_ip_adapter()
    joined.unload_lora_weights()


def test_an_adapter_of_tensors(make: Callable, tmp_path: Path) -> None:
    """As the script of AnimateDiff-Lightning does it, with another number of everything."""
    with pytest.raises(InputError, match='motion_adapter has no weights: adapter.load_state_dict'):
        AnimateDiffPipeline.from_pretrained(
            image_folder(make, tmp_path / 'base'), motion_adapter=MotionAdapter()
        )
    pair: Both = make('v2')
    source = diffusers.MotionAdapter.from_pretrained(modules(make))
    stated = dict(
        block_out_channels=parts.WIDTHS,
        motion_norm_num_groups=parts.GROUPS,
        motion_num_attention_heads=2,
    )
    adapter = MotionAdapter(**stated).to('cpu', torch.float32)
    assert adapter.config['motion_max_seq_length'] == 32 and adapter.dtype is torch.float32
    adapter.load_state_dict(source.state_dict())
    made = AnimateDiffPipeline.from_pretrained(tmp_path / 'base', motion_adapter=adapter)
    assert (frames(made) - frames(pair.theirs)).abs().max() <= 1e-4
    assert MotionAdapter().to('cpu', torch.float16).to(device='cpu').dtype is torch.float16
    from mmvideo.errors import WeightsError

    with pytest.raises(WeightsError, match='block_out_channels'):
        MotionAdapter().load_state_dict(source.state_dict())
    with pytest.raises(InputError, match='strict=False'):
        adapter.load_state_dict({}, strict=False)
