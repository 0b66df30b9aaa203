"""Configs are refused before anything is built, and the message says what to write instead."""

from __future__ import annotations

import sys
import textwrap

import pytest
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import nn

from mmvideo.config import load_config, parse_cfg_options, recipe_to_config
from mmvideo.config_check import locate, signature_of, survey
from mmvideo.errors import ConfigError
from mmvideo.registry import DATASETS, HOOKS, MODELS, TRANSFORMS

BUILT: list[str] = []


class Recorder:
    """Notes that it was built: a check never builds."""

    def __init__(self, *args, **kwargs):
        BUILT.append(type(self).__name__)


class Unet(Recorder):
    part_registries = {'motion_module': 'MODELS'}

    def __init__(self, sample_size, layers_per_block=2, motion_module=None):
        super().__init__()


class Motion(Recorder):
    def __init__(self, channels, num_attention_heads=8):
        super().__init__()


class Base(BaseModel):
    part_registries = {
        'unet': 'MODELS', 'scheduler': 'SCHEDULERS', 'tokenizer': 'TOKENIZERS',
        'train_scheduler': 'SCHEDULERS', 'motion_module': 'MODELS', 'vae': 'MODELS',
    }  # fmt: skip

    def __init__(self, unet, scheduler, tokenizer=None, vae=None, motion_module=None,
                 train_scheduler=None, scale=1.0, plain=None):  # fmt: skip
        BUILT.append('Base')
        super().__init__()


class Editor(Base):
    def __init__(self, motion_module, **kwargs):
        super().__init__(motion_module=motion_module, **kwargs)

    def infer(self, prompt, negative_prompt=None, video_length=16, seed=None):
        """Nothing."""


class Clips(Recorder):
    def __init__(self, root, length=5, pipeline=()):
        super().__init__()


class Cut(Recorder):
    def __init__(self, size):
        super().__init__()


class Cry(Hook):
    def __init__(self, loud=1):
        BUILT.append('Cry')


TOYS = [
    (MODELS, 'ToyUnet', Unet), (MODELS, 'ToyMotion', Motion), (MODELS, 'ToyBase', Base),
    (MODELS, 'ToyEditor', Editor), (DATASETS, 'ToyClips', Clips), (TRANSFORMS, 'ToyCut', Cut),
    (HOOKS, 'ToyCry', Cry),
]  # fmt: skip


@pytest.fixture(autouse=True)
def toys():
    for registry, name, cls in TOYS:
        registry.register_module(name=name, module=cls, force=True)
    BUILT.clear()
    yield
    for registry, name, _ in TOYS:
        registry.module_dict.pop(name)
    assert BUILT == [], 'a check built something'


GOOD = """
size = 64
prompt = 'a fish'
model = dict(
    type='ToyEditor',
    unet=dict(type='ToyUnet', sample_size=size, motion_module=dict(type='ToyMotion')),
    vae=dict(type='AutoencoderKL', block_out_channels=(16, 32)),
    tokenizer=dict(type='CLIPTokenizer', vocab=['a', 'fish']),
    scheduler=dict(type='DDIMScheduler', beta_start=0.00085, clip_sample=False),
    motion_module=dict(type='ToyMotion', from_pretrained='somewhere', subfolder='x'),
    scale=2.0,
    plain=dict(anything=dict(goes=1)),
)
infer = dict(prompt=prompt, seed=3, fps=8)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(type='ToyClips', root='x', pipeline=[dict(type='ToyCut', size=3)]),
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=10)
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4), clip_grad=dict(max_norm=1.0)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=5),
    dict(type='CosineAnnealingLR', T_max=5, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(type='LoggerHook', interval=5), timer=None)
custom_hooks = [dict(type='ToyCry', loud=2, priority='LOW')]
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
env_cfg = dict(dist_cfg=dict(backend='gloo'))
val_cfg = None
"""


