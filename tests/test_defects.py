"""docs/defects.md names a test for each of the known defects, and each test exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEFECTS = 29


def rows() -> dict[int, list[tuple[str, str]]]:
    """The tests of each number."""
    found: dict[int, list[tuple[str, str]]] = {}
    for line in (ROOT / 'docs' / 'defects.md').read_text(encoding='utf-8').splitlines():
        number = re.match(r'\| (\d+) \|', line)
        if number is not None:
            assert int(number[1]) not in found, line
            found[int(number[1])] = re.findall(r'`(tests/[\w/]+\.py)::(\w+)`', line)
    return found


def test_every_defect_has_tests_that_exist() -> None:
    table = rows()
    assert sorted(table) == list(range(1, DEFECTS + 1))
    assert all(table.values())
    for number, tests in table.items():
        for file, name in tests:
            text = (ROOT / file).read_text(encoding='utf-8')
            assert re.search(rf'^def {name}\(', text, re.M), f'{number}: {file} has no {name}'
