"""Litmus tests of what is in shared memory: `current`, generation words, entries, markers.

The marker is two plain accesses without any order here, although setting it takes a lock of the kernel: testing it may
look at an empty list without that lock. So nothing below leans on the kernel's lock.
"""

from __future__ import annotations

from .litmus import Check, Litmus, Orders, Outcome, Twin
from .program import ABSENT, Body, Program, Thread, fence, load, store, swap

FREE5, HELD5, CONDEMNED5, DOOMED5 = 50, 53, 54, 55
BUILDING6, READY6, HELD6 = 61, 62, 63
DESTROYED = 99
FLIP, END = "shmcow_flip cas current", "shmcow_end store current"
CURRENT, FRESH = "shmcow_load_current load current", "slot_fresh load current"
ADVANCE, BUILD, WORD = "shmcow_advance cas words", "shmcow_build cas words", "shmcow_load_word load words"
STORE_FENCE, STORE = "shmcow_store_entry fence", "shmcow_store_entry store entries"
LOAD, LOAD_FENCE = "shmcow_load_entry load entries", "shmcow_load_entry fence"
AGAIN, REPORT = "shmcow_hold_one load words", "look_at load words"
TURN, TURN_AGAIN = "shmcow_copy_feed load feed_turn", "shmcow_copy_feed load feed_turn #2"
SLOT, SLOT_FENCE = "shmcow_copy_feed load feeds", "shmcow_copy_feed fence"
SHOW_FENCE, SHOW, SHOWN = "shmcow_show_feed fence", "shmcow_show_feed store feeds", "shmcow_show_feed store feed_turn"
JUDGE, HOLD = "shmcow_judge fence", "shmcow_hold_one fence"


def never(*texts: str) -> Check:
    """For the reader's result, which is the last one."""
    return lambda outcome: outcome[-1] in texts


def any_thread(text: str) -> Check:
    return lambda outcome: text in outcome


def relaxed(*sites: str) -> tuple[Twin, ...]:
    """A twin for each site, with no order at all."""
    return tuple(Twin(f"{site}: relaxed", {site: "relaxed"}) for site in sites)


def publisher(o: Orders, entry: int = 1, swaps_first: bool = False) -> Thread:
    """shmcow_publish: list, BUILDING, READY, flip. `swaps_first`: the flip comes too early."""

    def run() -> Body:
        if swaps_first:
            yield swap("current", 5, 6, o(FLIP))
        yield fence(o(STORE_FENCE))
        for k in range(entry):
            yield store(f"entry{k}", 6, o(STORE))
        yield swap("word", FREE5, BUILDING6, o(BUILD))
        yield swap("word", BUILDING6, READY6, o(ADVANCE))
        if not swaps_first:
            yield swap("current", 5, 6, o(FLIP))
        return None

    return run


def hold(o: Orders, version: int, good: tuple[int, ...], entry: int = 1, again: bool = True) -> Body:
    """shmcow_hold_one: mark, fence, look at the word, copy, look again. -> "moved", "torn" or "held" """
    yield store("mark", 1, "relaxed")
    yield fence(o(HOLD))
    if (yield load("word", o(WORD))) not in good:
        yield store("mark", 0, "relaxed")
        return "moved"
    copy = []
    for k in range(entry):
        copy.append((yield load(f"entry{k}", o(LOAD))))
    yield fence(o(LOAD_FENCE))
    if again and (yield load("word", o(AGAIN))) not in good:
        return "moved"
    return "held" if all(word == version for word in copy) else "torn"


# ---- flip ----


def flip_at(o: Orders) -> Program:
    """at(current): shmcow_hold_version finds the version by its word; nobody has reclaimed it."""

    def writer() -> Body:
        yield swap("word", BUILDING6, READY6, o(ADVANCE))
        yield swap("current", 5, 6, o(FLIP))
        return None

    def reader() -> Body:
        if (yield load("current", o(CURRENT))) != 6:
            return "older"
        return "held" if (yield load("word", o(WORD))) == READY6 else "gone"

    return Program({"writer": writer, "reader": reader}, {"current": 5, "word": BUILDING6})


