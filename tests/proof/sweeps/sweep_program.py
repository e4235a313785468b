"""The program that sweeps: it forks victims, lets the tracer strike at a call, and a fresh process looks at the rest.

    sweep_program.py TRACER_DIRECTORY STORE PACKAGE_DIRECTORY

Reads a task a line on standard input (JSON), writes an answer a line. It never attaches to a store itself, so what it
forks is as good as a new process: the modules are imported, and nothing else is there.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "concurrency"))

import processes
import sweep_tracer
from processes import die_with_parent, objects_of, shm_descriptors, value_of, version_in
from sweep_jobs import OPS, Op, holds_path, mark, reader, recovery, writer
from sweep_tracer import (
    DONE,
    EXITED,
    FAIL,
    FAIL_FROM,
    KILL_AT_ENTRY,
    TRACE,
    Trace,
    Tracer,
    without_allocator,
    without_more_listing,
)

from shmcow import (
    NotPublishedError,
    StoreDestroyedError,
    StoreNotFoundError,
    VersionGoneError,
    _core,
    describe,
)

SHM = processes.SHM
ERRORS = ("ENOSPC", "ENOMEM", "EMFILE", "EINTR", "EACCES", "EIO", "EFBIG", "ENOLCK")
# Calls that cannot fail by what they are: nobody can handle what never comes.
NEVER_FAIL = frozenset(("getpid", "gettid", "getppid", "getuid", "geteuid", "getgid", "getegid", "umask"))
UNLINKS = frozenset(("unlink", "unlinkat"))
SEEN_NONE, SEEN_DESTROYED, SEEN_EMPTY = -1, -2, 0


# ---- images of a store ----

Image = dict[str, tuple[int, bytes]]


def take_image(store: str) -> Image:
    """Return everything that a store has in shared memory: name -> (mode, bytes)."""
    image = {}
    for name in sorted(objects_of(store)):
        path = SHM / name
        image[name] = (path.stat().st_mode & 0o7777, path.read_bytes())
    return image


def remove(store: str) -> None:
    """Unlink everything that a store has."""
    for name in objects_of(store):
        os.unlink(SHM / name)


def restore(store: str, image: Image) -> None:
    """Make shared memory what it was when the image was taken."""
    remove(store)
    for name, (mode, data) in image.items():
        fd = os.open(SHM / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.write(fd, data)
        os.fchmod(fd, mode)
        os.close(fd)


def digest(store: str, image: Image) -> str:
    """Return what recovery can tell apart: the words, and which objects there are, of what size and permissions."""
    header = image.get(f"shmcow.{store}", (0, b""))[1]
    epoch = header[16:64] if header else b""
    said: list[Any] = [header[256:264].hex(), header[512:1024].hex()]
    for name, (mode, data) in image.items():
        parts = name.split(".")
        whose = "header" if len(parts) == 2 else "ours" if bytes.fromhex(parts[2]) in epoch else "other"
        said.append((whose, parts[-1] if len(parts) > 2 else "", mode, len(data)))
    return hashlib.sha256(repr(sorted(map(repr, said))).encode()).hexdigest()


# ---- children ----


class Child:
    """A forked process that sends one answer, and may be told to go on."""

    not_for_children: ClassVar[list[int]] = []  # descriptors that they close; the parent's markers stay

    def __init__(self, body: Callable[[Child], Any]) -> None:
        answers, self._answer = os.pipe()
        self._go, goes = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(answers)
            os.close(goes)
            for fd in self.not_for_children:
                os.close(fd)
            self._be(body)
        os.close(self._answer)
        os.close(self._go)
        self._answers, self._goes = answers, goes

    def _be(self, body: Callable[[Child], Any]) -> None:
        code = 1
        try:
            die_with_parent()
            self.send(body(self))
            code = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)

    # in the child

    def send(self, message: Any) -> None:
        """Send a message (a line) to the parent."""
        os.write(self._answer, json.dumps(message).encode() + b"\n")

    def wait_for_go(self) -> None:
        """Wait until the parent says so."""
        os.read(self._go, 1)

    # in the parent

    def lines(self) -> Iterator[Any]:
        """Yield the child's messages as they come."""
        with os.fdopen(self._answers, "rb", buffering=0, closefd=False) as file:
            for line in file:
                yield json.loads(line)

    def go(self) -> None:
        """Let the child go on."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._goes, b".")

    def reap(self) -> int:
        """Wait for its end; its exit status or minus the signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        """Close the pipes."""
        os.close(self._answers)
        os.close(self._goes)


