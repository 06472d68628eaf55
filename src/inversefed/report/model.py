"""What an audit found, as one value, and its forms: text, JSON, Markdown, one page of HTML, a folder.

    Report = setting + reconstruction + truth + scores + what the controls score + findings

The value holds plain data; how each form looks is the matter of `text`, `html` and `folder`, which are
imported when they are asked for. Nothing in `report.json` is NaN or infinite: what is not finite is null.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inversefed.evaluation.align import Permutation
from inversefed.evaluation.bounds import Bounds
from inversefed.evaluation.choice import Choice
from inversefed.evaluation.label_leakage import LabelLeakage
from inversefed.evaluation.membership import Membership
from inversefed.evaluation.verdict import Answer, Verdict
from inversefed.inputs import InputSpace, pictured
from inversefed.report.frontier import Row, swept
from inversefed.report.read import FORMAT
from inversefed.report.sentences import headline
from inversefed.report.spoken import spoken
from inversefed.report.tables import Table, tables
from inversefed.report.to_json import judged, limited, plain
from inversefed.types import Batch, Finding, Inputs, Limit, Reconstruction, Scores, Status, Targets

if TYPE_CHECKING:
    from inversefed.report.summary import Summary

__all__ = ["Report"]

SCHEMA = 1
"""Which version of `schema/report.schema.json` a report keeps to."""

_WITHOUT_WEIGHTS = {"learned_perceptual_image_patch_similarity": "no weights"}


@dataclass(frozen=True, eq=False)
class Report:
    """The result of an audit, ready to be read, written, and run again.

    Args:
        scenario: what was audited and what the server knows: values that JSON can hold, by name.
        attack: the attack as people read it, its recipe with what was changed; the scenario has it whole.
        reconstruction: what it recovered, in the attack's own order, and how it ended.
        truth: the private examples, `None` where there are none to compare with.
        permutation: entry `i` is the index of the reconstruction paired with truth `i`; `None` keeps the order.
        scores: one number per image, in the order of the truth, by the metric's name.
        baselines: what the controls score: by the control's name, then the metric's.
        findings: what was found out about the setting.
        seconds: wall time of the attack.
        config: the resolved configuration that runs this again.
        environment: versions and machine, by name; `"inversefed"` is the version of the library.
        verdict: what it comes to; `None` where nobody judged.
        not_computed: metrics that could have been asked for, and why they are not among the scores.
        frontier: points of a sweep over defenses.
        controls: the pictures behind the baselines, by the control's name, in the order of the truth.
        agreement: by how many decibels other starts agree on each picture, in the attack's own order, as `agreement`
            measures it; `None` where there was no other start.
        reproduces: whether the client makes the observed update again of what was recovered.
        limit: how much of the pictures the update holds; `None` where that is not known.
        without_limit: why it is not known; empty where it is, or nobody asked.
        membership: which records that somebody asked for were in the update; `None` where nobody did.
        label_leakage: how sure it is that labels were recovered; `None` where they were granted, or are not known.
        choice: how the attack was chosen on public stand-ins; `None` where it was not.
        bounds: what no attack exceeds; `None` where nothing limits them and no noise was added.
        inputs: what the examples are; `None` for pictures.

    >>> import torch
    >>> from inversefed.evaluation.score import score
    >>> truth = Batch(torch.rand(1, 3, 16, 16), torch.tensor([4]))
    >>> found = Reconstruction(truth.images, truth.labels, loss=0.0, status=Status.FINISHED)
    >>> report = Report("peek()", found, truth, scores=score(truth, truth), seconds=0.1)
    >>> report.to_dict()["scores"]["peak_signal_noise_ratio"]
    [200.0]
    """

    attack: str
    reconstruction: Reconstruction
    truth: Batch | None = None
    permutation: Permutation | None = None
    scores: Mapping[str, Scores] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, Scores]] = field(default_factory=dict, repr=False)
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0
    scenario: Mapping[str, Any] = field(default_factory=dict, repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    verdict: Verdict | None = None
    controls: Mapping[str, Inputs] = field(default_factory=dict, repr=False)
    not_computed: Mapping[str, str] = field(default_factory=lambda: dict(_WITHOUT_WEIGHTS), repr=False)
    frontier: tuple[Row, ...] = field(default=(), repr=False)
    agreement: Scores | None = field(default=None, repr=False)
    reproduces: bool = False
    limit: Limit | None = None
    without_limit: str = ""
    membership: Membership | None = field(default=None, repr=False)
    label_leakage: LabelLeakage | None = None
    choice: Choice | None = None
    bounds: Bounds | None = None
    inputs: InputSpace | None = None

    @property
    def pictured(self) -> bool:
        """Whether the examples are pictures."""
        return pictured(self.inputs)

    @property
    def status(self) -> Status:
        """How the attack ended."""
        return self.reconstruction.status

    @property
    def count(self) -> int:
        """How many pictures were recovered."""
        return len(self.reconstruction.images)

    @property
    def images(self) -> Inputs:
        """The recovered pictures, or examples of another space, in the order of the truth."""
        images = self.reconstruction.images
        return images if self.permutation is None else images[self.permutation.to(images.device)]

    @property
    def labels(self) -> Targets:
        """The recovered labels, in the order of the truth."""
        labels = self.reconstruction.labels
        return labels if self.permutation is None else labels[self.permutation.to(labels.device)]

    @property
    def agreed(self) -> Scores | None:
        """The agreement of other starts, in the order of the truth."""
        if self.agreement is None or self.permutation is None:
            return self.agreement
        return self.agreement[self.permutation.to(self.agreement.device)]

    @property
    def headline(self) -> str:
        """What was recovered, in one sentence, with what the controls score."""
        also, leaked = "", self.verdict is not None and self.verdict.leaked
        if self.verdict is not None and self.verdict.answer == Answer.IN_THE_UPDATE:
            also = "it is in it" if self.count == 1 else "more is in it"
        elif self.membership is not None and self.membership.found and not leaked:
            also = "records that were asked for are in it"
        return spoken(headline(self.scores, self.baselines, self.count, also), self.inputs)

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """The scores with the controls beside them, a table a metric."""
        return tables(self.scores, self.baselines)

    @cached_property
    def digest(self) -> "Summary":
        """What the report says in words, computed once; all its forms render it."""
        from inversefed.report.summary import summarize

        return summarize(self)

    @property
    def setting(self) -> tuple[tuple[str, str], ...]:
        """What was audited, how, and where: names and values as text."""
        facts = {"attack": self.attack, "status": self.status, "seconds": f"{self.seconds:.1f}"}
        audited = {name: value for name, value in self.scenario.items() if name not in {*facts, "versions"}}
        named = [*facts.items(), *audited.items(), *self.environment.items()]
        return tuple((name, _text(value)) for name, value in named)

    def summary(self) -> str:
        """The report as text for a terminal: headline, a table a metric, findings."""
        from inversefed.report.text import terminal

        return terminal(self.digest)

    def to_dict(self) -> dict[str, Any]:
        """The report as dictionaries, lists, strings and finite numbers; pictures are left out."""
        truth, candidates = self.truth, self.reconstruction.candidates
        whole = {
            "format": FORMAT,
            "schema": SCHEMA,
            "version": self.environment.get("inversefed"),
            "headline": self.headline,
            "verdict": self.verdict and judged(self.verdict),
            "limit": limited(self.limit, self.without_limit),
            "attack": self.attack,
            "status": self.status,
            "seconds": self.seconds,
            "scores": self.scores,
            "baselines": self.baselines,
            "not_computed": self.not_computed,
            "labels": {"recovered": self.labels, "true": truth and truth.labels},
            "permutation": self.permutation,
            "agreement": self.agreed,
            "loss": self.reconstruction.loss,
            "matching_error": self.reconstruction.matching_error,
            "undetermined": self.reconstruction.undetermined,
            "proven": self.reconstruction.proven,
            "made_by": self.reconstruction.made_by,
            "candidates": [
                {"loss": c.loss, "status": c.status, "iterations": c.iterations, "restart": c.restart, "seed": c.seed}
                for c in candidates
            ],
            "findings": [finding.to_dict() for finding in self.findings],
            "scenario": self.scenario,
            "config": self.config,
            "environment": self.environment,
        }
        beside = {name: value for name, value in self._beside().items() if value is not None}
        points = {"frontier": [swept(row) for row in self.frontier]} if self.frontier else {}
        return {name: plain(value) for name, value in (whole | beside | points).items()}

    def _beside(self) -> dict[str, Any]:
        """What some audits have: records, labels, a choice, bounds."""
        records = self.membership
        return {
            "membership": records
            and {
                **vars(records),
                "auc": records.auc and records.auc.plain(),
                "called_at": [vars(each) for each in records.called_at],
                "called": records.called,
            },
            "label_leakage": self.label_leakage and vars(self.label_leakage),
            "choice": self.choice and self.choice.plain(),
            "bounds": self.bounds and asdict(self.bounds),
        }

    def to_json(self) -> str:
        """The dictionary of `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """The report in Markdown."""
        from inversefed.report.text import markdown

        return markdown(self.digest)

    def to_html(self, images: bool = True) -> str:
        """The report as one page that needs no network and runs no script.

        Args:
            images: whether the page shows pictures; without them no pixel is in it.
        """
        from inversefed.report.html import page

        return page(self, images)

    def save(self, folder: str | Path, overwrite: bool = False, images: bool = True, tensors: bool = False) -> Path:
        """Write `report.json`, `report.html`, `report.md` and a PNG for every target and reconstruction.

        Args:
            folder: where the files go; made, for its owner only, if it is not there.
            overwrite: whether files of an earlier report may be replaced; others are never touched.
            images: whether pictures are written; `False` leaves no pixel on disk, and removes those of an earlier
                report that is replaced.
            tensors: whether `reconstruction.safetensors` is written too: images and labels as they were recovered, to
                the last bit, in the attack's own order.

        Returns:
            The folder's path.

        Raises:
            InputError: the folder is not empty and `overwrite` is false, or it cannot be written to.
        """
        from inversefed.report.folder import check_folder, write_files

        check_folder(folder, overwrite)
        return write_files(folder, self.files(images, tensors), overwrite)

    def files(self, images: bool = True, tensors: bool = False) -> dict[str, bytes]:
        """What `save` writes, by file name; a process that does not share the folder sends it so."""
        from safetensors.torch import save

        from inversefed.report.folder import TENSORS
        from inversefed.report.png import png

        shown = images and self.pictured
        named = {"target": self.truth.images if self.truth else (), "reconstruction": self.images} if shown else {}
        pictures = {f"{name}_{index:02d}.png": png(image) for name, i in named.items() for index, image in enumerate(i)}
        texts = {"report.json": self.to_json(), "report.html": self.to_html(images), "report.md": self.to_markdown()}
        # A file name that is not Unicode holds characters without an encoding; JSON reads the escapes back.
        encoded = {name: text.encode(errors="backslashreplace") for name, text in texts.items()}
        if tensors:
            found = {"images": self.reconstruction.images, "labels": self.reconstruction.labels}
            # Labels of a language model are its sentences, and a file holds no tensor under two names.
            encoded[TENSORS] = save({name: each.detach().cpu().contiguous().clone() for name, each in found.items()})
        return pictures | encoded


def _text(value: Any) -> str:
    found = plain(value)
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
