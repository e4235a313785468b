"""The uses that the examples show, one by one: each is run as its first lines say, and has to show what it claims.

Which use is shown where: examples/README.md.
"""

from __future__ import annotations

import ast
import functools
import json
import re

import pytest
from test_examples import finish, start

import shmcow


@functools.cache  # some examples show two uses
def shown(example: str) -> tuple[str, ...]:
    """Run an example to its end, with every warning of Python's shown; return the lines that it printed.

    Not with -X dev: asyncio would complain of a slow machine.
    """
    program = start(example, "-W", "default")
    try:
        return tuple(finish(program).splitlines())
    except BaseException:
        for store in shmcow.list_stores():  # an example that fails leaves its own
            if store.endswith(f"-{program.pid}"):
                shmcow.destroy(store)
        raise


def needs_watchfiles() -> None:
    """Skip a test that follows a file, where the package that tells of changes is missing."""
    pytest.importorskip("watchfiles", reason="watchfiles is not installed: pip install -e '.[feed]'")


def numbers(line: str) -> list[int]:
    """Return the whole numbers in a line."""
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", line)]


# ---- tables ----


def test_routing_table_takes_the_longest_prefix_of_whole_segments() -> None:
    """A route does not catch a path that only begins with the same letters, and new routes come all at once."""
    assert list(shown("routing_table.py")) == [
        "version 1: /shop/cart/7 -> cart",
        "version 1: /shop/ -> shop",
        "version 1: /shopping -> 404",
        "version 1: / -> 404",
        "version 2: /shop/cart/7 -> cart",
        "version 2: /shop/ -> shop",
        "version 2: /shopping -> mall",
        "version 2: / -> www",
    ]


def test_reference_data_converts_with_one_version_of_all_tables() -> None:
    """Amounts are rounded as each currency is, and new rates are used at once."""
    first, second = shown("reference_data.py")
    assert first.endswith("Germany: 100.00 euro; Japan: 16050 yen; Kuwait: 33.110 dinar; Switzerland: 95.00 franc")
    assert second == first.replace("version 1", "version 2").replace("16050", "16125")


def test_two_tables_change_together() -> None:
    """Workers that join the tables while both change never miss a row, and the third table is not written again."""
    ends, counted, saw, shared = shown("two_tables.py")
    assert ends == "a join begun before ends with the kuna, one begun now with the euro"
    workers, joins, version = numbers(counted)
    assert (workers, version >= 102) == (3, True)
    assert joins >= 6  # both versions of each worker's
    assert saw == "they saw ['euro', 'kuna'], and never a country without its currency"
    assert shared == "the table that did not change lies in 1 segment"


def test_allowlist_follows_changes_and_refuses_broken_ones() -> None:
    """Networks are added, cut off and removed; an empty list and a wrong network leave the list as it was."""
    lines = shown("allowlist.py")
    said = [re.fullmatch(r"version (\d): (.+) (enters|stays out)", line) for line in lines]
    assert [found.groups() for found in said if found] == [
        ("1", "10.1.2.3", "enters"),
        ("1", "::ffff:10.1.2.3", "enters"),
        ("1", "198.51.100.9", "stays out"),
        ("1", "2001:db8::1", "enters"),
        ("1", "no address", "stays out"),
        ("2", "10.1.2.3", "stays out"),
        ("2", "10.2.2.3", "enters"),
        ("2", "198.51.100.9", "enters"),
        ("3", "203.0.113.7", "stays out"),
        ("3", "10.2.2.3", "enters"),
        ("3", "10.2.2.3", "enters"),
    ]
    refused = [line for line in lines if line.startswith("refused: ")]
    assert len(refused) == 2
    assert "min_count(2)" in refused[0]
    assert "row 2 (10.0.0.0/99)" in refused[1]


def test_a_million_users_are_in_buckets_of_which_no_worker_has_a_copy() -> None:
    """What the example measures: 25 bytes a user or 1, and hardly any memory of a worker's own."""
    measured = {}
    for line in shown("ab_buckets.py"):
        kind, users, size, own = re.fullmatch(
            r"(\w+): ([\d,]+) users in version 1, ([\d.]+) bytes each; built and published in [\d.]+ s; "
            r"\d+ ns a lookup; at most ([\d.]+) MiB of its own for a worker",
            line,
        ).groups()  # type: ignore[union-attr]
        measured[kind] = float(size)
        assert users == "1,000,000"
        assert float(own) < 10  # a copy of the table would be 25, a dict 70
    assert measured == {"table": 25.3, "bytes": 1.0}


# ---- small values that many change ----


