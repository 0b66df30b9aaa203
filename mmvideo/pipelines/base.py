"""What all pipelines do alike: their components, how they are made, and a call of their editor.

A pipeline is diffusers' call surface over an editor; it computes nothing itself.
N samples, C channels, T frames, L tokens, D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from mmvideo.errors import InputError, nearest
from mmvideo.pipelines.access import asks_hub
from mmvideo.pipelines.calls import Bar, bar_of, cpu_generators, step_function
from mmvideo.pipelines.features import Features
from mmvideo.pipelines.handles import refuse_others, single_file
from mmvideo.pipelines.loading import (
    NUMERICS,
    SD15_SCHEDULER,
    Numerics,
    build_denoiser,
    dtype_name,
    read_components,
    read_single,
    with_motion,
)
from mmvideo.pipelines.output import check_output_type, packed
from mmvideo.pipelines.saving import save_pipeline

_Self = TypeVar('_Self', bound='VideoPipeline')


class _Part:
    """A component that the editor has."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, pipeline: Any, owner: type | None = None) -> Any:
        return self if pipeline is None else getattr(pipeline.editor, self.name)

    def __set__(self, pipeline: Any, value: Any) -> None:
        setattr(pipeline.editor, self.name, value)


class Owner:
    """Whose adapters are in a denoiser; a copy of the denoiser has none and is nobody's."""

    def __init__(self, editor: Any = None) -> None:
        self.editor = editor

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Owner, ()


