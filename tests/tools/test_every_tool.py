"""What all tools have in common: options in full, errors in one line, the same exit codes."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mmvideo.apis.cli import Parser, count, json_file, run_tool
from mmvideo.config import load_config
from mmvideo.errors import ConfigError, InputError

ROOT = Path(__file__).parents[2]
TOOLS = sorted((ROOT / 'tools').glob('*.py'))
SCRIPTS = [*TOOLS, *sorted((ROOT / 'benchmarks').glob('*.py'))]


def load(tool: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f'{tool.stem}_tool', tool)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parser_of(tool: Path, monkeypatch: pytest.MonkeyPatch) -> Parser:
    """The parser that a tool builds."""
    module, built = load(tool), []

    class Built(Exception):
        pass

    def keep(self: Parser, *_: object) -> None:
        built.append(self)
        raise Built

    with monkeypatch.context() as patch:
        patch.setattr(Parser, 'parse_args', keep)
        with pytest.raises(Built):
            module.parse_args()
    return built[0]


@pytest.mark.parametrize('tool', TOOLS, ids=lambda p: p.stem)
def test_an_abbreviated_option_is_refused_with_the_nearest(
    tool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    parser = parser_of(tool, monkeypatch)
    options = [name for name in parser._option_string_actions if name.startswith('--')]
    assert '--help' in options
    for option in options:
        short = option[:-1]
        if short in options:
            continue
        for given in ([short], [short, 'value'], [f'{short}=value'], ['config', short, '1']):
            with pytest.raises(SystemExit) as stop:
                parser.parse_args(given)
            assert stop.value.code == 2
            [line] = capsys.readouterr().err.splitlines()
            assert line.startswith(f'error: no option {short!r}. Did you mean {option!r}?'), line


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda p: f'{p.parent.name}/{p.stem}')
def test_there_is_one_parser_and_one_main(script: Path) -> None:
    tree = ast.parse(script.read_text(encoding='utf-8'))
    called = [getattr(n.func, 'attr', getattr(n.func, 'id', '')) for n in ast.walk(tree)
              if isinstance(n, ast.Call)]  # fmt: skip
    assert 'ArgumentParser' not in called and called.count('Parser') == 1
    if script in TOOLS:
        assert called.count('run_tool') == 1
        caught = [ast.unparse(n.type) for n in ast.walk(tree)
                  if isinstance(n, ast.ExceptHandler) and n.type]  # fmt: skip
        assert not {'UserError', 'KeyboardInterrupt'} & set(caught)


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda p: f'{p.parent.name}/{p.stem}')
def test_configs_of_a_help_text_exist(script: Path) -> None:
    for name in re.findall(r'configs/[\w./-]+\.py', script.read_text(encoding='utf-8')):
        assert (ROOT / name).is_file(), name


SECTIONS = {'train': 'train_dataloader', 'affinity_stats': 'train_dataloader',
            'test': 'test_dataloader', 'infer': 'infer', 'doctor': 'infer'}  # fmt: skip


@pytest.mark.parametrize('name', SECTIONS)
def test_configs_of_examples_have_what_the_tool_reads(name: str) -> None:
    text = (ROOT / 'tools' / f'{name}.py').read_text(encoding='utf-8')
    found = re.findall(rf'{name}\.py (configs/[\w./-]+\.py)', text)
    assert found
    for config in found:
        assert SECTIONS[name] in load_config(ROOT / config), config


def parser() -> Parser:
    built = Parser('What it does.', 'examples:\n  none')
    built.add_argument('config', nargs='?')
    built.add_argument('--prompt', nargs='+')
    built.add_argument('--clips', type=count)
    return built


def test_what_looks_like_an_option_and_is_none_is_taken() -> None:
    assert parser().parse_args(['--prompt', '--no hands-- up', '-- a fish']).prompt == [
        '--no hands-- up', '-- a fish',
    ]  # fmt: skip
    assert parser().parse_args(['--', '--strange.py']).config == '--strange.py'
    assert parser().parse_args(['--clips=3']).clips == 3


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (['--clips', '0'], 'at least 1'),
        (['--clips', 'x'], 'at least 1'),
        (['a', 'b'], 'unrecognized arguments: b'),
        (['-x'], '-x'),
    ],
)
def test_a_mistake_is_one_line(
    given: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(given)
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith('error: ') and message in line and line.endswith('(see --help)')


def test_options_come_from_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, 'argv', ['tool.py', 'a.py', '--clips', '7'])
    found = parser().parse_args()
    assert (found.config, found.clips) == ('a.py', 7)


@pytest.mark.parametrize(
    ('error', 'code', 'line'),
    [
        (None, 0, ''),
        (ConfigError('two\nlines  here'), 2, 'error: two lines here\n'),
        (KeyboardInterrupt(), 130, 'interrupted: half is there\n'),
    ],
)
def test_exit_codes(
    error: BaseException | None, code: int, line: str, capsys: pytest.CaptureFixture
) -> None:
    def run(args: object) -> None:
        if error is not None:
            raise error

    assert run_tool(run, parser().parse_args([]), interrupted='half is there') == code
    assert capsys.readouterr().err == line


def test_a_defect_keeps_its_traceback() -> None:
    def run(args: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_tool(run, parser().parse_args([]), interrupted='')


def test_where_a_json_file_can_be_written(tmp_path: Path) -> None:
    assert json_file(None) is None
    assert json_file(str(tmp_path / 'a.json')) == tmp_path / 'a.json'
    (tmp_path / 'folder.json').mkdir()
    for name, message in (
        ('a.txt', '.json'),
        ('none/a.json', 'no folder'),
        ('folder.json', 'no folder'),
    ):
        with pytest.raises(InputError, match=message):
            json_file(str(tmp_path / name))
