"""`sparse-lens train`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sparse_lens.cli.printing import add_command, command_line, print_json, print_line

_DESCRIPTION = (
    "Train a model on real Python source (and generated programs). An interrupted run goes on: repeat the command. "
    "Ctrl-C stops after the step at hand, with a checkpoint. Under torchrun every process takes a part of each batch."
)


def add_train(commands: Any) -> None:
    parser = add_command(commands, "train", _train, "train a model by a named recipe", _DESCRIPTION)
    recipe = parser.add_argument_group("what is trained")
    recipe.add_argument("--recipe", required=True, help="name of a recipe (a wrong name lists the nearest), or a training.json")
    recipe.add_argument("--seed", type=int, default=None, help="seed of the initial weights and of the order of the tokens")
    recipe.add_argument("--steps", type=int, default=None, help="optimizer steps, instead of the recipe's")
    recipe.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field, as sparsity.density=0.1; repeatable"
    )
    recipe.add_argument("--dry-run", action="store_true", help="print the resolved recipe and stop")
    _add_corpus(parser.add_argument_group("what it reads"))
    run = parser.add_argument_group("how it runs")
    run.add_argument("--out", type=Path, default=None, help="the model's folder; default: ./NAME-OF-RECIPE")
    run.add_argument("--checkpoints", type=Path, default=None, help="folder of the checkpoints; default: inside --out")
    run.add_argument("--threads", type=int, default=None, help="CPU threads; default: all")
    run.add_argument("--device", default="cpu", help="cpu, or cuda (not tested)")
    run.add_argument("--sharded", action="store_true", help="under torchrun, each process holds a part of the weights (FSDP2)")
    run.add_argument("--tracker", action="append", default=[], choices=["wandb", "tensorboard"], help="log there too; repeatable")


def _add_corpus(corpus: Any) -> None:
    corpus.add_argument(
        "--data",
        type=Path,
        default=None,
        help="folder of the tokenized corpus, built if missing; default: one below ./sparse-lens-data for each corpus",
    )
    corpus.add_argument(
        "--source", type=Path, action="append", default=[], help="folder of .py files instead of the standard library; repeatable"
    )
    corpus.add_argument("--dataset", default=None, help="Hugging Face dataset of source code instead (a name, or a saved folder)")
    corpus.add_argument(
        "--stream",
        default=None,
        metavar="SOURCE",
        help="stream a corpus of any size instead: a folder of parquet, JSON or text files, or a dataset on the hub",
    )
    corpus.add_argument("--column", default="text", help="text column of --dataset or --stream")
    corpus.add_argument("--workers", type=int, default=2, help="threads that tokenize a stream")
    corpus.add_argument(
        "--site-packages", type=float, default=0, metavar="MB", help="add this much of the installed packages' source"
    )
    corpus.add_argument(
        "--corpus",
        default=None,
        metavar="NAME",
        help="rebuild exactly the corpus of a shipped pair (its name), or of a manifest file, instead of all the above",
    )
    corpus.add_argument("--generated-share", type=float, default=0.5, help="share of generated programs in the training tokens")
    corpus.add_argument(
        "--tokenizer",
        default="python",
        metavar="NAME",
        help="that of a shipped pair (its name) or in a folder, so that models can be compared; `own` trains one on the corpus",
    )


def _train(options: argparse.Namespace) -> None:
    config = _config(options)
    if options.dry_run:
        print_json(config.model_dump(mode="json") | {"tokens": config.tokens})
        return
    import torch

    from sparse_lens.errors import ConfigError
    from sparse_lens.files import check_writable
    from sparse_lens.training import MODEL_FILES, train
    from sparse_lens.training.processes import Processes

    out = options.out or Path(config.name)
    check_writable(out, MODEL_FILES)
    if options.threads is not None:
        if options.threads < 1:
            raise ConfigError(f"--threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    processes = Processes.here(config.batch_size, options.device)
    if processes.first:
        _data(options, config)  # built by one process, opened by all
    processes.wait()
    data = _data(options, config)
    where = {"checkpoints": options.checkpoints, "device": options.device, "sharded": options.sharded}
    result = train(config, data, out, **where, trackers=options.tracker)
    if not processes.first:
        return
    seconds = result.history[-1]["seconds"]
    print_line(f"{result.folder}: {result.loss:.3f} nats per token on held-out real files, {seconds:.0f} s of training")
    _describe(result.folder, data, config)


def _config(options: argparse.Namespace) -> Any:
    """The recipe with the changes that the options ask for; raises `ConfigError` for one that makes no sense."""
    import json

    from pydantic import ValidationError

    from sparse_lens.errors import ConfigError
    from sparse_lens.training import TrainingConfig, get_recipe

    path = Path(options.recipe)
    if path.suffix == ".json":
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            config = TrainingConfig(**content.get("config", content))
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise ConfigError(f"{path} is no training configuration: {error}") from error
    else:
        config = get_recipe(options.recipe)
    if options.seed is not None:
        config = config.with_seed(options.seed)
    if options.steps is not None:
        config = config.with_steps(options.steps)
    try:
        return config.with_changes(options.set)
    except ValidationError as error:
        raise ConfigError(f"--set: {error}") from error


def _data(options: argparse.Namespace, config: Any) -> Any:
    """The corpus, built or opened."""
    from sparse_lens.data import prepare_data, rebuild_data
    from sparse_lens.models_shipped import pair_corpus

    if options.stream is not None:
        return _stream(options)
    if options.corpus is not None:
        manifest = pair_corpus(options.corpus)
        return rebuild_data(manifest, options.data or _own_folder(manifest["config_hash"]))
    wanted = _data_config(options, config.tokens)
    return prepare_data(wanted, options.data or _own_folder(wanted.fingerprint()))


def _stream(options: argparse.Namespace) -> Any:
    """The streamed corpus; its blocks are kept below the folder of the data."""
    from sparse_lens.data import StreamData
    from sparse_lens.errors import ConfigError
    from sparse_lens.models_shipped import shipped_pairs, tokenizer_folder

    if options.tokenizer == "own" or options.workers < 1:
        raise ConfigError("a stream needs a tokenizer that exists (--tokenizer) and at least one of --workers")
    pairs = shipped_pairs()
    tokenizer = str(tokenizer_folder(options.tokenizer)) if options.tokenizer in pairs else options.tokenizer
    cache = options.data or Path("sparse-lens-data") / "streams"
    return StreamData(options.stream, tokenizer, cache, column=options.column, workers=options.workers)


def _own_folder(fingerprint: str) -> Path:
    return Path("sparse-lens-data") / fingerprint[:8]


def _data_config(options: argparse.Namespace, tokens: int) -> Any:
    """The corpus that the options describe, no larger than what the run reads."""
    import sysconfig

    from sparse_lens.data import DataConfig, DatasetSource, SourceFolder, StandardLibrary

    names = [path.name for path in options.source]
    sources: list[Any] = [
        SourceFolder(str(path), name=path.name if names.count(path.name) == 1 else path.as_posix()) for path in options.source
    ]
    if options.dataset:
        sources.append(DatasetSource(options.dataset, column=options.column))
    if not sources:
        sources.append(StandardLibrary())
    if options.site_packages:
        sources.append(SourceFolder(sysconfig.get_paths()["purelib"], cap_mb=options.site_packages, name="site-packages"))
    return DataConfig(
        sources=tuple(sources),
        generated_share=options.generated_share,
        total_tokens=max(tokens, 200_000),
        tokenizer_directory=None if options.tokenizer == "own" else options.tokenizer,
    )


def _describe(folder: Path, data: Any, config: Any) -> None:
    """Card and curves of the finished model."""
    import json

    from sparse_lens.comparisons.shipped.assembling import corpus_sentence, public_manifest
    from sparse_lens.comparisons.shipped.cards import write_card
    from sparse_lens.files import new_file
    from sparse_lens.models_shipped import CORPUS_FILE
    from sparse_lens.report import write_curves

    manifest = public_manifest(data.manifest) if "generator" in data.manifest else dict(data.manifest)
    with new_file(folder / CORPUS_FILE) as path:
        path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    heldout = data.validation_windows(config.context, 256)
    write_curves(folder / "log.jsonl", folder / "curves.svg")
    kind = "weight-dense" if config.sparsity is None else f"weight-sparse ({config.sparsity.method})"
    read = corpus_sentence(data.manifest) if "generator" in data.manifest else f"It read a stream of {data.manifest['source']}"
    write_card(folder, heldout, about=f"{kind}, trained here", command=command_line(), data=read)
    print_line(f"{folder / 'README.md'}: what it is and which tasks it does; curves.svg: its loss and density")
