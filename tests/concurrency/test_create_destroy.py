"""Create and destroy, at once from several processes and killed between every two steps: one whole store, or none."""

from __future__ import annotations

import collections
import signal
from collections.abc import Callable
from typing import Any

import processes
import pytest
from processes import Child, Link, value_of, version_in
from victims import Victims, steps_in_sources

from shmcow import Reader, ShmcowError, StoreDestroyedError, StoreNotFoundError, Writer, destroy

ROUNDS = 60

killed_at: collections.Counter[str] = collections.Counter()


def _creating(link: Link, name: str) -> None:
    """Create (or attach) at each word of the parent, and say which it was."""
    while (who := link.recv()) != "end":
        writer = Writer(name, initial=value_of(who))
        link.send((writer.created, writer.version, version_in(Reader(name).get())))
        writer.close()


@pytest.mark.parametrize("n", [2, 4])
def test_simultaneous_creators_make_one_store(name: str, spawn: Callable[..., Child], n: int) -> None:
    """Of several processes that create a store at once, one does; all use it, and nothing is left of the others."""
    creators = [spawn(_creating, name) for _ in range(n)]
    firsts: collections.Counter[int] = collections.Counter()
    for _ in range(ROUNDS):
        for who, creator in enumerate(creators, 1):
            creator.send(who)
        answers = [creator.recv() for creator in creators]
        assert [created for created, _, _ in answers].count(True) == 1
        assert {version for _, version, _ in answers} == {1}
        values = {value for _, _, value in answers}
        assert len(values) == 1
        firsts.update(values)
        writer = Writer(name)  # whoever attaches next sweeps what the losers left
        assert not writer.created
        processes.assert_at_rest(name)
        writer.destroy()
        assert processes.objects_of(name) == set()
    print(f"{ROUNDS} rounds of {n} creators; whose initial value won: {dict(firsts)}")
    for creator in creators:
        creator.send("end")
        creator.done()


def _churning(link: Link, name: str, rounds: int) -> None:
    """Create, publish and destroy, as fast as possible, in the midst of others who do the same."""
    done: collections.Counter[str] = collections.Counter()
    link.send("ready")
    link.recv()
    for k in range(rounds):
        try:
            writer = Writer(name, initial=value_of(1), lock_timeout=60)
            version = writer.publish(value_of(k + 2))
            done["published"] += 1
            assert version >= 1
            writer.destroy()
            done["destroyed"] += 1
        except StoreDestroyedError:  # somebody else destroyed it first
            done["destroyed by another"] += 1
    link.send(done)


def test_creators_and_destroyers_at_once_leave_nothing(name: str, spawn: Callable[..., Child]) -> None:
    """Processes that create, publish and destroy one name at once meet no other error, and leave nothing."""
    children = [spawn(_churning, name, 100) for _ in range(4)]
    for child in children:
        assert child.recv() == "ready"
    for child in children:
        child.send("go")
    done: collections.Counter[str] = collections.Counter()
    for child in children:
        done.update(child.recv())
    print(f"4 processes: {dict(done)}")
    assert done["destroyed"] > 0
    for child in children:
        child.done()
    writer = Writer(name, initial=value_of(1))
    processes.assert_at_rest(name)
    writer.destroy()
    assert processes.objects_of(name) == set()


def _sweep(
    victims: Victims, name: str, job: str, prepare: Callable[[], Any], check: Callable[[list[str]], None], **more: Any
) -> list[str]:
    """Kill a job at each of its steps; afterwards check, attach, and see that no orphan is left. -> the steps"""
    at = 0
    while True:
        at += 1
        prepare()
        fate = victims.run(job, name, at=at, early=True, **more)
        if fate.exit == 0:
            destroy_if_there(name)
            return fate.steps
        assert fate.exit == -signal.SIGKILL
        killed_at[fate.fatal] += 1
        check(fate.steps)
        writer = Writer(name, initial=value_of(1), lock_timeout=0)
        assert writer.version >= 1
        assert version_in(Reader(name).get()) > 0
        processes.assert_at_rest(name)
        assert writer.publish(value_of(writer.version + 1)) == writer.version
        processes.assert_at_rest(name)
        writer.destroy()
        assert processes.objects_of(name) == set()
        assert victims.descriptors() == []


def destroy_if_there(name: str) -> None:
    try:
        destroy(name)
    except ShmcowError:
        pass


def test_creator_killed_at_each_step(name: str, killer: Victims) -> None:
    """A creator killed between any two steps made a whole store or none, and the next writer leaves no orphan."""

    def check(steps: list[str]) -> None:
        linked = "create.linked" in steps
        assert (f"shmcow.{name}" in processes.objects_of(name)) == linked
        reader = Reader(name, default=None)
        value = reader.get()
        assert (value is not None) == ("publish.flipped" in steps)
        if value is not None:
            assert version_in(value) == 1
        elif linked:
            with pytest.raises(ShmcowError, match="no version has been published"):
                reader.snapshot()
        else:
            with pytest.raises(StoreNotFoundError):
                reader.snapshot()

    steps = _sweep(killer, name, "create", lambda: None, check, version=1)
    print(steps)
    assert {"create.link", "create.linked", "py.created", "create.sealed", "publish.flipped"} <= set(steps)


