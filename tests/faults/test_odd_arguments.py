"""Values that nobody means, in every argument of ``infer``: an error that says so, or a video.

Each argument takes each odd value, once with the config alone (``check``) and once with a model
whose denoiser is not run. What is not refused must work, and nothing but a ``UserError`` may be
raised. The second table has the mistakes that a person makes with the controls of a clip.
"""

from __future__ import annotations

import inspect
import re
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine import Config
from torch import Tensor

from mmvideo.config import load_config
from mmvideo.editors import StableVideoDiffusion
from mmvideo.editors.denoising import Denoising
from mmvideo.errors import InputError, UserError
from mmvideo.registry import MODELS

TESTS = Path(__file__).parents[1]
TINY = TESTS / 'apis' / 'tiny_pia.py'
ODD: list[Any] = [
    'odd', -1, 0, 2.5, float('nan'), True, b'x', [], [None], {'odd': 1}, {0: None},
    {0: 1.0, 'interpolation': ['linear']}, [1.0, 2.0, 3.0], object(), torch.zeros(2, 2), 1j,
]  # fmt: skip
# Editors that animate a picture with networks of their own.
PICTURED = {
    'StableVideoDiffusion': TESTS / 'apis' / 'tiny_svd.py',
    'I2VGenXL': TESTS / 'editors' / 'tiny_i2vgen.py',
}
KINDS = ('AnimateDiff', 'PIA', *PICTURED)


def model_config(kind: str) -> dict:
    if kind in PICTURED:
        return load_config(PICTURED[kind]).model.to_dict()
    model = Config.fromfile(TINY).model.to_dict()
    model['type'] = kind
    if kind == 'AnimateDiff':
        del model['condition_module']
    return model


def call(kind: str, **changes: Any) -> dict[str, Any]:
    """Arguments that are right, and changes of them."""
    usual: dict[str, Any] = dict(prompt='a red fish', video_length=4, num_inference_steps=2, seed=0)
    if kind == 'StableVideoDiffusion':
        del usual['prompt']
    if kind in PICTURED:
        usual |= dict(height=16, width=16)
    if kind != 'AnimateDiff':
        usual['image'] = torch.full((3, 16, 16), 0.5)
    return {**usual, **changes}


