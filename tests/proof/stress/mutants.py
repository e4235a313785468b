"""The code's own mutants: the protocol header weakened in the source, one change at a time.

Each mutant names what is taken away. What is replaced must stand in the source exactly once, so that a change of the
code that makes a mutant void is found. Some have a step added where the source has none: a window of a few
nanoseconds, made wide enough to be hit. Orders that x86-64 gives for nothing are for the litmus tests, but for those
that ThreadSanitizer sees.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One weakening: (text, replacement) pairs in shmcow_protocol.h, or flags for the compiler.

    Attributes:
        name: what is taken away.
        changes: each text must stand in the source exactly once.
        tsan: whether only ThreadSanitizer can see it: the machine that runs this is stronger than the language.
        flags: for the compiler.
        hoard: whether it shows with a full table.
    """

    name: str
    changes: tuple[tuple[str, str], ...] = ()
    tsan: bool = False
    flags: tuple[str, ...] = ()
    hoard: bool = False


_SECOND_LOOK = "if (shmcow_intact(atomic_load_explicit(&h->words[i], memory_order_relaxed), version)) {"
_WINDOW = '    SHMCOW_STEP("window");\n'
_COPY = "        shmcow_load_entry(h, i, out);\n        /* the fence"
_FIRST_LOOK = "    if (shmcow_openable(word, version)) {\n"
_UNLINK = """    for (uint32_t k = 0; k < count; k++) {
        uint64_t segment = shmcow_listed_segment(h, i, k);
        if (segment == 0 || shmcow_listed(h, segment, i))"""
_FREE = """    return shmcow_advance(h, i, shmcow_word_version(word), (enum shmcow_state)shmcow_word_state(word), SHMCOW_FREE);
"""
_FENCE_OF_JUDGE = "    atomic_thread_fence(memory_order_seq_cst);\n    int held = ops->marked(ctx, version);\n"
_CONDEMN = """    if (shmcow_word_state(word) == SHMCOW_HELD)
        r = shmcow_advance(h, i, version, SHMCOW_HELD, SHMCOW_CONDEMNED);
    if (r < 0)
        return r;
"""
_DOOM = """    r = shmcow_advance(h, i, version, SHMCOW_CONDEMNED, SHMCOW_DOOMED);
    if (r < 0)
        return r;
"""
_MARK = "    ops->mark(ctx, version); /* a kernel that refuses markers costs accounting only: go on */\n"
_FILL = "    r = shmcow_fill_segments(h, ops, ctx, entry, fresh);\n"
_FLIPPED = '    SHMCOW_STEP("publish.flipped");\n'
_BUILDING = "shmcow_word(entry->version, SHMCOW_BUILDING)"

