"""From a request to latents and pictures: what editors with a latent denoiser do alike.

N batch, C channels, T frames, t frames of a window, H W latent size.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmvideo.diffusion.deep_cache import DeepMemory
from mmvideo.diffusion.free_init import replace_high_frequencies
from mmvideo.diffusion.objective import add_noise
from mmvideo.diffusion.sampling import Callback, guide, sample
from mmvideo.editors.course import Course, set_steps
from mmvideo.editors.image_prompts import image_keys
from mmvideo.editors.offload import Offloading
from mmvideo.editors.options import block_names
from mmvideo.editors.out_of_memory import FrugalTrunk, TrunkCall, decode_frugally
from mmvideo.editors.prompts import PromptTrack, encode_rows
from mmvideo.editors.request import Request, Sample
from mmvideo.editors.strengths import LoraStrengths, PictureKeys, check_strengths
from mmvideo.errors import InputError
from mmvideo.models.conditioning.image_prompt import AdapterPrompt
from mmvideo.models.conditioning.text import chunks_needed, encode_prompts
from mmvideo.models.unet.context import DeepFeatures, ImageKeys

# Shares of a sampling, in [0, 1], where a step begins and ends.
Span = tuple[float, float]
# (scaled latents [N, C, t, H, W], frames [t] or None for all, timestep, span) -> prediction
Predict = Callable[[Tensor, 'Tensor | None', Tensor, Span], Tensor]


class Schedule(NamedTuple):
    """A scheduler of its own for one sampling of a clip, and the timesteps to take."""

    scheduler: Any
    timesteps: Tensor


class Denoising:
    """The sampling half of an editor, over its ``unet``, ``vae``, ``scheduler`` and texts."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    # How parts come to the device one at a time, see ``offload``; None when all are there.
    offloading: Offloading | None = None

    @property
    def device(self) -> torch.device:
        """Where the denoiser computes."""
        if self.offloading is not None:
            return self.offloading.device
        return next(self.unet.parameters()).device

    def offload(self, mode: str | None, device: str | torch.device | None = None) -> None:
        """Keep the weights in main memory and compute elsewhere.

        Args:
            mode: one of ``MODES``, see ``mmvideo.editors.offload``; None brings all back to where
                they were computed with.
            device: where to compute; None is where the denoiser is.

        Raises:
            ConfigError: no such mode.
        """
        place = self.device if device is None else torch.device(device)
        if self.offloading is not None:
            self.offloading.end()
            self.offloading = None
        assert isinstance(self, torch.nn.Module)
        if mode is None:
            self.to(place)
        else:
            self.offloading = Offloading(self, mode, place)

    @property
    def dtype(self) -> torch.dtype:
        """What the denoiser computes in."""
        return next(self.unet.parameters()).dtype

    @property
    def vae_scale(self) -> int:
        """Pixels along one side of a latent cell."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def _infer(self, request: Request, callback: Callback | None) -> dict[str, Tensor]:
        if callback is not None and not callable(callback):
            raise InputError(f'callback={callback!r}: expected a function or None.')
        check_strengths(getattr(self, 'adapters', ()), request.pictures, request.num_frames)
        groups = self._groups(request)
        latents = [self._denoise(group, request, callback) for group in groups]
        order = [item.index for group in groups for item in group]
        ordered = torch.cat(latents)[torch.tensor(order).argsort()]
        if request.output_type == 'latent':
            return dict(latents=ordered)
        return dict(samples=self.decode(ordered, request.decode_chunk_size))

    def _groups(self, request: Request) -> list[list[Sample]]:
        """Samples whose prompts need equally many chunks, so that none is padded for another."""
        groups: dict[int, list[Sample]] = {}
        for item in request.samples:
            count = self._token_count(item, request.options.guided)
            groups.setdefault(count, []).append(item)
        return list(groups.values())

    def _token_count(self, item: Sample, guided: bool) -> int:
        needed = partial(chunks_needed, self.tokenizer)
        return item.token_count(self.tokenizer.model_max_length, needed, guided)

    def _denoise(self, group: list[Sample], request: Request, callback: Callback | None) -> Tensor:
        """Sample once, or as often as FreeInit says; latents where ``_place`` has them."""
        rounds = request.options.rounds(request.num_inference_steps)
        schedules = [self._schedule(steps, request) for steps in rounds]
        counts = [len(schedule.timesteps) for schedule in schedules]
        generators = [item.generator for item in group]
        noise = self._draw(group, request).to(self._place(request))
        guided = request.options.guided
        text = self._context(group, guided, request)
        course = Course(text, guided, request.on_step, len(group))
        before = self._steps_before(request, schedules[0])
        total = before + sum(counts)
        latents = self._noised(group, request, schedules[0], noise, _counted(callback, 0, total))
        free_init = request.options.free_init
        low_pass = None if free_init is None else free_init.low_pass(*noise.shape[-3:])
        for turn, schedule in enumerate(schedules):
            if turn > 0:
                assert low_pass is not None, 'FreeInit alone samples more than once'
                # Low frequencies of the finished clip with its first noise, high frequencies of a
                # start from fresh noise.
                kept = self._noised_again(latents, request, schedule, noise)
                drawn = torch.stack([self._drawn(item, request) for item in group])
                fresh = self._noised(group, request, schedule, drawn.to(noise))
                latents = replace_high_frequencies(kept, fresh, low_pass)
            latents = sample(
                by_windows(self._conducted(course, group, request), request, counts[turn]),
                schedule.scheduler,
                latents,
                schedule.timesteps,
                generators,
                request.eta,
                _counted(callback, before + sum(counts[:turn]), total),
                course.after,
            )
        return latents

    def _draw(self, group: list[Sample], request: Request) -> Tensor:
        """Noise [N, C, T, H, W], and what else ``_prepare`` draws, in the order of the request."""
        noise = torch.stack([self._noise(item, request) for item in group])
        self._prepare(group, request)
        return noise

    def _conducted(self, course: Course, group: list[Sample], request: Request) -> Predict:
        """The denoiser as course and options have it in each step."""

        def make(guided: bool) -> Predict:
            return self._denoiser(group, request, course, guided)

        def predict(scaled: Tensor, frames: Tensor | None, timestep: Tensor, span: Span) -> Tensor:
            guided = course.guided and request.options.guides(span)
            return course.predict(make, guided, scaled, frames, timestep, span)

        return predict

    def _denoiser(
        self, group: list[Sample], request: Request, course: Course, guided: bool
    ) -> Predict:
        """The denoiser with or without guidance; what all its steps share is computed here."""
        options = request.options
        extra = self._condition(group, request, guided)
        conditions = self._conditions(group, request, extra, guided)
        images = self._picture_keys(group, request, guided)
        loras = LoraStrengths(getattr(self, 'adapters', ()), request.num_frames, self.device)
        controls = options.controls(block_names(len(self.unet.down_blocks)), self.device)
        conduct = self._conductor(group, request, guided)
        trunk = FrugalTrunk(self.unet, guided)
        told = {'guidance': float(options.guidance.values[0])} if options.told_guidance else {}
        memory = None if options.deep_cache is None else options.deep_cache.memory()

        def predict(scaled: Tensor, frames: Tensor | None, timestep: Tensor, span: Span) -> Tensor:
            noisy = torch.cat([scaled] * 2) if guided else scaled
            noisy = noisy.to(self.device, self.dtype)
            halves = self._model_input(noisy, extra, frames)
            seen = images.at(frames, span[0], self.device)
            changed = controls if frames is None else controls.at(frames)
            changed = replace(changed, windows=loras.windows(controls.windows, span[0]))
            if memory is not None:
                assert options.deep_cache is not None
                deep = _deep_features(memory, options.deep_cache.depth, frames, span)
                changed = replace(changed, deep=deep)
            step = timestep.to(self.device)
            text, added = course.rows(guided).at(frames), {}
            if conduct is not None:
                added = conduct(noisy, step, text, frames, span, controls.windows)
            text = loras.text(text, halves)
            call = TrunkCall(halves, text, seen, conditions, added, told)
            with loras.at(frames, span[0]):
                prediction = trunk(call, step, changed).to(scaled)
            if not guided:
                return prediction
            scale = options.guidance_scale(frames, span[0])
            return guide(prediction, scale if isinstance(scale, float) else scale.to(scaled))

        return predict

    def _picture_keys(self, group: list[Sample], request: Request, guided: bool) -> PictureKeys:
        """What the denoiser's layers see of the pictures that are prompts."""
        height, width = self._noise_shape(request)[-2:]

        def make(prompts: Sequence[AdapterPrompt]) -> dict[torch.nn.Module, list[ImageKeys]]:
            return image_keys(self, prompts, (height, width), len(group), guided)

        waits = request.options.windows is not None
        return PictureKeys(make, request.pictures, request.num_frames, waits)

    def _context(self, group: list[Sample], guided: bool, request: Request) -> PromptTrack:
        """The prompts' embeddings; every key of a timeline is encoded once."""
        count = max(1, self._token_count(group[0], guided) // self.tokenizer.model_max_length)

        def encode(texts: list[str], skip: int | None) -> Tensor:
            return encode_prompts(self.tokenizer, self.text_encoder, texts, count, skip)

        skip, unlike = request.clip_skip, request.negative_clip_skip
        halves = [([item.row for item in group], skip)]
        if guided:
            negative = [item.negative_row for item in group]
            halves.insert(0, (negative, skip if unlike is None else unlike))
        if len({skip or 0 for _, skip in halves}) == 1:
            halves = [([row for rows, _ in halves for row in rows], skip)]
        tracks = [
            encode_rows(rows, request.num_frames, partial(encode, skip=skip), self.device)
            for rows, skip in halves
        ]
        states = torch.cat([track.states for track in tracks]).to(self.dtype)
        timelines = [row for track in tracks for row in track.rows]
        return PromptTrack(states, timelines, request.num_frames)

    def _condition(self, group: list[Sample], request: Request, guided: bool) -> Any:
        """What stays the same in every step and is not text; None here."""
        return None

    def _conditions(
        self, group: list[Sample], request: Request, extra: Any, guided: bool
    ) -> dict[str, Tensor] | None:
        """What the denoiser's ``embeddings`` take in every step, by name; None here."""
        return None

    def _conductor(self, group: list[Sample], request: Request, guided: bool) -> Any:
        """What adds to the denoiser's layers in each step, see ``Conductor``; None here."""
        return None

    def _model_input(self, latents: Tensor, extra: Any, frames: Tensor | None) -> Tensor:
        """What the denoiser gets for ``frames`` [t] of the clip, None for all."""
        return latents

    # Starts -----------------------------------------------------------------------------------

    def _place(self, request: Request) -> torch.device:
        """Where latents stay: with windows on the CPU, so that the device sees one at a time."""
        windowed = request.options.windows is not None
        return torch.device('cpu') if windowed else self.device

    def _schedule(self, steps: int, request: Request) -> Schedule:
        scheduler = copy.deepcopy(self.scheduler)
        set_steps(scheduler, steps, request.timesteps, request.sigmas)
        return Schedule(scheduler, self._timesteps(scheduler, steps, request))

    def _timesteps(self, scheduler: Any, steps: int, request: Request) -> Tensor:
        return scheduler.timesteps

    def _noise(self, item: Sample, request: Request) -> Tensor:
        """[C, T, H, W] from the sample's own CPU generator, so it depends on nothing else."""
        if item.latents is not None:
            return item.latents.float()
        return self._drawn(item, request)

    def _drawn(self, item: Sample, request: Request) -> Tensor:
        noise = torch.randn(self._noise_shape(request), generator=item.generator)
        return request.options.repeated(noise, item.generator)

    def _noise_shape(self, request: Request) -> tuple[int, ...]:
        """(C, T, H, W) of one sample."""
        cells = (request.height // self.vae_scale, request.width // self.vae_scale)
        return (self.vae.config.latent_channels, request.num_frames, *cells)

    def _prepare(self, group: list[Sample], request: Request) -> None:
        """What else is drawn from the samples' generators, after their noise."""

    def _steps_before(self, request: Request, schedule: Schedule) -> int:
        """Calls of the denoiser that ``_noised`` needs."""
        return 0

    def _noised(
        self,
        group: list[Sample],
        request: Request,
        schedule: Schedule,
        noise: Tensor,
        callback: Callback | None = None,
    ) -> Tensor:
        """Latents at the noise level of the first timestep, float32, where ``noise`` is."""
        return noise * schedule.scheduler.init_noise_sigma

    def _noised_again(
        self, latents: Tensor, request: Request, schedule: Schedule, noise: Tensor
    ) -> Tensor:
        """A finished clip at the noise level where sampling starts.

        That is the end of training's schedule, in the scale that the scheduler starts from.
        """
        scheduler = schedule.scheduler
        alpha_bar = scheduler.alphas_cumprod[-1:].expand(len(latents))
        return add_noise(latents, noise, alpha_bar) * scheduler.init_noise_sigma

    # Pictures ---------------------------------------------------------------------------------

    def encode(self, pictures: Tensor, generator: torch.Generator, chunk_size: int = 16) -> Tensor:
        """Latents [F, C, H, W], float32 on the CPU, drawn for pictures [F, 3, H, W] in [-1, 1]."""
        parts = []
        for chunk in pictures.split(chunk_size):
            encoded = self.vae.encode(chunk.to(self.device, self.vae.dtype))
            if not hasattr(encoded, 'latent_dist'):  # a tiny VAE's are no distribution
                parts.append(encoded.latents.float())
                continue
            moments = encoded.latent_dist
            noise = torch.randn(moments.mean.shape, generator=generator)
            parts.append((moments.mean + moments.std * noise.to(moments.mean)).float().cpu())
        return torch.cat(parts) * self.vae.config.scaling_factor

    def decode(self, latents: Tensor, chunk_size: int = 16) -> Tensor:
        """Latents [N, C, T, H, W] to float32 pictures in [0, 1] on the CPU, by chunks of frames."""
        decoded = list(self.decode_chunks(latents.transpose(1, 2).flatten(0, 1), chunk_size))
        return torch.cat(decoded).unflatten(0, (latents.shape[0], -1)).transpose(1, 2).contiguous()

    @torch.no_grad()
    def decode_chunks(self, frames: Tensor, chunk_size: int = 16) -> Iterator[Tensor]:
        """Latents [F, C, H, W], on any device, to pictures [f, C, H, W] as they are decoded.

        A clip of any length needs memory for one chunk; one that is too large for the memory is
        halved, and so are those after it.

        Raises:
            InputError: the memory is too small for one frame.
        """
        while len(frames):
            pictures, chunk_size = decode_frugally(self._pictures, frames, chunk_size)
            frames = frames[len(pictures) :]
            yield pictures

    def _pictures(self, latents: Tensor) -> Tensor:
        """Latents [f, C, H, W] to pictures in [0, 1] on the CPU, at once."""
        latents = latents.to(self.device, self.vae.dtype) / self.vae.config.scaling_factor
        return self.vae.decode(latents).sample.float().add(1).div(2).clamp(0, 1).cpu()


def by_windows(
    predict: Predict, request: Request, steps: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """``predict`` for the whole clip, or for the windows of each of ``steps`` calls, joined."""
    plans, done = request.options.plans(), itertools.count()

    def denoise(scaled: Tensor, timestep: Tensor) -> Tensor:
        plan, step = next(plans), next(done)
        span = (step / steps, (step + 1) / steps)
        if plan is None:
            return predict(scaled, None, timestep, span)
        return plan.fuse(lambda part, frames: predict(part, frames, timestep, span), scaled, 2)

    return denoise


def _deep_features(
    memory: DeepMemory, depth: int, frames: Tensor | None, span: Span
) -> DeepFeatures:
    """What the denoiser is told of deep features: each window of a clip has its own."""
    key = None if frames is None else tuple(frames.tolist())
    step = round(span[0] / (span[1] - span[0]))
    return DeepFeatures(
        depth, memory.recall(key, step), lambda features: memory.keep(key, step, features)
    )


def _counted(callback: Callback | None, before: int, total: int) -> Callback | None:
    """``callback`` that counts the steps of all samplings of a clip."""
    if callback is None:
        return None
    return lambda step, _, latents: callback(before + step, total, latents)
