"""The layout in shared memory, pinned: an edit of csrc/shmcow_layout.h that moves anything must bump SHMCOW_ABI.

If this fails because the ABI was bumped on purpose: run this file as a program, and commit abi_<number>.txt.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import pytest

from shmcow import Writer, _core
from shmcow.store import COUNTERS, STATES

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
LAYOUT = CSRC / "shmcow_layout.h"


def without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*", "", re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL))


def structs(text: str) -> dict[str, list[str]]:
    """The fields of each struct, as declared."""
    found = {}
    for body, name in re.findall(r"typedef struct \{(.*?)\}\s*(\w+);", text, flags=re.DOTALL):
        fields = []
        for declaration in body.split(";"):
            names = re.sub(r"\[[^\]]*\]", "", declaration).strip()
            if names:
                fields.append(re.split(r"\s+", names)[-1])
        found[name] = fields
    return found


def constants(text: str) -> list[str]:
    return re.findall(r"^#define (SHMCOW_\w+) ", text, flags=re.MULTILINE)


def enumerators(text: str) -> list[str]:
    found = []
    for body in re.findall(r"enum \w+ \{(.*?)\}", text, flags=re.DOTALL):
        found += [item.split("=")[0].strip() for item in body.split(",") if item.strip()]
    return found


def program(text: str) -> str:
    """A C program that prints every constant, and every field's offset and size."""
    lines = ["#include <stdio.h>", '#include "shmcow_layout.h"', "int main(void) {"]
    for name in constants(text):
        value = re.search(rf"#define {name} (.*)", text)
        assert value is not None
        if value[1].startswith('"'):
            lines.append(
                f'printf("{name} = "); for (size_t k = 0; k < sizeof({name}) - 1; k++) printf("%02x", {name}[k]);'
            )
            lines.append('printf("\\n");')
        else:
            lines.append(f'printf("{name} = %llu\\n", (unsigned long long)({name}));')
    lines += [f'printf("{name} = %d\\n", (int){name});' for name in enumerators(text)]
    for name, fields in structs(text).items():
        lines.append(f'printf("{name}: %zu bytes\\n", sizeof({name}));')
        lines += [
            f'printf("  {name}.{field} at %zu, %zu bytes\\n", offsetof({name}, {field}), sizeof((({name} *)0)->{field}));'  # noqa: E501
            for field in fields
        ]
    return "\n".join([*lines, "return 0; }"])


def dump() -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler: install gcc")
    text = without_comments(LAYOUT.read_text())
    text = text.replace("#define SHMCOW_LAYOUT_H\n", "\n")
    with tempfile.TemporaryDirectory() as directory:
        source, binary = Path(directory, "dump.c"), Path(directory, "dump")
        source.write_text(program("\n".join(line.rstrip() for line in text.splitlines() if "SHMCOW_AT" not in line)))
        subprocess.run([compiler, "-std=c11", "-I", str(CSRC), str(source), "-o", str(binary)], check=True)
        return subprocess.run([binary], check=True, capture_output=True, text=True).stdout


def test_layout_is_that_of_its_abi_number() -> None:
    """Every constant, offset and size is the committed one: whoever moves something bumps SHMCOW_ABI."""
    golden = HERE / f"abi_{_core.ABI}.txt"
    assert golden.exists(), f"a new ABI: run `python {Path(__file__).name}` and commit {golden.name}"
    assert dump() == golden.read_text(), "the layout changed: bump SHMCOW_ABI in csrc/shmcow_layout.h"


def test_every_field_is_pinned() -> None:
    """The dump leaves no struct and no field out."""
    found = structs(without_comments(LAYOUT.read_text()))
    assert set(found) == {
        "shmcow_segment",
        "shmcow_entry",
        "shmcow_identity",
        "shmcow_header",
        "shmcow_footer",
        "shmcow_feed",
    }
    asserted = re.findall(r"SHMCOW_AT\((\w+), (\w+), \d", LAYOUT.read_text())
    assert sorted(asserted) == sorted((name, field) for name, fields in found.items() for field in fields)


