"""What mypy and pyright must say about the public face. Never run: tests/unit/test_typing.py checks it with both.

An error that must be reported carries an ignore comment; that each of them is needed is checked too.
"""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Address, IPv6Address
from typing import Any, assert_type

import msgspec

from shmcow import (
    JSON,
    IPTable,
    MsgPack,
    Raw,
    Reader,
    Snapshot,
    Table,
    TableView,
    Writer,
    describe,
    list_stores,
    wait_readers,
)


class Config(msgspec.Struct, frozen=True):
    timeout: float = 1.0


class Router:
    def __init__(self, config: Config) -> None:
        self.config = config


def read() -> None:
    typed = Reader("x", type=Config)
    assert_type(typed, Reader[Config])
    assert_type(typed.get(), Config)
    assert_type(typed.snapshot(), Snapshot[Config])
    assert_type(typed.snapshot().value, Config)
    assert_type(typed.snapshot().copy(), Config)
    assert_type(typed.at(5).value, Config)
    assert_type(typed.version, int)
    assert_type(typed.problem, Exception | None)
    with Reader("x", type=Config) as entered, entered.snapshot() as held:
        assert_type(entered.get(), Config)
        assert_type(held.value.timeout, float)
        assert_type(held.data, memoryview)


def read_special_forms() -> None:
    assert_type(Reader("x", type=dict[str, int]).get(), dict[str, int])
    assert_type(Reader("x", type=int | None).get(), int | None)
    assert_type(Reader("x", type=list[Config]).get(), list[Config])


def read_with_a_codec() -> None:
    assert_type(Reader("x", codec=MsgPack(Config)).get(), Config)
    assert_type(Reader("x", codec=JSON(dict[str, int])).get(), dict[str, int])
    raw = Reader("x", codec=Raw()).get()
    bytes(raw)


def read_a_table() -> None:
    table = Table(key=str, value=Config)
    view = Reader("x", codec=table).get()
    assert_type(view, TableView[str, Config])
    assert_type(view["de"], Config)
    assert_type(view.get("de"), Config | None)
    assert_type(view.get("de", 5), Config | int)
    assert_type(view.get_many(["de"]), list[Config | None])
    assert_type(view.longest_prefix("de"), tuple[str, Config] | None)
    assert_type(list(view), list[str])
    assert_type(dict(view.items()), dict[str, Config])
    assert_type(view.to_dict(), dict[str, Config])
    assert_type(Reader("x", codec=Table(key=int, value=int | None)).get(), TableView[int, int | None])
    assert_type(Reader("x", codec=Table(key=int, value=MsgPack(str))).get(), TableView[int, str])
    untyped = Table(key=bytes)
    assert_type(Reader("x", codec=untyped).get()[b"de"], Any)
    with Writer("x", codec=table) as w:
        w.publish({"de": Config()})
        w.update(lambda old: {**old, "fr": Config()})
        w.publish({1: Config()})  # type: ignore[dict-item] # pyright: ignore[reportArgumentType]
    view["de"] = Config()  # type: ignore[index] # pyright: ignore[reportIndexIssue]
    Table(key=str)["x"]  # type: ignore[index] # pyright: ignore[reportIndexIssue]


def read_without_a_type() -> None:
    untyped = Reader("x")
    assert_type(untyped, Reader[Any])
    assert_type(untyped.get(), Any)
    untyped.get()["anything"].goes()


def read_with_a_default() -> None:
    assert_type(Reader("x", type=Config, default=Config()).get(), Config)


def route(config: Config) -> Router:
    return Router(config)


def read_transformed() -> None:
    assert_type(Reader("x", type=Config, transform=route).get(), Router)
    assert_type(Reader("x", transform=len).get(), int)
    assert_type(Reader("x", type=Config, transform=route).snapshot().value, Router)


