"""Country and currency reference data, read from CSV: one copy for all workers, which convert amounts with it.

Problem: every worker needs the countries, the currencies and today's rates. Loaded by each of them they cost memory
and start-up time again and again, and a restart to change them.
Run it: python examples/reference_data.py
It prints: what 100 euros are in four countries, as two worker processes compute it, before and after new rates.
"""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
from collections.abc import Iterator
from decimal import Decimal

import msgspec

import shmcow
from shmcow import Bundle, Reader, Table, Writer

STORE = f"example-reference-{os.getpid()}"
COUNTRIES = "code,name,currency\nDE,Germany,EUR\nJP,Japan,JPY\nKW,Kuwait,KWD\nCH,Switzerland,CHF\n"
RATES = {"EUR": Decimal(1), "JPY": Decimal("160.5"), "KWD": Decimal("0.3311"), "CHF": Decimal("0.95")}
CURRENCIES = "code,name,digits\nEUR,euro,2\nJPY,yen,0\nKWD,dinar,3\nCHF,franc,2\n"


class Country(msgspec.Struct, frozen=True):
    name: str
    currency: str


class Currency(msgspec.Struct, frozen=True):
    name: str
    digits: int


PARTS = Bundle(
    countries=Table(key=str, value=Country),
    currencies=Table(key=str, value=Currency),
    rates=Table(key=str, value=Decimal),  # changes daily: a part of its own, so that the rest need not be written again
)
reference = Reader(STORE, codec=PARTS)


def rows(text: str) -> Iterator[dict[str, str]]:
    """Read CSV row by row; a file of any size is never in memory as a whole."""
    return csv.DictReader(io.StringIO(text))


def convert(task: tuple[str, Decimal]) -> str:
    """Say what so many euros are in a country, rounded as its currency is."""
    code, euros = task
    now = reference.get()
    country = now.countries[code]
    currency = now.currencies[country.currency]
    amount = round(euros * now.rates[country.currency], currency.digits)
    return f"{country.name}: {amount} {currency.name}"


def main() -> None:
    """Publish the tables, convert with them, publish new rates, convert again."""
    context = multiprocessing.get_context("fork")
    tables = {
        "countries": ((row["code"], Country(row["name"], row["currency"])) for row in rows(COUNTRIES)),
        "currencies": ((row["code"], Currency(row["name"], int(row["digits"]))) for row in rows(CURRENCIES)),
        "rates": RATES,
    }
    tasks = [(code, Decimal(100)) for code in ("DE", "JP", "KW", "CH")]
    with context.Pool(2) as pool, Writer(STORE, codec=PARTS) as writer:
        tomorrow = {"rates": RATES | {"JPY": Decimal("161.25")}}
        for publish, parts in ((writer.publish, tables), (writer.publish_parts, tomorrow)):
            version = publish(parts)
            lines = pool.map(convert, tasks)
            assert len(lines) == len(tasks)
            print(f"version {version}: {'; '.join(lines)}")
    shmcow.destroy(STORE)


if __name__ == "__main__":
    main()
