"""Published attacks under their papers' names: functions that put known parts together.

Each returns a value that can be changed with `dataclasses.replace` and printed in full.
"""

import re
from dataclasses import replace
from typing import Literal

from inversefed.attacks import Attack
from inversefed.attacks.auto import AutoAttack
from inversefed.attacks.exact.april import AttentionInput
from inversefed.attacks.exact.categories import CategoryRows
from inversefed.attacks.exact.dense_batch.cocktail_party import IndependentComponents
from inversefed.attacks.exact.dense_batch.sparse_directions import NullVectors
from inversefed.attacks.exact.dense_batch.spear import SparseBatch
from inversefed.attacks.exact.head_inversion import SeparatedFeatures
from inversefed.attacks.exact.linear import LinearInput
from inversefed.attacks.exact.peel.attack import Peel
from inversefed.attacks.exact.text.embedding_rows import EmbeddingRows
from inversefed.attacks.exact.text.roles import TextRoles
from inversefed.attacks.exact.text.span_sentences import SpanSentences
from inversefed.attacks.exact.transformer.patch_embedding import EmbeddedPatches
from inversefed.attacks.labels import JointLabels, RecoveredLabels
from inversefed.attacks.pieces.batchnorm_prior import BatchNormStatistics
from inversefed.attacks.pieces.deep_prior import DeepImagePrior
from inversefed.attacks.pieces.group_consistency import GroupConsistency
from inversefed.attacks.pieces.objectives import (
    Cosine,
    RelativeAbsoluteError,
    RelativeSquaredError,
    SquaredError,
    TagError,
)
from inversefed.attacks.pieces.optimizers import LBFGS, Adam, NormalizedMomentum
from inversefed.attacks.pieces.parametrizations import InRange, SpansRange, Spectral
from inversefed.attacks.pieces.priors import ColorTotalVariation, SquaredNorm, TotalVariation
from inversefed.attacks.pieces.schedules import Constant, CosineDecay, GeometricDecay, LinearDecay, WarmUp
from inversefed.attacks.pieces.selection import AgreedMean, LowestLoss
from inversefed.attacks.pieces.starts import NearMean, Normal, Patterned, Zeros
from inversefed.attacks.rules import (
    Applies,
    AtMost,
    AveragesPlaces,
    ClientUnknown,
    ContrastHidden,
    FewNumbers,
    HasKinks,
    KeepsPlaces,
    KeepsPlacesNormalized,
    NoPictures,
    OneExample,
    OrderUnknown,
    Polish,
    Rule,
    Sentences,
    SeveralExamples,
    Smooth,
    StepsUnknown,
    Table,
)
from inversefed.attacks.search.convergence import Stalled
from inversefed.attacks.search.inversion import GradientInversion
from inversefed.attacks.search.precision import EarlyBFloat16, Native
from inversefed.attacks.simulations import OptimizedMasks, PerEpoch, RelaxedOrder, Surrogate

__all__ = [
    "april",
    "best",
    "categories",
    "cocktail_party",
    "curvature",
    "deep_prior",
    "dlg",
    "dropout_inversion",
    "embedding_rows",
    "geiping",
    "gradinversion",
    "idlg",
    "in_range",
    "linear",
    "modern",
    "patch_embedding",
    "peel",
    "per_epoch",
    "relaxed_order",
    "separated",
    "smoothed",
    "sparse",
    "spear",
    "spectral",
    "steady",
    "surrogate",
    "tag",
    "token_span",
    "train_mode",
    "without_prior",
]


