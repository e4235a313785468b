"""The master of the soak: starts writers and readers, kills and stops them, and looks at what is left.

    python soak_run.py STORE DIRECTORY '{"versions": 1000, "kills": 5, "seconds": 60, ...}'

The histories go into DIRECTORY; one line of JSON says what was done and what was left.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "concurrency")]

import processes  # noqa: E402
import soak_values  # noqa: E402
from soak_board import Board, first_words, now  # noqa: E402
from soak_history import DONE, INVOKE, OK, PUBLISH, READ, Log  # noqa: E402
from soak_reader import ReaderRole  # noqa: E402
from soak_writer import WriterRole  # noqa: E402

import shmcow  # noqa: E402
from shmcow import Reader, Writer  # noqa: E402

_PR_SET_CHILD_SUBREAPER = 36


class Place(NamedTuple):
    """What a process is for; whoever is killed is followed by another one in its place."""

    kind: str  # "writer" or a way of reading
    number: int
    spared: bool  # never killed: its memory and descriptors are watched


PLACES = [
    Place("writer", 0, False),
    Place("writer", 1, False),
    Place("snapshot", 2, False),
    Place("get", 3, False),
    Place("wait", 4, False),
    Place("hold", 5, False),
    Place("writer", 8, True),
    Place("get", 9, True),
]


class Soak:
    """One soak, from the first process to the last name."""

    def __init__(self, store: str, directory: Path, asked: dict[str, Any]) -> None:
        self.store, self.directory, self.asked = store, directory, asked
        self.random = random.Random(asked.get("seed", 1))
        self.board = Board()
        self.running: dict[int, Place] = {}
        self.stopped: dict[int, int] = {}  # pid -> when it goes on
        self.done = dict.fromkeys(["kills", "kills of writers", "kills of children", "stops", "destroys"], 0)
        self.failed: list[str] = []
        self.samples: dict[str, list[tuple[int, int, int]]] = {"writer": [], "reader": []}

    def start(self, place: Place) -> None:
        """Fork a process for a place."""
        pid = os.fork()
        if pid:
            self.running[pid] = place
            return
        code = 1
        try:
            processes.die_with_parent()
            logging.getLogger("shmcow").setLevel(logging.ERROR)  # that stores are destroyed is no news here
            log = Log(self.directory, f"{place.kind}{place.number}")
            if place.kind == "writer":
                role: Any = WriterRole(self.store, log, self.board, place.number, 0.005 if place.spared else 0)
            else:
                role = ReaderRole(self.store, log, self.board, place.kind)
            role.run(lambda: bool(self.board[Board.STOP]))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def reap(self) -> None:
        """Start anew whoever was killed; note whoever failed."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            place = self.running.pop(pid, None)
            self.stopped.pop(pid, None)
            if code not in (0, -signal.SIGKILL):
                self.failed.append(f"{place or 'a child'} ended with {code}")
            if place is not None and not self.board[Board.STOP]:
                self.start(place)

    def kill_one(self) -> None:
        """Kill somebody: now and then a forked child."""
        pid = self.random.choice([pid for pid, place in self.running.items() if not place.spared])
        place = self.running[pid]
        if self.random.random() < 0.2:
            try:
                born = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            except OSError:
                born = []
            if born:
                try:
                    os.kill(int(born[0]), signal.SIGKILL)
                    self.done["kills of children"] += 1
                except ProcessLookupError:
                    pass
                return
        os.kill(pid, signal.SIGKILL)
        self.done["kills"] += 1
        self.done["kills of writers"] += place.kind == "writer"
        processes.until(lambda: processes.state_of(pid) in ("Z", ""), "a victim dies")

    def stop_one(self) -> None:
        """Stop somebody for a moment."""
        pid = self.random.choice(list(self.running))
        if pid not in self.stopped:
            os.kill(pid, signal.SIGSTOP)
            self.stopped[pid] = now() + int(self.random.choice([1, 3, 10, 30]) * 1e6)
            self.done["stops"] += 1

    def go_on(self, all_of_them: bool = False) -> None:
        """Let those go on whose time has come."""
        for pid, when in list(self.stopped.items()):
            if all_of_them or now() > when:
                del self.stopped[pid]
                os.kill(pid, signal.SIGCONT)

    def sample(self) -> None:
        """Note memory (kB: private, shared) and descriptors of those who are spared."""
        for pid, place in self.running.items():
            if place.spared:
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                said = dict(line.split(":", 1) for line in lines if line.startswith("Rss"))
                numbers = [int(said[key].split()[0]) for key in ("RssAnon", "RssShmem")]
                kind = "writer" if place.kind == "writer" else "reader"
                self.samples[kind].append((*numbers, len(os.listdir(f"/proc/{pid}/fd"))))

    def run(self) -> None:
        """Do harm until enough was published and killed, or the time is up."""
        asked, begin = self.asked, time.monotonic()
        next_stop = next_sample = 0.0
        next_destroy = begin + asked["destroy_every"]
        for place in PLACES:
            self.start(place)
        while (at := time.monotonic()) < begin + asked["seconds"]:
            share = self.board.acks / asked["versions"]
            killed = self.done["kills"]
            if share >= 1 and killed >= asked["kills"]:
                break
            if killed < asked["kills"] * share:
                self.kill_one()
            if at > next_stop:
                next_stop = at + asked["stop_every"]
                self.stop_one()
            if at > next_destroy:
                next_destroy = at + asked["destroy_every"]
                self.board[Board.DESTROYS] += 1
                self.done["destroys"] += 1
            if at > next_sample:
                next_sample = at + 0.25
                self.sample()
            self.go_on()
            self.reap()
            time.sleep(0.004)
        self.seconds = time.monotonic() - begin

    def finish(self) -> None:
        """Let all of them end."""
        self.board[Board.STOP] = 1
        self.go_on(all_of_them=True)

        def ended() -> bool:
            self.reap()
            try:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return True
            return False

        try:
            processes.until(ended, "everybody ends", 30)
        except AssertionError as exc:
            self.failed.append(str(exc))
            for pid in self.running:
                os.kill(pid, signal.SIGKILL)

    def look_at_rest(self) -> dict[str, Any]:
        """Publish and reclaim once; then read, destroy, and say what was there and what is left."""
        log = Log(self.directory, "master")
        writer = Writer(self.store, codec=soak_values.SoakCodec())
        stamp = 1
        begin = now()
        log.write(INVOKE, PUBLISH, 0, 0, 0, begin, 0, 0, 0, 0, stamp, 0, 0, 0)
        version = writer.publish(soak_values.make(soak_values.Content(stamp, 0, 0), 1, 2))
        report = shmcow.describe(self.store)
        epoch = first_words(report.epoch)
        log.write(DONE, PUBLISH, OK, 0, 0, begin, now(), 0, epoch, version, stamp, 0, 0, 0)
        writer.reclaim()
        report = shmcow.describe(self.store)
        names = processes.objects_of(self.store)
        segments = (
            names - {f"shmcow.{self.store}"} - {f"shmcow.{self.store}.{report.epoch}.{k}" for k in ("lock", "holds")}
        )
        size = sum((processes.SHM / name).stat().st_blocks * 512 for name in segments)
        rest = {
            "names too many": sorted(names - processes.expected_objects(self.store)),
            "names missing": sorted(processes.expected_objects(self.store) - names),
            "versions too many": len(report.generations) - 1 - report.retain,
            "bytes too many": size - report.total_bytes,
            "not at rest": [g.version for g in report.generations if g.state != "held" or g.damaged],
            "held": [g.version for g in report.generations if g.marked],
        }
        reader = Reader(self.store, codec=soak_values.SoakCodec())
        begin = now()
        snapshot = reader.snapshot()
        said = soak_values.read(snapshot.value) or soak_values.Content(0, 0, 0)
        log.write(READ, 0, OK, 0, 1, begin, now(), begin, epoch, snapshot.version, *said, now())
        reader.close()
        writer.destroy()
        writer.close()
        del snapshot
        rest["names after destroy"] = sorted(processes.objects_of(self.store))
        rest["descriptors after close"] = processes.shm_descriptors()
        rest["counters"] = report.counters
        return rest


def main() -> None:
    """Run one soak."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    processes.die_with_parent()
    store, directory, asked = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    soak = Soak(store, directory, {"stop_every": 0.1, "destroy_every": 1.5, **asked})
    rest: dict[str, Any] = {}
    try:
        soak.run()
    finally:
        soak.finish()
    try:
        rest = soak.look_at_rest()
    except Exception as exc:
        soak.failed.append(f"the store cannot be brought to rest: {exc!r}")
        try:
            shmcow.destroy(store)
        except shmcow.ShmcowError:
            pass
    figures = {"seconds": soak.seconds, "acknowledged": soak.board.acks, "done": soak.done, "samples": soak.samples}
    used = os.times()
    figures["cpu"] = sum(used[:4])
    print(json.dumps({**figures, "failed": soak.failed, "rest": rest}))


if __name__ == "__main__":
    main()
