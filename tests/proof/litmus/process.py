"""Litmus tests of what one process keeps for itself: the list of descriptors, the counts of forks, the ring."""

from __future__ import annotations

from collections.abc import Callable

from .litmus import Build, Litmus, Orders, Outcome, Twin
from .program import PLAIN, Body, Program, Thread, add, exchange, fence, load, store, swap
from .rc11 import Model
from .shared import CURRENT, END, any_thread, never, relaxed
from .sites import NAMED

PUSH, HEAD, HEAD_AGAIN = "shmcow_fd_take cas all", "shmcow_fd_take load all", "shmcow_fd_take load all #2"
CHILD, DISOWN = "in_child load all", "disown load all"
OPENED, FILLING, CLOSE = "shmcow_fd_open store fd", "core_fill_begin store fd", "close_own exchange fd"
VALID, MAP, HIDE = "shmcow_fd_valid load fd", "core_ready_map store map", "hide_map exchange map"
RELEASE, TAKE = "shmcow_fd_release store taken", "shmcow_fd_take cas taken"
STARTED, FINISHED = "before_fork add started", "in_parent add finished"
STAMP_FINISHED, STAMP_STARTED = "shmcow_fork_stamp load finished", "shmcow_fork_stamp load started"
SINCE = "shmcow_no_fork_since load started"
RING, RINGS = "shmcow_ring add rings", "shmcow_rings load rings"


# ---- fds: nodes 1 and 2, `next1` and `next2` in them; 0 ends the list, 9 is what was never written ----


def push(o: Orders, node: int, whole: bool = True, tries: int = 1) -> Body:
    """shmcow_fd_take with no free node: write the node, then swap the head. Try again, should another be faster."""
    head = yield load("all", o(HEAD_AGAIN))
    for _ in range(tries):
        if whole:
            yield store(f"next{node}", head, PLAIN)
        found = yield swap("all", head, node, o(PUSH))
        if not whole:
            yield store(f"next{node}", head, PLAIN)
        if found == head:
            return "pushed"
        head = found
    return "beaten"


def walk(o: Orders, site: str) -> Thread:
    """in_child, disown and shmcow_fd_take go from the head to the end."""

    def run() -> Body:
        node = yield load("all", o(site))
        seen: list[int] = []
        while node in (1, 2) and node not in seen:
            seen.append(node)
            node = yield load(f"next{node}", PLAIN)
        return f"{len(seen)} nodes" if node == 0 else "wild"

    return run


def fds_walk(site: str, whole: bool = True) -> Build:
    def build(o: Orders) -> Program:
        return Program({"taker": lambda: push(o, 1, whole), "walker": walk(o, site)}, {"all": 0, "next1": 9})

    return build


def fds_chain(o: Orders) -> Program:
    """Two nodes from two threads: the second swap continues the first's release, though it read the head relaxed."""
    return Program(
        {"a": lambda: push(o, 1), "b": lambda: push(o, 2, tries=2), "walker": walk(o, CHILD)},
        {"all": 0, "next1": 9, "next2": 9},
    )


def fds_stored(o: Orders) -> Program:
    """fds_chain with a store in place of the second swap."""

    def storing() -> Body:
        head = yield load("all", o(HEAD_AGAIN))
        yield store("next2", head, PLAIN)
        yield store("all", 2, o(PUSH))
        return "pushed"

    program = fds_chain(o)
    return Program({**program.threads, "b": storing}, program.initial)


# ---- node: the number says that dev and ino are written; `taken` hands a node from one owner to the next ----


def node_number(put: str, take: str, swaps: bool = True, backwards: bool = False) -> Build:
    """A number (or a map) that is seen comes with what belongs to it."""

    def build(o: Orders) -> Program:
        def opener() -> Body:
            if backwards:
                yield store("number", 5, o(put))
            yield store("inode", 5, PLAIN)
            if not backwards:
                yield store("number", 5, o(put))
            return None

        def closer() -> Body:
            number = yield exchange("number", 0, o(take)) if swaps else load("number", o(take))
            if number == 0:
                return "closed"
            return "ours" if (yield load("inode", PLAIN)) == 5 else "another's"

        return Program({"opener": opener, "closer": closer}, {"number": 0, "inode": 0})

    return build


def node_taken(o: Orders) -> Program:
    """A node is used again: the next owner writes it after the last one has read it."""

    def last() -> Body:
        inode = yield load("inode", PLAIN)
        yield store("taken", 0, o(RELEASE))
        return "ours" if inode == 5 else "another's"

    def following() -> Body:
        if (yield swap("taken", 0, 1, o(TAKE))) != 0:
            return "busy"
        yield store("inode", 6, PLAIN)
        return "taken"

    return Program({"last": last, "next": following}, {"taken": 1, "inode": 5})


# ---- fork: `description` is the table of descriptors that fork() copies, then the memory with the node in it ----


