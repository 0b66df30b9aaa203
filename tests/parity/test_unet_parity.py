"""VideoUNet against diffusers: names, outputs and gradients, with the same random weights."""

from __future__ import annotations

import einops
import pytest
import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn
from two_models import distance

from mmvideo.models.unet import (
    LayerContext,
    MotionModule,
    VideoUNet,
    motion_arguments,
    unet_arguments,
)
from mmvideo.models.unet.attention import SpatialTransformer
from mmvideo.models.unet.motion import TemporalBlock
from mmvideo.models.unet.resnet import Downsample, ResnetBlock, Upsample

DOWN = ('CrossAttnDownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D')
UP = ('UpBlock2D', 'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D')
TINY = {
    'block_out_channels': (16, 32, 32),
    'layers_per_block': 2,
    'cross_attention_dim': 12,
    'norm_num_groups': 4,
}
# family: positions, motion module in the middle, input channels
FAMILIES = {'v1': (24, False, 4), 'v2': (32, True, 4), 'v3': (32, False, 4), 'pia': (32, False, 9)}
TEXT = 5


def motion_pair(family: str, **changes) -> tuple[UNetMotionModel, VideoUNet]:
    """A tiny UNetMotionModel and our model with its config and weights."""
    positions, mid, channels = FAMILIES[family]
    torch.manual_seed(0)
    reference = UNetMotionModel(
        in_channels=channels,
        down_block_types=[name.replace('2D', 'Motion') for name in DOWN],
        up_block_types=[name.replace('2D', 'Motion') for name in UP],
        num_attention_heads=2,
        motion_num_attention_heads=4,
        motion_max_seq_length=positions,
        use_motion_mid_block=mid,
        **{**TINY, **changes},
    ).eval()
    arguments = unet_arguments(dict(reference.config))
    arguments['motion_module']['norm_scope'] = 'clip'
    model = VideoUNet(**arguments).eval()
    model.load_state_dict(reference.state_dict())
    return reference, model


def inputs(model: VideoUNet, frames: int, size: tuple[int, int], clips: int = 2) -> tuple:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(clips, model.in_channels, frames, *size, generator=generator)
    text = torch.randn(clips, TEXT, model.cross_attention_dim, generator=generator)
    return sample, torch.tensor([7, 801])[:clips], text


def run_motion(reference: UNetMotionModel, sample: Tensor, time: Tensor, text: Tensor) -> Tensor:
    text = text.repeat_interleave(sample.shape[2], 0)
    return reference(sample, time, text).sample


@pytest.mark.parametrize('linear', [False, True])
@pytest.mark.parametrize('size', [(8, 8), (5, 7), (9, 4)])
def test_image_unet(linear, size):
    torch.manual_seed(0)
    reference = UNet2DConditionModel(
        down_block_types=DOWN,
        up_block_types=UP,
        attention_head_dim=(2, 4, 4),
        transformer_layers_per_block=(1, 2, 1),
        use_linear_projection=linear,
        **TINY,
    ).eval()
    model = VideoUNet(**unet_arguments(dict(reference.config))).eval()
    assert set(model.state_dict()) == set(reference.state_dict())
    model.load_state_dict(reference.state_dict())
    sample, time, text = inputs(model, 3, size)
    with torch.no_grad():
        ours = model(sample, time, text)
        images = sample.transpose(1, 2).flatten(0, 1)
        theirs = reference(images, time.repeat_interleave(3), text.repeat_interleave(3, 0)).sample
    assert distance(ours, theirs.unflatten(0, (2, 3)).transpose(1, 2)) <= 1e-5


@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize(('frames', 'size'), [(1, (8, 8)), (4, (5, 7)), ('max', (4, 4))])
def test_video_unet(family, frames, size, grad):
    reference, model = motion_pair(family)
    frames = FAMILIES[family][0] if frames == 'max' else frames
    sample, time, text = inputs(model, frames, size)
    with torch.set_grad_enabled(grad):  # with gradients q, k and v are projected one by one
        ours = model(sample, time, text)
        theirs = run_motion(reference, sample, time, text)
    assert distance(ours, theirs) <= 1e-5


@pytest.mark.parametrize('family', ['v2', 'pia'])
def test_gradients(family):
    reference, model = motion_pair(family)
    sample, time, text = inputs(model, 3, (5, 7))
    target = torch.randn_like(sample[:, :4])
    for prediction in (model(sample, time, text), run_motion(reference, sample, time, text)):
        nn.functional.mse_loss(prediction, target).backward()
    theirs = {name: p.grad for name, p in reference.named_parameters()}
    for name, p in model.named_parameters():
        scale = theirs[name].abs().max().clamp(min=1e-3)
        assert distance(p.grad, theirs[name]) <= 1e-4 * scale, name


