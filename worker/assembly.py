"""The composition root: which parts a worker has, and how they are put together."""

import contextlib
import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Final
from zlib import crc32

from pydantic import ValidationError

from schemas.cancel import Cancel
from schemas.names import Kind
from worker.adapters.database.opening import Database, is_current, open_database
from worker.adapters.database.upkeep import kept_up
from worker.adapters.http import serve_http
from worker.adapters.metrics import Metrics, Observers
from worker.adapters.openai_api.client import OpenAIClient
from worker.adapters.openai_api.credentials import AccountCredentials
from worker.adapters.price_catalog import PriceCatalog
from worker.adapters.rabbitmq import topology
from worker.adapters.rabbitmq.connection import Link
from worker.adapters.rabbitmq.consumer import Consumer
from worker.adapters.rabbitmq.control import CancelListener
from worker.adapters.rabbitmq.publisher import RabbitPublisher
from worker.config import Credential, Settings, budgets, price_overrides, resolve_credentials
from worker.core.assistant import AssistantHandler
from worker.core.completion import CompletionHandler
from worker.core.dispatch import Dispatcher
from worker.core.embedding import EmbeddingHandler
from worker.core.intake import ReplyPolicy, decode
from worker.core.kind import KindHandler
from worker.core.limiter import SharedLimiter
from worker.core.limits import Limit, LimitBook, Share
from worker.core.processor import Processor
from worker.core.replies import LARGEST_ANSWER, Replies
from worker.core.services import Policy, Services
from worker.core.tool import ToolHandler
from worker.core.vision import VisionHandler
from worker.domain.attempt import Account
from worker.domain.claims import JobStatus
from worker.domain.job import JobKey
from worker.ports import Delivery, Observer, Settlement
from worker.tools import Registry, load_tools

_POOL_MARGIN: Final = 8
"""Connections to OpenAI beyond the jobs in flight."""
_TOKEN_BITS: Final = 63
"""Fencing tokens fit a signed 64-bit column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the worker's life needs to reach."""

    consumer: Consumer
    cancels: CancelListener
    limiter: SharedLimiter
    replies: Replies
    lanes: tuple[str, ...]
    http_port: int


@contextlib.asynccontextmanager
async def assemble(settings: Settings, log: Observer) -> AsyncIterator[Parts]:
    """Open all parts, each before those that use it; on leaving they close in reverse.

    Raises ConfigError, and the adapters' errors for a server that cannot be used.
    """
    credentials = resolve_credentials(settings)
    handlers = _handlers(load_tools(settings.worker_tools))
    lanes = tuple(lane for lane in settings.worker_lanes if lane in handlers)
    prices = PriceCatalog(price_overrides(settings))
    metrics = Metrics(version=version("openai-worker"))
    observer = Observers(log, metrics)
    timeout = settings.worker_startup_timeout
    amqp_url = settings.amqp_url.get_secret_value()
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        database = await enter(_database(settings, observer))
        # Two connections: what blocks or breaks publishing must not stop consuming and acknowledging.
        consuming = await enter(
            Link(amqp_url, name="openai-worker consume", observer=observer, startup_timeout=timeout)
        )
        publishing = await enter(
            Link(amqp_url, name="openai-worker publish", observer=observer, startup_timeout=timeout)
        )
        if settings.worker_auto_setup:
            await topology.apply(consuming)
        openai = await enter(openai_client(settings, credentials.values()))
        limiter = await enter(
            SharedLimiter.opened(
                _limits(settings),
                database.quota,
                database.clock,
                observer,
                shares=_shares(settings),
                # The other half of the places is for jobs that need not wait.
                places=settings.worker_concurrency // 2,
            )
        )
        prices.warm()
        services = Services(
            store=database.store,
            openai=openai,
            limiter=limiter,
            prices=prices,
            clock=database.clock,
            observer=observer,
            random=random.random,
            account_of=partial(_account_of, _accounts(settings, credentials)),
            policy=Policy(max_attempts=settings.worker_max_attempts, job_timeout=settings.worker_job_timeout),
        )
        publisher = RabbitPublisher(publishing)
        replies = Replies(publisher, database.outbox, database.clock, observer)
        processor = Processor(
            decode=partial(
                decode,
                handlers=handlers,
                max_job_bytes=settings.worker_max_job_bytes,
                reply_policy=_reply_policy(settings),
                aliases=settings.models.aliases,
            ),
            handlers=handlers,
            services=services,
            publisher=publisher,
            replies=replies,
            new_token=partial(random.Random().getrandbits, _TOKEN_BITS),  # noqa: S311  tells claims apart, and is no secret
        )
        consumer = Consumer(
            consuming,
            lanes=lanes,
            concurrency=settings.worker_concurrency,
            handler=processor,
            clock=database.clock,
            observer=observer,
        )
        metrics.watch_in_flight(lambda: consumer.running)
        cancels = CancelListener(
            consuming,
            on_cancel=partial(_record_cancel, database, processor),
            on_heard=partial(_hear_cancel, processor),
            clock=database.clock,
            observer=observer,
        )
        health = partial(_health, database, consuming, publishing, consumer)
        port = await enter(
            serve_http(
                host=settings.worker_http_host,
                port=settings.worker_http_port,
                health=health,
                ready=lambda: health() or _readiness(consumer, cancels),
                metrics=metrics.render,
            )
        )
        yield Parts(
            consumer=consumer,
            cancels=cancels,
            limiter=limiter,
            replies=replies,
            lanes=lanes,
            http_port=port,
        )


