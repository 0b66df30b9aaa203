"""Pipelines from folders, files, objects and each other; and their folders in diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from pairs_of_pipelines import call, image_folder, parts, seeded

import mmvideo.pipelines
from mmvideo.checkpoints.files import write_tensors
from mmvideo.checkpoints.layouts.ldm import diffusers_to_ldm
from mmvideo.checkpoints.single_file import TEXT_ENCODER, UNET, VAE
from mmvideo.errors import InputError, WeightsError
from mmvideo.pipelines import AnimateDiffPipeline, MotionAdapter, PIAPipeline
from mmvideo.pipelines.handles import single_file
from mmvideo.pipelines.loading import SD15_SCHEDULER
from mmvideo.registry import TOKENIZERS


def frames(pipeline: object) -> torch.Tensor:
    return pipeline(**call(), generator=seeded(11), output_type='pt').frames  # type: ignore[operator]


def test_an_image_model_and_a_motion_adapter(make: Callable, tmp_path: Path) -> None:
    pair = make('v2')
    base = image_folder(make, tmp_path / 'base')
    source = pair.folder.parent / 'parts' / 'motion_adapter'
    adapter = MotionAdapter.from_pretrained(source, torch_dtype=torch.float32)
    assert adapter.config['motion_max_seq_length'] == 32 and adapter.dtype is torch.float32
    ours = AnimateDiffPipeline.from_pretrained(base, motion_adapter=adapter, safety_checker=None)
    expected = frames(pair.theirs)
    assert (frames(ours) - expected).abs().max() <= 1e-4
    theirs = diffusers.MotionAdapter.from_pretrained(source)
    again = AnimateDiffPipeline.from_pretrained(str(base), motion_adapter=theirs, vae=pair.ours.vae)
    assert again.vae is pair.ours.vae
    assert torch.equal(frames(again), frames(ours))
    with pytest.raises(InputError, match='the unet has no motion modules; give a motion_adapter'):
        AnimateDiffPipeline.from_pretrained(base)
    with pytest.raises(InputError, match="without the convolution of PIA's condition"):
        PIAPipeline.from_pretrained(base, motion_adapter=adapter)
    adapter.save_pretrained(tmp_path / 'adapter')
    state = diffusers.MotionAdapter.from_pretrained(tmp_path / 'adapter').state_dict()
    assert all(torch.equal(state[name], value) for name, value in theirs.state_dict().items())


@pytest.mark.parametrize('family', ['v1', 'pia'])
def test_a_saved_pipeline_is_the_same_in_diffusers(
    make: Callable, tmp_path: Path, family: str
) -> None:
    pair = make(family)
    pair.ours.save_pretrained(tmp_path)
    again = type(pair.theirs).from_pretrained(tmp_path)
    expected = pair.theirs.unet.state_dict()
    state = again.unet.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    config, wanted = dict(again.unet.config), dict(pair.theirs.unet.config)
    for key in ('down_block_types', 'num_attention_heads', 'motion_num_attention_heads',
                'motion_max_seq_length', 'use_motion_mid_block', 'in_channels'):  # fmt: skip
        found, known = (list(v) if isinstance(v, tuple) else v for v in (config[key], wanted[key]))
        assert found == known, key
    ours = type(pair.ours).from_pretrained(tmp_path)
    mine = pair.ours.unet.state_dict()
    assert all(torch.equal(value, mine[name]) for name, value in ours.unet.state_dict().items())
    assert dict(ours.scheduler.config)['beta_end'] == dict(pair.ours.scheduler.config)['beta_end']


def test_half_precision(make: Callable) -> None:
    half = AnimateDiffPipeline.from_pretrained(make('v2').folder, torch_dtype=torch.bfloat16)
    assert half.dtype is half.vae.dtype is half.text_encoder.dtype is torch.bfloat16
    assert half.to(torch.float32).dtype is torch.float32
    assert half.to('cpu', torch.float16).dtype is torch.float16
    assert str(half.device) == 'cpu'
    with pytest.raises(WeightsError, match='float64'):
        half.to(dtype=torch.float64)


def one_file(folder: Path) -> tuple[Path, diffusers.AnimateDiffPipeline]:
    """Stable Diffusion 1.5 with few channels in the original layout, and diffusers' pipeline."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    widths = dict(block_out_channels=(32,) * 4)
    words = sorted({*' '.join(parts.PROMPTS).split(), parts.NEGATIVE})
    tokenizer = TOKENIZERS.build(dict(type='CLIPTokenizer', vocab=words))
    ids = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    text = CLIPTextConfig(
        **{**TEXT_ENCODER, 'num_attention_heads': 4, **ids},
        **dict(vocab_size=len(tokenizer), hidden_size=16, projection_dim=16),
        **dict(intermediate_size=24, num_hidden_layers=2),
    )
    modules = dict(
        unet=diffusers.UNet2DConditionModel.from_config(
            UNET | widths | dict(cross_attention_dim=16)
        ),
        vae=diffusers.AutoencoderKL.from_config(VAE | widths),
        text_encoder=CLIPTextModel(text),
    )
    for module in modules.values():
        parts.disturb(module)
    path = write_tensors(
        folder / 'personal.safetensors',
        diffusers_to_ldm({name: module.state_dict() for name, module in modules.items()}),
    )
    adapter = diffusers.MotionAdapter(**widths, motion_num_attention_heads=8)
    parts.disturb(adapter)
    settings = {k: v for k, v in SD15_SCHEDULER.items() if k != 'type'}
    pipeline = diffusers.AnimateDiffPipeline(
        **{name: module.eval() for name, module in modules.items()},
        tokenizer=tokenizer,
        motion_adapter=adapter.eval(),
        scheduler=diffusers.PNDMScheduler(**settings),
    )
    pipeline.set_progress_bar_config(disable=True)
    return path, pipeline