@pytest.fixture
def write(tmp_path):
    def put(text, name='good.py', **files):
        for other, content in files.items():
            (tmp_path / f'{other}.py').write_text(textwrap.dedent(content))
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return put


def refused(function, *args):
    with pytest.raises(ConfigError) as caught:
        function(*args)
    return str(caught.value)


def test_a_good_config_is_accepted(write):
    cfg = load_config(write(GOOD))
    assert cfg.default_scope == 'mmvideo'
    assert cfg.model.unet.sample_size == 64
    assert len(list(survey(cfg))) > 15


def test_leaves_merge_over_their_bases(write):
    path = write(
        "_base_ = ['./one.py', './two.py']\nwidth = 8\n"
        'model = dict(scale=width, unet=dict(sample_size={{_base_.side}}))\n'
        'infer = dict(prompt=_base_.words[0])\n',
        one=GOOD,
        two="side = 32\nwords = ['a comet']\nwork_dir = 'here'\n",
    )
    cfg = load_config(path)
    assert (cfg.model.scale, cfg.model.unet.sample_size) == (8, 32)
    assert (cfg.infer.prompt, cfg.work_dir) == ('a comet', 'here')


# what to replace in GOOD, by what, and what the message must say
WRONG = [
    ('train_dataloader =', 'train_dataloder =', ["'train_dataloder'", "'train_dataloader'"]),
    ('size = 64', 'size = 64\nsiez = 3', ["'siez'", 'unknown setting']),
    ("type='ToyEditor'", "type='ToyEditer'", ['model', "'ToyEditer'", "'ToyEditor'"]),
    ("type='ToyEditor'", "type='os.system'", ['model', 'dotted path']),
    ("type='ToyEditor'", 'type=print', ['model', 'registered name in quotes', 'print']),
    ("type='ToyEditor'", "tpye='ToyEditor'", ["model needs a 'type'", "Did you mean 'type'"]),
    ("type='ToyEditor'", "type='ToyEditor', _scope_='mmdet'", ['_scope_', 'mmvideo']),
    ('scale=2.0', 'sclae=2.0', ['model: ToyEditor', "'sclae'", "'scale'"]),
    ('sample_size=size', 'sampel_size=size', ['model.unet: ToyUnet', "'sample_size'"]),
    ('sample_size=size, ', 'layers_per_block=size, ', ['model.unet: ToyUnet needs', 'sample_size']),
    ("type='ToyMotion')", "type='ToyMotion', num_heads=3)", ['model.unet.motion_module', 'heads']),
    ("type='ToyMotion')", "type='ToyMotion', channels=3)", ["no 'channels'"]),
    ('block_out_channels=', 'block_out_chanels=', ['vae: AutoencoderKL', 'block_out_channels']),
    ("vocab=['a'", "vocabulary=['a'", ['model.tokenizer: CLIPTokenizer', "'vocab'"]),
    ('beta_start=', 'beta_strat=', ['model.scheduler: DDIMScheduler', "'beta_start'"]),
    ("type='DDIMScheduler'", "type='DDIMSheduler'", ['model.scheduler', "'DDIMScheduler'"]),
    ("type='DDIMScheduler'", "type='ToyUnet'", ['model.scheduler', "'ToyUnet'"]),
    ("scheduler=dict(type='DDIMScheduler', ", 'scheduler=dict(', ["scheduler needs a 'type'"]),
    ('seed=3', 'sede=3', ['infer: ToyEditor.infer', "'sede'", "'seed'"]),
    ('num_workers=0', 'num_wokers=0', ['train_dataloader', "'num_workers'"]),
    ("root='x', ", '', ['train_dataloader.dataset: ToyClips needs', "'root'"]),
    ("type='ToyCut', size=3", "type='ToyCut', szie=3", ['dataset.pipeline[0]: ToyCut', "'size'"]),
    ('shuffle=True', 'shufle=True', ['train_dataloader.sampler', "'shuffle'"]),
    ("type='default_collate'", "type='default_colate'", ["'default_collate'"]),
    ('max_iters=10', 'max_itters=10', ['train_cfg: IterBasedTrainLoop', "'max_iters'"]),
    ("type='IterBasedTrainLoop', ", '', ["train_cfg needs a 'type'"]),
    ('lr=1e-4', 'lrr=1e-4', ['optim_wrapper.optimizer: AdamW', "'lrr'", "'lr'"]),
    ('clip_grad=', 'clip_gard=', ['optim_wrapper: OptimWrapper', "'clip_grad'"]),
    ('max_norm=1.0', 'maxnorm=1.0', ['optim_wrapper.clip_grad', "'max_norm'"]),
    ("    type='OptimWrapper',", "    type='OptimWrapper', constructor='Trainab',", ['Trainab']),
    ('start_factor=', 'start_facter=', ['param_scheduler[0]: LinearLR', "'start_factor'"]),
    ('start_factor=', "param_name='lr', start_factor=", ["no 'param_name'"]),
    ('T_max=5', 'Tmax=5', ['param_scheduler[1]: CosineAnnealingLR', "'T_max'"]),
    ('interval=5', 'intervall=5', ['default_hooks.logger: LoggerHook', "'interval'"]),
    ('loud=2', 'lud=2', ['custom_hooks[0]: ToyCry', "'loud'"]),
    ("type='ToyCry'", "type='ToyCrie'", ['custom_hooks[0]', "'ToyCry'"]),
    ("type='LocalVisBackend'", "type='LocalVisBackend', dir=3", ['visualizer.vis_backends[0]']),
    ('log_processor = dict(by_epoch', 'log_processor = dict(by_epoh', ['LogProcessor', 'by_epoch']),
    ('randomness = dict(seed', 'randomness = dict(sede', ['randomness', "'seed'"]),
    ("dist_cfg=dict(backend='", "dist_cfg=dict(backed='", ['env_cfg.dist_cfg', "'backend'"]),
    ('val_cfg = None', "default_scope = 'mmdet'", ["'mmdet'", "'mmvideo'"]),
    ('val_cfg = None', 'import mmvideo.nothing', ['good.py']),
    ('val_cfg = None', 'val_cfg = None\nx = undefined_name\ny = x', ['good.py', 'undefined_name']),
    ('val_cfg = None', 'runner_type = 3', ['runner_type', 'registered name']),
]  # fmt: skip


