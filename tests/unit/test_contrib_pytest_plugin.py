"""The pytest plugin, in real pytest runs: what passes, what must fail, and what it says then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from processes import WATCHDOG, objects_of

import shmcow

pytest_plugins = ["pytester"]

ROOT = Path(shmcow.__file__).parents[1]
# What the runs below share: each notes its reports and its stores, and ends what its tests have started.
CONFTEST = """
import json, os, random, signal, threading
import pytest
import shmcow
from shmcow import Reader, Writer

pids = []

def fork(body):
    done, told = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            body()
            os.write(told, b"x")
            signal.pause()
        finally:
            os._exit(0)
    pids.append(pid)
    os.close(told)
    assert os.read(done, 1) == b"x"
    os.close(done)
    return pid

@pytest.fixture
def child():
    return fork

@pytest.fixture(autouse=True)
def same_random_numbers_in_each_test():
    random.seed(0)

@pytest.fixture(autouse=True)
def note_the_store(request):
    if "shmcow_store" in request.fixturenames:
        with open("stores", "a") as stores:
            print(request.getfixturevalue("shmcow_store"), file=stores)

def pytest_runtest_logreport(report):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        with open("reports", "a") as reports:
            print(json.dumps([report.nodeid.partition("::")[2], report.when, report.outcome, report.longreprtext]),
                  file=reports)

def pytest_sessionfinish():
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
"""


class Report(NamedTuple):
    """What pytest reports of one phase of a test."""

    test: str
    when: str
    outcome: str
    text: str


class Run:
    """A run of pytest with the plugin, in a process of its own."""

    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tests: str, *options: str) -> None:
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # the plugin once, by its file, and no other
        monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        for variable in [name for name in os.environ if name.startswith(("PYTEST_XDIST", "PYTEST_ADDOPTS"))]:
            monkeypatch.delenv(variable)
        pytester.makeconftest(CONFTEST)
        pytester.makeini("[pytest]\nfilterwarnings = error\n")
        pytester.makepyfile("from conftest import *\nkeep = []\n" + tests)
        result = pytester.runpytest_subprocess(
            "-p", "_shmcow_pytest", "-p", "no:cacheprovider", *options, timeout=WATCHDOG
        )
        self.output = result.stdout.str() + result.stderr.str()
        self.status = result.ret
        lines = (pytester.path / "reports").read_text().splitlines()
        self.reports = [Report(*json.loads(line)) for line in lines]
        self.stores = (pytester.path / "stores").read_text().split()

    def failed(self) -> dict[tuple[str, str], str]:
        """Return what the reports that are no success say, by test and phase."""
        return {(report.test, report.when): report.text for report in self.reports if report.outcome != "passed"}

    def assert_nothing_left(self) -> None:
        """Fail if anything in shared memory is left of its stores."""
        assert self.stores
        for store in self.stores:
            assert not objects_of(store)


GOOD = """
@pytest.fixture
def value(shmcow_store):
    return [Reader(shmcow_store)]  # a reader that nobody closes

def test_name_writer_and_reader(shmcow_store):
    assert isinstance(shmcow_store, str) and shmcow_store.startswith("pytest-")
    writer = shmcow_store.writer(initial={"n": 1})
    reader = shmcow_store.reader(type=dict[str, int])
    snapshot = Reader(shmcow_store).snapshot().hold()
    writer.publish({"n": 2})
    assert (reader.get(), snapshot.value) == ({"n": 2}, {"n": 1})

def test_reader_of_another_fixture(shmcow_store, value):
    Writer(shmcow_store, initial=1)
    assert value[0].get() == 1

def test_store_that_was_never_made(shmcow_store):
    pass

def test_store_that_the_test_destroys(shmcow_store):
    with Writer(shmcow_store, initial=1) as writer:
        writer.destroy()

def test_error_that_is_expected(shmcow_store):
    def use():
        reader = Reader(shmcow_store)
        reader.get()
        raise KeyError
    shmcow_store.writer(initial=1)
    with pytest.raises(KeyError) as raised:
        use()

def test_thread_that_is_about_to_end(shmcow_store):
    shmcow_store.writer(initial=1)
    held = threading.Event()
    def hold():
        with Reader(shmcow_store).snapshot():
            held.set()
            threading.Event().wait(0.3)
    threading.Thread(target=hold).start()
    assert held.wait(60)