def in_child(body: Callable[[], Any]) -> Any:
    """Run something in a fresh process; what it returns, or a text if it failed or hung."""

    def guarded(_: Child) -> Any:
        signal.alarm(60)
        try:
            return {"is": body()}
        except AssertionError as exc:
            return {"violation": str(exc) or traceback.format_exc()}
        except BaseException:
            return {"violation": traceback.format_exc(limit=-3)}

    child = Child(guarded)
    answer = next(child.lines(), None)
    code = child.reap()
    child.close()
    return answer if answer is not None else {"violation": f"the process that looks ended with {code}"}


# ---- what must be true ----


class Case(NamedTuple):
    """What a check has to know.

    Attributes:
        old: the version that was current before the operation; SEEN_... without one.
        allowed: what a fresh reader may find.
        exact: whether the versions at rest are known exactly (an error may have cost retained ones).
    """

    op: Op
    store: str
    old: int
    allowed: tuple[int, ...]
    exact: bool = True

    def content(self, version: int) -> int:
        """Return the version that a value says it was made for."""
        return self.old - 1 if self.op.after == "back" and version == self.old + 1 else version


def allowed_after(op: Op, old: int) -> tuple[int, ...]:
    """Return what a fresh reader may find after a kill."""
    return {
        "same": (old,),
        "next": (old, old + 1),
        "back": (old, old + 1),
        "create": (SEEN_NONE, SEEN_EMPTY, 1),
        "destroy": (old, SEEN_NONE, SEEN_DESTROYED),
        "replace": (old, SEEN_NONE, SEEN_DESTROYED, SEEN_EMPTY, 1),
    }[op.after]


def see(case: Case) -> int:
    """Read the store as a fresh reader does, and check that what it finds is whole."""
    try:
        with reader(case.store, case.op.codec) as r:
            snapshot = r.snapshot()
            carried = version_in(snapshot.value)
            assert carried == case.content(snapshot.version), f"version {snapshot.version} reads {carried}"
            return snapshot.version
    except StoreNotFoundError:
        return SEEN_NONE
    except StoreDestroyedError:
        return SEEN_DESTROYED
    except NotPublishedError:
        return SEEN_EMPTY


def check_objects(store: str) -> None:
    """Every object has its final permissions, and everything that is there belongs to the store."""
    processes.assert_at_rest(store)
    for name in objects_of(store):
        mode = (SHM / name).stat().st_mode & 0o777
        what = name.rpartition(".")[2]
        assert mode == (0o600 if what == "lock" or name == f"shmcow.{store}" else 0o400), (name, oct(mode))


def check_openable(case: Case, current: int) -> list[int]:
    """Every version of a store at rest opens and is whole; returns them, newest first."""
    versions = processes.versions_of(case.store)
    with reader(case.store, case.op.codec) as r:
        for version in versions if len(versions) < 10 else (*versions[:3], *versions[-3:]):
            try:
                carried = version_in(r.at(version).value)
            except VersionGoneError as exc:
                raise AssertionError(f"version {version} is in the table and does not open: {exc}") from exc
            assert carried == (version if version == current else case.content(version)), (version, carried)
    return versions


