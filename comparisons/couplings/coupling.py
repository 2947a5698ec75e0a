"""Couplings: linear maps between the residual streams of a dense and a weight-sparse model (the bridges of arXiv:2511.13653).

At each boundary between sublayers an encoder (linear, then AbsTopK) takes the dense stream to the sparse model's, a decoder
(linear) takes it back. With them one model can go on where the other stopped (`hybrids`), and a channel of the sparse model
becomes a direction in the dense one (`steering`). The maps are fitted in closed form (`ridge_coupling`), and trained from there
(`coupling_training`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparse_lens.circuits.sites import model_fingerprint
from sparse_lens.comparisons.rows.correspondence import check_same_tokens
from sparse_lens.dictionaries import harvest_activations
from sparse_lens.errors import CheckpointError, ConfigError, DataError
from sparse_lens.files import new_directory
from sparse_lens.kernels import abs_topk

FORMAT = 1
MAPS_FILE, RECORD_FILE = FILES = ("coupling.safetensors", "coupling.json")
PARTS = ("encoder_weight", "encoder_bias", "decoder_weight", "decoder_bias", "dense_mean", "sparse_mean")


def shared_boundaries(dense: Any, sparse: Any) -> tuple[str, ...]:
    """Hooks on the residual stream that both models have: before each sublayer and after the last, `2 n_layers + 1`.

    A decoder without a hook on the stream between attention and MLP (any but ours, in TransformerLens) gives block boundaries only,
    `n_layers + 1`. Raises `ConfigError` for models of unlike depth, `DataError` for unlike tokenizers.
    """
    check_same_tokens(dense, sparse)
    depths = (int(dense.cfg.n_layers), int(sparse.cfg.n_layers))
    if depths[0] != depths[1]:
        raise ConfigError(f"a coupling joins models of equal depth, got {depths[0]} and {depths[1]} layers; train twins")
    hooks = [name for layer in range(depths[0]) for name in (f"blocks.{layer}.hook_in", f"blocks.{layer}.resid_mid.hook_out")]
    hooks.append(f"blocks.{depths[0] - 1}.hook_out")
    return tuple(name for name in hooks if name in dense.hook_dict and name in sparse.hook_dict)


class Coupling(nn.Module):
    """Encoders and decoders at `boundaries` (hook names, in order); every tensor is stacked over boundaries.

    `encoder_weight [boundary d_dense d_sparse]`, `decoder_weight [boundary d_sparse d_dense]` and their biases are parameters.
    `dense_mean`, `sparse_mean` are the streams' means, what a boundary lets through at the least. `kept` is the number of
    channels that the encoders' AbsTopK keeps, None for all. `models` are the fingerprints of the dense and the sparse model.
    """

    def __init__(
        self, boundaries: Sequence[str], d_dense: int, d_sparse: int, *, kept: int | None, models: tuple[str, str]
    ) -> None:
        super().__init__()
        if kept is not None and not 0 < kept <= d_sparse:
            raise ConfigError(f"the encoders keep kept={kept} of {d_sparse} channels; choose 1 to {d_sparse}, or None")
        self.boundaries, self.d_dense, self.d_sparse = tuple(boundaries), d_dense, d_sparse
        self.kept, self.models = kept, models
        n = len(self.boundaries)
        self.encoder_weight = nn.Parameter(torch.zeros(n, d_dense, d_sparse))
        self.encoder_bias = nn.Parameter(torch.zeros(n, d_sparse))
        self.decoder_weight = nn.Parameter(torch.zeros(n, d_sparse, d_dense))
        self.decoder_bias = nn.Parameter(torch.zeros(n, d_dense))
        self.dense_mean: Tensor
        self.sparse_mean: Tensor
        self.register_buffer("dense_mean", torch.zeros(n, d_dense))
        self.register_buffer("sparse_mean", torch.zeros(n, d_sparse))

    def encode(self, boundary: int, dense: Float[Tensor, "*rows d_dense"]) -> Float[Tensor, "*rows d_sparse"]:
        """The sparse model's stream at a boundary (its number), from the dense model's."""
        linear = dense @ self.encoder_weight[boundary] + self.encoder_bias[boundary]
        return linear if self.kept is None else abs_topk(linear, self.kept)

    def decode(self, boundary: int, sparse: Float[Tensor, "*rows d_sparse"]) -> Float[Tensor, "*rows d_dense"]:
        """The dense model's stream at a boundary, from the sparse model's."""
        return sparse @ self.decoder_weight[boundary] + self.decoder_bias[boundary]

    def check_models(self, dense: Any, sparse: Any | None = None) -> None:
        """Raise `ConfigError` if the coupling was fitted between other models than these."""
        for role, bridge, expected in zip(("dense", "sparse"), (dense, sparse), self.models, strict=True):
            if bridge is not None and (found := model_fingerprint(bridge)) != expected:
                raise ConfigError(f"this coupling belongs to the {role} model {expected}, the bridge holds {found}; fit one for it")

    def save(self, folder: str | Path) -> None:
        """Write the maps and their record into `folder`, which appears when all is written."""
        with new_directory(folder, also=("statistics.json",)) as staging:
            write_coupling(self, staging)


def write_coupling(coupling: Coupling, folder: Path) -> None:
    """Write a coupling's files into an existing folder."""
    save_file({name: getattr(coupling, name).detach().cpu().contiguous() for name in PARTS}, folder / MAPS_FILE)
    record = {
        "format": FORMAT,
        "boundaries": coupling.boundaries,
        "d_dense": coupling.d_dense,
        "d_sparse": coupling.d_sparse,
        "kept": coupling.kept,
        "models": coupling.models,
    }
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def load_coupling(folder: str | Path) -> Coupling:
    """Read a coupling; raises `CheckpointError` for files that are missing, empty, damaged or of another format."""
    path = Path(folder)
    try:
        record = json.loads((path / RECORD_FILE).read_text(encoding="utf-8"))
        tensors = load_file(path / MAPS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"no readable coupling in {path}: {error}; fit it with ridge_coupling or train_coupling") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CheckpointError(f"{path / RECORD_FILE} is of another format than {FORMAT}; fit the coupling again")
    boundaries = record.get("boundaries")
    if not isinstance(boundaries, list) or not boundaries or not all(isinstance(name, str) for name in boundaries):
        raise CheckpointError(f"{path / RECORD_FILE} names no boundaries; fit the coupling again")
    _check_tensors(tensors, len(boundaries), path)
    d_dense, d_sparse = tensors["encoder_weight"].shape[1:]
    kept, models = record.get("kept"), _pair(record.get("models"))
    if not (kept is None or (isinstance(kept, int) and 0 < kept <= d_sparse)) or models is None:
        raise CheckpointError(
            f"{path / RECORD_FILE} has kept={kept!r} and models={models!r}; it is damaged, fit the coupling again"
        )
    coupling = Coupling(boundaries, d_dense, d_sparse, kept=kept, models=models)
    coupling.load_state_dict(tensors)
    return coupling


