"""Logger levels that follow a store: what is set, what goes back, what is refused, and what forked workers do."""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from typing import Any

import processes
import pytest
from processes import Child, Link, until

from shmcow import ClosedError, Reader, Writer
from shmcow.contrib.logging import LevelFollower, follow_levels


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of the test's own."""
    made = logging.getLogger(f"shmcow-test-{secrets.token_hex(4)}")
    yield made
    made.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def root_and_threads_as_before() -> Iterator[None]:
    """Fail a test after which the root logger has another level, or a thread is left."""
    level, threads = logging.getLogger().level, threading.active_count()
    yield
    until(lambda: threading.active_count() <= threads, f"threads end: {threading.enumerate()}")
    assert logging.getLogger().level == level


def test_levels_are_in_force_at_once_and_follow_each_version(name: str, logger: logging.Logger) -> None:
    """Names in any case and numbers, of loggers and of their children; nobody waits for the first version."""
    child = logger.getChild("db")
    with Writer(name, initial={logger.name: "info", child.name: 15}) as writer, Reader(name) as reader:
        with follow_levels(reader) as follower:
            assert (logger.level, child.level) == (logging.INFO, 15)
            assert child.isEnabledFor(15)
            writer.publish({logger.name: "ERROR", child.name: "Warning"})
            until(lambda: (logger.level, child.level) == (logging.ERROR, logging.WARNING), "the levels follow")
            assert not child.isEnabledFor(15)
            assert follower.levels == {logger.name: logging.ERROR, child.name: logging.WARNING}
            assert (follower.problem, follower.failures) == (None, 0)
            assert repr(follower) == "<LevelFollower, 2 loggers>"
        assert (logger.level, child.level) == (logging.NOTSET, logging.NOTSET)
        assert repr(follower) == "<LevelFollower, ended>"


@pytest.mark.parametrize("root", ["", "root"])
def test_root_logger_has_two_names(name: str, root: str) -> None:
    """Both the empty name and "root" are the root logger, which goes back to its own level like any other."""
    before = logging.getLogger().level
    with Writer(name, initial={root: "CRITICAL"}), Reader(name) as reader, follow_levels(reader):
        assert logging.getLogger().level == logging.CRITICAL
    assert logging.getLogger().level == before


def test_level_that_disappears_goes_back_to_what_it_was(name: str, logger: logging.Logger) -> None:
    """Not to NOTSET: to the level that the program had given it, however often the store has changed it."""
    logger.setLevel(logging.ERROR)
    other = logger.getChild("other")
    with Writer(name, initial={logger.name: "INFO"}) as writer, Reader(name) as reader, follow_levels(reader):
        writer.publish({logger.name: "DEBUG", other.name: 1})
        until(lambda: logger.level == logging.DEBUG, "the level follows")
        writer.publish({other.name: 2})
        until(lambda: (logger.level, other.level) == (logging.ERROR, 2), "the level goes back")
        writer.publish({})
        until(lambda: other.level == logging.NOTSET, "the other goes back")


def test_level_that_somebody_else_sets_is_what_it_goes_back_to(name: str, logger: logging.Logger) -> None:
    """The store wins with its next version; without the store the last one who set it does."""
    other = logger.getChild("other")
    with Writer(name, initial={logger.name: "INFO"}) as writer, Reader(name) as reader, follow_levels(reader):
        logger.setLevel(logging.ERROR)
        writer.publish({logger.name: "DEBUG", other.name: 3})
        until(lambda: logger.level == logging.DEBUG, "the store wins")
        other.setLevel(7)
        writer.publish({})
        until(lambda: logger.level == logging.ERROR, "the level goes back")
    assert other.level == 7


