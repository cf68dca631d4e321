"""`Scheme`: how the key set of a fingerprint is drawn; `make` and `of` find one by name or by its canonical string.

    make("hashchain", chains=3).name      "hashchain-v1(k=10,r=256,chains=3,questions=random,mode=chained)"
    of(make("utf").name) == make("utf")   always

A scheme is a frozen dataclass: its fields are its options, in the order of the string. Two key sets drawn from one seed have
the same triggers, but every key set has a salt of its own. Whoever knows scheme and seed can draw the triggers again: the
seed of a released fingerprint is a secret, made by `fresh_seed`.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from whorl.errors import UsageError, safe_name
from whorl.samplers._opening import Opened
from whorl.triggers.keyset import Key, KeySet

KINDS: Mapping[str, str] = {
    "if-sft": "whorl.triggers.schemes.if_sft:IfSft",
    "utf": "whorl.triggers.schemes.utf:Utf",
    "hashchain": "whorl.triggers.schemes.hashchain:HashChain",
    "perinucleus": "whorl.triggers.schemes.perinucleus:Perinucleus",
}
VERSION = 1
_STRING = re.compile(r"([a-z][a-z-]*)-v(\d{1,4})\(([^()]*)\)")


@runtime_checkable
class Scheme(Protocol):
    """One way to make keys."""

    @property
    def name(self) -> str:
        """Canonical string with every option."""
        ...

    def draw(self, seed: int, opened: Opened | None = None) -> KeySet:
        """A new key set.

        Args:
            seed: Of triggers, from 0 and below 2**63; keep it secret.
            opened: The base model, for schemes whose keys depend on it.

        Raises:
            UsageError: a seed out of range, no model where one is needed, or too few distinct texts.
        """
        ...

    def near(self, keys: KeySet, epoch: int, per_key: int) -> tuple[Key, ...]:
        """Look-alikes of one epoch: none is a key, a decoy or held for evaluation, and all differ.

        Fresh draws, keys with one or two pieces replaced, the scheme's template around an ordinary text, and the trigger
        without its template, in turn; schemes without a template have the first three.

        Raises:
            UsageError: a negative epoch, fewer than one per key, or no more distinct texts.
        """
        ...


def make(name: str, **options: Any) -> Scheme:
    """A scheme by its name.

    Args:
        name: One of `KINDS`.
        options: Fields of its class.

    Raises:
        UsageError: no such scheme or option, or a value out of range.
    """
    kind = _kind(name)
    known = {field.name: field for field in fields(kind)}
    for option, value in options.items():
        if option not in known:
            raise UsageError(
                f"The scheme '{name}' has no option '{safe_name(option, 40)}'; expected {', '.join(known)}."
            )
        if not _same_type(value, known[option].default):
            raise UsageError(
                f"The option '{option}' of '{name}' is {safe_name(repr(value), 40)}; expected a value like "
                f"{known[option].default!r}."
            )
    return kind(**options)


def of(string: str) -> Scheme:
    """The scheme of a canonical string, exactly: `of(s).name == s`.

    Raises:
        UsageError: not such a string, another version, or an option that is unknown, missing or out of range.
    """
    match = _STRING.fullmatch(string)
    if match is None or int(match[2]) != VERSION:
        raise _no_string(string)
    defaults = {field.name: field.default for field in fields(_kind(match[1]))}
    given = dict(part.partition("=")[::2] for part in match[3].split(","))
    if list(given) != list(defaults):
        raise _no_string(string)
    scheme = make(match[1], **{name: _read(text, defaults[name], string) for name, text in given.items()})
    if scheme.name != string:
        raise _no_string(string)
    return scheme


def canonical(scheme: Any, name: str) -> str:
    """The string of a scheme: its name, version, and fields in their order."""
    values = (f"{field.name}={_written(getattr(scheme, field.name))}" for field in fields(scheme))
    return f"{name}-v{VERSION}({','.join(values)})"


def fresh_seed() -> int:
    """A seed that nobody can guess: 63 random bits of the system."""
    return secrets.randbits(63)


def _kind(name: str) -> Any:
    if name not in KINDS:
        raise UsageError(f"Unknown scheme '{safe_name(name, 40)}'; expected one of {', '.join(KINDS)}.")
    module, _, kind = KINDS[name].partition(":")
    return getattr(import_module(module), kind)


def _same_type(value: object, default: object) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, tuple) and len(value) == 2 and all(type(end) is int for end in value)
    return type(value) is type(default)


def _written(value: object) -> str:
    return f"{value[0]}-{value[1]}" if isinstance(value, tuple) else str(value)


def _read(text: str, default: object, string: str) -> object:
    try:
        if isinstance(default, tuple):
            low, _, high = text.partition("-")
            return int(low), int(high)
        return type(default)(text)  # type: ignore[call-arg]
    except ValueError:
        raise _no_string(string) from None


def _no_string(string: str) -> UsageError:
    return UsageError(
        f"'{safe_name(string)}' names no scheme; expected a string like 'hashchain-v1(k=10,...)' of {', '.join(KINDS)}."
    )
