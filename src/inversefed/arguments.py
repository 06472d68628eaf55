"""Arguments of an audit: what cannot be used is refused before any work, and who looks on is told of each step."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from inversefed.attacks import Attack, recipes
from inversefed.errors import ConfigError, InputError
from inversefed.evaluation.identification import unlike
from inversefed.fl.checks import check_pieces, check_public
from inversefed.fl.foreign import Callback
from inversefed.fl.threat import Observation
from inversefed.types import Batch, Budget, Step

__all__ = ["Stopper", "Watchers", "check_attack", "check_nulls", "check_rehearsals", "check_taken_up", "checked_others",
           "checked_out"]  # fmt: skip


def check_attack(attack: Attack) -> None:
    """Refuse a recipe that was not called, and what is no attack at all.

    Raises:
        ConfigError: it cannot be used as it is.
    """
    check_pieces(attack=attack)
    if getattr(recipes, getattr(attack, "__name__", ""), None) is attack:
        raise ConfigError(f"attack must be a value such as recipes.geiping() or FedSGD(), called; got {attack!r}")


def check_taken_up(resume: str | Path | None) -> None:
    """Refuse a checkpoint that is not there, before any work.

    Raises:
        InputError: there is no such file.
    """
    if resume is not None and not Path(resume).is_file():
        raise InputError(f"cannot read the checkpoint {resume}: there is no such file")


def check_nulls(nulls: object) -> None:
    """Refuse what is no number of null runs.

    Raises:
        ConfigError: it is none.
    """
    if nulls is not None and (type(nulls) is not int or nulls < 0):
        raise ConfigError(
            f"nulls is a number of null runs from 0 (19 bound false alarms by 5 %), or None; got {nulls!r}"
        )


def check_rehearsals(rehearsals: object, nulls: object) -> None:
    """Refuse what is no number of rehearsals, and rehearsals of a verdict that there will not be.

    Raises:
        ConfigError: either.
    """
    if rehearsals is not None and (type(rehearsals) is not int or rehearsals < 0):
        raise ConfigError(f"rehearsals is a number of public stand-ins from 0, or None; got {rehearsals!r}")
    if rehearsals and nulls == 0:
        raise ConfigError("rehearsals tell how often the verdict calls a leak, and nulls=0 asks for none; leave it out")


def checked_out(candidates: Batch | None, known_out: Batch | None, others: Batch | None) -> Batch | None:
    """Records that are known to be out beside those that are asked for; public pictures where none are named.

    Raises:
        ConfigError: records that are out, and none that is asked for; or none that is known to be out.
    """
    if candidates is None:
        if known_out is not None:
            raise ConfigError(
                "candidates_out (--candidates-out) are records that are known to be out; give those asked for, "
                "candidates (--candidates), too"
            )
        return None
    out = others if known_out is None else known_out
    if out is None:
        raise ConfigError(
            "records are judged beside such that are known not to be in the update: give them as candidates_out "
            "(--candidates-out)"
        )
    return out


def checked_others(observation: Observation, others: Batch | None, truth: Batch | None) -> Batch | None:
    """Other pictures without those that are private ones: a control that knows the truth would hide any leak.

    Raises:
        InputError: none, another shape, or none but truths.
    """
    if others is None:
        return None
    check_public(observation.network.space, others.images, "others")
    if truth is None:
        return others
    public = unlike(others.images, truth.images)
    return Batch(others.images[public], others.labels[public.to(others.labels.device)])


@dataclass(frozen=True, eq=False)
class Watchers:
    """Who looks on while an audit runs, and where its search and rehearsals are kept; not what the audit is."""

    on_step: Callable[[Step], object] | None = None
    on_control: Callable[[int, int], object] | None = None
    checkpoint: str | Path | None = None
    resume: str | Path | None = None
    rehearsal_cache: str | Path | None = None

    @cached_property
    def told(self) -> Callback[[Step], object] | None:
        """Told of every step of the attack."""
        return None if self.on_step is None else Callback(self.on_step)

    @cached_property
    def controlled(self) -> Callback[[int, int], object] | None:
        """Told of every control run."""
        return None if self.on_control is None else Callback(self.on_control)

    @cached_property
    def stopper(self) -> "Stopper":
        """What passes steps on, and knows afterwards whether somebody asked for the end."""
        return Stopper(self.told)

    def budget(self, seconds: float | None, iterations: int | None) -> Budget:
        """Time and iterations of the attack, who watches it, and where its search is written to and taken up from."""
        kept, taken_up = (None if path is None else Path(path) for path in (self.checkpoint, self.resume))
        return Budget(seconds, iterations, None if self.on_step is None else self.stopper, kept, taken_up)

    def check(self, attack: Attack) -> None:
        """Refuse an attack that was not called and a checkpoint that is not there, before any work."""
        check_attack(attack)
        check_taken_up(self.resume)


@dataclass(eq=False)
class Stopper:
    """Passes steps on, and remembers whether its watcher asked for the end."""

    on_step: Callback[[Step], object] | None
    stopped: bool = False

    def __call__(self, step: Step) -> bool:
        """Whether to stop."""
        self.stopped = bool(self.on_step and self.on_step(step)) or self.stopped
        return self.stopped
