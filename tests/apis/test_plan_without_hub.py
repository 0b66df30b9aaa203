"""A model that is not downloaded, where the hub cannot be asked: planned, checked, not run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmvideo.apis import VideoInferencer
from mmvideo.apis.assumed import PARAMETERS
from mmvideo.checkpoints import hub
from mmvideo.errors import InputError

CONFIGS = Path(__file__).parents[2] / 'configs'
PIA = CONFIGS / 'pia' / 'pia_sd15.py'


@pytest.fixture(autouse=True)
def nobody_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache and no network."""

    def find(source: str, *args: Any, **more: Any) -> Path:
        raise hub.HubUnreachableError(f'{source}: the hub cannot be reached')

    monkeypatch.setattr(hub, 'find', find)
    monkeypatch.setattr(hub, 'sizes_of', lambda repo, revision: None)
    monkeypatch.setattr(hub, 'cached_file', lambda *args, **more: None)
    monkeypatch.chdir(tmp_path)


def test_a_plan_stands_in_with_the_published_numbers() -> None:
    plan = VideoInferencer(PIA, device='cpu').plan()
    text = '\n'.join(plan.lines())
    assert 'the config.json of unet, vae, motion_module is not here' in text
    assert 'vae/config.json: unknown size, to be fetched' in text
    assert 'text_encoder/model.safetensors: unknown size, to be fetched' in text
    assert (plan.height, plan.width, plan.frames) == (512, 512, 16)
    assert plan.weights_bytes == 4 * sum(PARAMETERS.values())
    assert plan.peak_bytes is not None and 'memory: about' in text
    assert [part.name for part in plan.parts if part.assumed] == [
        'vae', 'text_encoder', 'unet', 'motion_module'
    ]  # fmt: skip


def test_of_other_models_no_memory_is_claimed() -> None:
    plan = VideoInferencer(CONFIGS / 'i2vgen_xl' / 'i2vgen-xl.py', device='cpu').plan()
    text = '\n'.join(plan.lines())
    assert 'memory: not known before all files are here (tools/download.py)' in text
    assert 'the config.json of unet, vae is not here' in text
    assert not any(part.assumed for part in plan.parts)


@pytest.mark.parametrize(
    ('wrong', 'word'),
    [
        (dict(seed=-1), 'seed=-1'),
        (dict(motion_scale=9), 'motion_scale=9'),
        (dict(num_inference_steps=0), 'num_inference_steps=0'),
        (dict(height=100), 'height=100'),
    ],
)
def test_a_mistake_is_what_is_reported(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        VideoInferencer(PIA, device='cpu')(**wrong)


def test_a_run_says_that_the_hub_is_missing(tmp_path: Path) -> None:
    with pytest.raises(hub.HubUnreachableError, match=r'sd15: the hub cannot be reached'):
        VideoInferencer(PIA, device='cpu')()
    assert list(tmp_path.iterdir()) == []
