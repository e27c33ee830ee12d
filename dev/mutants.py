"""Break one promise at a time in a copy of the project, and show that a test notices.

`python -m dev.mutants [NAME…]`, below `dev.servers run --rabbitmq --postgres`, prints a JSON line a mutant;
exit code 1 where one survives. The working tree is only read.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("worker", "schemas", "migrations", "tests", "dev", "examples", "pyproject.toml")
TIMEOUT_SECONDS = 900
TESTS_FAILED = 1
"""pytest's exit code; any other but 0 means that it could not run them."""
AT_ONCE = len(os.sched_getaffinity(0)) + 1
"""Mutants that are tried at a time: their tests wait most of it."""

PROCESSOR = "worker/core/processor.py"
CRASHES = "tests/faults/test_crash_points.py"
MACHINE = "tests/faults/test_store_machine.py"


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A promise, the edits that break it (file, text, replacement), and the tests that must fail."""

    name: str
    edits: Sequence[tuple[str, str, str]]
    tests: Sequence[str]


def migration(revision: str) -> str:
    """Return the path of the migration to a revision."""
    folder = ROOT / "migrations" / "versions"
    return str(next(folder.glob(f"*_{revision}_*.py")).relative_to(ROOT))


MUTANTS = (
    Mutant(
        name="SQLite compares no rows with what was foreseen",
        edits=[
            (
                "worker/adapters/database/many.py",
                "where(exists().where(*same, *rest))",
                "where(exists().where(*same))",
            )
        ],
        tests=["tests/integration/test_foresight_sqlite.py"],
    ),
    Mutant(
        name="no unique key on attempts",
        edits=[
            (
                migration("0001"),
                '        sa.PrimaryKeyConstraint("job_id", "tenant", "attempt_no", name="pk_attempts"),\n',
                "",
            )
        ],
        tests=[f"{MACHINE}::test_store_survives_every_order_of_events[sqlite]"],
    ),
    Mutant(
        name="no unique key on the ledger",
        edits=[
            (
                migration("0003"),
                '["received_at", *OLD], unique=True)',
                '["received_at", *OLD])',
            )
        ],
        tests=[f"{MACHINE}::test_store_survives_every_order_of_events[sqlite]"],
    ),
    Mutant(
        name="acknowledged before the outcome is committed",
        edits=[
            (
                PROCESSOR,
                "            return await self._finish(place",
                (
                    "            await place.settle(Settlement.ACK)\n"
                    "            return await self._finish(place"
                ),
            )
        ],
        tests=[f"{CRASHES}::test_cp05_killed_with_the_answer_in_memory[sqlite]"],
    ),
    Mutant(
        name="a job that is claimed waits for no place",
        edits=[(PROCESSOR, "            await _enter(place, run)\n", "")],
        tests=["tests/e2e/test_places.py"],
    ),
    Mutant(
        name="the SDK retries by itself",
        edits=[("worker/adapters/openai_api/client.py", "max_retries=0", "max_retries=2")],
        tests=["tests/faults/test_openai_faults.py::test_d03_failures_that_are_worth_a_second_try"],
    ),
    Mutant(
        name="one connection for consuming and publishing",
        edits=[("worker/assembly.py", "RabbitPublisher(publishing)", "RabbitPublisher(consuming)")],
        tests=["tests/faults/test_broker_faults.py::test_b04_memory_alarm"],
    ),
    Mutant(
        name="one channel for replies and copies",
        edits=[
            (
                "worker/adapters/rabbitmq/publisher.py",
                "self._copies = Outlet(link, timeout=timeout)",
                "self._copies = self._replies",
            )
        ],
        tests=["tests/integration/test_rabbitmq_publisher.py::test_a_missing_room_fails_no_reply"],
    ),
    Mutant(
        name="a returned reply counts as delivered",
        edits=[
            (
                "worker/adapters/rabbitmq/outlet.py",
                "        except ReturnedError:\n            return False",
                "        except ReturnedError:\n            return True",
            )
        ],
        tests=[f"{CRASHES}::test_cp12_reply_queue_that_is_gone[sqlite]"],
    ),
    Mutant(
        name="a redelivered job counts as done",
        edits=[
            (
                PROCESSOR,
                "        job = self._decode(delivery)\n",
                (
                    "        if delivery.redelivered:\n            return Settlement.ACK\n"
                    "        job = self._decode(delivery)\n"
                ),
            )
        ],
        tests=[f"{CRASHES}::test_cp01_killed_before_the_claim[sqlite]"],
    ),
    Mutant(
        name="a job that is not marked redelivered counts as new",
        edits=[
            (
                "worker/adapters/database/claim.py",
                "            case Refuse.DONE:\n",
                "            case Refuse.DONE if False:\n",
            ),
            (
                "worker/domain/claims.py",
                "    if standing.status.terminal:\n        return Refuse.DONE\n",
                "",
            ),
        ],
        tests=[
            "tests/e2e/test_first_light.py::test_the_same_job_twice_is_one_call_and_two_equal_replies[sqlite]"
        ],
    ),
    Mutant(
        name="money in floating point",
        edits=[
            (
                "worker/domain/prices.py",
                "_half_even(sum(count * price for count, price in lines))",
                "round(sum(count * (price / 1e12) for count, price in lines) * 1000)",
            )
        ],
        tests=["tests/unit/test_prices.py"],
    ),
    Mutant(
        name="what is handed back is rejected instead",
        edits=[("worker/adapters/rabbitmq/wire.py", "_REQUEUE: Final = 2", "_REQUEUE: Final = 0")],
        tests=[f"{CRASHES}::test_cp14_told_to_stop_during_a_call[sqlite]"],
    ),
    Mutant(
        name="settled on a channel that has closed",
        edits=[
            (
                "worker/adapters/rabbitmq/connection.py",
                "connection is None or connection.channels.get(channel.number) is not channel",
                "connection is None",
            )
        ],
        tests=["tests/integration/test_rabbitmq_settling.py::test_what_comes_too_late_disturbs_nobody"],
    ),
    Mutant(
        name="a small reply overtakes a large one that is counted already",
        edits=[("worker/adapters/rabbitmq/outlet.py", "not self._with_driver and ", "")],
        tests=[
            "tests/integration/test_rabbitmq_publisher.py::test_replies_leave_in_the_order_of_their_numbers"
        ],
    ),
    Mutant(
        name="waiting by requeueing",
        edits=[
            (
                PROCESSOR,
                (
                    "        await self._publisher.park(delivery, room_seconds(seconds))\n"
                    "        return Settlement.ACK"
                ),
                "        return Settlement.REQUEUE",
            )
        ],
        tests=["tests/faults/test_duplicates.py::test_a05_copy_while_the_first_is_at_work_elsewhere[sqlite]"],
    ),
    Mutant(
        name="the request leaves before its intent is written",
        edits=[
            (
                "worker/core/processor.py",
                "        admitted = (permit, intent) if permit and intent else None\n",
                "        admitted = (permit, intent) if permit and intent else None\n        intent = None\n",
            )
        ],
        tests=[f"{CRASHES}::test_cp04_killed_while_openai_answers[sqlite]"],
    ),
    Mutant(
        name="no fencing: a zombie may finish",
        edits=[
            (
                "worker/adapters/database/finish.py",
                "return job.lease_token == self.finish.lease_token and not waits",
                "return not waits",
            ),
            (
                "worker/adapters/database/finish.py",
                "if holds(job, self.finish.lease_token):",
                "if True:",
            ),
        ],
        tests=[f"{CRASHES}::test_cp16_worker_that_stood_still_and_wakes_up[sqlite]"],
    ),
    Mutant(
        name="a lost attempt costs nothing",
        edits=[
            (
                "worker/adapters/database/claim.py",
                "        if attempt.state is AttemptState.IN_FLIGHT:",
                "        if False:",
            )
        ],
        tests=[f"{CRASHES}::test_cp05_killed_with_the_answer_in_memory[sqlite]"],
    ),
    Mutant(
        name="poison is buried after its end",
        edits=[
            (PROCESSOR, "            await self._publisher.bury(delivery, reason)\n", "            pass\n"),
            (
                PROCESSOR,
                "        await self._replies.deliver(finish.reply)\n",
                (
                    "        if run.claimed.takeovers > self._services.policy.max_takeovers:\n"
                    '            await self._publisher.bury(self._delivery, "poison")\n'
                    "        await self._replies.deliver(finish.reply)\n"
                ),
            ),
            (
                PROCESSOR,
                "        self._running[run.job.key] = run\n",
                "        self._running[run.job.key] = run\n        self._delivery = delivery\n",
            ),
        ],
        tests=["tests/faults/test_broker_faults.py::test_b08_killed_with_the_poison_in_hand"],
    ),
    Mutant(
        name="what breaks is always handed back",
        edits=[
            (
                "worker/adapters/rabbitmq/fuse.py",
                "while settlement is None and self.blown:",
                "while settlement is None and self.blown and False:",
            )
        ],
        tests=[
            "tests/integration/test_rabbitmq_consumer_errors.py::test_where_everything_breaks_nothing_is_given_up"
        ],
    ),
    Mutant(
        name="an answer that the database refuses twice is dropped",
        edits=[
            (
                "worker/core/ending.py",
                "            if tries % 2 == 0:\n                await services.clock.sleep(_REFUSED_PAUSE)",
                "            if tries % 2 == 0:\n                raise",
            )
        ],
        tests=[
            (
                "tests/faults/test_database_faults.py::"
                "test_c09_database_changes_its_shape_during_a_call[sqlite]"
            )
        ],
    ),
    Mutant(
        name="nobody sweeps owed replies",
        edits=[
            (
                "worker/core/replies.py",
                "        owed = await self._outbox.due(_SWEEP_SIZE)",
                "        owed = list[OwedReply]()",
            )
        ],
        tests=["tests/faults/test_duplicates.py::test_a03_owed_reply_without_any_copy_of_its_job"],
    ),
    Mutant(
        name="a database that is away fails the job",
        edits=[
            (
                "worker/adapters/database/writer.py",
                "if (kind := trouble(error)) is Trouble.REFUSED:",
                "if (kind := trouble(error)) is not Trouble.AGAIN:",
            )
        ],
        tests=[f"{CRASHES}::test_cp05_database_gone_with_the_answer_in_memory[sqlite]"],
    ),
    Mutant(
        name="an error message is passed on as it is",
        edits=[
            (
                "worker/adapters/openai_api/outcomes.py",
                "safe_message(said, request_body)",
                "said",
            )
        ],
        tests=["tests/faults/test_hostile.py::test_f13_content_of_a_request_that_openai_quotes"],
    ),
)


def main(names: Sequence[str]) -> int:
    """Try the mutants, or those whose names contain one of the words."""
    chosen = [one for one in MUTANTS if not names or any(name in one.name for name in names)]
    # A test that fails without any mutant would catch them all.
    if not chosen or not _sound(chosen):
        return 1
    with ThreadPoolExecutor(AT_ONCE) as pool:
        caught = list(pool.map(_shown, chosen))
    return 0 if all(caught) else 1


def _sound(chosen: Sequence[Mutant]) -> bool:
    """Show that the tests pass on the code as it is."""
    tests = tuple(dict.fromkeys(test for mutant in chosen for test in mutant.tests))
    with tempfile.TemporaryDirectory() as folder:
        _copy(Path(folder))
        code, output = _test(Path(folder), ("-n", "auto", "--dist", "worksteal", *tests))
    value = "passes" if code == 0 else "fails"
    return _figure("no mutant", value, goal="passes", output=output)


def _figure(name: str, value: str, *, goal: str, output: str) -> bool:
    ok = value == goal
    line = {"figure": name, "value": value, "unit": "", "goal": goal, "ok": ok}
    if not ok:
        line["output"] = output[-1500:]
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
    return ok


def _shown(mutant: Mutant) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        _copy(Path(folder))
        problem = _break(Path(folder), mutant)
        code, output = (-1, problem) if problem else _test(Path(folder), mutant.tests)
    value = {TESTS_FAILED: "caught", 0: "survived"}.get(code, "not tried")
    return _figure(f"mutant: {mutant.name}", value, goal="caught", output=output)


def _copy(tree: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.db*"))
        else:
            shutil.copy(source, tree / name)


def _break(tree: Path, mutant: Mutant) -> str:
    """Edit the copy; return what is wrong with the mutant itself, or nothing."""
    for name, text, replacement in mutant.edits:
        path = tree / name
        source = path.read_text()
        if source.count(text) != 1:
            return f"{name} has {source.count(text)} times: {text}"
        path.write_text(source.replace(text, replacement))
    return ""


def _test(tree: Path, tests: Sequence[str]) -> tuple[int, str]:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "--tb=short",
        *tests,
    ]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(  # noqa: S603 (our own fixed command)
        command,
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
