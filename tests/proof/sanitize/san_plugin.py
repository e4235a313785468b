"""A pytest plugin: the tests must see the build that was asked for, and no other."""

from __future__ import annotations

import os

from shmcow import _core

assert _core.__file__.startswith(os.environ["SAN_PACKAGE"]), f"not the build that was asked for: {_core.__file__}"
