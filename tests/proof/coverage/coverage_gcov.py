"""What gcov counted, merged over objects: a header is compiled into many, and some sources are built twice.

Branches are merged by function, line and place in the line. (gcovr tells them apart by the number of their basic block,
which differs from object to object: merged, one branch becomes two.)
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

# Their branches are the interpreter's: each asks whether the visitor, or what is cleared, is there.
MACROS = re.compile(r"\bPy_(VISIT|CLEAR)\(")


@dataclass
class Line:
    """A line with code: how often it ran, and how often each branch in it was taken, by function."""

    ran: int = 0
    branches: dict[str, list[int]] = field(default_factory=dict)

    def add(self, function: str, ran: int, taken: list[int]) -> None:
        """Add what one object counted."""
        self.ran += ran
        known = self.branches.setdefault(function, [0] * len(taken))
        if len(known) != len(taken):
            raise ValueError(f"{function}: {len(known)} branches in one object, {len(taken)} in another")
        self.branches[function] = [a + b for a, b in zip(known, taken, strict=True)]

    def taken(self) -> list[int]:
        """Return how often each branch was taken."""
        return [n for counts in self.branches.values() for n in counts]


File = dict[int, Line]


def counted(objects: Iterable[Path], sources: Path) -> dict[str, File]:
    """Return the lines of all files in a folder, by name and number."""
    files: dict[str, File] = {}
    for item in sorted(objects):
        command = ["gcov", "--branch-probabilities", "--json-format", "--stdout", str(item)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for document in said.splitlines():
            data = json.loads(document)
            for found in data["files"]:
                path = Path(data["current_working_directory"], found["file"]).resolve()
                if path.parent == sources.resolve():
                    _add(files.setdefault(path.name, {}), path, found["lines"])
    return dict(sorted(files.items()))


def _add(file: File, path: Path, lines: list[dict[str, object]]) -> None:
    text = path.read_text().splitlines()
    for line in lines:
        number = int(str(line["line_number"]))
        taken = [branch["count"] for branch in line["branches"]]  # type: ignore[attr-defined]
        if MACROS.search(text[number - 1]):
            taken = []
        where = file.setdefault(number, Line())
        try:
            where.add(str(line.get("function_name", "")), int(str(line["count"])), taken)
        except ValueError as exc:
            raise ValueError(f"{path.name}:{number}: {exc}") from None


@dataclass
class Sum:
    """How much of something there is, and was reached."""

    lines: int = 0
    ran: int = 0
    branches: int = 0
    taken: int = 0

    def add(self, file: File) -> None:
        """Add a file."""
        for line in file.values():
            taken = line.taken()
            self.lines += 1
            self.ran += line.ran > 0
            self.branches += len(taken)
            self.taken += sum(n > 0 for n in taken)

    def percent(self) -> tuple[float, float]:
        """Return the shares of the lines, and of the branches."""
        return 100 * self.ran / max(self.lines, 1), 100 * self.taken / max(self.branches, 1)

    def __str__(self) -> str:
        lines, branches = self.percent()
        return (
            f"{self.ran:5} of {self.lines:5} lines {lines:5.1f} %   "
            f"{self.taken:5} of {self.branches:5} branches {branches:5.1f} %"
        )


def report(files: dict[str, File], sources: Path) -> Sum:
    """Print the figures of each file, and each line that is missed or has a branch that is; returns the sum."""
    total = Sum()
    for name, file in files.items():
        one = Sum()
        one.add(file)
        total.add(file)
        print(f"{name:20} {one}")
    print(f"{'C in all':20} {total}")
    for name, file in files.items():
        text = (sources / name).read_text().splitlines()
        for number, line in sorted(file.items()):
            taken = line.taken()
            missed = sum(n == 0 for n in taken)
            if line.ran == 0 or missed:
                what = "never ran" if line.ran == 0 else f"{missed} of {len(taken)} branches"
                print(f"  {name}:{number}: {what}: {text[number - 1].strip()}")
    return total
