"""KeyboardInterrupt and other exceptions in mid-publish and mid-get: nothing stays locked, half-built or stale.

CPython runs signal handlers where a Python function begins and after a call into C. ``sys.setprofile`` is told of just
these places, so an exception raised there arrives where a real Ctrl-C can, and nowhere else: between two other
instructions (at the end of a `with` block, say) the interpreter promises, and nobody could do, more.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import itertools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import shmcow
from shmcow import Codec, MsgPack, Reader, StoredPart, Writer, WriterBusyError, segments

PACKAGE = os.path.dirname(shmcow.__file__)
SHM = Path("/dev/shm")


# ---- what is left ----


def objects(name: str) -> set[str]:
    return {entry for entry in os.listdir(SHM) if entry == f"shmcow.{name}" or entry.startswith(f"shmcow.{name}.")}


def assert_at_rest(name: str) -> None:
    """Fail unless every generation is published, and shared memory holds exactly what the table lists."""
    report = shmcow.describe(name)
    assert {generation.state for generation in report.generations} <= {"held"}
    base = f"shmcow.{name}.{report.epoch}."
    listed = {f"{base}{segment}" for generation in report.generations for segment in generation.segments}
    assert objects(name) == {f"shmcow.{name}", f"{base}lock", f"{base}holds"} | listed


def counters(name: str) -> dict[str, int]:
    return shmcow.describe(name).counters


# ---- interrupting ----


class Interrupted:
    """Where a call was interrupted, and by what; ``where`` is "" if it ended before."""

    def __init__(self) -> None:
        self.events = 0
        self.often: collections.Counter[tuple[Any, ...]] = collections.Counter()
        self.where = ""
        self.exception: KeyboardInterrupt | None = None

    def event(self, n: int, frame: FrameType, what: str) -> None:
        code = frame.f_code
        self.often[code, frame.f_lasti, what] += 1
        if self.often[code, frame.f_lasti, what] > 2:
            return  # a loop over all that lies in shared memory, for instance
        self.events += 1
        if self.events == n:
            self.where = f"{os.path.basename(code.co_filename)}:{frame.f_lineno} {code.co_name} {what}"
            raise KeyboardInterrupt


def of_ours(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename.startswith(PACKAGE)


def interrupt_call(function: Callable[[], Any], n: int) -> Interrupted:
    """Call a function, interrupted at the n-th place of the package, or called by it, where a signal can arrive."""
    report = Interrupted()
    outermost = sys._getframe()

    def profile(frame: FrameType, what: str, arg: Any) -> None:
        if what not in ("call", "c_return") or frame.f_code.co_filename == weakref.__file__:
            return  # (whatever is raised in the callback of a weak reference is told to sys.unraisablehook)
        inside: FrameType | None = frame
        while inside is not outermost and inside is not None:
            if of_ours(inside):
                report.event(n, frame, f"{what} {getattr(arg, '__name__', '')}")
                return
            inside = inside.f_back

    callbacks, gc.callbacks[:] = gc.callbacks[:], []  # what is raised in those of others is told there, too
    sys.setprofile(profile)
    try:
        function()
    except KeyboardInterrupt as exc:
        report.exception = exc
    finally:
        sys.setprofile(None)
        gc.callbacks[:] = callbacks
    return report


def in_thread(function: Callable[[], Any]) -> Any:
    """Return what a function returns in another thread, or the exception that it raises."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(function())
        except BaseException as exc:
            result.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return result[0]


def publish_plain(writer: Writer[Any], k: int) -> None:
    writer.publish({"k": k, "text": "x" * (k % 500)})


def update(writer: Writer[Any], k: int) -> None:
    writer.update(lambda _: {"k": k})


def edit(writer: Writer[Any], k: int) -> None:
    with writer.edit() as draft:
        draft["k"] = k


def rollback(writer: Writer[Any], _: int) -> None:
    writer.rollback()


def create_again(writer: Writer[Any], k: int) -> None:
    """Publish in a store that was destroyed, which creates it."""
    if writer._store.word != shmcow._core.DESTROYED:
        with contextlib.suppress(shmcow.StoreDestroyedError):
            shmcow.destroy(writer.name)
    writer.publish({"k": k})


