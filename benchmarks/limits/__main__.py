"""Measure how exactly the limits are kept: one JSON line a figure, exit 1 when a goal is missed.

`python -m benchmarks.limits [SCENARIO…]`, on the servers that AMQP_URL and DATABASE_URL name; MINUTES=5 runs
each measurement for so long.
"""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.limits.fleet import fleet
from benchmarks.limits.overhead import overhead
from benchmarks.limits.scenarios import SCENARIOS, Figure
from tests.support.databases import fresh_postgres
from worker.adapters.database.setup import upgrade

SHORT_SECONDS = 30.0
"""One request is 0.3 % of what a quota of 600 a minute lets through: the goals are as near as that."""


def show(database: str, figure: Figure) -> bool:
    """Print a figure as a JSON line; return whether its goal is met."""
    line = {
        "figure": f"{database}_{figure.figure}",
        "value": round(figure.value, 2),
        "unit": figure.unit,
        "goal": figure.goal,
        "ok": figure.ok,
    }
    print(json.dumps(line), flush=True)
    return figure.ok


@asynccontextmanager
async def databases(names: list[str], folder: Path) -> AsyncIterator[dict[str, str]]:
    """Give the URL of an empty database of each kind."""
    found = {"sqlite": f"sqlite:///{folder / 'worker.db'}"}
    async with fresh_postgres() as url:
        found["postgresql"] = url
        yield {name: found[name] for name in names}


async def main() -> int:
    """Run all scenarios, or those named, on both databases."""
    wanted = set(sys.argv[1:])
    minutes = float(os.environ.get("MINUTES") or 0)
    seconds = 60 * minutes or SHORT_SECONDS
    names = (os.environ.get("DATABASES") or "sqlite,postgresql").split(",")
    met = True
    with tempfile.TemporaryDirectory() as place:
        async with databases(names, Path(place)) as urls:
            for name, url in urls.items():
                folder = Path(place) / name
                folder.mkdir()
                met &= await measure(name, url, folder, wanted, seconds)
    return 0 if met else 1


async def measure(name: str, url: str, folder: Path, wanted: set[str], seconds: float) -> bool:
    """Run the scenarios on one database."""
    met = True
    amqp_url = os.environ["AMQP_URL"]
    chosen = [one for one in SCENARIOS if not wanted or one.__name__ in wanted]
    if chosen:
        async with fleet(amqp_url=amqp_url, database_url=url, folder=folder) as workers:
            for scenario in chosen:
                for figure in await scenario(workers, seconds):
                    met &= show(name, figure)
                await workers.purge()
    if name == "postgresql" and (not wanted or "overhead" in wanted):
        await upgrade(url)
        met &= show(name, await overhead(url, 5.0))
    return met


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
