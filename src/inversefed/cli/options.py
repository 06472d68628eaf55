"""The options of every command, as dataclasses that tyro reads; nothing here imports torch."""

import functools
import json
import operator
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin

import tyro
from tyro.conf import DisallowNone, FlagCreatePairsOff, OmitArgPrefixes, Positional, arg, subcommand

from inversefed.errors import ConfigError, InputError
from inversefed.specs.sources import (
    Asked,
    Model,
    OtherInputs,
    Pictures,
    Received,
    Records,
    Sources,
    Stated,
    names_code,
    plain_json,
    read_fields,
)

__all__ = [
    "Audit",
    "Command",
    "Convert",
    "Defend",
    "Demo",
    "Doctor",
    "Executing",
    "Gate",
    "InLedger",
    "Inspect",
    "List",
    "Purge",
    "Results",
    "Resume",
    "Runs",
    "Serve",
    "Setting",
    "ShowStatus",
    "Sweep",
    "Train",
    "Watch",
    "parse",
]

Listed = Literal[
    "networks", "datasets", "clients", "attacks", "priors", "objectives", "defenses", "losses", "metrics", "plans"
]


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """What the client minimizes, and how the network is fed."""

    loss: str = "CrossEntropy"
    """What the client minimizes, such as BinaryCrossEntropy for a network of one output (--num-classes 1)."""
    mean: tuple[float, ...] | None = None
    """What the network's input normalization subtracts, one number or one a channel; by default the data set's."""
    std: tuple[float, ...] | None = None
    """What it divides by."""
    inputs: str | None = None
    """What the network takes, where that is no picture and no row of --table, such as "Tokens(length=32,
    vocabulary=30522)" or "Series(channels=2, length=128)"; the examples stand in --batch."""


@dataclass(frozen=True, kw_only=True)
class ClientSide(Asked):
    """How the update is made, and what is done to it before it leaves."""

    defenses: tuple[str, ...] = ()
    """What is done to the update before it leaves, in order."""
    sent_buffers: bool = False
    """Let the client send its running BatchNorm statistics along, which in train mode hold those of its batch."""


@dataclass(frozen=True, kw_only=True)
class Attacking:
    """How the server attacks, for how long, and with what evidence."""

    attack: str = "best"
    """How the server attacks."""
    time_budget: str | None = None
    """Time for the attack, such as 30s, 5m or 1h; the best so far counts."""
    max_iterations: int | None = None
    """Iterations a restart, instead of the attack's own."""
    restarts: int | None = None
    """How many starts are tried, instead of the attack's own number; those that match worse are given up early."""
    nulls: int | None = None
    """How many null runs the verdict rests on: the attack on random updates; 19 bound false alarms by 5 %, 0 for none.
    By default 19, or 1 beside an exact result."""
    rehearse: str | None = None
    """How many public pictures, or how long (such as 2m): their updates are attacked in the same way, to tell how
    often the verdict calls a leak where there is one."""
    choose: bool = False
    """Choose the search and the weight of its prior by how several do on updates of public pictures."""
    rehearsal_cache: Path | None = None
    """A folder that keeps what --rehearse and --choose came to, in figures alone, for later audits of the same setting.
    """
    checkpoint: Path | None = None
    """A file for the state of the search, if there is one, written from its start on; --resume goes on from it."""
    resume: Path | None = None
    """The checkpoint of the same audit, cut short; the search ends as if it had not been."""
    precision: str | None = None
    """Numbers of the search: native, double, tf32, or EarlyBFloat16(until=0.6)."""
    compile: Literal["off", "on", "auto"] | None = None
    """Compile the search's step with torch.compile: on, or auto where that pays for itself by measurement."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where the result goes."""

    output: Path | None = None
    """Folder for report.html, report.json and the pictures; by default a new one under runs/."""
    overwrite: bool = False
    """Replace an earlier report in --output."""
    no_images: bool = False
    """Write no pixel to the disk: no picture files, a page without pictures, and no --checkpoint."""
    lpips_weights: tuple[Path, ...] = ()
    """Files of a network for LPIPS: torchvision's AlexNet, VGG-16 or SqueezeNet 1.1, or one with channel weights of its
    own. Nothing is downloaded; their SHA-256 stands in the report."""
    frontier: Path | None = None
    """A defend.json of `inversefed defend`, or its folder, to show in the report."""
    config: Path | None = None
    """A report.json to run again, or the config or scenario inside it; options given beside it win. Where the same
    network and pictures are named, they must have the SHA-256 that the report holds."""
    trust_code: bool = False
    """Let --attack, --client, --defenses, --loss and --config name pieces of your own as pkg.mod:Name. This IMPORTS AND
    RUNS that code."""


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What the server knows beside the update."""

    known_labels: bool = False
    """Hand the true labels to the attack, which otherwise recovers them."""
    unknown_client: bool = False
    """Hide the client's settings (learning rate, steps, batch size) from the attack; see --attack surrogate."""
    known_defenses: bool = False
    """Tell the attack which defenses the client runs: the default attack adapts itself to them."""
    known_order: bool = False
    """Tell the attack in which order a client that shuffles took its examples."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """Randomness and machine."""

    seed: int = 0
    """Fixes all randomness: untrained weights, noise and starts."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."""
    threads: int | None = None
    """CPU threads; by default one for networks under 100,000 weights, else one a core."""


