"""Variables of configs: each is read by the file that sets it or by one that inherits from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmvideo.config import load_config
from mmvideo.errors import ConfigError

PIA = Path(__file__).parents[1] / 'configs' / 'pia' / 'pia_sd15.py'


def leaf(folder: Path, text: str, name: str = 'my.py', base: Path | str = PIA) -> Path:
    path = folder / name
    path.write_text(f"_base_ = '{base}'\n{text}")
    return path


def test_a_variable_that_only_a_base_has_read_before_is_refused(tmp_path: Path) -> None:
    path = leaf(tmp_path, "base = '/models/my_sd15'\n")
    with pytest.raises(ConfigError, match=r"my\.py: nothing reads 'base': .*sd15\.py") as caught:
        load_config(path)
    assert 'set the settings that are computed from it' in str(caught.value)


def test_a_variable_that_the_file_reads_itself_is_taken(tmp_path: Path) -> None:
    path = leaf(tmp_path, "base = '/models/x'\nmodel = dict(unet=dict(from_pretrained=base))\n")
    cfg = load_config(path)
    assert cfg.model.unet.from_pretrained == '/models/x'
    assert cfg.model.vae.from_pretrained == 'catalog://sd15'


def test_a_variable_is_read_by_a_file_that_inherits_from_it(tmp_path: Path) -> None:
    middle = leaf(tmp_path, "folder = '/models/x'\n", 'middle.py')
    reading = leaf(
        tmp_path, 'model = dict(unet=dict(from_pretrained=_base_.folder))\n', base=middle.name
    )
    assert load_config(reading).model.unet.from_pretrained == '/models/x'
    with pytest.raises(ConfigError, match=r"middle\.py: unknown setting 'folder'"):
        load_config(middle)


def test_a_base_does_not_read_what_another_sets(tmp_path: Path) -> None:
    (tmp_path / 'other.py').write_text("size = 3\nwork_dir = 'here'\n")
    (tmp_path / 'reads.py').write_text('side = 2\nrandomness = dict(seed=side)\n')
    path = tmp_path / 'my.py'
    path.write_text(f"_base_ = ['{PIA}', './other.py', './reads.py']\n")
    with pytest.raises(ConfigError, match=r"other\.py: unknown setting 'size'"):
        load_config(path)


def test_a_variable_of_a_json_base(tmp_path: Path) -> None:
    (tmp_path / 'values.json').write_text('{"folder": "/models/x"}')
    path = tmp_path / 'my.py'
    head = f"_base_ = ['{PIA}', './values.json']\n"
    path.write_text(head + 'model = dict(unet=dict(from_pretrained=_base_.folder))\n')
    assert load_config(path).model.unet.from_pretrained == '/models/x'
    path.write_text(head)
    with pytest.raises(ConfigError, match=r"my\.py: unknown setting 'folder'"):
        load_config(path)
