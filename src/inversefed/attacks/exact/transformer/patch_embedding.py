"""One image from a transformer with learned positions, in closed form, whatever follows the patch embedding.

    z_p = E a_p + position_p   =>   dL/dposition_p = dL/dz_p,   dL/dE = sum_p (dL/dz_p) a_p^T = (dL/dpositions)^T A

Positions are added token by token, so their gradient is that of each token, and the patch embedding's gradient is their
sum with the patches `a_p`: one linear system, `width` equations for the patches of each value. Lu et al. (2022,
arXiv:2112.14087) use what positions tell at the first attention; here nothing behind the tokens matters, be it norms,
skips, fused projections, a class token or none. It needs one example. All its local steps of plain SGD see the same
patches, so their sum does as well.

Behind a norm the gradients of tokens add up to zero, which takes one equation away. Where more patches than equations
are left, or rounding drowns some, what these leave open is looked for through the whole network, from a gray picture:

    A = gray + V f(S) U^T (dL/dE - dL/dE of gray) + V diag(l / sqrt(S^2 + l^2)) Z,    dL/dpositions^T = U S V^T
"""

import math
import time
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor

from inversefed.attacks.exact.transformer.token_inputs import TokenEntry
from inversefed.attacks.exact.transformer.token_system import TokenSystem, token_system, told
from inversefed.attacks.exact.verify import matched, verified
from inversefed.attacks.exact.watch import Watch
from inversefed.attacks.labels.nearest_update import labels_of
from inversefed.attacks.matching_error import matching_error
from inversefed.attacks.pieces.objectives import RelativeSquaredError
from inversefed.attacks.pieces.starts import Zeros
from inversefed.attacks.search.inversion import GradientInversion
from inversefed.findings import Code
from inversefed.fl.network import Network
from inversefed.fl.threat import Observation
from inversefed.thresholds import EXACT, OPEN
from inversefed.types import Budget, Candidate, Finding, Images, Labels, Params, Reconstruction, Scalar, Status

__all__ = ["EmbeddedPatches"]


@dataclass(frozen=True)
class Tolerances:
    """The numbers that it decides by, each with its reason.

    Args:
        strengths: shares of the greatest singular value below which a rounded update tells less than that a patch is
            gray.
        least: the strength of a search's directions where the plain solution was the best.
        hopeless: relative matching cost above which the equations do not hold, and no search goes on from their
            solution.
        alike: relative difference of two matching costs up to which it is the processor's rounding, and not another
            draw.
    """

    strengths: tuple[float, ...] = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    least: float = 1e-6
    hopeless: float = 0.1
    alike: float = 1e-3


TOLERANCES = Tolerances()


@dataclass(frozen=True)
class EmbeddedPatches:
    """Solve for the patches from the gradients of positions and patch embedding.

    Args:
        rest: the search for what equations leave open; its objective, start, projections and parametrization are set
            here. `None` for none.
    """

    rest: GradientInversion | None = None

    def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
        """Solve, and search for what stays open.

        Raises:
            ThreatModelError: the update is not that of one example in plain steps, or lacks what is needed.
            UnsupportedNetworkError: no learned positions are added to patches of the picture, or there are more than
                twice as many patches as the tokens are wide.
        """
        began, dtype = time.monotonic(), observation.network.dtype
        # Where a network of 16 bits made the update, its rounding is noise either way.
        observation = observation.to(torch.promote_types(dtype, torch.float32))
        entry, system = token_system(observation)
        images = entry.image(system.solution(0.0), observation.network)
        watch = Watch(budget, began=began)
        labels, told_labels = labels_of(observation, images, watch.stop)
        images, loss = matched(observation, images, labels, watch.stop)
        status = Status.STOPPED if watch.stopped and loss >= EXACT else Status.FINISHED
        best, proven = Candidate(images, labels, loss, status, iterations=1), False
        if loss >= EXACT and _repeats(observation, images, labels):
            best = self._improved(observation, entry, system, best, generator, _left(budget, began))
        elif loss >= EXACT:
            proven = system.proves(observation.network.dtype)
        return self._result(entry, system, best, proven, dtype, told_labels)

    def _result(
        self,
        entry: TokenEntry,
        system: TokenSystem,
        best: Candidate,
        proven: bool,
        dtype: torch.dtype,
        told: tuple[Finding, ...],
    ) -> Reconstruction:
        """Exact if the update comes out the same, or, where the client cannot be run again, if all equations hold."""
        how = f"the patches were solved for from the gradients of {entry.positions} and {entry.embed}"
        how += f", and {system.free:.1%} of them, which that leaves open, looked for" if system.free > OPEN else ""
        how += "" if best.iterations > 1 else ", without a search"
        figures = {"condition": system.condition, "residual": system.residual}
        left_open = max(entry.patches.unseen, system.free)
        result = verified(self, replace(best, images=best.images.to(dtype)), how, figures, left_open, told)
        if best.images.dtype != dtype:  # its error is that of the pictures before they were rounded to 16 bits
            result = replace(result, matching_error=None)
        if not proven:
            return result
        message = (
            f"Exact: {how}, and more equations hold than there are unknowns. The client cannot be run again to "
            "compare, for it draws at random or its settings are not known."
        )
        evidence = {"relative_matching_cost": best.loss, **figures, "unseen": left_open}
        return replace(result, findings=(Finding(Code.EXACT, "info", message, evidence), *told), proven=True)

    def check(self, observation: Observation) -> str:
        """Say what it would do.

        Raises:
            ThreatModelError: as when it is called.
            UnsupportedNetworkError: likewise.
        """
        return told(*token_system(observation))

    def _improved(
        self,
        observation: Observation,
        entry: TokenEntry,
        system: TokenSystem,
        best: Candidate,
        generator: Generator,
        budget: Budget,
    ) -> Candidate:
        """What matches better than the plain solution: one that rounding disturbs less, and what a search adds."""
        strength, best = _steadied(observation, entry, system, best, budget)
        if self.rest is None or best.labels.is_floating_point() or best.loss > TOLERANCES.hopeless:
            return best
        patches = OpenPatches(
            entry,
            system.solution(strength),
            system.open_directions(max(strength, TOLERANCES.least)),
            observation.network,
        )
        scaled = _Scaled(1 / best.loss)
        search = replace(self.rest, objective=scaled, start=Zeros(), projections=(), parametrization=patches)
        found = search(replace(observation, labels=best.labels), generator, budget)
        images, loss = matched(observation, found.images, best.labels)
        steps, history = found.candidates[0].iterations, found.candidates[0].history
        status = found.status if found.status in (Status.STOPPED, Status.INTERRUPTED) else Status.FINISHED
        best = replace(best, status=status, iterations=steps, history=history)
        return replace(best, images=images, loss=loss) if loss < best.loss else best


