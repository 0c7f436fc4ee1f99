"""Where boxes and the lines between them go: a layered drawing of a directed graph, from top to bottom. Pure geometry.

The usual four steps (Sugiyama): every box gets a layer, by the longest path that leads to it; a line that passes a
layer gets a slot of its own there, as if it were a thin box; the slots of a layer are ordered so that few lines
cross; then every slot moves towards its neighbours. Between two layers of boxes lies one for the lines' labels. As
every line has its own slot in every layer it passes, none runs through a box or a label, and no labels overlap.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from math import ceil
from random import Random

__all__ = ["Layout", "Line", "Size", "lay_out"]

Point = tuple[float, float]

SIDE_GAP = 26.0  # between neighbours in a layer, in pixels
LINE_GAP = 14.0  # beside a line that passes
LAYER_GAP = 20.0  # between a layer of boxes and the layer of labels below it, at least
MOST_LAYER_GAP = 56.0  # where lines have far to go sideways
WIDEST = 1500.0  # of the boxes in a layer, and of what is drawn side by side; what is wider is wrapped
PORT_GAP = 18.0  # between lines that leave one box
ORDER_SWEEPS = 24
X_SWEEPS = 16
SETTLE_SWEEPS = 120


@dataclass(frozen=True)
class Size:
    """Extents of a box around its centre, in pixels."""

    width: float
    above: float
    below: float


@dataclass(frozen=True)
class Line:
    """From box to box, with a label of so many pixels or none (0, 0)."""

    source: int
    target: int
    label_width: float = 0.0
    label_height: float = 0.0


@dataclass(frozen=True)
class Layout:
    """The drawing, in pixels from its top left corner."""

    width: float
    height: float
    boxes: tuple[Point, ...]
    """The centre of each box."""
    lines: tuple[tuple[Point, ...], ...]
    """Of each line, points from its source to its target; it is vertical in all of them."""
    labels: tuple[Point, ...]
    """The centre of each line's label."""


@dataclass(eq=False)
class _Slot:
    """A box, or where a line passes a layer."""

    layer: int
    width: float
    above: float
    below: float
    is_box: bool
    x: float = 0.0
    up: list[_Slot] = field(default_factory=list)
    down: list[_Slot] = field(default_factory=list)


def lay_out(sizes: Sequence[Size], lines: Sequence[Line]) -> Layout:
    """Place boxes and lines: what hangs together in one drawing, and these side by side, in rows if they are many.

    A line that would close a circle is drawn upwards. None may lead to its own source.
    """
    left = top = width = height = 0.0
    boxes: dict[int, Point] = {}
    drawn: dict[int, tuple[Point, ...]] = {}
    labels: dict[int, Point] = {}
    for own in _connected(len(sizes), lines):
        rank = {index: number for number, index in enumerate(own)}
        numbers = [number for number, line in enumerate(lines) if line.source in rank]
        inside = [replace(lines[n], source=rank[lines[n].source], target=rank[lines[n].target]) for n in numbers]
        part = _lay_out_connected([sizes[index] for index in own], inside)
        if left > 0 and left + part.width > WIDEST:
            left, top = 0.0, height + LAYER_GAP
        boxes.update(zip(own, _moved(part.boxes, left, top), strict=True))
        drawn.update(zip(numbers, (_moved(points, left, top) for points in part.lines), strict=True))
        labels.update(zip(numbers, _moved(part.labels, left, top), strict=True))
        width, height = max(width, left + part.width), max(height, top + part.height)
        left += part.width + 2 * SIDE_GAP
    return Layout(
        width=width,
        height=height,
        boxes=tuple(boxes[index] for index in range(len(sizes))),
        lines=tuple(drawn[number] for number in range(len(lines))),
        labels=tuple(labels[number] for number in range(len(lines))),
    )


def _connected(box_count: int, lines: Sequence[Line]) -> list[list[int]]:
    """Return the boxes that hang together, in the order of their first ones."""
    group = list(range(box_count))

    def first_of(index: int) -> int:
        while group[index] != index:
            index = group[index]
        return index

    for line in lines:
        one, other = sorted((first_of(line.source), first_of(line.target)))
        group[other] = one
    together: dict[int, list[int]] = {}
    for index in range(box_count):
        together.setdefault(first_of(index), []).append(index)
    return list(together.values())


def _moved(points: Sequence[Point], right: float, down: float) -> tuple[Point, ...]:
    return tuple((x + right, y + down) for x, y in points)