def flip_damaged(o: Orders) -> Program:
    """get(): shmcow_hold_current meets a generation that cannot be opened, and the same `current` again."""

    def writer() -> Body:
        yield swap("word", BUILDING6, READY6, o(ADVANCE))
        yield swap("current", 5, 6, o(FLIP))
        return None

    def reader() -> Body:
        if (yield load("current", o(CURRENT))) != 6:
            return "older"
        yield store("mark", 1, "relaxed")
        yield fence(o(HOLD))
        if (yield load("word", o(WORD))) == READY6:
            return "held"
        return "damaged" if (yield load("current", o(CURRENT))) == 6 else "again"

    return Program({"writer": writer, "reader": reader}, {"current": 5, "word": BUILDING6, "mark": 0})


def flip_entry(o: Orders) -> Program:
    """get(): the entry of the version that `current` names is that version's. Flip and state carry it, each alone."""

    def reader() -> Body:
        if (yield load("current", o(CURRENT))) != 6:
            return "older"
        return (yield from hold(o, 6, (READY6, HELD6), again=False))

    return Program({"writer": publisher(o), "reader": reader}, {"current": 5, "word": FREE5, "entry0": 5, "mark": 0})


def flip_early(o: Orders) -> Program:
    """The flip before the list: what all the orders are there to forbid."""

    def reader() -> Body:
        if (yield load("current", o(CURRENT))) != 6:
            return "older"
        return "held" if (yield load("word", o(WORD))) == READY6 else "gone"

    return Program(
        {"writer": publisher(o, swaps_first=True), "reader": reader}, {"current": 5, "word": FREE5, "entry0": 5}
    )


def flip_cached(o: Orders) -> Program:
    """get() from the cache: who gets the new value also sees what its publisher did before, anywhere.

    The value was cached by another thread; that thread's own order, and the interpreter lock's, are left out.
    """

    def writer() -> Body:
        yield store("elsewhere", 6, "relaxed")
        yield swap("current", 5, 6, o(FLIP))
        return None

    def reader() -> Body:
        if (yield load("current", o(FRESH))) != 6:
            return "older"
        return "new" if (yield load("elsewhere", "relaxed")) == 6 else "stale"

    return Program({"writer": writer, "reader": reader}, {"current": 5, "elsewhere": 5})


def flip_end(o: Orders) -> Program:
    """Who is told that the store has ended sees what its destroyer did before."""

    def writer() -> Body:
        yield store("elsewhere", 6, "relaxed")
        yield store("current", DESTROYED, o(END))
        return None

    def reader() -> Body:
        if (yield load("current", o(CURRENT))) != DESTROYED:
            return "older"
        return "new" if (yield load("elsewhere", "relaxed")) == 6 else "stale"

    return Program({"writer": writer, "reader": reader}, {"current": 5, "elsewhere": 5})


def flip_race(o: Orders) -> Program:
    """Two writers, should the lock be broken from outside: only one flips, and a destroyed store never comes back."""

    def writer() -> Body:
        return "flipped" if (yield swap("current", 5, 6, o(FLIP))) == 5 else "raced"

    def finisher() -> Body:
        yield store("current", DESTROYED, o(END))
        return "ended"

    def reader() -> Body:
        first = yield load("current", o(CURRENT))
        second = yield load("current", o(CURRENT))
        return "back" if first == DESTROYED != second or (first, second) == (6, 5) else "on"

    return Program({"a": writer, "b": writer, "finisher": finisher, "reader": reader}, {"current": 5})


def flip_race_stored(o: Orders) -> Program:
    """flip_race with a load and a store in place of the compare-and-swap."""

    def writer() -> Body:
        if (yield load("current", "acquire")) != 5:
            return "raced"
        yield store("current", 6, "release")
        return "flipped"

    program = flip_race(o)
    return Program({**program.threads, "a": writer, "b": writer}, program.initial)


def both_flipped(outcome: Outcome) -> bool:
    return outcome[:2] == ("flipped", "flipped") or outcome[-1] == "back"


# ---- state ----


def state_list(o: Orders) -> Program:
    """A report (look_at) that sees BUILDING sees the list that belongs to it."""

    def reader() -> Body:
        if (yield load("word", o(WORD))) == FREE5:
            return "nothing"
        entry = yield load("entry0", o(LOAD))
        yield fence(o(LOAD_FENCE))
        if (yield load("word", o(REPORT))) == FREE5:
            return "changed"
        return "listed" if entry == 6 else "no list"

    return Program({"writer": publisher(o), "reader": reader}, {"current": 5, "word": FREE5, "entry0": 5})


