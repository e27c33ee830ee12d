"""The broker for tests: a virtual host of its own for each, on a node that `dev.servers` started.

Making a virtual host with `rabbitmqctl` takes a second; asking the node in Erlang takes 20 ms, and 120 ms to
remove it with all its queues, whatever the test left behind and whoever is still connected.
"""

import os
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import aio_pika
import pytest
from aio_pika.exceptions import ChannelNotFoundEntity

from dev.rabbitmq import RabbitMQ
from dev.servers import RABBITMQ_FOLDER
from schemas.names import JOBS
from worker.adapters.rabbitmq.topology import EXCHANGES, QUEUES

LACKING = "no broker: run the tests with `make test`, or set AMQP_URL to an empty virtual host"
IN_USE = f"the virtual host of AMQP_URL has {JOBS} already: name an empty one, tests delete what is there"
MOST_AT_ONCE = 4
"""A test has up to 16 connections to PostgreSQL, which allows 100 by default."""
NOT_OURS = "this test steers the broker itself: unset AMQP_URL, so that `make test` starts one"


@dataclass(frozen=True, kw_only=True)
class Broker:
    """An empty virtual host."""

    url: str
    vhost: str
    owner: RabbitMQ | None
    """None for a broker that somebody else runs."""

    @property
    def node(self) -> RabbitMQ:
        """The node below, for tests that ask or steer it; a broker that somebody else runs fails them."""
        if self.owner is None:
            pytest.fail(NOT_OURS, pytrace=False)
        return self.owner

    def close_connections(self) -> None:
        """Cut every connection to this virtual host, as an operator can."""
        listing = f'rabbit_connection_tracking:list(<<"{self.vhost}">>)'
        self.node.evaluate(f'rabbit_connection_tracking_handler:close_connections({listing}, "test", 0).')

    def tell_short_of_memory(self, *, short: bool) -> None:
        """Tell the connections to this virtual host, and no others, what a memory alarm tells all."""
        vhost = f'{{vhost, <<"{self.vhost}">>}}'
        self.node.evaluate(
            f"[Reader ! {{conserve_resources, memory, {str(short).lower()}}} || "
            f"[{{pid, Reader}}, {vhost}] <- rabbit_networking:connection_info_all([pid, vhost])]."
        )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many tests `-n auto` runs at once: one more than there are cores, as many tests wait.

    0 stands for one after the other: on somebody else's broker all of them empty the same virtual host.
    """
    if os.environ.get("AMQP_URL") and not os.environ.get(RABBITMQ_FOLDER):
        return 0
    return min(len(os.sched_getaffinity(0)) + 1, MOST_AT_ONCE)


@pytest.fixture(scope="session")
def rabbitmq() -> RabbitMQ | None:
    """Return the node that was started for this run, None for a broker that somebody else runs."""
    if not os.environ.get("AMQP_URL"):
        pytest.fail(LACKING, pytrace=False)
    folder = os.environ.get(RABBITMQ_FOLDER)
    return RabbitMQ.attached(Path(folder)) if folder else None


@pytest.fixture
async def broker(rabbitmq: RabbitMQ | None) -> AsyncIterator[Broker]:
    """Give an empty virtual host, removed afterwards."""
    if rabbitmq is None:
        url = os.environ["AMQP_URL"]
        await _must_be_empty(url)
        yield Broker(url=url, vhost=urlsplit(url).path.removeprefix("/") or "/", owner=None)
        await _remove_everything(url)
        return
    name = f"test-{secrets.token_hex(6)}"
    rights = ", ".join(['<<".*">>'] * 3)
    rabbitmq.evaluate(
        f'rabbit_vhost:add(<<"{name}">>, <<"test">>), '
        f'rabbit_auth_backend_internal:set_permissions(<<"worker">>, <<"{name}">>, {rights}, <<"test">>).'
    )
    yield Broker(url=urlunsplit(urlsplit(rabbitmq.url)._replace(path=f"/{name}")), vhost=name, owner=rabbitmq)
    rabbitmq.evaluate(f'rabbit_vhost:delete(<<"{name}">>, <<"test">>).')


@pytest.fixture
def amqp_url(broker: Broker) -> str:
    """Return the URL of an empty virtual host."""
    return broker.url


async def _must_be_empty(url: str) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        try:
            await channel.get_exchange(JOBS, ensure=True)
        except ChannelNotFoundEntity:
            return
    pytest.fail(IN_USE, pytrace=False)


async def _remove_everything(url: str) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for queue in QUEUES:
            await channel.queue_delete(queue.name)
        for exchange in EXCHANGES:
            await channel.exchange_delete(exchange.name)
