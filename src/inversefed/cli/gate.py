"""`inversefed gate`: a report, or an audit, held to a limit; the exit status says which side of it."""

import json
import sys
from dataclasses import fields, replace
from typing import Any

from inversefed.cli.options import Audit, Gate, audit_options
from inversefed.errors import ConfigError, InputError
from inversefed.evaluation.verdict import Answer
from inversefed.report.gate import DEFAULT_LIMIT, Leakage, Outcome, leakage, outcome
from inversefed.report.read import read_report
from inversefed.types import Status

__all__ = ["run_gate"]

ABOVE = 3
_OWN = {"json", "quiet", "verbose"}


def run_gate(options: Gate) -> int:
    """Judge a report.

    Returns:
        0 below the limit; 3 above it; after an audit that was cut short or failed, 130 or 1.

    Raises:
        ConfigError: a limit that is no number, or a report together with options of an audit.
        InputError: no report, or one that is evidence for neither side.
    """
    limits = (options.max_leakage, options.min_power, options.max_members)
    outcome(Leakage(None), *limits)  # a wrong limit is refused before the work
    if options.min_power is not None and not options.report and options.rehearse is None:
        raise ConfigError("--min-power holds an audit to its rehearsals, and it has none; give --rehearse 8 too")
    if options.max_members is not None and not options.report and options.candidates is None:
        raise ConfigError("--max-members holds an audit to its records, and it asks for none; give --candidates too")
    report, status = _read(options) if options.report else _audited(options)
    found = leakage(report)
    side = outcome(found, *limits)
    if side == "unknown" and not status:
        raise InputError(f"this report is no evidence for a gate: {_why_unknown(found, options)}")
    _show(found, side, options)
    return ABOVE if side == "above" else status


def _read(options: Gate) -> tuple[dict[str, Any], int]:
    """The report that is named; options of an audit mean nothing beside it."""
    changed = [
        f"--{each.name.replace('_', '-')}"
        for each in fields(Audit)
        if each.name not in _OWN and getattr(options, each.name) != each.default
    ]
    if changed:
        raise ConfigError(f"a report is judged as it is: leave out {', '.join(changed)}, or the report to audit anew")
    assert options.report is not None
    return read_report(options.report), 0


def _audited(options: Gate) -> tuple[dict[str, Any], int]:
    """The report of a new audit, and its own exit status."""
    from inversefed.cli.audit import carry_out

    report = carry_out(replace(audit_options(options), json=False, quiet=options.quiet or options.json))
    return report.to_dict(), {Status.INTERRUPTED: 130, Status.NON_FINITE: 1}.get(report.status, 0)


def _why_unknown(found: Leakage, options: Gate) -> str:
    min_power = options.min_power
    if options.max_members is not None and found.members is None:
        return "no records were asked for, and --max-members was given; audit with --candidates"
    if found.evidence:
        return found.evidence
    if min_power is not None and found.power is None:
        return f"it has no rehearsals, and a power of at least {min_power:.0%} was asked for; audit with --rehearse"
    if min_power is not None and found.power is not None and found.power < min_power:
        return (
            f"in its rehearsals the attack recovered {found.power:.0%} of public stand-ins, less than the "
            f"{min_power:.0%} that were asked for; give it more time, or another attack"
        )
    if found.answer == Answer.IN_THE_UPDATE:
        return (
            "the picture is in the update, and the attack did not find it, so that its failure shows nothing; try "
            "another attack, or hold what it measured to --max-leakage"
        )
    return "it has neither a truth to measure with nor a verdict; audit again, with --truth or nulls"


def _show(found: Leakage, side: Outcome, options: Gate) -> None:
    if options.json:
        json.dump(vars(found) | {"limit": options.max_leakage, "outcome": side}, sys.stdout, allow_nan=False)
        print()
    elif not options.quiet:
        print(f"gate: {side if side != 'unknown' else 'no result'}: {_measured(found)}; {_limit(found, options)}")


def _measured(found: Leakage) -> str:
    exact = "an exact recovery, verified by the update" if found.exact else ""
    said = "leaked" if found.leaked else "not decided" if found.undecided else "not recovered"
    verdict = "" if found.leaked is None else f"verdict: {_answer(found) or said}"
    margin = ""
    if found.decibels is not None:
        name = "".join(each if each.isprintable() else "?" for each in str(found.control))  # from a foreign file
        than = "no control" if found.control == "none" else f"the best control ({name})"
        side = "above" if found.decibels > 0 else "below"
        margin = f"picture {found.picture} is {abs(found.decibels):.1f} dB {side} {than}"
    return ", ".join(part for part in (margin, exact, verdict, _records(found)) if part) or "nothing was measured"


def _records(found: Leakage) -> str:
    """How many records that were asked for are called, where somebody asked."""
    if found.members is None:
        return ""
    sure = "some were in the update" if found.members_found else "nothing shows that any was in the update"
    return f"{found.members} records called, and {sure}"


def _answer(found: Leakage) -> str:
    """What a "no" of the verdict means, where the limit of the update tells."""
    told = {Answer.IN_THE_UPDATE, Answer.RECORDS, Answer.NOT_IN_THE_UPDATE}
    return found.answer if found.answer is not None and found.answer in told else ""


def _limit(found: Leakage, options: Gate) -> str:
    if options.max_leakage is not None:
        return f"limit {options.max_leakage:g} dB"
    return "the verdict decides" if found.leaked is not None else f"limit {DEFAULT_LIMIT:g} dB"