def looks_twice(o: Orders, good: tuple[int, ...] = (HELD5,)) -> Thread:
    """shmcow_hold_current: the same `current` on both sides of a generation that cannot be opened is damage."""

    def reader() -> Body:
        now = yield load("current", o(CURRENT))
        if now != 5:
            return "newer"
        yield store("mark", 1, "relaxed")
        yield fence(o(HOLD))
        if (yield load("word", o(WORD))) in good:
            return "held"
        return "damaged" if (yield load("current", o(CURRENT))) == now else "again"

    return reader


def state_condemned(o: Orders) -> Program:
    """Who sees CONDEMNED sees the flip before it."""

    def writer() -> Body:
        yield swap("current", 5, 6, o(FLIP))
        yield swap("word", HELD5, CONDEMNED5, o(ADVANCE))
        yield fence(o(JUDGE))
        return None

    return Program({"writer": writer, "reader": looks_twice(o)}, {"current": 5, "word": HELD5, "mark": 0})


def state_reused(o: Orders) -> Program:
    """Who finds another version in its generation sees the flip away from its own."""

    def writer() -> Body:
        yield swap("current", 5, 6, o(FLIP))
        yield swap("word", HELD5, DOOMED5, o(ADVANCE))
        yield swap("word", DOOMED5, FREE5, o(ADVANCE))
        yield swap("word", FREE5, 71, o(BUILD))
        return None

    return Program({"writer": writer, "reader": looks_twice(o)}, {"current": 5, "word": HELD5, "mark": 0})


def state_built(o: Orders) -> Program:
    """The next writer, after the first died: what it builds in a freed generation is seen with the flip before it."""

    def first() -> Body:
        yield swap("current", 5, 6, o(FLIP))
        yield swap("word", HELD5, FREE5, o(ADVANCE))
        return None

    def second() -> Body:
        was = yield load("word", o(WORD))
        if was == FREE5:
            yield swap("word", FREE5, 71, o(BUILD))
        return None

    return Program(
        {"first": first, "second": second, "reader": looks_twice(o)}, {"current": 5, "word": HELD5, "mark": 0}
    )


def state_ended(o: Orders) -> Program:
    """Who sees DOOMED when a store ends sees DESTROYED."""

    def writer() -> Body:
        yield store("current", DESTROYED, o(END))
        yield swap("word", HELD5, DOOMED5, o(ADVANCE))
        return None

    return Program({"writer": writer, "reader": looks_twice(o)}, {"current": 5, "word": HELD5, "mark": 0})


# ---- copy ----


def reuser(o: Orders, words: int, late_fence: bool = False) -> Thread:
    """A forced reclaim and the next publish: the generation is freed, and its entry overwritten."""

    def writer() -> Body:
        yield swap("word", HELD5, FREE5, o(ADVANCE))
        if not late_fence:
            yield fence(o(STORE_FENCE))
        for k in range(words):
            yield store(f"entry{k}", 7, o(STORE))
        if late_fence:
            yield fence(o(STORE_FENCE))
        yield swap("word", FREE5, 71, o(BUILD))
        return None

    return writer


def copier(o: Orders, words: int, looks: str, early: bool = False) -> Thread:
    def reader() -> Body:
        if (yield load("word", o(WORD))) != HELD5:
            return "moved"
        copy = []
        again = (yield load("word", o(looks))) if early else HELD5
        for k in range(words):
            copy.append((yield load(f"entry{k}", o(LOAD))))
        yield fence(o(LOAD_FENCE))
        if not early:
            again = yield load("word", o(looks))
        if again != HELD5:
            return "moved"
        return "whole" if copy == [5] * words else "torn"

    return reader


def copy_hold(o: Orders, late_fence: bool = False, early: bool = False) -> Program:
    """A copy beside a reuse: never a word of the new entry between two looks at the old generation word."""
    return Program(
        {"writer": reuser(o, 2, late_fence), "reader": copier(o, 2, AGAIN, early)},
        {"word": HELD5, "entry0": 5, "entry1": 5},
    )


