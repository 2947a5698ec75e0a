"""The released recipe written down once more, plainly: the forward pass of arXiv:2511.13653 and the step of its training script.

Nothing of `sparse_lens` is used. Weights are a dictionary of tensors with the names of the package's core; loops run over rows,
columns and matrices one by one; the facts are those of the reference (openai/circuit_sparsity, `gpt.py`, `train.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def keep_largest(x: Tensor, k: int) -> Tensor:
    """Zero all but the k largest magnitudes of the last axis."""
    order = x.detach().abs().argsort(dim=-1, descending=True)
    rank = order.argsort(dim=-1)
    return torch.where(rank < k, x, torch.zeros_like(x))


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    return gain * x / torch.sqrt((x**2).mean(-1, keepdim=True) + torch.finfo(torch.float32).eps)


@dataclass
class Shape:
    """The numbers that a forward pass needs; `share` None keeps all activations."""

    n_layer: int
    n_head: int
    share: float | None
    concatenated: bool = False


def forward(w: Weights, ids: Tensor, shape: Shape) -> Tensor:
    """Logits `[batch pos vocab]`."""
    length = ids.shape[1]

    def sparse(x: Tensor) -> Tensor:
        return x if shape.share is None else keep_largest(x, int(shape.share * x.shape[-1]))

    positions = w["wpe.weight"][:length]
    x = w["wte.weight"][ids] if shape.concatenated else w["wte.weight"][ids] + positions

    def sublayer_input(layer: int, number: int) -> Tensor:
        normed = rms_norm(x, w[f"blocks.{layer}.ln_{number}.weight"])
        if shape.concatenated:
            p = rms_norm(positions, w[f"blocks.{layer}.ln_p{number}.weight"]).expand(len(ids), -1, -1)
            normed = torch.cat([normed, p], -1)
        return sparse(normed)

    for layer in range(shape.n_layer):
        name = f"blocks.{layer}"
        u = sublayer_input(layer, 1)
        q, k, v = (sparse(u @ w[f"{name}.attn.{m}.weight"].T + w[f"{name}.attn.{m}.bias"]) for m in "qkv")
        width = q.shape[-1] // shape.n_head
        outputs = []
        for head in range(shape.n_head):
            part = slice(head * width, (head + 1) * width)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(width)
            scores = scores + torch.full((length, length), -math.inf, dtype=scores.dtype).triu(1)
            weights = torch.exp(scores)
            sink = w.get(f"{name}.attn.sink_logit")
            total = weights.sum(-1, keepdim=True) + (0 if sink is None else torch.exp(sink[head]))
            outputs.append(weights / total @ v[..., part])
        x = x + sparse(torch.cat(outputs, -1) @ w[f"{name}.attn.o.weight"].T + w[f"{name}.attn.o.bias"])
        u = sublayer_input(layer, 2)
        pre = u @ w[f"{name}.mlp.fc_in.weight"].T + w[f"{name}.mlp.fc_in.bias"]
        post = sparse(pre * 0.5 * (1 + torch.erf(pre / math.sqrt(2))))
        x = x + sparse(post @ w[f"{name}.mlp.fc_out.weight"].T + w[f"{name}.mlp.fc_out.bias"])
    logits = rms_norm(x, w["ln_f.weight"]) @ w["lm_head.weight"].T
    if "bigram_table.weight" in w:
        table = w["bigram_table.weight"]
        table = torch.cat([table[:-1], table[-1:].detach()])  # the last row never trains
        logits = logits + table[ids]
    return logits


@dataclass
class Recipe:
    """Names as in the released script, `pfrac_final / (ef * ef_mlp)` being the density of a matrix."""

    steps: int
    lr: float
    wd: float
    density: float
    embedding_density: float
    anneal: tuple[float, float]
    exponent: float = 1.0
    power_law: bool = False
    warmup: float = 0.1
    min_alive: int = 2
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 0.1
    sparse_biases: bool = False


@dataclass
class Trainer:
    """Weights, both moments, and the losses seen."""

    w: Weights
    shape: Shape
    recipe: Recipe
    first: Weights = field(default_factory=dict)
    second: Weights = field(default_factory=dict)

    def density_now(self, i: int, final: float) -> float:
        """The matrices' density goes from 1 to its end between two steps; embeddings go the same share of their way."""
        r = self.recipe
        start, end = (share * r.steps for share in r.anneal)
        if i <= start:
            now = 1.0
        elif i >= end:
            now = r.density
        elif r.power_law:
            now = math.exp(math.log(r.density) * (math.log(i) - math.log(start)) / (math.log(end) - math.log(start)))
        else:
            now = r.density + (1 - r.density) * (1 - (i - start) / (end - start)) ** r.exponent
        return final + (1 - final) * (now - r.density) / (1 - r.density)

    def rate(self, i: int) -> float:
        r = self.recipe
        warm = r.warmup * r.steps
        plain = r.lr * i / warm if i < warm else r.lr * (r.steps - i) / (r.steps - warm)
        return plain * math.sqrt(r.density / self.density_now(i, r.density))

    def step(self, i: int, ids: Tensor) -> float:
        r, w = self.recipe, self.w
        for tensor in w.values():
            tensor.requires_grad_(True)
        logits = forward(w, ids[:, :-1], self.shape)
        loss = -logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).mean()
        names = list(w)
        gradients = torch.autograd.grad(loss, [w[name] for name in names])
        n = sum(g.numel() for g in gradients)
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        rate = self.rate(i)
        with torch.no_grad():
            for name, gradient in zip(names, gradients, strict=True):
                g = gradient / (norm / math.sqrt(n) + 1e-5)
                m = self.first[name] = r.beta1 * self.first.get(name, torch.zeros_like(g)) + (1 - r.beta1) * g
                v = self.second[name] = r.beta2 * self.second.get(name, torch.zeros_like(g)) + (1 - r.beta2) * g * g
                m_hat, v_hat = m / (1 - r.beta1 ** (i + 1)), v / (1 - r.beta2 ** (i + 1))
                w[name] = w[name].detach() - rate * m_hat / (v_hat.sqrt() + r.eps)
            self.project(i)
            for name in names:
                if w[name].ndim == 2 and name != "bigram_table.weight":
                    w[name] = w[name] - r.wd * rate * w[name]
        return float(loss.detach())

    def project(self, i: int) -> None:
        r = self.recipe
        for layer in range(self.shape.n_layer):
            at = f"blocks.{layer}"
            qkv = [f"{at}.attn.{m}" for m in "qkv"]
            for names, axis in ((qkv, 0), ([f"{at}.attn.o"], 1), ([f"{at}.mlp.fc_in"], 0), ([f"{at}.mlp.fc_out"], 1)):
                self.keep([f"{name}.weight" for name in names], self.density_now(i, r.density), axis)
                if r.sparse_biases:
                    self.keep([f"{name}.bias" for name in names], self.density_now(i, r.density), None)
        for name in ("wte.weight", "lm_head.weight"):
            self.keep([name], self.density_now(i, r.embedding_density), None)
        if not self.shape.concatenated:
            self.keep(["wpe.weight"], self.density_now(i, r.density), None)

    def keep(self, names: list[str], density: float, axis: int | None) -> None:
        """Zero all but the largest of the matrices `names`, stacked; first a few for every row (axis 0) or column (axis 1)."""
        stacked = torch.cat([self.w[name] for name in names])
        matrix = stacked[None] if stacked.ndim == 1 else stacked
        k = int(density * matrix.numel())
        kept = torch.zeros_like(matrix, dtype=torch.bool)
        if axis is not None:
            for neuron in range(matrix.shape[axis]):
                line, target = (matrix[neuron], kept[neuron]) if axis == 0 else (matrix[:, neuron], kept[:, neuron])
                target[line.abs().argsort(descending=True)[: self.recipe.min_alive]] = True
        order = torch.where(kept, torch.inf, matrix.abs()).flatten().argsort(descending=True)
        kept = torch.zeros(matrix.numel(), dtype=torch.bool)
        kept[order[:k]] = True
        rest = (matrix * kept.view_as(matrix)).view_as(stacked)
        for name, part in zip(names, rest.split([len(self.w[name]) for name in names]), strict=True):
            self.w[name] = part.clone()
