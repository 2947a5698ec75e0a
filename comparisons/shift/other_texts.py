"""Text that is no Python, from what a Python installation holds, and C programs written here for where it holds nothing."""

from __future__ import annotations

import hashlib
import os
import random
import sysconfig
from pathlib import Path

from sparse_lens.data import Document

GENERATED = "generated c"
"""The kind of text that is there on every machine."""

KINDS_OF_TEXT: dict[str, tuple[str, ...]] = {
    "c": (".h", ".c"),
    "json": (".json",),
    "javascript": (".js",),
    "html": (".html",),
    "prose": (".rst", ".md", ".txt"),
    "licence": (),
}
"""Kinds of text by the ends of their files' names; licences by how the names begin."""

_LICENCES = ("license", "licence", "copying", "notice")
_MOST_BYTES, _FEWEST_CHARACTERS = 1_000_000, 1_500
_NOUNS = ("buffer", "count", "index", "node", "offset", "result", "size", "table", "value", "width")
_TYPES = ("int", "long", "unsigned int", "double", "size_t")


def other_language_texts(*, most_files: int = 40) -> dict[str, list[Document]]:
    """Texts by kind: `KINDS_OF_TEXT` from the standard library, packages and C headers of this Python, and C that is `GENERATED`.

    At most `most_files` of a kind, those whose names in the installation have the smallest hashes; of 1,500 characters to 1 MB, in
    UTF-8. Which there are depends on the installation; of equal texts one is read.
    """
    places = sysconfig.get_paths()
    found: dict[str, dict[str, Path]] = {kind: {} for kind in KINDS_OF_TEXT}
    for root in sorted({Path(places[name]) for name in ("stdlib", "purelib", "include")}):
        for folder, _, files in os.walk(root):
            for file in files:
                path = Path(folder, file)
                if (kind := _kind(file)) is not None:
                    found[kind].setdefault(hashlib.sha256(path.relative_to(root).as_posix().encode()).hexdigest(), path)
    texts = {kind: _read([paths[key] for key in sorted(paths)], kind, most_files) for kind, paths in found.items()}
    return texts | {GENERATED: generated_c_texts(most_files)}


def generated_c_texts(n: int) -> list[Document]:
    """`n` C sources of some functions each, the same on every machine."""
    texts = [generated_c(random.Random(f"{number}:c")) for number in range(n)]
    return [
        Document(GENERATED, f"{number}.c", hashlib.sha256(text.encode()).hexdigest(), text) for number, text in enumerate(texts)
    ]


def generated_c(generator: random.Random, *, functions: int = 8) -> str:
    """A C source of a few functions with a loop, a test and a return each; nothing in it is meant to be of use."""
    parts = ["#include <stdio.h>\n#include <stdlib.h>\n"]
    for number in range(functions):
        kind = generator.choice(_TYPES)
        first, second, third = generator.sample(_NOUNS, 3)
        limit, step = generator.randint(2, 512), generator.randint(1, 9)
        compare, update = generator.choice(("<", ">", "<=", "!=")), generator.choice(("+=", "-=", "*=", "^="))
        parts.append(
            f"/* {first} {number} of {second} */\n"
            f"static {kind} *{first}_{second}(const {kind} *{first}, size_t {second}) {{\n"
            f"    {kind} *{third} = malloc({second} * sizeof(*{third}));\n"
            f"    for (size_t i = 0; i < {second} && i < {limit}; i++) {{\n"
            f"        if ({first}[i] {compare} {step}) {{\n"
            f"            {third}[i] {update} {first}[i] << {step};\n"
            f'        }} else {{\n            printf("%d\\n", {third}[i]);\n        }}\n'
            f"    }}\n    return &{third}[{step}];\n}}\n"
        )
    return "\n".join(parts)


def _kind(file: str) -> str | None:
    name = file.lower()
    if name.startswith(_LICENCES) and not name.endswith((".py", ".pyc", ".pyi")):
        return "licence"
    return next((kind for kind, ends in KINDS_OF_TEXT.items() if ends and name.endswith(ends)), None)


def _read(paths: list[Path], kind: str, most: int) -> list[Document]:
    documents: dict[str, Document] = {}
    for path in paths:
        if len(documents) == most:
            break
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _MOST_BYTES:
            continue
        raw = path.read_bytes()
        try:
            text = raw.decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError:
            continue  # not a text: there are enough others
        if len(text) >= _FEWEST_CHARACTERS:
            digest = hashlib.sha256(raw).hexdigest()
            documents.setdefault(digest, Document(kind, path.name, digest, text))
    return list(documents.values())
