"""Which weakenings of the protocol header a kill, or a meeting, at one instruction must show.

The weakenings are those of the stress program (`stress/mutants.py`), and two of our own. Not here, as one process at a
time, on one processor, cannot show them: weaker memory orders, and a writer lock that is not taken.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stress"))

from mutants import MUTANTS, Mutant, weaken

KILLS = (
    "no DOOMED",
    "DOOMED comes back to life",
    "free before unlink",
    "shared segments are unlinked",
    "flip before fill",
    "no intent before the fill",
    "recovery skipped",
    "recovery keeps what was never flipped",
    "recovery drops what was flipped",
    "recovery condemns for good",
    "the current version is judged, too",
    "what a rollback repeats is not protected",
    "a version number twice",
    "a full table forces nothing out",
)
MEETINGS = (
    "no check after the marker",
    "no second look after the copy",
    "the state without the version",
    "the look before the marker",
    "a failed hold keeps its marker",
    "no CONDEMNED",
    "the test before the condemnation",
    "markers are not seen",
)
_FLIP = "    r = shmcow_flip(h, &now, shmcow_current_word(i, entry->version));\n"
_HOLD = "    (void)shmcow_advance(h, i, entry->version, SHMCOW_READY, SHMCOW_HELD);\n"
OWN = (
    Mutant(  # only a kill between two instructions shows it: there is no step, and no system call, in between
        "HELD before the flip",
        (
            (
                _FLIP,
                _HOLD + _FLIP,
            ),
            (
                "    (void)shmcow_advance(h, i, entry->version, SHMCOW_READY, SHMCOW_HELD);\n    shmcow_count",
                "    shmcow_count",
            ),
        ),
    ),
    Mutant(
        "the intent before its list",
        (
            ("    shmcow_store_entry(h, i, entry);\n    uint64_t was", "    uint64_t was"),
            (
                '    SHMCOW_STEP("publish.building");\n',
                '    shmcow_store_entry(h, i, entry);\n    SHMCOW_STEP("publish.building");\n',
            ),
        ),
    ),
)
ALL = [
    *((mutant, "stores") for mutant in (*MUTANTS, *OWN) if mutant.name in KILLS or mutant in OWN),
    *((mutant, "meet") for mutant in MUTANTS if mutant.name in MEETINGS),
]
__all__ = ["ALL", "KILLS", "MEETINGS", "OWN", "Mutant", "weaken"]