def best() -> AutoAttack:
    """The default of an audit: exact methods where they apply, else the search that fits the network.

    Paper: this project's choice; each method it may take has its own.
    Needs: an update.
    Cost: that of what it chooses, mostly seconds.

    How the searches were chosen, with figures, is told in the documentation ("Speed").
    """
    early, one, several, wide = EarlyBFloat16(worthwhile=True), OneExample(), SeveralExamples(), Applies(separated())
    table, words = Table(), Sentences()
    pixels = (
        replace(geiping(max_iterations=600), optimizer=Adam(lr=0.02, signed=True)),
        replace(geiping(max_iterations=300, total_variation=1e-3), optimizer=Adam(lr=0.01, signed=True)),
    )
    return AutoAttack(
        exact=(
            Rule((words, one), embedding_rows(), "the gradients of embeddings tell which token stood where"),
            Rule((words,), token_span(), "the attention's gradients span what it was fed, which few tokens give"),
            Rule((one,), linear(), "a linear layer that sees the picture gives it away in closed form"),
            Rule((one,), patch_embedding(), "learned positions give away the patches of a transformer"),
            Rule((one,), april(), "positions in front of an attention give away what it saw"),
            Rule((one, wide), Peel(starts=0), "peeling without what takes long in it"),
            Rule((one, wide), separated(), "a head that sees as much as a picture holds is inverted"),
            Rule((one,), peel(), "linear equations, layer by layer, and the image from where they end", late=True),
            Rule(
                (several, table),
                categories(),
                "rows solve equations, by categories or by the layers behind",
            ),
            Rule((several,), sparse(), "the zeros that a ReLU leaves tell examples of a first linear layer apart"),
            Rule((several,), peel(), "peeling, all of them at once", late=True),
            Rule((several,), separated(), "what went into the head is solved for, example by example, and inverted"),
        ),
        searches=_searches(early, pixels),
        pooled=spectral(110).with_settings(precision=early),
        in_range=in_range(),
    )


_STRONG = 1.0
"""Weight of the prior where an update holds less than half as many independent numbers as its pictures have values."""
_MIXED = 1.5
"""Numbers of an update, as a share of its pictures' values, below which a search needs a strong prior: not all of them
are independent. Between a half and this, two weights are tried."""
_NEARER, _SMALL = 0.6, 1e8
"""Share of its matching cost that going on in pixels must bring a search to where nothing hides contrast, for a smaller
gain often leads away from the truth; and operations of a forward pass up to which that costs little."""


def _searches(early: EarlyBFloat16, pixels: tuple[GradientInversion, ...]) -> tuple[Rule[GradientInversion], ...]:
    """The rules of `best()` that name a search; the first that holds does.

    Args:
        early: the precision of the first steps, where that pays.
        pixels: what goes on in pixels from where a search came.
    """
    masks, kinks = OptimizedMasks(), HasKinks()
    strong = steady(total_variation=_STRONG)
    few = "the update holds few numbers ({1}), so the prior has to say the rest"
    misleads = "the network has kinks ({}), where curvature misleads"
    bare, no_prior = NoPictures(), "the inputs ({}) have no natural-image prior"
    return (
        Rule((bare, ClientUnknown()), surrogate(total_variation=0.0), f"{no_prior}; the client's settings are unknown"),
        Rule((bare, Smooth()), curvature(), f"{no_prior}; the network is smooth, so curvature guides", masks),
        Rule((bare,), without_prior(), no_prior, masks, Polish((curvature(),)), bounded=True),
        Rule(
            (ClientUnknown(),), surrogate(),
            "the client's settings are unknown, so a gradient between the weights stands for them",
        ),
        Rule(
            (OrderUnknown(),), relaxed_order(),
            "the client shuffles in an order that is not known, so the order is searched too",
        ),
        Rule(
            (ContrastHidden(),), train_mode(),
            "BatchNorm in train mode takes contrast and brightness out of the update",
        ),
        Rule(
            (StepsUnknown(),), relaxed_order(),
            "which local step saw which label is not known, so the order is searched too",
        ),
        Rule(
            (KeepsPlacesNormalized(),), in_range(100),
            "the network normalizes its features ({}), which hides contrast", masks, Polish(pixels), bounded=True,
        ),
        Rule((KeepsPlaces(), FewNumbers(0.5)), strong, few, masks, steady=True),
        Rule((KeepsPlaces(), FewNumbers(_MIXED)), steady(), few, masks, steady=True, also=(strong,)),
        Rule(
            (Smooth(), SeveralExamples()), smoothed(),
            "the network is smooth, and curvature misleads where {1} are mixed", masks,
        ),
        Rule((Smooth(),), curvature(), "the network is smooth, so its curvature guides the search", masks),
        Rule(
            (kinks, AveragesPlaces(), AtMost(_SMALL)),
            replace(geiping(restarts=4, max_iterations=300), selection=AgreedMean()),
            f"{misleads}, and averages over places ({{}})", masks,
        ),
        Rule(
            (kinks, AveragesPlaces(), OneExample()),
            replace(smoothed(), restarts=3, selection=AgreedMean(), precision=early),
            f"{misleads}, and averages over places ({{}})", masks,
        ),
        Rule((kinks, AveragesPlaces()), smoothed(), f"{misleads}, and averages over places ({{}})", masks),
        Rule(
            (kinks,), spectral().with_settings(precision=early), misleads, masks, Polish(pixels[:1], _NEARER, _SMALL),
        ),
    )  # fmt: skip


