"""Binary relations on a few dozen events: row `a` has bit `b` set when a is related to b."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Relation = list[int]


def bits(row: int) -> Iterator[int]:
    while row:
        low = row & -row
        yield low.bit_length() - 1
        row ^= low


def of(size: int, pairs: Iterable[tuple[int, int]]) -> Relation:
    rows = [0] * size
    for a, b in pairs:
        rows[a] |= 1 << b
    return rows


def identity(size: int, members: Iterable[int]) -> Relation:
    return of(size, ((a, a) for a in members))


def union(*relations: Relation) -> Relation:
    rows = list(relations[0])
    for relation in relations[1:]:
        for a, row in enumerate(relation):
            rows[a] |= row
    return rows


def then(first: Relation, second: Relation) -> Relation:
    rows = []
    for row in first:
        out = 0
        for b in bits(row):
            out |= second[b]
        rows.append(out)
    return rows


def maybe(relation: Relation) -> Relation:
    """The relation, and each event with itself."""
    return [row | 1 << a for a, row in enumerate(relation)]


def closure(relation: Relation) -> Relation:
    rows = list(relation)
    for k in range(len(rows)):
        through, bit = rows[k], 1 << k
        for a in range(len(rows)):
            if rows[a] & bit:
                rows[a] |= through
    return rows


def is_irreflexive(relation: Relation) -> bool:
    return not any(row >> a & 1 for a, row in enumerate(relation))


def is_acyclic(relation: Relation) -> bool:
    return is_irreflexive(closure(relation))
