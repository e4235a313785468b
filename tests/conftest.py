"""What every test gets: a store name of its own, and a check that it leaves nothing behind."""

from __future__ import annotations

import gc
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from processes import Child

sys.path.append(str(Path(__file__).with_name("concurrency")))  # has the helpers for child processes
SHM = Path("/dev/shm")
OURS = f"t-{os.getpid()}-"  # what the stores of this run are called: others may run tests beside it


def shm_names() -> set[str]:
    """Return the names of this run's objects in shared memory."""
    return {entry for entry in os.listdir(SHM) if entry.startswith(f"shmcow.{OURS}")}


def open_descriptors() -> dict[str, str]:
    """Return this process's descriptors on shared memory: number -> target."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue
        if target.startswith(str(SHM)):
            found[number] = target
    return found


def child_pids() -> set[int]:
    """Return the pids of this process's children, zombies included."""
    children = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            children.update(int(pid) for pid in (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            continue
    return children


def pytest_configure() -> None:
    """Let signals reach what tests start: what runs in the background may ignore them, and hands that on."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fail a test that leaves a name in shared memory, a descriptor on it, or a child process."""
    gc.freeze()  # takes what is there out of later collections: each test ends with one, and there are thousands
    names, children = shm_names(), child_pids()
    descriptors = set(open_descriptors())

    def kept() -> list[str]:
        gc.collect()
        return [target for number, target in open_descriptors().items() if number not in descriptors]

    yield
    end = time.monotonic() + 10  # a pool's thread may still have a task in its hands: what it holds goes with that
    while (left_open := kept()) and time.monotonic() < end:
        time.sleep(0.01)
    left = sorted(shm_names() - names)
    for name in left:
        (SHM / name).unlink(missing_ok=True)
    assert not left, f"left in shared memory: {left}"
    assert not left_open, f"descriptors left open: {left_open}"
    assert not child_pids() - children, "a child process was left behind"


@pytest.fixture
def name() -> Iterator[str]:
    """A store name that no other test or run uses; whatever has it afterwards is destroyed."""
    import shmcow

    store = OURS + secrets.token_hex(4)
    yield store
    gc.collect()
    try:
        shmcow.destroy(store)
    except shmcow.ShmcowError:
        pass


# ---- where every tool is installed (CI), a skipped test is a failure ----


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turn skips into a failure when SHMCOW_NO_SKIPS is set."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if skipped and os.environ.get("SHMCOW_NO_SKIPS") and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


# ---- which worker of pytest-xdist has which tests: together what shares a build, and what takes long first ----

LONG = {  # seconds of processor time, roughly; of a file of tests, or of all that ask for a fixture
    "test_sweeps.py": 125,
    "test_model.py": 110,
    "test_soak.py": 90,
    "test_stress.py": 70,
    "test_sanitizers.py": 70,
    "test_flips.py": 60,
    "killbuild": 50,
    "test_machine.py": 45,
    "test_fuzz.py": 45,
    "test_allocations.py": 40,
    "test_stepping.py": 30,
    "test_benchmarks.py": 30,
    "test_upgrading.py": 20,
    "test_instructions.py": 15,
    "test_celery.py": 12,
}
ADDED_UP = "killbuild"  # its files end with a test of what the others have done


@pytest.hookimpl(trylast=True)  # of what is not deselected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long tests at the heads of the workers' shares; with ``--dist worksteal`` they are taken from the ends.

    Else a worker would be left with a long test when the others have done, and each would build what another has.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))
    if not workers:
        return
    groups: dict[str, list[pytest.Item]] = {}
    adding = {item.path for item in items if ADDED_UP in getattr(item, "fixturenames", ())}
    for item in items:
        groups.setdefault(ADDED_UP if item.path in adding else item.path.name, []).append(item)
    heads: list[list[pytest.Item]] = [[] for _ in range(workers)]
    seconds = [0] * workers
    for name in sorted(groups.keys() & LONG, key=lambda name: (-LONG[name], name)):
        least = seconds.index(min(seconds))
        # What is added up at the end must not be taken apart: it is done before anybody takes from others.
        at = 0 if name == ADDED_UP else len(heads[least])
        heads[least][at:at] = groups.pop(name)
        seconds[least] += LONG[name]
    short = [item for group in groups.values() for item in group]
    everything = len(items)
    items.clear()
    for left, head in zip(range(workers, 0, -1), heads, strict=True):
        room = max(0, (everything - len(items)) // left - len(head))  # xdist gives equal shares, in this order
        items += head + short[:room]
        del short[:room]
    items += short


@pytest.fixture
def spawn(name: str) -> Iterator[Callable[..., Child]]:  # noqa: ARG001 - `name` is torn down after the children
    """Start children with ``spawn(body, *args)``; whoever lives at the end of the test is killed."""
    from processes import Child

    children: list[Child] = []

    def start(body: Callable[..., Any], *args: Any, **kwargs: Any) -> Child:
        children.append(Child(body, *args, **kwargs))
        return children[-1]

    yield start
    for child in children:
        child.end()