def check_after(case: Case) -> int:
    """What must be true after a kill, or an error: returns what a fresh reader found."""
    op, store = case.op, case.store
    seen = see(case)
    assert seen in case.allowed, f"a fresh reader finds {seen}, not one of {case.allowed}"
    marks = -1
    if op.late and objects_of(store):
        marks = mark(holds_path(store), 1, 1000)
    with writer(store, op.codec) as w:
        if op.after == "replace" and w.version == 0:
            seen = 0  # a store whose lock file is lost is ended by the next writer
        assert w.version == max(seen, 0), f"the next writer finds version {w.version}, the reader found {seen}"
        current = w.publish(value_of(seen + 1 if seen > 0 else 1))
        assert current == (seen + 1 if seen > 0 else 1)
        w.reclaim()
        if marks >= 0:
            check_objects(store)
            check_openable(case, current)
            os.close(marks)
            w.reclaim()
        check_objects(store)
        versions = check_openable(case, current)
        retained = {current - n for n in (op.behind if seen > 0 else (0,)) if current - n > 0}
        held = set(op.marked) if seen > 0 else set()
        if seen > 0 and case.old != seen and op.after == "replace":
            retained = {current, current - 1}
        if len(op.behind) == 64:
            held = set()  # a full table forces out the oldest
        if op.dropped and set(versions) == {current - n for n in op.dropped}:
            retained, held = set(versions), set()
        if case.exact:
            assert set(versions) == retained | held, f"left {versions}, expected {retained} and held {held}"
        else:
            assert current in versions, versions
            assert set(versions) <= retained | held, f"left {versions}, expected of {retained} and held {held}"
        assert see(case._replace(old=-9)) == current if op.after != "back" else True
    left = shm_descriptors()
    assert not left, f"descriptors of a closed writer and reader: {left}"
    return seen


# ---- victims ----


class Unraisable(list):
    """What Python could only print."""

    def __call__(self, what: Any) -> None:
        self.append(f"{what.exc_type.__name__}: {what.exc_value} in {what.object!r}")


def victim(op: Op, store: str, tracer: Tracer, traced: bool, after: bool, child: Child) -> Any:
    """Set up, run the operation between the marks, and say what came of it; then do what must still work."""
    ignored = Unraisable()
    sys.unraisablehook = ignored
    job = op.setup(store)
    if not traced:
        tracer.let_trace()
        child.send({"ready": os.getpid()})
        child.wait_for_go()
    raised: BaseException | None = None
    result = None
    tracer.begin(traced)
    try:
        result = job.operate()
    except BaseException as exc:
        raised = exc
    tracer.end()
    said: dict[str, Any] = {"result": result, "ignored": list(ignored)}
    if raised is not None:
        said["raised"] = [kind.__name__ for kind in type(raised).__mro__]
        said["errno"] = getattr(raised, "errno", None)
        said["text"] = f"{raised}"[:300]
        raised.__traceback__ = raised.__context__ = raised.__cause__ = None
        del raised
    if not after:
        return said
    child.send(said)
    child.wait_for_go()
    signal.alarm(60)
    try:
        job.again()
    except BaseException:
        return {"violation": "again: " + traceback.format_exc()}
    del job
    gc.collect()
    left = shm_descriptors()
    if left:
        return {"violation": f"descriptors left: {left}"}
    return {}


