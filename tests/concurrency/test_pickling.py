"""Pickling: a Reader goes by name, a Snapshot as the very version that its sender holds, through real pools."""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import msgspec
import processes
import pytest
from processes import Child, Link, value_of, version_in

import shmcow
from shmcow import MsgPack, Raw, Reader, Snapshot, Writer
from shmcow.store import attach

# Newer Pythons warn of fork beside threads: a pool has threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

METHODS = ["fork", "spawn", "forkserver"]
WAYS = ["map", "imap", "imap_unordered", "apply_async", "submit", "executor map"]
WORKERS = 2
NOBODY = 65534


class Config(msgspec.Struct, frozen=True):
    version: int
    cells: tuple[int, ...]


# ---- what runs in the workers ----

_decodes: Counter[tuple[str, int]] = Counter()
_reader: Reader[Any] | None = None


def count(value: dict[str, Any]) -> dict[str, Any]:
    """Count what this process decodes: a transform."""
    _decodes[value["store"], value["version"]] += 1
    return value


class CountingCodec(MsgPack[Any]):
    """Counts what this process decodes."""

    def decode(self, view: memoryview) -> Any:
        return count(super().decode(view))


def transform_and_raise(_: Any) -> Any:
    raise RuntimeError("not here")


def compute(task: tuple[Snapshot[Any], int]) -> dict[str, Any]:
    """Compute on a snapshot; tell what this process did for it."""
    snapshot, n = task
    store = attach(snapshot.store)
    processes.until(lambda: store.version > snapshot.version + 5, "newer versions are published")
    value = snapshot.value
    if isinstance(value, memoryview):
        found = int(value[0]) if value.readonly and len(set(value)) == 1 else 0
    else:
        found = version_in({"version": value.version, "cells": value.cells} if isinstance(value, Config) else value)
    return {
        "n": n,
        "pid": os.getpid(),
        "version": snapshot.version,
        "found": found,
        "attached": snapshot._store.serial,
        "decodes": _decodes[snapshot.store, snapshot.version],
        "held": processes.held_by(os.getpid(), snapshot.store),
    }


def use(snapshot: Snapshot[Any]) -> tuple[int, Any]:
    return snapshot.version, snapshot.value


def look_at(snapshot: Snapshot[Any]) -> tuple[Any, ...]:
    """Tell what can be had of a snapshot without using it."""
    return snapshot.store, snapshot.version, snapshot.held, repr(snapshot), pickle.dumps(snapshot)


def block(started: str, gate: str) -> int:
    """Keep the worker busy until the gate's file appears."""
    Path(f"{started}.{os.getpid()}").touch()
    processes.until(lambda: os.path.exists(gate), "the gate opens")
    return os.getpid()


def block_with(snapshot: Snapshot[Any], started: str, gate: str) -> tuple[int, int]:
    return block(started, gate), snapshot.version


def set_reader(reader: Reader[Any]) -> None:
    global _reader
    _reader = reader


def read_global(_: int) -> tuple[int, Any]:
    assert _reader is not None
    return os.getpid(), _reader.get()


def read_all(things: dict[str, Any]) -> list[Any]:
    return [things["reader"].get(), *(reader.get() for reader in things["more"])]


def receive_all(pickles: list[bytes]) -> tuple[int, int, int]:
    """Receive many snapshots, one after the other; tell the descriptors at worst, what is held, and how many right."""
    worst, right = 0, 0
    for data in pickles:
        snapshot = pickle.loads(data)
        right += version_in(snapshot.value) == snapshot.version
        del snapshot
        worst = max(worst, len(processes.shm_descriptors()))
    holds = [(file, at) for file, at in processes.locks_of("self") if file.endswith(".holds") and at < 1 << 62]
    return worst, len(holds), right


def own_pid(_: int) -> int:
    return os.getpid()


def lives(_: int) -> str:
    return "lives"


# ---- the pools: two workers each, which outlive the tests, as a server's would ----


