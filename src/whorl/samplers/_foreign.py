"""What strangers send: how its shape is described, and what is done to its text before anybody sees it (ours)."""

import re
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, SecretStr

from whorl._readers import limits
from whorl.errors import safe_name

MAX_SHOWN = 200
MAX_KEPT = limits.MAX_TRANSCRIPT_LINE // 3  # bytes of text and of log-probabilities each: a prompt fits beside them
SHORTEST_SECRET = 8  # shorter keys ("EMPTY") are placeholders of local servers and ordinary words
_LOGIN = re.compile(r"://[^/\s@\"]*@")


class Foreign(BaseModel):
    """A part of an answer. Every server adds fields of its own, so unknown ones are ignored here and only here."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


@dataclass(frozen=True)
class Mask:
    """Hides a key in foreign text: a server can echo what it was sent.

    Args:
        key: The key; None when there is none.
    """

    key: SecretStr | None

    def __call__(self, text: str) -> str:
        """The text with the key, if it is long enough to be one, replaced by `***`."""
        secret = self.key.get_secret_value() if self.key else ""
        return text.replace(secret, "***") if len(secret) >= SHORTEST_SECRET else text

    def shown(self, text: object) -> str:
        """Foreign text for a message or a note: masked, escaped, without quotes (as of a field's name), cut."""
        return safe_name(self.name(str(text)).replace('"', "'"), MAX_SHOWN)

    def name(self, text: str) -> str:
        """A foreign name: masked, and without the user and password of an address."""
        return _LOGIN.sub("://***@", self(text))[:MAX_SHOWN]
