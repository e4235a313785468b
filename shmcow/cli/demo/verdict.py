"""What the demo counts, and what it comes to."""

from __future__ import annotations

import dataclasses

__all__ = ["Verdict"]


@dataclasses.dataclass(slots=True)
class Verdict:
    """The counts of one run; what must be 0, and by how many reads that was checked.

    Attributes:
        torn: reads of a value that is not whole.
        lost: reads that missed a version which had been acknowledged before.
        back: reads of an older version than the one before.
        left: names left in /dev/shm after everything was removed.
        reads: that were checked.
        versions: that were published.
        counters: what the store's writers counted.
        trouble: whatever else did not go as it should.
    """

    torn: int = 0
    lost: int = 0
    back: int = 0
    left: int = 0
    reads: int = 0
    versions: int = 0
    counters: dict[str, int] = dataclasses.field(default_factory=dict)
    trouble: list[str] = dataclasses.field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether nothing went wrong, and anything was checked at all."""
        return not (self.torn or self.lost or self.back or self.left or self.trouble) and self.reads > 0

    def so_far(self) -> str:
        """Return in one line what is counted while the demo runs."""
        return f"torn {self.torn} · lost {self.lost} · went back {self.back}"

    def counts(self) -> str:
        """Return all the counts in one line."""
        return f"{self.so_far()} · left in /dev/shm {self.left}"

    def checked(self) -> str:
        """Return in one line by what they were checked."""
        return f"{self.reads:,} reads of {self.versions:,} versions, every read checked"

    def tidied(self) -> str:
        """Return in one line what the store's writers tidied up; "" if nobody could tell."""
        kept = ("recovered", "reclaimed", "swept")
        return "versions " + ", ".join(f"{what} {self.counters[what]:,}" for what in kept) if self.counters else ""