def copy_report(o: Orders) -> Program:
    """The same for a report, which looks at DOOMED generations, too."""

    def writer() -> Body:
        yield swap("word", DOOMED5, FREE5, o(ADVANCE))
        yield fence(o(STORE_FENCE))
        yield store("entry0", 7, o(STORE))
        yield swap("word", FREE5, 71, o(BUILD))
        return None

    def reader() -> Body:
        word = yield load("word", o(WORD))
        if word != DOOMED5:
            return "other"
        entry = yield load("entry0", o(LOAD))
        yield fence(o(LOAD_FENCE))
        if (yield load("word", o(REPORT))) != word:
            return "changed"
        return "whole" if entry == 5 else "torn"

    return Program({"writer": writer, "reader": reader}, {"word": DOOMED5, "entry0": 5})


def copy_words(o: Orders) -> Program:
    """copy_hold with three words, and every state on the way."""

    def writer() -> Body:
        yield swap("word", HELD5, CONDEMNED5, o(ADVANCE))
        yield swap("word", CONDEMNED5, DOOMED5, o(ADVANCE))
        yield swap("word", DOOMED5, FREE5, o(ADVANCE))
        yield fence(o(STORE_FENCE))
        for k in range(3):
            yield store(f"entry{k}", 7, o(STORE))
        yield swap("word", FREE5, 71, o(BUILD))
        return None

    return Program(
        {"writer": writer, "reader": copier(o, 3, AGAIN)}, {"word": HELD5, "entry0": 5, "entry1": 5, "entry2": 5}
    )


# ---- judge ----


def judge(o: Orders, mark: str = "mark", test_first: bool = False) -> Body:
    """shmcow_judge: condemn, fence, test; then DOOMED or HELD."""
    marked = (yield load(mark, "relaxed")) if test_first else 0
    if (yield swap("word", HELD5, CONDEMNED5, o(ADVANCE))) != HELD5:
        return "raced"
    yield fence(o(JUDGE))
    if not test_first:
        marked = yield load(mark, "relaxed")
    return "spared" if marked else "reclaimed"


def holder(o: Orders, mark: str = "mark", look_first: bool = False) -> Body:
    word = (yield load("word", o(WORD))) if look_first else 0
    yield store(mark, 1, "relaxed")
    yield fence(o(HOLD))
    if not look_first:
        word = yield load("word", o(WORD))
    return "held" if word == HELD5 else "moved"


def judge_hold(o: Orders, test_first: bool = False, look_first: bool = False) -> Program:
    """Mark, then look; condemn, then test: at least one of the two sees the other."""
    return Program(
        {"writer": lambda: judge(o, test_first=test_first), "reader": lambda: holder(o, look_first=look_first)},
        {"word": HELD5, "mark": 0},
    )


def judge_verdict(o: Orders) -> Program:
    """The whole of both: the version goes back to HELD or on to DOOMED; the reader copies and looks again."""

    def writer() -> Body:
        verdict = yield from judge(o)
        yield swap("word", CONDEMNED5, HELD5 if verdict == "spared" else DOOMED5, o(ADVANCE))
        return verdict

    return Program({"writer": writer, "reader": lambda: hold(o, 5, (HELD5,))}, {"word": HELD5, "mark": 0, "entry0": 5})


def judge_again(o: Orders) -> Program:
    """A writer dies between CONDEMNED and its test; its successor finds CONDEMNED, and tests without a change."""

    def dead() -> Body:
        yield swap("word", HELD5, CONDEMNED5, o(ADVANCE))
        return None

    def writer() -> Body:
        if (yield load("word", o(WORD))) != CONDEMNED5:
            return "nothing"
        yield fence(o(JUDGE))
        return "spared" if (yield load("mark", "relaxed")) else "reclaimed"

    return Program({"dead": dead, "writer": writer, "reader": lambda: holder(o)}, {"word": HELD5, "mark": 0})


def judge_two_readers(o: Orders) -> Program:
    """Two readers, each with a marker of its own: neither is missed."""

    def writer() -> Body:
        if (yield swap("word", HELD5, CONDEMNED5, o(ADVANCE))) != HELD5:
            return "raced"
        yield fence(o(JUDGE))
        first = yield load("mark", "relaxed")
        second = yield load("other", "relaxed")
        return "spared" if first or second else "reclaimed"

    return Program(
        {"writer": writer, "other": lambda: holder(o, "other"), "reader": lambda: holder(o)},
        {"word": HELD5, "mark": 0, "other": 0},
    )


