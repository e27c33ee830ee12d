"""What settled requests teach of those to come: how far estimates are off, how long answers are."""

from collections.abc import Mapping
from typing import Final

from worker.core.limits import Need
from worker.domain.learned import corrected_input, usual_output
from worker.domain.quota import Sample
from worker.domain.usage import Usage

_TELL_SECONDS: Final = 5.0
_MODELS: Final = 500
"""Models are names that producers choose; only so many are kept."""


class Samples:
    """Sums by model: those of all workers as last heard, and those to be told."""

    def __init__(self) -> None:
        self._known: dict[str, Sample] = {}
        self._news: dict[str, Sample] = {}
        self._told_at = -1e9

    def tokens(self, need: Need) -> float:
        """Return the tokens to reserve."""
        known = self._known.get(need.model)
        if known is None:
            if need.model not in self._news and len(self._news) < _MODELS:
                self._news[need.model] = Sample()  # asks what the others know
            return need.input_tokens + need.output_tokens
        output = usual_output(known) if need.open_ended else None
        return corrected_input(known, need.input_tokens) + (need.output_tokens if output is None else output)

    def settled(self, need: Need, usage: Usage) -> None:
        """Take in what a request has used."""
        more = Sample(
            requests=1,
            estimated_input=need.input_tokens,
            used_input=usage.input_tokens,
            open_requests=float(need.open_ended),
            open_output=usage.output_tokens if need.open_ended else 0.0,
        )
        if need.model in self._news or len(self._news) < _MODELS:
            self._news[need.model] = self._news.get(need.model, Sample()).plus(more)

    def news(self, now: float) -> Mapping[str, Sample]:
        """Return what the others have to be told, every few seconds."""
        if now - self._told_at < _TELL_SECONDS:
            return {}
        self._told_at = now
        news, self._news = self._news, {}
        return news

    def take_in(self, samples: Mapping[str, Sample]) -> None:
        """Take in the sums over all workers."""
        if len(self._known) + len(samples) > _MODELS:
            self._known.clear()
        self._known.update(samples)
