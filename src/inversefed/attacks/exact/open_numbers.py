"""The numbers of rows that the first linear layer leaves open, by whole numbers and by the layers behind it.

    x = x0 + a E,   E: f directions along which the equations of the first layer leave a row open

Two rules close them. Columns of whole numbers: f of them with few values are gone through, each choice gives a, and the
other columns must come out whole and within their range. And a linear layer behind the first: its gradient is a sum of
d_i [h(x_i); 1]^T, so [h(x); 1] of a row of the batch lies in the span of its rows, and that of any other x does not.
Where whole numbers do not settle a, the distance from that span is minimized over a, from random starts
(Levenberg-Marquardt).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from inversefed.attacks.exact.watch import Watch
from inversefed.fl.hooks import record
from inversefed.fl.network import Network
from inversefed.fl.threat import Observation
from inversefed.inputs.columns import Columns, Number

__all__ = ["Spans", "solved_numbers", "stored"]


@dataclass(frozen=True)
class Tolerances:
    """The numbers that it decides by, each with its reason.

    Args:
        rank: singular values of a gradient from this many roundings of the number format on, times the largest, count.
        near: distance from the span, relative, up to which a row may be in it, before it is rounded to what is stored.
        within: likewise once it is, at least: rows of the batch have 3e-7, a row that is a year older 0.007.
        noise: likewise, as a share of the span's own rounding, which is that of the least singular value: rows of the
            batch have a tenth of it.
        outputs: of a network, up to which the backward pass of each is looked at.
        chunk: rows that the network is run on at once, between two looks at the time.
        cells: most values of a column that is gone through.
        moves: length of a column of E from which on it moves that column; E is of the order of 1e-2 there.
        tried: most combinations of them, over all candidates.
        starts: of the minimization, for each candidate.
        lone: likewise, where there is one family, of all rows of a table of numbers alone.
        started: most of them, over all candidates.
        steps: most steps of it.
        step: difference of a by which slopes are taken.
        patience: steps after which those starts are left that did not come nearer by `gain`.
        gain: share of the distance before.
        there: distance at which a start has arrived.
        apart: standard deviations from which on two ends are two rows.
        seen: least singular value of a step of whole numbers in the directions from which on they settle them.
        slack: share of its range by which a number may be outside it, before it is rounded.
        whole: how far from a whole number a whole one may come out, in its units.
        coarse: span of a column up to which its whole numbers are told apart by that.
        damping: of the first step of Levenberg-Marquardt, and its ends.
        tiny: least square of a slope, and norm, that is divided by.
        probes: directions outside the spans that the minimization looks at.
    """

    rank: float = 8.0
    near: float = 1e-3
    within: float = 1e-6
    noise: float = 0.5
    outputs: int = 64
    chunk: int = 1 << 12
    cells: int = 1 << 14
    moves: float = 1e-6
    tried: int = 1 << 22
    starts: int = 48
    lone: int = 256
    started: int = 1 << 13
    steps: int = 40
    step: float = 1e-6
    patience: int = 4
    gain: float = 0.8
    there: float = 1e-9
    apart: float = 1e-3
    seen: float = 1e-2
    slack: float = 1e-3
    whole: float = 0.05
    coarse: float = 1e4
    damping: tuple[float, float, float] = (1e-2, 1e-9, 1e6)
    tiny: float = 1e-12
    probes: int = 24


TOLERANCES = Tolerances()


@dataclass(frozen=True, eq=False)
class Spans:
    """What single rows of the batch have to fit, beside the row space of the first linear layer.

    Args:
        network: in double precision.
        first: the layer that sees the rows.
        outside: by layer behind it, an orthonormal basis of what is outside the span of its inputs, `[features, c]`.
        backward: an orthonormal basis of all that is outside the span of D, `[m, m - b]`; `None` where the outputs
            are too many for it to tell anything.
        within: distances up to which a row is in them, by layer, and that of `backward` behind.
    """

    network: Network
    first: str
    outside: dict[str, Tensor] = field(repr=False)
    backward: Tensor | None = field(repr=False)
    within: Tensor = field(repr=False)

    @classmethod
    def of(cls, observation: Observation, first: str, count: int, backward: bool = True) -> "Spans":
        """Of all layers whose gradient has the rank of the batch, so that none of its examples is lost in it.

        Args:
            observation: what the server sees.
            first: the layer that sees the rows.
            count: b, how many examples there are.
            backward: whether an example's backward pass is its own, as it is not under BatchNorm in train mode.
        """
        network, outside, within = observation.network, {}, []
        for name in network.linear_layers():
            told = _outside(observation, name, count) if name != first else None
            if told is not None and told[2] <= TOLERANCES.near:
                outside[name] = told[1]
                within.append(told[2])
        told = _outside(observation, first, count)
        inside = None
        if backward and told is not None and network.num_classes <= min(TOLERANCES.outputs, told[0].shape[1] // 2):
            inside = told[0]
            within.append(told[2])
        return cls(network.to(torch.float64), first, outside, inside, torch.tensor(within, dtype=torch.float64))

    def residuals(self, rows: Tensor) -> Tensor:
        """How far what goes into layers is out of some of all directions outside, relative, `[n, c]`."""
        random, outside = Generator().manual_seed(0), {}
        for name, each in self.outside.items():
            mix = torch.randn(each.shape[1], min(each.shape[1], TOLERANCES.probes), generator=random).double()
            outside[name] = each @ torch.linalg.qr(mix)[0]
        parts = self._forward(rows, outside)
        return torch.cat(parts, dim=1) if parts else torch.zeros(len(rows), 0, dtype=rows.dtype)

    def _forward(self, rows: Tensor, outside: dict[str, Tensor]) -> list[Tensor]:
        layers = {name: self.network.module.get_submodule(name) for name in outside}
        with torch.no_grad():
            _, runs = record(layers, lambda: self._outputs(rows), lambda _, __, inputs: inputs)
        parts = {}
        for run in runs:
            seen, basis = run.inputs.cpu(), outside[run.name]
            seen = seen if seen.shape[1] == len(basis) else torch.cat([seen, torch.ones(len(seen), 1).to(seen)], dim=1)
            parts[run.name] = seen @ basis / seen.norm(dim=1, keepdim=True).clamp(min=TOLERANCES.tiny)
        return [parts[name] for name in outside]

    def _outputs(self, rows: Tensor) -> Tensor:
        network = self.network
        return network.apply(network.params, rows.reshape(len(rows), *network.image_shape).to(network.device))

    def _backward(self, rows: Tensor) -> Tensor:
        """Sine of the least angle between a row's backward passes and the span of D, `[n]`."""
        assert self.backward is not None
        layers = {self.first: self.network.module.get_submodule(self.first)}
        with torch.enable_grad():
            logits, runs = record(layers, lambda: self._outputs(rows), lambda *_: None)
            each = [torch.autograd.grad(one.sum(), runs[0].outputs, retain_graph=True)[0] for one in logits.unbind(1)]
        passes = torch.linalg.qr(torch.stack(each, dim=2).cpu())[0]
        sines: Tensor = torch.linalg.svdvals(self.backward.T @ passes)[:, -1]
        return sines

    def fit(self, rows: Tensor, least: float = 0.0, go_on: Callable[[], None] = lambda: None) -> Tensor:
        """Those of some encoded rows that fit, the best first.

        Args:
            rows: encoded, `[n, d]`.
            least: room at least, for what is not rounded.
            go_on: called before each run of the network; it may raise to end it.
        """
        if not len(rows):
            return rows
        kept, scores = [], []
        for start in range(0, len(rows), TOLERANCES.chunk):
            go_on()
            part = rows[start : start + TOLERANCES.chunk]
            tests = [each.norm(dim=1) for each in self._forward(part, self.outside)] if self.outside else []
            worst = torch.zeros(len(part), dtype=torch.float64)
            for test, within in zip(tests, self.within[: len(tests)].tolist(), strict=True):
                worst = torch.maximum(worst, test / max(least, within))
            part, worst = part[worst <= 1], worst[worst <= 1]  # few are left for the longer test
            if self.backward is not None and len(part):
                worst = torch.maximum(worst, self._backward(part) / max(least, float(self.within[-1])))
            kept.append(part[worst <= 1])
            scores.append(worst[worst <= 1])
        return torch.cat(kept)[torch.cat(scores).argsort()]


