"""The entry point of the ``shmcow`` command: checks that its extra is installed, then runs it."""

from __future__ import annotations

import io
import os
import sys


def main() -> int:
    """Run the ``shmcow`` command with this process's arguments.

    Returns:
        The exit code; see ``shmcow.cli.exits``.
    """
    try:
        return _main()
    except KeyboardInterrupt:  # while modules are imported
        return 130


def _main() -> int:
    if sys.stdout is None:  # closed: what is opened next must not become it
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ImportError as exc:
        print(f"shmcow: the command line needs {exc.name}: pip install 'shmcow[cli]'", file=sys.stderr)
        return 2
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what the locale cannot show is no error
    from shmcow.cli.app import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
