"""``wait_readers`` and ``Writer.wait_unused``: who is behind, who holds, and what is said of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import psutil
import pytest
from processes import SHM, Child, Link, until, value_of
from sleepers import Waiter, until_asleep

from shmcow import (
    ClosedError,
    NotOwnerError,
    Raw,
    Reader,
    StoreDestroyedError,
    StoreNotFoundError,
    WaitTimeoutError,
    Writer,
    wait_readers,
)

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="acts as two users: run the tests as root")


def _reader(link: Link, name: str, become: int = 0) -> None:
    """Do what the parent asks for: "get", "release", "drop", or a version to hold."""
    if become:
        os.setgid(become)
        os.setuid(become)
        processes.die_with_parent()  # setuid() takes it back
    reader = Reader(name)
    held: list[Any] = []
    while True:
        asked = link.recv()
        if asked == "get":
            reader.get()
        elif asked == "release":
            held.clear()
        else:
            held.append(reader.at(asked).hold())
        link.send("done")


def _command(pid: int) -> str:
    program, *arguments = psutil.Process(pid).cmdline()
    return " ".join([os.path.basename(program), *arguments])[:60]


def _late(call: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    """Return what a call says that is not through."""
    with pytest.raises(WaitTimeoutError) as late:
        call(*args, timeout=0, **kwargs)
    return str(late.value)


# ---- wait_readers ----


def test_gate_counts_what_is_held_and_not_what_idle_workers_saw(name: str, spawn: Callable[..., Child]) -> None:
    """An idle worker that saw an older version is not behind, but with ``seen=True`` until its next get()."""
    with Writer(name, initial=value_of(1)) as writer:
        child = spawn(_reader, name)
        child.ask("get")
        writer.publish(value_of(2))
        wait_readers(name, at_least=2, timeout=0)
        assert f"seen last version 1 by pid {child.pid} ({_command(child.pid)}" in _late(
            wait_readers, name, 2, seen=True
        )
        waiter = Waiter(lambda: wait_readers(name, at_least=2, seen=True)).until_asleep()
        child.ask("get")
        assert waiter.result() is None


@pytest.mark.parametrize("seen", [False, True])
def test_gate_waits_for_a_holder(name: str, spawn: Callable[..., Child], seen: bool) -> None:
    """A process that holds an older version is behind until it lets go, also when it has read the newest since."""
    with Writer(name, initial=value_of(1)) as writer:
        child = spawn(_reader, name)
        child.ask(1)
        writer.publish(value_of(2))
        child.ask("get")
        assert f"held version 1 by pid {child.pid} ({_command(child.pid)}" in _late(wait_readers, name, 2, seen=seen)
        waiter = Waiter(lambda: wait_readers(name, at_least=2, seen=seen)).until_asleep()
        child.ask("release")
        assert waiter.result() is None


def test_view_is_a_hold(name: str) -> None:
    """A process is behind while a view of an older version lives, this very process included."""
    with Writer(name, codec=Raw(), initial=b"x") as writer, Reader(name, codec=Raw()) as reader:
        view = reader.get()
        writer.publish(b"y")
        reader.get()
        assert f"held version 1 by pid {os.getpid()} (" in _late(wait_readers, name, 2)
        view.release()
        del view
        wait_readers(name, at_least=2, timeout=0)


def test_killed_holder_is_not_behind(name: str, spawn: Callable[..., Child]) -> None:
    """The kernel drops a holder's markers at its death: the gate opens, before anybody has reaped it."""
    with Writer(name, initial=value_of(1)) as writer:
        child = spawn(_reader, name)
        child.ask(1)
        writer.publish(value_of(2))
        waiter = Waiter(lambda: wait_readers(name, at_least=2)).until_asleep()
        child.kill()
        assert waiter.result() is None
        assert processes.state_of(child.pid) == "Z"


