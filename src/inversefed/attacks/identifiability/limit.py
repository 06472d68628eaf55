"""How near any method can come to the pictures: the information of an update about them, and its noise.

With J the derivative of the update with respect to the pictures, S the covariance of what blurs its numbers, and C that
of pictures before anything is seen,

    F = J^T S^-1 J                                  Fisher's information
    MSE >= tr((F + C^-1)^-1) / d                    van Trees' inequality, near the point where J was taken
    determined = number of eigenvalues above 1 of C^1/2 F C^1/2

C is that of natural noise: power 1/f^2, channels correlated; of rows and series that of white noise as strong. S is
diagonal: the rounding of the number format over the largest entry of a tensor, steps between levels, the noise of a
defense that is known, and with the truth at hand what its own update leaves unexplained. Entries that are zero were not
sent.

The columns of A = S^-1/2 J C^1/2 are derivatives along waves, by forward mode over the client's own reverse mode. Its
rows are hashed with random signs into k of them (Clarkson and Woodruff 2013, arXiv:1207.6365), which shrinks the
regularized inverse in a known way: with r = tr G (G + 1)^-1,

    (A^T A + 1)^-1  ~  c (G + c)^-1,      c = 1 - r / k,      G the hashed A^T A

Derivatives are right to single precision, so that eigenvalues below 1e-12 of the largest cannot be told from zero; they
count as zero. No iteration can replace the factorization: eigenvalues of a float32 update spread over sixteen decades,
and it is the smallest that decide. Of a batch as many pictures are looked at, jointly, as columns fit into
memory and time, the others taken as known; of a larger picture a window in its middle, the rest taken as known. That is
a bound still, and an optimistic one. It is held to the number of independent equations in the update, as `count` has
it.

With the truth at hand, what its own update leaves unexplained counts as noise. It is none where other pictures made the
update: then it lies along changes of the pictures, e = J (x - x*), as no noise does. Of whitened e with k entries, the
score test (Rao 1948) compares both parts,

    misfit = [e^T A (A^T A + 1)^-1 A^T e / r] / [rest of |e|^2 / (k - r)],      about 1 for noise
"""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from inversefed.attacks.identifiability.layer_counts import independent_numbers
from inversefed.errors import InputError, InversefedError, ThreatModelError, UnsupportedNetworkError
from inversefed.fl.defenses.protocols import Context, Defense, update_defenses
from inversefed.fl.foreign import foreign_code
from inversefed.fl.formats import COARSE, number_format
from inversefed.fl.network import Network
from inversefed.fl.targets import as_targets
from inversefed.fl.threat import Observation
from inversefed.inputs import pictured
from inversefed.networks.natural_noise import SHARED, STD, natural_noise
from inversefed.numerics import float32_products
from inversefed.types import Batch, Inputs, Limit, Params, Point, Targets

__all__ = ["limit", "prior_psnr"]


@dataclass(frozen=True)
class Tolerances:
    """The constants of the method.

    Args:
        most: columns at most; the cost grows with the third power of it.
        solving: seconds that as many take to be solved for; with less, there are fewer.
        rows: hashed rows a column.
        fewest: entries of an update that are not hashed.
        adds: hashed rows that each entry is added to.
        chunk: columns that are computed together.
        floor: share of the largest eigenvalue below which single precision sees nothing.
        least: side of the smallest window.
        probes: random pictures behind the part that is not determined.
        entries: numbers of a chunk at most, for memory.
        levels: nonzero entries a level, from which a tensor counts as quantized.
    """

    most: int = 3072
    solving: float = 3.0
    rows: float = 1.5
    fewest: int = 2048
    adds: int = 4
    chunk: int = 32
    floor: float = 1e-12
    least: int = 2
    probes: int = 128
    entries: int = 30_000_000
    levels: int = 8


_LEAST_SHARE = 1e-6
"""Of the truth's own update in the one observed, below which a derivative would count as none at all."""