def test_child_that_is_about_to_end(shmcow_store, child):
    shmcow_store.writer(initial=1)
    pid = child(lambda: keep.append(Reader(shmcow_store).snapshot().hold()))
    threading.Timer(0.3, os.kill, (pid, signal.SIGTERM)).start()

def test_child_that_has_ended(shmcow_store):
    shmcow_store.writer(initial=1)
    pid = os.fork()
    if not pid:
        Reader(shmcow_store).get()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

def test_several_stores(shmcow_store, shmcow_store_factory):
    stores = {shmcow_store, shmcow_store_factory(), shmcow_store_factory()}
    assert len(stores) == 3
    for store in stores:
        store.writer(initial=1)

def test_pickled_it_is_its_name(shmcow_store):
    import pickle
    name = pickle.loads(pickle.dumps(shmcow_store))
    assert type(name) is str and name == shmcow_store
"""


def test_tests_that_leave_nothing_pass(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they forget to close goes with them; who is about to end may; no two names are the same."""
    run = Run(pytester, monkeypatch, GOOD)
    assert (run.failed(), run.status) == ({}, 0), run.output
    assert len({report.test for report in run.reports}) == GOOD.count("def test_")
    assert len(set(run.stores)) == len(run.stores) == GOOD.count("def test_")
    run.assert_nothing_left()


BAD = """
def test_reader_in_a_global(shmcow_store):
    shmcow_store.writer(initial=1)
    keep.append(Reader(shmcow_store))
    keep[-1].get()

def test_writer_in_a_global(shmcow_store):
    keep.append(Writer(shmcow_store, initial=1))

def test_snapshot_in_a_global(shmcow_store):
    shmcow_store.writer(initial=1)
    keep.append(shmcow_store.reader().snapshot().hold())

def test_hold_of_a_thread(shmcow_store):
    shmcow_store.writer(initial=1)
    held = threading.Event()
    def hold():
        with Reader(shmcow_store).snapshot():
            held.set()
            threading.Event().wait()
    threading.Thread(target=hold, daemon=True).start()
    assert held.wait(60)

def test_subscription_that_goes_on(shmcow_store):
    shmcow_store.writer(initial=1)
    called = threading.Event()
    Reader(shmcow_store).subscribe(lambda old, new: called.set())
    assert called.wait(60)

def test_child_that_reads(shmcow_store, child):
    shmcow_store.writer(initial=1)
    child(lambda: keep.append((reader := Reader(shmcow_store), reader.get())))

def test_child_that_holds(shmcow_store, child):
    writer = shmcow_store.writer(initial=1)
    writer.publish(2)
    child(lambda: keep.append(Reader(shmcow_store).at(1).hold()))

def test_child_that_writes(shmcow_store, child):
    child(lambda: keep.append(Writer(shmcow_store, initial=1)))

def test_child_that_has_a_destroyed_store_open(shmcow_store, child):
    writer = shmcow_store.writer(initial=1)
    child(lambda: keep.append((reader := Reader(shmcow_store), reader.get())))
    writer.destroy()

def test_writer_that_does_not_finish(shmcow_store, child):
    writer = shmcow_store.writer(initial=1)
    def publish():
        turn = writer._turn(recreate=False)
        keep.append(turn)
        turn.__enter__()
    child(publish)

def test_name_in_shared_memory(shmcow_store):
    shmcow_store.writer(initial=1).destroy()
    open(f"/dev/shm/shmcow.{shmcow_store}.{'0' * 32}.7", "w").close()

def test_second_store(shmcow_store, shmcow_store_factory):
    shmcow_store.writer(initial=1)
    keep.append(Writer(shmcow_store_factory(), initial=1))
"""
SAID = {
    "reader_in_a_global": "left behind: this process still reads store {store} (close readers",
    "writer_in_a_global": "left behind: this process still has shmcow.{store}.",
    "snapshot_in_a_global": "left behind: this process still holds version 1 of store {store} (",
    "hold_of_a_thread": "left behind: this process still holds version 1 of store {store} (",
    "subscription_that_goes_on": "left behind: this process still reads store {store} (",
    "child_that_reads": " still reads store {store} (python",
    "child_that_holds": " still holds version 1 of store {store} (python",
    "child_that_writes": " still has shmcow.{store}.",
    "child_that_has_a_destroyed_store_open": " still has shmcow.{store}.",
    "writer_that_does_not_finish": "left behind: store {store} cannot be destroyed: ",
    "name_in_shared_memory": "left behind: names in shared memory: shmcow.{store}.00000000000000000000000000000000.7",
    "second_store": "left behind: this process still has shmcow.pytest-",
}


