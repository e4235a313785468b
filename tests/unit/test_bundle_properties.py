"""Bundle against a model: a version is a tuple of values, and each value lies in a segment that versions may share."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import shmcow
from shmcow import (
    Bundle,
    BundleView,
    IPTable,
    MsgPack,
    Raw,
    Reader,
    Snapshot,
    Table,
    ValidationError,
    VersionConflictError,
    VersionGoneError,
    Writer,
)

PARTS: Final = ("config", "blob", "table", "geo")
CODEC: Final = Bundle(config=MsgPack(int), blob=Raw(), table=Table(key=str, value=int), geo=IPTable(int))
RETAIN: Final = 3
SETTINGS: Final = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    phases=[Phase.generate],  # each example makes a store: making a failing one shorter would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

Values = tuple[int, int, int, int]

_number = st.integers(0, 2)  # few, so that parts are often what they were
_whole = st.tuples(_number, _number, _number, _number)
_some = st.dictionaries(st.sampled_from(PARTS), _number, min_size=1)
_behind = st.integers(0, 6)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), _whole),
        st.tuples(st.just("expect"), st.tuples(_some, _behind)),
        st.tuples(st.sampled_from(["parts", "replace", "patch"]), _some),
        st.tuples(st.sampled_from(["rollback", "at", "hold"]), _behind),
        st.tuples(st.sampled_from(["rollback", "release", "reclaim", "view", "again"]), st.none()),
        st.tuples(st.just("refused"), st.sampled_from(PARTS)),
    ),
    max_size=25,
)


def encoded(part: str, number: int) -> Any:
    """What is published for a number; different numbers take as many bytes."""
    if part == "config":
        return number
    if part == "blob":
        return b"%d" % number * 5000
    if part == "table":
        return {f"key {k}": k * number for k in range(20)}
    return [(f"10.0.{k}.0/24", number) for k in range(5)]


def decoded(view: BundleView) -> Values:
    """The numbers that a view was published from; every part must be one through and through."""
    assert list(view) == list(PARTS)
    (blob,) = set(bytes(view.blob)) if view.blob.nbytes == 5000 else ()
    table = view.table["key 1"]
    assert view.table == encoded("table", table)
    (geo,) = {value for _, _, value in view.geo}
    assert len(view.geo) == 5
    return view.config, blob - ord("0"), table, geo


def whole(values: Values) -> dict[str, Any]:
    return {part: encoded(part, value) for part, value in zip(PARTS, values, strict=True)}


@dataclass
class Version:
    values: Values
    segments: tuple[int, ...]  # equal numbers: one segment
    origin: int = 0


@dataclass
class Model:
    """What must be in the store: versions by number, and the segments that each part lies in."""

    versions: dict[int, Version] = field(default_factory=dict)
    held: dict[int, Any] = field(default_factory=dict)
    current: int = 0
    fresh: itertools.count[int] = field(default_factory=itertools.count)

    def publish(self, values: Values, kept: Version | None = None, origin: int = 0) -> int:
        before = kept or self.versions.get(self.current)
        segments = tuple(
            before.segments[k] if before is not None and before.values[k] == value else next(self.fresh)
            for k, value in enumerate(values)
        )
        self.current += 1
        self.versions[self.current] = Version(values, segments, origin)
        self.reclaim(origin)
        return self.current

    def reclaim(self, origin: int = 0) -> None:
        # a rollback holds what it goes back to until it is done
        self.versions = {
            number: version
            for number, version in self.versions.items()
            if number >= self.current - RETAIN or number in self.held or number == origin
        }

    def changed(self, some: dict[str, int]) -> Values:
        values = dict(zip(PARTS, self.versions[self.current].values, strict=True)) | some
        return tuple(values[part] for part in PARTS)  # type: ignore[return-value]

    def before(self) -> int:
        return (self.versions[self.current].origin or self.current) - 1


class Run:
    """A store and its model, taken through the same steps."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model = Model()
        self.writer = Writer(name, codec=CODEC, retain=RETAIN)
        self.reader = Reader(name, codec=CODEC)
        assert self.writer.publish(whole((0, 0, 0, 0))) == self.model.publish((0, 0, 0, 0))

    def publish(self, values: Values) -> None:
        assert self.writer.publish(whole(values)) == self.model.publish(values)

    def parts(self, some: dict[str, int]) -> None:
        given = {part: encoded(part, value) for part, value in some.items()}
        assert self.writer.publish_parts(given) == self.model.publish(self.model.changed(some))

    def expect(self, what: tuple[dict[str, int], int]) -> None:
        some, behind = what
        given = {part: encoded(part, value) for part, value in some.items()}
        expected = max(self.model.current - behind, 0)
        if behind and self.model.current:
            with pytest.raises(VersionConflictError):
                self.writer.publish_parts(given, expected=expected)
        else:
            assert self.writer.publish_parts(given, expected=expected) == self.model.publish(self.model.changed(some))

    def replace(self, some: dict[str, int]) -> None:
        given = {part: encoded(part, value) for part, value in some.items()}
        assert self.writer.update(lambda old: old._replace(**given)) == self.model.publish(self.model.changed(some))

    def patch(self, some: dict[str, int]) -> None:
        given = {part: encoded(part, value) for part, value in some.items()}
        assert self.writer.patch(**given) == self.model.publish(self.model.changed(some))

    def again(self, _: None) -> None:
        """What is read is published: nothing is copied."""
        value = self.writer.snapshot().value
        assert self.writer.publish(value) == self.model.publish(self.model.versions[self.model.current].values)

    def rollback(self, behind: int | None) -> None:
        target = self.model.before() if behind is None else self.model.current - behind
        there = self.model.versions.get(target)
        if behind is not None and target < 1:
            return
        if there is None:
            with pytest.raises(VersionGoneError):
                self.writer.rollback(None if behind is None else target)
            return
        version = self.writer.rollback(None if behind is None else target)
        assert version == self.model.publish(there.values, there, target)

    def at(self, behind: int) -> None:
        target = self.model.current - behind
        if target < 1:
            return
        there = self.model.versions.get(target)
        if there is None:
            with pytest.raises(VersionGoneError):
                self.reader.at(target)
            return
        snapshot = self.reader.at(target)
        assert decoded(snapshot.value) == there.values
        assert snapshot.rollback_of == (there.origin or None)

    def hold(self, behind: int) -> None:
        target = self.model.current - behind
        if target in self.model.versions and target not in self.model.held:
            self.model.held[target] = self.reader.at(target)  # a view holds its version

    def view(self, _: None) -> None:
        """A part alone holds its version as well."""
        if self.model.current not in self.model.held:
            self.model.held[self.model.current] = self.writer.snapshot().value.table

    def release(self, _: None) -> None:
        if self.model.held:
            number, kept = self.model.held.popitem()
            values = self.model.versions[number].values
            assert decoded(kept.value) == values if isinstance(kept, Snapshot) else kept["key 1"] == values[2]

    def reclaim(self, _: None) -> None:
        before = len(self.model.versions)
        self.model.reclaim()
        assert self.writer.reclaim() == before - len(self.model.versions)

    def refused(self, part: str) -> None:
        with pytest.raises(ValidationError, match=f"part '{part}'"):
            self.writer.publish_parts({part: object()})

    def check(self) -> None:
        """All versions that the model has and no other, with the segments that they must share and no other."""
        report = shmcow.describe(self.name)
        listed = {generation.version: generation.segments for generation in report.generations}
        assert set(listed) == set(self.model.versions)
        assert report.version == self.model.current
        assert decoded(self.writer.snapshot().value) == self.model.versions[self.model.current].values
        pairs = {
            pair
            for number, segments in listed.items()
            for pair in zip(self.model.versions[number].segments, segments, strict=True)
        }
        assert len({ours for ours, _ in pairs}) == len({theirs for _, theirs in pairs}) == len(pairs)

    def end(self) -> None:
        """Whoever held something still has it; then one reclaim leaves what is retained."""
        while self.model.held:
            self.release(None)
        self.reclaim(None)
        self.check()
        self.writer.destroy()
        self.writer.close()
        self.reader.close()


@SETTINGS
@given(steps=_steps)
def test_versions_are_tuples_of_values_and_share_what_did_not_change(name: str, steps: list[tuple[str, Any]]) -> None:
    """Whatever is published, patched, rolled back, held and reclaimed: values and segments are the model's."""
    run = Run(name)
    try:
        for verb, argument in steps:
            getattr(run, verb)(argument)
            run.check()
        run.end()
    finally:
        run.model.held.clear()
        run.writer.close()
        run.reader.close()
        if name in shmcow.list_stores():
            shmcow.destroy(name)
