"""A model's answers with each of many weights made smaller: every one a run of its own."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sparse_lens.comparisons.fracture.instances import Answers, Instances, answers_of


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

    def recorded(self, instances: Instances) -> tuple[Instances, Answers]:
        """The prompts, and the unperturbed model's answers."""
        return instances, answers_of(self.bridge, instances)

    def effects(self, runs: tuple[Instances, Answers], strength: float) -> tuple[Float[Tensor, "unit row"], float]:
        """Change of every prompt's output by each weight, and the mean KL from the unperturbed distribution, in nats."""
        instances, base = runs
        effects, moved = [], []
        for weight, place in self.weights:
            flat = weight.detach().view(-1)
            before = flat[place].clone()
            try:
                flat[place] = before * (1 - strength)
                answers = answers_of(self.bridge, instances)
            finally:
                flat[place] = before
            effects.append(answers.differences - base.differences)
            moved.append(float(F.kl_div(answers.log_probs, base.log_probs, reduction="batchmean", log_target=True)))
        return torch.stack(effects).double(), sum(moved) / len(moved)
