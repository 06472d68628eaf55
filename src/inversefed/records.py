"""Records that somebody asks for: were they in the update?

    (observation, records, records that are out) --membership_scores--> scores --judge_members--> Membership

Where reconstruction ends, at large batches and trained networks, an update still tells this. The network and the update
are the attack's matter, truth and statistics the judgement's; they meet here.
"""

import torch
from torch import Tensor

from inversefed.attacks.membership_scores import membership_scores
from inversefed.errors import InputError
from inversefed.evaluation.membership import Membership, judge_members
from inversefed.fl.checks import check_public
from inversefed.fl.foreign import foreign_code
from inversefed.fl.threat import Observation
from inversefed.types import Batch, Targets

__all__ = ["are_of", "membership"]


def membership(
    observation: Observation,
    candidates: Batch | Tensor,
    *,
    out: Batch | Tensor,
    labels: Targets | None = None,
    members: Tensor | None = None,
) -> Membership:
    """Say of records whether they were in the update.

    Args:
        observation: the update, of any client, with what the server knows.
        candidates: the records that are asked for: pictures `[k, c, h, w]` in [0, 1], or with labels as a `Batch`.
        out: records of the same kind that are known not to be in the update, at least one; 19 let one be called at a
            level of 5 %, 100 and 1,000 tell of false alarms of 1 % and 0.1 %.
        labels: of `candidates` where these are pictures alone, `[k]`, or of `candidates` and `out` one after the other,
            `[k + m]`; -1 is not known, and the class that fits best counts. Where a candidate's is not known, no
            record's is used, for all must be treated alike. Where those of `out` alone are not known, the best of all
            classes raises their scores, so that p-values are too large rather than too small.
        members: which candidates were in the update, `[k]`, where that is known; the scores never see it.

    Returns:
        Scores, p-values, and how well records that were in are told from others.

    Raises:
        InputError: pictures of another shape, no picture, or numbers of labels or members that do not fit.
        ThreatModelError: labels that are not known, of a loss that takes no classes.

    >>> from inversefed.fl.simulate import observed
    >>> images = torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> labels, net = torch.arange(40) % 4, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 4))
    >>> observation, _ = observed(net, images[:4], labels[:4])
    >>> found = membership(observation, images[:2], out=Batch(images[4:], labels[4:]), labels=labels[:2])
    >>> found.called.tolist()
    [True, True]
    """
    of_out = None
    if labels is not None and isinstance(candidates, Tensor) and isinstance(out, Tensor):
        count = len(labels) - len(out)
        if count == len(candidates):
            labels, of_out = labels[:count], labels[count:]
    asked, known_out = _batch(candidates, labels), _batch(out, of_out)
    space, count = observation.network.space, len(asked.images)
    for name, batch in (("candidates", asked), ("out", known_out)):
        check_public(space, batch.images, name)
    if members is not None and (members.shape != (count,) or members.dtype != torch.bool):
        raise InputError(f"members must be {count} truth values, one a candidate; got {members.dtype} {members.shape}")
    both = _alike(asked, known_out)
    with foreign_code("the gradient of a record"):
        scores = membership_scores(observation, both)
    return judge_members(scores[:count], scores[count:], members)


def are_of(images: Tensor, truth: Batch) -> Tensor:
    """Which pictures are among the private ones, pixel by pixel, `[k]`.

    >>> are_of(torch.tensor([0.2, 0.5]).view(2, 1, 1, 1), Batch(torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])))
    tensor([False,  True])
    """
    rows, private = images.detach().cpu().flatten(1), truth.images.detach().cpu().to(images.dtype).flatten(1)
    return torch.stack([(rows == each).all(dim=1) for each in private]).any(dim=0)


def _batch(records: Batch | Tensor, labels: Targets | None) -> Batch:
    if isinstance(records, Batch):
        if labels is not None:
            raise InputError("candidates have their labels with them; give pictures alone beside labels=")
        return records
    if not isinstance(records, Tensor):
        raise InputError(f"candidates are a tensor of examples, or a Batch with labels; got {type(records).__name__}")
    if labels is None:
        labels = torch.full((len(records),), -1)
    if len(labels) != len(records):
        raise InputError(f"labels must be {len(records)}, one a candidate, -1 where it is not known; got {len(labels)}")
    return Batch(records, labels)


def _alike(asked: Batch, out: Batch) -> Batch:
    """All records, with labels only where all that are asked for have them."""
    labels = torch.cat([asked.labels.cpu(), out.labels.cpu()])
    if not labels.is_floating_point() and bool((asked.labels == -1).any()):
        labels = torch.full_like(labels, -1)
    return Batch(torch.cat([asked.images.cpu(), out.images.cpu()]), labels)
