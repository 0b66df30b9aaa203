"""What a file is, for every public layout: family, base model, and its numbers at full size."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from mmvideo.checkpoints.files import read_tensors, unwrap
from mmvideo.checkpoints.layouts import FAMILIES, identify, recognise
from mmvideo.checkpoints.motion import split_motion
from mmvideo.errors import WeightsError

_SPEC = importlib.util.spec_from_file_location(
    'public_layouts', Path(__file__).with_name('public_layouts.py')
)
public = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(public)
SD = public.SD


def prefixed(shapes, prefix):
    return {prefix + key: shape for key, shape in shapes.items()}


def sparsectrl(scribble):
    """Names and shapes of diffusers' own model; its motion modules as the authors name them."""
    from diffusers import SparseControlNetModel

    with torch.device('meta'):
        model = SparseControlNetModel(
            conditioning_channels=3 if scribble else 4,
            use_simplified_condition_embedding=not scribble,
        )
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items() if 'motion_modules' not in k}
    for name, width in public.modules(SD):
        if name.startswith('down'):
            shapes |= public.motion_module(name, width, 32, attentions=1)
    return shapes


def published(name):
    """Key table of a published file at full size."""
    tables = {
        'mm_sd_v15': lambda: public.motion(SD, 24),
        'mm_sd_v15_v2': lambda: public.motion(SD, 32, mid=True),
        'v3_sd15_mm': lambda: public.motion(SD, 32),
        'mm_sdxl_v10_beta': lambda: public.motion(SD[:3], 32),
        'AnimateLCM': lambda: public.motion(SD, None, mid=True),
        'pia': lambda: public.motion(SD, 32, pia=True),
        'v1-5-2 folder': lambda: public.as_adapter(public.motion(SD, 32, mid=True)),
        'Lightning': lambda: public.as_adapter(public.motion(SD, 32, mid=True)),
        'PIA folder': lambda: public.as_adapter(public.motion(SD, 32, pia=True)),
        'v3_sd15_adapter': lambda: public.domain_adapter(SD, 128),
        'v2_lora': lambda: public.motion_lora(SD, 64),
        'sparsectrl_rgb': lambda: sparsectrl(False),
        'sparsectrl_scribble': lambda: sparsectrl(True),
        'ip-adapter': public.ip_adapter,
        'ip-adapter-plus': lambda: public.ip_adapter('plus'),
        'ip-adapter-full-face': lambda: public.ip_adapter('full'),
    }
    return tables[name]()


# name, family, layout, base, tensors, parameters, bytes of the published file (None: not stated)
PUBLISHED = [
    ('mm_sd_v15', 'animatediff_v1', 'original', 'sd15', 560, 417_137_600, 1_672_133_921),
    ('mm_sd_v15_v2', 'animatediff_v2', 'original', 'sd15', 588, 453_209_280, 1_817_888_431),
    ('v3_sd15_mm', 'animatediff_v3', 'original', 'sd15', 560, 417_137_600, 1_673_262_583),
    ('mm_sdxl_v10_beta', 'animatediff_sdxl', 'original', 'sdxl', 420, 236_779_200, None),
    ('AnimateLCM', 'animatelcm', 'original', 'sd15', 546, 453_209_280, None),
    ('pia', 'pia', 'original', 'sd15', 562, 417_163_840, 1_673_373_725),
    ('v1-5-2 folder', 'animatediff_v2', 'diffusers', 'sd15', 567, 453_209_280, None),
    ('Lightning', 'animatediff_v2', 'diffusers', 'sd15', 567, 453_209_280, None),
    ('PIA folder', 'pia', 'diffusers', 'sd15', 542, 417_163_840, None),
    ('v3_sd15_adapter', 'domain_adapter', 'processor', 'sd15', 256, None, 102_134_097),
    ('v2_lora', 'motion_lora', 'original', 'sd15', 336, 19_333_120, 77_474_499),
    ('sparsectrl_rgb', 'sparsectrl_rgb', 'original', 'sd15', 486, None, 1_988_040_333),
    ('sparsectrl_scribble', 'sparsectrl_scribble', 'original', 'sd15', 500, None, 1_992_335_697),
    ('ip-adapter', 'ip_adapter', 'original', 'sd15', 36, None, None),
    ('ip-adapter-plus', 'ip_adapter_plus', 'original', 'sd15', 83, None, None),
    ('ip-adapter-full-face', 'ip_adapter_full', 'original', 'sd15', 38, None, None),
]


