"""Shared memory that is full: an error in the writer, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from processes import value_of, version_in

import shmcow
from shmcow import OutOfSharedMemoryError, Raw, Reader, VersionGoneError, Writer

CAN = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /dev/shm"]

PREAMBLE = """
import os
from pathlib import Path
import processes
from shmcow import *
name = "t-small"
SHM = Path("/dev/shm")
assert list(SHM.iterdir()) == []
st = os.statvfs(SHM)
assert st.f_blocks * st.f_frsize == 1 << 20
"""


def run_in_small_shm(code: str, options: str = "size=1m") -> None:
    """Run Python code where /dev/shm is 1 MiB, seen by nobody else."""
    try:
        able = subprocess.run(CAN, capture_output=True).returncode == 0
    except FileNotFoundError:
        able = False
    if not able:
        pytest.skip("needs unshare (Debian: apt-get install util-linux) and the right to mount: run as root")
    path = os.pathsep.join([str(Path(shmcow.__file__).parent.parent), str(Path(__file__).parent)])
    mount = f'mount -t tmpfs -o {options} tmpfs /dev/shm && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", PREAMBLE + code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=processes.WATCHDOG,
    )
    assert done.returncode == 0, done.stderr


def test_two_mebibytes_in_one_raise_and_leave_nothing() -> None:
    """A payload beyond /dev/shm raises; the old version is served, nothing is left, and publishing works again."""
    run_in_small_shm("""
writer = Writer(name, codec=Raw(), initial=b"old" * 1000)
reader = Reader(name, codec=Raw())
assert bytes(reader.get()) == b"old" * 1000
before = sorted(os.listdir(SHM))
writer.reclaim()
descriptors = processes.shm_descriptors()
for _ in range(3):
    for attempt in (writer.publish, lambda value: writer.update(lambda _: value)):
        try:
            attempt(b"x" * (2 << 20))
        except OutOfSharedMemoryError as exc:
            assert exc.errno == 28 and isinstance(exc, OSError), exc
        else:
            raise AssertionError("published")
        assert sorted(os.listdir(SHM)) == before
        assert writer.version == 1
        assert bytes(reader.get()) == bytes(Reader(name, codec=Raw()).get()) == b"old" * 1000
        processes.assert_at_rest(name)
assert processes.shm_descriptors() == descriptors
assert writer.publish(b"new" * 1000) == 2
assert bytes(reader.get()) == b"new" * 1000
writer.destroy()
assert os.listdir(SHM) == []
""")


def test_retained_versions_are_given_up_first() -> None:
    """Versions that are merely retained make room, oldest first; one that is held does not go."""
    run_in_small_shm("""
writer = Writer(name, codec=Raw(), retain=20)
reader = Reader(name, codec=Raw())
for n in range(1, 31):
    assert writer.publish(bytes([n]) * 200_000) == n
    assert bytes(reader.get()) == bytes([n]) * 200_000
    versions = processes.versions_of(name)
    assert versions == list(range(n, n - len(versions), -1)), versions
    assert len(versions) == min(n, 4), versions
    processes.assert_at_rest(name)
assert describe(name).counters["given_up"] == 26
held = reader.snapshot()
del reader
for n in range(31, 41):
    assert writer.publish(bytes([n]) * 200_000) == n
assert processes.versions_of(name) == [40, 39, 38, 30]
assert bytes(held.value) == bytes([30]) * 200_000
try:
    writer.publish(b"x" * 700_000)
except OutOfSharedMemoryError:
    pass
else:
    raise AssertionError("published")
assert processes.versions_of(name) == [40, 30]
processes.assert_at_rest(name)
assert bytes(Reader(name, codec=Raw()).get()) == bytes([40]) * 200_000
del held
assert writer.publish(b"x" * 600_000) == 41
processes.assert_at_rest(name)
writer.destroy()
assert os.listdir(SHM) == []
""")


def test_no_room_to_create_leaves_nothing() -> None:
    """A store that cannot be created for lack of room raises OutOfSharedMemoryError, and leaves no part of it."""
    run_in_small_shm("""
filler = SHM / "filler"
for free in (0, 4096, 40_960):
    filler.write_bytes(b"x" * ((1 << 20) - free))
    try:
        Writer(name, initial=1)
    except OutOfSharedMemoryError:
        pass
    else:
        raise AssertionError("created")
    assert os.listdir(SHM) == ["filler"], os.listdir(SHM)
    filler.unlink()
writer = Writer(name, initial=1)
writer.destroy()
assert os.listdir(SHM) == []
""")


def test_no_room_for_names_leaves_nothing() -> None:
    """A file system without inodes left is as full as one without bytes."""
    run_in_small_shm(
        """
writer = Writer(name, initial=1, retain=2)
for n in range(2, 6):
    writer.publish(n)
fillers = []
try:
    while True:
        fillers.append(SHM / f"filler{len(fillers)}")
        fillers[-1].touch()
except OSError as exc:
    assert exc.errno == 28, exc
    fillers.pop()
reader = Reader(name)
assert writer.publish(6) == 6
assert processes.versions_of(name)[0] == 6 and len(processes.versions_of(name)) < 4
assert reader.get() == 6
processes.assert_at_rest(name)
writer.publish(7), writer.publish(8), writer.publish(9)
assert reader.get() == 9
for filler in fillers:
    filler.unlink()
writer.destroy()
assert os.listdir(SHM) == []
""",
        "size=1m,nr_inodes=40",
    )


def test_max_total_bytes_gives_up_retained_versions_and_then_raises(name: str) -> None:
    """A quota is kept as if it were the size of shared memory: retained versions go first, held ones stay."""
    writer = Writer(name, codec=Raw(), retain=20, max_total_bytes=1 << 20)
    reader = Reader(name, codec=Raw())
    for n in range(1, 21):
        assert writer.publish(bytes([n]) * 200_000) == n
        assert shmcow.describe(name).total_bytes <= 1 << 20
    assert processes.versions_of(name) == [20, 19, 18, 17, 16]
    held = reader.at(17)
    with pytest.raises(OutOfSharedMemoryError, match="max_total_bytes"):
        writer.publish(b"x" * (2 << 20))
    processes.assert_at_rest(name)
    assert bytes(reader.get()) == bytes([20]) * 200_000
    assert 17 in processes.versions_of(name)
    with pytest.raises(OutOfSharedMemoryError):
        writer.publish(b"x" * 700_000)
    assert processes.versions_of(name) == [20, 17]
    del held
    assert writer.publish(b"x" * 700_000) == 21
    with pytest.raises(VersionGoneError):
        reader.at(17)
    processes.assert_at_rest(name)
    writer.destroy()


def test_quota_that_is_lowered_holds_from_the_next_publish_on(name: str) -> None:
    """A writer that lowers max_total_bytes below what is there has the next publish give up what it can."""
    writer = Writer(name, retain=10)
    for version in range(1, 9):
        writer.publish(value_of(version))
    assert len(processes.versions_of(name)) == 8
    low = Writer(name, max_total_bytes=3 * 4096)
    assert low.publish(value_of(9)) == 9
    assert processes.versions_of(name) == [9, 8, 7]
    assert writer.publish(value_of(10)) == 10
    assert version_in(Reader(name).get()) == 10
    assert processes.versions_of(name) == [10, 9, 8]
    writer.destroy()