@pytest.mark.parametrize("doing", [publish_plain, update, rollback, create_again])
def test_interrupt_anywhere_in_a_turn_gives_everything_back(
    name: str, doing: Callable[[Writer[Any], int], None]
) -> None:
    """After Ctrl-C at any place of a turn, its traceback still alive, every thread and Writer publishes at once."""
    writer = Writer(name, initial={"k": 0}, lock_timeout=0, retain=2)
    other = Writer(name, lock_timeout=0)
    reader = Reader(name)
    stuck = []
    n = 0
    while True:
        n += 1
        assert n < 2000, "the work grows from turn to turn"
        writer.publish({"k": -1})
        writer.publish({"k": -2})
        report = interrupt_call(lambda: doing(writer, n), n)  # noqa: B023 - called at once
        if not report.where:
            break
        assert report.exception is not None, report.where
        # `report` keeps the exception, its traceback and all its frames meanwhile
        for who, attempt in (
            ("another Writer", lambda: other.publish({"k": n, "by": "other"})),  # noqa: B023
            ("another thread", lambda: writer.publish({"k": n, "by": "thread"})),  # noqa: B023
        ):
            result = in_thread(attempt)
            if isinstance(result, BaseException):
                stuck.append(f"{report.where}: {who}: {result}")
        try:
            writer.publish({"k": n, "by": "same"})
        except Exception as exc:
            stuck.append(f"{report.where}: same thread: {exc}")
        else:
            assert reader.get() == {"k": n, "by": "same"}
        del report
        if stuck:
            break
        gc.collect()
    print(f"{doing.__name__}: interrupted at {n - 1} places")
    assert not stuck, "\n".join(stuck)
    assert n > 20
    writer.reclaim()
    assert_at_rest(name)


def test_interrupted_part_is_not_published_by_the_next_turn(name: str) -> None:
    """A turn that was interrupted while it ended leaves none of its parts to the next one."""
    writer = Writer(name, initial=["first"])
    n = 0
    while True:
        n += 1
        assert n < 2000, "the work grows from turn to turn"
        report = interrupt_call(lambda: writer.publish(["interrupted" * 10, n]), n)  # noqa: B023
        if not report.where:
            break
        writer.publish(["next", n])
        assert writer.snapshot().value == ["next", n], report.where
        assert Reader(name).get() == ["next", n], report.where


@pytest.mark.parametrize("first", [True, False])
def test_interrupt_anywhere_in_get_is_caught_up(name: str, first: bool) -> None:
    """After Ctrl-C at any place of get(), this thread and others get the newest value, and nothing is held."""
    writer = Writer(name, initial=0, retain=0)
    reader = Reader(name)
    n = 0
    while True:
        n += 1
        assert n < 2000, "the work grows from turn to turn"
        if first:
            reader = Reader(name)
        version = writer.publish(n)
        report = interrupt_call(reader.get, n)
        if not report.where:
            break
        assert report.exception is not None, report.where
        assert reader.get() == n, report.where
        assert reader.version == version
        assert in_thread(reader.get) == n
        newer = writer.publish(-n)
        assert in_thread(reader.get) == -n, report.where
        assert reader.get() == -n
        del report
        gc.collect()  # a traceback and the frame that has it keep each other alive
        assert not writer._store.marked(newer), newer
        assert not writer._store.marked(version)
    print(f"interrupted at {n - 1} places")
    assert n > 20
    assert reader.get() == n


def test_interrupt_while_another_thread_waits_for_the_turn(name: str) -> None:
    """A thread that waits for its turn gets it when the turn before is interrupted."""
    writer = Writer(name, initial=0, lock_timeout=60)
    entered = threading.Event()
    versions: list[int] = []

    def wait_for_the_turn() -> None:
        entered.wait()
        versions.append(writer.publish("waited"))

    def interrupted(_: int) -> int:
        entered.set()
        raise KeyboardInterrupt

    waiting = threading.Thread(target=wait_for_the_turn)
    waiting.start()
    with pytest.raises(KeyboardInterrupt):
        writer.update(interrupted)
    waiting.join()
    assert versions == [2]
    assert writer.snapshot().value == "waited"


def test_refused_inner_turn_takes_nothing_from_the_outer(name: str) -> None:
    """A publish inside an update is refused, and the outer turn goes on alone: no other thread comes in."""
    writer = Writer(name, initial=["first"], lock_timeout=0)

    def nested(old: list[str]) -> list[str]:
        with pytest.raises(WriterBusyError, match="already inside"):
            writer.publish(["inner"])
        gc.collect()
        assert isinstance(in_thread(lambda: writer.publish(["thread"])), WriterBusyError)
        return [*old, "outer"]

    assert writer.update(nested) == 2
    assert writer.snapshot().value == ["first", "outer"]
    assert in_thread(lambda: writer.publish(["afterwards"])) == 3


def test_turn_that_is_collected_late_takes_nothing_from_the_next(name: str) -> None:
    """What is left of a turn that raised is collected within the next turn: that one stays alone."""
    writer = Writer(name, initial=["first"], lock_timeout=0)
    kept: list[Any] = []

    def fail(_: list[str]) -> list[str]:
        raise ZeroDivisionError

    def collect(old: list[str]) -> list[str]:
        kept.clear()
        gc.collect()
        assert isinstance(in_thread(lambda: writer.publish(["thread"])), WriterBusyError)
        return [*old, "next"]

    try:
        writer.update(fail)
    except ZeroDivisionError as exc:
        kept.append(exc)
    assert writer.update(collect) == 2
    assert writer.snapshot().value == ["first", "next"]