def opener(o: Orders, put: str, late: bool = False) -> Thread:
    """shmcow_fd_open, once: stamp, open, list, look again."""

    def run() -> Body:
        finished = yield load("finished", o(STAMP_FINISHED))
        started = yield load("started", o(STAMP_STARTED))
        yield store("description", 1, "relaxed")
        if not late:
            yield store("fd", 1, o(put))
        again = yield load("started", o(SINCE))
        if late:
            yield store("fd", 1, o(put))
        return "used" if finished == started == again else "opened again"

    return run


def forker(o: Orders, forks: int = 1) -> Body:
    """fork(): the kernel copies the descriptors, then the memory. The child closes what its memory says is listed."""
    yield add("started", o(STARTED), forks)
    description = yield load("description", "relaxed")
    fd = yield load("fd", "seq_cst")  # the kernel's barrier over the address space, and no more than that
    yield add("finished", o(FINISHED), forks)
    return "kept" if description and not fd else "closed or none"


def fork_open(put: str, late: bool = False) -> Build:
    """No child keeps a description that its parent goes on to use."""

    def build(o: Orders) -> Program:
        return Program(
            {"opener": opener(o, put, late), "forker": lambda: forker(o)},
            {"started": 0, "finished": 0, "description": 0, "fd": 0},
        )

    return build


def fork_two(o: Orders) -> Program:
    """The same with two threads that fork."""
    return Program(
        {"opener": opener(o, OPENED), "a": lambda: forker(o, 2), "forker": lambda: forker(o, 2)},
        {"started": 0, "finished": 0, "description": 0, "fd": 0},
    )


def kept_and_used(outcome: Outcome) -> bool:
    return outcome[0] == "used" and "kept" in outcome


# ---- ring ----


def ring_news(o: Orders) -> Program:
    """Who sees the ring sees what was rung for."""

    def ringer() -> Body:
        yield store("closed", 1, "relaxed")
        yield add("rings", o(RING))
        return None

    def sleeper() -> Body:
        if (yield load("rings", o(RINGS))) == 0:
            return "before"
        return "told" if (yield load("closed", "relaxed")) else "missed"

    return Program({"ringer": ringer, "sleeper": sleeper}, {"closed": 0, "rings": 0})


def ring_two(o: Orders, stored: bool = False) -> Program:
    """Two threads ring: who sees the second ring sees what the first one rang for."""

    def ringer(what: str) -> Body:
        yield store(what, 1, "relaxed")
        if stored:
            rings = yield load("rings", "relaxed")
            yield store("rings", rings + 1 if rings < 2 else rings, o(RING))
        else:
            yield add("rings", o(RING), 2)
        return None

    def sleeper() -> Body:
        if (yield load("rings", o(RINGS))) < 2:
            return "before"
        first = yield load("closed", "relaxed")
        second = yield load("added", "relaxed")
        return "told" if first and second else "missed"

    return Program(
        {"a": lambda: ringer("closed"), "b": lambda: ringer("added"), "sleeper": sleeper},
        {"closed": 0, "added": 0, "rings": 0},
    )


# ---- what the kernel orders: its side is written here, and its twins are kernels that would not do ----


def sleep(word: str, o: Orders, site: str, old: int, kernel: str = "seq_cst", early: bool = False) -> Program:
    """FUTEX_WAIT and FUTEX_WAKE: get in line, full barrier, compare; change, full barrier, is anybody in line?"""

    def waker() -> Body:
        yield swap(word, old, old + 1, o(site)) if word == "current" else add(word, o(site))
        yield fence(kernel)
        return "wakes" if (yield load("in line", "relaxed")) else "wakes nobody"

    def sleeper() -> Body:
        seen = (yield load(word, "relaxed")) if early else 0
        yield store("in line", 1, "relaxed")
        yield fence(kernel)
        if not early:
            seen = yield load(word, "relaxed")
        return "sleeps" if seen == old else "looks again"

    return Program({"waker": waker, "sleeper": sleeper}, {word: old, "in line": 0})


def slept_through(outcome: Outcome) -> bool:
    return outcome == ("wakes nobody", "sleeps")


def writer_lock(o: Orders, unlock: str = "release", lock: str = "acquire") -> Program:
    """Relaxed figures and entries go from one writer to the next with the lock, also when the first one dies."""

    def first() -> Body:
        yield store("next_segment", 7, "relaxed")
        yield store("entry0", 7, o("shmcow_store_entry store entries"))
        yield store("lock", 0, unlock)
        return None

    def second() -> Body:
        if (yield swap("lock", 0, 2, lock)) != 0:
            return "locked out"
        figure = yield load("next_segment", "relaxed")
        entry = yield load("entry0", "relaxed")
        return "whole" if figure == entry == 7 else "old"

    return Program({"first": first, "second": second}, {"lock": 1, "next_segment": 5, "entry0": 5})


def name_missing(o: Orders, unlink: str = "release", lookup: str = "acquire") -> Program:
    """A reader that finds a name missing also sees the DOOMED before it: not damage from outside (SHMCOW_MISSING)."""

    def writer() -> Body:
        yield swap("word", 53, 55, o("shmcow_advance cas words"))
        yield store("name", 0, unlink)
        return None

    def reader() -> Body:
        if (yield load("name", lookup)) == 1:
            return "mapped"
        return "missing" if (yield load("word", o("shmcow_load_word load words"))) == 53 else "again"

    return Program({"writer": writer, "reader": reader}, {"word": 53, "name": 1})