def _outside(observation: Observation, name: str, count: int) -> tuple[Tensor, Tensor, float] | None:
    """Bases of what is outside the columns and the rows of a layer's gradient, and how well they are known.

    `None` where its rank is not the number of examples, or it is too small for so many.
    """
    weight, bias = (observation.gradient.get(f"{name}.{part}") for part in ("weight", "bias"))
    if weight is None:
        return None
    both = (weight if bias is None else torch.cat([weight, bias[:, None]], dim=1)).detach().cpu().double()
    if count >= min(both.shape):
        return None
    left, values, right = torch.linalg.svd(both, full_matrices=True)
    floor = TOLERANCES.rank * torch.finfo(weight.dtype).eps * float(values[0])
    if int((values > floor).sum()) != count:
        return None
    noise = float(values[count] / values[count - 1])
    return left[:, count:], right[count:].T, max(TOLERANCES.within, TOLERANCES.noise * noise)


def solved_numbers(
    columns: Columns, known: Tensor, free: Tensor, spans: Spans, generator: Generator, watch: Watch
) -> Tensor:
    """Rows of some families with all their numbers, `[n, d]`.

    Args:
        columns: of the table.
        known: a member of each family, encoded, `[n, d]`.
        free: E, `[f, d]`.
        spans: of the layers behind the first.
        generator: draws the starts.
        watch: asked before each step.

    Raises:
        Stopped: the time is used up.
    """
    known = known[stored(columns, known, free)]
    pivots = _pivots(columns, free, TOLERANCES.tried / max(1, len(known)))
    if pivots is not None:
        return spans.fit(_whole(columns, known, free, pivots, watch), TOLERANCES.near, watch.go_on)
    if spans.outside:
        return _minimized(columns, known, free, spans, generator, watch)
    return known[:0]


