"""What a call is predicted to need: against what it takes, and what the tools make of it."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmvideo.apis import VideoInferencer, read_recipe
from mmvideo.apis.memory import LIBRARIES, Switches, cheapest, predict, read_size, rows
from mmvideo.errors import InputError

HERE = Path(__file__).parent
TOOLS = HERE.parents[1] / 'tools'
PICTURE = str(HERE / 'tiny.png')
TOLERANCE = 0.25
# The widths for which the rule was made, and nothing else that takes memory.
WIDE = {
    'model.unet.block_out_channels': (32, 64),
    'model.vae.block_out_channels': (32, 64),
    'model.vae.layers_per_block': 2,
    'model.unet.layers_per_block': 2,
    'model.unet.attention_head_dim': 4,
}
# A call whose decoding needs most, then its denoising.
LARGE: dict[str, Any] = {**WIDE, 'model.vae.block_out_channels': (128, 128)}
CALL: dict[str, Any] = dict(
    image=PICTURE, height=512, width=512, num_frames=8, guidance_scale=1.0,
    windows=dict(length=1, overlap=0),
)  # fmt: skip


def inferencer(**options: Any) -> VideoInferencer:
    return VideoInferencer(HERE / 'tiny_pia.py', device='cpu', cfg_options=options)


def test_tensors_are_as_many_as_counted(live_bytes: Any) -> None:
    """What is estimated for a GPU: the tensors that are alive, and a tenth."""
    wide = inferencer(**WIDE)
    call = dict(height=64, width=64, num_inference_steps=1, guidance_scale=2.0)
    editor = wide.editor
    wide.device = torch.device('cuda')  # of the plan, which computes nothing
    plan = wide.plan(False, image=PICTURE, num_frames=8, **call)
    assert plan.denoising is not None and plan.decoding is not None
    with live_bytes() as live:
        made = editor.infer('a fish', image=PICTURE, video_length=8, output_type='latent', **call)
    assert abs(4 * plan.denoising / live.peak - 1) <= TOLERANCE, live.peak
    latents = made['latents'][0, :, :4].transpose(0, 1)
    for chunk in (1, 4):
        with live_bytes() as live:
            list(editor.decode_chunks(latents, chunk))
        assert abs(4 * plan.decoding.values(chunk) / live.peak - 1) <= TOLERANCE, live.peak


def test_switches_lower_what_they_are_about() -> None:
    plan = inferencer(**LARGE).plan(False, decode_chunk_size=8, **CALL)
    needed = predict(plan)
    assert needed == plan.peak_bytes + LIBRARIES
    chunk = predict(plan, Switches(chunk=1))
    tile = predict(plan, Switches(chunk=1, tile=256))
    half = predict(plan, Switches(dtype='bfloat16'))
    assert plan.decoding is not None and plan.denoising is not None
    assert needed > chunk > tile
    assert half - LIBRARIES == (needed - LIBRARIES) // 2
    assert tile - LIBRARIES >= 4 * plan.denoising + plan.weights_bytes
    modes = [predict(plan, Switches(chunk=1, tile=256, offload=m))
             for m in (None, 'model', 'group', 'sequential')]  # fmt: skip
    assert modes == sorted(modes, reverse=True) and len(set(modes)) == 4


def test_settings_of_the_config_count() -> None:
    plain = inferencer(**LARGE).plan(False, decode_chunk_size=8, **CALL)
    less = inferencer(
        **LARGE, **{'model.vae_tiling': dict(tile=64), 'model.offload': 'model'}
    ).plan(False, decode_chunk_size=1, **CALL)
    both = Switches(chunk=1, tile=64, offload='model')
    assert predict(less) == predict(plain, both) < predict(plain)
    assert less.working_bytes < plain.working_bytes


def test_ladder_and_the_first_that_fits() -> None:
    table = rows(inferencer(**LARGE).plan(False, decode_chunk_size=8, **CALL))
    assert table[0].switches == Switches() and len(table) >= 4
    assert not any(row.switches.offload for row in table), 'nothing to offload to on a CPU'
    assert all(a.needed > b.needed for a, b in itertools.pairwise(table))
    assert cheapest(table, table[0].needed) == table[0]
    assert cheapest(table, table[0].needed - 1) == table[1]
    assert cheapest(table, LIBRARIES) is None


@pytest.mark.parametrize(
    ('text', 'size'),
    [('6GiB', 6 * 2**30), ('6 GB', 6 * 10**9), ('1.5g', 1.5e9), ('512M', 512e6), ('2048', 2048)],
)
def test_sizes(text: str, size: float) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize('text', ['', 'much', '-1GB', '0', '6 apples', 'GiB'])
def test_sizes_that_cannot_be(text: str) -> None:
    with pytest.raises(InputError, match='no amount of memory: expected one such as 6GiB'):
        read_size(text)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable:
    """Runs a tool's ``main`` on the tiny config: its exit code, and what it printed."""

    def run(name: str, *arguments: str) -> tuple[int, str, str]:
        spec = importlib.util.spec_from_file_location(name, TOOLS / f'{name}.py')
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, 'argv', [name, str(HERE / 'tiny_pia.py'), *arguments])
        code = module.main()
        return code, *capsys.readouterr()

    return run