def _handlers(tools: Registry) -> Mapping[Kind, KindHandler]:
    served: Iterable[KindHandler] = (
        CompletionHandler(),
        ToolHandler(Dispatcher(tools)),
        VisionHandler(),
        AssistantHandler(),
        EmbeddingHandler(),
    )
    return {handler.kind: handler for handler in served}


@contextlib.asynccontextmanager
async def _database(settings: Settings, observer: Observer) -> AsyncIterator[Database]:
    url, timeout = settings.database_url.get_secret_value(), settings.worker_startup_timeout
    if settings.worker_auto_setup and not await is_current(url, startup_timeout=timeout, observer=observer):
        # Ten megabytes that a worker does without whose tables are as they should be.
        from worker.adapters.database import setup  # noqa: PLC0415

        await setup.upgrade(url, startup_timeout=timeout)
    limits = budgets(settings)
    async with (
        open_database(
            url,
            observer=observer,
            lease_seconds=settings.worker_lease_seconds,
            startup_timeout=timeout,
            budgets=limits,
        ) as database,
        kept_up(
            url,
            database,
            budgets=limits,
            keep_days=settings.retention.model_dump(exclude_none=True),
            observer=observer,
        ),
    ):
        yield database


def openai_client(settings: Settings, credentials: Iterable[Credential]) -> OpenAIClient:
    """Return the client, not yet opened, with all credentials."""
    return OpenAIClient(
        (
            AccountCredentials(
                name=one.name,
                api_key=one.api_key.get_secret_value(),
                organization=one.organization,
                project=one.project,
                base_url=one.base_url,
            )
            for one in credentials
        ),
        connections=settings.worker_concurrency + _POOL_MARGIN,
        max_answer_bytes=LARGEST_ANSWER,
    )


def _limits(settings: Settings) -> LimitBook:
    return LimitBook(
        default=Limit(
            requests_per_minute=settings.worker_requests_per_minute,
            tokens_per_minute=settings.worker_tokens_per_minute,
        ),
        by_model={
            model: Limit(
                requests_per_minute=table.requests_per_minute,
                tokens_per_minute=table.tokens_per_minute,
                max_concurrency=table.max_concurrency,
            )
            for model, table in settings.limits.items()
        },
    )


def _shares(settings: Settings) -> Mapping[str, Share]:
    return {
        name: Share(weight=table.weight, max_concurrency=table.max_concurrency)
        for name, table in settings.tenants.items()
    }


def _accounts(
    settings: Settings, credentials: Mapping[str, Credential]
) -> Mapping[str | None, Sequence[Account]]:
    """Return the accounts of each tenant that has some of its own; None is everybody else."""
    by_name = {
        one.name: Account(name=one.name, organization=one.organization, project=one.project)
        for one in credentials.values()
    }
    accounts: dict[str | None, Sequence[Account]] = {
        tenant: [by_name[name] for name in table.credentials]
        for tenant, table in settings.tenants.items()
        if table.credentials
    }
    return accounts | {None: [by_name["default"]]}


def _account_of(accounts: Mapping[str | None, Sequence[Account]], key: JobKey) -> Account:
    """Spread a tenant's jobs over its accounts, by their ids: any worker finds the same one."""
    pool = accounts.get(key.tenant) or accounts[None]
    return pool[0] if len(pool) == 1 else pool[crc32(key.job_id.encode()) % len(pool)]


def _reply_policy(settings: Settings) -> ReplyPolicy:
    tenants = {
        name: table.reply_to_pattern for name, table in settings.tenants.items() if table.reply_to_pattern
    }
    return ReplyPolicy.of(settings.worker_reply_to_pattern, tenants)


def _health(database: Database, consuming: Link, publishing: Link, consumer: Consumer) -> str | None:
    if not database.healthy:
        return "the database is away"
    if not (consuming.healthy and publishing.healthy):
        return "RabbitMQ is away"
    if consumer.broken:
        return "one job after the other ends in an error of the program; the log says which"
    return None


def _readiness(consumer: Consumer, cancels: CancelListener) -> str | None:
    if not consumer.consuming:
        return "not consuming yet"
    return None if cancels.listening else "not listening for cancel requests yet"


async def _record_cancel(database: Database, processor: Processor, body: bytes) -> None:
    """Keep the request; a job that waits is ended now, not when its copy leaves its waiting room."""
    key = _cancel_key(body)
    if key is None or await database.cancels.request_cancel(key) is not JobStatus.WAITING:
        return
    stored = await database.queries.job(key)
    if stored is not None and stored.request is not None and stored.job.lane is not None:
        await processor(
            Delivery(
                body=stored.request,
                lane=stored.job.lane,
                high=False,
                redelivered=False,
                received_at=stored.job.received_at,
                # A message that named no job_id in its body had it here.
                message_id=key.job_id,
                correlation_id=stored.job.correlation_id,
                reply_to=stored.job.reply_to,
            ),
            _NoPlace(),
        )


class _NoPlace:
    """That of a job without a delivery."""

    async def enter(self) -> None: ...

    def leave(self) -> None: ...

    def settle(self, settlement: Settlement) -> None: ...


def _hear_cancel(processor: Processor, body: bytes) -> None:
    key = _cancel_key(body)
    if key is not None:
        processor.cancel(key)


def _cancel_key(body: bytes) -> JobKey | None:
    try:
        cancel = Cancel.model_validate_json(body)
    except ValidationError:
        return None
    return JobKey(cancel.tenant, cancel.job_id)
