"""What the documents say is true: their examples run, their options and their links exist."""

import ast
import dataclasses
import json
import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import inversefed
from docs import make_house
from inversefed.attacks.pieces import priors
from inversefed.cli import main
from inversefed.cli.commands import COMMANDS
from inversefed.cli.options import Audit, Defend, InLedger, Inspect, Train, parse
from inversefed.specs import registry

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")] + [
    path for path in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in path.parts
]
COMMAND_LINE = ROOT / "docs" / "reference" / "command-line.md"


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a language in a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands() -> list:
    """Every line of every page that calls `inversefed`, up to a redirection."""
    found = {}
    for page in PAGES:
        for line in "\n".join(blocks(page, "shell")).splitlines():
            call = re.search(rf"(?:^|\s)(?:\S*/)?inversefed ((?:{'|'.join(COMMANDS)})\b.*)", line)
            if call:
                found.setdefault(call[1], page.relative_to(ROOT))
    return [pytest.param(line, id=f"{page}: {line}") for line, page in found.items()]


def options_of(*command: str) -> set[str]:
    """The options in a page of help."""
    return set(re.findall(r"--[a-z][a-z-]*", " ".join(command)))


def test_the_blocks_of_the_readme_run_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    step, audit, dialect = blocks(ROOT / "README.md", "python")

    monkeypatch.chdir(tmp_path)
    exec(step, {})
    lines = [shlex.split(line) for line in blocks(ROOT / "README.md", "shell")[1].splitlines()]
    assert [main(words[1:]) for words in lines] == [0, 0, 3]
    assert "gate: above: an exact recovery" in capsys.readouterr().out

    names: dict = {}
    exec(audit, names)
    assert "dB" in capsys.readouterr().out
    assert names["report"].scores["peak_signal_noise_ratio"].shape == (1,)

    exec(dialect.replace("max_iterations=200", "max_iterations=3"), names)
    assert names["output"].shape == (1, 3, 32, 32)
    assert names["stats"]["opt"] >= 0


def prior_text_of_contributing() -> str:
    """The class in CONTRIBUTING.md, as it stands there."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    between = re.search(r"<!-- a prior: begin -->\s*```python\n(.*?)```\s*<!-- a prior: end -->", text, re.DOTALL)
    assert between, "CONTRIBUTING.md has lost the markers around its example"
    return between[1]


def prior_of_contributing() -> type:
    """The class in CONTRIBUTING.md, defined where the page says that it goes."""
    names = dict(vars(priors))
    exec(prior_text_of_contributing(), names)
    return names["Curvature"]


def test_the_prior_of_contributing_has_six_lines() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    example = text.split("<!-- a prior: begin -->")[1].split("<!-- a prior: end -->")[0]
    lines = [line.strip() for line in example.splitlines() if line.strip()]
    code = [line for line in lines if not line.startswith(("```", '"""'))]
    assert len(code) == 6


def test_the_list_of_contributing_is_the_module_s_own_and_the_new_name() -> None:
    (shown,) = re.findall(r"^__all__ = (\[.*?^\])", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL | re.MULTILINE)
    assert ast.literal_eval(shown) == sorted([*priors.__all__, "Curvature"])


def test_the_prior_of_contributing_is_a_prior(tiny: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = prior_of_contributing()()
    assert dataclasses.is_dataclass(prior) and type(prior).__dataclass_params__.frozen and type(prior).__doc__

    images = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(4), requires_grad=True)
    labels = torch.tensor([3, 1])
    network, client = inversefed.freeze(tiny, (3, 8, 8), mean=0.5, std=0.25), inversefed.FedSGD()
    batch = inversefed.Batch(images.detach(), labels)
    update = client(network, batch.images, labels)
    observation = inversefed.observe(network, client, update, batch, inversefed.ThreatModel())

    value = prior(images, observation)
    assert value.shape == () and value.item() > prior(torch.full_like(images, 0.5), observation).item() >= 0
    (slope,) = torch.autograd.grad(value, images)
    assert bool(slope.isfinite().all()) and float(slope.abs().sum()) > 0
    doubled = dataclasses.replace(prior, weight=2 * prior.weight)
    assert doubled(images, observation).item() == pytest.approx(2 * value.item(), rel=1e-5)

    add_to_registry(monkeypatch, priors, type(prior))
    assert registry.build("prior", repr(prior)) == prior
    attack = registry.build("attack", f"GradientInversion(priors=({prior!r},), max_iterations=5)")
    report = inversefed.audit(tiny, batch.images, labels, mean=0.5, std=0.25, attack=attack)
    assert "Curvature(weight=0.001)" in report.attack


