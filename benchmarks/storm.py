"""Reading 640 B while a writer publishes, at 10/s and as fast as it can; and with a writer stopped in its lock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.children import Child, NoAnswerError, child
from benchmarks.contest import (
    PERCENTILES,
    holder_orders,
    measured,
    readers,
    started,
    stopped_holding,
    writers,
)
from benchmarks.harness import Plan, Result
from benchmarks.peers import ALL, Empty, Peer, Shmcow, present

SIZE = 640
NOBODY, SLOW, FAST, STOPPED = (
    "nobody writes",
    "10 publishes/s",
    "a writer at full speed",
    "a writer stopped in its lock",
)
UNCHANGED = "unchanged "
PATIENCE = 1.5  # seconds until a reader is said to be blocked


def run(plan: Plan) -> Result:
    """Measure each read by itself, in a process of its own, beside a writer process."""
    kinds, skipped = present([Empty, *ALL])
    result = Result(
        "storm: reads while a writer publishes, or stands still in the middle of it",
        "one round of each peer, thrown away",
        notes=[
            "each read timed by itself, two calls of the clock included; p50, p99, p99.9: of all reads.",
            "unchanged: of reads that returned the same object as the read before; of all, where there are none.",
            "decodes: reads that returned an object that had to be made; for one version that was published meanwhile.",
            f"blocked: no read came back within {PATIENCE} s while the writer was stopped; not listed: no lock.",
            *skipped,
        ],
    )
    with started(kinds, SIZE, result.notes) as peers, readers(peers, result.notes) as running:
        with writers([peer for peer, _ in running]) as writing:
            for how in ((NOBODY, None, 0.15), (SLOW, 0.1, 0.6), (FAST, 0.0, 0.3)):
                _publishing(result, plan, running, writing, how)
        for peer, reader in running:
            if not isinstance(peer, Empty) and peer.title in result.grids[f"read, {FAST}"].rows:
                _stopped(result, plan, peer, reader)
    _compare(result)
    return result


def _publishing(
    result: Result,
    plan: Plan,
    running: list[tuple[Peer, Child]],
    writing: dict[str, Child],
    how: tuple[str, float | None, float],
) -> None:
    what, pause, seconds = how
    if plan.quick:
        seconds = 0.01

    def once(_: int, title: str, reader: Child) -> dict[str, float]:
        writer = writing[title]
        if pause is None:
            return _figures(reader.ask("one by one", seconds), 0)
        writer.ask("once")
        writer.tell("publish", seconds, pause)
        told = reader.ask("one by one", seconds)
        return _figures(told, writer.answer())

    cases = [(peer.title, reader) for peer, reader in running]
    for title, rounds in measured(cases, plan.pick(5, 1), result.notes, once).items():
        for column in rounds[0]:
            figures = [one[column] for one in rounds]
            if column == "decodes":
                if pause is not None and title != Empty.title:
                    result.put("decodes for each published version", title, what, figures, unit="")
            elif column == "versions":
                if pause == 0.0:
                    result.put("published in a second beside the reader", title, what, figures, unit="")
            else:
                result.put(f"read, {what}", title, column, figures)


def _figures(told: Mapping[str, Any], versions: int) -> dict[str, float]:
    return {
        **told["all"],
        **{UNCHANGED + name: told["unchanged"][name] for name in ("p50", "p99.9")},
        "decodes": told["decodes"] / max(1, versions),
        "versions": versions / told["seconds"],
    }


def _stopped(result: Result, plan: Plan, peer: Peer, reader: Child) -> None:
    title, seconds = f"read, {STOPPED}", plan.pick(100, 2) / 1000
    patience = PATIENCE if not plan.quick else 0.3
    with child(lambda: holder_orders(peer)) as holder:
        if not stopped_holding(peer, holder):
            return
        try:
            told = reader.ask("one by one", seconds, seconds=patience + seconds)
            for name in PERCENTILES:
                result.put(title, peer.title, name, [told["all"][name]])
        except NoAnswerError:
            result.lack(title, peer.title, "blocked")
            holder.resume()
            reader.answer()
        holder.resume()
        holder.answer()


def _compare(result: Result) -> None:
    def case(what: str, title: str, column: str) -> str:
        return f"read, {what}: {title}, {column}"

    for what in (SLOW, FAST):
        for column in (f"{UNCHANGED}p50", f"{UNCHANGED}p99.9"):
            ours, floor = case(what, Shmcow.title, column), case(what, Empty.title, column)
            result.compare(f"get() / empty C call, {what}, {column}", ours, floor, aim=1.1)
    for title in result.grids[f"read, {FAST}"].rows:
        if title not in (Shmcow.title, Empty.title):
            for column in ("p50", "p99.9"):
                theirs, ours = case(FAST, title, column), case(FAST, Shmcow.title, column)
                result.compare(f"{title} / get(), {FAST}, {column}", theirs, ours, at_least=True)
