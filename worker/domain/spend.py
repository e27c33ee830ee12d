"""What a job has cost so far, over all its attempts."""

from dataclasses import dataclass, field, replace

from schemas.usage import CostStatus
from worker.domain.attempt import Entry, LedgerEntry
from worker.domain.usage import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """Sums over a job's ledger rows; `cost_nano_usd` counts the priced ones only."""

    requests: int = 0
    usage: Usage = field(default_factory=Usage)
    cost_nano_usd: int = 0
    estimated: bool = False
    unpriced: bool = False

    def plus(self, entry: LedgerEntry) -> "Spend":
        """Return the spend with one more row."""
        mine, more = self.usage, entry.usage
        return replace(
            self,
            requests=self.requests + 1,
            usage=Usage(
                input_tokens=mine.input_tokens + more.input_tokens,
                cached_input_tokens=mine.cached_input_tokens + more.cached_input_tokens,
                cache_write_tokens=mine.cache_write_tokens + more.cache_write_tokens,
                output_tokens=mine.output_tokens + more.output_tokens,
                reasoning_tokens=mine.reasoning_tokens + more.reasoning_tokens,
            ),
            cost_nano_usd=self.cost_nano_usd + (entry.cost_nano_usd or 0),
            estimated=self.estimated or entry.entry is Entry.ESTIMATED,
            unpriced=self.unpriced or entry.cost_nano_usd is None,
        )

    @property
    def cost_status(self) -> CostStatus:
        """Unpriced wins over estimated: an incomplete sum is no sum."""
        if self.unpriced:
            return CostStatus.UNPRICED
        return CostStatus.ESTIMATED if self.estimated else CostStatus.PRICED
