"""The feed's state in the header: one holder of the feed lock, whole states only, and what is told of them."""

from __future__ import annotations

import datetime
import json
import math
import os
import struct
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "concurrency"))

from cli_runs import STRANGER, ran
from processes import Child, Link

import shmcow
from shmcow import Reader, Writer, _core, inspect, segments
from shmcow.feed.lock import Feed
from shmcow.feeding import FeedState
from shmcow.store import attach

TURN, SLOTS, BYTES = 99_328, 99_392, 512
STATES = ((1, 2, 3, 4, 5), (6, 7, 8, 9))


def header(name: str) -> Path:
    return Path(segments.header_path(name))


def poke(name: str, offset: int, data: bytes) -> None:
    with header(name).open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_a_store_that_was_never_fed_says_so(name: str) -> None:
    """No state, no staleness, no lock."""
    with Writer(name, initial=1), Reader(name) as r:
        assert shmcow.describe(name).feed is None
        assert r.staleness() is None
        assert not attach(name).feeding()


def test_staleness_without_a_store_is_infinite_for_a_reader_with_a_default(name: str) -> None:
    """A health check of a worker that answers with its default gets a number; one without a default is told."""
    assert Reader(name, default=None).staleness() == math.inf
    with pytest.raises(shmcow.StoreNotFoundError):
        Reader(name).staleness()


def test_state_is_where_the_layout_says(name: str) -> None:
    """Each field is read back, from the slot that the turn shows."""
    with Writer(name, initial=1):
        core = _core.FeedCore(attach(name))
        assert core.take()
        for turn in (1, 2, 3):
            core.show(*STATES, b"a source %d" % turn, b"an error")
            data = header(name).read_bytes()
            assert struct.unpack_from("<Q", data, TURN)[0] == turn
            slot = data[SLOTS + turn % 2 * BYTES :][:BYTES]
            assert struct.unpack_from("<9Q", slot) == (1, 2, 3, 4, 5, 6, 7, 8, 9)
            assert struct.unpack_from("<II", slot, 72) == (os.getpid(), os.geteuid())
            assert slot[80:90] == b"a source %d" % turn
            assert slot[208:217] == b"an error\0"
        assert attach(name).feed() == {
            "started_ns": 1, "every_ns": 2, "contact_ns": 3, "success_ns": 4, "failed_ns": 5, "contacts": 6,
            "publishes": 7, "failures": 8, "failures_in_a_row": 9, "pid": os.getpid(), "uid": os.geteuid(),
            "source": "a source 3", "error": "an error",
        }  # fmt: skip
        core.release()


def test_death_in_the_middle_leaves_the_state_before(name: str) -> None:
    """Whatever stands in the slot that is not shown, the other one is read, and the next follower writes over it."""
    with Writer(name, initial=1):
        feed = Feed(name, "a source", None)
        feed.succeed(True)
        before = shmcow.describe(name).feed
        turn = struct.unpack_from("<Q", header(name).read_bytes(), TURN)[0]
        poke(name, SLOTS + (turn + 1) % 2 * BYTES, b"\xee" * 100)
        assert shmcow.describe(name).feed == before
        feed.release()
        again = Feed(name, "a source", None)
        again.succeed(False)
        found = shmcow.describe(name).feed
        assert found is not None
        assert (found.publishes, found.damaged) == (1, False)
        again.release()


