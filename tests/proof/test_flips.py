"""Every bit flip and every cut of a small store, read and written through the public API (see flips.md)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).with_name("flips")))

import copies
import flip_fields
import flip_mutants

import shmcow
from shmcow import _core

HERE = Path(__file__).with_name("flips")
PACKAGE = Path(shmcow.__file__).resolve().parents[1]
EVERY = 16  # of what is not the current version's, and of writers' turns under a checksum: one bit in so many
Run = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def _run(store: str, task: dict[str, Any], package: Path = PACKAGE) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(HERE / "flip_program.py"), store, json.dumps(task)],
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture
def run(name: str) -> Run:
    """Do tasks beside each other, each with a store of its own."""

    def run_all(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return list(pool.map(_run, [f"{name}-{k}" for k in range(len(tasks))], tasks))

    return run_all


def _figures(what: str, answers: list[dict[str, Any]]) -> Counter[str]:
    regions: Counter[str] = Counter()
    for answer in answers:
        regions.update(answer["by_region"])
    violations = [text for answer in answers for text in answer["violations"]]
    cpu = sum(answer["cpu"] for answer in answers)
    print(f"{what}: {regions.total():,} cases, {len(violations)} violations, {cpu:.0f} s of CPU")
    for region, cases in sorted(regions.items()):
        print(f"    {region}: {cases:,}")
    assert not violations, f"{len(violations)} violations:\n" + "\n".join(violations[:10])
    return regions


def test_every_byte_of_the_layout_has_a_kind() -> None:
    """No field can be forgotten: the regions follow each other without a gap, from the first byte to the last."""
    golden = flip_fields.ABI.with_name(f"abi_{_core.ABI}.txt")
    assert golden == flip_fields.ABI, "a new ABI: have tests/proof/flips look at its layout"
    header = flip_fields.header_regions()
    for regions, end in ((header, _core.HEADER_BYTES), (flip_fields.segment_regions(40), 64 + _core.FOOTER_BYTES)):
        at = 0
        for region in regions:
            assert region.start == at, region
            at += region.length
        assert at == end
    assert {region.kind for region in header} == {"sealed", "number", "current", "word", "entry", "feed", "unused"}
    unused = Counter(region.field for region in header if region.kind == "unused")
    assert dict(unused) == {
        "padding before current": 1,
        "padding before counters": 1,
        "counters": 15,
        "padding before feeds": 1,
    }
    assert set(flip_fields.KINDS) == {field for field, _, _ in flip_fields.structs()["header"]} - {"identity"}


def test_every_flipped_bit_gives_the_right_value_or_an_error(run: Run, record_property: Callable[..., None]) -> None:
    """Attached and fresh readers, older versions, reports: where a checksum covers the bit, always the error."""
    answers = run([{"what": ["flips"], "every": EVERY, "part": [k, 2]} for k in range(2)])
    regions = _figures("flips, read", answers)
    record_property("flips_read", regions.total())
    assert regions["readers: header identity"] == 192 * 8
    assert regions["readers: header current"] == 64
    assert regions["readers: header words"] == 64 * 64
    assert regions["readers: header entry"] >= 1536 * 8
    assert regions["readers: segment footer"] == 128 * 8


def test_writers_mend_every_flipped_bit_or_say_why_not(run: Run, record_property: Callable[..., None]) -> None:
    """A writer attaches, recovers, sweeps and publishes: the new version is read, or the error is specific."""
    answers = run([{"what": ["writers"], "every": EVERY, "part": [k, 2]} for k in range(2)])
    regions = _figures("flips, written", answers)
    record_property("flips_written", regions.total())
    assert regions["writer: header words"] >= 3 * 64 + 61 * 64 // EVERY


def test_every_cut_is_refused(run: Run, record_property: Callable[..., None]) -> None:
    """A header or segment of any other length is refused before it is touched: no SIGBUS."""
    answers = run([{"what": ["cuts"], "part": [k, 2]} for k in range(2)])
    cuts = _figures("cuts", answers).total()  # fails at the first violation
    record_property("cuts", cuts)
    assert cuts > 2000


def test_random_damage_gives_the_right_value_or_an_error(run: Run, record_property: Callable[..., None]) -> None:
    """Several pieces of random bytes; the long run has a million (nightly/flips)."""
    answers = run([{"what": [], "random": 500, "seed": seed} for seed in (0, 500)])
    cases = sum(answer["cases"] for answer in answers)
    violations = [text for answer in answers for text in answer["violations"]]
    print(f"random damage: {cases} cases, {len(violations)} violations")
    record_property("random_damage", cases)
    assert not violations, violations
    assert cases == 1000


def test_flips_find_their_mutants(name: str, tmp_path: Path) -> None:
    """Each build that lacks one check is caught by a flip or a cut."""
    if copies.compiler() is None:
        pytest.skip("needs a C compiler (Debian: apt-get install gcc libc6-dev)")
    places = flip_mutants.build_all(tmp_path)

    def first(number: int) -> str:
        mutant = flip_mutants.MUTANTS[number]
        violations = _run(f"{name}-{number}", mutant.task(), places[mutant.name])["violations"]
        print(f"mutant: {mutant.name}: {violations[0][:160] if violations else 'MISSED'}")
        return "" if violations else mutant.name

    with ThreadPoolExecutor(2) as pool:
        missed = [found for found in pool.map(first, range(len(flip_mutants.MUTANTS))) if found]
    assert not missed
