"""Server processes that are asked over a unix socket."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.base import Peer, Read, Write
from benchmarks.scene import WATCHDOG

ROOT = str(Path(__file__).parents[2])


class Server:
    """A program with a unix socket in a folder of its own."""

    def __init__(self, prefix: str) -> None:
        self.folder = tempfile.mkdtemp(prefix=f"{prefix}-")
        self.socket = f"{self.folder}/socket"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str], answers: Callable[[], object], **environment: str) -> None:
        """Start it, and wait until it answers."""
        self.process = subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=open(f"{self.folder}/log", "wb"),  # noqa: SIM115 - it is the child's
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + WATCHDOG
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not answer: {Path(self.folder, 'log').read_text()[-2000:]}")
            try:
                answers()
                return
            except Exception:
                time.sleep(0.02)

    def stop(self) -> None:
        """End it by its pid, and remove the folder."""
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class RedisServer(Server):
    """A redis-server that keeps nothing on disk, on a unix socket, and on a port of this host if it is to have one."""

    def __init__(self, *, port: bool = False) -> None:
        super().__init__("bench-redis")
        self.port = free_port() if port else 0
        command = ["redis-server", "--unixsocket", self.socket, "--save", "", "--appendonly", "no"]
        try:
            self.start([*command, "--bind", "127.0.0.1", "--port", str(self.port)], lambda: self.client().ping())
        except BaseException:
            self.stop()
            raise

    def client(self) -> Any:
        """Connect by the unix socket."""
        return importlib.import_module("redis").Redis(unix_socket_path=self.socket)

    def caching_client(self) -> Any:
        """Connect by the port, as redis-py caches on TCP connections only (RESP3)."""
        config = importlib.import_module("redis.cache").CacheConfig()
        return importlib.import_module("redis").Redis(port=self.port, protocol=3, cache_config=config)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@functools.cache
def server_version() -> str:
    """Return the version of redis-server; "" if there is none."""
    if shutil.which("redis-server") is None:
        return ""
    said = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=False).stdout
    return said.partition("v=")[2].split()[0]


class Redis(Peer):
    """A key, with redis-py (and hiredis, where that is installed), on a unix socket; a server of its own."""

    title = "Redis (unix socket)"
    package = "redis"
    module = "redis"
    tool = ("redis-server", "redis-server")

    def start(self) -> None:
        self.server = RedisServer()
        self.server.client().set("value", self.encode(self.first))

    def stop(self) -> None:
        with contextlib.suppress(AttributeError):
            self.server.stop()

    def client(self) -> Any:
        """Connect, as a reader does."""
        return self.server.client()

    def reader(self) -> Read:
        get, decode = self.client().get, self.decode
        return lambda: decode(get("value"))

    def writer(self) -> Write:
        put, encode = self.server.client().set, self.encode
        return lambda value: put("value", encode(value))

    def servers(self) -> Sequence[int]:
        process = self.server.process
        return (process.pid,) if process else ()


class CachedRedis(Redis):
    """The same with redis-py's client-side cache: the server tells the client when its copy is stale."""

    title = "Redis, client-side cache (TCP)"

    @classmethod
    def missing(cls) -> str:
        if reason := super().missing():
            return reason
        found = server_version()
        if tuple(map(int, found.split(".")[:2])) < (7, 4):
            return f"redis-py caches with Redis 7.4 or later only, and redis-server is {found}"
        return ""

    def start(self) -> None:
        self.server = RedisServer(port=True)
        self.server.client().set("value", self.encode(self.first))

    def client(self) -> Any:
        return self.server.caching_client()


NO_SITE = """
def nothing(environ, start_response):
    start_response("200 OK", [])
    return []
"""


class DirtyStash(Peer):
    """gunicorn's stash (25.1 and later): a dict in the arbiter process, asked by a client in each worker."""

    title = "gunicorn dirty stash"
    package = "'gunicorn>=25.1'"
    module = "gunicorn"

    @classmethod
    def missing(cls) -> str:
        if reason := super().missing():
            return reason
        if importlib.util.find_spec("gunicorn.dirty") is None:
            return "this gunicorn has no dirty stash (pip install 'gunicorn>=25.1')"
        return ""

    def start(self) -> None:
        self.server = Server("bench-gunicorn")
        path = f"{self.server.folder}/dirty_path"
        Path(self.server.folder, "site_of_nothing.py").write_text(NO_SITE)
        Path(self.server.folder, "gunicorn.conf.py").write_text(
            "import os\n"
            "dirty_apps = ['benchmarks.peers.dirty_app:App']\n"
            "dirty_workers = 1\n"
            "control_socket_disable = True\n"
            "def post_worker_init(worker):\n"
            f"    open({path + '.new'!r}, 'w').write(os.environ['GUNICORN_DIRTY_SOCKET'])\n"
            f"    os.replace({path + '.new'!r}, {path!r})\n"
        )
        site = ["-b", f"unix:{self.server.socket}", "site_of_nothing:nothing"]

        def answers() -> None:
            self.path = Path(path).read_text()
            self.writer()(self.first)

        self.server.start([sys.executable, "-m", "gunicorn", "-w", "1", *site], answers, PYTHONPATH=ROOT)

    def stop(self) -> None:
        with contextlib.suppress(AttributeError):
            self.server.stop()

    def client(self) -> Any:
        """Connect."""
        return importlib.import_module("gunicorn.dirty.stash").StashClient(self.path)

    def reader(self) -> Read:
        get, decode = self.client().get, self.decode
        return lambda: decode(get("config", "value"))

    def writer(self) -> Write:
        put, encode = self.client().put, self.encode
        return lambda value: put("config", "value", encode(value))

    def servers(self) -> Sequence[int]:
        # the arbiter is a child of the master
        master = self.server.process
        if master is None:
            return ()
        children = Path(f"/proc/{master.pid}/task/{master.pid}/children").read_text().split()
        return (master.pid, *map(int, children))