def prior_psnr() -> float:
    """The PSNR of the mean of all pictures by the prior, in dB.

    >>> round(prior_psnr(), 1)
    12.0
    """
    return -20 * math.log10(STD)


def limit(
    observation: Observation,
    at: Batch | Inputs | None = None,
    labels: Targets | None = None,
    *,
    point: Point | None = None,
    defenses: tuple[Defense, ...] = (),
    seconds: float = 10.0,
    tolerances: Tolerances = Tolerances(),
) -> Limit:
    """Bound how well the pictures behind an update can be known.

    Args:
        observation: network, client and update, and the defenses as far as they are known.
        at: the pictures where the derivative is taken, `[n, c, h, w]`, pixel space, with their labels or without;
            `None` for stand-ins.
        labels: theirs; `None` for those of the observation, else those that the network itself gives.
        point: what these pictures are; `None` for the truth where there are any.
        defenses: what the client is known to run; empty for those of the observation.
        seconds: about how long it may take; with less the window is smaller.
        tolerances: the constants of the method.

    Raises:
        ThreatModelError: the client is not known, so it cannot be differentiated.
        InputError: pictures of another shape, an update that says nothing, or more pictures than a window fits.
        UnsupportedNetworkError: the client's update has no derivative, or not in the given time.

    >>> from torch import nn
    >>> from inversefed.fl.clients import FedSGD
    >>> from inversefed.fl.network import freeze
    >>> network = freeze(nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 40)), (3, 4, 4))
    >>> truth = Batch(torch.rand(1, 3, 4, 4), torch.tensor([2]))
    >>> found = limit(Observation(network, FedSGD(), FedSGD()(network, truth.images, truth.labels), 1), truth)
    >>> found.determined, found.of, found.at
    ((12,), 48, 'truth')
    """
    began = time.monotonic()
    if not observation.client_known:
        raise ThreatModelError(
            "the limit of an update needs the derivative of its client, and the threat model hides the client's "
            "settings; grant them (client='known')"
        )
    if observation.network.dtype in COARSE:  # derivatives are worth nothing there; the format is told by the values
        observation = observation.to(torch.float32)
    pictures, targets = _point(observation, at, labels)
    known = defenses or observation.defenses
    sees = _Derivative.of(observation, pictures, targets, known, at is not None, point)
    with float32_products(observation.network.device):
        waves, looked_at, columns = _columns(observation, sees, seconds, tolerances)
    found = _solved(columns, sees, waves, looked_at, observation, tolerances)
    return replace(found, seconds=time.monotonic() - began)


def _point(observation: Observation, at: Batch | Inputs | None, labels: Targets | None) -> tuple[Tensor, Targets]:
    """The pictures and their labels, as the client takes them."""
    network, shape = observation.network, observation.batch_shape
    if isinstance(at, Batch):
        labels = at.labels if labels is None else labels
        at = at.images
    pictures = natural_noise(network, observation.num_examples) if at is None else at
    if pictures.shape != shape:
        raise InputError(f"the limit is taken at pictures of shape {shape}; got {tuple(pictures.shape)}")
    pictures = network.held(pictures.detach())
    labels = observation.labels if labels is None else labels
    if labels is None or (not labels.is_floating_point() and labels.ndim == 1 and bool((labels < 0).any())):
        labels = as_targets(network, network.features(pictures).argmax(dim=1))
    labels = labels.detach().to(network.device)
    return pictures, labels.to(network.dtype) if labels.is_floating_point() else labels


