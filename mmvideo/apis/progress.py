"""Progress of sampling: a bar with the time left in a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, TextIO

LINES = 10


class Progress:
    """Counts steps over several clips.

    ``with Progress(clips, steps) as bar: bar.next_clip(); editor.infer(callback=bar.callback)``

    Args:
        clips: how many are made.
        steps: of each, as far as known before; ``callback`` learns better.
        what: shown in front.
        unit: of what is counted.
        enabled: False shows nothing.
        stream: where to; a terminal gets a bar.
    """

    def __init__(
        self,
        clips: int,
        steps: int,
        what: str = 'sampling',
        enabled: bool = True,
        stream: TextIO | None = None,
        unit: str = 'step',
    ) -> None:
        self.clips = clips
        self.total = clips * steps
        self.what = what
        self.unit = unit
        self.enabled = enabled
        self.stream = stream or sys.stderr
        self.done = 0
        self._bar: Any = None
        self._start = 0.0
        self._before = 0
        self._clip = 0

    def __enter__(self) -> Progress:
        self._start = time.monotonic()
        if self.enabled and self.stream.isatty():
            self._bar = self._rich()
            self._task = self._bar.add_task(self.what, total=self.total)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def next_clip(self) -> None:
        """The steps that ``callback`` counts now belong to the next clip."""
        self._before = self.done
        self._clip += 1

    def callback(self, step: int, total: int, latents: Any = None) -> None:
        """What an editor calls after each of its steps."""
        before, self.done = self.done, self._before + step
        self.total = self._before + total * (self.clips - self._clip + 1)
        if not self.enabled:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, total=self.total)
        elif self.done * LINES // self.total > before * LINES // self.total:
            self._line()

    def _line(self) -> None:
        left = (time.monotonic() - self._start) / self.done * (self.total - self.done)
        share = 100 * self.done // self.total
        text = (
            f'{self.what}: {self.unit} {self.done}/{self.total} ({share} %), {duration(left)} left'
        )
        print(text, file=self.stream, flush=True)

    def _rich(self) -> Any:
        from rich import progress
        from rich.console import Console

        return progress.Progress(
            progress.TextColumn('{task.description}'),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn('left'),
            progress.TimeRemainingColumn(),
            console=Console(file=self.stream),
            transient=True,
        )


def duration(seconds: float) -> str:
    """``'0.4 s'``, ``'12 s'``, ``'3 min 05 s'``."""
    if seconds < 10:
        return f'{seconds:.1f} s'
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{seconds // 60:.0f} min {seconds % 60:02.0f} s'


def size(count: float) -> str:
    """Bytes as ``'31 kB'``, ``'1.7 GB'`` (powers of ten, as file managers count)."""
    for unit in ('B', 'kB', 'MB'):
        if count < 999.5:
            return f'{count:.3g} {unit}'
        count /= 1000
    return f'{count:.3g} GB'