def _pivots(columns: Columns, free: Tensor, most: float) -> list[tuple[Number, int]] | None:
    """As many columns of few whole numbers as there are directions, which settle all of them; `None` without such."""
    pairs = zip(columns.columns, columns.places, strict=True)
    numbers = [
        (column, place.start)
        for column, place in pairs
        if isinstance(column, Number) and column.whole and column.span < TOLERANCES.cells
    ]
    picked: list[tuple[Number, int]] = []
    for column, place in sorted(numbers, key=lambda pair: pair[0].span):
        places = [*(each for _, each in picked), place]
        # A step of the column must be seen in the directions: their part there, in steps, is no rounding.
        part = free[:, places] * torch.tensor([each.span for each, _ in [*picked, (column, place)]]).double()
        if len(picked) < len(free) and float(torch.linalg.svdvals(part)[-1]) > TOLERANCES.seen:
            picked.append((column, place))
    tried = math.prod(column.span + 1 for column, _ in picked)
    return picked if len(picked) == len(free) and tried <= most else None


def _whole(columns: Columns, known: Tensor, free: Tensor, pivots: Sequence[tuple[Number, int]], watch: Watch) -> Tensor:
    """All members whose whole numbers come out whole, and all of whose numbers are within their range."""
    places = [place for _, place in pivots]
    values = [
        (torch.arange(math.ceil(each.low), math.floor(each.high) + 1, dtype=torch.float64) - each.low) / each.span
        for each, _ in pivots
    ]
    grid = torch.cartesian_prod(*values).reshape(-1, len(pivots))
    inverse = torch.linalg.inv(free[:, places])
    found = [known[:0]]
    for row in known:
        for start in range(0, len(grid), TOLERANCES.chunk):
            watch.go_on()
            members = row + (grid[start : start + TOLERANCES.chunk] - row[places]) @ inverse @ free
            found.append(members[stored(columns, members)])
    return torch.cat(found)


