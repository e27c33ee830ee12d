"""Every setting, with its default and meaning. A field's name in capitals is its environment variable."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from typing_extensions import override

from schemas.names import LANES, SERVED
from worker.config import forms
from worker.config.forms import seconds, whole
from worker.config.tables import CredentialTable, LimitTable, ModelsTable, Prices, RetentionTable, TenantTable

_DAY: Final = 86_400
_MOST: Final = 1_000_000_000


def _something_served(lanes: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse lanes of which none is served: such a worker would stand by and look well."""
    if set(lanes).isdisjoint(SERVED):
        served = ", ".join(SERVED)
        raise ValueError(f"must name a lane that this version serves ({served}), not only {lanes[0]}")
    return lanes


Lanes = Annotated[
    tuple[str, ...],
    BeforeValidator(forms.commas),
    forms.one_of(*LANES),
    AfterValidator(_something_served),
]
PerMinute = Annotated[int, whole(1, _MOST)]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(forms.lower)]
LogFormat = Annotated[Literal["auto", "text", "json"], BeforeValidator(forms.lower)]


class Variables(BaseSettings):
    """The settings that an environment variable can hold."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=False,
        hide_input_in_errors=True,
        enable_decoding=False,
        env_ignore_empty=True,
    )

    openai_api_key: forms.Key | None = Field(None, description="key of the default credentials")
    openai_org_id: forms.HeaderId | None = Field(None, description="organization of the default credentials")
    openai_project_id: forms.HeaderId | None = Field(None, description="project of the default credentials")
    openai_base_url: forms.HttpUrl | None = Field(
        None,
        description="OpenAI's address, where it is not `https://api.openai.com/v1`; it ends in `/v1`",
    )
    openai_admin_key: forms.Key | None = Field(
        None, description="key for the organization's own cost reports"
    )
    amqp_url: forms.AmqpUrl = Field(
        SecretStr("amqp://guest:guest@127.0.0.1:5672/"),
        description="broker; `amqps://` verifies certificates",
    )
    database_url: forms.DatabaseUrl = Field(
        SecretStr("sqlite:///openai-worker.db"),
        description="SQLAlchemy URL, SQLite or PostgreSQL; the program chooses the async driver",
    )
    redis_url: forms.RedisUrl | None = Field(
        None, description="for the response cache, which this version does not have; not used"
    )
    worker_lanes: Lanes = Field(
        LANES, description="comma-separated lanes to consume; `batch` is not served by this version"
    )
    worker_concurrency: Annotated[int, whole(1, 4096)] = Field(128, description="jobs in flight per process")
    worker_requests_per_minute: PerMinute | None = Field(
        None, description="default limit of requests per model, shared by all workers on the same database"
    )
    worker_tokens_per_minute: PerMinute | None = Field(
        None, description="default limit of tokens per model, shared likewise"
    )
    worker_max_attempts: Annotated[int, whole(1, 100)] = Field(
        6, description="OpenAI requests that one job step may cost"
    )
    worker_job_timeout: Annotated[float, seconds(1, _DAY)] = Field(
        300.0, description="seconds for one job, waiting for limits excluded"
    )
    worker_lease_seconds: Annotated[float, seconds(1, 3600)] = Field(
        60.0, description="seconds that a claim outlives its worker's last sign of life"
    )
    worker_grace_seconds: Annotated[float, seconds(0, _DAY)] = Field(
        30.0, description="seconds to finish after SIGTERM"
    )
    worker_startup_timeout: Annotated[float, seconds(0, 3600)] = Field(
        30.0, description="seconds to wait for a server at the start before giving up with exit code 3"
    )
    worker_http_host: forms.Name = Field("127.0.0.1", description="address of health and metrics")
    worker_http_port: Annotated[int, whole(0, 65_535)] = Field(
        8080, description="port of health and metrics; 0 picks a free one and logs it"
    )
    worker_reply_to_pattern: forms.Regex | None = Field(
        None,
        description="regular expression that the whole name of a reply queue must match; unset: any name "
        "but `openai.*` and `amq.*`, plus `amq.gen-*` and direct reply-to",
    )
    worker_tools: forms.Modules = Field(
        (),
        description="comma-separated Python modules to import tools from, besides those announced by the "
        "entry point group `openai_worker.tools`",
    )
    worker_max_job_bytes: Annotated[int, whole(1, 134_217_728)] = Field(
        8_388_608, description="larger messages are refused unread"
    )
    worker_auto_setup: bool = Field(
        default=True,
        description="`run` applies migrations and topology itself; set false in production",
    )
    worker_log_level: LogLevel = Field("info", description="debug, info, warning or error")
    worker_log_format: LogFormat = Field(
        "auto", description="text, json, or auto: coloured text on a terminal, JSON lines elsewhere"
    )


class Settings(Variables):
    """All settings: the variables, and the tables that only the file can hold."""

    limits: Mapping[str, LimitTable] = Field(default_factory=dict)
    tenants: Mapping[str, TenantTable] = Field(default_factory=dict)
    credentials: Mapping[str, CredentialTable] = Field(default_factory=dict)
    models: ModelsTable = Field(default_factory=ModelsTable)
    prices: Mapping[str, Prices] = Field(default_factory=dict)
    retention: RetentionTable = Field(default_factory=RetentionTable)

    @classmethod
    @override
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # Bound to Variables: a stray LIMITS or MODELS in the environment is not ours.
        return EnvSettingsSource(Variables), init_settings
