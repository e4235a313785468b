"""Writers and readers killed at every step: the next writer goes on, and one reclaim leaves nothing but what it should.

The victims run a build with kill points (killpoints.h, victims.py); who looks at what they left runs the product.
"""

from __future__ import annotations

import collections
import signal
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import processes
import pytest
from processes import Child, Link, value_of, version_in
from victims import CODECS, Fate, Victims, steps_in_sources

from shmcow import Reader, Snapshot, VersionGoneError, Writer, describe

RETAIN = 2
GENERATIONS = 64

# What the tests of this file add up; the last test prints it.
killed_at: collections.Counter[str] = collections.Counter()
frozen_at: collections.Counter[str] = collections.Counter()
reached: collections.Counter[str] = collections.Counter()
kills: collections.Counter[str] = collections.Counter()


def _count(what: str, fate: Fate) -> None:
    assert fate.exit == -signal.SIGKILL, fate
    assert fate.steps[-1] == fate.fatal
    kills[what] += 1
    killed_at[fate.fatal] += 1
    reached.update(fate.steps)


class Scene:
    """A store, a writer and a reader that live through all kills, and what must be true after each of them."""

    def __init__(self, name: str, victims: Victims, codec: str = "", **settings: Any) -> None:
        self.name = name
        self.victims = victims
        self.codec = codec
        how = {"codec": CODECS[codec]()} if codec else {}
        self.writer = Writer(name, **how, **{"retain": RETAIN, **settings})
        self.reader = Reader(name, **how)
        self.at_rest: list[int] = []  # how far the versions of a store at rest are behind the current one
        self.descriptors: list[str] | None = None

    def publish(self, n: int = 1) -> int:
        for _ in range(n):
            version = self.writer.version + 1
            assert self.writer.publish(value_of(version), expected=version - 1) == version
        return self.writer.version

    def settle(self) -> None:
        """Take the present state as what one publish and one reclaim must always lead to."""
        self.writer.reclaim()
        current = self.writer.version
        self.at_rest = [current - version for version in processes.versions_of(self.name)]
        assert version_in(self.reader.get()) > 0
        self.descriptors = processes.shm_descriptors()

    def job(self, job: str, **arguments: Any) -> Fate:
        if self.codec:
            arguments["codec"] = self.codec
        if job in ("publish", "update"):
            arguments["version"] = self.writer.version + 1
        return self.victims.run(job, self.name, **arguments)

    def check_readers(self, before: int, steps: list[str]) -> None:
        """Right after a kill: everybody reads the old version or the new one, whole, as the flip decided."""
        snapshot = self.reader.snapshot()
        assert snapshot.version == before + ("publish.flipped" in steps)
        assert version_in(self.reader.get()) > 0
        assert self.reader.problem is None
        assert version_in(
            Reader(self.name, codec=CODECS[self.codec]()).get() if self.codec else Reader(self.name).get()
        )

    def check_next_writer(self) -> None:
        """The next writer publishes, one reclaim leaves exactly the retained versions, and nothing else is left."""
        current = self.publish()
        self.writer.reclaim()
        assert [current - version for version in processes.versions_of(self.name)] == self.at_rest
        processes.assert_at_rest(self.name)
        assert version_in(self.reader.get()) == self.reader.snapshot().version == current
        for behind in self.at_rest:
            assert version_in(self.reader.at(current - behind).value) > 0
        assert processes.shm_descriptors() == self.descriptors
        assert self.victims.descriptors() == []

    def sweep(self, what: str, job: str, prepare: Callable[[], Any] = lambda: None, **arguments: Any) -> int:
        """Kill a job at each of its steps, one after the other. -> how many there were"""
        at = 0
        while True:
            prepare()
            before = self.writer.version
            at += 1
            fate = self.job(job, at=at, **arguments)
            if fate.exit == 0:
                return at - 1
            _count(what, fate)
            self.check_readers(before, fate.steps)
            self.check_next_writer()


@pytest.fixture
def scene(name: str, killer: Victims) -> Iterator[Callable[..., Scene]]:
    """Make the scene, and destroy its store afterwards."""
    scenes: list[Scene] = []

    def make(codec: str = "", **settings: Any) -> Scene:
        scenes.append(Scene(name, killer, codec, **settings))
        return scenes[-1]

    yield make
    while scenes:
        scenes.pop().writer.destroy()
        assert processes.objects_of(name) == set()


