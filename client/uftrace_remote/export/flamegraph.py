"""A flame graph: one SVG file that needs nothing else.

The width of a box is the time in a function below its callers, callees
included. Hovering shows figures; a click zooms, Ctrl-F searches.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from uftrace_remote.export._format import ExportFormat, ExportResult, replacing
from uftrace_remote.export._svg import SCRIPT, STYLE
from uftrace_remote.trace.stacks import StackNode, stack_tree
from uftrace_remote.trace.store import TraceReader

_WIDTH = 1200.0
_MARGIN = 10.0
_ROW = 17
_TOP = 56
_BOTTOM = 30
_CHARACTER = 6.7
_LEAST_WIDTH = 0.1


# Name and module.
FunctionName = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Box:
    name: str
    module: str
    x: float
    width: float
    depth: int
    weight: int
    own: int
    calls: int


def write_flamegraph(trace: TraceReader, path: Path) -> ExportResult:
    """Writes the flame graph of a trace; all threads together."""
    functions = trace.summary.functions

    def names(function_id: int) -> FunctionName:
        known = functions.get(function_id)
        return trace.summary.function_name(function_id), known.module if known else ""

    return write_stacks(stack_tree(trace).nodes, names, _title_of(trace), path)


def write_stacks(
    nodes: Sequence[StackNode],
    names: Callable[[int], FunctionName],
    title: str,
    path: Path,
) -> ExportResult:
    """Writes the flame graph of some stacks.

    Args:
        nodes: As in a `StackTree`: a node's parent comes before it.
        names: Name and module behind a function id.
        title: Of what they are.
        path: The file.
    """
    weights, own, by_time = _weights(nodes)
    boxes = list(_boxes(nodes, names, weights, own))
    with replacing(path) as file:
        what = "time by stack" if by_time else "calls by stack"
        for piece in _svg(f"{title}: {what}", boxes, by_time):
            file.write(piece)
    remarks = () if by_time else ("no call has a duration: widths are numbers of calls",)
    return ExportResult(path, sum(node.calls for node in nodes), remarks)


FLAMEGRAPH = ExportFormat("flamegraph", "flame graph in one SVG file", write_flamegraph)


# Time where there is any. A trace of entries alone is drawn by calls.
def _weights(nodes: Sequence[StackNode]) -> tuple[list[int], list[int], bool]:
    times = [node.self_ns for node in nodes]
    by_time = any(times)
    own = times if by_time else [node.calls for node in nodes]
    totals = list(own)
    for index in range(len(nodes) - 1, -1, -1):
        parent = nodes[index].parent
        if parent >= 0:
            totals[parent] += totals[index]
    return totals, own, by_time


def _boxes(
    nodes: Sequence[StackNode],
    names: Callable[[int], FunctionName],
    weights: Sequence[int],
    own: Sequence[int],
) -> Iterator[_Box]:
    children: dict[int, list[int]] = {}
    for index, node in enumerate(nodes):
        children.setdefault(node.parent, []).append(index)
    everything = sum(weights[index] for index in children.get(-1, ()))
    usable = _WIDTH - 2 * _MARGIN
    scale = usable / everything if everything else 0.0
    yield _Box("all", "", _MARGIN, usable, 0, everything, 0, 0)
    # Alphabetical, so that two graphs of one program are easy to compare.
    waiting: list[tuple[int, float, int]] = [(-1, _MARGIN, 0)]
    while waiting:
        index, x, depth = waiting.pop()
        below = children.get(index, [])
        below.sort(key=lambda each: names(nodes[each].function_id))
        for child in below:
            width = weights[child] * scale
            if width >= _LEAST_WIDTH:
                node = nodes[child]
                name, module = names(node.function_id)
                yield _Box(
                    name=name,
                    module=module,
                    x=x,
                    width=width,
                    depth=depth + 1,
                    weight=weights[child],
                    own=own[child],
                    calls=node.calls,
                )
                waiting.append((child, x, depth + 1))
            x += width


def _svg(title: str, boxes: Sequence[_Box], by_time: bool) -> Iterator[str]:
    deepest = max(box.depth for box in boxes)
    height = _TOP + (deepest + 1) * _ROW + _BOTTOM
    everything = max(boxes[0].weight, 1)
    yield (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH:.0f}" height="{height}" '
        f'viewBox="0 0 {_WIDTH:.0f} {height}" data-margin="{_MARGIN}" data-char="{_CHARACTER}">\n'
        f"<style>{escape(STYLE)}</style>\n"
        f'<rect class="background" width="100%" height="100%"/>\n'
        f'<text class="title" x="{_WIDTH / 2:.0f}" y="24">{escape(title)}</text>\n'
        f'<text id="reset" class="button" x="{_MARGIN}" y="44">reset zoom</text>\n'
        f'<text id="search" class="button" x="{_WIDTH - _MARGIN}" y="44">search</text>\n'
        f'<text id="details" x="{_MARGIN}" y="{height - 10}"> </text>\n'
        '<g id="frames">\n'
    )
    for box in boxes:
        yield _frame(box, height, everything, by_time)
    yield f"</g>\n<script><![CDATA[{SCRIPT}]]></script>\n</svg>\n"


def _frame(box: _Box, height: int, everything: int, by_time: bool) -> str:
    y = height - _BOTTOM - (box.depth + 1) * _ROW
    share = 100 * box.weight / everything
    figures = f"{_time(box.weight) if by_time else f'{box.weight:,} calls'}, {share:.2f} %"
    if box.calls:
        figures += f"; {box.calls:,} call{'' if box.calls == 1 else 's'}"
        if by_time:
            figures += f", self {_time(box.own)}"
    where = f" [{box.module}]" if box.module else ""
    return (
        f'<g class="frame" data-name={quoteattr(box.name)}>'
        f"<title>{escape(box.name + where)} ({figures})</title>"
        f'<rect x="{box.x:.2f}" y="{y}" width="{box.width:.2f}" height="{_ROW - 1}" '
        f'fill="{_color(box)}" rx="1"/>'
        f'<text x="{box.x + 3:.2f}" y="{y + 12}">{escape(_fit(box.name, box.width))}</text></g>\n'
    )


def _fit(name: str, width: float) -> str:
    room = int((width - 6) / _CHARACTER)
    if len(name) <= room:
        return name
    return name[: room - 2] + ".." if room >= 4 else ""


# One hue for each module and a shade for each function: always the same, and
# light enough for black letters.
def _color(box: _Box) -> str:
    if not box.depth:
        return "hsl(0,0%,86%)"
    hue = 8 + zlib.crc32(box.module.encode()) % 5 * 9
    shade = zlib.crc32(box.name.encode())
    return f"hsl({hue + shade % 14},{74 + shade // 16 % 20}%,{66 + shade // 512 % 14}%)"


def _time(nanoseconds: int) -> str:
    for unit, size in (("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3f} {unit}"
    return f"{nanoseconds} ns"


def _title_of(trace: TraceReader) -> str:
    process = trace.metadata.get("process", {})
    host = trace.metadata.get("agent", {}).get("hostname", "")
    name = process.get("command_name") or trace.directory.name
    pid = process.get("reference", {}).get("pid")
    return f"{name}{f' ({pid})' if pid else ''}{f' on {host}' if host else ''}"
