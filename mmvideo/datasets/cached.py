"""Clips as the latents of a frozen VAE, encoded once and then read from disk.

A training on latents sees the same frames in every epoch, so the encoder would repeat itself.
What is kept is not a sample but the posterior it is drawn from (mean and log variance), so every
epoch still draws its own latents.

T frames, C latent channels, h w latent size.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.logging import print_log
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from mmvideo.checkpoints.files import read_tensors, write_tensors, write_text
from mmvideo.checkpoints.sources import resolve_weights
from mmvideo.datasets.samplers import Draw
from mmvideo.errors import ConfigError, InputError, nearest
from mmvideo.registry import DATASETS, MODELS

SHARD = 256  # clips a file: what an interrupted encoding loses at most
CHUNK = 64  # frames that the VAE sees at once
_DTYPES = {'bfloat16': torch.bfloat16, 'float16': torch.float16, 'float32': torch.float32}
_FORMAT = 1
_KEYFRAMES = re.compile(r'^\s*\d+\s*:.*\n|\n\s*\d+\s*:')  # of a caption that is a timeline
_ENCODER = ('encoder.', 'quant_conv.')  # what latents depend on of a VAE's weights
NUMBERS = ('fps', 'motion_bucket_id')  # of a clip, kept where the dataset has them


@DATASETS.register_module()
class CachedLatents(Dataset):
    """The first clips of another dataset, as latents.

    The first use encodes them into ``cache_dir/<fingerprint>``, shard by shard; an interrupted
    encoding goes on where it stopped, and several processes share the work. The fingerprint covers
    the dataset's config, the weights of the VAE's encoder, ``num_clips`` and ``dtype``, so a change
    of any makes a new cache. It cannot see media files change behind the same config.

    An item is ``latents`` float32 [T, 2 * C, h, w] (mean, then log variance, of diffusers'
    ``DiagonalGaussianDistribution``, unscaled), ``caption``, ``fps`` and ``motion_bucket_id``
    where the dataset has them, and, on demand, ``affinity_scores`` float32 [T, T] and ``image``
    uint8 [3, H, W].

    Args:
        dataset: config of a dataset whose items have ``video`` uint8 [T, 3, H, W], all of one
            size, and possibly ``caption``.
        vae: config of an ``AutoencoderKL`` with ``from_pretrained``.
        cache_dir: folder of all caches.
        num_clips: how many items of ``dataset``, from the first, are encoded.
        num_frames: frames of an item; None is all. Fewer are a window (one frame: a frame) drawn
            anew at each reading: by a ``ResumableSampler`` from its seed, the epoch and the index,
            so that a resumed training sees the same whatever ``num_workers`` is; from torch's
            global generator for a plain index.
        affinity: add the scores of PIA's affinity, computed on the frames before encoding.
        first_frame: add the clip's first frame as it is, for a model that sees a picture; the
            clip's own, also where ``num_frames`` is a window that begins later.
        dtype: arithmetic of the encoder, under autocast. The cache itself is float16.
        num_workers: processes that draw or decode clips while encoding.

    Raises:
        ConfigError: before anything is encoded.
        InputError: a clip of another size, or not uint8.
    """

    part_registries = {'dataset': 'DATASETS', 'vae': 'MODELS'}

    def __init__(
        self,
        dataset: dict,
        vae: dict,
        cache_dir: str | Path,
        num_clips: int,
        num_frames: int | None = None,
        affinity: bool = False,
        first_frame: bool = False,
        dtype: str = 'bfloat16',
        num_workers: int = 0,
    ) -> None:
        _check(num_clips, num_frames, dtype)
        self.num_clips = num_clips
        self.num_frames = num_frames
        wanted = {'moments': True, 'affinity_scores': affinity, 'images': first_frame}
        self.kinds = tuple(kind for kind, needed in wanted.items() if needed)
        identity = _identity(dataset, vae, num_clips, dtype)
        self.folder = Path(cache_dir).expanduser() / _fingerprint(identity)
        if self._missing():
            _Encoder(self, dataset, vae, dtype, num_workers).run(identity)
        self.captions = self._texts(self.captions_path)
        self.numbers = self._texts(self.numbers_path)
        self._shards: dict[Path, Tensor] = {}
        self._check_window(self._read('moments', 0).shape[0])

    def __len__(self) -> int:
        return self.num_clips

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The clip ``index`` as a dict; see the class."""
        if not -self.num_clips <= index < self.num_clips:
            raise IndexError(f'clip {index} of {self.num_clips}')
        rng = index.rng() if isinstance(index, Draw) else None
        index %= self.num_clips
        moments = self._read('moments', index)
        window = self._window(moments.shape[0], rng)
        item = {'latents': moments[window].float(), 'caption': self.captions[index]}
        item |= self.numbers[index] if self.numbers else {}
        if 'affinity_scores' in self.kinds:
            item['affinity_scores'] = self._read('affinity_scores', index)[window, window].clone()
        if 'images' in self.kinds:
            item['image'] = self._read('images', index).clone()
        return item

    def __getstate__(self) -> dict:
        # A mapping must not travel to a worker as a copy of the whole shard.
        return {**self.__dict__, '_shards': {}}

    def path(self, kind: str, shard: int) -> Path:
        """The file of one shard; ``kind`` is one of ``kinds``."""
        return self.folder / f'{kind}-{shard:05d}.safetensors'

    def captions_path(self, shard: int) -> Path:
        """The file of one shard's captions."""
        return self.folder / f'captions-{shard:05d}.json'

    def numbers_path(self, shard: int) -> Path:
        """The file of one shard's numbers, for a dataset whose items have some of ``NUMBERS``."""
        return self.folder / f'numbers-{shard:05d}.json'

    @property
    def num_shards(self) -> int:
        """Files of each kind."""
        return -(-self.num_clips // SHARD)

    def lacking(self, shard: int) -> list[str]:
        """The kinds whose file of this shard is not there yet."""
        return [kind for kind in self.kinds if not self.path(kind, shard).is_file()]

    def _missing(self) -> bool:
        return any(self.lacking(shard) for shard in range(self.num_shards))

    def _texts(self, path: Callable[[int], Path]) -> list[Any]:
        """What stands in JSON for each clip; nothing where the dataset gave none."""
        found: list[Any] = []
        for shard in range(self.num_shards):
            if path(shard).is_file() or path == self.captions_path:
                found += json.loads(path(shard).read_text(encoding='utf-8'))
        return found

    def _read(self, kind: str, index: int) -> Tensor:
        """A view of the mapped file; nothing is read from disk until it is used."""
        path = self.path(kind, index // SHARD)
        if path not in self._shards:
            self._shards[path] = read_tensors(path)[kind]
        return self._shards[path][index % SHARD]

    def _check_window(self, clip_frames: int) -> None:
        frames = clip_frames if self.num_frames is None else self.num_frames
        if frames > clip_frames:
            raise ConfigError(f'num_frames={frames}: the cached clips have {clip_frames}.')
        if frames == clip_frames:
            return
        changing = [index for index, text in enumerate(self.captions) if _KEYFRAMES.search(text)]
        if changing:
            raise ConfigError(
                f'num_frames={frames}: the caption of clip {changing[0]} changes over its '
                f'{clip_frames} frames, and a window of it would not know where; leave num_frames '
                'out.'
            )

    def _window(self, clip_frames: int, rng: np.random.Generator | None) -> slice:
        frames = self.num_frames or clip_frames
        if frames == clip_frames:
            return slice(None)
        places = clip_frames - frames + 1
        start = int(torch.randint(places, ()) if rng is None else rng.integers(places))
        return slice(start, start + frames)


class _Encoder:
    """Fills a cache. Files appear whole under their names, so a second process sees a shard that
    is complete or none; both then write the same bytes, and the later rename wins."""

    def __init__(
        self, cache: CachedLatents, dataset: dict, vae: dict, dtype: str, num_workers: int
    ) -> None:
        self.cache = cache
        self.dataset = DATASETS.build(dataset)
        if len(self.dataset) < cache.num_clips:
            raise ConfigError(
                f'num_clips={cache.num_clips}: the dataset has only {len(self.dataset)} clips.'
            )
        self.device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        self.vae = MODELS.build(vae).to(self.device).eval()
        self.dtype = _DTYPES[dtype]
        self.num_workers = num_workers

    def run(self, identity: dict) -> None:
        """Encode what is lacking."""
        folder = self.cache.folder
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / 'cache.json', json.dumps(identity, indent=1))
        print_log(f'caching {self.cache.num_clips} clips in {folder}', 'current')
        for shard in self._order():
            kinds = self.cache.lacking(shard)
            if kinds:
                self._shard(shard, kinds)

    def _order(self) -> list[int]:
        # Each rank starts at its own part and then helps the others.
        rank, world_size = get_dist_info()
        count = self.cache.num_shards
        start = rank * count // world_size
        return [*range(start, count), *range(start)]

    def _shard(self, shard: int, kinds: list[str]) -> None:
        first, last = shard * SHARD, min((shard + 1) * SHARD, self.cache.num_clips)
        captions: list[str] = []
        numbers: list[dict[str, float]] = []
        found: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
        for items in self._groups(first, last):
            captions += [str(item.get('caption', '')) for item in items]
            numbers += [_numbers(item) for item in items]
            if 'moments' in found:
                found['moments'] += self._moments([item['video'] for item in items])
            if 'affinity_scores' in found:
                found['affinity_scores'] += [_scores(item) for item in items]
            if 'images' in found:
                found['images'] += [item['video'][0] for item in items]
            self._progress(first + len(captions) - len(items), first + len(captions))
        write_text(self.cache.captions_path(shard), json.dumps(captions, ensure_ascii=False))
        if any(numbers):
            write_text(self.cache.numbers_path(shard), json.dumps(numbers))
        for kind, clips in found.items():
            write_tensors(self.cache.path(kind, shard), {kind: torch.stack(clips)})

    def _groups(self, first: int, last: int) -> Iterator[list[dict]]:
        """Lists of items that together have at most ``CHUNK`` frames, or one long clip."""
        group: list[dict] = []
        loader = DataLoader(
            Subset(self.dataset, range(first, last)),
            batch_size=None,
            num_workers=self.num_workers,
            generator=torch.Generator(),  # the global one belongs to the training
        )
        for index, item in enumerate(loader, first):
            self._check(item, index)
            group.append(item)
            if (len(group) + 1) * len(item['video']) > CHUNK:
                yield group
                group = []
        if group:
            yield group

    def _check(self, item: dict, index: int) -> None:
        video = item.get('video')
        if not isinstance(video, Tensor) or video.dtype != torch.uint8 or video.ndim != 4:
            raise InputError(f'clip {index} has no video of uint8 [T, 3, H, W] to encode.')
        self.shape = getattr(self, 'shape', video.shape)
        if video.shape != self.shape:
            raise InputError(
                f'clip {index} is {list(video.shape)}, the first one {list(self.shape)}: '
                'cached clips need one size.'
            )

    @torch.no_grad()
    def _moments(self, videos: list[Tensor]) -> list[Tensor]:
        frames = torch.cat(videos)  # (N*T) C H W
        parts = [self._encode(chunk) for chunk in frames.split(CHUNK)]
        return list(torch.cat(parts).unflatten(0, (len(videos), -1)))

    def _encode(self, frames: Tensor) -> Tensor:
        pixels = frames.to(self.device).float().div_(127.5).sub_(1)
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=mixed):
            posterior = self.vae.encode(pixels).latent_dist
        moments = torch.cat([posterior.mean, posterior.logvar], dim=1)
        return moments.to(device='cpu', dtype=torch.float16)

    def _progress(self, before: int, after: int) -> None:
        total = self.cache.num_clips
        if before * 10 // total != after * 10 // total:
            print_log(f'cached {after} of {total} clips ({after * 100 // total} %)', 'current')


