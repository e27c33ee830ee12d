"""Settings: where they come from, and what is said when they are wrong."""

import os
import re
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined

from worker.config import ConfigError, Settings, load_settings, resolve_credentials
from worker.config.settings import Variables
from worker.config.tables import CredentialTable, LimitTable, PriceTable, RetentionTable, TenantTable

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"
EXAMPLE = Path(__file__).parents[2] / "worker.example.toml"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings but those of the test."""
    for name in list(os.environ):
        if name.lower() in Variables.model_fields or name.startswith("WORKER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def write(text: str) -> None:
    """Write the file that is read by default."""
    Path("worker.toml").write_text(text, encoding="utf-8")


def problems() -> list[str]:
    """Load settings that must be wrong."""
    with pytest.raises(ConfigError) as caught:
        load_settings()
    return list(caught.value.problems)


def test_nothing_need_be_set() -> None:
    """Without environment and file the documented defaults hold."""
    settings = load_settings()
    assert settings.amqp_url.get_secret_value() == "amqp://guest:guest@127.0.0.1:5672/"
    assert settings.worker_lanes == ("completion", "tool", "vision", "assistant", "embedding", "batch")
    assert (settings.worker_concurrency, settings.worker_requests_per_minute) == (128, None)


def test_a_worker_that_would_serve_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would consume nothing and look well; beside lanes that are served, one that is not does no harm."""
    monkeypatch.setenv("WORKER_LANES", "batch")
    (problem,) = problems()
    assert problem.startswith("WORKER_LANES: must name a lane that this version serves (completion, tool")
    assert problem.endswith("not only batch")
    monkeypatch.setenv("WORKER_LANES", "batch,tool")
    assert load_settings().worker_lanes == ("batch", "tool")


def test_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable beats the same setting in the file, and each source fills in what the other lacks."""
    write('worker_concurrency = 4\nworker_lanes = ["tool"]\n')
    monkeypatch.setenv("WORKER_CONCURRENCY", "7")
    monkeypatch.setenv("WORKER_JOB_TIMEOUT", "1.5")
    settings = load_settings()
    assert (settings.worker_concurrency, settings.worker_lanes) == (7, ("tool",))
    assert settings.worker_job_timeout == 1.5


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files pass empty variables for what is not set; they mean the default."""
    monkeypatch.setenv("WORKER_CONCURRENCY", "")
    assert load_settings().worker_concurrency == 128


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes and modules may be listed with spaces; a lane named twice counts once."""
    monkeypatch.setenv("WORKER_LANES", "tool, vision,tool")
    monkeypatch.setenv("WORKER_TOOLS", "shop.tools,weather")
    settings = load_settings()
    assert (settings.worker_lanes, settings.worker_tools) == (("tool", "vision"), ("shop.tools", "weather"))


def test_stray_variables_are_not_read_as_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A MODELS or LIMITS of some other program in the environment changes nothing."""
    monkeypatch.setenv("MODELS", "/var/models")
    monkeypatch.setenv("LIMITS", "none")
    assert load_settings().limits == {}


TABLES = """
[limits."gpt-6-*"]
requests_per_minute = 500
[tenants.acme]
weight = 3
budget_usd_per_month = 12.10
credentials = "acme"
[credentials.acme]
api_key_env = "ACME_KEY"
project = "proj_1"
[models.aliases]
fast = "gpt-6-luna"
[prices."gpt-6-luna"]
input = 0.1
cached_input = 0.01
cache_write = 0.125
output = 0.4
[[prices.own]]
input = 1
cached_input = 1
cache_write = 1
output = 2
valid_to = 2026-11-30
[[prices.own]]
input = 2
cached_input = 2
cache_write = 2
output = 4
valid_from = 2026-12-01
"""