@pytest.mark.parametrize('scope', ['resnet clip, motion frame', 'resnet frame, motion frame'])
@pytest.mark.parametrize('family', ['v1', 'v2', 'pia'])
def test_official_norm_scopes(family, scope):
    """diffusers' network with its norms replaced, one by one, by the official code's."""
    reference, _ = motion_pair(family)
    joint, frames = 'clip' in scope, 3
    for name, module in list(reference.named_modules()):
        if isinstance(module, nn.GroupNorm):
            parent, _, leaf = name.rpartition('.')
            kind = _official_norm(name, joint)
            setattr(reference.get_submodule(parent), leaf, kind(module, frames))
    arguments = unet_arguments(dict(reference.config))
    arguments['motion_module']['norm_scope'] = 'frame'
    arguments['resnet_norm_scope'] = 'clip' if joint else 'frame'
    model = VideoUNet(**arguments)
    weights = {key.replace('.inner', ''): value for key, value in reference.state_dict().items()}
    model.load_state_dict(weights)
    sample, time, text = inputs(model, frames, (5, 7))
    with torch.no_grad():
        ours = model(sample, time, text)
        theirs = run_motion(reference, sample, time, text)
        per_frame = motion_pair(family)[1](sample, time, text)
    assert distance(ours, theirs) <= 1e-5
    assert distance(per_frame, theirs) > 1e-3  # the scopes do change the picture


class _JointNorm(nn.Module):
    """(N T) C H W, normalised over a clip."""

    def __init__(self, inner: nn.GroupNorm, frames: int) -> None:
        super().__init__()
        self.inner, self.frames = inner, frames

    def forward(self, x: Tensor) -> Tensor:
        x = einops.rearrange(x, '(n t) c h w -> n c t h w', t=self.frames)
        return einops.rearrange(self.inner(x), 'n c t h w -> (n t) c h w')


class _FrameNorm(_JointNorm):
    """N C T H W, as diffusers' motion module normalises it, frame by frame."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.inner(frame) for frame in x.unbind(2)], 2)


class _SameNorm(_JointNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def _official_norm(name: str, joint: bool) -> type[_JointNorm]:
    if 'motion_modules' in name:
        return _FrameNorm
    of_resnet = 'resnets' in name or name == 'conv_norm_out'
    return _JointNorm if joint and of_resnet else _SameNorm


@pytest.mark.parametrize('family', FAMILIES)
def test_names_and_shapes_at_full_size(family):
    """Stable Diffusion 1.5 with each family's motion modules, without memory for it."""
    positions, mid, channels = FAMILIES[family]
    with torch.device('meta'):
        reference = UNetMotionModel(
            in_channels=channels,
            cross_attention_dim=768,
            motion_max_seq_length=positions,
            use_motion_mid_block=mid,
        )
        model = VideoUNet(
            in_channels=channels,
            motion_module={'type': 'MotionModule', 'max_positions': positions},
            motion_mid_block=mid,
        )
    ours = {name: value.shape for name, value in model.state_dict().items()}
    assert ours == {name: value.shape for name, value in reference.state_dict().items()}
    motion = sum(p.numel() for name, p in model.named_parameters() if 'motion_modules' in name)
    assert motion == (453_209_280 if mid else 417_137_600)


def test_image_names_and_shapes_at_full_size():
    with torch.device('meta'):
        reference, model = UNet2DConditionModel(cross_attention_dim=768), VideoUNet()
    ours = {name: value.shape for name, value in model.state_dict().items()}
    assert ours == {name: value.shape for name, value in reference.state_dict().items()}


@pytest.mark.parametrize('family', FAMILIES)
def test_adapter_and_image_unet_make_the_motion_model(family):
    positions, mid, channels = FAMILIES[family]
    adapter = MotionAdapter(
        block_out_channels=TINY['block_out_channels'],
        motion_norm_num_groups=4,
        motion_max_seq_length=positions,
        use_motion_mid_block=mid,
        conv_in_channels=9 if channels == 9 else None,
    )
    image = UNet2DConditionModel(down_block_types=DOWN, up_block_types=UP, **TINY)
    reference = UNetMotionModel.from_unet2d(image, adapter, load_weights=False)
    arguments = unet_arguments(dict(image.config))
    arguments |= motion_arguments(dict(adapter.config), arguments)
    assert arguments == unet_arguments(dict(reference.config)) | {
        'motion_module': {**arguments['motion_module']},
        'down_block_types': arguments['down_block_types'],
        'up_block_types': arguments['up_block_types'],
    }
    assert set(VideoUNet(**arguments).state_dict()) == set(reference.state_dict())