BAD: dict[str, Callable[[str], Any]] = {
    "an unknown name": lambda logger: {logger: "LOUD"},
    "no name": lambda logger: {logger: ""},
    "a negative number": lambda logger: {logger: -1},
    "a truth": lambda logger: {logger: True},
    "nothing": lambda logger: {logger: None},
    "a nested mapping": lambda logger: {logger: {"level": "DEBUG"}},
    "a number for a logger": lambda logger: {logger: "DEBUG", 5: "DEBUG"},
    "a list": lambda logger: [logger, "DEBUG"],
    "one bad among good ones": lambda logger: {logger: "DEBUG", f"{logger}.other": "LOUD"},
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_level_leaves_all_levels_as_they_were(
    name: str, logger: logging.Logger, caplog: pytest.LogCaptureFixture, bad: Callable[[str], Any]
) -> None:
    """None of a bad version's levels is set; it is logged once, without the value, and counted; the next is used."""
    with Writer(name, initial={logger.name: "INFO"}) as writer, Reader(name) as reader:
        with follow_levels(reader) as follower:
            writer.publish(bad(logger.name))
            until(lambda: follower.failures, "it is counted")
            assert logger.level == logging.INFO
            assert isinstance(follower.problem, (TypeError, ValueError))
            assert follower.problem.__traceback__ is None
            writer.publish({logger.name: "ERROR"})
            until(lambda: follower.problem is None, "the next version is used")
            assert (logger.level, follower.failures) == (logging.ERROR, 1)
        (record,) = [record for record in caplog.records if record.name == "shmcow"]
        assert record.getMessage().startswith(f"levels of version 2 of store {name} stay unused: ")
        assert "LOUD" not in record.getMessage()


class Picky(logging.Logger):
    """A logger of a program's own that refuses some levels, before or after it has set them."""

    refused: tuple[int, ...] = ()
    late = False

    def setLevel(self, level: int | str) -> None:  # noqa: N802 - the name is that of the library
        if self.late:
            super().setLevel(level)
        if level in self.refused:
            raise ValueError(f"{level} is not for me")
        super().setLevel(level)


@pytest.fixture
def picky(logger: logging.Logger) -> Picky:
    """A child of the logger, made by the library as any other."""
    logging.setLoggerClass(Picky)
    try:
        made = logger.getChild("picky")
    finally:
        logging.setLoggerClass(logging.Logger)
    assert isinstance(made, Picky)
    return made


@pytest.mark.parametrize("late", [False, True])
def test_level_that_a_logger_refuses_leaves_all_levels_as_they_were(
    name: str, logger: logging.Logger, picky: Picky, caplog: pytest.LogCaptureFixture, late: bool
) -> None:
    """Those before it, behind it, and those that had gone back; also what somebody else has set; it is named."""
    gone, behind = logger.getChild("gone"), logger.getChild("behind")
    first = {logger.name: "INFO", gone.name: "INFO", picky.name: "INFO"}
    with (
        Writer(name, initial=first) as writer,
        Reader(name) as reader,
        follow_levels(reader) as follower,
    ):
        logger.setLevel(33)  # by a debugger
        picky.refused, picky.late = (logging.DEBUG, logging.INFO), late
        writer.publish({logger.name: "DEBUG", picky.name: "DEBUG", behind.name: "DEBUG"})
        until(lambda: follower.failures, "it is counted")
        assert [each.level for each in (logger, gone, picky, behind)] == [33, 20, 20, 0]
        assert follower.levels == {logger.name: 20, gone.name: 20, picky.name: 20}
        said = f"the level of logger '{picky.name}' could not be set: Picky.setLevel raised ValueError"
        assert str(follower.problem) == said
        (record,) = [record for record in caplog.records if record.name == "shmcow"]
        assert record.getMessage() == f"levels of version 2 of store {name} stay unused: {said}"
        writer.publish({logger.name: "ERROR", picky.name: "ERROR"})
        until(lambda: follower.problem is None, "the next version is used")
        assert [each.level for each in (logger, gone, picky, behind)] == [40, 0, 40, 0]
    assert [each.level for each in (logger, gone, picky, behind)] == [33, 0, 0, 0]


def test_logger_that_refuses_to_go_back_has_its_level_back(name: str, logger: logging.Logger, picky: Picky) -> None:
    """A version is used as a whole or not at all, even if a logger would rather keep the new level."""
    with Writer(name, initial={}) as writer, Reader(name) as reader, follow_levels(reader) as follower:
        picky.setLevel(logging.INFO)
        picky.refused = (logging.INFO,)
        logger.__class__ = Picky
        logger.refused = (logging.DEBUG,)  # type: ignore[attr-defined]
        writer.publish({picky.name: "DEBUG", logger.name: "DEBUG"})
        until(lambda: follower.failures, "it is counted")
        assert (picky.level, logger.level) == (logging.INFO, logging.NOTSET)


def test_logger_that_refuses_its_own_level_keeps_no_other_from_it(
    name: str, logger: logging.Logger, picky: Picky
) -> None:
    """Who ends to follow is told which; a second call tries that one again."""
    behind = logger.getChild("behind")
    first = {logger.name: "INFO", picky.name: "INFO", behind.name: "INFO"}
    with Writer(name, initial=first), Reader(name) as reader:
        stop = follow_levels(reader)
        picky.refused = (logging.NOTSET,)
        with pytest.raises(RuntimeError, match=rf"the level of logger '{picky.name}' could not be set"):
            stop()
        assert [each.level for each in (logger, picky, behind)] == [0, 20, 0]
        picky.refused = ()
        stop()
        assert picky.level == logging.NOTSET


def test_bad_first_version_is_counted_once(name: str, logger: logging.Logger) -> None:
    """It is met twice, by who starts to follow and by the thread, and counted and logged for one."""
    with (
        Writer(name, initial={logger.name: "LOUD"}) as writer,
        Reader(name) as reader,
        follow_levels(reader) as follower,
    ):
        assert follower.failures == 1
        writer.publish({logger.name: "DEBUG"})
        until(lambda: logger.level == logging.DEBUG, "the thread has met both")
        assert follower.failures == 1


def test_pick_takes_the_mapping_out_of_a_larger_value(name: str, logger: logging.Logger) -> None:
    """What it raises is a bad version like any other."""
    with (
        Writer(name, initial={"log": {logger.name: "INFO"}}) as writer,
        Reader(name) as reader,
        follow_levels(reader, pick=lambda config: config["log"]) as follower,
    ):
        assert logger.level == logging.INFO
        writer.publish({"timeout": 1})
        until(lambda: follower.failures, "it is counted")
        assert isinstance(follower.problem, KeyError)
        assert logger.level == logging.INFO


def test_custom_level_names_are_known(name: str, logger: logging.Logger) -> None:
    """What logging.addLevelName() has made is a level, as it is spelled."""
    logging.addLevelName(7, "Trace")
    with Writer(name, initial={logger.name: "Trace"}), Reader(name) as reader, follow_levels(reader):
        assert logger.level == 7


def test_store_that_comes_later_is_waited_for(name: str, logger: logging.Logger) -> None:
    """Following starts before there is a store; after it was destroyed, levels stay until it is unsubscribed."""
    with Reader(name) as reader, follow_levels(reader):
        assert logger.level == logging.NOTSET
        with Writer(name, initial={logger.name: "DEBUG"}) as writer:
            until(lambda: logger.level == logging.DEBUG, "the levels follow")
            writer.destroy()
        reader.refresh()
        assert logger.level == logging.DEBUG
    assert logger.level == logging.NOTSET


def test_after_unsubscribing_nothing_is_set(name: str, logger: logging.Logger) -> None:
    """Any number of times; a version that is published later changes nothing."""
    with Writer(name, initial={logger.name: "DEBUG"}) as writer, Reader(name) as reader:
        follower = follow_levels(reader)
        follower()
        follower()
        writer.publish({logger.name: "ERROR"})
        follower._apply(None, reader.snapshot())  # a call that had begun before
        assert (logger.level, follower.levels) == (logging.NOTSET, {})


def test_wrong_arguments_are_refused(name: str) -> None:
    """At the call, and not in a thread."""
    with Writer(name, initial={}), Reader(name) as reader:
        with pytest.raises(TypeError, match="pick= is a callable"):
            follow_levels(reader, pick="log")  # type: ignore[arg-type]
        reader.close()
        with pytest.raises(ClosedError):
            follow_levels(reader)


# ---- forked workers ----


def _worker(link: Link, follower: LevelFollower, logger: logging.Logger) -> None:
    while (asked := link.recv()) != "end":
        if isinstance(asked, int):
            until(lambda: logger.level == asked, f"level {asked}")
        elif asked == "unsubscribe":
            follower()
        link.send((os.getpid(), logger.level, follower.failures))


def test_forked_workers_follow_each_by_itself(name: str, logger: logging.Logger, spawn: Callable[..., Child]) -> None:
    """A child starts with its parent's levels and follows on; its unsubscribing, and its end, is its own."""
    logger.setLevel(logging.ERROR)
    with Writer(name, initial={logger.name: "INFO"}) as writer, Reader(name) as reader:
        with follow_levels(reader) as follower:
            workers = [spawn(_worker, follower, logger) for _ in range(3)]
            for worker in workers:
                assert worker.ask("now") == (worker.pid, logging.INFO, 0)
            writer.publish({logger.name: "DEBUG"})
            for worker in workers:
                assert worker.ask(logging.DEBUG) == (worker.pid, logging.DEBUG, 0)
            assert workers[0].ask("unsubscribe") == (workers[0].pid, logging.ERROR, 0)
            workers[1].kill()
            writer.publish({logger.name: "LOUD"})
            writer.publish({logger.name: "WARNING"})
            assert workers[2].ask(logging.WARNING)[:2] == (workers[2].pid, logging.WARNING)
            until(lambda: logger.level == logging.WARNING, "the parent follows")
            assert workers[0].ask("now") == (workers[0].pid, logging.ERROR, 0)
            writer.publish({})
            workers[2].ask(logging.ERROR)
        for worker in (workers[0], workers[2]):
            worker.send("end")
            worker.done()
    assert logger.level == logging.ERROR


def test_child_forked_while_levels_are_being_set_ends_up_with_them(
    name: str, logger: logging.Logger, spawn: Callable[..., Child]
) -> None:
    """The parent's thread is stopped in the middle, with the lock taken; the child sets all of them by itself."""
    inside, go_on = threading.Event(), threading.Event()
    parent = os.getpid()

    def pick(value: Any) -> Any:
        if value["version"] == 2 and os.getpid() == parent:
            inside.set()
            assert go_on.wait(processes.WATCHDOG)
        return value["levels"]

    first = {"version": 1, "levels": {logger.name: "INFO"}}
    with Writer(name, initial=first) as writer, Reader(name) as reader, follow_levels(reader, pick=pick) as follower:
        writer.publish({"version": 2, "levels": {logger.name: "DEBUG"}})
        assert inside.wait(processes.WATCHDOG)
        worker = spawn(_worker, follower, logger)
        assert worker.ask(logging.DEBUG) == (worker.pid, logging.DEBUG, 0)
        assert logger.level == logging.INFO
        assert worker.ask("unsubscribe") == (worker.pid, logging.NOTSET, 0)
        worker.send("end")
        worker.done()
        go_on.set()
        until(lambda: logger.level == logging.DEBUG, "the parent goes on")