@dataclass(frozen=True, kw_only=True)
class Screen:
    """What is printed."""

    json: bool = False
    """Print the report as JSON on standard output, instead of the table."""
    quiet: Annotated[bool, arg(aliases=["-q"])] = False
    """Print nothing but errors."""
    verbose: Annotated[bool, arg(aliases=["-v"])] = False
    """Log more, and show where an error came from."""


@dataclass(frozen=True, kw_only=True)
class Setting(Sources, Feeding, ClientSide, Knowledge, Running):
    """What is looked at. Every command that makes or reads an update takes it."""


@dataclass(frozen=True, kw_only=True)
class Audit(Setting, Attacking, Records, Output, Screen):
    """Let a client make an update from pictures, attack it as the server would, and report what was recovered.

    With no options at all: a bundled photograph, an untrained LeNetZhu, the gradient of one example.
    Pieces are written as in Python, such as --client "FedAvg(local_steps=4, lr=0.01)"; `inversefed list` names them.
    """


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What is judged, and how much may leak."""

    report: Annotated[Positional[Path | None], arg(metavar="REPORT")] = None
    """The report to judge."""
    max_leakage: float | None = None
    """Decibels over the best control that may leak. Without it the report's verdict decides; a report that has none is
    held to 3 dB, which is half the best control's squared error."""
    min_power: float | None = None
    """Share of rehearsals, from 0 to 1, that the attack must have recovered for its "no" to count; see --rehearse."""
    max_members: int | None = None
    """How many of the --candidates may be called in the update. Without it none may where the update shows that some of
    them were in it."""


