"""What a job costs, beside its peers.

A JSON line a figure on stdout, a table on stderr, exit code 1 where a goal is missed:
`python -m benchmarks.cpu [--figure NAME…] [--quick | --long]`, below `dev.servers run --rabbitmq --postgres`.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.cpu.bench import QUICK, Bench, Scale, benching
from benchmarks.cpu.contender import IN_FLIGHT
from benchmarks.cpu.figures import Figure, Report
from benchmarks.cpu.machine import describe
from benchmarks.cpu.measurements import MEASUREMENTS
from benchmarks.cpu.probe import probe


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--figure", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    parser.add_argument("--quick", action="store_true", help="little of everything: does it work?")
    parser.add_argument("--long", action="store_true", help="all cells, 100,000 jobs, a backlog of a million")
    parser.add_argument("--peers", type=Path, default=Path(".venv-peers"), help="the peers' environment")
    looking = parser.add_argument_group("a look at one contender, instead of the figures")
    looking.add_argument("--only", help="ours, floor, peers, or the name of a peer")
    looking.add_argument("--databases", default="sqlite,postgresql")
    looking.add_argument("--messages", default="2,20", help="sizes of the request")
    looking.add_argument("--limits", default="0,1", help="0: none set; 1: set, too high to hold back")
    looking.add_argument("--jobs", type=int, default=1500)
    looking.add_argument("--times", type=int, default=3)
    looking.add_argument("--latency", type=float, default=0.0, help="of the upstream, in seconds")
    looking.add_argument("--in-flight", type=int, default=IN_FLIGHT)
    return parser.parse_args()


async def measure(name: str, bench: Bench, report: Report) -> None:
    """Take a measurement; one that breaks is a missed goal, and does not keep the others from being taken."""
    print(f"{name} …", file=sys.stderr, flush=True)
    try:
        report.add(await MEASUREMENTS[name](bench))
    except Exception as error:  # noqa: BLE001 (whatever it was, it is told)
        note = f"{type(error).__name__}: {error}"
        report.add([Figure(figure=f"{name}_broke", value=1, unit="", goal="<= 0", note=note[-500:])])


async def main() -> int:
    """Measure."""
    chosen = options()
    scale = QUICK if chosen.quick else Scale(long=chosen.long)
    if chosen.only:
        scale = Scale(times=chosen.times, jobs=chosen.jobs)
    report = Report()
    with tempfile.TemporaryDirectory() as place:
        async with benching(
            scale, amqp_url=os.environ["AMQP_URL"], environment=chosen.peers.absolute(), folder=Path(place)
        ) as bench:
            if chosen.only:
                await probe(bench, chosen)
                return 0
            for name in MEASUREMENTS:
                if name in chosen.figure:
                    await measure(name, bench, report)
    report.table(describe())
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
