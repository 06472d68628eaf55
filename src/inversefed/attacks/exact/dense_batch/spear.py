"""SPEAR: several images, exactly, from a first linear layer followed by ReLU.

Needs: an honest update of b examples; a linear layer with bias on the flattened picture, then ReLU; b below its
width.

    gW = D^T X = (C Q)(Q^-1 V^T),   D = dL/dZ is zero wherever the ReLU is off

(SPEAR, Dimitrov et al. 2024, arXiv:2403.03945). Directions q in which C is sparse are searched (see
`sparse_directions`); b of them are chosen, first the sparsest, then by exchange, such that the zeros of D agree with
the signs of `Z = X W^T + c`; the bias gradient gives their scale. An example whose column agrees in every unit is
settled, for a wrong direction spoils only itself and what it mixes in. Labels: with X known, the backward pass of
each example and class is known, and that which gives its row of D is its label. The result is called exact only if
the client, run once, reproduces the update.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor, nn

from inversefed.attacks.exact.dense_batch.cocktail_party import IndependentComponents, scaled
from inversefed.attacks.exact.dense_batch.rank_decomposition import Mixture, assigned_labels, mixture
from inversefed.attacks.exact.dense_batch.sparse_directions import DirectionSearch, NullVectors, SparseDescent
from inversefed.attacks.exact.verify import matched, verified
from inversefed.attacks.exact.watch import Watch
from inversefed.attacks.matching_error import matching_error
from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.fl.threat import Observation
from inversefed.networks.layer_chain import chain
from inversefed.thresholds import EXACT
from inversefed.types import Budget, Candidate, Inputs, Reconstruction, Status, Targets

__all__ = ["SparseBatch"]


@dataclass(frozen=True)
class Tolerances:
    """The numbers that it decides by, each with its reason.

    Args:
        zero: roundings of the number format up to which a product with a row of unit length counts as zero.
        least_zero: likewise at least, for an eigenvector is not known to the last digit.
        rough: how much looser a proposal is judged, before it is fitted to its own zeros.
        least_rough: likewise at least.
        independent: share of a white direction that must be new.
        agrees: share of all signs from which on a choice is tried on the client.
        fits: likewise, from which on a choice is fitted to the signs of its own pictures before.
        few: examples up to which exchange is cheap enough to be tried before most of them are settled.
        refits: how often the signs of roughly right pictures are used.
        unusual: how many times the usual distance of its zeros a unit may be from zero, to be one of them.
        unlikely: the weight of rows that those speak against.
        settled: share of units that agree where an example's direction is right; rounding spoils a few.
        kept: share of a full set, of which some must be wrong, that is kept at random.
        side: steps of a product into which directions that look alike from one side fall.
        determined: second least eigenvalue of the white rows where a direction has zeros, from which on it is the only
            one with them; rows of rounding have 1e-8 and less.
        speaking: how many of them, at least, speak against the next one; k examples that leave the same units off have
            combinations for which k - 1 do.
        same: how far from 1 the cosine of two directions may be that are one, up to sign.
        tiny: near the least number of double precision: what is divided by is not zero, and nothing else changes.
    """

    zero: float = 64.0
    least_zero: float = 1e-9
    rough: float = 30.0
    least_rough: float = 1e-6
    independent: float = 1e-3
    agrees: float = 0.97
    fits: float = 0.85
    few: int = 10
    refits: int = 3
    unusual: float = 16.0
    unlikely: float = 1e-3
    settled: float = 0.98
    kept: float = 0.5
    side: float = 1e5
    same: float = 1e-6
    determined: float = 1e-6
    speaking: float = 4.0
    tiny: float = 1e-300


TOLERANCES = Tolerances()


@dataclass(frozen=True)
class SparseBatch:
    """Recover a batch from the zeros that ReLU leaves in the gradient of a first linear layer.

    Args:
        searches: where directions come from, in turn.
        separation: after the first of them, the pictures' own statistics give starts for a descent; `None` for none.
        rounds: most calls of searches.
        pool: how many directions are kept to choose from, at least; four an example if that is more.
    """

    searches: tuple[DirectionSearch, ...] = (SparseDescent(), NullVectors(1024))
    separation: IndependentComponents | None = IndependentComponents()
    rounds: int = 200
    pool: int = 64

    def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
        """Search until every example is settled, the rounds are used up, or the budget ends it.

        Raises:
            ThreatModelError: the gradient's rank is not the number of examples.
            UnsupportedNetworkError: no linear layer with bias sees the picture, or no ReLU follows it.
        """
        network = observation.network
        mixed = _mixed(observation)
        shape = observation.batch_shape

        def pictures(inputs: Tensor) -> Tensor:
            return network.denormalize(inputs.reshape(shape).to(network.device, network.dtype))

        watch, status = Watch(budget, pictures, rounds=self.rounds), Status.FINISHED
        rows, chosen = _Rows.of(mixed), _Chosen.none(mixed)
        try:
            for chosen in self._found(mixed, rows, generator, watch):
                stop = watch(1 - chosen.agreement, chosen.inputs)
                tried = chosen
                if TOLERANCES.fits <= chosen.agreement < TOLERANCES.agrees:
                    tried = _refitted(mixed, rows, chosen)
                if tried.agreement >= TOLERANCES.agrees:
                    found = self._verified(observation, mixed, tried, pictures(tried.inputs), watch, status)
                    if found.proven:
                        return found
                if stop:
                    break
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
        status = Status.STOPPED if watch.stopped else status
        return self._verified(observation, mixed, chosen, pictures(chosen.inputs), watch, status)

    def check(self, observation: Observation) -> str:
        """Say what it would do.

        Raises:
            ThreatModelError: as when it is called.
            UnsupportedNetworkError: likewise.
        """
        mixed = _mixed(observation)
        live = int(mixed.rows.any(dim=1).sum())
        return (
            f"looks for the {mixed.count} examples in the zeros that ReLU leaves in the gradient of {mixed.layer}, "
            f"{live} of whose {len(mixed.rows)} units are on for some of them"
        )

    def _verified(
        self, observation: Observation, mixed: Mixture, chosen: "_Chosen", images: Tensor, watch: Watch, status: Status
    ) -> Reconstruction:
        """Run the client on what was found: only an update that comes out the same makes it exact."""
        if not chosen.directions.shape[1]:
            raise ThreatModelError(
                f"fewer than {mixed.count} directions with zeros were found in the gradient of {mixed.layer}; "
                "allow more time or rounds, or use cocktail_party() for an approximation"
            )
        labels, order = assigned_labels(observation, mixed.layer, images, chosen.deltas)
        images, labels = images[order], labels[order]  # granted labels in the order in which they were granted
        images, loss = matched(observation, images, labels, watch.stop)
        open_targets = labels.is_floating_point() and observation.labels is None
        if loss and (open_targets or loss >= EXACT) and not watch.stop():
            refitted = _refitted(mixed, _Rows.of(mixed), chosen)
            images, labels, loss = _better_known(observation, mixed, refitted, (images, labels, loss))
        evidence = {"signs_agree": chosen.agreement, "examples_settled": int(chosen.settled.sum())}
        how = f"the zeros of the gradient of {mixed.layer} told {mixed.count} pictures apart"
        candidate = Candidate(
            images, labels, loss, status, iterations=max(1, len(watch.history)), history=watch.history
        )
        return verified(self, candidate, how, evidence)

    def _found(self, mixed: Mixture, rows: "_Rows", generator: Generator, watch: Watch) -> Iterator["_Chosen"]:
        """After each round, the best choice so far."""
        pool = torch.empty(mixed.count, 0, dtype=rows.white.dtype)
        chosen = _Chosen.none(mixed)
        for number in range(self.rounds):
            if number == 1 and self.separation is not None and mixed.has_neighbors:
                pool = torch.cat([pool, _by_statistics(self.separation, mixed, rows, generator, watch)], dim=1)
            search = self.searches[number % len(self.searches)]
            proposed = search(rows.white, _found_so_far(pool, generator), generator)
            pool = rows.sparsest(torch.cat([pool, proposed], dim=1), max(self.pool, 4 * mixed.count))
            chosen = _choose(mixed, rows, pool, chosen)
            yield chosen


def _better_known(
    observation: Observation, mixed: Mixture, refitted: "_Chosen", known: tuple[Inputs, Targets, float]
) -> tuple[Inputs, Targets, float]:
    """Of what is known and what the refitted directions give, as it is stored too, that which matches best.

    Targets that are numbers hang on the pictures, digit by digit; classes do not.
    """
    network = observation.network
    images = network.denormalize(refitted.inputs.reshape(observation.batch_shape).to(network.device, network.dtype))
    for tried in (images, network.space.snap(images)):
        labels, order = assigned_labels(observation, mixed.layer, tried, refitted.deltas)
        loss = matching_error(observation, tried[order], labels[order])
        known = (tried[order], labels[order], loss) if loss < known[2] else known
    return known


def _refitted(mixed: Mixture, rows: "_Rows", chosen: "_Chosen") -> "_Chosen":
    """Each direction fitted to all units that its picture leaves off, but for those that are clearly no zeros of it.

    Zeros come out by far nearer to zero than what is counted as such at first, for rounding is not known beforehand:
    where two singular values of the gradient are far apart, what is counted holds units that are on, too.
    """
    weight, bias = mixed.weight[rows.live], mixed.bias[rows.live]
    off = kept = chosen.inputs @ weight.T + bias < 0
    for _ in range(TOLERANCES.refits):
        normals = torch.linalg.svd(kept[:, :, None] * rows.unit, full_matrices=False)[2][:, -1].T
        away = (rows.unit @ normals).abs().T
        usual = torch.where(kept, away, torch.nan).nanmedian(dim=1, keepdim=True).values
        kept = off & (away <= TOLERANCES.unusual * usual)
    unmix, failed = torch.linalg.inv_ex(normals)
    if failed or not bool(unmix.isfinite().all()):
        return chosen
    fitted = _Chosen.of(mixed, normals, unmix, rows.directions(normals), chosen.right)
    right = (away > TOLERANCES.unusual * usual) == (fitted.inputs @ weight.T + bias > 0)
    return replace(fitted, right=right.double().mean(dim=1))


def _by_statistics(
    separation: IndependentComponents, mixed: Mixture, rows: "_Rows", generator: Generator, watch: Watch
) -> Tensor:
    """Directions by the pictures' statistics: where roughly right pictures leave a unit off, a zero is due."""
    directions = rows.directions(torch.linalg.inv(separation.unmix(mixed, generator, watch.clock())))
    proposed = []
    for _ in range(TOLERANCES.refits):
        normals, failed = torch.linalg.inv_ex(rows.normals(directions))
        if failed:
            break
        outputs = scaled(mixed, normals) @ mixed.weight[rows.live].T + mixed.bias[rows.live]
        off = (outputs < 0).T.to(rows.white)
        directions = SparseDescent().descend(rows.white, directions, off + TOLERANCES.unlikely, widest=-1.0)
        proposed.append(directions)
    return torch.cat(proposed, dim=1) if proposed else directions