# ---- an exception is pending while the protocol cleans up ----


class Pieces(Codec[Any]):
    """A list, each item of which is a part."""

    name = "test-pieces"

    def split(self, value: Any) -> Sequence[Any]:
        inner = MsgPack[Any]()
        return [inner.encode_parts(item)[0]._replace(name=f"p{k}") for k, item in enumerate(value)]

    def join(self, parts: Sequence[StoredPart]) -> Any:
        inner = MsgPack[Any]()
        return [inner.decode_parts([part]) for part in parts]


@contextlib.contextmanager
def failing_part(at: int, error: BaseException) -> Iterator[None]:
    """Let the making of part `at` raise after its file was created."""
    real = segments.make
    made: list[str] = []

    def make(path: str) -> Any:
        file = real(path)
        made.append(path)
        if len(made) == at + 1:
            file.close_fd()
            raise error
        return file

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(segments, "make", make)
        yield
    assert len(made) == at + 1


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize(("parts", "at"), [(1, 0), (3, 0), (3, 1), (3, 2), (16, 15)])
def test_failed_fill_leaves_nothing_half_built(name: str, parts: int, at: int, kind: type[BaseException]) -> None:
    """A publish whose fill raises removes its segments itself: nothing is BUILDING, nothing to recover afterwards."""
    writer = Writer(name, codec=Pieces(), initial=["a"] * parts)
    before = objects(name)
    with failing_part(at, kind(5, "planted")), pytest.raises(kind):
        writer.publish(["b"] * parts)
    assert [generation.state for generation in shmcow.describe(name).generations] == ["held"]
    assert objects(name) == before
    other = Writer(name, codec=Pieces())
    assert other.publish(["c"] * parts) == 2
    assert counters(name)["recovered"] == 0
    assert counters(name)["swept"] == 0
    assert other.snapshot().value == ["c"] * parts
    assert_at_rest(name)


# ---- an exception comes after the flip ----


@contextlib.contextmanager
def failing_unlink(error: BaseException) -> Iterator[list[str]]:
    """Let every unlink of a segment raise; yields the names that should have gone."""
    asked: list[str] = []

    def unlink(path: str, owner: int) -> int:  # noqa: ARG001
        asked.append(path)
        raise error

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(segments, "unlink_segment", unlink)
        yield asked


def test_exception_in_the_tidying_does_not_undo_a_publish(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong after the flip is told to sys.unraisablehook, and publish() returns the version."""
    writer = Writer(name, initial="one", retain=0)
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_value))
    with failing_unlink(RuntimeError("planted")) as asked:
        assert writer.publish("two") == 2
    assert len(asked) == 1
    assert [str(error) for error in told] == ["planted"]
    assert Reader(name).get() == "two"
    assert writer.publish("three") == 3, "the next turn finishes what was left"
    assert [generation.version for generation in shmcow.describe(name).generations] == [3]
    assert len(told) == 1
    assert_at_rest(name)


def test_keyboard_interrupt_in_the_tidying_passes_and_the_version_is_published(name: str) -> None:
    """Ctrl-C after the flip reaches the caller, and the version is published all the same."""
    writer = Writer(name, initial="one", retain=0)
    with failing_unlink(KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        writer.publish("two")
    assert writer.version == 2
    assert Reader(name).get() == "two"
    assert in_thread(lambda: writer.publish("three")) == 3
    assert_at_rest(name)


def test_signal_handler_that_attaches_while_its_thread_attaches_leaves_one_store(name: str) -> None:
    """Wherever in the first ``get()`` a handler uses another Reader, both follow the store afterwards."""
    for n in itertools.count(1):
        Writer(name, initial=1).close()
        reader, others = Reader(name), Reader(name)
        events = 0

        def profile(frame: FrameType, *_: Any, n: int = n, others: Reader[Any] = others) -> None:
            nonlocal events
            if of_ours(frame) or of_ours(frame.f_back):
                events += 1
                if events == n:
                    sys.setprofile(None)
                    others.get()

        sys.setprofile(profile)
        try:
            reader.get()
        finally:
            sys.setprofile(None)
        with Writer(name) as writer:
            writer.publish(2)
            assert (reader.get(), others.get()) == (2, 2), f"handled at event {n}"
            writer.destroy()
        reader.close()
        others.close()
        if events < n:
            break


def test_reader_closed_by_a_signal_handler_in_mid_get_says_that_it_is_closed(name: str) -> None:
    """Not that there is no value yet; and ``default`` is no answer of a closed reader."""
    with Writer(name, initial=1) as writer:
        for options in ({}, {"default": 7}):
            reader = Reader(name, transform=lambda value: (reader.close(), value), **options)  # type: ignore[misc]  # noqa: B023
            with pytest.raises(shmcow.ClosedError):
                reader.get()
        writer.destroy()
