"""What the tests of this folder share: the helpers for child processes, which live beside the tests of concurrency."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "concurrency"))
