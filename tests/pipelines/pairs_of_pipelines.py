"""diffusers' pipelines with random weights, ours of the same folders, and a way to compare them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import two_pipelines as parts
from torch import Tensor

from mmvideo.checkpoints.save import write_json


class Both:
    """A pipeline of diffusers and ours, read from what it saved."""

    def __init__(self, folder: Path, theirs: Any, ours: Any) -> None:
        self.folder, self.theirs, self.ours = folder, theirs, ours
        for pipeline in (theirs, ours):
            pipeline.set_progress_bar_config(disable=True)

    def __iter__(self) -> Any:
        return iter((self.theirs, self.ours))

    def compare(self, seed: int = 11, limit: float = 1e-4, **arguments: Any) -> Tensor:
        """The same call of both gives the same frames; those of ours, [N, T, C, H, W]."""
        found = [
            pipeline(**arguments, output_type='pt', generator=seeded(seed)).frames
            for pipeline in self
        ]
        expected, ours = (torch.as_tensor(frames) for frames in found)
        assert ours.shape == expected.shape
        assert float((ours - expected).abs().max()) <= limit
        assert float(expected.std()) > 0.02
        assert float(expected.diff(dim=1).abs().max()) > 1e-3
        return ours


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def both_of(folder: Path, theirs: Any, name: str | None = None, **components: Any) -> Both:
    """Save a pipeline of diffusers and read it with ours of the same name."""
    import mmvideo.pipelines

    theirs.save_pretrained(folder)
    kind = getattr(mmvideo.pipelines, name or type(theirs).__name__)
    return Both(folder, theirs, kind.from_pretrained(folder, **components))


def call(frames: int = 4, steps: int = 2, **changes: Any) -> dict[str, Any]:
    """A short call with a prompt."""
    shared = dict(prompt=parts.PROMPTS[0], negative_prompt=parts.NEGATIVE, guidance_scale=4.0)
    sizes = dict(height=parts.SIZE, width=parts.SIZE, num_frames=frames, num_inference_steps=steps)
    return shared | sizes | changes


@pytest.fixture(scope='session')
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Both]:
    """A pair of a family: 'v1', 'v2' (AnimateDiff) or 'pia', made once; schedulers are reset."""
    import diffusers

    known: dict[str, Both] = {}

    def get(family: str) -> Both:
        scheduler = diffusers.DDIMScheduler(**parts.SAMPLERS['DDIMScheduler'])
        if family not in known:
            folder = tmp_path_factory.mktemp(family)
            kind = 'PIAPipeline' if family == 'pia' else 'AnimateDiffPipeline'
            components = parts.write_folders(folder / 'parts', family)
            theirs = getattr(diffusers, kind)(**components, scheduler=scheduler)
            known[family] = both_of(folder / 'whole', theirs)
        for pipeline in known[family]:
            pipeline.scheduler = type(scheduler).from_config(scheduler.config)
        return known[family]

    return get


def image_folder(make: Callable, folder: Path) -> Path:
    """A text-to-image model as the hub has it, without motion modules."""
    pair = make('v2')
    source = pair.folder.parent / 'parts'
    import diffusers

    unet = diffusers.UNet2DConditionModel.from_pretrained(source / 'unet')
    unet.save_pretrained(folder / 'unet')
    for name in ('vae', 'text_encoder', 'tokenizer', 'scheduler'):
        # As it was saved: other tests teach the pipeline words, and diffusers leaves traces.
        shutil.copytree(pair.folder / name, folder / name)
    parts_of = {
        'vae': ['diffusers', 'AutoencoderKL'],
        'text_encoder': ['transformers', 'CLIPTextModel'],
        'tokenizer': ['transformers', 'CLIPTokenizer'],
        'unet': ['diffusers', 'UNet2DConditionModel'],
        'scheduler': ['diffusers', 'DDIMScheduler'],
        'safety_checker': [None, None],
        'feature_extractor': [None, None],
    }
    write_json(folder / 'model_index.json', {'_class_name': 'StableDiffusionPipeline', **parts_of})
    return folder
