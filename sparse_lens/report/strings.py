"""Foreign strings made harmless and visible: names, tokens and reasons come from files that anyone may have written."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

from markupsafe import Markup

_SIGNS = {"\n": "\N{RETURN SYMBOL}", "\t": "\N{RIGHTWARDS ARROW TO BAR}"}
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def visible(content: object) -> str:
    """`content` as one line in which control, format and surrogate characters are written out, so that none acts."""
    return "".join(_visible_character(character) for character in str(content))


def token_label(token: object) -> str:
    """A token with its spaces as middle dots, quoted by nothing: `' in'` is `·in`."""
    return visible(token).replace(" ", "\N{MIDDLE DOT}")


def shorten(text: str, most: int) -> str:
    """`text` cut to `most` columns with an ellipsis; wide characters count twice."""
    if width_of(text) <= most:
        return text
    kept = ""
    for character in text:
        if width_of(kept + character) > most - 1:
            break
        kept += character
    return kept + "\N{HORIZONTAL ELLIPSIS}"


def width_of(text: str) -> int:
    """Columns that `text` takes, as in a terminal."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def markdown_cell(content: object) -> str:
    """`content` for a cell of a Markdown table: nothing in it is markup."""
    text = visible(content).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|~$])", r"\\\1", text)


def csv_cell(content: Any) -> Any:
    """`content` for a CSV cell; text that a spreadsheet would run as a formula is quoted with an apostrophe."""
    if not isinstance(content, str):
        return content
    text = visible(content)
    return "'" + text if text.startswith(("=", "+", "-", "@")) else text


def script_json(content: Any) -> Markup:
    """JSON that can stand inside a `<script type="application/json">`: ASCII, with `<`, `>` and `&` escaped."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _visible_character(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    if unicodedata.category(character) in _HIDDEN:
        code = ord(character)
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    return character
