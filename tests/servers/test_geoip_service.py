"""The geo-IP example under real gunicorn: lookups go on while another process publishes new tables."""

from __future__ import annotations

import bisect
import contextlib
import csv
import gzip
import http.client
import ipaddress
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gunicorns
import processes
import pytest
import servers
from processes import WATCHDOG, until

import shmcow

EXAMPLE = servers.ROOT / "examples" / "geoip_service"
SAMPLE = servers.ROOT / "tests" / "unit" / "data"
FULL = [f"geo-whois-asn-country-ipv{family}.csv.gz" for family in (4, 6)]
WORKERS = 4


class Case(NamedTuple):
    """Which data, and how often it is published."""

    files: list[Path]
    times: int
    every: float


def cases() -> dict[str, Case]:
    """Return the sample that is committed, and all of the real data where SHMCOW_DATA names it."""
    found = {"sample": Case([SAMPLE / "ipv4.csv", SAMPLE / "ipv6.csv"], times=12, every=0.2)}
    folder = os.environ.get("SHMCOW_DATA")
    if folder:
        found["all"] = Case([Path(folder) / file for file in FULL], times=6, every=1.0)
    return found


def without_clashes(file: Path, folder: Path) -> Path:
    """Copy a file without the rows that overlap an earlier one and do not nest: the real files have a few."""
    rows = []
    with gzip.open(file, "rt") as lines:
        for first, last, country in csv.reader(lines):
            rows.append((int(ipaddress.ip_address(first)), -int(ipaddress.ip_address(last)), first, last, country))
    out, open_ends, before = folder / file.stem, [], None
    with out.open("w", newline="") as copy:
        writer = csv.writer(copy)
        for low, high, *row in sorted(rows):
            while open_ends and open_ends[-1] < low:
                open_ends.pop()
            if (low, high) == before or (open_ends and -high > open_ends[-1]):
                continue
            before = low, high
            open_ends.append(-high)
            writer.writerow(row)
    return out


class Model:
    """The rows, looked up in the plainest way: of those that contain the address, the one that begins last."""

    def __init__(self, files: list[Path]) -> None:
        rows = []
        for file in files:
            with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as lines:
                for first, last, country in csv.reader(lines):
                    low = ipaddress.ip_address(first)
                    rows.append((low.version, int(low), -int(ipaddress.ip_address(last)), country))
        self.rows = sorted(rows)
        self.parents: list[int] = []  # the row around each, or -1
        around: list[int] = []
        for k, (version, first, _, _) in enumerate(self.rows):
            while around and not (self.rows[around[-1]][0] == version and -self.rows[around[-1]][2] >= first):
                around.pop()
            self.parents.append(around[-1] if around else -1)
            around.append(k)

    def country(self, address: str) -> str | None:
        """Return what the most specific row says."""
        ip = ipaddress.ip_address(address)
        at = bisect.bisect_right(self.rows, (ip.version, int(ip), 1, "")) - 1
        while at >= 0 and not (self.rows[at][0] == ip.version and -self.rows[at][2] >= int(ip)):
            at = self.parents[at]
        return self.rows[at][3] if at >= 0 else None

    def address(self, chance: random.Random) -> str:
        """Return an address near a row's border, or inside of it."""
        version, first, last, _ = chance.choice(self.rows)
        number = chance.choice([first, -last, first - 1, -last + 1, chance.randint(first, -last)])
        kind = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
        return str(kind(max(0, min(number, 2**32 - 1 if version == 4 else 2**128 - 1))))


class Asked(NamedTuple):
    """One request: between which moments, for what, and the answer."""

    start: float
    end: float
    address: str
    answer: dict[str, Any]


