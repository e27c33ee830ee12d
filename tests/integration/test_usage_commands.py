"""`openai-worker usage` as people run it, and OpenAI's reports from a local server."""

import csv
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.support.command import CommandLine
from tests.support.databases import NOON, a_claim, a_finish, a_job, a_ledger_entry, a_record, a_token
from worker.adapters.database.opening import open_database
from worker.adapters.database.setup import upgrade
from worker.domain.attempt import Entry

MIDNIGHT = int(datetime(2026, 11, 22, tzinfo=UTC).timestamp())
RANGE = ("--from", "2026-11-22", "--to", "2026-11-22")


class Reports:
    """OpenAI's admin endpoints: what each path answers, page by page."""

    def __init__(self) -> None:
        self.pages: dict[str, list[list[dict[str, Any]]]] = {
            "completions": [[]],
            "embeddings": [[]],
            "costs": [[]],
        }
        self.asked: list[web.Request] = []
        self.status = 200
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        """Give a page of buckets."""
        self.asked.append(request)
        if self.status != 200:
            return web.json_response({"error": {"message": "no"}}, status=self.status)
        pages = self.pages[request.path.rsplit("/", 1)[1]]
        number = int(request.query.get("page", "0"))
        bucket = {
            "object": "bucket",
            "start_time": MIDNIGHT,
            "end_time": MIDNIGHT + 86_400,
            "results": pages[number],
        }
        more = number + 1 < len(pages)
        answer = {
            "object": "page",
            "data": [bucket],
            "has_more": more,
            "next_page": f"{number + 1}" if more else None,
        }
        return web.json_response(answer)

    def agree(self) -> None:
        """Report what the ledger of `booked` holds, in two pages."""
        self.pages["completions"] = [[used("proj-1", 80, 20, 30)], [used("proj-1", 80, 20, 30)]]
        self.pages["costs"] = [[cost("proj-1", "input", 0.0001)], [cost("proj-1", "output", 0.00014)]]


def used(project: str, inputs: int, outputs: int, cached: int) -> dict[str, Any]:
    """Return one result of the usage endpoint."""
    return {
        "object": "organization.usage.completions.result",
        "project_id": project,
        "model": "gpt-6-luna",
        "num_model_requests": 1,
        "input_tokens": inputs,
        "output_tokens": outputs,
        "input_cached_tokens": cached,
    }


def cost(project: str, item: str, dollars: float) -> dict[str, Any]:
    """Return one result of the costs endpoint."""
    return {
        "object": "organization.costs.result",
        "project_id": project,
        "line_item": f"gpt-6-luna, {item}",
        "amount": {"value": dollars, "currency": "usd"},
    }


