"""The helper modules of this folder and of the editors' parity tests are importable here."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / 'parity'))
sys.path.insert(0, str(Path(__file__).parent))

from pairs_of_pipelines import make  # noqa: F401  (a fixture)