@pytest.mark.parametrize(('old', 'new', 'words'), WRONG)
def test_wrong_configs_are_refused(write, old, new, words):
    assert old in GOOD
    message = refused(load_config, write(GOOD.replace(old, new, 1)))
    for word in ['good.py', *words]:
        assert word in message


def test_files_that_are_no_config(write, tmp_path):
    path = write(GOOD)
    assert "Did you mean '" in refused(load_config, tmp_path / 'god.py')
    assert 'good.py' in refused(load_config, tmp_path / 'god.py')
    assert 'is empty' in refused(load_config, write('', 'empty.py'))
    assert 'ending in' in refused(load_config, write('x', 'notes.txt'))
    message = refused(load_config, write('model = dict(\n  a=1,\n  b=\n)\n', 'broken.py'))
    assert 'broken.py, line 3' in message or 'broken.py, line 4' in message
    assert 'text style' in refused(load_config, write('with open("x"):\n  pass\n', 'lazy.py'))
    assert load_config(str(path)).model.scale == 2.0


def test_bases_are_checked_too(write, tmp_path):
    write(GOOD, 'base.py')
    message = refused(load_config, write("_base_ = 'bsae.py'\n", 'leaf.py'))
    assert 'leaf.py' in message and "base.py'" in message
    assert 'relative to' in refused(load_config, write("_base_ = 'mmdet::x.py'\n", 'leaf.py'))
    assert 'file name' in refused(load_config, write('_base_ = some()\n', 'leaf.py'))
    assert 'itself' in refused(load_config, write("_base_ = './leaf.py'\n", 'leaf.py'))
    both = "_base_ = ['base.py', 'other.py']\n"
    write('randomness = dict(seed=1)\n', 'other.py')
    assert 'Duplicate' in refused(load_config, write(both, 'leaf.py'))