def _found_so_far(pool: Tensor, generator: Generator) -> Tensor:
    """Independent directions with many zeros; of a full set, of which some must be wrong, a random half."""
    picked = _independent(pool)
    if len(picked) == pool.shape[0]:
        picked = [number for number in picked if float(torch.rand((), generator=generator)) < TOLERANCES.kept]
    return pool[:, picked]


def _mixed(observation: Observation) -> Mixture:
    """The decomposed gradient, where its layer feeds a ReLU and nothing else, but for BatchNorm in eval mode.

    That is affine: its scale and shift belong to the layer's own weight and bias, as far as signs go.
    """
    mixed = mixture(observation)
    layers = [layer for layer in chain(observation.network) if not isinstance(layer.module, nn.Identity | nn.Dropout)]
    place = next((number for number, layer in enumerate(layers) if layer.name == mixed.layer), None)
    behind = [layer.module for layer in layers[place + 1 :]] if place is not None else []
    while behind and isinstance(behind[0], nn.BatchNorm1d) and behind[0].running_mean is not None:
        mixed = _scaled(mixed, behind.pop(0))
    follower = behind[0] if behind else None
    if not isinstance(follower, nn.ReLU):
        came = "nothing" if follower is None else type(follower).__name__
        raise UnsupportedNetworkError(
            f"several pictures are told apart by the zeros of a ReLU behind layer {mixed.layer}; {came} follows it"
        )
    return mixed


