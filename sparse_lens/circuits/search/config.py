"""The effort of a circuit search, as data."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sparse_lens.errors import ConfigError


class SearchConfig(BaseModel):
    """Effort of a circuit search; the same for every column of a comparison.

    `method` is this package's own ("steered") or that of arXiv:2511.13653, Appendix A.5, as its replication reads it ("published",
    with the values of `SearchConfig.published()`): a fixed price, a linear decay, and a bisection along the ranking.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["steered", "published"] = Field(
        default="steered", description="steered price and many candidates, or as published"
    )
    steps: int = Field(default=240, gt=0, description="optimizer steps of each mask")
    pairs_per_step: int = Field(default=16, gt=0, description="prompt pairs per step (two sequences each)")
    restarts: int = Field(default=1, gt=0, description="masks learned from different initial gates")
    penalties: tuple[float, ...] = Field(
        # Far below its final value of about 1e-2: at a high first price all nodes go before any has shown its use.
        default=(3e-5,),
        min_length=1,
        description="initial prices of a node, in nats; one mask each",
    )
    learning_rate: float = Field(default=0.03, gt=0, description="of Adam, on the gates")
    weight_decay: float = Field(default=0.0, ge=0, description="of AdamW, on the gates")
    gradient_clip: float | None = Field(default=None, gt=0, description="largest norm of the gates' gradient")
    warm_up: float = Field(default=0.0, ge=0, lt=1, description="share of the steps in which the published rate rises from 0")
    temperature: float = Field(default=1.0, gt=0, description="width of the straight-through gradient")
    snapshots: int = Field(default=4, ge=0, description="masks along the way that are candidates too")
    evaluations: int = Field(default=24, gt=0, description="candidate circuits scored per mask")
    search_pairs: int = Field(default=512, gt=0, description="prompt pairs that the masks are learned on")
    evaluation_pairs: int = Field(default=128, gt=0, description="further prompt pairs on which the target loss must be met")

    @classmethod
    def published(cls, **changes: Any) -> SearchConfig:
        """The published values, where they are known; in their place, those of the replication (its Table 2 has the warm-up)."""
        values: dict[str, Any] = {"method": "published", "steps": 2000, "pairs_per_step": 64, "penalties": (1e-4,)}
        values |= {"learning_rate": 3e-3, "weight_decay": 1e-3, "gradient_clip": 1.0, "warm_up": 0.05, "snapshots": 0}
        return cls(**(values | changes))

    @property
    def masks(self) -> int:
        """Masks learned in one search."""
        return self.restarts * len(self.penalties)

    @property
    def effort(self) -> int:
        """Restarts x penalties x (optimizer steps + scored candidates): how often the model is run, on a batch each time."""
        return self.masks * (self.steps + self.evaluations)

    def at_effort(self, effort: int) -> SearchConfig:
        """This search at the largest effort that is not above `effort`: whole restarts where they fit, else one shorter search.

        Steps and candidates of a mask keep their proportion. Raises `ConfigError` for an effort too small for a single search.
        """
        one = len(self.penalties) * (self.steps + self.evaluations)
        if effort >= one:
            return self.model_copy(update={"restarts": effort // one})
        runs = effort // len(self.penalties)
        evaluations = max(1, round(runs * self.evaluations / (self.steps + self.evaluations)))
        if runs < evaluations + 1:
            raise ConfigError(f"an effort of {effort} is less than one step and one candidate; the default is {one}")
        return self.model_copy(update={"restarts": 1, "steps": runs - evaluations, "evaluations": evaluations})

    def doubled(self) -> SearchConfig:
        """Twice the effort, by twice the restarts: the masks of the single effort are among those of the double one."""
        return self.model_copy(update={"restarts": 2 * self.restarts})
