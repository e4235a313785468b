"""A reader-writer lock in shared memory: the design that copy-on-write replaces, in its best form."""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Callable
from typing import Any

from benchmarks.peers.base import Peer, Read, Write

LOCK_BYTES = 256  # a pthread_rwlock_t has 56 on x86-64; in a cache line of its own
VERSION = struct.Struct("=QQ")
PROCESS_SHARED = 1
PREFER_WRITER_NONRECURSIVE = 2  # else a stream of readers starves the writer


class RWLock(Peer):
    """A process-shared pthread_rwlock_t, a version and the bytes in an anonymous mapping that children inherit.

    A read takes the lock, compares the version, and decodes only if it changed. Called through ctypes, without giving
    up the GIL, which makes each call, of lock and of unlock, some 100 ns dearer than in C.
    """

    title = "rwlock (pthread), decoded once a version"

    def start(self) -> None:
        self.memory = mmap.mmap(-1, LOCK_BYTES + VERSION.size + self.size + 64)
        self.libc = ctypes.PyDLL(None, use_errno=True)
        attributes = ctypes.create_string_buffer(64)
        self.at = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(self.memory)))
        for result in (
            self.libc.pthread_rwlockattr_init(attributes),
            self.libc.pthread_rwlockattr_setpshared(attributes, PROCESS_SHARED),
            self.libc.pthread_rwlockattr_setkind_np(attributes, PREFER_WRITER_NONRECURSIVE),
            self.libc.pthread_rwlock_init(self.at, attributes),
        ):
            if result:
                raise OSError(result, "no reader-writer lock that processes share")
        self.writer()(self.first)

    def reader(self) -> Read:
        lock, unlock, at = self.libc.pthread_rwlock_rdlock, self.libc.pthread_rwlock_unlock, self.at
        memory, decode, unpack = self.memory, self.decode, VERSION.unpack_from
        begin = LOCK_BYTES + VERSION.size
        seen, value = -1, None

        def read() -> Any:
            nonlocal seen, value
            lock(at)
            version, size = unpack(memory, LOCK_BYTES)
            data = None if version == seen else memory[begin : begin + size]
            unlock(at)
            if data is not None:
                seen, value = version, decode(data)
            return value

        return read

    def writer(self) -> Write:
        memory, encode, begin = self.memory, self.encode, LOCK_BYTES + VERSION.size

        def write(value: Any) -> None:
            data = encode(value)
            self.libc.pthread_rwlock_wrlock(self.at)
            version, _ = VERSION.unpack_from(memory, LOCK_BYTES)
            VERSION.pack_into(memory, LOCK_BYTES, version + 1, len(data))
            memory[begin : begin + len(data)] = data
            self.libc.pthread_rwlock_unlock(self.at)

        return write

    def hold(self, inside: Callable[[], None]) -> bool:
        self.libc.pthread_rwlock_wrlock(self.at)
        inside()
        self.libc.pthread_rwlock_unlock(self.at)
        return True