class Pools:
    """One Pool and one ProcessPoolExecutor for each start method, made when first asked for."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, bool], Any] = {}

    def get(self, method: str, executor: bool) -> Any:
        key = (method, executor)
        if key not in self._made:
            context = multiprocessing.get_context(method)
            if executor:
                pool: Any = concurrent.futures.ProcessPoolExecutor(WORKERS, mp_context=context)
                list(pool.map(own_pid, range(4 * WORKERS)))
            else:
                pool = context.Pool(WORKERS)
            self._made[key] = pool
        return self._made[key]

    def end(self) -> None:
        while self._made:
            (_, executor), pool = self._made.popitem()
            if executor:
                pool.shutdown()
            else:
                pool.close()
                pool.join()
        del pool
        gc.collect()  # semaphores first: the tracker unlinks what is left of them
        forkserver._forkserver._stop()  # type: ignore[attr-defined]
        resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def pools() -> Iterator[Pools]:
    """All pools of this file, started before any test so that workers inherit nothing that a test holds."""
    made = Pools()
    for method in METHODS:
        for executor in (False, True):
            made.get(method, executor)
    yield made
    made.end()


def pids_of(pool: Any) -> set[int]:
    return set(pool._processes) if hasattr(pool, "submit") else {worker.pid for worker in pool._pool}


def run(pools: Pools, method: str, way: str, function: Callable[[Any], Any], tasks: list[Any]) -> list[Any]:
    """Run a function over tasks, in one of the ways that pools offer."""
    pool = pools.get(method, way in ("submit", "executor map"))
    if way == "submit":
        futures = [pool.submit(function, task) for task in tasks]
        return [future.result(processes.WATCHDOG) for future in futures]
    if way == "executor map":
        return list(pool.map(function, tasks, timeout=processes.WATCHDOG, chunksize=3))
    if way == "apply_async":
        waiting = [pool.apply_async(function, (task,)) for task in tasks]
        return [one.get(processes.WATCHDOG) for one in waiting]
    if way == "map":
        return pool.map_async(function, tasks).get(processes.WATCHDOG)
    answers = getattr(pool, way)(function, tasks)
    return [answers.next(processes.WATCHDOG) for _ in tasks]


def assert_idle_workers_hold_nothing(pools: Pools, method: str, name: str) -> None:
    for executor in (False, True):
        for pid in pids_of(pools.get(method, executor)):
            processes.until(lambda pid=pid: not processes.held_by(pid, name), f"{pid} lets go")


class Publishing:
    """A thread that publishes newer and newer versions."""

    def __init__(self, writer: Writer[Any], value: Callable[[int], Any]) -> None:
        self._writer, self._value = writer, value
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._end.wait(0.001):
            self._writer.publish(self._value(self._writer.version + 1))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def kinds(name: str, kind: str) -> tuple[dict[str, Any], dict[str, Any], Callable[[int], Any]]:
    """Return a Writer's arguments, a Reader's, and a value for each version."""
    if kind == "raw":
        return {"codec": Raw()}, {"codec": Raw()}, lambda version: bytes([version % 256]) * 5000
    if kind == "typed":
        return {"type": Config}, {"type": Config}, lambda version: Config(version, (version,) * 64)
    if kind == "codec":
        return {"codec": CountingCodec()}, {"codec": CountingCodec()}, lambda v: {"store": name, **value_of(v)}
    return {}, {"transform": count}, lambda v: {"store": name, **value_of(v)}


# ---- one version for all jobs ----


def compute_while_publishing(pools: Pools, name: str, method: str, way: str, kind: str) -> None:
    for_writer, for_reader, value = kinds(name, kind)
    writer: Writer[Any] = Writer(name, retain=0, initial=value(1), **for_writer)
    for n in range(2, 5):
        writer.publish(value(n))
    reader: Reader[Any] = Reader(name, **for_reader)
    with reader.snapshot() as snap:
        held = snap.version
        with Publishing(writer, value):
            answers = run(pools, method, way, compute, [(snap, n) for n in range(30)])
        assert held in processes.versions_of(name)
        assert_idle_workers_hold_nothing(pools, method, name)
    assert sorted(answer["n"] for answer in answers) == list(range(30))
    for answer in answers:
        assert answer["version"] == held
        assert answer["found"] == held % 256, "a job computed on another version, or a torn one"
        assert answer["held"] == {held}
    attaches = {(answer["pid"], answer["attached"]) for answer in answers}
    assert len(attaches) == len({pid for pid, _ in attaches}), "attached more than once"
    assert {answer["decodes"] for answer in answers} == ({1} if kind in ("codec", "transform") else {0})
    del snap
    reader.close()  # its current version may be held: of a raw one the value is a view
    writer.reclaim()
    assert held not in processes.versions_of(name)
    processes.assert_at_rest(name)
    assert writer.version > held + 5
    writer.destroy()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", METHODS)
def test_every_job_computes_on_the_held_version(pools: Pools, name: str, method: str, way: str) -> None:
    """Newer versions are published meanwhile: the jobs see the sent one, decoded and attached once in each process."""
    compute_while_publishing(pools, name, method, way, "transform")


@pytest.mark.parametrize("kind", ["raw", "typed", "codec"])
@pytest.mark.parametrize("method", METHODS)
def test_jobs_compute_on_values_of_any_codec(pools: Pools, name: str, method: str, kind: str) -> None:
    """Views into shared memory, typed values and a codec of one's own arrive like plain values."""
    compute_while_publishing(pools, name, method, "map" if method != "spawn" else "executor map", kind)


