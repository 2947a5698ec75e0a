"""Fracture and entanglement: is one concept carried by one mechanism, and does a unit serve one concept? (arXiv:2505.11581)

That paper shows pictures and gives no number; the measures are ours. Perturb unit k and look at how the output changes on instances
`x` and on partners `g x` that carry the same concept: `D_k(x)`, `D_k(g x)`, each unit scaled to energy 1 over both.

| measure | formula | reading |
|---|---|---|
| fracture | mean over k of `|D_k(x) - D_k(gx)|^2` | 0 one mechanism, 1 independent ones, 2 opposite ones |
| dimension | `exp(entropy of squared singular values of the stacked D_k) / units` | low: a few coherent modes |
| entanglement | mean over k of the participation ratio of `|D_kj|` over J behaviours, `/ J` | 1: a unit serves all, 1 / J: one |
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_lens.comparisons.fracture.picture_networks import PictureNetwork, read_picture_network
from sparse_lens.comparisons.rows.sparsity_measures import effective_number, participation_ratio
from sparse_lens.errors import ConfigError, DataError
from sparse_lens.results import Result, bootstrap_mean, exact, not_measurable

DEAD = 1e-6
"""A unit whose effects have less than this share of the output's energy is dead, and left out."""

_PATCHES = 6
_NULL_COLUMNS = 2048


@dataclass(eq=False)
class FractureSums:
    """Takes in effects of the same `n_units` perturbations, some instances at a time; memory does not grow with instances.

    `n_behaviours` are the kinds of instances among which entanglement is measured; units with less than the share `dead` of the
    outputs' energy are left out.
    """

    n_units: int
    n_behaviours: int = 1
    dead: float = DEAD
    difference: Tensor = field(init=False, repr=False)
    products: Tensor = field(init=False, repr=False)
    sizes: Tensor = field(init=False, repr=False)
    counts: Tensor = field(init=False, repr=False)
    output_energy: float = 0.0
    n: int = 0

    def __post_init__(self) -> None:
        units, kinds = self.n_units, self.n_behaviours
        self.difference, self.products = (torch.zeros(shape, dtype=torch.float64) for shape in ((units,), (units, units)))
        self.sizes, self.counts = (torch.zeros(shape, dtype=torch.float64) for shape in ((units, kinds), (kinds,)))

    def add(
        self,
        effects: Float[Tensor, "unit instance"],
        partner_effects: Float[Tensor, "unit instance"],
        *,
        outputs: Float[Tensor, " instance"],
        partner_outputs: Float[Tensor, " instance"],
        behaviour: Int[Tensor, " instance"] | None = None,
        partner_behaviour: Int[Tensor, " instance"] | None = None,
    ) -> None:
        """Take in the effects on some instances and on their partners, and the outputs that were perturbed.

        `behaviour` numbers the kind of each instance, `partner_behaviour` of each partner (the same kind). Raises `DataError` for
        effects or outputs that are not finite.
        """
        here, there = effects.double(), partner_effects.double()
        for told, parts in (("effects", (here, there)), ("outputs", (outputs, partner_outputs))):
            if wrong := sum(int((~part.isfinite()).sum()) for part in parts):
                raise DataError(
                    f"{wrong} {told} are NaN or infinite; the model or its dictionary is broken, or the perturbation too large"
                )
        kind = torch.zeros(here.shape[1], dtype=torch.long) if behaviour is None else behaviour
        partner_kind = kind if partner_behaviour is None else partner_behaviour
        self.difference += (here - there).square().sum(1)
        self.products.addmm_(here, here.T).addmm_(there, there.T)
        for kinds, values in ((kind, here), (partner_kind, there)):
            self.sizes.index_add_(1, kinds, values.abs())
            self.counts += torch.bincount(kinds, minlength=self.n_behaviours)
        self.output_energy += float(outputs.double().square().sum() + partner_outputs.double().square().sum())
        self.n += here.shape[1]

    def measure(self) -> Fracture:
        """The measures of everything taken in."""
        energy = self.products.diagonal()
        live = (energy > self.dead * self.output_energy).nonzero().flatten()
        scale = energy[live].sqrt()
        modes = self.products[live][:, live] / scale / scale[:, None]
        sizes = self.sizes[live] / self.counts.clamp(min=1)
        return Fracture(live, self.difference[live] / energy[live], modes, sizes[:, self.counts > 0], self.n_units, self.n)

    def results(self) -> dict[str, Result]:
        """`Fracture.results`: not measurable where no unit has an effect."""
        return self.measure().results


