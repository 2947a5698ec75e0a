"""A claim about weight-sparse and dense models: what is measured, in which of them it should be larger, and its controls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["durable", "perishable"]
"""Durable: a question that stays whatever is found, answered by a number. Perishable: a statement that one result can end."""

CONTROLS = ("random_weights", "rotated")
"""The same estimator on every tensor's nonzero weights shuffled, and on random orthogonal mixtures of the units."""


@dataclass(frozen=True)
class Claim:
    """`text` says which model's `metric` of the `measure` is `larger`; its controls are the metrics `CONTROL_METRIC`.

    `against` is a fixed number that the sparse model is held against in place of the dense one; `beyond` one that its own value
    must lie beyond, too, in the same direction, for the claim to be supported. `beside` are metrics to read it with: they are
    printed and decide nothing; in a name `*` stands for anything. `forms` are other metrics of the same question in the same
    direction: they are printed, too, and ALWAYS looks at them. `alike` is one that has to be the same number on every seed.
    `unit` is what the metric counts. `source` names who makes the claim. `only_if` is the reason a default run cannot measure
    it, if there is one, and `elsewhere` where it has a number when a run has none.
    """

    id: str
    text: str
    kind: Kind
    source: str
    measure: str = ""
    metric: str = ""
    larger: Literal["sparse", "dense"] = "sparse"
    controls: tuple[str, ...] = CONTROLS
    against: float | None = None
    beyond: float | None = None
    beside: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    unit: str = ""
    alike: str = ""
    only_if: str = ""
    elsewhere: str = ""


ARM_CLAIMS = ("COMP", "EASE", "FRACTURE")
"""What an arm, such as a pruned dense model, is held against the sparse model in."""

DISENTANGLING = ("T1a-dose", "MONO", "CONCEPTS", "T3b", "T3b-mask", "COMP", "EASE", "FRACTURE", "ENTANGLE")
"""The claims whose cells ALWAYS looks at."""


def arm_claim(claim: Claim, arm: str) -> Claim:
    """A claim of sparse against dense with an arm in the dense model's place: does sparse training do better than that?"""
    text = f"sparse training does better than {arm!r} at equal loss: {claim.text}"
    return replace(claim, id=f"T1b-{arm}-{claim.id}", text=text, source="arXiv:2511.13653 against arXiv:2603.25325")


_NODES = (
    "log2 of nodes, mean over tasks; controls: in each model, circuits of nonsense labels, and with shuffled weights, are at least "
    "twice as large, and random ones of equal size recover less than half"
)

_RECOVERED = ("recovered", "random_circuits_recovered")

