"""The report as plain text for a terminal, and as Markdown for a pull request or a page of notes.

Names and messages may come from foreign files, so control characters never reach the terminal, and
nothing in them is read as Markdown or HTML, or becomes a link or a mention.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence

from inversefed.evaluation.metrics import FACTS
from inversefed.report.sections import Section
from inversefed.report.sentences import PSNR
from inversefed.report.summary import Measure, Summary
from inversefed.report.tables import Table

__all__ = ["markdown", "terminal"]

MOST_ROWS = 16
"""How many images a terminal is shown one by one; `report.json` has them all."""

WIDE, SHORT, FEW = 52, 16, 4
"""Columns for a row's name beside up to so many numbers, and beside more."""

MOST_OF_AN_ATTACK = 240
"""Characters of the attack that a terminal is shown; a choice of attacks names them all, and `report.json` has them."""

_NO_WIDTH = "&#8203;"
"""A space of no width."""


def terminal(said: Summary) -> str:
    """Write the headline, the scores with the controls beside them, and the findings, 100 columns wide.

    Args:
        said: what the report says.
    """
    ended = f"{said.status.value} after {said.seconds:.1f} s. {said.note}"
    head = [*_wrap(said.headline), "", *_wrap(f"attack  {_start(said.attack)}"), *_wrap(f"status  {ended}")]
    if said.verdict:
        head += [*_wrap(f"verdict {said.verdict}"), *_wrap(f"scope   {said.scope}")]
    head += _wrap(f"limit   {said.limit}") if said.limit else []
    beside = [line for section in said.sections for line in ["", *_plain_section(section)]]
    scores = [line for table in said.tables for line in ["", *_plain_table(table, _row_noun(said))]]
    scores += ["", *_wrap(said.believed)] if said.believed else []
    found = [line for finding in said.findings for line in _wrap(f"{finding.level}: {finding.message}")]
    return "\n".join([*head, *beside, *scores, *([""] if found else []), *found])


def _plain_section(section: Section) -> list[str]:
    facts = [line for name, text in section.facts for line in _wrap(f"- {name}: {text}")]
    return [*_wrap(f"{section.title}. {section.sentence}"), *facts]


def _start(attack: str) -> str:
    if len(attack) <= MOST_OF_AN_ATTACK:
        return attack
    return f"{attack[:MOST_OF_AN_ATTACK]} .. (in full in report.json)"


def _row_noun(said: Summary) -> str:
    return "image" if said.noun == "picture" else said.noun


def _plain_table(table: Table, noun: str) -> list[str]:
    """One line for one image; else the images' lines and their mean. Many columns stand below their heading."""
    title = f"{table.heading} ({table.best})"
    head = [_cells(title, table.columns)] if len(table.columns) <= FEW else [title, _cells("", table.columns, SHORT)]
    if len(table.rows) == 1:
        return [*head, _row("", table, table.rows[0])]
    lines = [_row(f"  {noun} {row[0]}", table, row) for row in table.rows[:MOST_ROWS]]
    left = len(table.rows) - MOST_ROWS
    more = [f"  ... {left} more in report.json"] if left > 0 else []
    return [*head, *lines, *more, _row("  mean", table, table.mean)]


def _row(name: str, table: Table, row: tuple[str, tuple[float, ...]]) -> str:
    return _cells(name, table.cells(row), WIDE if len(table.columns) <= FEW else SHORT)


def _cells(name: str, cells: Iterable[str], width: int = WIDE) -> str:
    return (f"{name:<{width}}" + "".join(f"{cell:>12}" for cell in cells)).rstrip()


def _wrap(text: str) -> list[str]:
    """Lines of at most 100 columns."""
    return textwrap.wrap(_line(text), width=100, subsequent_indent="        ", break_on_hyphens=False)


