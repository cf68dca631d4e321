"""A report page of its own template: the same style sheet, policy and embedded data as every other, without a script."""

from collections.abc import Mapping
from typing import Any

from whorl.reports import _environment, _own_text, _policy, embedded


def render(template: str, *, title: str, data: Mapping[str, Any], styles: str = "", **values: Any) -> str:
    """The page as text; the same values give the same bytes.

    Args:
        template: File name in the templates of this package.
        title: Of the page.
        data: JSON values the page was made from; embedded in it.
        styles: Further rules of this package, admitted by the page's policy.
        values: Whatever else the template shows; escaped, unless it is `Markup` of this package's own making.
    """
    from markupsafe import Markup

    css = _own_text("style.css") + styles
    return (
        _environment()
        .get_template(template)
        .render(
            title=title,
            policy=_policy(css, None),
            css=Markup(css),  # noqa: S704  rules of this package
            data=Markup(embedded(data)),  # noqa: S704  holds no "<", ">" or "&"
            **values,
        )
    )
