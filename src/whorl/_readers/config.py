"""`config.json`: typed, bounded access, and the fields that name code.

The parsed config is never passed to anything as keyword arguments; family code asks for one field at a time.
"""

from collections.abc import Iterator, Mapping
from types import EllipsisType
from typing import Any, overload

from whorl._readers import limits
from whorl._readers.strict_json import kind_of
from whorl._readers.subject import Subject
from whorl.errors import UnsafeFile, safe_name

_CODE_FIELDS = {
    *("auto_map", "custom_code", "custom_generate", "custom_pipelines", "trust_remote_code", "model_file"),
    *("kernel_config", "use_kernels", "hub_kernels"),
}
# The value of these is a plain word ("sdpa") or, with a slash, a Hub repository of kernels.
_REPOSITORY_FIELDS = {
    *("attn_implementation", "_attn_implementation", "_attn_implementation_internal"),
    *("experts_implementation", "_experts_implementation", "_experts_implementation_internal"),
}
_CODE_ADVICE = "It names code to run: read the code and load it yourself if you trust its owner."


class ConfigView:
    """Typed getters over one parsed JSON object. null counts as absent.

    Every getter takes the field's name and its aliases in other families; where several are present they must agree.

    Args:
        fields: The parsed object.
        name: Name of the file for messages.
        what: Its kind for messages.
        prefix: Path of this object inside the file, with a dot at the end ("rope_parameters."), for messages.
    """

    def __init__(
        self, fields: Mapping[str, Any], name: str = "config.json", what: str = "config", prefix: str = ""
    ) -> None:
        self._fields, self._subject, self._prefix = fields, Subject(what, name), prefix

    def __contains__(self, name: str) -> bool:
        return self._fields.get(name) is not None

    @overload
    def integer(
        self, name: str, *aliases: str, default: EllipsisType = ..., low: int = ..., high: int = ...
    ) -> int: ...
    @overload
    def integer(self, name: str, *aliases: str, default: int, low: int = ..., high: int = ...) -> int: ...
    @overload
    def integer(self, name: str, *aliases: str, default: None, low: int = ..., high: int = ...) -> int | None: ...
    def integer(
        self,
        name: str,
        *aliases: str,
        default: int | EllipsisType | None = ...,
        low: int = 1,
        high: int = limits.MAX_CONFIG_SIZE,
    ) -> int | None:
        """An integer in [low, high]; `default` is returned unchecked when the field is absent.

        Raises:
            MalformedFile: absent without a default, not an integer, out of range.
            UnsafeFile: aliases that disagree.
        """
        field, value = self._find((name, *aliases), default)
        if field is None:
            return default if isinstance(default, int) else None
        if type(value) is not int:
            raise self._wrong_type(field, value, "an integer")
        self._check_range(field, value, low, high)
        return value

    @overload
    def number(
        self, name: str, *aliases: str, default: EllipsisType = ..., low: float = ..., high: float = ...
    ) -> float: ...
    @overload
    def number(self, name: str, *aliases: str, default: float, low: float = ..., high: float = ...) -> float: ...
    @overload
    def number(self, name: str, *aliases: str, default: None, low: float = ..., high: float = ...) -> float | None: ...
    def number(
        self,
        name: str,
        *aliases: str,
        default: float | EllipsisType | None = ...,
        low: float = -1e30,
        high: float = 1e30,
    ) -> float | None:
        """A finite number in [low, high]; errors as `integer`."""
        field, value = self._find((name, *aliases), default)
        if field is None:
            return float(default) if isinstance(default, (int, float)) else None
        if type(value) not in (int, float):
            raise self._wrong_type(field, value, "a number")
        self._check_range(field, value, low, high)
        return float(value)

    @overload
    def boolean(self, name: str, *aliases: str, default: EllipsisType = ...) -> bool: ...
    @overload
    def boolean(self, name: str, *aliases: str, default: bool) -> bool: ...
    @overload
    def boolean(self, name: str, *aliases: str, default: None) -> bool | None: ...
    def boolean(self, name: str, *aliases: str, default: bool | EllipsisType | None = ...) -> bool | None:
        """True or false, never 0 or 1; errors as `integer`."""
        field, value = self._find((name, *aliases), default)
        if field is None:
            return default if isinstance(default, bool) else None
        if not isinstance(value, bool):
            raise self._wrong_type(field, value, "true or false")
        return value

    @overload
    def text(self, name: str, *aliases: str, default: EllipsisType = ...) -> str: ...
    @overload
    def text(self, name: str, *aliases: str, default: str) -> str: ...
    @overload
    def text(self, name: str, *aliases: str, default: None) -> str | None: ...
    def text(self, name: str, *aliases: str, default: str | EllipsisType | None = ...) -> str | None:
        """A text of at most 10 000 characters; errors as `integer`."""
        field, value = self._find((name, *aliases), default)
        if field is None:
            return default if isinstance(default, str) else None
        if not isinstance(value, str):
            raise self._wrong_type(field, value, "a text")
        self._check_range(f"length of {field}", len(value), 0, limits.MAX_CONFIG_TEXT_CHARACTERS)
        return value

    def texts(self, name: str, *aliases: str) -> tuple[str, ...]:
        """A list of texts, empty when absent; errors as `integer`."""
        field, value = self._find((name, *aliases), None)
        if field is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong_type(field, value, "a list of texts")
        return tuple(value)

    def section(self, name: str, *aliases: str) -> "ConfigView | None":
        """A nested object as a view of its own, None when absent; errors as `integer`."""
        field, value = self._find((name, *aliases), None)
        if field is None:
            return None
        if not isinstance(value, Mapping):
            raise self._wrong_type(field, value, "an object")
        return ConfigView(value, self._subject.name, self._subject.what, f"{self._prefix}{field}.")

    def refuse(self, found: str, expected: str) -> Exception:
        """The `MalformedFile` to raise for a field whose value contradicts another field or the tensors."""
        return self._subject.malformed(found, expected, "Config and weights do not belong together, or are damaged.")

    def _find(self, names: tuple[str, ...], default: Any) -> tuple[str | None, Any]:
        present = [(name, self._fields[name]) for name in names if self._fields.get(name) is not None]
        if not present and default is ...:
            raise self._subject.malformed(f"no field '{self._prefix}{names[0]}'", "the field", _CONFIG_ADVICE)
        if not present:
            return None, None
        field, value = present[0]
        for other, second in present[1:]:
            if second != value:
                found = f"the fields '{self._prefix}{field}' and '{self._prefix}{other}' differ"
                raise self._subject.unsafe(found, "one value, since they mean the same")
        return field, value

    def _wrong_type(self, field: str, value: Any, expected: str) -> Exception:
        return self._subject.malformed(f"field '{self._prefix}{field}' is {kind_of(value)}", expected, _CONFIG_ADVICE)

    def _check_range(self, field: str, value: float, low: float, high: float) -> None:
        if not low <= value <= high:
            found = f"field '{self._prefix}{field}' is {safe_name(value, 40)}"
            raise self._subject.malformed(found, f"{low} to {high}", _CONFIG_ADVICE)


