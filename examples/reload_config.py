"""Reloadable configuration: a file is followed, and every worker has the new values as soon as it is saved.

Problem: a service has to be restarted, or every worker has to watch and parse the file by itself, each at another
moment. Here one process does it for all. In production that is a command: shmcow follow config.toml app-config, under
systemd.
Run it: python examples/reload_config.py          (pip install 'shmcow[feed]')
It prints: what a worker has at the start, after the file was replaced, after somebody published by hand, and after a
SIGHUP, which brings the file's values back.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from pathlib import Path

import msgspec

import shmcow
from shmcow import Reader, Snapshot, Writer
from shmcow.feed import File, follow

STORE = f"example-reload-{os.getpid()}"


class Config(msgspec.Struct, frozen=True):
    timeout: float = 1.0
    hosts: tuple[str, ...] = ()


def feed(path: Path) -> None:
    """Be the process that follows the file, until SIGTERM. A broken file changes nothing: see failed_reload.py."""
    follow(File(path, debounce=0.01), STORE, type=Config)


def save(path: Path, text: str) -> None:
    """Replace a file as a whole, as editors and deployments do; written in place it would do as well."""
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(path)


def show(what: str, now: Snapshot[Config]) -> Snapshot[Config]:
    """Print what a worker has."""
    print(f"{what}: version {now.version}, timeout {now.value.timeout}, hosts {', '.join(now.value.hosts)}")
    return now


def main() -> None:
    """Change the file, meddle by hand, and reload."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        save(path, 'timeout = 2.5\nhosts = ["db1"]\n')
        follower = multiprocessing.get_context("fork").Process(target=feed, args=(path,), daemon=True)
        follower.start()

        config = Reader(STORE, type=Config, attach_timeout=60)  # as every worker makes it, at import
        now = show("at the start", config.snapshot())
        save(path, 'timeout = 2.5\nhosts = ["db1", "db2"]  # one more\n')
        now = show("file replaced", config.wait(after=now, timeout=60))
        with Writer(STORE, type=Config) as writer:
            writer.patch(timeout=99.0)
        now = show("by hand", config.wait(after=now, timeout=60))
        assert follower.pid is not None
        os.kill(follower.pid, signal.SIGHUP)
        now = show("after SIGHUP", config.wait(after=now, timeout=60))
        assert now.value == Config(2.5, ("db1", "db2"))

        follower.terminate()
        follower.join()
        assert follower.exitcode == 0
    shmcow.destroy(STORE)


if __name__ == "__main__":
    main()