def table(chosen: AutoAttack) -> str:
    """The rules of a choice as a table in Markdown, in their order, as the documentation shows it.

    Args:
        chosen: such as `best()`; its attacks are named by their recipe, whatever their precision and restarts.
    """
    rows = ["| when | what is run | why |", "|---|---|---|"]
    rules: tuple[Rule[Attack], ...] = (*chosen.exact, *chosen.searches)
    for rule in rules:
        when = ", ".join(_words(condition) for condition in rule.when) or "else"
        why = re.sub(r" \(\{\d?\}\)", "", rule.why).replace("{1}", "several examples")
        rows.append(f"| {when} | {_name(rule.attack)} | {why} |")
    return "\n".join(rows) + "\n"


def _words(condition: object) -> str:
    """What a condition says of itself, in the first line of its docstring."""
    if isinstance(condition, FewNumbers):
        return f"an update of fewer independent numbers than {condition.below:.0%} of the pictures' values"
    if isinstance(condition, AtMost):
        return f"less than {condition.operations:g} operations"
    if isinstance(condition, Applies):
        return f"a network that {_name(condition.method)} takes"
    said = (type(condition).__doc__ or "").partition("\n")[0].rstrip(".")
    return said if said.startswith("BatchNorm") else said[:1].lower() + said[1:]


def _name(attack: Attack) -> str:
    """The recipe that makes an attack, up to precision, restarts and selection; its class where there is none."""

    def alike(other: Attack) -> Attack:
        if not isinstance(other, GradientInversion):
            return other
        return replace(other, precision=Native(), restarts=1, selection=LowestLoss(), max_iterations=1)

    if alike(attack) == alike(steady(total_variation=_STRONG)):
        return f"`steady`, total variation {_STRONG:g}"
    if alike(attack) == alike(surrogate(total_variation=0.0)):
        return "`surrogate`, without total variation"
    made = {name: globals()[name] for name in __all__ if name != "best"}
    for name, recipe in made.items():
        usual = recipe()
        if alike(usual) == alike(attack):
            if not isinstance(attack, GradientInversion) or attack.max_iterations == usual.max_iterations:
                return f"`{name}`"
            return f"`{name}`, {attack.max_iterations} steps"
    return f"`{attack!r}`"


def geiping(restarts: int = 1, max_iterations: int = 4800, total_variation: float = 1e-2) -> GradientInversion:
    """Inverting Gradients: cosine cost, total variation, Adam on signs.

    Paper: Geiping et al. (2020), arXiv:2003.14053.
    Needs: a client that can be simulated.
    Cost: 4,800 steps a restart, each about seven forward passes.

    Geiping et al. (2020), arXiv:2003.14053, with the settings of its Table 1: lr 0.1 with decay at 3/8, 5/8 and
    7/8, 4,800 iterations, box constraint, total variation 1e-2 (the paper uses 1e-4 to 1e-1 on other networks).

    Args:
        restarts: number of starts.
        max_iterations: steps a restart.
        total_variation: weight of the prior.
    """
    return GradientInversion(
        objective=Cosine(),
        priors=(TotalVariation(total_variation),) if total_variation else (),
        optimizer=Adam(lr=0.1, signed=True),
        max_iterations=max_iterations,
        restarts=restarts,
    )


