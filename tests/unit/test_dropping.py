"""``Writer.drop``, ``rollback(expected=)`` and ``inspect.would_drop``: a version that goes now, and what stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_helpers import holding
from test_cli import environment

import shmcow
from shmcow import (
    Bundle,
    MsgPack,
    Raw,
    Reader,
    StoreNotFoundError,
    VersionConflictError,
    VersionGoneError,
    Writer,
    dropping,
)
from shmcow import store as stores
from shmcow.inspect import would_drop

SHM = Path("/dev/shm")


def versions(name: str) -> list[int]:
    return [generation.version for generation in shmcow.describe(name).generations]


def files(name: str, version: int) -> list[Path]:
    report = shmcow.describe(name)
    (found,) = [generation.segments for generation in report.generations if generation.version == version]
    return [SHM / f"shmcow.{name}.{report.epoch}.{segment}" for segment in found]


def test_dropped_version_is_gone_although_it_was_retained(name: str) -> None:
    """Its names leave shared memory at once, nobody can open it, and the others stay."""
    with Writer(name, initial="secret") as writer:
        for value in ("two", "three"):
            writer.publish(value)
        (path,) = files(name, 1)
        size = path.stat().st_blocks * 512
        preview = would_drop(name, 1)
        assert path.exists()
        found = writer.drop(1)
        assert found == preview
        assert (found.version, found.size_bytes, found.shared_with, found.held) == (1, size, (), False)
        assert not path.exists()
        assert versions(name) == [3, 2]
        with Reader(name) as reader:
            for _ in range(2):
                with pytest.raises(VersionGoneError):
                    reader.at(1)
            assert reader.at(2).value == "two"
            assert reader.get() == "three"
        with pytest.raises(VersionGoneError):
            writer.rollback(1)
        assert writer.publish("four") == 4


def test_holder_of_a_dropped_version_keeps_its_memory(name: str) -> None:
    """Who holds it is named and reads on; others are told that it is gone; its markers go when it lets go."""
    with Writer(name, initial={"password": "hunter2"}) as writer:
        writer.publish({})
        (path,) = files(name, 1)
        payload = Reader(name).at(1).data
        was = bytes(payload)
        payload.release()
        with holding(name, 1) as holder:
            found = writer.drop(1)
            assert found.held
            assert found.holders == (holder.pid,)
            assert not path.exists()
            assert bytes.fromhex(holder.ask("read")) == was
            with Reader(name) as reader, pytest.raises(VersionGoneError):
                reader.at(1)
            with pytest.raises(shmcow.WaitTimeoutError, match=str(holder.pid)):
                writer.wait_unused(1, 0)
            assert shmcow.describe(name).counters["forced"] == 1
        writer.wait_unused(1, 60)


def test_who_has_read_a_dropped_version_is_named(name: str) -> None:
    """A decoded copy is out of reach: whose last get() returned it is told."""
    with Writer(name, initial=1) as writer, holding(name, 0) as process:
        writer.publish(2)
        found = writer.drop(1)
        assert (found.held, found.holders, found.seen_by) == (False, (), (process.pid,))


def test_part_that_other_versions_share_stays(name: str) -> None:
    """Of a Bundle only what no other version lists goes; which versions have the rest is told."""
    codec = Bundle(config=MsgPack(), blob=Raw())
    with Writer(name, codec=codec, initial={"config": 1, "blob": b"x" * 5000}) as writer:
        writer.publish_parts(config=2)
        writer.publish_parts(config=3)
        config, blob = files(name, 2)
        assert blob == files(name, 3)[1]
        found = writer.drop(2)
        assert found.shared_with == (1, 3)
        assert found.size_bytes == 4096
        assert not config.exists()
        assert blob.exists()
        assert writer.drop(1).shared_with == (3,)
        assert blob.exists()
        with Reader(name, codec=codec) as reader:
            assert bytes(reader.get().blob) == b"x" * 5000
        writer.publish({"config": 4, "blob": b"y"})
        assert writer.drop(3).shared_with == ()
        assert not blob.exists()


def test_rollback_keeps_what_is_dropped_after_it(name: str) -> None:
    """The new version lists the same segment: its content stays until that version goes, too."""
    with Writer(name, initial="secret") as writer:
        writer.publish("other")
        assert writer.rollback() == 3
        found = writer.drop(1)
        assert (found.size_bytes, found.shared_with) == (0, (3,))
        assert writer.snapshot().value == "secret"
        (path,) = files(name, 3)
        writer.publish("fine")
        assert writer.drop(3).size_bytes == 4096
        assert not path.exists()


def test_current_version_cannot_be_dropped(name: str) -> None:
    """Readers need it: the message says what to do first. Nor can one that is not there."""
    with Writer(name, initial=1) as writer:
        for call in (writer.drop, lambda version: would_drop(name, version)):
            with pytest.raises(ValueError, match="publish another value or roll back first"):
                call(1)
            with pytest.raises(VersionGoneError):
                call(2)
        with pytest.raises(ValueError, match="version"):
            writer.drop(0)
        assert writer.version == 1
        writer.destroy()
        with pytest.raises(shmcow.StoreDestroyedError):
            writer.drop(1)
    with pytest.raises(StoreNotFoundError):
        would_drop(name, 1)


def test_drop_that_was_cut_short_is_finished_by_the_next_writer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a name cannot be unlinked the version is gone all the same, and the next turn unlinks it."""
    with Writer(name, initial=1) as writer:
        writer.publish(2)
        (path,) = files(name, 1)
        with monkeypatch.context() as patch:
            patch.setattr(stores.segments, "unlink_segment", lambda *_: 5)
            with pytest.raises(OSError, match="Input/output"):
                writer.drop(1)
        assert path.exists()
        with Reader(name) as reader, pytest.raises(VersionGoneError):
            reader.at(1)
        writer.publish(3)
        assert not path.exists()
        assert versions(name) == [3, 2]