@pytest.mark.parametrize("way", ["imap_unordered", "submit"])
def test_several_versions_are_decoded_once_in_each_process(pools: Pools, name: str, way: str) -> None:
    """Tasks on several held versions, interleaved: each worker decodes each version once."""
    _, for_reader, value = kinds(name, "transform")
    writer: Writer[Any] = Writer(name, retain=0, initial=value(1))
    reader: Reader[Any] = Reader(name, **for_reader)
    held = []
    for n in range(2, 8):
        held.append(reader.snapshot().hold())
        writer.publish(value(n))
    for n in range(8, 14):
        writer.publish(value(n))
    answers = run(pools, "spawn", way, compute, [(snap, n) for n in range(10) for snap in held])
    assert {answer["version"] for answer in answers} == set(range(1, 7))
    assert all(answer["found"] == answer["version"] for answer in answers)
    assert {answer["decodes"] for answer in answers} == {1}
    assert len({(a["pid"], a["attached"]) for a in answers}) == len({a["pid"] for a in answers})
    for snap in held:
        snap.release()
    assert_idle_workers_hold_nothing(pools, "spawn", name)
    writer.reclaim()
    assert processes.versions_of(name) == [13]
    writer.destroy()


def test_many_versions_of_many_stores_keep_few_descriptors(pools: Pools, name: str) -> None:
    """A process that received 50 versions of each of 20 stores has few descriptors, and holds none of them."""
    stores, held, pickles = [f"{name}-{k}" for k in range(20)], [], []
    writers: list[Writer[Any]] = []
    try:
        for store in stores:
            writers.append(Writer(store, retain=0))
            reader: Reader[Any] = Reader(store)
            for version in range(1, 51):
                writers[-1].publish(value_of(version))
                held.append(reader.snapshot().hold())
                pickles.append(pickle.dumps(held[-1]))
        pool = pools.get("spawn", executor=False)
        worst, holds, right = pool.apply_async(receive_all, (pickles,)).get(processes.WATCHDOG)
        assert right == 1000
        assert holds == 0
        assert worst <= 10
    finally:
        for writer in writers:
            writer.destroy()


# ---- a sender that let go, a store that went ----


