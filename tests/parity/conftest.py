"""The folder's helper modules are importable from its tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from two_pipelines import pairs  # noqa: F401  (a fixture)
