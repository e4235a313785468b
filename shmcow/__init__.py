"""Share read-mostly data between processes: versioned snapshots in shared memory.

A ``Writer`` publishes whole versions of a value; ``Reader`` objects in any number of other processes see the newest
one at the cost of one atomic load. See README.md for what is guaranteed, and csrc/PROTOCOL.md for why.
"""

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
from shmcow.inspect import describe, list_stores
from shmcow.reader import Reader
from shmcow.snapshot import Publisher, Snapshot
from shmcow.writer import Writer, destroy

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
