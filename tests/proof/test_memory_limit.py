"""A writer that the kernel kills in the middle of a large write(), as a memory limit does.

The kernel kills it with SIGXFSZ at a byte that RLIMIT_FSIZE names, or with SIGKILL while one write() is copying page
after page. A kill by a memory cgroup is the same to the file: some of its pages are there, and nobody closes it. It is
done for real only where SHMCOW_MEMORY_CGROUP names a directory in which a memory cgroup may be made: a test does not
take the liberty of making one in the hierarchy of whatever runs it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.extend([str(Path(__file__).parents[1] / "concurrency")])

import processes
from processes import SHM, Child, Link

from shmcow import Raw, Reader, Writer, describe

PAGE = 4096
OLD = b"old" * 1000


def _publish_large(link: Link, name: str, size: int, prepare: Callable[[], None], shared: bool) -> None:
    writer = Writer(name, codec=Raw())
    value = b"n" * size
    link.recv()
    prepare()
    if shared:
        writer.update(lambda old: value)  # noqa: ARG005
    else:
        writer.publish(value)
    raise AssertionError("it was to be killed")


def _limit_file_size(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


def _victim(name: str, size: int, prepare: Callable[[], None], shared: bool = False) -> Child:
    child = Child(_publish_large, name, size, prepare, shared)
    child.send("go")
    return child


def _largest(name: str) -> int:
    """Bytes of the largest segment that have a page by now."""
    sizes = [0]
    for entry in processes.objects_of(name):
        with contextlib.suppress(FileNotFoundError):
            sizes.append((SHM / entry).stat().st_blocks * 512)
    return max(sizes)


def _check_and_go_on(name: str, reader: Reader[Any], kept: memoryview) -> bool:
    """The old version is served; the next writer takes away what was half-written, and publishes.

    Returns:
        Whether something half-written was there.
    """
    half = [generation for generation in describe(name).generations if generation.state == "building"]
    assert len(half) <= 1
    assert describe(name).version == reader.snapshot().version
    assert bytes(reader.get()) == bytes(kept) == OLD
    assert bytes(Reader(name, codec=Raw()).get()) == OLD
    with Writer(name, codec=Raw()) as writer:
        assert writer.publish(OLD) == reader.snapshot().version
        writer.reclaim()
    processes.assert_at_rest(name)
    assert describe(name).total_bytes <= 6 * 2 * PAGE
    return bool(half)


@pytest.mark.parametrize("shared", [False, True], ids=["publish", "update"])
def test_killed_by_the_kernel_at_each_page_of_a_write(name: str, shared: bool) -> None:
    """A writer that is ended by SIGXFSZ after n bytes of its segment leaves the old version and nothing else."""
    writer = Writer(name, codec=Raw(), initial=OLD, retain=1)
    reader = Reader(name, codec=Raw())
    pages = 16
    size = pages * PAGE + 100
    limits = sorted({at * PAGE + off for at in range(pages + 1) for off in (0, 1, 99)} | {size, size + 63, size + 100})
    limits = [limit for limit in limits if limit < size + 28 + 128]  # the footer ends there
    halves = 0
    limits = limits[::4] if shared else limits
    for limit in limits:
        kept = reader.get()
        child = _victim(name, size, lambda limit=limit: _limit_file_size(limit), shared)
        assert child.wait() == -signal.SIGXFSZ, limit
        halves += _check_and_go_on(name, reader, kept)
        del kept
    print(f"ended by SIGXFSZ: {len(limits)} places in a segment of {size} bytes, {halves} left a half-written segment")
    assert halves > 10
    writer.destroy()


def test_killed_while_a_large_write_copies(name: str) -> None:
    """A writer killed while one write() of 64 MiB is copying, seen by the pages that are there, leaves nothing."""
    writer = Writer(name, codec=Raw(), initial=OLD, retain=1)
    reader = Reader(name, codec=Raw())
    size = 64 << 20
    tries, halves, pages = 0, 0, []
    deadline = time.monotonic() + processes.WATCHDOG
    while halves < 5:
        assert time.monotonic() < deadline, f"only {halves} of {tries} kills came in the middle"
        tries += 1
        kept = reader.get()
        child = _victim(name, size, lambda: None)
        goal = (8 << 20) * (tries % 7)
        while _largest(name) <= goal and processes.state_of(child.pid) not in ("Z", ""):
            pass
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL or describe(name).version > 1
        there = _largest(name)
        half = _check_and_go_on(name, reader, kept)
        if half and PAGE < there < size:
            halves += 1
            pages.append(there // PAGE)
        del kept
    print(f"killed in mid-write: {halves} of {tries}, with {pages} of {size // PAGE} pages there")
    writer.destroy()


def _join(cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))


@contextlib.contextmanager
def _memory_cgroup(limit: int):  # type: ignore[no-untyped-def]
    parent = Path(os.environ["SHMCOW_MEMORY_CGROUP"])
    cgroup = parent / f"shmcow-{os.getpid()}"
    cgroup.mkdir()
    try:
        for file in ("memory.max", "memory.limit_in_bytes"):  # version 2, version 1
            if (cgroup / file).exists():
                (cgroup / file).write_text(str(limit))
        for file in ("memory.swap.max", "memory.memsw.limit_in_bytes"):
            if (cgroup / file).exists():
                (cgroup / file).write_text("0" if "swap.max" in file else str(limit))
        yield cgroup
    finally:
        processes.until(lambda: not (cgroup / "cgroup.procs").read_text(), "the cgroup is empty")
        cgroup.rmdir()


if "SHMCOW_MEMORY_CGROUP" in os.environ:

    @pytest.mark.parametrize("round_", range(5))
    def test_killed_by_a_memory_cgroup(name: str, round_: int) -> None:
        """A writer whose memory cgroup has no room for its new segment is killed in mid-publish, and leaves nothing."""
        writer = Writer(name, codec=Raw(), initial=OLD, retain=1)
        reader = Reader(name, codec=Raw())
        kept = reader.get()
        size = 64 << 20
        with _memory_cgroup(size + size // 2 + (round_ << 20)) as cgroup:
            child = _victim(name, size, lambda: _join(cgroup))
            assert child.wait() == -signal.SIGKILL
            there = _largest(name)
            half = _check_and_go_on(name, reader, kept)
        print(f"killed by the memory cgroup with {there // PAGE} of {size // PAGE} pages there")
        assert half
        del kept
        writer.destroy()