class VideoPipeline(Features):
    """Components around a denoiser; see the classes of the families.

    Args:
        numerics: ``'diffusers'`` computes what diffusers does, so the same weights, prompt and
            generator give the same video. ``'official'`` computes what the code computes that the
            weights were trained with, where that differs; see docs/parameters.md.
        components: of the family, named as in diffusers.

    Raises:
        InputError: a component that there is not, or that is missing or no such thing.
    """

    #: Registered name of each component by its name, in diffusers' order; ``?`` is optional.
    kinds: ClassVar[dict[str, str]] = {}
    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = ('latents',)
    in_channels: ClassVar[int | None] = None
    #: Whether callers see latents as [N, T, C, H, W].
    _frames_first: ClassVar[bool] = False
    #: What no single file tells.
    _file_scheduler: ClassVar[Mapping[str, Any]] = SD15_SCHEDULER

    #: Components that the editor does not hold.
    _own_parts: dict[str, Any]

    vae = _Part()
    unet = _Part()
    scheduler = _Part()

    def __init__(self, *, numerics: Numerics = 'diffusers', **components: Any) -> None:
        self._check_components(components)
        self.numerics = numerics
        given = {name: value for name, value in components.items() if value is not None}
        motion = given.pop('motion_adapter', None)
        self._adapted = motion is not None
        unet = build_denoiser(given['unet'], motion, numerics, self.in_channels)
        self._check_denoiser(unet)
        self.editor = self._make_editor(given | {'unet': unet}).eval()
        before = unet.__dict__.get('_owner')
        if before is not None and before.editor is not None:
            self._share_adapters(before.editor)
        unet._owner = Owner(self.editor)  # type: ignore[assignment]
        self._bar_config: dict[str, Any] = {}
        self._guidance_scale: float = 1.0
        self._num_timesteps = 0
        self._interrupt = False
        self._start_features()

    def _make_editor(self, parts: dict[str, Any]) -> Any:
        """The editor over components that are built."""
        raise NotImplementedError(type(self).__name__)

    @classmethod
    def _check_components(cls, components: Mapping[str, Any]) -> None:
        for name in components:
            if name not in cls.kinds:
                raise InputError(
                    f'{cls.__name__} takes no {name!r}.{nearest(name, [*cls.kinds, "numerics"])} '
                    f'Its components: {", ".join(cls.kinds)}.'
                )
        for name, kind in cls.kinds.items():
            if components.get(name) is None and not kind.endswith('?'):
                raise InputError(f'{cls.__name__} needs {name}: give a {kind}.')

    def _check_denoiser(self, unet: Any) -> None:
        """Raise InputError for a denoiser of another family."""

    # Ways to make one -------------------------------------------------------------------------

    @classmethod
    @asks_hub
    def from_pretrained(
        cls: type[_Self],
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | str | None = None,
        variant: str | None = None,
        revision: str | None = None,
        numerics: Numerics = 'diffusers',
        **components: Any,
    ) -> _Self:
        """Read a pipeline's folder or hub id.

        Args:
            pretrained_model_name_or_path: folder, hub id or ``package://NAME`` in diffusers'
                layout, also of a text-to-image model.
            torch_dtype: floating type of the weights; None is float32.
            variant: which files, such as 'fp16'.
            revision: branch, tag or commit on the hub.
            numerics: see the class.
            components: in place of the folder's: objects, of diffusers' classes or ours, or a path
                or hub id.

        Raises:
            InputError, WeightsError: naming the argument or the file.
        """
        given, others = cls._sorted(components)
        refuse_others(cls.__name__, others, ('torch_dtype', 'variant', 'revision', *cls.kinds))
        parts = read_components(
            pretrained_model_name_or_path, cls.kinds, given, torch_dtype, variant, revision
        )
        return cls(numerics=numerics, **parts)

    @classmethod
    @asks_hub
    def from_single_file(
        cls: type[_Self],
        pretrained_model_link_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        config: str | None = None,
        numerics: Numerics = 'diffusers',
        **components: Any,
    ) -> _Self:
        """Read a checkpoint in one file, such as a personalised Stable Diffusion 1.5.

        Args:
            pretrained_model_link_or_path: file, a file of a hub repository
                (``owner/name/model.safetensors``), or the link to one.
            torch_dtype: floating type of the weights; None is float32.
            revision: branch, tag or commit on the hub.
            config: folder or hub id of a pipeline with what no file has: the tokenizer's
                vocabulary, and its scheduler. None is the family's own, such as Stable Diffusion
                1.5's.
            numerics: see the class.
            components: in place of the file's.
        """
        given, others = cls._sorted(components)
        refuse_others(cls.__name__, others, ('torch_dtype', 'config', 'revision', *cls.kinds))
        path, revision = single_file(pretrained_model_link_or_path, revision)
        return cls(
            numerics=numerics,
            **read_single(
                path, cls.kinds, given, torch_dtype, revision, config, cls._file_scheduler
            ),
        )

    @classmethod
    def from_pipe(
        cls: type[_Self],
        pipeline: Any,
        *,
        torch_dtype: torch.dtype | str | None = None,
        numerics: Numerics | None = None,
        **components: Any,
    ) -> _Self:
        """A pipeline over the components of another, of ours or of diffusers.

        Components of ours are shared, adapters included. With ``motion_adapter`` the denoiser is
        made anew of the same image layers.

        Raises:
            InputError: the other lacks what this one needs, such as PIA's condition; or it has
                LoRAs, and the denoiser is made anew.
        """
        given, others = cls._sorted(components)
        refuse_others('from_pipe', others, ('torch_dtype', *cls.kinds))
        ours = isinstance(pipeline, VideoPipeline)
        parts = {n: v for n, v in dict(pipeline.components).items() if n in cls.kinds}
        numerics = numerics or (pipeline.numerics if ours else 'diffusers')
        motion = given.get('motion_adapter')
        if ours and motion is not None and 'unet' not in given:
            pipeline._refuse_loras()
            parts['unet'] = with_motion(pipeline.unet, motion, numerics, cls.in_channels)
        made = cls(numerics=numerics, **{**parts, **given})
        return made if torch_dtype is None else made.to(torch_dtype)

    def _share_adapters(self, editor: Any) -> None:
        """Have the adapters of an editor of the same networks; here there are none."""

    def _refuse_loras(self) -> None:
        """Raise InputError for LoRAs that a denoiser made anew would lose."""

    @classmethod
    def _sorted(cls, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Components, and everything else."""
        others = {name: value for name, value in given.items() if name not in cls.kinds}
        return {name: value for name, value in given.items() if name in cls.kinds}, others

    def save_pretrained(
        self, save_directory: str | Path, *, variant: str | None = None, **others: Any
    ) -> None:
        """Write the pipeline as diffusers and ``from_pretrained`` read it.

        Adapters are not written, as with diffusers; merged LoRAs are.
        """
        refuse_others('save_pretrained', others, ('safe_serialization', 'variant'))
        save_pipeline(self, Path(save_directory), variant)

    # Components -------------------------------------------------------------------------------

    @property
    def components(self) -> dict[str, Any]:
        """The components by name; an optional one that is absent is None."""
        return {name: getattr(self, name) for name in self.kinds}

    @property
    def config(self) -> dict[str, Any]:
        """Library and class of each component, as in ``model_index.json``."""
        return {name: _described(value) for name, value in self.components.items()}

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return self.editor.device

    @property
    def dtype(self) -> torch.dtype:
        """What the denoiser computes in."""
        return self.editor.dtype

    def to(self: _Self, *args: Any, **kwargs: Any) -> _Self:
        """Move all networks: to a device, a floating type, or both."""
        silent = {'silence_dtype_warnings', 'non_blocking'}
        device, dtype = kwargs.pop('device', None), kwargs.pop('dtype', None)
        dtype = kwargs.pop('torch_dtype', dtype)
        if set(kwargs) - silent:
            raise InputError(f'to() takes a device and a dtype, got {sorted(kwargs)}.')
        for value in args:
            if isinstance(value, torch.dtype):
                dtype = value
            else:
                device = value
        wanted: dict[str, Any] = {}
        if device is not None:
            wanted['device'] = torch.device(device)
        if dtype is not None:
            dtype_name(dtype)  # refuses what the networks do not run in
            wanted['dtype'] = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
        for module in self._modules():
            module.to(**wanted)
        return self

    def _modules(self) -> list[nn.Module]:
        own = [value for value in self._own_parts.values() if isinstance(value, nn.Module)]
        return [self.editor, *own]

    # A call -----------------------------------------------------------------------------------

    @property
    def guidance_scale(self) -> float:
        """Of the last call; a callback that lowers ``_guidance_scale`` to 1 ends guidance."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the last call is guided."""
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """Steps of the last call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback has ended the last call with ``_interrupt = True``."""
        return self._interrupt

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Arguments of tqdm, such as ``disable=True``."""
        self._bar_config = kwargs

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """A bar for a loop of the caller, over an iterable or for a number of steps."""
        if iterable is None and total is None:
            raise InputError('progress_bar: give an iterable or total.')
        return bar_of(self._bar_config, iterable, total)

    def _generate(
        self,
        *,
        generator: Any = None,
        output_type: str = 'pil',
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ('latents',),
        guidance: Any = 1.0,
        legacy: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> Any:
        """Call the editor.

        Args:
            guidance: the largest scale of guidance, for callbacks to look at.
            legacy: ``callback`` and ``callback_steps`` as diffusers had them first.
            arguments: of ``infer``.
        """
        check_output_type(output_type)
        inputs = getattr(callback_on_step_end, 'tensor_inputs', callback_on_step_end_tensor_inputs)
        self._check_inputs(inputs)
        self._interrupt, self._num_timesteps = False, 0
        self._guidance_scale = guidance
        on_step = step_function(self, callback_on_step_end, inputs, legacy or {})
        kind = 'latent' if output_type == 'latent' else 'video'
        with Bar(self._bar_config) as bar:
            result = self.editor.infer(
                generator=cpu_generators(generator),
                output_type=kind,
                on_step=on_step,
                callback=bar,
                **arguments,
            )
        return packed(result, output_type, return_dict)

    def _check_inputs(self, inputs: Sequence[str]) -> None:
        for name in inputs or ():
            if name not in self._callback_tensor_inputs:
                raise InputError(
                    f'callback_on_step_end_tensor_inputs: {name!r} is none of '
                    f'{list(self._callback_tensor_inputs)}.'
                    f'{nearest(name, self._callback_tensor_inputs)}'
                )

    def _more(self, kwargs: Mapping[str, Any], taken: Sequence[str]) -> dict[str, Any]:
        """Further arguments of a call, which the editor knows and diffusers does not."""
        known = set(inspect.signature(self.editor.infer).parameters) - set(taken) - _LIVE
        for name in kwargs:
            if name not in known:
                call = inspect.signature(type(self).__call__).parameters
                raise InputError(
                    f'{type(self).__name__} takes no {name!r}.{nearest(name, [*known, *call])}'
                )
        return dict(kwargs)


_LIVE = {'self', 'callback', 'on_step', 'generator', 'output_type'}


def _described(value: Any) -> list[str | None]:
    if value is None:
        return [None, None]
    kind = type(value)
    return [kind.__module__.split('.')[0], kind.__name__]


__all__ = ['NUMERICS', 'VideoPipeline']
