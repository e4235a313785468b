"""One adapter for each peer: the record is stored the way the peer's own documentation recommends."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from peers_adapters import Peer, Read, Shmcow, Write, record
from peers_standard import Manager, SharedMemoryLock


class UltraDictPlain(Peer):
    """Its default, for forked children: an RLock that writes take, reads without it."""

    title = "UltraDict (default: RLock, forked)"
    package = module = "UltraDict"
    in_parent = True
    shared_lock = False

    def __init__(self, name: str, words: int) -> None:
        super().__init__(name, words)
        # "large values: you might need a bigger buffer"; a full dump follows when some 15 records fill it
        self.size = 16 * (8 * words + 100)
        self.batch = 17

    def create(self) -> None:
        from UltraDict import UltraDict

        self.open: Any = UltraDict(
            {"record": record(1, self.words)}, name=self.name, buffer_size=self.size, shared_lock=self.shared_lock
        )

    def writer(self) -> Write:
        return lambda data: self.open.__setitem__("record", data)

    def reader(self) -> Read:
        return lambda: self.open["record"]

    def destroy(self) -> None:
        self.open.unlink()


class UltraDictShared(UltraDictPlain):
    """For independent processes: shared_lock, and `with ultra.lock` around reads and writes."""

    title = "UltraDict (shared_lock, with ultra.lock)"
    in_parent = False
    shared_lock = True

    def _attach(self) -> Any:
        from UltraDict import UltraDict

        self.open = UltraDict(name=self.name, shared_lock=True, auto_unlink=False)
        return self.open

    def writer(self) -> Write:
        ultra = self._attach()

        def write(data: bytes) -> None:
            with ultra.lock:
                ultra["record"] = data

        return write

    def reader(self) -> Read:
        ultra = self._attach()

        def read() -> bytes:
            with ultra.lock:
                return ultra["record"]

        return read

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        with self._attach().lock:
            yield

    def close(self) -> None:
        self.open.close()

    def repair(self) -> None:
        """As documented: `with ultra.lock(timeout=1.5, steal_after_timeout=True)`."""
        ultra = self._attach()
        with ultra.lock(timeout=1.5, steal_after_timeout=True):
            pass


class SharedMemoryDict(Peer):
    """Its lock is one of the module's: it is imported anew for each store, as if all processes were started anew."""

    title = "shared-memory-dict (SHARED_MEMORY_USE_LOCK=1)"
    package = "shared-memory-dict"
    in_parent = True

    def __init__(self, name: str, words: int) -> None:
        super().__init__(name, words)
        os.environ["SHARED_MEMORY_USE_LOCK"] = "1"
        for module in [module for module in sys.modules if module.partition(".")[0] == "shared_memory_dict"]:
            del sys.modules[module]
        self.kind = importlib.import_module("shared_memory_dict").SharedMemoryDict

    def create(self) -> None:
        self.open = self.kind(name=self.name, size=8 * self.words + 1024)
        self.open["record"] = record(1, self.words)

    def writer(self) -> Write:
        return lambda data: self.open.__setitem__("record", data)

    def reader(self) -> Read:
        return lambda: self.open["record"]

    def destroy(self) -> None:
        self.open.shm.close()
        self.open.shm.unlink()


class LMDB(Peer):
    """In /dev/shm, its other settings as they come; a writer clears dead readers' places when it opens."""

    title = "LMDB (py-lmdb, on /dev/shm)"
    clears = True
    package = module = "lmdb"

    @classmethod
    def version(cls) -> str:
        import lmdb

        return f"{super().version()}, LMDB {'.'.join(map(str, lmdb.version()))}"

    def _environment(self) -> Any:
        import lmdb

        self.open = lmdb.open(f"/dev/shm/{self.name}", map_size=2**28)
        return self.open

    def create(self) -> None:
        self.writer()(record(1, self.words))

    def writer(self) -> Write:
        environment = self._environment()
        if self.clears:
            environment.reader_check()

        def write(data: bytes) -> None:
            with environment.begin(write=True) as transaction:
                transaction.put(b"record", data)

        return write

    def reader(self) -> Read:
        environment = self._environment()

        def read() -> bytes:
            with environment.begin() as transaction:
                return bytes(transaction.get(b"record"))

        return read

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        with self._environment().begin() as transaction:
            transaction.get(b"record")
            yield

    def close(self) -> None:
        self.open.close()

    def repair(self) -> None:
        self._environment().reader_check()

    def destroy(self) -> None:
        import shutil

        self.open.close()
        shutil.rmtree(f"/dev/shm/{self.name}")


class LMDBUncleared(LMDB):
    title = "LMDB without reader_check()"
    clears = False


class Iceoryx2(Peer):
    title = "iceoryx2 blackboard"
    package = module = "iceoryx2"

    def _builder(self) -> Any:
        import iceoryx2 as iox2

        iox2.set_log_level(iox2.LogLevel.Fatal)
        config = iox2.config.default()
        config.global_cfg.root_path = iox2.Path.new("/dev/shm/iceoryx2/")
        self.type = type("Record", (ctypes.Structure,), {"_fields_": [("words", ctypes.c_uint64 * self.words)]})
        self.key = ctypes.c_uint64(1)
        node = (
            iox2.NodeBuilder.new()
            .config(config)
            .signal_handling_mode(iox2.SignalHandlingMode.Disabled)
            .create(iox2.ServiceType.Ipc)
        )
        self.kept: list[Any] = [node]
        return node.service_builder(iox2.ServiceName.new(self.name))

    def create(self) -> None:
        builder = self._builder().blackboard_creator(ctypes.c_uint64)
        first = self.type.from_buffer_copy(record(1, self.words))
        self.kept.append(builder.add(self.key, first).create())

    def writer(self) -> Write:
        service = self._builder().blackboard_opener(ctypes.c_uint64).open()
        writer = service.writer_builder().create()
        entry = writer.entry(self.key, self.type)
        self.kept += [service, writer, entry]
        return lambda data: entry.update_with_copy(self.type.from_buffer_copy(data))

    def reader(self) -> Read:
        service = self._builder().blackboard_opener(ctypes.c_uint64).open()
        reader = service.reader_builder().create()
        entry = reader.entry(self.key, self.type)
        self.kept += [service, reader, entry]
        return lambda: entry.get().data

    def repair(self) -> None:
        """Opening a node cleans up after dead ones; here it is asked for once more."""
        self._builder()
        import iceoryx2

        self.kept[0].blocking_cleanup_dead_nodes(iceoryx2.Duration.from_secs(1))
        self.close()

    def close(self) -> None:
        while self.kept:
            kept = self.kept.pop()
            if hasattr(kept, "delete"):
                kept.delete()
            del kept

    destroy = close


PEERS: dict[str, type[Peer]] = {
    "shmcow": Shmcow,
    "lmdb": LMDB,
    "lmdb-uncleared": LMDBUncleared,
    "iceoryx2": Iceoryx2,
    "sharedmemory": SharedMemoryLock,
    "ultradict": UltraDictPlain,
    "ultradict-shared": UltraDictShared,
    "smd": SharedMemoryDict,
    "manager": Manager,
}