def _lay_out_connected(sizes: Sequence[Size], lines: Sequence[Line]) -> Layout:
    chains = [(line.source, line.target) for line in lines]
    upwards = _upwards(len(sizes), chains)
    chains = [(b, a) if turned else (a, b) for (a, b), turned in zip(chains, upwards, strict=True)]
    layer_of, is_wrapped = _wrapped([size.width for size in sizes], _layers(len(sizes), chains))
    boxes = [
        _Slot(2 * layer, size.width, size.above, size.below, is_box=True)
        for size, layer in zip(sizes, layer_of, strict=True)
    ]
    passes = [_passes(boxes[a], boxes[b]) for a, b in chains]
    labelled = [
        own[0] if turned or is_wrapped[a] else own[-1]  # beside the target, but as many rows of labels as of boxes
        for (a, _), own, turned in zip(chains, passes, upwards, strict=True)
    ]
    for slot, line in zip(labelled, lines, strict=True):
        if line.label_height:
            slot.width, slot.above = line.label_width, line.label_height
    layers = _ordered(boxes, chains, passes)
    _set_x(layers)
    _straighten(layers)
    tops, bottoms = _heights(layers)
    left = min((slot.x - slot.width / 2 for layer in layers for slot in layer), default=0.0)
    for layer in layers:
        for slot in layer:
            slot.x -= left
    starts, ends = _ports(boxes, chains, passes)
    middles = [tops[slot.layer] + max(other.above for other in layers[slot.layer]) for slot in boxes]
    drawn = []
    for (a, b), own, start, end, turned in zip(chains, passes, starts, ends, upwards, strict=True):
        points = [(start, middles[a] + boxes[a].below), (start, bottoms[boxes[a].layer])]
        for slot in own:
            if tops[slot.layer] < bottoms[slot.layer]:  # otherwise nothing is there to be avoided
                points += [(slot.x, tops[slot.layer]), (slot.x, bottoms[slot.layer])]
        points += [(end, tops[boxes[b].layer]), (end, middles[b] - boxes[b].above)]
        drawn.append(tuple(reversed(points) if turned else points))
    return Layout(
        width=max((slot.x + slot.width / 2 for layer in layers for slot in layer), default=0.0),
        height=max(bottoms, default=0.0),
        boxes=tuple((box.x, middle) for box, middle in zip(boxes, middles, strict=True)),
        lines=tuple(drawn),
        labels=tuple((slot.x, (tops[slot.layer] + bottoms[slot.layer]) / 2) for slot in labelled),
    )


# ---- layers ----------------------------------------------------------------------------------------------------


def _upwards(box_count: int, chains: Sequence[tuple[int, int]]) -> list[bool]:
    """Which lines have to be turned so that no circle is left; of a circle, the line that is written last."""
    following: list[list[int]] = [[] for _ in range(box_count)]
    turned = []
    for source, target in chains:
        reached = {target}
        todo = [target]
        while todo:
            for after in following[todo.pop()]:
                if after not in reached:
                    reached.add(after)
                    todo.append(after)
        turned.append(source in reached)
        following[target if turned[-1] else source].append(source if turned[-1] else target)
    return turned


def _layers(box_count: int, chains: Sequence[tuple[int, int]]) -> list[int]:
    following: list[list[int]] = [[] for _ in range(box_count)]
    waiting = [0] * box_count
    for source, target in chains:
        following[source].append(target)
        waiting[target] += 1
    has_parents = [count > 0 for count in waiting]
    layer_of = [0] * box_count
    order = [index for index, count in enumerate(waiting) if count == 0]
    for index in order:  # grows
        for target in following[index]:
            layer_of[target] = max(layer_of[target], layer_of[index] + 1)
            waiting[target] -= 1
            if waiting[target] == 0:
                order.append(target)
    for index in reversed(order):
        if not has_parents[index] and following[index]:  # a root belongs right above what it leads to
            layer_of[index] = min(layer_of[target] for target in following[index]) - 1
    return layer_of


