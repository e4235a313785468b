"""Containers of one pod: mount and pid namespaces of their own, /proc included, and one small tmpfs as their /dev/shm.

That any process in another namespace reads, holds and publishes like others is in test_namespaces.py, a full /dev/shm
in test_small_shm.py. Here two containers have nothing but that mount in common, and one may not write it.
"""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable
from typing import Any

import processes
import pytest
import users
from processes import SHM, Child, Link, objects_of, value_of, version_in
from users import NEW_MOUNTS, NEW_PIDS, ROOT, STRANGER, Actor, User, done, inside, leave, needs_root

from shmcow import Raw, Reader, WaitTimeoutError, Writer, describe, wait_readers

_LIBC = ctypes.CDLL(None, use_errno=True)
_READ_ONLY = 0x1 | 0x20 | 0x1000  # MS_RDONLY | MS_REMOUNT | MS_BIND: this mount, not the file system
VOLUME = "size=64m,mode=1777"  # what Docker gives a container


class Tenant(Actor):
    """What a test tells a process in a container to do."""

    def wait_for_newer(self, version: int) -> int:
        """Wait in the kernel until somebody publishes."""
        return version_in(self._reader.wait(after=version, timeout=processes.WATCHDOG).value)

    def create_file(self) -> None:
        (SHM / "anything").touch()


def a_pod() -> None:
    """Enter a mount namespace whose /dev/shm is a volume that nobody outside sees."""
    users.unshare(NEW_MOUNTS)
    users.private_mounts()
    users.mount("tmpfs", str(SHM), VOLUME)


def a_container() -> None:
    users.unshare(NEW_MOUNTS | NEW_PIDS)
    users.private_mounts()


def a_read_only_container() -> None:
    a_container()
    if _LIBC.mount(b"none", str(SHM).encode(), None, ctypes.c_ulong(_READ_ONLY), None) != 0:
        raise OSError(ctypes.get_errno(), "remounting /dev/shm read-only")


def run_as(link: Link, user: User, name: str) -> None:
    """Be the first process of a container: mount its /proc, become a user, and obey."""
    users.mount("proc", "/proc")
    user.become()
    users.obey(link, Tenant(name))


def in_a_pod(link: Link, body: Callable[..., Any], name: str) -> None:  # noqa: ARG001 - a failure goes over the link
    a_pod()
    body(name)


def start(enter: Callable[[], None], user: User, name: str) -> tuple[Child, int]:
    """Start a container; return what to talk to, and the pid of its first process as it is out here."""
    child = Child(inside, enter, run_as, user, name)
    return child, child.recv()


@pytest.fixture
def run_in_a_pod(name: str) -> Callable[[Callable[[str], None]], None]:
    """Run a test's body as a process of a pod that is in no container, and sees all of them."""
    users.require(a_pod, "mount")
    users.require(a_container, "mount and pid")
    return lambda body: Child(in_a_pod, body, name).done()


@needs_root
def test_containers_share_a_volume_and_nothing_else(
    run_in_a_pod: Callable[[Callable[[str], None]], None],
) -> None:
    """A reader of another user that may not write reads, holds and is woken; the writer heeds it unseen."""

    def body(name: str) -> None:
        writer, _ = start(a_container, ROOT, name)
        done(writer, "write_with", {"initial": value_of(1), "mode": 0o644, "retain": 0})
        reader, pid = start(a_read_only_container, STRANGER, name)
        assert done(reader, "ids")[:2] == (1, STRANGER.uid)
        assert done(reader, "hold") == 1
        for version in (2, 3):
            assert done(writer, "publish", version) == version
            assert done(reader, "get") == version
        assert done(writer, "describe") == (3, 0, [1]), "version 1 is held, by somebody whom it cannot see"
        assert processes.held_by(pid, name) == {1}
        with pytest.raises(WaitTimeoutError):
            wait_readers(name, 3, 0.05)
        reader.send(("wait_for_newer", 3))
        processes.until(lambda: processes.state_of(pid) == "S", "the reader sleeps")
        assert done(writer, "publish", 4) == 4
        assert reader.recv() == ("done", 4)
        reader.signal(signal.SIGKILL)  # who watches over the container; its first process dies with it
        processes.until(lambda: processes.state_of(pid) in ("", "Z"), "the container has ended")
        assert done(writer, "reclaim") == 1
        assert processes.versions_of(name) == [4]
        done(writer, "destroy")
        assert objects_of(name) == set()
        leave(writer)
        reader.end()

    run_in_a_pod(body)


@needs_root
def test_read_only_mount_is_enough_to_read_and_refuses_the_rest(
    run_in_a_pod: Callable[[Callable[[str], None]], None],
) -> None:
    """Where /dev/shm is read-only nobody publishes, not even root: a clear error, and nothing changes."""

    def body(name: str) -> None:
        with Writer(name, initial=value_of(1)) as writer:
            there, _ = start(a_read_only_container, ROOT, name)
            before = objects_of(name)
            assert done(there, "get") == 1
            kind, said = there.ask(("create_file",))
            assert (kind, "Read-only file system" in said) == ("OSError", True), "the mount is not read-only"
            for order in (("publish", 2), ("update", 2), ("destroy_by_name",)):
                kind, said = there.ask(order)
                assert (kind, "Read-only file system: publish where" in said) == ("NotOwnerError", True), order
            assert objects_of(name) == before
            assert writer.publish(value_of(2)) == 2
            assert done(there, "get") == 2
            leave(there)
            writer.destroy()

    run_in_a_pod(body)


@needs_root
def test_restarted_sidecar_goes_on_with_its_store(run_in_a_pod: Callable[[Callable[[str], None]], None]) -> None:
    """A writer's container that is killed and started again publishes the next version to workers that saw nothing."""

    def body(name: str) -> None:
        worker, _ = start(a_container, ROOT, name)
        for version in (1, 2, 3):
            sidecar, pid = start(a_container, ROOT, name)
            assert done(sidecar, "write_with", {"initial": value_of(1)}) == max(version - 1, 1)
            if version > 1:
                assert done(sidecar, "publish", version) == version
            assert done(worker, "get") == version
            sidecar.signal(signal.SIGKILL)
            processes.until(lambda pid=pid: processes.state_of(pid) in ("", "Z"), "the sidecar has ended")
            sidecar.end()
            assert done(worker, "get") == version
            assert done(worker, "problem") == "NoneType"
        leave(worker)
        with Writer(name) as writer:
            processes.assert_at_rest(name)
            writer.destroy()

    run_in_a_pod(body)


def test_descriptors_do_not_grow_with_versions_held(name: str) -> None:
    """A reader needs one descriptor for a store, a writer two, whatever they hold: what LimitNOFILE must allow."""
    before = len(processes.shm_descriptors())
    writer = Writer(name, codec=Raw(), initial=b"1", retain=20)
    for number in range(2, 12):
        writer.publish(b"%d" % number)
    assert len(processes.shm_descriptors()) - before == 2
    writer.close()
    assert len(processes.shm_descriptors()) - before == 0
    reader = Reader(name, codec=Raw())
    held = [reader.at(version).hold() for version in range(1, 12)]
    other = Reader(name, codec=Raw())
    assert bytes(other.get()) == b"11"
    assert len(describe(name).generations) == 11
    assert len(processes.shm_descriptors()) - before == 1
    del held
