"""The pipelines of picture to video from one file, and from files in place of components."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import test_i2vgen_pipeline as i2vgen
import test_svd_pipeline_parity as svd
import torch
from pairs_of_pipelines import Both, parts, seeded
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from mmvideo.checkpoints.files import write_tensors
from mmvideo.checkpoints.layouts.svd import describe_svd, diffusers_to_svd
from mmvideo.checkpoints.save import save_part
from mmvideo.errors import InputError, WeightsError
from mmvideo.models.borrowed import build_image_encoder
from mmvideo.pipelines import I2VGenXLPipeline, StableVideoDiffusionPipeline

WIDTHS = (32,) * 4
SIZE, FRAMES = 64, 2


def described(part: str, module: torch.nn.Module, kind: Any) -> Any:
    """The module again, with what no tensor tells as the family has it."""
    config = describe_svd(part, module.state_dict(), 'x')
    return kind.from_config({k: v for k, v in config.items() if k[0] != '_'})


def small_parts() -> dict[str, Any]:
    """Stable Video Diffusion with few channels, of as many levels as the real one."""
    torch.manual_seed(0)
    encoder = CLIPVisionConfig(
        **dict(hidden_size=16, intermediate_size=24, projection_dim=8, num_hidden_layers=2),
        **dict(num_attention_heads=1, image_size=224, patch_size=56, hidden_act='gelu'),
    )
    unet, vae = diffusers.UNetSpatioTemporalConditionModel, diffusers.AutoencoderKLTemporalDecoder
    settings = dict(block_out_channels=WIDTHS, layers_per_block=2)
    first = unet(
        **settings,
        **dict(num_attention_heads=1, cross_attention_dim=8, addition_time_embed_dim=8),
        projection_class_embeddings_input_dim=24,
    )
    coder = vae(**settings, down_block_types=['DownEncoderBlock2D'] * 4)
    modules = dict(
        unet=described('unet', first, unet),
        vae=described('vae', coder, vae),
        image_encoder=CLIPVisionModelWithProjection(encoder),
    )
    for module in modules.values():
        parts.disturb(module)
    return {name: module.eval() for name, module in modules.items()}


@pytest.fixture(scope='module')
def video(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """A file in the original layout, diffusers' pipeline of its parts, and ours of the file."""
    modules = small_parts()
    tensors = {name: module.state_dict() for name, module in modules.items()}
    tensors['image_encoder'] = {
        k: v for k, v in tensors['image_encoder'].items() if not k.endswith('position_ids')
    }
    path = tmp_path_factory.mktemp('file') / 'svd.safetensors'
    write_tensors(path, diffusers_to_svd(tensors))
    theirs = diffusers.StableVideoDiffusionPipeline(
        **modules,
        scheduler=svd.pipeline().scheduler,
        feature_extractor=CLIPImageProcessor(),
    )
    return Both(path, theirs, StableVideoDiffusionPipeline.from_single_file(path))


def test_stable_video_diffusion_in_one_file(video: Both) -> None:
    picture = svd.picture(0, (SIZE, SIZE))
    sizes = dict(height=SIZE, width=SIZE, num_frames=FRAMES, num_inference_steps=2)
    video.compare(image=picture, **sizes)


def test_its_folder_is_whole(video: Both, tmp_path: Path) -> None:
    video.ours.save_pretrained(tmp_path)
    again = diffusers.StableVideoDiffusionPipeline.from_pretrained(tmp_path)
    assert again.feature_extractor.crop_size['height'] == 224
    theirs, ours = video.theirs.scheduler.config, again.scheduler.config
    assert all(ours[name] == value for name, value in theirs.items() if name[0] != '_')


def test_parts_in_place_of_the_file(video: Both, tmp_path: Path) -> None:
    encoder, scheduler = video.ours.image_encoder, video.theirs.scheduler
    video.ours.vae.save_pretrained(tmp_path / 'vae')
    given = dict(image_encoder=encoder, scheduler=scheduler, vae=tmp_path / 'vae')
    again = StableVideoDiffusionPipeline.from_single_file(video.folder, **given)
    assert again.image_encoder is encoder and again.scheduler is scheduler
    state = again.vae.state_dict()
    assert all(torch.equal(state[k], v) for k, v in video.ours.vae.state_dict().items())


def test_the_image_encoder_of_a_file(video: Both, tmp_path: Path) -> None:
    expected = video.theirs.image_encoder
    found = build_image_encoder(from_pretrained=str(video.folder))
    pixels = torch.randn(1, 3, 224, 224, generator=seeded(1))
    assert torch.equal(found(pixels).image_embeds, expected(pixels).image_embeds)
    save_part(tmp_path, expected.config.to_dict(), expected)
    alone = str(tmp_path / 'model.safetensors')
    found = build_image_encoder(from_pretrained=alone)
    assert torch.equal(found(pixels).image_embeds, expected(pixels).image_embeds)
    (tmp_path / 'config.json').unlink()
    with pytest.raises(WeightsError, match=r'how many heads.*keep its config.json beside it'):
        build_image_encoder(from_pretrained=alone)


def test_a_file_of_i2vgen_xl_is_a_network(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the network alone.*unet='a.pth'\); tools/convert.py"):
        I2VGenXLPipeline.from_single_file('a.pth', torch_dtype=torch.float16)
    theirs = i2vgen.write_pipeline(tmp_path / 'parts')
    theirs.save_pretrained(tmp_path / 'whole')
    # A network that differs from the folder's, so that it is seen which one was read.
    with torch.no_grad():
        theirs.unet.conv_in.bias.add_(1)
    theirs.unet.save_pretrained(tmp_path / 'own')
    ours = I2VGenXLPipeline.from_pretrained(tmp_path / 'whole', unet=tmp_path / 'own')
    assert torch.equal(ours.unet.conv_in.bias, theirs.unet.conv_in.bias)