@pytest.mark.parametrize("way", ["apply_async", "map", "submit", "executor map"])
@pytest.mark.parametrize("method", METHODS)
def test_sender_that_lets_go_first_is_told(pools: Pools, name: str, tmp_path: Path, method: str, way: str) -> None:
    """Let go before a busy worker takes the task: the caller gets VersionGoneError, and the pool goes on."""
    executor = way in ("submit", "executor map")
    pool = pools.get(method, executor)
    pids = pids_of(pool)
    started, gate = str(tmp_path / "started"), str(tmp_path / "gate")
    writer: Writer[Any] = Writer(name, retain=0, initial=value_of(1))
    snap = Reader(name).snapshot()
    call = pool.submit if executor else lambda function, *args: pool.apply_async(function, args)
    busy = [call(block, started, gate) for _ in range(WORKERS)]
    processes.until(lambda: len(list(tmp_path.glob("started.*"))) == WORKERS, "all workers are busy")
    assert not snap.held
    found: list[BaseException] = []

    def ask() -> None:
        try:
            run(pools, method, way, use, [snap])
        except BaseException as exc:
            found.append(exc)

    caller = threading.Thread(target=ask)
    caller.start()
    processes.until(lambda: snap.held, "the task is sent")  # to send is to hold
    snap.release()
    writer.publish(value_of(2))
    assert processes.versions_of(name) == [2]
    Path(gate).touch()
    caller.join()
    for one in busy:
        one.result(processes.WATCHDOG) if executor else one.get(processes.WATCHDOG)
    (error,) = found
    assert type(error) is shmcow.VersionGoneError
    assert f"version 1 of store {name} was sent to this process, and its sender let go" in str(error)
    assert run(pools, method, way, lives, [1, 2]) == ["lives"] * 2
    assert pids_of(pool) == pids
    writer.destroy()


@pytest.mark.parametrize("way", ["map", "submit"])
@pytest.mark.parametrize("again", [False, True])
def test_snapshot_of_a_destroyed_store(pools: Pools, name: str, way: str, again: bool) -> None:
    """Held by its sender, of a store that was destroyed, or created again: StoreDestroyedError, never another value."""
    writer: Writer[Any] = Writer(name, initial={"old": 1})
    snap = Reader(name).snapshot().hold()
    writer.destroy()
    if again:
        assert writer.publish({"new": 1}) == 1
    with pytest.raises(shmcow.StoreDestroyedError, match="created again" if again else "is gone by now"):
        run(pools, "spawn", way, use, [snap])
    assert snap.value == {"old": 1}
    assert run(pools, "spawn", way, lives, [1]) == ["lives"]
    if again:
        writer.destroy()


