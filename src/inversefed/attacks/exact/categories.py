"""Rows of a table, exactly, from their categories, whatever follows the first linear layer.

Needs: an honest update of b rows; a linear layer with bias on the encoded row; categories among the columns.

    [gW | gb] = D^T [X | 1] = U S V^T   =>   every row of the batch is [x; 1] = V q for one q of b numbers

On the categories a row is one-hot, z. With C the rows of V that belong to categories which occur, and to the 1, and N
the null space of C^T beside the trivial equations (each block sums to 1),

    N^T [z; 1] = 0:  k = columns of N real equations on finitely many z

All z that solve them are found by meeting in the middle: sums of N's rows over half of the columns, and over the other
half, that are opposite, by a k-d tree. Each gives q = C^+ [z; 1] and with it the numbers of the row. Where C has a rank
below b (rows with the same categories), q is known up to the null space of C: `open_numbers` finds what is open.

A table of numbers alone has no such equations: the whole of its rows is open, and found as what is open there.

Integer combinations of rows, such as z1 + z2 - z3, solve the equations too. Which candidates are rows of the batch is
linear: the gradient is the sum over candidates of (backward pass of each output) x [x; 1], with the slopes of the loss
as unknowns, which are zero for those that are none. The result is called exact only if the client, run once, makes the
update again. The method is our own.

Behind BatchNorm in train mode rows are told by what lies behind it, not by least squares (see `batch_mean`).
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor

from inversefed.attacks.exact.batch_mean import NormalizedBatch, targets_by_head
from inversefed.attacks.exact.dense_batch.rank_decomposition import assigned_labels
from inversefed.attacks.exact.linear import layer_on_the_picture
from inversefed.attacks.exact.open_numbers import Spans, solved_numbers, stored
from inversefed.attacks.exact.verify import verified
from inversefed.attacks.exact.watch import Stopped, Watch
from inversefed.attacks.matching_error import matching_error
from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.fl.hooks import record
from inversefed.fl.threat import Observation
from inversefed.fl.train_mode import batchnorm_by_batch
from inversefed.inputs.columns import Category, Columns
from inversefed.types import Budget, Candidate, Reconstruction, Status

__all__ = ["CategoryRows"]


@dataclass(frozen=True)
class Tolerances:
    """The numbers that it decides by, each with its reason.

    Args:
        rank: singular values of the gradient from this many roundings on, times the largest, count.
        dependent: singular values of C below it count as zero: batches have 1e-2 and more, rounding 1e-6 and less.
        solved: length of N^T [z; 1] up to which z solves the equations.
        most: solutions from which on the equations are too few.
        cells: most values of whole numbers that are looked at one by one.
        wanted: equations below which whole numbers are looked at beside categories.
        mean: relative error of the basis, at least, where a mean is told by running statistics.
        statistics: distance from a span up to which a row may be in it, where running statistics tell what goes into
            layers: of 0.1 of the batch's they keep six digits, and its square root three to five.
        kept: share of the largest slope below which a candidate is no row of the batch.
        chunk: sums of one half whose opposites are looked for between two looks at the time.
        unknowns: most slopes that are solved for; their equations take 0.13 GB and some seconds.
        ridge: added to the diagonal of the normal equations, columns of length 1: below what rounding does to them.
        tiny: length of a column that is divided by, at least.
    """

    rank: float = 8.0
    dependent: float = 1e-4
    solved: float = 2e-4
    most: int = 2**18
    cells: int = 128
    wanted: int = 4
    mean: float = 1e-4
    statistics: float = 3e-4
    kept: float = 1e-3
    chunk: int = 1 << 13
    unknowns: int = 1 << 12
    ridge: float = 1e-12
    tiny: float = 1e-300


TOLERANCES = Tolerances()


@dataclass(frozen=True)
class CategoryRows:
    """Recover the rows of a table, their labels among it, from the one-hot columns of a first linear layer's gradient.

    Args:
        half: most sums of half of the columns; columns of few values are left out until there are no more.
    """

    half: int = 2**18

    def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
        """Solve; randomness gives starts where numbers are open.

        Raises:
            ThreatModelError: the gradient's rank, or the equations, do not tell the rows, or the time was over before;
                the message says which.
            UnsupportedNetworkError: the network takes no table, or no linear layer with bias sees it.
        """
        columns, rows = _table(observation), RowSpace.of(observation)
        watch = Watch(budget, observation.network.denormalize)
        best: Reconstruction | None = None
        refused: ThreatModelError | None = None
        for whole in (False, True):  # whole numbers bring equations, and many more combinations that solve them
            try:
                found = self._solved(observation, rows, columns, whole, generator, watch)
            except Stopped:
                over = f"the time was over before the {rows.count} rows were told; allow more"
                refused = ThreatModelError(over if refused is None else f"{over}, or: {refused}")
                break
            except ThreatModelError as error:
                refused = refused or error
                continue
            if best is None or found.loss < best.loss:
                best = found
            if best.proven:
                break
        if best is None:
            assert refused is not None
            raise refused
        return replace(best, status=Status.STOPPED) if watch.stopped else best

    def _solved(
        self,
        observation: Observation,
        rows: "RowSpace",
        columns: Columns,
        whole: bool,
        generator: Generator,
        watch: Watch,
    ) -> Reconstruction:
        """With or without whole numbers among the cells that are gone through.

        Raises:
            Stopped: the time is used up.
            ThreatModelError: the rows are not told.
        """
        solved = Choices.of(rows, columns, self.half, whole, watch.go_on)
        found = _rows(observation, rows, columns, solved, generator, watch)
        choices = [_selected(observation, rows, found, watch.go_on)]
        choices += [_independent(found, rows.count)] if len(found) > rows.count else []
        told = max(map(len, choices))
        if told != rows.count:
            raise ThreatModelError(f"{told} of the {rows.count} rows are told; {solved.said}")
        evidence = {"rank": rows.rank, "rank_of_categories": solved.rank, "equations": solved.equations}
        evidence |= {"candidates": len(found)}
        tried = [self._verified(observation, rows, each, evidence) for each in choices if len(each) == rows.count]
        return min(tried, key=lambda each: each.loss)

    def _verified(
        self, observation: Observation, rows: "RowSpace", chosen: Tensor, evidence: Mapping[str, int]
    ) -> Reconstruction:
        """Rows with their labels, and whether the client makes the update of them again."""
        network = observation.network
        images = chosen.to(network.device, network.dtype).reshape(observation.batch_shape)
        if rows.coupled:
            labels, order = targets_by_head(observation, images)
        else:
            labels, order = assigned_labels(observation, rows.layer, images, rows.deltas(observation, images))
        images, labels = images[order], labels[order]  # granted labels in the order in which they were granted
        loss = matching_error(observation, images, labels)
        candidate = Candidate(images, labels, loss, Status.FINISHED, iterations=1)
        how = f"the categories of {rows.count} rows solve the equations of {rows.layer}, and give their numbers"
        if not evidence["equations"]:
            how = f"{rows.count} rows lie in the spans of the gradients of {rows.layer} and of the layers behind"
        return verified(self, candidate, how, evidence)

    def check(self, observation: Observation) -> str:
        """Say what it would do.

        Raises:
            ThreatModelError: as when it is called.
            UnsupportedNetworkError: likewise.
        """
        columns, rows = _table(observation), RowSpace.of(observation)
        try:
            solved = Choices.of(rows, columns, self.half, whole=False)
        except ThreatModelError:
            solved = Choices.of(rows, columns, self.half, whole=True)
        return f"solves for rows whose categories fit the gradient of the first linear layer; {solved.said}"


def _table(observation: Observation) -> Columns:
    space = observation.network.space
    if not isinstance(space, Columns):
        raise UnsupportedNetworkError(
            "categories() reads the columns of a table, and the network takes none; give inputs=Columns(...), or use "
            "another attack"
        )
    return space


@dataclass(frozen=True, eq=False)
class RowSpace:
    """The space that the encoded rows of a batch span, each with a 1 behind it; float64 on the CPU.

    Args:
        layer: name of the linear layer.
        gradient: `[gW | gb]`, `[m, d + 1]`, of what the layer is fed.
        basis: `[rank, d + 1]`: a row of the batch, encoded, with its 1, is a combination of these.
        count: b, the examples that the update is said to be of.
        noise: relative error of the basis, from the rounding of the number format and the least singular value.
        normalized: what BatchNorm in train mode behind the layer tells, where there is such.
    """

    layer: str
    gradient: Tensor = field(repr=False)
    basis: Tensor = field(repr=False)
    count: int
    noise: float
    normalized: NormalizedBatch | None = None

    @property
    def rank(self) -> int:
        """How many independent rows the gradient holds."""
        return len(self.basis)

    @classmethod
    def of(cls, observation: Observation) -> "RowSpace":
        """Of the gradient of the layer that sees the rows.

        Raises:
            UnsupportedNetworkError: no linear layer with bias sees them, or it is too small for so many.
            ThreatModelError: the gradient's rank is not the number of examples.
        """
        network, count = observation.network, observation.num_examples
        layer = layer_on_the_picture(network)
        if layer is None or not {f"{layer}.weight", f"{layer}.bias"} <= set(observation.gradient):
            raise UnsupportedNetworkError("no linear layer with bias sees the row as it is encoded")
        weight, bias = (observation.gradient[f"{layer}.{part}"].detach().cpu().double() for part in ("weight", "bias"))
        gradient = torch.cat([weight, bias[:, None]], dim=1)
        if count >= min(gradient.shape):
            raise UnsupportedNetworkError(
                f"{count} rows are more than layer {layer} with {gradient.shape[1] - 1} inputs and {len(gradient)} "
                f"outputs can tell apart; at most {min(gradient.shape) - 1} are"
            )
        _, values, basis = torch.linalg.svd(gradient, full_matrices=False)
        floor = TOLERANCES.rank * torch.finfo(network.dtype).eps * float(values[0])
        rank = int((values > floor).sum())
        if rank == count - 1 and batchnorm_by_batch(network.module):
            return cls._normalized(observation, layer, gradient, count)
        if rank != count:
            raise ThreatModelError(
                f"the gradient of layer {layer} has rank {rank}, and an honest one of {count} different rows has "
                f"{count}: noise, pruning or quantization make it more, rows that are combinations of others fewer"
            )
        noise = float(values[count] / values[count - 1])
        return cls(layer, gradient, _encoded(observation, basis[:count]), count, noise)

    @classmethod
    def _normalized(cls, observation: Observation, layer: str, gradient: Tensor, count: int) -> "RowSpace":
        """The gradient spans differences from the mean, which BatchNorm's statistics tell."""
        normalized = NormalizedBatch.of(observation, layer)
        gradient = torch.cat([gradient[:, :-1], 0 * gradient[:, -1:]], dim=1)  # what is left there is rounding
        _, values, differences = torch.linalg.svd(gradient, full_matrices=False)
        mean = _with_one(normalized.mean[None])
        basis = torch.linalg.qr(torch.cat([differences[: count - 1], mean]).T)[0].T
        noise = max(TOLERANCES.mean, float(values[count - 1] / values[count - 2]))
        return cls(layer, gradient, _encoded(observation, basis), count, noise, normalized)

    @property
    def coupled(self) -> bool:
        """Whether the slope of the loss at a row depends on the other rows."""
        return self.normalized is not None

    def deltas(self, observation: Observation, images: Tensor) -> Tensor:
        """D, the gradient with respect to the layer's outputs, of each of b encoded rows, `[b, m]`."""
        fed = observation.network.normalize(images).flatten(1).cpu().double()
        found: Tensor = torch.linalg.lstsq(_with_one(fed).T, self.gradient.T, driver="gelsd").solution
        return found


