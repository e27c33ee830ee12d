"""Whose keys are used: the default ones of the environment, and those the file names."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import SecretStr

from worker.config.forms import is_header
from worker.config.problems import ConfigError
from worker.config.settings import Settings
from worker.config.tables import CredentialTable

DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """One account at OpenAI. None means what the SDK takes by itself."""

    name: str
    api_key: SecretStr
    organization: str | None = None
    project: str | None = None
    base_url: str | None = None


def resolve_credentials(settings: Settings) -> Mapping[str, Credential]:
    """Return the credentials by name, `default` always among them.

    Apart from loading the settings because only commands that call OpenAI need
    keys. Raises ConfigError.
    """
    found: dict[str, Credential] = {}
    problems: list[str] = []
    if settings.openai_api_key:
        found[DEFAULT] = Credential(
            name=DEFAULT,
            api_key=settings.openai_api_key,
            organization=settings.openai_org_id,
            project=settings.openai_project_id,
            base_url=settings.openai_base_url,
        )
    for name, table in settings.credentials.items():
        key = os.environ.get(table.api_key_env, "").strip()
        if is_header(key):
            found[name] = _from_table(name, table, key, settings)
        else:
            problems.append(
                f"credentials.{name}.api_key_env: "
                f"the environment variable {table.api_key_env} must hold a key"
            )
    if DEFAULT not in found and DEFAULT not in settings.credentials:
        problems.append("OPENAI_API_KEY: must be given")
    if problems:
        raise ConfigError(problems)
    return found


def _from_table(name: str, table: CredentialTable, key: str, settings: Settings) -> Credential:
    return Credential(
        name=name,
        api_key=SecretStr(key),
        organization=table.organization,
        project=table.project,
        base_url=table.base_url or settings.openai_base_url,
    )
