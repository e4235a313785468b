"""The harness that peers are held to (see peers.md), with shmcow itself, and with toys that it must catch."""

from __future__ import annotations

import random
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).with_name("peers")))

import peers_harness as harness
from peers_adapters import LockedToy, OldToy, Shmcow, Toy
from peers_kills import Kills
from peers_kills import arena as make_arena

WORDS = 8192  # 64 KiB


def test_stress_finds_nothing_in_shmcow(name: str) -> None:
    """Readers beside a writer at full speed see whole records that only get newer."""
    found = harness.stress(Shmcow, WORDS, name, seconds=0.8)
    print(found)
    assert (found.torn, found.back, found.raised, found.hung, found.died) == (0, 0, 0, 0, 0), found
    assert found.writes > 3
    assert found.reads > 20


def test_stress_catches_a_peer_that_tears(name: str) -> None:
    """A record that is written word by word under its readers is seen torn."""
    found = harness.stress(Toy, WORDS, name, seconds=0.5)
    print(found)
    assert found.torn > 0


def test_stress_catches_a_peer_that_goes_back(name: str) -> None:
    """A reader that now and then gets an older record is seen to."""
    found = harness.stress(OldToy, 8, name, seconds=0.3)
    print(found)
    assert found.back > 0


def test_kills_do_nothing_to_shmcow(name: str) -> None:
    """After the death of a writer or of a reader others read the old or the new record, and write the next."""
    chance = random.Random(1)
    for kill in ("random_writer", "random_reader", "holding_reader"):
        found = Kills()
        with make_arena(Shmcow, WORDS, name, confirm=30, watchdog=30) as arena:
            for _ in range(3):
                if kill == "holding_reader":
                    arena.holding_reader(found, writes=40)
                else:
                    getattr(arena, kill)(found, chance, spread=0.01)
        print(kill, found.text())
        assert found.attached == {"whole": 3}
        assert found.write == {"ok": 3}
        assert found.read == {"ok": 6}
        assert (found.names, found.bytes) == (0, 0)


def test_kills_catch_a_peer_that_tears(name: str) -> None:
    """A writer that dies between two words leaves a torn record, and that is said."""
    found = Kills()
    with make_arena(Toy, WORDS, name) as arena:
        for _ in range(4):
            arena.random_writer(found, random.Random(1), 0.003)
    print(found.text())
    assert found.attached["torn"] > 0


def test_kills_catch_a_peer_that_blocks(name: str) -> None:
    """A lock that outlives its holder blocks the next writer and the next reader, and that is said."""
    found = Kills()
    with make_arena(LockedToy, 8, name, watchdog=0.3, confirm=1) as arena:
        arena.holding_reader(found, 1)
    print(found.text())
    assert found.attached == {"hangs": 1}
    assert found.write == {"hangs": 1}
    assert found.names == 1, "the lock file that was left behind"