def test_rollback_expects_a_version(name: str) -> None:
    """``expected=`` refuses to roll back from a version that nobody looked at."""
    with Writer(name, initial=1) as writer:
        writer.publish(2)
        with pytest.raises(VersionConflictError):
            writer.rollback(expected=1)
        assert writer.rollback(expected=2) == 3
        assert shmcow.describe(name).counters["conflicts"] == 1
        with pytest.raises(ValueError, match="expected"):
            writer.rollback(expected=0)


def test_this_process_is_a_holder_like_any_other(name: str) -> None:
    """It is named, too, and its snapshot stays usable."""
    with Writer(name, codec=Raw(), initial=b"one") as writer, Reader(name, codec=Raw()) as reader:
        writer.publish(b"two")
        with reader.at(1) as snapshot:
            found = writer.drop(1)
            assert (found.held, found.holders) == (True, (os.getpid(),))
            assert bytes(snapshot.value) == b"one"
        del snapshot
        with pytest.raises(VersionGoneError):
            reader.at(1)


RACER = """
import sys
from shmcow import Reader, VersionGoneError
reader, found = Reader(sys.argv[1]), {"gone": 0, "there": 0}
print("ready", flush=True)
while (newest := reader.get()["version"]) < int(sys.argv[2]):
    for version in (newest - 1, newest):
        if version < 1:
            continue
        try:
            with reader.at(version) as snapshot:
                assert snapshot.value == {"version": version, "cells": [version] * 100}
                found["there"] += 1
        except VersionGoneError:
            found["gone"] += 1
print(found["gone"] > 0 and found["there"] > 0, flush=True)
"""


def test_readers_that_open_what_is_being_dropped_find_all_of_it_or_nothing(name: str) -> None:
    """However they meet: the whole version, or VersionGoneError, and never anything else."""
    last = 1500
    with Writer(name, initial={"version": 1, "cells": [1] * 100}) as writer:
        command = [sys.executable, "-c", RACER, name, str(last)]
        readers = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
            for _ in range(2)
        ]
        try:
            for reader in readers:
                assert reader.stdout is not None
                assert reader.stdout.readline() == "ready\n"
            for version in range(2, last + 1):
                writer.publish({"version": version, "cells": [version] * 100})
                with writer._turn(recreate=False) as turn:  # drop() also looks at all processes, which takes longer
                    dropping.discard(turn, version - 1)
            assert versions(name) == [last]
            for reader in readers:
                assert reader.communicate(timeout=60) == ("True\n", "")
        finally:
            for reader in readers:
                reader.kill()
                reader.communicate()
