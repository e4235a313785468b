"""Tables in many threads and processes: one copy, looked up by all."""

from __future__ import annotations

import sys
import threading
from typing import Any

from processes import Child, Link

from shmcow import Reader, Table, TableView, Writer

CODEC = Table(key=str, value=list[int])


def rows(version: int, n: int = 3000) -> Any:
    """Rows that carry their version: each value, and the number of rows."""
    return ((f"key {k}", [version, k]) for k in range(n + version))


def check(view: TableView[str, list[int]], step: int) -> int:
    """Look up many keys; return the version that all of them carry."""
    version = view["key 0"][0]
    assert len(view) == 3000 + version
    for k in range(step % 7, len(view), 7):
        assert view[f"key {k}"] == [version, k]
    assert view.get_many([f"key {k}" for k in range(50)]) == [[version, k] for k in range(50)]
    assert f"key {len(view)}" not in view
    return int(version)


def test_threads_share_a_view(name: str) -> None:
    """Lookups, iteration and new versions at the same time; each view is one version through and through."""
    failed: list[BaseException] = []
    stop = threading.Event()
    with Writer(name, codec=CODEC) as writer:
        writer.publish(rows(1))
        reader = Reader(name, codec=CODEC)

        def look(number: int) -> None:
            try:
                newest, step = 0, number
                while not stop.is_set():
                    found = check(reader.get(), step)
                    assert found >= newest
                    newest, step = found, step + 1
                    assert sum(1 for _ in reader.get().items()) > 3000
            except BaseException as exc:
                failed.append(exc)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        threads = [threading.Thread(target=look, args=(n,)) for n in range(4)]
        try:
            for thread in threads:
                thread.start()
            for version in range(2, 12):
                writer.publish(rows(version))
                check(writer.snapshot().value, version)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            sys.setswitchinterval(interval)
        assert not failed, failed[0]


def _look(link: Link, inherited: TableView[str, list[int]], reader: Reader[Any]) -> None:
    while link.recv() == "look":
        link.send((check(inherited, 1), check(reader.get(), 2)))


def test_a_forked_child_reads_the_view_that_it_inherited(name: str) -> None:
    """Also after its parent let go, and beside a newer version of its own; a decoded value came along, too."""
    with Writer(name, codec=CODEC) as writer:
        writer.publish(rows(1))
        reader = Reader(name, codec=CODEC)
        view = reader.get()
        assert view["key 5"] == [1, 5]
        child = Child(_look, view, reader)
        try:
            assert child.ask("look") == (1, 1)
            del view
            for version in range(2, 10):
                writer.publish(rows(version))
                reader.get()
            assert child.ask("look") == (1, 9)
            child.send("end")
            child.done()
        finally:
            child.end()
