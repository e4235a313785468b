"""Cancel a job and start it again whenever its configuration changes.

Problem: a consumer, a crawler or a connection pool runs for hours with the settings that it was started with. When
they change, it has to end cleanly and start anew with the new ones; when they change again meanwhile, only the newest
count.
Run it: python examples/restart_job.py
It prints: which jobs a worker process started, how each of them ended, and with which settings the last one finished.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
from multiprocessing.connection import Connection

import msgspec

import shmcow
from shmcow import Reader, Snapshot, Writer

STORE = f"example-job-{os.getpid()}"


class Settings(msgspec.Struct, frozen=True):
    topic: str = "orders"
    batches: int = 0  # 0: for ever


async def job(settings: Snapshot[Settings], link: Connection) -> None:
    """Work with one version of the settings until done or cancelled; clean up either way."""
    link.send(f"started on {settings.value.topic}, version {settings.version}")
    ended = "cancelled"
    try:
        batch = 0
        while batch < settings.value.batches or settings.value.batches == 0:
            await asyncio.sleep(0.001)  # the real work
            batch += 1
        ended = f"done after {batch} batches"
    finally:
        link.send(f"ended on {settings.value.topic}, version {settings.version}: {ended}")


async def supervise(reader: Reader[Settings], link: Connection) -> None:
    """Keep one job running, always with the newest settings, until one is done."""
    settings = reader.snapshot()
    while True:
        running = asyncio.create_task(job(settings, link))
        newer = asyncio.create_task(reader.wait_async(after=settings))
        await asyncio.wait([running, newer], return_when=asyncio.FIRST_COMPLETED)
        for task in (running, newer):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        if not running.cancelled():
            return running.result()
        settings = newer.result()


def work(link: Connection) -> None:
    """Be the worker process."""
    asyncio.run(supervise(Reader(STORE, type=Settings), link))
    link.close()


def main() -> None:
    """Change the settings twice under the worker; the third ones let it finish."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    worker = context.Process(target=work, args=(theirs,), daemon=True)
    with Writer(STORE, type=Settings, initial=Settings()) as writer:
        worker.start()
        theirs.close()
        print(ours.recv())
        for changes in ({"topic": "invoices"}, {"batches": 5}):
            version = writer.patch(**changes)
            for said in (ours.recv(), ours.recv()):  # the old job's end comes before the new one's start
                print(said)
            assert said.endswith(f"version {version}")
        print(ours.recv())
    worker.join()
    shmcow.destroy(STORE)


if __name__ == "__main__":
    main()