@dataclass(frozen=True, kw_only=True)
class Gate(Audit, Limit):
    """Hold a report to a limit, or audit first: exit status 3 where more leaked, 0 where it did not.

    Leakage is how many decibels (PSNR) the worst picture's reconstruction is above the best control: a picture that
    needs no update, or what the same attack makes of an update that holds nothing. REPORT is a report.json or the
    folder that an audit wrote, and comes first; without it, the audit that the other options describe is run.
    An exact recovery, verified by the update itself, is above every limit.
    """


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Pictures whose update the client that is believed in must make again."""

    example: tuple[Path, ...] = ()
    """Pictures that --update was made of, all of them, or a file with such rows of --table: the client that is believed
    in must make the same of them."""
    example_label: tuple[int, ...] = ()
    """Their classes, one each."""


@dataclass(frozen=True, kw_only=True)
class InspectOutput:
    """What is printed."""

    json: bool = False
    """Print JSON on standard output, with the keys findings and identifiability."""
    verbose: Annotated[bool, arg(aliases=["-v"])] = False
    """Log more, and show where an error came from."""


@dataclass(frozen=True, kw_only=True)
class Inspect(Setting, Examples, InspectOutput):
    """Say whether an update is what it is said to be, and count what it can give away, without an attack.

    With --update or --after: findings on names, sign, scale, mode, normalization, noise and more, each with what to
    change; the exit status is 2 if one is an error. Without, a client makes an update, which is only counted: how many
    equations stand against how many unknowns, layer by layer; how many examples it has at least; which exact methods
    apply, and where they stop; and what no method recovers, and why.
    """


@dataclass(frozen=True, kw_only=True)
class Convert(Stated):
    """Write an update, or weights, in another format: .safetensors, .npz or .pt. What the file says of itself is kept.

    The file is read as data; nothing in it is run. The options below are written into the new file, and win over the
    old one.
    """

    source: Positional[Path]
    """The file to read."""
    target: Positional[Path]
    """The file to write; its ending names the format."""
    overwrite: bool = False
    """Replace an existing file."""
    quiet: Annotated[bool, arg(aliases=["-q"])] = False
    """Print nothing but errors."""
    verbose: Annotated[bool, arg(aliases=["-v"])] = False
    """Log more, and show where an error came from."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """Which defenses are compared."""

    sweep: bool = False
    """Measure the built-in list of defenses, each at a few strengths."""
    points: tuple[str, ...] = ()
    """Points to measure beside no defense at all."""
    targets: int = 1
    """How many updates are attacked at each point, each of pictures of its own."""
    utility: bool = True
    """Train with each defense on real data: --dataset where that has a training part, else FashionMNIST or a folder of
    pictures by class in --data-path, else Debian's package dataset-fashion-mnist; skipped where there is none."""
    rounds: int = 100
    """Server rounds of that training, 32 examples each."""


@dataclass(frozen=True, kw_only=True)
class DefendAttack:
    """How the server attacks, and for how long."""

    attack: str = "best"
    """How the server attacks: as it is, and adapted to each defense."""
    time_budget: str | None = None
    """Time for each attack, such as 30s."""
    max_iterations: int | None = None
    """Iterations a restart, instead of the attack's own."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Over which processes the work is spread."""

    workers: int | None = None
    """How many processes; by default one a core."""
    retries: int = 5
    """How often the process of an audit may die before the audit counts as failed."""
    track: str | None = None
    """Keep loss curves and scores for another tool, too: tensorboard:FOLDER or mlflow:FOLDER."""
    executor: Literal["local", "ray"] = "local"
    """local: processes of this machine; ray: a Ray cluster, or without --ray-address a Ray of this machine alone."""
    ray_address: str | None = None
    """The cluster, auto or HOST:PORT, seen from a machine of it."""
    gpus: float = 0.0
    """Share of a GPU that each audit is given by Ray, and runs on; 0 for the CPU."""


@dataclass(frozen=True, kw_only=True)
class Executing(Spread):
    """Where the audits run."""

    threads: int = 1
    """CPU threads of each process; results are the same bits only with the same number."""


@dataclass(frozen=True, kw_only=True)
class DefendOutput:
    """Where the result goes."""

    output: Path | None = None
    """Folder for defend.json, defend.md and frontier.svg; by default one under runs/."""
    overwrite: bool = False
    """Throw away what --output holds instead of going on from it."""
    json: bool = False
    """Print the rows as JSON on standard output, instead of the table."""
    quiet: Annotated[bool, arg(aliases=["-q"])] = False
    """Print nothing but errors."""
    verbose: Annotated[bool, arg(aliases=["-v"])] = False
    """Log more, and show where an error came from."""


@dataclass(frozen=True, kw_only=True)
class Defend(Setting, Points, DefendAttack, Spread, DefendOutput):
    """Compare defenses: what an attack that ignores each recovers, what one that knows it recovers, and what it costs.

    A point is a client, its defenses and its number of examples, written with plus signs between:
    "GaussianNoise(0.1)", "Clip(1.0) + GaussianNoise(0.01)", "num_images=4 + FedAvg(local_steps=4)". What --client,
    --defenses and --num-images say is one more point. Points that --output holds already are not measured again. It is
    a plan with `points` as `inversefed sweep` carries out, with a ledger of its own.
    """