def test_options_are_applied_and_checked(write):
    path = write(GOOD)
    options = parse_cfg_options(
        [
            'model.unet.layers_per_block=3',
            'param_scheduler.0.end=9',
            'randomness.deterministic=True',
        ]
    )
    cfg = load_config(path, options | {'optim_wrapper.optimizer.fused': None, 'work_dir': 'w'})
    assert cfg.model.unet.layers_per_block == 3
    assert cfg.param_scheduler[0].end == 9
    assert cfg.randomness.deterministic is True and cfg.work_dir == 'w'
    assert cfg.optim_wrapper.optimizer.fused is None
    merged = load_config(path, {'model.unet': dict(sample_size=8)})
    assert merged.model.unet.sample_size == 8 and merged.model.unet.type == 'ToyUnet'
    swapped = load_config(path, {'model.scheduler': dict(type='LCMScheduler')})
    assert swapped.model.scheduler == dict(type='LCMScheduler')


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'modle.scale': 1}, ["'modle.scale'", "'model'"]),
        ({'size': 3}, ["'size' is a variable"]),
        ({'model.unett.sample_size': 1}, ["no 'unett'", "'unet'"]),
        ({'model.unet.sampel_size': 1}, ["no 'sampel_size'", "'sample_size'"]),
        ({'model.tpye': 'PIA'}, ["no 'tpye'", "'type'"]),
        ({'model.scale.deep': 1}, ['model.scale', '2.0', 'no keys']),
        ({'model.plain.other': 1}, ["no 'other'", 'anything']),
        ({'optim_wrapper.optimizer.lrr': 1}, ["'lr'"]),
        ({'param_scheduler.2.end': 1}, ['index from 0 to 1', "'2'"]),
        ({'param_scheduler.end': 1}, ['index from 0 to 1', "'end'"]),
        ({'infer.promt': 'x'}, ["'prompt'"]),
        ({'val_dataloader.batch_size': 1}, ["no 'val_dataloader'"]),
        ({'model..scale': 1}, ['single dots']),
        ({'model.type': 'os.system'}, ['dotted path']),
        ({'model.scheduler.type': 'ToyUnet'}, ['model.scheduler', "'ToyUnet'"]),
        ({'model.unet': dict(type='ToyMotion', sample_size=1)}, ["no 'sample_size'"]),
    ],
)
def test_options_that_cannot_be(write, options, words):
    message = refused(load_config, write(GOOD), options)
    for word in ['good.py', *words]:
        assert word in message


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('3', 3), ('1e-4', 1e-4), ('true', True), ('False', False), ('none', None), ('x', 'x'),
        ('"3"', '3'), ('[1,2]', [1, 2]), ('(1,2)', (1, 2)), ('[a,b]', ['a', 'b']),
        ('[(a,1),[b]]', [('a', 1), ['b']]), ('', ''), ('a=b', 'a=b'), ('[]', []),
        ('{"a": 1}', {'a': 1}), ('a red fish, moving', 'a red fish, moving'),
        ('__import__("os").system("true")', '__import__("os").system("true")'),
    ],
)  # fmt: skip
def test_values_of_options(text, value):
    assert parse_cfg_options([f'k={text}']) == {'k': value}


def test_options_that_cannot_be_read():
    assert 'KEY=VALUE' in refused(parse_cfg_options, ['model'])
    assert 'KEY=VALUE' in refused(parse_cfg_options, ['=3'])
    assert 'twice' in refused(parse_cfg_options, ['a=1', 'a=2'])


