"""Ledger rows in files: the same bytes each time, wherever an export was cut off."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.databases import NOON
from tests.support.ledger import book, slow_booking, some_of_each, to_csv
from worker.adapters.database.ledger_pages import ledger_pages, settled
from worker.adapters.database.opening import Database
from worker.adapters.database.reports import UsageFilter
from worker.cli.ledger_files import LedgerFileError, ParquetFolder


class TestExport:
    """Files of ledger rows."""

    async def test_csv_is_stable_and_resumes(
        self, database: Database, engine: AsyncEngine, tmp_path: Path
    ) -> None:
        """The same range gives the same bytes, also where an export was cut off anywhere and went on."""
        await some_of_each(database)
        whole = await to_csv(engine, tmp_path / "whole.csv")
        assert whole == await to_csv(engine, tmp_path / "again.csv")
        assert whole.count(b"\n") == 6
        for cut in range(0, len(whole), 97):
            part = tmp_path / f"{cut}.csv"
            part.write_bytes(whole[:cut])
            assert await to_csv(engine, part, resume=True) == whole
        with pytest.raises(LedgerFileError, match="exists"):
            await to_csv(engine, tmp_path / "whole.csv")
        foreign = tmp_path / "foreign.csv"
        foreign.write_text("name\n1\n")
        with pytest.raises(LedgerFileError, match="no export"):
            await to_csv(engine, foreign, resume=True)

    async def test_rows_that_appear_late_are_exported(
        self, postgres_url: str, open_postgres: Any, tmp_path: Path
    ) -> None:
        """A row whose transaction ends after later ones is waited for, or left for the next time."""
        async with open_postgres as (database, engine):
            await book(database, "first")
            async with slow_booking(engine):
                await book(database, "last")
                assert await settled(engine, patience=0.1) == (0, False)
                waiting = asyncio.ensure_future(settled(engine, patience=30))
                await asyncio.sleep(0)
                assert not waiting.done()
            assert await waiting == (3, True)
            assert (await to_csv(engine, tmp_path / "all.csv")).count(b"\n") == 4

    async def test_no_cell_breaks_a_line(
        self, database: Database, engine: AsyncEngine, tmp_path: Path
    ) -> None:
        """Whatever a model calls itself, a row is a line."""
        await book(database, "a", model="two\nlines", service_tier='quo"te')
        assert (await to_csv(engine, tmp_path / "out.csv")).count(b"\n") == 2

    async def test_parquet_is_stable_and_resumes(
        self, database: Database, engine: AsyncEngine, tmp_path: Path
    ) -> None:
        """Parts of a fixed number of rows: complete ones stay, a short one grows."""
        await some_of_each(database)
        whole = await to_parquet(engine, tmp_path / "whole")
        assert list(whole) == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
        assert whole == await to_parquet(engine, tmp_path / "again")
        for lost in whole:
            (tmp_path / "again" / lost).unlink()
            for later in list(whole)[list(whole).index(lost) + 1 :]:
                (tmp_path / "again" / later).unlink(missing_ok=True)
            assert await to_parquet(engine, tmp_path / "again", resume=True) == whole
        await book(database, "more")
        more = await to_parquet(engine, tmp_path / "again", resume=True)
        assert more == await to_parquet(engine, tmp_path / "fresh")
        assert list(more.values())[:2] == list(whole.values())[:2]

    async def test_parquet_holds_the_rows(
        self, database: Database, engine: AsyncEngine, tmp_path: Path
    ) -> None:
        """Numbers are integers, times are UTC, documents are JSON."""
        from pyarrow import parquet  # noqa: PLC0415 an extra

        await some_of_each(database)
        await to_parquet(engine, tmp_path / "out")
        table = parquet.read_table(tmp_path / "out")
        assert table["cost_nano_usd"].to_pylist() == [120_000, 120_000, None, 120_000, 120_000]
        assert table["occurred_at"][0].as_py() == NOON
        assert table["labels"][2].as_py() == r'{"feature":"x\"y"}'


async def to_parquet(engine: AsyncEngine, folder: Path, *, resume: bool = False) -> dict[str, bytes]:
    """Export everything, two rows a part."""
    with ParquetFolder(folder, resume=resume, rows_a_part=2) as target:
        until = (await settled(engine)).last_id
        async for page in ledger_pages(engine, UsageFilter(), after=target.last_id, until=until, page=3):
            target.write(page)
    return {part.name: part.read_bytes() for part in sorted(folder.iterdir())}  # noqa: ASYNC240 likewise
