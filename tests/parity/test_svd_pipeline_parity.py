"""StableVideoDiffusion end to end against diffusers' pipeline: the same folders, pictures, seeds.

The weights are random and tiny; diffusers writes them with ``save_pretrained`` and the editor reads
them. diffusers' norm epsilons are asked for, which differ from the official ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
    _resize_with_antialiasing,
)
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection
from two_models import randomised

from mmvideo.models.conditioning.clip_picture import clip_input
from mmvideo.models.unet import diffusers_norm_eps, unet_arguments
from mmvideo.registry import MODELS

HEIGHT, WIDTH, FRAMES = 24, 40, 3


def pipeline() -> StableVideoDiffusionPipeline:
    torch.manual_seed(0)
    vae = AutoencoderKLTemporalDecoder(
        down_block_types=('DownEncoderBlock2D',) * 2, block_out_channels=(32, 32)
    )
    unet = UNetSpatioTemporalConditionModel(
        sample_size=16,
        down_block_types=('CrossAttnDownBlockSpatioTemporal', 'DownBlockSpatioTemporal'),
        up_block_types=('UpBlockSpatioTemporal', 'CrossAttnUpBlockSpatioTemporal'),
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=8,
        num_attention_heads=(2, 4),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        num_frames=FRAMES,
    )
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            projection_dim=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=224,
            patch_size=56,
        )
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule='scaled_linear',
        interpolation_type='linear',
        prediction_type='v_prediction',
        sigma_max=700.0,
        sigma_min=0.002,
        steps_offset=1,
        timestep_spacing='leading',
        timestep_type='continuous',
        use_karras_sigmas=True,
    )
    built = StableVideoDiffusionPipeline(
        vae=randomised(vae),
        image_encoder=randomised(encoder),
        unet=randomised(unet),
        scheduler=scheduler,
        feature_extractor=CLIPImageProcessor(),
    )
    built.set_progress_bar_config(disable=True)
    return built


@pytest.fixture(scope='module')
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[StableVideoDiffusionPipeline, Any]:
    folder = tmp_path_factory.mktemp('svd')
    theirs = pipeline()
    theirs.save_pretrained(folder)
    return theirs, MODELS.build(config(folder, diffusers_norm_eps(_arguments(theirs)))).eval()


def _arguments(theirs: StableVideoDiffusionPipeline) -> dict:
    return unet_arguments(dict(theirs.unet.config))


def config(folder: Path, norm_eps: Any) -> dict:
    def part(kind: str, name: str, **more: Any) -> dict:
        return dict(type=kind, from_pretrained=str(folder), subfolder=name, **more)

    return dict(
        type='StableVideoDiffusion',
        vae=part('AutoencoderKLTemporalDecoder', 'vae'),
        image_encoder=part('CLIPVisionModelWithProjection', 'image_encoder'),
        scheduler=part('EulerDiscreteScheduler', 'scheduler'),
        unet=part('VideoUNet', 'unet', norm_eps=norm_eps),
    )


def picture(seed: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Image.Image:
    """Smooth colours with some noise, so that blur and resizing show."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    base = np.stack([x, y, (x + y) / 2], axis=-1) * 200
    return Image.fromarray((base + generator.integers(0, 56, base.shape)).astype(np.uint8))


def compare(pair: tuple, images: list, seeds: list[int], **arguments: Any) -> tuple[Tensor, Tensor]:
    """Our frames and theirs, [N, 3, T, H, W]."""
    theirs, ours = pair
    arguments = dict(height=HEIGHT, width=WIDTH, num_inference_steps=3) | arguments
    found = ours.infer(
        image=images, seed=seeds, **{'video_length': FRAMES} | arguments, decode_chunk_size=2
    )['samples']
    rename = {'video_length': 'num_frames'}
    expected = theirs(
        images,
        generator=[torch.Generator().manual_seed(s) for s in seeds],
        output_type='pt',
        **{rename.get(key, key): value for key, value in arguments.items()},
    ).frames
    return found, torch.as_tensor(expected).transpose(1, 2)