@dataclass(frozen=True, eq=False)
class _Derivative:
    """The update as a function of the pictures, each entry over its noise; what was not sent is left out.

    Args:
        whole: the update of all pictures, whitened.
        pictures: where it is taken.
        entries: numbers that were sent.
        single: whether pictures add up, so that each can be taken by itself, by `alone`.
        alone: the whitened part of one picture, by its number.
        slow: the same derivative by two backward passes, for what has no forward mode; J times a change of the batch.
        noise: what blurs the update.
        at: what the pictures are.
        unexplained: what the truth's own update leaves of the one observed, whitened, `[entries]`; `None` where that is
            no more than what is known to blur it.
    """

    whole: Callable[[Tensor], Tensor]
    pictures: Tensor
    entries: int
    single: bool
    alone: Callable[[int, Tensor], Tensor]
    slow: Callable[[Tensor], Tensor]
    noise: str
    at: Point
    unexplained: Tensor | None

    @staticmethod
    def of(
        observation: Observation,
        pictures: Tensor,
        labels: Targets,
        defenses: tuple[Defense, ...],
        given: bool,
        point: Point | None,
    ) -> "_Derivative":
        at: Point = point or ("truth" if given else "stand-in")
        network, client, number = observation.network, observation.client, len(pictures)
        one, pictures = network.space.shape, pictures.reshape(number, *network.grid)

        def made_by(of_network: Network, images: Tensor, targets: Targets) -> Params:
            return client(of_network, images.reshape(len(images), *one), targets)

        with torch.no_grad():
            made = _changes(observation, made_by(network, pictures, labels))
        blur, factor, noise, more = _noise(
            observation, made, Batch(pictures.reshape(number, *one), labels), defenses, at
        )
        sent, scale = _changes(observation, observation.update), max(abs(factor), _LEAST_SHARE)
        keep = torch.cat([(sent[name] != 0).flatten() for name in sent])
        if not bool(keep.any()):
            raise InputError("every entry of the update is zero: it says nothing of any picture, and has no limit")
        weight = torch.cat([torch.full((part.numel(),), scale / blur[name]) for name, part in sent.items()])
        weight = weight.to(pictures)[keep]
        functional = replace(network, functional=True)
        rest = torch.cat([(sent[name] - factor * made[name]).flatten() for name in sent]).detach()[keep] * weight

        def whitened(update: Params) -> Tensor:
            return torch.cat([update[name].flatten() for name in sent])[keep] * weight

        def alone(index: int, picture: Tensor) -> Tensor:
            return whitened(made_by(functional, picture, labels[index : index + 1])) / number

        def slow(change: Tensor) -> Tensor:
            images = pictures.clone().requires_grad_()
            update = whitened(made_by(network, images, labels))
            dual = torch.zeros_like(update, requires_grad=True)
            (back,) = torch.autograd.grad(update, images, dual, create_graph=True)
            (along,) = torch.autograd.grad(back, dual, change)
            return along

        steps = observation.steps
        additive = number > 1 and steps is not None and client.sends == "gradient" and steps.gradients == number
        derivative = _Derivative(
            lambda images: whitened(made_by(functional, images, labels)),
            pictures,
            len(weight),
            False,
            alone,
            slow,
            noise,
            at,
            rest / scale if more else None,
        )
        return replace(derivative, single=additive and derivative.adds_up())

    def adds_up(self) -> bool:
        """Whether the derivative along one picture is that of this picture alone, as in a mean over examples."""
        change = torch.randn(self.pictures[:1].shape, generator=Generator().manual_seed(0)).to(self.pictures)
        try:
            with foreign_code("the update of one example by itself"):  # BatchNorm of numbers refuses one
                own = self.along(change[None], 0, single=True)
                joint = self.along(change[None], 0, single=False)
        except InversefedError:
            return False
        return bool((own - joint).norm() <= 1e-4 * joint.norm())

    def along(self, changes: Tensor, index: int, single: bool) -> Tensor:
        """Derivatives along changes `[b, 1, c, h, w]` of one picture: `[b, entries]`."""
        own = self.pictures[index : index + 1]
        if single:
            return _pushed(lambda picture: self.alone(index, picture), own, changes)

        def placed(picture: Tensor) -> Tensor:
            return self.whole(torch.cat([self.pictures[:index], picture, self.pictures[index + 1 :]]))

        return _pushed(placed, own, changes)

    def backward(self, changes: Tensor, index: int, until: float = math.inf) -> Tensor:
        """The same as `along` by two backward passes, one change after another; only the first few if time ends it."""
        found: list[Tensor] = []
        for change in changes:
            if found and time.monotonic() > until:
                break
            batch = torch.zeros_like(self.pictures)
            batch[index : index + 1] = change
            found.append(self.slow(batch).detach())
        return torch.stack(found)