def _encoded(observation: Observation, basis: Tensor) -> Tensor:
    """A basis of `[fed; 1]` as one of `[encoded; 1]`."""
    network = observation.network
    mean, std = (
        constant.detach().cpu().double().expand(network.image_shape).flatten()
        for constant in (network.mean, network.std)
    )
    return torch.cat([basis[:, :-1] * std + basis[:, -1:] * mean, basis[:, -1:]], dim=1)


def _with_one(rows: Tensor) -> Tensor:
    return torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], dim=1)


@dataclass(frozen=True, eq=False)
class Group:
    """A column whose cell is one of finitely many, as it stands among the columns of C.

    Args:
        places: of its numbers in an encoded row, `[w]`.
        cells: what stands there for each cell that it can hold, `[cells, w]`.
        one_hot: whether each is a one-hot block.
    """

    places: list[int]
    cells: Tensor = field(repr=False)
    one_hot: bool = True

    @property
    def bits(self) -> float:
        """Logarithm of the number of cells."""
        return math.log2(len(self.cells))


@dataclass(frozen=True, eq=False)
class Choices:
    """The categories that fit the gradient.

    Args:
        known: encoded rows with the numbers that go with them, `[n, d]`; those of a family are one member of it.
        free: directions along which all of them are open, `[f, d]`, f = b - rank.
        rank: of C.
        equations: k.
        groups: columns that were looked at.
    """

    known: Tensor = field(repr=False)
    free: Tensor = field(repr=False)
    rank: int
    equations: int
    groups: int

    @property
    def said(self) -> str:
        """The figures that decide, as a clause."""
        if not self.groups:
            return "there are no categories, so that the layers behind have to tell rows, by what they are fed"
        return (
            f"C, the cells of {self.groups} columns, has rank {self.rank} and leaves {self.equations} equations, which "
            f"{len(self.known)} combinations of cells solve"
        )

    @classmethod
    def of(
        cls, rows: RowSpace, columns: Columns, half: int, whole: bool, go_on: Callable[[], None] = lambda: None
    ) -> "Choices":
        """Solve for them.

        Args:
            rows: the space that they lie in.
            columns: of the table.
            half: most sums of half of the columns.
            whole: whether columns of whole numbers are gone through, too.
            go_on: called again and again; it may raise to end it.

        Raises:
            ThreatModelError: there are no equations, or too many solutions.
        """
        groups = _groups(rows, columns, 2 * math.log2(half), whole)
        places = [place for group in groups for place in group.places]
        left, values, right = torch.linalg.svd(rows.basis[:, [*places, -1]], full_matrices=False)
        rank = int((values > TOLERANCES.dependent).sum())
        null = _null_space(rows, groups)
        equations = null.shape[1]
        said = f"C, the cells of {len(groups)} columns, has rank {rank} and leaves {equations} equations"
        if groups and equations < 1:
            raise ThreatModelError(
                f"{said} beyond those that hold for every row; fewer rows, or more columns of categories, would leave "
                "some"
            )
        cells = _met(null, groups, said, go_on) if groups else torch.zeros(1, 0, dtype=torch.float64)
        q = _with_one(cells) @ right[:rank].T / values[:rank] @ left[:, :rank].T
        free = _complement(left[:, :rank]).T @ rows.basis
        return cls((q @ rows.basis)[:, :-1], free[:, :-1], rank, equations, len(groups))