def _wrapped(widths: Sequence[float], layer_of: Sequence[int]) -> tuple[list[int], list[bool]]:
    """Make several layers of one that is too wide; those below move down. Also return which boxes that concerns.

    The boxes take turns, so that the lines to lower rows pass between those of upper ones.
    """
    layers: dict[int, list[int]] = {}
    for index, layer in enumerate(layer_of):
        layers.setdefault(layer, []).append(index)
    wrapped, is_wrapped = [0] * len(layer_of), [False] * len(layer_of)
    top = 0
    for _, own in sorted(layers.items()):
        row_count = min(ceil(sum(widths[index] + SIDE_GAP for index in own) / WIDEST), len(own))
        for turn, index in enumerate(own):
            wrapped[index], is_wrapped[index] = top + turn % row_count, row_count > 1
        top += row_count
    return wrapped, is_wrapped


def _passes(source: _Slot, target: _Slot) -> list[_Slot]:
    """Return the slots of a line in the layers between its ends, linked up."""
    own = [_Slot(layer, LINE_GAP, 0.0, 0.0, is_box=False) for layer in range(source.layer + 1, target.layer)]
    for above, below in zip([source, *own], [*own, target], strict=True):
        above.down.append(below)
        below.up.append(above)
    return own


# ---- the order in each layer -----------------------------------------------------------------------------------


def _ordered(
    boxes: Sequence[_Slot], chains: Sequence[tuple[int, int]], passes: Sequence[Sequence[_Slot]]
) -> list[list[_Slot]]:
    layers: list[list[_Slot]] = [[] for _ in range(max((box.layer for box in boxes), default=-1) + 1)]
    seen: set[int] = set()
    todo = [box for box in reversed(boxes) if not box.up]
    while todo:  # depth first, so that what hangs together begins side by side
        slot = todo.pop()
        if id(slot) not in seen:
            seen.add(id(slot))
            layers[slot.layer].append(slot)
            todo.extend(reversed(slot.down))
    best, fewest = layers, _crossings(layers)
    random = Random(0)  # the same graph always looks the same
    for sweep in range(ORDER_SWEEPS):
        if fewest == 0:
            break
        layers = [list(layer) for layer in layers]
        upwards = sweep % 2 == 1
        for layer in reversed(layers[:-1]) if upwards else layers[1:]:
            if sweep % 4 > 1:  # of those that want to be in the same one, any may be first
                random.shuffle(layer)
            _sort_by_neighbours(layer, layers[layer[0].layer + (1 if upwards else -1)], upwards=upwards)
        _swap_neighbours(layers)
        crossings = _crossings(layers)
        if crossings < fewest:
            best, fewest = layers, crossings
    return best


def _sort_by_neighbours(layer: list[_Slot], beside: list[_Slot], *, upwards: bool) -> None:
    """Order ``layer`` by the mean index of each one's neighbours; who has none stays where it is."""
    rank = {id(slot): index for index, slot in enumerate(beside)}
    scale = max(len(beside) - 1, 1) / max(len(layer) - 1, 1)
    wanted = {}
    for index, slot in enumerate(layer):
        ranks = [rank[id(other)] for other in (slot.down if upwards else slot.up)]
        wanted[id(slot)] = sum(ranks) / len(ranks) if ranks else index * scale
    layer.sort(key=lambda slot: wanted[id(slot)])


def _swap_neighbours(layers: Sequence[list[_Slot]]) -> None:
    """Swap two that stand side by side wherever fewer of their lines cross then."""
    rank = {id(slot): index for layer in layers for index, slot in enumerate(layer)}
    for layer in layers:
        for index in range(len(layer) - 1):
            left, right = layer[index], layer[index + 1]
            now, then = (_pairs_that_cross(one, other, rank) for one, other in ((left, right), (right, left)))
            if then < now:
                layer[index], layer[index + 1] = right, left
                rank[id(left)], rank[id(right)] = index + 1, index


def _pairs_that_cross(left: _Slot, right: _Slot, rank: Mapping[int, int]) -> int:
    """Count the lines of two slots of a layer that cross each other."""
    sides = ((left.up, right.up), (left.down, right.down))
    pairs = (pair for ours, theirs in sides for pair in product(ours, theirs))
    return sum(rank[id(one)] > rank[id(other)] for one, other in pairs)


def _crossings(layers: Sequence[Sequence[_Slot]]) -> int:
    count = 0
    for upper, lower in pairwise(layers):
        rank = {id(slot): index for index, slot in enumerate(lower)}
        seen: list[int] = []
        for slot in upper:
            targets = sorted(rank[id(other)] for other in slot.down)
            count += sum(len(seen) - bisect_right(seen, target) for target in targets)
            for target in targets:
                insort(seen, target)
    return count


# ---- positions ----------------------------------------------------------------------------------------------------