def without_prior(max_iterations: int = 1200) -> GradientInversion:
    """For inputs that are no pictures, rows of a table or series: `geiping` without total variation.

    Paper: Geiping et al. (2020), arXiv:2003.14053, without its prior.
    Needs: a client that can be simulated.
    Cost: 1,200 steps.

    Args:
        max_iterations: steps.
    """
    return replace(geiping(max_iterations=max_iterations), priors=())


def embedding_rows(roles: TextRoles | None = None) -> EmbeddingRows:
    """One sentence from the gradients of token and position embeddings alone.

    Paper: own derivation; DAGER (Petrov et al. 2024, arXiv:2405.15586) for one sentence needs the attention.
    Needs: token ids, one example, learned positions, trained embeddings that are not tied to the output.
    Cost: one least-squares solution, and an update of the client for each class.

    Args:
        roles: which weights are what, as far as a run of the network does not tell.
    """
    return EmbeddingRows(roles)


def token_span(roles: TextRoles | None = None) -> SpanSentences:
    """DAGER: tokens in the span of the first attention's gradients, sentences by that of the second's.

    Paper: Petrov et al. (2024), arXiv:2405.15586; tolerances from the spectrum and batches of encoders are this
    project's.
    Needs: token ids, gradients of the first two attentions, fewer tokens than they are wide.
    Cost: the embeddings of the vocabulary, and some hundred to some ten thousand runs of one layer.

    Args:
        roles: which weights are what, as far as a run of the network does not tell.
    """
    return SpanSentences(roles)


def dlg(restarts: int = 1, max_iterations: int = 300) -> GradientInversion:
    """Deep Leakage from Gradients: squared error, L-BFGS, soft labels optimized with the images.

    Paper: Zhu, Liu and Han (2019), arXiv:1906.08935.
    Needs: a smooth network, few examples.
    Cost: 300 L-BFGS iterations of 20 steps.

    Zhu, Liu and Han (2019), arXiv:1906.08935: 300 iterations of L-BFGS with lr 1, normal starts, no prior, no box.

    Args:
        restarts: number of starts.
        max_iterations: L-BFGS iterations of 20 inner steps.
    """
    return GradientInversion(
        objective=SquaredError(),
        priors=(),
        optimizer=LBFGS(lr=1.0),
        schedule=Constant(),
        projections=(),
        labels=JointLabels(),
        max_iterations=max_iterations,
        restarts=restarts,
    )


def idlg(restarts: int = 1, max_iterations: int = 300) -> GradientInversion:
    """Improved DLG: the label of the single example by its sign first, then DLG.

    Paper: Zhao, Mopuri and Bilen (2020), arXiv:2001.02610.
    Needs: a smooth network, one example.
    Cost: 300 L-BFGS iterations of 20 steps.

    Zhao, Mopuri and Bilen (2020), arXiv:2001.02610.

    Args:
        restarts: number of starts.
        max_iterations: L-BFGS iterations of 20 inner steps.
    """
    return replace(dlg(restarts, max_iterations), labels=RecoveredLabels())


