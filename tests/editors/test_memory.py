"""What an editor needs at once: a stream of pictures, smaller pieces, weights that come and go."""

from __future__ import annotations

import logging
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine import Config
from torch import Tensor, nn

from mmvideo.apis import VideoInferencer, read_recipe
from mmvideo.config import load_config
from mmvideo.editors import PIA
from mmvideo.editors.offload import MODES, Unit
from mmvideo.editors.out_of_memory import is_out_of_memory
from mmvideo.errors import ConfigError, InputError
from mmvideo.registry import MODELS

APIS = Path(__file__).parents[1] / 'apis'
PICTURE = str(APIS / 'tiny.png')
FAST = dict(num_inference_steps=2, seed=3, guidance_scale=3.0)
ALLOCATOR = '[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: not enough memory'


# --- streaming ------------------------------------------------------------------------------------


def growth(
    build: Callable, live_bytes: Any, folder: Path, kind: str, **arguments: Any
) -> tuple[float, float]:
    """Bytes a frame that a longer clip needs more at its peak: of tensors, and of all else."""
    # 8 pixels a cell, so that a latent is small beside its picture
    vae = dict(
        type='AutoencoderKL',
        down_block_types=('DownEncoderBlock2D',) * 4,
        up_block_types=('UpDecoderBlock2D',) * 4,
        block_out_channels=(4, 4, 4, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    model = build.__globals__['model_config'](kind, vae=vae)
    inferencer = VideoInferencer(Config(dict(model=model)), device='cpu')
    peaks = []
    for frames in (8, 8, 48):  # the first one imports and fills caches
        tracemalloc.start()
        with live_bytes() as live:
            made = inferencer(
                folder / f'{frames}.mp4',
                progress=False,
                return_samples=False,
                num_frames=frames,
                windows=8,
                decode_chunk_size=4,
                height=64,
                width=64,
                prompt='a red fish',
                **{**FAST, 'num_inference_steps': 1, **arguments},
            )
        peaks.append((live.peak, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
        assert made['samples'] is None and made['paths'][0].stat().st_size > 0
    (short, few), (long, many) = peaks[1:]
    return (long - short) / 40, (many - few) / 40


@pytest.mark.parametrize('kind', ['AnimateDiff', 'PIA'])
def test_a_clip_is_never_held(build: Callable, live_bytes: Any, tmp_path: Path, kind: str) -> None:
    """Only latents grow with the clip: neither its pictures, nor what is told of each frame."""
    latent, picture = 4 * 8 * 8 * 4, 3 * 64 * 64
    given = {} if kind == 'AnimateDiff' else dict(image=PICTURE)
    tensors, others = growth(build, live_bytes, tmp_path, kind, **given)
    assert tensors < 12 * latent, tensors / latent
    assert tensors < picture * 4, 'pictures as float'
    assert others < picture / 3, others  # a picture as bytes


def test_gif_and_webp_wait_on_the_disk(tmp_path: Path) -> None:
    import numpy as np

    from mmvideo.media.writers import write_video

    def parts(count: int) -> Any:
        return (np.full((4, 64, 64, 3), i % 256, np.uint8) for i in range(count))

    for suffix in ('.gif', '.png', '.mp4'):
        peaks = []
        for count in (2, 2, 16):
            tracemalloc.start()
            path = tmp_path / f'a{suffix}'
            write_video(path, parts(count), num_frames=4 * count)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert (peaks[2] - peaks[1]) / 56 < 64 * 64 * 3 / 8, suffix


# --- too little memory ----------------------------------------------------------------------------


def limited(module: nn.Module, most: int, error: BaseException) -> tuple[list[int], Any]:
    """Fail like a full device for more rows than ``most``; the rows of each call, and the hook."""
    rows: list[int] = []

    def before(_: nn.Module, args: tuple) -> None:
        rows.append(len(args[0]))
        if rows[-1] > most:
            raise error

    return rows, module.register_forward_pre_hook(before)


def full(cuda: bool = True) -> RuntimeError:
    if cuda:
        return torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')
    return RuntimeError(ALLOCATOR)


@pytest.mark.parametrize('cuda', [True, False])
def test_decoding_goes_on_with_less(
    animatediff: Any, caplog: pytest.LogCaptureFixture, cuda: bool
) -> None:
    latents = torch.randn(1, 4, 11, 4, 4)
    whole = animatediff.decode(latents, 11)
    rows, hook = limited(animatediff.vae.decoder, 2, full(cuda))
    with caplog.at_level(logging.WARNING), hook:
        found = animatediff.decode(latents, 5)
    assert rows == [5, 2, 2, 2, 2, 2, 1]
    assert (found - whole).abs().max() <= 1e-6
    [record] = caplog.records
    assert 'decode 5 frames at once: going on with 2' in record.getMessage()


def test_no_frame_fits(animatediff: Any) -> None:
    rows, hook = limited(animatediff.vae.decoder, 0, full())
    with hook, pytest.raises(InputError, match='too little memory to decode a frame.*vae_tiling'):
        animatediff.decode(torch.randn(1, 4, 4, 4, 4))
    assert rows == [4, 2, 1]


def test_other_errors_are_not_taken_for_memory(animatediff: Any) -> None:
    rows, hook = limited(animatediff.vae.decoder, 0, RuntimeError('expected a 4D tensor in memory'))
    with hook, pytest.raises(RuntimeError, match='expected a 4D'):
        animatediff.decode(torch.randn(1, 4, 4, 4, 4))
    assert rows == [4]
    assert is_out_of_memory(full(False)) and is_out_of_memory(MemoryError())


def test_allocator_says_what_is_recognised() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**62, dtype=torch.uint8)
    assert is_out_of_memory(raised.value), raised.value


PROMPTS = {0: 'a car', 3: 'a fish'}


@pytest.mark.parametrize(
    'settings',
    [{}, dict(windows=2), dict(prompt=[PROMPTS, 'a red']), dict(deep_cache=2, windows=2)],
)
def test_halves_one_after_the_other(
    animatediff: Any, caplog: pytest.LogCaptureFixture, settings: dict
) -> None:
    call = {'prompt': 'a car', 'video_length': 4, **FAST, **settings}
    samples = len(call['prompt']) if isinstance(call['prompt'], list) else 1
    whole = animatediff.infer(**call)['samples']
    rows, hook = limited(animatediff.unet, samples, full())
    with caplog.at_level(logging.WARNING), hook:
        found = animatediff.infer(**call)['samples']
    assert (found - whole).abs().max() <= 1e-5
    assert rows[0] == 2 * samples and set(rows[1:]) == {samples}
    assert len(caplog.records) == 1 and 'halves of guidance' in caplog.text


def test_halves_of_a_model_with_conditions() -> None:
    torch.manual_seed(0)
    # SVD's first step multiplies rounding by 700, and how kernels round one row and two depends on
    # the processor.
    editor = MODELS.build(load_config(APIS / 'tiny_svd.py').model).eval().double()
    call: dict[str, Any] = dict(
        image=PICTURE, height=16, width=16, num_inference_steps=2, seed=0,
        max_guidance_scale=2.0,
    )  # fmt: skip
    whole = editor.infer(**call)['samples']
    rows, hook = limited(editor.unet, 1, full())
    with hook:
        found = editor.infer(**call)['samples']
    assert rows == [2, 1, 1, 1, 1] and (found - whole).abs().max() <= 1e-5
    rows, hook = limited(editor.vae.decoder.conv_in, 1, full())
    with hook:
        found = editor.infer(**call)['samples']
    assert rows == [3, 1, 1, 1] and (found - whole).abs().max() <= 1e-5


def test_no_half_fits(animatediff: Any) -> None:
    for scale in (1.0, 3.0):
        _, hook = limited(animatediff.unet, 0, full())
        with hook, pytest.raises(InputError, match='too little memory to denoise'):
            animatediff.infer('a car', video_length=2, **{**FAST, 'guidance_scale': scale})


# --- offloading -----------------------------------------------------------------------------------


class Absent(Unit):
    """Holds nothing while it is not loaded, so whoever computes with it then fails."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.kept = [(tensor, tensor.data) for tensor in self._tensors()]
        self.unload()

    def load(self, device: torch.device) -> None:
        for tensor, data in self.kept:
            tensor.data = data.to(device)
        self.loaded = True

    def unload(self) -> None:
        for tensor, _ in self.kept:
            tensor.data = tensor.data.new_empty(0)
        self.loaded = False


def watched(editor: Any, mode: str) -> list[tuple[str, str]]:
    editor.offload(mode, 'cpu')
    moves: list[tuple[str, str]] = []
    editor.offloading.moves = lambda what, unit: moves.append((what, unit.name))
    return moves


@pytest.mark.parametrize('mode', MODES)
def test_parts_are_there_when_they_are_needed(
    build: Callable, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    call = dict(prompt='a car', image=PICTURE, video_length=4, clip_skip=0, **FAST)
    # It reads weights where they wait, which the stand-in below has emptied.
    monkeypatch.setattr(PIA, '_check_condition', lambda editor: None)
    plain = build('PIA').infer(**call)['samples']
    monkeypatch.setattr('mmvideo.editors.offload.Unit', Absent)
    editor = build('PIA')
    moves = watched(editor, mode)
    assert torch.equal(editor.infer(**call)['samples'], plain)
    loads = [name for what, name in moves if what == 'load']
    parts = [name.split('.')[0] for name in loads]
    turns = [a for a, b in zip(parts, [None, *parts], strict=False) if a != b]
    assert turns == ['vae', 'text_encoder', 'unet', 'vae']
    present: set[str] = set()
    for what, name in moves:
        present.add(name) if what == 'load' else present.remove(name)
        assert len({n.split('.')[0] for n in present}) <= 1, present
        assert len(present - {'unet.rest'}) <= 1, present
    count = {'model': 1, 'group': 6, 'sequential': 20}[mode]
    once = {name for name in loads if name.startswith('unet')}
    assert len(once) >= count, sorted(once)


def test_parts_of_svd_and_controls_move(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    editor = MODELS.build(load_config(APIS / 'tiny_svd.py').model).eval()
    call = dict(image=PICTURE, height=16, width=16, num_inference_steps=2, seed=0)
    plain = editor.infer(**call)['samples']
    monkeypatch.setattr('mmvideo.editors.offload.Unit', Absent)
    moves = watched(editor, 'sequential')
    assert torch.equal(editor.infer(**call)['samples'], plain)
    first = [name for what, name in moves if what == 'load'][:3]
    assert first == ['vae', 'image_encoder', 'unet.rest']


def test_offloading_can_be_taken_off(build: Callable) -> None:
    editor = build('AnimateDiff')
    before = {name: tensor.clone() for name, tensor in editor.state_dict().items()}
    call = dict(prompt='a car', video_length=2, **FAST)
    plain = editor.infer(**call)['samples']
    for mode in MODES:
        editor.offload(mode)
        assert torch.equal(editor.infer(**call)['samples'], plain)
    assert any(module._forward_pre_hooks for module in editor.modules())
    editor.offload(None)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in editor.modules())
    after = editor.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_recipes_know_tiles_but_not_the_machine(tmp_path: Path) -> None:
    options = {'model.offload': 'model', 'model.vae_tiling': dict(tile=8)}
    inferencer = VideoInferencer(APIS / 'tiny_pia.py', device='cpu', cfg_options=options)
    torch.manual_seed(0)
    made = inferencer(tmp_path / 'a.gif', progress=False)
    assert inferencer.editor.offloading.mode == 'model'
    model = read_recipe(tmp_path / 'a.gif')['config']['model']
    assert model['vae_tiling'] == {'tile': 8} and 'offload' not in model
    again = VideoInferencer(tmp_path / 'a.gif', device='cpu')
    torch.manual_seed(0)
    assert torch.equal(again(False, progress=False)['samples'], made['samples'])


# --- tiles ----------------------------------------------------------------------------------------


def test_tiles_need_less_and_look_alike(build: Callable, live_bytes: Any) -> None:
    latents = torch.randn(1, 4, 2, 32, 32)
    found: list[Tensor] = []
    peaks = []
    for tiling in (None, dict(tile=16, overlap=0.5)):
        editor = build('AnimateDiff', vae_tiling=tiling)
        with live_bytes() as live:
            found.append(editor.decode(latents))
        peaks.append(live.peak)
    vae = editor.vae
    assert (vae.tile_sample_min_size, vae.tile_latent_min_size) == (16, 8)
    # the middle attention and the norms see a tile, so it is near, not the same
    assert 0 < (found[0] - found[1]).abs().mean() < 0.05
    assert peaks[1] < 0.6 * peaks[0]


def test_slicing_is_one_by_one(build: Callable) -> None:
    editor = build('AnimateDiff', vae_slicing=True)
    rows, hook = limited(editor.vae.decoder, 1, full())
    with hook:
        editor.decode(torch.randn(1, 4, 3, 4, 4), 3)
    assert rows == [1, 1, 1]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'offload': 'modell'}, "offload='modell'.*Did you mean 'model'"),
        ({'vae_tiling': 256}, r'vae_tiling=256: expected True or dict'),
        ({'vae_tiling': dict(tiles=256)}, "takes no 'tiles'.*Did you mean 'tile'"),
        ({'vae_tiling': dict(tile=-1)}, 'tile=-1'),
        ({'vae_tiling': dict(overlap=1)}, 'overlap=1'),
        ({'vae_slicing': 'yes'}, "vae_slicing='yes'"),
    ],
)
def test_settings_that_cannot_be(build: Callable, options: dict, message: str) -> None:
    cls = MODELS.get('AnimateDiff')
    model = build.__globals__['model_config']('AnimateDiff', **options)
    with pytest.raises(ConfigError, match=message):
        cls.check(model, dict(prompt='a car'))


def test_a_decoder_of_clips_has_no_tiles() -> None:
    model = load_config(APIS / 'tiny_svd.py').model.to_dict()
    with pytest.raises(ConfigError, match='norms over whole clips.*decode_chunk_size'):
        MODELS.get('StableVideoDiffusion').check({**model, 'vae_tiling': True}, {})