def judge_twice(o: Orders) -> Program:
    """Judged in two turns, while a reader comes: spared the first time or not, it is not missed the second time."""

    def writer() -> Body:
        if (yield from judge(o)) == "reclaimed":
            return "reclaimed"
        yield swap("word", CONDEMNED5, HELD5, o(ADVANCE))
        return (yield from judge(o))

    return Program({"writer": writer, "reader": lambda: holder(o)}, {"word": HELD5, "mark": 0})


def judge_yield(o: Orders) -> Program:
    """A reader that finds CONDEMNED looks once more before it gives up."""

    def reader() -> Body:
        yield store("mark", 1, "relaxed")
        yield fence(o(HOLD))
        word = yield load("word", o(WORD))
        if word == CONDEMNED5:
            word = yield load("word", o(WORD))
        return "held" if word == HELD5 else "moved"

    def writer() -> Body:
        verdict = yield from judge(o)
        yield swap("word", CONDEMNED5, HELD5 if verdict == "spared" else DOOMED5, o(ADVANCE))
        return verdict

    return Program({"writer": writer, "reader": reader}, {"word": HELD5, "mark": 0})


def judge_two_writers(o: Orders) -> Program:
    """Two judges at once, should the lock be broken from outside: one of them is told (SHMCOW_RACED)."""
    return Program(
        {"a": lambda: judge(o), "b": lambda: judge(o), "reader": lambda: holder(o)}, {"word": HELD5, "mark": 0}
    )


# ---- feed ----


def show_feed(o: Orders, turn: int, words: int, late_fence: bool = False) -> Body:
    """shmcow_show_feed: into the slot that is not shown, then turn."""
    if not late_fence:
        yield fence(o(SHOW_FENCE))
    for k in range(words):
        yield store(f"slot{turn % 2}.{k}", turn, o(SHOW))
    if late_fence:
        yield fence(o(SHOW_FENCE))
    yield store("turn", turn, o(SHOWN))
    return None


def copy_feed(o: Orders, words: int, early: bool = False) -> Body:
    """shmcow_copy_feed. -> "moved", "torn" or "whole" """
    turn = yield load("turn", o(TURN))
    again = (yield load("turn", o(TURN_AGAIN))) if early else turn
    copy = []
    for k in range(words):
        copy.append((yield load(f"slot{turn % 2}.{k}", o(SLOT))))
    yield fence(o(SLOT_FENCE))
    if not early:
        again = yield load("turn", o(TURN_AGAIN))
    if again != turn:
        return "moved"
    return "whole" if all(word == turn for word in copy) else "torn"


def feed_shown(o: Orders) -> Program:
    """Who sees the turn sees the whole slot that it shows."""
    return Program(
        {"follower": lambda: show_feed(o, 2, 2), "reader": lambda: copy_feed(o, 2)},
        {"turn": 1, "slot0.0": 0, "slot0.1": 0, "slot1.0": 1, "slot1.1": 1},
    )


def feed_reused(o: Orders, late_fence: bool = False, early: bool = False) -> Program:
    """A copy beside two states, of which the second one is written over the slot that is copied."""

    def follower() -> Body:
        yield from show_feed(o, 2, 1)
        yield from show_feed(o, 3, 1, late_fence)
        return None

    return Program(
        {"follower": follower, "reader": lambda: copy_feed(o, 1, early)}, {"turn": 1, "slot0.0": 0, "slot1.0": 1}
    )


def reclaimed_while_held(outcome: Outcome) -> bool:
    return "reclaimed" in outcome and "held" in outcome


def no_fence(site: str) -> tuple[Twin, ...]:
    return (Twin(f"{site}: none", {site: ABSENT}), Twin(f"{site}: acq_rel", {site: "acq_rel"}))


FENCES = (*no_fence(JUDGE), *no_fence(HOLD))
ALL_RELAXED = Twin("every release relaxed", dict.fromkeys((FLIP, ADVANCE, BUILD), "relaxed"))
NOTHING_ACQUIRED = Twin("nothing acquired", {CURRENT: "relaxed", WORD: "relaxed", HOLD: ABSENT})

