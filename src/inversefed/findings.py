"""What an audit found out on its way, in plain words, for people.

No code reads a finding to decide anything: what a result depends on stands in typed fields of the values that carry it.
So a code may be renamed, and a message rewritten, without any reconstruction or verdict becoming another.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any, Literal

__all__ = ["Code", "Finding", "table"]


class Code(StrEnum):
    """What a finding is about: a short name to search for and to look up."""

    APPROXIMATE = "approximate"
    """The attack takes pictures apart by their statistics, and is not exact."""
    ATTACK_ADAPTED = "attack-adapted"
    """The search has the client's known defenses in its model."""
    ATTACK_CHOSEN = "attack-chosen"
    """Which attack was chosen, why, and what was tried or cut short on the way."""
    AVERAGE_POOLING = "average-pooling"
    """What an average over places leaves out cannot be recovered through it."""
    BATCHNORM_TRAIN_MODE = "batchnorm-train-mode"
    """BatchNorm is, or seems to be, in train mode, so that examples of a batch are mixed and contrast is hidden."""
    BFLOAT16_FALLBACK = "bfloat16-fallback"
    """Steps in bfloat16 differed from plain ones or failed, and were not used."""
    CHECKPOINT_FAILED = "checkpoint-failed"
    """The state of the search could not be written to its file."""
    CHOSEN_BY_REHEARSAL = "chosen-by-rehearsal"
    """Which attack did best on public stand-ins, and by how much; or why none was chosen."""
    CLIENT_READ = "client-read"
    """The client's settings, which nobody stated, were read from its update."""
    CLIENT_RULE = "client-rule"
    """The client's own rule, such as clipping of single examples, stands between gradients and update."""
    CLIENT_UNKNOWN = "client-unknown"
    """The client's settings are not known, so that its update cannot be simulated."""
    CLIPPED = "clipped"
    """The update looks clipped: its norm, or its greatest entries, stand at a bound."""
    COLUMN_LEFT_OUT = "column-left-out"
    """A column of a table that no network is fed with: dates, names, or one value alone."""
    COMPILED = "compiled"
    """Whether the step was compiled, and what that brought."""
    COMPILED_FALLBACK = "compiled-fallback"
    """The compiled step differed from the plain one or failed, and was not used."""
    CONSTANT_COLOR = "constant-color"
    """One color a picture explains the update as well as the search does, and is the result."""
    DEFENSE_UNKNOWN = "defense-unknown-to-attack"
    """A defense ran that the attack was not told of; one that knows it may find more."""
    DIFFERENTIAL_PRIVACY = "differential-privacy"
    """What differential privacy the client's training gives, or why none is stated."""
    DROPOUT_TRAIN_MODE = "dropout-train-mode"
    """Dropout is on, and its masks are not known."""
    EXACT = "exact"
    """An exact method's result makes the very update again."""
    FROZEN = "frozen"
    """Parameters that are not trained, or that did not move."""
    KIND_ASSUMED = "kind-assumed"
    """The update was taken for a gradient, since nothing says what it is."""
    LABELS_GIVEN = "labels-given"
    """The labels were handed to the attack."""
    LABELS_HIDDEN = "labels-hidden"
    """The labels were hidden from the attack; how it came to them."""
    LABELS_TRIED = "labels-tried"
    """No rule told the label; the one whose update comes nearest was taken, and others may make the same update."""
    LOCAL_STEPS = "local-steps"
    """The update sums gradients of several local steps, at weights that move."""
    LOCAL_STEPS_ASSUMED = "local-steps-assumed"
    """One local step was assumed, since nothing says how many there were."""
    MAX_POOLING = "max-pooling"
    """What did not win in max pooling cannot be recovered through it."""
    MEMORY = "memory"
    """The memory that a step needs, against what is free."""
    MIXED_EXAMPLES = "mixed-examples"
    """A layer's gradient holds the examples only as a mixture."""
    NAMES = "names"
    """Names of the update's tensors do not fit the network, or tensors stand in each other's place."""
    NOISED = "noised"
    """Noise was added to the update."""
    NON_FINITE = "non-finite"
    """The update holds NaN, infinite or gigantic numbers."""
    NORMALIZATION = "normalization"
    """Whether the stated input normalization is the one that the network was trained with."""
    NOT_EXACT = "not-exact"
    """An exact method's result does not make the update again."""
    NULL_RUNS_CUT = "null-runs-cut"
    """Fewer null runs were carried out than planned."""
    NUM_EXAMPLES_ASSUMED = "num-examples-assumed"
    """The number of examples was assumed, since nothing says it."""
    OPTIMIZER = "optimizer"
    """Which local optimizer the update looks like."""
    ORDER = "order"
    """The order of examples cannot be recovered from a sum over them."""
    ORDER_UNKNOWN = "order-unknown"
    """The client shuffles, and the attack is not told the order."""
    PARTIAL_UPDATE = "partial-update"
    """The client sends only some of its tensors."""
    PRUNED = "pruned"
    """Entries of the update were set to zero."""
    QUANTIZED = "quantized"
    """The update stands on few levels, or in a coarse number format."""
    RANK = "rank-exceeds-examples"
    """A gradient has a higher rank than the stated number of examples allows."""
    REHEARSAL_CACHE = "rehearsal-cache"
    """Rehearsals of an earlier audit that could not be used, or new ones that could not be kept."""
    RELU_SIDES = "relu-sides"
    """Negative inputs of inactive ReLUs cannot be recovered; only their sign is known."""
    REPEATED_LABELS = "repeated-labels"
    """Several examples have the same label, which attacks that rely on distinct ones do not expect."""
    ROWS_LEFT_OUT = "rows-left-out"
    """Rows of a table in which a number or the target is missing."""
    SAME_UPDATE = "same-update"
    """The result makes the same update again, and is not shown to be the only one that does."""
    SAMPLING_UNKNOWN = "sampling-unknown"
    """How the client sampled its examples is not told to the attack."""
    SCALE = "scale"
    """The update's scale, kind or number of examples contradicts what is stated, or was confirmed."""
    SCHEMA = "schema"
    """What was read of a table, and what each of its columns is, as it was inferred or stated."""
    SECURE_AGGREGATION = "secure-aggregation"
    """The server sees only the sum over several clients."""
    SHAPES = "shapes"
    """Shapes of the update's tensors do not fit the network."""
    SIGN = "sign"
    """The update's sign contradicts what is stated, or was confirmed."""
    TOO_FEW_EQUATIONS = "too-few-equations"
    """The update holds fewer independent numbers than the pictures have values."""
    VECTORIZED_FALLBACK = "vectorized-fallback"
    """Restarts evaluated together differed from single ones or failed, and were evaluated one by one."""
    ZERO_ENTRIES = "zero-entries"
    """Entries of the update that are zero, by a defense or by nature, tell nothing."""
    ZERO_HEAD = "zero-head"
    """The head's weights are zero, so that no gradient reaches the layers below."""
    ZERO_ROWS = "zero-rows"
    """Rows of a layer's gradient are zero: those units were off for every example."""
    ZERO_UPDATE = "zero-update"
    """Every entry of the update is zero."""

    def __repr__(self) -> str:
        """As the text that reports hold."""
        return repr(self.value)


