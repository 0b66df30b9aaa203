"""What is switched on and off between calls: FreeU, FreeInit, FreeNoise, ways to save memory."""

from __future__ import annotations

import logging
from typing import Any

import torch

from mmvideo.editors.options import read_options
from mmvideo.errors import InputError
from mmvideo.pipelines.handles import refuse_others

_LOG = logging.getLogger(__name__)


class Features:
    """Switches of a pipeline. The options of the editor are checked when they are switched on."""

    editor: Any

    def _start_features(self) -> None:
        self._options: dict[str, Any] = {}

    def _enable(self, name: str, **settings: Any) -> None:
        if name not in self.editor._OPTIONS:
            raise InputError(f'{type(self).__name__} has no {name}.')
        unet = self.editor.unet
        read_options({name: settings}, 1, unet.max_frames, len(unet.down_blocks))
        self._options[name] = settings

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Keep weights in main memory, and bring each network to the device when it is needed.

        Args:
            gpu_id: of several accelerators.
            device: where to compute; None is the first accelerator, or the CPU without one.
        """
        self.editor.offload('model', _accelerator(gpu_id, device))

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Likewise, layer by layer: slower, and the least memory."""
        self.editor.offload('sequential', _accelerator(gpu_id, device))

    def enable_group_offload(self, onload_device: Any = None, **others: Any) -> None:
        """Likewise, stage by stage of the denoiser.

        Args:
            onload_device: where to compute, as ``device`` above.
            others: refused; the stages are the groups.
        """
        refuse_others('enable_group_offload', others, ('onload_device',))
        self.editor.offload('group', _accelerator(None, onload_device))

    def remove_all_hooks(self) -> None:
        """Take offloading back; all networks are on the device."""
        self.editor.offload(None)

    def maybe_free_model_hooks(self) -> None:
        """Nothing to do: an offloaded network leaves the device by itself."""

    def enable_attention_slicing(self, slice_size: Any = 'auto') -> None:
        """Nothing to do: attention is fused and keeps no matrix of weights."""
        _LOG.info('attention slicing has no effect: attention is fused')

    def disable_attention_slicing(self) -> None:
        """Nothing to do, see ``enable_attention_slicing``."""

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Nothing to do: torch's own attention is memory-efficient."""
        _LOG.info("xformers has no effect: attention is torch's own, which is memory-efficient")

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Nothing to do, see ``enable_xformers_memory_efficient_attention``."""


class ImageFeatures(Features):
    """Switches of pipelines whose VAE and skip connections are those of an image model."""

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Weigh the skip connections anew, see ``mmvideo.diffusion.free_u``."""
        self._enable('free_u', s1=s1, s2=s2, b1=b1, b2=b2)

    def disable_freeu(self) -> None:
        """Take ``enable_freeu`` back."""
        self._options.pop('free_u', None)

    def enable_vae_slicing(self) -> None:
        """Decode frame by frame; slower, the same pictures."""
        self.editor.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Take ``enable_vae_slicing`` back."""
        self.editor.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Decode large frames in overlapping tiles."""
        self.editor.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Take ``enable_vae_tiling`` back."""
        self.editor.vae.disable_tiling()


def _accelerator(gpu_id: int | None, device: Any) -> torch.device:
    if device is not None:
        chosen = torch.device(device)
        return chosen if gpu_id is None else torch.device(chosen.type, gpu_id)
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return torch.device('cpu')
    return found if gpu_id is None else torch.device(found.type, gpu_id)


class MotionFeatures(ImageFeatures):
    """Switches of pipelines with motion modules."""

    @property
    def free_init_enabled(self) -> bool:
        """Whether FreeInit is on."""
        return 'free_init' in self._options

    @property
    def free_noise_enabled(self) -> bool:
        """Whether FreeNoise is on."""
        return 'free_noise' in self._options

    def enable_free_init(
        self,
        num_iters: int = 3,
        use_fast_sampling: bool = False,
        method: str = 'butterworth',
        order: int = 4,
        spatial_stop_frequency: float = 0.25,
        temporal_stop_frequency: float = 0.25,
    ) -> None:
        """Sample several times, see ``mmvideo.diffusion.free_init``."""
        self._enable(
            'free_init',
            num_iters=num_iters,
            use_fast_sampling=use_fast_sampling,
            method=method,
            order=order,
            spatial_stop_frequency=spatial_stop_frequency,
            temporal_stop_frequency=temporal_stop_frequency,
        )

    def disable_free_init(self) -> None:
        """Take ``enable_free_init`` back."""
        self._options.pop('free_init', None)

    def enable_free_noise(
        self,
        context_length: int | None = 16,
        context_stride: int = 4,
        weighting_scheme: str = 'pyramid',
        noise_type: str = 'shuffle_context',
        prompt_interpolation_callback: Any = None,
    ) -> None:
        """Clips longer than the motion modules see, see ``mmvideo.diffusion.free_noise``.

        Args:
            context_length: frames of a window; None is 16, or what the modules see if that is less.
            context_stride: frames from one window to the next.
            weighting_scheme: how windows are joined: see ``mmvideo.diffusion.windows``.
            noise_type: ``'shuffle_context'``, ``'repeat_context'`` or ``'random'``.
            prompt_interpolation_callback: refused; a prompt's key ``'interpolation'`` says it.
        """
        if prompt_interpolation_callback is not None:
            raise InputError(
                'prompt_interpolation_callback: keyframes of a prompt say how they are mixed, '
                "such as {0: 'spring', 15: 'summer', 'interpolation': 'ease-in-out'}."
            )
        self._enable(
            'free_noise',
            context_length=context_length,
            context_stride=context_stride,
            weighting_scheme=weighting_scheme,
            noise_type=noise_type,
        )

    def disable_free_noise(self) -> None:
        """Take ``enable_free_noise`` back."""
        self._options.pop('free_noise', None)

    def enable_free_noise_split_inference(
        self, spatial_split_size: int = 256, temporal_split_size: int = 16
    ) -> None:
        """Nothing to do: frames are attended to in bounded parts anyway."""
        _LOG.info('split inference has no effect; for less memory use windows=dict(length=...)')
