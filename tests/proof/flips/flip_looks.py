"""What the public API says of a damaged store, and whether it may.

The rule: the right value, or a specific error; where a checksum covers the damage, always the error. Exempt, by name:
``current`` may name another version that is there (whose value must then be that version's), the settings and counters
(``number``) show another figure in a report, and a flipped state may read as another state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from flip_fields import Region
from flip_store import CURRENT, FEED_SHOWN, NEW, VALUES, Store

import shmcow
from shmcow import CorruptSegmentError as Corrupt
from shmcow import IncompatibleStoreError as Incompatible
from shmcow import MsgPack, Reader, Writer, store

INCOMPATIBLE_FIELDS = {"identity.magic", "identity.byte_order", "identity.abi", "identity (cut)"}
# What reading may raise where no checksum tells what is wrong.
READ_ERRORS = (Corrupt, shmcow.VersionGoneError, shmcow.NotPublishedError, shmcow.StoreDestroyedError)
WRITE_ERRORS = (*READ_ERRORS, Incompatible, shmcow.OutOfSharedMemoryError, shmcow.WriterBusyError)
WRITE_ERRORS = (*WRITE_ERRORS, shmcow.StoreNotFoundError)
CODEC: MsgPack[Any] = MsgPack()  # making one takes longer than a look


def answer(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or the class of the specific error that it raises; anything else goes through."""
    try:
        return call()
    except shmcow.ShmcowError as exc:
        if type(exc) is shmcow.ShmcowError or len(str(exc)) < 20:
            raise AssertionError(f"an error without words: {exc!r}") from exc
        return type(exc)


class Looks:
    """Looks at one store, damaged in one region."""

    def __init__(self, damaged: Store) -> None:
        self.store = damaged
        self.name = damaged.name

    def fail_unless(self, right: bool, what: str, found: Any) -> None:
        if not right:
            raise AssertionError(f"{what}: {found!r}"[:300])

    def readers(self, region: Region, damage: Callable[[], None], before: bool) -> None:
        """A reader that was there ``before``, a fresh one, older versions, a report, the list of stores."""
        if before:
            with Reader(self.name, codec=CODEC) as attached:
                good = attached.get()
                damage()
                self.attached(region, attached, good)
        else:
            damage()
        store._attached.clear()
        self.fresh(region)
        store._attached.clear()
        self.report(region)
        stores = shmcow.list_stores()
        self.fail_unless(self.name in stores, "list_stores", stores)

    def attached(self, region: Region, r: Reader[Any], good: Any) -> None:
        now = r.get()
        right = now is good or (region.kind == "current" and now in VALUES.values())
        self.fail_unless(right, "get of a reader that was there before", now)
        r.refresh()
        now = r.get()
        right = now is good or (region.kind == "current" and now in VALUES.values())
        self.fail_unless(right, "get after refresh", now)

    def fresh(self, region: Region) -> None:
        r = Reader(self.name)
        try:
            snapshot = answer(r.snapshot)
            value = answer(r.get)
            older = {version: answer(lambda version=version: r.at(version)) for version in VALUES}
        finally:
            r.close()
        if not isinstance(snapshot, type):
            right = value is snapshot.value and value == VALUES.get(snapshot.version)
            self.fail_unless(right, "get", value)
            self.fail_unless(snapshot.version == CURRENT or region.kind == "current", "get", snapshot.version)
        else:
            self.fail_unless(value is snapshot, "get after snapshot", value)
        self.expect(region, "get", CURRENT, snapshot)
        for version, found in older.items():
            if not isinstance(found, type):
                right = found.version == version and found.value == VALUES[version]
                self.fail_unless(right, f"at({version})", found.value)
            self.expect(region, f"at({version})", version, found)

    def expect(self, region: Region, what: str, version: int, found: Any) -> None:
        """An error where there must be one, none where nothing is wrong, the right one in between."""
        error = isinstance(found, type)
        if region.field.startswith("identity"):
            wanted = Incompatible if region.field in INCOMPATIBLE_FIELDS else Corrupt
            self.fail_unless(found is wanted, f"{what} must raise {wanted.__name__}", found)
        elif region.kind in ("current", "word") and (region.kind == "current" or self.store.version_at(region)):
            touched = (self.store.version_at(region), self.store.claimed_at(region))
            concerned = region.kind == "current" or version in touched  # two places may claim one version
            allowed = READ_ERRORS if concerned else ()
            self.fail_unless(not error or found in allowed, what, found)
        elif region.kind in ("sealed", "payload", "entry") and self.store.version_at(region) == version:
            self.fail_unless(found is Corrupt, f"{what} must raise CorruptSegmentError", found)
        else:
            self.fail_unless(not error, f"{what} is not concerned", found)

    def report(self, region: Region) -> None:
        said = answer(lambda: shmcow.describe(self.name))
        if region.field.startswith("identity"):
            self.expect(region, "describe", 0, said)
            return
        self.fail_unless(not isinstance(said, type), "describe", said)
        right = self.store.report
        if region.kind in ("unused", "payload", "sealed") or (
            region.kind == "entry" and not self.store.version_at(region)
        ):
            self.fail_unless(said == right, "describe", said)
            return
        if region.kind == "feed":
            self.fail_unless(said.feed.damaged == (region.index == FEED_SHOWN), "describe of the feed", said.feed)
            if region.index != FEED_SHOWN:
                self.fail_unless(said == right, "describe", said)
            return
        touched = self.store.version_at(region)
        for row in right.generations:
            found = [g for g in said.generations if g.version == row.version]
            if row.version == touched and region.kind == "word":
                continue  # another version or state is another row, which is damaged unless it is this version
            if row.version == touched:
                self.fail_unless([g.damaged for g in found] == [True], "describe of a damaged entry", found)
                continue
            if region.kind == "current":
                found = [dataclasses.replace(g, current=row.current) for g in found]
            self.fail_unless(row in found, "describe", found)
        for row in said.generations:
            known = row.version in VALUES
            self.fail_unless(known or row.damaged, "describe shows a version that never was", row)

    def writer(self, region: Region, damage: Callable[[], None]) -> None:
        """Attach, recover, sweep, publish: what is published is read; or a specific error."""
        damage()
        sealed = region.field.startswith("identity")
        try:
            with Writer(self.name, lock_timeout=1) as w:
                self.fail_unless(not sealed, "a writer must refuse", w)
                version = w.publish(NEW)
        except shmcow.ShmcowError as exc:
            allowed: tuple[type, ...] = WRITE_ERRORS
            if sealed:
                allowed = (Incompatible,) if region.field in INCOMPATIBLE_FIELDS else (Corrupt,)
            elif region.kind in ("unused", "payload", "sealed", "entry", "feed"):
                allowed = ()  # the next version mends it
            self.fail_unless(isinstance(exc, allowed) and len(str(exc)) > 20, "publish", exc)
            return
        store._attached.clear()
        r = Reader(self.name)
        snapshot = answer(r.snapshot)
        self.fail_unless(not isinstance(snapshot, type) and snapshot.value == NEW, "get after publish", snapshot)
        self.fail_unless(snapshot.version == version, "version after publish", snapshot)
        if region.kind != "current":  # a version number that comes again: exempt by name
            for known in VALUES:
                found = answer(lambda known=known: r.at(known))
                right = found in READ_ERRORS if isinstance(found, type) else found.value == VALUES[known]
                self.fail_unless(right, f"at({known}) after publish", found)
        r.close()
        store._attached.clear()
