"""Weights that a pipeline is given, read but not built in: motion modules, networks for controls.

They stand for diffusers' classes of the same names.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmvideo.checkpoints.load import dtype_of
from mmvideo.checkpoints.motion import MotionWeights, read_motion, split_motion
from mmvideo.checkpoints.save import save_part
from mmvideo.checkpoints.sources import DIFFUSERS_FILES, with_variant
from mmvideo.editors.parts import export_motion_adapter
from mmvideo.errors import ConfigError, InputError, nearest
from mmvideo.models.adapters.control_encoder import CLASSES
from mmvideo.models.adapters.controlnet import ControlNet, SparseCtrl
from mmvideo.models.unet import VideoUNet
from mmvideo.models.unet.context import NormScope
from mmvideo.pipelines.access import asks_hub

_URL = re.compile(r'https://(?:huggingface\.co|hf\.co)/([^/]+/[^/]+)/(?:blob|resolve)/([^/]+)/(.+)')
# Arguments of diffusers' loaders that change how files are read there, but never what is read.
WITHOUT_EFFECT = (
    *('low_cpu_mem_usage', 'use_safetensors', 'safety_checker', 'requires_safety_checker'),
    *('disable_mmap', 'keep_in_fp32_modules', 'load_safety_checker', 'low_cpu_mem_usage_gpu'),
    'resume_download',
)


def refuse_others(what: str, given: Mapping[str, Any], known: tuple[str, ...] = ()) -> None:
    """Raise InputError for an argument of a loader that it does not take."""
    for name in given:
        if name not in WITHOUT_EFFECT:
            hint = nearest(name, [*known, *WITHOUT_EFFECT])
            raise InputError(f'{what} takes no {name!r}.{hint}')


def single_file(link: str | Path, revision: str | None = None) -> tuple[str, str | None]:
    """A file as ``checkpoints`` names it, and its revision; also of a link to a file of the hub."""
    found = _URL.fullmatch(str(link).removesuffix('?download=true'))
    if found is None:
        return str(link), revision
    return f'{found[1]}/{found[3]}', revision or (None if found[2] == 'main' else found[2])


class MotionAdapter:
    """Motion modules for a pipeline; no network by itself.

    ``from_pretrained`` reads some; an adapter that is made by hand gets them from
    ``load_state_dict``.

    Args: those of diffusers; what tensors say themselves must agree with them.
    """

    def __init__(
        self,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        motion_layers_per_block: int | Sequence[int] = 2,
        motion_transformer_layers_per_block: int | Sequence[int] = 1,
        motion_mid_block_layers_per_block: int = 1,
        motion_transformer_layers_per_mid_block: int | Sequence[int] = 1,
        motion_num_attention_heads: int | Sequence[int] = 8,
        motion_norm_num_groups: int = 32,
        motion_max_seq_length: int = 32,
        use_motion_mid_block: bool = True,
        conv_in_channels: int | None = None,
    ) -> None:
        self._stated = {name: value for name, value in locals().items() if name != 'self'}
        self._weights: MotionWeights | None = None
        self._dtype: torch.dtype | None = None

    @classmethod
    def of(cls, weights: MotionWeights, dtype: torch.dtype | str | None = None) -> MotionAdapter:
        """One with these modules.

        Args:
            weights: see ``read_motion``.
            dtype: floating type that they are rounded to.
        """
        made = cls()
        made._weights = weights
        made._dtype = None if dtype is None else dtype_of(dtype)
        return made

    @classmethod
    def of_denoiser(cls, unet: VideoUNet) -> MotionAdapter:
        """The modules that are in a denoiser, as they are there: nothing is copied."""
        config, tensors = export_motion_adapter(unet)
        return cls.of(split_motion(tensors, config, 'unet'))

    @classmethod
    @asks_hub
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | str | None = None,
        subfolder: str | None = None,
        variant: str | None = None,
        revision: str | None = None,
        **others: Any,
    ) -> MotionAdapter:
        """Read motion modules: a folder or hub id, or any public file of AnimateDiff or PIA.

        Raises:
            WeightsError: the file is missing, damaged or holds something else.
        """
        refuse_others(cls.__name__, others, ('torch_dtype', 'subfolder', 'variant', 'revision'))
        source, revision = single_file(pretrained_model_name_or_path, revision)
        weights = read_motion(source, subfolder, variant=variant, revision=revision)
        return cls.of(weights, torch_dtype)

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        config: Any = None,
        **others: Any,
    ) -> MotionAdapter:
        """Read one file; what it is follows from its tensors, so ``config`` is not needed."""
        return cls.from_pretrained(
            pretrained_model_link_or_path, torch_dtype=torch_dtype, revision=revision, **others
        )

    @property
    def config(self) -> dict[str, Any]:
        """As in diffusers' ``config.json``."""
        return dict(self._stated if self._weights is None else self._weights.config)

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the weights."""
        if self._dtype is not None or self._weights is None:
            return self._dtype or torch.float32
        return next(iter(self._weights.tensors.values())).dtype

    @property
    def weights(self) -> MotionWeights:
        """The modules in the floating type that was asked for.

        Raises:
            InputError: there are none yet.
        """
        known = self._weights
        if known is None:
            raise InputError(
                'motion_adapter has no weights: adapter.load_state_dict(tensors), or '
                "MotionAdapter.from_pretrained('guoyww/animatediff-motion-adapter-v1-5-2')."
            )
        if self._dtype is None:
            return known
        kind, conv = self._dtype, known.conv_in
        return replace(
            known,
            tensors={name: value.to(kind) for name, value in known.tensors.items()},
            conv_in=None if conv is None else (conv[0].to(kind), conv[1].to(kind)),
        )

    def to(self, *args: Any, dtype: torch.dtype | None = None, device: Any = None) -> MotionAdapter:
        """Set the floating type; a device is left to the pipeline."""
        for value in (*args, dtype):
            if isinstance(value, torch.dtype):
                self._dtype = value
        return self

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False
    ) -> None:
        """Take modules, under diffusers' names or the original ones.

        Raises:
            WeightsError: no motion modules, or others than the constructor was told of.
            InputError: ``strict=False``.
        """
        if not strict:
            raise InputError('load_state_dict: weights are taken whole; leave strict=False out.')
        tensors = {name: value.detach().cpu() for name, value in state_dict.items()}
        self._weights = split_motion(tensors, self._stated, 'MotionAdapter.load_state_dict')

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors under diffusers' names, with PIA's convolution."""
        weights = self.weights
        conv = weights.conv_in
        joined = {} if conv is None else {'conv_in.weight': conv[0], 'conv_in.bias': conv[1]}
        return {**weights.tensors, **joined}

    def save_pretrained(self, save_directory: str | Path, **others: Any) -> None:
        """Write a folder that diffusers reads too."""
        refuse_others('save_pretrained', others, ('safe_serialization',))
        save_part(save_directory, self.config, self.state_dict())


