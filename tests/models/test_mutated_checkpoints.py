"""Damaged and hostile checkpoints, hundreds of them, in every format.

Each is refused with a reason or loads correctly; none runs code, hangs or eats memory.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparse_lens.models import CircuitGPTConfig, CircuitGPTForCausalLM, save_packed, save_reference

CASES_PER_MUTATION = 12


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One sound folder of every format."""
    root = tmp_path_factory.mktemp("bases")
    config = CircuitGPTConfig(
        **{"block_size": 8, "vocab_size": 24, "n_layer": 2, "n_head": 2, "d_model": 8, "rms_norm": True, "sink": True},
        **{"tied_unembed": False, "afrac": 0.5, "enable_bigram_table": True},
    )
    model = CircuitGPTForCausalLM(config).eval()
    save_reference(model, root / "reference")
    model.save_pretrained(root / "hf")
    model.save_pretrained(root / "shards", max_shard_size="3KB")
    (root / "packed").mkdir()
    save_packed(model, root / "packed")
    (root / "replication").mkdir()
    _write_replication(model, root / "replication")
    return {path.name: path for path in root.iterdir()}


def _write_replication(model: CircuitGPTForCausalLM, folder: Path) -> None:
    fields = {"n_layer": 2, "d_model": 8, "n_ctx": 8, "d_head": 4, "d_mlp": 32, "vocab_size": 24, "use_attention_sinks": True}
    sparsity = {"enable_activation_sparsity": True, "activation_topk_fraction": 0.5}
    (folder / "config.json").write_text(json.dumps({"model_config": fields, "sparsity_config": sparsity}))
    state: dict[str, torch.Tensor] = {}
    core = model.core.state_dict()
    for name, tensor in core.items():
        if name in ("wpe.weight", "lm_head.bias") or ".attn.k." in name or ".attn.v." in name:
            continue
        renamed = name.replace("attn.o", "attn.c_proj").replace("fc_in", "c_fc").replace("fc_out", "c_proj")
        renamed = renamed.replace("attn.sink_logit", "attn.attn_fn.sink_logit").replace("bigram_table.weight", "bigram_table")
        if ".attn.q." in name:
            tensor = torch.cat([core[name.replace(".attn.q.", f".attn.{letter}.")] for letter in "qkv"])
            renamed = name.replace("attn.q", "attn.c_attn")
        state[renamed] = tensor
    torch.save(state, folder / "pytorch_model.bin")


def weights_of(folder: Path) -> Path:
    return max((path for path in folder.iterdir() if path.name not in CONFIGS), key=lambda path: path.stat().st_size)


CONFIGS = ("config.json", "beeg_config.json", "generation_config.json", "model.safetensors.index.json")


def config_of(folder: Path) -> Path:
    return folder / ("beeg_config.json" if (folder / "beeg_config.json").exists() else "config.json")


def edit_config(folder: Path, draw: random.Random, values: list[Any]) -> None:
    path = config_of(folder)
    content = json.loads(path.read_text())
    fields = content.get("model_config", content)
    fields[draw.choice(sorted(fields))] = draw.choice(values)
    path.write_text(json.dumps(content))


def truncate(folder: Path, draw: random.Random) -> None:
    path = draw.choice([weights_of(folder), config_of(folder)])
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data))])


def flip_bits(folder: Path, draw: random.Random) -> None:
    path = weights_of(folder)
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 8, 200])):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(data))


def flip_header_bits(folder: Path, draw: random.Random) -> None:
    path = weights_of(folder)
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 4])):
        data[draw.randrange(min(400, len(data)))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(data))


def reorder(folder: Path, draw: random.Random) -> None:
    path = weights_of(folder)
    data = path.read_bytes()
    a, b = sorted(draw.sample(range(len(data)), 2))
    path.write_bytes(data[b:] + data[a:b] + data[:a])


def edit_state(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = weights_of(folder)
    if path.suffix == ".safetensors":
        state = load_file(path)
        change(state)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)


def rename_key(folder: Path, draw: random.Random) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        name = draw.choice(sorted(state))
        state[draw.choice([name + "x", name[:-1], name.replace("0", "7"), "../" + name, "", draw.choice(sorted(state))])] = (
            state.pop(name)
        )

    edit_state(folder, change)


def wrong_tensor(folder: Path, draw: random.Random) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        name = draw.choice(sorted(state))
        tensor = state[name]
        state[name] = draw.choice(
            [
                tensor.to(torch.int32), tensor.to(torch.float64), tensor.bool(), tensor.float() * float("nan"),
                tensor[..., :-1].clone(), tensor.flatten().clone(), tensor[None].clone(), tensor.float() + float("inf"),
            ]
        )  # fmt: skip

    edit_state(folder, change)


