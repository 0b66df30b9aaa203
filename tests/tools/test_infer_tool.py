"""tools/infer.py as people run it: a process, its output and its exit code."""

from __future__ import annotations

import importlib.util
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mmvideo.media.recipe import read_recipe

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'infer.py'
TINY = ROOT / 'tests' / 'apis' / 'tiny_pia.py'
SVD = ROOT / 'tests' / 'apis' / 'tiny_svd.py'
I2VGEN = ROOT / 'tests' / 'editors' / 'tiny_i2vgen.py'
SPRITES = ROOT / 'configs' / 'sprites' / 'pia_sprites.py'


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    return {**os.environ, 'PYTHONPATH': path, 'CUDA_VISIBLE_DEVICES': '', 'HF_HUB_OFFLINE': '1'}


def infer(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def processor_seconds() -> float:
    """Of the children that have ended; other work on the machine hardly counts."""
    times = os.times()
    return times.children_user + times.children_system


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file())


def test_help_is_fast_and_has_examples(tmp_path: Path) -> None:
    before = processor_seconds()
    done = infer(tmp_path, '--help')
    assert processor_seconds() - before < 1
    assert done.returncode == 0 and 'examples:' in done.stdout and '--dry-run' in done.stdout
    for group in ('what to make', 'sampling:', 'long videos:', 'motion:', 'controls', 'adapters'):
        assert f'\n{group}' in done.stdout


def test_writes_a_video_with_its_recipe(tmp_path: Path) -> None:
    done = infer(tmp_path, TINY, '--steps', 20, '--seed', 1, 2, '--out', 'a.mp4')
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == ['a-s1.mp4', 'a-s2.mp4']
    assert [line.split(':')[0] for line in done.stdout.splitlines()] == ['a-s1.mp4', 'a-s2.mp4']
    assert 1 <= len(done.stderr.splitlines()) <= 12 and 'left' in done.stderr
    assert read_recipe(tmp_path / 'a-s2.mp4')['arguments']['num_inference_steps'] == 20


def test_a_video_of_a_video(tmp_path: Path) -> None:
    """Its own output, two frames further and every second one, made again at half strength."""
    made = infer(tmp_path, TINY, '--quiet', '--num-frames', 8, '--out', 'a.mp4')
    assert made.returncode == 0, made.stderr
    again = infer(tmp_path, TINY, '--video', 'a.mp4', '--video-start', 1, '--video-stride', 2,
                  '--strength', 0.5, '--steps', 4, '--out', 'b.mp4')  # fmt: skip
    assert again.returncode == 0, again.stderr
    arguments = read_recipe(tmp_path / 'b.mp4')['arguments']
    assert arguments['image'] is None and arguments['strength'] == 0.5
    assert {**arguments['video'], 'clip': None} == dict(clip=None, start=1, stride=2)
    assert arguments['video']['clip']['name'] == 'a.mp4'


def test_quiet_prints_nothing(tmp_path: Path) -> None:
    done = infer(tmp_path, TINY, '--quiet', '--num-frames', 1)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
    assert files(tmp_path) == ['outputs/tiny_pia.png']


def test_dry_run_reads_nothing_and_writes_nothing(tmp_path: Path) -> None:
    done = infer(tmp_path, TINY, '--dry-run', '--num-frames', 8)
    assert done.returncode == 0, done.stderr
    name = 'outputs/tiny_pia.mp4'
    for word in ('PIA on cpu in float32', 'parameters', '8 frames of 16x16', name, 'memory'):
        assert word in done.stdout
    assert list(tmp_path.iterdir()) == []


def broken_files(folder: Path) -> None:
    (folder / 'empty.png').touch()
    (folder / 'text.png').write_text('no picture')
    (folder / 'broken.py').write_text('model = dict(type=\n')
    (folder / 'typo.py').write_text(TINY.read_text().replace("type='PIA'", "type='PAI'", 1))
    (folder / 'train.py').write_text("model = dict(type='Autoencoder', vae=dict(type='x'))\n")
    (folder / 'evil.py').write_text("model = dict(type='subprocess.getoutput', cmd='touch x')\n")
    (folder / 'plain.mp4').write_bytes(b'no video')


