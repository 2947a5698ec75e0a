"""Load every folder below a given one, each in a process forked from this warm one, under limits; print what became of it.

Run by `test_mutated_checkpoints`, as a program: `python load_each.py FOLDER` prints one JSON object, folder name to outcome.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path

import torch

from sparse_lens.errors import SparseLensError
from sparse_lens.models import load_checkpoint, read_tokenizer

MEMORY, SECONDS = 1 << 30, 20


def outcome(folder: Path) -> str:
    try:
        model = load_checkpoint(folder)
        read_tokenizer(folder, model.config.vocab_size)
        with torch.no_grad():
            logits = model.core(torch.zeros(1, 2, dtype=torch.long))
        return "loaded" if bool(logits.isfinite().all()) else "loaded, not finite"
    except SparseLensError as error:
        return f"refused: {error}" if len(str(error)) > 20 else f"refused without a reason: {error}"
    except BaseException as error:  # every other one is a finding
        return f"raised {type(error).__name__}: {error}"


def in_child(folder: Path) -> str:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        signal.alarm(SECONDS)
        os.write(writer, outcome(folder).encode()[:4000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return said if os.waitstatus_to_exitcode(status) == 0 else f"died: {os.waitstatus_to_exitcode(status)}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    outcome(Path(sys.argv[1]) / "warm")
    sys.stdout.write(json.dumps({path.name: in_child(path) for path in sorted(Path(sys.argv[1]).iterdir())}))