def test_stopped_holder_is_behind(name: str, spawn: Callable[..., Child]) -> None:
    """A holder under SIGSTOP is alive and holds; the message tells its state."""
    with Writer(name, initial=value_of(1)) as writer:
        child = spawn(_reader, name)
        child.ask(1)
        child.stop()
        writer.publish(value_of(2))
        said = _late(wait_readers, name, 2)
        assert f"pid {child.pid} ({_command(child.pid)}" in said
        assert said.endswith(", stopped)")
        child.signal(signal.SIGKILL)


def test_forked_child_is_counted_from_its_own_first_read(name: str, spawn: Callable[..., Child]) -> None:
    """A child that inherited a held snapshot holds nobody up until it reads; then it is a holder of its own."""

    def body(link: Link) -> None:
        link.recv()
        link.send(reader.get()["version"])
        link.recv()
        snapshot.release()
        link.send("released")
        link.recv()

    with Writer(name, initial=value_of(1)) as writer, Reader(name) as reader:
        snapshot = reader.snapshot().hold()
        child = spawn(body)
        writer.publish(value_of(2))
        assert f"pid {os.getpid()} " in _late(wait_readers, name, 2)
        snapshot.release()
        # until: fork() may return in the parent before the child has closed its copies
        until(lambda: not processes.held_by(child.pid, name), "the child closes what it inherited")
        wait_readers(name, at_least=2, timeout=0)
        assert child.ask("get") == 2
        assert f"held version 1 by pid {child.pid} " in _late(wait_readers, name, 2)
        assert child.ask("release") == "released"
        wait_readers(name, at_least=2, timeout=0)


def test_version_that_is_not_published_yet(name: str) -> None:
    """The gate sleeps until the version is there, and says so when it is not."""
    with Writer(name) as writer:
        assert "version 2 of store" in _late(wait_readers, name, 2)
        assert "was not published" in _late(wait_readers, name, 2)
        waiter = Waiter(lambda: wait_readers(name, at_least=2)).until_asleep()
        writer.publish(value_of(1))
        assert "1 is current" in _late(wait_readers, name, 2)
        assert waiter.until_asleep().waits
        writer.publish(value_of(2))
        assert waiter.result() is None
        wait_readers(name, at_least=1)


@pytest.mark.parametrize("end", ["destroyed", "created again", "removed"])
@pytest.mark.parametrize("published", [True, False], ids=["held up", "not published"])
def test_store_that_ends_meanwhile_ends_the_gate(name: str, end: str, published: bool) -> None:
    """A store that was destroyed, replaced or removed has no readers to wait for: that is an error, not success."""
    with Writer(name, initial=value_of(1)) as writer, Reader(name) as reader, reader.snapshot():
        if published:
            writer.publish(value_of(2))
        waiter = Waiter(lambda: wait_readers(name, at_least=2)).until_asleep()
        if end == "removed":
            (SHM / f"shmcow.{name}").unlink()
        else:
            writer.destroy()
        if end == "created again":
            writer.publish(value_of(5))
        with pytest.raises(StoreDestroyedError, match="destroyed or replaced"):
            waiter.result()
        writer.publish(value_of(3))  # sweeps


def test_gate_of_a_store_that_does_not_exist(name: str) -> None:
    """There must be a store: a wrong name is an error at once."""
    with pytest.raises(StoreNotFoundError):
        wait_readers(name, at_least=1)


