"""The components of a pipeline: read from a folder, hub id or file, or as a caller gives them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

import mmvideo.editors
import mmvideo.models  # noqa: F401
from mmvideo.checkpoints.files import read_json
from mmvideo.checkpoints.layouts import FAMILIES, recognise
from mmvideo.checkpoints.load import DTYPES, dtype_of
from mmvideo.checkpoints.sources import PIPELINE, resolve
from mmvideo.editors.checks import check_choice
from mmvideo.editors.parts import (
    Blueprint,
    export_unet_config,
    image_blueprint,
    join_motion,
    realise,
    widen,
)
from mmvideo.errors import InputError, WeightsError, nearest
from mmvideo.models.borrowed import SCHEDULER_NAMES
from mmvideo.models.unet import VideoUNet, diffusers_norm_eps, unet_arguments
from mmvideo.pipelines.handles import MotionAdapter, check_motion, motion_of
from mmvideo.registry import MODELS, SCHEDULERS, TOKENIZERS

# Whose arithmetic the networks have, where diffusers' differs from the code their weights were
# trained with.
Numerics = Literal['diffusers', 'official']
NUMERICS = ('diffusers', 'official')
STABLE_DIFFUSION = 'stable-diffusion-v1-5/stable-diffusion-v1-5'
# Schedulers of the families, which no single file tells.
SD15_SCHEDULER = dict(
    type='PNDMScheduler',
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule='scaled_linear',
    steps_offset=1,
    skip_prk_steps=True,
    set_alpha_to_one=False,
)
SVD_SCHEDULER = dict(
    type='EulerDiscreteScheduler',
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule='scaled_linear',
    prediction_type='v_prediction',
    timestep_type='continuous',
    timestep_spacing='leading',
    steps_offset=1,
    use_karras_sigmas=True,
    sigma_min=0.002,
    sigma_max=700.0,
)
_BUILDERS = {
    'vae': MODELS,
    'text_encoder': MODELS,
    'image_encoder': MODELS,
    'feature_extractor': MODELS,
    'tokenizer': TOKENIZERS,
}
_WITH_WEIGHTS = ('vae', 'text_encoder', 'image_encoder')
_FRESH = '.motion_modules.'


def read_components(
    source: str | Path,
    kinds: Mapping[str, str],
    given: Mapping[str, Any],
    dtype: torch.dtype | str | None = None,
    variant: str | None = None,
    revision: str | None = None,
) -> dict[str, Any]:
    """The components of a pipeline's folder or hub id, but for those that are given.

    Args:
        source: with a ``model_index.json``.
        kinds: registered name of each component; an optional one ends with ``?``.
        given: components of the caller, also as a path or hub id of their own.
        dtype: floating type of the weights; None is float32.
        variant: which files, such as 'fp16'.
        revision: branch, tag or commit on the hub.

    Raises:
        WeightsError: naming the part and the file.
    """
    index = read_json(resolve(source, filenames=(PIPELINE,), revision=revision))
    name = dtype_name(dtype)
    where = dict(from_pretrained=str(source), revision=revision)
    found: dict[str, Any] = {}
    for part, kind in kinds.items():
        listed = isinstance(index.get(part), list) and index[part][0] is not None
        if part in given:
            found[part] = _given(part, kind, given[part], name)
        elif part == 'scheduler':
            found[part] = read_scheduler(index, where)
        elif part == 'unet':
            found[part] = dict(where, subfolder=part, variant=variant, dtype=name)
        elif part == 'motion_adapter':
            continue  # a saved denoiser has its motion modules in it
        elif listed or not kind.endswith('?'):
            found[part] = _build(part, kind, name, dict(where, subfolder=part), variant)
    return found


def _given(part: str, kind: str, value: Any, dtype: str) -> Any:
    """A component of the caller; one that is a path or hub id is read."""
    if not isinstance(value, (str, Path)):
        return value
    where = dict(from_pretrained=str(value))
    if part == 'unet':
        return dict(where, dtype=dtype)
    return _build(part, kind, dtype, where) if part in _BUILDERS else value


def read_single(
    path: str,
    kinds: Mapping[str, str],
    given: Mapping[str, Any],
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    config: str | None = None,
    scheduler: Mapping[str, Any] = SD15_SCHEDULER,
) -> dict[str, Any]:
    """The components of a checkpoint in one file, but for those that are given.

    Args:
        path: file, here or on the hub.
        config: folder or hub id of a pipeline that has what no file has: the vocabulary of the
            tokenizer, and the scheduler. None is Stable Diffusion 1.5's vocabulary.
        scheduler: the family's, where there is no ``config``.
    """
    name = dtype_name(dtype)
    found = {part: _given(part, kinds[part], value, name) for part, value in given.items()}
    needed = [part for part, kind in kinds.items() if part not in given and kind[-1] != '?']
    if 'tokenizer' in needed:  # first, as it is small and may have to be fetched
        source = config or STABLE_DIFFUSION
        found['tokenizer'] = _build('tokenizer', 'CLIPTokenizer', name, {'from_pretrained': source})
    if 'scheduler' in needed and config is not None:
        index = read_json(resolve(config, filenames=(PIPELINE,)))
        found['scheduler'] = read_scheduler(index, dict(from_pretrained=config))
    elif 'scheduler' in needed:
        found['scheduler'] = SCHEDULERS.build(dict(scheduler))
    where = dict(from_pretrained=path, revision=revision)
    for part in _WITH_WEIGHTS:
        if part in needed:
            found[part] = _build(part, kinds[part], name, where)
    if 'image_encoder' in needed and 'feature_extractor' not in given:  # for who saves it
        size = found['image_encoder'].config.image_size
        found['feature_extractor'] = MODELS.build(dict(type='CLIPImageProcessor', image_size=size))
    if 'unet' in needed:
        found['unet'] = dict(where, dtype=name)
    return found


def read_scheduler(index: Mapping[str, Any], where: Mapping[str, Any]) -> Any:
    """The scheduler that a pipeline's index names."""
    kind = (index.get('scheduler') or [None, None])[1]
    if kind not in SCHEDULER_NAMES:
        raise WeightsError(
            f'{where["from_pretrained"]}: its scheduler is {kind!r}; give one of your own with '
            f'scheduler=..., such as one of {", ".join(SCHEDULER_NAMES)}.'
            f'{nearest(str(kind), SCHEDULER_NAMES)}'
        )
    return SCHEDULERS.build(dict(where, type=kind, subfolder='scheduler'))