def test_module_agrees_with_the_header() -> None:
    """The constants that Python sees, and the names it gives to states and counters, are those of C."""
    golden = (HERE / f"abi_{_core.ABI}.txt").read_text()
    values = dict(re.findall(r"^(SHMCOW_\w+) = (\w+)$", golden, flags=re.MULTILINE))
    for name in ("ABI", "GENERATIONS", "MAX_SEGMENTS", "NAME_BYTES", "CODEC_BYTES", "VERSION_MAX", "DESTROYED"):
        assert getattr(_core, name) == int(values[f"SHMCOW_{name}"]), name
    for name in ("WRITER_AT", "FEED_AT", "HELD_AT", "SEEN_AT", "HAS_CRC", "IS_TYPED"):
        assert getattr(_core, name) == int(values[f"SHMCOW_{name}"]), name
    sizes = dict(re.findall(r"^shmcow_(\w+): (\d+) bytes$", golden, flags=re.MULTILINE))
    assert tuple(int(sizes[name]) for name in ("header", "entry", "footer")) == (
        _core.HEADER_BYTES,
        _core.ENTRY_BYTES,
        _core.FOOTER_BYTES,
    )
    for i, state in enumerate(STATES):
        assert values[f"SHMCOW_{state.upper()}"] == str(i)
    for i, counter in enumerate(COUNTERS):
        assert values[f"SHMCOW_COUNT_{counter.upper()}"] == str(i)
    assert values["SHMCOW_COUNTERS"] == str(len(COUNTERS))


def test_bytes_of_a_store_are_where_the_layout_says(name: str) -> None:
    """A store written by this build, read with nothing but the documented offsets."""
    with Writer(name, initial="hello", retain=3, max_total_bytes=1 << 20) as w:
        w.publish("world", message="why", author="me", source="here")
        epoch = bytes.fromhex(w.snapshot().epoch)
    header = Path(f"/dev/shm/shmcow.{name}").read_bytes()
    assert len(header) == 100_416
    assert header[:8] == b"shmcow\r\n"
    assert struct.unpack_from("<6I", header, 8) == (0x01020304, 2, 100_416, 1536, 64, 16)
    assert header[32:48] == epoch
    assert struct.unpack_from("<II", header, 56) == (0o600, len(name))
    assert header[64 : 64 + len(name)] == name.encode()
    assert struct.unpack_from("<I", header, 188)[0] == zlib.crc32(header[:188])
    assert struct.unpack_from("<3Q", header, 192) == (3, 1 << 20, 2)
    current = struct.unpack_from("<Q", header, 256)[0]
    place, version = current >> 48, current & ((1 << 48) - 1)
    assert version == 2
    assert struct.unpack_from("<Q", header, 512 + 8 * place)[0] == 2 << 16 | 3
    entry = header[1024 + 1536 * place :][:1536]
    assert struct.unpack_from("<Q", entry, 0)[0] == 2
    assert entry[64:72] == b"msgpack\0"
    assert (entry[96:99], entry[248:253], entry[376:380]) == (b"me\0", b"here\0", b"why\0")
    segment, length, crc, flags = struct.unpack_from("<QQII", entry, 1144)
    assert (length, flags) == (6, 1)
    assert struct.unpack_from("<I", entry, 1532)[0] == zlib.crc32(entry[:1532])
    data = Path(f"/dev/shm/shmcow.{name}.{epoch.hex()}.{segment}").read_bytes()
    assert len(data) == 64 + 128
    assert (data[:6], data[6:64]) == (b"\xa5world", bytes(58))
    assert zlib.crc32(data[:6]) == crc
    footer = data[64:]
    assert footer[:8] == b"cowtail\n"
    assert footer[8:24] == epoch
    assert struct.unpack_from("<QQII", footer, 24) == (segment, length, crc, flags)
    assert footer[48:56] == b"msgpack\0"
    assert struct.unpack_from("<I", footer, 80)[0] == 2
    assert struct.unpack_from("<I", footer, 124)[0] == zlib.crc32(footer[:124])


if __name__ == "__main__":
    (HERE / f"abi_{_core.ABI}.txt").write_text(dump())
    sys.exit(0)