class Sweeper:
    """One store name, and the sweeps over it."""

    def __init__(self, directory: Path, store: str) -> None:
        self.tracer = Tracer(directory)
        self.directory = directory
        self.store = store
        self._templates: dict[str, tuple[Image, int]] = {}

    # ---- scenes ----

    def template(self, op: Op) -> tuple[Image, int]:
        """Return the image that an operation begins with, and its current version."""
        key = op.name.removeprefix("recovery from ")
        if key not in self._templates:
            remove(self.store)
            old = SEEN_NONE
            if op.template is not None:
                make = op.template

                def build() -> int:
                    make(self.store)
                    return describe(self.store).version

                made = in_child(build)
                assert "is" in made, made
                old = made["is"]
            self._templates[key] = (take_image(self.store), old)
        return self._templates[key]

    @contextlib.contextmanager
    def scene(self, op: Op, image: Image) -> Iterator[None]:
        """Put an image in place, with the marks of whoever holds versions of it."""
        restore(self.store, image)
        marks = Child.not_for_children
        if op.marked and any(name.endswith(".holds") for name in image):
            path = holds_path(self.store)
            runs = [(v, 1) for v in op.marked] if len(op.marked) < 10 else [(op.marked[0], len(op.marked))]
            marks += [mark(path, first, count) for first, count in runs]
        try:
            yield
        finally:
            while marks:
                os.close(marks.pop())

    def strike(self, op: Op, what: int, at: int = 0, error: int = 0) -> tuple[Trace, Any]:
        """Run a victim and strike; returns its trace, and what it said, if it lived."""
        child = Child(functools.partial(victim, op, self.store, self.tracer, True, False))
        trace = self.tracer.run(child.pid, what, at, error)
        said = next(child.lines(), None) if trace.end == DONE else None
        if trace.end == DONE:
            child.reap()
        child.close()
        return trace, said

    # ---- kills ----

    def kill_points(self, op: Op, image: Image, wheres: list[int]) -> Iterator[tuple[int, int, Trace]]:
        """Kill at each call, one after the other, until a victim comes through; the scene is there when this yields."""
        for where in wheres:
            at = 0
            while True:
                at += 1
                with self.scene(op, image):
                    trace, said = self.strike(op, where, at)
                    if trace.end == DONE:
                        assert at > 1, f"{op.name}: no system calls at all? {said}"
                        assert said is not None
                        assert "raised" not in said, said
                        break
                    yield where, at, trace

    def kill(self, name: str, wheres: list[int], where_to_stop: int = 0) -> dict[str, Any]:
        """Kill an operation at every call, and check each time."""
        op = OPS[name]
        image, old = self.template(op)
        return self._sweep_kills(op, image, Case(op, self.store, old, allowed_after(op, old)), wheres, where_to_stop)

    def _sweep_kills(self, op: Op, image: Image, case: Case, wheres: list[int], stop: int = 0) -> dict[str, Any]:
        points: Counter[str] = Counter()
        violations: list[str] = []
        seen: Counter[int] = Counter()
        pairs = set()
        for where, at, trace in self.kill_points(op, image, wheres):
            call = trace.names[-1]
            pairs.add((call, trace.names.count(call)))
            label = f"{op.name}: {'entry' if where == KILL_AT_ENTRY else 'exit'} of call {at}, {call}"
            points[call] += 1
            if trace.end != EXITED or trace.exit != -signal.SIGKILL or len(trace.names) != at:
                violations.append(f"{label}: the victim was not killed there: {trace}")
            answer = in_child(lambda: check_after(case))
            if "violation" in answer:
                violations.append(f"{label}: {answer['violation']}")
                if stop and len(violations) >= stop:
                    break
            else:
                seen[answer["is"]] += 1
        return {
            "points": sum(points.values()),
            "pairs": len(pairs),
            "calls": dict(points),
            "seen": dict(seen),
            "violations": violations,
        }

    def recover(self, name: str, wheres: list[int], distinct: bool, part: int = 0, parts: int = 1) -> dict[str, Any]:
        """Kill the recovery from every kill of an operation, or from one of each kind, at each of its calls."""
        op = OPS[name]
        image, old = self.template(op)
        known: set[str] = set()
        images = []
        for _ in self.kill_points(op, image, wheres):
            left = take_image(self.store)
            kind = digest(self.store, left)
            if not distinct or kind not in known:
                images.append(left)
            known.add(kind)
        again = recovery(op)
        total: dict[str, Any] = {"points": 0, "images": 0, "calls": Counter(), "violations": []}
        allowed = allowed_after(op, old)
        if op.after in ("create", "destroy", "replace"):  # recovery creates what is not there
            allowed = tuple({*allowed, SEEN_NONE, SEEN_DESTROYED, SEEN_EMPTY})
        for k, left in enumerate(images):
            if k % parts != part:
                continue
            one = self._sweep_kills(again, left, Case(again, self.store, old, allowed), wheres)
            total["images"] += 1
            total["points"] += one["points"]
            total["calls"].update(one["calls"])
            total["violations"] += [f"after image {k}: {text}" for text in one["violations"]]
        return total

    # ---- errors ----

    def fail(
        self,
        name: str,
        errors: list[str],
        persist: bool = False,
        after_kill: int = 0,
        stop: int = 0,
        rotate: bool = False,
    ) -> dict[str, Any]:
        """Let every call fail with every error, one at a time (or from one on, all of its name).

        Args:
            rotate: one error for each call, in turn.
            after_kill: begin with what a kill at this call of the operation leaves, and sweep recovery.
        """
        op = OPS[name]
        image, old = self.template(op)
        if after_kill:
            with self.scene(op, image):
                self.strike(op, KILL_AT_ENTRY, after_kill)
                image = take_image(self.store)
            op = recovery(op)
        with self.scene(op, image):
            names = self.strike(op, TRACE)[0].names
        outcomes: Counter[str] = Counter()
        violations: list[str] = []
        cases = 0
        for turn, error in enumerate(errors):
            for at, call in enumerate(names, 1):
                if rotate and (at + len(names)) % len(errors) != turn:
                    continue
                if call in NEVER_FAIL or (persist and (error == "EINTR" or call in names[: at - 1])):
                    continue
                cases += 1
                with self.scene(op, image):
                    outcome, problems = self._fail_once(op, old, at, error, persist, names)
                outcomes[f"{error}: {outcome}"] += 1
                violations += [f"{op.name}: {error} at call {at}, {call}: {text}" for text in problems]
                if stop and len(violations) >= stop:
                    return {"cases": cases, "outcomes": dict(outcomes), "violations": violations}
        return {"cases": cases, "outcomes": dict(outcomes), "violations": violations}

    def _fail_once(
        self, op: Op, old: int, at: int, error: str, persist: bool, names: list[str]
    ) -> tuple[str, list[str]]:
        number = getattr(errno, error)
        child = Child(functools.partial(victim, op, self.store, self.tracer, True, True))
        problems = []
        try:
            trace = self.tracer.run(child.pid, FAIL_FROM if persist else FAIL, at, number)
            if trace.end != DONE:
                return "crash or hang", [f"crash or hang: {trace}"]
            if trace.struck == 0 and without_allocator(trace.names) != without_allocator(names):
                problems.append("the call never came")
            lines = child.lines()
            said = next(lines, None)
            if said is None:
                return "crash", [f"crash: {child.reap()}"]
            problems += [f"ignored: {text}" for text in said["ignored"]]
            outcome, wrong = judge(said, number)
            problems += wrong
            unlinking = bool(UNLINKS & set(trace.names[at - 1 : at]))
            case = Case(op, self.store, old, self._allowed(op, old, said), exact=False)
            answer = in_child(lambda: check_error(case, said, unlinking))
            if "violation" in answer:
                problems.append(answer["violation"])
            child.go()
            more = next(lines, None)
            code = child.reap()
            if more is None or code != 0:
                problems.append(f"what came after ended with {code}")
            elif "violation" in more:
                problems.append(more["violation"])
            return outcome, [text.strip()[-1500:] + (f" [{said.get('text')}]") for text in problems]
        finally:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)
            child.close()

    def _allowed(self, op: Op, old: int, said: dict[str, Any]) -> tuple[int, ...]:
        """Return what a fresh reader may find: the old version after an error, the new one after a success."""
        everything = allowed_after(op, old)
        if op.name.startswith("recovery"):
            return tuple({*everything, SEEN_NONE, SEEN_DESTROYED, SEEN_EMPTY, 0})
        if op.after in ("next", "back"):
            return (old,) if "raised" in said else (old + 1,)
        if op.after == "destroy":
            return everything if "raised" in said else (SEEN_NONE,)
        if op.after == "replace":
            return everything if "raised" in said else (1,)
        return everything

    # ---- strace ----

    def strace(self, name: str) -> dict[str, Any]:
        """Return the calls of an operation as strace saw them, and as the tracer did."""
        op = OPS[name]
        image, _ = self.template(op)
        with self.scene(op, image):
            mine = self.strike(op, TRACE)[0].names
        with self.scene(op, image):
            child = Child(functools.partial(victim, op, self.store, self.tracer, False, False))
            lines = child.lines()
            assert next(lines)["ready"] == child.pid
            output = self.directory / f"strace.{self.store}"
            with subprocess.Popen(["strace", "-qq", "-o", str(output), "-p", str(child.pid)]) as strace:
                deadline = time.monotonic() + sweep_tracer.SECONDS
                while f"TracerPid:\t{strace.pid}\n" not in Path(f"/proc/{child.pid}/status").read_text():
                    assert strace.poll() is None, "strace did not attach"
                    assert time.monotonic() < deadline, "strace did not attach"
                    time.sleep(0.001)
                child.go()
                next(lines, None)
                child.reap()
                child.close()
        theirs: list[str] = []
        counting = False
        for line in output.read_text().splitlines():
            if re.match(r"prctl\(0x53574550", line):
                counting = not counting
                continue
            found = re.match(r"(\w+)\(", line)
            if counting and found:
                theirs.append(found[1])
        output.unlink()
        return {"strace": without_more_listing(theirs), "tracer": mine}


