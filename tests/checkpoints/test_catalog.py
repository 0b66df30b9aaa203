"""The catalogue of public weights: its facts are well formed, and its names are found."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from mmvideo.apis.download import list_catalog
from mmvideo.checkpoints import catalog
from mmvideo.checkpoints.layouts import FAMILIES
from mmvideo.checkpoints.sources import hub_file, is_weight_file, local_root
from mmvideo.errors import WeightsError

ROOT = Path(__file__).parents[2]
ENTRIES = list(catalog.entries().values())


@pytest.mark.parametrize('entry', ENTRIES, ids=lambda e: e.name)
def test_facts_are_well_formed(entry):
    assert re.fullmatch(r'[A-Za-z0-9][\w.-]*', entry.name)
    assert re.fullmatch(r'[\w.-]+/[\w.-]+', entry.repo)
    assert entry.family in FAMILIES
    assert entry.base == (FAMILIES[entry.family].base or entry.base) or entry.base is None
    assert entry.base in (None, 'sd15', 'sdxl')
    assert entry.revision is None or re.fullmatch(r'[0-9a-f]{40}', entry.revision)
    assert not (entry.file and entry.parts) and entry.note
    assert not entry.known or entry.file
    for version in entry.known:
        assert version.size is None or version.size > 10**6
        assert version.sha256 is None or re.fullmatch(r'[0-9a-f]{12,64}', version.sha256)


def test_the_list_is_sorted_and_names_each_place_once():
    names = [entry.name for entry in ENTRIES]
    assert names == sorted(names)
    places = [(e.repo, e.file, e.parts) for e in ENTRIES]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    ('name', 'size', 'digits'),
    [
        ('mm_sd_v15', 1_672_133_921, 'cf16ea656cb1'),
        ('mm_sd_v15_v2', 1_817_888_431, '69ed0f5fef82'),
        ('v3_sd15_mm', 1_673_262_583, '2412711886f6'),
        ('pia-ckpt', 1_673_373_725, '95dfff949e18'),
        ('v3_sd15_adapter', 102_134_097, 'fd2d8e26480f'),
        ('v2_lora_ZoomIn', 77_474_499, '70ce8b9057b1'),
        ('v3_sd15_sparsectrl_rgb', 1_988_040_333, 'c93f27a3cd15'),
        ('v3_sd15_sparsectrl_rgb', 1_987_991_221, 'bccf03f6c7eb'),
        ('v3_sd15_sparsectrl_scribble', 1_992_335_697, '148399d3267e'),
    ],
)
def test_published_files_fit_and_others_do_not(name, size, digits):
    entry = catalog.find_entry(name)
    known = catalog.known_versions(entry.repo, entry.file)
    longest = next(v.sha256 for v in known if v.sha256 and v.sha256.startswith(digits))
    digest = longest.ljust(64, '0')
    assert any(version.fits(size, digest) for version in known)
    assert not any(version.fits(size + 1, digest) for version in known)
    other = ('0' if digest[0] == 'f' else 'f') + digest[1:]
    assert not any(version.fits(size, other) for version in known if version.sha256)


def test_names_lead_to_their_places():
    assert hub_file('catalog://mm_sd_v15_v2') == ('catalog://mm_sd_v15_v2', 'mm_sd_v15_v2.ckpt')
    assert is_weight_file('catalog://pia-ckpt') and not is_weight_file('catalog://pia')
    assert local_root('catalog://pia') is None
    pinned = catalog.place('catalog://pia', None, None)
    assert pinned.repo == 'openmmlab/PIA-condition-adapter' and len(pinned.revision) == 40
    assert catalog.place('catalog://pia', None, 'main').revision == 'main'
    assert catalog.place('owner/name', 'vae', 'v1') == ('owner/name', 'vae', 'v1')
    encoder = catalog.place('catalog://ip-adapter-image-encoder', None, None)
    assert encoder.subfolder == 'models/image_encoder'


@pytest.mark.parametrize(
    ('wrong', 'near'),
    [
        ('animatedif-v2', 'animatediff-v2'),
        ('PIA', 'pia'),
        ('pia.ckpt', 'pia-ckpt'),
        ('mm_sd_v15_v2.ckpt', 'mm_sd_v15_v2'),
        ('sd-15', 'sd15'),
    ],
)
def test_wrong_names_show_the_nearest(wrong, near):
    for source in (f'catalog://{wrong}', wrong):
        with pytest.raises(WeightsError, match=f"Did you mean '{re.escape(near)}'"):
            catalog.find_entry(source)
    with pytest.raises(WeightsError, match='Did you mean'):
        local_root(f'catalog://{wrong}')


def test_the_list_shows_name_place_licence_and_size():
    lines = list_catalog()
    assert len(lines) == len(ENTRIES)
    (line,) = [line for line in lines if line.startswith('mm_sd_v15_v2 ')]
    for part in ('guoyww/animatediff/mm_sd_v15_v2.ckpt', '1.82 GB', 'licence apache-2.0'):
        assert part in line
    (line,) = [line for line in lines if line.startswith('pia ')]
    assert 'licence: see its page' in line


def test_configs_name_only_what_the_catalogue_has():
    found = 0
    for path in sorted((ROOT / 'configs').rglob('*.py')):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            value = getattr(node, 'value', None)
            if isinstance(node, ast.Constant) and catalog.is_listed(value):
                catalog.find_entry(value)
                found += 1
    assert found >= 5


def test_the_catalogue_is_shipped():
    text = (ROOT / 'setup.py').read_text(encoding='utf-8')
    assert "'checkpoints/catalog.json'" in text