MISTAKES = [
    (['missing.py'], 'missing.py'),
    (['no_such_model'], 'no_such_model'),
    (['broken.py'], 'broken.py'),
    (['typo.py'], "Did you mean 'PIA'"),
    (['evil.py'], 'subprocess'),
    (['plain.mp4'], 'plain.mp4'),
    (['plan.mp4'], "Did you mean 'plain.mp4'"),
    ([TINY, '--seed', '-1'], 'seed'),
    ([TINY, '--seed', '1.5'], 'seed'),
    ([TINY, '--num-frames', '0'], 'num-frames'),
    ([TINY, '--num-frames', '99'], '99'),
    ([TINY, '--steps', 'many'], 'steps'),
    ([TINY, '--image', 'missing.png'], 'missing.png'),
    ([TINY, '--image', 'empty.png'], 'empty.png'),
    ([TINY, '--image', 'text.png'], 'text.png'),
    ([TINY, '--motion-scale', '9'], '9'),
    ([TINY, '--motion-scale', 'smal'], "Did you mean 'small'"),
    ([TINY, '--condition-frame', '16'], 'condition_frame'),
    ([TINY, '--strength', '2'], 'strength'),
    ([TINY, '--guidance-scale', 'nan'], 'guidance_scale'),
    ([TINY, '--guidance-interval', '0.8', '0.2'], 'such as [0.2, 0.8]'),
    ([TINY, '--deep-cache', '0'], 'deep-cache'),
    ([TINY, '--eta', '2'], 'eta=2.0'),
    ([TINY, '--free-u', '1', '2'], '--free-u 1 2: expected S1 S2 B1 B2'),
    ([TINY, '--free-u', '1', '1', '1', '11'], 'free_u.b2=11.0'),
    ([TINY, '--free-init', 'butterwort'], "Did you mean 'butterworth'"),
    ([TINY, '--free-noise', 'repeat'], "Did you mean 'repeat_context'"),
    ([TINY, '--window-schedule', 'loop'], "Did you mean 'looped'"),
    ([TINY, '--window-overlap', '8', '--windows', '4'], 'windows.overlap=8'),
    ([TINY, '--window-stride', '2'], 'adjacent frames'),
    ([TINY, '--window-fusion', 'pyramids'], "Did you mean 'pyramid'"),
    ([TINY, '--window-noise', 'randm'], "Did you mean 'random'"),
    ([TINY, '--condition-rule', 'offical'], "Did you mean 'official'"),
    ([TINY, '--textual-inversion', 'missing.pt:word'], 'missing.pt'),
    ([TINY, '--guess-mode'], 'guess_mode: this model has no controls'),
    ([TINY, '--control-scale', '2'], 'control_scale: this model has no controls'),
    ([TINY, '--control-start', '0.5'], 'control_start: this model has no controls'),
    ([TINY, '--control-end', '0.5'], 'control_end: this model has no controls'),
    ([TINY, '--annotator', 'canny'], 'control_annotator: this model has no controls'),
    ([TINY, '--annotator', 'canny:a'], 'canny:LOW,HIGH'),
    ([SVD, '--free-init'], "takes no 'free_init'"),
    ([SVD, '--eta', '0.5'], "takes no 'eta'"),
    ([TINY, '--inversion', 'ddim'], 'inversion without a video'),
    ([TINY, '--inversion', 'dimm'], "Did you mean 'ddim'"),
    ([TINY, '--video', 'missing.mp4'], 'there is no such clip'),
    ([TINY, '--video', 'plain.mp4'], 'no .mp4 file'),
    ([TINY, '--video-stride', '2'], 'give it with --video'),
    ([TINY, '--control-video', 'plan.mp4'], "Did you mean 'plain.mp4'"),
    ([TINY, '--control-video', 'plain.mp4'], 'has no controls'),
    ([TINY, '--control', 'missing.pth', '--control-video', 'plain.mp4'], 'missing.pth'),
    ([TINY, '--height', '17'], 'height'),
    ([TINY, '--out', 'a.avi'], '.avi'),
    ([TINY, '--out', 'missing/a.mp4'], 'missing'),
    ([TINY, '--fps', '0'], 'fps'),
    ([TINY, '--device', 'cuda'], 'device'),
    ([TINY, '--dtype', 'float17'], 'float16'),
    ([TINY, '--cfg-options', 'model.scheduler.beta_stat=1'], "Did you mean 'beta_start'"),
    ([TINY, '--cfg-options', 'beta'], 'KEY=VALUE'),
    ([TINY, '--sed', '1', '--frames', '3'], 'see --help'),
    ([TINY, '--motion-bucket-id', '3'], "takes no 'motion_bucket_id'"),
    ([SVD, '--motion-bucket-id', '300'], 'motion_bucket_id=300'),
    ([SVD, '--noise-aug-strength', '-1'], 'noise_aug_strength=-1'),
    ([SVD, '--min-guidance-scale', 'nan'], 'min_guidance_scale=nan'),
    ([SVD, '--max-guidance-scale', '1000'], 'max_guidance_scale=1000'),
    ([SVD, '--fps', '0'], 'fps=0'),
    ([SVD, '--fps', '0.5'], 'fps=0.5'),
    ([SVD, '--prompt', 'a fish'], 'takes no text'),
    ([SVD, '--cfg-options', 'infer.decode_chunk_size=0'], 'decode_chunk_size=0'),
    ([I2VGEN, '--target-fps', '0'], 'target_fps=0'),
    ([I2VGEN, '--cfg-options', 'infer.video_length=0'], 'num_frames=0'),
]