@pytest.mark.parametrize('row', PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_published_files_at_full_size(row):
    name, family, layout, base, count, parameters, size = row
    tensors = public.empty(published(name))
    found = identify(tensors)
    assert (found.family, found.layout, found.base) == (family, layout, base)
    assert found.precision == ('float32',)
    assert found.total.tensors == count
    if parameters is not None:
        assert found.total.parameters == parameters
    if size is not None:  # an archive of torch.save takes 340 to 450 bytes more for each tensor
        assert 340 < (size - 4 * sum(v.numel() for v in tensors.values())) / count < 450
    if found.rank:
        assert found.rank == ((64, 64) if family == 'motion_lora' else (128, 128))


SCOPES = {
    'mm_sd_v15': (24, False, 'clip', 'frame', 'linear'),
    'mm_sd_v15_v2': (32, True, 'frame', 'frame', 'linear'),
    'v3_sd15_mm': (32, False, 'frame', 'frame', 'linear'),
    'mm_sdxl_v10_beta': (32, False, 'frame', 'clip', 'scaled_linear'),
    'AnimateLCM': (None, True, 'frame', 'frame', 'linear'),
    'pia': (32, False, 'clip', 'frame', 'linear'),
    'sparsectrl_rgb': (32, False, 'frame', 'frame', 'linear'),
}


@pytest.mark.parametrize('name', SCOPES)
def test_what_follows_from_a_family(name):
    positions, mid, resnet, motion, betas = SCOPES[name]
    found = identify(public.empty(published(name)))
    assert (found.positions, found.mid_block) == (positions, mid)
    assert found.norm_scopes == {'resnet_norm_scope': resnet, 'motion_norm_scope': motion}
    assert found.betas.beta_schedule == betas
    assert (found.betas.beta_start, found.betas.beta_end) == (
        (0.00085, 0.02) if betas == 'scaled_linear' else (0.00085, 0.012)
    )
    assert found.first_channels == ('pia' if name == 'pia' else None)
    widths = SD[:3] if name == 'mm_sdxl_v10_beta' else SD
    assert found.widths == widths


def image_unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(8, 8, 16, 16), norm_num_groups=4, cross_attention_dim=768,
        attention_head_dim=2,
    ).state_dict()  # fmt: skip


def pia_trainer():
    """Flat image layers and motion modules, as PIA's train.py writes them."""
    conv = {'conv_in.weight': torch.zeros(8, 9, 3, 3), 'conv_in.bias': torch.zeros(8)}
    return image_unet() | public.filled(public.motion((8, 8, 16, 16), 32)) | conv


def controlnet():
    from diffusers import ControlNetModel

    with torch.device('meta'):
        return ControlNetModel(cross_attention_dim=768).state_dict()


def single_file(context, text):
    keys = (
        'model.diffusion_model.input_blocks.0.0.weight',
        'first_stage_model.encoder.conv_in.weight',
        text,
    )
    cross = 'model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight'
    return {key: torch.zeros(4, 4) for key in keys} | {cross: torch.zeros(4, context)}