def _build(
    part: str, kind: str, dtype: str, where: dict[str, Any], variant: str | None = None
) -> Any:
    config = dict(where, type=kind.removesuffix('?'))
    if part == 'tokenizer' and 'subfolder' not in config:
        config['subfolder'] = 'tokenizer' if _has_folder(where, 'tokenizer') else None
    if part in _WITH_WEIGHTS:
        config |= dict(dtype=dtype, variant=variant)
    return _BUILDERS[part].build(config)


def _has_folder(where: Mapping[str, Any], name: str) -> bool:
    """Whether a source is a whole pipeline: a local folder says, a hub id is taken as one."""
    root = Path(where['from_pretrained']).expanduser()
    return (root / name).is_dir() if root.is_dir() else True


def dtype_name(dtype: torch.dtype | str | None) -> str:
    """The name of a floating type as configs have it.

    Raises:
        WeightsError: another type than float32, float16 or bfloat16.
    """
    if dtype is None or dtype == 'auto':
        return 'float32'
    wanted = dtype_of(dtype)
    names = [name for name, kind in DTYPES.items() if kind == wanted]
    if not names:
        raise WeightsError(f'torch_dtype={dtype}: expected one of {list(DTYPES)}.')
    return names[0]


# The denoiser ---------------------------------------------------------------------------------


def build_denoiser(
    unet: Any,
    motion: Any = None,
    numerics: Numerics = 'diffusers',
    in_channels: int | None = None,
) -> VideoUNet:
    """The denoiser of a pipeline.

    Args:
        unet: where its weights are, as a part's config; a model of diffusers; or a ``VideoUNet``.
        motion: motion modules to join an image UNet; ignored where ``unet`` has some, as diffusers
            does with what it saved.
        numerics: whose arithmetic; see ``NUMERICS``.
        in_channels: 9 for PIA.

    Raises:
        InputError, WeightsError: what is given does not make such a denoiser.
    """
    check_choice('numerics', numerics, NUMERICS)
    if motion is not None:
        check_motion(motion)
    if isinstance(unet, VideoUNet):
        whole = motion is None or unet.max_frames is not None
        return unet if whole else with_motion(unet, motion, numerics, in_channels)
    plan = image_blueprint(unet) if isinstance(unet, Mapping) else _blueprint_of(unet)
    return _finished(plan, motion, numerics, in_channels)