@dataclass(frozen=True)
class Train:
    """Train a network on a data set and save its weights, for audits of trained networks."""

    network: str = "ConvNet"
    """A network's name (see `inversefed list networks`)."""
    dataset: str = "CIFAR10"
    """What it is trained on (see `inversefed list datasets`)."""
    data_path: Path = Path("~/data")
    """Folder that holds the data set."""
    download: bool = False
    """Fetch the data set if it is not there (CIFAR and the MNISTs)."""
    epochs: int = 120
    """Passes over the training part."""
    batch_size: int = 128
    """Examples a step."""
    lr: float | None = None
    """Learning rate, instead of the recipe's."""
    recipe: Literal["conservative", "adam"] = "conservative"
    """conservative: SGD 0.1 with Nesterov momentum; adam: AdamW 1e-4 with warm-up."""
    seed: int = 0
    """Fixes the first weights and the order of the examples."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."""
    output: Path | None = None
    """The .safetensors file to write; by default models/<network>_<dataset>_<epochs>.safetensors."""
    overwrite: bool = False
    """Replace an existing file."""
    quiet: Annotated[bool, arg(aliases=["-q"])] = False
    """Print nothing but errors."""
    verbose: Annotated[bool, arg(aliases=["-v"])] = False
    """Log more, and show where an error came from."""


@dataclass(frozen=True)
class Purge:
    """Remove what audits wrote: reports, pictures, and checkpoints of searches. Nothing else is ever removed.

    A run is known by its report.json, a checkpoint by what is in it; both are looked for in the folders named, and
    below them, never through links. First comes the list of what goes, then a question. Files are removed, not
    overwritten: what snapshots and backups hold stays there.
    """

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUNS")] = ()
    """Folders of runs, single runs, or checkpoint files; by default the folder runs/."""
    older_than: str | None = None
    """Only what was written longer ago than this, such as 12h or 30d."""
    yes: Annotated[bool, arg(aliases=["-y"])] = False
    """Do not ask."""
    dry_run: bool = False
    """List what would go, and remove nothing."""
    quiet: Annotated[bool, arg(aliases=["-q"])] = False
    """Print nothing but errors; needs --yes."""
    verbose: Annotated[bool, arg(aliases=["-v"])] = False
    """Log more, and show where an error came from."""


@dataclass(frozen=True, kw_only=True)
class InLedger:
    """Where runs are kept."""

    ledger: str = "runs/ledger.db"
    """The ledger: an SQLite file, or a URL such as postgresql+psycopg://USER@HOST/DATABASE."""
    ledger_folder: Path | None = None
    """Where reports, pictures and trained weights go; by default the folder of the SQLite file, or runs/."""
    quiet: Annotated[bool, arg(aliases=["-q"])] = False
    """Print nothing but errors."""
    verbose: Annotated[bool, arg(aliases=["-v"])] = False
    """Log more, and show where an error came from."""


@dataclass(frozen=True)
class Sweep(Executing, InLedger):
    """Carry out many audits: a plan's product of targets, networks, clients, defenses, attacks and seeds.

    A run can be killed at any moment: `inversefed resume NAME` goes on, nothing that was finished is done again, and
    the results are those of a run that was not killed.
    """

    plan: Annotated[Positional[Path], arg(metavar="PLAN")]
    """The plan, a YAML file, or the name of one that ships (see `inversefed list plans`)."""
    run: str | None = None
    """Name of the run; by default the plan's."""
    data_path: Path | None = None
    """Folder of the data sets for which the plan names none; by default ~/data."""
    dry_run: bool = False
    """Say how many audits there are, and what memory and time they are predicted to take; write nothing."""


@dataclass(frozen=True)
class Resume(Executing, InLedger):
    """Go on with a run that was cut short."""

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """The run."""
    retry: bool = False
    """Try failed audits again."""


