"""whorl decides, with stated error rates, whether language models share an origin.

    import whorl

    result = whorl.compare("org/base@v1", "./suspect")
    result.verdict      # "related", "unrelated" or "undecided"
    result.evidence     # one entry a method: value, threshold, p-value, why
    result.to_dict()    # exactly what `whorl compare --json` prints

    answers = whorl.sample(whorl.open_local("./suspect"), prompts, out="runs/suspect")
    whorl.identity_test(whorl.read_records(["runs/reference"]), whorl.read_records(["runs/suspect"])).verdict

    whorl.verify(whorl.read_material("./secret"), whorl.open_local("./suspect")).verdict    # is my fingerprint in there?

`fingerprint` reads a model once, tensor by tensor, and keeps what its methods need; `compare` reads two and judges
them; `report` writes one self-contained HTML page. Reading needs neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whorl.comparison import Comparison, compare
    from whorl.derivation.derivation import derivation_test
    from whorl.erasure.phases import erase
    from whorl.erasure.sets import build_sets
    from whorl.errors import (
        InputRefused,
        MalformedFile,
        NotComparable,
        NotEnoughEvidence,
        RemoteError,
        UnsafeFile,
        UnsupportedFile,
        UsageError,
        WhorlError,
    )
    from whorl.evidence import Evidence
    from whorl.fingerprints import Fingerprint, fingerprint
    from whorl.gallery import Gallery
    from whorl.identification import Identification, identify
    from whorl.identity.identity import identity_test
    from whorl.questions.reading import load_questions
    from whorl.registry import method_names
    from whorl.reports import report
    from whorl.samplers.http import open_endpoint
    from whorl.samplers.local import open_local
    from whorl.samplers.sample import sample
    from whorl.serving import serve
    from whorl.surveys import Survey, survey
    from whorl.transcripts.importing import import_file
    from whorl.transcripts.store import read_records
    from whorl.trees import Tree, tree
    from whorl.triggers.embed import embed
    from whorl.triggers.material import read_material
    from whorl.triggers.verification import Verification
    from whorl.triggers.verify import verify

__version__ = "0.1.0"

_HOMES = {
    "Comparison": "whorl.comparison",
    "Evidence": "whorl.evidence",
    "compare": "whorl.comparison",
    "derivation_test": "whorl.derivation.derivation",
    "Fingerprint": "whorl.fingerprints",
    "fingerprint": "whorl.fingerprints",
    "Gallery": "whorl.gallery",
    "Identification": "whorl.identification",
    "identify": "whorl.identification",
    "identity_test": "whorl.identity.identity",
    "import_file": "whorl.transcripts.importing",
    "method_names": "whorl.registry",
    "open_endpoint": "whorl.samplers.http",
    "open_local": "whorl.samplers.local",
    "read_records": "whorl.transcripts.store",
    "report": "whorl.reports",
    "sample": "whorl.samplers.sample",
    "Survey": "whorl.surveys",
    "survey": "whorl.surveys",
    "Tree": "whorl.trees",
    "tree": "whorl.trees",
    "embed": "whorl.triggers.embed",
    "verify": "whorl.triggers.verify",
    "Verification": "whorl.triggers.verification",
    "read_material": "whorl.triggers.material",
    "erase": "whorl.erasure.phases",
    "build_sets": "whorl.erasure.sets",
    "load_questions": "whorl.questions.reading",
    "serve": "whorl.serving",
    "InputRefused": "whorl.errors",
    "MalformedFile": "whorl.errors",
    "NotComparable": "whorl.errors",
    "NotEnoughEvidence": "whorl.errors",
    "RemoteError": "whorl.errors",
    "UnsafeFile": "whorl.errors",
    "UnsupportedFile": "whorl.errors",
    "UsageError": "whorl.errors",
    "WhorlError": "whorl.errors",
}

__all__ = [
    "Comparison",
    "Evidence",
    "Fingerprint",
    "Gallery",
    "Identification",
    "InputRefused",
    "MalformedFile",
    "NotComparable",
    "NotEnoughEvidence",
    "RemoteError",
    "Survey",
    "Tree",
    "UnsafeFile",
    "UnsupportedFile",
    "UsageError",
    "Verification",
    "WhorlError",
    "build_sets",
    "compare",
    "derivation_test",
    "embed",
    "erase",
    "fingerprint",
    "identify",
    "identity_test",
    "import_file",
    "load_questions",
    "method_names",
    "open_endpoint",
    "open_local",
    "read_material",
    "read_records",
    "report",
    "sample",
    "serve",
    "survey",
    "tree",
    "verify",
]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `import whorl` and `whorl --help` stay light.
    if name not in _HOMES:
        raise AttributeError(f"module 'whorl' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
