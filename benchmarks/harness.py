"""How everything is measured: interleaved rounds, medians with their spread, ratios within one round.

A *case* is one thing to measure; calling it does a batch and returns nanoseconds for one operation. ``measure`` runs
the cases in turn, A B C A B C ..., so that whatever disturbs the machine disturbs all of them. A *ratio* is taken
between two cases of the same round, and the median over the rounds is reported with the quartiles. The first round of
each case is a warm-up and is thrown away. Python's cyclic garbage collector is off while a batch runs.

A question is a module of this package with a one-line docstring and ``run(plan) -> Result``; nothing else has to know
of it.
"""

from __future__ import annotations

import dataclasses
import datetime
import gc
import importlib.metadata
import itertools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Case = Callable[[], float]

PACKAGES = ("shmcow", "msgspec", "posix_ipc")
UNROLLED = 10  # calls in one turn of the loop, so that the loop itself weighs little


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much to measure. ``quick`` proves that everything runs; its figures mean nothing."""

    quick: bool = False

    def pick(self, full: int, quick: int) -> int:
        """Return a number of rounds, calls or bytes."""
        return quick if self.quick else full


@dataclasses.dataclass(frozen=True)
class Middle:
    """A median and its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Middle:
        """Summarize the figures of all rounds."""
        if len(figures) < 2:
            return cls(figures[0], figures[0], figures[0])
        low, median, high = statistics.quantiles(figures, n=4, method="inclusive")
        return cls(median, low, high)


@dataclasses.dataclass(frozen=True)
class Ratio:
    """One row of the table: how many times one case costs another, or how often another fits into it."""

    name: str
    middle: Middle
    must: float | None = None
    aim: float | None = None
    at_least: bool = False  # the bounds are lower ones: how many times something else costs

    @property
    def verdict(self) -> str:
        """Say which of the two bounds is kept."""
        if self.aim is not None and self._keeps(self.aim):
            return "aim met"
        if self.must is None:
            return "" if self.aim is None else "MISSED"
        return "must met" if self._keeps(self.must) else "MISSED"

    def _keeps(self, bound: float) -> bool:
        return self.middle.median >= bound if self.at_least else self.middle.median <= bound


@dataclasses.dataclass
class Grid:
    """A table of cases, for people and for plots: each row names the case of each column, None where there is none."""

    columns: list[str]
    rows: dict[str, list[str | None]] = dataclasses.field(default_factory=dict)
    x: list[float] | None = None  # what the columns stand for on an axis
    unit: str = "ns"  # of the figures: ns, or what `amounts` are in
    missing: str = ""  # what a cell without a case says


@dataclasses.dataclass
class Result:
    """What one question gives: ratios, the times behind them (ns for one operation), and remarks for the reader."""

    title: str
    warm_up: str
    rounds: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    ratios: list[Ratio] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    amounts: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # figures that are no times
    grids: dict[str, Grid] = dataclasses.field(default_factory=dict)  # by title

    def put(self, title: str, row: str, column: str, figures: Sequence[float], *, unit: str = "ns") -> None:
        """Add figures, as a case of their own, to the table of that title."""
        grid = self.grids.setdefault(title, Grid([], unit=unit))
        case = f"{title}: {row}, {column}"
        (self.rounds if unit == "ns" else self.amounts)[case] = list(figures)
        if column not in grid.columns:
            grid.columns.append(column)
        at = grid.columns.index(column)
        cells = grid.rows.setdefault(row, [])
        cells += [None] * (at + 1 - len(cells))
        cells[at] = case

    def lack(self, title: str, row: str, word: str) -> None:
        """Add a row that has no figures; its cells say that word."""
        self.grids.setdefault(title, Grid([])).rows.setdefault(row, [])
        self.grids[title].missing = word

    def add(self, name: str, figures: Sequence[float], *, aim: float | None = None, at_least: bool = False) -> None:
        """Add a ratio that was computed round by round."""
        self.ratios.append(Ratio(name, Middle.of(figures), None, aim, at_least))

    def compare(
        self,
        name: str,
        case: str,
        floor: str,
        *,
        minus: str | None = None,
        must: float | None = None,
        aim: float | None = None,
        at_least: bool = False,
    ) -> None:
        """Add a ratio: ``case`` to ``floor``, round by round, after taking the case ``minus`` off both."""
        off = self.rounds[minus] if minus else [0.0] * len(self.rounds[case])
        pairs = zip(self.rounds[case], self.rounds[floor], off, strict=True)
        middle = Middle.of([(a - c) / (b - c) for a, b, c in pairs])
        self.ratios.append(Ratio(name, middle, must, aim, at_least))

    def as_json(self) -> dict[str, Any]:
        """Return everything, all rounds included."""
        return {
            "title": self.title,
            "measured": now(),
            "load": load(),
            "warm_up": self.warm_up,
            "notes": self.notes,
            "ratios": [
                {
                    "name": r.name,
                    **_rounded(r.middle),
                    "must": r.must,
                    "aim": r.aim,
                    "at_least": r.at_least,
                    "verdict": r.verdict,
                }
                for r in self.ratios
            ],
            "times_ns": _summaries(self.rounds),
            "amounts": _summaries(self.amounts),
            "grids": {title: dataclasses.asdict(grid) for title, grid in self.grids.items()},
        }