def gradinversion(
    restarts: int = 8,
    max_iterations: int = 20_000,
    statistics: Literal["network", "sent", "batch"] = "network",
    registered: bool = True,
) -> GradientInversion:
    """GradInversion: squared error, BatchNorm statistics, and restarts that hold each other.

    Paper: Yin et al. (2021), arXiv:2104.07586.
    Needs: BatchNorm layers; best with the client's running buffers.
    Cost: 8 restarts of 20,000 steps.

    Yin et al. (2021), arXiv:2104.07586, section 4: Adam with lr 0.1 along half a cosine after 50 steps of warm-up,
    total variation 1e-4, norm 1e-6, BatchNorm 0.1, noise 0.2 on each step, and from a quarter of 20,000 steps on a pull
    0.01 towards the consensus of 8 restarts every 100 steps. Norm and pull are means over pixels here, sums there; for
    the pull, which the paper registers by dense flow, this makes a weight of 1, and registration is by translation.

    Args:
        restarts: number of starts that advance side by side.
        max_iterations: steps a restart.
        statistics: whose BatchNorm statistics are matched, as `BatchNormStatistics` takes it. The paper's best rows
            need `"batch"`, and so a threat model in which the buffers are sent.
        registered: whether restarts are registered before they are averaged.
    """
    return GradientInversion(
        objective=SquaredError(),
        priors=(TotalVariation(1e-4), SquaredNorm(1e-6), BatchNormStatistics(0.1, statistics)),
        optimizer=Adam(lr=0.1, signed=False),
        schedule=WarmUp(CosineDecay(), steps=50),
        langevin=0.2,
        consistency=GroupConsistency(weight=1.0, start=0.25, every=100, reach=0.25 if registered else 0.0),
        max_iterations=max_iterations,
        restarts=restarts,
    )


def modern(restarts: int = 1, max_iterations: int = 24_000) -> GradientInversion:
    """The settings "modern" of the framework `breaching`: soft signs, color total variation, a start of repeated tiles.

    Paper: settings of a later public framework (2022).
    Needs: a client that can be simulated.
    Cost: 24,000 steps.

    Geiping, Fowl et al. (2022), https://github.com/JonasGeiping/breaching: cosine cost, double-opponent total variation
    0.1, Adam with lr 0.1 along half a cosine after 50 steps of warm-up, box constraint.

    Args:
        restarts: number of starts.
        max_iterations: steps a restart.
    """
    return GradientInversion(
        objective=Cosine(),
        priors=(ColorTotalVariation(0.1),),
        start=Patterned(4),
        optimizer=Adam(lr=0.1, signed="soft"),
        schedule=WarmUp(CosineDecay(), steps=50),
        max_iterations=max_iterations,
        restarts=restarts,
    )


def tag(restarts: int = 1, max_iterations: int = 1000) -> GradientInversion:
    """TAG: squared error plus absolute errors that count most in the first layers.

    Paper: Deng et al. (2021), arXiv:2103.06819.
    Needs: a client that can be simulated.
    Cost: 1,000 steps.

    Deng et al. (2021), arXiv:2103.06819, who attack text; here the input is pictures. Adam with lr 0.05, falling
    along a line after 50 steps of warm-up.

    Args:
        restarts: number of starts.
        max_iterations: steps a restart.
    """
    return GradientInversion(
        objective=TagError(0.1),
        priors=(),
        optimizer=Adam(lr=0.05, signed=False),
        schedule=WarmUp(LinearDecay(), steps=50),
        projections=(),
        max_iterations=max_iterations,
        restarts=restarts,
    )


def deep_prior(restarts: int = 1, max_iterations: int = 1000) -> GradientInversion:
    """Cosine cost, searched in the weights of an untrained decoder for each picture.

    Paper: Ulyanov et al. (2018), arXiv:1711.10925; Heckel and Hand (2019), arXiv:1810.03982.
    Needs: a client that can be simulated.
    Cost: 1,000 steps, with a decoder in each.

    Ulyanov, Vedaldi and Lempitsky (2018), arXiv:1711.10925, for the prior; Adam with lr 0.01 on the weights.

    Args:
        restarts: number of starts.
        max_iterations: steps a restart.
    """
    return GradientInversion(
        objective=Cosine(),
        priors=(),
        optimizer=Adam(lr=0.01, signed=False),
        schedule=CosineDecay(),
        projections=(),
        parametrization=DeepImagePrior(),
        max_iterations=max_iterations,
        restarts=restarts,
    )


