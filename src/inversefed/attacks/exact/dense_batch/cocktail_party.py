"""Cocktail party attack: many images, approximately, from a first linear layer, by independent component analysis.

Needs: an update of b examples; a linear layer with bias on the flattened picture, b below its width; any network after.

    gW = D^T X,  X = P V^T;     P = argmin  sum_j mean |(P dV)_j| - log |det P|,     dV: differences of neighbors

That gradients of a linear layer are mixtures which independent component analysis takes apart is the cocktail party
attack (Kariyappa et al., ICML 2023, arXiv:2209.05578): it whitens pixels and climbs negentropy, with penalties for
correlation and total variation. Pictures are correlated in their pixels, though, and hardly in the differences of
neighbors, and those are sparse. So here the likelihood of sparse differences is maximized, of which total variation is
one half and the determinant, which keeps the rows of P apart, the other. Sign and scale are not free either: the bias
gradient is the same mixture of ones, `gb = D^T 1`. The result is an approximation, and is never called exact.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from inversefed.attacks.exact.dense_batch.rank_decomposition import Mixture, assigned_labels, mixture
from inversefed.attacks.exact.watch import Stopped, Watch
from inversefed.attacks.matching_error import matching_error
from inversefed.errors import UnsupportedNetworkError
from inversefed.findings import Code
from inversefed.fl.threat import Observation
from inversefed.types import Budget, Candidate, Finding, Reconstruction, Status

__all__ = ["IndependentComponents"]


@dataclass(frozen=True)
class Tolerances:
    """The numbers that it decides by, each with its reason.

    Args:
        samples: differences that are looked at, at most; larger pictures are sampled.
        chunk: iterations of L-BFGS between two looks at the watch.
        history: pairs that L-BFGS remembers.
        apart: noise on the identity that the unmixing starts from, so that no two rows are alike.
        gradient: the greatest entry of the gradient at which L-BFGS ends.
        change: likewise, of its last change.
        flat: share of the greatest variance below which a direction is not made larger still by whitening.
    """

    samples: int = 20_000
    chunk: int = 10
    history: int = 20
    apart: float = 0.1
    gradient: float = 1e-9
    change: float = 1e-12
    flat: float = 1e-12


TOLERANCES = Tolerances()


@dataclass(frozen=True)
class IndependentComponents:
    """Take a batch apart by the sparseness of differences of neighboring pixels.

    Args:
        iterations: most iterations of L-BFGS.
        rounding: of the absolute value, relative to the spread of differences.
    """

    iterations: int = 300
    rounding: float = 0.05

    def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
        """Search for the unmixing matrix from one random start.

        Raises:
            ThreatModelError: the gradient's rank is not the number of examples.
            UnsupportedNetworkError: no linear layer with bias sees the pictures, or it is too small for them, or what
                it sees has no neighbors, as rows of a table.
        """
        mixed, network, shape = _with_neighbors(observation), observation.network, observation.batch_shape

        def pictures(inputs: Tensor) -> Tensor:
            images = network.denormalize(inputs.reshape(shape).to(network.device, network.dtype))
            return images.clamp(min=network.low, max=network.high)

        watch, status = Watch(budget, pictures, rounds=self.iterations // TOLERANCES.chunk), Status.FINISHED
        unmix = torch.eye(mixed.count).double()
        try:
            unmix = self.unmix(mixed, generator, watch)
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
        status = Status.STOPPED if watch.stopped else status
        scale = unmix @ mixed.ones
        images = pictures(scaled(mixed, unmix))
        deltas = (mixed.rows @ torch.linalg.inv(unmix) * scale).T
        labels, _ = assigned_labels(observation, mixed.layer, images, deltas)
        loss = matching_error(observation, images, labels)
        message = f"{mixed.count} pictures were taken apart by their statistics: an approximation, not exact."
        finding = Finding(Code.APPROXIMATE, "info", message, {"relative_matching_cost": loss})
        chosen = Candidate(images, labels, loss, status, max(1, len(watch.history)), watch.history)
        return Reconstruction(
            images, labels, loss, status, (chosen,), (finding,), matching_error=loss, made_by=repr(self)
        )

    def check(self, observation: Observation) -> str:
        """Say what it would do.

        Raises:
            ThreatModelError: as when it is called.
            UnsupportedNetworkError: likewise.
        """
        mixed = _with_neighbors(observation)
        return f"takes the {mixed.count} examples in the gradient of {mixed.layer} apart by statistics, roughly"

    def unmix(self, mixed: Mixture, generator: Generator, watch: Watch) -> Tensor:
        """Find P, `[b, b]`, up to the scale of its rows.

        Args:
            mixed: the decomposed gradient.
            generator: draws the start, and the sample of differences of large pictures.
            watch: shown the pictures after every ten iterations, and asked within.
        """
        white, whitening = _white_differences(mixed, generator)
        start = torch.eye(mixed.count).double()
        start = start + TOLERANCES.apart * torch.randn(start.shape, generator=generator, dtype=start.dtype)
        turn = start.requires_grad_()
        optimizer = torch.optim.LBFGS(
            [turn],
            max_iter=TOLERANCES.chunk,
            history_size=TOLERANCES.history,
            line_search_fn="strong_wolfe",
            tolerance_grad=TOLERANCES.gradient,
            tolerance_change=TOLERANCES.change,
        )

        def closure() -> Tensor:
            watch.go_on()
            size = ((turn @ white).square() + self.rounding**2).sqrt().mean(dim=1).sum()
            loss: Tensor = size - torch.linalg.slogdet(turn)[1]
            turn.grad = torch.autograd.grad(loss, turn)[0].contiguous()
            return loss.detach()

        for _ in range(self.iterations // TOLERANCES.chunk):
            before = turn.detach().clone()
            try:
                loss = float(optimizer.step(closure))  # type: ignore[no-untyped-call]
            except Stopped:
                return before @ whitening  # the last that its line search settled on
            if watch(loss, scaled(mixed, turn.detach() @ whitening)) or torch.equal(before, turn):
                break
        return turn.detach() @ whitening


def scaled(mixed: Mixture, unmix: Tensor) -> Tensor:
    """The normalized pictures, `[b, n]`, signs and scales by the bias gradient: `P ones` is what scales D."""
    scale = unmix @ mixed.ones
    inputs: Tensor = (unmix @ mixed.basis) / torch.where(scale == 0, 1.0, scale)[:, None]
    return inputs


def _with_neighbors(observation: Observation) -> Mixture:
    """The decomposed gradient of what has neighbors.

    Raises:
        UnsupportedNetworkError: it has none, or nothing can be decomposed.
    """
    mixed = mixture(observation)
    if not mixed.has_neighbors:
        raise UnsupportedNetworkError(
            f"cocktail_party() tells examples apart by the differences of neighboring values, and the numbers of a "
            f"{observation.network.space.noun} are no neighbors; use sparse(), or a search such as without_prior()"
        )
    return mixed


def _white_differences(mixed: Mixture, generator: Generator) -> tuple[Tensor, Tensor]:
    """Differences of neighbors, made uncorrelated and of unit spread, `[b, samples]`, and what makes them so."""
    images = mixed.basis.reshape(-1, *mixed.image_shape)
    differences = torch.cat([images.diff(dim=-1).flatten(1), images.diff(dim=-2).flatten(1)], dim=1)
    values, vectors = torch.linalg.eigh(differences @ differences.T / differences.shape[1])
    whitening: Tensor = (vectors / values.clamp(min=TOLERANCES.flat * float(values[-1])).sqrt()) @ vectors.T
    if differences.shape[1] > TOLERANCES.samples:
        differences = differences[:, torch.randperm(differences.shape[1], generator=generator)[: TOLERANCES.samples]]
    return whitening @ differences, whitening
