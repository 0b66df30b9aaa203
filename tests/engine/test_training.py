"""The training loop in numbers: accumulation, averages, precision, guards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from torch import Tensor

from mmvideo.datasets import SpriteWorld
from mmvideo.engine.ema import EMAHook, averaged
from mmvideo.engine.nonfinite import NonFiniteError
from mmvideo.errors import ConfigError

Runner = Callable[..., Any]


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert set(one) == set(other)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


class Watch(Hook):
    """Copies of the trained parameters after every step."""

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.norms: list[float] = []

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        named = runner.model.named_parameters()
        self.states.append({n: p.detach().clone() for n, p in named if p.requires_grad})
        self.norms.append(runner.message_hub.get_scalar('train/grad_norm').current())


def watched(runner: Any) -> Watch:
    watch = Watch()
    runner.register_hook(watch)
    return watch


# --- accumulation -------------------------------------------------------------------------------


def test_accumulation_equals_one_batch(runner: Runner, trained: Callable, same_noise: None) -> None:
    options = dict(model__caption_dropout=0.0, optim_wrapper__clip_grad__max_norm=0.01)
    whole = runner(train_dataloader__batch_size=4, **options)
    start, watch = trained(whole), watched(whole)
    whole.train()
    parts = runner(optim_wrapper__accumulative_counts=4, **options)
    assert distance(start, trained(parts)) == 0
    parts.train()
    alone = runner(**options)
    alone.train()
    assert all(norm > 0.01 for norm in watch.norms)  # clipping was active in every step
    assert distance(start, trained(whole)) > 1e-3
    assert distance(trained(whole), trained(parts)) <= 1e-6
    assert distance(trained(whole), trained(alone)) > 1e-4


def test_one_iteration_is_one_optimizer_step(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = runner(optim_wrapper__accumulative_counts=4, train_cfg__max_iters=5)
    indices: list[int] = []
    draw = SpriteWorld.__getitem__

    def counted(self: SpriteWorld, index: int) -> dict:
        indices.append(int(index))
        return draw(self, index)

    monkeypatch.setattr(SpriteWorld, '__getitem__', counted)
    built.train()
    optimizer = built.optim_wrapper.optimizer
    steps = {int(state['step']) for state in optimizer.state.values()}
    assert built.iter == 5 and steps == {5}
    assert len(indices) == 20  # four clips a step, and none drawn in vain
    assert sorted(indices[:16]) == list(range(16))  # the first epoch is a permutation
    # The schedule goes by steps: half the rate at first, all of it after four.
    assert optimizer.param_groups[0]['lr'] == pytest.approx(1e-2)


# --- averages -----------------------------------------------------------------------------------


def test_average_follows_its_formula(runner: Runner, trained: Callable) -> None:
    built = runner(train_cfg__max_iters=6)
    watch, expected = watched(built), trained(built)
    built.train()
    for step, state in enumerate(watch.states):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = {n: decay * a + (1 - decay) * state[n] for n, a in expected.items()}
    [hook] = [hook for hook in built.hooks if isinstance(hook, EMAHook)]
    assert distance(hook.averages, expected) <= 1e-6
    assert distance(hook.averages, trained(built)) > 1e-4


def test_average_holds_only_what_is_trained(runner: Runner, trained: Callable) -> None:
    built = runner(train_cfg__max_iters=1)
    built.train()
    [hook] = [hook for hook in built.hooks if isinstance(hook, EMAHook)]
    assert set(hook.averages) == set(trained(built))
    assert all('motion_modules' in name for name in hook.averages)


def test_average_is_lent_and_given_back(runner: Runner, trained: Callable) -> None:
    built = runner(train_cfg__max_iters=3)
    built.train()
    [hook] = [hook for hook in built.hooks if isinstance(hook, EMAHook)]
    before, average = trained(built), {n: a.clone() for n, a in hook.averages.items()}
    with pytest.raises(RuntimeError, match='inside'), averaged(built):
        assert distance(trained(built), average) == 0
        raise RuntimeError('inside')
    assert distance(trained(built), before) == 0
    assert distance(hook.averages, average) == 0


# --- guards -------------------------------------------------------------------------------------


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('place', ['loss', 'gradient'])
def test_nothing_is_updated_by_what_is_not_finite(
    runner: Runner, trained: Callable, place: str, value: float
) -> None:
    built = runner(train_cfg__max_iters=4)
    watch = watched(built)
    if place == 'loss':
        compute = built.model.loss
        built.model.loss = lambda *args: {
            'loss': compute(*args)['loss'] * (value if built.iter == 2 else 1.0)
        }
    else:
        parameter = next(p for p in built.model.parameters() if p.requires_grad)
        parameter.register_hook(lambda grad: grad * (value if built.iter == 2 else 1.0))
    with pytest.raises(NonFiniteError, match='step 3'):
        built.train()
    assert built.iter == 2 and len(watch.states) == 2
    assert distance(trained(built), watch.states[1]) == 0
    steps = {int(state['step']) for state in built.optim_wrapper.optimizer.state.values()}
    assert steps == {2}
    [hook] = [hook for hook in built.hooks if isinstance(hook, EMAHook)]
    assert all(torch.isfinite(average).all() for average in hook.averages.values())
    assert not list(Path(built.work_dir).glob('iter_*'))


def test_frozen_parameters_are_neither_optimised_nor_changed(runner: Runner) -> None:
    built = runner()
    frozen = {n: p.detach().clone() for n, p in built.model.named_parameters()
              if not p.requires_grad}  # fmt: skip
    built.train()
    for name, parameter in built.model.named_parameters():
        if name in frozen:
            assert parameter.grad is None and torch.equal(parameter, frozen[name]), name
    groups = built.optim_wrapper.optimizer.param_groups
    held = {id(p) for group in groups for p in group['params']}
    assert held == {id(p) for p in built.model.parameters() if p.requires_grad}


def test_weight_decay_spares_norms_and_biases(runner: Runner) -> None:
    built = runner(optim_wrapper__paramwise_cfg=dict(no_decay_1d=True))
    built.train()
    decayed, spared = built.optim_wrapper.optimizer.param_groups
    assert decayed['weight_decay'] == 1e-2 and spared['weight_decay'] == 0
    assert all(p.ndim > 1 for p in decayed['params']) and all(p.ndim <= 1 for p in spared['params'])


def names_by_rate(runner: Any) -> dict[float, set[str]]:
    """The names of the parameters that the optimizer holds at each learning rate."""
    named = {id(p): name for name, p in runner.model.named_parameters()}
    rates: dict[float, set[str]] = {}
    for group in runner.optim_wrapper.optimizer.param_groups:
        rates.setdefault(round(group['lr'], 9), set()).update(named[id(p)] for p in group['params'])
    return rates


def test_rate_by_pattern(runner: Runner, trained: Callable) -> None:
    rates = {r'norm': 10.0, r'[.]proj_out[.]': 0.5}
    built = runner(
        optim_wrapper__paramwise_cfg=dict(no_decay_1d=True, lr_mult=rates),
        train_cfg__max_iters=2,
    )
    built.train()
    # The schedule starts at half the rate and reaches all of it in the fourth step.
    factor = 0.5 + 0.5 * 2 / 3
    found = names_by_rate(built)
    assert set(found) == {round(1e-2 * factor * m, 9) for m in (1.0, 10.0, 0.5)}
    assert found[round(1e-1 * factor, 9)] == {n for n in trained(built) if 'norm' in n}
    assert found[round(5e-3 * factor, 9)] == {n for n in trained(built) if '.proj_out.' in n}
    assert set.union(*found.values()) == set(trained(built))
    groups = built.optim_wrapper.optimizer.param_groups
    assert len(groups) == 5  # norms have no tensor of two dimensions
    for group in groups:
        assert {p.ndim > 1 for p in group['params']} == {group['weight_decay'] > 0}
    assert 'lr_mult' not in groups[0]  # the rate that the log shows is the plain one


def test_rate_by_pattern_moves_the_parameter_further(
    runner: Runner, trained: Callable, same_noise: None
) -> None:
    pattern = r'[.]proj_out[.]'
    moved = []
    for factor in (1.0, 3.0):
        paramwise = dict(lr_mult={pattern: factor})
        built = runner(optim_wrapper__paramwise_cfg=paramwise, train_cfg__max_iters=1)
        start = trained(built)
        built.train()
        moved.append({n: p - start[n] for n, p in trained(built).items()})
    plain, faster = moved
    assert any(float(step.abs().max()) > 1e-4 for step in plain.values())
    for name in plain:
        expected = plain[name] * (3.0 if '.proj_out.' in name else 1.0)
        torch.testing.assert_close(faster[name], expected, rtol=0, atol=1e-5)


def test_rates_by_pattern_are_resumed(runner: Runner, trained: Callable) -> None:
    options = dict(optim_wrapper__paramwise_cfg=dict(no_decay_1d=True, lr_mult={'norm': 10.0}))
    whole = runner(train_cfg__max_iters=4, **options)
    whole.train()
    stopped = runner(train_cfg__max_iters=2, **options)
    stopped.train()
    resumed = runner(
        train_cfg__max_iters=4, load_from=f'{stopped.work_dir}/iter_2', resume=True, **options
    )
    resumed.train()
    assert distance(trained(whole), trained(resumed)) == 0
    assert names_by_rate(whole) == names_by_rate(resumed)
    assert set(names_by_rate(whole)) == {1e-2, 1e-1}


@pytest.mark.parametrize(
    ('rates', 'message'),
    [
        ({'motion_moduls': 2.0}, r"'motion_moduls' matches none of the \d+ trained .*named as"),
        ({r'^unet[.]conv_in': 2.0}, r"frozen parameters only, such as 'unet\.conv_in\.weight'"),
        ({'norm': 2.0, r'[.]weight$': 3.0}, r"matches 'unet\..*, and so does 'norm'"),
    ],
    ids=['nothing', 'frozen', 'twice'],
)
def test_patterns_that_fit_no_model_are_refused(runner: Runner, rates: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        runner(optim_wrapper__paramwise_cfg=dict(lr_mult=rates)).train()


@pytest.mark.parametrize(
    ('paramwise', 'message'),
    [
        (dict(lr_mul={}), r"unknown key 'lr_mul'.*Did you mean 'lr_mult'"),
        (dict(no_decay_1d='yes'), r"no_decay_1d='yes': expected a bool"),
        (dict(lr_mult=[10.0]), r'lr_mult is \[10\.0\], expected a dict'),
        (dict(lr_mult={'(': 2.0}), r"'\(' is no regular expression"),
        (dict(lr_mult={'norm': 0}), r"\['norm'\]=0: expected a number above 0"),
        (dict(lr_mult={'norm': float('inf')}), 'expected a number above 0'),
        (dict(lr_mult={'norm': '10'}), r"='10': expected a number above 0"),
    ],
    ids=['key', 'bool', 'list', 'pattern', 'zero', 'infinite', 'text'],
)
def test_paramwise_settings_are_refused_before_a_model_is_built(
    runner: Runner, paramwise: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('mmvideo.registry.MODELS.build', None)
    with pytest.raises(ConfigError, match=message):
        runner(optim_wrapper__paramwise_cfg=paramwise)


def test_a_range_of_timesteps_is_refused_before_a_model_is_built(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('mmvideo.registry.MODELS.build', None)
    with pytest.raises(ConfigError, match=r'timestep_range=\(5, 5\)'):
        runner(model__timestep_range=(5, 5))


@pytest.mark.parametrize(
    ('schedule', 'message'),
    [
        (dict(begin=3), r'param_scheduler\.1 begins at step 3 and ends at step 3, as the training'),
        (dict(begin=2, end=2), r'begins at step 2 and ends at step 2; expected an earlier begin'),
    ],
    ids=['after the training', 'its own end'],
)
def test_a_schedule_that_never_begins_is_refused_before_a_model_is_built(
    runner: Runner, schedule: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('mmvideo.registry.MODELS.build', None)
    warm_up = dict(type='LinearLR', start_factor=0.5, by_epoch=False, end=2)
    decay = dict(type='CosineAnnealingLR', by_epoch=False, T_max=3, **schedule)
    with pytest.raises(ConfigError, match=message):
        runner(param_scheduler=[warm_up, decay])


def test_training_nothing_is_refused(runner: Runner) -> None:
    with pytest.raises(ConfigError, match='no parameter is trainable'):
        runner(model__trainable=[]).train()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(train_cfg__max_iters=0), r'train_cfg\.max_iters=0'),
        (dict(optim_wrapper__dtype='bfloat61'), "Did you mean 'bfloat16'"),
        (dict(default_hooks__checkpoint__interval=0), r'CheckpointHook\.interval=0'),
        (dict(custom_hooks=[dict(type='EMAHook', decay=1.0)]), r'EMAHook\.decay=1\.0'),
    ],
    ids=['max_iters', 'dtype', 'interval', 'decay'],
)
def test_settings_that_cannot_be_are_refused(runner: Runner, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        runner(**options).train()


# --- precision and memory -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'kind'), [('bfloat16', torch.bfloat16), ('float32', torch.float32)]
)
def test_precision_of_the_forward_pass(runner: Runner, name: str, kind: torch.dtype) -> None:
    built = runner(optim_wrapper__dtype=name, train_cfg__max_iters=1)
    seen: set[torch.dtype] = set()
    built.model.unet.conv_in.register_forward_hook(lambda *args: seen.add(args[-1].dtype))
    built.train()
    assert seen == {kind}
    for parameter in built.model.parameters():
        assert parameter.dtype == torch.float32
    states = built.optim_wrapper.optimizer.state.values()
    assert {state['exp_avg'].dtype for state in states} == {torch.float32}


def test_bf16_trains_nearly_as_float32(runner: Runner, trained: Callable, same_noise: None) -> None:
    exact = runner()
    start = trained(exact)
    exact.train()
    mixed = runner(optim_wrapper__dtype='bfloat16')
    mixed.train()
    moved = distance(start, trained(exact))
    assert 0 < distance(trained(exact), trained(mixed)) < moved


def test_gradient_checkpointing_trains_the_same(
    runner: Runner, trained: Callable, same_noise: None
) -> None:
    plain = runner()
    plain.train()
    saving = runner(model__unet__gradient_checkpointing=True)
    assert saving.model.unet.gradient_checkpointing
    saving.train()
    assert distance(trained(plain), trained(saving)) <= 1e-6


# --- samples and exports ------------------------------------------------------------------------


def test_samples_are_files_and_leave_no_trace_in_training(
    runner: Runner, trained: Callable
) -> None:
    arguments = dict(prompt='a red fish', video_length=3, num_inference_steps=2, seed=1)
    hooks = [dict(type='NonFiniteGuard'), dict(type='EMAHook', decay=0.9)]
    sampling = dict(type='SampleHook', interval=2, arguments=arguments)
    drawing = runner(custom_hooks=[*hooks, sampling], train_cfg__max_iters=4)
    drawing.train()
    plain = runner(custom_hooks=hooks, train_cfg__max_iters=4)
    plain.train()
    files = sorted(p.name for p in (Path(drawing.work_dir) / 'samples').iterdir())
    assert files == ['iter_2.mp4', 'iter_4.mp4']
    assert drawing.model.training
    assert distance(trained(drawing), trained(plain)) == 0


def test_export_holds_the_averages(runner: Runner, tmp_path: Path) -> None:
    from mmvideo.checkpoints.files import read_tensors

    hooks = [dict(type='EMAHook', decay=0.9), dict(type='ExportHook')]
    built = runner(custom_hooks=hooks, train_cfg__max_iters=2)
    built.train()
    folder = Path(built.work_dir) / 'export' / 'motion_adapter'
    tensors = read_tensors(folder / 'diffusion_pytorch_model.safetensors')
    [hook] = [hook for hook in built.hooks if isinstance(hook, EMAHook)]
    for name, average in hook.averages.items():
        assert torch.equal(tensors[name.removeprefix('unet.')], average)