def _summaries(rounds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    return {
        name: {**_rounded(Middle.of(figures)), "rounds": [_digits(f) for f in figures]}
        for name, figures in rounds.items()
    }


def _rounded(middle: Middle) -> dict[str, float]:
    return {name: _digits(figure) for name, figure in dataclasses.asdict(middle).items()}


def _digits(figure: float) -> float:
    """Round to six digits: reports are kept."""
    return float(f"{figure:.6g}")


# ---- cases ----


def loop(statement: str, names: Mapping[str, object], n: int) -> Case:
    """Make a case of a cheap statement: the mean over n turns of a loop that repeats it ``UNROLLED`` times.

    An empty statement gives the cost of the loop itself, to be stated or taken off.
    """
    body = "".join(f"            {statement or 'pass'}\n" for _ in range(UNROLLED))
    source = (
        f"def make({', '.join(['clock', 'turns', *names])}):\n"
        "    def batch():\n"
        "        begin = clock()\n"
        f"        for _ in turns(None, {n}):\n"
        f"{body}"
        "        return clock() - begin\n"
        # bind what the statement uses as locals: a global or a cell would add a look-up to each side
        "    return batch\n"
    )
    source = source.replace("def batch():", f"def batch({', '.join(f'{name}={name}' for name in names)}):")
    space: dict[str, Any] = {}
    exec(source, space)
    batch = space["make"](time.perf_counter_ns, itertools.repeat, **names)
    return lambda: float(batch()) / (n * UNROLLED)


def each(operation: Callable[[], object], n: int) -> Case:
    """Make a case of an operation of microseconds or more: the median of n calls, each timed by itself."""

    def case() -> float:
        clock, times = time.perf_counter_ns, []
        for _ in range(n):
            begin = clock()
            operation()
            times.append(clock() - begin)
        return float(statistics.median(times))

    return case


def timed(operation: Callable[[], int], n: int) -> Case:
    """Make a case of an operation that measures itself and returns nanoseconds: the median of n calls."""
    return lambda: float(statistics.median(operation() for _ in range(n)))


def measure(cases: Mapping[str, Case], rounds: int) -> dict[str, list[float]]:
    """Run all cases in turn, once to warm up and then for that many rounds. -> name -> figure of each round"""
    figures: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, case in cases.items():
            gc.collect()
            gc.disable()
            try:
                figure = case()
            finally:
                gc.enable()
            if number > 0:
                figures[name].append(figure)
    return figures


# ---- the machine ----


def describe_machine() -> dict[str, Any]:
    """Say what the figures were measured on; nothing that names the host or its user."""
    cpu = _field("/proc/cpuinfo", "model name") or platform.machine()
    shm = os.statvfs("/dev/shm")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "virtual": "hypervisor" in (_field("/proc/cpuinfo", "flags") or "").split(),
        "memory": _field("/proc/meminfo", "MemTotal") or "",
        "shm_bytes": shm.f_frsize * shm.f_blocks,
        "kernel": platform.release(),
        "load_before": os.getloadavg()[0],
    }