IN_CI = (
    Litmus("flip_at", "flip", "at(current) says that the version is gone", flip_at,
           never("gone"), never("held"), (*relaxed(FLIP, CURRENT), Twin("flip too early", other=flip_early))),
    Litmus("flip_damaged", "flip", "a good table is called damaged", flip_damaged,
           never("damaged"), never("held"), relaxed(FLIP)),
    Litmus("flip_entry", "flip", "a version is held with the entry of another", flip_entry,
           never("torn"), never("held"), (ALL_RELAXED, NOTHING_ACQUIRED)),
    Litmus("flip_cached", "flip", "the new value, without what its publisher did before", flip_cached,
           never("stale"), never("new"), relaxed(FLIP, FRESH)),
    Litmus("flip_end", "flip", "the end of a store, without what came before it", flip_end,
           never("stale"), never("new"), relaxed(END, CURRENT)),
    Litmus("flip_race", "flip", "two versions with one number; a destroyed store comes back", flip_race,
           both_flipped, any_thread("flipped"), (Twin("load and store for the swap", other=flip_race_stored),)),
    Litmus("state_list", "state", "BUILDING without its list", state_list,
           never("no list"), never("listed"), relaxed(BUILD, WORD)),
    Litmus("state_condemned", "state", "a good table is called damaged", state_condemned,
           never("damaged"), never("again"), relaxed(ADVANCE, WORD)),
    Litmus("state_ended", "state", "the end of a store is taken for damage", state_ended,
           never("damaged"), never("again"), relaxed(ADVANCE, WORD)),
    Litmus("state_reused", "state", "a good table is called damaged", state_reused, never("damaged"), never("again"),
           (*relaxed(WORD), Twin("every swap of the word relaxed", {ADVANCE: "relaxed", BUILD: "relaxed"}))),
    Litmus("copy_hold", "copy", "a copy that mixes two entries", copy_hold, never("torn"), never("whole"),
           (Twin("no release fence", {STORE_FENCE: ABSENT}), Twin("no acquire fence", {LOAD_FENCE: ABSENT}),
            Twin("release fence behind the stores", other=lambda o: copy_hold(o, late_fence=True)),
            Twin("second look before the copy", other=lambda o: copy_hold(o, early=True)))),
    Litmus("copy_report", "copy", "a report that mixes two entries", copy_report, never("torn"), never("whole"),
           (Twin("no release fence", {STORE_FENCE: ABSENT}), Twin("no acquire fence", {LOAD_FENCE: ABSENT}))),
    Litmus("feed_shown", "feed", "a state that is not written yet", feed_shown, never("torn"), never("whole"),
           relaxed(TURN, SHOWN)),
    Litmus("feed_reused", "feed", "a copy that mixes two states", feed_reused, never("torn"), never("whole"),
           (Twin("no release fence", {SHOW_FENCE: ABSENT}), Twin("no acquire fence", {SLOT_FENCE: ABSENT}),
            Twin("release fence behind the stores", other=lambda o: feed_reused(o, late_fence=True)),
            Twin("second look before the copy", other=lambda o: feed_reused(o, early=True)))),
    Litmus("judge_hold", "judge", "a held version is unlinked", judge_hold, reclaimed_while_held, never("held"),
           (*FENCES, Twin("test before condemn", other=lambda o: judge_hold(o, test_first=True)),
            Twin("look before mark", other=lambda o: judge_hold(o, look_first=True)))),
    Litmus("judge_verdict", "judge", "a held version is unlinked", judge_verdict,
           reclaimed_while_held, never("held"), FENCES),
    Litmus("judge_again", "judge", "a version that a reader holds is reclaimed by the next writer", judge_again,
           reclaimed_while_held, any_thread("reclaimed"), FENCES),
)  # fmt: skip

LARGER = (
    Litmus("state_built", "state", "a good table is called damaged", state_built,
           never("damaged"), never("again"), relaxed(ADVANCE, WORD)),
    Litmus("copy_words", "copy", "a copy that mixes two entries", copy_words, never("torn"), never("whole"),
           (Twin("no release fence", {STORE_FENCE: ABSENT}), Twin("no acquire fence", {LOAD_FENCE: ABSENT}))),
    Litmus("judge_two_readers", "judge", "a held version is unlinked", judge_two_readers,
           reclaimed_while_held, never("held"), FENCES),
    Litmus("judge_twice", "judge", "a held version is unlinked", judge_twice, reclaimed_while_held, never("held"),
           FENCES),
    Litmus("judge_yield", "judge", "a held version is unlinked", judge_yield, reclaimed_while_held, never("held"),
           FENCES),
    Litmus("judge_two_writers", "judge", "a held version is unlinked", judge_two_writers,
           reclaimed_while_held, never("held"), FENCES),
)  # fmt: skip
