"""`report`: one self-contained HTML file that shows results to somebody who has no `whorl`.

    import whorl

    whorl.report([whorl.compare("./base", "./suspect")], out="report.html")

All pictures are inline SVG, so the file needs no plotting library, loads nothing, and prints. Names, claims and every
other text of a model are hostile: Jinja2 escapes all of it, invisible characters are spelled out, links are text, and
a content-security policy admits nothing but this package's own style sheet and script, by digest.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from whorl._atomic import write_text
from whorl.errors import UsageError

if TYPE_CHECKING:
    from jinja2 import Environment

    from whorl.calibration import Calibration
    from whorl.comparison import Comparison
    from whorl.derivation.result import DerivationResult
    from whorl.identification import Identification
    from whorl.identity.result import IdentityResult
    from whorl.surveys import Survey
    from whorl.trees import Tree
    from whorl.triggers.verification import Verification

    Result: TypeAlias = Comparison | Identification | Survey | Tree | IdentityResult | DerivationResult | Verification

TEMPLATES = Path(__file__).parent / "templates"


def report(
    results: "Sequence[Result | str | Path]",
    out: str | Path = "report.html",
    *,
    light: bool = False,
    truth: Mapping[str, Any] | None = None,
    calibrations: "Sequence[Calibration] | None" = None,
) -> Path:
    """Write one HTML file about results.

    Args:
        results: Comparisons, identifications, trees, surveys and tests on outputs, or paths of saved ones, in the order shown.
        out: The file to write; missing folders are made.
        light: Leave out the script that shows all methods' values of the pair under the pointer.
        truth: For surveys of models whose lineage is known: model name -> lineage, or a mapping with `group` and
            `kind`. Adds lineage marks, and for each method how its values of kin and of strangers lie.
        calibrations: Where the values behind a plot are looked up, by id; None for those in the package.

    Returns:
        The path written. The same results give the same bytes.

    Raises:
        UsageError: no result, a missing file, lineages that fit no model.
        InputRefused: a saved result that is not one.
    """
    from whorl.reports.stored import as_json, checked, read_result

    if not results:
        raise UsageError("A report needs at least one result.")
    loaded = []
    for result in results:
        path = Path(result) if isinstance(result, str | Path) else None
        data = as_json(result) if path is None else read_result(path)
        loaded.append((data, checked(data, "result" if path is None else path.name)))
    page = _page([data for data, _ in loaded], [stored for _, stored in loaded], light, truth, calibrations)
    return write_text(Path(out), page)


def _page(
    data: Sequence[dict[str, Any]],
    results: Sequence[Any],
    light: bool,
    truth: Mapping[str, Any] | None,
    calibrations: "Sequence[Calibration] | None",
) -> str:
    from markupsafe import Markup

    from whorl.reports.lineages import read_truth
    from whorl.reports.pages import origins, views

    names = [m.name for r in results if r.kind == "survey" for m in r.models]
    sections, methods = views(results, {} if truth is None else read_truth(truth, names), calibrations)
    css, script = (_own_text(name) for name in ("style.css", "script.js"))
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=sections[0].title if len(sections) == 1 else f"{len(sections)} results",
            views=sections,
            methods=methods,
            limits=list(dict.fromkeys(text for r in results if r.kind == "survey" for text in r.does_not_show)),
            origins=list(dict.fromkeys(pair for r in results for pair in origins(r))),
            light=light,
            policy=_policy(css, None if light else script),
            css=Markup(css),  # noqa: S704  a file of this package
            script=Markup(script),  # noqa: S704  a file of this package
            data=Markup(embedded(data)),  # noqa: S704  holds no "<", ">" or "&"
        )
    )


def embedded(data: object) -> str:
    """JSON that is safe inside a script block: ASCII, with `<`, `>` and `&` written as escapes."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(css: str, script: str | None) -> str:
    scripts = "" if script is None else f"; script-src '{_digest(script)}'"
    return f"default-src 'none'; style-src '{_digest(css)}'{scripts}; base-uri 'none'; form-action 'none'"


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _own_text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from whorl.reports import shown
    from whorl.reports.verdict_words import ranked

    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters.update(
        name=lambda text: shown.cut_name(text, 120),
        text=shown.cut_text,
        sentence=shown.sentence,
        num=shown.number,
        p=shown.p_text,
        px=shown.pixels,
        shape=shown.shape_words,
        plain=shown.plain,
        ranked=ranked,
    )
    return found
