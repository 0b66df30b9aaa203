"""What a call would do, from the config alone: no weights are read or fetched.

The memory estimate is all weights, plus what ``mmvideo.apis.working`` says of the larger of
denoising and decoding. The libraries themselves (half a gigabyte) are not counted.
``mmvideo.apis.memory`` says what the same call needs with other switches.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmvideo.apis.assumed import PARAMETERS, SETTINGS, fits
from mmvideo.apis.devices import DTYPES, dtype_name
from mmvideo.apis.progress import size as readable
from mmvideo.apis.working import Decoding, decoding, denoising, tile_of, vae_factor
from mmvideo.diffusion.windows import Windows
from mmvideo.editors.facts import read_facts, unread
from mmvideo.editors.options import read_deep_cache, read_guidance_interval, read_windows
from mmvideo.editors.starts import read_method
from mmvideo.editors.timeline import number_timeline
from mmvideo.registry import MODELS

if TYPE_CHECKING:
    from mmvideo.apis.inferencer import VideoInferencer, Work

_NO_WEIGHTS = {'scheduler', 'train_scheduler', 'tokenizer', 'feature_extractor'}
_SHARES = {'unet', 'vae', 'text_encoder', 'image_encoder'}  # what one file may hold together
_WITHOUT_COUNT = {*_NO_WEIGHTS, 'adapter'}  # adapters are small, and many have no header to count


@dataclass(frozen=True)
class Part:
    """A component: its type, where its weights come from, and how large it is.

    Attributes:
        files: ``(name, bytes or None, present)`` of each file to read.
        parameters: None where only the files' content tells.
        assumed: it is not here, and taken for Stable Diffusion 1.5's.
    """

    name: str
    type: str
    source: str
    files: tuple[tuple[str, int | None, bool], ...]
    parameters: int | None
    settings: Mapping[str, Any]
    assumed: bool = False

    @property
    def missing(self) -> list[str]:
        """Files that would be fetched."""
        return [name for name, _, present in self.files if not present]


@dataclass(frozen=True)
class Plan:
    """A call before it is made; ``lines()`` is what ``--dry-run`` prints. Sizes in pixels.

    ``denoising`` counts values; ``chunk`` frames are decoded at once, in tiles of ``tile`` pixels.
    """

    name: str
    editor: str
    parts: tuple[Part, ...]
    device: str
    dtype: str
    videos: int
    frames: int
    height: int | None
    width: int | None
    fps: float
    scheduler: str
    steps: int
    guidance_scale: float
    files: tuple[str, ...]
    weights_bytes: int | None
    denoising: int | None
    decoding: Decoding | None
    chunk: int
    tile: int | None = None
    offload: str | None = None
    windows: tuple[str, ...] = ()
    shortcuts: str = ''  # how the steps differ from plain ones
    unread: tuple[str, ...] = ()  # parts whose config.json cannot be had

    @property
    def can_tile(self) -> bool:
        """Whether the VAE decodes single pictures, which may be cut."""
        return self.decoding is not None and not self.decoding.kept

    @property
    def working_bytes(self) -> int | None:
        """Estimate of what is needed beside the weights."""
        if self.denoising is None or self.decoding is None:
            return None
        item = torch.empty(0, dtype=DTYPES[self.dtype]).element_size()
        return max(self.denoising, self.decoding.values(self.chunk, self.tile)) * item

    @property
    def peak_bytes(self) -> int | None:
        """Estimate of the peak memory, see the module."""
        if self.weights_bytes is None or self.working_bytes is None:
            return None
        return self.weights_bytes + self.working_bytes

    def lines(self) -> list[str]:
        """The plan as text."""
        lines = [f'{self.name}: {self.editor} on {self.device} in {self.dtype}']
        for part in self.parts:
            count = '' if part.parameters is None else f', {part.parameters:,} parameters'
            count += ' (as published for Stable Diffusion 1.5)' if part.assumed else ''
            lines.append(f'  {part.name}: {part.type} from {part.source}{count}')
            for name, count_bytes, present in part.files:
                known = 'unknown size' if count_bytes is None else readable(count_bytes)
                lines.append(f'    {name}: {known}, {"here" if present else "to be fetched"}')
        shape = f'{self.width}x{self.height}' if self.height else 'the size of the model'
        guidance = f'guidance {self.guidance_scale:g}'
        lines.append(
            f'  sampling: {self.scheduler}, {self.steps} steps, {guidance}{self.shortcuts}'
        )
        lines += [f'  {line}' for line in self.windows]
        lines.append(f'  output: {self.videos} x {self.frames} frames of {shape}, {self.fps:g} fps')
        lines += [f'    {path}' for path in self.files]
        if self.unread:
            lines.append(
                f'  not known: the config.json of {", ".join(self.unread)} is not here and the hub '
                "cannot be reached; sizes and limits are taken from Stable Diffusion 1.5's"
            )
        if self.peak_bytes is None:
            lines.append('  memory: not known before all files are here (tools/download.py)')
        else:
            assert self.weights_bytes is not None and self.working_bytes is not None
            peak, weights, working = map(
                readable, (self.peak_bytes, self.weights_bytes, self.working_bytes)
            )
            lines.append(
                f'  memory: about {peak} at the peak ({weights} weights + {working} working, '
                'estimated)'
            )
        return lines


def make_plan(inferencer: VideoInferencer, work: Work) -> Plan:
    """The plan of a checked call.

    Raises:
        WeightsError: a local folder or file that is not there.
    """
    model = inferencer.cfg.model
    parts = tuple(_part(name, part, model) for name, part in model.items() if _is_part(part))
    parts += tuple(_adapter(config) for config in model.get('adapters') or ())
    parts += tuple(_adapter(config, 'control') for config in model.get('controls') or ())
    parts += tuple(_part('image_encoder', encoder, {}) for encoder in _image_encoders(model))
    arguments = work.jobs[0].arguments
    by_name = {part.name: part for part in parts}
    height, width = _output_size(arguments, by_name)
    counts = [part.parameters for part in parts if part.name not in _WITHOUT_COUNT]
    item = torch.empty(0, dtype=inferencer.dtype).element_size()
    known = [count for count in counts if count is not None]
    windows = read_windows(arguments.get('windows'), read_facts(model).max_frames)
    frames = int(arguments.get('video_length', 1))
    kind = 'cpu' if inferencer.device.type == 'cpu' else 'cuda'
    settings = _settings(by_name)
    size = (height, width) if height and width else None
    halves = 2 if _guidance(arguments) > 1 else 1
    seen = frames if windows is None else min(frames, windows.length)
    whole = 'vae' in by_name and by_name['vae'].type == 'AutoencoderKLTemporalDecoder'
    kept = frames if whole else 0
    return Plan(
        name=inferencer.name,
        editor=model['type'],
        parts=parts,
        device=str(inferencer.device),
        dtype=dtype_name(inferencer.dtype),
        videos=len(work.jobs),
        frames=frames,
        height=height,
        width=width,
        fps=work.fps,
        scheduler=str(model['scheduler']['type']) if 'scheduler' in model else 'none',
        steps=int(arguments.get('num_inference_steps') or 0),
        guidance_scale=_guidance(arguments),
        files=tuple(str(target.path) for targets in work.targets for target in targets),
        weights_bytes=sum(known) * item if len(known) == len(counts) else None,
        denoising=denoising(settings, size, halves, seen, kind),
        decoding=decoding(settings, size, kept, kind),
        chunk=min(frames, int(arguments.get('decode_chunk_size') or frames)),
        tile=tile_of(model.get('vae_tiling'), settings.get('vae', {})),
        offload=model.get('offload'),
        windows=_drawn(windows, frames),
        shortcuts=_shortcuts(arguments),
        unread=tuple(unread(model)),
    )


def _guidance(arguments: Mapping[str, Any]) -> float:
    """The guidance scale, of one that changes the largest."""
    value = arguments.get('guidance_scale') or arguments.get('max_guidance_scale') or 0
    frames = int(arguments.get('video_length', 1))
    return max(number_timeline(value, 'guidance_scale', frames).values)


def _shortcuts(arguments: Mapping[str, Any]) -> str:
    """Guidance in a part of the steps, DeepCache and the way back of an inversion, as text."""
    said = ''
    first, last = read_guidance_interval(arguments.get('guidance_interval'))
    if (first, last) != (0.0, 1.0):
        said += f' from {first:g} to {last:g} of the steps'
    deep = read_deep_cache(arguments.get('deep_cache'))
    if deep is not None and deep.interval > 1:
        said += f', the whole denoiser in one of {deep.interval}'
    inversion = read_method(arguments.get('inversion'))
    if inversion is not None:
        steps = inversion.num_inference_steps or arguments['num_inference_steps']
        said += f', after up to {steps} back from the clip'
    return said


def _drawn(windows: Windows | None, frames: int) -> tuple[str, ...]:
    """The windows of the first step, a line each; nothing for a clip that is seen whole."""
    if windows is None:
        return ()
    plan = windows.plan(frames)
    moving = ', moved in every step' if windows.schedule in ('uniform', 'looped') else ''
    head = (
        f'windows: {windows.schedule}, {len(plan.frames)} of {plan.longest} frames over {frames}, '
        f'overlap {windows.shared}, {windows.fusion}{moving}'
    )
    return (head, *(f'  {line}' for line in plan.draw()))


# --- parts ---------------------------------------------------------------------------------------


def _is_part(value: Any) -> bool:
    return isinstance(value, Mapping) and 'type' in value and value['type'] != 'VideoPreprocessor'


def _part(name: str, part: Mapping[str, Any], model: Mapping[str, Any]) -> Part:
    source = part.get('from_pretrained')
    if source is None:
        parameters = 0 if name in _NO_WEIGHTS else _count(_on_meta(name, part, model))
        if name == 'motion_module' and parameters is not None:
            parameters -= _count(_on_meta('unet', model['unet'], {})) or 0
        where = 'its own settings' if not parameters else 'random weights'
        return Part(name, part['type'], where, (), parameters, part)
    where = str(source) + (f'/{part["subfolder"]}' if part.get('subfolder') else '')
    if name in _NO_WEIGHTS:
        return Part(name, part['type'], where, (), 0, part)
    from mmvideo.checkpoints import sources

    names = sources.DIFFUSERS_FILES + sources.TRANSFORMERS_FILES
    if name.endswith('encoder'):
        names = sources.TRANSFORMERS_FILES + sources.DIFFUSERS_FILES
    files = sources.plan(
        source,
        part.get('subfolder'),
        filenames=names,
        variant=part.get('variant'),
        revision=part.get('revision'),
    )
    settings: dict[str, Any] = {}
    counts: list[int | None] = []
    for file in files:
        if file.path is not None and file.path.name == 'config.json':
            settings = _json(file.path)
        elif not file.name.endswith('.json'):
            counts.append(None if file.path is None else _values_in(file.path))
    known = [count for count in counts if count is not None]
    parameters = sum(known) if known and len(known) == len(counts) else None
    if name in _SHARES and sources.is_weight_file(source) and files[0].path is not None:
        settings, parameters = _share(name, part, files[0].path)
    listed = tuple((file.name, file.size, file.present) for file in files)
    absent = not all(file.present for file in files)
    assumed = absent and fits(model.get('type'), name, settings)
    if assumed:
        settings, parameters = {**SETTINGS[name], **settings}, PARAMETERS[name]
    return Part(name, part['type'], where, listed, parameters, {**settings, **part}, assumed)


def _share(name: str, part: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], int]:
    """A part's config and its number of values in a file that holds several; none is read."""
    from mmvideo.checkpoints.single_file import read_single_file

    settings, tensors = read_single_file(path, name, bool(part.get('ema')))
    return settings, sum(t.numel() for t in tensors.values() if t.is_floating_point())


