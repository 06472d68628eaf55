"""Sign and scale: whether an update is the gradient that is stated, from the head's sums and counts.

    delta = -lr S g :   a wrong sign is a gradient that no labels explain,
                        a wrong --learning-rate one that is too large for any batch, or too small for this one

What is exact is an error: a bias gradient beyond what any batch can give, one example whose label is known to the last
digit. What rests on features of a class being alike is a warning. Nothing is said where the update was altered.
"""

import math
from collections.abc import Mapping

import torch

from inversefed.findings import Code
from inversefed.types import Finding
from inversefed.updates.diagnosis.cures import USUAL, cure
from inversefed.updates.diagnosis.evidence import Subject, passes, rms
from inversefed.updates.diagnosis.head_sums import too_large
from inversefed.updates.diagnosis.label_counts import Counts, counts

__all__ = ["is_weights", "kind_contradicted", "signs_and_scale", "signs_only"]

_EXACT = 0.02
"""Relative residual up to which one example explains a gradient to the digit, after one step."""
_NEAR = 0.35
"""The same after several steps."""
_DRIFT = 0.25
"""Change of the head's probabilities over the local steps, beyond which what they say at one place means little."""
_SPREAD = 0.6
"""Difference of the classes' probabilities, beyond which hard and easy examples of a class are too unlike."""
_WHOLE, _NOT_WHOLE = 0.02, 0.035
"""Mean squared distance of counts from whole numbers, up to which they are, and from which on they are not, if those of
the other sign are."""
_BROKEN, _SHARPER = 0.065, 0.06
"""The same where neither sign's are, and the standard error of a count up to which that is said: of 284 good updates
of networks with six classes none was above 0.053."""
_MOST = 1e3
"""Scale above which no labels explain a gradient but by chance; one so wrong is larger than any batch could make it."""
_MISFIT = 0.4
"""What no labels explain of the bias gradient, above which they do not explain it."""

_EXPLAINED = 0.15
"""What they leave of it where they do, if not what they leave of the other sign."""


def kind_contradicted(subject: Subject) -> tuple[Finding, ...]:
    """Whether a change was given as weights, or weights as a change.

    Returns:
        An error `scale`, or nothing.
    """
    looks = is_weights(subject)
    if looks is None or looks == (subject.kind == "new_weights"):
        return ()
    if looks:
        message = (
            f"The tensors are the weights themselves, not a {subject.kind.replace('_', ' ')}: they are close to those "
            "of --weights. Give the file with --after, or set --kind new_weights."
        )
    else:
        message = (
            "The tensors are no new weights: they have nothing in common with those of --weights. If the file holds a "
            "change, set --kind weight_delta (new minus old) or --kind gradient; else check --weights."
        )
    return (Finding(Code.SCALE, "error", message, {"kind": subject.kind}),)


def is_weights(subject: Subject) -> bool | None:
    """Whether the tensors are near the network's weights; `None` if that cannot be told."""
    pairs = [(subject.values[name], subject.weights[name]) for name in subject.values]
    product = sum(float((ours * theirs).sum()) for ours, theirs in pairs)
    size = math.sqrt(sum(float(ours.square().sum()) for ours, _ in pairs))
    own = math.sqrt(sum(float(theirs.square().sum()) for _, theirs in pairs))
    if not size or not own:
        return None
    alike = product / (size * own)
    if alike > 0.9 and 0.5 < size / own < 2:
        return True
    return False if alike < 0.5 else None


def signs_and_scale(subject: Subject, altered: bool) -> tuple[Finding, ...]:
    """Hold the head's gradient to what labels can explain.

    Args:
        subject: the update.
        altered: whether it was noised, pruned or quantized, so that exact relations do not hold.

    Returns:
        `sign` and `scale`: errors where they are exact, warnings, or an info that says what was estimated.
    """
    read = counts(subject)
    unknown = _unknown_rate(subject, read)
    if read is None:
        return (*_beyond(subject, None, altered), *unknown)
    if read.drift > _DRIFT:
        return (*_beyond(subject, None, altered), *unknown)
    alone = _alone(subject, read, altered) if read.draws == 1 else None
    if alone is not None:
        return (*alone, *unknown)
    if read.draws == 1 and subject.single and not altered:
        return (_not_one(read),)
    beyond = _beyond(subject, read, altered)
    sign = _sign(subject, read, altered)
    scale = beyond or _too_small(subject, read, altered) or (() if sign else _broken(subject, read, altered))
    return (*sign, *scale, *unknown)


