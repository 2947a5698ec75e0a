"""`assemble_pair`: trained models, SAEs, windows and cards in one folder that `compare` opens; so the shipped pair was made.

    python -m sparse_lens.comparisons.shipped.assembling --data DATA --models MODELS --out FOLDER

takes the three models that `sparse-lens train` has made (MODELS/python-sparse and so on), trains the SAEs on the matched one, and
names the tasks that all three models do.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse_lens.circuits.trust.verdicts import ACCURACY_GATE
from sparse_lens.comparisons.pair import ROLES, model_facts
from sparse_lens.comparisons.shipped.cards import task_accuracies, write_card
from sparse_lens.data import Document, TokenData, encode_documents, rebuild_documents
from sparse_lens.dictionaries import SAETrainingConfig, train_sae
from sparse_lens.errors import DataError
from sparse_lens.files import check_writable, new_directory
from sparse_lens.hooks import load
from sparse_lens.models import load_checkpoint, save_packed
from sparse_lens.models_shipped import CORPUS_FILE, PAIR_FILE, WINDOWS_FILE, write_windows
from sparse_lens.results import Result
from sparse_lens.tasks import available_tasks

DEFAULT_TASKS = 5
SAE_CONFIG = SAETrainingConfig(d_sae=1024, k=16, tokens=4_000_000, batch_size=2048, half=True)
"""How the shipped SAEs were trained, one per layer."""

_WINDOWS = 256


def assemble_pair(
    models: Mapping[str, Path],
    data: TokenData,
    folder: str | Path,
    *,
    about: Mapping[str, str],
    dictionaries: Mapping[str, SAETrainingConfig],
    source: str = "stdlib",
    progress: bool = True,
) -> None:
    """Write a pair: `models` (by role) with cards, SAEs of the matched model (configuration by hook), windows of real text.

    The pair's tasks are the first five, in order of registration, that all models do (two-way accuracy on held-out templates).
    Only windows of the corpus' `source` are copied, since they are published with the models: choose one whose licence allows
    it. Real text makes up half of the reference windows, generated programs the rest, as in training. Raises `DataError` for a
    missing role, and if fewer than two tasks are done by all.
    """
    if missing := [role for role in ROLES if role not in models]:
        raise DataError(f"a pair needs models for {', '.join(ROLES)}; {', '.join(missing)} missing")
    sae_names = {f"sae-{hook.replace('.', '-')}": hook for hook in dictionaries}
    names = [model.name for model in models.values()]
    check_writable(folder, [*names, *sae_names, WINDOWS_FILE, CORPUS_FILE, PAIR_FILE])
    windows = pair_source_windows(data, source)
    accuracies = {role: task_accuracies(load(models[role])) for role in ROLES}
    with new_directory(folder) as staging:
        for role in ROLES:
            place = staging / models[role].name
            copy_packed(models[role], place)
            write_card(
                place,
                windows["heldout"],
                about=about[role],
                command=training_command(recipe_command(place), data.manifest),
                data=corpus_sentence(data.manifest),
                more={"loss_on_all_sources": _loss_on_all_sources(place, data)},
                accuracies=accuracies[role],
            )
        for name, hook in sae_names.items():
            _train(models["dense_matched"], hook, data, dictionaries[hook], staging / name, progress)
        write_windows(staging / WINDOWS_FILE, windows["reference"], windows["heldout"])
        record: dict[str, Any] = {"format": 1} | {role: models[role].name for role in ROLES}
        record |= {"dictionaries": list(sae_names), "tasks": common_tasks(accuracies), "windows_source": source}
        (staging / CORPUS_FILE).write_text(json.dumps(public_manifest(data.manifest), indent=1) + "\n", encoding="utf-8")
        (staging / PAIR_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def common_tasks(accuracies: Mapping[str, Mapping[str, Result]], most: int = DEFAULT_TASKS) -> list[str]:
    """The first `most` tasks that every model does; raises `DataError` if there are not even two."""
    done = [
        task for task in available_tasks() if all((of_model[task].value or 0) >= ACCURACY_GATE for of_model in accuracies.values())
    ]
    if len(done) < 2:
        raise DataError(f"all models together do {len(done)} task(s) with {ACCURACY_GATE:.0%} accuracy; train them longer")
    return done[:most]


def pair_source_windows(data: TokenData, source: str, *, context: int = 128) -> dict[str, np.ndarray]:
    """`reference [window pos]` and `heldout [window pos+1]` windows, their real part from one source of the corpus."""
    documents = rebuild_documents(data.manifest)
    real = {split: _tokens(data, [d for d in documents[split] if d.source == source]) for split in ("train", "valid")}
    half = _WINDOWS // 2
    generated = data.validation_windows(context, half, split="valid_generated")
    reference = np.concatenate([_spread(real["train"], half, context + 1), generated])[:, :context]
    return {"reference": reference, "heldout": _spread(real["valid"], _WINDOWS, context + 1)}


def _tokens(data: TokenData, documents: Sequence[Document]) -> np.ndarray:
    if not documents:
        raise DataError("the corpus has no documents of that source; name one of its manifest's sources")
    return np.concatenate(encode_documents(data.tokenizer, [document.text for document in documents]))


def _spread(tokens: np.ndarray, n_windows: int, length: int) -> np.ndarray:
    """`n_windows` windows, evenly spaced."""
    starts = np.linspace(0, len(tokens) - length, n_windows).astype(np.int64)
    return tokens[starts[:, None] + np.arange(length)].astype(np.int64)


def _train(model: Path, hook: str, data: TokenData, config: SAETrainingConfig, folder: Path, progress: bool) -> None:
    bridge = load(model)
    context = bridge.model_config.block_size
    n_steps = (len(data.train) - 1) // context // 16
    batches = (batch[:, :-1] for batch in data.batches(context=context, batch_size=16, seed=0, n_steps=n_steps))
    held_out = np.array_split(data.validation_windows(context, config.held_out_tokens // context)[:, :-1], 16)
    train_sae(bridge, hook, batches, config, folder, held_out=held_out, model_name=model.name, progress=progress)


def public_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The corpus' manifest without this machine's folders: sources are known by name, files by path below them and hash."""

    def without_paths(sources: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in source.items() if key != "path"} for source in sources]

    config = manifest["config"] | {"sources": without_paths(manifest["config"]["sources"])}
    return {**manifest, "sources": without_paths(manifest["sources"]), "config": config}


