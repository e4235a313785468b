"""Run the state machine: for the tests and for the nightly run."""

from __future__ import annotations

import collections
import contextlib
import io
import tempfile
from collections.abc import Callable

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.stateful import run_state_machine_as_test
from machine_base import Pool
from machine_rules import Machine
from processes import SHM

STEPS = 30


def go(prefix: str, runs: int, number: int | None = None, mutate: Callable[[], None] | None = None) -> dict[str, int]:
    """Do runs of at most STEPS steps; returns what was done.

    Args:
        prefix: of the stores' names.
        number: of the seed; None: always the same runs.
        mutate: plants something in the processes; then the first failure is not made smaller.

    Raises:
        AssertionError: the processes did not do what the model says; Hypothesis prints the steps.
    """
    pool = Pool(prefix, mutate)
    machine = type("OneMachine", (Machine,), {"pool": pool})
    machine.TestCase.settings = settings(
        max_examples=runs,
        stateful_step_count=STEPS,
        derandomize=number is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate] if mutate else [Phase.generate, Phase.shrink],
    )
    try:
        with tempfile.TemporaryDirectory() as home:  # nothing of Hypothesis is left in the tree
            set_hypothesis_home_dir(home)
            _run(machine, number)
    finally:
        pool.close()
    return dict(collections.Counter(pool.counts).most_common())


def _run(machine: type[Machine], number: int | None) -> None:
    run = machine if number is None else seed(number)(machine)
    run_state_machine_as_test(run, settings=machine.TestCase.settings)


def failure(prefix: str, runs: int, mutate: Callable[[], None]) -> str:
    """Run with something planted; returns how it was found, or ""."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            go(prefix, runs, None, mutate)
    except BaseException as exc:
        if isinstance(exc, KeyboardInterrupt):
            raise
        while isinstance(exc, BaseExceptionGroup):
            exc = exc.exceptions[0]
        frame = exc.__traceback__
        where = ""
        while frame is not None:
            if frame.tb_frame.f_code.co_filename.rpartition("/")[2].startswith("machine_"):
                where = frame.tb_frame.f_code.co_name
            frame = frame.tb_next
        for left in SHM.glob(f"shmcow.{prefix}-*"):  # what a planted mistake left: of our own stores only
            left.unlink()
        return f"{where}: {str(exc).splitlines()[0] if str(exc) else type(exc).__name__}"
    return ""