OPTIONS = {'model.vae.block_out_channels': [128, 128], 'infer.guidance_scale': 1.0}
SIZE = (
    *('--height', '512', '--width', '512', '--num-frames', '8', '--windows', '2'),
    *('--device', 'cpu', '--cfg-options', 'model.vae.block_out_channels=[128,128]'),
    'infer.guidance_scale=1.0',
)


def test_doctor(tool: Callable) -> None:
    code, out, _ = tool('doctor', *SIZE, '--max-memory', '64GiB')
    assert code == 0 and 'It fits as it is.' in out
    assert '8 frames of 512x512 on cpu in float32; 68.7 GB to use' in out
    assert '--decode-chunk 1 --vae-tiling 256' in out
    code, out, _ = tool('doctor', *SIZE, '--max-memory', '500MB')
    assert code == 1 and 'Nothing fits' in out and ' fits\n' not in out
    code, out, _ = tool('doctor', *SIZE)  # what is free here
    assert code in (0, 1) and 'to use' in out
    code, _, err = tool('doctor', '--max-memory', 'much')
    assert code == 2 and err.startswith("error: 'much' is no amount of memory")


def test_max_memory_chooses(tool: Callable) -> None:
    call = (*SIZE, '--steps', '1', '--dry-run')
    made = inferencer(**OPTIONS)
    given = dict(height=512, width=512, num_frames=8, windows=2, num_inference_steps=1)
    table = rows(made.plan(False, **given))
    assert table[2].switches == Switches(chunk=1)
    code, out, err = tool('infer', *call, '--max-memory', str(table[2].needed))
    assert code == 0 and '--decode-chunk 1: about' in err
    planned = made.plan(False, **given, decode_chunk_size=1)
    assert planned.lines()[-1] in out
    code, _, err = tool('infer', *call, '--max-memory', '500MB')
    assert code == 2
    assert err.startswith('error: --max-memory 500MB: the least that this call should need')


def test_flags_reach_the_model(tool: Callable, tmp_path: Path) -> None:
    out = tmp_path / 'a.gif'
    flags = ('--offload', 'group', '--vae-tiling', '8', '--vae-slicing', '--decode-chunk', '2')
    code, _, err = tool('infer', '--out', str(out), '--steps', '1', *flags, '--device', 'cpu')
    assert code == 0, err
    recipe = read_recipe(out)
    model = recipe['config']['model']
    assert (model['vae_tiling'], model['vae_slicing']) == ({'tile': 8}, True)
    assert 'offload' not in model and recipe['arguments']['decode_chunk_size'] == 2
