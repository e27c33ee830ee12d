"""From a delivery to a job, or to the reason why it is none. Pure: no clock, no I/O.

The way of a good message is short: one parse, one validation that does not
walk the messages, one fingerprint. Only what is refused pays for a close look.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

import jiter
import orjson
from pydantic import TypeAdapter, ValidationError

import schemas.job
from schemas.names import CONTENT_TYPE, DIRECT_REPLY_TO, Kind
from worker.core.kind import InvalidJobError, KindHandler
from worker.domain.fingerprint import canonical_json, fingerprint
from worker.domain.job import Job, JobKey, ReplyAddress
from worker.domain.problems import explain, field_name
from worker.ports import Delivery

FORBIDDEN: Final = frozenset(
    {
        "admin_api_key",
        "api_base",
        "api_key",
        "api_version",
        "authorization",
        "azure_endpoint",
        "base_url",
        "default_headers",
        "default_query",
        "endpoint",
        "extra_body",
        "extra_headers",
        "extra_query",
        "headers",
        "http_client",
        "idempotency_key",
        "max_retries",
        "organization",
        "project",
        "stream",
        "stream_options",
        "timeout",
        "url",
        "webhook_secret",
    }
)
"""Fields of a request that are the worker's affair: where it goes, with whose credentials, and how."""

_BOM: Final = b"\xef\xbb\xbf"
_UNCOMPRESSED: Final = frozenset({"", "identity", "utf-8"})
"""Content encodings that mean none; some clients name the character set there."""

_JOB_ID: Final[TypeAdapter[str]] = TypeAdapter(schemas.job.JobId)
_TENANT: Final[TypeAdapter[str]] = TypeAdapter(schemas.job.Tenant)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyPolicy:
    """Which queues may be replied to. Full matches; None allows every name that is not reserved."""

    pattern: re.Pattern[str] | None = None
    tenants: Mapping[str, re.Pattern[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, pattern: str | None = None, tenants: Mapping[str, str] | None = None) -> Self:
        """Compile regular expressions. Raises ValueError naming the wrong one's owner."""
        compiled = {name: _compiled(text, f"tenant {name}") for name, text in (tenants or {}).items()}
        return cls(pattern=_compiled(pattern, "all tenants") if pattern else None, tenants=compiled)

    def allows(self, queue: str, tenant: str | None) -> bool:
        """Tell whether this tenant may name this queue; reserved ones never: a reply there would be a job."""
        if _reserved(queue) or not queue.isprintable():
            return False
        pattern = self.tenants.get(tenant, self.pattern) if tenant else self.pattern
        return pattern is None or pattern.fullmatch(queue) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """No valid job. Names are None where the message has none, `address` where it cannot be answered."""

    reason: str
    job_id: str | None
    tenant: str | None
    kind: Kind | None
    address: ReplyAddress | None


def decode(
    delivery: Delivery,
    *,
    handlers: Mapping[Kind, KindHandler],
    max_job_bytes: int,
    reply_policy: ReplyPolicy,
    aliases: Mapping[str, str] | None = None,
) -> Job | Rejection:
    """Return the job, or why there is none. Never raises."""
    data: dict[str, Any] = {}
    try:
        _check_envelope(delivery, max_job_bytes)
        data = _parsed(delivery.body)
        schema = _validated(data, delivery)
        _check_policy(schema, data, delivery, handlers)
        canonical = _canonical(data, delivery.body)
        address = _address(delivery, schema.job_id, schema.tenant, reply_policy)
        model = schema.request["model"]
        # Safe to write into: the parse made this object for this job alone.
        schema.request["model"] = model = (aliases or {}).get(model, model)
        return Job(
            key=JobKey(schema.tenant, schema.job_id),
            kind=schema.kind,
            lane=delivery.lane,
            model=model,
            request=handlers[schema.kind].prepare(schema),
            options=schema.options,
            labels=schema.labels,
            fingerprint=fingerprint(canonical),
            address=address,
            body=delivery.body,
            received_at=delivery.received_at,
            high=delivery.high,
        )
    except InvalidJobError as error:
        return _rejection(str(error), data, delivery, reply_policy)


def _compiled(pattern: str, owner: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"the reply_to pattern of {owner} is no regular expression: {error}") from None


def _reserved(queue: str) -> bool:
    if queue.startswith("amq."):
        return not queue.startswith(("amq.gen-", DIRECT_REPLY_TO))
    return queue.startswith("openai.")


# ---------------------------------------------------------------- the message


def _check_envelope(delivery: Delivery, max_job_bytes: int) -> None:
    if len(delivery.body) > max_job_bytes:
        raise InvalidJobError(
            f"the message has {len(delivery.body)} bytes and was refused unread: at most {max_job_bytes} "
            "are accepted; refer to images and files by URL or id"
        )
    if (delivery.content_encoding or "").lower() not in _UNCOMPRESSED:
        raise InvalidJobError("content_encoding: compressed bodies are not accepted; send plain JSON")
    content_type = (delivery.content_type or CONTENT_TYPE).partition(";")[0].strip().lower()
    if content_type != CONTENT_TYPE:
        raise InvalidJobError(f"content_type: must be {CONTENT_TYPE}")


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        data = jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="keys")
    except ValueError as error:
        raise InvalidJobError(_unreadable(body, str(error))) from None
    if not isinstance(data, dict):
        raise InvalidJobError("the body must be a JSON object")
    return data