def signs_only(subject: Subject) -> tuple[Finding, ...]:
    """Ask the signs of the head's bias alone: in no step of any optimizer are more negative than there are labels.

    Returns:
        An error `sign`, or nothing.
    """
    if subject.head_bias is None or subject.examples is None or subject.is_smoothed:
        return ()
    bias = subject.raw[subject.head_bias]
    clear = bias.abs() > 1e-3 * bias.abs().max()
    negative, positive = int((clear & (bias < 0)).sum()), int((clear & (bias > 0)).sum())
    if negative <= subject.examples or positive > subject.examples:
        return ()
    return (_wrong_sign(subject, "error", {"negative": negative, "positive": positive}),)


def _alone(subject: Subject, read: Counts, altered: bool) -> tuple[Finding, ...] | None:
    """One example: label, sign and scale follow exactly. `None` if one example does not explain the gradient."""
    label, scale, residual = read.alone
    if residual > (_EXACT if subject.single and not altered else _NEAR):
        return None
    evidence = {"label": label, "factor": scale, "residual": residual}
    found = []
    if scale < 0:
        found.append(_wrong_sign(subject, "warning" if altered else "error", evidence))
    off = abs(math.log(abs(scale)))
    if subject.scale is not None and off > math.log(1.1 if subject.single and not altered else 2):
        nearness = 1.1 if subject.single and not altered else 1.5
        found.append(_wrong_scale(subject, abs(scale), _beyond_level(subject, altered), evidence, nearness))
    if not found:
        message = f"Sign and scale are those of a gradient of one example of class {label}, as stated."
        found.append(Finding(Code.SIGN, "info", message, evidence))
    return tuple(found)


def _not_one(read: Counts) -> Finding:
    """One example is stated, and one example cannot have made the head's gradient with these weights."""
    evidence = {"residual": read.alone.residual, "spread": read.spread}
    if read.spread < 0.01:
        message = (
            "The head's gradient contradicts its weights: no label of one example explains it. The update was made at "
            "other weights: give those that the client was sent as --weights, and check --loss. Or several examples "
            "made it: check --num-examples."
        )
        return Finding(Code.NAMES, "warning", message, evidence)
    message = (
        "One example is stated, but several made this update: their features at the head differ. Give --num-examples."
    )
    return Finding(Code.SCALE, "warning", message, evidence)


def _sign(subject: Subject, read: Counts, altered: bool) -> tuple[Finding, ...]:
    stated, other = (read.misfit(sign) + read.off_integers(sign) for sign in (1, -1))
    evidence = {"unexplained": stated, "unexplained_flipped": other}
    if _too_many_labels(subject, read) and not altered:
        return (_wrong_sign(subject, "error", evidence),)
    if subject.scale is None:
        first, second = read.least_scale(1), read.least_scale(-1)
        flat = float((read.errors + torch.eye(len(read.bias))).max()) < 0.6
        if flat and second < 0.4 * first:
            return (_wrong_sign(subject, "warning", {"least_scale": first, "least_scale_flipped": second}),)
        return ()
    bound = 0.12 + 0.25 * min(read.spread, 1.0) + 2 * read.drift
    if stated > bound and other < 0.35 * stated and not _has_momentum(subject, read):
        return (_wrong_sign(subject, "warning", evidence),)
    ours, theirs = (_from_whole(subject, read, sign) for sign in (1, -1))
    if ours > _NOT_WHOLE and theirs < _WHOLE and not altered:
        evidence = {"from_whole_numbers": ours, "from_whole_numbers_flipped": theirs}
        return (_wrong_sign(subject, "warning", evidence),)
    return ()


def _has_momentum(subject: Subject, read: Counts) -> bool:
    """Whether labels explain the gradient of several steps once usual momentum is taken off, of which nobody spoke."""
    steps = subject.steps or 1
    if subject.kind == "gradient" or subject.metadata.momentum or steps < 2:
        return False
    return read.misfit(1, passes(steps, USUAL) / steps) < max(_EXPLAINED, read.misfit(-1))


def _from_whole(subject: Subject, read: Counts, sign: int = 1) -> float:
    """How far label counts are from whole numbers; 0 where nothing can be said, as with soft labels or many steps."""
    plain = subject.single and not subject.is_smoothed
    return read.from_whole(sign) if plain else 0.0


def _broken(subject: Subject, read: Counts, altered: bool) -> tuple[Finding, ...]:
    """Label counts that are not whole, where they should be."""
    off = _from_whole(subject, read)
    if altered or subject.scale is None or off < _BROKEN or read.blur > _SHARPER:
        return ()
    message = (
        f"The head's gradient stands for no whole numbers of examples: not those of {read.draws} at the stated scale. "
        f"Check {_scaling(subject)}; or the labels were mixed or smoothed."
    )
    return (Finding(Code.SCALE, "warning", message, {"from_whole_numbers": off}),)


