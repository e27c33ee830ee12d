"""How far estimates are off, from requests that are settled."""

from typing import Final

from worker.domain.quota import Sample

_PRIOR_TOKENS: Final = 2000.0
"""Estimated input tokens that count as exact, so that the first few requests do not decide everything."""
_ENOUGH: Final = 5
"""Settled requests without a maximum before their mean output is believed."""
_MARGIN: Final = 1.1
_BOUNDS: Final = (0.2, 3.0)
_USUAL: Final = 4.0
"""Times the mean."""


def corrected_input(sample: Sample, estimate: float) -> float:
    """Return an estimate of input tokens as settled requests suggest.

    What is much larger than any seen so far is not corrected in that part: short
    requests are off by what they all have in common.
    """
    used = sample.used_input + _PRIOR_TOKENS
    factor = min(_BOUNDS[1], max(_BOUNDS[0], used / (sample.estimated_input + _PRIOR_TOKENS)))
    usual = _USUAL * sample.estimated_input / max(1.0, sample.requests)
    return factor * min(estimate, usual) + max(0.0, estimate - usual)


def usual_output(sample: Sample) -> float | None:
    """Return the output to reserve where a request sets no maximum; None: not known yet."""
    if sample.open_requests < _ENOUGH:
        return None
    return _MARGIN * sample.open_output / sample.open_requests
