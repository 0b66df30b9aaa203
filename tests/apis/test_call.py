"""What a call means: arguments, jobs, targets, devices, progress."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from mmvideo.apis.devices import pick_device, pick_dtype
from mmvideo.apis.jobs import infer_parameters, make_jobs, merge_arguments
from mmvideo.apis.progress import Progress, duration, size
from mmvideo.apis.targets import choose_fps, choose_targets
from mmvideo.apis.zoo import find_config
from mmvideo.errors import ConfigError, InputError


class Editor:
    """The signature of an editor."""

    def infer(
        self,
        prompt,
        video_length=16,
        num_inference_steps=25,
        motion_scale=0,
        seed=None,
        generator=None,
        num_videos_per_prompt=1,
        callback=None,
    ):
        """Nothing is run here."""


class Trainer:
    """An editor that only trains."""


def test_arguments_are_complete_and_ordered_by_who_said_them() -> None:
    config = {'prompt': 'a', 'num_frames': 8, 'steps': 5, 'fps': 12, 'formats': ['gif']}
    merged = merge_arguments(Editor, config, {'num_frames': 4, 'motion_scale': [1, 0.5]})
    assert merged == dict(
        prompt='a', video_length=4, num_inference_steps=5, motion_scale=[1, 0.5], seed=None,
        num_videos_per_prompt=1,
    )  # fmt: skip


def test_unknown_argument_names_the_editor_and_the_nearest() -> None:
    with pytest.raises(InputError, match="Editor takes no 'motion_scal'.*'motion_scale'"):
        merge_arguments(Editor, {}, {'motion_scal': 1})
    with pytest.raises(InputError, match="Editor takes no 'fps'"):
        merge_arguments(Editor, {}, {'fps': 1})
    with pytest.raises(ConfigError, match='has no infer'):
        infer_parameters(Trainer)


def test_every_prompt_with_every_seed() -> None:
    jobs = make_jobs({'prompt': ['a', 'b'], 'seed': [1, 2], 'motion_scale': [1, 0.5]})
    made = [(j.arguments['prompt'], j.arguments['seed'], j.suffix) for j in jobs]
    assert made == [('a', 1, '-0-s1'), ('a', 2, '-0-s2'), ('b', 1, '-1-s1'), ('b', 2, '-1-s2')]
    assert all(j.arguments['motion_scale'] == [1, 0.5] for j in jobs)


def test_images_go_with_prompts() -> None:
    jobs = make_jobs({'prompt': 'a', 'image': ['x', 'y'], 'negative_prompt': None, 'seed': 3})
    assert [(j.arguments['prompt'], j.arguments['image']) for j in jobs] == [('a', 'x'), ('a', 'y')]
    assert {j.arguments['seed'] for j in jobs} == {3}
    with pytest.raises(InputError, match='2 values of prompt, 3 of another'):
        make_jobs({'prompt': ['a', 'b'], 'image': ['x', 'y', 'z']})


def test_seeds_are_drawn_counted_and_checked() -> None:
    first, second = (make_jobs({'prompt': 'a', 'seed': None})[0].arguments['seed'] for _ in '12')
    assert isinstance(first, int) and first != second
    jobs = make_jobs({'prompt': 'a', 'seed': 7, 'num_videos_per_prompt': 3})
    assert [j.arguments['seed'] for j in jobs] == [7, 8, 9]
    assert {j.arguments['num_videos_per_prompt'] for j in jobs} == {1}
    for bad in (-1, 2**64, 1.5, 'a', True, [1, 1], []):
        with pytest.raises(InputError, match='seed'):
            make_jobs({'prompt': 'a', 'seed': bad})


def test_seeds_have_64_bits() -> None:
    last = 2**64 - 1
    assert make_jobs({'prompt': 'a', 'seed': last})[0].arguments['seed'] == last
    jobs = make_jobs({'prompt': 'a', 'seed': last - 1, 'num_videos_per_prompt': 2})
    assert [job.arguments['seed'] for job in jobs] == [last - 1, last]
    with pytest.raises(InputError, match=f'seed={2**64}: expected an integer from 0 to {last}'):
        make_jobs({'prompt': 'a', 'seed': last, 'num_videos_per_prompt': 2})


def test_default_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    infer = {'formats': ['mp4', '.GIF']}
    [targets] = choose_targets(None, 'name', infer, [''], single=False)
    assert [str(t.path) for t in targets] == ['outputs/name.mp4', 'outputs/name.gif']
    assert not any(t.overwrite for t in targets)
    assert not Path('outputs').exists()  # nothing is written yet
    targets[0].make_folder()
    Path('outputs/name.gif').touch()
    [targets] = choose_targets(None, 'name', infer, [''], single=False)
    assert [t.path.name for t in targets] == ['name-1.mp4', 'name-1.gif']
    [[target]] = choose_targets(None, 'name', infer, [''], single=True)
    assert str(target.path) == 'outputs/name.png'
    [[target]] = choose_targets(None, 'name', {'out': 'deep/er/x.webp'}, [''], single=False)
    assert str(target.path) == 'deep/er/x.webp' and not Path('deep').exists()
    Path('text').touch()
    with pytest.raises(InputError, match='text/er: the folder cannot be made, text is no folder'):
        choose_targets(None, 'name', {'out': 'text/er/x.webp'}, [''], single=False)


def test_named_targets(tmp_path: Path) -> None:
    chosen = choose_targets(tmp_path / 'a.mp4', 'name', {}, ['-s1', '-s2'], single=False)
    assert [t.path.name for [t] in chosen] == ['a-s1.mp4', 'a-s2.mp4']
    assert all(t.overwrite for [t] in chosen)
    chosen = choose_targets(tmp_path, 'name', {}, ['-s1', '-s2'], single=False)
    assert [t.path for [t] in chosen] == [tmp_path / 'name-s1.mp4', tmp_path / 'name-s2.mp4']
    for out in ('missing/', 'missing/a.mp4', 'a.avi'):
        with pytest.raises(InputError):
            choose_targets(f'{tmp_path}/{out}', 'name', {}, [''], single=False)
    with pytest.raises(ConfigError, match='formats'):
        choose_targets(None, 'name', {'formats': ['avi']}, [''], single=False)


def test_rates(tmp_path: Path) -> None:
    targets = choose_targets(tmp_path / 'a.gif', 'name', {}, [''], single=False)
    assert choose_fps(None, {}, targets) == 8
    assert choose_fps(None, {'fps': 12}, targets) == 12
    assert choose_fps(24, {'fps': 12}, targets) == 24
    for bad in (0, 60, 'x', True):
        with pytest.raises(InputError, match='fps'):
            choose_fps(bad, {}, targets)


def test_devices_and_precisions() -> None:
    cpu = pick_device('cpu')
    assert pick_dtype(None, cpu) == torch.float32
    assert pick_dtype('bf16', cpu) == pick_dtype(torch.bfloat16, cpu) == torch.bfloat16
    assert pick_dtype(None, torch.device('cuda')) == torch.bfloat16
    for bad in ('gpu', 'cuda:99', 'xla'):
        with pytest.raises(InputError, match='device'):
            pick_device(bad)
    with pytest.raises(InputError, match="Did you mean 'float32'"):
        pick_dtype('float33', cpu)
    with pytest.raises(InputError, match='CPU'):
        pick_dtype('float16', cpu)


def test_plain_progress_is_short_and_ends_at_the_end() -> None:
    stream = io.StringIO()
    with Progress(3, 50, stream=stream) as bar:
        for _ in range(3):
            bar.next_clip()
            for step in range(1, 51):
                bar.callback(step, 50)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0].startswith('sampling: step 15/150 (10 %)')
    assert lines[-1].startswith('sampling: step 150/150 (100 %)')


def test_progress_learns_the_true_number_of_steps() -> None:
    stream = io.StringIO()
    with Progress(2, 50, stream=stream) as bar:
        for _ in range(2):
            bar.next_clip()
            for step in range(1, 11):
                bar.callback(step, 10)
    assert stream.getvalue().splitlines()[-1].startswith('sampling: step 20/20')
    with Progress(1, 5, enabled=False, stream=stream) as bar:
        before = stream.getvalue()
        bar.next_clip()
        bar.callback(1, 5)
    assert stream.getvalue() == before


def test_progress_in_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Progress(1, 4, stream=stream) as bar:
        bar.next_clip()
        for step in range(1, 5):
            bar.callback(step, 4)
    assert 'sampling' in stream.getvalue()


def test_words_for_sizes_and_times() -> None:
    assert [size(n) for n in (5, 31_400, 2_500_000, 1.7e9)] == [
        '5 B',
        '31.4 kB',
        '2.5 MB',
        '1.7 GB',
    ]
    assert [duration(s) for s in (0.41, 12.3, 185)] == ['0.4 s', '12 s', '3 min 05 s']


def test_configs_by_model_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    family = tmp_path / 'configs' / 'fam'
    family.mkdir(parents=True)
    (family / 'fam_small.py').touch()
    (family / 'metafile.yml').write_text(
        'Models:\n  - {Name: fam_tiny, Config: configs/fam/fam_small.py}\n'
    )
    assert find_config('fam_tiny') == Path('configs/fam/fam_small.py')
    assert find_config('configs/fam/fam_small.py').is_file()
    with pytest.raises(ConfigError, match="Did you mean 'fam_tiny'"):
        find_config('fam_tinny')
    with pytest.raises(ConfigError, match="Did you mean 'fam_small.py'"):
        find_config('configs/fam/fam_smal.py')


def test_suffixes_say_only_what_differs() -> None:
    assert [j.suffix for j in make_jobs({'prompt': 'a', 'seed': 1})] == ['']
    assert [j.suffix for j in make_jobs({'prompt': ['a', 'b'], 'seed': 1})] == ['-0', '-1']
    assert [j.suffix for j in make_jobs({'prompt': 'a', 'seed': [1, 5]})] == ['-s1', '-s5']