def huge_shape(folder: Path, draw: random.Random) -> None:
    path = weights_of(folder)
    size = draw.choice([1 << 20, 1 << 31, 1 << 40, 1 << 62])
    if path.suffix == ".safetensors":
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        name = draw.choice(sorted(header.keys() - {"__metadata__"}))
        header[name]["shape"] = [size, size] if draw.random() < 0.5 else [size]
        if draw.random() < 0.5:
            header[name]["data_offsets"] = [0, size]
        written = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(written)) + written + data[8 + length :])
        return
    state = torch.load(path, weights_only=True)
    name = draw.choice(sorted(state))
    state[name] = draw.choice(
        [torch.zeros(1).expand(size), torch.zeros(1).as_strided((4, 4), (0, 0)), torch.zeros(1).expand(min(size, 1 << 30), 4)]
    )
    torch.save(state, path)


def absurd_config(folder: Path, draw: random.Random) -> None:
    edit_config(folder, draw, [10**6, 10**9, 10**18, -1, 0, 2**63, 1e308, "many", None, [], {}, True, "\u0000", "a" * 10_000])


def random_config(folder: Path, draw: random.Random) -> None:
    path = config_of(folder)
    path.write_text(
        draw.choice(["", "{}", "[]", "null", "{" * 5000, '{"a": ' * 5000, "\ufeff{}", '{"n_layer": 1e999}', "NaN", '"text"'])
    )


class Runs:
    """An object whose unpickling runs a program."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def pickle_with_code(folder: Path, draw: random.Random) -> None:
    path, mark = weights_of(folder), folder.parents[1] / "marks" / folder.name
    mark.parent.mkdir(exist_ok=True)
    target = folder / ("final_model.pt" if path.suffix == ".pt" else "pytorch_model.bin")
    if target != path:
        for old in folder.glob("*.safetensors*"):
            old.unlink()
    if draw.random() < 0.5:
        target.write_bytes(pickle.dumps({"wte.weight": Runs(mark)}))
    else:
        torch.save({"wte.weight": torch.zeros(2), "x": Runs(mark)}, target)


def zip_bomb(folder: Path, draw: random.Random) -> None:
    for old in [weights_of(folder), *folder.glob("*.safetensors*")]:
        old.unlink(missing_ok=True)
    name = "final_model.pt" if (folder / "beeg_config.json").exists() else "pytorch_model.bin"
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}) if draw.random() < 0.5 else b"0" * (64 << 20))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", b"0" * (64 << 20))


def link_outside(folder: Path, draw: random.Random) -> None:
    path, outside = weights_of(folder), folder.parents[1] / "outside" / folder.name
    outside.parent.mkdir(exist_ok=True)
    shutil.move(path, outside)
    path.symlink_to(draw.choice([outside, Path("/dev/zero"), Path("/nowhere"), path]))


def two_sets(folder: Path, draw: random.Random) -> None:
    present = weights_of(folder)
    others = [n for n in ("final_model.pt", "pytorch_model.bin", "model.packed.safetensors") if n != present.name]
    shutil.copy(present, folder / draw.choice(others))


MUTATIONS = [
    truncate, flip_bits, flip_header_bits, reorder, rename_key, wrong_tensor, huge_shape, absurd_config, random_config,
    pickle_with_code, zip_bomb, link_outside, two_sets,
]  # fmt: skip
ALWAYS_REFUSED = {"pickle_with_code", "zip_bomb", "link_outside", "two_sets", "random_config"}


@pytest.mark.slow
def test_every_mutation(bases: dict[str, Path], tmp_path: Path) -> None:
    draw, cases = random.Random(7), tmp_path / "cases"
    shutil.copytree(bases["reference"], cases / "warm")
    for base, folder in bases.items():
        shutil.copytree(folder, cases / f"sound-{base}-0")
        for mutation in MUTATIONS:
            for number in range(CASES_PER_MUTATION):
                case = cases / f"{mutation.__name__}-{base}-{number}"
                shutil.copytree(folder, case)
                mutation(case, draw)
    worker = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("load_each.py")), str(cases)], capture_output=True, text=True, check=False
    )
    assert worker.returncode == 0, worker.stderr[-3000:]
    outcomes = json.loads(worker.stdout)
    assert len(outcomes) > 700
    good = {name: said for name, said in outcomes.items() if said == "loaded" or said.startswith("refused: ")}
    assert {name: said for name, said in outcomes.items() if name not in good} == {}
    assert list((tmp_path / "marks").iterdir()) == []
    for name, said in outcomes.items():
        kind = name.split("-")[0]
        assert (said == "loaded") if kind in ("sound", "warm") else True, (name, said)
        assert kind not in ALWAYS_REFUSED or said.startswith("refused"), (name, said)
    counts = Counter((name.split("-")[0], said.split(":")[0]) for name, said in outcomes.items())
    assert counts["truncate", "refused"] > 50
    assert counts["huge_shape", "loaded"] == 0
