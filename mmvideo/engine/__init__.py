"""Training: runner, loop, optimizer wrapper, hooks. Joins MMEngine with the editors."""

from mmvideo.engine.checkpoint_hook import CheckpointHook
from mmvideo.engine.ema import EMAHook
from mmvideo.engine.export import ExportHook
from mmvideo.engine.loops import StepTrainLoop
from mmvideo.engine.nonfinite import NonFiniteGuard
from mmvideo.engine.optim import AutocastOptimWrapper, TrainableParams
from mmvideo.engine.runner import VideoRunner
from mmvideo.engine.samples import SampleHook

__all__ = [
    'AutocastOptimWrapper',
    'CheckpointHook',
    'EMAHook',
    'ExportHook',
    'NonFiniteGuard',
    'SampleHook',
    'StepTrainLoop',
    'TrainableParams',
    'VideoRunner',
]
