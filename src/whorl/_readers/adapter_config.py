"""`adapter_config.json` of a LoRA adapter: the few fields that change the arithmetic, each checked.

Rank and alpha of one module follow peft's rules (`rank_pattern`, `alpha_pattern`: the first key that matches the end
of the module's name). The keys are regular expressions of foreign origin, so only a subset is read whose matching time
is bounded.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from whorl.errors import MalformedFile, UnsupportedFile, safe_name

_Number = TypeVar("_Number", int, float)

CONFIG_NAME = "adapter_config.json"
MAX_RANK = 65_536
MAX_ALPHA = 1e6
MAX_PATTERNS = 4096
MAX_PATTERN_LENGTH = 200
MAX_REGEX_QUANTIFIERS = 2
MAX_REGEX_PATTERNS = 100

# Fields that change the merged weights in a way this reader does not compute; harmless when empty.
_UNREAD_VARIANTS = (
    "layer_replication",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "alora_invocation_tokens",
    "target_parameters",
    "trainable_token_indices",
    "ensure_weight_tying",
    "target_modules_to_tie",
)
# Initialisations that subtract something from the base: the saved factors do not fit the original base.
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
_KNOWN = {
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config"),
    *("exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern"),
    *("layers_to_transform", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config"),
    *("megatron_config", "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r"),
    *("rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora"),
    *("velora_config", *_UNREAD_VARIANTS),
}
_LITERAL_KEY = re.compile(r"[A-Za-z0-9_.]+")
_BOUNDED_KEY = re.compile(r"(?:[A-Za-z0-9_.^$|()\[\]*+?-]|\\[.dw])+")


@dataclass(frozen=True)
class LoraConfig:
    """The checked fields.

    Args:
        rank: Default rank r.
        alpha: Default alpha; the scale of a module is alpha / r, or alpha / sqrt(r) when `rank_stabilised`.
        rank_stabilised: rsLoRA (arXiv:2312.03732).
        rank_pattern: Module name pattern -> rank.
        alpha_pattern: Module name pattern -> alpha.
        transposed: `fan_in_fan_out`; only a hint, shapes decide where they can.
        dora: Whether magnitudes are stored (arXiv:2402.09353).
        lora_bias: Whether the B factors carry biases.
        bias: "none", "all" or "lora_only": which biases of the base were trained too.
        modules_to_save: Modules stored whole.
        targets: Module names that carry factors; None when given as a pattern.
        declared: What the file claims about its base; never evidence.
        notes: Fields that were present and not used.
    """

    rank: int
    alpha: float
    rank_stabilised: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    transposed: bool
    dora: bool
    lora_bias: bool
    bias: str
    modules_to_save: tuple[str, ...]
    targets: tuple[str, ...] | None
    declared: Mapping[str, str]
    notes: tuple[str, ...]

    def rank_of(self, module: str) -> int:
        """Rank of a module by its full name in the model."""
        return _lookup(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """Factor s of dW = s B A for a module by its full name in the model."""
        alpha, rank = _lookup(self.alpha_pattern, module, self.alpha), self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rank_stabilised else alpha / rank

    def is_target(self, module: str) -> bool:
        """Whether `targets` allow factors on a module; True when they are given as a pattern."""
        return self.targets is None or any(is_or_ends_with(module, target) for target in self.targets)


def read_config(fields: Any, name: str) -> LoraConfig:
    """The checked form of a parsed `adapter_config.json`.

    Args:
        fields: The parsed JSON.
        name: Name of the file, for messages.

    Raises:
        MalformedFile: not an object, or a field has the wrong type or an absurd value.
        UnsupportedFile: not a LoRA adapter, or a variant this reader does not merge.
    """
    if not isinstance(fields, dict):
        raise _malformed(name, "the top level is not an object", "a JSON object")
    _refuse_unread_kinds(fields, name)
    return LoraConfig(
        rank=_rank(fields.get("r", 8), "r", name),
        alpha=_alpha(fields.get("lora_alpha", 8), "lora_alpha", name),
        rank_stabilised=_flag(fields, "use_rslora", name),
        rank_pattern={k: _rank(v, "rank_pattern", name) for k, v in _pattern(fields, "rank_pattern", name).items()},
        alpha_pattern={k: _alpha(v, "alpha_pattern", name) for k, v in _pattern(fields, "alpha_pattern", name).items()},
        transposed=_flag(fields, "fan_in_fan_out", name),
        dora=_flag(fields, "use_dora", name),
        lora_bias=_flag(fields, "lora_bias", name),
        bias=_bias_kind(fields, name),
        modules_to_save=_names(fields.get("modules_to_save"), "modules_to_save", name) or (),
        targets=_targets(fields.get("target_modules"), name),
        declared=claims(fields),
        notes=_notes(fields),
    )


def claims(fields: Mapping[str, Any]) -> dict[str, str]:
    """What an adapter says about its base, cut and escaped: shown as "declared", never fetched, never evidence."""
    wanted = {"base_model_name_or_path": "adapter.base_model_name_or_path", "revision": "adapter.revision"}
    return {shown: safe_name(fields[key]) for key, shown in wanted.items() if isinstance(fields.get(key), str)}


def _malformed(name: str, found: str, expected: str) -> MalformedFile:
    return MalformedFile("adapter config", name, found, expected, "Ask the owner of the adapter for the original file.")


def _refuse_unread_kinds(fields: Mapping[str, Any], name: str) -> None:
    kind = fields.get("peft_type")
    if kind != "LORA":
        advice = "Merge the adapter with peft and give the merged folder."
        raise UnsupportedFile("adapter config", name, f"peft_type is '{safe_name(kind, 40)}'", "'LORA'", advice)
    used = [field for field in _UNREAD_VARIANTS if fields.get(field)]
    if used:
        advice = "Merge the adapter with peft and give the merged folder."
        raise UnsupportedFile("adapter config", name, f"it uses '{used[0]}'", "a plain, rsLoRA or DoRA adapter", advice)
    start = str(fields.get("init_lora_weights")).lower()
    if start.startswith(_BASE_CHANGING_INITS):
        found = f"init_lora_weights is '{safe_name(start, 40)}', which changes the base before training"
        advice = "Convert it with peft's path_initial_model_for_weight_conversion, or merge it and give the folder."
        raise UnsupportedFile("adapter config", name, found, "an adapter of the unchanged base", advice)


def _rank(value: Any, field: str, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK:
        raise _malformed(name, f"'{field}' holds {safe_name(value, 40)}", f"a whole number from 1 to {MAX_RANK}")
    return value


def _alpha(value: Any, field: str, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_ALPHA:
        raise _malformed(name, f"'{field}' holds {safe_name(value, 40)}", f"a number of size at most {MAX_ALPHA:g}")
    return float(value)


def _flag(fields: Mapping[str, Any], field: str, name: str) -> bool:
    value = fields.get(field)
    if value is not None and not isinstance(value, bool):
        raise _malformed(name, f"'{field}' holds {safe_name(value, 40)}", "true or false")
    return bool(value)


def _bias_kind(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get("bias", "none")
    if not isinstance(value, str) or value not in ("none", "all", "lora_only"):
        raise _malformed(name, f"'bias' holds {safe_name(value, 40)}", "'none', 'all' or 'lora_only'")
    return value


def _names(value: Any, field: str, name: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) > MAX_PATTERNS
        or not all(isinstance(v, str) and 0 < len(v) <= 512 for v in value)
    ):
        raise _malformed(name, f"'{field}' is not a list of names", "a list of module names")
    return tuple(value)


def _targets(value: Any, name: str) -> tuple[str, ...] | None:
    # A pattern is as good as its author; shapes and names of the stored factors are checked in either case.
    return None if isinstance(value, str) else _names(value, "target_modules", name)


def _notes(fields: Mapping[str, Any]) -> tuple[str, ...]:
    unknown = sorted(k for k, v in fields.items() if k not in _KNOWN and v)
    return tuple(f"adapter config field '{safe_name(k, 40)}' is unknown and was not used" for k in unknown[:10])


def _pattern(fields: Mapping[str, Any], field: str, name: str) -> dict[str, Any]:
    """A pattern table whose keys can be matched in bounded time (row 40)."""
    table = fields.get(field)
    if table is None:
        return {}
    if not isinstance(table, dict) or len(table) > MAX_PATTERNS:
        raise _malformed(name, f"'{field}' is not a table of module names", "a JSON object")
    regexes = [key for key in table if not _LITERAL_KEY.fullmatch(key)]
    if len(regexes) > MAX_REGEX_PATTERNS or not all(_is_bounded(key) for key in regexes):
        expected = f"names, or simple expressions with at most {MAX_REGEX_QUANTIFIERS} repetitions"
        advice = "Merge the adapter with peft and give the merged folder."
        raise UnsupportedFile("adapter config", name, f"'{field}' has elaborate expressions", expected, advice)
    for key in regexes:
        _compiled(key, name)
    return table


def _is_bounded(key: str) -> bool:
    """No groups repeated, few repetitions: matching takes at most (length of the name) ** 3 steps."""
    repeats = len(re.findall(r"[*+?]", key))
    repeated_group = re.search(r"\)[*+?]", key) is not None or "(?" in key
    short = len(key) <= MAX_PATTERN_LENGTH and _BOUNDED_KEY.fullmatch(key) is not None
    return short and repeats <= MAX_REGEX_QUANTIFIERS and not repeated_group


def _compiled(key: str, name: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except re.error as error:
        raise _malformed(name, f"'{safe_name(key, 40)}' is no expression ({error.msg})", "a module name") from None


def _lookup(table: Mapping[str, _Number], module: str, default: _Number) -> _Number:
    """Value of the first key that matches the end of the name, as peft's `get_pattern_key` chooses it."""
    return next((value for key, value in table.items() if _matches(key, module)), table.get(module, default))


def _matches(key: str, module: str) -> bool:
    r"""Whether peft's expression `(.*\.)?(key)$` matches; a plain name needs no regular expression."""
    if not _LITERAL_KEY.fullmatch(key):
        return re.match(rf"(.*\.)?({key})$", module) is not None
    start = len(module) - len(key)
    if start < 0 or (start > 0 and module[start - 1] != "."):
        return False
    # A dot in the key matches any character: it is an expression for peft.
    return all(wanted in (".", found) for wanted, found in zip(key, module[start:], strict=True))


def is_or_ends_with(module: str, name: str) -> bool:
    """Whether `name` is the module's full name or its last words, as peft reads `target_modules`."""
    return module == name or module.endswith(f".{name}")
