"""Random damage: several pieces of random bytes at random places, read and now and then written."""

from __future__ import annotations

import contextlib
import gc
import random
from typing import Any

from flip_looks import CODEC, answer
from flip_store import NEW, VALUES, Store

import shmcow
from shmcow import Reader, Writer, store


def _pieces(damaged: Store, some: random.Random) -> list[tuple[str, int, bytes]]:
    """Choose one to four pieces; used fields are hit as often as the large unused rest."""
    pieces = []
    entries = [1024 + 1536 * i for i in damaged.versions]
    for _ in range(some.randrange(1, 5)):
        length = some.choice([2, 3, 4, 8, 16, 64, 200])
        header = len(damaged.files["header"].whole)
        where = some.randrange(8)
        if where == 0:
            pieces.append(("header", some.randrange(192), some.randbytes(length)))
        elif where == 1:
            pieces.append(("header", some.randrange(192, 520), some.randbytes(length)))
        elif where == 2:
            pieces.append(("header", 512 + 8 * some.randrange(8), some.randbytes(some.choice([2, 8, 16]))))
        elif where in (3, 4):
            pieces.append(("header", some.choice(entries) + some.randrange(1536), some.randbytes(length)))
        elif where == 5:
            pieces.append(("header", some.randrange(header), some.randbytes(length)))
        else:
            file = some.choice([f for f in damaged.files if f != "header"])
            pieces.append((file, some.randrange(len(damaged.files[file].whole)), some.randbytes(length)))
    return pieces


def look_at_random(damaged: Store, seed: int) -> None:
    """One case, given by its seed: the value of the version that is named, or a specific error; never anything else."""
    some = random.Random(seed)
    pieces = _pieces(damaged, some)
    writes = seed % 16 == 0
    attached = Reader(damaged.name, codec=CODEC) if seed % 4 == 0 else None
    good = attached.get() if attached is not None else None
    for file, offset, wrong in pieces:
        damaged.damage(file, offset, wrong)
    try:
        if attached is not None:
            now = attached.get()
            assert now is good or now in VALUES.values(), f"the attached reader: {now!r}"
            attached.close()
        store._attached.clear()
        _read(damaged, Reader(damaged.name) if writes else Reader(damaged.name, codec=CODEC))
        if writes:
            _write(damaged)
    finally:
        if attached is not None:
            attached.close()
        store._attached.clear()
        if writes:
            gc.collect(0)
            damaged.restore()
        else:
            for file, offset, wrong in pieces:
                length = min(len(wrong), len(damaged.files[file].whole) - offset)
                damaged.mend(file, offset, length)


def _read(damaged: Store, r: Reader[Any]) -> None:
    snapshot = answer(r.snapshot)
    if not isinstance(snapshot, type):
        assert snapshot.value == VALUES.get(snapshot.version), f"get: {snapshot.value!r}"
    for version in VALUES:
        found = answer(lambda version=version: r.at(version))
        assert isinstance(found, type) or found.value == VALUES[version], f"at({version}): {found.value!r}"
    r.close()
    answer(lambda: shmcow.describe(damaged.name))


def _write(damaged: Store) -> None:
    with contextlib.suppress(shmcow.ShmcowError), Writer(damaged.name, lock_timeout=1) as w:
        version = w.publish(NEW)
        store._attached.clear()
        snapshot = answer(Reader(damaged.name).snapshot)
        assert not isinstance(snapshot, type), f"get after publish: {snapshot}"
        assert (snapshot.version, snapshot.value) == (version, NEW), f"get after publish: {snapshot.value!r}"