CLIP_TEXT = 'embeddings.token_embedding.weight'
CLIP_IMAGE = 'vision_model.embeddings.patch_embedding.weight'
# content as a file holds it, family, base
OTHERS = {
    'PIA trainer': (pia_trainer, 'pia_unet', 'sd15'),
    'PIA trainer, DDP': (
        lambda: {'state_dict': prefixed(pia_trainer(), 'module.'), 'global_step': 3},
        'pia_unet',
        'sd15',
    ),
    'UNetMotionModel': (
        lambda: image_unet() | public.filled(public.as_adapter(public.motion((8, 8, 16, 16)))),
        'unet_motion',
        'sd15',
    ),
    'UNet2DConditionModel': (image_unet, 'unet', 'sd15'),
    'ControlNet': (controlnet, 'controlnet', 'sd15'),
    'ControlNet, original': (
        lambda: {'control_model.zero_convs.0.0.weight': torch.zeros(1)},
        'controlnet_ldm',
        None,
    ),
    'SD1.5 single file': (
        lambda: {'state_dict': single_file(768, 'cond_stage_model.transformer.x')}, 'ldm', 'sd15',
    ),
    'SD1.5 with EMA': (
        lambda: single_file(768, 'cond_stage_model.transformer.x')
        | {'model_ema.diffusion_modelout0weight': torch.zeros(1)},
        'ldm',
        'sd15',
    ),
    'SD2 single file': (lambda: single_file(1024, 'cond_stage_model.model.x'), 'ldm', 'sd2'),
    'SDXL single file': (lambda: single_file(2048, 'conditioner.embedders.0.x'), 'ldm', 'sdxl'),
    'SVD single file': (
        lambda: {'model.diffusion_model.input_blocks.1.0.time_stack.x': torch.zeros(1)},
        'svd',
        'svd',
    ),
    'SVD UNet': (
        lambda: {'down_blocks.0.resnets.0.temporal_res_block.norm1.bias': torch.zeros(1)},
        'svd_unet',
        'svd',
    ),
    'SVD VAE': (
        lambda: {
            'encoder.conv_in.weight': torch.zeros(1),
            'decoder.mid_block.resnets.0.temporal_res_block.norm1.bias': torch.zeros(1),
            'decoder.time_conv_out.weight': torch.zeros(1),
        },
        'svd_vae',
        'svd',
    ),
    'I2VGen-XL': (
        lambda: {'state_dict': {'local_image_concat.0.weight': torch.zeros(1)}},
        'i2vgen_xl',
        'i2vgen_xl',
    ),
    'I2VGen-XL UNet': (
        lambda: {'image_latents_proj_in.0.weight': torch.zeros(1)}, 'i2vgen_xl_unet', 'i2vgen_xl',
    ),
    'VAE': (lambda: {'encoder.conv_in.weight': torch.zeros(1)}, 'vae', None),
    'VAE, original': (
        lambda: {
            'first_stage_model.encoder.conv_in.weight': torch.zeros(1),
            'first_stage_model.encoder.mid.block_1.norm1.bias': torch.zeros(1),
        },
        'vae',
        None,
    ),
    'CLIP text': (lambda: {'text_model.' + CLIP_TEXT: torch.zeros(1)}, 'clip_text', None),
    'CLIP text, transformers 5': (lambda: {CLIP_TEXT: torch.zeros(1)}, 'clip_text', None),
    'CLIP image': (lambda: {CLIP_IMAGE: torch.zeros(1)}, 'clip_image', None),
    'CLIP': (
        lambda: {CLIP_IMAGE: torch.zeros(1), 'text_model.' + CLIP_TEXT: torch.zeros(1)},
        'clip',
        None,
    ),
    'kohya': (lambda: public.filled(public.kohya()), 'kohya_lora', 'sd15'),
    'LoCon': (lambda: public.filled(public.kohya(locon=True)), 'kohya_lora', 'sd15'),
    'kohya for SDXL': (
        lambda: public.filled(public.kohya(context=2048, text='lora_te1_')), 'kohya_lora', 'sdxl',
    ),
    'diffusers LoRA': (lambda: public.filled(public.diffusers_lora()), 'diffusers_lora', 'sd15'),
    'PEFT': (
        lambda: public.filled(public.diffusers_lora(peft=True)), 'diffusers_lora', 'sd15',
    ),
    'LoRA for SD2': (
        lambda: public.filled(public.diffusers_lora(context=1024)), 'diffusers_lora', 'sd2',
    ),
    'MotionLoRA folder': (
        lambda: prefixed(public.filled(public.as_adapter(public.motion_lora())), 'unet.'),
        'motion_lora',
        'sd15',
    ),
    'motion-lora-v1-5-3': (  # published under the wrong name
        lambda: prefixed(public.filled(public.domain_adapter()), 'unet.'), 'domain_adapter', 'sd15',
    ),
    'IP-Adapter .bin': (
        lambda: {
            'image_proj': {'proj.weight': torch.zeros(8, 4)},
            'ip_adapter': {'1.to_k_ip.weight': torch.zeros(8, 768)},
        },
        'ip_adapter',
        'sd15',
    ),
    'IP-Adapter FaceID': (
        lambda: {'ip_adapter': {'0.to_q_lora.down.weight': torch.zeros(8, 4)}},
        'ip_adapter_faceid',
        None,
    ),
    'A1111 .pt': (
        lambda: {
            'string_to_token': {'*': torch.tensor(265)},
            'string_to_param': {'*': torch.zeros(4, 768)},
            'name': 'cat', 'step': 9, 'sd_checkpoint': None,
        },
        'textual_inversion',
        'sd15',
    ),
    'A1111 .safetensors': (
        lambda: {'emb_params': torch.zeros(4, 1024)}, 'textual_inversion', 'sd2',
    ),
    'SDXL inversion': (
        lambda: {'clip_l': torch.zeros(4, 768), 'clip_g': torch.zeros(4, 1280)},
        'textual_inversion',
        'sdxl',
    ),
    'learned_embeds.bin': (lambda: {'<cat>': torch.zeros(768)}, 'textual_inversion', 'sd15'),
    'HotShot-XL': (
        lambda: {'down_blocks.0.temporal_attentions.0.x': torch.zeros(1)}, 'hotshot_xl', 'sdxl',
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', OTHERS)
def test_other_files_are_known_by_content(name):
    content, family, base = OTHERS[name]
    found = identify(unwrap(content(), 'no-name-tells'))
    assert (found.family, found.base) == (family, base)
    assert sum(part.tensors for part in found.parts.values()) == found.total.tensors


def test_a_nested_file_is_read_as_its_safetensors_form(tmp_path):
    content = OTHERS['IP-Adapter .bin'][0]()
    torch.save(content, tmp_path / 'ip.bin')
    assert list(read_tensors(tmp_path / 'ip.bin')) == [
        'image_proj.proj.weight',
        'ip_adapter.1.to_k_ip.weight',
    ]


@pytest.mark.parametrize('name', [n for n, row in OTHERS.items() if row[1] not in
                                  ('pia_unet', 'unet_motion')])  # fmt: skip
def test_what_is_no_motion_module_is_refused_by_its_title(name):
    tensors = unwrap(OTHERS[name][0](), 'x')
    with pytest.raises(WeightsError) as caught:
        split_motion(tensors, source='it.ckpt')
    assert FAMILIES[OTHERS[name][1]].title in str(caught.value)


@pytest.mark.parametrize(
    'tensors',
    [
        {'something': torch.ones(1)},
        {'weight': torch.ones(768, 4, 3)},
        {'a.weight': torch.ones(4, 768)},
        {'decoder.layers.0.weight': torch.ones(768)},
    ],
)
def test_unknown_files_name_their_first_keys(tensors):
    with pytest.raises(WeightsError, match=f'no known kind.*: {next(iter(tensors))}'):
        recognise(tensors)


def test_modules_of_other_widths_are_for_no_published_model():
    found = identify(public.empty(public.motion(public.TINY, 24)))
    assert (found.family, found.base, found.betas) == ('animatediff_v1', None, None)
    for widths, betas in ((public.TINY, None), (SD, FAMILIES['animatediff_v1'].betas)):
        tensors = public.empty(public.as_adapter(public.motion(widths, 24)))
        assert split_motion(tensors).betas == betas


def test_mixed_precision_is_told_and_shares_are_counted():
    tensors = public.filled(public.motion(public.TINY, 32, pia=True), torch.float16)
    tensors['conv_in.weight'] = tensors['conv_in.weight'].float()
    found = identify(tensors)
    assert found.precision == ('float16', 'float32')
    assert found.parts['conv_in'].tensors == 2
    assert found.parts['conv_in'].parameters == 8 * 81 + 8
