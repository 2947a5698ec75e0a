"""As much of JSON Schema as the schemas in `tests/fixtures` use, so that no package is needed to hold a file to one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).parents[2] / "fixtures"
_TYPES: dict[str, Any] = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
_KNOWN = {
    *("$schema", "title", "description", "type", "required", "properties", "items"),
    *("patternProperties", "additionalProperties", "pattern", "minimum"),
}


def violations(path: Path, schema_name: str) -> list[str]:
    """Every place where a JSON file breaks the schema of that name."""
    schema = json.loads((FIXTURES / schema_name).read_text(encoding="utf-8"))
    return list(_violations(json.loads(path.read_text(encoding="utf-8")), schema, "$"))


def _violations(value: Any, schema: dict[str, Any], place: str) -> Iterator[str]:
    assert set(schema) <= _KNOWN, f"{place}: the checker does not know {set(schema) - _KNOWN}"
    types = schema.get("type", [])
    if types and not any(_is(value, name) for name in ([types] if isinstance(types, str) else types)):
        yield f"{place} is {value!r}, not {types}"
        return
    if isinstance(value, dict):
        yield from _in_object(value, schema, place)
    if isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _violations(entry, schema.get("items", {}), f"{place}[{index}]")
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{place} is {value!r}, which does not match {schema['pattern']}"
    if isinstance(value, int | float) and value < schema.get("minimum", value):
        yield f"{place} is {value}, less than {schema['minimum']}"


def _in_object(value: dict[str, Any], schema: dict[str, Any], place: str) -> Iterator[str]:
    yield from (f"{place} lacks {name}" for name in schema.get("required", []) if name not in value)
    for name, entry in value.items():
        found = [part for pattern, part in schema.get("patternProperties", {}).items() if re.search(pattern, name)]
        found += [schema["properties"][name]] if name in schema.get("properties", {}) else []
        if not found and schema.get("additionalProperties") is False:
            yield f"{place} has the unknown {name}"
        for part in found:
            yield from _violations(entry, part, f"{place}.{name}")


def _is(value: Any, name: str) -> bool:
    if name in ("integer", "number"):
        return isinstance(value, int if name == "integer" else int | float) and not isinstance(value, bool)
    return isinstance(value, _TYPES[name])
