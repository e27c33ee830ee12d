"""Celery: a task whose result goes to the producer's queue by the rpc backend. Started by `celery worker`."""

import sys
from typing import Any

from celery import Celery, Task
from celery.signals import worker_ready
from openai import OpenAI

from benchmarks.cpu.peers.sample import SAMPLE_ID, samples
from benchmarks.cpu.peers.shared import (
    AMQP_URL,
    insertion,
    metadata,
    reply,
    sync_engine,
)

app = Celery("benchmarks.cpu.peers.celery_peer", broker=AMQP_URL, backend="rpc://")
app.conf.update(
    task_default_queue="bench.celery",
    task_default_queue_type="quorum",
    task_default_exchange_type="topic",
    broker_transport_options={"confirm_publish": True},
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    result_persistent=True,
    worker_enable_remote_control=False,
)
engine = sync_engine()
client = OpenAI()


@app.on_after_finalize.connect
def make_table(**_: Any) -> None:
    """Make the table."""
    metadata.create_all(engine)


@worker_ready.connect
def say_so(**_: Any) -> None:
    """Tell who waits for it; the log level that Celery starts with does not."""
    print("tasks may come", flush=True)


@app.task(bind=True, name="complete")
def complete(self: Task, request: dict[str, Any]) -> dict[str, Any]:
    """Handle one job."""
    job_id = self.request.id
    completion = client.chat.completions.create(**request)
    with engine.begin() as connection:
        connection.execute(insertion(job_id, completion))
    return reply(job_id, completion)


if __name__ == "__main__":
    for sample in samples():
        complete.apply_async((sample,), task_id=SAMPLE_ID, reply_to=sys.argv[1])
