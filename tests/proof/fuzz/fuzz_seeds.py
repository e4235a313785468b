"""Make the seeds of the fuzz targets from real stores: ``python tests/proof/fuzz/fuzz_seeds.py``.

The layout is that of csrc/shmcow_layout.h; the inputs are laid out as each target says at its head. To be run again
after a change of the ABI: the test of the seeds says so.
"""

from __future__ import annotations

import os
import secrets
import struct
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))

import shmcow  # noqa: E402

SHM = Path("/dev/shm")
IDENTITY, WORDS, ENTRIES, ENTRY = 192, 512, 1024, 1536
SEGMENTS, EPOCH = 1144, slice(32, 48)

ADDRESSES = {
    "dotted": "192.0.2.255",
    "full": "2001:db8:0:1:2:3:4:5",
    "gap": "fe80::1%eth0",
    "mapped": "::ffff:192.0.2.1",
    "network4": "10.0.0.0/8",
    "network6": "2001:db8::/32",
    "any": "::",
}


def from_store(name: str) -> dict[str, dict[str, bytes]]:
    """Return the seeds that one store gives: target -> name -> bytes."""
    header = (SHM / f"shmcow.{name}").read_bytes()
    seeds: dict[str, dict[str, bytes]] = {"identity": {}, "entry": {}, "footer": {}, "header": {}}
    seeds["identity"]["store"] = struct.pack("<Q", len(header)) + header[:IDENTITY]
    epoch = header[EPOCH]
    records = b""
    for index in range(64):
        (word,) = struct.unpack_from("<Q", header, WORDS + 8 * index)
        if word & 0xFFFF == 0:
            continue
        entry = header[ENTRIES + ENTRY * index : ENTRIES + ENTRY * (index + 1)]
        version, said = word >> 16, struct.unpack_from("<Q", entry)[0]
        seeds["entry"][f"version{version}"] = struct.pack("<Q", version) + entry
        segment = entry[SEGMENTS : SEGMENTS + 24]
        number, length = struct.unpack_from("<QQ", segment)
        file = (SHM / f"shmcow.{name}.{epoch.hex()}.{number}").read_bytes()
        seeds["footer"][f"segment{number}"] = segment + epoch + file
        records += _record(index, word & 0xFFFF, version, said, number, length)
    (current, next_segment) = (struct.unpack_from("<Q", header, at)[0] for at in (256, 208))
    retain, limit = struct.unpack_from("<QQ", header, 192)
    count = len(records) // 88
    for action in range(8):
        control = struct.pack("<5Q8B2I", current, 1, next_segment, limit, retain, action, count, 0, 0, 0, 0, 0, 0, 1, 0)
        seeds["header"][f"action{action}"] = control + records
    seeds["table"] = _tables()
    seeds["address"] = {name: text.encode() for name, text in ADDRESSES.items()}
    seeds["iptable"] = _ranges()
    return seeds


def _tables() -> dict[str, bytes]:
    """Return tables of each kind of keys, and rows to build one of."""
    rows: dict[type, dict[Any, Any]] = {
        str: {"": 1, "ab": "zwei", "abc": [3], "a" * 40: 1},
        bytes: {b"a": None, b"longer than eight": 2.5, b"ab": "x" * 40},
        int: {1: "one", 2**64 - 1: True, -5: "one"},
    }
    seeds = {"rows": b"\xff" * 16 + b"".join(b"%c%s\x01%c" % (k, bytes(range(k)), k) for k in range(20))}
    for kind, content in rows.items():
        (part,) = shmcow.Table(key=kind).encode_parts(content)
        seeds[kind.__name__] = bytes(16) + bytes(memoryview(part.buffers[0]))
    return seeds


def _ranges() -> dict[str, bytes]:
    """Return tables of IP ranges of each family, and rows to build one of."""
    rows = {
        "four": [(f"10.{k}.0.0/16", k % 3) for k in range(20)] + [("10.3.4.0/24", "ab"), ("0.0.0.0/0", None)],
        "six": [(f"2001:db8:{k:x}::/48", k % 3) for k in range(20)] + [("2001:db8:1::80-2001:db8:1::90", "cd")],
        "both": [("192.0.2.0/24", 1), ("::/0", 2), ("2001:db8::1", 3)],
    }
    seeds = {"rows": b"\x01" + b"".join(bytes([k % 64, k, k + k % 5, k]) for k in range(40))}
    for kind, content in rows.items():
        (part,) = shmcow.IPTable().encode_parts(content)
        seeds[kind] = b"\0" + bytes(memoryview(part.buffers[0]))
    return seeds


def _record(index: int, state: int, version: int, said: int, segment: int, length: int) -> bytes:
    """Return one generation as target_header.c takes it: sealed."""
    head = struct.pack("<BBHI4Q", index, 1, state, 1, version, said, 0, 0)
    return head + struct.pack("<6Q", segment, length, 0, 0, 0, 0)


def main() -> None:
    """Write all seeds anew."""
    name = f"seeds-{os.getpid()}-{secrets.token_hex(3)}"
    with shmcow.Writer(name, retain=2) as w:
        for version in (1, 2):
            w.publish({"version": version}, message="seed")
        for target, files in from_store(name).items():
            folder = HERE / "seeds" / target
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.iterdir():
                old.unlink()
            for file, data in files.items():
                (folder / file).write_bytes(data)
        w.destroy()


if __name__ == "__main__":
    main()
