"""The state machine: what processes do to one store, and what must come of it."""

from __future__ import annotations

import sys

import processes
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant
from machine_base import MANY
from machine_model import Process
from machine_readers import ReaderRules, encoded
from machine_writers import WriterRules

import shmcow


class Machine(WriterRules, ReaderRules):
    """One run: up to 30 steps with one store name. `pool` is set by a subclass."""

    @initialize(retain=st.sampled_from([None, 0, 1, 3]), versions=st.integers(0, 4), kept=st.integers(0, 2**MANY - 1))
    def begin(self, retain: int | None, versions: int, kept: int) -> None:
        """Most runs begin with a store that has some versions, and readers that keep the newest but one."""
        for version in range(versions):
            if version == 0:
                self._open_writer(0, retain)
            if version == versions - 1:
                for who in range(MANY):
                    if version and kept >> who & 1:
                        self._take(who, hold=who == 1)
            value = self.new_value()
            self._change(0, value, "publish", value, None, "")

    # ---- what holds throughout ----

    @invariant()
    def report_is_as_the_model_says(self) -> None:
        """The generation table: which versions, which of them held, and nothing else."""
        self.pool.counts["steps"] += 1
        store = self.model.store
        if store is None:
            return
        report = shmcow.describe(self.name)
        assert (report.epoch, report.version, report.retain) == (store.epoch, store.current, store.retain)
        whole = {generation.version for generation in report.generations if generation.state == "held"}
        others = [generation.state for generation in report.generations if generation.state != "held"]
        assert whole == store.table
        assert others == (["building"] if store.half_built else [])
        marked = {generation.version for generation in report.generations if generation.marked}
        assert marked == {version for version in store.table if self.model.is_held(version)}
        origins = {g.version: g.rollback_of for g in report.generations if g.rollback_of is not None}
        assert origins == {version: store.origin[version] for version in whole if version in store.origin}

    def teardown(self) -> None:
        """At the end of a run: what was kept is as it was; everything can be let go of."""
        try:
            if sys.exc_info()[0] is None:  # else a step has failed
                self._look_at_the_end()
        finally:
            for who in range(MANY):
                if self.pool.children[who].status is not None:
                    self.pool.replace(who)
                self.say(who, "reset", "")
            if processes.objects_of(self.name):
                shmcow.destroy(self.name)
        assert not processes.objects_of(self.name)

    def _look_at_the_end(self) -> None:
        for who, process in enumerate(self.model.processes):
            values = self.ask(who, "values")
            assert values == {n: self.model.values[kept.where] for n, kept in process.kept.items()}
            views = self.ask(who, "bytes_of_views")
            assert views == {n: encoded(self.model.values[view.where]) for n, view in process.views.items()}
        if self.model.store is not None:
            self._open_writer(0, None)
            for who in range(MANY):
                self.ask(who, "reset", self.name)
            self.model.processes = [Process() for _ in range(MANY)]
            self._open_writer(0, None)
            self.reclaim(0)
            processes.assert_at_rest(self.name)
