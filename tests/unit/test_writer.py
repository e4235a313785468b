"""Writer: each method, argument and attribute, and what it refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import grp
import logging
import os
import pickle
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import shmcow
from shmcow import (
    JSON,
    MsgPack,
    Raw,
    Reader,
    Snapshot,
    VersionGoneError,
    Writer,
    _core,
    encoded,
    publishing,
    validators,
)
from shmcow.store import Settings, attach, end

SHM = Path("/dev/shm")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes the user id: run the tests as root")


class Config(msgspec.Struct, frozen=True):
    timeout: float = 1.0
    hosts: tuple[str, ...] = ()


def objects(name: str) -> list[str]:
    return sorted(
        entry for entry in os.listdir(SHM) if entry == f"shmcow.{name}" or entry.startswith(f"shmcow.{name}.")
    )


def segment_names(name: str) -> list[str]:
    return [entry for entry in objects(name) if entry.rpartition(".")[2].isdigit()]


def versions(name: str) -> list[int]:
    return [generation.version for generation in shmcow.describe(name).generations]


@contextlib.contextmanager
def holder(name: str, version: int) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a version until its standard input is closed."""
    code = (
        "import sys, shmcow\n"
        "with shmcow.Reader(sys.argv[1]).at(int(sys.argv[2])):\n"
        "    print('holding', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, name, str(version)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "holding\n"
        yield child
    finally:
        child.communicate()


@contextlib.contextmanager
def umask(bits: int) -> Iterator[None]:
    before = os.umask(bits)
    try:
        yield
    finally:
        os.umask(before)


def as_user(uid: int, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code as another user; the caller is root."""
    # Imports come first, for the package may lie where the other user cannot read.
    prologue = (
        "import os, sys, msgspec, psutil, posix_ipc, shmcow.reports, shmcow.dropping, encodings.idna, traceback\n"
        f"os.setgroups([]); os.setgid({uid}); os.setuid({uid})\n"
    )
    return subprocess.run(
        [sys.executable, "-c", prologue + code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


# ---- attributes ----


def test_writer_says_whether_it_created_the_store(name: str) -> None:
    """`created` is true for the first writer only."""
    with Writer(name) as first, Writer(name) as second:
        assert first.created
        assert not second.created
        assert first.name == second.name == name
        assert first.version == second.version == 0


def test_version_counts_from_one_and_follows_other_writers(name: str) -> None:
    """`version` is the store's, whoever published."""
    with Writer(name) as first, Writer(name) as second:
        assert first.publish("a") == 1
        assert second.publish("b") == 2
        assert (first.version, second.version) == (2, 2)


def test_initial_is_published_only_in_an_empty_store(name: str) -> None:
    """A second writer's `initial` changes nothing."""
    with Writer(name, initial={"a": 1}) as first:
        assert first.snapshot().message == "initial"
        with Writer(name, initial={"a": 2}) as second:
            assert second.version == 1
            assert second.snapshot().value == {"a": 1}


def refuse(_old: object, _new: object) -> None:
    raise ValueError("not this one")


REFUSED_INITIALS = {
    "by a validator": ({"initial": 1, "validators": [refuse]}, shmcow.ValidationError),
    "by the encoder": ({"initial": object()}, shmcow.ValidationError),
    "by the type": ({"initial": "x", "type": int}, shmcow.ValidationError),
    "for lack of room": ({"initial": b"x" * 10_000, "max_total_bytes": 4096}, shmcow.OutOfSharedMemoryError),
    "by a validator that exits": ({"initial": 1, "validators": [lambda *_: sys.exit(3)]}, SystemExit),
}


@pytest.mark.parametrize(("options", "error"), REFUSED_INITIALS.values(), ids=REFUSED_INITIALS)
def test_refused_initial_leaves_no_store(name: str, options: dict[str, Any], error: type[BaseException]) -> None:
    """A store that was made for it is removed; the next writer makes one, and it is said to have made it."""
    with pytest.raises(error):
        Writer(name, **options)
    assert objects(name) == []
    with Writer(name, initial=2) as w:
        assert (w.created, w.version) == (True, 1)


def test_refused_initial_leaves_an_empty_store_that_was_there(name: str) -> None:
    """It is somebody else's, who may be about to publish in it."""
    with Writer(name):
        epoch = shmcow.describe(name).epoch
        with pytest.raises(shmcow.ValidationError):
            Writer(name, initial=1, validators=[refuse])
        assert shmcow.describe(name).epoch == epoch


def test_refused_initial_leaves_a_store_in_which_somebody_has_published(name: str) -> None:
    """Between the refusal and the removal another writer may come; what it has published stays."""

    class Slow(Writer[int]):
        def _unmake(self, made: _core.Store | None) -> None:
            assert other.publish(2) == 1
            super()._unmake(made)

    with Writer(name) as other:
        other.destroy()
        with pytest.raises(shmcow.ValidationError):
            Slow(name, initial=1, validators=[refuse])
        assert other.snapshot().value == 2


def test_refused_initial_leaves_a_store_that_somebody_is_writing(name: str) -> None:
    """The store is not taken away from under who has the writer lock."""

    class Slow(Writer[int]):
        def _unmake(self, made: _core.Store | None) -> None:
            with other._turn(recreate=True) as turn:
                super()._unmake(made)
                assert turn.store.named()

    with Writer(name) as other:
        other.destroy()
        with pytest.raises(shmcow.ValidationError):
            Slow(name, initial=1, validators=[refuse])
        assert other.publish(2) == 1


def test_value_for_which_there_is_no_room_makes_no_store(name: str) -> None:
    """A tool that publishes once leaves nothing behind; in a store that was there the current version stays."""
    settings = Settings(max_total_bytes=4096)
    with pytest.raises(shmcow.OutOfSharedMemoryError):
        publishing.publish(name, b"x" * 10_000, codec=MsgPack(), settings=settings)
    assert objects(name) == []
    with Writer(name, initial=1, max_total_bytes=4096) as w:
        with pytest.raises(shmcow.OutOfSharedMemoryError):
            publishing.publish(name, b"x" * 10_000, codec=MsgPack())
        assert w.snapshot().value == 1


def test_initial_none_is_a_value(name: str) -> None:
    """`initial=None` publishes None, where leaving it out publishes nothing."""
    with Writer(name, initial=None) as w:
        assert w.version == 1
        assert w.snapshot().value is None


def test_writer_without_initial_makes_an_empty_store(name: str) -> None:
    """An empty store has no snapshot, and says what to do."""
    with Writer(name) as w:
        with pytest.raises(shmcow.NotPublishedError, match="publish one"):
            w.snapshot()
        assert shmcow.describe(name).version == 0
        assert segment_names(name) == []


def test_snapshot_tells_who_when_and_what(name: str) -> None:
    """A writer's snapshot has the value and where it comes from."""
    with Writer(name, type=Config) as w:
        w.publish(Config(2.0), message="m", author="a", source="s")
        snap = w.snapshot()
        assert isinstance(snap, Snapshot)
        assert (snap.value, snap.version, snap.store) == (Config(2.0), 1, name)
        assert (snap.message, snap.author, snap.source) == ("m", "a", "s")
        assert snap.publisher == (os.getpid(), os.geteuid())
        assert snap.codec == "msgpack"


def test_closed_writer_refuses_everything_and_leaves_the_store(name: str) -> None:
    """After close() each method raises ClosedError, and the store stays."""
    w = Writer(name, initial={"a": 1})
    w.publish({"a": 2})
    w.close()
    w.close()
    calls = [
        lambda: w.version,
        w.snapshot,
        lambda: w.publish(1),
        lambda: w.update(lambda old: old),
        lambda: w.patch(a=1),
        lambda: w.edit().__enter__(),
        lambda: w.swap(1),
        w.rollback,
        w.reclaim,
        lambda: w.wait_unused(1),
        w.destroy,
    ]
    for call in calls:
        with pytest.raises(shmcow.ClosedError, match="make a new one"):
            call()
    assert Reader(name).get() == {"a": 2}
    assert "closed" in repr(w)


@contextlib.contextmanager
def waiting_for_its_turn(writer: Writer[Any], call: Callable[[], object]) -> Iterator[list[object]]:
    """Run a call of the writer in a thread; the block begins when that waits. Yields what it will have raised."""
    raised: list[object] = []

    def run() -> None:
        try:
            raised.append(call())
        except Exception as exc:
            raised.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    mutex, deadline = writer._keeper.mutex(), time.monotonic() + 30
    while mutex.acquire(blocking=False):
        mutex.release()
        assert time.monotonic() < deadline, "it never waited"
        time.sleep(0.001)
    try:
        yield raised
    finally:
        thread.join(30)


@pytest.mark.parametrize(
    "call",
    [
        lambda w: w.update(lambda old: old),
        lambda w: w.patch(a=3),
        lambda w: w.edit().__enter__(),
        lambda w: w.publish({"a": 3}),
        lambda w: w._publish(w._encode({"a": 2}), encoded.say("", "", ""), None, True),
        lambda w: w.rollback(),
    ],
    ids=["update", "patch", "edit", "publish", "publish if changed", "rollback"],
)
def test_writer_closed_while_it_waits_for_its_turn_publishes_nothing_and_says_so(
    name: str, call: Callable[[Writer[Any]], object]
) -> None:
    """Whatever it was about to do, another thread has closed it: ClosedError, and no version."""
    with Writer(name, initial={"a": 1}) as other:
        other.publish({"a": 2})
        w = Writer(name)
        with other._turn(recreate=False) as turn, waiting_for_its_turn(w, lambda: call(w)) as raised:
            w.close()
            turn.give_back()
        assert isinstance(raised[0], shmcow.ClosedError)
        assert other.version == 2


def test_writer_closed_while_it_waits_does_not_make_a_destroyed_store_again(name: str) -> None:
    """publish() creates a store that has gone, but not for a writer that was closed meanwhile."""
    other, w = Writer(name, initial=1), Writer(name)
    with other._turn(recreate=False, ending=True) as turn, waiting_for_its_turn(w, lambda: w.publish(2)) as raised:
        w.close()
        end(turn.store, turn.core)
        turn.give_back()
    assert isinstance(raised[0], shmcow.ClosedError)
    assert objects(name) == []


def test_update_goes_on_after_an_interrupt_while_the_writer_attached(name: str) -> None:
    """Such an interrupt leaves a store without its writable side: the next turn makes that."""
    with Writer(name, initial={"a": 1}) as w:
        w._keeper._core = None
        assert w.update(lambda old: {**old, "b": 2}) == 2


def test_repr_shows_no_value(name: str) -> None:
    """A writer's repr has the name and nothing that was published."""
    with Writer(name, initial="secret") as w:
        assert name in repr(w)
        assert "secret" not in repr(w)


# ---- publish ----


def test_publish_expected_lets_only_the_expected_version_be_replaced(name: str) -> None:
    """`expected=` publishes on the current version and raises with both numbers on another."""
    with Writer(name) as w:
        assert w.publish("a", expected=0) == 1
        assert w.publish("b", expected=1) == 2
        with pytest.raises(shmcow.VersionConflictError, match="expected version 1 to be current, found 2") as caught:
            w.publish("c", expected=1)
        assert (caught.value.expected, caught.value.actual) == (1, 2)
        again = pickle.loads(pickle.dumps(caught.value))
        assert (again.expected, again.actual, str(again)) == (1, 2, str(caught.value))
        assert w.snapshot().value == "b"
        assert shmcow.describe(name).counters["conflicts"] == 1


def test_publish_expected_future_version_conflicts(name: str) -> None:
    """A version that does not exist yet is a conflict like any other."""
    with Writer(name, initial="a") as w, pytest.raises(shmcow.VersionConflictError):
        w.publish("b", expected=9)


def test_publish_of_a_wrong_type_leaves_the_current_version(name: str) -> None:
    """A value that does not fit the type is refused with its path, counted, and nothing stays of it."""
    with Writer(name, type=Config, initial=Config()) as w:
        before = objects(name)
        with pytest.raises(shmcow.ValidationError, match=r"Expected `str`, got `int`.*hosts"):
            w.publish(Config(hosts=(1,)))  # type: ignore[arg-type]
        assert w.version == 1
        assert objects(name) == before
        assert shmcow.describe(name).counters["refused"] == 1


# ---- message, author, source ----


@pytest.mark.parametrize(("field", "room"), [("message", 256), ("author", 64), ("source", 128)])
def test_notes_are_cut_to_their_room_at_a_characters_border(name: str, field: str, room: int) -> None:
    """A text keeps as many whole characters as fit into its bytes."""
    with Writer(name) as w:
        for text, kept in [
            ("x" * room, "x" * room),
            ("x" * (room + 1), "x" * room),
            ("x" * (room - 1) + "é", "x" * (room - 1)),
            ("x" * (room - 2) + "é", "x" * (room - 2) + "é"),
            ("x" * (room - 3) + "\U0001f600", "x" * (room - 3)),
            ("\U0001f600" * room, "\U0001f600" * (room // 4)),
            ("line\nbreak\ttab", "line\nbreak\ttab"),
            ("", ""),
        ]:
            w.publish(1, **{field: text})  # type: ignore[arg-type]
            assert getattr(w.snapshot(), field) == kept


def test_notes_with_lone_surrogates_are_kept_readable(name: str) -> None:
    """A text that is not valid Unicode is published with a replacement, not refused."""
    with Writer(name) as w:
        w.publish(1, message="a\udc80b")
        assert w.snapshot().message == "a?b"


@pytest.mark.parametrize("field", ["message", "author", "source"])
def test_notes_that_are_no_text_are_refused_before_anything_happens(name: str, field: str) -> None:
    """A note of another type is a TypeError that names it."""
    with Writer(name, initial=1) as w:
        for call in (
            lambda note: w.publish(2, **note),
            lambda note: w.update(lambda _: 2, **note),
            lambda note: w.swap(2, **note),
            lambda note: w.edit(**note).__enter__(),
        ):
            with pytest.raises(TypeError, match=f"{field} is a str, found 3"):
                call({field: 3})
        assert w.version == 1


# ---- update, patch, edit ----


def test_update_sees_the_newest_value(name: str) -> None:
    """The function gets the current frozen value, also when another writer published it."""
    with Writer(name, initial={"n": 1}) as w, Writer(name) as other:
        other.publish({"n": 5})
        assert w.update(lambda old: {"n": old["n"] + 1}, message="count", author="me", source="here") == 3
        snap = w.snapshot()
        assert snap.value == {"n": 6}
        assert (snap.message, snap.author, snap.source) == ("count", "me", "here")


def test_update_from_many_threads_loses_nothing(name: str) -> None:
    """Eight threads of one process add to one value through one writer."""
    with Writer(name, initial=0, lock_timeout=60) as w:
        threads = [
            threading.Thread(target=lambda: [w.update(lambda old: old + 1) for _ in range(20)]) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert w.snapshot().value == 160
        assert w.version == 161


def test_update_in_an_empty_store_says_so(name: str) -> None:
    """There is nothing to update before the first publish."""
    with Writer(name) as w, pytest.raises(shmcow.NotPublishedError):
        w.update(lambda _: 1)


@dataclasses.dataclass(frozen=True)
class Limits:
    low: int = 0
    high: int = 9


@pytest.mark.parametrize(
    ("type_", "start", "changes", "result"),
    [
        (Config, Config(1.0, ("a",)), {"timeout": 2.5}, Config(2.5, ("a",))),
        (Limits, Limits(), {"low": 1, "high": 2}, Limits(1, 2)),
        (dict[str, int], {"a": 1}, {"b": 2, "a": 3}, {"a": 3, "b": 2}),
        (None, {"a": 1}, {"b": [1]}, {"a": 1, "b": [1]}),
    ],
)
def test_patch_replaces_fields_or_keys(
    name: str, type_: type | None, start: object, changes: dict, result: object
) -> None:
    """`patch` works on Structs, dataclasses and dicts, typed or not."""
    with Writer(name, type=type_, initial=start) as w:
        assert w.patch(**changes) == 2
        assert w.snapshot().value == result


def test_patch_may_name_any_key(name: str) -> None:
    """Keys that are also names of arguments are keys."""
    with Writer(name, initial={"a": 1}) as w:
        w.patch(self=1, message=2, expected=3)
        assert w.snapshot().value == {"a": 1, "self": 1, "message": 2, "expected": 3}


def test_patch_of_an_unknown_or_wrong_field_is_refused(name: str) -> None:
    """An unknown field is named with those that exist; a wrong type with its path."""
    with Writer(name, type=Config, initial=Config()) as w:
        with pytest.raises(shmcow.ValidationError, match=r"no field `timeut`.*`timeout`"):
            w.patch(timeut=1)
        with pytest.raises(shmcow.ValidationError, match=r"Expected `float`, got `str`.*timeout"):
            w.patch(timeout="slow")
        assert w.version == 1


def test_edit_of_a_struct_publishes_a_struct(name: str) -> None:
    """Fields of a frozen Struct can be set on the copy; the result is of the class again."""
    with Writer(name, type=Config, initial=Config()) as w:
        with w.edit(message="edited") as draft:
            draft.timeout = 9.0
            draft.hosts = (*draft.hosts, "c")
        snap = w.snapshot()
        assert snap.value == Config(9.0, ("c",))
        assert snap.message == "edited"


def test_edit_of_a_dict_changes_nothing_before_its_end(name: str) -> None:
    """Readers see the old value until the block ends."""
    with Writer(name, initial={"hosts": ["a"]}) as w:
        r = Reader(name)
        with w.edit() as draft:
            draft["hosts"].append("b")
            draft["deep"] = {"x": [1]}
            assert r.get() == {"hosts": ["a"]}
        assert r.get() == {"hosts": ["a", "b"], "deep": {"x": [1]}}


def test_edit_that_raises_publishes_nothing(name: str) -> None:
    """An exception in the block drops the copy and gives the writer lock back."""
    with Writer(name, initial={"a": 1}) as w:
        with pytest.raises(ZeroDivisionError), w.edit() as draft:  # noqa: PT012 - the block is what is tested
            draft["a"] = 2
            draft["b"] = 1 // 0
        assert w.version == 1
        assert w.snapshot().value == {"a": 1}
        assert w.publish({"a": 3}) == 2


def test_edit_of_a_scalar_says_what_to_use(name: str) -> None:
    """A value with nothing to edit is refused with the alternatives."""
    with Writer(name, initial=7) as w:
        with pytest.raises(shmcow.ValidationError, match=r"update"), w.edit():
            pass
        assert w.publish(8) == 2


# ---- swap, rollback ----


def test_swap_returns_what_it_replaced(name: str) -> None:
    """`swap` publishes and gives the previous Snapshot."""
    with Writer(name, initial="old") as w:
        previous = w.swap("new", message="why")
        assert (previous.version, previous.value) == (1, "old")
        assert w.snapshot().value == "new"
        assert w.snapshot().message == "why"


def test_swap_in_an_empty_store_publishes_nothing(name: str) -> None:
    """There is nothing to swap with before the first publish."""
    with Writer(name) as w:
        with pytest.raises(shmcow.NotPublishedError):
            w.swap("new")
        assert w.version == 0
        assert segment_names(name) == []


def test_rollback_is_a_new_version_of_the_same_segments(name: str) -> None:
    """Nothing is copied: both versions list the same segment, and total_bytes does not grow."""
    with Writer(name, initial="one") as w:
        w.publish("two")
        before = shmcow.describe(name)
        assert w.rollback() == 3
        after = shmcow.describe(name)
        by_version = {generation.version: generation for generation in after.generations}
        assert by_version[3].segments == by_version[1].segments
        assert by_version[3].rollback_of == 1
        assert after.total_bytes == before.total_bytes
        assert after.counters["rolled_back"] == 1
        snap = w.snapshot()
        assert (snap.value, snap.rollback_of, snap.message) == ("one", 1, "roll back from 2 to 1")


def test_rollback_after_rollback_goes_further_back(name: str) -> None:
    """Two people who roll back the same incident do not bring the bad version back."""
    with Writer(name, initial="one", retain=10) as w:
        for value in ("two", "three", "four"):
            w.publish(value)
        seen = []
        for _ in range(3):
            w.rollback()
            seen.append(w.snapshot().value)
        assert seen == ["three", "two", "one"]
        with pytest.raises(VersionGoneError, match="there is none before it"):
            w.rollback()
        w.publish("five")
        w.rollback()
        assert w.snapshot().value == "one"


def test_another_mode_than_the_stores_is_warned_about(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A store keeps the permissions of its first writer, and a later writer that wants others hears of it."""
    with Writer(name, initial=1), Writer(name), Writer(name, mode=0o600):
        assert caplog.records == []
        with Writer(name, mode=0o644):
            pass
        assert "destroy it first to change them" in caplog.text
        assert oct(shmcow.describe(name).mode) == "0o600"


def test_rollback_to_a_version_and_to_one_that_is_gone(name: str) -> None:
    """`to=` names any openable version; others raise VersionGoneError and change nothing."""
    with Writer(name, initial=1, retain=2) as w:
        for n in range(2, 6):
            w.publish(n)
        assert w.rollback(to=3, message="back", author="op", source="cli") == 6
        snap = w.snapshot()
        assert (snap.value, snap.message, snap.author, snap.source) == (3, "back", "op", "cli")
        for gone, why in ((1, "reclaimed or dropped"), (99, "never published")):
            with pytest.raises(shmcow.VersionGoneError, match=f"version {gone} of .*{why}"):
                w.rollback(to=gone)
        assert w.version == 6


def test_rolled_back_content_outlives_the_version_it_came_from(name: str) -> None:
    """A shared segment goes with the last version that lists it."""
    with Writer(name, initial="one", retain=1) as w:
        w.publish("two")
        w.rollback()
        for _ in range(5):
            w.rollback(to=w.version)
        assert w.snapshot().value == "one"
        assert len(segment_names(name)) == 1
        w.publish("three")
        w.publish("four")
        assert len(segment_names(name)) == 2


def test_rollback_of_the_first_or_of_nothing_is_refused(name: str) -> None:
    """There must be a version before the current one."""
    with Writer(name) as w:
        with pytest.raises(shmcow.NotPublishedError):
            w.rollback()
        w.publish(1)
        with pytest.raises(shmcow.VersionGoneError, match="first"):
            w.rollback()
        assert w.version == 1


# ---- retain, reclaim, max_total_bytes ----


@pytest.mark.parametrize("retain", [0, 1, 3])
def test_retain_older_versions_stay_openable(name: str, retain: int) -> None:
    """After many publishes, the current version and `retain` older ones exist, and no other segment."""
    with Writer(name, initial=0, retain=retain) as w:
        for n in range(8):
            w.publish(n)
        assert versions(name) == list(range(9, 8 - retain, -1))
        assert len(segment_names(name)) == retain + 1
        r = Reader(name)
        for version in range(9, 8 - retain, -1):
            assert r.at(version).version == version
        with pytest.raises(shmcow.VersionGoneError, match="retain more"):
            r.at(8 - retain)


def test_retain_of_the_store_is_kept_unless_given(name: str) -> None:
    """A later writer leaves `retain` and `max_total_bytes` as they are, or changes them when it names them."""
    with Writer(name, retain=2, max_total_bytes=1 << 20), Writer(name):
        report = shmcow.describe(name)
        assert (report.retain, report.max_total_bytes) == (2, 1 << 20)
        with Writer(name, retain=0, max_total_bytes=0):
            report = shmcow.describe(name)
            assert (report.retain, report.max_total_bytes) == (0, 0)


def test_retain_beyond_the_table_gives_up_the_oldest(name: str) -> None:
    """The generation table bounds what can be retained; publishing goes on."""
    with Writer(name, retain=1000) as w:
        for n in range(80):
            w.publish(n)
        kept = versions(name)
        assert kept == list(range(80, 80 - len(kept), -1))
        assert len(kept) == 64
        assert shmcow.describe(name).counters["given_up"] == 80 - 64


def test_reclaim_takes_what_a_reader_let_go(name: str) -> None:
    """A version held by another process survives publishing and reclaim, and goes when it is let go."""
    with Writer(name, initial=1, retain=0) as w:
        with holder(name, 1):
            w.publish(2)
            assert w.reclaim() == 0
            assert versions(name) == [2, 1]
            assert shmcow.describe(name).generations[1].marked
        assert w.reclaim() == 1
        assert versions(name) == [2]
        assert len(segment_names(name)) == 1


def test_reclaim_sweeps_what_belongs_to_nothing(name: str) -> None:
    """A segment that no generation lists, and objects of another epoch, go; the sweep is logged and counted."""
    with Writer(name, initial=1) as w:
        prefix = attach(name).prefix
        for path in (f"{prefix}77", f"{SHM}/shmcow.{name}.{'0' * 32}.lock", f"{SHM}/shmcow.{name}.{'0' * 32}.5"):
            Path(path).touch()
        w.reclaim()
        assert len(objects(name)) == 4
        assert shmcow.describe(name).counters["swept"] == 3
        assert w.snapshot().value == 1


def test_max_total_bytes_gives_up_retained_versions_first(name: str) -> None:
    """Room is made from retained versions, oldest first; a value that never fits is refused with nothing left."""
    with Writer(name, codec=Raw(), retain=4, max_total_bytes=64 << 10) as w:
        for _ in range(4):
            w.publish(b"x" * 10_000)
        w.publish(b"y" * 40_000)
        report = shmcow.describe(name)
        assert report.total_bytes <= 64 << 10
        assert report.counters["given_up"] > 0
        assert report.generations[0].version == 5
        before = objects(name)
        with pytest.raises(shmcow.OutOfSharedMemoryError, match="max_total_bytes") as caught:
            w.publish(b"z" * 70_000)
        assert caught.value.errno == errno.ENOSPC
        assert isinstance(caught.value, OSError)
        assert w.version == 5
        assert set(objects(name)) <= set(before)
        with w.snapshot() as snap:
            assert bytes(snap.data) == b"y" * 40_000


# ---- wait_unused ----


def test_wait_unused_waits_for_another_process(name: str) -> None:
    """It times out while another process holds the version, and returns once that lets go."""
    with Writer(name, initial=1) as w:
        with holder(name, 1):
            w.publish(2)
            with pytest.raises(shmcow.WaitTimeoutError, match=r"version 1 .* still held after 0\.05 s"):
                w.wait_unused(1, timeout=0.05)
            with pytest.raises(shmcow.WaitTimeoutError):
                w.wait_unused(1, timeout=0)
        w.wait_unused(1, timeout=60)
        w.wait_unused(1)


def test_wait_unused_returns_when_a_killed_holder_is_gone(name: str) -> None:
    """A holder that is killed lets go: the kernel drops its marker."""
    with Writer(name, initial=1) as w, holder(name, 1) as child:
        w.publish(2)
        assert attach(name).marked(1)
        child.kill()
        child.wait()
        w.wait_unused(1, timeout=60)


def test_wait_unused_counts_this_process_too(name: str) -> None:
    """A snapshot held in the writer's own process is waited for."""
    with Writer(name, initial=1) as w:
        snap = w.snapshot().hold()
        w.publish(2)
        with pytest.raises(shmcow.WaitTimeoutError):
            w.wait_unused(1, timeout=0.01)
        snap.release()
        w.wait_unused(1, timeout=60)


def test_wait_unused_refuses_the_current_and_unknown_versions(name: str) -> None:
    """Waiting for the current version would never end."""
    with Writer(name, initial=1) as w:
        with pytest.raises(ValueError, match=r"version 1 .* is current: publish a newer one first"):
            w.wait_unused(1)
        with pytest.raises(ValueError, match=r"version 5 .* is unknown: 1 is current"):
            w.wait_unused(5)


# ---- destroy, and created again ----


def test_destroy_removes_every_object(name: str) -> None:
    """After destroy() nothing of the store is in shared memory, and a second destroy says so."""
    w = Writer(name, initial=1)
    w.publish(2)
    w.destroy()
    assert objects(name) == []
    with pytest.raises(shmcow.StoreDestroyedError):
        w.destroy()
    with pytest.raises(shmcow.StoreNotFoundError):
        shmcow.destroy(name)
    with pytest.raises(shmcow.StoreDestroyedError):
        _ = w.version
    w.close()


def test_publish_creates_a_destroyed_store_again_and_the_rest_refuses(name: str) -> None:
    """Plain publish starts a new epoch at version 1; whatever builds on the old value raises."""
    with Writer(name, initial={"a": 1}) as w:
        epoch = w.snapshot().epoch
        shmcow.destroy(name)
        for call in (
            lambda: w.update(lambda old: old),
            lambda: w.patch(a=2),
            lambda: w.edit().__enter__(),
            lambda: w.swap({}),
            w.rollback,
            w.reclaim,
            lambda: w.publish({}, expected=1),
        ):
            with pytest.raises(shmcow.StoreDestroyedError, match=r"publish\(\) creates it again"):
                call()
        assert objects(name) == []
        assert w.publish({"a": 3}) == 1
        assert w.created
        assert w.snapshot().epoch != epoch


def test_function_destroy_removes_a_store_by_name(name: str) -> None:
    """shmcow.destroy() needs no writer."""
    Writer(name, initial=1).close()
    shmcow.destroy(name)
    assert objects(name) == []


# ---- mode and group ----


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o177, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o604, 0o644])
def test_permissions_are_those_asked_for_whatever_the_umask(name: str, mode: int, mask: int) -> None:
    """Header, lock, holds and segments have exactly their bits: only the owner writes, only the header."""
    with umask(mask), Writer(name, initial=1, mode=mode) as w:
        w.publish(2)
    readable = mode & 0o444
    expected = {"header": mode, "lock": 0o600, "holds": readable}
    for entry in objects(name):
        what = entry.rpartition(".")[2] if entry.count(".") > 1 else "header"
        found = stat.S_IMODE((SHM / entry).stat().st_mode)
        assert found == expected.get(what, readable), f"{entry}: {found:o}"
    assert shmcow.describe(name).mode == mode


@pytest.mark.parametrize("mode", [0o400, 0o660, 0o602, 0o700, 0o1600, 0, -1, "0600", 6.0])
def test_other_modes_are_refused(name: str, mode: object) -> None:
    """A mode that lets others write, or the owner not, is a ValueError that lists the right ones."""
    with pytest.raises(ValueError, match="0o600, 0o640, 0o604 or 0o644, found"):
        Writer(name, mode=mode)  # type: ignore[arg-type]
    assert objects(name) == []


@needs_root
def test_group_is_that_of_every_object(name: str) -> None:
    """`group=` by number, also for segments that come later."""
    with Writer(name, initial=1, mode=0o640, group=54321) as w:
        w.publish(2)
        assert {(SHM / entry).stat().st_gid for entry in objects(name)} == {54321}
        assert shmcow.describe(name).gid == 54321


def test_group_by_name(name: str) -> None:
    """`group=` by name looks the number up."""
    mine = grp.getgrgid(os.getegid())
    with Writer(name, initial=1, group=mine.gr_name):
        assert shmcow.describe(name).gid == mine.gr_gid


@pytest.mark.parametrize("group", ["no-such-group-here", -1, 1.5, True, 1 << 40, 0xFFFFFFFF, b"root"])
def test_unknown_groups_are_refused_with_nothing_left(name: str, group: object) -> None:
    """What is no group is a ValueError, and no object stays behind."""
    with pytest.raises(ValueError, match="group"):
        Writer(name, group=group)  # type: ignore[arg-type]
    assert objects(name) == []


@needs_root
def test_group_that_the_user_is_not_in_is_refused_with_nothing_left(name: str) -> None:
    """Giving a store to a foreign group is a NotOwnerError, and no lock file stays behind."""
    code = (
        "try:\n    shmcow.Writer(sys.argv[1], initial=1, group=54321)\n"
        "except shmcow.NotOwnerError as exc:\n    print('refused:', exc)\n"
    )
    run = as_user(65534, code, name)
    assert run.stdout.startswith("refused:"), run.stdout + run.stderr
    assert objects(name) == []


# ---- owner ----


@needs_root
def test_another_user_may_read_but_not_write(name: str) -> None:
    """A second uid gets NotOwnerError from Writer and destroy, and reads what mode= lets it read."""
    with Writer(name, initial="hello", mode=0o644) as w:
        code = (
            "name = sys.argv[1]\n"
            "for call in (lambda: shmcow.Writer(name), lambda: shmcow.destroy(name)):\n"
            "    try:\n        call()\n"
            "    except shmcow.NotOwnerError as exc:\n        print(exc)\n"
            "r = shmcow.Reader(name, owner=0)\n"
            "print(r.get(), r.snapshot().version)\n"
            "with r.snapshot() as snap:\n    print(shmcow.describe(name).generations[0].marked)\n"
        )
        run = as_user(65534, code, name)
        assert run.returncode == 0, run.stderr
        refused, refused_too, read, marked = run.stdout.splitlines()
        assert refused == refused_too
        assert "belongs to user 0" in refused
        assert "runs as user 65534" in refused
        assert (read, marked) == ("hello 1", "True")
        assert w.version == 1


@needs_root
def test_store_without_read_permission_says_so(name: str) -> None:
    """Another user's private store is a NotOwnerError for reader, writer and describe, not a missing one."""
    with Writer(name, initial="hello"):
        code = (
            "name = sys.argv[1]\n"
            "calls = [lambda: shmcow.Writer(name), shmcow.Reader(name).get, lambda: shmcow.describe(name)]\n"
            "for call in calls:\n"
            "    try:\n        call()\n"
            "    except shmcow.NotOwnerError as exc:\n        print(exc)\n"
        )
        run = as_user(65534, code, name)
        lines = run.stdout.splitlines()
        assert len(lines) == 3, run.stdout + run.stderr
        for line in lines:
            assert "mode= and group=" in line


@needs_root
def test_root_writes_what_stays_the_owners(name: str) -> None:
    """Root may publish in a user's store, and gives what it creates to the header's owner."""
    code = "shmcow.Writer(sys.argv[1], initial=1).close()\n"
    run = as_user(65534, code, name)
    assert run.returncode == 0, run.stderr
    with Writer(name) as w:
        w.publish(2)
    assert {(SHM / entry).stat().st_uid for entry in objects(name)} == {65534}
    run = as_user(65534, "w = shmcow.Writer(sys.argv[1]); print(w.snapshot().value, w.publish(3))\n", name)
    assert run.stdout == "2 3\n", run.stderr


# ---- validators ----


def test_validators_refuse_before_anybody_sees(name: str) -> None:
    """A validator's exception becomes ValidationError with its reason; readers go on with the old value."""

    def not_slower(old: Config | None, new: Config) -> None:
        if old is not None and new.timeout > 2 * old.timeout:
            raise RuntimeError("too much at once")

    with Writer(name, type=Config, initial=Config(1.0), validators=[not_slower]) as w:
        for call in (
            lambda: w.publish(Config(5.0)),
            lambda: w.update(lambda _: Config(5.0)),
            lambda: w.patch(timeout=5.0),
            lambda: w.swap(Config(5.0)),
        ):
            with pytest.raises(shmcow.ValidationError, match=r"not_slower.*too much at once"):
                call()
        with pytest.raises(shmcow.ValidationError, match="not_slower"), w.edit() as draft:
            draft.timeout = 5.0
        assert w.version == 1
        assert shmcow.describe(name).counters["refused"] == 5
        assert w.publish(Config(2.0)) == 2


def test_validators_compare_with_what_is_current_under_the_lock(name: str) -> None:
    """The old value is the one that gets replaced, even if another writer published since."""
    olds = []
    with Writer(name, initial=0, validators=[lambda old, new: olds.append((old, new))]) as w, Writer(name) as other:
        other.publish(10)
        w.publish(11)
        other.publish(20)
        w.update(lambda old: old + 1)
    assert olds == [(None, 0), (10, 11), (20, 21)]


def test_ready_made_validators(name: str) -> None:
    """Minimum count, maximum shrink and maximum size refuse with the figures."""
    rules = [validators.min_count(2), validators.max_shrink(0.5), validators.max_size(1000)]
    with Writer(name, initial=list(range(10)), validators=rules) as w:
        for value, reason in [([1], "at least 2"), ([1, 2, 3], "max_shrink"), (["x" * 2000] * 9, "1000")]:
            with pytest.raises(shmcow.ValidationError, match=reason):
                w.publish(value)
        assert w.publish(list(range(5))) == 2


@pytest.mark.parametrize("given", [len, [1], 5])
def test_what_is_no_validator_is_refused_at_once(name: str, given: object) -> None:
    """Wrong `validators=` is a TypeError before a store is made."""
    with pytest.raises(TypeError, match="validator"):
        Writer(name, validators=given)  # type: ignore[arg-type]
    assert objects(name) == []


# ---- schema ----


class Old(msgspec.Struct, frozen=True):
    a: int


class Evolved(msgspec.Struct, frozen=True):
    a: int
    b: int = 5


class Incompatible(msgspec.Struct, frozen=True):
    a: str


class NeedsMore(msgspec.Struct, frozen=True):
    a: int
    c: int


def test_schema_evolves_with_defaults(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A type that reads what is current may take over, once, with a line in the log."""
    with (
        Writer(name, type=Old, initial=Old(1)),
        Writer(name, type=Evolved) as w,
        caplog.at_level(logging.INFO, "shmcow"),
    ):
        assert w.update(lambda old: Evolved(old.a, old.b + 1)) == 2
        w.publish(Evolved(7))
        assert w.snapshot().value == Evolved(7, 5)
    lines = [record.getMessage() for record in caplog.records if "schema changes" in record.getMessage()]
    assert len(lines) == 1
    assert "Old" in lines[0]
    assert "Evolved" in lines[0]


@pytest.mark.parametrize("type_", [Incompatible, NeedsMore])
def test_schema_that_cannot_read_what_is_current_is_refused(name: str, type_: type) -> None:
    """Such a writer changes nothing, and is told what to do."""
    value = type_(*("x" if type_ is Incompatible else 1 for _ in type_.__struct_fields__))
    with Writer(name, type=Old, initial=Old(1)), Writer(name, type=type_) as w:
        with pytest.raises(shmcow.CodecMismatchError, match=r"Old.*cannot be read as .*defaults"):
            w.publish(value)
        assert w.version == 1


def test_untyped_writer_may_not_publish_in_a_typed_store(name: str) -> None:
    """Plain values would lose the check that readers rely on; the message names the type."""
    with Writer(name, type=Old, initial=Old(1)), Writer(name) as w:
        assert w.snapshot().value == {"a": 1}
        with pytest.raises(
            shmcow.CodecMismatchError, match=r"no type to check values with: give Writer\(\.\.\., type="
        ):
            w.publish({"a": 2})
        assert w.version == 1
        assert w.rollback(to=1) == 2


def test_typed_writer_may_take_over_plain_values_that_fit(name: str) -> None:
    """Untyped to typed is an evolution like any other."""
    with Writer(name, initial={"a": 1}), Writer(name, type=Old) as w:
        assert w.publish(Old(2)) == 2


def test_another_codec_is_refused(name: str) -> None:
    """A store keeps its codec; a writer without one takes the store's."""
    with Writer(name, codec=JSON(), initial={"a": 1}):
        with pytest.raises(shmcow.CodecMismatchError, match="'json', found 'msgpack'"):
            Writer(name, codec=MsgPack())
        with pytest.raises(shmcow.CodecMismatchError, match="'json', found 'raw'"):
            Writer(name, codec=Raw())
        with Writer(name) as w:
            w.publish({"a": 2})
            assert w.snapshot().codec == "json"
        with Writer(name, type=Old) as w:
            w.publish(Old(3))
            assert w.snapshot().codec == "json"


class Flags(msgspec.Struct, frozen=True):
    dark: bool = False


def test_value_of_another_class_is_refused(name: str) -> None:
    """An object of another class, or a dict with unknown keys, would decode to nothing but defaults: it is refused."""
    with Writer(name, type=Config, initial=Config(9.0)) as w:
        with pytest.raises(shmcow.ValidationError, match=r"expected a value of the type .*Config, found .*Flags"):
            w.publish(Flags(True))  # type: ignore[arg-type]
        for wrong in (lambda: w.publish({"tiemout": 5}), lambda: w.update(lambda _: {"tiemout": 5})):  # type: ignore[arg-type, return-value]
            with pytest.raises(shmcow.ValidationError, match=r"Config has no field .tiemout.: its fields .*timeout"):
                wrong()
        assert w.publish({"timeout": 5.0}) == 2  # type: ignore[arg-type]
        assert w.snapshot().value.timeout == 5.0
        w.destroy()


def test_update_without_the_stores_type_is_refused_before_its_function_is_called(name: str) -> None:
    """The function would get a plain dict in place of what was published, and fail with an error of its own."""

    class Config(msgspec.Struct, frozen=True):
        timeout: float = 1.0

    called: list[object] = []
    with Writer(name, type=Config, initial=Config()), Writer(name, create=False) as untyped:
        with pytest.raises(shmcow.CodecMismatchError, match="no type to check values with"):
            untyped.update(called.append)
        with pytest.raises(shmcow.CodecMismatchError, match="no type to check values with"), untyped.edit() as draft:
            called.append(draft)
        assert (called, untyped.version) == ([], 1)
