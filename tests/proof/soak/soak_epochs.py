"""In which order the stores of one name came."""

from __future__ import annotations

import graphlib
import heapq
from collections.abc import Mapping

from soak_history import DESTROY, DONE, OK, READ, Record

NEVER = 1 << 63


def order_of_epochs(histories: Mapping[str, list[Record]], first: dict[int, int]) -> list[int]:
    """Return the epochs in the order of every process; where that leaves it open, in the order of first sight."""
    graph: graphlib.TopologicalSorter[int] = graphlib.TopologicalSorter()
    for records in histories.values():
        last = 0
        for r in records:
            if r.outcome == OK and r.kind in (READ, DONE) and r.what != DESTROY and r.epoch not in (0, last):
                graph.add(r.epoch, *([last] if last else []))
                last = r.epoch
    order: list[int] = []
    waiting: list[tuple[int, int]] = []
    graph.prepare()
    while graph.is_active():
        for epoch in graph.get_ready():
            heapq.heappush(waiting, (first.get(epoch, NEVER), epoch))
        order.append(heapq.heappop(waiting)[1])
        graph.done(order[-1])
    return order