CLAIMS = (
    Claim(
        "T1a",
        "superposition persists under weight sparsity: the neurons of the sparse model carry more features than there are neurons",
        "perishable",
        "seed question after arXiv:2511.13653; measure of arXiv:2512.13568",
        *("superposition", "psi", "sparse", (), 1.0),
        beside=(
            "effective_features",
            "fvu",
            "random_weights_psi",
            "same_token_psi",
            "same_token_share",
            "random_weights_same_token_psi",
        ),
        unit="effective features of an SAE per neuron, against 1",
    ),
    Claim(
        "T1a-dose",
        "weight sparsity lowers superposition: a dense model of equal loss has more features per neuron",
        "durable",
        "arXiv:2511.13653",
        *("superposition", "psi", "dense", ("random_weights",)),
        beside=("effective_features", "fvu", "same_token_features"),
        forms=("same_token_psi",),
        unit="effective features of an SAE per neuron",
    ),
    Claim(
        "MONO",
        "neurons of the sparse model stand for fewer concepts each",
        "durable",
        "arXiv:2511.13653",
        *("concepts", "concepts_per_unit", "dense"),
        beside=("units_with_a_concept",),
        unit="labels of Python source per neuron that stands for any",
    ),
    Claim(
        "CONCEPTS",
        "single neurons of the sparse model tell concepts better, beyond what the token gives away",
        "durable",
        "arXiv:2511.13653",
        *("concepts", "equal_coverage_f1_over_tokens_ambiguous", "sparse"),
        beside=("coverage_f1_over_tokens_ambiguous", "equal_units"),
        unit="F1 over that of a token table, on positions that it leaves open; of the best of as many neurons in both models",
    ),
    Claim(
        "T1b",
        "sparse training does better than pruning a dense model afterwards, at equal nonzeros",
        "durable",
        "arXiv:2511.13653 against arXiv:2603.25325",
        only_if="needs pruned models as arms, three training seeds of each: --arm NAME=MODEL for each of them",
    ),
    Claim(
        "T1c",
        "sparsity costs robustness: the loss of the sparse model rises faster as the text moves away from what it was trained on",
        "durable",
        "arXiv:2603.03415",
        *("robustness", "loss_slope", "sparse", ("random_weights",)),
        beside=("accuracy_*_slope", "d_abl_slope"),
        unit="nats of loss per nat of surprise of a third model",
    ),
    Claim(
        "T2",
        "superposition and small circuits coexist in one model",
        "perishable",
        "seed question",
        unit="pairs whose sparse model has superposition (more features than neurons, or as many per neuron as the dense one) "
        "and smaller circuits",
    ),
    Claim(
        "T3a",
        "sparsity prevents superposition, rather than only making it dear: fewer features per neuron the fewer the weights",
        "durable",
        "seed question",
        unit="features per neuron at the least and the greatest density; the difference is for ten times the density",
        only_if="needs models of several densities: python -m sparse_lens.comparisons.shipped.dose_table; --kept reads its file",
    ),
    Claim(
        "T3a-shift",
        "sparsity only makes superposition dear: where identifiers are renamed, features become more, and more so in the sparse "
        "model",
        "durable",
        "seed question after arXiv:2603.03415",
        *("superposition", "log_psi_rise", "sparse", ("random_weights",)),
        beyond=0.0,
        beside=("psi_as_is", "psi_renamed", "fvu_as_is", "fvu_renamed"),
        unit="log of effective features on renamed text over those on the same text as it is, read by one SAE",
    ),
    Claim(
        "T3b",
        "sparse training gives smaller circuits than a dense model of equal loss has",
        "durable",
        "arXiv:2511.13653 against arXiv:2601.22594",
        *("circuits", "log2_nodes", "dense", ()),
        beside=(*_RECOVERED, "log2_nodes_on_*"),
        unit=_NODES,
    ),
    Claim(
        "T3b-SAE",
        "sparse training gives smaller circuits than a dense model of equal loss has where its MLPs are read through SAEs",
        "durable",
        "arXiv:2511.13653",
        *("latent_circuits", "log2_nodes", "dense", ()),
        beside=(*_RECOVERED, "log2_nodes_on_*", "error_nodes", "fvu"),
        unit=_NODES,
    ),
    Claim(
        "T3b-mask",
        "subroutines take fewer weights in the sparse model than a mask of the dense one keeps",
        "durable",
        "arXiv:2301.10884 against arXiv:2511.13653",
        *("compositionality", "log2_kept", "dense", ("random_weights",)),
        beside=("*_sub_own", "maskable"),
        unit="log2 of the weights that a mask keeps which does its subroutine, mean over two",
    ),
    Claim(
        "COMP",
        "subroutines of the sparse model can be taken out one by one: removing one harms the other less",
        "durable",
        "arXiv:2301.10884",
        *("compositionality", "d_abl", "dense", ("random_weights", "random_mask")),
        beside=(
            "quote_d_abl",
            "bracket_d_abl",
            "d_sub",
            "random_weights_d_sub",
            "random_weights_kept_share",
            "quote_seed_overlap",
            "bracket_seed_overlap",
            "rotated_d_abl",
        ),
        unit="D_abl, which is negative where a subroutine can be removed alone",
    ),
    Claim(
        "EASE",
        "features of the sparse model are less predictable from each other",
        "durable",
        "arXiv:1905.03375, the measure alone",
        *("predictability", "heldout_r2_mean", "dense"),
        beside=(
            "from_all_heldout_r2_mean",
            "random_weights_from_all_heldout_r2_mean",
            "anti_affinity_share",
            "partners",
            "train_r2_mean",
            "ridge",
        ),
        unit="held-out R² of a linear prediction from the other neurons",
    ),
    Claim(
        "FRACTURE",
        "the sparse model is less fractured: the same neurons carry a concept on mirrored prompts",
        "durable",
        "arXiv:2505.11581",
        *("fracture", "mirror_fracture", "dense"),
        beside=("probe_accuracy", "output_kl", "strength"),
        forms=("renamed_fracture", "effective_dimension"),
        unit="fracture index F, 0 to 2",
    ),
    Claim(
        "ENTANGLE",
        "a neuron of the sparse model serves fewer tasks",
        "durable",
        "arXiv:2505.11581, arXiv:2511.13653",
        *("fracture", "entanglement", "dense"),
        beside=("tasks",),
        alike="tasks",
        unit="share of the tasks that a neuron moves",
    ),
    Claim(
        "BIND",
        "the sparse model binds variables to values through vectors that can be swapped, more cleanly than the dense one",
        "durable",
        "arXiv:2310.17191, arXiv:2505.20896",
        *("binding", "representation", "sparse", ()),
        beside=(
            "accuracy",
            "segregation",
            "composition_gap",
            "renaming",
            "flip_*",
            "restore",
            "random_flip",
            "attribute_shift_logits",
            "entity_shift_logits",
            "both_shift_logits",
            "layer*_exchange_flip_*",
            "random_weights_accuracy",
        ),
        unit="flips and restorations under swaps, less those of random vectors of equal norm",
        elsewhere="the pair `binding` is trained for it: --pair binding --only BIND, whose claims.json --kept reads",
    ),
    Claim(
        "SHIFT",
        "representations grow sparser with shift, more so in the sparse model",
        "durable",
        "arXiv:2603.03415",
        *("shift", "hoyer_slope", "sparse"),
        beyond=0.0,
        unit="Hoyer sparsity of the last hidden state per nat of surprise",
    ),
    Claim(
        "DEPTH",
        "depth lowers entanglement at equal weights, and sparsity changes by how much",
        "durable",
        "arXiv:2402.14905",
        larger="dense",
        unit="share of the tasks that a neuron moves, for each unit of the natural logarithm of depth",
        only_if="needs a grid of models: python -m sparse_lens.comparisons.shipped.depth_table; --kept reads its file",
    ),
    Claim(
        "ALWAYS",
        "sparsity always disentangles",
        "perishable",
        "the strong reading of arXiv:2511.13653",
        unit="measures in which the sparse model, averaged over seeds, is worse",
    ),
)