def linear() -> LinearInput:
    """The closed form for a picture in front of a linear layer with bias (Geiping et al. 2020, Prop. 3.1).

    Paper: Geiping et al. (2020), arXiv:2003.14053, Prop. 3.1.
    Needs: one example, a linear layer with bias on the picture.
    Cost: nothing to speak of.
    """
    return LinearInput()


def peel() -> Peel:
    """Exact recovery of one picture or a few, layer by layer from the head, by linear equations.

    Paper: Zhu and Blaschko (2021), arXiv:2010.07733, extended.
    Needs: one gradient, a chain of layers and sums of two ways, a linear head with bias; one example under max pooling.
    Cost: seconds; minutes under max pooling.

    It extends R-GAP (Zhu and Blaschko 2021, arXiv:2010.07733) to strides, biases, BatchNorm and saturated activations,
    averages over places, residual networks and several examples.
    """
    return Peel()


def separated() -> SeparatedFeatures:
    """Several pictures, where more numbers go into the head than a picture has.

    Paper: own derivation.
    Needs: one gradient of fewer examples than classes, a linear head that sees as much as a picture holds.
    Cost: 100 steps, then at most 1,500 passes through the network.

    Own derivation: the head's gradient of fewer examples than classes is solved for what went into the head, example by
    example; a search starts from there, and L-BFGS inverts those features.
    """
    return SeparatedFeatures(in_range(100))


def patch_embedding() -> EmbeddedPatches:
    """The closed form for any transformer with learned positions: patches by linear equations, whatever follows them.

    Paper: own derivation, on Lu et al. (2022), arXiv:2112.14087.
    Needs: one example, learned positions for each token; exact for fewer patches than the tokens are wide.
    Cost: about three gradients; a search of L-BFGS where there are more patches, or the update was rounded.

    The gradient of the positions is that of each token (Lu et al. 2022), and the patch embedding's gradient is the sum
    of tokens' gradients with patches.
    """
    return EmbeddedPatches(curvature(60))


def april() -> AttentionInput:
    """The closed form for a transformer whose first attention sees patches and positions as they are.

    Paper: Lu et al. (2022), arXiv:2112.14087.
    Needs: one example, positions, a first attention without norm or skip.
    Cost: below a second.

    APRIL, Lu et al. (2022), arXiv:2112.14087.
    """
    return AttentionInput()


def cocktail_party(iterations: int = 300) -> IndependentComponents:
    """Many pictures in front of a first linear layer, roughly, by blind separation.

    Paper: Kariyappa et al. (2023), arXiv:2209.05578, with our own likelihood.
    Needs: several examples, a wider first linear layer with bias.
    Cost: 2 s for 8 pictures, 38 s for 64.

    The attack is that of Kariyappa et al. (ICML 2023), arXiv:2209.05578; the likelihood that is maximized is our own.

    Args:
        iterations: of L-BFGS.
    """
    return IndependentComponents(iterations)


def spear(rounds: int = 256) -> SparseBatch:
    """SPEAR: several pictures exactly, from the zeros of a ReLU behind the first linear layer, by sampling.

    Paper: Dimitrov et al. (2024), arXiv:2403.03945.
    Needs: several examples, a first linear layer with bias, then ReLU.
    Cost: about 2^n samples; below a second up to 10 pictures.

    Dimitrov et al. (2024), arXiv:2403.03945. The expected number of samples grows exponentially in the batch.

    Args:
        rounds: most rounds of 4,096 samples.
    """
    return SparseBatch(searches=(NullVectors(),), separation=None, rounds=rounds)