@dataclass(frozen=True)
class Watch(InLedger):
    """Audit the updates of a federation as its server keeps them, until it is over and none is left.

    The server begins this by itself; by hand it audits what was kept of a run whose auditing process was killed.
    """

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """The run."""
    trust_code: bool = False
    """Let the run name its network as pkg.mod:factory, and pieces of your own as pkg.mod:Name. This IMPORTS AND RUNS
    that code."""
    threads: int = 1
    """CPU threads."""
    nice: int = 19
    """How far the process stands back for others, from 0 to 19."""


@dataclass(frozen=True)
class ShowStatus(InLedger):
    """Say how far a run is, with the time left."""

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """The run."""
    watch: bool = False
    """Go on saying it, until the run has ended."""
    json: bool = False
    """Print JSON on standard output."""


@dataclass(frozen=True)
class Results(InLedger):
    """Print the results of a run, one row an audit, or write them to a file."""

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """The run."""
    summary: bool = False
    """One row for all targets and seeds of a setting: n, failures, means, deviations and 95 % intervals."""
    csv: bool = False
    """As CSV."""
    markdown: bool = False
    """As a table in Markdown, which is the default."""
    parquet: bool = False
    """As a Parquet file, which needs --output."""
    output: Path | None = None
    """The file to write, instead of standard output."""
    overwrite: bool = False
    """Replace an existing file."""


@dataclass(frozen=True)
class Runs(InLedger):
    """List the runs of a ledger, or remove some with all that they wrote."""

    remove: tuple[str, ...] = ()
    """Runs to remove, with their results, reports and pictures; what another run shares stays."""
    yes: Annotated[bool, arg(aliases=["-y"])] = False
    """Do not ask."""
    check: bool = False
    """Have the database look whether its file is sound."""


@dataclass(frozen=True)
class Serve(InLedger):
    """Show a ledger in the browser: runs and their progress, tables, plots, and the report of every audit.

    It prints an address with a token, and answers nobody without it. The pages change nothing.
    """

    host: str = "127.0.0.1"
    """Where to listen; any other address than this machine's own lets others connect."""
    port: int = 8765
    """The port; 0 for a free one."""


@dataclass(frozen=True)
class Doctor:
    """Say what is installed, on what machine, and whether an audit recovers here what it should.

    It prints versions, the machine, and which extras are there; then it attacks the gradient of a bundled picture, in a
    few seconds. Nothing is written, and nothing it prints names you, your files or this machine: paste it into a
    report of an error. The exit status is 1 where something that is needed is missing or the picture is not recovered.
    """

    json: bool = False
    """Print JSON on standard output."""
    verbose: Annotated[bool, arg(aliases=["-v"])] = False
    """Log more, and show where an error came from."""


@dataclass(frozen=True)
class Demo:
    """Make a first audit with a few sentences around it: what is attacked, who knows what, what the result means.

    It is the audit that `inversefed audit` makes without options, and takes a few seconds.
    """

    table: bool = False
    """Audit rows of a table instead of a picture; needs the extra `tables`."""
    output: Path | None = None
    """Folder for the report; by default runs/demo, or runs/demo_2 and so on where that is there already."""
    overwrite: bool = False
    """Replace an earlier report in --output."""
    open: Literal["off", "on", "auto"] = "auto"
    """Open the report in a browser: auto where this is a terminal with a display."""
    verbose: Annotated[bool, arg(aliases=["-v"])] = False
    """Log more, and show where an error came from."""


@dataclass(frozen=True)
class List:
    """List what can be chosen by name."""

    what: Positional[Listed]
    """The kind of piece."""


Plain: TypeAlias = (
    Convert | Purge | Train | Sweep | Resume | Watch | ShowStatus | Results | Runs | Serve | Demo | Doctor | List
)
"""Commands whose options stand in one group."""
Command: TypeAlias = Audit | Defend | Gate | Inspect | Plain


