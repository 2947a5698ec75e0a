"""SAELens' training SAEs by kind, made from one configuration.

| architecture | what is chosen | saved as |
|---|---|---|
| topk | the `k` largest of each token (arXiv:2406.04093) | topk |
| batchtopk | the `k` times batch largest of a batch (arXiv:2412.06410) | jumprelu, threshold fitted anew |
| matryoshka | as batchtopk, with losses of nested prefixes (arXiv:2503.17547) | jumprelu, threshold fitted anew |
| jumprelu | what lies above a learned threshold (arXiv:2407.14435), steered to `k` by a quadratic loss | jumprelu |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from sparse_lens.dictionaries.sae_training import SAETrainingConfig

Architecture = Literal["topk", "batchtopk", "matryoshka", "jumprelu"]

ONE_THRESHOLD = ("batchtopk", "matryoshka")
"""Kinds whose threshold SAELens estimates along the way; it lags behind, so that it is fitted anew."""

_JUMPRELU_WARM_UP = 0.3


def training_sae(config: SAETrainingConfig, common: dict[str, Any]) -> Any:
    """SAELens' SAE in training; `common` are the settings that all kinds share. With `frozen_decoder` its decoder stays random."""
    sae = _MAKERS[config.architecture](config, common)
    if config.frozen_decoder:
        sae.W_dec.requires_grad_(False)
    return sae


def _topk(config: SAETrainingConfig, common: dict[str, Any]) -> Any:
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    return TopKTrainingSAE(TopKTrainingSAEConfig(k=config.k, aux_loss_coefficient=config.revive, **common))


def _batchtopk(config: SAETrainingConfig, common: dict[str, Any]) -> Any:
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(k=config.k, aux_loss_coefficient=config.revive, **common))


def _matryoshka(config: SAETrainingConfig, common: dict[str, Any]) -> Any:
    from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig

    widths = sorted({max(1, config.d_sae // share) for share in (16, 8, 4, 2, 1)})
    options: dict[str, Any] = {"k": config.k, "aux_loss_coefficient": config.revive, "matryoshka_widths": widths}
    return MatryoshkaBatchTopKTrainingSAE(MatryoshkaBatchTopKTrainingSAEConfig(**options, **common))


def _jumprelu(config: SAETrainingConfig, common: dict[str, Any]) -> Any:
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig

    options: dict[str, Any] = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": float(config.k)}
    options |= {"jumprelu_ste_to_input": True, "l0_coefficient": config.sparsity}
    options |= {"l0_warm_up_steps": int(_JUMPRELU_WARM_UP * config.steps)}
    return JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**options, **common))


_MAKERS = {"topk": _topk, "batchtopk": _batchtopk, "matryoshka": _matryoshka, "jumprelu": _jumprelu}