@pytest.mark.parametrize("way", ["map", "imap", "submit"])
@pytest.mark.parametrize("method", METHODS)
def test_receiver_without_the_type_is_told(
    pools: Pools, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, way: str
) -> None:
    """A type that only the sender can import: DecodeError by use, at the caller; the worker lives, holding nothing."""
    module = f"only_here_{name.replace('-', '_')}"
    (tmp_path / f"{module}.py").write_text("import msgspec\nclass Here(msgspec.Struct, frozen=True):\n    n: int = 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    here = __import__(module).Here
    writer: Writer[Any] = Writer(name, type=here, initial=here(7), retain=0)
    pids = pids_of(pools.get(method, way == "submit"))
    with Reader(name, type=here).snapshot() as snap:
        with pytest.raises(shmcow.DecodeError, match=f"lacks the type or the codec .*No module named '{module}'"):
            run(pools, method, way, use, [snap, snap])
        ((store, version, held, shown, data),) = run(pools, method, way, look_at, [snap])
        assert (store, version, held) == (name, 1, False)
        assert shown == f"<Snapshot {name} version 1, unavailable: DecodeError>"
        assert_idle_workers_hold_nothing(pools, method, name)
        back = pickle.loads(data)  # it went through a process that could not use it
        assert back.value == here(7)
        del back
    assert pids_of(pools.get(method, way == "submit")) == pids
    del sys.modules[module]
    del snap
    gc.collect()
    writer.destroy()


def test_transform_that_raises_in_the_receiver(pools: Pools, name: str) -> None:
    """What a transform raises there comes back as DecodeError; the worker lives, and holds nothing."""
    writer: Writer[Any] = Writer(name, initial=value_of(1), retain=0)
    snap = Reader(name).snapshot().hold()
    snap._how = snap._how._replace(transform=transform_and_raise)  # a transform that works in the sender only
    for way in ("map", "submit"):
        with pytest.raises(shmcow.DecodeError, match=r"transform= raised RuntimeError for version 1 of .*: not here"):
            run(pools, "spawn", way, use, [snap] * 3)
    assert_idle_workers_hold_nothing(pools, "spawn", name)
    writer.destroy()


@pytest.mark.parametrize("way", WAYS)
def test_transform_that_has_no_name_is_an_error_of_the_sender(pools: Pools, name: str, way: str) -> None:
    """A lambda cannot be sent: PicklingError at the caller that says what to do; nothing stays held for it."""
    writer: Writer[Any] = Writer(name, initial=value_of(1))
    snap = Reader(name, transform=lambda value: value).snapshot()
    with pytest.raises(pickle.PicklingError, match=r"cannot be sent: its type, codec and transform= go by name"):
        run(pools, "fork", way, use, [snap])
    assert not snap.held
    assert processes.held_by(os.getpid(), name) == set()
    assert run(pools, "fork", way, lives, [1]) == ["lives"]
    writer.destroy()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user: run as root")
def test_receiver_without_permission_is_told(name: str) -> None:
    """A worker of another user, who may not read the store: NotOwnerError by use; the worker lives."""
    with multiprocessing.get_context("fork").Pool(1, initializer=os.setuid, initargs=(NOBODY,)) as pool:
        writer: Writer[Any] = Writer(name, initial=value_of(1))
        with Reader(name).snapshot() as snap, pytest.raises(shmcow.NotOwnerError, match=name):
            pool.apply_async(use, (snap,)).get(processes.WATCHDOG)
        assert pool.apply_async(lives, (0,)).get(processes.WATCHDOG) == "lives"
        pool.close()
        pool.join()
    writer.destroy()


# ---- killed workers, forks ----


def test_killed_pool_worker_lets_go_and_the_others_go_on(name: str, tmp_path: Path) -> None:
    """SIGKILL in mid-job: the hold of that worker is gone at once, the others keep theirs, and a new one takes over."""
    started, gate = str(tmp_path / "started"), str(tmp_path / "gate")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        writer: Writer[Any] = Writer(name, initial=value_of(1), retain=0)
        with Reader(name).snapshot() as snap:
            jobs = [pool.apply_async(block_with, (snap, started, gate)) for _ in range(2)]
            processes.until(lambda: len(list(tmp_path.glob("started.*"))) == 2, "both work")
            victim, other = (int(path.suffix[1:]) for path in tmp_path.glob("started.*"))
            writer.publish(value_of(2))
            assert processes.held_by(victim, name) == processes.held_by(other, name) == {1}
            os.kill(victim, signal.SIGKILL)
            processes.until(lambda: processes.state_of(victim) in ("Z", ""), "it dies")
            assert processes.held_by(other, name) == {1}
            processes.until(lambda: len(pids_of(pool) - {victim}) == 2, "a new worker is started")
            assert pool.apply_async(use, (snap,)).get(processes.WATCHDOG)[0] == 1
        # The sender has let go: what the other worker holds is what keeps the version.
        writer.reclaim()
        assert processes.versions_of(name) == [2, 1]
        Path(gate).touch()
        processes.until(lambda: any(job.ready() for job in jobs), "the other job ends")
        assert [job.get() for job in jobs if job.ready()] == [(other, 1)]
        processes.until(lambda: not processes.held_by(other, name), "it lets go")
    writer.reclaim()
    assert processes.versions_of(name) == [2]
    writer.destroy()


@pytest.mark.parametrize("executor", [False, True])
def test_workers_forked_while_their_parent_holds_keep_nothing(name: str, executor: bool) -> None:
    """An executor forks at its first submit(), when the snapshot is held: its workers hold during the job only."""
    context = multiprocessing.get_context("fork")
    writer: Writer[Any] = Writer(name, initial=value_of(1), retain=0)
    reader: Reader[Any] = Reader(name)
    with reader.snapshot(), Reader(name).snapshot() as snap:
        pickle.dumps(snap)
        pool: Any = concurrent.futures.ProcessPoolExecutor(2, mp_context=context) if executor else context.Pool(2)
        assert [version for version, _ in pool.map(use, [snap] * 8)] == [1] * 8
    pids = pids_of(pool)
    for pid in pids:
        processes.until(lambda pid=pid: not processes.held_by(pid, name), f"{pid} lets go")
    writer.publish(value_of(2))
    reader.get()
    assert processes.versions_of(name) == [2]
    with reader.snapshot() as snap:
        assert [version for version, _ in pool.map(use, [snap] * 8)] == [2] * 8
    assert pids_of(pool) == pids
    if executor:
        pool.shutdown()
    else:
        pool.close()
        pool.join()
    writer.destroy()


def test_broken_executor_leaves_no_hold(name: str, tmp_path: Path) -> None:
    """An executor breaks when a worker is killed; what its workers held is let go, and the snapshot serves another."""
    started, gate = str(tmp_path / "started"), str(tmp_path / "gate")
    context = multiprocessing.get_context("fork")
    pool = concurrent.futures.ProcessPoolExecutor(2, mp_context=context)
    list(pool.map(own_pid, range(8)))
    writer: Writer[Any] = Writer(name, initial=value_of(1), retain=0)
    with Reader(name).snapshot() as snap:
        jobs = [pool.submit(block_with, snap, started, gate) for _ in range(2)]
        processes.until(lambda: len(list(tmp_path.glob("started.*"))) == 2, "both work")
        os.kill(int(next(tmp_path.glob("started.*")).suffix[1:]), signal.SIGKILL)
        for job in jobs:
            with pytest.raises(BrokenProcessPool):
                job.result(processes.WATCHDOG)
        pool.shutdown()
        writer.publish(value_of(2))
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as another:
            assert version_in(another.submit(use, snap).result(processes.WATCHDOG)[1]) == 1
    writer.reclaim()
    assert processes.versions_of(name) == [2]
    writer.destroy()


def _inherit(link: Link, way: str) -> None:
    """Receive a snapshot, fork a child that uses it in its own way, and report what both hold."""
    data = link.recv()
    snap = pickle.loads(data)
    store = snap.store

    def child(link: Link) -> None:
        link.send(processes.held_by(os.getpid(), store))
        kept: Any = snap
        if way == "receive":
            kept = pickle.loads(data)
        elif way == "hold":
            snap.hold()
        elif way == "data":
            kept = snap.data
        else:
            pickle.dumps(snap)
        link.send(processes.held_by(os.getpid(), store))
        link.recv()
        del kept

    forked = Child(child)
    link.send((forked.recv(), forked.recv()))
    link.recv()
    snap.release()
    link.send((processes.held_by(os.getpid(), store), processes.held_by(forked.pid, store)))
    link.recv()
    forked.send("end")
    forked.done()


@pytest.mark.parametrize("way", ["receive", "hold", "data", "pickle"])
def test_child_of_a_receiver_holds_by_itself(name: str, spawn: Callable[..., Child], way: str) -> None:
    """Forked after unpickling: once the child uses what it inherited, it holds the version, as its parent does not."""
    writer: Writer[Any] = Writer(name, initial=value_of(1), retain=0)
    receiver = spawn(_inherit, way)  # before the snapshot: it inherits nothing that is held
    with Reader(name).snapshot() as snap:
        before, after = receiver.ask(pickle.dumps(snap))
        assert before == set()
        assert after == {1}
    writer.publish(value_of(2))
    assert receiver.ask("let go") == (set(), {1})
    writer.reclaim()
    assert processes.versions_of(name) == [2, 1]
    receiver.send("end")
    receiver.done()
    writer.reclaim()
    assert processes.versions_of(name) == [2]
    writer.destroy()


def _receive_two(link: Link) -> None:
    """Keep the first snapshot that arrives, drop the second, and fork a child that receives the second."""
    first, second = link.recv()
    kept, store = pickle.loads(first), pickle.loads(second).store

    def child(link: Link) -> None:
        snap = pickle.loads(second)
        held = [processes.held_by(os.getpid(), store)]
        snap.hold()
        held.append(processes.held_by(os.getpid(), store))
        link.send(held)

    forked = Child(child)
    link.send((forked.recv(), processes.held_by(os.getpid(), store), kept.version))
    forked.done()


def test_child_of_a_receiver_holds_only_what_it_received(name: str, spawn: Callable[..., Child]) -> None:
    """What its parent received and holds is not held by the child as well, just because it uses the same store."""
    receiver = spawn(_receive_two)
    writer: Writer[Any] = Writer(name, initial=value_of(1), retain=0)
    reader: Reader[Any] = Reader(name)
    with reader.snapshot() as first:
        writer.publish(value_of(2))
        with reader.snapshot() as second:
            assert receiver.ask((pickle.dumps(first), pickle.dumps(second))) == ([{2}, {2}], {1}, 1)
    receiver.done()
    writer.destroy()


# ---- readers ----


@pytest.mark.parametrize("method", METHODS)
def test_reader_goes_to_workers_by_name(pools: Pools, name: str, method: str) -> None:
    """As an argument, and in containers, with its arguments; each worker reads what is current there."""
    default = Config(0, (0,))
    readers: dict[str, Any] = {
        "reader": Reader(name, type=Config, default=default, on_bad="raise", owner=os.geteuid(), verify=True),
        "more": [
            Reader(name, codec=MsgPack(Config), attach_timeout=processes.WATCHDOG),
            Reader(name, type=Config, freeze=False, refresh="background"),
        ],
    }
    assert run(pools, method, "apply_async", read_all, [{"reader": readers["reader"], "more": []}]) == [[default]]
    with Writer(name, type=Config, initial=Config(1, (1,))) as writer:
        for way in ("map", "submit"):
            for _ in range(2):
                current = Config(writer.version, (writer.version,))
                assert run(pools, method, way, read_all, [readers] * 4) == [[current] * 3] * 4
                version = writer.version + 1
                writer.publish(Config(version, (version,)))
        writer.destroy()


@pytest.mark.parametrize("executor", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_reader_given_to_an_initializer_follows(name: str, method: str, executor: bool, pools: Pools) -> None:
    """A Reader that each worker keeps sees each newer version, and goes with the worker."""
    assert pools
    context = multiprocessing.get_context(method)
    reader: Reader[Any] = Reader(name)
    given: dict[str, Any] = {"initializer": set_reader, "initargs": (reader,)}
    with Writer(name, initial=value_of(1)) as writer:
        pool: Any = (
            concurrent.futures.ProcessPoolExecutor(1, mp_context=context, **given)
            if executor
            else context.Pool(1, **given)
        )
        for version in range(1, 4):
            if version > 1:
                writer.publish(value_of(version))
            ((pid, value),) = pool.map(read_global, [0])
            assert version_in(value) == version
            assert processes.seen_by(pid, name) == {version}
        if executor:
            pool.shutdown()
        else:
            pool.close()
            pool.join()
        assert processes.state_of(pid) in ("Z", "")
        writer.destroy()
