"""Named training runs: the smoke run, and the three models that ship with the package."""

from __future__ import annotations

from sparse_lens.errors import UnknownNameError
from sparse_lens.training.config import SparsityConfig, TrainingConfig

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


def dense_recipe(name: str, d_model: int, steps: int, *, d_head: int = 32, learning_rate: float = 3e-3) -> TrainingConfig:
    """A weight-dense model of any width, fully annealed over `steps`."""
    shape = _shape(d_model, d_head)
    return TrainingConfig(name=name, model=shape, steps=steps, learning_rate=learning_rate, decay_start=0.4)


def sparse_recipe(name: str, d_model: int, steps: int, *, density: float, embedding_density: float) -> TrainingConfig:
    """A weight-sparse model: AbsTopK 1/4 at the paper's eight sites, density annealed over the first half."""
    return TrainingConfig(
        name=name,
        model=_shape(d_model, afrac=0.25, afrac_loctypes=_SITES),
        steps=steps,
        learning_rate=9e-3,
        decay_start=0.4,
        sparsity=SparsityConfig(density=density, embedding_density=embedding_density, anneal_shape="cubic", sharkfin_floor=1 / 3),
    )


_SHIPPED_STEPS = 7500  # 15.4 million tokens, the same for all three: equal tokens in equal order

RECIPES = {
    "python-sparse": sparse_recipe("python-sparse", 256, _SHIPPED_STEPS, density=0.05, embedding_density=0.2),
    "python-dense": dense_recipe("python-dense", 256, _SHIPPED_STEPS),
    "python-dense-matched": dense_recipe("python-dense-matched", 48, _SHIPPED_STEPS, d_head=16, learning_rate=4e-3),
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