@dataclass(frozen=True, eq=False)
class OpenPatches:
    """A parametrization: patches that the equations allow, the more freely the less they tell.

    Args:
        entry: how the picture enters.
        base: the patches that the search starts from, `[patches, values]`.
        directions: in which it goes, `[patches, patches]`.
        network: whose inputs it makes.
    """

    entry: TokenEntry = field(repr=False)
    base: Tensor = field(repr=False)
    directions: Tensor = field(repr=False)
    network: Network = field(repr=False)

    def start(self, images: Tensor, generator: Generator) -> Tensor:
        """The base itself: zeros, `[n, patches, values]`."""
        return images.new_zeros(len(images), *self.base.shape)

    def __call__(self, variables: Tensor) -> Tensor:
        """From coefficients of the directions, `[n, patches, values]`, to network inputs `[n, c, h, w]`."""
        entries = [self.base + self.directions @ each.cpu().double() for each in variables]
        images = torch.cat([self.entry.patches.image(each) for each in entries])
        return self.network.normalize(images.to(variables))


@dataclass(frozen=True)
class _Scaled:
    """Relative squared error in units of the start's: the first step of L-BFGS takes its length from the gradient."""

    factor: float

    def __call__(self, update: Params, observed: Params) -> Scalar:
        """`factor |g - g*|^2 / |g*|^2`."""
        return self.factor * RelativeSquaredError()(update, observed)


def _steadied(
    observation: Observation, entry: TokenEntry, system: TokenSystem, best: Candidate, budget: Budget
) -> tuple[float, Candidate]:
    """Of solutions that a rounded update disturbs less and less, the one that matches it best; and its strength."""
    began, chosen = time.monotonic(), 0.0
    for strength in TOLERANCES.strengths:
        if budget.seconds is not None and time.monotonic() - began > budget.seconds / 4:
            break
        images = entry.image(system.solution(strength), observation.network)
        loss = matching_error(observation, images, best.labels)
        if loss < best.loss:
            chosen, best = strength, replace(best, images=images, loss=loss)
    return chosen, best


def _repeats(observation: Observation, images: Images, labels: Labels) -> bool:
    """Whether the client can be run again: its settings are known, and it draws nothing at random."""
    again = replace(observation, network=observation.network.with_masks(observation.network.mask_seed + 1))
    costs = [matching_error(each, images, labels) for each in (observation, again)]
    return max(costs) < math.inf and math.isclose(*costs, rel_tol=TOLERANCES.alike)


def _left(budget: Budget, began: float) -> Budget:
    """What is left of a budget's time, for a search that keeps no checkpoint."""
    return replace(budget, seconds=budget.left(began), checkpoint=None, resume=None)
