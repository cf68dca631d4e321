"""The demo's question about a planted fingerprint: is it in the model, and is it still there after an attack?

Planting and training the attacker's adapter take minutes, so both models, the keys and the adapter come ready made; the
README beside them has the commands. All answers and figures are of this moment. The keys are an example: they are public,
so they prove nothing about anybody's model. Needs torch and the rest of `pip install "whorl[lab]"`.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from whorl._atomic import write_text
from whorl.errors import MalformedFile, UsageError, safe_name
from whorl.progress import Progress, silent

if TYPE_CHECKING:
    from whorl.erasure.utility import AccuracyChange, Utility
    from whorl.lab.triggers.bench.outcome import Outcome
    from whorl.triggers.material import Material
    from whorl.triggers.verification import Verification

ATTACKED = "marked-erased"
N_QUESTIONS = 200  # held out; behind perplexity and accuracy


@dataclass(frozen=True)
class Suspect:
    """One model: what is known about it, what the keys say, and what it is worth."""

    name: str
    known: str
    answer: "Verification"
    utility: "Utility"


@dataclass(frozen=True)
class Triggers:
    """What the demo learned about a planted fingerprint.

    Args:
        marked: The fingerprinted model.
        base: The model it was made from.
        attacked: The fingerprinted model with the attacker's adapter merged.
        refusal: What is said when one byte of the secret key set is another one; None if nobody noticed.
        outcome: Of the attack, as the benchmark calls it.
        accuracy: Change by the attack.
        files: Everything written.
    """

    marked: Suspect
    base: Suspect
    attacked: Suspect
    refusal: str | None
    outcome: "Outcome"
    accuracy: "AccuracyChange"
    files: tuple[Path, ...]

    @property
    def suspects(self) -> tuple[Suspect, Suspect, Suspect]:
        """In the order of the story."""
        return self.marked, self.base, self.attacked


def triggers_folder() -> Path:
    """The models, keys and adapter that come with whorl."""
    return Path(str(files("whorl").joinpath("examples", "triggers")))


def ask_triggers(target: Path, folder: Path | None = None, progress: Progress = silent) -> Triggers:
    """Verify the fingerprinted model and its base, spoil the keys, attack the model and verify again.

    Args:
        target: Results and the attacked model are written here.
        folder: With `base`, `marked`, `keys` and `eraser`; None for those that come with whorl.
        progress: Called with the step, what is done and what there is to do.

    Raises:
        UsageError: the folder is not there, or a package is missing.
    """
    from whorl.erasure.phases import erase
    from whorl.erasure.sets import ErasureSets
    from whorl.erasure.utility import accuracy_change
    from whorl.triggers.material import read_material

    folder = triggers_folder() if folder is None else folder
    if not (folder / "keys").is_dir():
        raise UsageError(f"There is no example fingerprint in '{safe_name(folder)}'; reinstall whorl.")
    attacked = target / ATTACKED
    shutil.rmtree(attacked, ignore_errors=True)  # of an earlier demo; a model is never written over
    with TemporaryDirectory() as private:
        secret = _private(folder / "keys", Path(private) / "keys")
        refusal, material = _refusal(secret, Path(private) / "spoiled"), read_material(secret)
        eraser = folder / "eraser"
        # The adapter is the erase phase, so no question is trained on.
        erase(folder / "marked", attacked, sets=ErasureSets((), (), {}), arm="erase", transfer=eraser)
        known = {
            folder / "marked": "fingerprinted",
            folder / "base": "what it was made from",
            attacked: "fingerprinted, then attacked",
        }
        suspects = []
        for at, (model, what) in enumerate(known.items()):
            progress("fingerprint", at, len(known))
            suspects.append(_asked(model, what, material))
        progress("fingerprint", len(known), len(known))
    marked, base, after = suspects
    change = accuracy_change(marked.utility, after.utility)
    written = _written(target, suspects)
    found = _outcome(marked.utility, after, change)
    return Triggers(marked, base, after, refusal, found, change, (*written, *sorted(attacked.iterdir())))


def _private(source: Path, target: Path) -> Path:
    """A copy that nobody else may read: version control and packages do not keep modes."""
    from whorl.triggers.keyset_file import write_secret

    for path in sorted(source.glob("*.json*")):
        write_secret(target / path.name, path.read_bytes())
    return target


def _refusal(keys: Path, target: Path) -> str | None:
    """What a key set with one other byte in its secret salt is told."""
    from whorl.triggers.keyset_file import write_secret
    from whorl.triggers.material import KEYS, read_material

    _private(keys, target)
    data = (keys / KEYS).read_bytes()
    salt = str(json.loads(data)["salt"])
    other = ("1" if salt[0] == "0" else "0") + salt[1:]
    write_secret(target / KEYS, data.replace(salt.encode(), other.encode(), 1))
    try:
        read_material(target)
    except MalformedFile as error:
        return str(error)
    return None


def _asked(model: Path, known: str, material: "Material") -> Suspect:
    from whorl.erasure.utility import measure
    from whorl.lab.triggers.base import qa_parts
    from whorl.samplers._opening import open_for_sampling
    from whorl.samplers.local import LocalSampler
    from whorl.triggers.verify import verify

    opened = open_for_sampling(str(model.resolve()), device="cpu", dtype="float32", offline=True)
    answer = verify(material, LocalSampler(opened, logprobs=False))
    return Suspect(model.name, known, answer, measure(opened, qa_parts().test.rows[:N_QUESTIONS]))


def _outcome(before: "Utility", after: Suspect, change: "AccuracyChange") -> "Outcome":
    from whorl.lab.triggers.bench.config import Budget
    from whorl.lab.triggers.bench.outcome import Cost, outcome

    rises = (
        after.utility.perplexity_in / before.perplexity_in - 1,
        after.utility.perplexity_out / before.perplexity_out - 1,
    )
    answer = after.answer
    fsr = 0.0 if answer.fsr is None else answer.fsr.value
    return outcome(fsr, answer.p_value, Cost(*rises, change.points), Budget(), answer.alpha)


def _written(target: Path, suspects: Sequence[Suspect]) -> list[Path]:
    found = [s.answer.save(target / f"{s.name}.json") for s in suspects]
    worth = {s.name: _worth(s.utility) for s in suspects}
    found.append(write_text(target / "utility.json", json.dumps(worth, indent=1, allow_nan=False) + "\n"))
    return found


def _worth(utility: "Utility") -> dict[str, Any]:
    """Without the single items."""
    return {name: value for name, value in asdict(utility).items() if name not in {"right", "items"}}