def test_tables_are_read_exactly() -> None:
    """Tables become frozen values, prices to the last digit, a single price a list of one."""
    write(TABLES)
    settings = load_settings()
    assert settings.limits["gpt-6-*"].requests_per_minute == 500
    assert settings.tenants["acme"].budget_usd_per_month == Decimal("12.10")
    assert settings.models.aliases == {"fast": "gpt-6-luna"}
    assert settings.prices["gpt-6-luna"][0].input == Decimal("0.1")
    assert settings.prices["own"][1].valid_from == date(2026, 12, 1)
    with pytest.raises(ValueError, match="frozen"):
        settings.worker_concurrency = 1  # type: ignore[misc]  # that it is frozen is the point


WRONG = [
    ("WORKER_CONCURRENCY", "abc", "must be a whole number from 1 to 4096, not 'abc'"),
    ("WORKER_CONCURRENCY", "0", "must be a whole number from 1 to 4096, not '0'"),
    ("WORKER_CONCURRENCY", "4097", "must be a whole number from 1 to 4096, not '4097'"),
    ("WORKER_CONCURRENCY", "1.5", "must be a whole number from 1 to 4096, not '1.5'"),
    ("WORKER_JOB_TIMEOUT", "nan", "must be a number of seconds from 1 to 86400, not 'nan'"),
    ("WORKER_JOB_TIMEOUT", "1e400", "must be a number of seconds from 1 to 86400, not '1e400'"),
    ("WORKER_AUTO_SETUP", "perhaps", "must be true or false, not 'perhaps'"),
    ("WORKER_LOG_LEVEL", "loud", "must be one of 'debug', 'info', 'warning' or 'error', not 'loud'"),
    ("WORKER_TOOLS", "a/b.py", "must be comma-separated names of Python modules, not 'a/b.py'"),
    ("WORKER_REPLY_TO_PATTERN", "[a", "must be a regular expression (unterminated character set)"),
    ("OPENAI_BASE_URL", "localhost:8000", "must be an URL like https://api.openai.com/v1"),
    ("OPENAI_BASE_URL", "http://me:pw@host/v1", "must not hold a user or password"),
    ("AMQP_URL", "http://host", "must be an URL like amqp://user:password@host:5672/vhost or amqps://…"),
    (
        "AMQP_URL",
        "amqps://u:p@host/?no_verify_ssl=1",
        "must not switch off the verification of certificates (no_verify_ssl)",
    ),
    ("REDIS_URL", "host", "must be an URL like redis://:password@host:6379/0 or rediss://…"),
    ("OPENAI_ORG_ID", "orgé", "must be an id of printable ASCII characters, not 'orgé'"),
    ("OPENAI_API_KEY", "one\ntwo", "must be a key of printable ASCII characters"),
]


@pytest.mark.parametrize(("name", "value", "complaint"), WRONG)
def test_a_wrong_value_is_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, complaint: str
) -> None:
    """The line names the setting, what is wrong with it, and what would be right."""
    monkeypatch.setenv(name, value)
    assert problems() == [f"{name}: {complaint}"]


@pytest.mark.parametrize("spelled", [("true", "yes", "on", "1"), ("false", "no", "off", "0")])
def test_a_switch_may_be_spelled_as_elsewhere(
    monkeypatch: pytest.MonkeyPatch, spelled: tuple[str, ...]
) -> None:
    """Each form that the documentation names means the same, in upper case too."""
    for word in spelled:
        assert f"`{word}`" in DOCS.read_text(encoding="utf-8")
        for text in (word, word.upper()):
            monkeypatch.setenv("WORKER_AUTO_SETUP", text)
            assert load_settings().worker_auto_setup is (spelled[0] == "true")


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        ("sqlite:///jobs.db", True),
        ("sqlite:////var/jobs.db", True),
        ("postgresql://u:p@host/name", True),
        ("postgresql+asyncpg://host/name", True),
        ("postgresql:///name", True),
        ("sqlite://", False),
        ("sqlite:///:memory:", False),
        ("mysql://u:p@host/name", False),
        ("jobs.db", False),
    ],
)
def test_database_urls(monkeypatch: pytest.MonkeyPatch, value: str, *, accepted: bool) -> None:
    """SQLite files and PostgreSQL are accepted, with or without a driver; nothing else is."""
    monkeypatch.setenv("DATABASE_URL", value)
    if accepted:
        assert load_settings().database_url.get_secret_value() == value
    else:
        assert problems()[0].startswith("DATABASE_URL: must be an SQLAlchemy URL like sqlite:///")