_GROUPS: Mapping[str, type] = {
    "limit": Limit,
    "compared": Points,
    "images": Pictures,
    "other_inputs": OtherInputs,
    "network": Model,
    "training": Feeding,
    "client": ClientSide,
    "attack": Attacking,
    "records": Records,
    "attack_each": DefendAttack,
    "examples": Examples,
    "processes": Spread,
    "output": Output,
    "output_of_defend": DefendOutput,
    "screen_of_inspect": InspectOutput,
    "screen": Screen,
    "threat_model": Knowledge,
    "update_from_a_file": Received,
    "stated_of_the_update": Stated,
    "machine": Running,
}
"""Title and options of each group, in the order of the help."""
_GROUPED: Mapping[str, type[Audit | Gate | Inspect | Defend]] = {
    each.__name__: each for each in (Audit, Gate, Inspect, Defend)
}


def _in_help(group: type) -> None:
    """Have the help be silent about defaults that say nothing (None, False, an empty tuple), and brief on tuples."""
    hints: dict[str, Any] = group.__annotations__
    for each in fields(group):
        if each.name in hints and (each.default is None or each.default is False or each.default == ()):
            lists = next((part for part in get_args(hints[each.name]) if get_origin(part) is tuple), None)
            many = (
                None
                if lists is None
                else "N [N ...]"
                if Ellipsis in get_args(lists)
                else " ".join("N" * len(get_args(lists)))
            )
            hints[each.name] = Annotated[hints[each.name], arg(help_behavior_hint="", metavar=many)]


_PLAIN = {Asked, Train, Purge, InLedger, Executing, Sweep, Resume, Watch, ShowStatus, Results, Runs, Serve, Demo}
for _group in {*_GROUPS.values(), *_PLAIN}:
    _in_help(_group)


def parse(arguments: Sequence[str]) -> Command:
    """Read the command line; `--help`, `--version` and wrong usage end the process here.

    Raises:
        ConfigError: a config file with unknown or ill-typed entries.
        InputError: a config file that cannot be read.
    """
    if list(arguments[:1]) == ["--version"]:
        print(f"inversefed {version('inversefed')}")
        sys.exit(0)
    base = _rerun(arguments)
    grouped = [
        _grouped("audit", base),
        _grouped("gate", Gate(**vars(base))),
        _grouped("inspect", Inspect()),
        _grouped("defend", Defend()),
    ]
    commands: Any = (
        Annotated[Convert, subcommand("convert")]
        | Annotated[Purge, subcommand("purge")]
        | Annotated[Train, subcommand("train")]
        | Annotated[Sweep, subcommand("sweep")]
        | Annotated[Resume, subcommand("resume")]
        | Annotated[Watch, subcommand("watch")]
        | Annotated[ShowStatus, subcommand("status")]
        | Annotated[Results, subcommand("results")]
        | Annotated[Runs, subcommand("runs")]
        | Annotated[Serve, subcommand("serve")]
        | Annotated[Demo, subcommand("demo")]
        | Annotated[Doctor, subcommand("doctor")]
        | Annotated[List, subcommand("list")]
    )
    # Beside a config file a switch may have to be turned off again, so it needs both its forms there.
    switches = () if base != Audit() else (FlagCreatePairsOff,)
    read = tyro.cli(
        functools.reduce(operator.or_, grouped) | commands,
        args=list(arguments),
        prog="inversefed",
        description="Find out what a client's update gives away in federated learning.",
        config=(OmitArgPrefixes, DisallowNone, *switches),
    )
    command = _GROUPED.get(type(read).__name__)
    if command is None:
        plain: Plain = read
        return plain
    return command(**{name: value for group in vars(read).values() for name, value in vars(group).items()})


def _grouped(name: str, default: Audit | Gate | Inspect | Defend) -> Any:
    """A command's options as one value a group, which is how its help shows them."""
    command = type(default)
    parts = [
        (title, group, field(default=group(**{each.name: getattr(default, each.name) for each in fields(group)})))
        for title, group in _GROUPS.items()
        if issubclass(command, group)
    ]
    value = make_dataclass(command.__name__, parts, frozen=True, namespace={"__doc__": command.__doc__})
    return Annotated[value, subcommand(name)]


