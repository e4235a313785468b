"""Real uWSGI, loaded before the fork or in each worker: each streamed response is of one version."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path

import pytest
import servers
from servers import WORKERS, Lifecycle, Server

EXAMPLE = servers.ROOT / "examples" / "uwsgi_app"
SCRIPT = Path(sysconfig.get_path("scripts")) / "uwsgi"


class UWSGI(Server):
    """A uWSGI master that runs, with its workers."""

    called = "uWSGI"
    lines = 5

    def __init__(self, directory: Path, store: str, *options: str) -> None:
        command = [str(SCRIPT), "--wsgi-file", "app.py", "--master", "--processes", str(WORKERS), "--die-on-term"]
        command += ["--binary-path", sys.executable, "--http-socket", str(directory / "socket"), *options]
        super().__init__(directory, store, command, EXAMPLE)


@pytest.mark.parametrize("options", [[], ["--lazy-apps", "--threads", "2"]], ids=["preloaded", "lazy"])
def test_workers_serve_one_version_each_request(name: str, tmp_path: Path, options: list[str]) -> None:
    """From before the store exists; during publishes, after SIGKILL of a worker, and while SIGHUP replaces all."""
    if importlib.util.find_spec("pyuwsgi") is None or not SCRIPT.exists():
        pytest.skip("needs uWSGI: pip install -e '.[servers]'")
    with servers.running(UWSGI(tmp_path, name, *options)) as server:
        life = Lifecycle(server, servers.publisher_of(EXAMPLE / "app.py", name))
        life.begin()
        life.publish_amid_requests()
        life.kill_a_worker()
        life.reload()
        life.report()