def _groups(rows: RowSpace, columns: Columns, bits: float, whole: bool) -> list[Group]:
    """The columns of categories, those of most equations a bit first, and whole numbers where they are too few."""
    size = rows.basis.norm(dim=0)
    floor = rows.noise * float(size.max())
    categories, numbers = [], []
    for column, place in zip(columns.columns, columns.places, strict=True):
        if isinstance(column, Category):
            present = [each for each in range(place.start, place.stop) if float(size[each]) > floor]
            categories.append(Group(present, torch.eye(len(present), dtype=torch.float64)))
        elif column.whole and column.span <= TOLERANCES.cells and float(size[place.start]) > floor:
            values = torch.arange(math.ceil(column.low), math.floor(column.high) + 1, dtype=torch.float64)
            numbers.append(Group([place.start], ((values - column.low) / column.span)[:, None], one_hot=False))
    categories = sorted((group for group in categories if group.places), key=lambda group: -len(group.cells))
    while len(categories) > 1 and sum(group.bits for group in categories) > bits:
        categories = categories[:-1]
    groups, rank = categories, _rank(rows, categories)
    for number in sorted(numbers if whole else [], key=lambda group: group.bits):
        more = [*groups, number]
        fits = sum(group.bits for group in more) <= bits
        wanted = _null_space(rows, groups).shape[1] < TOLERANCES.wanted or _rank(rows, more) > rank
        if fits and wanted:
            groups, rank = more, _rank(rows, more)
    return groups


