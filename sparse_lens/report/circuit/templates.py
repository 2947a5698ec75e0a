"""The templates of circuits' pages and figures: everything is escaped but what is SVG of ours."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

SCRIPT = """
for (const svg of document.querySelectorAll("svg.circuit")) {
  const edges = [...svg.querySelectorAll("[data-a]")];
  for (const node of svg.querySelectorAll("[data-n]")) {
    const name = node.getAttribute("data-n"), target = node.closest("a") || node;
    const on = () => {
      svg.classList.add("dim");
      for (const edge of edges) edge.classList.toggle("on", ["data-a", "data-b"].some(end => edge.getAttribute(end) === name));
    };
    const off = () => svg.classList.remove("dim");
    for (const event of ["mouseenter", "focus"]) target.addEventListener(event, on);
    for (const event of ["mouseleave", "blur"]) target.addEventListener(event, off);
  }
}
const reveal = () => {
  const found = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const card = found && found.closest("details");
  if (card) card.open = true;
};
addEventListener("hashchange", reveal);
reveal();
"""
"""Lights up the edges of the node under the mouse, and opens the card that a link leads to; without it the page lacks only this."""


def script_hash() -> str:
    """What lets this script alone run under the page's policy: a text that got into the page could not."""
    return "sha256-" + base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()


@cache
def _environment() -> Environment:
    loader = PackageLoader("sparse_lens.report", package_path="")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {"script": Markup(SCRIPT), "script_hash": script_hash()}
    return environment


def render(template: str, view: Mapping[str, Any]) -> str:
    """A template of this package with the variables of `view`."""
    return _environment().get_template(template).render(view)
