"""The course of a sampling: its steps, and what a caller may change between them.

N samples, C channels, T frames, H W latent size, R rows (the samples, behind their unguided
halves with guidance), L tokens, D width.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmvideo.editors.checks import check_choice
from mmvideo.editors.prompts import PromptTrack
from mmvideo.errors import InputError

# The order of random draws: noise first, as the official code, or after what a start needs.
DRAWS = ('official', 'diffusers')


@dataclass
class Step:
    """A step that is done. What a caller changes here counts from the next step on.

    Attributes:
        index: of the step, from 0; FreeInit's samplings each count from 0.
        count: steps of this sampling.
        timestep: that was taken.
        latents: [N, C, T, H, W].
        text: of all rows, see ``PromptTrack``; ``embeds`` reads and changes it.
        guided: whether the first half of the rows is the unguided one. Setting it to False, with
            ``embeds`` of the N samples alone, ends guidance.
        stop: no further step is taken.
    """

    index: int
    count: int
    timestep: Tensor
    latents: Tensor
    text: PromptTrack
    guided: bool
    stop: bool = False

    @property
    def embeds(self) -> Tensor:
        """The text of every row, [R, L, D], or [R, T, L, D] where it changes over the frames."""
        states = self.text.at()
        rows = len(self.text.rows)
        return states if len(states) == rows else states.unflatten(0, (rows, -1))

    @embeds.setter
    def embeds(self, value: Tensor) -> None:
        self.text = PromptTrack.of(value, self.text.num_frames)


OnStep = Callable[[Step], None]
# Whether with guidance -> a denoiser that takes its text from the course.
MakePredict = Callable[[bool], Callable[..., Tensor]]


class Course:
    """Text and guidance of one sampling, which ``on_step`` may change.

    Args:
        text: of all rows.
        guided: whether the unguided half comes first.
        on_step: of the caller.
        samples: N.
    """

    def __init__(
        self, text: PromptTrack, guided: bool, on_step: OnStep | None, samples: int
    ) -> None:
        self.text, self.guided = text, guided
        self.on_step, self.samples = on_step, samples
        self._predicts: dict[bool, Callable[..., Tensor]] = {}

    def predict(self, make: MakePredict, guided: bool, *arguments: Any) -> Tensor:
        """What the denoiser predicts, with guidance or without; each is made when it is needed."""
        if guided not in self._predicts:
            self._predicts[guided] = make(guided)
        return self._predicts[guided](*arguments)

    def rows(self, guided: bool) -> PromptTrack:
        """The text of a denoiser; without guidance it sees the prompts alone."""
        return self.text if guided == self.guided else self.text.last(self.samples)

    def after(self, index: int, count: int, timestep: Tensor, latents: Tensor) -> Tensor | None:
        """The latents to go on with after a step; None to stop."""
        if self.on_step is None:
            return latents
        step = Step(index, count, timestep, latents, self.text, self.guided)
        self.on_step(step)
        if step.latents.shape != latents.shape:
            raise InputError(
                f'on_step: latents of the shape {list(step.latents.shape)}, expected '
                f'{list(latents.shape)}.'
            )
        if len(step.text.rows) != self.samples * (1 + step.guided):
            raise InputError(
                f'on_step: embeddings of {len(step.text.rows)} rows for {self.samples} samples '
                f'{"with" if step.guided else "without"} guidance, expected '
                f'{self.samples * (1 + step.guided)}.'
            )
        self.text, self.guided = step.text, step.guided
        return None if step.stop else step.latents.to(latents)


def check_course(
    timesteps: Any,
    sigmas: Any,
    on_step: Any = None,
    draws: str = 'official',
) -> None:
    """Refuse what cannot be the steps of a sampling.

    Raises:
        InputError: naming the argument, its value and what was expected.
    """
    check_choice('draws', draws, DRAWS)
    if on_step is not None and not callable(on_step):
        raise InputError(f'on_step={on_step!r}: expected a function of a Step, or None.')
    if timesteps is not None and sigmas is not None:
        raise InputError('timesteps and sigmas: give one of them.')
    if timesteps is not None and (not _falls(timesteps) or not timesteps):
        wanted = 'falling numbers, such as [999, 600, 300, 100]'
        raise InputError(f'timesteps={timesteps!r:.80}: expected {wanted}.')
    if sigmas is not None:
        wanted = 'noise levels that fall to a last 0, such as [700.0, 50.0, 1.0, 0.0]'
        if not _falls(sigmas) or len(sigmas) < 2 or sigmas[-1] != 0:
            raise InputError(f'sigmas={sigmas!r:.80}: expected {wanted}.')


def step_count(num_inference_steps: int, timesteps: Any, sigmas: Any) -> int:
    """Steps of a sampling, where ``timesteps`` or ``sigmas`` may say them."""
    if timesteps is not None:
        return len(timesteps)
    return num_inference_steps if sigmas is None else len(sigmas) - 1


def set_steps(
    scheduler: Any,
    steps: int,
    timesteps: Sequence[float] | None,
    sigmas: Sequence[float] | None,
) -> None:
    """Give a scheduler its steps: some number of its own choice, or those that are given.

    Raises:
        InputError: this scheduler takes no steps of a caller.
    """
    given = {'timesteps': timesteps, 'sigmas': sigmas}
    name = next((key for key, value in given.items() if value is not None), None)
    if name is None:
        scheduler.set_timesteps(steps)
        return
    if name not in inspect.signature(scheduler.set_timesteps).parameters:
        raise InputError(
            f'{name}: a {type(scheduler).__name__} chooses its own; an EulerDiscreteScheduler '
            f'takes {name}.'
        )
    try:
        scheduler.set_timesteps(**{name: list(given[name] or ())})
    except ValueError as error:
        raise InputError(f'{name}: {type(scheduler).__name__} refuses them: {error}') from error


def _falls(values: Any) -> bool:
    numbers = isinstance(values, (list, tuple)) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v < float('inf')
        for v in values
    )
    return numbers and all(a > b for a, b in itertools.pairwise(values))