@pytest.fixture(scope='module')
def editors() -> dict[str, Any]:
    torch.manual_seed(0)
    return {kind: MODELS.build(model_config(kind)).eval() for kind in KINDS}


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Editors that read and check a call, and do not sample; counts the calls that came so far."""
    ran: list[int] = []

    def denoise(self: Any, group: list, request: Any, callback: Any) -> Tensor:
        ran.append(len(group))
        return torch.zeros(len(group), *self._noise_shape(request))

    monkeypatch.setattr(Denoising, '_denoise', denoise)
    for editor in (Denoising, StableVideoDiffusion):
        monkeypatch.setattr(editor, 'decode', lambda self, latents, chunk: latents)
    return ran


def arguments_of(kind: str) -> list[str]:
    return [name for name in inspect.signature(MODELS.get(kind).infer).parameters if name != 'self']


def shown(value: Any) -> str:
    return re.sub(r' at 0x\w+', '', repr(value))


@pytest.mark.parametrize(
    ('kind', 'name'), [(kind, name) for kind in KINDS for name in arguments_of(kind)]
)
def test_odd_values(editors: dict, idle: list, kind: str, name: str) -> None:
    model, wrong = model_config(kind), []
    for value in ODD:
        arguments = call(kind, **{name: value})
        for refuse in (partial(MODELS.get(kind).check, model), editors[kind].infer):
            try:
                refuse(arguments) if isinstance(refuse, partial) else refuse(**arguments)
            except UserError as error:
                text = str(error)
                if len(text) > 600 or ('\n' in text and not isinstance(value, Tensor)):
                    wrong.append(f'{shown(value)}: a message of {len(text)} characters: {text:.80}')
            except Exception as error:  # every other kind is what is looked for
                place = traceback.extract_tb(error.__traceback__)[-1]
                where = f'{Path(place.filename).name}:{place.lineno}'
                wrong.append(f'{shown(value)}: {type(error).__name__} {error} ({where})')
    assert not wrong, '\n'.join([f'{kind}.infer({name}=...)', *wrong])


def test_right_calls_are_not_refused(editors: dict, idle: list) -> None:
    for kind in KINDS:
        MODELS.get(kind).check(model_config(kind), call(kind))
        editors[kind].infer(**call(kind))
    assert idle == [1] * len(KINDS)


CLIP = torch.zeros(4, 3, 16, 16)
MISTAKES: list[tuple[str, dict, str]] = [
    ('AnimateDiff', dict(windows=dict(length=4, overlap=4)), 'windows.overlap=4.*largest is 3'),
    ('AnimateDiff', dict(windows=dict(length=4, overlap=9)), 'windows.overlap=9'),
    ('AnimateDiff', dict(windows=dict(overlap=-1)), 'windows.overlap=-1'),
    ('AnimateDiff', dict(windows=9), 'windows.length=9.*8 frames'),
    ('AnimateDiff', dict(windows=dict(schedule='unifrom')), "Did you mean 'uniform'"),
    ('AnimateDiff', dict(windows=dict(noise='shuffled')), "Did you mean 'shuffle_context'"),
    ('AnimateDiff', dict(windows=dict(fusion='linear')), "Did you mean 'overlap-linear'"),
    ('AnimateDiff', dict(prompt={0: 'a', 4: 'b'}), 'prompt: the key 4 lies beyond'),
    ('AnimateDiff', dict(prompt='0: a\n9: b'), 'prompt: the key 9 lies beyond'),
    ('AnimateDiff', dict(guidance_scale={0: 3.0, 4: 1.0}), 'guidance_scale: the key 4 lies beyond'),
    ('AnimateDiff', dict(guidance_scale={0: 3.0, 'interpolation': 'ease'}),
     "interpolation='ease'.*Did you mean 'ease-in'"),
    ('AnimateDiff', dict(motion_scale={'all': {0: 1, 4: 2}}), 'motion_scale: the key 4'),
    ('AnimateDiff', dict(motion_strength=[1.0] * 5), '5 numbers for 4 frames'),
    ('AnimateDiff', dict(free_init=dict(order=-4)), r'free_init.order=-4.*\(0, 100\]'),
    ('AnimateDiff', dict(free_init=dict(method='butter')), "Did you mean 'butterworth'"),
    ('AnimateDiff', dict(free_u=dict(s1=-0.1)), r'free_u.s1=-0.1.*\[0, 10\]'),
    ('AnimateDiff', dict(free_u=dict(b1=99)), 'free_u.b1=99'),
    ('AnimateDiff', dict(free_noise=dict(context_stride=0)), 'context_stride=0'),
    ('AnimateDiff', dict(strength=0.5), 'without a video'),
    ('AnimateDiff', dict(video=CLIP[:3]), 'has only 3 frames'),
    ('AnimateDiff', dict(video=CLIP, strength=0), 'strength=0'),
    ('AnimateDiff', dict(video=dict(clip=CLIP, start=2)), 'only 2 frames from 2 on'),
    ('AnimateDiff', dict(control_videos=[CLIP]), 'this model has no controls'),
    ('AnimateDiff', dict(ip_adapter_image=CLIP[0]), 'the model has no IP-Adapter'),
    ('PIA', dict(condition_frame=4), 'condition_frame=4: a clip of 4 frames has 0 to 3'),
    ('PIA', dict(condition_frame=[0, 4]), 'condition_frame=4'),
    ('PIA', dict(condition_frame=[0, 3]), '1 images for 2 condition frames'),
    ('PIA', dict(motion_scale={0: 1.0, 4: 0.5}), 'motion_scale: the key 4 lies beyond'),
    ('PIA', dict(motion_scale='loop'), "motion_scale='loop'"),
    ('PIA', dict(motion_scale={0: 1.0, 'interpolation': 'cubic'}), "interpolation='cubic'"),
    *((kind, dict(num_videos_per_prompt=0), 'num_videos_per_prompt=0: expected an integer >= 1')
      for kind in KINDS),
    ('StableVideoDiffusion', dict(windows=dict(length=4, overlap=4)), 'windows.overlap=4'),
    ('StableVideoDiffusion', dict(guidance_scale={0: 3.0, 4: 1.0}), 'the key 4 lies beyond'),
    ('StableVideoDiffusion', dict(draws='diffuser'), "Did you mean 'diffusers'"),
    ('StableVideoDiffusion', dict(height=18.0), 'height=18.0'),
    ('StableVideoDiffusion', dict(height=None, width=9), 'width=9'),
    ('StableVideoDiffusion', dict(image=[]), 'image is an empty list'),
    ('I2VGenXL', dict(image=[]), 'image is an empty list'),
    ('I2VGenXL', dict(prompt={0: 'a', 4: 'b'}), 'prompt: the key 4 lies beyond'),
    ('I2VGenXL', dict(target_fps=0), 'target_fps=0'),
    ('I2VGenXL', dict(free_u=dict(b1=99)), 'free_u.b1=99'),
    ('I2VGenXL', dict(guidance_interval=[0.5, 0.6]), 'none of 2 steps lies inside'),
]  # fmt: skip


@pytest.mark.parametrize(('kind', 'wrong', 'words'), MISTAKES, ids=lambda value: shown(value)[:60])
def test_mistakes_with_controls(
    editors: dict, idle: list, kind: str, wrong: dict, words: str
) -> None:
    for refuse in (
        lambda: MODELS.get(kind).check(model_config(kind), call(kind, **wrong)),
        lambda: editors[kind].infer(**call(kind, **wrong)),
    ):
        with pytest.raises(InputError, match=words):
            refuse()
    assert idle == []


def test_an_adapter_that_was_not_loaded(editors: dict) -> None:
    editor = editors['AnimateDiff']
    for change in (lambda: editor.set_adapters('style'), lambda: editor.remove_adapter('style')):
        with pytest.raises(InputError, match="there is no adapter 'style'. There: none"):
            change()
    with pytest.raises(InputError, match='2 weights for 0 adapters'):
        editor.set_adapters([], [1.0, 2.0])
