"""Every atomic operation of csrc: its order, and why. test_litmus.py compares this with the source.

NAMED: those that order something. `needs` is the weakest order with which all litmus tests hold; where the code has a
stronger one, that is said here and tested.
UNNAMED: those that order nothing, each with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from .program import ABSENT


@dataclass(frozen=True)
class Named:
    sync: tuple[str, ...]
    order: str
    needs: str
    failure: str = ""


NAMED = {
    "shmcow_flip cas current": Named(("flip",), "acq_rel", "release", "acquire"),
    "shmcow_end store current": Named(("flip",), "release", "release"),
    "shmcow_load_current load current": Named(("flip",), "acquire", "acquire"),
    "slot_fresh load current": Named(("flip",), "acquire", "acquire"),
    "shmcow_advance cas words": Named(("state",), "acq_rel", "release", "acquire"),
    "shmcow_build cas words": Named(("state",), "acq_rel", "release", "acquire"),
    "shmcow_load_word load words": Named(("state",), "acquire", "acquire"),
    "shmcow_store_entry fence": Named(("copy",), "release", "release"),
    "shmcow_store_entry store entries": Named(("copy",), "relaxed", "relaxed"),
    "shmcow_load_entry load entries": Named(("copy",), "relaxed", "relaxed"),
    "shmcow_load_entry fence": Named(("copy",), "acquire", "acquire"),
    "shmcow_hold_one load words": Named(("copy",), "relaxed", "relaxed"),
    "look_at load words": Named(("copy",), "relaxed", "relaxed"),
    "shmcow_copy_feed load feed_turn": Named(("feed",), "acquire", "acquire"),
    "shmcow_copy_feed load feeds": Named(("feed",), "relaxed", "relaxed"),
    "shmcow_copy_feed fence": Named(("feed",), "acquire", "acquire"),
    "shmcow_copy_feed load feed_turn #2": Named(("feed",), "relaxed", "relaxed"),
    "shmcow_show_feed fence": Named(("feed",), "release", "release"),
    "shmcow_show_feed store feeds": Named(("feed",), "relaxed", "relaxed"),
    "shmcow_show_feed store feed_turn": Named(("feed",), "release", "release"),
    "shmcow_judge fence": Named(("judge",), "seq_cst", "seq_cst"),
    "shmcow_hold_one fence": Named(("judge",), "seq_cst", "seq_cst"),
    "shmcow_fd_take cas all": Named(("fds",), "release", "release", "relaxed"),
    "shmcow_fd_take load all": Named(("fds",), "acquire", "acquire"),
    "shmcow_fd_take load all #2": Named(("fds",), "relaxed", "relaxed"),
    "in_child load all": Named(("fds",), "acquire", "acquire"),
    "disown load all": Named(("fds",), "acquire", "acquire"),
    "shmcow_fd_open store fd": Named(("node", "fork"), "seq_cst", "seq_cst"),
    "core_fill_begin store fd": Named(("node", "fork"), "seq_cst", "seq_cst"),
    "close_own exchange fd": Named(("node",), "acq_rel", "acquire"),
    "shmcow_fd_valid load fd": Named(("node",), "seq_cst", "acquire"),
    "core_ready_map store map": Named(("node",), "seq_cst", "release"),
    "hide_map exchange map": Named(("node",), "acq_rel", "acquire"),
    "shmcow_fd_release store taken": Named(("node",), "seq_cst", "release"),
    "shmcow_fd_take cas taken": Named(("node",), "seq_cst", "acquire", "seq_cst"),
    "before_fork add started": Named(("fork",), "seq_cst", "seq_cst"),
    "in_parent add finished": Named(("fork",), "seq_cst", "release"),
    "shmcow_fork_stamp load finished": Named(("fork",), "seq_cst", "acquire"),
    "shmcow_fork_stamp load started": Named(("fork",), "seq_cst", "relaxed"),
    "shmcow_no_fork_since load started": Named(("fork",), "seq_cst", "seq_cst"),
    "shmcow_ring add rings": Named(("ring",), "release", "release"),
    "shmcow_rings load rings": Named(("ring",), "acquire", "acquire"),
}

_LOCK = "under the writer lock: the kernel hands the table over (litmus writer_lock)"
_FIGURE = "a figure for people: nothing is read on the strength of it"
_CHILD = "a child that was just forked has one thread"
_OWN = "the number of a node that this thread took: nothing is read on the strength of it but the number"
_CHECKED = "used after shmcow_fd_valid, or only as a number: a wrong one is an error of the system call"
_FRESH = "a node that is not in the list yet: shmcow_fd_take's release on the head carries it"
_UNSEEN = "an image that no other process has yet: linkat makes it appear"
_HINT = "only saves a system call"

_FEED = "under the feed lock: the kernel hands the feed's state over"

# site -> (order, reason); a compare-and-swap's failure order follows after a slash
UNNAMED = {
    "core_fill_give load fd": ("seq_cst", _OWN),
    "write_out load fd": ("seq_cst", _OWN),
    "seal load fd": ("seq_cst", _OWN),
    "seal exchange fd": ("seq_cst", _OWN),
    "ready_claim load fd": ("seq_cst", _CHECKED),
    "set_mark load fd": ("seq_cst", _CHECKED),
    "unset_mark load fd": ("seq_cst", _CHECKED),
    "op_marked load fd": ("seq_cst", _CHECKED),
    "writer_try_lock load fd": ("seq_cst", _CHECKED),
    "writer_ready_holds load fd": ("seq_cst", _CHECKED),
    "let_go_of_lock load fd": ("seq_cst", _CHECKED),
    "writer_enter load fd": ("seq_cst", _CHECKED),
    "disown cas fd": ("seq_cst/seq_cst", "takes a number away, and hands nothing over"),
    "shmcow_fd_take store taken": ("seq_cst", _FRESH),
    "shmcow_fd_take store fd": ("seq_cst", _FRESH),
    "shmcow_fd_release store map": ("seq_cst", "before `taken`, whose release carries it"),
    "module_create store retain": ("relaxed", _UNSEEN),
    "module_create store max_total_bytes": (
        "relaxed",
        _UNSEEN,
    ),
    "slot_still load current": ("relaxed", "compared with a word that an acquire load has seen: nothing new is read"),
    "store_counters load counters": ("relaxed", _FIGURE),
    "get_number load retain": ("relaxed", _FIGURE),
    "get_number load max_total_bytes": ("relaxed", _FIGURE),
    "get_number load lock_pid": ("relaxed", _FIGURE),
    "now_locked store lock_pid": ("relaxed", _FIGURE),
    "writer_count add counters": ("relaxed", _FIGURE),
    "shmcow_count add counters": ("relaxed", _FIGURE),
    "writer_configure store retain": ("relaxed", _LOCK),
    "writer_configure store max_total_bytes": ("relaxed", _LOCK),
    "shmcow_show_feed load feed_turn": ("relaxed", _FEED),
    "feed_take load fd": ("seq_cst", _CHECKED),
    "shmcow_publish load retain": ("relaxed", _LOCK),
    "shmcow_keep_quota load max_total_bytes": ("relaxed", _LOCK),
    "shmcow_build load next_segment": ("relaxed", _LOCK),
    "shmcow_build add next_segment": ("relaxed", _LOCK),
    "shmcow_listed_segment load entries": ("relaxed", _LOCK),
    "shmcow_listed_length load entries": ("relaxed", _LOCK),
    "shmcow_listed_count load entries": ("relaxed", _LOCK),
    "shmcow_listed_origin load entries": ("relaxed", _LOCK),
    "in_child store finished": ("relaxed", _CHILD),
    "in_child load started": ("relaxed", _CHILD),
    "in_child add forks": ("relaxed", _CHILD),
    "shmcow_forks load forks": ("relaxed", "only a fork changes it, in a child that has one thread"),
    "shmcow_watch_forks exchange watching": ("seq_cst", "one of several callers wins; nothing is handed over"),
    "shmcow_watch_forks store watching": ("seq_cst", "one of several callers wins; nothing is handed over"),
    "changed load word": ("relaxed", "who is woken looks again, with acquire"),
    "shmcow_sleep_on load no_waitv": ("relaxed", _HINT),
    "shmcow_sleep_on store no_waitv": ("relaxed", _HINT),
}

# What these functions do, in this order: a fence in another place is another program. test_litmus.py compares it with
# the source: atomic operations by kind, and the calls named here.
CALLS = (
    "ops->mark", "ops->marked", "ops->map", "ops->clear", "ops->wake",
    "shmcow_load_word", "shmcow_load_current", "shmcow_load_entry", "shmcow_store_entry", "shmcow_advance",
    "shmcow_build", "shmcow_flip", "shmcow_drop", "shmcow_hold_one", "shmcow_fork_stamp", "shmcow_no_fork_since",
    "shmcow_open_regular", "core_fill_begin",
)  # fmt: skip
SEQUENCES = {
    "shmcow_load_entry": ("load", "fence"),
    "shmcow_store_entry": ("fence", "store"),
    "shmcow_copy_feed": ("load", "load", "fence", "load"),
    "shmcow_show_feed": ("load", "fence", "store", "store"),
    "shmcow_judge": (
        "shmcow_load_word", "shmcow_advance", "fence", "ops->marked", "shmcow_advance", "shmcow_advance", "shmcow_drop",
    ),
    "shmcow_hold_one": (
        "ops->mark", "fence", "shmcow_load_word", "shmcow_load_word", "shmcow_load_entry", "load", "ops->map",
        "shmcow_load_word", "shmcow_load_current", "ops->clear",
    ),
    "shmcow_hold_current": ("shmcow_load_current", "shmcow_hold_one"),
    "shmcow_build": ("load", "add", "shmcow_store_entry", "shmcow_load_word", "cas", "shmcow_drop", "shmcow_advance"),
    "shmcow_publish": (
        "shmcow_load_current", "shmcow_build", "shmcow_flip", "shmcow_drop", "ops->wake", "shmcow_advance", "load",
    ),
    "shmcow_end": ("store", "ops->wake"),
    "look_at": ("shmcow_load_word", "shmcow_load_entry", "load"),
    "shmcow_fork_stamp": ("load", "load"),
    "shmcow_fd_open": ("shmcow_fork_stamp", "shmcow_open_regular", "store", "shmcow_no_fork_since"),
}  # fmt: skip

LADDER = {
    "load": ("relaxed", "acquire", "seq_cst"),
    "store": ("relaxed", "release", "seq_cst"),
    "fence": (ABSENT, "acquire", "release", "acq_rel", "seq_cst"),
    "cas": ("relaxed", "acquire", "release", "acq_rel", "seq_cst"),
    "add": ("relaxed", "acquire", "release", "acq_rel", "seq_cst"),
    "exchange": ("relaxed", "acquire", "release", "acq_rel", "seq_cst"),
}
_ABOVE = {
    ABSENT: {"relaxed", "acquire", "release", "acq_rel", "seq_cst"},
    "relaxed": {"acquire", "release", "acq_rel", "seq_cst"},
    "acquire": {"acq_rel", "seq_cst"},
    "release": {"acq_rel", "seq_cst"},
    "acq_rel": {"seq_cst"},
    "seq_cst": set[str](),
}


def at_least(order: str, needed: str) -> bool:
    return order == needed or order in _ABOVE[needed]


def weaker_orders(site: str) -> list[str]:
    """The orders that are strictly weaker than the one in the code."""
    kind = site.split()[1]
    return [order for order in LADDER[kind] if NAMED[site].order in _ABOVE[order]]


ORDERS = {site: named.order for site, named in NAMED.items()}