MUTANTS = (
    Mutant(
        "no check after the marker",
        ((_MARK, _WINDOW + _MARK), (_FIRST_LOOK, "    if (true) {\n"), (_SECOND_LOOK, "if (true) {")),
    ),
    Mutant("no second look after the copy", ((_COPY, _WINDOW + _COPY), (_SECOND_LOOK, "if (true) {")), hoard=True),
    Mutant(
        "the state without the version",
        (
            ("    return shmcow_word_version(word) == version && (state", "    return version && (state"),
            (_MARK, _WINDOW + _MARK),
        ),
    ),
    Mutant(
        "the look before the marker",
        (
            (_MARK, ""),
            (_FIRST_LOOK, "    bool good = shmcow_openable(word, version);\n" + _WINDOW + _MARK + "    if (good) {\n"),
            (_SECOND_LOOK, "if (true) {"),
        ),
    ),
    Mutant("a failed hold keeps its marker", (("    if (r < 0)\n        ops->clear(ctx, version);\n", ""),)),
    Mutant(
        "no CONDEMNED",
        (
            (_CONDEMN, ""),
            (_FENCE_OF_JUDGE, _FENCE_OF_JUDGE + _WINDOW),
            (_DOOM, _DOOM.replace("SHMCOW_CONDEMNED, S", "shmcow_word_state(word), S")),
            (
                "        r = shmcow_advance(h, i, version, SHMCOW_CONDEMNED, SHMCOW_HELD);\n        return r < 0 ? r : 0;\n",
                "        return 0;\n",
            ),
        ),
    ),
    Mutant("no DOOMED", ((_DOOM, ""),)),
    Mutant(
        "DOOMED comes back to life",
        (
            (
                "        case SHMCOW_DOOMED: /* some names are gone: it can only go on */\n            r = shmcow_drop(h, ops, ctx, i);",
                "        case SHMCOW_DOOMED:\n            r = shmcow_advance(h, i, version, SHMCOW_DOOMED, SHMCOW_HELD);",
            ),
        ),
    ),
    Mutant(
        "the test before the condemnation",
        ((_CONDEMN, "    int held = ops->marked(ctx, version);\n" + _WINDOW + _CONDEMN), (_FENCE_OF_JUDGE, "")),
    ),
    Mutant("markers are not seen", ((_FENCE_OF_JUDGE, _FENCE_OF_JUDGE.replace("ops->marked(ctx, version)", "0")),)),
    Mutant(
        "free before unlink",
        (
            (_UNLINK, "    (void)" + _FREE.strip().removeprefix("return ") + "\n" + _UNLINK),
            (_FREE, "    return SHMCOW_OK;\n"),
        ),
    ),
    Mutant(
        "shared segments are unlinked", (("if (segment == 0 || shmcow_listed(h, segment, i))", "if (segment == 0)"),)
    ),
    Mutant(
        "flip before fill",
        (
            (_FILL, "    r = SHMCOW_OK;\n"),
            (_FLIPPED, _FLIPPED + "    (void)shmcow_fill_segments(h, ops, ctx, entry, fresh);\n"),
        ),
    ),
    Mutant(
        "no intent before the fill",
        (
            (_BUILDING, "shmcow_word(entry->version, SHMCOW_FREE)"),
            (
                "    r = shmcow_advance(h, i, entry->version, SHMCOW_BUILDING, SHMCOW_READY);",
                "    r = shmcow_advance(h, i, entry->version, SHMCOW_FREE, SHMCOW_READY);",
            ),
        ),
    ),
    Mutant(
        "recovery skipped",
        (("    int repaired = 0;\n    if (now", "    int repaired = 0;\n    return 0;\n    if (now"),),
    ),
    Mutant(
        "recovery keeps what was never flipped",
        (("version > shmcow_version_of(now) ? shmcow_drop(h, ops, ctx, i)", "false ? shmcow_drop(h, ops, ctx, i)"),),
    ),
    Mutant(
        "recovery drops what was flipped",
        (("version > shmcow_version_of(now) ? shmcow_drop(h, ops, ctx, i)", "true ? shmcow_drop(h, ops, ctx, i)"),),
    ),
    Mutant(
        "recovery condemns for good",
        (
            (
                "r = shmcow_judge(h, ops, ctx, i, false);\n            break;",
                "r = shmcow_drop(h, ops, ctx, i);\n            break;",
            ),
        ),
    ),
    Mutant(
        "the current version is judged, too", (("|| v >= current || v == protect", "|| v > current || v == protect"),)
    ),
    Mutant("what a rollback repeats is not protected", (("|| v >= current || v == protect", "|| v >= current"),)),
    Mutant(
        "a version number twice",
        (("entry->version = shmcow_version_of(now) + 1;", "entry->version = now ? shmcow_version_of(now) : 1;"),),
    ),
    Mutant("the writer lock not taken", flags=("-DWITHOUT_LOCK",)),
    Mutant("a full table forces nothing out", (("shmcow_judge(h, ops, ctx, older[n - 1], true)", "0"),), hoard=True),
    Mutant(
        "relaxed flip and states",
        (
            (
                "&h->words[i], &expected, shmcow_word(version, to),\n                                                 memory_order_acq_rel, memory_order_acquire)",
                "&h->words[i], &expected, shmcow_word(version, to),\n memory_order_relaxed, memory_order_relaxed)",
            ),
            (
                "h->current, from, to, memory_order_acq_rel, memory_order_acquire)",
                "h->current, from, to, memory_order_relaxed, memory_order_relaxed)",
            ),
        ),
        tsan=True,
    ),
    Mutant(
        "relaxed loads of current and states",
        (
            (
                "return atomic_load_explicit(&h->current, memory_order_acquire);",
                "return atomic_load_explicit(&h->current, memory_order_relaxed);",
            ),
            (
                "return atomic_load_explicit(&h->words[i], memory_order_acquire);",
                "return atomic_load_explicit(&h->words[i], memory_order_relaxed);",
            ),
        ),
        tsan=True,
    ),
)


def weaken(source: str, mutant: Mutant) -> str:
    """Return the source with a mutant's changes made.

    Raises:
        ValueError: a text that it replaces does not stand in the source exactly once: adapt the mutant.
    """
    for text, replacement in mutant.changes:
        if source.count(text) != 1:
            raise ValueError(f"mutant {mutant.name!r}: expected once, found {source.count(text)} times: {text!r}")
        source = source.replace(text, replacement)
    return source
