"""Opening a database: what stands in the way is named, without secrets."""

import asyncio
import socket
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from sqlalchemy import text

from tests.support.databases import (
    LEASE_SECONDS,
    Events,
    a_claim,
    a_job,
    a_token,
    execute,
    rows,
)
from worker.adapters.database.errors import (
    DatabaseSchemaError,
    DatabaseUnreachableError,
    DatabaseUrlError,
)
from worker.adapters.database.opening import open_cancels, open_database, open_queries
from worker.adapters.database.setup import upgrade
from worker.domain.claims import JobStatus
from worker.domain.job import JobKey
from worker.ports import Claimed

SECRET = "swordfish"


async def open_and_close(url: str, seconds: float = 5) -> None:
    """Open for a worker, and close again."""
    async with open_database(url, observer=Events(), lease_seconds=LEASE_SECONDS, startup_timeout=seconds):
        pass


async def test_unknown_parameter_is_named() -> None:
    """A misspelt parameter does not go unnoticed; its value stays unsaid."""
    with pytest.raises(DatabaseUrlError, match="'passwort'") as refused:
        await open_and_close(f"postgresql://h/d?passwort={SECRET}")
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "worker.db",
        "sqlite://",
        "sqlite:///:memory:",
        f"mysql://root:{SECRET}@localhost/jobs",
        f"post gres://u:{SECRET}@h/d",
    ],
)
async def test_unusable_url_is_refused_without_being_quoted(url: str) -> None:
    """The message says what is accepted, and repeats nothing of what was given."""
    with pytest.raises(DatabaseUrlError, match="sqlite:///FILE") as refused:
        await open_and_close(url)
    assert SECRET not in str(refused.value)


async def test_silent_server_is_given_up_in_time() -> None:
    """A server that accepts and never answers does not hold the start up for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        async with asyncio.timeout(10):
            with pytest.raises(DatabaseUnreachableError, match="reached: no answer in time") as unreachable:
                await open_and_close(f"postgresql://u:{SECRET}@127.0.0.1:{port}/jobs", seconds=0.5)
    assert SECRET not in str(unreachable.value)


async def test_absent_server_is_waited_for_and_named() -> None:
    """Nobody listening is worth some patience; the message says where, not as whom."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with asyncio.timeout(10):
        with pytest.raises(DatabaseUnreachableError) as unreachable:
            await open_and_close(f"postgresql://u:{SECRET}@127.0.0.1:{port}/jobs", seconds=0.3)
    assert f"PostgreSQL database jobs at 127.0.0.1:{port}" in str(unreachable.value)
    assert str(unreachable.value).endswith(": connection refused")
    assert SECRET not in str(unreachable.value)


async def test_wrong_settings_are_told_with_what_mends_them(postgres_url: str, tmp_path: Path) -> None:
    """At once, in words, with the code for whoever asks a search engine."""
    parts = urlsplit(postgres_url)
    nobody = parts._replace(netloc=f"nobody:{SECRET}@{parts.hostname}:{parts.port}")
    for url, words in (
        (
            urlunsplit(parts._replace(path="/nowhere")),
            r"there is no database of this name; .*\(.* \(3D000\)\)",
        ),
        (urlunsplit(nobody), r"see DATABASE_URL"),
        ("postgresql://u@host.invalid/jobs", "host name not found"),
        (f"sqlite:///{tmp_path}/no/folder.db", r"its folder must exist .*SQLITE_CANTOPEN"),
    ):
        with pytest.raises(DatabaseUnreachableError, match=words) as unreachable:
            await upgrade(url, startup_timeout=0.5)
        assert SECRET not in str(unreachable.value)


async def test_server_that_comes_up_late_is_reached(postgres_url: str) -> None:
    """A database started after the worker is as good as one started before it."""
    await upgrade(postgres_url)
    parts = urlsplit(postgres_url)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    late = urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{port}")))

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(parts.hostname, parts.port)
        await asyncio.gather(copy(reader, up_writer), copy(up_reader, writer))

    opening = asyncio.ensure_future(open_and_close(late, seconds=20))
    done, _ = await asyncio.wait({opening}, timeout=0.6)
    assert not done
    server = await asyncio.start_server(forward, "127.0.0.1", port)
    await opening
    server.close()
    await server.wait_closed()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until the end."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_missing_database_is_no_reason_to_wait(postgres_url: str) -> None:
    """A name that does not exist will not come up by itself."""
    url = urlunsplit(urlsplit(postgres_url)._replace(path="/nowhere"))
    async with asyncio.timeout(10):
        with pytest.raises(DatabaseUnreachableError, match=r"InvalidCatalogNameError \(3D000\)"):
            await open_and_close(url, seconds=60)


async def test_missing_folder_is_no_reason_to_wait(tmp_path: Path) -> None:
    """Nor is a path that leads nowhere."""
    async with asyncio.timeout(10):
        with pytest.raises(DatabaseUnreachableError, match="SQLITE_CANTOPEN"):
            await upgrade(f"sqlite:///{tmp_path / 'nowhere' / 'worker.db'}", startup_timeout=60)


async def test_reading_does_not_create_a_file(tmp_path: Path) -> None:
    """A mistyped path is told apart from an empty database."""
    file = tmp_path / "mistyped.db"
    with pytest.raises(DatabaseSchemaError, match="migrate"):
        async with open_queries(f"sqlite:///{file}"):
            pass
    assert not file.exists()


async def test_empty_database_asks_for_migration(postgres_url: str) -> None:
    """Tables that are not there are the operator's to make."""
    with pytest.raises(DatabaseSchemaError, match="revision none, this program needs"):
        await open_and_close(postgres_url)


async def test_newer_tables_are_not_touched(migrated_url: str) -> None:
    """A program that is older than the tables says so and stops."""
    await execute(migrated_url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseSchemaError, match="revision 9999"):
        await open_and_close(migrated_url)


async def test_ssl_mode_is_understood_as_psql_does(postgres_url: str) -> None:
    """`sslmode` in the URL means what it means everywhere."""
    await upgrade(f"{postgres_url}?sslmode=disable")
    await open_and_close(f"{postgres_url}?sslmode=disable")
    with pytest.raises(DatabaseUnreachableError):
        await open_and_close(f"{postgres_url}?sslmode=require", seconds=0.2)


async def test_sqlite_is_set_up_to_keep_what_it_confirms(sqlite_url: str) -> None:
    """Readers do not block writers, and a confirmed transaction survives a loss of power."""
    await upgrade(sqlite_url)
    for pragma, value in (("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)):
        assert await rows(sqlite_url, f"PRAGMA {pragma}") == [(value,)]


async def test_jobs_can_be_cancelled_from_outside(migrated_url: str) -> None:
    """A command cancels a job without becoming a worker."""
    job = a_job()
    async with open_cancels(migrated_url) as cancels:
        assert await cancels.request_cancel(job.key) is JobStatus.WAITING
        assert await cancels.request_cancel(JobKey("acme", "other")) is JobStatus.WAITING
        assert await rows(migrated_url, "SELECT * FROM workers") == []
    async with open_database(migrated_url, observer=Events(), lease_seconds=LEASE_SECONDS) as database:
        claimed = await database.store.claim(a_claim(job, a_token()))
    assert isinstance(claimed, Claimed)
    assert claimed.cancel_requested


async def test_queries_cannot_write(postgres_url: str) -> None:
    """What opens for reading is held to it by the server."""
    await upgrade(postgres_url)
    async with open_queries(postgres_url) as queries, queries._engine.connect() as connection:
        assert await connection.scalar(text("SHOW transaction_read_only")) == "on"
