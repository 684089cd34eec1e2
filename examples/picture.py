"""One run as a picture: what it came to beside the baseline, and who held how many workers or replicas when. SVG.

`draw` reads the rows that run.py prints and the journal (`llmsched events --json`). A mark over a lane is something
that the scheduler was to be seen doing (seen.py). The same run gives the same bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

WIDE, LINE, LEFT, RIGHT, LANES = 720, 18, 190, 90, 14  # pixels; lanes at most
OURS, PLAIN, HELD, MARK = "#2563eb", "#9ca3af", "#93c5fd", "#b91c1c"
_ENDS = {"Finished", "Released", "Lost", "LaunchFailed", "Cancelled"}

Held = list[tuple[float, int]]
"""(seconds, workers from then on)"""


def draw(name: str, rows: Sequence[Mapping[str, Any]], events: Iterable[Mapping[str, Any]]) -> str:
    """`rows`: of one application."""
    out, top = [_text(8, 16, name, "bold")], 2 * LINE
    for row in rows:
        top = _bars(out, top, row)
    held, end = lanes(events)
    marks = {
        (each["of"], each["at"], word) for row in rows for word, some in row.get("seen", {}).items() for each in some
    }
    scale = (WIDE - LEFT - RIGHT) / max(end, 1.0)
    top += LINE
    for of, times in [*held.items()][:LANES]:
        out.append(_text(LEFT - 8, top + 12, of, anchor="end"))
        most = max(count for _, count in times)
        for (at, count), (until, _) in zip(times, [*times[1:], (end, 0)], strict=True):
            if count:
                high = max(3.0, (LINE - 6) * count / most)
                x, wide = LEFT + at * scale, max(1.0, (until - at) * scale)
                out.append(_box(x, top + LINE - 3 - high, wide, high, HELD, f"{of}: {count} from {at:.0f} s on"))
        for _, at, word in sorted(mark for mark in marks if mark[0] == of):
            out.append(_box(LEFT + at * scale, top, 2, LINE - 2, MARK, f"{word} at {at:.0f} s"))
        out.append(_text(WIDE - RIGHT + 6, top + 12, f"at most {most}"))
        top += LINE
    out.append(_text(LEFT, top + 14, "0 s"))
    out.append(_text(WIDE - RIGHT, top + 14, f"{end:.0f} s", anchor="end"))
    size = f'viewBox="0 0 {WIDE} {top + LINE + 4}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    return "\n".join([head, f'<rect width="{WIDE}" height="100%" fill="white"/>', *out, "</svg>\n"])


def lanes(events: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Held], float]:
    """Of each workload, runs and children with it, how many it held when; in the order in which they began, and how
    long the journal goes on after its first entry."""
    gangs: dict[str, dict[str, int]] = defaultdict(dict)
    found: dict[str, Held] = {}
    began = at = None
    for event in events:
        began, at = event["at"] if began is None else began, event["at"]
        gang, kind = event.get("gang") or "", event["kind"]
        if not gang or kind not in _ENDS | {"Launch", "Resize"}:
            continue
        of = gang.rpartition("/")[0].partition("@")[0].partition(".")[0]
        gangs[of][gang] = 0 if kind in _ENDS else len(event["data"]["placement"])
        count = sum(gangs[of].values())
        if (times := found.setdefault(of, [])) and times[-1][1] == count:
            continue
        if count or times:
            times.append((round(event["at"] - began, 1), count))
    return {of: times for of, times in found.items() if times}, round((at or 0.0) - (began or 0.0), 1)


def _bars(out: list[str], top: int, row: Mapping[str, Any]) -> int:
    """Two bars on one scale, or one where there is no baseline; returns where the next begins."""
    part = row[next(iter(row))].rpartition("/")[2]
    both = [(row["number"], OURS, ""), (row["baseline"], PLAIN, f" {row['baseline_is']}")]
    shown = [each for each in both if each[0] is not None]
    most = max((abs(value) for value, _, _ in shown), default=0.0) or 1.0
    out.append(_text(LEFT - 8, top + 10, part, anchor="end"))
    for value, color, what in shown:
        wide = max(1.0, 200 * abs(value) / most)
        out.append(_box(LEFT, top + 2, wide, 9, color, row["metric"]))
        out.append(_text(LEFT + wide + 6, top + 10, f"{value:g}{what}"))
        top += 12
    return top + 5


def _text(x: float, y: float, words: str, weight: str = "normal", anchor: str = "start") -> str:
    about = "".join(
        f' {key}="{value}"'
        for key, value in (("font-weight", weight), ("text-anchor", anchor))
        if value not in ("normal", "start")
    )
    return f'<text x="{x:.0f}" y="{y:.0f}"{about}>{escape(words)}</text>'


def _box(x: float, y: float, wide: float, high: float, color: str, title: str) -> str:
    at = f'x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{high:.1f}" fill="{color}"'
    return f"<rect {at}><title>{escape(title)}</title></rect>"
