"""Certificates are rotated under a real TLS server of several processes, with real handshakes on loopback."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gunicorns
import processes
import pytest
from processes import WATCHDOG, until

import shmcow

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tls_rotation"
WORKERS = 3


class Pair(NamedTuple):
    """A certificate with its key."""

    chain: Path
    key: Path
    sha256: str


@pytest.fixture
def pairs(tmp_path: Path) -> Callable[[str], Pair]:
    """Make certificates for the time of a test."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command (Debian: apt-get install openssl)")

    def make(name: str) -> Pair:
        chain, key = tmp_path / f"chain-{name}.pem", tmp_path / f"key-{name}.pem"
        subject = ["-subj", f"/CN={name}", "-days", "2", "-nodes", "-keyout", str(key), "-out", str(chain)]
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        subprocess.run([openssl, "req", "-x509", *curve, *subject], check=True, capture_output=True, timeout=WATCHDOG)
        der = ssl.PEM_cert_to_DER_cert(chain.read_text())
        return Pair(chain, key, hashlib.sha256(der).hexdigest())

    return make


class Connection(http.client.HTTPSConnection):
    """A connection that has made its handshake; it serves any number of requests."""

    def __init__(self, port: int) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # we compare the certificates themselves
        super().__init__("localhost", port, timeout=WATCHDOG, context=context)
        self.connect()
        assert isinstance(self.sock, ssl.SSLSocket)
        self.certificate = hashlib.sha256(self.sock.getpeercert(binary_form=True) or b"").hexdigest()

    def ask(self) -> dict[str, Any]:
        """Send a request, and return the answer."""
        self.request("GET", "/")
        answer = self.getresponse()
        assert answer.status == 200
        return json.loads(answer.read())  # type: ignore[no-any-return]


class Server:
    """The example's server with its workers."""

    def __init__(self, store: str, directory: Path, *command: str) -> None:
        path = os.pathsep.join([str(ROOT), str(EXAMPLE), str(directory)])
        self._environment = os.environ | {"TLS_STORE": store, "PYTHONPATH": path}
        self.log = directory / "log"
        with self.log.open("w") as said:
            self.process = subprocess.Popen(
                command or [sys.executable, str(EXAMPLE / "server.py"), "0"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                start_new_session=True,
                preexec_fn=processes.die_with_parent,
            )

    def ready(self) -> None:
        """Wait until the example's own server listens."""
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().removeprefix("port "))

    def said(self, pattern: str) -> re.Match[str] | None:
        """Return what its log has, while it runs."""
        log = self.log.read_text()
        assert self.process.poll() is None, log
        return re.search(pattern, log)

    def publish(self, pair: Pair) -> int:
        """Let the example's other program put a certificate into service; the version."""
        command = [sys.executable, str(EXAMPLE / "publish.py"), str(pair.chain), str(pair.key)]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, check=True, timeout=WATCHDOG
        )
        return int(done.stdout.removeprefix("version "))

    def of_each_worker(self) -> dict[int, Connection]:
        """Return connections to all workers, by pid, each with one answered request."""
        found: dict[int, Connection] = {}

        def all_answered() -> bool:
            # As many at once: a worker that serves one connection after the other has but one of them.
            for connection in [Connection(self.port) for _ in range(WORKERS)]:
                if found.setdefault(connection.ask()["pid"], connection) is not connection:
                    connection.close()
            return len(found) == WORKERS

        until(all_answered, "every worker answers")
        return found

    def end(self) -> int:
        """Stop it as an operator does; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WATCHDOG)

    def end_at_once(self) -> None:
        """Kill what is left of it: its process group is its own."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(WATCHDOG)
        assert self.process.stdout is not None
        self.process.stdout.close()


def put(writer: shmcow.Writer[Any], pair: Pair) -> None:
    """Publish a certificate, good or bad."""
    writer.publish({"chain": str(pair.chain), "key": str(pair.key), "sha256": pair.sha256})


@pytest.fixture
def server(name: str, tmp_path: Path, pairs: Callable[[str], Pair]) -> Iterator[Server]:
    """The example's server, which has the certificate "first"."""
    with shmcow.Writer(name) as writer:
        put(writer, pairs("first"))
    server = Server(name, tmp_path)
    try:
        server.ready()
        yield server
        assert server.end() == 0
    finally:
        server.end_at_once()


