"""The fixtures of the suite. They live beside what they are about, in tests/support."""

import os

import pytest

pytest_plugins = [
    "tests.support.databases",
    "tests.support.servers",
    "tests.support.command",
    "tests.support.ledger",
    "tests.support.process",
    "tests.support.scene",
]

OURS = ("OPENAI_", "WORKER_")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the settings of whoever runs the tests out of them: above all their key."""
    for name in list(os.environ):
        if name.startswith(OURS):
            monkeypatch.delenv(name)