def describe_versions() -> dict[str, str]:
    """Say which software was measured."""
    found = {"python": f"{platform.python_implementation()} {platform.python_version()}"}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = str(getattr(sys.modules.get(package), "__version__", "not installed"))
    return found


def describe_run(plan: Plan) -> dict[str, Any]:
    """Return what a JSON report begins with."""
    return {
        "format": 1,
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "date": now(),
        "quick": plan.quick,
        "machine": describe_machine(),
        "versions": describe_versions(),
    }


def now() -> str:
    """Return the time, to be kept."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def load() -> float:
    """Return how many processes ran or wanted to, on average, in the last five minutes."""
    return round(os.getloadavg()[1], 1)


def _field(path: str, key: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), None)


# ---- for people ----


def time_text(ns: float) -> str:
    """Write a time with three digits and its unit."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}" if ns / size < 1000 else f"{ns / size:.0f} {unit}"
    return f"{ns:.1f} ns"


def run_text(about: Mapping[str, Any]) -> str:
    """Write what a report begins with."""
    machine, versions = about["machine"], about["versions"]
    kind = "virtual machine" if machine["virtual"] else "machine"
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores ({kind}), {machine['memory']}, load {machine['load_before']:.1f}",
        f"Linux {machine['kernel']}, {software}; {about['date']}",
    ]
    if about["quick"]:
        lines.append("--quick: this shows that it runs; the figures mean nothing")
    return "\n".join(lines)


def amount_text(figure: float, unit: str) -> str:
    """Write a figure with three digits and its unit."""
    if unit == "ns":
        return time_text(figure)
    if unit == "bytes":
        for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if abs(figure) >= size:
                return f"{figure / size:.3g} {name}"
        return f"{figure:.0f} B"
    return f"{figure:,.0f} {unit}" if abs(figure) >= 1000 else f"{figure:.3g} {unit}"


def result_text(result: Result, quick: bool = False) -> str:
    """Write one question's tables: ratios first, figures second; no verdicts on figures that mean nothing."""
    ratios = [["ratio", "median", "quartiles", "must", "aim", ""]]
    for r in result.ratios:
        sign = "≥" if r.at_least else "≤"
        bounds = ["" if bound is None else f"{sign} {bound:.3g}" for bound in (r.must, r.aim)]
        spread = f"{r.middle.low:.3g} … {r.middle.high:.3g}"
        ratios.append([r.name, f"{r.middle.median:.3g}", spread, *bounds, "" if quick else r.verdict])
    parts = [result.title, _table(ratios)]
    parts += [_grid_text(result, title, grid) for title, grid in result.grids.items()]
    shown = {case for grid in result.grids.values() for row in grid.rows.values() for case in row}
    times = [["one operation", "median", "quartiles"]]
    for name, figures in result.rounds.items():
        if name not in shown:
            middle = Middle.of(figures)
            times.append([name, time_text(middle.median), f"{time_text(middle.low)} … {time_text(middle.high)}"])
    parts += [_table(times)] if len(times) > 1 else []
    count = max((len(figures) for figures in result.rounds.values()), default=0)
    last = [f"{count} interleaved rounds; warm-up: {result.warm_up}", *result.notes]
    return "\n\n".join([*parts, "\n".join(last)])


def _grid_text(result: Result, title: str, grid: Grid) -> str:
    figures = {**result.rounds, **result.amounts}
    rows = [[title, *grid.columns]]
    for name, cases in grid.rows.items():
        cells = [
            grid.missing if case is None else amount_text(Middle.of(figures[case]).median, grid.unit) for case in cases
        ]
        rows.append([name, *cells, *[grid.missing] * (len(grid.columns) - len(cells))])
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    lines.insert(1, "─" * max(map(len, lines)))
    return "\n".join(lines)
