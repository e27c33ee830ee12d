"""What a user of any of these libraries writes around them: one table, one engine, one client.

Settings come from the environment: AMQP_URL, DATABASE_URL, OPENAI_BASE_URL, OPENAI_API_KEY, IN_FLIGHT.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

from openai.types.chat import ChatCompletion
from sqlalchemy import (
    JSON,
    Column,
    Engine,
    Float,
    Insert,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    insert,
    make_url,
)
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

AMQP_URL = os.environ["AMQP_URL"]
IN_FLIGHT = int(os.environ.get("IN_FLIGHT", "64"))
CONNECTIONS = 20
"""Of a pool: a job holds one for its insert only."""

metadata = MetaData()
completions = Table(
    "peer_completions",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("result", JSON, nullable=False),
    Column("input_tokens", Integer, nullable=False),
    Column("cached_input_tokens", Integer, nullable=False),
    Column("output_tokens", Integer, nullable=False),
    Column("finished_at", Float, nullable=False),
)


def insertion(job_id: str, completion: ChatCompletion) -> Insert:
    """Return the insert of result and usage."""
    usage = completion.usage
    assert usage is not None
    details = usage.prompt_tokens_details
    return insert(completions).values(
        job_id=job_id,
        model=completion.model,
        result=completion.to_dict(mode="json"),
        input_tokens=usage.prompt_tokens,
        cached_input_tokens=(details and details.cached_tokens) or 0,
        output_tokens=usage.completion_tokens,
        finished_at=time.time(),
    )


def reply(job_id: str, completion: ChatCompletion) -> dict[str, Any]:
    """Return what the producer wants to know."""
    usage = completion.usage
    assert usage is not None
    return {
        "job_id": job_id,
        "output_text": completion.choices[0].message.content,
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
    }


def async_engine() -> AsyncEngine:
    """Return an engine for the libraries on asyncio."""
    made = create_async_engine(**_options({"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}))
    _prepare(made.sync_engine)
    return made


def sync_engine() -> Engine:
    """Return an engine for the others."""
    made = create_engine(**_options({"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}))
    _prepare(made)
    return made


def _options(drivers: Mapping[str, str]) -> dict[str, Any]:
    url = make_url(os.environ["DATABASE_URL"])
    # SQLite has one writer at a time: a second connection would only wait for the first one's lock.
    size = 1 if url.drivername == "sqlite" else CONNECTIONS
    return {
        "url": url.set(drivername=drivers[url.drivername]),
        "pool_size": size,
        "max_overflow": 0,
        "pool_timeout": 300,
    }


def _prepare(engine: Engine) -> None:
    if engine.dialect.name != "sqlite":
        return

    @event.listens_for(engine, "connect")
    def durable(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.close()