def _rerun(arguments: Sequence[str]) -> Audit:
    """The options of the config file, if one is named."""
    options = dict(pairwise([*arguments, ""]))
    options |= dict(argument.split("=", 1) for argument in arguments if "=" in argument and argument.startswith("--"))
    if not options.get("--config"):
        return Audit()
    return read_config(Path(options["--config"]), options.get("--network"), "--trust-code" in arguments)


def read_config(path: Path, network: str | None = None, trusted: bool = False) -> Audit:
    """Read the options that a report, or a config taken from one, was made with.

    Args:
        path: the JSON file.
        network: what the command line says, which wins.
        trusted: whether the command line says that code which the file names may be run.

    Raises:
        InputError: no such file, or not JSON.
        ConfigError: an unknown entry, one of the wrong type, or a network that names code.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read the config {path}: {why}; name a report.json that an audit wrote") from error
    if isinstance(content, dict) and content.get("config") and isinstance(content["config"], dict):
        content = content["config"]
    elif {"sources", "sha256"} & (record := _record(content)).keys():
        content = _of_scenario(record, path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}, but a config is a JSON object of options")
    content = content | ({"network": network} if network else {})
    if content.pop("trust_code", False):
        raise ConfigError(f"{path} says that code is to be trusted; only who runs it may say so: --trust-code")
    if names_code(str(content.get("network", ""))) and not network and not trusted:
        raise ConfigError(
            f"{path} names code to run as its network, {content['network']!r}; a data file may not: "
            "give --network on the command line and take it out of the file, or say --trust-code"
        )
    return replace(Audit(), **read_fields(Audit, content))


def _record(content: Any) -> Mapping[str, Any]:
    """The scenario of a report, or content that is one by itself; nothing where it is no JSON object."""
    inner = content.get("scenario", content) if isinstance(content, dict) else None
    return inner if isinstance(inner, dict) else {}


def _of_scenario(record: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The options of an audit that a report holds, wherever it was run.

    Raises:
        InputError: its network and pictures were values of a program, which no option names.
    """
    sources = record.get("sources")
    if not isinstance(sources, dict):
        raise InputError(
            f"{path} names neither its network nor its pictures, which were values of the program that made it; read "
            "it in Python: inversefed.Scenario.from_report(path, module=.., images=.., labels=..)"
        )
    threat, names = record.get("threat_model") or {}, ("defenses", "loss", "mean", "std", "seed", "attack", "nulls")
    same = {name: record[name] for name in (*names, "max_iterations") if name in record}
    same |= {"inputs": record["inputs"]} if "inputs" in record and sources.get("table") is None else {}
    granted = {f"known_{name}": threat.get(name) == "known" for name in ("labels", "defenses", "order")}
    hidden = {"unknown_client": threat.get("client") == "unknown", "sent_buffers": threat.get("buffers") == "sent"}
    client = {"client": record["client"]} if "client" in record and not _of_update(sources) else {}
    seconds = {} if record.get("time_budget") is None else {"time_budget": f"{record['time_budget']}s"}
    count, limit = record.get("rehearsals"), record.get("rehearsal_time")
    rehearsed = {} if count is None else {"rehearse": str(count) if limit is None else f"{limit}s"}
    chosen = {"choose": True} if record.get("choose") else {}
    return {**sources, **same, **granted, **hidden, **client, **seconds, **rehearsed, **chosen}


def _of_update(sources: Mapping[str, Any]) -> bool:
    return bool(sources.get("update") or sources.get("after"))


def to_config(options: Audit) -> dict[str, Any]:
    """The options as values that JSON can hold, less those that only say where and how results appear."""
    silent = {"output", "overwrite", "checkpoint", "resume", "frontier", "config", "json", "quiet", "verbose"} | {
        "rehearsal_cache",
        "trust_code",
    }
    values = {each.name: getattr(options, each.name) for each in fields(options) if each.name not in silent}
    return {name: plain_json(value) for name, value in values.items()}


def audit_options(options: Audit) -> Audit:
    """The part of a command's options that is an audit's."""
    return Audit(**{each.name: getattr(options, each.name) for each in fields(Audit)})
