"""From a config, a model name or a finished video to videos."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmengine import Config

from mmvideo.apis.devices import dtype_name, pick_device, pick_dtype
from mmvideo.apis.film import Film, make_film, write_film
from mmvideo.apis.image_prompts import find_prompts, pack_prompts, unpacked_prompts
from mmvideo.apis.images import check_entry, find_image, pack_images, unpacked
from mmvideo.apis.jobs import Job, make_jobs, merge_arguments
from mmvideo.apis.progress import Progress
from mmvideo.apis.targets import Target, choose_fps, choose_targets
from mmvideo.apis.zoo import find_config
from mmvideo.editors.facts import unread
from mmvideo.errors import ConfigError
from mmvideo.media.recipe import (
    MEDIA,
    check_weights,
    make_recipe,
    read_recipe,
    versions,
    weight_entries,
)
from mmvideo.media.writers import safe_stem
from mmvideo.registry import MODELS
from mmvideo.utils import set_default_scope


@dataclass(frozen=True)
class Work:
    """A checked call: the jobs, the files of each, and their rate (none without files)."""

    jobs: list[Job]
    targets: list[list[Target]]
    fps: float


class VideoInferencer:
    """Makes videos with the editor of a config; weights are read at the first call.

    Args:
        config: path of a config, a model name of a metafile, a ``Config``, or a file that mmvideo
            wrote, which is then made again from its recipe.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None is the first GPU, or the recipe's.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None is bfloat16 on CUDA, else float32, or
            the recipe's.
        cfg_options: dotted keys of the config and their new values.
        allow_other_weights: make a recipe's video even if the weight files have changed.
        adapters: configs of adapters beside those of the config, such as
            ``dict(type='LoRA', from_pretrained='x.safetensors', scale=0.8)``.
        controls: configs of ``ControlNet`` and ``SparseCtrl``, likewise.

    Raises:
        UserError: before any weight is read.
    """

    def __init__(
        self,
        config: str | Path | Config,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        cfg_options: Mapping[str, Any] | None = None,
        allow_other_weights: bool = False,
        adapters: Sequence[Mapping[str, Any]] = (),
        controls: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        set_default_scope()
        self.recipe: dict[str, Any] | None = None
        self.notes: list[str] = []
        self.allow_other_weights = allow_other_weights
        if isinstance(config, str | Path) and Path(config).suffix.lower() in MEDIA:
            self._open_media(Path(config), cfg_options)
        else:
            self._open_config(config, cfg_options)
        if not isinstance(self.cfg.get('model'), Mapping) or 'type' not in self.cfg.model:
            raise ConfigError(f'{self.name}: a config to run needs model = dict(type=...).')
        self._add('adapters', adapters)
        self._add('controls', controls)
        self._added = (len(adapters), len(controls))
        self.editor_class = MODELS.get(self.cfg.model['type'])
        machine: dict[str, Any] = self.recipe['machine'] if self.recipe else {}
        self.device = pick_device(device or self._recorded_device(machine))
        self.dtype = pick_dtype(dtype or machine.get('dtype'), self.device)
        self._editor: Any = None
        self._weights: list[dict[str, Any]] = []
        self._weight_paths: list[Path] = []

    def _add(self, key: str, configs: Sequence[Mapping[str, Any]]) -> None:
        from mmvideo.config_check import check

        if configs:
            self.cfg.model[key] = [*(self.cfg.model.get(key) or ()), *configs]
            check(self.cfg, self.name)

    def _open_config(
        self, config: str | Path | Config, cfg_options: Mapping[str, Any] | None
    ) -> None:
        from mmvideo.config import apply_options, load_config

        if isinstance(config, Config):
            self.cfg = config
            apply_options(self.cfg, cfg_options or {})
        else:
            self.cfg = load_config(find_config(config), dict(cfg_options or {}))
        file = self.cfg.filename
        self.folder = Path(file).parent if file else Path()
        self.name = safe_stem(Path(file).stem if file else str(self.cfg.model['type']).lower())
        self.defaults: dict[str, Any] = dict(self.cfg.get('infer') or {})

    def _open_media(self, path: Path, cfg_options: Mapping[str, Any] | None) -> None:
        from mmvideo.config import recipe_to_config

        self.recipe = read_recipe(path)
        self.cfg = recipe_to_config(self.recipe['config'], dict(cfg_options or {}))
        self.folder = Path()
        self.name = safe_stem(self.recipe['name'])
        self.defaults = {
            **self.recipe['arguments'],
            'fps': self.recipe['fps'],
            'formats': [path.suffix.lower()],
        }
        image = self.defaults.get('image')
        for entry in image if isinstance(image, list) else [image]:
            if isinstance(entry, dict):
                check_entry(entry, str(path))
        for package, now in versions().items():
            was = self.recipe['versions'].get(package)
            if was != now:
                self.notes.append(f'made with {package} {was}, here is {now}: frames may differ')

    def _recorded_device(self, machine: Mapping[str, Any]) -> str | None:
        kind = machine.get('device')
        if kind == 'cuda' and not torch.cuda.is_available():
            self.notes.append('made on a GPU, which is not here: frames will differ slightly')
            return 'cpu'
        return kind if isinstance(kind, str) else None

    # What to do -------------------------------------------------------------------------------

    def prepare(
        self, out: str | Path | bool | None = None, fps: float | None = None, **arguments: Any
    ) -> Work:
        """Check a call completely without reading weights.

        Raises:
            UserError: naming the first thing that cannot be.
        """
        defaults = _with_images(self.defaults, self.folder)
        merged = merge_arguments(self.editor_class, defaults, _with_images(arguments, Path()))
        _check_images(merged.get('image'))
        if 'fps' in merged:  # a model that is told the rate of its clip
            if fps is None:
                fps = self.defaults.get('fps', merged['fps'])
            merged['fps'] = fps
        jobs = [self._completed(job) for job in make_jobs(pack_prompts(merged))]
        targets: list[list[Target]] = [[] for _ in jobs]
        if out is not False:
            single = jobs[0].arguments.get('video_length', 1) == 1
            named = None if isinstance(out, bool) else out
            suffixes = [job.suffix for job in jobs]
            targets = choose_targets(named, self.name, self.defaults, suffixes, single)
        work = Work(jobs, targets, choose_fps(fps, self.defaults, targets))
        for job in jobs:
            with self._call_arguments(job) as call:
                self.editor_class.check(self.cfg.model, call)
        return work

    def _completed(self, job: Job) -> Job:
        """With what the editor finds out for it, so that plan and recipe say all."""
        with self._call_arguments(job) as call:
            found = self.editor_class.complete(self.cfg.model, call)
        return replace(job, arguments={**job.arguments, **found})

    def plan(
        self, out: str | Path | bool | None = None, fps: float | None = None, **arguments: Any
    ) -> Any:
        """What a call would read, compute and write; reads no weights. See ``Plan``."""
        from mmvideo.apis.plan import make_plan

        return make_plan(self, self.prepare(out, fps, **arguments))

    # Doing it ---------------------------------------------------------------------------------

    @property
    def editor(self) -> Any:
        """The editor with its weights, on the device; built at first use."""
        if self._editor is None:
            editor = MODELS.build(self.cfg.model)
            weights = self._note_weights(editor)
            if self.recipe is not None and not self.allow_other_weights:
                # Files of adapters and controls that this call adds are in no recipe yet.
                parts = [getattr(editor, kind, ()) for kind in ('adapters', 'controls')]
                added = _files_of_last(parts, self._added)
                kept = [i for i, path in enumerate(self._weight_paths) if path not in added]
                paths = [self._weight_paths[i] for i in kept]
                check_weights(self.recipe['weights'], [weights[i] for i in kept], paths)
            self._editor = self._placed(editor.eval())
        return self._editor

    def _placed(self, editor: Any) -> Any:
        mode = getattr(editor, 'offload_mode', None)
        if mode is None:
            return editor.to(device=self.device, dtype=self.dtype)
        editor.to(dtype=self.dtype).offload(mode, self.device)
        return editor

    def _note_weights(self, editor: Any) -> list[dict[str, Any]]:
        """Entries of the recipe for the files that the editor was made of; hashed once."""
        paths = list(editor.weight_files())
        if paths != self._weight_paths:
            self._weight_paths, self._weights = paths, weight_entries(paths)
        return self._weights

    def __call__(
        self,
        out: str | Path | bool | None = None,
        fps: float | None = None,
        progress: bool = True,
        on_file: Callable[[Path], None] | None = None,
        return_samples: bool = True,
        **arguments: Any,
    ) -> dict[str, Any]:
        """Make the videos; each is decoded in parts, straight into its files.

        Args:
            out: a file (replaced if it exists), a folder, None for the config's own place, where
                nothing is ever replaced, or False for no file.
            fps: frames a second of the files.
            progress: show it on stderr.
            on_file: called with each file as soon as it is complete.
            return_samples: False keeps no video in memory; ``samples`` is then None.
            **arguments: of the editor's ``infer``. Lists of prompts, images and seeds make
                several videos, see ``mmvideo.apis.jobs.make_jobs``.

        Returns:
            ``samples`` float [N, C, T, H, W] in [0, 1] (a list where sizes differ), ``paths`` of
            the files, ``recipe`` of the first video and ``recipes`` of all.

        Raises:
            UserError: before any weight is read, where the input allows it.
        """
        work = self.prepare(out, fps, **arguments)
        for error in unread(self.cfg.model).values():
            raise error  # what was checked without its facts cannot be made without them
        editor = self.editor
        steps = int(work.jobs[0].arguments.get('num_inference_steps') or 0)
        samples, paths, recipes = [], [], []
        with Progress(len(work.jobs), steps, enabled=progress) as bar:
            for job, targets in zip(work.jobs, work.targets, strict=True):
                bar.next_clip()
                film, recipe = self._make(editor, job, work.fps, bar.callback)
                recipes.append(recipe)
                kept: list[torch.Tensor] | None = [] if return_samples else None
                with self._threads():
                    for path in write_film(film, targets, work.fps, recipe, kept):
                        paths.append(path)
                        if on_file is not None:
                            on_file(path)
                if kept is not None:
                    samples.append(torch.cat(kept).transpose(0, 1))
        together = _joined(samples) if return_samples else None
        return {'samples': together, 'paths': paths, 'recipe': recipes[0], 'recipes': recipes}

    def _make(
        self, editor: Any, job: Job, fps: float, callback: Callable
    ) -> tuple[Film, dict[str, Any]]:
        with self._call_arguments(job) as call, self._threads():
            film = make_film(editor, call, callback)
            arguments = dict(job.arguments)
            if arguments.get('image') is not None:
                arguments['image'] = self._pack(arguments['image'], call, editor)
        machine = {
            'device': self.device.type,
            'dtype': dtype_name(self.dtype),
            'threads': self._thread_count(),
        }
        model = self.cfg.model.to_dict()
        model.pop('offload', None)  # a matter of the machine, which changes no value
        adapters: list[dict] = getattr(editor, 'adapter_configs', list)()
        if adapters:
            model['adapters'] = adapters  # as they are now, not as the config began
        else:
            model.pop('adapters', None)
        weights = self._note_weights(editor)
        recipe = make_recipe(self.name, {'model': model}, arguments, fps, weights, machine)
        return film, recipe

    def _pack(self, image: Any, call: Mapping[str, Any], editor: Any) -> Any:
        def prepare(picture: Any) -> torch.Tensor:
            return editor.recipe_picture(picture, call.get('height'), call.get('width'))

        return pack_images(image, prepare)

    @contextlib.contextmanager
    def _call_arguments(self, job: Job) -> Iterator[dict[str, Any]]:
        with unpacked(job.arguments.get('image')) as image, unpacked_prompts(job.arguments) as call:
            if 'image' in call:
                call['image'] = image
            yield call

    def _thread_count(self) -> int:
        threads = (self.recipe or {}).get('machine', {}).get('threads')
        usable = isinstance(threads, int) and 1 <= threads <= 1024
        return threads if usable else torch.get_num_threads()

    @contextlib.contextmanager
    def _threads(self) -> Iterator[None]:
        # Sums split over threads round differently, so a replay uses as many as its recipe.
        before = torch.get_num_threads()
        torch.set_num_threads(self._thread_count())
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _joined(samples: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    same = len({sample.shape for sample in samples}) == 1
    return torch.stack(samples) if same else samples


def _files_of_last(parts: Sequence[Sequence[Any]], counts: Sequence[int]) -> set[Path]:
    """Files that only the last few of each kind of part were read from."""
    earlier: set[Path] = set()
    last: set[Path] = set()
    for kind, count in zip(parts, counts, strict=True):
        for index, part in enumerate(kind):
            (last if index >= len(kind) - count else earlier).update(part.paths)
    return last - earlier


def _with_images(arguments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    arguments = find_prompts(arguments, folder)
    image = arguments.get('image')
    if image is None:
        return arguments
    return {**arguments, 'image': find_image(image, folder)}


def _check_images(image: Any) -> None:
    """Decode every picture once, so that a damaged one is found before all work."""
    from mmvideo.models.conditioning.image import prepare_condition_image

    if isinstance(image, list | tuple):
        for entry in image:
            _check_images(entry)
    elif image is not None:
        with unpacked(image) as picture:
            prepare_condition_image(picture, multiple=1)
