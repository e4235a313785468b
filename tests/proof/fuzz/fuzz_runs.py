"""Build the fuzz targets with libFuzzer, ASan and UBSan; run them, and plant bugs for them to find.

A target is a file ``target_<name>.c`` (see fuzz.h), its seeds are in ``seeds/<name>``: another parser is one more file,
and a line for each bug to plant.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
SEEDS = HERE / "seeds"
TARGETS = tuple(sorted(file.stem.removeprefix("target_") for file in HERE.glob("target_*.c")))
MAX_LEN = 2048
FORMAT, PROTOCOL = "shmcow_format.h", "shmcow_protocol.h"
TABLE, BUILD, VALUES = "shmcow_table.h", "shmcow_table_build.h", "shmcow_values.h"
ADDRESS, FAST, RANGES, FIND, PACK, FLATTEN = (
    f"shmcow_{name}.h"
    for name in ("address", "address_fast", "iptable", "iptable_find", "iptable_pack", "iptable_build")
)
FLAGS = [
    *("-std=c11", "-D_GNU_SOURCE", "-O2", "-g", "-fno-inline", "-Wall", "-Wextra", "-Werror"),
    *("-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"),
    *("-fno-sanitize-coverage=trace-cmp", f"-fsanitize-coverage-ignorelist={HERE / 'no_coverage.txt'}"),
]
# A small quarantine and no stacks of allocations: libFuzzer allocates once an execution, the targets never.
OPTIONS = {"ASAN_OPTIONS": "quarantine_size_mb=1:malloc_context_size=0:detect_leaks=0"}
DONE = re.compile(r"DONE\s+cov: (\d+) ft: (\d+) corp: (\d+)")
RUNS = re.compile(r"stat::number_of_executed_units: (\d+)")
PCS = re.compile(r"Loaded 1 PC tables \((\d+) PCs\)")
REPORT = re.compile(r"(REQUIRED, .*|runtime error: .*|ERROR: (?:AddressSanitizer|libFuzzer): [\w -]+)")


class Planted(NamedTuple):
    """A bug in a copy of a header: a condition that is never (or always) so.

    Attributes:
        instead: what takes the place of ``old`` while the bug is on.
    """

    target: str
    name: str
    file: str
    old: str
    instead: str = "0"


PLANTED = (
    Planted("identity", "a short file is read all the same", FORMAT, "file_bytes < sizeof(shmcow_identity)"),
    Planted("identity", "a name may be of any length", FORMAT, "id->name_bytes > SHMCOW_NAME_BYTES"),
    Planted("identity", "a file may be longer or shorter", FORMAT, "file_bytes != sizeof(shmcow_header)"),
    Planted("entry", "any number of segments", FORMAT, "entry->segment_count > SHMCOW_MAX_SEGMENTS"),
    Planted("entry", "segments of any length", FORMAT, "entry->segments[k].length > SHMCOW_VERSION_MAX"),
    Planted("entry", "no checksum", FORMAT, "entry->crc != shmcow_crc(table, entry, offsetof(shmcow_entry, crc))"),
    Planted("footer", "a length of its own", FORMAT, "footer->length != segment->length"),
    Planted("footer", "another epoch", FORMAT, "memcmp(footer->epoch, epoch, SHMCOW_EPOCH_BYTES) != 0"),
    Planted("footer", "no checksum", FORMAT, "footer->crc != shmcow_crc(table, footer, offsetof(shmcow_footer, crc))"),
    Planted("header", "any generation index", PROTOCOL, "shmcow_index_of(now) >= SHMCOW_GENERATIONS"),
    Planted("header", "the same current word again", PROTOCOL, "now == last"),
    Planted("header", "any number of listed segments", PROTOCOL, "count <= SHMCOW_MAX_SEGMENTS", "1"),
    Planted("header", "waits for a condemned generation for ever", PROTOCOL, "look < 64", "1"),
    Planted("header", "segment ids begin again", PROTOCOL, "SHMCOW_VERSION_MAX - SHMCOW_MAX_SEGMENTS", "UINT64_MAX"),
    Planted("header", "shared segments are unlinked", PROTOCOL, "shmcow_listed(h, segment, i)"),
    Planted("header", "entries are not checked", PROTOCOL, "shmcow_check_entry(table, out, version)", "SHMCOW_FINE"),
    Planted("table", "records of any length", TABLE, "size <= bytes - at - 8", "1"),
    Planted(
        "table",
        "rows longer than their cells",
        TABLE,
        "head + row->key.size + (row->along ? row->value : 0) <= table->header.cell_bytes",
        "1",
    ),
    Planted("table", "homes without a cell", TABLE, "h->homes > h->cell_count"),
    Planted("table", "cells behind the last", TABLE, "d < left", "1"),
    Planted("table", "rows behind the last one", TABLE, "number >= table->header.rows"),
    Planted(
        "table", "the sections need not add up", TABLE, "h->length_count > bytes / 4 || h->length_count * 4 != bytes"
    ),
    Planted("table", "values of any length", VALUES, "*length <= values->bytes - at - 4", "1"),
    Planted("table", "key lengths that do not ascend", TABLE, "size > bytes"),
    Planted("table", "cells before their homes", BUILD, "cell > home ? cell : home", "cell"),
    Planted("address", "octets above 255", ADDRESS, "(octet > 255)"),
    Planted("address", "more than eight groups", ADDRESS, "groups == 8"),
    Planted("address", "a gap of no group", ADDRESS, "groups > 7", "groups > 8"),
    Planted("address", "an address with a slash in its scope", ADDRESS, "memchr(scope + 1, '/', rest) == NULL", "1"),
    Planted("address", "groups of more than four digits", FAST, "run & run >> 2 & digits >> 4"),
    Planted("address", "any number of groups", FAST, "wrong == 0 && last == end", "wrong == 0"),
    Planted("address", "networks with host bits", ADDRESS, "(network->first.number & hosts) != 0"),
    Planted("iptable", "any number of intervals", RANGES, "intervals <= 2 * rows + 1", "1"),
    Planted("iptable", "the sections need not add up", RANGES, "h.bytes != bytes || l.end != bytes"),
    Planted("iptable", "any number of leaves", RANGES, "leaves <= intervals", "1"),
    Planted("iptable", "too few leaves for the intervals", RANGES, "(uint64_t)leaves * slots >= intervals", "1"),
    Planted("iptable", "owners of any number", FIND, "owner > family->rows"),
    Planted("iptable", "an interval behind the last", FIND, "k >= family->intervals"),
    Planted("iptable", "what fills up counts as intervals", FIND, "a < b ? a : b", "a"),
    Planted("iptable", "leaves of one upper half are not told apart", FIND, "base > number"),
    Planted("iptable", "a leaf's first start has no lower half", PACK, "p->wide && (uint64_t)p->base != 0"),
    Planted(
        "iptable",
        "starts that a delta does not hold",
        PACK,
        "difference >> shmcow_trailing_zeros(p->bits | difference) <= SHMCOW_DELTA_MAX",
        "1",
    ),
    Planted("iptable", "ranges may cross", FLATTEN, "same || row.last > around.last", "same"),
    Planted("iptable", "an enclosing row ends with those in it", FLATTEN, "row.last >= next", "0"),
)


def missing() -> str:
    """Say what is not installed, "" if nothing is."""
    if shutil.which("clang") is None:
        return "needs clang, with libFuzzer (Debian: apt-get install clang libclang-rt-14-dev)"
    found = subprocess.run(["clang", "-print-resource-dir"], capture_output=True, text=True, check=True).stdout
    if not list(Path(found.strip()).glob("lib/**/libclang_rt.fuzzer*.a")):
        return "needs libFuzzer (Debian: apt-get install libclang-rt-14-dev, or that of your clang's number)"
    return ""


def build(target: str, program: Path, sources: Path = ROOT / "csrc") -> Path:
    """Compile one target."""
    command = ["clang", *FLAGS, f"-I{sources}", str(HERE / f"target_{target}.c"), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def plant(folder: Path) -> Path:
    """Copy the sources, with all bugs in them: each is on while ``fuzz_planted`` is its number, counted from 1."""
    folder.mkdir()
    texts = {file.name: file.read_text() for file in (ROOT / "csrc").glob("shmcow_*.h")}
    for number, bug in enumerate(PLANTED, 1):
        text = texts[bug.file]
        assert text.count(bug.old) == 1, f"the planted bug {bug.name!r} does not fit the source any more"
        texts[bug.file] = text.replace(bug.old, f"(fuzz_planted == {number} ? ({bug.instead}) : ({bug.old}))")
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


class Run(NamedTuple):
    """What came of a run: its figures, and the first report, "" if there was none."""

    executions: int
    covered: int
    places: int
    features: int
    report: str
    output: str


def run(target: str, program: Path, corpus: Path, seconds: int, planted: int = 0, seed: int = 0) -> Run:
    """Fuzz for so many seconds of wall-clock time, or until there is a report."""
    corpus.mkdir(parents=True, exist_ok=True)
    command = [str(program), f"-max_total_time={seconds}", f"-max_len={MAX_LEN}", f"-seed={seed}", "-detect_leaks=0"]
    command += ["-timeout=120", "-print_final_stats=1", f"-artifact_prefix={corpus.parent}/{target}-", str(corpus)]
    seeds = [str(SEEDS / target)] if (SEEDS / target).is_dir() else []
    environment = {**os.environ, **OPTIONS, "FUZZ_PLANTED": str(planted)}
    done = subprocess.run(
        [*command, *seeds], capture_output=True, text=True, errors="replace", env=environment, check=False
    )
    found, runs, places = DONE.search(done.stderr), RUNS.search(done.stderr), PCS.search(done.stderr)
    report = REPORT.search(done.stderr)
    said = report[1] if report else "" if done.returncode == 0 else f"ended with {done.returncode}"
    covered, features = (int(found[1]), int(found[2])) if found else (0, 0)
    return Run(int(runs[1]) if runs else 0, covered, int(places[1]) if places else 0, features, said, done.stderr)
