"""Share read-mostly data between processes: versioned snapshots in shared memory.

A ``Writer`` publishes whole versions of a value; ``Reader`` objects in any number of other processes see the newest
one at the cost of one atomic load. See docs/guarantees.md for what is guaranteed, csrc/PROTOCOL.md for why.

PYTEST_DONT_REWRITE (there is a pytest plugin in this distribution, and this package may be imported before pytest)
"""

import importlib
from typing import TYPE_CHECKING, Any

from shmcow import errors, validators
from shmcow.codecs import (
    JSON,
    MMDB,
    Arrays,
    Bundle,
    BundleView,
    Codec,
    IPTable,
    IPTableView,
    MMDBView,
    MsgPack,
    Part,
    Raw,
    StoredPart,
    Table,
    TableView,
)
from shmcow.errors import (
    ClosedError,
    CodecMismatchError,
    CorruptSegmentError,
    DecodeError,
    FollowerBusyError,
    IncompatibleStoreError,
    NotOwnerError,
    NotPublishedError,
    OutOfSharedMemoryError,
    ShmcowError,
    StoreDestroyedError,
    StoreNotFoundError,
    ValidationError,
    VersionConflictError,
    VersionGoneError,
    WaitTimeoutError,
    WriterBusyError,
)
from shmcow.frozen import FrozenDict, FrozenList
from shmcow.gate import wait_readers
from shmcow.reader import Reader
from shmcow.snapshot import Publisher, Snapshot
from shmcow.writer import Writer, destroy

if TYPE_CHECKING:
    from shmcow import inspect as inspect
    from shmcow.reports import describe, list_stores

__version__ = "0.1.0"

__all__ = [
    "JSON",
    "MMDB",
    "Arrays",
    "Bundle",
    "BundleView",
    "ClosedError",
    "Codec",
    "CodecMismatchError",
    "CorruptSegmentError",
    "DecodeError",
    "FollowerBusyError",
    "FrozenDict",
    "FrozenList",
    "IPTable",
    "IPTableView",
    "IncompatibleStoreError",
    "MMDBView",
    "MsgPack",
    "NotOwnerError",
    "NotPublishedError",
    "OutOfSharedMemoryError",
    "Part",
    "Publisher",
    "Raw",
    "Reader",
    "ShmcowError",
    "Snapshot",
    "StoreDestroyedError",
    "StoreNotFoundError",
    "StoredPart",
    "Table",
    "TableView",
    "ValidationError",
    "VersionConflictError",
    "VersionGoneError",
    "WaitTimeoutError",
    "Writer",
    "WriterBusyError",
    "describe",
    "destroy",
    "errors",
    "list_stores",
    "validators",
    "wait_readers",
]


def __getattr__(name: str) -> Any:
    # For tools: a worker that imports this package does not pay for them.
    if name == "inspect":
        return importlib.import_module("shmcow.inspect")
    if name in ("describe", "list_stores"):
        return getattr(importlib.import_module("shmcow.reports"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
