"""diffusers' pipelines for what mmvideo makes, with their call surface: only the import changes.

    from mmvideo.pipelines import AnimateDiffPipeline, DDIMScheduler, MotionAdapter, export_to_gif

Schedulers and other components are diffusers' own classes; they are imported when they are named.
"""

from __future__ import annotations

import importlib
from typing import Any

# Where each name is; nothing is imported before it is asked for.
_HERE = {
    'animatediff': (
        'AnimateDiffControlNetPipeline',
        'AnimateDiffPipeline',
        'AnimateDiffSparseControlNetPipeline',
        'AnimateDiffVideoToVideoControlNetPipeline',
        'AnimateDiffVideoToVideoPipeline',
    ),
    'pia': ('PIAPipeline',),
    'video': ('I2VGenXLPipeline', 'StableVideoDiffusionPipeline'),
    'handles': ('ControlNetModel', 'MotionAdapter', 'SparseControlNetModel'),
    'output': ('VideoOutput', 'export_to_gif', 'export_to_video'),
}
_THEIRS = {
    'diffusers': (
        *('AutoencoderKL', 'AutoencoderKLTemporalDecoder', 'UNet2DConditionModel'),
        *('DDIMScheduler', 'DDPMScheduler', 'DEISMultistepScheduler', 'LCMScheduler'),
        *('DPMSolverMultistepScheduler', 'DPMSolverSinglestepScheduler', 'HeunDiscreteScheduler'),
        *('EulerAncestralDiscreteScheduler', 'EulerDiscreteScheduler', 'LMSDiscreteScheduler'),
        *('KDPM2AncestralDiscreteScheduler', 'KDPM2DiscreteScheduler', 'PNDMScheduler'),
        *('TCDScheduler', 'UniPCMultistepScheduler'),
    ),
    'diffusers.utils': ('load_image', 'load_video'),
}
_PLACES = {name: f'mmvideo.pipelines.{module}' for module, names in _HERE.items() for name in names}
_PLACES |= {name: module for module, names in _THEIRS.items() for name in names}
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        from mmvideo.errors import nearest

        hint = nearest(name, _PLACES)
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}.{hint}')
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(_PLACES)