def test_destroyer_killed_at_each_step(name: str, killer: Victims) -> None:
    """A destroyer killed between any two steps: the store is as it was or is gone, and readers keep their value."""
    reader = Reader(name)

    def prepare() -> None:
        writer = Writer(name, retain=3)
        for version in range(1, 5):
            writer.publish(value_of(version))
        reader.refresh()
        assert version_in(reader.get()) == 4

    def check(steps: list[str]) -> None:
        reader.refresh()
        assert version_in(reader.get()) == 4  # destroyed or not: the last good value
        if "destroy.ended" in steps:
            assert isinstance(reader.problem, StoreDestroyedError)
            with pytest.raises((StoreDestroyedError, StoreNotFoundError)):
                Reader(name).get()
        else:
            assert reader.problem is None
            assert version_in(Reader(name).get()) == 4

    steps = _sweep(killer, name, "destroy", prepare, check)
    print(steps)
    assert {"destroy.end", "destroy.ended", "drop.unlink", "drop.free", "py.unlinked"} <= set(steps)


def test_reader_finds_the_new_store_after_a_killed_destroyer(name: str, killer: Victims) -> None:
    """A reader that looked while a destroyed store still had its name finds the next store as soon as any other."""
    Writer(name, initial=value_of(1))
    reader = Reader(name)
    assert version_in(reader.get()) == 1
    fate = killer.run("destroy", name, at=1, step="destroy.ended")
    assert fate.exit == -signal.SIGKILL
    for _ in range(20):
        assert version_in(reader.get()) == 1
    writer = Writer(name, initial=value_of(2))
    assert 2 in [version_in(reader.get()) for _ in range(9)]
    writer.destroy()


def test_finisher_killed_at_each_step(name: str, killer: Victims) -> None:
    """A writer killed while it finishes what a killed destroyer began, and creates anew: the third one does both."""

    def prepare() -> None:
        writer = Writer(name, retain=3)
        for version in range(1, 4):
            writer.publish(value_of(version))
        del writer
        fate = killer.run("destroy", name, at=1, step="destroy.ended")
        assert fate.exit == -signal.SIGKILL

    def check(steps: list[str]) -> None:
        value = Reader(name, default=None).get()
        assert (value is not None) == ("publish.flipped" in steps)

    steps = _sweep(killer, name, "create", prepare, check, version=1)
    print(steps)
    assert steps.index("destroy.ended") < steps.index("create.link") < steps.index("publish.flipped")


@pytest.mark.parametrize("step", ["create.link", "py.created", "create.sealed"])
def test_creator_frozen_while_another_creates_and_sweeps(name: str, killer: Victims, step: str) -> None:
    """A creator frozen before its header has a name: another creates and sweeps; the first wakes and joins it."""
    fate = killer.run("create", name, at=1, step=step, number=signal.SIGSTOP, version=1)
    writer = Writer(name, initial=value_of(1))
    writer.publish(value_of(2))
    assert writer.created
    assert killer.go_on(fate.pid).result is False
    assert writer.publish(value_of(3)) == 3
    writer.reclaim()
    processes.assert_at_rest(name)
    writer.destroy()
    assert processes.objects_of(name) == set()


@pytest.mark.parametrize("step", ["create.link", "py.created", "create.sealed"])
def test_creator_frozen_while_another_creates_and_destroys(name: str, killer: Victims, step: str) -> None:
    """The same, but the other's store is destroyed before the first wakes: it makes a whole one, with all objects."""
    fate = killer.run("create", name, at=1, step=step, number=signal.SIGSTOP, version=1)
    Writer(name, initial=value_of(1)).destroy()
    assert killer.go_on(fate.pid).result is True
    writer = Writer(name)
    assert not writer.created
    assert version_in(Reader(name).get()) == 1
    assert writer.publish(value_of(2)) == 2
    processes.assert_at_rest(name)
    writer.destroy()
    assert processes.objects_of(name) == set()


def test_every_step_of_create_and_destroy_was_killed_at() -> None:
    """Every step that the C code has in create and destroy killed somebody."""
    if not killed_at:
        pytest.skip("adds up the other tests of this file: run them all")
    print("\nstep                 killed")
    for step, n in sorted(killed_at.items()):
        print(f"{step:20} {n:6}")
    assert {step for step in steps_in_sources() if step.startswith(("create.", "destroy."))} - set(killed_at) == set()
