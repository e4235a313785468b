"""The operations that are swept: in what store each begins, what a victim does, and what may be true afterwards."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from processes import objects_of, value_of
from victims import CODECS

import shmcow
from shmcow import Reader, Writer, dropping

RETAIN = 2


class Job(NamedTuple):
    """A victim's side of an operation, set up.

    Attributes:
        operate: what is under test.
        again: what must work in the same process after ``operate`` has failed or not.
    """

    operate: Callable[[], Any]
    again: Callable[[], Any]


class Op(NamedTuple):
    """One operation.

    Attributes:
        setup: make the job in the victim; what it does is not under test.
        template: make the store, in a process of its own; None: there is no store.
        after: what a fresh reader may find: ``same`` (the old version), ``next`` (or the new one), ``back`` (or the one
            before it again), ``create`` (no store,
            an empty one, or its first version), ``destroy`` (the old version, or none), ``replace`` (any of them).
        marked: versions that somebody holds all the while.
        behind: how far the versions of this store at rest are behind the current one.
        dropped: the same, if the operation has dropped a version, held or not.
        late: mark all versions after the kill, before the next writer: readers that were stopped in their hold.
    """

    name: str
    setup: Callable[[str], Job]
    template: Callable[[str], None] | None
    after: str
    codec: str = ""
    marked: tuple[int, ...] = ()
    behind: tuple[int, ...] = (0, 1, 2)
    dropped: tuple[int, ...] = ()
    late: bool = False


def writer(store: str, codec: str = "", **settings: Any) -> Writer[Any]:
    """Return a Writer with one of the tests' codecs."""
    return Writer(store, **({"codec": CODECS[codec]()} if codec else {}), **settings)


def reader(store: str, codec: str = "") -> Reader[Any]:
    """Return a Reader with one of the tests' codecs, that hides nothing."""
    return Reader(store, on_bad="raise", **({"codec": CODECS[codec]()} if codec else {}))


def mark(path: str, first: int, count: int = 1) -> int:
    """Mark versions as held, as any process may; returns the descriptor that carries the markers."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, first, count, 0))
    return fd


def holds_path(store: str) -> str:
    """Return the path of a store's holds file."""
    return next(f"/dev/shm/{name}" for name in objects_of(store) if name.endswith(".holds"))


# ---- templates ----


def _steady(codec: str = "", n: int = 5, held: int = 0, **settings: Any) -> Callable[[str], None]:
    def make(store: str) -> None:
        with writer(store, codec, **{"retain": RETAIN, **settings}) as w:
            for version in range(1, n + 1):
                w.publish(value_of(version))
                if version == held:
                    mark(holds_path(store), held)
            w.reclaim()

    return make


def _halves(store: str) -> None:
    """Four older versions of three segments each, that a writer with ``retain=0`` reclaims."""
    _steady("thirds", retain=4)(store)


# ---- jobs ----


def _publish(codec: str = "") -> Callable[[str], Job]:
    def setup(store: str) -> Job:
        w = writer(store, codec)
        return Job(lambda: w.publish(value_of(w.version + 1)), lambda: w.publish(value_of(w.version + 1)))

    return setup


def _update(store: str) -> Job:
    w = writer(store)

    def update() -> int:
        return w.update(lambda old: value_of(w.version + 1, len(old["cells"])))

    return Job(update, update)


def _edit(store: str) -> Job:
    w = writer(store)

    def edit() -> int:
        with w.edit() as draft:
            draft.update(value_of(w.version + 1))
        return w.version

    return Job(edit, edit)


def _swap(store: str) -> Job:
    w = writer(store)

    def swap() -> int:
        assert w.swap(value_of(w.version + 1)).version == w.version - 1
        return w.version

    return Job(swap, swap)


def _rollback(codec: str = "") -> Callable[[str], Job]:
    def setup(store: str) -> Job:
        w = writer(store, codec)
        return Job(w.rollback, lambda: w.publish(value_of(w.version + 1)))

    return setup


def _reclaim(store: str) -> Job:
    w = writer(store, "thirds", retain=0)
    return Job(w.reclaim, w.reclaim)


def _drop(codec: str = "") -> Callable[[str], Job]:
    def setup(store: str) -> Job:
        w = writer(store, codec)
        # Which calls a look at all processes takes depends on what else runs; it comes last, and only reads.
        dropping.with_holders = lambda _, found: found

        def drop() -> int:
            assert w.drop(w.version - 1).version == w.version - 1
            return w.version

        return Job(drop, w.reclaim)

    return setup


def _create(store: str) -> Job:
    return Job(lambda: Writer(store, retain=RETAIN).version, lambda: Writer(store, retain=RETAIN).version)


def _create_first(store: str) -> Job:
    def create() -> int:
        return Writer(store, retain=RETAIN, initial=value_of(1)).version

    return Job(create, create)


def _attach(store: str) -> Job:
    return Job(lambda: Writer(store).version, lambda: Writer(store).version)


def _read(codec: str = "") -> Callable[[str], Job]:
    def setup(store: str) -> Job:
        r = reader(store, codec)

        def get() -> int:
            return int(r.get()["version"])

        return Job(get, get)

    return setup


