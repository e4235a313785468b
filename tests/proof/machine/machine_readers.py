"""What readers do, and what they keep."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import rule
from machine_base import DESTROYED, GONE, WHO, Base
from machine_model import Kept, Process, Where


class ReaderRules(Base):
    """Reading, waiting, holding, sending."""

    # ---- readers ----

    def _nothing(self, process: Process) -> str | tuple[str, ...] | None:
        """Why a reader has nothing to return."""
        if process.reader == "closed":
            return "ClosedError"
        if process.last is not None or self.model.now is not None:
            return None
        # The second, if it knew the store before that was destroyed.
        return ("StoreNotFoundError", DESTROYED) if self.model.store is None else "NotPublishedError"

    def _may_return(self, process: Process) -> list[Where]:
        """What a reader may return: what is current; of a store that has gone also its last good value."""
        now, last = self.model.now, process.last
        if now is not None and (last is None or last[0] == now[0]):
            return [now]
        return [where for where in (last, now) if where is not None]

    def _returned(self, said: tuple[str, int, Any, str]) -> Where:
        epoch, version, value, message = said
        where = epoch, version
        assert where in self.model.values, f"version {version} was never published"
        assert value == self.model.values[where]
        assert message == self.model.messages[where]
        return where

    @rule(who=WHO)
    def get(self, who: int) -> None:
        process = self.readers(who)
        why = self._nothing(process)
        if why is not None:
            return self.refused(why, who, "get")
        values = [self.model.values[where] for where in self._may_return(process)]
        for value in self.ask(who, "get"):
            assert value in values
        if len(values) == 1:
            process.last = self._may_return(process)[0]
        else:
            self._refresh(who)
        return None

    def _refresh(self, who: int) -> None:
        process = self.process(who)
        self.ask(who, "refresh")
        process.last = self.model.now or process.last

    @rule(who=WHO, refresh=st.booleans(), hold=st.booleans())
    def snapshot(self, who: int, refresh: bool, hold: bool) -> None:
        process = self.readers(who)
        why = self._nothing(process)
        if why is not None:
            return self.refused(why, who, "snapshot", self.next())
        if refresh:
            self._refresh(who)
        return self._take(who, hold)

    def _take(self, who: int, hold: bool) -> None:
        process, number = self.readers(who), self.next()
        allowed = self._may_return(process)
        where = self._returned(self.ask(who, "snapshot", number))
        assert where in allowed
        process.last = where
        process.kept[number] = Kept(where)
        if hold:
            self._hold(who, number)

    @rule(who=WHO, back=st.integers(0, 7))
    def at(self, who: int, back: int) -> None:
        process, now = self.readers(who), self.model.now
        number = self.next()
        if process.reader == "closed":
            return self.refused("ClosedError", who, "at", number, 1)
        if self.model.store is None:
            return self.refused(("StoreNotFoundError", DESTROYED), who, "at", number, 1)
        version = self.model.store.current - back
        if version < 1 or now is None:
            return self.refused(GONE, who, "at", number, self.model.store.current + 1)
        where = now[0], version
        if not self.model.can_hold(process, where) and where not in [kept.where for kept in process.kept.values()]:
            return self.refused(GONE, who, "at", number, version)
        answer = self.say(who, "at", number, version)
        if answer == ("error", GONE):
            assert not self.model.can_hold(process, where)
            return None
        assert self._returned(answer[1]) == where
        process.kept[number] = Kept(where)
        return None

    @rule(who=WHO, back=st.sampled_from([None, 0, 1]))
    def wait(self, who: int, back: int | None) -> None:
        process, now = self.readers(who), self.model.now
        if now is None or process.reader == "closed" or (process.last is not None and process.last[0] != now[0]):
            return None
        number = self.next()
        if back is None or back == 0:
            return self.refused("WaitTimeoutError", who, "wait", number, None if back is None else now[1])
        where = self._returned(self.ask(who, "wait", number, now[1] - back))
        assert where == now
        process.last = where
        process.kept[number] = Kept(where)
        return None

    @rule(who=WHO, odds=st.integers(0, 3))
    def close_a_reader(self, who: int, odds: int) -> None:
        process = self.process(who)
        if process.reader == "open" and not odds:
            self.ask(who, "close_reader")
            process.reader, process.last = "closed", None

    @rule(who=WHO)
    def open_a_reader(self, who: int) -> None:
        process = self.process(who)
        self.ask(who, "open_reader")
        process.reader, process.last = "open", None

    @rule(who=WHO)
    def fork_a_reader(self, who: int) -> None:
        process = self.readers(who)
        if self._nothing(process) is not None:
            return
        value, held = self.ask(who, "fork")
        allowed = self._may_return(process)
        assert value in [self.model.values[where] for where in allowed]
        now = self.model.now
        if now is not None and allowed == [now]:
            mine = [kept for kept in process.everything() if kept.holds and kept.where[0] == now[0]]
            # What was received from another process the child holds only when it uses it.
            assert {kept.where[1] for kept in mine if not kept.received} <= set(held)
            assert set(held) <= {kept.where[1] for kept in mine}

    # ---- what is kept ----

    def _some(self, who: int, pick: int) -> tuple[Process, int | None]:
        process = self.process(who)
        numbers = sorted(process.kept)
        return process, numbers[-1 - pick % len(numbers)] if numbers else None

    @rule(who=WHO, pick=st.integers(0, 5), times=st.integers(1, 3), back=st.integers(0, 2))
    def hold(self, who: int, pick: int, times: int, back: int) -> None:
        """Hold some times, and let go of some of these holds."""
        process, number = self._some(who, pick)
        if number is None:
            return
        for _ in range(times):
            self._hold(who, number)
        for _ in range(min(back, process.kept[number].holds)):
            process.kept[number].holds -= 1
            self.ask(who, "release", number)

    def _hold(self, who: int, number: int) -> None:
        process = self.process(who)
        kept = process.kept[number]
        if not self.model.can_hold(process, kept.where):
            return self.refused((GONE, DESTROYED), who, "hold", number)
        if self._had_if_alive(kept.where, self.say(who, "hold", number)):
            kept.holds += 1
        return None

    def _had_if_alive(self, where: Where, answer: tuple[str, Any]) -> bool:
        """A version of a store that has gone can be held again only through the very Store that holds it already."""
        if answer[0] == "error":
            assert answer[1] in (GONE, DESTROYED)
            assert self.model.store is None or self.model.store.epoch != where[0], f"{where[1]} could not be held"
        return answer[0] == "ok"

    @rule(who=WHO, pick=st.integers(0, 5))
    def release(self, who: int, pick: int) -> None:
        process, number = self._some(who, pick)
        if number is not None and process.kept[number].holds:
            process.kept[number].holds -= 1
            self.ask(who, "release", number)

    @rule(who=WHO, pick=st.integers(0, 5))
    def drop(self, who: int, pick: int) -> None:
        process, number = self._some(who, pick)
        if number is not None:
            self.ask(who, "drop", number, process.kept.pop(number).holds)

    @rule(who=WHO, pick=st.integers(0, 5))
    def view(self, who: int, pick: int) -> None:
        process, number = self._some(who, pick)
        if number is None or number in process.views:
            return None
        where = process.kept[number].where
        if not self.model.can_hold(process, where):
            return self.refused((GONE, DESTROYED), who, "view", number)
        answer = self.say(who, "view", number)
        if self._had_if_alive(where, answer):
            assert answer[1] == encoded(self.model.values[where])
            process.views[number] = Kept(where, 1, process.kept[number].received)
        return None

    @rule(who=WHO)
    def drop_a_view(self, who: int) -> None:
        process = self.process(who)
        if process.views:
            number = min(process.views)
            del process.views[number]
            self.ask(who, "drop_view", number)

    @rule(who=WHO, to=WHO, pick=st.integers(0, 5), late=st.booleans())
    def send(self, who: int, to: int, pick: int, late: bool) -> None:
        """Pickle a snapshot; it is received at once, or late (or never)."""
        process, number = self._some(who, pick)
        if number is None:
            return
        kept = process.kept[number]
        answer, result = self.say(who, "send", number)
        if answer == "error" and not self.model.can_hold(process, kept.where):
            assert result in (GONE, DESTROYED)
            return
        if not self._had_if_alive(kept.where, (answer, result)):
            return
        raw, took = result
        kept.holds += took
        self.sent = raw, kept.where
        if not late:
            self.receive(to)

    @rule(who=WHO)
    def receive_late(self, who: int) -> None:
        self.receive(who)

    def receive(self, who: int) -> None:
        if self.sent is None:
            return None
        raw, where = self.sent
        process, number = self.process(who), self.next()
        self.sent = None
        if not self.model.can_hold(process, where):
            return self.refused((GONE, DESTROYED), who, "receive", number, raw)
        answer, result = self.say(who, "receive", number, raw)
        if answer == "error":  # what has gone, and is held here, can be had only if the very same was sent or received
            assert result == DESTROYED
            assert self.model.store is None or self.model.store.epoch != where[0]
            return None
        epoch, version, value = result
        assert (epoch, version) == where
        assert value == self.model.values[where]
        process.kept[number] = Kept(where, 1, received=True)
        return None


def encoded(value: Any) -> bytes:
    """Return the payload that a value is published as."""
    return msgspec.msgpack.encode(value)
