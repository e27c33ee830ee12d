"""The wire contract as JSON Schema and as AsyncAPI, generated from the schemas and names."""

from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode
from typing_extensions import override

from schemas.cancel import Cancel
from schemas.job import Job
from schemas.names import (
    CANCEL_KEY,
    CHUNK_TYPE,
    CONTENT_TYPE,
    CONTROL,
    DEAD,
    JOBS,
    LANES,
    REPLY_TYPE,
    X_REASON,
    X_REPLY_ID,
    lane_key,
)
from schemas.reply import Reply
from schemas.stream import Chunk

VERSION: Final = "1.0.0"
"""Version of the contract; its first number is the `version` of each message."""

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
# What producers write is described as it is read, and what they read as it is written.
_MESSAGES: Final[dict[str, tuple[type[BaseModel], JsonSchemaMode]]] = {
    "job": (Job, "validation"),
    "cancel": (Cancel, "validation"),
    "reply": (Reply, "serialization"),
    "chunk": (Chunk, "serialization"),
}
_TEXT: Final = {"type": "string"}
_PERSISTENT: Final = 2


class _Written(GenerateJsonSchema):
    """Says of what the worker writes that fields with a value of their own are always there."""

    @override
    def field_is_required(self, field: Any, total: bool) -> bool:
        there = self.mode == "serialization" and field["schema"].get("default") is not None
        return there or super().field_is_required(field, total)


def json_schemas() -> dict[str, Any]:
    """Return one self-contained JSON Schema for each kind of message."""
    return {
        name: {"$schema": _DIALECT, **model.model_json_schema(mode=mode, schema_generator=_Written)}
        for name, (model, mode) in _MESSAGES.items()
    }


def asyncapi() -> dict[str, Any]:
    """Return the AsyncAPI 3 document of a worker: what it receives and what it sends."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "openai-worker",
            "version": VERSION,
            "description": "Jobs for OpenAI over RabbitMQ: one message in, one reply out.",
        },
        "defaultContentType": CONTENT_TYPE,
        "channels": _channels(),
        "operations": _operations(),
        "components": {"messages": _messages(), "schemas": _schemas()},
    }


def _channels() -> dict[str, Any]:
    keys = [lane_key(lane, high=high) for lane in LANES for high in (False, True)]
    return {
        "jobs": {
            "address": "{lane}",
            "description": "The routing key is the lane; `.high` goes before the others.",
            "parameters": {"lane": {"enum": keys}},
            "messages": _refer("job"),
            "bindings": _exchange(JOBS, "direct"),
        },
        "cancels": {
            "address": CANCEL_KEY,
            "messages": _refer("cancel"),
            "bindings": _exchange(CONTROL, "topic"),
        },
        "replies": {
            "address": None,
            "description": "The queue that the job's `reply_to` names, through the default exchange.",
            "messages": _refer("reply", "chunk"),
        },
        "dead": {
            "address": DEAD,
            "description": "What could not be processed, as it came, with its reason.",
            "messages": _refer("dead"),
            "bindings": {
                "amqp": {
                    "is": "queue",
                    "queue": {"name": DEAD, "durable": True, "exclusive": False, "autoDelete": False},
                    "bindingVersion": "0.3.0",
                }
            },
        },
    }


def _exchange(name: str, kind: str) -> dict[str, Any]:
    exchange = {"name": name, "type": kind, "durable": True, "autoDelete": False}
    return {"amqp": {"is": "routingKey", "exchange": exchange, "bindingVersion": "0.3.0"}}


def _refer(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/messages/{name}"} for name in names}


def _operations() -> dict[str, Any]:
    return {
        "receiveJob": _operation("receive", "jobs", "job")
        | {
            "reply": {
                "address": {"location": "$message.header#/reply_to"},
                "channel": {"$ref": "#/channels/replies"},
                "messages": [{"$ref": "#/channels/replies/messages/reply"}],
            }
        },
        "receiveCancel": _operation("receive", "cancels", "cancel"),
        "sendChunk": _operation("send", "replies", "chunk"),
        "sendDead": _operation("send", "dead", "dead"),
    }


def _operation(action: str, channel: str, message: str) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{message}"}],
        "bindings": {"amqp": {"deliveryMode": _PERSISTENT, "bindingVersion": "0.3.0"}},
    }


def _messages() -> dict[str, Any]:
    """Describe the messages. AMQP properties stand among the headers, under AMQP's own names."""
    job = {"reply_to": _TEXT, "correlation_id": _TEXT, "message_id": _TEXT, "user_id": _TEXT}
    answer = {"correlation_id": _TEXT, X_REPLY_ID: _TEXT}
    return {
        "job": _message("job", job),
        "cancel": _message("cancel", {}),
        "reply": _message("reply", answer | {"type": {"const": REPLY_TYPE}}),
        "chunk": _message("chunk", {"correlation_id": _TEXT, "type": {"const": CHUNK_TYPE}}),
        "dead": {"headers": _headers({X_REASON: _TEXT}), "payload": {}},
    }


def _message(name: str, headers: dict[str, Any]) -> dict[str, Any]:
    message = {
        "contentType": CONTENT_TYPE,
        "headers": _headers(headers),
        "payload": {"$ref": f"#/components/schemas/{name}"},
    }
    if "correlation_id" in headers:
        message["correlationId"] = {"location": "$message.header#/correlation_id"}
    return message


def _headers(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _schemas() -> dict[str, Any]:
    """Return the message schemas and the parts they share, all under one roof."""
    shared: dict[str, Any] = {}
    for name, (model, mode) in _MESSAGES.items():
        schema = model.model_json_schema(
            mode=mode, schema_generator=_Written, ref_template="#/components/schemas/{model}"
        )
        shared |= schema.pop("$defs", {})
        shared[name] = schema
    return shared
