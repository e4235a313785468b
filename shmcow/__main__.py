"""``python -m shmcow`` is the ``shmcow`` command."""

from __future__ import annotations

import sys

from shmcow.cli.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