def _holder(link: Link, name: str, versions: list[int]) -> None:
    """Hold versions until told to end; on request, hold one more, or read them all again from shared memory."""
    reader = Reader(name)
    held: dict[int, tuple[Snapshot[Any], memoryview]] = {}
    for version in versions:
        snapshot = reader.at(version)
        held[version] = (snapshot.hold(), snapshot.data)
    link.send(sorted(held))
    while (asked := link.recv()) != "end":
        if asked == "read":
            link.send([v for v, (_, data) in held.items() if version_in(msgspec.msgpack.decode(data)) != v])
        else:
            snapshot = reader.at(asked)
            held[asked] = (snapshot.hold(), snapshot.data)
            link.send(asked)


# ---- writers ----


@pytest.mark.parametrize("codec", ["", "thirds"])
def test_writer_killed_at_each_step_of_publish(scene: Callable[..., Scene], codec: str) -> None:
    """A writer killed between any two steps of publish, with one segment a version or three, costs nothing."""
    stage = scene(codec)
    stage.publish(5)
    stage.settle()
    assert stage.at_rest == [0, 1, 2]
    rounds = 1 if codec else 3
    print([stage.sweep("publish", "publish") for _ in range(rounds)])


def test_writer_killed_while_an_old_version_is_held(scene: Callable[..., Scene], spawn: Callable[..., Child]) -> None:
    """The same with a version that a reader holds: it is judged again at each publish, and stays."""
    stage = scene()
    held = stage.publish(3)
    holder = spawn(_holder, stage.name, [held])
    assert holder.recv() == [held]
    stage.publish(3)
    stage.settle()
    at = 0
    while True:
        before, at = stage.writer.version, at + 1
        fate = stage.job("publish", at=at)
        if fate.exit == 0:
            break
        _count("publish", fate)
        stage.check_readers(before, fate.steps)
        current = stage.publish()
        stage.writer.reclaim()
        assert processes.versions_of(stage.name) == [current, current - 1, current - 2, held]
        processes.assert_at_rest(stage.name)
        assert holder.ask("read") == []
    holder.send("end")
    holder.done()


def test_writer_killed_with_a_full_table(scene: Callable[..., Scene]) -> None:
    """The same when each publish must give up a retained version to have a generation."""
    stage = scene(retain=1000)
    stage.publish(GENERATIONS)
    stage.settle()
    assert len(stage.at_rest) == GENERATIONS
    stage.sweep("publish", "publish")


def test_writer_killed_while_it_forces_out_a_held_version(
    scene: Callable[..., Scene], spawn: Callable[..., Child]
) -> None:
    """The same when the table is full of held versions, so that each publish takes the oldest one's names."""
    stage = scene(retain=1000)
    last = stage.publish(GENERATIONS)
    holder = spawn(_holder, stage.name, list(range(1, last + 1)))
    assert len(holder.recv()) == GENERATIONS
    at = 0
    while True:
        while True:
            table = describe(stage.name).generations
            for generation in table:
                if not generation.marked:
                    holder.ask(generation.version)
            if len(table) == GENERATIONS:
                break
            stage.publish()
        before, at = stage.writer.version, at + 1
        forced = describe(stage.name).counters["forced"]
        fate = stage.job("publish", at=at)
        assert describe(stage.name).counters["forced"] == forced + ("drop.unlink" in fate.steps)
        if fate.exit == 0:
            break
        _count("publish", fate)
        stage.check_readers(before, fate.steps)
        assert stage.publish() == processes.versions_of(stage.name)[0]
        stage.writer.reclaim()
        processes.assert_at_rest(stage.name)
        assert holder.ask("read") == []
    assert "drop.unlink" in fate.steps
    holder.send("end")
    holder.done()


def test_writer_killed_while_it_keeps_the_quota(scene: Callable[..., Scene]) -> None:
    """The same when max_total_bytes makes each publish give up a retained version first."""
    stage = scene(retain=1000, max_total_bytes=5 * 4096)
    stage.publish(8)
    stage.settle()
    assert stage.at_rest == [0, 1, 2, 3, 4]
    stage.sweep("publish", "publish")