def _pushed(function: Callable[[Tensor], Tensor], at: Tensor, changes: Tensor) -> Tensor:
    with warnings.catch_warnings():  # torch's own forward mode is built of what it calls deprecated
        warnings.simplefilter("ignore", FutureWarning)
        pushed: Tensor = torch.func.vmap(lambda change: torch.func.jvp(function, (at,), (change,))[1])(changes)
    return pushed.detach()


def _changes(observation: Observation, update: Params) -> Params:
    """An update as it depends on the pictures: of new weights their change."""
    if observation.client.sends != "weights":
        return update
    return {name: part - observation.network.params[name].detach() for name, part in update.items()}


def _noise(
    observation: Observation, made: Params, batch: Batch, defenses: tuple[Defense, ...], at: Point
) -> tuple[dict[str, float], float, str, bool]:
    """The standard deviation of each tensor's entries, the factor between what is made and what was sent, and words.

    The last says whether the truth leaves more of the update unexplained than what is known to blur it.
    """
    sent = {name: part.double() for name, part in _changes(observation, observation.update).items()}
    blur, said = _rounding(observation)
    factor, more = 1.0, False
    if steps := {name: step for name, part in sent.items() if (step := _step(part))}:
        blur = {name: max(deviation, steps.get(name, 0.0) / 12**0.5) for name, deviation in blur.items()}
        said += "; steps between levels"
    if added := _added(observation):
        blur = {name: max(deviation, added) for name, deviation in blur.items()}
        said += "; the client's own noise"
    if drawn := _drawn(observation, batch, defenses):
        blur = {name: max(deviation, drawn.get(name, 0.0)) for name, deviation in blur.items()}
        said += "; the defense's noise" if any(drawn.values()) else ""
    if at == "truth":
        kept = {name: made[name].double() * (part != 0) for name, part in sent.items()}
        squares = sum(float(part.square().sum()) for part in kept.values())
        product = sum(float((part * sent[name]).sum()) for name, part in kept.items())
        factor = min(1.0, max(-1.0, product / squares)) if squares else 1.0  # clipping only shrinks
        rest = {name: _rms((part - factor * kept[name])[part != 0]) for name, part in sent.items()}
        more = any(rest[name] > 2 * deviation for name, deviation in blur.items())
        if more:
            said += "; what the truth leaves unexplained"
        blur = {name: max(deviation, rest[name]) for name, deviation in blur.items()}
    least = max(blur.values()) * 1e-6 or torch.finfo(torch.float32).tiny
    # What a quantizer leaves depends on the entry that it rounds, and so on the pictures: it is not held to noise.
    return {name: max(deviation, least) for name, deviation in blur.items()}, factor, said, more and not steps


def _rounding(observation: Observation) -> tuple[dict[str, float], str]:
    """Half the last digit of each tensor's largest entry: of the update, and of new weights whose change it is."""
    update = {name: part.detach() for name, part in observation.update.items()}
    number = number_format(update)
    half = torch.finfo(number).eps / 2
    blur = {name: half * float(part.abs().max()) for name, part in update.items()}
    if observation.client.sends != "gradient":
        own = torch.finfo(observation.network.dtype).eps / 2
        weights = observation.network.params
        blur = {
            name: max(deviation, own * float(weights[name].detach().abs().max())) for name, deviation in blur.items()
        }
    return blur, f"rounding to {str(number).removeprefix('torch.')}"


def _added(observation: Observation) -> float:
    """The standard deviation of the noise that the client says it adds in its steps."""
    steps = observation.steps
    if steps is None or not steps.noise:
        return 0.0
    return steps.noise * (1.0 if observation.client.sends == "gradient" else steps.lr * steps.count**0.5)


