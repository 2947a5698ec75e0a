"""Figures of the page as files of their own: SVG that carries its style, and PNG (with the extra `[figures]`)."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from pathlib import Path

from sparse_lens.errors import ConfigError
from sparse_lens.files import new_file
from sparse_lens.report.svg import SERIES

_STYLE = "style.html.jinja"
_FONT = "svg { font: 12.5px 'DejaVu Sans', 'Liberation Sans', Arial, Helvetica, sans-serif; }"
PNG_ZOOM = 2.0


def write_svg(figure: str, path: str | Path) -> None:
    """Write a figure as an SVG file that looks in any viewer as it does on the page, in the light theme."""
    with new_file(path) as staging:
        staging.write_text(standalone_svg(figure) + "\n", encoding="utf-8")


def write_png(figure: str, path: str | Path) -> None:
    """Write a figure as a PNG file on white, at twice the size of the page; raises `ConfigError` without the extra `[figures]`."""
    if not png_is_available():
        raise ConfigError('PNG files need the extra: pip install "sparse-lens[figures]"; SVG files do not')
    import resvg_py

    svg = standalone_svg(figure)
    with new_file(path) as staging:
        staging.write_bytes(resvg_py.svg_to_bytes(svg_string=svg, background="#ffffff", zoom=PNG_ZOOM))


def png_is_available() -> bool:
    """Whether the extra `[figures]` is installed."""
    from importlib.util import find_spec

    return find_spec("resvg_py") is not None


def standalone_svg(figure: str) -> str:
    """The figure with the page's style for it inside, colors written out: few programs know CSS variables."""
    head, bracket, rest = figure.partition(">")
    return f"{head}{bracket}<style>{figure_style()}</style>{rest}"


@cache
def figure_style() -> str:
    """The rules of the page's style sheet that concern figures, with the light theme's colors in place of its variables."""
    sheet = files("sparse_lens.report").joinpath(_STYLE).read_text(encoding="utf-8")
    light = sheet.partition("@media")[0]
    colors = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{3,6});", light))
    rules = re.findall(r"svg [^{}]+\{[^{}]*\}", sheet)
    return _FONT + "".join(_resolved(rule, colors) for rule in rules)


def _resolved(rule: str, colors: dict[str, str]) -> str:
    """A rule with its colors; one that takes a series' color becomes one rule for each series."""
    rule = re.sub(r"var\(--([a-z]+\d?(?:-[a-z]+)?)\)", lambda found: colors.get(found[1], found[0]), rule)
    if "var(--c)" not in rule:
        return rule
    selector, _, body = rule.partition("{")
    return "".join(f"{selector.strip()}.s{index}{{{body.replace('var(--c)', colors[f's{index}'])}" for index in range(SERIES))