def ask(path: Path, address: str) -> tuple[int, dict[str, Any]]:
    """Send one request on a connection of its own."""
    connection = http.client.HTTPConnection("gunicorn", timeout=WATCHDOG)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.settimeout(WATCHDOG)
        connection.sock.connect(str(path))
        connection.request("GET", f"/{address}", headers={"Connection": "close"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def environment(store: str) -> dict[str, str]:
    path = os.pathsep.join([str(servers.ROOT), str(EXAMPLE), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"GEO_STORE": store, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


@contextlib.contextmanager
def gunicorn(directory: Path, store: str) -> Iterator[Path]:
    """Run the service, and end it as an operator does; it must not have reported an accident."""
    path, log = directory / "socket", directory / "log"
    command = [
        str(gunicorns.SCRIPT),
        "app:app",
        "--workers",
        str(WORKERS),
        "--bind",
        f"unix:{path}",
        "--no-control-socket",
    ]
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, cwd=EXAMPLE, env=environment(store), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            preexec_fn=processes.die_with_parent,
        )  # fmt: skip
    try:
        until(path.exists, "gunicorn listens")
        until(lambda: len(servers.children_of(server.pid)) == WORKERS, "gunicorn has its workers")
        yield path
        server.send_signal(signal.SIGTERM)
        assert server.wait(WATCHDOG) == 0
        assert not re.search("Traceback|WORKER TIMEOUT|Error handling", log.read_text()), log.read_text()[-5000:]
    except BaseException as exc:
        exc.add_note(f"the log of gunicorn:\n{log.read_text()[-5000:]}")
        raise
    finally:
        server.kill()
        server.wait(WATCHDOG)


@contextlib.contextmanager
def publisher(store: str, case: Case) -> Iterator[subprocess.Popen[str]]:
    """Let the example's other process publish."""
    files = [option for file in case.files for option in ("--csv", str(file))]
    command = [
        sys.executable,
        str(EXAMPLE / "publish.py"),
        *files,
        "--times",
        str(case.times),
        "--every",
        str(case.every),
    ]
    with subprocess.Popen(command, env=environment(store), stdout=subprocess.PIPE, text=True) as program:
        try:
            yield program
        finally:
            program.kill()


def asking(path: Path, model: Model, asked: list[Asked], clients: int = 4) -> servers.Clients:
    """Return clients that ask for addresses near the borders of rows, and keep the answers in a list."""
    chances = [random.Random(client) for client in range(clients)]

    def send(client: int) -> None:
        address, start = model.address(chances[client]), time.monotonic()
        status, answer = ask(path, address)
        if status != 200:
            raise AssertionError(f"{status}: {answer}")
        asked.append(Asked(start, time.monotonic(), address, answer))

    return servers.Clients(send, clients)


@pytest.fixture(params=cases())
def case(request: pytest.FixtureRequest) -> Case:
    return cases()[request.param]


def test_lookups_go_on_while_tables_are_published(name: str, tmp_path: Path, case: Case) -> None:
    """No request fails; each answer is right for a version that was current during the request; memory is shared."""
    if not gunicorns.installed():
        pytest.skip("needs gunicorn beside this Python: pip install 'gunicorn>=27'")
    if case.files[0].suffix == ".gz":
        case = case._replace(files=[without_clashes(file, tmp_path) for file in case.files])
    model, acknowledged, asked = Model(case.files), [], []
    with gunicorn(tmp_path, name) as path, publisher(name, case) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "version 1\n"
        with asking(path, model, asked) as clients:
            acknowledged = [(time.monotonic(), int(line.removeprefix("version "))) for line in program.stdout]
            enough = len(asked) + 50
            until(lambda: clients.problems or len(asked) >= enough, "answers of the last version")
        assert clients.problems == []
        assert ask(path, "no-address")[0] == 400
        assert ask(path, "")[0] == 400
        mapped = sum(pss(pid, name) for pid in all_workers(path))
    check(model, asked, acknowledged)
    versions = {request.answer["version"] for request in asked}
    assert case.times in versions
    assert len(versions) > 3
    size = shmcow.describe(name).generations[0].size_bytes
    print(
        f"{len(asked)} requests over {len(versions)} versions by {WORKERS} workers, 0 failed; a table of "
        f"{size:,} bytes, PSS of all workers' maps of it {mapped:,} bytes"
    )


def all_workers(path: Path) -> list[int]:
    """Ask until every worker has answered with what is current now, so that none maps an older table."""
    pids: set[int] = set()

    def each() -> bool:
        pids.add(ask(path, "1.1.1.1")[1]["pid"])
        return len(pids) == WORKERS

    until(each, "every worker answers")
    return sorted(pids)


def pss(pid: int, store: str) -> int:
    """Return the bytes of a process's maps of a store's segments, each page divided by those who share it."""
    total, ours = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = f"/shmcow.{store}." in line
        elif ours and line.startswith("Pss:"):
            total += 1024 * int(line.split()[1])
    return total


def check(model: Model, asked: list[Asked], acknowledged: list[tuple[float, int]]) -> None:
    """Fail unless each answer is right, and of a version that was current at some moment of its request."""
    for request in asked:
        answer = request.answer
        current = max([version for when, version in acknowledged if when < request.start], default=1)
        assert answer["version"] >= current, request
        place = answer["place"]
        assert (place["country"] if place else None) == model.country(request.address), request
        if place:
            assert place["edition"] == answer["version"], request
            first, last = map(ipaddress.ip_address, answer["network"])
            assert int(first) <= int(ipaddress.ip_address(request.address)) <= int(last)