def test_every_holder_is_named_with_what_it_holds(name: str, spawn: Callable[..., Child]) -> None:
    """Versions held side by side, which the kernel joins into one range, are named as far as they are asked for."""
    with Writer(name, initial=value_of(1), retain=10) as writer:
        for version in range(2, 8):
            writer.publish(value_of(version))
        many, one = sorted((spawn(_reader, name), spawn(_reader, name)), key=lambda child: child.pid)
        for version in (4, 3, 5):
            many.ask(version)
        one.ask(2)
        joined = [line.split()[-2:] for line in _lock_lines(many.pid)]
        assert ["3", "5"] in joined
        said = _late(wait_readers, name, 7)
        assert f"held versions 3 to 5 by pid {many.pid} ({_command(many.pid)}" in said
        assert f", version 2 by pid {one.pid} ({_command(one.pid)}" in said
        assert f"held versions 3 to 4 by pid {many.pid} (" in _late(wait_readers, name, 5)
        assert f"held version 3 by pid {many.pid} (" in _late(wait_readers, name, 4)
        assert str(many.pid) not in _late(wait_readers, name, 3)
        for version, through in ((1, True), (2, False), (3, False), (4, False), (5, False), (6, True)):
            if through:
                writer.wait_unused(version, timeout=0)
            else:
                holder = one if version == 2 else many
                assert f"still held after 0 s: version {version} by pid {holder.pid} (" in _late(
                    writer.wait_unused, version
                )


def _lock_lines(pid: int) -> list[str]:
    folder = Path(f"/proc/{pid}/fdinfo")
    return [line for file in folder.iterdir() for line in file.read_text().splitlines() if line.startswith("lock:")]


def test_only_the_first_few_holders_are_named(name: str, spawn: Callable[..., Child]) -> None:
    """A message about a whole fleet stays readable."""
    with Writer(name, initial=value_of(1)) as writer:
        children = [spawn(_reader, name) for _ in range(7)]
        for child in children:
            child.ask(1)
        writer.publish(value_of(2))
        said = _late(wait_readers, name, 2)
        assert sum(f"pid {child.pid} " in said for child in children) == 5
        assert said.endswith(", 2 more")


# ---- users ----


@needs_root
def test_gate_needs_only_read_permission(name: str, spawn: Callable[..., Child]) -> None:
    """Another user who may read the store can wait for its readers, and is told whom he may not see."""

    def body(link: Link) -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        said = _late(wait_readers, name, 2)
        link.send(said)
        wait_readers(name, at_least=2)
        link.send("through")

    with Writer(name, initial=value_of(1), mode=0o644) as writer, Reader(name) as reader:
        snapshot = reader.snapshot().hold()
        writer.publish(value_of(2))
        child = spawn(body)
        assert "by processes that this user may not look into (root may)" in child.recv()
        snapshot.release()
        assert child.recv() == "through"
        child.done()


@needs_root
def test_gate_without_permission(name: str, spawn: Callable[..., Child]) -> None:
    """A user who may not read the store is told so at once."""

    def body(link: Link) -> None:
        os.setuid(NOBODY)
        with pytest.raises(NotOwnerError):
            wait_readers(name, at_least=1)
        link.send("refused")

    Writer(name, initial=value_of(1)).close()  # else the child would go on with its parent's map
    assert spawn(body).recv() == "refused"


@needs_root
def test_holder_of_another_user_is_waited_for_and_named(name: str, spawn: Callable[..., Child]) -> None:
    """A reader that is another user, with read permission only, holds versions like everybody."""
    with Writer(name, initial=value_of(1), mode=0o644) as writer:
        child = spawn(_reader, name, NOBODY)
        child.ask(1)
        writer.publish(value_of(2))
        assert f"held version 1 by pid {child.pid} ({_command(child.pid)}" in _late(wait_readers, name, 2)
        assert f"version 1 by pid {child.pid} ({_command(child.pid)}" in _late(writer.wait_unused, 1)
        waiters = [Waiter(lambda: wait_readers(name, 2)), Waiter(lambda: writer.wait_unused(1))]
        until_asleep(2)
        child.ask("release")
        assert [waiter.result() for waiter in waiters] == [None, None]


# ---- wait_unused ----


