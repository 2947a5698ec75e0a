"""Backup circuits: find a circuit, forbid its nodes, find again, until the task is no longer solved.

A model may do a task in several ways at once, so that one small circuit is not *the* circuit. What is forbidden are the nodes
inside sublayers (queries, keys, values, neurons). The channels that read and write the residual stream stay free: all circuits
of a task meet in the few channels that the answers are read from, and without those no circuit is left to find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from sparse_lens.circuits.ablation import AblationKind
from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.search.config import SearchConfig
from sparse_lens.circuits.search.nodes import DEFAULT_TARGET, SearchProblem, prepare_search, search_circuit
from sparse_lens.circuits.search.objectives import Objective, TargetKind
from sparse_lens.circuits.sites import LAYER_SITES, RESIDUAL_SITES
from sparse_lens.dictionaries import Dictionary
from sparse_lens.errors import CircuitError, ConfigError, UnknownNameError
from sparse_lens.tasks import AnyTask

INTERIOR_SITES = ("attn_q", "attn_k", "attn_v", "mlp_neuron")
"""Sites whose nodes belong to one sublayer alone."""


def exhaust_circuits(
    bridge: Any,
    task: str | AnyTask,
    *,
    max_circuits: int = 8,
    sites: Sequence[str] = INTERIOR_SITES,
    dictionaries: Sequence[Dictionary] = (),
    target_loss: float = DEFAULT_TARGET,
    target_kind: TargetKind = "task",
    calibrate: bool = False,
    ablation: AblationKind = "mean",
    frozen_norms: bool = False,
    forbid: Bool[Tensor, " node"] | None = None,
    config: SearchConfig | None = None,
    windows: np.ndarray | None = None,
    seed: int = 0,
    progress: bool = True,
) -> list[Circuit]:
    """Circuits of one task that share no node at `sites`, in the order found; empty if not even the first meets `target_loss`.

    Each is searched on the same prompts and with the same effort. In the last one's `search["exhaustion"]`, `ended` says why no
    more followed. After a Ctrl-C those found so far come back, if there are any. The other arguments are those of
    `find_circuit`. Raises `UnknownNameError` for an unknown kind of site and `ConfigError` for `max_circuits` below 1.
    """
    if max_circuits < 1:
        raise ConfigError(f"max_circuits must be at least 1, got {max_circuits}")
    config = config or SearchConfig()
    how: dict[str, Any] = {"ablation": ablation, "frozen_norms": frozen_norms, "windows": windows, "seed": seed}
    how |= {"dictionaries": dictionaries, "forbid": forbid, "objective": Objective(target_kind, calibrate), "progress": progress}
    problem = prepare_search(bridge, task, config, **how)
    limits: dict[str, Any] = {"max_circuits": max_circuits, "sites": sites}
    return exhaust(problem, target_loss, config, **limits, seed=seed, progress=progress, keep_interrupted=True)


def exhaust(
    problem: SearchProblem,
    target: float,
    config: SearchConfig,
    *,
    max_circuits: int = 8,
    sites: Sequence[str] = INTERIOR_SITES,
    seed: int = 0,
    progress: bool = False,
    keep_interrupted: bool = False,
) -> list[Circuit]:
    """`exhaust_circuits` for a problem whose prompts and means are made; a Ctrl-C is an error unless `keep_interrupted`."""
    inside = nodes_at(problem, sites)
    found: list[Circuit] = []
    forbid = torch.zeros_like(inside) if problem.forbid is None else problem.forbid
    ended = f"the limit of {max_circuits} circuits"
    how: dict[str, Any] = {"seed": seed, "progress": progress, "keep_interrupted": keep_interrupted}
    while len(found) < max_circuits:
        circuit = search_circuit(replace(problem, forbid=forbid), target, config, **how)
        if circuit.reached:
            number = {"number": len(found), "forbidden": int(forbid.sum())}
            found.append(replace(circuit, search=circuit.search | {"exhaustion": number}))
        if (reason := _why_no_more(circuit, inside)) is not None:
            if circuit.search["interrupted"] and not found:
                raise KeyboardInterrupt
            ended = reason
            break
        forbid = forbid | (circuit.mask & inside)
    if found:
        found[-1].search["exhaustion"]["ended"] = ended
    return found


def _why_no_more(circuit: Circuit, inside: Bool[Tensor, " node"]) -> str | None:
    """Why no circuit can follow this one; None if one can."""
    if circuit.search["interrupted"]:
        return "interrupted"
    if not circuit.reached:
        return f"target missed: the best loss without the nodes of the others is {circuit.loss:.5f}"
    if not bool((circuit.mask & inside).any()):
        return "the last circuit has no node that could be forbidden"
    return None


def nodes_at(problem: SearchProblem, sites: Sequence[str]) -> Bool[Tensor, " node"]:
    """All nodes at sites of the kinds given; raises `UnknownNameError` for an unknown one, `CircuitError` for none at all."""
    for kind in sites:
        if kind not in (*LAYER_SITES, *RESIDUAL_SITES):
            raise UnknownNameError("kind of site", kind, (*LAYER_SITES, *RESIDUAL_SITES))
    if not sites:
        raise CircuitError("name at least one kind of site whose nodes are forbidden to the next circuit")
    found = torch.cat([torch.full((site.n_nodes,), site.kind in sites) for site in problem.space.sites])
    if not bool(found.any()):
        raise CircuitError(f"no dictionary sees the residual stream at {', '.join(sites)} here, so that there are no such nodes")
    return found