def stored(columns: Columns, rows: Tensor, free: Tensor | None = None) -> Tensor:
    """Which rows have numbers within their range, and whole ones where these are told apart, `[n]`.

    Args:
        columns: of the table.
        rows: encoded, `[n, d]`.
        free: E, `[f, d]`: columns that it moves are left out.
    """
    fits = torch.ones(len(rows), dtype=torch.bool)
    for column, place in zip(columns.columns, columns.places, strict=True):
        is_open = free is not None and float(free[:, place].norm()) > TOLERANCES.moves
        if isinstance(column, Number) and not is_open:
            value, slack = rows[:, place.start], TOLERANCES.slack
            fits &= (value >= -slack) & (value <= 1 + slack)
            if column.whole and column.span < TOLERANCES.coarse:
                table = value * column.span + column.low
                fits &= (table - table.round()).abs() < TOLERANCES.whole
    return fits


def _minimized(
    columns: Columns, known: Tensor, free: Tensor, spans: Spans, generator: Generator, watch: Watch
) -> Tensor:
    """Members that lie in the spans, by Levenberg-Marquardt over a, each of them once."""
    std = columns.normalization()[1].double()
    limit = TOLERANCES.lone if len(known) == 1 else TOLERANCES.starts
    starts = max(1, min(limit, TOLERANCES.started // max(1, len(known))))
    drawn = columns.stand_ins(starts * len(known), generator).double()
    drawn[::2] = torch.rand(drawn[::2].shape, generator=generator, dtype=torch.float64)  # all of the range
    base = known.repeat_interleave(starts, dim=0)
    a = torch.linalg.lstsq((free / std).T, ((drawn - base) / std).T).solution.T
    residual = spans.residuals(base + a @ free)
    first, least, most = TOLERANCES.damping
    damping, gained = torch.full((len(a),), first, dtype=torch.float64), residual.norm(dim=1)
    active = torch.arange(len(a))
    for number in range(TOLERANCES.steps):
        watch.go_on()
        if not len(active):
            break
        here, at, bend = base[active], a[active], damping[active]
        wide = (here + at @ free).repeat(len(free), 1) + TOLERANCES.step * free.repeat_interleave(len(active), dim=0)
        slopes = (spans.residuals(wide).reshape(len(free), len(active), -1) - residual[active]) / TOLERANCES.step
        slopes = slopes.permute(1, 2, 0)
        squares = slopes.transpose(1, 2) @ slopes
        scale = squares.diagonal(dim1=1, dim2=2).clamp(min=TOLERANCES.tiny)
        pull = -(slopes.transpose(1, 2) @ residual[active][..., None])
        at = at + torch.linalg.solve(squares + torch.diag_embed(bend[:, None] * scale), pull)[..., 0]
        tried = spans.residuals(here + at @ free)
        better = tried.norm(dim=1) < residual[active].norm(dim=1)
        a[active[better]], residual[active[better]] = at[better], tried[better]
        damping[active] = torch.where(better, bend / 4, bend * 4).clamp(least, most)
        if number % TOLERANCES.patience == TOLERANCES.patience - 1:  # those that still come nearer, and are not there
            now = residual[active].norm(dim=1)
            on = (now < TOLERANCES.gain * gained[active]) & (now > TOLERANCES.there)
            gained[active], active = now, active[on]
    distance = residual.norm(dim=1)
    near = (distance <= TOLERANCES.near).nonzero()[:, 0]
    near = near[distance[near].argsort()]
    found = base[near] + a[near] @ free
    found = found[stored(columns, found)]
    found = spans.fit(found, TOLERANCES.near, watch.go_on)
    kept = []
    while len(found):  # the best of what is left, without all that is the same
        watch.go_on()
        kept.append(found[0])
        found = found[((found - found[0]) / std).abs().amax(dim=1) > TOLERANCES.apart]
    return torch.stack(kept) if kept else found
