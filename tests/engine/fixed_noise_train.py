"""tools/train.py with noise that depends on a sample alone; what torchrun starts in a test."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from conftest import fix_noise

if __name__ == '__main__':
    fix_noise(pytest.MonkeyPatch().setattr)
    tool = Path(__file__).parents[2] / 'tools' / 'train.py'
    sys.argv[0] = str(tool)
    runpy.run_path(str(tool), run_name='__main__')