def _numbers(item: dict) -> dict[str, float]:
    return {name: float(item[name]) for name in NUMBERS if name in item}


def _scores(item: dict) -> Tensor:
    if 'affinity_scores' in item:
        return torch.as_tensor(item['affinity_scores'], dtype=torch.float32)
    from mmvideo.datasets.affinity import affinity_scores  # OpenCV only where it is needed

    return torch.from_numpy(affinity_scores(item['video'].permute(0, 2, 3, 1).numpy()))


def _check(num_clips: int, num_frames: int | None, dtype: str) -> None:
    if num_clips < 1:
        raise ConfigError(f'num_clips={num_clips}: expected at least 1 clip.')
    if num_frames is not None and num_frames < 1:
        raise ConfigError(f'num_frames={num_frames}: expected at least 1, or None for all.')
    if dtype not in _DTYPES:
        raise ConfigError(
            f'dtype={dtype!r}: expected one of {list(_DTYPES)}.{nearest(dtype, _DTYPES)}'
        )


def _identity(dataset: Mapping, vae: Mapping, num_clips: int, dtype: str) -> dict:
    source = vae.get('from_pretrained')
    if not source:
        raise ConfigError('vae needs from_pretrained: latents of an untrained VAE mean nothing.')
    if vae.get('type') == 'AutoencoderTiny':
        raise ConfigError(
            "vae.type='AutoencoderTiny' gives no distribution of latents to keep; use "
            "'AutoencoderKL'."
        )
    files = resolve_weights(
        source, vae.get('subfolder'), variant=vae.get('variant'), revision=vae.get('revision')
    )
    return {
        'format': _FORMAT,
        'dataset': _plain(dataset),
        'encoder': _encoder_hash(files),
        'num_clips': num_clips,
        'dtype': dtype,
    }


def _encoder_hash(files: Sequence[Path]) -> str:
    """Of the encoder alone: a decoder may go on learning without making latents stale."""
    tensors = {name: t for file in files for name, t in read_tensors(file).items()}
    found = hashlib.sha256()
    # A single file of another layout names its parts otherwise, and counts as a whole.
    names = [name for name in tensors if name.startswith(_ENCODER)] or list(tensors)
    for name in sorted(names):
        tensor = tensors[name]
        found.update(f'{name} {tensor.dtype} {list(tensor.shape)}'.encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _plain(value: Any) -> Any:
    """Config values as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise ConfigError(f'{value!r} in the dataset of CachedLatents is no plain value.')


def _fingerprint(identity: dict) -> str:
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