def _rank(rows: RowSpace, groups: Sequence[Group]) -> int:
    places = [place for group in groups for place in group.places]
    return int((torch.linalg.svdvals(rows.basis[:, [*places, -1]]) > TOLERANCES.dependent).sum())


def _null_space(rows: RowSpace, groups: Sequence[Group]) -> Tensor:
    """N, orthonormal, `[p + 1, k]`: what is orthogonal to C's rows, and to the sums of one-hot blocks less the 1."""
    places = [place for group in groups for place in group.places]
    ends = list(itertools.accumulate(len(group.places) for group in groups))
    sums = torch.zeros(len(groups), len(places) + 1, dtype=torch.float64)
    for number, (group, end) in enumerate(zip(groups, ends, strict=True)):
        if group.one_hot:
            sums[number, end - len(group.places) : end], sums[number, -1] = 1, -1
    return _complement(torch.cat([rows.basis[:, [*places, -1]], sums]).T)


def _complement(matrix: Tensor) -> Tensor:
    """An orthonormal basis of all that is orthogonal to a matrix's columns."""
    left, values, _ = torch.linalg.svd(matrix, full_matrices=True)
    free: Tensor = left[:, int((values > TOLERANCES.dependent).sum()) :]
    return free


def _met(null: Tensor, groups: Sequence[Group], said: str, go_on: Callable[[], None]) -> Tensor:
    """Meeting in the middle: the cells `[n, p]`, one of each group, that solve the equations."""
    from scipy.spatial import cKDTree  # with scipy.sparse behind it, which a refused option need not wait for

    ends = [0, *itertools.accumulate(len(group.places) for group in groups)]
    sums = [group.cells @ null[start:end] for group, start, end in zip(groups, ends[:-1], ends[1:], strict=True)]
    sides: tuple[list[int], list[int]] = ([], [])
    bits = [0.0, 0.0]
    for number in sorted(range(len(groups)), key=lambda each: -groups[each].bits):
        side = int(bits[1] < bits[0])
        sides[side].append(number)
        bits[side] += groups[number].bits
    first, second = (_every([sums[number] for number in side], null.shape[1]) for side in sides)
    target = -(second + null[-1])
    width = min(null.shape[1], 8)  # a k-d tree of more directions tells no more, and takes longer
    tree = cKDTree(first[:, :width].numpy())
    pairs, most = [], 0
    for start in range(0, len(target), TOLERANCES.chunk):
        go_on()
        wanted = target[start : start + TOLERANCES.chunk, :width].numpy()
        counts = torch.from_numpy(tree.query_ball_point(wanted, TOLERANCES.solved, return_length=True))
        most += int(counts.sum())
        if most > TOLERANCES.most:
            raise ThreatModelError(
                f"more than {TOLERANCES.most} combinations of cells fit the gradient, too many to tell which are rows: "
                f"{said}"
            )
        near = tree.query_ball_point(wanted, TOLERANCES.solved, return_sorted=False)
        ours = torch.tensor([place for each in near for place in each], dtype=torch.long)
        theirs = start + torch.arange(len(counts)).repeat_interleave(counts)
        solve = (first[ours] - target[theirs]).norm(dim=1) <= TOLERANCES.solved
        pairs.append((ours[solve], theirs[solve]))
    ours, theirs = (torch.cat(side) for side in zip(*pairs, strict=True))
    cells: list[Tensor] = [torch.zeros(0)] * len(groups)
    for half, chosen in zip(sides, (ours, theirs), strict=True):
        left = chosen
        for number in reversed(half):  # the last runs fastest
            count = len(groups[number].cells)
            cells[number], left = groups[number].cells[left % count], left // count
    return torch.cat(cells, dim=1)


