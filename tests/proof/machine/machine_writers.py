"""What writers do, and how processes die."""

from __future__ import annotations

import os
import signal
from typing import Any

import processes
from hypothesis import strategies as st
from hypothesis.stateful import rule
from machine_base import DESTROYED, GONE, WHO, Base
from machine_model import Process

import shmcow


class WriterRules(Base):
    """Publishing, keeping house, destroying, dying."""

    # ---- writers ----

    @rule(who=WHO, retain=st.sampled_from([None, None, 0, 1, 2, 6]))
    def open_a_writer(self, who: int, retain: int | None) -> None:
        self._open_writer(who, retain)

    @rule(who=WHO, said=st.sampled_from(["", "why"]))
    def publish(self, who: int, said: str) -> None:
        if not self.writers(who):
            return self.refused("ClosedError", who, "publish", {}, None, "")
        value = self.new_value()
        version = self.ask(who, "publish", value, None, said)
        store = self.model.store
        if store is None:  # publish() creates it again
            # What the writer asked for when it was made counts again; here: what open_a_writer() passed.
            report = shmcow.describe(self.name)
            store = self._born(report.retain)
        self.process(who).writer = store.epoch
        assert version == self.model.publish(value, said)
        return None

    @rule(who=WHO, off=st.sampled_from([0, 0, 1, -1]))
    def publish_expected(self, who: int, off: int) -> None:
        value = self.new_value()
        why = self._cannot_change(who)
        store = self.model.store
        if why in ("ClosedError", DESTROYED):
            return self.refused(why, who, "publish", value, 1, "")
        assert store is not None
        expected = max(store.current + off, 0)
        if expected != store.current:
            self.model.turn()
            return self.refused("VersionConflictError", who, "publish", value, expected, "")
        self._change(who, value, "publish", value, expected, "")
        return None

    @rule(who=WHO, verb=st.sampled_from(["update", "patch", "edit", "swap", "update_that_fails", "add a key"]))
    def change(self, who: int, verb: str) -> None:
        why = self._cannot_change(who)
        number = self.next()
        value = {"n": number, "list": [number]}
        arguments: dict[str, tuple[Any, ...]] = {
            "update": (number,),
            "patch": ({"n": number},),
            "add a key": ({"more": number},),
            "edit": (number,),
            "swap": (value,),
            "update_that_fails": (),
        }
        what = "patch" if verb == "add a key" else verb
        if why is not None:
            return self.refused(why, who, what, *arguments[verb])
        old = self.model.value
        self.model.turn()
        if verb == "update_that_fails":
            return self.refused("ValidationError", who, what)
        news = {
            "update": {**old, "n": old["n"] + number},
            "patch": {**old, "n": number},
            "add a key": {**old, "more": number},
            "edit": {**old, "list": [*old["list"], number]},
            "swap": value,
        }
        result = self._change(who, news[verb], what, *arguments[verb])
        assert verb != "swap" or result[1] == old
        return None

    @rule(who=WHO, back=st.sampled_from([None, None, 0, 1, 2, 5]))
    def rollback(self, who: int, back: int | None) -> None:
        why = self._cannot_change(who)
        if why is not None:
            return self.refused(why, who, "rollback", None)
        store = self.model.store
        assert store is not None
        to = self.model.before() if back is None else store.current - back
        if back is not None and to < 1:
            return None
        given = None if back is None else to
        if to not in store.table:
            self.model.turn()
            return self.refused(GONE, who, "rollback", given)
        message = f"roll back from {store.current} to {to}"
        value = self.model.values[store.epoch, to]
        self._change(who, value, "rollback", given, origin=to, message=message)
        return None

    @rule(who=WHO)
    def reclaim(self, who: int) -> None:
        why = self._cannot_change(who)
        if why in ("ClosedError", DESTROYED):
            return self.refused(why, who, "reclaim")
        self.model.turn()
        gone = self.model.reclaim()
        assert self.ask(who, "reclaim") == gone
        return None

    @rule(who=WHO, back=st.integers(1, 4))
    def wait_unused(self, who: int, back: int) -> None:
        store = self.model.store
        if self._cannot_change(who) is not None or store is None or store.current <= back:
            return None
        version = store.current - back
        if self.model.is_held(version):
            return self.refused("WaitTimeoutError", who, "unused", version)
        return self.ask(who, "unused", version)

    @rule(who=WHO, odds=st.integers(0, 3))
    def close_a_writer(self, who: int, odds: int) -> None:
        if self.process(who).writer and not odds:
            self.ask(who, "close_writer")
            self.process(who).writer = ""

    @rule(who=WHO, by_name=st.booleans(), odds=st.integers(0, 3))
    def destroy(self, who: int, by_name: bool, odds: int) -> None:
        if odds:
            return None
        if by_name:
            if self.model.store is None:
                return self.refused("StoreNotFoundError", who, "destroy_by_name")
            self.ask(who, "destroy_by_name")
        else:
            why = self._cannot_change(who)
            if why in ("ClosedError", DESTROYED):
                return self.refused(why, who, "destroy")
            self.ask(who, "destroy")
        self.model.store = None
        assert not processes.objects_of(self.name)
        return None

    # ---- deaths ----

    @rule(who=WHO, how=st.sampled_from(["idle", "die_in_update", "die_in_fill"]), odds=st.integers(0, 3))
    def kill(self, who: int, how: str, odds: int) -> None:
        if odds:
            return
        if how != "idle" and self._cannot_change(who) is None:
            child = self.pool.children[who]
            self.pool.counts[how] += 1
            child.send((how, ()))
            assert child.wait() == -(signal.SIGKILL if how == "die_in_update" else signal.SIGXFSZ)
            assert self.model.store is not None
            self.model.turn()  # its own, before it died
            self.model.store.half_built = how == "die_in_fill"
        else:
            self.pool.counts["idle kills"] += 1
            os.kill(self.pool.children[who].pid, signal.SIGKILL)
        self.pool.replace(who)
        self.model.processes[who] = Process()
        self.ask(who, "reset", self.name)