def _scaled(mixed: Mixture, norm: nn.Module) -> Mixture:
    """With what an affine layer of units makes of the weight and the bias in front of it."""
    with torch.no_grad():
        ends = norm.cpu().double()(torch.stack([torch.zeros_like(mixed.bias), torch.ones_like(mixed.bias)]))
    shift, scale = ends[0], ends[1] - ends[0]
    return replace(mixed, weight=scale[:, None] * mixed.weight, bias=scale * mixed.bias + shift)


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows of units that are on for some example, as points of unit length.

    Args:
        live: which units, `[m]`.
        unit: their coordinates, each of length 1, `[live, b]`.
        white: the same with orthonormal columns, `unit @ whitening`.
        whitening: `[b, b]`.
        tolerance: products up to it count as zero.
    """

    live: Tensor = field(repr=False)
    unit: Tensor = field(repr=False)
    white: Tensor = field(repr=False)
    whitening: Tensor = field(repr=False)
    tolerance: float

    @classmethod
    def of(cls, mixed: Mixture) -> "_Rows":
        live = mixed.rows.norm(dim=1) > 0
        unit = mixed.rows[live] / mixed.rows[live].norm(dim=1, keepdim=True)
        values, vectors = torch.linalg.eigh(unit.T @ unit)
        whitening = vectors / values.clamp(min=TOLERANCES.tiny).sqrt()
        return cls(live, unit, unit @ whitening, whitening, max(TOLERANCES.zero * mixed.eps, TOLERANCES.least_zero))

    def zeros(self, directions: Tensor, rough: bool = False) -> Tensor:
        """Which rows lie on the hyperplanes of white directions `[b, n]`: `[live, n]`."""
        tolerance = max(TOLERANCES.rough * self.tolerance, TOLERANCES.least_rough) if rough else self.tolerance
        return (self.unit @ self.normals(directions)).abs() < tolerance

    def normals(self, directions: Tensor) -> Tensor:
        """The directions in the coordinates of the rows as they are, of unit length."""
        normals = self.whitening @ directions
        unit: Tensor = normals / normals.norm(dim=0)
        return unit

    def directions(self, normals: Tensor) -> Tensor:
        """The inverse of `normals`: unit white directions."""
        white = torch.linalg.solve(self.whitening, normals)
        unit: Tensor = white / white.norm(dim=0)
        return unit

    def sparsest(self, directions: Tensor, most: int) -> Tensor:
        """Those with most zeros, different from each other, each fitted to its own zeros: `[b, <= most]`.

        Examples that leave nearly the same units off give each of their combinations nearly as many zeros, and those
        that one more unit fits are many. Where there are more than are kept, the first half has most zeros, and the
        other one is of those that would not be open but for a few zeros, as long as there are such.
        """
        kept = _distinct(_thinned(self._ordered(directions, rough=True))[:, : 8 * most], 8 * most)
        if kept.shape[1] > most:
            one = self._determined(kept)
            one[: most // 2] = True
            kept = torch.cat([kept[:, one], kept[:, ~one]], dim=1)[:, :most]
        return _distinct(self._ordered(self._fitted(kept), rough=False), most)

    def _determined(self, directions: Tensor) -> Tensor:
        """Which directions are the only ones with their zeros, and with all but a few of them, `[n]`.

        The next best direction is the second eigenvector of the Gram matrix of these rows.
        """
        count, zeros = self.white.shape[1], self.zeros(directions, rough=True).to(self.white)
        products = (self.white[:, :, None] * self.white[:, None, :]).flatten(1)
        values, vectors = torch.linalg.eigh((products.T @ zeros).T.reshape(-1, count, count))
        against = (self.white @ vectors[:, :, min(1, count - 1)].T).square() * zeros
        speaking = against.sum(dim=0).square() / against.square().sum(dim=0).clamp(min=TOLERANCES.tiny)
        determined: Tensor = (values[:, min(1, count - 1)] > TOLERANCES.determined) & (speaking > TOLERANCES.speaking)
        return determined

    def _ordered(self, directions: Tensor, rough: bool) -> Tensor:
        """Those with more zeros than any b - 1 rows allow, the sparsest first."""
        counts = self.zeros(directions, rough).sum(dim=0)
        order = counts.argsort(descending=True, stable=True)
        least = self.unit.shape[1] if self.unit.shape[1] > 1 else 0
        return directions[:, order[counts[order] >= least]]

    def _fitted(self, directions: Tensor) -> Tensor:
        """The direction nearest to orthogonal to all rows that count as zeros."""
        zeros = self.zeros(directions, rough=True).T.to(self.unit)
        right = torch.linalg.svd(zeros[:, :, None] * self.unit, full_matrices=False)[2]
        enough = zeros.sum(dim=1) >= self.unit.shape[1] - 1
        white = torch.linalg.solve(self.whitening, right[:, -1].T)
        fitted = torch.where(enough, white, directions)
        unit: Tensor = fitted / fitted.norm(dim=0)
        return unit


def _thinned(directions: Tensor) -> Tensor:
    """Leave out most repetitions, fast: those that look alike, up to sign, from one side; the first of them stays."""
    side = torch.linspace(1, 2, directions.shape[0], dtype=directions.dtype).sin() * directions.shape[0]
    _, group = torch.unique((side @ directions).abs().mul(TOLERANCES.side).round(), return_inverse=True)
    first = torch.full((directions.shape[1],), directions.shape[1])
    first = first.scatter_reduce(0, group, torch.arange(directions.shape[1]), "amin")
    return directions[:, first[first < directions.shape[1]].sort().values]


def _distinct(directions: Tensor, most: int) -> Tensor:
    """Leave out repetitions, up to sign; the first of them stays."""
    alike = (directions.T @ directions).abs() > 1 - TOLERANCES.same
    first = ~torch.tril(alike, -1).any(dim=1)
    return directions[:, first][:, :most]


@dataclass(frozen=True, eq=False)
class _Chosen:
    """b directions, and what they make of the gradient.

    Args:
        directions: white, `[b, b]`; none before there are b independent ones.
        inputs: the normalized pictures, `[b, n]`.
        deltas: D, `[b, m]`.
        right: for each example, the share of units whose zero agrees with the sign of Z, `[b]`.
    """

    directions: Tensor = field(repr=False)
    inputs: Tensor = field(repr=False)
    deltas: Tensor = field(repr=False)
    right: Tensor = field(repr=False)

    @classmethod
    def none(cls, mixed: Mixture) -> "_Chosen":
        count, like = mixed.count, mixed.rows
        inputs, deltas = like.new_zeros(mixed.basis.shape), like.new_zeros(count, len(like))
        return cls(like.new_zeros(count, 0), inputs, deltas, like.new_zeros(count))

    @classmethod
    def of(cls, mixed: Mixture, normals: Tensor, unmix: Tensor, directions: Tensor, right: Tensor) -> "_Chosen":
        """What normals `[b, b]` make of the gradient; `unmix` is their inverse."""
        scale = unmix @ mixed.ones
        deltas = (mixed.rows @ normals * scale).T
        return cls(directions, (unmix @ mixed.basis) / scale[:, None], deltas, right)

    @property
    def agreement(self) -> float:
        return float(self.right.mean())

    @property
    def settled(self) -> Tensor:
        """For which examples zeros and signs agree, `[b]`."""
        return self.right >= TOLERANCES.settled


def _choose(mixed: Mixture, rows: _Rows, pool: Tensor, before: _Chosen) -> _Chosen:
    """Take the sparsest of full rank, and exchange those that spoil the agreement of signs."""
    picked = _independent(pool)
    if len(picked) < mixed.count:
        return before
    projected = (mixed.basis @ mixed.weight.T)[:, rows.live]
    chosen = pool[:, picked]
    right = _right(mixed, rows, chosen[None], projected)[0]
    if mixed.count <= max(
        TOLERANCES.few, 2 * int((right >= TOLERANCES.settled).sum())
    ):  # else most directions are still to be found
        chosen, right = _exchanged(mixed, rows, pool, chosen, right, projected)
    if right.mean() < before.right.mean():
        return before
    normals = rows.normals(chosen)
    return _Chosen.of(mixed, normals, torch.linalg.inv(normals), chosen, right)


def _exchanged(
    mixed: Mixture, rows: _Rows, pool: Tensor, chosen: Tensor, right: Tensor, projected: Tensor
) -> tuple[Tensor, Tensor]:
    """Try every direction of the pool in each place that does not agree, the worst place first."""
    for place in right.argsort().tolist():
        if right[place] >= TOLERANCES.settled:
            continue
        tried = chosen.repeat(pool.shape[1], 1, 1)
        tried[:, :, place] = pool.T
        scores = _right(mixed, rows, tried, projected)
        number = int(scores.mean(dim=1).argmax())
        if scores[number].mean() > right.mean():
            chosen, right = tried[number], scores[number]
    return chosen, right


def _independent(pool: Tensor) -> list[int]:
    """The first directions that together have full rank."""
    picked: list[int] = []
    basis = pool.new_zeros(pool.shape[0], 0)
    for number, direction in enumerate(pool.T):
        rest = direction - basis @ (basis.T @ direction)
        rest = rest - basis @ (basis.T @ rest)
        if rest.norm() > TOLERANCES.independent:
            picked.append(number)
            basis = torch.cat([basis, (rest / rest.norm())[:, None]], dim=1)
        if len(picked) == pool.shape[0]:
            break
    return picked


def _right(mixed: Mixture, rows: _Rows, choices: Tensor, projected: Tensor) -> Tensor:
    """For each of n choices `[n, b, b]` and each example, the share of live units that agree, `[n, b]`."""
    normals = rows.whitening @ choices
    normals = normals / normals.norm(dim=1, keepdim=True)
    unmix, failed = torch.linalg.inv_ex(normals)
    scale = unmix @ mixed.ones
    outputs = (unmix @ projected) / scale[:, :, None] + mixed.bias[rows.live]
    on = (rows.unit @ normals).abs().mT >= rows.tolerance
    return torch.where(failed[:, None] > 0, 0.0, (on == (outputs > 0)).double().mean(dim=2))