def test_all_problems_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wrong value has its line, named where it was written: as a variable or as a place in the file."""
    monkeypatch.setenv("WORKER_CONCURRENCY", "many")
    write(
        'worker_max_attempts = "x"\nworker_concurency = 3\n'
        '[limits."gpt-6*"]\nrequest_per_minute = 4\n'
        '[tenants.acme]\nweight = true\ncredentials = "acm, default"\n[tenants.b]\ncredentials = 4\n'
        "[[prices.m]]\ninput = 1\ncached_input = 1\ncache_write = 1\noutput = -1\n"
        '[credentials.acme]\napi_key_env = "sk-not-a-name"\nbase_url = 4\n'
    )
    assert sorted(problems()) == [
        "WORKER_CONCURRENCY: must be a whole number from 1 to 4096, not 'many'",
        (
            "worker.toml: credentials.acme.api_key_env: must be the name of an environment variable, "
            "not a text of 13 characters"
        ),
        "worker.toml: credentials.acme.base_url: must be a text, not 4",
        (
            'worker.toml: limits."gpt-6*".request_per_minute: is not a setting; '
            "did you mean requests_per_minute?"
        ),
        "worker.toml: prices.m[1].output: must be an amount of US dollars like 0.25, not -1",
        "worker.toml: tenants.acme.credentials: there is no [credentials.acm]; did you mean acme?",
        "worker.toml: tenants.acme.weight: must be a number above 0, not true",
        "worker.toml: tenants.b.credentials: must be a list or a comma-separated text, not 4",
        "worker.toml: worker_concurency: is not a setting; did you mean worker_concurrency?",
        "worker.toml: worker_max_attempts: must be a whole number from 1 to 100, not 'x'",
    ]


def test_a_price_is_told_where_it_stands() -> None:
    """A lone price table is named without an index, since none stands in the file."""
    write("[prices.m]\ninput = 1\ncached_input = 1\noutput = 1\n")
    assert problems() == ["worker.toml: prices.m.cache_write: must be given"]


def test_prices_of_one_day_are_not_two() -> None:
    """Two prices for the same tier on the same day are refused, instead of one winning silently."""
    one = "[[prices.m]]\ninput = 1\ncached_input = 1\ncache_write = 1\noutput = 1\n"
    write(f"{one}valid_to = 2026-12-01\n{one}valid_from = 2026-12-01\n")
    assert problems() == ["worker.toml: prices.m: must not hold two prices for the same service tier and day"]
    write(f"{one}valid_to = 2026-11-30\n{one}valid_from = 2026-12-01\n{one}service_tier = 'flex'\n")
    assert len(load_settings().prices["m"]) == 3


def test_dangling_credentials_are_found() -> None:
    """A tenant bound to credentials that are not there is told at the start, with the likely name."""
    write('[tenants.acme]\ncredentials = "acm"\n[credentials.acme]\napi_key_env = "K"\n')
    assert problems() == [
        "worker.toml: tenants.acme.credentials: there is no [credentials.acm]; did you mean acme?"
    ]


def test_a_broken_file_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong TOML, a directory, and a named file that is missing are each told in a line."""
    write("a = = 1")
    assert problems()[0].startswith("worker.toml: is not valid TOML: Invalid value (at line 1")
    monkeypatch.setenv("WORKER_CONFIG", "other.toml")
    assert problems() == ["WORKER_CONFIG: there is no file 'other.toml'"]
    monkeypatch.setenv("WORKER_CONFIG", ".")
    assert problems() == [".: cannot be read: Is a directory"]


@pytest.mark.parametrize("key", ["_env_file", "_secrets_dir", "worker_config", "self"])
def test_the_loader_itself_takes_no_orders(key: str) -> None:
    """A key of the file that means something to the library is an unknown key like any other."""
    write(f'{key} = "x"\n')
    assert problems()[0].startswith(f"worker.toml: {key}: is not a setting")