def _pair(models: Any) -> tuple[str, str] | None:
    if isinstance(models, list) and len(models) == 2 and all(isinstance(name, str) for name in models):
        return models[0], models[1]
    return None


def _check_tensors(tensors: dict[str, Tensor], n: int, path: Path) -> None:
    weight = tensors.get("encoder_weight")
    if weight is None or weight.ndim != 3 or set(tensors) != set(PARTS):
        raise CheckpointError(f"{path / MAPS_FILE} holds {sorted(tensors)[:8]}, a coupling has {', '.join(PARTS)}; fit it again")
    d_dense, d_sparse = weight.shape[1:]
    shapes = ((n, d_dense, d_sparse), (n, d_sparse), (n, d_sparse, d_dense), (n, d_dense), (n, d_dense), (n, d_sparse))
    for name, shape in zip(PARTS, shapes, strict=True):
        found = tensors[name]
        if tuple(found.shape) != shape or not found.is_floating_point() or not bool(found.isfinite().all()):
            raise CheckpointError(
                f"{path / MAPS_FILE}: {name} is {tuple(found.shape)}, expected finite {shape}; fit the coupling again"
            )


@dataclass
class RidgeSums:
    """Running sums, in float64, of two streams on the same tokens: all that both maps between them need in closed form."""

    n_tokens: int = 0
    total: Tensor | None = None
    products: Tensor | None = None
    d_dense: int = 0

    @torch.no_grad()
    def add(self, dense: Float[Tensor, "token d_dense"], sparse: Float[Tensor, "token d_sparse"]) -> None:
        """Take in both models' streams at one boundary, token by token."""
        both = torch.cat([dense, sparse], dim=1).double()
        if wrong := int((~both.isfinite()).sum()):
            raise DataError(f"{wrong} activations of the residual streams are NaN or infinite; check both models")
        total, products = both.sum(0), both.T @ both
        self.d_dense, self.n_tokens = dense.shape[1], self.n_tokens + len(both)
        self.total = total if self.total is None else self.total + total
        self.products = products if self.products is None else self.products + products

    def means(self) -> tuple[Float[Tensor, " d_dense"], Float[Tensor, " d_sparse"]]:
        """Mean of the dense and of the sparse stream; raises `DataError` without tokens."""
        if self.total is None:
            raise DataError("no tokens to fit a coupling on; give at least one batch")
        mean = self.total / self.n_tokens
        return mean[: self.d_dense], mean[self.d_dense :]

    def maps(self, ridge: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encoder's weight and bias, decoder's weight and bias; the bias is not penalized.

        `(C_xx + ridge * mean variance * I) W = C_xy` with covariances `C`, so that `ridge` does not depend on scale or tokens.
        """
        dense_mean, sparse_mean = self.means()
        assert self.products is not None
        mean = torch.cat([dense_mean, sparse_mean])
        covariance = self.products / self.n_tokens - torch.outer(mean, mean)
        d = self.d_dense
        encoder = _solve(covariance[:d, :d], covariance[:d, d:], ridge)
        decoder = _solve(covariance[d:, d:], covariance[d:, :d], ridge)
        return encoder, sparse_mean - dense_mean @ encoder, decoder, dense_mean - sparse_mean @ decoder


def _solve(xx: Float[Tensor, "d_in d_in"], xy: Float[Tensor, "d_in d_out"], ridge: float) -> Float[Tensor, "d_in d_out"]:
    penalty = ridge * float(xx.diagonal().mean())
    if not penalty > 0:
        raise DataError("a residual stream does not vary over the tokens; give more of them, and a ridge above 0")
    return torch.linalg.solve(xx + penalty * torch.eye(len(xx), dtype=xx.dtype, device=xx.device), xy)


def ridge_coupling(
    dense: Any, sparse: Any, token_batches: Iterable[Any], *, ridge: float = 1e-4, kept: int | None = None
) -> Coupling:
    """The coupling that predicts each stream from the other with the least squared error, in closed form: training's fallback.

    Streams over batches of token ids `[batch, pos]`; `ridge` is relative to the mean variance of the predicting channels. With
    `kept` the encoders end in an AbsTopK that the fit does not know of. Raises as `shared_boundaries`, and `DataError` without
    tokens.
    """
    boundaries = shared_boundaries(dense, sparse)
    sums = [RidgeSums() for _ in boundaries]
    for batch in token_batches:
        (of_dense,), (of_sparse,) = (list(harvest_activations(bridge, boundaries, [batch])) for bridge in (dense, sparse))
        for name, of_boundary in zip(boundaries, sums, strict=True):
            of_boundary.add(of_dense[name], of_sparse[name])
    maps, means = [of.maps(ridge) for of in sums], [of.means() for of in sums]
    d_dense, d_sparse = maps[0][0].shape
    models = (model_fingerprint(dense), model_fingerprint(sparse))
    coupling = Coupling(boundaries, d_dense, d_sparse, kept=kept, models=models)
    tensors = [torch.stack(part) for part in (*zip(*maps, strict=True), *zip(*means, strict=True))]
    coupling.load_state_dict(dict(zip(PARTS, tensors, strict=True)))  # copied into float32
    return coupling