def test_a_checkpoint_in_one_file(tmp_path: Path) -> None:
    path, theirs = one_file(tmp_path)
    adapter = theirs.motion_adapter
    # Heads of a text encoder stand in no file; this small one has fewer than the usual 12.
    given = dict(tokenizer=theirs.tokenizer, text_encoder=theirs.text_encoder)
    ours = AnimateDiffPipeline.from_single_file(path, motion_adapter=adapter, **given)
    assert dict(ours.scheduler.config)['beta_schedule'] == 'scaled_linear'
    sizes = dict(frames=2, steps=2, height=64, width=64)
    shared = call(**sizes, guidance_scale=1.0, output_type='pt')
    found, expected = (p(**shared, generator=seeded(3)).frames for p in (ours, theirs))
    assert (found - expected).abs().max() <= 1e-4
    assert expected.std() > 0.02


def test_links_and_files_that_are_not_there(make: Callable, tmp_path: Path) -> None:
    link = 'https://huggingface.co/owner/name/blob/main/folder/model.safetensors'
    assert single_file(link) == ('owner/name/folder/model.safetensors', None)
    assert single_file(link.replace('main', 'v2'))[1] == 'v2'
    assert single_file('/a/b.safetensors', 'main') == ('/a/b.safetensors', 'main')
    with pytest.raises(WeightsError, match='does not exist'):
        AnimateDiffPipeline.from_single_file(
            tmp_path / 'absent.safetensors', tokenizer=make('v2').ours.tokenizer
        )
    with pytest.raises(InputError, match="takes no 'cache_dri'"):
        AnimateDiffPipeline.from_single_file(tmp_path / 'a.safetensors', cache_dri='x')


def test_what_is_no_component(make: Callable, tmp_path: Path) -> None:
    ours = make('v2').ours
    with pytest.raises(
        InputError, match="takes no 'motion_adaptor'.*Did you mean 'motion_adapter'"
    ):
        AnimateDiffPipeline.from_pretrained(make('v2').folder, motion_adaptor=None)
    with pytest.raises(InputError, match='needs vae: give a AutoencoderKL'):
        AnimateDiffPipeline(**{**ours.components, 'vae': None})
    with pytest.raises(InputError, match='unet is a int: expected a UNet2DConditionModel'):
        AnimateDiffPipeline(**{**ours.components, 'unet': 3})
    with pytest.raises(InputError, match='motion_adapter is a int: expected a MotionAdapter'):
        AnimateDiffPipeline(**{**ours.components, 'motion_adapter': 3})
    with pytest.raises(WeightsError, match='has no model_index.json'):
        AnimateDiffPipeline.from_pretrained(tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'PIAPipelin'.*Did you mean"):
        mmvideo.pipelines.PIAPipelin  # noqa: B018


def test_a_part_is_replaced(make: Callable) -> None:
    ours = AnimateDiffPipeline.from_pipe(make('v2').ours)
    before = frames(ours)
    ours.scheduler = diffusers.EulerDiscreteScheduler.from_config(ours.scheduler.config)
    assert isinstance(ours.components['scheduler'], diffusers.EulerDiscreteScheduler)
    assert (frames(ours) - before).abs().max() > 1e-4
    assert ours.unet.config.sample_size == parts.CELLS and ours.unet.config.in_channels == 4
    assert ours.config['vae'] == ['diffusers', 'AutoencoderKL']


def test_files_of_the_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from PIL import Image

    from mmvideo.pipelines import export_to_gif, export_to_video, load_image

    colours = ('red', 'green', 'blue')
    pictures = [Image.new('RGB', (16, 16), colour) for colour in colours]
    path = export_to_gif(pictures, str(tmp_path / 'a.gif'))
    with Image.open(path) as gif:
        assert gif.n_frames == 3 and gif.info['duration'] == 100
    floats = [torch.rand(16, 16, 3, generator=seeded(1)).numpy() for _ in range(3)]
    for name in (export_to_video(floats, tmp_path / 'a.mp4', fps=8), export_to_gif(pictures)):
        assert Path(name).stat().st_size > 100
    assert load_image(path).size == (16, 16)
    with caplog.at_level('INFO', 'mmvideo'):
        other = export_to_video(floats, tmp_path / 'b.mp4', 8, quality=9, macro_block_size=1)
    assert 'quality, bitrate and macro_block_size have no effect' in caplog.text
    assert Path(other).read_bytes() == (tmp_path / 'a.mp4').read_bytes()
    with pytest.raises(InputError, match='frames is empty'):
        export_to_gif([])


def test_every_name_is_there() -> None:
    for name in mmvideo.pipelines.__all__:
        assert getattr(mmvideo.pipelines, name) is not None