def test_key_value_map_reads_what_was_set_and_deleted() -> None:
    """Set, batch put, delete, and both in one version, read by key and by range in another process."""
    found = {}
    for line in shown("key_value.py"):
        version, one, some = re.fullmatch(r"version (\d): customer.ann has (.+); all customers: (.+)", line).groups()  # type: ignore[union-attr]
        found[int(version)] = one, dict(ast.literal_eval(some))
    assert found == {
        2: ("10", {"customer.ann": 10}),
        3: ("10", {"customer.ann": 10, "customer.bob": 20, "customer.eve": 30}),
        4: ("no limit", {"customer.bob": 20, "customer.eve": 30}),
        5: ("no limit", {"customer.bob": 20, "customer.cy": 5}),
    }


def test_keys_of_one_version_add_up() -> None:
    """One get() for each key can see a transfer half-way; one get() for all of them never does, under 300 transfers."""
    apart, together, worker = shown("consistent_keys.py")
    assert apart.endswith("60 + 50 = 110")
    assert together.endswith("50 + 50 = 100")
    reads, versions, wrong = numbers(worker)
    assert reads >= versions >= 2
    assert wrong == 0


def test_compare_and_swap_loses_no_increment() -> None:
    """Four processes increment with expected= and try again after conflicts, which the store counts as they do."""
    counted, conflicts, updated = shown("compare_and_swap.py")
    assert numbers(counted) == [4, 100, 100, 101]
    ours, the_stores = numbers(conflicts)
    assert ours == the_stores
    assert numbers(updated) == [101]


def test_swap_hands_over_each_report_once() -> None:
    """What three processes add and a fourth swaps out is there exactly once."""
    counted, versions = shown("swap.py")
    assert numbers(counted) == [120, 120, 120]
    batches, last, empty = numbers(versions)
    assert batches >= 1
    assert empty == last + 1


def test_bounded_log_keeps_the_newest_and_says_what_is_gone() -> None:
    """A follower gets every entry, in order; one that comes late learns how many it missed."""
    followed, late = shown("bounded_log.py")
    got, missed = numbers(followed)
    assert got + missed == 120
    assert got >= 100
    assert numbers(late) == [120, 100, 5, 100, 15]


def test_sharding_writes_a_part_and_moves_one_version() -> None:
    """With 8 stores a change writes an eighth, writers of all shards lose nothing, and only one version moves."""
    one, eight, versions, moved = shown("sharding.py")
    assert 7 < numbers(one)[1] / numbers(eight)[1] < 9
    assert (numbers(one)[0], numbers(eight)[0]) == (1, 8)
    assert numbers(versions)[-1] == 81
    assert re.search(r"shard \[\d\] is at version", moved)


# ---- following changes ----


def test_watchers_see_newer_versions_until_they_lose_interest() -> None:
    """A callback, a loop and a coroutine each see growing values; afterwards the callback is not called."""
    *lines, end = shown("watch.py")
    seen = {how: ast.literal_eval(values) for how, values in (line.split(": ") for line in lines)}
    assert list(seen) == ["callback", "loop", "coroutine", "callback, later"]
    assert all(values == sorted(set(values)) for values in seen.values())
    assert seen["callback"][-1] >= 3
    assert (len(seen["loop"]), len(seen["coroutine"]) >= 3) == (3, True)
    assert len(seen["callback, later"]) <= len(seen["callback"]) + 1  # one that had begun goes on to its end
    assert numbers(end)[0] >= seen["coroutine"][-1] > seen["callback"][-1]


def test_job_is_cancelled_and_started_with_each_new_configuration() -> None:
    """The old job ends before the new one starts, and the last one finishes with the newest settings."""
    assert list(shown("restart_job.py")) == [
        "started on orders, version 1",
        "ended on orders, version 1: cancelled",
        "started on invoices, version 2",
        "ended on invoices, version 2: cancelled",
        "started on invoices, version 3",
        "ended on invoices, version 3: done after 5 batches",
    ]


def test_client_gets_what_changed_since_its_version() -> None:
    """Nothing when nothing changed, the difference while the version is there, and else everything."""
    assert list(shown("changed_since.py")) == [
        "from version 0 to 1: everything",
        "from version 1 to 1: nothing",
        "from version 1 to 3: changed checkout, removed banner, added search",
        "from version 3 to 4: changed search.limit",
        "from version 4 to 14: everything",
    ]


# ---- fed from a source ----


def test_configuration_is_reloaded_on_change_and_on_sighup() -> None:
    """A replaced file is published at once; what somebody published by hand stays until SIGHUP."""
    needs_watchfiles()
    assert list(shown("reload_config.py")) == [
        "at the start: version 1, timeout 2.5, hosts db1",
        "file replaced: version 2, timeout 2.5, hosts db1, db2",
        "by hand: version 3, timeout 99.0, hosts db1, db2",
        "after SIGHUP: version 4, timeout 2.5, hosts db1, db2",
    ]


