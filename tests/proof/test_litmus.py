"""Every ordering that csrc relies on: litmus tests of the C11 memory model, tied to the source and to instructions."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from litmus import disassembly, link, process, shared, sites, source
from litmus.litmus import Litmus, Twin, asked_for, run
from litmus.rc11 import Model, check
from litmus.textbook import KNOWN, Known

CSRC = Path(__file__).parents[2] / "csrc"
TESTS = (*shared.IN_CI, *process.IN_CI)
BY_NAME = {test.name: test for test in TESTS}
TEXTS = source.read_all(CSRC)
PROTOCOL = (CSRC / "PROTOCOL.md").read_text()
STRICTEST = Model(load_buffering=True, short_sequences=True)  # allows most: what holds here leans on less
WEAKENED = [(site, order) for site in sites.NAMED for order in sites.weaker_orders(site)]


def changed(file: str, old: str, new: str) -> dict[str, str]:
    """The sources, with one change."""
    assert TEXTS[file].count(old) >= 1, old
    return {**TEXTS, file: TEXTS[file].replace(old, new, 1)}


def litmus_of(site: str) -> list[Litmus]:
    """The litmus tests that a named operation stands in."""
    return [test for test in TESTS if site in asked_for(test.build)]


# ---- the checker ----


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_checker_knows_the_textbook(known: Known) -> None:
    """Programs whose verdict is known come out as they must."""
    verdict = check(known.program, known.model)
    assert any(known.bad(outcome) for outcome in verdict.outcomes) is known.allowed
    assert (verdict.races > 0) is known.racy


# ---- the litmus tests ----


@pytest.mark.parametrize("model", [None, STRICTEST], ids=["rc11", "weaker"])
@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.name)
def test_bad_outcome_cannot_be(test: Litmus, model: Model | None) -> None:
    """With the orders of the source no execution has the bad outcome or a race, and the good one is possible."""
    result = run(test, link.orders_for_litmus(TEXTS), model=model)
    assert result.executions > 0
    assert (result.bad, result.races, result.seen) == (0, 0, True), test.breaks


@pytest.mark.parametrize(
    ("test", "twin"), [(test, twin) for test in TESTS for twin in test.twins], ids=lambda part: part.name
)
def test_weakened_twin_shows_the_bad_outcome(test: Litmus, twin: Twin) -> None:
    """A litmus test that cannot fail proves nothing."""
    assert not run(test, sites.ORDERS, twin).holds


def test_each_necessary_order_has_a_twin() -> None:
    """Each order that must be there is taken away in a twin of a litmus test of its name."""
    lacking = []
    for site, named in sites.NAMED.items():
        tests = litmus_of(site)
        assert any(test.sync in named.sync for test in tests), f"{site} stands in no litmus test of its name"
        if named.needs == "relaxed":
            continue
        twins = [twin for test in tests for twin in test.twins if site in twin.weaker]
        lacking += [] if twins else [site]
    assert lacking == []


def test_there_are_enough_litmus_tests(record_property: Callable[[str, object], None]) -> None:
    """Say how much was looked at."""
    executions = sum(run(test, sites.ORDERS).executions for test in TESTS)
    twins = [(test, twin) for test in TESTS for twin in test.twins]
    caught = sum(not run(test, sites.ORDERS, twin).holds for test, twin in twins)
    named, unnamed = len(sites.NAMED), len(sites.UNNAMED)
    figures = (
        f"litmus: {len(TESTS)} tests as expected, {executions} executions; {caught} of {len(twins)} twins caught; "
        f"{named} named atomic operations, {unnamed} without a name; {len(WEAKENED)} weakened orders in the source"
    )
    record_property("figures", figures)
    print(figures)
    assert len(TESTS) >= 15
    assert caught == len(twins)
    assert len(BY_NAME) == len(TESTS)


# ---- from the litmus tests to the source ----


def test_every_atomic_operation_is_known() -> None:
    """Each has the order that its litmus tests have, or a reason why it needs none."""
    assert link.wrong_orders(TEXTS) == []
    assert sites.NAMED.keys() & sites.UNNAMED.keys() == set()


def test_functions_do_things_in_the_order_of_the_litmus_tests() -> None:
    """A fence in another place would be another program."""
    assert link.wrong_sequences(TEXTS) == []


def test_atomic_objects_are_only_touched_by_atomic_operations() -> None:
    """A plain access to an atomic object is an order that nobody wrote down."""
    assert link.bare_accesses(TEXTS) == []


def test_every_named_operation_says_its_name() -> None:
    """The comments, the litmus tests and the table use the same names, in the same functions."""
    assert link.silent_functions(TEXTS) == []
    assert link.unknown_names(TEXTS) == []
    assert link.wrong_table(PROTOCOL, TESTS) == []


@pytest.mark.parametrize(("site", "order"), WEAKENED, ids=lambda part: part.replace(" ", "-"))
def test_weakened_source_fails_its_litmus_test(site: str, order: str) -> None:
    """Weaken one order in a copy of the source: the check of orders fails, and so does a litmus test that names it."""
    operation = source.all_operations(TEXTS)[site]
    texts = {**TEXTS, operation.file: source.weakened(TEXTS[operation.file], operation, order)}
    assert len(link.wrong_orders(texts)) == 1
    orders = link.orders_for_litmus(texts)
    assert orders == {**sites.ORDERS, site: order}
    failed = [test for test in litmus_of(site) if not run(test, orders).holds]
    if sites.at_least(order, sites.NAMED[site].needs):
        assert failed == [], f"{site}: sites.py says that {order} would do"
    else:
        assert {test.sync for test in failed} & set(sites.NAMED[site].sync), f"{site}: no litmus test of its name fails"


FENCE = "    atomic_thread_fence(memory_order_seq_cst);\n"
MOVED = {
    "judge: tested before the fence": (
        "shmcow_protocol.h",
        FENCE + "    int held = ops->marked(ctx, version);\n",
        "    int held = ops->marked(ctx, version);\n" + FENCE,
    ),
    "hold: looked before the fence": (
        "shmcow_protocol.h",
        FENCE + "    int r = SHMCOW_MOVED;\n    uint64_t word = shmcow_load_word(h, i);\n",
        "    int r = SHMCOW_MOVED;\n    uint64_t word = shmcow_load_word(h, i);\n" + FENCE,
    ),
    "hold: marked behind the fence": (
        "shmcow_protocol.h",
        "    int r = SHMCOW_MOVED;\n    uint64_t word = shmcow_load_word(h, i);\n",
        "    int r = SHMCOW_MOVED;\n    uint64_t word = shmcow_load_word(h, i);\n    ops->mark(ctx, version);\n",
    ),
    "entry: fence before the copy": (
        "shmcow_protocol.h",
        "    uint64_t words[SHMCOW_ENTRY_WORDS];\n    for",
        "    uint64_t words[SHMCOW_ENTRY_WORDS];\n    atomic_thread_fence(memory_order_acquire);\n    for",
    ),
    "publish: flip before build": (
        "shmcow_protocol.h",
        "    int r = shmcow_build(h, ops, ctx, table, entry, fresh);\n",
        "    int r = shmcow_flip(h, &now, 1);\n    r = shmcow_build(h, ops, ctx, table, entry, fresh);\n",
    ),
    "open: stamp behind the open": (
        "shmcow_os.c",
        "        int fd = shmcow_open_regular(path, flags, &st);\n",
        "        int fd = shmcow_open_regular(path, flags, &st);\n        stamp = shmcow_fork_stamp();\n",
    ),
}


@pytest.mark.parametrize("what", MOVED)
def test_moved_operation_is_noticed(what: str) -> None:
    """The same operations in another place are not what the litmus tests looked at."""
    assert link.wrong_sequences(changed(*MOVED[what])) != []


def test_new_atomic_operation_is_refused() -> None:
    """Whoever adds an atomic operation says what it pairs with, or why it pairs with nothing."""
    line = "    uint64_t now = shmcow_load_current(h);\n"
    more = changed(
        "shmcow_protocol.h", line, line + "    atomic_store_explicit(&h->retain, 1, memory_order_relaxed);\n"
    )
    assert any("shmcow_recover store retain" in wrong for wrong in link.wrong_orders(more))
    for odd in ("atomic_fetch_sub(&h->retain, 1);", "__atomic_thread_fence(5);", "__sync_synchronize();"):
        with pytest.raises(ValueError, match="do not know"):
            link.wrong_orders(changed("shmcow_protocol.h", line, f"{line}    {odd}\n"))
    bare = changed("shmcow_protocol.h", line, "    uint64_t now = h->current;\n")
    assert len(link.bare_accesses(bare)) == 1


def test_lost_names_are_noticed() -> None:
    """A comment without its name, an unknown name, a row without its function or its litmus test."""
    for name in {name for named in sites.NAMED.values() for name in named.sync}:
        nameless = {file: re.sub(rf"\bSYNC {name}\b", "", text) for file, text in TEXTS.items()}
        assert link.silent_functions(nameless) != []
        assert link.wrong_table(PROTOCOL.replace(f"| `{name}` |", "| none |"), TESTS) != []
    assert link.unknown_names(changed("shmcow_os.c", "SYNC fds", "SYNC fd")) == ["fd"]
    for test in TESTS:
        assert link.wrong_table(PROTOCOL.replace(f"`{test.name}`", ""), TESTS) != [], test.name
    assert link.wrong_table(PROTOCOL, [*TESTS, replace(TESTS[0], name="flip_new")]) != []


# ---- from the source to the instructions ----


@pytest.mark.parametrize("machine", disassembly.EXPECTED, ids=lambda machine: machine.name)
def test_instructions_are_there(machine: disassembly.Machine, tmp_path: Path) -> None:
    """The compiled functions have the instructions of their orders, in their places."""
    if machine.missing():
        pytest.skip(machine.missing())
    code = disassembly.disassemble(machine, CSRC, tmp_path)
    assert disassembly.lacking(code, disassembly.EXPECTED[machine]) == []
    print(f"instructions: {machine.name}: {len(disassembly.EXPECTED[machine])} functions as expected")


# the functions that must be found lacking when all of these are weakened at once, and on which machines
PLANTED = {
    "shmcow_judge fence": ("acq_rel", "judge", "x86-64"),
    "shmcow_hold_one fence": ("acq_rel", "hold_one", "x86-64"),
    "shmcow_fd_open store fd": ("release", "shmcow_fd_open", "x86-64"),
    "shmcow_flip cas current": ("acquire", "flip", "aarch64"),
    "shmcow_end store current": ("relaxed", "end_store", "aarch64"),
    "shmcow_load_current load current": ("relaxed", "load_current", "aarch64"),
    "shmcow_load_entry fence": ("absent", "load_entry", "aarch64"),
    "shmcow_store_entry fence": ("absent", "store_entry", "aarch64"),
    "shmcow_ring add rings": ("relaxed", "shmcow_ring", "aarch64"),
    "before_fork add started": ("relaxed", "before_fork", "aarch64"),
}


@pytest.mark.parametrize("name", ["x86-64", "aarch64"])
def test_weakened_source_lacks_its_instructions(name: str, tmp_path: Path) -> None:
    """Weaken orders in a copy of the source: the disassembly shows each of them."""
    machine = next(machine for machine in disassembly.EXPECTED if machine.name == name)
    if machine.missing():
        pytest.skip(machine.missing())
    copy = tmp_path / "csrc"
    shutil.copytree(CSRC, copy)
    planted = {site: order for site, (order, _, where) in PLANTED.items() if where == name}
    for site, order in planted.items():
        texts = source.read_all(copy)
        operation = source.all_operations(texts)[site]
        (copy / operation.file).write_text(source.weakened(texts[operation.file], operation, order))
    code = disassembly.disassemble(machine, copy, tmp_path)
    wanted = {function for _, function, where in PLANTED.values() if where == name}
    assert wanted <= set(disassembly.lacking(code, disassembly.EXPECTED[machine]))