def judge(said: dict[str, Any], number: int) -> tuple[str, list[str]]:
    """Say what came of an operation, and what is wrong with that."""
    if "raised" not in said:
        return "success", []
    kinds = said["raised"]
    if "MemoryError" in kinds:
        return kinds[0], [] if number == errno.ENOMEM else ["a MemoryError, without ENOMEM"]
    if "NameTakenError" in kinds:
        return kinds[0], ["blames a stranger: nobody else has that name"]
    if "ShmcowError" in kinds:
        return kinds[0], []
    if "OSError" in kinds and said["errno"] == number:
        return kinds[0], []
    return kinds[0], [f"neither specific nor of that errno: {kinds} {said['errno']}"]


def check_error(case: Case, said: dict[str, Any], unlinking: bool) -> None:
    """What must be true after an error, while the process that had it lives on."""
    if "raised" in said and not unlinking and case.op.after not in ("destroy", "replace"):
        if not objects_of(case.store):
            assert case.old == SEEN_NONE, "the store has gone"
        elif f"shmcow.{case.store}" not in objects_of(case.store):
            raise AssertionError(f"left without a header: {objects_of(case.store)}")
        elif not case.op.name.startswith("recovery"):
            stray = objects_of(case.store) - processes.expected_objects(case.store)
            assert not stray, f"left behind: {stray}"
    elif "raised" not in said and case.op.after in ("next", "back") and not case.op.name.startswith("recovery"):
        assert said["result"] == case.old + 1, said
    check_after(case)


def main(directory: str, store: str, package: str) -> None:
    """Do tasks until standard input ends."""
    assert _core.__file__.startswith(package), f"not the build that was asked for: {_core.__file__}"
    die_with_parent()
    logging.getLogger("shmcow").addHandler(logging.NullHandler())  # what victims say is of no interest
    sweeper = Sweeper(Path(directory), store)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        task = json.loads(line)
        try:
            cpu = time.process_time() + sum(os.times()[2:4])
            answer = getattr(sweeper, task.pop("do"))(**task)
            answer["cpu"] = round(time.process_time() + sum(os.times()[2:4]) - cpu, 2)
        except BaseException:
            answer = {"failed": traceback.format_exc()}
        remove(store)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
