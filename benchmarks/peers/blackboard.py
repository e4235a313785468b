"""iceoryx2's blackboard: one writer, many readers, values of a fixed size, no lock."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.children import Child
from benchmarks.peers.base import Peer, Read, Write
from benchmarks.scene import SHM

LENGTH = 8


class Blackboard(Peer):
    """A struct of a length and bytes under one key; each read copies and decodes, as in its example.

    The service lives as long as a node of it: one process keeps it.
    """

    title = "iceoryx2 blackboard"
    package = "iceoryx2"
    module = "iceoryx2"

    def __init__(self, kind: type, first: Any) -> None:
        super().__init__(kind, first)
        fields = [("size", ctypes.c_uint64), ("data", ctypes.c_uint8 * self.size)]
        self.type = type("Record", (ctypes.Structure,), {"_fields_": fields})
        self.key = ctypes.c_uint64(1)
        self.kept: list[Any] = []

    def node(self) -> Any:
        """Make a node, in the process that uses it."""
        iox2 = importlib.import_module("iceoryx2")
        iox2.set_log_level(iox2.LogLevel.Fatal)
        config = iox2.config.default()
        config.global_cfg.root_path = iox2.Path.new(f"{SHM}/{self.name}/")
        config.global_cfg.prefix = iox2.FileName.new(f"{self.name}_")  # what it leaves can be told from others'
        node = (
            iox2.NodeBuilder.new()
            .config(config)
            .signal_handling_mode(iox2.SignalHandlingMode.Disabled)
            .create(iox2.ServiceType.Ipc)
        )
        self.kept.append(node)
        return node

    def service(self, node: Any) -> Any:
        """Open the blackboard."""
        iox2 = importlib.import_module("iceoryx2")
        name = iox2.ServiceName.new(self.name)
        service = node.service_builder(name).blackboard_opener(ctypes.c_uint64).open()
        self.kept.append(service)
        return service

    def _record(self, value: Any) -> Any:
        data = self.encode(value)
        return self.type.from_buffer_copy(len(data).to_bytes(LENGTH, "little") + data.ljust(self._room(), b"\0"))

    def _room(self) -> int:
        return ctypes.sizeof(self.type) - LENGTH

    def start(self) -> None:
        self.keeper = Child(lambda: {"make": self._make, "remove": self._remove})
        self.keeper.ask("make")

    def _make(self) -> None:
        iox2 = importlib.import_module("iceoryx2")
        builder = self.node().service_builder(iox2.ServiceName.new(self.name))
        made = builder.blackboard_creator(ctypes.c_uint64).max_readers(80).max_nodes(80)
        self.kept.append(made.add(self.key, self._record(self.first)).create())

    def _remove(self) -> None:
        while self.kept:
            del self.kept[-1]

    def stop(self) -> None:
        with contextlib.suppress(AttributeError):
            self.keeper.ask("remove")
            self.keeper.stop()
        shutil.rmtree(Path(SHM, self.name), ignore_errors=True)
        for left in Path(SHM).glob(f"{self.name}_*"):
            left.unlink(missing_ok=True)

    def _entry(self) -> Any:
        reader = self.service(self.node()).reader_builder().create()
        entry = reader.entry(self.key, self.type)
        self.kept += [reader, entry]
        return entry

    def reader(self) -> Read:
        entry, decode = self._entry(), self.decode

        def read() -> Any:
            data = entry.get().data
            return decode(data[LENGTH : LENGTH + int.from_bytes(data[:LENGTH], "little")])

        return read

    def writer(self) -> Write:
        writer = self.service(self.node()).writer_builder().create()
        entry = writer.entry(self.key, self.type)
        self.kept += [writer, entry]
        return lambda value: entry.update_with_copy(self._record(value))


class BlackboardKept(Blackboard):
    """The same, but a read copies and decodes only when is_up_to_date() says no."""

    title = "iceoryx2 blackboard, is_up_to_date"

    def reader(self) -> Read:
        entry, decode = self._entry(), self.decode
        current: Callable[[Any], bool] = entry.is_up_to_date
        seen, value = None, None

        def read() -> Any:
            nonlocal seen, value
            if seen is None or not current(seen):
                seen = entry.get()
                data = seen.data
                value = decode(data[LENGTH : LENGTH + int.from_bytes(data[:LENGTH], "little")])
            return value

        return read