async def wait() -> None:
    r = Reader("x", type=Config, refresh="background", attach_timeout=1.0)
    snap = r.wait(timeout=1.0)
    assert_type(snap, Snapshot[Config])
    assert_type(await r.wait_async(after=snap), Snapshot[Config])
    for each in r.watch():
        assert_type(each.value, Config)
    async for each in r.watch_async():
        assert_type(each.value, Config)
    stop = r.subscribe(lambda old, new: print(old and old.value.timeout, new.value.timeout))
    assert_type(stop.active, bool)
    with stop:
        stop()
    wait_readers("x", at_least=snap.version, seen=True)
    Writer("x").wait_unused(1, timeout=2)


def wait_wrongly() -> None:
    r = Reader("x", type=Config, refresh="soon")  # type: ignore[call-overload] # pyright: ignore[reportArgumentType, reportCallIssue]
    Reader("x", type=Config).wait(after="5")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    Reader("x", type=Config).subscribe(lambda: None)  # type: ignore[arg-type, misc] # pyright: ignore[reportArgumentType]
    print(r)


def write() -> None:
    w = Writer("x", type=Config, initial=Config())
    assert_type(w, Writer[Config])
    assert_type(w.publish(Config(2.0), message="m"), int)
    assert_type(w.update(lambda old: Config(old.timeout + 1)), int)
    assert_type(w.swap(Config()), Snapshot[Config])
    assert_type(w.snapshot().value, Config)
    assert_type(w.rollback(to=3), int)
    assert_type(w.patch(timeout=2.0), int)
    assert_type(w.reclaim(), int)
    with Writer("x", codec=MsgPack(Config)) as coded:
        assert_type(coded, Writer[Config])
    with Writer("x") as anything:
        assert_type(anything, Writer[Any])
        anything.publish({"any": ["thing"]})


def write_wrongly() -> None:
    w = Writer("x", type=Config)
    w.publish(5)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    w.publish({"timeout": 1.0})  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    w.swap("x")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    w.update(lambda old: old.timeout)  # type: ignore[arg-type, return-value] # pyright: ignore[reportArgumentType, reportReturnType]
    w.publish(Config(), expected="7")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def construct_wrongly() -> None:
    Writer("x", type=Config, codec=MsgPack(Config))  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    Reader("x", type=Config, codec=MsgPack(Config))  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    Reader("x", on_bad="ignore")  # type: ignore[call-overload] # pyright: ignore[reportArgumentType, reportCallIssue]
    Writer("x", "positional")  # type: ignore[call-overload] # pyright: ignore[reportArgumentType, reportCallIssue]


def assign_wrongly() -> None:
    wrong: int = Reader("x", type=Config).get()  # type: ignore[assignment] # pyright: ignore[reportAssignmentType]
    print(wrong)


@dataclasses.dataclass(frozen=True)
class Data:
    reader: Reader[Config]

    def value(self) -> Config:
        return self.reader.get()


def look() -> None:
    assert_type(list_stores(), list[str])
    assert_type(describe("x").version, int)
    assert_type([generation.message for generation in describe("x").generations], list[str])


def look_up() -> None:
    with Writer("x", codec=IPTable(bool)) as w:
        w.publish([("10.0.0.0/8", True), (IPv4Address(1), IPv4Address(9), False)])
        w.publish(IPTable.rows_from_csv("ranges.csv"))
        w.update(lambda old: [*old, ("192.0.2.0/24", True)])
    table = Reader("x", codec=IPTable(Config)).get()
    assert_type(table["192.0.2.1"], Config)
    assert_type(table.get("192.0.2.1"), Config | None)
    assert_type(table.get(IPv4Address(1), 5), Config | int)
    assert_type(table.get_many(["::1", b"1234"]), list[Config | None])
    assert_type(table.network_of("::1"), tuple[IPv4Address | IPv6Address, IPv4Address | IPv6Address])
    assert_type(table.to_dict(), dict[str, Config])
    for _, _, value in table:
        assert_type(value, Config)
