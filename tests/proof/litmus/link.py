"""Does the source say what the litmus tests, the comments and PROTOCOL.md's table say? Each check -> what is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .litmus import Litmus
from .program import ABSENT
from .sites import CALLS, NAMED, SEQUENCES, UNNAMED
from .source import Operation, all_operations, blank, functions, steps

SHARED = (
    "current",
    "words",
    "entries",
    "counters",
    "retain",
    "max_total_bytes",
    "next_segment",
    "lock_pid",
    "feed_turn",
    "feeds",
)
PRIVATE = ("started", "finished", "forks", "taken")


def declared() -> dict[str, str]:
    orders = {site: named.order + (f"/{named.failure}" if named.failure else "") for site, named in NAMED.items()}
    return {**orders, **{site: order for site, (order, _) in UNNAMED.items()}}


def found(operations: Mapping[str, Operation]) -> dict[str, str]:
    return {site: o.order + (f"/{o.failure}" if o.failure else "") for site, o in operations.items()}


def wrong_orders(texts: Mapping[str, str]) -> list[str]:
    """Operations that sites.py does not know, or knows with another order."""
    here, there = found(all_operations(dict(texts))), declared()
    return [
        f"{site}: {here.get(site, ABSENT)} in csrc, {there.get(site, ABSENT)} in sites.py"
        for site in sorted(here.keys() | there.keys())
        if here.get(site) != there.get(site)
    ]


def orders_for_litmus(texts: Mapping[str, str]) -> dict[str, str]:
    """The orders that the source has now. What is not there any more orders nothing."""
    here = all_operations(dict(texts))
    return {site: here[site].order if site in here else ABSENT for site in NAMED}


def wrong_sequences(texts: Mapping[str, str]) -> list[str]:
    """Functions that do what they do in another order than the litmus tests."""
    every = {f.name: f for file, text in texts.items() for f in functions(file, text)}
    wrong = []
    for name, wanted in SEQUENCES.items():
        here = steps(every[name], CALLS)
        if here != wanted:
            wrong.append(f"{name}: {', '.join(here)}")
    return wrong


def silent_functions(texts: Mapping[str, str]) -> list[str]:
    """Named operations in a function that does not say `SYNC name`, in its body or in the comment above it."""
    every = {f.name: f for file, text in texts.items() for f in functions(file, text)}
    return [
        f"{site}: nothing says SYNC {name}"
        for site, named in NAMED.items()
        for name in named.sync
        if not re.search(rf"\bSYNC {name}\b", every[site.split()[0]].text)
    ]


def unknown_names(texts: Mapping[str, str]) -> list[str]:
    """SYNC names in comments that no named operation has."""
    known = {name for named in NAMED.values() for name in named.sync}
    return sorted({name for text in texts.values() for name in re.findall(r"(?<!`)\bSYNC (\w+)", text)} - known)


def bare_accesses(texts: Mapping[str, str]) -> list[str]:
    """Atomic objects that are read or written as if they were ordinary ones (which is seq_cst, and in no list)."""
    shared = rf"(?:\w+->)*(?:h|image)->(?:{'|'.join(SHARED)})\b"
    private = rf"(?:p|node|(?:\w+->)+node|shmcow_this_process)(?:->|\.)(?:{'|'.join(PRIVATE)})\b"
    return [
        f"{file}:{line}: {code.strip()}"
        for file, text in texts.items()
        for line, code in enumerate(blank(text).splitlines(), 1)
        if re.search(rf"(?<![&\w>.])(?:{shared}|{private})", code)
    ]


def table(protocol: str) -> dict[str, list[str]]:
    """The rows of the table under "Orderings": name -> its cells."""
    section = protocol.split("\n## Orderings\n", 1)[1].split("\n## ", 1)[0]
    rows = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("| `") else []
        if cells:
            rows[cells[0].strip("`")] = cells[1:]
    return rows


def wrong_table(protocol: str, litmus: Sequence[Litmus]) -> list[str]:
    """What PROTOCOL.md's table lacks, or has too much."""
    rows = table(protocol)
    wrong = []
    for site, named in NAMED.items():
        function = site.split()[0]
        for name in named.sync:
            cells = rows.get(name, ["", "", "", ""])
            if f"`{function}`" not in cells[0] + cells[1]:
                wrong.append(f"the row {name} does not name {function}")
    for name, cells in rows.items():
        here = set(re.findall(r"`(\w+)`", cells[-1]))
        there = {test.name for test in litmus if test.sync == name}
        if here != there:
            wrong.append(f"the row {name} has the litmus tests {sorted(here)}, and there are {sorted(there)}")
    below = protocol.split("\n## Orderings\n", 1)[1].split("\n## ", 1)[0]
    wrong += [
        f"{test.name} is not below the table" for test in litmus if not test.sync and f"`{test.name}`" not in below
    ]
    return wrong