_REASONS: Final = (
    ("recursion limit", "it is nested deeper than 200 levels"),
    ("number out of range", "it holds a number with too many digits"),
    ("invalid unicode", "it is not UTF-8"),
    ("EOF", "it ends too early"),
)


def _unreadable(body: bytes, message: str) -> str:
    """Say what is wrong with the JSON, without the parser's quotes of it."""
    if not body:
        return "the body is empty; it must be a JSON object"
    if body.startswith(_BOM):
        return "the body begins with a byte order mark; send UTF-8 without one"
    problem, _, place = message.rpartition(" at ")
    if problem.startswith("Detected duplicate key"):
        name = problem.removeprefix("Detected duplicate key ").strip('"')
        return f"the body has the key {field_name(name)} twice in one object, at {place}"
    for sign, reason in _REASONS:
        if problem.startswith(sign):
            return f"the body is not JSON that can be accepted: {reason}"
    return f"the body is not valid JSON, at {place}; mind that NaN and Infinity are not JSON"


def _validated(data: dict[str, Any], delivery: Delivery) -> schemas.job.Job:
    if delivery.message_id and "job_id" not in data:
        data["job_id"] = delivery.message_id
    try:
        return schemas.job.Job.model_validate(data)
    except ValidationError as error:
        raise InvalidJobError(f"not a valid job: {explain(error)}") from None


def _canonical(data: Mapping[str, Any], body: bytes) -> bytes:
    """Return the content as canonical JSON, which proves that the request can be written again."""
    try:
        canonical = canonical_json(data)
        # An infinity is written as null, so only a text with a null in it can have hidden one.
        if b"null" in canonical:
            orjson.loads(body)
    except (TypeError, ValueError):
        raise InvalidJobError("request: holds a number that does not fit 64 bits") from None
    return canonical


# ---------------------------------------------------------------- the job


def _check_policy(
    schema: schemas.job.Job,
    data: Mapping[str, Any],
    delivery: Delivery,
    handlers: Mapping[Kind, KindHandler],
) -> None:
    if schema.kind not in handlers:
        served = ", ".join(sorted(handlers))
        raise InvalidJobError(f"kind: {schema.kind} is not served by this worker, which serves {served}")
    if schema.options.stream:
        raise InvalidJobError(
            "options.stream: streaming is not served by this version; leave it out or false"
        )
    if delivery.user_id and delivery.user_id != schema.tenant:
        if "tenant" not in data:
            raise InvalidJobError(
                "tenant: is missing; with the property user_id set, it must be named and equal to it"
            )
        raise InvalidJobError("tenant: must equal the property user_id of the message")
    _check_request(schema.request)


def _check_request(request: Mapping[str, Any]) -> None:
    if not FORBIDDEN.isdisjoint(request):
        name = min(FORBIDDEN & request.keys())
        raise InvalidJobError(f"request.{name}: is not part of a request; remove it")
    if "model" not in request:
        raise InvalidJobError("request.model: is missing; name the model to use")
    model = request["model"]
    if (
        not isinstance(model, str)
        or not model.isprintable()
        or not 0 < len(model) <= schemas.job.MAX_MODEL_CHARS
    ):
        raise InvalidJobError(
            f"request.model: must be a printable text of 1 to {schemas.job.MAX_MODEL_CHARS} characters"
        )


def _address(delivery: Delivery, job_id: str, tenant: str, policy: ReplyPolicy) -> ReplyAddress:
    queue = delivery.reply_to or None
    if queue is not None and not policy.allows(queue, tenant):
        raise InvalidJobError("reply_to: this queue may not be replied to; use a reply queue of your own")
    return ReplyAddress(queue=queue, correlation_id=delivery.correlation_id or job_id)


# ---------------------------------------------------------------- no job


def _rejection(reason: str, data: Mapping[str, Any], delivery: Delivery, policy: ReplyPolicy) -> Rejection:
    """Name the job as far as the message does, so that its producer knows which one was refused."""
    job_id = _usable(_JOB_ID, data.get("job_id", delivery.message_id))
    tenant = _usable(_TENANT, data.get("tenant", schemas.job.DEFAULT_TENANT if data else None))
    queue = delivery.reply_to
    address = None
    # Whose patterns count is what the broker vouches for, before what the body claims.
    if queue and policy.allows(queue, delivery.user_id or tenant):
        address = ReplyAddress(queue=queue, correlation_id=delivery.correlation_id or job_id or "")
    return Rejection(
        reason=reason,
        job_id=job_id,
        tenant=tenant,
        kind=_usable_kind(data.get("kind")),
        address=address,
    )


def _usable(adapter: TypeAdapter[str], value: object) -> str | None:
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError:
        return None


def _usable_kind(value: object) -> Kind | None:
    return Kind(value) if isinstance(value, str) and value in Kind.__members__.values() else None