def _adapter(config: Mapping[str, Any], kind: str = 'adapter') -> Part:
    from mmvideo.checkpoints.sources import plan

    source, place = config['from_pretrained'], config.get('subfolder')
    name = config.get('weight_name')
    names = (name,) if name else MODELS.get(config['type']).filenames
    files = plan(source, place, filenames=names, revision=config.get('revision'))
    counts = [_values_in(file.path) if file.path else None for file in files]
    known = [count for count in counts if count is not None]
    listed = tuple((file.name, file.size, file.present) for file in files)
    where = f'{source}/{place}' if place else str(source)
    if 'scale' in config:
        where += f' at {config["scale"]}'
    return Part(kind, config['type'], where, listed, sum(known) or None, config)


def _image_encoders(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What IP-Adapters see pictures with; some share one."""
    kinds = [(MODELS.get(config['type']), config) for config in model.get('adapters') or ()]
    found = [kind.encoder_of(config) for kind, config in kinds if hasattr(kind, 'encoder_of')]
    return [encoder for i, encoder in enumerate(found) if encoder and encoder not in found[:i]]


def _on_meta(name: str, part: Mapping[str, Any], model: Mapping[str, Any]) -> Any:
    """The module without memory for its parameters; None where that needs another part's files."""
    settings = copy.deepcopy(dict(part))
    if name == 'motion_module':
        if model.get('unet', {}).get('from_pretrained'):
            return None
        settings = {**copy.deepcopy(dict(model['unet'])), 'motion_module': settings}
    elif name == 'unet' and 'condition_module' in model:
        # The condition joins the latents, so it widens the first convolution.
        settings['in_channels'] = MODELS.build(dict(model['condition_module'])).in_channels
    with torch.device('meta'):
        return MODELS.build(settings)


def _count(module: Any) -> int | None:
    return None if module is None else sum(p.numel() for p in module.parameters())


def _values_in(path: Path) -> int | None:
    """Number of values in a safetensors file, from its header; None for other formats."""
    if path.suffix != '.safetensors':
        return None
    from mmvideo.checkpoints.header import count_values, read_header

    return count_values(read_header(path))


def _json(path: Path) -> dict[str, Any]:
    from mmvideo.checkpoints.files import read_json

    return read_json(path)


# --- sizes ---------------------------------------------------------------------------------------


def _settings(parts: Mapping[str, Part]) -> dict[str, Mapping[str, Any]]:
    return {name: part.settings for name, part in parts.items()}


def _output_size(
    arguments: Mapping[str, Any], parts: Mapping[str, Part]
) -> tuple[int | None, int | None]:
    height, width = arguments.get('height'), arguments.get('width')
    factor = vae_factor(_settings(parts))
    if arguments.get('image') is not None:
        from mmvideo.apis.images import unpacked
        from mmvideo.models.conditioning.image import prepare_condition_image

        with unpacked(arguments['image']) as image:
            image = image[0] if isinstance(image, list | tuple) else image
            shape = prepare_condition_image(image, height, width, multiple=factor or 8).shape
        return shape[1], shape[2]
    if arguments.get('video') is not None:
        from mmvideo.apis.image_prompts import unpacked_prompts
        from mmvideo.models.conditioning.clip import prepare_clip

        with unpacked_prompts(arguments) as call:
            frames = call.get('video_length', 1)
            shape = prepare_clip(call['video'], frames, height, width, factor or 8).shape
        return shape[2], shape[3]
    unet = parts.get('unet')
    side = unet.settings.get('sample_size') if unet else None
    own = side * factor if isinstance(side, int) and factor else None
    return height or own, width or own