def add_to_registry(monkeypatch: pytest.MonkeyPatch, module: ModuleType, piece: type) -> None:
    """What a line in a module and its name in `__all__` do."""
    monkeypatch.setattr(module, piece.__name__, piece, raising=False)
    monkeypatch.setattr(module, "__all__", [*module.__all__, piece.__name__])


@pytest.mark.parametrize("line", commands())
def test_every_command_in_the_pages_is_understood(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    earlier = tmp_path / "runs" / "demo" / "report.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text(json.dumps({"config": {"seed": 0}}))
    add_to_registry(monkeypatch, priors, prior_of_contributing())

    imports = "from dataclasses import dataclass\nfrom inversefed.types import Images, Scalar\nObservation = object\n"
    (tmp_path / "my_priors.py").write_text(imports + prior_text_of_contributing())
    monkeypatch.syspath_prepend(tmp_path)

    options = parse(shlex.split(line, comments=True))
    if isinstance(options, Audit | Defend | Inspect):
        trusted = getattr(options, "trust_code", False)
        for kind in ("client", "loss"):
            registry.build(kind, getattr(options, kind), trusted)
        registry.build("attack", getattr(options, "attack", "best"), trusted)
        for defense in options.defenses:
            registry.build("defense", defense, trusted)


def test_every_option_in_the_page_exists_and_every_option_is_in_the_page(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for command in ("audit", "inspect"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
    known = options_of(capsys.readouterr().out)
    page = COMMAND_LINE.read_text(encoding="utf-8")
    named = options_of(page) - {"--help", "--version", "--tyro-print-completion"}
    assert named <= known
    every = {*dataclasses.fields(Audit), *dataclasses.fields(Inspect)}
    assert {f"--{field.name.replace('_', '-')}" for field in every} <= named


def test_every_option_of_the_page_on_defenses_exists() -> None:
    page = (ROOT / "docs" / "guides" / "defend.md").read_text(encoding="utf-8")
    both = [*dataclasses.fields(Audit), *dataclasses.fields(Defend), *dataclasses.fields(InLedger)]
    named = options_of(page) - {"--no-utility"}
    assert named <= {f"--{field.name.replace('_', '-')}" for field in both}


def test_every_option_of_the_page_on_training_exists() -> None:
    page = (ROOT / "docs" / "guides" / "train.md").read_text(encoding="utf-8")
    both = [*dataclasses.fields(Audit), *dataclasses.fields(Train)]
    assert options_of(page) <= {f"--{field.name.replace('_', '-')}" for field in both}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_called_as_the_page_says(shell: str, capsys: pytest.CaptureFixture) -> None:
    assert f"`{shell}`" in COMMAND_LINE.read_text(encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["--tyro-print-completion", shell])
    assert not ended.value.code
    assert "inversefed" in capsys.readouterr().out


def test_the_network_of_the_page_is_audited_from_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs" / "guides")
    page = ROOT / "docs" / "guides" / "own-network.md"
    (line,) = [line for block in blocks(page, "shell") for line in block.splitlines()]
    words = shlex.split(line.replace("--max-iterations 500", "--max-iterations 3"))
    assert words[:2] == ["PYTHONPATH=.", "inversefed"]
    assert main([*words[2:], "--output", str(tmp_path / "own"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["scenario"]["image_shape"] == [3, 16, 16]
    assert report["scores"]["label_accuracy"] == [1.0]


def anchors(page: Path) -> set[str]:
    """What a link may name in a page: its headings as a web page names them."""
    headings = re.findall(r"^#{1,6} (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(
        r"^```\{(?:image|include|literalinclude)\} (\S+)", text, re.MULTILINE
    )
    for link in links:
        path, _, place = link.partition("#")
        if not re.match(r"[a-z]+:", link):
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not place or target.suffix != ".md" or place in anchors(target), link


def test_the_map_of_the_house_is_that_of_the_plan() -> None:
    shown = (ROOT / "docs" / "figures" / "house.svg").read_text(encoding="utf-8")
    assert shown == make_house.draw(), "python -m docs.make_house docs/figures/house.svg"


def test_decisions_are_numbered_as_their_files_are() -> None:
    for page in (ROOT / "docs" / "internals" / "decisions").glob("0*.md"):
        assert page.read_text(encoding="utf-8").startswith(f"# {int(page.name[:4])}. "), page.name


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    reasons = (ROOT / "docs" / "internals" / "decisions" / "0001-dependencies.md").read_text(encoding="utf-8")
    for requirement in project["dependencies"]:
        name = re.split(r"[^\w-]", requirement)[0]
        assert f"| `{name}` |" in reasons, name


@pytest.mark.parametrize(
    "page",
    [page for room in ("start", "guides", "concepts") for page in sorted((ROOT / "docs" / room).glob("*.md"))],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_a_page_that_is_read_through_has_at_most_1500_words(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").split()) <= 1500


SEARCHED = {
    "activation pattern": "concepts/exact-layers.md",
    "batch norm": "guides/train-mode.md",
    "epsilon": "guides/differential-privacy.md",
    "FedAvg": "guides/fedavg.md",
    "gradient clipping": "guides/defenses.md",
    "label": "guides/labels.md",
    "learning rate unknown": "guides/unknown-client.md",
    "limit": "concepts/limit.md",
    "LoRA": "guides/partial-updates.md",
    "membership": "guides/membership.md",
    "null update": "concepts/controls.md",
    "report": "guides/report.md",
    "secure aggregation": "guides/defenses.md",
    "table": "guides/tables.md",
    "text": "guides/text.md",
    "verdict": "concepts/verdict.md",
}


@pytest.mark.parametrize("word", SEARCHED)
def test_what_people_search_for_is_a_main_entry_of_one_page(word: str) -> None:
    """A main entry of the index comes first in Sphinx's search; of equals, the title that is first by its letters."""
    glossary = "reference/glossary.md"
    entries = {
        str(page.relative_to(ROOT / "docs")): page.read_text(encoding="utf-8").splitlines()[0]
        for page in PAGES
        if (ROOT / "docs") in page.parents
        and any(
            f"! {word}" in (entry.strip() for entry in line.split(","))
            for line in re.findall(r"^```\{index\} (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        )
    }
    assert list(entries) == [SEARCHED[word]]
    assert entries[SEARCHED[word]].lower() < (ROOT / "docs" / glossary).read_text(encoding="utf-8").lower()


def test_the_first_page_leads_each_reader_to_a_result_in_two_clicks() -> None:
    front = ROOT / "docs" / "index.md"
    roles = re.findall(r"^## (I .+)\n\n(.+)$", front.read_text(encoding="utf-8"), re.MULTILINE)
    assert [role for role, _ in roles] == ["I send updates", "I do research", "I audit"]
    for role, text in roles:
        page = front.parent / re.findall(r"\]\(([^)#]+)\)", text)[0]
        run = [*blocks(page, "shell"), *blocks(page, r"\{testcode\}")]
        assert any("audit" in block for block in run), role


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    assert {name for name in inversefed.__all__ if f"`{name}`" not in page} <= {"__version__"}
