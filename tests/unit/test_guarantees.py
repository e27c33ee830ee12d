"""What is guaranteed is shown: the tests that the document names are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEFINED = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"def (test_\w+)", path.read_text())
}


def test_named_tests_exist() -> None:
    """No guarantee leans on a test that is gone."""
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "guarantees.md").read_text()))
    assert len(named) > 50
    assert named <= DEFINED, named - DEFINED


def test_every_fault_test_backs_a_guarantee() -> None:
    """A fault that is tested is told to those who rely on it."""
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "guarantees.md").read_text()))
    faults = {
        name
        for path in (ROOT / "tests" / "faults").glob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert faults <= named, faults - named
