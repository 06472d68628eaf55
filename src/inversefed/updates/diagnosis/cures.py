"""Cures of a wrong scale: another learning rate, number of steps, momentum, or a summed loss.

    new - old = -lr S g,      S = T                                            T plain steps
                              S = sum_t (1 - m^t) / (1 - m),  t = 1..T         with momentum m
                              S = T + m sum_t (1 - m^t) / (1 - m)              with Nesterov's

and `n` times as much where the client sums its loss over `n` examples. Of several that fit equally well all are named.
"""

import math
from collections.abc import Iterator

from inversefed.updates.diagnosis.evidence import Subject, passes

__all__ = ["USUAL", "cure"]

USUAL = 0.9
"""Momentum that is tried where none is stated."""
_MOST_STEPS = 200
"""Local steps that are tried where none are stated."""
_ALIKE = math.log(1.15)
"""Explanations so near to the best are named beside it."""
_LEFT = math.log(1.1)
"""What the best one has to leave, for it to be said."""


def cure(subject: Subject, factor: float, nearness: float) -> str:
    """What to change where the gradient is so many times what is stated.

    Args:
        subject: the update.
        factor: its scale over the stated one.
        nearness: factor up to which that is known; infinite where it is only known to be so much at least.
    """
    least = math.isinf(nearness)
    off = {words: math.log(factor / ratio) for words, ratio in _ways(subject, factor)}
    fitting = [words for words in off if (off[words] < _LEFT if least else abs(off[words]) < math.log(nearness))]
    found = sorted(fitting, key=lambda words: abs(off[words]))
    if not found:
        return _rate(subject, factor)
    best = off[found[0]]
    named = [words for words in found if least or abs(off[words]) < abs(best) + _ALIKE][:4]
    rate = subject.metadata.learning_rate
    if subject.kind != "gradient" and rate is not None:
        named.append(f"--learning-rate {rate * factor:.2g}{' or more' if least else ''}")
    every = f"{', '.join(named[:-1])}, or {named[-1]}" if len(named) > 1 else named[0]
    left = f" The first leaves a factor of {math.exp(best):.2g} unexplained." if abs(best) > _LEFT and not least else ""
    return f"It could be right with {every}: set what the client did.{left}"


def _rate(subject: Subject, factor: float) -> str:
    """The advice where nothing but the learning rate explains it."""
    rate = subject.metadata.learning_rate
    if subject.kind == "gradient" or rate is None:
        if factor < 1:
            return "It was clipped, or multiplied by a learning rate: then set --kind weight_delta and --learning-rate."
        return "Set --loss-reduction sum and --batch-size if the loss is summed, or divide the tensors."
    return (
        f"With the stated --local-steps, --learning-rate would be about {rate * factor:.2g}, not {rate:g}; usual "
        "momentum, other numbers of steps or a summed loss do not explain it. Or the update was clipped, or averaged."
    )


def _ways(subject: Subject, factor: float) -> Iterator[tuple[str, float]]:
    """What clients do that metadata may not tell, with the factor that it makes."""
    count = subject.per_step
    if count is not None and count > 1:
        if subject.is_summed:
            yield f"--loss-reduction mean, if the client averages its loss over {count} examples", 1 / count
        else:
            yield f"--loss-reduction sum, if the client sums its loss over {count} examples", float(count)
    if subject.kind != "gradient" and subject.metadata.learning_rate is not None:
        yield from _training(subject, factor)


def _training(subject: Subject, factor: float) -> Iterator[tuple[str, float]]:
    """Other steps and other momentum than what is stated."""
    told = subject.metadata
    own, keep = told.local_steps or 1, told.momentum or 0.0
    stated = passes(own, keep)
    for momentum in {keep, 0.0} if keep else (0.0, USUAL):
        words = f"--momentum {momentum:g}" if momentum != keep else ""
        if words and told.local_steps:
            yield words, passes(own, momentum) / stated
        other = _nearest(factor * stated, momentum, own if told.local_steps else _MOST_STEPS)
        if other != own and not (words and told.local_steps):
            yield f"--local-steps {other}{words and ' with '}{words}", passes(other, momentum) / stated
    if told.local_steps or factor < 2:
        nesterov = keep or USUAL
        client = f"FedAvg(.., optimizer=LocalSGD({nesterov:g}, nesterov=True))"
        yield f'Nesterov\'s momentum, --client "{client}"', (own + nesterov * passes(own, nesterov)) / stated


def _nearest(gradients: float, momentum: float, most: int) -> int:
    """The number of local steps that goes so many gradients, as nearly as any."""
    return min(range(1, most + 1), key=lambda steps: abs(math.log(passes(steps, momentum) / gradients)))