def call_main(monkeypatch: pytest.MonkeyPatch, folder: Path, arguments: list) -> int:
    """The tool's ``main`` in this process: the same code, without a second of imports."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments)])
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    monkeypatch.setattr('torch.cuda.device_count', lambda: 0)
    spec = importlib.util.spec_from_file_location('infer_tool', TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return module.main()
    except SystemExit as stop:
        return int(str(stop.code))


def test_shortcuts_and_an_inversion_in_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / 'clip').mkdir()
    for index, colour in enumerate(('red', 'blue')):
        Image.new('RGB', (16, 16), colour).save(tmp_path / 'clip' / f'{index}.png')
    wanted = ['--guidance-interval', '0', '0.5', '--deep-cache', '2', '--guidance-scale', '3']
    back = ['--inversion', 'ddim', '--inversion-steps', '7', '--inversion-prompt', 'a fish']
    clip = ['--video', 'clip', '--num-frames', '2']
    assert call_main(monkeypatch, tmp_path, [TINY, *wanted, *clip, *back, '--dry-run']) == 0
    text = capsys.readouterr().out
    for words in ('guidance 3 from 0 to 0.5', 'in one of 2', 'up to 7 back from the clip'):
        assert words in text


@pytest.mark.parametrize(('arguments', 'message'), MISTAKES, ids=[str(a[-2:]) for a, _ in MISTAKES])
def test_mistakes_are_one_line_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: list,
    message: str,
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError('nothing is built for a mistake')

    monkeypatch.setattr('mmvideo.registry.MODELS.build', forbidden)
    broken_files(tmp_path)
    before = files(tmp_path)
    assert call_main(monkeypatch, tmp_path, arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ''
    [line] = printed.err.splitlines()
    assert line.startswith('error: ') and message in line
    assert files(tmp_path) == before


def test_a_mistake_in_a_process(tmp_path: Path) -> None:
    before = processor_seconds()
    done = infer(tmp_path, TINY, '--motion-scale', 'smal')
    assert processor_seconds() - before < 5
    assert (done.returncode, done.stdout) == (2, '')
    assert len(done.stderr.splitlines()) == 1 and 'Traceback' not in done.stderr


def test_option_of_another_editor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    text = TINY.read_text().replace("type='PIA'", "type='AnimateDiff'", 1)
    text = text.replace("    condition_module=dict(type='PIACondition'),\n", '')
    (tmp_path / 'tiny.py').write_text(text.replace("    image='tiny.png',\n", ''))
    assert call_main(monkeypatch, tmp_path, ['tiny.py', '--condition-frame', 1]) == 2
    assert "error: AnimateDiff takes no 'condition_frame'" in capsys.readouterr().err


CLOSED = "windows=dict(length=6, schedule='looped', overlap=2), "


def test_flags_join_what_the_config_says(tmp_path: Path) -> None:
    """The length of a config's windows changes, its schedule stays; and a new word is known."""
    config = TINY.read_text().replace('infer = dict(', f'infer = dict({CLOSED}')
    (tmp_path / 'tiny.py').write_text(config.replace('tiny.png', str(TINY.with_name('tiny.png'))))
    save_file({'wisp': torch.ones(2, 16)}, tmp_path / 'a.safetensors')
    flags = ['--windows', 4, '--window-fusion', 'flat', '--num-frames', 6, '--free-u',
             '--free-init', 'gaussian', '--eta', 0.5, '--condition-rule', 'official',
             '--textual-inversion', 'a.safetensors:<fog>', '--prompt', 'a <fog> fish']  # fmt: skip
    done = infer(tmp_path, 'tiny.py', *flags, '--steps', 1, '--quiet', '--out', 'a.mp4')
    assert done.returncode == 0, done.stderr
    recipe = read_recipe(tmp_path / 'a.mp4')
    windows = dict(length=4, schedule='looped', overlap=2, fusion='flat')
    said = dict(windows=windows, free_u=True, free_init=dict(method='gaussian'), eta=0.5)
    assert {name: recipe['arguments'][name] for name in said} == said
    (word,) = recipe['config']['model']['adapters']
    assert (word['type'], word['token']) == ('TextualInversion', '<fog>')


