"""What settled requests teach."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.domain.learned import corrected_input, usual_output
from worker.domain.quota import Sample


def test_an_estimate_that_is_too_high_is_corrected() -> None:
    """After many requests that used 70 % of their estimate, the next is taken for 70 %."""
    sample = Sample(requests=1000, estimated_input=100_000, used_input=70_000)
    assert 70 <= corrected_input(sample, 100) <= 72


def test_much_larger_requests_are_corrected_in_part() -> None:
    """Beyond four times the usual size the estimate stands."""
    sample = Sample(requests=1000, estimated_input=100_000, used_input=70_000)
    assert 50_000 - 121 <= corrected_input(sample, 50_000) <= 50_000


def test_output_is_known_after_a_few() -> None:
    """A tenth above the mean; not before there are five."""
    assert usual_output(Sample(open_requests=4, open_output=400)) is None
    assert usual_output(Sample(open_requests=10, open_output=1000)) == pytest.approx(110)


@given(
    requests=st.floats(0, 1e6),
    estimated=st.floats(0, 1e9),
    used=st.floats(0, 1e9),
    estimate=st.floats(0, 1e6),
)
def test_a_correction_stays_within_reason(
    requests: float, estimated: float, used: float, estimate: float
) -> None:
    """Whatever was seen, a request is reserved a fifth to three times its estimate."""
    sample = Sample(requests=requests, estimated_input=estimated, used_input=used)
    assert 0.2 * estimate - 1e-6 <= corrected_input(sample, estimate) <= 3 * estimate + 1e-6
