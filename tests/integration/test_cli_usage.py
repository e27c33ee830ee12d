"""The commands on usage and models: what was spent, and what it costs."""

import csv
import io
import json
from pathlib import Path

from tests.support.broker import Told
from tests.support.command import MODELS, CommandLine
from tests.support.databases import NOON, a_claim, a_finish, a_job, a_ledger_entry, a_record, a_token
from tests.support.upstream import Act, Upstream
from worker.adapters.database.opening import open_database


async def test_usage_report(stored: CommandLine, sqlite_url: str) -> None:
    """The same sums as a table, as JSON and as CSV; days are whole days in UTC, the last included."""
    async with open_database(sqlite_url, observer=Told(), lease_seconds=60) as database:
        for name in ("one", "two"):
            token, job = a_token(), a_job(name)
            await database.store.claim(a_claim(job, token))
            await database.store.finish(a_finish(job, token))
    day = f"{NOON:%Y-%m-%d}"
    (row,) = (await stored("usage", "report", "--from", day, "--to", day, "--json")).json
    assert (row["tenant"], row["requests"], row["cost_usd"]) == ("acme", 2, "0.000240000")
    (line,) = csv.DictReader(io.StringIO((await stored("usage", "report", "--by", "day", "--csv")).out))
    assert (line["day"], line["input_tokens"], line["cost_usd"]) == (day, "160", "0.000240000")
    assert "0.000240000" in (await stored("usage", "report")).out
    assert (await stored("usage", "report", "--from", "2026-11-23", "--json")).json == []
    assert (await stored("usage", "report", "--to", "2026-11-21", "--json")).json == []


async def test_a_report_never_takes_the_unpriced_for_free(stored: CommandLine, sqlite_url: str) -> None:
    """Without any price there is no cost; with some, it is theirs, beside the number of those without."""
    async with open_database(sqlite_url, observer=Told(), lease_seconds=60) as database:
        for name, model, cost in (
            ("a", "own", None),
            ("b", "luna", None),
            ("c", "luna", 5),
            ("d", "free", 0),
        ):
            token, job = a_token(), a_job(name)
            await database.store.claim(a_claim(job, token))
            entry = a_ledger_entry(model=model, cost_nano_usd=cost)
            await database.store.finish(a_finish(job, token, record=a_record(job.key, ledger=entry)))
    found = (await stored("usage", "report", "--by", "model", "--json")).json
    assert [(row["model"], row["cost_usd"], row["unpriced_requests"]) for row in found] == [
        ("free", "0.000000000", 0),
        ("luna", "0.000000005", 1),
        ("own", None, 1),
    ]
    assert [row["cost_nano_usd"] for row in found] == [0, 5, None]
    *_, own = (await stored("usage", "report", "--by", "model")).out.splitlines()
    assert "unpriced" in own.split()
    csv_rows = csv.DictReader(io.StringIO((await stored("usage", "report", "--by", "model", "--csv")).out))
    assert [row["cost_usd"] for row in csv_rows] == ["0.000000000", "0.000000005", ""]


async def test_models(stored: CommandLine, tmp_path: Path) -> None:
    """Models of aliases, limits and prices are listed with prices and announced shutdown dates."""
    (tmp_path / "worker.toml").write_text(
        '[models.aliases]\nold = "gpt-4o"\n[limits."gpt-*"]\nrequests_per_minute = 1\n'
        "[prices.own]\ninput = 0.5\ncached_input = 0.25\ncache_write = 0.5\noutput = 1.50\n"
    )
    async with Upstream() as upstream:
        upstream.script(Act(body=json.dumps(MODELS)))
        listed = (await stored("models", "--json", OPENAI_BASE_URL=upstream.base_url)).json
    assert [one["model"] for one in listed] == ["gpt-4o", "own"]
    assert listed[0]["shutdown_date"] == "2027-01-14"
    assert (listed[1]["input"], listed[1]["output"]) == ("0.5", "1.5")
    alone = await stored("models", OPENAI_BASE_URL="http://127.0.0.1:1/v1")
    assert (alone.code, alone.err.startswith("shutdown dates are unknown: ")) == (0, True)
    assert "own" in alone.out
