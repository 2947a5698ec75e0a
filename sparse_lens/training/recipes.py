"""Named training runs: the released recipe, the smoke runs, and the family of models that comes with the package."""

from __future__ import annotations

from typing import Any

from sparse_lens.errors import UnknownNameError
from sparse_lens.models.config import PAPER_SITES
from sparse_lens.training.config import Precision, TrainingConfig
from sparse_lens.training.penalties import PenaltyConfig
from sparse_lens.training.sparsity import (
    Budget,
    LearnedMask,
    LotteryTicket,
    MagnitudePruning,
    RandomMask,
    RigL,
    SparsityConfig,
    TopK,
)

ModelFields = dict[str, int | float | str | bool | None]

_SHARED: ModelFields = {
    "n_layer": 2,
    "rms_norm": True,
    "activation_type": "gelu",
    "tied_unembed": False,
    "enable_bigram_table": True,
    "learnable_bigram_table": True,
    "sink": True,
}
_ABSTOPK: ModelFields = {"afrac": 0.25, "afrac_loctypes": ",".join(PAPER_SITES)}

_STEPS = 6000  # 12.3 million tokens, the same for the whole main set
_ARM_STEPS = 1500  # 3.1 million, the same for all arms
_EXACT: Precision = "float32"  # what the family is trained in, on any processor
_DENSITY: dict[str, Any] = {"density": 0.05, "embedding_density": 0.2}
_DENSE_ADAM: dict[str, Any] = {"learning_rate": 3e-3, "eps": 1e-8}


