"""Draw the rooms of the package from the plan that `tests/test_layers.py` enforces.

python -m docs.make_house docs/figures/house.svg

A room stands above all that it may import. A line leads down to each room that it may import, but where another line
leads there on a longer way; the ground floor may be imported by all.
"""

import sys
from collections.abc import Mapping, Set
from pathlib import Path

from tests.test_layers import GROUND, MAY

WIDTH, WIDE, HIGH, DOWN, EDGE = 880, 122, 28, 64, 16
HIDDEN = {"__init__", "__main__"}
COLORS = {"rect": "#eef3fb", "line": "#9aa7bd", "text": "#1a1a1a"}


def floors(plan: Mapping[str, Set[str]]) -> list[list[str]]:
    """Rooms from the lowest floor up, each floor by the places of what its rooms stand on."""
    height: dict[str, int] = {}
    while len(height) < len(plan):
        height |= {
            room: 1 + max((height[each] for each in below), default=-1)
            for room, below in plan.items()
            if room not in height and below <= height.keys()
        }
    rows: list[list[str]] = []
    place: dict[str, float] = {}
    for floor in range(max(height.values()) + 1):
        row = sorted(room for room in plan if height[room] == floor)
        row.sort(key=lambda room: sum(place[each] for each in plan[room]) / max(1, len(plan[room])))
        place |= {room: (number + 0.5) / len(row) for number, room in enumerate(row)}
        rows.append(row)
    return rows


def direct(plan: Mapping[str, Set[str]]) -> list[tuple[str, str]]:
    """The pairs of rooms, upper and lower, that no longer way joins."""
    return [
        (room, each)
        for room, below in sorted(plan.items())
        for each in sorted(below)
        if not any(each in plan[between] for between in below)
    ]


def draw() -> str:
    """The picture as SVG."""
    plan = {room: below - GROUND for room, below in MAY.items() if room not in GROUND | HIDDEN}
    rows = floors(plan)
    middle = {
        room: ((number + 0.5) * WIDTH / len(row), EDGE + HIGH / 2 + DOWN * (len(rows) - 1 - at))
        for at, row in enumerate(rows)
        for number, room in enumerate(row)
    }
    bottom = EDGE + DOWN * len(rows)
    lines = [
        f'<line x1="{middle[one][0]:.0f}" y1="{middle[one][1]:.0f}" x2="{middle[other][0]:.0f}" '
        f'y2="{middle[other][1]:.0f}"/>'
        for one, other in direct(plan)
    ]
    boxes = [
        f'<rect x="{x - WIDE / 2:.0f}" y="{y - HIGH / 2:.0f}" width="{WIDE}" height="{HIGH}" rx="4"/>'
        f'<text x="{x:.0f}" y="{y + 5:.0f}">{room}</text>'
        for room, (x, y) in middle.items()
    ]
    ground = (
        f'<rect x="{EDGE}" y="{bottom}" width="{WIDTH - 2 * EDGE}" height="{HIGH}" rx="4"/>'
        f'<text x="{WIDTH / 2:.0f}" y="{bottom + 20}">{", ".join(sorted(GROUND))}</text>'
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + HIGH + EDGE}" '
            'font-family="sans-serif" font-size="14" text-anchor="middle">',
            "<title>The rooms of the package: each may import those below that lines lead to, and the ground</title>",
            '<rect width="100%" height="100%" fill="white"/>',
            f'<g stroke="{COLORS["line"]}" stroke-width="1.5">{"".join(lines)}</g>',
            f'<g fill="{COLORS["rect"]}" stroke="{COLORS["line"]}">',
            *(part.replace("<text", f'<text fill="{COLORS["text"]}" stroke="none"') for part in (*boxes, ground)),
            "</g>",
            "</svg>",
            "",
        ]
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(draw(), encoding="utf-8")