def markdown(said: Summary) -> str:
    """Write the report in Markdown, short enough for a pull request: result, verdict, means, the rest.

    Args:
        said: what the report says.
    """
    blocks = [
        f"# {_escape(said.subject)}",
        *([f"**{said.status.value.capitalize()}.** {said.note}"] if said.note else []),
        _escape(said.headline),
        *([f"**Verdict.** {_escape(said.verdict)}"] if said.verdict else []),
        *([f"**Limit of the update.** {_escape(said.limit)}"] if said.limit else []),
        _escape(said.scope),
        *(_markdown_section(section) for section in said.sections),
        *([_markdown_table(said.tables)] if said.tables else []),
        *([said.pairing] if said.pairing and said.tables else []),
        *([said.believed] if said.believed else []),
        *(f"{_title(name)}: not computed ({_escape(why)})." for name, why in said.not_computed.items()),
        f"## {said.measures_title}",
        "\n".join(_markdown_measure(each) for each in said.measures),
        "## Findings",
        "\n".join(f"- **{finding.level}** {_escape(finding.message)}" for finding in said.findings) or "None.",
        "## Setting",
        "\n".join(f"- {_escape(name)}: {_code(_start(value))}" for name, value in said.setting),
    ]
    return "\n\n".join(blocks) + "\n"


def _markdown_section(section: Section) -> str:
    facts = "\n".join(f"- {_escape(name)}: {_escape(text)}" for name, text in section.facts)
    return f"**{_escape(section.title)}.** {_escape(section.sentence)}" + (f"\n\n{facts}" if facts else "")


def _markdown_measure(measure: Measure) -> str:
    command = f" {_code(measure.command)}" if measure.command else ""
    return f"- **{measure.title}.** {_escape(measure.text)}{command}"


def _markdown_table(tables: Sequence[Table]) -> str:
    """The mean of every metric, a row each, and of several pictures the best and the worst."""
    columns = list(dict.fromkeys(column for table in tables for column in table.columns))
    lines = [(f"mean of {len(tables[0].rows)}" if len(tables[0].rows) > 1 else "score", *columns)]
    lines.append(("---", *("---:" for _ in columns)))
    for table in tables:
        cells = table.named(table.mean)
        lines.append((f"{table.heading}, {table.best}", *(cells.get(column, "") for column in columns)))
    return "\n".join(_markdown_row([_escape(cell) for cell in line]) for line in lines) + _spread(tables)


def _spread(tables: Sequence[Table]) -> str:
    """Which of several pictures were recovered best and worst."""
    table = next((table for table in tables if table.metric == PSNR), None)
    if table is None or len(table.rows) < 2:
        return ""
    rows = sorted(table.rows, key=lambda row: row[1][0])
    worst, best = ((row[0], f"{table.cells(row)[0]} {table.fact.unit}") for row in (rows[0], rows[-1]))
    return f"\n\nMost of picture {best[0]} was recovered ({best[1]}), least of picture {worst[0]} ({worst[1]})."


def _title(name: str) -> str:
    return FACTS[name].title if name in FACTS else _escape(name)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _line(text: str) -> str:
    """Text on one line; what cannot be printed, such as a terminal's control codes, becomes a question mark."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))


def _escape(text: str) -> str:
    """Text on one line in which no character has a meaning to Markdown or HTML, without links and mentions.

    Mentions (`@name`, `#1`) are read from the page that Markdown became, where a backslash is gone; so a space of no
    width parts them, as it does addresses.

    >>> print(_escape("*see* www.a.b, https://a.b, @you"))
    \\*see\\* www&#8203;.a.b, https:&#8203;//a.b, \\@&#8203;you
    """
    escaped = re.sub(r"([\\`*_<>\[\]|&~#@])", r"\\\1", _line(text))
    return re.sub(r"(?<=[@#~!])(?=\w)|(?<=:)(?=//)|(?i:(?<=www))(?=\.)", _NO_WIDTH, escaped)


def _code(text: str) -> str:
    """Text on one line as code, where only a backtick has a meaning."""
    return f"`{_line(text).replace('`', chr(39))}`"