@dataclass(frozen=True)
class Finding:
    """One thing that an audit found out about a setting, in plain words.

    Args:
        code: what it is about, one of `Code`; another attack's finding may have a name of its own.
        level: `"info"`, `"warning"` or `"error"`.
        message: what it is, and what to do about it.
        evidence: the figures behind it, for people.
        unfit: whether the update's names, shapes or numbers are none that the network could be compared by.

    >>> Finding(Code.SIGN, "error", "Negate the tensors.").to_dict()
    {'code': 'sign', 'level': 'error', 'message': 'Negate the tensors.', 'evidence': {}}
    """

    code: str
    level: Literal["info", "warning", "error"]
    message: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    unfit: bool = field(default=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """As reports hold it."""
        return {
            "code": str(self.code),
            "level": self.level,
            "message": self.message,
            "evidence": dict(self.evidence),
        }


def table() -> str:
    """All codes with their meaning, as a table in Markdown: the page of the reference."""
    lines = [each.strip() for each in inspect.getsource(Code).splitlines()]
    meanings = {line.partition(" = ")[0]: after.strip('"') for line, after in pairwise(lines) if " = " in line}
    rows = [f"| `{code}` | {meanings[code.name]} |" for code in Code]
    return "\n".join(["| code | what it means |", "|---|---|", *rows]) + "\n"
