"""Settings: from the environment first, then from `worker.toml`."""

from worker.config.credentials import Credential, resolve_credentials
from worker.config.load import load_settings
from worker.config.prices import budgets, price_overrides
from worker.config.problems import ConfigError
from worker.config.settings import Settings
from worker.config.tables import LimitTable, PriceTable, TenantTable

__all__ = [
    "ConfigError",
    "Credential",
    "LimitTable",
    "PriceTable",
    "Settings",
    "TenantTable",
    "budgets",
    "load_settings",
    "price_overrides",
    "resolve_credentials",
]