def test_writer_killed_at_each_step_of_update(scene: Callable[..., Scene]) -> None:
    """A writer killed in update either published or did not."""
    stage = scene()
    stage.publish(5)
    stage.settle()
    stage.sweep("update", "update")


@pytest.mark.parametrize("codec", ["", "thirds"])
def test_writer_killed_at_each_step_of_rollback(scene: Callable[..., Scene], codec: str) -> None:
    """A writer killed in rollback, whose version shares segments with another, takes no segment from it."""
    stage = scene(codec)
    stage.publish(5)
    stage.settle()
    stage.sweep("rollback", "rollback")


def test_writer_killed_at_each_step_of_reclaim(scene: Callable[..., Scene]) -> None:
    """A writer killed while it reclaims four versions at once leaves the rest to the next."""
    stage = scene("thirds", retain=0)
    stage.publish(2)
    stage.settle()

    def prepare() -> None:
        Writer(stage.name, codec=CODECS["thirds"](), retain=4).close()
        stage.publish(4)

    # The victim sets retain to 0 again: what it does not reclaim, the next writer must.
    assert stage.sweep("reclaim", "reclaim", prepare, retain=0) > 20


@pytest.mark.parametrize("codec", ["", "thirds"])
def test_recovery_killed_at_each_step(scene: Callable[..., Scene], codec: str) -> None:
    """A writer killed while it recovers from a writer killed in publish: the third one finishes."""
    stage = scene(codec)
    stage.publish(5)
    stage.settle()
    first, repaired = 0, 0
    killed_first: collections.Counter[str] = collections.Counter()
    while True:
        first += 1
        again = 0
        while True:
            before = stage.writer.version
            fate = stage.job("publish", at=first)
            if fate.exit == 0:
                break
            killed_first[fate.fatal] += again == 0
            if killed_first[fate.fatal] > 2:  # the first and second of three segments show what there is
                stage.check_next_writer()
                break
            _count("publish", fate)
            again += 1
            # Attaching recovers: `early` counts from before it. Its own publish is of no interest here.
            second = stage.job("publish", at=again, early=True)
            recovering = "publish.list" not in second.steps
            if recovering:
                _count("recovery", second)
            stage.check_readers(before, fate.steps + (second.steps if not recovering else []))
            stage.check_next_writer()
            if not recovering:
                break
            repaired += "recover.next" in second.steps
        if fate.exit == 0:
            break
    print(f"{kills['recovery']} kills in recovery so far; {repaired} came after a generation was repaired")
    assert repaired > 0


def test_writer_frozen_at_each_step_is_waited_for(scene: Callable[..., Scene]) -> None:
    """A writer frozen at any step keeps the lock, readers go on, and when it wakes it finishes what it began."""
    stage = scene(lock_timeout=0.01)
    stage.publish(5)
    stage.settle()
    at = 0
    while True:
        before, at = stage.writer.version, at + 1
        fate = stage.job("publish", at=at, number=signal.SIGSTOP)
        if fate.exit == 0:
            break
        frozen_at[fate.fatal] += 1
        stage.check_readers(before, fate.steps)
        with pytest.raises(TimeoutError, match=f"pid {fate.pid} "):
            stage.writer.publish(value_of(before + 1))
        stage.check_readers(before, fate.steps)
        assert stage.victims.go_on(fate.pid).result == before + 1
        stage.check_next_writer()


# ---- readers ----


def test_readers_killed_at_each_step_of_hold(scene: Callable[..., Scene]) -> None:
    """Readers killed between any two steps of hold, two hundred times: the marker goes with them."""
    stage = scene()
    stage.publish(5)
    stage.settle()
    for k in range(201):
        step = ("hold.marked", "hold.copied", "hold.held")[k % 3]
        fate = stage.victims.run("get", stage.name, at=1, step=step)
        _count("hold", fate)
        assert fate.fatal == step
        assert not any(generation.marked for generation in describe(stage.name).generations)
        if k % 3 == 2:
            stage.check_next_writer()