RECIPE = {
    'model': {
        'type': 'ToyEditor',
        'unet': {'type': 'ToyUnet', 'sample_size': 8},
        'scheduler': {'type': 'DDIMScheduler'},
        'motion_module': {'type': 'ToyMotion'},
    },
    'infer': {'prompt': 'a fish', 'seed': 1},
}


def test_recipes_are_data():
    cfg = recipe_to_config(RECIPE, {'infer.seed': 5})
    assert (cfg.infer.seed, cfg.model.type, cfg.default_scope) == (5, 'ToyEditor', 'mmvideo')
    assert RECIPE['infer']['seed'] == 1


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'custom_imports': {'imports': ['os']}}, ['custom_imports', 'imports nothing']),
        ({'_base_': 'x.py'}, ['_base_']),
        ({'model': {'type': 'subprocess.getoutput', 'cmd': 'true'}}, ['dotted path']),
        ({'modell': {}}, ["'modell'", "'model'"]),
        ({'infer': {'promtp': 'x'}}, ["'prompt'"]),
        ({'infer': {'prompt': print}}, ['recipe.infer.prompt', 'plain data']),
        ({'infer': {'seed': float('nan')}}, ['recipe.infer.seed', 'finite']),
        ({'__class__': 1}, ['__class__']),
        ({3: 1}, ['3']),
    ],
)
def test_recipes_that_are_no_data(change, words):
    message = refused(recipe_to_config, {**RECIPE, **change})
    assert all(word in message for word in ['recipe', *words])


def test_recipes_of_another_form():
    for value in ({}, [], 'model', None):
        assert 'JSON object' in refused(recipe_to_config, value)
    deep: dict = {}
    for _ in range(50):
        deep = {'a': deep}
    assert 'levels deep' in refused(recipe_to_config, {'model': deep})


def test_custom_imports_register_types(write, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'my_toys_of_a_test.py').write_text(
        'from mmvideo.registry import HOOKS\nfrom mmengine.hooks import Hook\n'
        '@HOOKS.register_module()\nclass MyToyHook(Hook):\n'
        '    def __init__(self, often=1):\n        pass\n'
    )
    text = (
        "custom_imports = dict(imports=['my_toys_of_a_test'])\n"
        "custom_hooks = [dict(type='MyToyHook', oftn=3)]\n"
    )
    try:
        assert "'often'" in refused(load_config, write(text))
    finally:
        HOOKS.module_dict.pop('MyToyHook', None)
        sys.modules.pop('my_toys_of_a_test', None)
    wrong = write("custom_imports = dict(imports=['no_such_module_here'])\n")
    assert 'no_such_module_here' in refused(load_config, wrong)


def test_signatures_follow_super_and_stop_where_it_stops():
    class A:
        def __init__(self, first, second=2, **kwargs):
            pass

    class B(A):
        def __init__(self, own, **kwargs):
            super().__init__('given', **kwargs)

    class C(A):
        def __init__(self, own=1, **kwargs):
            super().__init__(first=kwargs.pop('x', 0))

    class D(nn.Module):
        pass

    assert signature_of(B).names == {'own', 'second'}
    assert signature_of(B).required == {'own'}
    assert signature_of(C).names == {'own'}
    assert signature_of(Editor).required == {'motion_module', 'unet', 'scheduler'}
    assert 'scale' in signature_of(Editor).names
    assert signature_of(D).required == frozenset()


def test_valid_keys_of_a_place(write):
    cfg = load_config(write(GOOD))
    assert 'layers_per_block' in locate(cfg, ('model', 'unet'))
    assert locate(cfg, ('model', 'plain')) == frozenset()


def test_json_and_yaml_configs(write):
    path = write('{"model": {"type": "ToyUnet", "sample_siez": 3}}', 'c.json')
    assert "'sample_size'" in refused(load_config, path)
    assert load_config(write('model:\n  type: ToyUnet\n  sample_size: 3\n', 'c.yaml')).model
