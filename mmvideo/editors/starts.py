"""Where sampling starts: from noise, or from a clip that is noised as far as ``strength`` says.

N samples, C channels, T frames, H W latent size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmvideo.editors.checks import check_range
from mmvideo.editors.denoising import Denoising, Schedule
from mmvideo.editors.request import Request, Sample
from mmvideo.errors import InputError

# Of a clip, where a call does not say it; the usual value of video to video.
USUAL_STRENGTH = 0.8


def read_strength(strength: Any, video: Any, picture: bool) -> Any:
    """The argument ``strength``, with its value where none is given.

    Args:
        strength: of the call, None for the usual.
        video: the clip to start from, None without.
        picture: whether the model could start from a picture.

    Raises:
        InputError: a strength that nothing takes.
    """
    if strength is None:
        return 1.0 if video is None else USUAL_STRENGTH
    check_range('strength', strength, 0, 1, open_low=True)
    if video is None and not picture and strength != 1:
        raise InputError(f'strength={strength!r} without a video: give the clip to start from.')
    return strength


class Starts(Denoising):
    """Sampling from a noised clip (Meng et al. 2022, SDEdit), else from noise.

    A sample whose ``extras`` have ``start``, latents [C, T, H, W], starts from these.
    """

    def _starts_from(self, item: Sample, request: Request) -> Tensor | None:
        """Clean latents [C, T, H, W] that a sample starts from; None starts from noise."""
        return item.extras.get('start')

    def _timesteps(self, scheduler: Any, steps: int, request: Request) -> Tensor:
        skipped = steps - min(int(steps * request.strength), steps)
        # FreeInit's short first rounds keep at least their last step.
        skipped = min(skipped, steps - 1) if steps < request.num_inference_steps else skipped
        if skipped == steps:
            raise InputError(
                f'strength={request.strength} leaves none of {steps} steps: raise one of them.'
            )
        order = getattr(scheduler, 'order', 1)
        if hasattr(scheduler, 'set_begin_index'):
            scheduler.set_begin_index(skipped * order)
        return scheduler.timesteps[skipped * order :]

    def _prepare(self, group: list[Sample], request: Request) -> None:
        super()._prepare(group, request)
        if request.video is None:
            return
        for item in group:
            latents = self.encode(request.video, item.generator, request.decode_chunk_size)
            item.extras['start'] = latents.transpose(0, 1)

    def _noised(
        self, group: list[Sample], request: Request, schedule: Schedule, noise: Tensor
    ) -> Tensor:
        clean = [self._starts_from(item, request) for item in group]
        known = [latents for latents in clean if latents is not None]
        if not known:
            return super()._noised(group, request, schedule, noise)
        assert len(known) == len(group), 'all samples start alike'
        return _at_start(schedule, torch.stack(known).to(noise), noise)

    def _noised_again(
        self, latents: Tensor, request: Request, schedule: Schedule, noise: Tensor
    ) -> Tensor:
        if request.strength >= 1 and request.video is None:
            return super()._noised_again(latents, request, schedule, noise)
        return _at_start(schedule, latents, noise)


def _at_start(schedule: Schedule, clean: Tensor, noise: Tensor) -> Tensor:
    """Clean latents [N, C, T, H, W] at the noise level of the first timestep."""
    first = schedule.timesteps[:1].repeat(len(clean))
    return schedule.scheduler.add_noise(clean, noise, first)