def test_resnet():
    torch.manual_seed(0)
    reference = ResnetBlock2D(in_channels=8, out_channels=12, temb_channels=16, groups=4, eps=1e-5)
    block = ResnetBlock(8, 12, 16, groups=4)
    block.load_state_dict(reference.state_dict())
    x, time = torch.randn(6, 8, 5, 7), torch.randn(2, 16)
    context = LayerContext(frames=3, time=nn.functional.silu(time))
    assert distance(block(x, context), reference(x, time.repeat_interleave(3, 0))) <= 1e-5


@pytest.mark.parametrize('linear', [False, True])
def test_spatial_transformer(linear):
    torch.manual_seed(0)
    reference = Transformer2DModel(
        4, 4, 16, norm_num_groups=4, cross_attention_dim=12, use_linear_projection=linear
    )
    block = SpatialTransformer(16, 4, 12, groups=4, linear_projection=linear)
    block.load_state_dict(reference.state_dict())
    x, text = torch.randn(6, 16, 5, 7), torch.randn(2, TEXT, 12)
    theirs = reference(x, text.repeat_interleave(3, 0)).sample
    assert distance(block(x, LayerContext(frames=3, text=text)), theirs) <= 1e-5


@pytest.mark.parametrize('blocks', [1, 2])
@pytest.mark.parametrize('layers', [1, 2])
def test_motion_module(blocks, layers):
    torch.manual_seed(0)
    reference = AnimateDiffTransformer3D(
        num_attention_heads=4,
        attention_head_dim=4,
        in_channels=16,
        num_layers=layers,
        norm_num_groups=4,
        double_self_attention=blocks == 2,
        positional_embeddings='sinusoidal',
        num_positional_embeddings=9,
    )
    module = MotionModule(16, 4, layers, 9, 4, norm_scope='clip', attention_blocks=blocks)
    theirs = reference.state_dict()
    for name, buffer in module.named_buffers():
        assert torch.equal(buffer, theirs[name])
    module.load_state_dict(theirs)
    x = torch.randn(14, 16, 5, 3)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            ours = module(x, LayerContext(frames=7))
            assert distance(ours, reference(x, num_frames=7)) <= 1e-5


def test_temporal_block():
    torch.manual_seed(0)
    reference = BasicTransformerBlock(
        16,
        4,
        4,
        double_self_attention=True,
        positional_embeddings='sinusoidal',
        num_positional_embeddings=6,
    )
    block = TemporalBlock(16, 4, 6)
    block.load_state_dict(reference.state_dict())
    x = torch.randn(2, 6, 10, 16)
    theirs = reference(einops.rearrange(x, 'n t p c -> (n p) t c'))
    assert distance(block(x), einops.rearrange(theirs, '(n p) t c -> n t p c', n=2)) <= 1e-5


@pytest.mark.parametrize('size', [(8, 6), (5, 7)])
def test_resampling(size):
    from diffusers.models.downsampling import Downsample2D
    from diffusers.models.upsampling import Upsample2D

    torch.manual_seed(0)
    down, up = Downsample2D(8, use_conv=True, name='op'), Upsample2D(8, use_conv=True)
    our_down, our_up = Downsample(8), Upsample(8)
    our_down.load_state_dict(down.state_dict())
    our_up.load_state_dict(up.state_dict())
    x = torch.randn(2, 8, *size)
    assert distance(our_down(x), down(x)) <= 1e-6
    assert distance(our_up(our_down(x), size), up(down(x), size)) <= 1e-6


def test_controlnet_residuals():
    reference, model = motion_pair('v3')
    sample, time, text = inputs(model, 2, (8, 8))
    shapes = [(16, 8)] * 3 + [(16, 4)] + [(32, 4)] * 2 + [(32, 2)] * 3
    residuals = [torch.randn(4, channels, size, size) for channels, size in shapes]
    middle = torch.randn(4, 32, 2, 2)
    with torch.no_grad():
        ours = model(sample, time, text, residuals, middle)
        theirs = reference(
            sample,
            time,
            text.repeat_interleave(2, 0),
            down_block_additional_residuals=residuals,
            mid_block_additional_residual=middle,
        ).sample
    assert distance(ours, theirs) <= 1e-5
