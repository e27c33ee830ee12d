"""What a run has cost and what it has kept, a JSON line each."""

import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.soak.load import CONCURRENCY, PROMPT, Soak
from tests.support.invariants import Allowance, Evidence, check
from tests.support.rows import rows

WARM_UP = 0.25
"""Share of the time after which memory and files are first measured."""
MORE_RSS_MB = 24.0
MORE_FILES = CONCURRENCY + 8
"""Connections to OpenAI that are kept open: as many as there may be calls, and a few for its servers."""
DOUBLED = (
    "SELECT job_id FROM usage_ledger WHERE entry <> 'correction'"
    " GROUP BY tenant, job_id, attempt_no HAVING count(*) > 1"
)


def size_of(pid: int) -> tuple[float, int]:
    """Return a process's resident memory in MB, and its open files."""
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    return int(kilobytes) / 1024, len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def measure(soak: Soak, seconds: float) -> None:
    """Measure the worker that is never killed, once it is warm and at the end."""
    await asyncio.sleep(seconds * WARM_UP)
    soak.measured.append(size_of(soak.workers[0].pid))
    await asyncio.sleep(max(0, soak.ends - time.monotonic()))
    soak.measured.append(size_of(soak.workers[0].pid))


def figure(name: str, value: object, unit: str, goal: object = None, *, ok: bool = True) -> bool:
    """Print one."""
    print(json.dumps({"figure": name, "value": value, "unit": unit, "goal": goal, "ok": ok}), flush=True)
    return ok


def none(name: str, count: int, unit: str) -> bool:
    """Print one that must be zero."""
    return figure(name, count, unit, 0, ok=count == 0)


async def report(soak: Soak) -> bool:
    """Print the figures; False where a goal is missed."""
    url, kind = soak.database_url, soak.kind
    (waiting,) = await rows(url, "SELECT count(*) AS n FROM jobs WHERE status IN ('waiting', 'running')")
    known = {row["job_id"] for row in await rows(url, "SELECT job_id FROM jobs")}
    unseen = sum(key.job_id not in known for key in soak.sent)
    states = Counter(row["state"] for row in await rows(url, "SELECT state FROM attempts"))
    failed = await rows(url, "SELECT job_id FROM jobs WHERE status <> 'succeeded'")
    missing = soak.unanswered
    goals = [
        figure(f"{kind}: jobs", len(soak.sent), "jobs"),
        figure(f"{kind}: calls", len(soak.upstream.requests), "requests"),
        figure(f"{kind}: faults", sum(soak.faults.values()), "faults"),
        *(figure(f"{kind}: faults: {name}", count, "faults") for name, count in sorted(soak.faults.items())),
        none(f"{kind}: lost", waiting["n"] + unseen, "jobs"),
        none(f"{kind}: duplicate ledger rows", len(await rows(url, DOUBLED)), "rows"),
        none(f"{kind}: replies missing", missing, "jobs"),
        figure(f"{kind}: replies received more than once", len(soak.replies) - len(soak.answered), "replies"),
        figure(f"{kind}: jobs that failed", len(failed), "jobs"),
        figure(f"{kind}: unknown attempts", states["unknown"], "attempts"),
        flat(soak),
        await invariants_hold(soak),
    ]
    return all(goals)


def flat(soak: Soak) -> bool:
    """Print memory and open files."""
    (first_rss, first_files), (last_rss, last_files) = soak.measured
    figure(f"{soak.kind}: rss start", round(first_rss, 1), "MB")
    figure(f"{soak.kind}: open files start", first_files, "files")
    small = last_rss <= first_rss + MORE_RSS_MB
    few = last_files <= first_files + MORE_FILES
    figure(f"{soak.kind}: rss end", round(last_rss, 1), "MB", f"<= start + {MORE_RSS_MB}", ok=small)
    figure(f"{soak.kind}: open files end", last_files, "files", f"<= start + {MORE_FILES}", ok=few)
    return small and few


async def invariants_hold(soak: Soak) -> bool:
    """Check what the fault tests check, with room for what the faults cost."""
    evidence = Evidence(
        sent=soak.sent,
        replies=soak.replies,
        requests=soak.upstream.requests,
        dead=await soak.producer.dead() if soak.producer else [],
        logs=soak.logs,
        secrets=[PROMPT, "sk-test-not-a-key", urlsplit(soak.amqp_url).password or "?"],
        amqp_url=soak.amqp_url,
        database_url=soak.database_url,
    )
    many = 10**9
    name = f"{soak.kind}: invariants"
    try:
        await check(evidence, Allowance(extra_calls=many, unsent=many, unknown=many, dead=len(evidence.dead)))
    except AssertionError as error:
        return figure(name, str(error)[:500], "", "hold", ok=False)
    return figure(name, "hold", "", "hold")
