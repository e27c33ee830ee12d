"""The worker, made to die or to lie at a named step.

`FAILPOINT="finish:before:kill" python -m tests.support.failpoints run` is `python -m worker run` whose first
call of `JobStore.finish` ends the process like `kill -9`. The program itself knows nothing of this: the steps
are wrapped from here, and what is installed does not contain this file, so that no setting can switch it on.

`<step>:<before|after>:<action>[@<text>][#<n>]`: act at the n-th call (1 unless told otherwise; `*`: each)
whose arguments contain the text. Several are separated by blanks.
"""

import functools
import inspect
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import aiormq

import worker.adapters.rabbitmq.consumer as consumer_module
from worker.adapters.database.store import SqlJobStore, SqlOutbox
from worker.adapters.database.writer import GroupCommit
from worker.adapters.openai_api.client import OpenAIClient
from worker.adapters.rabbitmq.publisher import RabbitPublisher
from worker.cli.main import run

FAILPOINT: Final = "FAILPOINT"

STEPS: Final[dict[str, tuple[Any, str]]] = {
    "claim": (SqlJobStore, "claim"),
    "next_attempt": (SqlJobStore, "next_attempt"),
    "progress": (SqlJobStore, "progress"),
    "finish": (SqlJobStore, "finish"),
    "wait": (SqlJobStore, "wait"),
    "sent": (SqlOutbox, "sent"),
    "transaction": (GroupCommit, "_transact"),
    "send": (OpenAIClient, "send"),
    "reply": (RabbitPublisher, "reply"),
    "park": (RabbitPublisher, "park"),
    "bury": (RabbitPublisher, "bury"),
    "confirm": (aiormq.Channel, "_on_confirm_frame"),
    "ack": (consumer_module, "settle"),
}
"""`transaction` is a whole one, COMMIT included; `confirm` is the broker's confirmation as it comes in."""

_SYNTAX: Final = re.compile(r"(\w+):(before|after):(\w+)(?:@(.+?))?(?:#(\d+|\*))?")


class Failpoint(NamedTuple):
    """One thing that goes wrong."""

    step: str
    after: bool
    action: str
    text: str
    at: int | None
    """At which matching call; None: at each."""

    @classmethod
    def parse(cls, spec: str) -> "Failpoint":
        """Read one. Raises SystemExit with what is wrong: a test that names no step must not pass."""
        found = _SYNTAX.fullmatch(spec)
        if found is None or found[1] not in STEPS or found[3] not in ACTIONS:
            sys.exit(f"no such failpoint: {spec}")
        at = None if found[5] == "*" else int(found[5] or 1)
        return cls(found[1], found[2] == "after", found[3], found[4] or "", at)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _freeze() -> None:
    """Stand still until somebody sends SIGCONT: a virtual machine that is moved, a long page-in."""
    os.kill(os.getpid(), signal.SIGSTOP)


def _lose() -> None:
    raise ConnectionResetError("failpoint")


def _refuse() -> None:
    raise ValueError("failpoint")


ACTIONS: Final[dict[str, Callable[[], None]]] = {
    "kill": _kill,
    "freeze": _freeze,
    "lose": _lose,
    "refuse": _refuse,
}


class _Trigger:
    """Counts the calls of one failpoint."""

    def __init__(self, failpoint: Failpoint) -> None:
        self.failpoint = failpoint
        self._calls = 0

    def act(self, arguments: object) -> None:
        """Act if this is the call."""
        point = self.failpoint
        if point.text not in repr(arguments):
            return
        self._calls += 1
        if point.at in {None, self._calls}:
            sys.stderr.write(f'{{"message": "failpoint {point.step}"}}\n')
            sys.stderr.flush()
            ACTIONS[point.action]()


def _wrapped(function: Callable[..., Any], trigger: _Trigger) -> Callable[..., Any]:
    before, after = (None, trigger.act) if trigger.failpoint.after else (trigger.act, None)

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        if before:
            before((arguments, named))
        result = function(*arguments, **named)
        if after:
            after((arguments, named))
        return result

    @functools.wraps(function)
    async def call_async(*arguments: Any, **named: Any) -> Any:
        if before:
            before((arguments, named))
        result = await function(*arguments, **named)
        if after:
            after((arguments, named))
        return result

    return call_async if inspect.iscoroutinefunction(function) else call


def install(specs: str) -> None:
    """Wrap the steps."""
    for spec in specs.split():
        trigger = _Trigger(Failpoint.parse(spec))
        owner, name = STEPS[trigger.failpoint.step]
        setattr(owner, name, _wrapped(getattr(owner, name), trigger))


if __name__ == "__main__":
    install(os.environ[FAILPOINT])
    run()
