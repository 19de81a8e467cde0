"""A hook of MkDocs: formulas become MathML, which browsers show with no script and no network."""

import html
import re

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: object) -> str:
    """Returns a page's HTML with its formulas as MathML."""
    return FORMULA.sub(to_mathml, content)


def to_mathml(found: re.Match[str]) -> str:
    """Returns a formula as MathML, a displayed one in a block that scrolls."""
    tag, bracket, formula = found.groups()
    display = "block" if bracket == "[" else "inline"
    return f'<{tag} class="formula">{convert(html.unescape(formula), display=display)}</{tag}>'