def _shape(d_model: int, d_head: int = 32, **fields: int | float | str | bool | None) -> ModelFields:
    return _SHARED | {"d_model": d_model, "n_head": max(1, d_model // d_head), "d_head": d_head} | fields


def dense_recipe(name: str, d_model: int, steps: int, *, d_head: int = 32, **changes: Any) -> TrainingConfig:
    """A weight-dense model of any width, fully annealed over `steps`."""
    options = _DENSE_ADAM | {"decay_start": 0.4, "precision": _EXACT, "model": _shape(d_model, d_head)}
    return TrainingConfig(name=name, steps=steps, **(options | changes))


def sparse_recipe(
    name: str, d_model: int, steps: int, *, density: float, embedding_density: float, budget: Budget = "matrix", **changes: Any
) -> TrainingConfig:
    """A weight-sparse model: AbsTopK 1/4 at the paper's eight sites, density annealed over the first half of the steps."""
    sparsity = TopK(
        density=density,
        embedding_density=embedding_density,
        budget=budget,
        anneal_exponent=3,
        sharkfin_floor=1 / 3,
    )
    options: dict[str, Any] = {"learning_rate": 3.6e-2, "decay_start": 0.4, "precision": _EXACT, "sparsity": sparsity}
    options["model"] = _shape(d_model) | _ABSTOPK
    return TrainingConfig(name=name, steps=steps, **(options | changes))


def released_recipe() -> TrainingConfig:
    """The values of the released script (openai/circuit_sparsity, `train.py`, `__main__`); far too large for a small machine.

    There `pfrac` counts weights against a model of width 256: at the end 1/4 of it, in a model four times as wide and with
    four times as wide an MLP, which makes a density of 1/64, and 1/16 in embedding and unembedding.
    """
    model: ModelFields = {
        "n_layer": 8,
        "d_model": 1024,
        "n_head": 64,
        "d_head": 16,
        "d_mlp": 4096,
        "block_size": 1024,
        "rms_norm": True,
        "activation_type": "gelu",
        "tied_unembed": False,
        "enable_bigram_table": True,
        "learnable_bigram_table": True,
    }
    return TrainingConfig(
        name="released",
        model=model | _ABSTOPK,
        steps=244_140,
        batch_size=512,
        context=256,
        precision="float16",
        sparsity=TopK(density=1 / 64, embedding_density=1 / 16),
    )


def _main_set() -> list[TrainingConfig]:
    """The models of the comparison; three seeds of each are trained (`--seed`)."""
    return [
        sparse_recipe("python-sparse", 256, _STEPS, **_DENSITY, products="dense"),
        dense_recipe("python-dense", 256, _STEPS),
        dense_recipe("python-dense-matched", 56, _STEPS, d_head=16, learning_rate=4e-3),
    ]


def _arms() -> list[TrainingConfig]:
    """One change each: what of the effect is weight sparsity, what AbsTopK, which density, which method, which shape."""

    def sparse(name: str, **changes: Any) -> TrainingConfig:
        return sparse_recipe(f"arm-{name}", 256, _ARM_STEPS, **(_DENSITY | changes))

    def dense(name: str, **changes: Any) -> TrainingConfig:
        return dense_recipe(f"arm-{name}", 256, _ARM_STEPS, **changes)

    def pruned(name: str, sparsity: SparsityConfig) -> TrainingConfig:
        return dense(name, model=_shape(256) | _ABSTOPK, sparsity=sparsity)

    two_by_two = [sparse("sparse"), sparse("sparse-no-abstopk", model=_shape(256)), dense("dense")]
    two_by_two.append(dense("dense-abstopk", model=_shape(256) | _ABSTOPK))
    densities = [
        sparse(f"density-{name}", density=d, embedding_density=4 * d) for name, d in (("20", 0.2), ("10", 0.1), ("2.5", 0.025))
    ]
    methods = [
        pruned("magnitude", MagnitudePruning(**_DENSITY)),
        pruned("lottery", LotteryTicket(**_DENSITY)),
        pruned("learned", LearnedMask(**_DENSITY)),
        sparse("fan-in", budget="fan_in"),
        sparse("fan-out", budget="fan_out"),
        sparse("random", sparsity=RandomMask(**_DENSITY)),
        sparse("rigl", sparsity=RigL(**_DENSITY)),
    ]
    shapes = [
        sparse("deep-thin", model=_shape(128, n_layer=8) | _ABSTOPK),  # 12 * 8 * 128^2 core parameters
        sparse("shallow-wide", model=_shape(384, n_layer=1, d_mlp=1280) | _ABSTOPK),  # 4 * 384^2 + 2 * 384 * 1280: as many
        sparse("no-bigram", model=_shape(256, enable_bigram_table=False, learnable_bigram_table=False) | _ABSTOPK),
    ]
    others = [
        dense("moe", model=_shape(256, n_experts=8, experts_per_token=2)),
        dense("l1", penalty=PenaltyConfig(kind="l1_weights", coefficient=1.0)),
        dense("entropy", penalty=PenaltyConfig(kind="entropy_activations", coefficient=1.0)),
    ]
    return [*two_by_two, *densities, *methods, *shapes, *others]


def _smoke() -> list[TrainingConfig]:
    """A minute each: whether everything works."""
    options: dict[str, Any] = {"precision": "auto", "evaluate_every": 100}
    return [
        sparse_recipe("smoke", 128, 200, density=0.1, embedding_density=0.3, **options),
        dense_recipe("smoke-dense", 128, 200, **options),
    ]


_WIDTHS = {"2.5": (256,), "5": (96, 160), "10": (64, 96), "20": (64, 128), "100": (32, 64)}
"""Widths at a density, in percent, whose losses lie on either side of that of the widest model."""


def _doses() -> list[TrainingConfig]:
    """Models of about one loss: the fewer weights, the wider. All have AbsTopK, so that they differ in weights alone."""
    found = []
    for percent, widths in _WIDTHS.items():
        density = float(percent) / 100
        for width in widths:
            name, model = f"dose-{percent}-{width}", _shape(width) | _ABSTOPK
            if density < 1:
                found.append(sparse_recipe(name, width, _ARM_STEPS, density=density, embedding_density=4 * density))
            else:
                found.append(dense_recipe(name, width, _ARM_STEPS, model=model))
    return found


def _subroutines() -> list[TrainingConfig]:
    """A dense model that learns two subroutines from programs of these alone, and does them in other words and other lines.

    The doses' dense recipes, of half the steps at a quarter of the rate, do not; nor did trials without AbsTopK (held-out quotes).
    """
    return [dense_recipe("subroutines-100-64", 64, 2 * _ARM_STEPS, model=_shape(64) | _ABSTOPK, learning_rate=1.2e-2)]


RECIPES = {recipe.name: recipe for recipe in (released_recipe(), *_main_set(), *_arms(), *_doses(), *_subroutines(), *_smoke())}
"""Every named run."""


def available_recipes() -> list[str]:
    """Names that `get_recipe` knows."""
    return sorted(RECIPES)


def get_recipe(name: str) -> TrainingConfig:
    """The training configuration of that name; raises `UnknownNameError` with the nearest names."""
    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES)
    return RECIPES[name]