def copy_packed(source: Path, target: Path) -> None:
    """A trained model as it is shipped: weights packed, rounded to fp16; tokenizer and record as they are."""
    target.mkdir()
    save_packed(load_checkpoint(source), target)
    for name in ("tokenizer.json", "tokenizer_config.json", "training.json"):
        shutil.copyfile(source / name, target / name)


def _loss_on_all_sources(folder: Path, data: TokenData) -> dict[str, Any]:
    windows = data.validation_windows(load(folder).model_config.block_size, 2 * _WINDOWS)
    return model_facts(load(folder), windows)["loss"].to_json()


def recipe_command(folder: Path) -> str:
    """The recipe of a trained model and its seed, as options of `sparse-lens train`."""
    config = json.loads((folder / "training.json").read_text(encoding="utf-8"))["config"]
    name, seed = config["name"].removesuffix(f"-seed{config['seed']}"), config["seed"]
    return name if seed == 0 else f"{name} --seed {seed}"


def corpus_sentence(manifest: Mapping[str, Any]) -> str:
    """What a model has read, in a sentence for its card."""
    generator, sources = manifest["generator"], ", ".join(source["name"] for source in manifest["config"]["sources"])
    return (
        f"{1 - generator['share']:.0%} of the training tokens are real Python source ({sources}; Python {manifest['python']}), "
        f"{generator['share']:.0%} are {generator['programs']:,} generated simple programs; files and hashes are in {CORPUS_FILE}"
    )


def training_command(recipe: str, manifest: Mapping[str, Any]) -> str:
    """The `sparse-lens train` command of a recipe on the standard library, and as much of the installed packages as was used."""
    packages = [source["cap_mb"] for source in manifest["config"]["sources"] if source["name"] == "site-packages"]
    share = "".join(f" --site-packages {megabytes:g}" for megabytes in packages)
    return f"sparse-lens train --recipe {recipe}{share} --threads 1"


ABOUT = {
    "sparse": "weight-sparse, AbsTopK 1/4 at eight sites",
    "dense": "dense twin: same shape, tokens and order",
    "dense_matched": "dense, narrower, same tokens and order, fully annealed, within 0.05 nats of the sparse model",
}
"""What the shipped models are, by role."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the shipped pair from trained models."""
    parser = argparse.ArgumentParser(description="Make a pair from trained models: SAEs, cards, windows, tasks.")
    parser.add_argument("--data", type=Path, required=True, help="the corpus' folder, as `sparse-lens train --data` has built it")
    parser.add_argument("--models", type=Path, required=True, help="folder with python-sparse, python-dense, python-dense-matched")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pair")
    options = parser.parse_args(arguments)
    names = {"sparse": "python-sparse", "dense": "python-dense", "dense_matched": "python-dense-matched"}
    models = {role: options.models / name for role, name in names.items()}
    hooks = [f"blocks.{layer}.mlp.hook_post" for layer in range(load(models["dense_matched"]).cfg.n_layers)]
    assemble_pair(models, TokenData(options.data), options.out, about=ABOUT, dictionaries=dict.fromkeys(hooks, SAE_CONFIG))


if __name__ == "__main__":
    main()
