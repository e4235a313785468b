"""Several keys read from one consistent version, while another process moves money between them.

Problem: one read for each key can hit two versions, and then ten euros are in both accounts or in none.
Run it: python examples/consistent_keys.py
It prints: what one read for each key saw across a transfer, and how often a worker that takes the whole value once
found the wrong sum while hundreds of transfers went on: never.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection

import shmcow
from shmcow import Reader, Writer

STORE = f"example-accounts-{os.getpid()}"
accounts: Reader[dict[str, int]] = Reader(STORE)


def move(old: dict[str, int], amount: int) -> dict[str, int]:
    """Move money from ann to bob; it may become negative."""
    return {**old, "ann": old["ann"] - amount, "bob": old["bob"] + amount}


def work(link: Connection) -> None:
    """Sum the accounts up until told to stop."""
    reads, wrong, versions = 0, 0, set[int]()
    link.send("ready")
    while not link.poll() or len(versions) < 2:
        now = accounts.snapshot()  # accounts.get() is enough for who does not want the version
        reads += 1
        wrong += sum(now.value.values()) != 100
        versions.add(now.version)
    link.send((reads, wrong, len(versions)))


def main() -> None:
    """Show both ways of reading."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    with Writer(STORE, initial={"ann": 60, "bob": 40}) as writer:
        ann = accounts.get()["ann"]
        writer.update(lambda old: move(old, 10))
        bob = accounts.get()["bob"]  # the next version: not what a program should do
        print(f"one get() for each key: {ann} + {bob} = {ann + bob}")

        now = accounts.get()
        writer.update(lambda old: move(old, 10))
        print(f"one get() for both: {now['ann']} + {now['bob']} = {now['ann'] + now['bob']}")

        context.Process(target=work, args=(theirs,), daemon=True).start()
        theirs.close()  # so that the worker's death ends recv() below
        assert ours.recv() == "ready"
        for amount in range(300):
            writer.update(lambda old, amount=amount: move(old, amount % 7 - 3))
        ours.send("stop")
        while not ours.poll(0.001):
            writer.update(lambda old: move(old, 1))
        reads, wrong, versions = ours.recv()
        print(f"a worker read {reads} times, {versions} versions: {wrong} wrong sums")
        assert wrong == 0
    for worker in multiprocessing.active_children():
        worker.join()
    shmcow.destroy(STORE)


if __name__ == "__main__":
    main()
