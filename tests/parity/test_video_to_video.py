"""Video to video end to end against diffusers' pipeline, from the same clip, noise and strength."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import two_pipelines as parts
from diffusers import AnimateDiffVideoToVideoPipeline
from torch import Tensor

FRAMES, SIZE, CELLS = parts.FRAMES, parts.SIZE, parts.CELLS
SAMPLERS = {
    'DDIMScheduler': None,
    'EulerDiscreteScheduler': None,
    # Two calls of the denoiser a step, so twice as many timesteps are skipped.
    'HeunDiscreteScheduler': parts.BETAS,
}


def clip() -> Tensor:
    """[T, 3, H, W] in [0, 1], of 8 bit."""
    values = torch.rand(FRAMES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    return parts.eight_bit(values)


@pytest.mark.parametrize('strength', [0.5, 1.0])
@pytest.mark.parametrize('sampler', SAMPLERS)
def test_video_to_video(pairs: Callable, sampler: str, strength: float) -> None:
    """diffusers draws the clip's latents first, so the editor gets the noise that follows."""
    pair = pairs('v2')
    editor = pair.use(sampler, SAMPLERS[sampler])
    pipeline = AnimateDiffVideoToVideoPipeline(
        **{n: c for n, c in pair.pipeline.components.items() if c is not None}
    )
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(31)
    torch.randn(FRAMES, 4, CELLS, CELLS, generator=generator)
    noise = torch.randn(1, FRAMES, 4, CELLS, CELLS, generator=generator).transpose(1, 2)
    shared = dict(prompt=parts.PROMPTS[0], strength=strength, guidance_scale=4.0)
    parts.compare(
        editor,
        pipeline,
        dict(
            shared,
            video=clip(),
            latents=noise,
            generator=torch.Generator().manual_seed(31),
            video_length=FRAMES,
        ),
        dict(
            shared,
            video=[[frame.permute(1, 2, 0).numpy() for frame in clip()]],
            height=SIZE,
            width=SIZE,
            generator=torch.Generator().manual_seed(31),
        ),
        steps=4,
    )
