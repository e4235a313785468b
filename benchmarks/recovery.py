"""A writer killed in mid-publish of 10 MB: until the next publish succeeds, and until the memory is back."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from pathlib import Path

from benchmarks.children import Child, FailedOrderError, NoAnswerError, Orders, child
from benchmarks.harness import Plan, Result
from benchmarks.peers import LMDB, Peer, PolledFile, SharedMemoryLock, Shmcow, SQLite, UltraDict, present
from benchmarks.peers.base import Write
from benchmarks.scene import SHM

KINDS = (Shmcow, LMDB, SQLite, PolledFile, UltraDict, SharedMemoryLock)
TITLE, COUNTS, LEFT = "after SIGKILL of a writer", "of the kills", "left in /dev/shm after the next publish"
NEXT, USUAL, BACK = "next publish by another process", "a publish, nobody killed", "memory as before"
PATIENCE = 1.5  # seconds until a publish is said to be blocked
REPAIR = "UltraDict offers `steal_after_timeout=True` for its lock, to those who know that the holder died."


def run(plan: Plan) -> Result:
    """Kill at random moments of a publish; publish from a process that was not attached before."""
    size, kills = plan.pick(10_000_000, 100_000), plan.pick(12, 1)
    here, skipped = present(KINDS)
    result = Result(
        "recovery: what the death of a writer costs the next one",
        "one publish by the writer that is killed then",
        notes=[
            f"{kills} kills of each at random moments of a loop of publishes of {size / 1e6:g} MB.",
            "next publish: another process, already started, opens the store and publishes; both are in the time.",
            f"memory as before: until the store occupies no more of {SHM} than before the kill.",
            "For LMDB and SQLite, whose files do not shrink: no more than twice that.",
            f"blocked: no publish within {PATIENCE:g} s. Such stores were made anew for the next kill. {REPAIR}",
            *skipped,
        ],
    )
    rounds: dict[str, dict[str, list[float]]] = {kind.title: defaultdict(list) for kind in here}
    chance = random.Random(5)
    for _ in range(kills):
        for kind in here:
            _one_kill(kind, size, chance, rounds[kind.title])
    for title, figures in rounds.items():
        for column in (USUAL, NEXT, BACK):
            if figures[column]:
                result.put(TITLE, title, column, figures[column])
        result.put(COUNTS, title, "next publish blocked", [sum(figures["blocked"])], unit="")
        result.put(COUNTS, title, "next publish failed", [sum(figures["failed"])], unit="")
        if figures["left"]:
            result.put(LEFT, title, "bytes, the most", [max(figures["left"])], unit="bytes")
    for kind in here:
        if rounds[kind.title][NEXT] and kind is not Shmcow:
            ratio = [a / b for a, b in zip(rounds[kind.title][NEXT], rounds[Shmcow.title][NEXT], strict=False)]
            result.add(f"{kind.title} / shmcow, {NEXT}", ratio, at_least=True)
    return result


def _one_kill(kind: type[Peer], size: int, chance: random.Random, figures: dict[str, list[float]]) -> None:
    peer = kind(bytes, chance.randbytes(1000) * (size // 1000))
    try:
        peer.start()
        with child(lambda: _orders(peer)) as victim, child(lambda: _orders(peer)) as heir:
            heir.ask("ready")
            usual = victim.ask("once")
            figures[USUAL].append(usual)
            before = peer.shm_bytes()
            victim.tell("for ever")
            time.sleep(0.01 + chance.uniform(1, 3) * usual / 1e9)
            victim.kill()
            _next_publish(peer, heir, before, figures)
    finally:
        peer.stop()


def _next_publish(peer: Peer, heir: Child, before: int, figures: dict[str, list[float]]) -> None:
    begin = time.perf_counter_ns()
    try:
        heir.ask("once", seconds=PATIENCE)
    except NoAnswerError:
        figures["blocked"].append(1)
        return
    except FailedOrderError:
        figures["failed"].append(1)
        return
    figures[NEXT].append(float(time.perf_counter_ns() - begin))
    most = before if not Path(SHM, peer.name).is_dir() else 2 * before
    while (now := peer.shm_bytes()) > most * 1.01 and time.perf_counter_ns() - begin < 5e8:
        time.sleep(0.002)
    figures["left"].append(max(0, now - most))
    if now <= most * 1.01:
        figures[BACK].append(float(time.perf_counter_ns() - begin))


def _orders(peer: Peer) -> Orders:
    kept: list[Write] = []

    def once() -> float:
        """Open the store if this is the first time, and publish. -> nanoseconds of the publish alone"""
        if not kept:
            kept.append(peer.writer())
        begin = time.perf_counter_ns()
        kept[0](peer.first)
        return float(time.perf_counter_ns() - begin)

    def for_ever() -> None:
        while True:
            once()

    return {"ready": lambda: None, "once": once, "for ever": for_ever}
