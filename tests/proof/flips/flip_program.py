"""Flips and cuts one after the other, in a worker whose death or silence is laid to the case that it was at.

    python flip_program.py NAME '{"what": ..., "part": [k, n], ...}'        prints one line of JSON

Keys: ``what``: a list of "flips", "writers", "cuts"; ``fields``: only regions whose name begins with one of these;
``every``: of what is not the current version's, and of writers' turns under a checksum or on FREE words, one bit in so
many; ``part``:
k, n: every n-th case from the k-th; ``stop``: end at this many violations; ``random``: so many random cases instead,
from ``seed``, within ``seconds``; ``hang``: CPU seconds after which a case is taken to hang.
"""

from __future__ import annotations

import gc
import json
import logging
import mmap
import os
import random
import resource
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from flip_fields import Region
from flip_looks import Looks
from flip_random import look_at_random
from flip_store import CURRENT, OLDER, Store

HANG_CPU_SECONDS = 5.0  # a case takes milliseconds
HANG_SECONDS = 60.0
SAMPLES = 4  # bits of each unused region


class Case(NamedTuple):
    """One damage, and who looks at it."""

    who: str  # "readers", "writer"
    region: Region
    offset: int
    bit: int  # -1: cut here

    def __str__(self) -> str:
        damage = f"cut to {self.offset} bytes" if self.bit < 0 else f"byte {self.offset} bit {self.bit}"
        return f"{self.region.file} {self.region.field}[{self.region.index}] {damage}, {self.who}"


def bits_of(store: Store, region: Region) -> Iterator[tuple[int, int]]:
    """Yield every bit of a used region, and some of an unused one."""
    used = region.kind != "unused"
    if region.kind == "entry":
        used = store.version_at(region) in (CURRENT, OLDER)
    if used:
        for at in range(region.start, region.start + region.length):
            for bit in range(8):
                yield at, bit
        return
    some = random.Random(region.start)
    few = SAMPLES if region.kind == "unused" or region.field in ("entry.version", "entry.segments", "entry.crc") else 0
    for _ in range(few):
        yield region.start + some.randrange(region.length), some.randrange(8)


def cuts(store: Store) -> Iterator[Case]:
    """Yield every length of a segment, and of the header every one of its first part and every one near a boundary."""
    whole = len(store.files["segment"].whole)
    region = Region("segment", "payload", 0, 0, whole, "payload")
    for length in [*range(whole), whole + 1, whole + 64, 4096, 1 << 30]:
        for who in ("readers", "writer"):
            yield Case(who, region, length, -1)
    whole = len(store.files["header"].whole)
    near = {edge + d for edge in (*range(0, whole, 4096), *range(1024, whole, 1536), whole) for d in (-1, 0, 1)}
    lengths = sorted({*range(1025), *near, 2 * whole, 1 << 30} - {whole, -1})
    for length in lengths:
        region = Region("header", "identity (cut)", 0, 0, whole, "sealed")
        yield Case("readers", region, length, -1)
        if length in near or length % 8 == 0:
            yield Case("writer", region, length, -1)


def cases_of(store: Store, asked: dict[str, Any]) -> list[Case]:
    """Return all cases that were asked for."""
    cases: list[Case] = []
    fields = tuple(asked.get("fields", [""]))
    for who, what in (("readers", "flips"), ("writer", "writers")):
        for region in store.regions if what in asked["what"] else ():
            if not f"{region.file} {region.field}".startswith(fields):
                continue
            of_current = store.version_at(region) == CURRENT
            free = region.kind == "word" and not store.version_at(region)
            all_bits = (who == "readers" or (region.kind not in ("entry", "sealed") and not free)) and (
                region.kind != "entry" or of_current or not store.version_at(region)
            )
            every = 1 if all_bits else asked.get("every", 1)
            cases += [Case(who, region, *at) for n, at in enumerate(bits_of(store, region)) if n % every == 0]
    if "cuts" in asked["what"]:
        cases += [case for case in cuts(store) if f"{case.region.file} {case.region.field}".startswith(fields)]
    k, n = asked.get("part", [0, 1])
    return cases[k::n]


