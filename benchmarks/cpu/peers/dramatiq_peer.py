"""Dramatiq: an actor that sends its reply to an actor of the producer. Started by `dramatiq`.

Its result backends are Redis and Memcached, and its queues classic ones: it has no option for quorum queues.
"""

from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.middleware import CurrentMessage
from openai import OpenAI

from benchmarks.cpu.peers.sample import SAMPLE_ID, samples
from benchmarks.cpu.peers.shared import (
    AMQP_URL,
    insertion,
    metadata,
    reply,
    sync_engine,
)

broker = RabbitmqBroker(url=AMQP_URL, confirm_delivery=True)
broker.add_middleware(CurrentMessage())
dramatiq.set_broker(broker)
engine = sync_engine()
client = OpenAI()
metadata.create_all(engine)


@dramatiq.actor(queue_name="bench.replies.dramatiq")
def answered(outcome: dict[str, Any]) -> None:
    """Stand for what the producer runs on a reply; workers do not consume its queue."""


@dramatiq.actor(queue_name="bench.dramatiq")
def complete(request: dict[str, Any]) -> None:
    """Handle one job."""
    message = CurrentMessage.get_current_message()
    assert message is not None
    completion = client.chat.completions.create(**request)
    with engine.begin() as connection:
        connection.execute(insertion(message.message_id, completion))
    answered.send(reply(message.message_id, completion))


if __name__ == "__main__":
    broker.declare_queue(answered.queue_name, ensure=True)
    for sample in samples():
        broker.enqueue(complete.message(sample).copy(message_id=SAMPLE_ID))