def test_unknown_variables_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt WORKER_ variable is ignored, but said, with the likely name."""
    monkeypatch.setenv("WORKER_CONCURENCY", "4")
    lines: list[str] = []
    load_settings(warn=lines.append)
    assert lines == ["WORKER_CONCURENCY: is not a setting and is ignored; did you mean WORKER_CONCURRENCY?"]


def test_secrets_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither repr, str nor an error shows a key or an URL, wherever the secret was put by mistake."""
    secret = "hunter2secret"
    for name, value in {
        "AMQP_URL": f"amqp://user:{secret}@host/",
        "DATABASE_URL": f"postgresql://user:{secret}@host/x",
        "REDIS_URL": f"redis://:{secret}@host/",
        "OPENAI_API_KEY": f"sk-{secret}",
        "OPENAI_ADMIN_KEY": f"sk-{secret}",
    }.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert secret not in f"{settings!r} {settings} {settings.model_dump()}"
    for name in Variables.model_fields:
        monkeypatch.setenv(name.upper(), f"amqp://user:{secret}@host:99999999/")
    assert secret not in "\n".join(problems())
    for name in Variables.model_fields:
        monkeypatch.setenv(name.upper(), f"sk-{secret}\n")
    assert secret not in "\n".join(problems())


def test_credentials_come_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's key is `default`; each table adds one whose key is in the variable it names."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("ACME_KEY", " sk-two\n")
    write('[credentials.acme]\napi_key_env = "ACME_KEY"\norganization = "org_1"\n')
    found = resolve_credentials(load_settings())
    assert found["default"].api_key == SecretStr("sk-one")
    assert (found["acme"].api_key, found["acme"].organization) == (SecretStr("sk-two"), "org_1")
    assert found["acme"].base_url == "http://127.0.0.1:9/v1"
    assert "sk-" not in repr(found)


def test_missing_keys_are_told() -> None:
    """A command that calls OpenAI names every key it lacks; loading the settings does not need them."""
    write('[credentials.acme]\napi_key_env = "ACME_KEY"\n')
    with pytest.raises(ConfigError) as caught:
        resolve_credentials(load_settings())
    assert caught.value.problems == (
        "credentials.acme.api_key_env: the environment variable ACME_KEY must hold a key",
        "OPENAI_API_KEY: must be given",
    )


def default_text(name: str, default: Any) -> str:
    """Return a default as the documentation writes it."""
    if name == "worker_lanes":
        return "all"
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    if default in (None, ()) or default is PydanticUndefined:
        return "unset"
    if isinstance(default, float):
        default = int(default)
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def test_the_documentation_lists_every_setting() -> None:
    """docs/configuration.md has one row a variable with its default and meaning, and no other."""
    expected = [
        f"| `{name.upper()}` | {default_text(name, field.default)} | {field.description} |"
        for name, field in Variables.model_fields.items()
    ]
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.split("`")[1].isupper()] == expected


TABLE_MODELS = {
    '[limits."<model or glob>"]': LimitTable,
    "[tenants.<name>]": TenantTable,
    "[credentials.<name>]": CredentialTable,
    '[prices."<model>"]': PriceTable,
    "[retention]": RetentionTable,
}


@pytest.mark.parametrize(("heading", "model"), TABLE_MODELS.items())
def test_the_documentation_lists_every_key_of_a_table(heading: str, model: type[BaseModel]) -> None:
    """docs/configuration.md has one row a key under the table's heading, and no other."""
    section = DOCS.read_text(encoding="utf-8").split(f"### `{heading}`\n")[1].split("\n#")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(model.model_fields)


def test_the_example_file_is_valid() -> None:
    """worker.example.toml loads as it is, and with everything switched on that it shows."""
    text = EXAMPLE.read_text(encoding="utf-8")
    write(text)
    load_settings()
    write(re.sub(r"^#(?=[a-z\[])", "", text, flags=re.MULTILINE))
    settings = load_settings()
    shown = {name for name in Settings.model_fields if name in settings.model_fields_set}
    assert {"limits", "tenants", "credentials", "models", "prices", "worker_concurrency"} <= shown
