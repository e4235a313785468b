"""Every allocation of the extension fails, one at a time: ``alloc_program.py STORE PACKAGE HOW [--stop] OP...``.

Each operation is done in a forked victim, again and again, until no allocation is left to fail. The victim says what
came of it, and must be able to go on; a fresh process looks at the store meanwhile. It prints a JSON line an operation.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import gc
import json
import logging
import mmap
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[1:1] = [str(HERE.parent / "sweeps"), str(HERE.parents[1] / "concurrency")]

import processes  # noqa: E402
import sweep_program  # noqa: E402
from processes import die_with_parent, locks_of, shm_descriptors, value_of  # noqa: E402
from sweep_jobs import OPS, RETAIN, Job, Op, reader, writer  # noqa: E402
from sweep_program import Case, Child, Sweeper, Unraisable, check_error, digest, in_child, judge, take_image  # noqa: E402

import shmcow  # noqa: E402
from shmcow import IPTable, Table, WaitTimeoutError, _core, segments  # noqa: E402
from shmcow.codecs import StoredPart  # noqa: E402

HOOKS = ctypes.PyDLL(_core.__file__)
MOST = 2000  # allocations of one operation: more is a mistake of the sweep
MARKED = 1 << 62
HIGH = ("publish", "create with a first version")  # with many descriptors: their numbers must be allocated, too

# ---- more operations than a tracer can sweep: those that wait, fork and pickle ----


def _wait(store: str) -> Job:
    r = reader(store)
    now = r.snapshot().version

    def wait() -> int:
        try:
            r.wait(after=now, timeout=0.001)
        except WaitTimeoutError:
            pass
        return r.wait(after=now - 1, timeout=10).version

    return Job(wait, wait)


def _subscribe(store: str) -> Job:
    r = reader(store)
    came = threading.Event()

    def subscribe() -> None:
        stop = r.subscribe(lambda _old, _new: came.set())
        assert came.wait(30), "the callback was never called"
        came.clear()
        stop()
        for thread in threading.enumerate():
            if thread is not threading.main_thread():
                thread.join(30)

    return Job(subscribe, subscribe)


def _pickle(store: str) -> Job:
    r = reader(store)
    snapshot = r.snapshot()

    def send() -> int:
        with snapshot:
            received = pickle.loads(pickle.dumps(snapshot))
            assert received.value == snapshot.value
            return int(received.version)

    return Job(send, send)


def _fork(store: str) -> Job:
    """A forked child becomes a reader of its own; what fails there, fails here."""
    r = reader(store)
    held = r.snapshot().hold()
    counted = mmap.mmap(-1, 8)

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                assert r.get()["version"] >= held.version
                assert bytes(held.data)
                code = 0
            except MemoryError:
                code = 3
            finally:
                counted[:8] = HOOKS.alloc_disarm().to_bytes(8, "little")
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        HOOKS.alloc_count(ctypes.c_long(int.from_bytes(counted[:8], "little")))
        if code == 3:
            raise MemoryError("in the child")
        assert code == 0, f"the child ended with {code}"

    return Job(fork, fork)


def _describe(store: str) -> Job:
    def describe() -> int:
        return len(shmcow.describe(store).generations)

    return Job(describe, describe)


def _wait_unused(store: str) -> Job:
    w = writer(store)

    def wait() -> None:
        w.wait_unused(w.version - 1, timeout=5)

    return Job(wait, wait)


_TABLES = (
    (Table(key=str, value=str), [(f"key {k}", "v" * (k % 7)) for k in range(40)], "key 3"),
    (Table(key=int, value=int), [(k, k << 40) for k in range(40)], 3),
    (IPTable(str), [(f"10.{k}.0.0/16", f"value {k}") for k in range(20)] + [("10.3.3.0/24", "inner")], "10.3.3.3"),
    (IPTable(str), [(f"2001:db8:{k:x}::/48", f"value {k}") for k in range(40)], "2001:db8:3::3"),
)


def _build(_store: str) -> Job:
    """Tables are built, and laid out in memory of the C helper's own."""

    def build() -> int:
        return sum(len(part.buffers) for codec, rows, _ in _TABLES for part in codec.encode_parts(rows))

    return Job(build, build)


