"""Two related tables that change together: no reader ever sees a row whose partner is missing.

Problem: countries refer to currencies. When Croatia gives up the kuna, one table loses a row and the other changes
one; a worker that joins them in between must find both as before or both as after.
Run it: python examples/two_tables.py
It prints: what a join gives that was begun before a hundred changes, and one that is begun afterwards; how many joins
three workers made meanwhile, and that none of them failed.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection

import shmcow
from shmcow import Bundle, BundleView, Reader, Table, Writer

STORE = f"example-tables-{os.getpid()}"
PARTS = Bundle(
    countries=Table(key=str, value=str), currencies=Table(key=str, value=str), notes=Table(key=str, value=str)
)

KUNA = {"countries": {"DE": "EUR", "HR": "HRK"}, "currencies": {"EUR": "euro", "HRK": "kuna"}}
EURO = {"countries": {"DE": "EUR", "HR": "EUR"}, "currencies": {"EUR": "euro"}}

reference = Reader(STORE, codec=PARTS)


def money_of(country: str, now: BundleView) -> str:
    """Join the two tables, in one version of both: the caller takes it once, as a second get() could be the next."""
    currency: str = now.currencies[now.countries[country]]
    return currency


def work(link: Connection) -> None:
    """Join until told to stop; a row without its partner would raise KeyError."""
    joins, seen = 0, set[str]()
    link.send("ready")
    while not link.poll() or len(seen) < 2:
        seen.add(money_of("HR", reference.get()))
        joins += 1
    link.send((joins, seen))


def main() -> None:
    """Change both tables under three workers that join them."""
    context = multiprocessing.get_context("fork")
    links = []
    with Writer(STORE, codec=PARTS, initial={**KUNA, "notes": {"HR": "euro from 2023 on"}}) as writer:
        for _ in range(3):
            ours, theirs = context.Pipe()
            context.Process(target=work, args=(theirs,), daemon=True).start()
            theirs.close()  # so that a worker's death ends recv() below
            assert ours.recv() == "ready"
            links.append(ours)
        before = reference.get()
        for k in range(101):
            writer.publish_parts(KUNA if k % 2 else EURO)  # one version; it shares the notes with the one before
        now = reference.get()
        print(
            f"a join begun before ends with the {money_of('HR', before)}, one begun now with the {money_of('HR', now)}"
        )
        for link in links:
            link.send("stop")
        while not all(link.poll(0.001) for link in links):  # one that has seen only one of the two waits for the other
            writer.publish_parts(EURO if writer.version % 2 else KUNA)
        done = [link.recv() for link in links]
        assert all(joins and seen == {"euro", "kuna"} for joins, seen in done)
        print(f"{len(done)} workers joined {sum(joins for joins, _ in done)} times, up to version {writer.version}")
        print(f"they saw {sorted(done[0][1])}, and never a country without its currency")
        notes = {generation.segments[2] for generation in shmcow.describe(STORE).generations}
        print(f"the table that did not change lies in {len(notes)} segment")
        assert len(notes) == 1
    for worker in multiprocessing.active_children():
        worker.join()
    shmcow.destroy(STORE)


if __name__ == "__main__":
    main()