def heed_interrupts() -> None:
    # A test run in a shell's background inherits that Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_in_the_middle_leaves_no_file(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, str(TOOL), str(TINY), '--steps', '999', '--out', 'a.mp4']
    child = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, preexec_fn=heed_interrupts,
    )  # fmt: skip
    assert child.stderr is not None
    assert child.stderr.readline().startswith('sampling')
    child.send_signal(number)
    _, rest = child.communicate(timeout=60)
    assert files(tmp_path) == []
    if number == signal.SIGINT:
        assert child.returncode == 130 and 'interrupted' in rest and 'Traceback' not in rest


def test_terminal_gets_a_bar(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, str(TOOL), str(TINY), '--out', 'a.gif', '--steps', '30']
    child = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=theirs)
    os.close(theirs)
    shown = b''
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # how a closed terminal ends on Linux
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert child.wait(60) == 0
    assert b'sampling' in shown and b'30/30' in shown and b'\r' in shown


def test_first_command_and_its_replay(tmp_path: Path) -> None:
    """The shipped sprite model: the config as it is, then its video again from the recipe."""
    done = infer(tmp_path, SPRITES, '--seed', 3, '--out', 'a.png')
    assert done.returncode == 0, done.stderr
    done = infer(tmp_path, 'a_0000.png', '--out', 'b.png')
    assert done.returncode == 0, done.stderr
    pictures = sorted(tmp_path.glob('a_*.png'))
    assert len(pictures) >= 8
    for picture in pictures:
        other = picture.with_name(picture.name.replace('a_', 'b_'))
        assert np.array_equal(np.asarray(Image.open(picture)), np.asarray(Image.open(other)))
    assert read_recipe(pictures[0])['weights']