def test_readers_killed_while_holding(scene: Callable[..., Scene]) -> None:
    """Two hundred readers killed while they hold: nobody's death keeps a version, and nobody's takes another's hold."""
    stage = scene()
    stage.publish(5)
    stage.settle()
    for _ in range(10):
        held = stage.writer.version
        readers = [stage.victims.run("hold", stage.name, linger=True) for _ in range(20)]
        assert {reader.result for reader in readers} == {held}
        reached.update(step for reader in readers for step in reader.steps)
        current = stage.publish(RETAIN + 2)
        assert processes.versions_of(stage.name) == [current, current - 1, current - 2, held]
        for reader in readers[:-1]:
            assert stage.victims.kill(reader.pid).exit == -signal.SIGKILL
            kills["holding"] += 1
        stage.writer.reclaim()
        assert held in processes.versions_of(stage.name)  # the last one still holds it
        assert stage.reader.at(held).value["version"] == held
        assert stage.victims.kill(readers[-1].pid).exit == -signal.SIGKILL
        kills["holding"] += 1
        assert not any(generation.marked for generation in describe(stage.name).generations)
        stage.check_next_writer()


@pytest.mark.parametrize("step", ["hold.marked", "hold.copied"])
def test_reader_frozen_in_hold_does_not_miss_its_version(scene: Callable[..., Scene], step: str) -> None:
    """A reader frozen between mark and map keeps its version from being reclaimed, and wakes to it, whole."""
    stage = scene(retain=0)
    held = stage.publish(3)
    stage.settle()
    fate = stage.victims.run("hold", stage.name, at=1, step=step, number=signal.SIGSTOP)
    frozen_at[fate.fatal] += 1
    current = stage.publish(3)
    assert processes.versions_of(stage.name) == [current, held]
    assert stage.victims.go_on(fate.pid).result == held
    stage.check_next_writer()


@pytest.mark.parametrize("step", ["hold.marked", "hold.copied"])
def test_reader_frozen_in_hold_whose_version_is_forced_out_takes_the_newest(
    scene: Callable[..., Scene], spawn: Callable[..., Child], step: str
) -> None:
    """A reader frozen in hold for so long that its generation was built anew takes the version that is current then."""
    stage = scene(retain=1000)
    last = stage.publish(GENERATIONS - 1)
    holder = spawn(_holder, stage.name, list(range(1, last)))
    assert len(holder.recv()) == last - 1
    fate = stage.victims.run("hold", stage.name, at=1, step=step, number=signal.SIGSTOP)
    frozen_at[fate.fatal] += 1
    while last in processes.versions_of(stage.name):
        holder.ask(stage.publish())  # whoever is held, the oldest must go
    newest = stage.publish()
    assert stage.victims.go_on(fate.pid).result == newest
    assert holder.ask("read") == []
    holder.send("end")
    holder.done()


def test_reader_that_comes_while_its_version_is_judged(scene: Callable[..., Scene]) -> None:
    """A version is held again, or is gone for good, however reader and reclaim interleave: never half of both."""
    stage = scene(retain=1)
    stage.publish(4)
    stage.settle()
    for step in ("judge.condemned", "judge.doomed", "drop.unlink", "py.unlink", "py.unlinked", "drop.free"):
        old = stage.writer.version - 1
        writer = stage.victims.run("publish", stage.name, version=old + 2, at=1, step=step, number=signal.SIGSTOP)
        frozen_at[writer.fatal] += 1
        # CONDEMNED: the reader looks a few times, and then says that it is gone, but holds nothing.
        with pytest.raises(VersionGoneError):
            stage.reader.at(old)
        assert version_in(stage.reader.get()) == old + 2
        assert stage.victims.go_on(writer.pid).result == old + 2
        with pytest.raises(VersionGoneError):
            stage.reader.at(old)
        stage.check_next_writer()


# ---- the sum ----


def test_every_step_was_killed_at() -> None:
    """Every step that the C code has outside create and destroy killed somebody; the figures are those asked for."""
    if not kills:
        pytest.skip("adds up the other tests of this file: run them all")
    print("\nstep                 killed  frozen  reached")
    for step in sorted(killed_at | frozen_at | reached):
        print(f"{step:20} {killed_at[step]:6} {frozen_at[step]:7} {reached[step]:8}")
    print("kills: " + ", ".join(f"{n} in {what}" for what, n in sorted(kills.items())))
    wanted = {step for step in steps_in_sources() if not step.startswith(("create.", "destroy."))}
    assert wanted - set(killed_at) == set()
    assert kills["publish"] >= 200
    assert kills["hold"] + kills["holding"] >= 400