class Handshakes(threading.Thread):
    """A client that makes one handshake after the other, and notes with which certificates."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.problems: list[BaseException] = []
        self.over = threading.Event()
        self._port = port

    def run(self) -> None:
        while not self.over.wait(0.003):
            try:
                connection = Connection(self._port)
                connection.ask()
                connection.close()
                self.seen.append(connection.certificate)
            except BaseException as exc:
                self.problems.append(exc)
                return

    def more(self) -> None:
        """Wait for some more handshakes."""
        enough = len(self.seen) + 5
        until(lambda: self.problems or len(self.seen) >= enough, "more handshakes")


def test_new_handshakes_get_the_new_certificate_and_open_connections_go_on(
    server: Server, pairs: Callable[[str], Pair], tmp_path: Path
) -> None:
    """A published rotation is what every worker answers with; under load no handshake fails, or goes back in time."""
    rotation = [Pair(tmp_path / "chain-first.pem", tmp_path / "key-first.pem", ""), pairs("second"), pairs("third")]
    open_ones = server.of_each_worker()
    first = {connection.certificate for connection in open_ones.values()}
    clients = [Handshakes(server.port) for _ in range(2)]
    for client in clients:
        client.start()
    try:
        for version, pair in enumerate(rotation[1:], 2):
            clients[0].more()
            assert server.publish(pair) == version
            fresh = server.of_each_worker()  # each handshake of these began after publish() had returned
            assert {connection.certificate for connection in fresh.values()} == {pair.sha256}
            for connection in fresh.values():
                connection.close()
            clients[0].more()
    finally:
        for client in clients:
            client.over.set()
            client.join(WATCHDOG)
    order = [*first, rotation[1].sha256, rotation[2].sha256]
    for client in clients:
        assert not client.problems
        assert len(client.seen) > 10
        assert [order.index(seen) for seen in client.seen] == sorted(order.index(seen) for seen in client.seen)
    assert len(first) == 1
    for pid, connection in open_ones.items():
        answer = connection.ask()
        assert (answer["pid"], answer["version"], answer["problem"]) == (pid, 3, "")
        assert hashlib.sha256(connection.sock.getpeercert(binary_form=True)).hexdigest() == order[0]
        connection.close()
    assert server.log.read_text() == ""


def test_bad_certificate_leaves_the_last_good_one_in_service(
    name: str, server: Server, pairs: Callable[[str], Pair], tmp_path: Path
) -> None:
    """A wrong fingerprint, a missing file, another's key or half a file: served on, counted, and over with the next."""
    good = Connection(server.port)
    second, third = pairs("second"), pairs("third")
    half = tmp_path / "half.pem"
    half.write_text(second.chain.read_text()[:200])
    bad = {
        "expected " + "0" * 64: Pair(second.chain, second.key, "0" * 64),
        "No such file": Pair(tmp_path / "missing.pem", second.key, second.sha256),
        "KEY_VALUES_MISMATCH": Pair(second.chain, third.key, second.sha256),
        "SSLError": Pair(half, second.key, second.sha256),
    }
    with shmcow.Writer(name) as writer:
        for failures, (why, pair) in enumerate(bad.items(), 1):
            put(writer, pair)
            for connection in server.of_each_worker().values():
                answer = connection.ask()
                assert connection.certificate == good.certificate
                assert (answer["version"], answer["failures"]) == (1, failures)
                assert why in answer["problem"]
                connection.close()
    assert server.publish(third) == 2 + len(bad)
    for connection in server.of_each_worker().values():
        assert connection.certificate == third.sha256
        assert connection.ask()["problem"] == ""
        connection.close()
    assert good.ask()["version"] == 2 + len(bad)
    good.close()
    assert server.log.read_text().count("cannot use the newest version") == WORKERS * len(bad)


def test_server_does_not_start_without_a_usable_certificate(
    name: str, pairs: Callable[[str], Pair], tmp_path: Path
) -> None:
    """With no good context yet there is nothing to go on with: the workers say why, and end."""
    pair = pairs("first")
    with shmcow.Writer(name) as writer:
        put(writer, pair._replace(sha256="0" * 64))
    server = Server(name, tmp_path)
    try:
        assert server.process.wait(WATCHDOG) != 0
        assert f"has the certificate {pair.sha256}, expected {'0' * 64}" in server.log.read_text()
    finally:
        server.end_at_once()


# An application for gunicorn that answers what the example's server does.
APP = """
import json, os
from certificate import certificates

def app(environ, start_response):
    body = json.dumps({"pid": os.getpid(), "version": certificates.version}).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.mark.skipif(not gunicorns.installed(), reason="needs gunicorn 27 or later: pip install 'gunicorn>=27'")
def test_gunicorn_answers_with_the_new_certificate_without_a_reload(
    name: str, pairs: Callable[[str], Pair], tmp_path: Path
) -> None:
    """With the example's settings every worker follows, and none of them is replaced for it."""
    first, second = pairs("first"), pairs("second")
    (tmp_path / "app.py").write_text(APP)
    with shmcow.Writer(name) as writer:
        put(writer, first)
    settings = ["--config", str(EXAMPLE / "gunicorn.conf.py"), "--bind", "localhost:0", "--no-control-socket"]
    server = Server(name, tmp_path, str(gunicorns.SCRIPT), *settings, "--workers", str(WORKERS), "app:app")
    try:
        found = until(lambda: server.said(r"Listening at: https://\S+:(\d+)"), "gunicorn listens")
        server.port = int(found[1])
        before = server.of_each_worker()
        assert {connection.certificate for connection in before.values()} == {first.sha256}
        assert server.publish(second) == 2
        after = server.of_each_worker()
        assert {connection.certificate for connection in after.values()} == {second.sha256}
        assert after.keys() == before.keys()
        assert server.end() == 0
        assert "Traceback" not in server.log.read_text()
    finally:
        server.end_at_once()
