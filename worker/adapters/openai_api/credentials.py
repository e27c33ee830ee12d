"""Whose account a request is sent from."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountCredentials:
    """One account at OpenAI, by its name in the configuration. `base_url` None is OpenAI's own."""

    name: str
    api_key: str = field(repr=False)
    organization: str | None = None
    project: str | None = None
    base_url: str | None = None

    def __post_init__(self) -> None:
        for header in (self.api_key, self.organization or "-", self.project or "-"):
            if not header.isascii() or not header.isprintable() or header.strip() != header or not header:
                raise ValueError(
                    f"key, organization and project of the credentials {self.name!r} must be printable ASCII "
                    "without surrounding spaces, since they travel as headers"
                )