@pytest.mark.parametrize(
    'arguments',
    [
        {},
        dict(fps=12, motion_bucket_id=40, noise_aug_strength=0.3),
        dict(min_guidance_scale=2.0, max_guidance_scale=5.0, video_length=4),
        dict(max_guidance_scale=1.0),
        dict(video_length=1, min_guidance_scale=2.0),  # diffusers fails where this is 1
        dict(sigmas=[300.0, 8.0, 0.5, 0.0]),
    ],
    ids=['plain', 'ids', 'ramp', 'unguided', 'one frame', 'sigmas'],
)
def test_the_same_seed_gives_the_frames_of_diffusers(pair: tuple, arguments: dict) -> None:
    ours, theirs = compare(pair, [picture(0)], [7], **arguments)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-4
    assert theirs.std() > 0.02


def test_several_pictures_at_once(pair: tuple) -> None:
    ours, theirs = compare(pair, [picture(0), picture(1)], [7, 3], num_inference_steps=2)
    assert (ours - theirs).abs().max() <= 1e-4
    assert (theirs[0] - theirs[1]).abs().max() > 0.02


def generators(count: int) -> Any:
    """One for all samples (0), or a list."""
    made = [torch.Generator().manual_seed(7 + i) for i in range(count or 1)]
    return made if count else made[0]


@pytest.mark.parametrize(
    ('pictures', 'each', 'count'), [(1, 2, 0), (1, 2, 2), (2, 1, 0), (2, 1, 2), (1, 1, 0)]
)
def test_draws_in_the_order_of_diffusers(pair: tuple, pictures: int, each: int, count: int) -> None:
    theirs, ours = pair
    images = [picture(i) for i in range(pictures)]
    # Much noise on the picture, so that it shows whose it is.
    call = dict(
        height=HEIGHT, width=WIDTH, num_inference_steps=2, num_videos_per_prompt=each,
        noise_aug_strength=1.0,
    )  # fmt: skip
    expected = theirs(images, generator=generators(count), output_type='pt', **call).frames
    expected = torch.as_tensor(expected).transpose(1, 2)
    found, other = (
        ours.infer(images, generator=generators(count), draws=draws, **call)['samples']
        for draws in ('diffusers', 'official')
    )
    assert found.shape == expected.shape == (pictures * each, 3, FRAMES, HEIGHT, WIDTH)
    assert (found - expected).abs().max() <= 1e-4
    # Where each picture is animated once, both orders are the same.
    assert (other - expected).abs().max() <= 1e-4 if each == 1 else True
    if each > 1:
        assert (other[1] - expected[1]).abs().max() > 1e-3


def test_every_argument_matters(pair: tuple) -> None:
    """So that the agreement above is no agreement of things that are ignored."""
    plain = dict(image=picture(0), height=HEIGHT, width=WIDTH, num_inference_steps=2, seed=7)
    reference = pair[1].infer(**plain)['samples']
    for change in (
        dict(fps=30),
        dict(motion_bucket_id=250),
        dict(noise_aug_strength=1.0),
        dict(max_guidance_scale=6.0),
        dict(seed=8),
        dict(image=picture(1)),
    ):
        changed = pair[1].infer(**{**plain, **change})['samples']
        assert (changed - reference).abs().max() > 1e-3, change


@pytest.mark.parametrize('size', [(576, 300), (100, 500), (224, 224), (16, 16)])
def test_what_the_image_encoder_sees(size: tuple[int, int]) -> None:
    pixels = torch.from_numpy(np.array(picture(2, size))).permute(2, 0, 1)[None] / 127.5 - 1
    resized = (_resize_with_antialiasing(pixels, (224, 224)) + 1) / 2
    processor = CLIPImageProcessor()
    expected = processor(
        images=resized, do_center_crop=False, do_resize=False, do_rescale=False, return_tensors='pt'
    ).pixel_values
    assert (clip_input(pixels, 224) - expected).abs().max() <= 1e-5