_CONFIG_ADVICE = "The config is damaged or for another kind of model: fetch it again."


def custom_code_fields(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Paths of all fields, at any depth, that would make a loader fetch or run code; sorted.

    A field that is false, null or empty names nothing and is not listed.
    """
    return tuple(sorted(_code_fields(config, "")))


def custom_code_notes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """One sentence per field of `custom_code_fields`, for the notes of a result."""
    return tuple(
        f"config field '{safe_name(field, 80)}' names custom code; not run: only weights are read"
        for field in custom_code_fields(config)
    )


def refuse_custom_code(config: Mapping[str, Any], label: str) -> None:
    """Call before a model is built or run.

    Args:
        config: The parsed `config.json`.
        label: Name of the model for the message.

    Raises:
        UnsafeFile: a field that names code, by its path.
    """
    fields = custom_code_fields(config)
    if fields:
        shown = ", ".join(f"'{safe_name(field, 60)}'" for field in fields[:3])
        raise UnsafeFile("config of", label, f"fields that name code to run: {shown}", "none of them", _CODE_ADVICE)


def _code_fields(value: Any, path: str) -> Iterator[str]:
    for key, child, inner in _children(value, path):
        if child and (key in _CODE_FIELDS or (key in _REPOSITORY_FIELDS and _holds_slash(child))):
            yield inner
        else:
            yield from _code_fields(child, inner)


def _children(value: Any, path: str) -> Iterator[tuple[str, Any, str]]:
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield key, child, f"{path}.{key}" if path else key
    elif isinstance(value, list):
        for place, child in enumerate(value):
            yield "", child, f"{path}[{place}]"


def _holds_slash(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_slash(child) for child in value.values())
    return isinstance(value, str) and "/" in value