def name_swept(o: Orders, unlink: str = "release", lookup: str = "acquire") -> Program:
    """A store is given up, its successor sweeps the names: who misses one also sees DESTROYED (SHMCOW_ENDED)."""

    def writer() -> Body:
        yield store("current", 99, o(END))
        yield store("name", 0, unlink)
        return None

    def reader() -> Body:
        if (yield load("name", lookup)) == 1:
            return "mapped"
        return "missing" if (yield load("current", o(CURRENT))) == 5 else "ended"

    return Program({"writer": writer, "reader": reader}, {"current": 5, "name": 1})


def no_kernel(build: Callable[[Orders, str, str], Program]) -> tuple[Twin, ...]:
    return (
        Twin("the kernel releases nothing", other=lambda o: build(o, "relaxed", "acquire")),
        Twin("the kernel acquires nothing", other=lambda o: build(o, "release", "relaxed")),
    )


def sleeping(name: str, word: str, site: str, old: int) -> Litmus:
    return Litmus(
        name, NAMED[site].sync[0], "a wake-up is lost, for a slice of a second",
        lambda o: sleep(word, o, site, old), slept_through, any_thread("sleeps"),
        (Twin("the kernel has no barrier", other=lambda o: sleep(word, o, site, old, kernel="acq_rel")),
         Twin("compare before getting in line", other=lambda o: sleep(word, o, site, old, early=True))),
    )  # fmt: skip


def walking(name: str, site: str) -> Litmus:
    return Litmus(
        name, "fds", "a walk through the list comes to a node that is not written yet",
        fds_walk(site), never("wild"), never("1 nodes"),
        (*relaxed(PUSH, site), Twin("the swap before the node", other=fds_walk(site, whole=False))),
    )  # fmt: skip


def numbered(name: str, put: str, take: str, swaps: bool = True) -> Litmus:
    return Litmus(
        name, "node", "a child keeps its parent's description, or closes another's file",
        node_number(put, take, swaps), never("another's"), never("ours"),
        (*relaxed(put, take), Twin("the number first", other=node_number(put, take, swaps, backwards=True))),
    )  # fmt: skip


def forking(name: str, put: str) -> Litmus:
    return Litmus(
        name, "fork", "a child keeps a copy of a description that its parent locks with",
        fork_open(put), kept_and_used, any_thread("used"),
        (Twin(f"{put}: release", {put: "release"}), Twin(f"{SINCE}: acquire", {SINCE: "acquire"}),
         Twin(f"{STARTED}: acq_rel", {STARTED: "acq_rel"}), *relaxed(FINISHED, STAMP_FINISHED),
         Twin("listed behind the second look", other=fork_open(put, late=True))),
        Model(load_buffering=True),
    )  # fmt: skip


IN_CI = (
    walking("fds_child", CHILD),
    walking("fds_take", HEAD),
    walking("fds_disown", DISOWN),
    Litmus("fds_chain", "fds", "a walk comes to a node that is not written yet", fds_chain, never("wild"),
           never("2 nodes"), (*relaxed(PUSH, CHILD), Twin("a store for the second swap", other=fds_stored))),
    numbered("node_number", OPENED, CLOSE),
    numbered("node_filling", FILLING, CLOSE),
    numbered("node_valid", OPENED, VALID, swaps=False),
    numbered("node_map", MAP, HIDE),
    Litmus("node_taken", "node", "a node has two owners at once", node_taken, lambda outcome: outcome[0] != "ours",
           any_thread("taken"), relaxed(RELEASE, TAKE)),
    forking("fork_open", OPENED),
    forking("fork_fill", FILLING),
    Litmus("ring_news", "ring", "a sleeper goes on with a reader that is closed", ring_news,
           never("missed"), never("told"), relaxed(RING, RINGS)),
    Litmus("ring_two", "ring", "the ring of one thread hides what another rang for", ring_two,
           never("missed"), never("told"),
           (*relaxed(RING, RINGS), Twin("load and store for the add", other=lambda o: ring_two(o, stored=True)))),
    sleeping("ring_sleep", "rings", RING, 0),
    sleeping("flip_sleep", "current", "shmcow_flip cas current", 5),
    Litmus("writer_lock", "", "a writer goes on with old figures", writer_lock, never("old"), never("whole"),
           no_kernel(writer_lock)),
    Litmus("name_missing", "", "a forced reclaim is taken for damage", name_missing, never("missing"),
           never("again"), (no_kernel(name_missing)[1],)),
    Litmus("name_swept", "", "a store that was given up is taken for a damaged one", name_swept, never("missing"),
           never("ended"), no_kernel(name_swept)),
)  # fmt: skip

LARGER = (
    Litmus("fork_two", "fork", "a child keeps a copy of a description that its parent locks with", fork_two,
           kept_and_used, any_thread("used"), forking("", OPENED).twins[:-1], Model(load_buffering=True)),
)  # fmt: skip