@dataclass(frozen=True, eq=False)
class Fracture:
    """The `units` that are not dead, with the `fracture` of each.

    `sizes` are the mean sizes of a unit's effects on every behaviour, `modes` the cosines between the effects of two units.
    """

    units: Int[Tensor, " unit"]
    fracture: Float[Tensor, " unit"]
    modes: Float[Tensor, "unit unit"]
    sizes: Float[Tensor, "unit behaviour"]
    n_units: int
    n_instances: int

    @cached_property
    def results(self) -> dict[str, Result]:
        """`fracture`, `effective_dimension` (a share of the units), `entanglement`, `live_units`.

        Intervals are a bootstrap over units. Nulls are what independent random effects give: a fracture of 1, and by a draw of
        as many units and instances the other two (instances shared out alike to the behaviours).
        """
        n = len(self.units)
        counted = {"live_units": exact(n, n=self.n_units)}
        if n == 0:
            none = not_measurable(f"none of {self.n_units} units has an effect on the output")
            return dict.fromkeys(("fracture", "effective_dimension", "entanglement"), none) | counted
        columns, generator = min(2 * self.n_instances, _NULL_COLUMNS), torch.Generator().manual_seed(0)
        random = torch.randn(n, columns, dtype=torch.float64, generator=generator)
        found = {"fracture": bootstrap_mean(self.fracture.numpy(), null=1.0), "entanglement": self._entanglement(random)}
        found["effective_dimension"] = not_measurable("the dimension needs two units with an effect", n=n)
        if n > 1:
            unit = torch.nn.functional.normalize(random)
            null = effective_dimension(unit @ unit.T)
            found["effective_dimension"] = Result(effective_dimension(self.modes), null=null, n=n)
        return found | counted

    def _entanglement(self, random: Float[Tensor, "unit column"]) -> Result:
        kinds = self.sizes.shape[1]
        if kinds < 2:
            return not_measurable("entanglement needs instances of two behaviours or more", n=len(self.units))
        by_kind = torch.stack([part.abs().mean(1) for part in random.tensor_split(min(kinds, random.shape[1]), 1)], 1)
        null = float(participation_ratio(by_kind).mean()) / by_kind.shape[1]
        return bootstrap_mean((participation_ratio(self.sizes) / kinds).numpy(), null=null)


def effective_dimension(products: Float[Tensor, "unit unit"]) -> float:
    """Exponential of the entropy of the squared singular values behind `products = D D^T`, as a share of the units."""
    return float(effective_number(torch.linalg.eigvalsh(products).clamp(min=0))) / len(products)


def picture_network_fracture(npz_path: str | Path) -> float:
    """Fracture of a network that draws a picture: units perturbed one by one, left and right mirrored.

    0 if every unit changes both halves of the picture alike, 1 if it changes them independently. The file is described in
    `read_picture_network`, which says what it raises; raises `DataError` also where no unit changes the picture.
    """
    value = picture_fracture(read_picture_network(npz_path))["fracture"].value
    if value is None:
        raise DataError(f"no unit of {npz_path} changes the picture, so there is no fracture to measure")
    return value


def picture_fracture(
    network: PictureNetwork, *, units: str = "unit", size: int = 64, n_weights: int = 100, seed: int = 0, upside_down: bool = False
) -> dict[str, Result]:
    """`Fracture.results` of a picture network on `size` x `size` pixels, left against right, with 6 x 6 patches as behaviours.

    `upside_down` takes top against bottom, the control: along an axis in which a picture is not symmetric nothing can be alike.

    `units`: a `unit` is a hidden one, whose outgoing weights are halved; of `weight`, `n_weights` nonzero ones drawn at random grow
    by half.
    Raises `ConfigError` for a size that is odd: its middle column has no partner.
    """
    if size < _PATCHES or size % 2:
        raise ConfigError(f"a picture needs an even size of at least {_PATCHES} to be mirrored, got {size}")
    turned = (1, 0, 2) if upside_down else (0, 1, 2)
    picture = torch.from_numpy(network.draw(size)).permute(turned)
    pictures = network.perturbed(units, size, n_weights=n_weights, seed=seed)
    changed = [torch.from_numpy(other).permute(turned) - picture for other in pictures]
    patch = torch.arange(size) * _PATCHES // size
    behaviour = (patch[:, None] * _PATCHES + patch)[..., None].expand(picture.shape)
    sums = FractureSums(len(changed), _PATCHES**2)
    if changed:
        (here, there), (seen, mirrored), (kind, other) = (_halves(x) for x in (torch.stack(changed), picture, behaviour))
        sums.add(here, there, outputs=seen, partner_outputs=mirrored, behaviour=kind, partner_behaviour=other)
    return sums.results()


def _halves(values: Tensor) -> tuple[Tensor, Tensor]:
    """The left half of pictures `[..., row, column, rgb]` and the mirrored right half, pixels and colours flat."""
    half = values.shape[-2] // 2
    return values[..., :half, :].flatten(-3), values.flip(-2)[..., :half, :].flatten(-3)
