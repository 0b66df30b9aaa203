"""Annotators: from footage to what a control sees of it, such as its edges.

``canny`` is OpenCV's. The others are networks of the package controlnet_aux, for those who have
installed it; their weights are named by the caller, and nothing is fetched that is not named.

T frames, H W pixels.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmvideo.errors import InputError, nearest

PACKAGE = 'controlnet_aux'
# Classes of the package, by the names that its own table of processors begins or ends with.
DETECTORS = {
    'hed': 'HEDdetector',
    'lineart': 'LineartDetector',
    'lineart_anime': 'LineartAnimeDetector',
    'midas': 'MidasDetector',
    'mlsd': 'MLSDdetector',
    'normal_bae': 'NormalBaeDetector',
    'openpose': 'OpenposeDetector',
    'pidinet': 'PidiNetDetector',
    'zoe': 'ZoeDetector',
}
NAMES = ('canny', *DETECTORS)


@dataclass(frozen=True)
class Annotator:
    """What is made of each frame.

    Attributes:
        type: one of ``NAMES``.
        low: of ``'canny'``: a gradient below is no edge.
        high: likewise: one above is; between them it is where an edge leads on.
        from_pretrained: of the others: a folder or hub id with the weights.
    """

    type: str
    low: int = 100
    high: int = 200
    from_pretrained: str | None = None

    def __call__(self, pictures: Tensor) -> Tensor:
        """Pictures [T, 3, H, W] in [-1, 1] as what is seen in them, of the same shape and range."""
        frames = pictures.add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        see = self._edges if self.type == 'canny' else self._detector()
        seen = np.stack([see(np.ascontiguousarray(frame)) for frame in frames])
        return torch.from_numpy(seen).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)

    def _edges(self, frame: np.ndarray) -> np.ndarray:
        import cv2

        edges = cv2.Canny(frame, self.low, self.high)
        return np.repeat(edges[:, :, None], 3, axis=2)

    def _detector(self) -> Callable[[np.ndarray], np.ndarray]:
        """A function from a frame [H, W, 3] to what the network sees in it."""
        from PIL import Image

        package = importlib.import_module(PACKAGE)
        if not hasattr(package, DETECTORS[self.type]):
            raise InputError(f'annotator {self.type!r}: the {PACKAGE} here is too old for it.')
        network = getattr(package, DETECTORS[self.type]).from_pretrained(self.from_pretrained)

        def see(frame: np.ndarray) -> np.ndarray:
            height, width = frame.shape[:2]
            side = min(height, width)
            picture = Image.fromarray(frame)
            found = network(
                picture, detect_resolution=side, image_resolution=side, output_type='pil'
            )
            return np.asarray(found.convert('RGB').resize((width, height)))

        return see


def read_annotator(value: Any, name: str = 'control_annotator') -> Annotator | None:
    """An annotator's name or a dict of its settings, checked; None is none.

    Raises:
        InputError: no such annotator or setting, or one that cannot work here.
    """
    if value is None or isinstance(value, Annotator):
        return value
    settings = {'type': value} if isinstance(value, str) else value
    if not isinstance(settings, Mapping) or not isinstance(settings.get('type'), str):
        raise InputError(f"{name}={value!r}: expected 'canny', or dict(type='canny', low=100).")
    kind = settings['type']
    if kind not in NAMES:
        raise InputError(f'{name}={kind!r}: expected one of {NAMES}.{nearest(kind, NAMES)}')
    known = ('type', 'low', 'high') if kind == 'canny' else ('type', 'from_pretrained')
    for key in settings:
        if key not in known:
            raise InputError(
                f'{name}: {kind!r} takes no {key!r}; it takes {known}.{nearest(key, known)}'
            )
    found = Annotator(**settings)
    _check_canny(found, name) if kind == 'canny' else _check_detector(found, name)
    return found


def _check_canny(found: Annotator, name: str) -> None:
    whole = type(found.low) is int and type(found.high) is int
    if not whole or not 0 <= found.low <= found.high:
        raise InputError(
            f'{name}: low={found.low!r}, high={found.high!r}: expected integers with '
            '0 <= low <= high.'
        )


def _check_detector(found: Annotator, name: str) -> None:
    if find_spec(PACKAGE) is None:
        raise InputError(
            f'{name}={found.type!r} needs the package {PACKAGE}, which is not installed: pip '
            f"install {PACKAGE}, or use 'canny'."
        )
    if not isinstance(found.from_pretrained, str) or not found.from_pretrained:
        raise InputError(
            f'{name}={found.type!r} has weights of its own, which are not fetched unasked: give '
            f"dict(type={found.type!r}, from_pretrained='FOLDER'), or a hub id."
        )
