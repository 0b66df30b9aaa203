"""What annotators make of pictures, and what is said where they cannot."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmvideo.errors import InputError
from mmvideo.models.conditioning.annotators import DETECTORS, read_annotator


def drawn() -> np.ndarray:
    """Two frames [T, H, W, 3]: a disc on another colour, and a faint box."""
    disc, box = np.full((2, 48, 64, 3), 90, np.uint8)
    cv2.circle(disc, (30, 20), 12, (250, 30, 60), -1)
    cv2.rectangle(box, (10, 10), (50, 30), (120, 90, 100), -1)
    return np.stack([disc, box])


def pictures() -> Tensor:
    """The same, [T, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(drawn()).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.mark.parametrize(
    ('value', 'low', 'high'),
    [('canny', 100, 200), (dict(type='canny', low=20, high=60), 20, 60)],
)
def test_canny_is_opencvs(value: Any, low: int, high: int) -> None:
    annotate = read_annotator(value)
    assert annotate is not None
    seen = annotate(pictures())
    edges = np.stack([cv2.Canny(frame, low, high) for frame in drawn()])
    expected = torch.from_numpy(edges).float()[:, None].expand(-1, 3, -1, -1) / 127.5 - 1
    assert torch.equal(seen, expected)
    assert [bool(frame.any()) for frame in edges] == [True, low == 20]


def test_none_is_none() -> None:
    assert read_annotator(None) is None


@pytest.mark.parametrize(
    ('value', 'words'),
    [
        ('cany', "expected one of .*Did you mean 'canny'"),
        ('open_pose', "Did you mean 'openpose'"),
        (3, "control_annotator=3: expected 'canny'"),
        (dict(low=1), "expected 'canny', or dict"),
        (dict(type='canny', lo=1), "'canny' takes no 'lo'.*Did you mean 'low'"),
        (dict(type='canny', low=300), 'low=300, high=200: expected integers'),
        (dict(type='canny', low=1.5), 'low=1.5'),
        (dict(type='openpose', from_pretrained='folder'), 'pip install controlnet_aux'),
    ],
)
def test_what_cannot_be(value: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('mmvideo.models.conditioning.annotators.find_spec', lambda name: None)
    with pytest.raises(InputError, match=words):
        read_annotator(value)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A controlnet_aux with one detector, which inverts; what it was asked."""
    asked: list[Any] = []

    class OpenposeDetector:
        @classmethod
        def from_pretrained(cls, source: str) -> OpenposeDetector:
            asked.append(source)
            return cls()

        def __call__(self, picture: Image.Image, **settings: Any) -> Image.Image:
            asked.append(settings)
            return Image.fromarray(255 - np.asarray(picture)).resize((64, 64))

    module = ModuleType('controlnet_aux')
    module.__spec__ = ModuleSpec('controlnet_aux', None)
    module.OpenposeDetector = OpenposeDetector  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, 'controlnet_aux', module)
    return asked


def test_detectors_of_the_package(package: list[Any]) -> None:
    annotate = read_annotator(dict(type='openpose', from_pretrained='weights'))
    assert annotate is not None and package == []  # checks load nothing
    seen = annotate(pictures())
    assert seen.shape == pictures().shape and float((seen + pictures()).abs().mean()) < 0.1
    asked = dict(detect_resolution=48, image_resolution=48, output_type='pil')
    assert package == ['weights', asked, asked]
    with pytest.raises(InputError, match='not fetched unasked'):
        read_annotator('openpose')
    absent = read_annotator(dict(type='zoe', from_pretrained='weights'))
    assert absent is not None and 'zoe' in DETECTORS
    with pytest.raises(InputError, match="'zoe': the controlnet_aux here is too old"):
        absent(pictures())