def _scaling(subject: Subject) -> str:
    own = "" if subject.kind == "gradient" else "--learning-rate and --local-steps, "
    return f"--num-examples, {own}--loss-reduction and --kind"


def _too_many_labels(subject: Subject, read: Counts) -> bool:
    """Whether more entries are negative than there are examples, and the other sign would do."""
    if subject.examples is None or subject.is_smoothed:
        return False
    clear = read.bias.abs() > 1e-4 * read.bias.abs().max()
    negative, positive = int((clear & (read.bias < 0)).sum()), int((clear & (read.bias > 0)).sum())
    return negative > subject.examples >= positive


def _wrong_sign(subject: Subject, level: str, evidence: Mapping[str, object]) -> Finding:
    cure = {
        "gradient": "If the file holds new minus old weights, set --kind weight_delta and --learning-rate; else negate "
        "the tensors",
        "weight_delta": "A weight delta is new minus old: negate the tensors, or set --kind gradient if they are one",
        "new_weights": "Swap the files of --weights (before training) and --after",
    }[subject.kind]
    message = f"The sign is wrong: read as a {subject.kind.replace('_', ' ')}, no labels explain the head. {cure}."
    return Finding(Code.SIGN, "error" if level == "error" else "warning", message, evidence)


def _beyond(subject: Subject, read: Counts | None, altered: bool) -> tuple[Finding, ...]:
    """A gradient that is larger than any batch could make it, or than any labels explain."""
    factor = too_large(subject)
    if factor > 1.05:
        least = read.least_scale() if read is not None else factor
        best = least if math.isfinite(least) and least > factor else factor
        level = _beyond_level(subject, altered)
        nearness = 2.0 if read is not None and best == least else math.inf
        return (_wrong_scale(subject, best, level, {"factor": best, "bound_exceeded": factor}, nearness),)
    if read is None or subject.scale is None or altered:
        return ()
    least = read.least_scale()
    alike = read.spread < _SPREAD
    other = read.misfit(-1) > 0.4 * read.misfit(1) or _has_momentum(subject, read)
    if alike and 2.5 < least < _MOST and read.misfit(1) > _MISFIT and other:
        return (_wrong_scale(subject, least, "warning", {"factor": least}),)
    return ()


def _too_small(subject: Subject, read: Counts, altered: bool) -> tuple[Finding, ...]:
    """A gradient that is too small for a batch of so few examples."""
    # With as many examples as classes a balanced batch has as small a gradient.
    if altered or subject.scale is None or read.draws is None or read.draws >= len(read.bias):
        return ()
    off = read.off_integers()
    if off > (0.4 if read.spread < 0.3 else 0.9) and read.misfit(1) < 0.3:
        least = read.least_scale()
        return (_wrong_scale(subject, least, "warning", {"factor": least, "off_integers": off}),)
    return ()


def _beyond_level(subject: Subject, altered: bool) -> str:
    return "error" if too_large(subject) > 1.05 and not altered else "warning"


def _wrong_scale(
    subject: Subject, factor: float, level: str, evidence: Mapping[str, object], nearness: float = 2.0
) -> Finding:
    advice = cure(subject, factor, nearness)
    how = "at least" if math.isinf(nearness) else "about"
    message = f"The scale is wrong: the head's gradient is {how} {factor:.2g} times what is stated. {advice}"
    return Finding(Code.SCALE, "error" if level == "error" else "warning", message, evidence)


def _unknown_rate(subject: Subject, read: Counts | None) -> tuple[Finding, ...]:
    """A weight delta whose scale nobody states: a warning, with an estimate where there is one."""
    if subject.scale is not None:
        return ()
    missing = [
        option
        for option, value in (
            ("--learning-rate", subject.kind == "gradient" or subject.metadata.learning_rate),
            ("--batch-size", subject.per_step),
        )
        if not value and (option != "--batch-size" or subject.is_summed)
    ]
    least = (
        math.inf if read is None else min(read.least_scale(), abs(read.alone.scale) if read.draws == 1 else math.inf)
    )
    guess = f" Learning rate times local steps is about {least:.2g}, by the head." if math.isfinite(least) else ""
    message = f"The scale of the update is not known: {' and '.join(missing)} not given.{guess}"
    size = {name: rms(part) for name, part in list(subject.raw.items())[-2:]}
    return (Finding(Code.SCALE, "warning", message, {"missing": missing, "estimate": guess and least, "size": size}),)