def categories() -> CategoryRows:
    """The rows of a table with their labels, from its categories, or of numbers alone; any activation behind them.

    Paper: own method.
    Needs: several rows, inputs=Columns(...), a first linear layer with bias; for numbers alone a second, wider one.
    Cost: a tenth of a second for 32 rows, to ten seconds where rows have the same categories or none.
    """
    return CategoryRows()


def sparse() -> SparseBatch:
    """SPEAR's decomposition with descent to sparse directions beside its sampling: larger batches, in seconds.

    Paper: own descent, on the view of arXiv:2510.24200 and arXiv:2403.03945.
    Needs: several examples, a first linear layer with bias, then ReLU.
    Cost: a second for 8 pictures, 22 s for 48.

    The view as a sparsely used dictionary is that of SPEAR++ (arXiv:2510.24200); the descent is our own.
    """
    return SparseBatch()


def curvature(max_iterations: int = 160) -> GradientInversion:
    """For smooth networks: squared error by L-BFGS with line search, from the mean color.

    Paper: own settings of L-BFGS.
    Needs: a smooth network, one example.
    Cost: 160 L-BFGS iterations of 10 steps, fewer where it stalls.

    From noise, where DLG starts, the same search ends in poor minima; a picture is nearer its mean color than noise is.

    Args:
        max_iterations: L-BFGS iterations of 10 inner steps.
    """
    return GradientInversion(
        objective=RelativeSquaredError(),
        priors=(),
        start=NearMean(),
        optimizer=LBFGS(inner=10, line_search=True, tolerance=0.0),
        schedule=Constant(),
        projections=(),
        convergence=Stalled(patience=5, gain=1e-3),
        max_iterations=max_iterations,
    )


def spectral(max_iterations: int = 375) -> GradientInversion:
    """For ReLU networks that keep places: absolute error, searched in Fourier coefficients from the mean color.

    Paper: own settings; Fourier coefficients as in Olah et al. (2017).
    Needs: a client that can be simulated.
    Cost: 375 steps.

    Late layers count more (power 1.5), the prior fades by a factor of 100, and each step sees its input with a little
    noise, which fades as well: kinks do not trap a smoothed cost. The last iterate counts, for noisy losses are not
    comparable. Of several examples, what went into the head is solved for where that is possible, and searched for too.

    Args:
        max_iterations: steps; 30 give a first picture, from about 400 on little is gained.
    """
    return GradientInversion(
        objective=RelativeAbsoluteError(power=1.5),
        priors=(TotalVariation(1e-2),),
        prior_schedule=GeometricDecay(1e-2),
        start=Zeros(),
        noise=0.15,
        optimizer=NormalizedMomentum(lr=1.5),
        schedule=CosineDecay(),
        projections=(),
        parametrization=Spectral(),
        features=0.3,
        max_iterations=max_iterations,
        keep="last",
    )


def in_range(max_iterations: int = 375) -> GradientInversion:
    """For networks that normalize their features (GroupNorm, LayerNorm, ..): `spectral` within the range of pixels.

    Paper: own settings, as spectral.
    Needs: a client that can be simulated.
    Cost: 375 steps.

    Such a network hides a picture's contrast and brightness; without a bound the search ends far outside the range.
    There is no noise, which would outweigh a picture of low contrast.

    Args:
        max_iterations: steps.
    """
    return replace(spectral(max_iterations), parametrization=InRange(Spectral()), start=NearMean(0.05), noise=0.0)


def smoothed(max_iterations: int = 300) -> GradientInversion:
    """For ReLU networks that average over places (ResNets), and for several pictures through a smooth network.

    Paper: own settings, as spectral.
    Needs: a client that can be simulated.
    Cost: 300 steps.

    It is `spectral` with more noise and more of a prior.

    Args:
        max_iterations: steps.
    """
    return replace(
        spectral(max_iterations),
        objective=RelativeAbsoluteError(),
        priors=(TotalVariation(0.2),),
        prior_schedule=GeometricDecay(0.1),
        noise=0.6,
        optimizer=NormalizedMomentum(lr=1.0, momentum=0.95),
    )