def _look_up(_store: str) -> Job:
    views = []
    for codec, rows, key in _TABLES:
        (part,) = codec.encode_parts(rows)
        stored = StoredPart(memoryview(b"".join(part.buffers)), part.name, part.codec)
        views.append((codec, stored, key))

    def look_up() -> int:
        found = 0
        for codec, stored, key in views:
            view = codec.decode_parts([stored])
            found += len({str(view[key]), *map(str, view.get_many([key])), str(view.get(key))})
            found += len(view.network_of(key) if isinstance(codec, IPTable) else list(view))
            found += len(view.to_dict())
        return found

    return Job(look_up, look_up)


def _few(n: int) -> Callable[[str], None]:
    """A store with few versions: each costs its reports some thirty allocations more."""

    def make(store: str) -> None:
        with writer(store, retain=RETAIN) as w:
            for version in range(1, n + 1):
                w.publish(value_of(version))

    return make


_STEADY = _few(2)
MORE = tuple(
    Op(name, setup, _STEADY, "same")
    for name, setup in (
        ("wait", _wait),
        ("subscribe", _subscribe),
        ("pickle", _pickle),
        ("fork", _fork),
        ("describe", _describe),
        ("build tables", _build),
        ("look tables up", _look_up),
        ("wait until unused", _wait_unused),
    )
)
FEWER = {f"{name}, few versions": OPS[name]._replace(template=_few(n)) for name, n in (("update", 1), ("rollback", 2))}
FEWER["attach a writer, few versions"] = OPS["attach a writer"]._replace(template=_few(1))
OPERATIONS = {**OPS, **{op.name: op for op in MORE}, **{n: op._replace(name=n) for n, op in FEWER.items()}}


# ---- the sweep ----


def marks() -> set[tuple[str, int]]:
    """Return the locks that this process has: the writer lock, and the versions that it holds."""
    return {(name.rpartition(".")[2], byte) for name, byte in locks_of("self") if byte < MARKED}


def victim(op: Op, store: str, shared: mmap.mmap, n: int, how: int, child: Child) -> Any:
    """Set up, let the n-th allocation of the operation fail, and say what came of it; then do what must still work."""
    ignored = Unraisable()
    sys.unraisablehook = ignored
    job = op.setup(store)
    before, raised, result = marks(), None, None
    if op.name in HIGH:
        for _ in range(260):
            os.dup(2)
    gc.disable()
    HOOKS.alloc_arm(ctypes.c_long(n), how)
    try:
        result = job.operate()
    except BaseException as exc:
        raised = exc
    shared[:8] = HOOKS.alloc_disarm().to_bytes(8, "little")
    gc.enable()
    said: dict[str, Any] = {"result": result, "ignored": [text for text in ignored if not text.startswith("Memory")]}
    if raised is not None:
        said["raised"] = [kind.__name__ for kind in type(raised).__mro__]
        said["errno"] = getattr(raised, "errno", None)
        said["text"] = "".join(traceback.format_exception(raised))[-600:]
        raised.__traceback__ = raised.__context__ = raised.__cause__ = None
        del raised
        gc.collect()
        said["kept"] = sorted(marks() - before)
        said["mapped"] = _maps(store)
        said["states"] = _states(store) if op.after != "destroy" else []
    said["locked"] = any(what == "lock" for what, _ in marks() - before)
    child.send(said)
    child.wait_for_go()
    signal.alarm(60)
    try:
        job.again()
    except BaseException:
        return {"violation": "again: " + traceback.format_exc()}
    del job
    gc.collect()
    left = shm_descriptors() + _maps(store)
    return {"violation": f"left open or mapped: {left}"} if left else {}


def _states(store: str) -> list[str]:
    """Return the states of the generations in the table, without attaching."""
    try:
        header = (processes.SHM / f"shmcow.{store}").read_bytes()
    except FileNotFoundError:
        return []
    states = ("free", "building", "ready", "held", "condemned", "doomed")
    return sorted({states[header[at]] for at in range(512, 1024, 8)} - {"free"})


