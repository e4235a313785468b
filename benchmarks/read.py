"""Reading the current value: 40 B, 640 B and 64 kB, nothing changes meanwhile; p50, p99 and p99.9."""

from __future__ import annotations

from functools import partial

from benchmarks.children import Child
from benchmarks.contest import BATCH, PERCENTILES, measured, readers, started
from benchmarks.harness import Plan, Result
from benchmarks.peers import ALL, FLOORS, Empty, Floor, Local, Shmcow, present
from benchmarks.values import size_text

SIZES = (40, 640, 64_000)
# aim: how many times a peer's read costs ours, at least
AIMS = {"UltraDict": 15.0, "LMDB": 25.0, "iceoryx2 blackboard": 50.0, "Redis (unix socket)": 1000.0}
MEAN = "mean of a loop"


def run(plan: Plan) -> Result:
    """Measure reads in a process of its own for each peer."""
    kinds, skipped = present([*FLOORS, *ALL])
    result = Result(
        "read: the current value, in another process than the writer",
        "one round of each peer, thrown away",
        notes=[
            "mean of a loop: reads in a loop without a clock in between; the ratios are of these, loop included.",
            "p50 to p99.9: each read timed by itself; two calls of the clock are in it (see `empty C call`).",
            "what a read returns is the decoded value; who has no cache of it decodes each time.",
            *skipped,
        ],
    )
    for size in SIZES if not plan.quick else SIZES[1:2]:
        with started(kinds, size, result.notes) as peers, readers(peers, result.notes) as running:
            cases = [(peer.title, reader) for peer, reader in running]
            figures = measured(cases, plan.pick(7, 1), result.notes, partial(_once, plan))
        for title, rounds in figures.items():
            for name in (MEAN, *PERCENTILES):
                result.put(f"read {size_text(size)}", title, name, [one[name] for one in rounds])
        rivals = [peer.title for peer, _ in running if not isinstance(peer, (Local, Floor)) and peer.title in figures]
        _compare(result, size, rivals)
    return result


def _once(plan: Plan, _: int, __: str, reader: Child) -> dict[str, float]:
    mean = reader.ask("mean", BATCH if not plan.quick else 0.001)
    single = reader.ask("one by one", BATCH * 2 if not plan.quick else 0.001)
    return {MEAN: mean, **single["all"]}


def _compare(result: Result, size: int, titles: list[str]) -> None:
    text = size_text(size)

    def case(title: str, column: str) -> str:
        return f"read {text}: {title}, {column}"

    result.compare(f"get() / empty C call, {text}", case(Shmcow.title, MEAN), case(Empty.title, MEAN), aim=1.1)
    for title in titles:
        if title != Shmcow.title:
            aim = AIMS.get(title) if size == 640 else None
            ours = case(Shmcow.title, MEAN)
            result.compare(f"{title} / get(), {text}", case(title, MEAN), ours, aim=aim, at_least=True)