@pytest.fixture
async def reports() -> AsyncIterator[Reports]:
    """Serve the admin endpoints on loopback."""
    served = Reports()
    app = web.Application()
    app.router.add_get("/v1/organization/{path:.*}", served.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    served.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield served
    await runner.cleanup()


@pytest.fixture
async def booked(sqlite_url: str, tmp_path: Path, reports: Reports) -> CommandLine:
    """Leave two rows in a ledger, and return the command line."""
    await upgrade(sqlite_url)
    await book(sqlite_url, "a", "b")

    return CommandLine(
        tmp_path,
        DATABASE_URL=sqlite_url,
        OPENAI_ADMIN_KEY="sk-admin-not-a-key",
        OPENAI_BASE_URL=reports.url,
    )


async def book(url: str, *names: str, **entry: Any) -> None:
    """Run jobs to their end."""
    async with open_database(url, observer=lambda _: None, lease_seconds=60) as database:
        for name in names:
            job, token = a_job(name), a_token()
            await database.store.claim(a_claim(job, token))
            ledger = a_ledger_entry(**({"occurred_at": NOON} | entry))
            await database.store.finish(a_finish(job, token, record=a_record(job.key, ledger=ledger)))


class TestReconcile:
    """The ledger against OpenAI's reports."""

    async def test_agrees(self, booked: CommandLine, reports: Reports) -> None:
        """Equal figures end with 0; the admin key is sent, all pages are read, days are UTC."""
        reports.agree()
        code, out, err = await booked("usage", "reconcile", *RANGE, "--json")
        assert (code, json.loads(out)) == (0, []), err
        for request in reports.asked:
            assert request.headers["Authorization"] == "Bearer sk-admin-not-a-key"
            assert request.query["start_time"] == str(MIDNIGHT)
            assert request.query["end_time"] == str(MIDNIGHT + 86_400)
            assert "project_id" in request.url.query_string

    async def test_names_differences_and_causes(
        self, booked: CommandLine, reports: Reports, sqlite_url: str
    ) -> None:
        """Estimates, unpriced rows and calls made elsewhere are told apart."""
        await book(sqlite_url, "unknown", entry=Entry.ESTIMATED)
        await book(sqlite_url, "unpriced", cost_nano_usd=None, prices=None)
        reports.pages["completions"] = [[used("proj-1", 5_000, 20, 30)]]
        reports.pages["costs"] = [[cost("proj-1", "input", 1.5)]]
        code, out, err = await booked("usage", "reconcile", *RANGE, "--json")
        total, model = json.loads(out)
        assert code == 1
        assert "differ" in err
        assert (total["model"], total["our_cost_usd"], total["their_cost_usd"]) == (
            "*",
            "0.000360000",
            "1.500000000",
        )
        assert (model["model"], model["our_input_tokens"], model["their_input_tokens"]) == (
            "gpt-6-luna",
            320,
            5_000,
        )
        assert "1 of our requests are estimates" in model["likely_causes"]
        assert "1 of our requests have no price" in total["likely_causes"]
        assert "calls made elsewhere" in model["likely_causes"]

    async def test_tolerance(self, booked: CommandLine, reports: Reports) -> None:
        """Small differences pass where they are allowed, and only there."""
        reports.agree()
        reports.pages["costs"][1] = [cost("proj-1", "output", 0.000141)]
        assert (await booked("usage", "reconcile", *RANGE, "--tolerance", "0.1")).code == 1
        assert (await booked("usage", "reconcile", *RANGE, "--tolerance", "1")).code == 0

    async def test_no_report_is_no_agreement(self, booked: CommandLine, reports: Reports) -> None:
        """A refused key is told in one line, without the key."""
        reports.status = 401
        code, _, err = await booked("usage", "reconcile", *RANGE)
        assert (code, err) == (1, "OpenAI gave no report: AuthenticationError 401\n")


class TestCommands:
    """The other commands on usage."""

    async def test_report_by_label_and_filter(self, booked: CommandLine) -> None:
        """Any group and filter can be asked for; what cannot is named."""
        code, out, _ = await booked(
            "usage", "report", "--by", "label:feature,project", "--label", "feature=summaries", "--json"
        )
        (row,) = json.loads(out)
        assert (code, row["label:feature"], row["project"], row["requests"]) == (0, "summaries", "proj-1", 2)
        for wrong in (["--by", "colour"], ["--by", 'label:"'], ["--label", "feature"]):
            assert (await booked("usage", "report", *wrong)).code == 2

    async def test_export(self, booked: CommandLine, tmp_path: Path) -> None:
        """CSV goes to a file or to standard output, the same bytes; Parquet to a folder."""
        _, out, err = await booked.process("usage", "export", *RANGE)
        assert (out.count("\n"), err) == (3, "2 rows written\n")
        to_file = ("usage", "export", *RANGE, "-o", "out.csv")
        assert (await booked(*to_file)).code == 0
        assert (tmp_path / "out.csv").read_text() == out
        assert (await booked("usage", "export", *RANGE, "-o", "out.csv")).code == 2
        assert (
            await booked("usage", "export", *RANGE, "-o", "out.csv", "--resume")
        ).err == "0 rows written\n"
        assert (await booked("usage", "export", "--format", "parquet", "-o", "folder")).code == 0
        assert [part.name for part in (tmp_path / "folder").iterdir()] == ["part-00000.parquet"]

    async def test_reprice_and_erase(self, booked: CommandLine) -> None:
        """Pricing again is a dry run until applied; content is erased, not the bill."""
        code, out, err = await booked("usage", "reprice", "--json")
        assert (code, len(json.loads(out))) == (0, 2), err
        assert "2 corrections to append with --apply" in err
        assert "2 corrections appended" in (await booked("usage", "reprice", "--apply")).err
        assert (await booked("usage", "reprice", "--apply")).err.startswith("0 corrections")
        owed = "0 bodies erased; 4 left, of jobs under way: erase again\n"
        assert (await booked("jobs", "erase", "--tenant", "acme")).err == owed
        (row,) = (await booked("usage", "report", "--by", "tenant", "--json")).json
        assert row["requests"] == 2

    async def test_no_name_is_taken_for_a_formula(self, booked: CommandLine, sqlite_url: str) -> None:
        """Whoever opens a report or an export as a table runs nothing that a producer or a model wrote."""
        await book(sqlite_url, "=cmd|' /C calc'!A0", "+1", "@x", model="-2+3")
        export = (await booked.process("usage", "export", *RANGE)).out
        report = (await booked("usage", "report", "--by", "model", "--csv")).out
        cells = [cell for line in csv.reader([*export.splitlines(), *report.splitlines()]) for cell in line]
        assert {"'=cmd|' /C calc'!A0", "'+1", "'@x", "'-2+3"} <= set(cells)
        assert not [cell for cell in cells if cell[:1] in set("=+-@")]