def test_failed_reload_is_counted_and_the_old_version_serves() -> None:
    """A file that is cut off, wrong or gone is told with its place and counted; meanwhile version 1 serves."""
    needs_watchfiles()
    lines = shown("failed_reload.py")
    assert lines[1:6:2] == ("  workers have {'ann': 10} of version 1",) * 3
    cut_off, wrong, gone = lines[0:6:2]
    assert re.fullmatch(r"cut off: /limits.json, line 2, column \d+: .+", cut_off)
    assert re.fullmatch(r"wrong type: /limits.json does not fit dict\[str, int\]: .+ at `.+`", wrong)
    assert gone == "gone: /limits.json: No such file or directory"
    assert lines[6:] == (
        "good again: workers have {'ann': 30} of version 2",
        "failures counted: 3 or more; in a row now: 0",
        "errors in the log: 3",
    )


def test_backends_are_refreshed_by_a_timer_and_stay_when_discovery_fails() -> None:
    """The same answer makes no version, a failing registry changes nothing, and its next answer is published."""
    assert list(shown("service_discovery.py")) == [
        "asked 5 times: version 1, ['a', 'b']",
        "registry down: version 1, ['a', 'b']",
        "known to be good for less than a minute: True",
        "registry back: version 2, ['c']",
        "publishes: 2, failures: 2 or more",
    ]


# ---- looking, and what goes wrong ----


def test_debug_page_shows_what_the_process_serves_with() -> None:
    """Value, version and figures are those of the newest publish at each request, and the password is hidden."""
    lines = shown("debug_page.py")
    assert "hunter2" not in "".join(lines)
    pages = [json.loads(lines[at + 1]) for at, line in enumerate(lines) if line == "GET /debug"]
    assert [(page["version"], page["message"], page["value"]["hosts"]) for page in pages] == [
        (2, "use 1", ["db1"]),
        (3, "use 2", ["db1", "db2"]),
    ]
    figures = [re.fullmatch(r'shmcow_(\w+)\{store="example-debug-\d+"\} (\d+)', line) for line in lines]
    values = [(found[1], int(found[2])) for found in figures if found]
    assert [value for name, value in values if name == "version"] == [2, 3]
    assert [value for name, value in values if name == "published_total"] == [2, 3]
    assert len(values) == 2 * 7


def test_metric_registry_changes_under_workers_that_count() -> None:
    """Counts by different bounds are not mixed, and no request is lost between two versions of the registry."""
    *histograms, total = shown("metric_registry.py")
    counted = {}
    for line in histograms:
        version, name, buckets = re.fullmatch(r"version (\d): (\w+) (.+)", line).groups()  # type: ignore[union-attr]
        counted[int(version), name] = ast.literal_eval(buckets)
    bounds = {key: list(buckets) for key, buckets in counted.items()}
    assert bounds == {
        (1, "db_seconds"): ["0.05", "inf"],
        (1, "http_seconds"): ["0.1", "1.0", "inf"],
        (2, "http_seconds"): ["0.1", "0.5", "1.0", "inf"],
    }
    served = sum(sum(counted[version, "http_seconds"].values()) for version in (1, 2))
    assert numbers(total) == [served, served]
    assert all(sum(buckets.values()) >= 3 * 150 for buckets in counted.values())


def attempts() -> dict[str, str]:
    """Return the attempts of the validation example, each with the error that it ended with."""
    lines = [line.split(": ", 2) for line in shown("validation.py") if line.count(": ") >= 2]
    return {what: error for what, error, _ in lines}


def test_what_does_not_pass_validation_leaves_the_old_version() -> None:
    """A wrong type, two ready-made checks and a rule of one's own: no worker sees them, and the store counts them."""
    refused = [what for what, error in attempts().items() if error == "ValidationError"]
    assert refused == ["wrong type", "nothing left", "half of it lost", "a rule of one's own"]
    state, good = shown("validation.py")[-2:]
    assert state == "workers still have version 1; refused as invalid: 4"
    assert good == "the next good one is version 2"


def test_exception_while_building_leaves_the_old_version() -> None:
    """A source that breaks off in the middle of update(), and one in the middle of edit(), publish nothing."""
    failed = attempts()
    assert failed["exception while building"] == "ConnectionError"
    assert failed["exception while editing"] == "KeyError"
    assert shown("validation.py")[-2].startswith("workers still have version 1; ")