def check_motion(given: Any) -> None:
    """Raise InputError for what is no motion adapter."""
    if isinstance(given, (MotionAdapter, str, Path)):
        return
    if type(given).__name__ != 'MotionAdapter' or not hasattr(given, 'state_dict'):
        raise InputError(
            f'motion_adapter is a {type(given).__name__}: expected a MotionAdapter, such as '
            "MotionAdapter.from_pretrained('guoyww/animatediff-motion-adapter-v1-5-2')."
        )


def motion_of(given: Any) -> MotionAdapter:
    """What a caller gives as ``motion_adapter``: a ``MotionAdapter`` of ours or of diffusers."""
    check_motion(given)
    if isinstance(given, MotionAdapter):
        return given
    if isinstance(given, (str, Path)):
        return MotionAdapter.from_pretrained(given)
    tensors = {name: value.detach() for name, value in given.state_dict().items()}
    stated = {k: v for k, v in dict(given.config).items() if not k.startswith('_')}
    return MotionAdapter.of(split_motion(tensors, stated, 'motion_adapter'))


def _variant_files(variant: str | None) -> tuple[str, ...]:
    single = tuple(name for name in DIFFUSERS_FILES if not name.endswith('.json'))
    return tuple(with_variant(name, variant) for name in single)


class _Loaded:
    """diffusers' ways to load a control network, for our own."""

    @classmethod
    @asks_hub
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | str | None = None,
        subfolder: str | None = None,
        variant: str | None = None,
        revision: str | None = None,
        **others: Any,
    ) -> Any:
        """Read a folder, hub id or file, in diffusers' layout or the original.

        Raises:
            WeightsError: the file is missing, damaged or holds something else.
        """
        known = ('torch_dtype', 'subfolder', 'variant', 'revision')
        refuse_others(cls.__name__, others, known)
        source, revision = single_file(pretrained_model_name_or_path, revision)
        net: Any = cls.__new__(cls)
        if variant is not None:
            net.__dict__['filenames'] = _variant_files(variant)
        net.__init__(source, subfolder=subfolder, revision=revision)
        return net if torch_dtype is None else net.to(dtype_of(torch_dtype))

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | Path, **arguments: Any) -> Any:
        """Read one file; what it is follows from its tensors."""
        return cls.from_pretrained(pretrained_model_link_or_path, **arguments)


class ControlNetModel(_Loaded, ControlNet):
    """A ControlNet for a pipeline; see ``ControlNet``."""


class SparseControlNetModel(_Loaded, SparseCtrl):
    """A SparseCtrl for a pipeline; see ``SparseCtrl``. Its norms are those of diffusers."""

    def __init__(
        self, from_pretrained: str | Path, norm_scope: NormScope = 'clip', **settings: Any
    ) -> None:
        super().__init__(from_pretrained, norm_scope=norm_scope, **settings)


def controls_of(given: Any) -> list[ControlNet]:
    """What a caller gives as ``controlnet``: one or several, of ours or of diffusers."""
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    found: list[ControlNet] = []
    for net in listed:
        if isinstance(net, ControlNet):
            found.append(net)
        elif type(net).__name__ == 'MultiControlNetModel':
            found += controls_of(list(net.nets))
        elif type(net).__name__ in CLASSES and hasattr(net, 'save_pretrained'):
            found.append(_converted(net))
        else:
            raise ConfigError(
                f'controlnet is a {type(net).__name__}: expected a ControlNetModel or a '
                'SparseControlNetModel, or a list of them.'
            )
    return found


def _converted(net: Any) -> ControlNet:
    kind = SparseControlNetModel if type(net).__name__.startswith('Sparse') else ControlNetModel
    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        return kind.from_pretrained(folder).to(device=net.device, dtype=net.dtype)
