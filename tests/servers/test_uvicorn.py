"""Real uvicorn with several workers: each streamed response is of one version, whatever happens to the workers."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import servers
from servers import WORKERS, Lifecycle, Server

from shmcow.fdinfo import command_of

EXAMPLE = servers.ROOT / "examples" / "uvicorn_app"


class Uvicorn(Server):
    """A uvicorn supervisor that runs, with its workers."""

    called = "uvicorn"
    lines = 5

    def __init__(self, directory: Path, store: str) -> None:
        command = [sys.executable, "-m", "uvicorn", "app:app", "--workers", str(WORKERS), "--lifespan", "off"]
        super().__init__(directory, store, [*command, "--uds", str(directory / "socket")], EXAMPLE)

    def workers(self, master: int = 0) -> set[int]:
        """Return the pids of the workers; the supervisor has one more child, which tracks resources."""
        children = super().workers(master)
        return {pid for pid in children if "resource_tracker" not in command_of(pid)}


def test_workers_serve_one_version_each_request(name: str, tmp_path: Path) -> None:
    """From before the store exists; during publishes, after SIGKILL of a worker, and while SIGHUP replaces all."""
    if importlib.util.find_spec("uvicorn") is None:
        pytest.skip("needs uvicorn: pip install -e '.[servers]'")
    with servers.running(Uvicorn(tmp_path, name)) as server:
        life = Lifecycle(server, servers.publisher_of(EXAMPLE / "app.py", name))
        life.begin()
        life.publish_amid_requests()
        life.kill_a_worker()
        # What a worker had accepted and not read yet when it was told to end, uvicorn closes.
        life.reload(may_drop=True)
        life.report()