@pytest.mark.parametrize("offset", [0, 80, 208, 464, 508], ids=["number", "source", "error", "reserved", "crc"])
def test_damaged_state_is_told_and_mended_by_the_next(name: str, offset: int) -> None:
    """It is damage, not a state; no value is touched; the next state is whole."""
    with Writer(name, initial=1), Reader(name) as r:
        feed = Feed(name, "a source", None)
        turn = struct.unpack_from("<Q", header(name).read_bytes(), TURN)[0]
        at = SLOTS + turn % 2 * BYTES + offset
        poke(name, at, bytes([header(name).read_bytes()[at] ^ 16]))
        assert shmcow.describe(name).feed == FeedState(running=True, damaged=True)
        assert r.staleness() == math.inf
        assert r.get() == 1
        with pytest.raises(
            shmcow.CorruptSegmentError, match=r"the feed's state in .* is damaged: restart its follower"
        ):
            attach(name).feed()
        assert [found.what for found in inspect.diagnose(name) if found.check == "feed"] == [
            "the feed's state is damaged"
        ]
        feed.release()
        Feed(name, "another", None).release()
        found = shmcow.describe(name).feed
        assert found is not None
        assert (found.source, found.damaged) == ("another", False)


def test_staleness_is_infinite_after_the_clock_was_set_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A success in the future is no success of this moment: the feed may have died an hour ago."""
    with Writer(name, initial=1), Reader(name) as r:
        feed = Feed(name, "a source", None)
        feed.succeed(False)
        now = time.time_ns()
        for back, stale in ((0.0, False), (2.0, False), (60.0, True)):
            monkeypatch.setattr(time, "time_ns", lambda back=back: now - int(back * 1e9))
            assert (r.staleness() == math.inf) == stale
        feed.release()


def test_counts_go_on_and_the_last_success_stays(name: str) -> None:
    """A follower that is started again does not make stale values look fresh, and no count is lost."""
    with Writer(name, initial=1), Reader(name) as r:
        first = Feed(name, "a source", 2.5)
        assert r.staleness() == math.inf
        first.contact()
        first.succeed(True)
        first.contact()
        first.fail("it went away")
        first.contact()
        first.fail("it is still away")
        before = shmcow.describe(name).feed
        first.release()
        second = Feed(name, "another source", None)
        after = shmcow.describe(name).feed
        assert before is not None
        assert after is not None
        assert (before.every, after.every) == (2.5, None)
        assert after.started_at > before.started_at
        assert after.last_success == before.last_success
        assert (after.contacts, after.publishes, after.failures, after.failures_in_a_row) == (3, 1, 2, 2)
        assert (after.last_error, after.source) == ("it is still away", "another source")
        stale = r.staleness()
        assert stale is not None
        assert before.last_success is not None
        assert 0 < stale <= time.time() - before.last_success + 1
        second.succeed(False)
        found = shmcow.describe(name).feed
        assert found is not None
        assert (found.failures_in_a_row, found.failures, found.publishes) == (0, 2, 1)
        second.release()


def test_texts_are_cut_to_their_place(name: str) -> None:
    """Long ones lose their end, at a character's border."""
    with Writer(name, initial=1):
        feed = Feed(name, "é" * 100, None)
        feed.fail("ü" * 200)
        found = shmcow.describe(name).feed
        assert found is not None
        assert (found.source, found.last_error) == ("é" * 64, "ü" * 128)
        with pytest.raises(ValueError, match="longer than its place"):
            feed._core.show(*STATES, b"x" * 129, b"")
        feed.release()
        with pytest.raises(RuntimeError, match="feed lock is not held"):
            feed._core.show(*STATES, b"x", b"")


def test_one_follower_and_the_second_is_told_who(name: str) -> None:
    """Also within one process; and the writer lock is not in its way."""
    with Writer(name, initial=1) as w:
        feed = Feed(name, "a source", None)
        assert w.publish(2) == 2
        with pytest.raises(shmcow.FollowerBusyError, match=rf"is fed already, by pid {os.getpid()} .*this process"):
            Feed(name, "another", None)
        feed.release()
        assert not attach(name).feeding()
        Feed(name, "another", None).release()


