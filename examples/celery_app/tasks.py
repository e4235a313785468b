"""Celery tasks in a prefork pool: each task sees one version from its start to its end.

Run, in this directory (pip install 'shmcow[cli]' celery):

    celery -A tasks worker --concurrency 4

and from another shell:

    python tasks.py         publish the next revision, and let four tasks say what they see

The pool's processes are forked, recycled (--max-tasks-per-child) and replaced when they die: shmcow needs none of
celery's signals for it. Messages go through a folder here, so that nothing else has to be installed; real work deserves
a real broker. The store outlives them all; to remove it: shmcow rm celery-example
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from celery import Celery

from shmcow import Reader, Writer
from shmcow.contrib.request import current_snapshot, current_value, holding

STORE = os.environ.get("CONFIG_STORE", "celery-example")
FOLDER = Path(os.environ.get("CELERY_FOLDER", Path(tempfile.gettempdir()) / f"shmcow-celery-{os.getuid()}"))
for folder in ("messages", "results"):
    (FOLDER / folder).mkdir(parents=True, exist_ok=True)

app = Celery("tasks", broker="filesystem://", backend=f"file://{FOLDER}/results")
app.conf.broker_transport_options = {
    "data_folder_in": str(FOLDER / "messages"),
    "data_folder_out": str(FOLDER / "messages"),
    "control_folder": str(FOLDER / "control"),
    "polling_interval": 0.01,
}
app.conf.worker_lost_wait = 1.0  # seconds until a task whose process was killed is given up


class Config(msgspec.Struct, frozen=True):
    """What the tasks may be told while they run; every field follows from the revision, to be checked by eye."""

    revision: int = 0
    hosts: tuple[str, ...] = ("db0-r0.internal", "db1-r0.internal")


config = Reader(STORE, type=Config, default=Config())  # touches nothing yet: safe before the fork


def line() -> dict[str, Any]:
    """Say what this task sees: the version and the values belong together, whoever publishes meanwhile."""
    try:
        version = current_snapshot(config).version
    except LookupError:  # the task began before there was a store: it has the default to its end
        version = 0
    return {"pid": os.getpid(), "version": version, "config": msgspec.to_builtins(current_value(config))}


@app.task
def look(pause: float = 0.001) -> list[dict[str, Any]]:
    """Look five times, with a wait before each, as for a database."""
    seen = []
    with holding(config):
        for _ in range(5):
            time.sleep(pause)
            seen.append(line())
    return seen


def publish() -> int:
    """Publish the next revision; the first call creates the store."""
    with Writer(STORE, type=Config, initial=Config()) as writer:
        number = writer.version
        hosts = tuple(f"db{k}-r{number}.internal" for k in range(2))
        return writer.publish(Config(number, hosts), expected=number, message=f"revision {number}")


if __name__ == "__main__":
    print(f"version {publish()}")
    for result in [look.delay() for _ in range(4)]:
        print(result.get(timeout=60)[-1])