def _step(part: Tensor) -> float:
    """The distance of the levels that a tensor's entries stand on; 0 where it stands on none."""
    values = part[part != 0].flatten()
    levels = torch.unique(values)
    few = len(levels) >= 2 and len(levels) * Tolerances.levels <= len(values)
    return float(levels.diff().median()) if few and number_format({"": part.float()}) not in COARSE else 0.0


def _drawn(observation: Observation, batch: Batch, defenses: tuple[Defense, ...]) -> dict[str, float]:
    """How much two runs of the defenses differ on the same update, over the root of two."""
    told = update_defenses(defenses)
    if not told:
        return {}
    runs: list[Params] = []
    for seed in (1, 2):
        generator, update = (
            Generator().manual_seed(seed),
            {name: each.detach() for name, each in observation.update.items()},
        )
        for defense in told:
            update = dict(defense(update, Context(observation.network, batch), generator))
        runs.append(update)
    return {name: _rms((part - runs[1][name]).double()) / 2**0.5 for name, part in runs[0].items()}


def _rms(part: Tensor) -> float:
    return float(part.square().mean().sqrt()) if part.numel() else 0.0


def _columns(
    observation: Observation, sees: _Derivative, seconds: float, tolerances: Tolerances
) -> tuple[Tensor, int, tuple[Tensor, int]]:
    """The waves of a window, in how many pictures it is looked at, and A^T with its hashed rows.

    A row of A^T is a wave in a window, picture after picture; the last number says how many rows A was hashed to.
    """
    number, (channels, height, width) = observation.num_examples, observation.network.grid
    share = min(1.0, seconds / tolerances.solving) ** (1 / 3)
    side, most = max(height, width), round(share * tolerances.most)
    while True:
        while channels * min(side, height) * min(side, width) > most:
            side -= 1
        if side < min(tolerances.least, max(height, width)):
            raise UnsupportedNetworkError(
                f"the limit of this update would take longer than {seconds:.0f} s: {number} pictures of "
                f"{channels}x{height}x{width}; give it more time, or fewer pictures"
            )
        window = min(side, height), min(side, width)
        waves = _waves(channels, *window, _natural(observation)).to(sees.pictures)
        count_pictures = max(1, min(number, most // len(waves))) if window == (height, width) else 1
        found = _hashed(sees, waves, window, count_pictures, seconds, tolerances)
        if not isinstance(found, int):
            return waves, count_pictures, found
        most = min(found, most - 1)


def _hashed(
    sees: _Derivative, waves: Tensor, window: tuple[int, int], number: int, seconds: float, tolerances: Tolerances
) -> tuple[Tensor, int] | int:
    """The columns, or as many as there would be time for."""
    height, width = sees.pictures.shape[2:]
    top, left = (height - window[0]) // 2, (width - window[1]) // 2
    total, push = number * len(waves), _pushing(sees)
    rows: list[Tensor] = []
    most = min(sees.entries, max(tolerances.fewest, math.ceil(tolerances.rows * total)))
    places = _places(sees.entries, most, tolerances.adds, sees.pictures) if most < sees.entries else []
    chunk = max(1, min(tolerances.chunk, tolerances.entries // sees.entries))
    began = time.monotonic()
    for index in range(number):
        for part in torch.split(waves, chunk):
            changes = torch.zeros(len(part), 1, *sees.pictures.shape[1:]).to(sees.pictures)
            changes[:, 0, :, top : top + window[0], left : left + window[1]] = part
            columns = push(changes, index, began + 2 * seconds)
            rows.append(_fold(columns, most, places) if places else columns)
            done, took = sum(map(len, rows)), time.monotonic() - began
            # Told from two chunks, for the first one is slow; later only where it takes twice as long as they said.
            late = took / done * total > seconds if len(rows) == 2 else took > 2 * seconds
            if done < total and late:
                return max(1, int(done * seconds / took))
    found = torch.cat(rows)
    if not bool(found.any()):
        raise UnsupportedNetworkError(
            "the derivative of the update with respect to the pictures is zero: its client detaches them, rounds, or "
            "takes signs, and has no limit that a derivative could tell"
        )
    return found, most if places else 0


def _pushing(sees: _Derivative) -> Callable[[Tensor, int, float], Tensor]:
    """Forward mode where the client has one, else two backward passes, which end when there is no more time.

    Raises:
        UnsupportedNetworkError: it has neither.
    """
    try:
        sees.along(torch.zeros_like(sees.pictures[None, :1]), 0, sees.single)
    except (RuntimeError, InversefedError):
        with foreign_code("the derivative of the update with respect to the pictures, which its limit needs,"):
            sees.backward(torch.zeros_like(sees.pictures[None, :1]), 0)
        return sees.backward
    return lambda changes, index, _: sees.along(changes, index, sees.single)


def _places(entries: int, rows: int, adds: int, like: Tensor) -> list[tuple[Tensor, Tensor]]:
    """To which row each entry is added, and with which sign, by lot, a few times."""
    generator, found = Generator().manual_seed(0), []
    for _ in range(adds):
        place = torch.randint(rows, (entries,), generator=generator).to(like.device)
        sign = (torch.randint(2, (entries,), generator=generator) * 2.0 - 1.0).to(like)
        found.append((place, sign / adds**0.5))
    return found


def _fold(columns: Tensor, rows: int, places: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Every entry added, with its signs, to its few of so many rows."""
    folded = torch.zeros(len(columns), rows, dtype=columns.dtype, device=columns.device)
    for place, sign in places:
        folded.index_add_(1, place, columns * sign)
    return folded


def _natural(observation: Observation) -> bool:
    """Whether the prior is that of photographs; of rows and series every value is taken as independent."""
    return pictured(observation.network.space)


def _waves(channels: int, height: int, width: int, natural: bool) -> Tensor:
    """C^1/2, a row a value of the window: `[c h w, c, h, w]`."""
    single = torch.eye(channels * height * width, dtype=torch.float64).view(-1, channels, height, width)
    return _rooted(single, natural)


def _rooted(images: Tensor, natural: bool) -> Tensor:
    """C^1/2 times pictures, diagonal in the Fourier transform but for the channels."""
    channels, height, width = images.shape[1:]
    variances, shared = _variances(channels, height, width, natural)
    spread, axes = torch.linalg.eigh(shared)
    mixed = axes * spread.clamp(min=0).sqrt() @ axes.T
    waves = torch.fft.ifft2(torch.fft.fft2(images) * variances.sqrt()).real
    rooted: Tensor = torch.einsum("ij,bjhw->bihw", mixed, waves)
    return rooted


def _variances(channels: int, height: int, width: int, natural: bool) -> tuple[Tensor, Tensor]:
    """The prior: the variance of each frequency, `[h, w]`, and the correlation of channels."""
    if not natural:
        return torch.full((height, width), STD**2, dtype=torch.float64), torch.eye(channels, dtype=torch.float64)
    rows, columns = torch.fft.fftfreq(height).double()[:, None], torch.fft.fftfreq(width).double()[None]
    falling = 1 / (rows.square() + columns.square()).clamp(min=1 / max(height, width, 2) ** 2)
    variances = STD**2 * falling / falling.mean()
    shared = torch.full((channels, channels), SHARED, dtype=torch.float64).fill_diagonal_(1.0)
    return variances, shared


def _solved(
    columns: tuple[Tensor, int],
    sees: _Derivative,
    waves: Tensor,
    looked_at: int,
    observation: Observation,
    tolerances: Tolerances,
) -> Limit:
    """Solve for what the update leaves open of each picture."""
    rows, hashed = columns
    number, (channels, height, width) = observation.num_examples, observation.network.grid
    of, size, window = channels * height * width, len(waves), tuple(waves.shape[2:])
    left = _left_open(rows, hashed, tolerances)
    spread, generator = torch.zeros(looked_at, dtype=torch.float64), Generator().manual_seed(0)
    told = size - left.inverse.diagonal().view(looked_at, size).sum(dim=1).cpu()
    prior, root = (each.flatten(1).to(left.inverse) for each in (_rooted(waves.double(), _natural(observation)), waves))
    for index in range(looked_at):
        block = slice(index * size, (index + 1) * size)
        open_part = left.inverse[block, block]
        spread[index] = float((prior * open_part).sum()) / left.floor
        if left.floor > 1:
            probes = max(8, tolerances.probes // looked_at)
            random = torch.zeros(len(rows), probes, dtype=torch.float64)
            random[block] = torch.randn(size, probes, dtype=torch.float64, generator=generator)
            random = random.to(root)
            random[block] = root @ random[block]
            once = left.inverse @ random
            spread[index] += float((once * (left.inverse @ once)).sum()) / probes
    error, told = spread / size, told * (of / size)
    if len(rows) < number * of:
        error, told = _counted(observation, error, told, of)
    unknown, misfit = (None,) * (number - looked_at), _misfit(rows, hashed, sees, left, tolerances)
    return Limit(
        (*(-10 * error.clamp(min=1e-300).log10()).tolist(), *unknown),
        (*(int(each) for each in told.round().clamp(0, of).tolist()), *unknown),
        of,
        sees.noise,
        sees.at,
        prior_psnr(),
        window == (height, width),
        misfit=misfit,
    )


def _misfit(rows: Tensor, hashed: int, sees: _Derivative, left: "_Open", tolerances: Tolerances) -> float | None:
    """By how much what the truth leaves unexplained lies along changes of the pictures; `None` where none is left."""
    if sees.unexplained is None:
        return None
    rest, count = sees.unexplained[None], hashed or sees.entries
    if hashed:
        rest = _fold(rest, hashed, _places(sees.entries, hashed, tolerances.adds, sees.pictures))
    told, rest = len(rows) - float(left.inverse.trace()), rest.double()
    if not 1 <= told < count:
        return None
    score = rows.double() @ rest[0]
    along = float(score @ (left.inverse @ score)) / left.added
    other = max(float(rest.square().sum()) - along, 1e-12 * along)
    return along / told / (other / (count - told)) if other > 0 else None


@dataclass(frozen=True, eq=False)
class _Open:
    """M = t (A^T A + t)^-1: near 1 along what the update leaves open, near 0 along what it tells.

    Args:
        inverse: M, `[d, d]`.
        floor: t, from 1: more where single precision cannot tell less from nothing.
        added: what stands for t beside hashed rows.
    """

    inverse: Tensor
    floor: float
    added: float


def _left_open(rows: Tensor, hashed: int, tolerances: Tolerances) -> _Open:
    wide = rows.double()
    information = wide @ wide.T
    del wide
    guess = torch.randn(len(information), 1, dtype=torch.float64, generator=Generator().manual_seed(0))
    guess = guess.to(information)
    for _ in range(20):
        guess = information @ (guess / guess.norm().clamp(min=1e-300))
    floor = max(1.0, tolerances.floor * float(guess.norm()))
    size, told = len(information), float(len(information))
    while True:
        added = floor * (1 - told / hashed if hashed else 1.0)
        factor = torch.linalg.cholesky(information + added * torch.eye(size).to(information))
        inverse = added * torch.cholesky_inverse(factor)
        found = size - float(inverse.trace())
        if not hashed or abs(found - told) < 0.005 * size:
            return _Open(inverse, floor, added)
        told = found


def _counted(observation: Observation, error: Tensor, told: Tensor, of: int) -> tuple[Tensor, Tensor]:
    """Hold a bound that took something as known to the number of independent equations, shared evenly.

    With r of them, at least the least variances of the prior are left, all but r.
    """
    number, (channels, height, width) = observation.num_examples, observation.network.grid
    with foreign_code("counting the equations of the update"):
        most = independent_numbers(observation) // number
    if most >= of:
        return error, told
    variances, shared = _variances(channels, height, width, _natural(observation))
    each = torch.outer(variances.flatten(), torch.linalg.eigvalsh(shared)).flatten().sort().values
    return error.clamp(min=float(each[: of - most].sum()) / of), told.clamp(max=most)
