"""The named recipes: the released script's own values, and a family whose members can be compared."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from sparse_lens.errors import ConfigError, UnknownNameError
from sparse_lens.models import CircuitGPTConfig, CircuitGPTCore
from sparse_lens.training import (
    LotteryTicket,
    MagnitudePruning,
    RandomMask,
    RigL,
    TopK,
    TrainingConfig,
    available_recipes,
    get_recipe,
)
from sparse_lens.training.sparsifiers import make_sparsifier, sparse_matrices

ARMS = [name for name in available_recipes() if name.startswith("arm-")]


def core_of(config: TrainingConfig) -> CircuitGPTCore:
    fields = config.model | {"vocab_size": 1024, "block_size": config.context, "tokenizer_name": None}
    return CircuitGPTCore(CircuitGPTConfig(**fields))  # pyright: ignore[reportArgumentType]


def test_the_released_recipe() -> None:
    """Every number of `train.py`'s `__main__` (reference, section 5); the defaults are its values too."""
    config = get_recipe("released")
    assert (config.batch_size, config.context, config.steps) == (512, 256, 244_140)
    assert (config.learning_rate, config.betas, config.eps, config.weight_decay) == (1.28e-2, (0.9, 0.95), 0.1, 0.1)
    assert (config.gradient, config.warmup, config.decay_start) == ("rms", 0.01, 0.01)
    sparsity = config.sparsity
    assert isinstance(sparsity, TopK) and (sparsity.density, sparsity.embedding_density) == (1 / 64, 1 / 16)
    assert (sparsity.anneal_start, sparsity.anneal_end, sparsity.anneal_shape, sparsity.anneal_exponent) == (0.01, 0.5, "linear", 1)
    assert (sparsity.min_alive, sparsity.sharkfin_floor, sparsity.sparse_biases, sparsity.budget) == (4, 0, False, "matrix")
    model = CircuitGPTConfig(**(config.model | {"vocab_size": 2048}))  # pyright: ignore[reportArgumentType]
    assert (model.n_layer, model.d_model, model.n_head, model.d_head, model.mlp_width) == (8, 1024, 64, 16, 4096)
    assert len(model.sparse_sites) == 8 and model.kept("attn_in", 1024) == 256
    defaults = TrainingConfig(name="x", model={}, steps=1)
    for field in ("learning_rate", "betas", "eps", "weight_decay", "gradient", "warmup", "decay_start"):
        assert getattr(defaults, field) == getattr(config, field)


def test_the_main_set_reads_equal_tokens() -> None:
    shipped = [get_recipe(name) for name in ("python-sparse", "python-dense", "python-dense-matched")]
    assert len({(r.tokens, r.batch_size, r.context, r.data_seed) for r in shipped}) == 1


@pytest.mark.parametrize("name", ARMS)
def test_arms_can_be_built_and_compared(name: str) -> None:
    """Equal tokens, equal core parameters; the methods end with equal nonzeros."""
    config = get_recipe(name)
    assert (config.tokens, config.context) == (get_recipe("arm-sparse").tokens, 128)
    core = core_of(config)
    weights = [p for n, p in core.blocks.named_parameters() if p.ndim == 2 and "router" not in n]
    assert sum(p.numel() for p in weights) == 12 * 2 * 256**2
    if config.sparsity is not None and name not in ("arm-density-20", "arm-density-10", "arm-density-2.5"):
        of_blocks = [m for m in sparse_matrices(core, config.sparsity) if m.name.startswith("blocks")]
        assert sum(m.kept(m.density) for m in of_blocks) == pytest.approx(0.05 * 12 * 2 * 256**2, abs=len(of_blocks))
    make_sparsifier(core, config)


def test_an_unknown_recipe() -> None:
    assert {get_recipe(name).name for name in available_recipes()} == set(available_recipes())
    with pytest.raises(UnknownNameError, match="did you mean 'python-sparse'"):
        get_recipe("python-spare")


def test_seeds() -> None:
    """Another seed is another name, other weights and another order; seed 0 is the recipe itself."""
    recipe = get_recipe("python-sparse")
    assert recipe.with_seed(0) == recipe
    other = recipe.with_seed(2)
    assert (other.name, other.seed, other.data_seed) == ("python-sparse-seed2", 2, 2)
    assert other.fingerprint() != recipe.fingerprint()


def test_changes() -> None:
    """JSON values by dotted names; a field or value that cannot be is an error of its own kind."""
    recipe = get_recipe("smoke")
    changed = recipe.with_changes(["sparsity.density=0.2", "steps=7", "model.afrac=null", "precision=float64"])
    assert isinstance(changed.sparsity, TopK) and changed.sparsity.density == 0.2
    assert (changed.steps, changed.model["afrac"], changed.precision) == (7, None, "float64")
    for wrong in ("steps", "sparsity.deep.er=1", "nothing.here=1"):
        with pytest.raises(ConfigError, match="FIELD=VALUE"):
            recipe.with_changes([wrong])
    for wrong in ("steps=0", "sparsity.densty=0.1", "gradient=max"):
        with pytest.raises(ValidationError):
            recipe.with_changes([wrong])


def test_a_fingerprint_leaves_defaults_out() -> None:
    """A field that is added one day with a default that changes nothing strands no run; a field that differs tells."""
    recipe = get_recipe("smoke")
    assert TrainingConfig(**recipe.model_dump()).fingerprint() == recipe.fingerprint()
    assert recipe.model_copy(update={"balance": 0.01, "log_every": 3}).fingerprint() == recipe.fingerprint()
    methods = [
        RandomMask(density=0.1),
        RigL(density=0.1),
        MagnitudePruning(density=0.1),
        LotteryTicket(density=0.1),
        TopK(density=0.1),
    ]
    assert len({recipe.model_copy(update={"sparsity": method}).fingerprint() for method in methods}) == len(methods)
    assert recipe.with_changes(["balance=0.5"]).fingerprint() != recipe.fingerprint()