def _hold(codec: str = "", behind: int = 0) -> Callable[[str], Job]:
    def setup(store: str) -> Job:
        r = reader(store, codec)
        first = r.snapshot().version

        def hold() -> int:
            snapshot = r.at(first - behind) if behind else Reader.snapshot(reader(store, codec))
            with snapshot.hold():
                held = bytes(snapshot.data) if not codec else b""
                assert codec or held
                return int(snapshot.value["version"])

        return Job(hold, r.get)

    return setup


def _let_go(store: str) -> Job:
    r = reader(store)
    held = r.snapshot().hold()
    view = [held.data]

    def let_go() -> int:
        view.clear()
        held.release()
        return held.version

    return Job(let_go, r.get)


def _destroy(codec: str = "") -> Callable[[str], Job]:
    def setup(store: str) -> Job:
        w = writer(store, codec)
        return Job(w.destroy, lambda: None)

    return setup


def _destroy_by_name(store: str) -> Job:
    return Job(lambda: shmcow.destroy(store), lambda: None)


def _without(what: str) -> Callable[[str], Job]:
    """Publish after an object was removed from outside."""

    def setup(store: str) -> Job:
        w = writer(store)
        (gone,) = [n for n in objects_of(store) if (n.endswith("." + what) if what else n == f"shmcow.{store}")]
        os.unlink(f"/dev/shm/{gone}")

        def publish() -> int:
            again = 1 if what != "holds" else w.version + 1
            return w.publish(value_of(again))

        return Job(publish, lambda: w.publish(value_of(1)))

    return setup


def _recover(codec: str = "") -> Callable[[str], Job]:
    """What every next writer does: attach, recover, sweep; finish what is half-destroyed, create what is not there."""

    def setup(store: str) -> Job:
        def recover() -> int:
            with writer(store, codec) as w:
                return w.version

        return Job(recover, recover)

    return setup


FULL = tuple(range(64))
_CREATIONS = (
    Op("create", _create, None, "create"),
    Op("create with a first version", _create_first, None, "create"),
)
_PUBLISHES = (
    Op("publish", _publish(), _steady(), "next"),
    Op("publish, three segments", _publish("thirds"), _steady("thirds"), "next", "thirds"),
    Op("publish, a part shared", _publish("beside"), _steady("beside"), "next", "beside"),
    Op("publish, old version held", _publish(), _steady(n=6, held=2), "next", marked=(2,)),
    Op(
        "publish at the quota",
        _publish(),
        _steady(n=8, retain=1000, max_total_bytes=20480),
        "next",
        behind=(0, 1, 2, 3, 4),
    ),
    Op("publish, table full", _publish(), _steady(n=64, retain=1000), "next", behind=FULL),
    Op("publish, table held", _publish(), _steady(n=64, retain=1000), "next", marked=tuple(range(1, 65)), behind=FULL),
    Op("publish, holds file lost", _without("holds"), _steady(), "next"),
    Op("publish, lock file lost", _without("lock"), _steady(), "replace"),
    Op("publish, header lost", _without(""), _steady(), "replace"),
    Op("update", _update, _steady(), "next"),
    Op("edit", _edit, _steady(), "next"),
    Op("swap", _swap, _steady(), "next"),
    Op("rollback", _rollback(), _steady(), "back"),
    Op("rollback, a part shared", _rollback("beside"), _steady("beside"), "back", "beside"),
    Op("rollback, three segments", _rollback("thirds"), _steady("thirds"), "back", "thirds"),
)
_KEEPING = (
    Op("reclaim", _reclaim, _halves, "same", "thirds", behind=(0,)),
    Op("reclaim, readers come late", _reclaim, _halves, "same", "thirds", behind=(0,), late=True),
    Op("drop", _drop(), _steady(), "same", dropped=(0, 1, 3)),
    Op("drop, a part shared, held", _drop("beside"), _steady("beside"), "same", "beside", (4,), dropped=(0, 1, 3)),
    Op("attach a writer", _attach, _steady(), "same"),
    Op("destroy", _destroy(), _steady(), "destroy"),
    Op("destroy, a part shared", _destroy("beside"), _steady("beside"), "destroy", "beside"),
    Op("destroy, three segments", _destroy("thirds"), _steady("thirds"), "destroy", "thirds"),
    Op("destroy by name", _destroy_by_name, _steady(), "destroy"),
)
_READS = (
    Op("attach a reader", _read(), _steady(), "same"),
    Op("attach a reader, three segments", _read("thirds"), _steady("thirds"), "same", "thirds"),
    Op("hold", _hold(), _steady(), "same"),
    Op("hold, three segments", _hold("thirds"), _steady("thirds"), "same", "thirds"),
    Op("hold an older version", _hold(behind=1), _steady(), "same"),
    Op("let go", _let_go, _steady(), "same"),
)
OPS = {op.name: op for op in (*_CREATIONS, *_PUBLISHES, *_KEEPING, *_READS)}
# Those that leave something to recover: writers, killed.
WRITERS = tuple(op.name for op in (*_CREATIONS, *_PUBLISHES, *_KEEPING))


def recovery(op: Op) -> Op:
    """Return recovery from a kill in an operation, as an operation. What it may leave is what the kill may leave."""
    return op._replace(name=f"recovery from {op.name}", setup=_recover(op.codec))