def _every(sums: Sequence[Tensor], width: int) -> Tensor:
    """All sums of one row of each, the last running fastest, `[product, width]`."""
    total = torch.zeros(1, width, dtype=torch.float64)
    for each in sums:
        total = (total[:, None] + each[None]).reshape(-1, width)
    return total


def _rows(
    observation: Observation, rows: RowSpace, columns: Columns, solved: Choices, generator: Generator, watch: Watch
) -> Tensor:
    """Candidates with all their numbers, `[n, d]`, encoded: one-hot, within the range."""
    seen = observation if rows.normalized is None else replace(observation, network=rows.normalized.network)
    spans = Spans.of(seen, rows.layer, rows.count, backward=not rows.coupled)
    known = solved.known
    if len(solved.free):
        known = solved_numbers(columns, known, solved.free, spans, generator, watch)
    known = torch.unique(columns.snap(known[stored(columns, known)]), dim=0)
    least = TOLERANCES.statistics if rows.coupled else 0.0
    return known if len(known) <= rows.count else spans.fit(known, least, watch.go_on)


def _independent(rows: Tensor, count: int) -> Tensor:
    """Of rows in order the first `count` that are independent: each has a part that those before it do not span."""
    left = _with_one(rows)
    floor = TOLERANCES.dependent * float(left.norm(dim=1).max())
    picked: list[int] = []
    while len(picked) < count:
        new = (left.norm(dim=1) > floor).nonzero()[:, 0]
        if not len(new):
            break
        place = int(new[0])
        picked.append(place)
        along = left[place] / left[place].norm()
        for _ in range(2):  # once more, for what rounding left
            left = left - torch.outer(left @ along, along)
    return rows[picked]


