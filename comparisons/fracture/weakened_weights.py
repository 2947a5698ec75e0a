"""A model's answers with each of many weights made smaller: every one a run of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sparse_lens.comparisons.fracture.instances import Instances, answers_of
from sparse_lens.comparisons.fracture.weakened_runs import Effects


class WeakenedWeights:
    """Nonzero weights of the blocks' matrices, each as likely as another; a weight `w` becomes `(1 - strength) w`."""

    def __init__(self, bridge: Any, n_weights: int, generator: torch.Generator) -> None:
        self.bridge = bridge
        matrices = [weight for block in bridge.blocks for weight in block.parameters() if weight.ndim == 2]
        places = [(weight, weight.detach().flatten().nonzero().flatten()) for weight in matrices]
        ends = torch.tensor([len(found) for _, found in places]).cumsum(0)
        self.weights: list[tuple[Tensor, int]] = []
        for number in torch.randint(int(ends[-1]), (n_weights,), generator=generator).unique().tolist():
            which = int((ends <= number).sum())
            weight, found = places[which]
            self.weights.append((weight, int(found[number - int(ends[which]) + len(found)])))

    def __len__(self) -> int:
        return len(self.weights)

    def effects(self, instances: Instances, strength: float) -> tuple[Float[Tensor, "unit row"], float]:
        """The change of every prompt's output by each weight, and the mean KL from the unperturbed run, in nats."""
        return self.on(instances)(strength)

    def on(self, instances: Instances) -> Effects:
        """Run the unperturbed model on the prompts; what is returned weakens by a strength."""
        base = answers_of(self.bridge, instances)

        def effects(strength: float) -> tuple[Tensor, float]:
            found, moved = [], []
            for weight, place in self.weights:
                with _weakened(weight, place, strength):
                    answers = answers_of(self.bridge, instances)
                found.append(answers.differences - base.differences)
                moved.append(float(F.kl_div(answers.log_probs, base.log_probs, reduction="batchmean", log_target=True)))
            return torch.stack(found).double(), sum(moved) / len(moved)

        return effects


@contextmanager
def _weakened(weight: Tensor, place: int, strength: float) -> Iterator[None]:
    flat = weight.detach().view(-1)
    before = flat[place].clone()
    try:
        flat[place] = before * (1 - strength)
        yield
    finally:
        flat[place] = before
