"""Programs whose verdict under RC11 is known from the paper or follows from one axiom: they test the checker itself."""

from __future__ import annotations

from dataclasses import dataclass

from .litmus import PAPER, Check
from .program import PLAIN, Body, Program, Step, Thread, add, fence, load, store
from .rc11 import Model


@dataclass(frozen=True)
class Known:
    """`allowed`: is there an execution with an outcome that `bad` describes?"""

    name: str
    program: Program
    bad: Check
    allowed: bool
    racy: bool = False
    model: Model = PAPER


def reading(*steps: Step) -> Thread:
    """A thread that does these steps; its result is what it read."""

    def run() -> Body:
        found = []
        for step in steps:
            value = yield step
            if step.reads:
                found.append(value)
        return tuple(found)

    return run


def program(*threads: Thread) -> Program:
    return Program({str(k): thread for k, thread in enumerate(threads)}, {"x": 0, "y": 0, "z": 0})


def store_buffering(write: str, read: str, between: str = "absent") -> Program:
    one = reading(store("x", 1, write), fence(between), load("y", read))
    return program(one, reading(store("y", 1, write), fence(between), load("x", read)))


def message_passing(write: str, read: str, data: str = "relaxed") -> Program:
    writer = reading(store("x", 1, data), store("y", 1, write))

    def reader() -> Body:
        if (yield load("y", read)) == 0:
            return "before"
        return "new" if (yield load("x", data)) else "old"

    return program(writer, reader)


def four_readers(read: str) -> Program:
    return program(
        reading(store("x", 1, "release" if read == "acquire" else read)),
        reading(store("y", 1, "release" if read == "acquire" else read)),
        reading(load("x", read), load("y", read)),
        reading(load("y", read), load("x", read)),
    )


def load_buffering() -> Program:
    return program(
        reading(load("x", "relaxed"), store("y", 1, "relaxed")), reading(load("y", "relaxed"), store("x", 1, "relaxed"))
    )


def continued(by: Step) -> Program:
    """Message passing through a release that somebody else's write follows."""

    def reader() -> Body:
        if (yield load("y", "acquire")) != 2:
            return "before"
        return "new" if (yield load("x", "relaxed")) else "old"

    return program(reading(store("x", 1, "relaxed"), store("y", 1, "release")), reading(by), reader)


def same_thread() -> Program:
    """A relaxed store behind a release store of one thread: in C11's release sequence, not in C++20's."""

    def reader() -> Body:
        if (yield load("y", "acquire")) != 2:
            return "before"
        return "new" if (yield load("x", "relaxed")) else "old"

    return program(reading(store("x", 1, "relaxed"), store("y", 1, "release"), store("y", 2, "relaxed")), reader)


ZEROS = ((0,), (0,))
SPLIT = ((), (), (1, 0), (1, 0))
KNOWN = (
    Known("SB relaxed", store_buffering("relaxed", "relaxed"), lambda o: o == ZEROS, True),
    Known("SB release, acquire", store_buffering("release", "acquire"), lambda o: o == ZEROS, True),
    Known("SB seq_cst", store_buffering("seq_cst", "seq_cst"), lambda o: o == ZEROS, False),
    Known("SB seq_cst fences", store_buffering("relaxed", "relaxed", "seq_cst"), lambda o: o == ZEROS, False),
    Known("SB acq_rel fences", store_buffering("relaxed", "relaxed", "acq_rel"), lambda o: o == ZEROS, True),
    Known("MP", message_passing("release", "acquire"), lambda o: o[1] == "old", False),
    Known("MP relaxed store", message_passing("relaxed", "acquire"), lambda o: o[1] == "old", True),
    Known("MP relaxed load", message_passing("release", "relaxed"), lambda o: o[1] == "old", True),
    Known("MP plain data", message_passing("release", "acquire", PLAIN), lambda o: o[1] == "old", False),
    Known("MP plain data, relaxed", message_passing("relaxed", "relaxed", PLAIN), lambda o: o[1] == "old", True, True),
    Known("IRIW acquire", four_readers("acquire"), lambda o: o == SPLIT, True),
    Known("IRIW seq_cst", four_readers("seq_cst"), lambda o: o == SPLIT, False),
    Known("CoRR", program(reading(store("x", 1, "relaxed")), reading(*[load("x", "relaxed")] * 2)),
          lambda o: o[1] == (1, 0), False),
    Known("two adds", program(*[reading(add("x", "relaxed", 2))] * 2), lambda o: o == ZEROS, False),
    Known("LB", load_buffering(), lambda o: o == ((1,), (1,)), False),
    Known("LB without its axiom", load_buffering(), lambda o: o == ((1,), (1,)), True,
          model=Model(load_buffering=True)),
    Known("release sequence: add", continued(add("y", "relaxed", 2)), lambda o: o[2] == "old", False),
    Known("release sequence: store", continued(store("y", 2, "relaxed")), lambda o: o[2] == "old", True),
    Known("release sequence: own store", same_thread(), lambda o: o[1] == "old", False),
    Known("the same in C++20", same_thread(), lambda o: o[1] == "old", True, model=Model(short_sequences=True)),
)  # fmt: skip