def _selected(observation: Observation, rows: RowSpace, found: Tensor, go_on: Callable[[], None]) -> Tensor:
    """Of candidates those that are in the batch, by least squares for the slope of the loss at each.

    Normal equations: their matrix is the products of backward passes times those of rows, entry by entry.
    """
    if len(found) <= rows.count:
        return found
    if rows.coupled:
        return found[:0]
    network = observation.network
    found = found[: max(rows.count, TOLERANCES.unknowns // network.num_classes)]  # those that fit best stand first
    images = found.to(network.device, network.dtype).reshape(len(found), *network.image_shape)
    layers = {rows.layer: network.module.get_submodule(rows.layer)}
    with torch.enable_grad():
        logits, runs = record(layers, lambda: network.apply(network.params, images), lambda *_: None)
    ones = torch.eye(network.num_classes, device=network.device, dtype=network.dtype)
    each = []
    for one in ones:
        go_on()
        each.append(torch.autograd.grad(logits, runs[0].outputs, one.expand_as(logits), retain_graph=True)[0])
    backward = torch.stack(each, dim=1).cpu().double()  # [n, k, m]
    fed = _with_one(network.normalize(images).flatten(1).cpu().double())
    unknowns, told = len(found) * network.num_classes, len(rows.gradient) * rows.count
    if unknowns > told:  # least squares would tell nothing
        return found[:0]
    flat, rowed = backward.flatten(0, 1), fed.repeat_interleave(network.num_classes, dim=0)
    scale = flat.norm(dim=1) * rowed.norm(dim=1)
    flat = flat / scale.clamp(min=TOLERANCES.tiny)[:, None]
    square = (flat @ flat.T) * (rowed @ rowed.T)
    square.diagonal().add_(TOLERANCES.ridge)
    wanted = ((flat @ rows.gradient) * rowed).sum(dim=1)
    go_on()
    factor, failed = torch.linalg.cholesky_ex(square)
    if int(failed):
        return found[:0]
    slopes = torch.cholesky_solve(wanted[:, None], factor)
    pulls = (slopes * flat).reshape(backward.shape).sum(dim=1).norm(dim=1) * fed.norm(dim=1)
    order = pulls.argsort(descending=True)[: rows.count]
    return found[order[pulls[order] > TOLERANCES.kept * pulls.max()]]
