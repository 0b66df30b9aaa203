"""Where sampling starts: from noise, or from a clip that is noised as far as ``strength`` says, or
from the noise that the clip itself would have come from.

N samples, C channels, T frames, H W latent size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmvideo.diffusion.inversion import METHODS, Inversion, invert
from mmvideo.diffusion.sampling import Callback
from mmvideo.editors.checks import check_choice, check_range, check_whole
from mmvideo.editors.course import Course
from mmvideo.editors.denoising import Denoising, Schedule, Span, by_windows
from mmvideo.editors.options import read_settings
from mmvideo.editors.request import Request, Sample
from mmvideo.editors.timeline import text_timeline
from mmvideo.errors import InputError

# Of a clip, where a call does not say it; the usual value of video to video.
USUAL_STRENGTH = 0.8


def read_strength(strength: Any, video: Any, picture: bool, inversion: Any = None) -> Any:
    """The argument ``strength``, with its value where none is given.

    Args:
        strength: of the call, None for the usual.
        video: the clip to start from, None without.
        picture: whether the model could start from a picture.
        inversion: of the call; the noise that it finds is all that is known of the clip, so the
            usual is 1 then.

    Raises:
        InputError: a strength that nothing takes.
    """
    if strength is None:
        return 1.0 if video is None or read_method(inversion) is not None else USUAL_STRENGTH
    check_range('strength', strength, 0, 1, open_low=True)
    if video is None and not picture and strength != 1:
        raise InputError(f'strength={strength!r} without a video: give the clip to start from.')
    return strength


def read_method(value: Any) -> Inversion | None:
    """The argument ``inversion``: a dict of settings, the name of a method, True or None."""
    if isinstance(value, str):
        value = {'type': value}
    found = read_settings(Inversion, 'inversion', value)
    if found is not None:
        check_choice('inversion.type', found.type, METHODS)
    return found


def read_inversion(arguments: Mapping[str, Any], scheduler: Callable[[], Any]) -> Inversion | None:
    """The argument ``inversion`` of a call, checked.

    Args:
        arguments: of the call.
        scheduler: gives the sampler, asked only where something is to be inverted.

    Raises:
        InputError: an inversion that cannot be, or that something else in the call works against.
    """
    found = read_method(arguments.get('inversion'))
    if found is None:
        return None
    if arguments.get('video') is None:
        raise InputError('inversion without a video: give the clip whose noise is looked for.')
    for name in ('latents', 'free_init'):
        if arguments.get(name) is not None and arguments[name] is not False:
            raise InputError(
                f'{name} with inversion: sampling starts from the noise of the clip, not from '
                'another; leave one of them out.'
            )
    if arguments.get('eta'):
        raise InputError(
            f'eta={arguments["eta"]!r} with inversion: noise of the sampler would lose the clip; '
            'use eta=0.'
        )
    sampler = scheduler()
    _check_invertible(sampler)
    if found.num_inference_steps is not None:
        most = sampler.config.num_train_timesteps
        check_whole('inversion.num_inference_steps', found.num_inference_steps, 1, most)
    if found.prompt is not None:
        name = 'inversion.prompt'
        text_timeline(found.prompt, name).check(name, arguments.get('video_length', 16))
    return found


def _check_invertible(scheduler: Any) -> None:
    name, config = type(scheduler).__name__, scheduler.config
    if name != 'DDIMScheduler':
        raise InputError(
            f'inversion: model.scheduler.type={name!r} cannot be followed backwards; use '
            "'DDIMScheduler'."
        )
    for key in ('clip_sample', 'thresholding', 'rescale_betas_zero_snr'):
        if config.get(key):
            raise InputError(
                f'inversion: model.scheduler.{key}=True loses what inversion looks for; use False.'
            )


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

    def _draw(self, group: list[Sample], request: Request) -> Tensor:
        starts = request.video is not None or request.strength < 1
        if request.draws == 'official' or not starts:
            return super()._draw(group, request)
        if request.video is None:  # diffusers draws noise first and drops it
            for item in group:
                self._noise(item, request)
        self._prepare(group, request)
        if request.video is None or request.options.free_noise is not None:
            return torch.stack([self._noise(item, request) for item in group])
        return torch.stack([self._by_frames(item, request) for item in group])

    def _by_frames(self, item: Sample, request: Request) -> Tensor:
        """Noise [C, T, H, W], drawn frame by frame."""
        if item.latents is not None:
            return item.latents.float()
        channels, frames, *cells = self._noise_shape(request)
        noise = torch.randn(frames, channels, *cells, generator=item.generator).transpose(0, 1)
        return request.options.repeated(noise, item.generator)

    def _prepare(self, group: list[Sample], request: Request) -> None:
        super()._prepare(group, request)
        if request.video is None:
            return
        for item in group:
            latents = self.encode(request.video, item.generator, request.decode_chunk_size)
            item.extras['start'] = latents.transpose(0, 1)

    def _steps_before(self, request: Request, schedule: Schedule) -> int:
        if request.inversion is None:
            return 0
        return len(self._rising(request, request.inversion, schedule))

    def _noised(
        self,
        group: list[Sample],
        request: Request,
        schedule: Schedule,
        noise: Tensor,
        callback: Callback | None = None,
    ) -> Tensor:
        clean = [self._starts_from(item, request) for item in group]
        known = [latents for latents in clean if latents is not None]
        if not known:
            return super()._noised(group, request, schedule, noise)
        assert len(known) == len(group), 'all samples start alike'
        start = torch.stack(known).to(noise)
        if request.inversion is not None:
            return self._inverted(group, request, request.inversion, schedule, start, callback)
        return _at_start(schedule, start, noise)

    def _inverted(
        self,
        group: list[Sample],
        request: Request,
        inversion: Inversion,
        schedule: Schedule,
        clean: Tensor,
        callback: Callback | None,
    ) -> Tensor:
        """Clean latents [N, C, T, H, W] as the noise they come from without guidance."""
        if inversion.prompt is not None:
            prompt = text_timeline(inversion.prompt, 'inversion.prompt')
            group = [replace(item, prompt=prompt, embeds=None) for item in group]
        exact = replace(request, options=replace(request.options, deep_cache=None))
        course = Course(self._context(group, False, exact), False, None, len(group))
        predict = self._denoiser(group, exact, course, False)

        def backwards(x: Tensor, frames: Tensor | None, timestep: Tensor, span: Span) -> Tensor:
            return predict(x, frames, timestep, (1 - span[1], 1 - span[0]))

        timesteps = self._rising(request, inversion, schedule)
        denoise = by_windows(backwards, exact, len(timesteps))
        return invert(denoise, clean, schedule.scheduler, timesteps, callback)

    def _rising(self, request: Request, inversion: Inversion, schedule: Schedule) -> Tensor:
        """Timesteps of the way back, up to the one where sampling begins."""
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(inversion.num_inference_steps or request.num_inference_steps)
        first = schedule.timesteps[:1]
        rising = scheduler.timesteps.flip(0)
        return torch.cat([rising[rising < first], first])

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