def steady(max_iterations: int = 375, total_variation: float = 0.3) -> GradientInversion:
    """For updates of fewer independent numbers than their pictures have values: `spectral` with a strong prior.

    Paper: own settings, as spectral.
    Needs: a client that can be simulated.
    Cost: 375 steps.

    Many pictures make such an update, and a weak prior ends at one that is farther from the truth than one color is.
    The prior does not fade.

    Args:
        max_iterations: steps.
        total_variation: weight of the prior.
    """
    return replace(spectral(max_iterations), priors=(TotalVariation(total_variation),), prior_schedule=Constant())


def surrogate(max_iterations: int = 1000, total_variation: float = 1e-2) -> GradientInversion:
    """For FedAvg of unknown settings: one gradient, between the old weights and the new, in place of all local steps.

    Paper: Zhu et al. (2023), arXiv:2306.00127.
    Needs: a FedAvg update; neither learning rate nor number of steps.
    Cost: 1,000 steps of one gradient, whatever the client did.

    SME, Zhu et al. (2023), arXiv:2306.00127, with its settings: cosine cost, total variation 1e-2, Adam with lr 1 on
    images and 1e-3 on the point between, 1,000 iterations, decay at 3/8, 5/8 and 7/8.

    Args:
        max_iterations: steps, each as dear as one of a single gradient, whatever the client did.
        total_variation: weight of the prior.
    """
    return GradientInversion(
        objective=Cosine(),
        priors=(TotalVariation(total_variation),) if total_variation else (),
        optimizer=Adam(lr=1.0, signed=False),
        simulation=Surrogate(rate=1e-3),
        max_iterations=max_iterations,
    )


def per_epoch(max_iterations: int = 300) -> GradientInversion:
    """For FedAvg that shuffles: pictures of each epoch apart, held together by a prior that no order changes.

    Paper: Dimitrov et al. (2022), arXiv:2206.12395.
    Needs: FedAvg whose order is unknown, its settings known.
    Cost: 300 steps of the whole local training.

    The simulation of Dimitrov et al. (2022), arXiv:2206.12395, searched as `smoothed` does.

    Args:
        max_iterations: steps.
    """
    return replace(smoothed(max_iterations), simulation=PerEpoch(10.0, "max"))


def relaxed_order(max_iterations: int = 300) -> GradientInversion:
    """For FedAvg that shuffles: which examples a step took is searched with the pictures, as shares in [0, 1].

    Paper: own derivation.
    Needs: FedAvg whose order is unknown, its settings known, plain cross entropy.
    Cost: 300 steps of the local training, each dearer by the number of slices.

    Own derivation. A step costs as many passes as there are examples, not only those of its slice.

    Args:
        max_iterations: steps.
    """
    return replace(smoothed(max_iterations), simulation=RelaxedOrder())


def dropout_inversion(max_iterations: int = 300) -> GradientInversion:
    """For networks in train mode with dropout: the masks are searched with the pictures.

    Paper: Scheliga et al. (2022), arXiv:2208.06163.
    Needs: dropout layers in train mode.
    Cost: 300 steps, all graphs kept.

    The idea of Scheliga et al. (2022), arXiv:2208.06163, searched as `smoothed` does.

    Args:
        max_iterations: steps.
    """
    return replace(smoothed(max_iterations), simulation=OptimizedMasks())


def train_mode(max_iterations: int = 200) -> GradientInversion:
    """For networks in train mode whose first layers are a convolution and BatchNorm: contrast and brightness settled.

    Paper: own derivation.
    Needs: BatchNorm in train mode behind a first convolution.
    Cost: 200 steps.

    `spectral`, its pictures spread over their range, for such an update does not hold their contrast; and the masks of
    dropout, where there are any, searched with them.

    Args:
        max_iterations: steps.
    """
    return replace(
        spectral(max_iterations), parametrization=SpansRange(Spectral()), start=Normal(), simulation=OptimizedMasks()
    )
