"""The core: get(), publish, the first get() after a publish, waking sleepers, and what idle readers cost."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import secrets
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import msgspec
import posix_ipc

import shmcow
from benchmarks import idle, waking
from benchmarks.harness import Plan, Result, each, loop, measure, time_text, timed
from benchmarks.scene import SHM, WATCHDOG, Config, file, fresh_name, make_config, room, store

MEGABYTE = 1_000_000


def run(plan: Plan) -> Result:
    """Measure get(), publish of 1 kB and of 100 MB, and the first get() after a publish."""
    large = plan.pick(100 * MEGABYTE, MEGABYTE)
    big = f"{large // MEGABYTE} MB"
    result = Result(
        "core: what get() and publish() cost over what they cannot do without",
        "one round of each case, thrown away",
    )
    rounds = plan.pick(15, 3)
    with contextlib.ExitStack() as stack:
        # What is compared with each other is in one measure().
        result.rounds |= measure(stack.enter_context(_get_cases(plan)), rounds)
        result.rounds |= measure(stack.enter_context(_publish_cases(plan)), rounds)
        result.rounds |= measure(stack.enter_context(_first_get_cases(plan)), rounds)
        if room() >= 3 * large:
            result.rounds |= measure(stack.enter_context(_large_cases(large, big)), rounds)
        else:
            result.notes.append(f"publish of {big}: skipped, {SHM} has less than {3 * large // MEGABYTE} MB free")
        waking.add(result, plan, rounds)
        idle.add(result, plan, rounds)
    _compare(result, big)
    waking.compare(result)
    idle.compare(result)
    return result


def _compare(result: Result, big: str) -> None:
    result.compare("get() / empty C call, net", "get()", "empty C call", minus="the loop itself", must=1.3, aim=1.1)
    result.compare("get() / empty C call, gross", "get()", "empty C call", must=1.3, aim=1.1)
    result.compare("r.get() / r.empty(), gross", "r.get(), looked up", "r.empty(), looked up", must=1.3, aim=1.1)
    result.compare("get() / dict[key], net", "get()", "dict[key]", minus="the loop itself")
    result.compare("msgspec decoding / get(), net", "msgspec decoding of 640 B", "get()", minus="the loop itself")
    result.compare("publish 1 kB / floor", "publish 1 kB", "floor 1 kB", must=5, aim=2.5)
    result.compare("publish 1 kB of bytes / floor", "publish 1 kB of bytes", "floor 1 kB")
    result.compare("publish 1 kB / floor by posix_ipc", "publish 1 kB", "floor 1 kB by posix_ipc")
    if f"publish {big}" in result.rounds:
        result.compare(f"publish {big} / floor", f"publish {big}", f"floor {big}", must=1.2, aim=1.05)
    result.compare("first get() / read by hand", "first get(), same process", "open, map, decode by hand")
    result.compare("first get() elsewhere / read by hand", "first get(), other process", "open, map, decode by hand")
    loop_cost = result.rounds["the loop itself"]
    result.notes += [
        f"gross: as timed. net: less the loop itself ({time_text(min(loop_cost))}), which pulls a ratio to 1.",
        "empty C call: a method without arguments of the very same type that returns None at once.",
        "floor: os.open(O_CREAT | O_EXCL), os.write, os.close, os.unlink of the same bytes in the same directory.",
        "first get(): timed in the reader, after the publish has returned; map, check, decode, freeze, mark as seen.",
    ]


# ---- get ----


@contextlib.contextmanager
def _get_cases(plan: Plan) -> Iterator[dict[str, Callable[[], float]]]:
    n = plan.pick(20_000, 200)
    config = make_config(640)
    data = msgspec.msgpack.encode(config)
    with store(type=Config, initial=config) as (_, name):
        reader = shmcow.Reader(name, type=Config)
        if reader.get() != config:
            raise AssertionError("get() does not return what was published")
        decode = msgspec.msgpack.Decoder(Config).decode
        yield {
            "get()": loop("get()", {"get": reader.get}, n),
            "empty C call": loop("empty()", {"empty": reader._pass}, n),
            "r.get(), looked up": loop("r.get()", {"r": reader}, n),
            "r.empty(), looked up": loop("r._pass()", {"r": reader}, n),
            "dict[key]": loop("d[k]", {"d": {"config": config, "other": None}, "k": "config"}, n),
            "msgspec decoding of 640 B": loop("decode(data)", {"decode": decode, "data": data}, n // 50),
            "the loop itself": loop("", {}, n),
        }
        reader.close()


# ---- publish ----


def _by_hand(path: str, data: bytes) -> Callable[[], None]:
    def operation() -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.write(fd, data)
        os.close(fd)
        os.unlink(path)

    return operation


def _by_posix_ipc(name: str, data: bytes) -> Callable[[], None]:
    def operation() -> None:
        fd = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600, size=0).fd
        os.write(fd, data)
        os.close(fd)
        posix_ipc.unlink_shared_memory(name)

    return operation


@contextlib.contextmanager
def _publish_cases(plan: Plan) -> Iterator[dict[str, Callable[[], float]]]:
    n = plan.pick(400, 5)
    config = make_config(1000)
    data = msgspec.msgpack.encode(config)
    name = fresh_name()
    with (
        store(type=Config, initial=config) as (writer, _),
        store(codec=shmcow.Raw(), initial=data) as (raw, _),
    ):
        yield {
            "publish 1 kB": each(lambda: writer.publish(config), n),
            "floor 1 kB": each(_by_hand(f"{SHM}/{name}", data), n),
            "publish 1 kB of bytes": each(lambda: raw.publish(data), n),
            "floor 1 kB by posix_ipc": each(_by_posix_ipc(f"/{name}", data), n),
        }


@contextlib.contextmanager
def _large_cases(size: int, big: str) -> Iterator[dict[str, Callable[[], float]]]:
    data = secrets.token_bytes(MEGABYTE) * (size // MEGABYTE)
    # retain=0: each publish makes one segment and unlinks one, as the floor does
    with store(codec=shmcow.Raw(), initial=data, retain=0) as (writer, _):
        yield {
            f"publish {big}": each(lambda: writer.publish(data), 1),
            f"floor {big}": each(_by_hand(f"{SHM}/{fresh_name()}", data), 1),
        }


# ---- the first get after a publish ----


def _timed_get(reader: shmcow.Reader[Config]) -> int:
    begin = time.perf_counter_ns()
    reader.get()
    return time.perf_counter_ns() - begin


def _serve_gets(name: str, connection: Connection) -> None:
    """Run in a process of its own: time one get() for each message that comes."""
    reader = shmcow.Reader(name, type=Config)
    with contextlib.suppress(EOFError), connection:
        while True:
            connection.recv_bytes()
            connection.send_bytes(str(_timed_get(reader)).encode())


@contextlib.contextmanager
def _reader_process(name: str) -> Iterator[Callable[[], int]]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve_gets, args=(name, there))
    process.start()
    there.close()

    def ask() -> int:
        here.send_bytes(b"get")
        if not here.poll(WATCHDOG):
            raise TimeoutError(f"the reader process did not answer within {WATCHDOG} s")
        return int(here.recv_bytes())

    try:
        yield ask
    finally:
        here.close()
        process.join(WATCHDOG)
        if process.is_alive():
            process.kill()
            process.join()


@contextlib.contextmanager
def _first_get_cases(plan: Plan) -> Iterator[dict[str, Callable[[], float]]]:
    n = plan.pick(200, 3)
    config = make_config(1000)
    data = msgspec.msgpack.encode(config)
    decode = msgspec.msgpack.Decoder(Config).decode
    path = f"{SHM}/{fresh_name()}"

    def by_hand() -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with mmap.mmap(fd, len(data), access=mmap.ACCESS_READ) as view:
            os.close(fd)
            decode(view)

    with (
        store(type=Config, initial=config) as (writer, name),
        shmcow.Reader(name, type=Config) as reader,
        _reader_process(name) as ask,
        file(path, data),
    ):

        def here() -> int:
            writer.publish(config)
            return _timed_get(reader)

        def there() -> int:
            writer.publish(config)
            return ask()

        yield {
            "first get(), same process": timed(here, n),
            "first get(), other process": timed(there, n),
            "open, map, decode by hand": each(by_hand, n),
        }
