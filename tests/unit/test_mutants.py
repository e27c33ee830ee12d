"""The list of mutants keeps up with the code that they break."""

import re

import pytest

from dev.mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_can_be_tried(mutant: Mutant) -> None:
    """Each text that it replaces is there once, and so are the tests that must notice."""
    for name, text, _ in mutant.edits:
        assert (ROOT / name).read_text().count(text) == 1, f"{name}: {text}"
    for test in mutant.tests:
        name, *path = test.split("::")
        function = path[-1].partition("[")[0] if path else "test_"
        assert re.search(rf"def {function}", (ROOT / name).read_text()), test
