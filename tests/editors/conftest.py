"""Editors of a kilobyte's size whose every parameter does something."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine import Config
from torch import Tensor

from mmvideo.registry import MODELS

sys.path.insert(0, str(Path(__file__).parent))  # the folder's helper module, for its tests

TINY = Path(__file__).parents[1] / 'apis' / 'tiny_pia.py'


def model_config(kind: str, **changes: Any) -> dict:
    """``cfg.model`` of an editor: PIA, AnimateDiff or TextToImage."""
    model = Config.fromfile(TINY).model.to_dict()
    model['type'] = kind
    if kind != 'PIA':
        del model['condition_module']
    if kind == 'TextToImage':
        del model['motion_module']
    model['tokenizer'] = dict(model['tokenizer'], vocab=['a', 'red', 'fish', 'blue', 'car'])
    return {**model, **changes}


@pytest.fixture(scope='session')
def tiny_config() -> Callable[..., dict]:
    """``model_config``."""
    return model_config


@pytest.fixture(scope='session')
def build() -> Callable[..., Any]:
    """A builder of editors; random weights are the same every time and nowhere zero."""

    def make(kind: str, **changes: Any) -> Any:
        torch.manual_seed(0)
        editor = MODELS.build(model_config(kind, **changes)).eval()
        with torch.no_grad():
            for parameter in editor.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return editor

    return make


@pytest.fixture(scope='module')
def animatediff(build: Callable) -> Any:
    return build('AnimateDiff')


@pytest.fixture(scope='module')
def pia(build: Callable) -> Any:
    return build('PIA')


@pytest.fixture
def calls(animatediff: Any, pia: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Inputs of every call of the denoisers."""
    seen: list[dict] = []
    for editor in (animatediff, pia):
        forward = editor.unet.forward

        def spy(sample: Tensor, step: Tensor, text: Tensor, _forward: Any = forward, **more: Any):
            seen.append(dict(sample=sample.clone(), step=float(step), text=text, **more))
            return _forward(sample, step, text, **more)

        monkeypatch.setattr(editor.unet, 'forward', spy)
    return seen