def _set_x(layers: Sequence[Sequence[_Slot]]) -> None:
    """Give every slot an x: near its neighbours above and below, in its layer's order, with the gaps kept."""
    for layer in layers:
        _spread(layer, [0.0] * len(layer))
    for sweep in range(X_SWEEPS + SETTLE_SWEEPS):
        upwards, settles = sweep % 2 == 1, sweep >= X_SWEEPS
        for layer in reversed(layers) if upwards else layers:
            wanted = []
            for slot in layer:
                neighbours = slot.down if upwards else slot.up
                if settles or not neighbours:
                    neighbours = [*slot.up, *slot.down]
                weights = [1.0 if other.is_box and slot.is_box else 3.0 for other in neighbours]
                total = sum(weight * other.x for weight, other in zip(weights, neighbours, strict=True))
                wanted.append(total / sum(weights) if weights else slot.x)
            _spread(layer, wanted)


def _straighten(layers: Sequence[Sequence[_Slot]]) -> None:
    """Put each link of a chain right below the one before, as far as its neighbours leave room."""
    for layer in layers:
        for index, slot in enumerate(layer):
            if len(slot.up) == 1 and len(slot.up[0].down) == 1:
                x = slot.up[0].x
                if index > 0:
                    x = max(x, layer[index - 1].x + _distance(layer[index - 1], slot))
                if index < len(layer) - 1:
                    x = min(x, layer[index + 1].x - _distance(slot, layer[index + 1]))
                slot.x = x


def _distance(left: _Slot, right: _Slot) -> float:
    gap = SIDE_GAP if left.is_box and right.is_box else LINE_GAP
    return (left.width + right.width) / 2 + gap


def _spread(layer: Sequence[_Slot], wanted: Sequence[float]) -> None:
    """Set each x as near to what is wanted as order and gaps allow, in the sense of least squares."""
    offsets = [0.0]
    for left, right in pairwise(layer):
        offsets.append(offsets[-1] + _distance(left, right))
    blocks: list[tuple[float, float, int]] = []  # mean, weight, how many; neighbours that collide become one
    for slot, x, offset in zip(layer, wanted, offsets, strict=False):
        block = (x - offset, 1.0 if slot.is_box else 2.0, 1)
        while blocks and blocks[-1][0] > block[0]:
            mean, weight, count = blocks.pop()
            total = weight + block[1]
            block = ((mean * weight + block[0] * block[1]) / total, total, count + block[2])
        blocks.append(block)
    means = [mean for mean, _, count in blocks for _ in range(count)]
    for slot, mean, offset in zip(layer, means, offsets, strict=False):
        slot.x = mean + offset


def _heights(layers: Sequence[Sequence[_Slot]]) -> tuple[list[float], list[float]]:
    """Return where each layer begins and ends; the wider the lines between two swing, the farther apart they are."""
    tops: list[float] = []
    bottoms: list[float] = []
    y = 0.0
    for layer in layers:
        tops.append(y)
        y += max(slot.above for slot in layer) + max(slot.below for slot in layer)
        bottoms.append(y)
        swing = max((abs(slot.x - other.x) for slot in layer for other in slot.down), default=0.0)
        y += min(LAYER_GAP + swing / 8, MOST_LAYER_GAP)
    return tops, bottoms


def _ports(
    boxes: Sequence[_Slot], chains: Sequence[tuple[int, int]], passes: Sequence[Sequence[_Slot]]
) -> tuple[list[float], list[float]]:
    """Return at which x each line leaves the upper box and reaches the lower one: side by side, without crossing."""
    starts, ends = [0.0] * len(chains), [0.0] * len(chains)
    for index, box in enumerate(boxes):
        down = [number for number, (source, _) in enumerate(chains) if source == index]
        up = [number for number, (_, target) in enumerate(chains) if target == index]
        for x, number in _side_by_side(box, ((passes[number][0].x, number) for number in down)):
            starts[number] = x
        for x, number in _side_by_side(box, ((passes[number][-1].x, number) for number in up)):
            ends[number] = x
    return starts, ends


def _side_by_side(box: _Slot, towards: Iterable[tuple[float, int]]) -> Iterable[tuple[float, int]]:
    ordered = sorted(towards)
    gap = min(PORT_GAP, box.width / (len(ordered) + 1))
    for rank, (_, number) in enumerate(ordered):
        yield box.x + (rank - (len(ordered) - 1) / 2) * gap, number
