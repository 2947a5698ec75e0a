"""Named training runs: the smoke run, and the three models that ship with the package."""

from __future__ import annotations

from sparse_lens.errors import UnknownNameError
from sparse_lens.training.config import Precision, SparsityConfig, TrainingConfig

_SITES = "attn_in,attn_q,attn_k,attn_v,attn_out,mlp_in,mlp_neuron,mlp_out"
_SHARED = {
    "n_layer": 2,
    "rms_norm": True,
    "activation_type": "gelu",
    "tied_unembed": False,
    "enable_bigram_table": True,
    "learnable_bigram_table": True,
    "sink": True,
}


def _shape(d_model: int, d_head: int = 32, **fields: int | float | str | bool) -> dict[str, int | float | str | bool | None]:
    return _SHARED | {"d_model": d_model, "n_head": max(1, d_model // d_head), "d_head": d_head} | fields


def dense_recipe(
    name: str, d_model: int, steps: int, *, d_head: int = 32, learning_rate: float = 3e-3, precision: Precision = "auto"
) -> TrainingConfig:
    """A weight-dense model of any width, fully annealed over `steps`."""
    return TrainingConfig(
        name=name,
        model=_shape(d_model, d_head),
        steps=steps,
        learning_rate=learning_rate,
        decay_start=0.4,
        precision=precision,
    )


def sparse_recipe(
    name: str, d_model: int, steps: int, *, density: float, embedding_density: float, precision: Precision = "auto"
) -> TrainingConfig:
    """A weight-sparse model: AbsTopK 1/4 at the paper's eight sites, density annealed over the first half."""
    return TrainingConfig(
        name=name,
        model=_shape(d_model, afrac=0.25, afrac_loctypes=_SITES),
        steps=steps,
        learning_rate=9e-3,
        decay_start=0.4,
        precision=precision,
        sparsity=SparsityConfig(density=density, embedding_density=embedding_density, anneal_shape="cubic", sharkfin_floor=1 / 3),
    )


_STEPS = 7500  # 15.4 million tokens, the same for the three shipped models: equal tokens in equal order
_EXACT: Precision = "float32"  # what they were trained in, on any processor

RECIPES = {
    "python-sparse": sparse_recipe("python-sparse", 256, _STEPS, density=0.05, embedding_density=0.2, precision=_EXACT),
    "python-dense": dense_recipe("python-dense", 256, _STEPS, precision=_EXACT),
    "python-dense-matched": dense_recipe("python-dense-matched", 32, _STEPS, d_head=16, learning_rate=4e-3, precision=_EXACT),
    "smoke-sparse": sparse_recipe("smoke-sparse", 128, 400, density=0.1, embedding_density=0.3),
    "smoke-dense": dense_recipe("smoke-dense", 128, 400, learning_rate=4e-3),
}


def available_recipes() -> list[str]:
    """Names that `get_recipe` knows."""
    return sorted(RECIPES)


def get_recipe(name: str) -> TrainingConfig:
    """The training configuration of that name; raises `UnknownNameError` with the nearest names."""
    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES)
    return RECIPES[name]