@pytest.mark.parametrize("end", ["release", "kill"])
def test_grace_period_ends_with_the_last_holder(name: str, spawn: Callable[..., Child], end: str) -> None:
    """A version is unused when the last of its holders has let go, or was killed; then it can be reclaimed."""
    with Writer(name, initial=value_of(1), retain=0) as writer:
        children = [spawn(_reader, name) for _ in range(2)]
        for child in children:
            child.ask(1)
        writer.publish(value_of(2))
        waiter = Waiter(lambda: writer.wait_unused(1)).until_asleep()
        for child in children:
            assert f"version 1 by pid {child.pid} ({_command(child.pid)}" in _late(writer.wait_unused, 1)
        for child in children:
            assert waiter.until_asleep().waits
            if end == "kill":
                child.kill()
            else:
                child.ask("release")
        assert waiter.result() is None
        assert processes.versions_of(name) == [2, 1]
        writer.reclaim()
        assert processes.versions_of(name) == [2]


def test_own_hold_counts(name: str) -> None:
    """A version that this very process holds is in use; so is one with a view."""
    with Writer(name, initial=value_of(1)) as writer, Reader(name) as reader:
        snapshot = reader.snapshot()
        with snapshot:
            view = snapshot.data
            writer.publish(value_of(2))
            assert f"by pid {os.getpid()} (" in _late(writer.wait_unused, 1)
        assert f"by pid {os.getpid()} (" in _late(writer.wait_unused, 1)
        view.release()
        writer.wait_unused(1, timeout=0)


def test_value_that_was_decoded_holds_nothing(name: str) -> None:
    """What get() returned is a copy: the grace period does not wait for it."""
    with Writer(name, initial=value_of(1)) as writer, Reader(name) as reader:
        assert processes.version_in(reader.get()) == 1
        writer.publish(value_of(2))
        writer.wait_unused(1, timeout=0)
        assert processes.versions_of(name) == [2, 1]  # it was openable all the while: nobody held it
        assert processes.held_by(os.getpid(), name) == set()


def test_version_that_is_long_gone_is_unused(name: str) -> None:
    """A version that was reclaimed needs no waiting."""
    with Writer(name, initial=value_of(1), retain=0) as writer:
        for version in range(2, 5):
            writer.publish(value_of(version))
        assert processes.versions_of(name) == [4]
        for version in range(1, 4):
            writer.wait_unused(version)


@pytest.mark.parametrize("published", [0, 1, 2])
def test_current_and_unknown_versions_are_refused(name: str, published: int) -> None:
    """Waiting for the current version would never end, nor for one that never was."""
    with Writer(name) as writer:
        for version in range(1, published + 1):
            writer.publish(value_of(version))
        with pytest.raises(ValueError, match=f"unknown: {published} is current"):
            writer.wait_unused(published + 1)
        if published:
            with pytest.raises(ValueError, match="is current: publish a newer one first"):
                writer.wait_unused(published)


def test_close_by_another_thread_ends_the_grace_period(name: str) -> None:
    """Closing the writer ends its wait; the store stays as it is."""
    with Writer(name, initial=value_of(1)) as kept, Reader(name) as reader, reader.snapshot():
        kept.publish(value_of(2))
        writer = Writer(name)
        waiter = Waiter(lambda: writer.wait_unused(1)).until_asleep()
        writer.close()
        with pytest.raises(ClosedError):
            waiter.result()
        with pytest.raises(ClosedError):
            writer.wait_unused(1)


@pytest.mark.parametrize("end", ["destroyed", "created again", "removed"])
def test_store_that_ends_meanwhile_ends_the_grace_period(name: str, end: str) -> None:
    """With the store its versions are gone: that is an error, not the end of the grace period."""
    with Writer(name, initial=value_of(1)) as writer, Writer(name) as other, Reader(name) as reader, reader.snapshot():
        writer.publish(value_of(2))
        waiter = Waiter(lambda: writer.wait_unused(1)).until_asleep()
        if end == "removed":
            (SHM / f"shmcow.{name}").unlink()
        else:
            other.destroy()
        if end == "created again":
            other.publish(value_of(5))
        with pytest.raises(StoreDestroyedError, match="was destroyed, or removed"):
            waiter.result()
        other.publish(value_of(3))  # sweeps
