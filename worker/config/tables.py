"""The tables of `worker.toml`: what is too rich for an environment variable."""

from collections.abc import Mapping
from datetime import date
from itertools import combinations
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from worker.config.forms import Dollars, HeaderId, HttpUrl, Name, Regex, Variable, Weight, commas, whole
from worker.domain.usage import Meter

_MOST = 1_000_000_000
Count = Annotated[int, whole(1, _MOST)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class LimitTable(_Table):
    """`[limits."<model or glob>"]`: what OpenAI grants these models; None where nothing is said."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    max_concurrency: Count | None = None


class TenantTable(_Table):
    """`[tenants.<name>]`: what one tenant may do, and whose credentials pay for it."""

    weight: Weight = 1.0
    budget_usd_per_month: Dollars | None = None
    credentials: Annotated[tuple[Name, ...], BeforeValidator(commas)] = ()
    """One name, or several whose limits are used together."""
    reply_to_pattern: Regex | None = None
    max_concurrency: Count | None = None


class RetentionTable(_Table):
    """`[retention]`: days after a job's end for which its content is kept; None keeps it for good."""

    requests: Count | None = None
    results: Count | None = None
    attempts: Count | None = None


class CredentialTable(_Table):
    """`[credentials.<name>]`: one more account at OpenAI; its key stays in the environment."""

    api_key_env: Variable
    organization: HeaderId | None = None
    project: HeaderId | None = None
    base_url: HttpUrl | None = None


class ModelsTable(_Table):
    """`[models]`: names that jobs may use, and the models that they mean."""

    aliases: Mapping[Name, Name] = Field(default_factory=dict)


class UnitsTable(_Table):
    """US dollars per million tokens; in `meters` per million of whatever they count."""

    input: Dollars
    cached_input: Dollars
    cache_write: Dollars
    output: Dollars
    meters: Mapping[Meter, Dollars] = Field(default_factory=dict)


class StepTable(UnitsTable):
    """What the whole request costs once its input exceeds `input_tokens`."""

    input_tokens: Count


class PriceTable(UnitsTable):
    """`[prices."<model>"]`: the prices of a model or a glob of models; `valid_to` is the last day."""

    above: tuple[StepTable, ...] = ()
    service_tier: Name | None = None
    valid_from: date | None = None
    valid_to: date | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.valid_from and self.valid_to and self.valid_from > self.valid_to:
            raise ValueError("valid_from must not be after valid_to")
        return self

    def overlaps(self, other: "PriceTable") -> bool:
        """Tell whether both claim the same tier on the same day."""
        return (
            self.service_tier == other.service_tier
            and (self.valid_from or date.min) <= (other.valid_to or date.max)
            and (other.valid_from or date.min) <= (self.valid_to or date.max)
        )


def _as_list(value: object) -> object:
    return [value] if isinstance(value, dict) else value


def _no_overlap(prices: tuple[PriceTable, ...]) -> tuple[PriceTable, ...]:
    if any(one.overlaps(other) for one, other in combinations(prices, 2)):
        raise ValueError("must not hold two prices for the same service tier and day")
    return prices


Prices = Annotated[tuple[PriceTable, ...], BeforeValidator(_as_list), AfterValidator(_no_overlap)]