def _maps(store: str) -> list[str]:
    """Return the segments that this process has mapped (headers stay as long as their store)."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    found = [line.rpartition("/")[2] for line in lines if f"shmcow.{store}." in line]
    return sorted(name for name in found if name.split()[0].rpartition(".")[2].isdigit())


class AllocSweeper(Sweeper):
    """A sweeper that lets allocations fail, where the other strikes at system calls."""

    def __init__(self, store: str) -> None:
        self.store = store
        self._templates = {}
        self._fine: set[Any] = set()  # what a fresh process has looked at, and found in order

    def sweep(self, op: Op, how: int, stop: bool) -> dict[str, Any]:
        """Let the first, the second ... allocation fail, until there is none left."""
        image, old = self.template(op)
        shared = mmap.mmap(-1, 8)
        outcomes: Counter[str] = Counter()
        violations: list[str] = []
        n = 0
        while n < MOST:
            n += 1
            shared[:8] = bytes(8)
            with self.scene(op, image):
                outcome, problems = self.once(op, old, shared, n, how)
            if int.from_bytes(shared[:8], "little") < n and not problems:
                break
            outcomes[outcome] += 1
            violations += [f"{op.name}: allocation {n}: {text}" for text in problems]
            if violations and (stop or len(violations) > 20):
                break
        return {"op": op.name, "cases": sum(outcomes.values()), "outcomes": dict(outcomes), "violations": violations}

    def once(self, op: Op, old: int, shared: mmap.mmap, n: int, how: int) -> tuple[str, list[str]]:
        """Do it once; what came of it, and what is wrong with that."""
        child = Child(functools.partial(victim, op, self.store, shared, n, how))
        lines = child.lines()
        said = next(lines, None)
        if said is None:
            code = child.reap()
            child.close()
            return "crash", [f"the process ended with {code}"]
        outcome, problems = judge(said, errno.ENOMEM)
        problems += [f"ignored: {text}" for text in said["ignored"]]
        problems += check(op, said)
        case = Case(op, self.store, old, self._allowed(op, old, said), exact=False)
        left = (op.name, "raised" in said, digest(self.store, take_image(self.store)))
        if left not in self._fine:
            answer = in_child(lambda: check_error(case, said, unlinking=False))
            if "violation" in answer:
                problems.append(answer["violation"])
            else:
                self._fine.add(left)
        child.go()
        more = next(lines, None)
        code = child.reap()
        child.close()
        if more is None or code != 0:
            problems.append(f"what came after ended with {code}")
        elif "violation" in more:
            problems.append(more["violation"])
        return outcome, [f"{text.strip()[-1500:]} [{said.get('text')}]" for text in problems]


def check(op: Op, said: dict[str, Any]) -> list[str]:
    """Return what is wrong with the process whose allocation failed."""
    if said["locked"]:
        return ["the writer lock is kept"]
    if "raised" not in said:
        return []
    problems = [f"a lock or a marker is kept: {said['kept']}"] if said["kept"] else []
    if op.name.startswith("hold") and said["mapped"]:
        problems.append(f"left mapped: {said['mapped']}")
    bad = set(said["states"]) - {"held", "doomed"}  # what could not be unlinked is doomed: the next writer goes on
    return [*problems, f"a generation is left {bad}"] if bad else problems


def main(store: str, package: str, how: str, *names: str) -> None:
    """Sweep some operations."""
    assert _core.__file__.startswith(package), f"not the build that was asked for: {_core.__file__}"
    die_with_parent()
    logging.getLogger("shmcow").addHandler(logging.NullHandler())
    stop = names[:1] == ("--stop",)
    make = segments.make
    # a Python frame around it: what posix_ipc allocates is not the extension's (and it crashes without memory)
    segments.make = lambda *args: make(*args)
    HOOKS.alloc_install()
    HOOKS.alloc_disarm.restype = ctypes.c_long
    HOOKS.alloc_arm(ctypes.c_long(0), 0)
    sweeper = AllocSweeper(store)
    gc.collect()
    gc.freeze()
    for name in names[stop:] or OPERATIONS:
        try:
            cpu = time.process_time() + sum(os.times()[2:4])
            answer = sweeper.sweep(OPERATIONS[name], int(how), stop)
            answer["cpu"] = round(time.process_time() + sum(os.times()[2:4]) - cpu, 2)
        except BaseException:
            answer = {"failed": traceback.format_exc()}
        sweep_program.remove(store)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
