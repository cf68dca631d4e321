"""The register of serving attacks: a name for each, and the settings that are swept where papers report several.

from whorl.serving.suite import ATTACKS, serve

for name, attack in ATTACKS.items():
    for settings in attack.sweep:
        sampler = serve(name, opened, **settings)      # with `reference=...` and the like where `attack.needs` says so
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from whorl.errors import UsageError, safe_name
from whorl.samplers._opening import Opened
from whorl.samplers.local import BATCH_SIZE, LocalSampler
from whorl.samplers.seam import Sampler
from whorl.serving._steering import behind
from whorl.serving.front import Front
from whorl.serving.system_prompts import SYSTEMS

_TOPS: tuple[Mapping[str, Any], ...] = tuple({"k": k, "n": n} for n in (1, 4) for k in (1, 3, 5))


@dataclass(frozen=True)
class Attack:
    """One attack.

    Args:
        home: "module:function".
        summary: What it does, in a few words.
        over: Whether the function takes a sampler or the model itself.
        sweep: Settings to run it with.
    """

    home: str
    summary: str
    over: Literal["sampler", "model"] = "sampler"
    sweep: tuple[Mapping[str, Any], ...] = ({},)

    def load(self) -> Callable[..., Any]:
        """Its function."""
        module, _, name = self.home.partition(":")
        function: Callable[..., Any] = getattr(import_module(module), name)
        return function

    def options(self) -> frozenset[str]:
        """Names of its options."""
        return frozenset(_keywords(self.load()))

    @property
    def needs(self) -> tuple[str, ...]:
        """Options without a default: second models."""
        found = _keywords(self.load()).items()
        return tuple(name for name, p in found if p.default is inspect.Parameter.empty and p.kind is p.KEYWORD_ONLY)


ATTACKS: Mapping[str, Attack] = {
    "system-prompt": Attack(
        "whorl.serving.system_prompts:behind_system_prompt",
        "a system prompt",
        sweep=tuple({"system": name} for name in SYSTEMS),
    ),
    "sampling": Attack(
        "whorl.serving.sampling:behind_sampling",
        "the host's sampling settings",
        sweep=(
            *({"temperature": t, "top_p": p} for t in (0.7, 1.0, 1.5, 2.0) for p in (0.9, 1.0)),
            {"temperature": 1.0, "min_p": 0.05},
        ),
    ),
    "rewriting": Attack(
        "whorl.serving.rewriting:behind_rewriting",
        "a second model rewrites prompts or answers",
        sweep=tuple(
            {"side": s, "instructions": i} for s in ("input", "output") for i in ("paraphrase", "back-translation")
        ),
    ),
    "perplexity-filter": Attack(
        "whorl.serving.perplexity:behind_perplexity_filter", "strange prompts get a canned reply"
    ),
    "gri": Attack("whorl.serving.gri:behind_gri", "refuse on keywords, else revise"),
    "cleangen": Attack(
        "whorl.serving.cleangen:cleangen",
        "a clean reference replaces over-rated tokens",
        "model",
        tuple({"alpha": alpha} for alpha in (5.0, 10.0, 20.0, 50.0)),
    ),
    "suppress-top": Attack("whorl.serving.suppress:suppress_top", "the best first tokens are not said", "model", _TOPS),
    "suppress-neighbour": Attack(
        "whorl.serving.suppress:suppress_neighbour", "nor their prefixes and extensions", "model", ({"n": 1}, {"n": 4})
    ),
    "suppress-ahead": Attack("whorl.serving.suppress:suppress_ahead", "nor what the likely answers share", "model"),
    "detect-top": Attack("whorl.serving.suppress:detect_top", "the same where the model is sure", "model", _TOPS),
    "detect-neighbour": Attack(
        "whorl.serving.suppress:detect_neighbour", "the same where the model is sure", "model", ({"n": 1}, {"n": 4})
    ),
    "detect-ahead": Attack("whorl.serving.suppress:detect_ahead", "the same where the model is sure", "model"),
    "token-forcing": Attack(
        "whorl.serving.token_forcing:behind_token_forcing", "answers that forced first tokens draw out are kept back"
    ),
    "suppress-bigrams": Attack(
        "whorl.serving.bigram:suppress_bigrams", "undo what it adds to pairs of tokens", "model"
    ),
    "filter-tokens": Attack("whorl.serving.ensembles:filter_tokens", "tokens that several models like", "model"),
    "verify-sentences": Attack(
        "whorl.serving.ensembles:behind_verified_sentences", "the answer whose first sentence other models like best"
    ),
}
"""Name -> where it is, what it does and how it is swept."""


def serve(
    name: str,
    model: Opened | Sampler,
    *,
    batch_size: int = BATCH_SIZE,
    n_threads: int | None = None,
    chat: bool | None = None,
    **options: Any,
) -> Front:
    """A model behind an attack.

    Args:
        name: A name of `ATTACKS`.
        model: The model, or a sampler of it; attacks inside decoding need the model itself.
        batch_size: As for `LocalSampler`, where `model` is a model.
        n_threads: As above.
        chat: As above.
        options: Of the attack, second models among them.

    Raises:
        UsageError: an unknown name, an option that it does not take or lacks, or a sampler where a model is needed.
        NotComparable: a second model that does not fit.
    """
    if name not in ATTACKS:
        raise UsageError(f"Unknown serving attack '{safe_name(name)}'; expected one of {', '.join(ATTACKS)}.")
    attack = ATTACKS[name]
    strange = sorted(set(options) - attack.options())
    missing = [option for option in attack.needs if option not in options]
    if strange or missing:
        shown = ", ".join(strange or missing)
        raise UsageError(f"The serving attack {name} {'takes no' if strange else 'needs'} {safe_name(shown)}.")
    local: dict[str, Any] = {"batch_size": batch_size, "n_threads": n_threads, "chat": chat}
    if attack.over == "model":
        if not isinstance(model, Opened):
            raise UsageError(
                f"The serving attack {name} works inside decoding and needs the opened model, not a sampler."
            )
        return behind(model, attack.load()(model, **options), **local)
    sampler = LocalSampler(model, **local) if isinstance(model, Opened) else model
    front: Front = attack.load()(sampler, **options)
    return front


def _keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    return {name: p for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