def test_tests_that_leave_something_fail(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each at its end, with a line that says who has what; shared memory is clean afterwards all the same."""
    run = Run(pytester, monkeypatch, BAD, "-o", "shmcow_patience=0.2")
    failed = run.failed()
    assert set(failed) == {(f"test_{test}", "teardown") for test in SAID}, run.output
    assert run.status == pytest.ExitCode.TESTS_FAILED
    names = dict(zip([report.test for report in run.reports if report.when == "call"], run.stores, strict=True))
    for test, said in SAID.items():
        text = failed[f"test_{test}", "teardown"]
        assert said.format(store=names[f"test_{test}"]) in text, text
        assert text.startswith("left behind: ")
    run.assert_nothing_left()


def test_failing_test_is_not_blamed_for_what_its_traceback_keeps(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its frames, and so its readers, are kept by pytest; a child that it has left is told of all the same."""
    run = Run(
        pytester,
        monkeypatch,
        """
def test_fails(shmcow_store):
    shmcow_store.writer(initial=1)
    snapshot = Reader(shmcow_store).snapshot().hold()
    assert snapshot.version == 2

def test_skips(shmcow_store):
    writer = Writer(shmcow_store, initial=1)
    pytest.skip("half-way")

def test_fails_and_leaves_a_child(shmcow_store, child):
    shmcow_store.writer(initial=1)
    child(lambda: keep.append(Reader(shmcow_store).snapshot().hold()))
    assert 0
""",
        "-o",
        "shmcow_patience=0.2",
    )
    calls = [("test_fails", "call"), ("test_fails_and_leaves_a_child", "call"), ("test_skips", "call")]
    assert sorted(run.failed()) == sorted([*calls, ("test_fails_and_leaves_a_child", "teardown")]), run.output
    run.assert_nothing_left()


def test_forked_child_that_comes_back_takes_nothing_away(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that returns from the test goes through the end of its fixtures, too: the parent's store stays."""
    run = Run(
        pytester,
        monkeypatch,
        """
def test_forks(shmcow_store):
    writer = shmcow_store.writer(initial=1)
    pid = os.fork()
    if not pid:
        return
    assert os.waitpid(pid, 0)[1] == 0
    assert shmcow.describe(shmcow_store).version == 1
    assert writer.publish(2) == 2
""",
    )
    assert (run.failed(), run.status) == ({}, 0), run.output
    assert len(run.reports) == 2 * 3 - 1  # the set-up once, the rest by each
    run.assert_nothing_left()


def test_xdist_workers_do_not_meet(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers at the same time, with the same random numbers: all stores have names of their own."""
    pytest.importorskip("xdist", reason="needs pytest-xdist: pip install 'shmcow[test]'")
    tests = """
@pytest.mark.parametrize("n", range(8))
def test_store(shmcow_store, n):
    shmcow_store.writer(initial=n)
    assert shmcow_store.reader().get() == n
"""
    run = Run(pytester, monkeypatch, tests, "-p", "xdist.plugin", "-n", "2")
    assert (run.failed(), run.status) == ({}, 0), run.output
    assert len(set(run.stores)) == 8
    assert len({store.split("-")[1] for store in run.stores}) == 2
    run.assert_nothing_left()


def test_plugin_costs_a_run_nothing_that_does_not_use_it() -> None:
    """Every pytest run imports it: neither shmcow nor psutil comes with it, before a test asks for a store."""
    code = "import pytest, sys; before = set(sys.modules); import _shmcow_pytest; print(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["_shmcow_pytest"]


def test_plugin_is_an_entry_point() -> None:
    """pytest finds it wherever shmcow is installed."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["entry-points"]["pytest11"] == {"shmcow": "_shmcow_pytest"}
    assert settings["tool"]["setuptools"]["py-modules"] == ["_shmcow_pytest"]