def look(store: Store, looks: Looks, case: Case) -> None:
    """Damage, look, put right."""

    def damage() -> None:
        if case.bit < 0:
            store.cut(case.region.file, case.offset)
        else:
            store.damage(case.region.file, case.offset, bytes([1 << case.bit]))

    try:
        if case.who == "writer":
            looks.writer(case.region, damage)
        elif case.bit < 0:
            damage()  # a file that is cut under a map is a SIGBUS, as PROTOCOL.md says: cut before anybody attaches
            looks.fresh(case.region)
            looks.report(case.region)
        else:
            # under a checksum of the entry nothing changes for a reader that has its value: some bits are enough
            looks.readers(case.region, damage, case.region.kind != "entry" or (case.offset + case.bit) % 4 == 0)
    finally:
        if case.who == "writer" or case.bit < 0:
            gc.collect(0)
            store.restore()
        else:
            store.mend(case.region.file, case.offset, 1)


def work(store: Store, cases: list[Any], begin: int, place: mmap.mmap, tell: int, until: float, hang: float) -> None:
    """In the worker: look at one case after the other; say where, and what is wrong."""
    looks = Looks(store)
    gc.disable()
    for n in range(begin, len(cases)):
        if time.monotonic() > until:
            break
        struct.pack_into("<Q", place, 0, n + 1)
        signal.setitimer(signal.ITIMER_PROF, hang)
        try:
            if isinstance(cases[n], Case):
                look(store, looks, cases[n])
            else:
                look_at_random(store, cases[n])
        except Exception as exc:
            os.write(tell, f"{cases[n]}: {type(exc).__name__}: {exc}\n".encode("utf-8", "replace")[:1000])
            store.restore()
        if n % 500 == 0:
            gc.collect()
    struct.pack_into("<Q", place, 8, 1)


def oversee(store: Store, cases: list[Any], until: float, stop: int, hang: float) -> tuple[int, list[str]]:
    """Run the worker, and another one after each that dies or hangs: -> cases done, violations."""
    place = mmap.mmap(-1, 16)
    violations: list[str] = []
    begin = 0
    while begin < len(cases) and time.monotonic() < until and len(violations) < stop:
        place[:16] = bytes(16)
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            os.close(told)
            try:
                work(store, cases, begin, place, tell, until, hang)
            finally:
                os._exit(0)
        os.close(tell)
        os.set_blocking(told, False)
        seen, since, said = 0, time.monotonic(), b""
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            time.sleep(0.02)
            said += _drain(told)
            at = struct.unpack_from("<Q", place, 0)[0]
            if at != seen:
                seen, since = at, time.monotonic()
            if time.monotonic() - since > HANG_SECONDS or said.count(b"\n") + len(violations) >= stop:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                break
        said += _drain(told)
        os.close(told)
        violations += said.decode("utf-8", "replace").splitlines()
        at, finished = struct.unpack_from("<QQ", place, 0)
        if not finished and len(violations) < stop:
            violations.append(f"{cases[max(at, 1) - 1]}: a crash or a hang")
            store.restore()
        begin = at
        if finished:
            break
    return begin, violations


def _drain(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 20)
    except BlockingIOError:
        return b""


def main() -> None:
    logging.disable(logging.CRITICAL)
    name, asked = sys.argv[1], json.loads(sys.argv[2])
    store = Store(name)
    until = time.monotonic() + asked.get("seconds", 3600)
    try:
        if "random" in asked:
            cases: list[Any] = range(asked["seed"], asked["seed"] + asked["random"])  # type: ignore[assignment]
        else:
            cases = cases_of(store, asked)
        done, violations = oversee(store, cases, until, asked.get("stop", 20), asked.get("hang", HANG_CPU_SECONDS))
    finally:
        store.remove()
    by_region = Counter(
        f"{case.who}: {case.region.file} {case.region.field.partition('.')[0]}" + (" cut" if case.bit < 0 else "")
        for case in cases[:done]
        if isinstance(case, Case)
    )
    used = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = sum(part.ru_utime + part.ru_stime for part in used)
    print(json.dumps({"cases": done, "by_region": by_region, "violations": violations, "cpu": cpu}))


if __name__ == "__main__":
    main()
