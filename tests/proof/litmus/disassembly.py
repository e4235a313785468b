"""The instructions that a compiler makes of csrc's orders, for two architectures."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
HOME = platform.machine() == "x86_64"


@dataclass(frozen=True)
class Machine:
    name: str
    prefix: str
    flags: tuple[str, ...]
    package: str

    def missing(self) -> str:
        """What to install, or nothing."""
        tools = [self.prefix + "gcc", self.prefix + "objdump"]
        lacking = [tool for tool in tools if shutil.which(tool) is None]
        return f"needs {', '.join(lacking)}: apt-get install {self.package}" if lacking else ""


# Each function must have these instructions, in this order (regular expressions; `...` is any code between).
FULL = r"(?:mfence|lock or)"
XCHG = r"xchg\s+%\w+,(?:0x[0-9a-f]+)?\("
X86 = {
    "flip": (r"lock cmpxchg",),
    "advance": (r"lock cmpxchg",),
    "judge": (r"lock cmpxchg", FULL, r"call\s+\*"),
    "hold_one": (r"call\s+\*", FULL, r"mov"),
    "before_fork": (r"lock (?:add|xadd|inc)",),
    "in_parent": (r"lock (?:add|xadd|inc)",),
    "shmcow_fd_open": (r"lock cmpxchg", XCHG, XCHG),  # the number, and close_own
    "shmcow_ring": (r"lock (?:add|xadd|inc)",),
    "shmcow_fd_take": (r"lock cmpxchg", r"lock cmpxchg"),
}
ACQUIRED = r"lda(?:r|pr)\s"
ARM = {
    "load_current": (ACQUIRED,),
    "load_word": (ACQUIRED,),
    "load_entry": (r"ldr|ldp", r"dmb\s+ish(?:ld)?\b"),
    "store_entry": (r"dmb\s+ish\b", r"st[rp]\s"),
    "end_store": (r"stlr\s",),
    "shmcow_rings": (ACQUIRED,),
    "shmcow_fork_stamp": (r"ldar\s", r"ldar\s"),
    "shmcow_no_fork_since": (r"ldar\s",),
    "shmcow_fd_valid": (ACQUIRED,),
    "shmcow_fd_release": (r"stlr\s", r"stlr\s"),
    "in_child": (ACQUIRED,),
}
SWAP, RELEASING = r"ldaxr\s[^!]*?stlxr\s", r"ldxr\s[^!]*?stlxr\s"
ARM_8_0 = {
    **ARM,
    "flip": (SWAP,),
    "advance": (SWAP,),
    "judge": (SWAP, r"dmb\s+ish\b", r"blr\s"),
    "hold_one": (r"blr\s", r"dmb\s+ish\b", ACQUIRED),
    "before_fork": (SWAP,),
    "in_parent": (SWAP,),
    "shmcow_fd_open": (r"stlr\s",),
    "shmcow_ring": (RELEASING,),
    "shmcow_fd_take": (ACQUIRED, SWAP, RELEASING),
}
ARM_8_1 = {
    **ARM,
    "flip": (r"casal\s",),
    "advance": (r"casal\s",),
    "judge": (r"casal\s", r"dmb\s+ish\b", r"blr\s"),
    "hold_one": (r"blr\s", r"dmb\s+ish\b", ACQUIRED),
    "before_fork": (r"ldaddal\s",),
    "in_parent": (r"ldaddal\s",),
    "shmcow_fd_open": (r"stlr\s",),
    "shmcow_ring": (r"ldadda?l\s",),
    "shmcow_fd_take": (ACQUIRED, r"casal\s", r"casa?l\s"),
}
CROSS = "gcc-aarch64-linux-gnu"
ARM_FLAGS = ("-mno-outline-atomics",)
EXPECTED = {
    Machine("x86-64", "" if HOME else "x86_64-linux-gnu-", (), "gcc binutils" if HOME else "gcc-x86-64-linux-gnu"): X86,
    Machine("aarch64", "aarch64-linux-gnu-", ARM_FLAGS, CROSS): ARM_8_0,
    Machine(
        "aarch64 with large system extensions", "aarch64-linux-gnu-", (*ARM_FLAGS, "-march=armv8.1-a"), CROSS
    ): ARM_8_1,
}


def disassemble(machine: Machine, csrc: Path, work: Path) -> dict[str, str]:
    """Compile the protocol, the descriptors and the ring as setup.py does -> function: its instructions."""
    found: dict[str, str] = {}
    for source in (HERE / "disassembly.c", csrc / "shmcow_os.c", csrc / "shmcow_sleep.c"):
        made = work / (source.stem + ".o")
        subprocess.run(
            [machine.prefix + "gcc", *machine.flags, "-std=c11", "-D_GNU_SOURCE", "-O2", "-fPIC",
             f"-I{csrc}", "-c", source, "-o", made],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        listing = subprocess.run(
            [machine.prefix + "objdump", "-d", "--no-show-raw-insn", made], check=True, capture_output=True, text=True
        ).stdout
        for match in re.finditer(r"^[0-9a-f]+ <(\w+)>:\n((?:.+\n)*)", listing, re.MULTILINE):
            found[match[1]] = match[2]
    return found


def lacking(code: dict[str, str], expected: dict[str, tuple[str, ...]]) -> list[str]:
    """The functions that lack an instruction, or have it in another place."""
    return [
        name
        for name, wanted in expected.items()
        # a wrapper may be nothing but a jump to what it wraps
        if not re.search(
            "(?s)" + ".*?".join(f"(?:{each})" for each in wanted), code.get(name, "") + code.get(f"shmcow_{name}", "")
        )
    ]