def with_motion(
    unet: VideoUNet, motion: Any, numerics: Numerics, in_channels: int | None = None
) -> VideoUNet:
    """A denoiser of the same image layers with other motion modules; it shares no memory."""
    state = unet.state_dict()
    tensors = {name: value for name, value in state.items() if _FRESH not in name}
    family = ('motion_module', 'motion_mid_block', 'resnet_norm_scope')
    settings = {k: v for k, v in unet.settings.items() if k not in family}
    channels = unet.out_channels
    settings['in_channels'] = channels
    tensors['conv_in.weight'] = tensors['conv_in.weight'][:, :channels]
    plan = Blueprint(settings, tensors, dtype_name(next(unet.parameters()).dtype))
    return _finished(plan, motion, numerics, in_channels)


def _finished(
    plan: Blueprint, motion: Any, numerics: Numerics, in_channels: int | None
) -> VideoUNet:
    if plan.settings.get('temporal_mixing') and numerics == 'diffusers':
        plan.settings['norm_eps'] = diffusers_norm_eps(plan.settings)
    joined = plan.settings.get('motion_module') is not None
    if joined:
        _set_scopes(plan, numerics)
    elif motion is not None:
        _join(plan, motion_of(motion), numerics, in_channels)
    built = realise(plan)
    if numerics == 'diffusers' and 'image_latents_temporal_encoder' in built.embedding_names:
        built.image_latents_temporal_encoder.gain = 1.0  # type: ignore[assignment, union-attr]
    return with_config(built)


def _join(
    plan: Blueprint, motion: MotionAdapter, numerics: Numerics, in_channels: int | None
) -> None:
    weights = motion.weights
    if weights.conv_in is not None and in_channels is None:
        raise InputError(
            f'motion_adapter: it is {FAMILIES[weights.family].title}, which only PIAPipeline uses.'
        )
    if weights.conv_in is None and in_channels is not None:
        raise InputError(
            f'motion_adapter: it is {FAMILIES[weights.family].title}, without the convolution of '
            "PIA's condition: give PIA's, MotionAdapter.from_pretrained("
            "'openmmlab/PIA-condition-adapter')."
        )
    keys = {}
    if numerics == 'diffusers':
        plan.settings['resnet_norm_scope'], keys = 'frame', {'norm_scope': 'clip'}
    join_motion(plan, weights, keys)
    if in_channels is not None:
        widen(plan, in_channels, weights, 'base')


def _set_scopes(plan: Blueprint, numerics: Numerics) -> None:
    """The norm scopes of a denoiser that comes with its motion modules."""
    scopes = {'resnet_norm_scope': 'frame', 'motion_norm_scope': 'clip'}
    if numerics == 'official':
        motion = {k: v for k, v in plan.tensors.items() if _FRESH in k}
        family = 'pia' if plan.settings.get('in_channels', 4) == 9 else recognise(motion)
        scopes = {'resnet_norm_scope': 'frame', 'motion_norm_scope': 'frame'}
        scopes |= FAMILIES[family].norm_scopes
    plan.settings['resnet_norm_scope'] = scopes['resnet_norm_scope']
    plan.settings['motion_module']['norm_scope'] = scopes['motion_norm_scope']


def _blueprint_of(model: Any) -> Blueprint:
    """A model of diffusers as a plan; its tensors are copied when it is carried out."""
    if not hasattr(model, 'state_dict') or not hasattr(model, 'config'):
        raise InputError(
            f'unet is a {type(model).__name__}: expected a UNet2DConditionModel, a '
            'UNetMotionModel or a VideoUNet.'
        )
    config = dict(model.config) | {'_class_name': type(model).__name__}
    tensors = {name: value.detach() for name, value in model.state_dict().items()}
    return Blueprint(unet_arguments(config), tensors, dtype_name(model.dtype))


def with_config(unet: VideoUNet) -> VideoUNet:
    """The denoiser with diffusers' ``config`` beside it, for scripts that read it."""
    from diffusers.configuration_utils import FrozenDict

    told = {
        key: getattr(unet, key)
        for key in ('sample_size', 'in_channels', 'out_channels', 'cross_attention_dim')
    }
    unet.config = FrozenDict(told | export_unet_config(unet))  # type: ignore[assignment]
    return unet