def test_a_forked_child_has_no_feed_lock(name: str) -> None:
    """Neither does it keep its parent's beyond the parent's release, nor can it write the state."""

    def child(link: Link, feed: Feed) -> None:
        link.send((feed._core.taken, feed.is_current()))
        feed.fail("not mine to say")
        link.recv()

    with Writer(name, initial=1):
        feed = Feed(name, "a source", None)
        other = Child(child, feed)
        try:
            assert other.recv() == (False, False)
            feed.release()
            assert not attach(name).feeding()
            other.send("end")
            other.done()
        finally:
            other.end()
        found = shmcow.describe(name).feed
        assert found is not None
        assert found.failures == 0


def test_a_lost_lock_file_is_an_error_of_its_own(name: str) -> None:
    """Without the file there is no feed lock to take."""
    with Writer(name, initial=1) as w:
        store = attach(name)
        os.unlink(store.prefix + "lock")
        with pytest.raises(FileNotFoundError):
            _core.FeedCore(store).take()
        assert not store.feeding()
        w.publish(2)


def test_gc_and_doctor_take_a_follower_for_no_writer(name: str) -> None:
    """The feed lock is not the writer lock: what a dead writer left is found beside a follower."""
    with Writer(name, initial=1, retain=0) as w:
        feed = Feed(name, "a source", None)
        place = struct.unpack_from("<Q", header(name).read_bytes(), 256)[0] >> 48
        poke(name, 512 + 8 * (place + 1), struct.pack("<Q", 9 << 16 | 1))
        poke(name, 1024 + 1536 * (place + 1), bytes(1536))
        assert [item.version for item in inspect.garbage(name)] == [9]
        assert w.publish(2) == 2
        feed.release()


def test_stat_and_doctor_tell_of_the_feed(name: str) -> None:
    """For people, for scripts, as JSON; and what to do."""
    with Writer(name, initial=1):
        feed = Feed(name, "/etc/app\x1b.toml", 10.0)
        feed.contact()
        feed.succeed(True)
        feed.fail("line 3: it is malformed")
        shown = ran("stat", name, "-o", "table").out
        assert f"/etc/app\\x1b.toml, every 10 s, by pid {os.getpid()}" in shown
        assert "1 contact, 1 publish, 1 failure\n" in shown
        assert "(1 in a row): line 3: it is malformed" in shown
        rows = dict(line.split("\t", 1) for line in ran("stat", name).out.split("\n\n")[0].splitlines())
        assert (rows["feed_running"], rows["feed_failures"], rows["feed_every"]) == ("True", "1", "10.0")
        for moment in ("feed_started_at", "feed_last_contact", "feed_last_success", "feed_last_error_at"):
            assert 0 <= time.time() - datetime.datetime.fromisoformat(rows[moment]).timestamp() < 3600
            assert rows[moment].endswith("+00:00")
        told = json.loads(ran("stat", name, "--json").out)["feed"]
        assert (told["running"], told["last_error"]) == (True, "line 3: it is malformed")
        found = [item for item in inspect.diagnose(name) if item.check == "feed"]
        assert [item.level for item in found] == ["warning"]
        assert "failed 1 time in a row" in found[0].what
        feed.contact()
        feed.succeed(False)
        assert "2 contacts, 1 publish, 1 failure\n" in ran("stat", name, "-o", "table").out
        assert not [item for item in inspect.diagnose(name) if item.check == "feed"]
        feed.release()
        assert "nobody any more" in ran("stat", name, "-o", "table").out
        found = [item for item in inspect.diagnose(name) if item.check == "feed"]
        assert "nothing feeds it any more" in found[0].what
        assert f"shmcow follow /etc/app\x1b.toml {name}" in found[0].fix


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: run as root")
def test_other_users_see_whether_a_follower_runs(name: str) -> None:
    """They may not open the lock file; the kernel says in /proc/locks what is locked in it."""
    with Writer(name, initial=1, mode=0o644):
        feed = Feed(name, "a source", None)
        assert json.loads(ran("stat", name, "--json", user=STRANGER).out)["feed"]["running"] is True
        feed.release()
        assert json.loads(ran("stat", name, "--json", user=STRANGER).out)["feed"]["running"] is False
