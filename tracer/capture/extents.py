"""What the shapes of an op's tensors do not tell of its work: its extent, as a formula.

Of a pooling that is the elements of a window, of a Fourier transform its points. Of an attention
(both products, the softmax, or one op for all) it is the pairs of a query and a key that the mask
lets through. For these, what lies between the scores and the probabilities is run with numbers, at
several small sizes and with all scores equal: a pair is hidden where its probability is nothing. A
formula is taken where it gives what was counted for every query of every run, else none is.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod
from typing import Any

import torch
from torch.fx import Node

from tracer.formula import Formula, formula, minimum
from tracer.graph import Kind
from tracer.kinds import MATRIX_PRODUCTS, READS_NO_DATA, base_name, kind_of

Sizes = Mapping[str, int]
Size = Formula | int

LARGEST = 2**22
"""Elements of the largest tensor that is computed in order to count."""
LONGEST = 200
"""Ops between scores and probabilities, and in the making of a mask, beyond which none is run."""
INSTEAD = (2, 3, 5)
"""Small numbers that stand in for a number of the mask's code (the width of a window), so that few
tokens show what it does."""


def find_extents(
    nodes: Sequence[Node],
    data: Mapping[Node, torch.Tensor | None],
    written: Collection[Node],
    size: Callable[[Any], Formula],
    samples: Sequence[Sizes],
) -> dict[Node, Formula]:
    """The extents of those ``nodes`` of an exported graph for which they are known.

    ``data`` has an entry for each placeholder that is no input: None where its numbers are not
    there. ``written`` are the nodes in whose memory some op writes in place, ``size`` makes a
    formula of one of torch's sizes, and ``samples`` are sizes that the graph is right at.
    """
    masks = _Masks(data, written, size, samples)
    masks.note_constants(nodes)
    found: dict[Node, Formula] = {}
    with _one_thread():
        for node in nodes:
            if node.op == "call_function":
                found.update(masks.extent(node))
    return found


@contextmanager
def _one_thread() -> Iterator[None]:
    """For tensors so small that to wake threads takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _argument(node: Node, name: str) -> Any:
    """What an ATen op is told by an argument's name, None where it has no such argument."""
    schema = getattr(node.target, "_schema", None)
    for position, argument in enumerate(schema.arguments if schema else ()):
        if argument.name == name:
            given = node.args[position : position + 1] or (node.kwargs.get(name),)
            return argument.default_value if given[0] is None else given[0]
    return None


def _window(name: str, sides: int | Sequence[int]) -> int:
    """Elements of a window: a single side holds for all axes."""
    each = [sides] if isinstance(sides, int) else [*sides]
    axes = next(int(letter) for letter in name if letter.isdigit())
    return prod(each) if len(each) == axes else int(each[0] ** axes)


def _points(name: str, node: Node, size: Callable[[Any], Formula]) -> Formula:
    """Points of a transform, along all its axes, on the side that is real if one is."""
    read, made = node.args[0].meta["val"], node.meta["val"]
    shape = read.shape if "_rfft" in name else made.shape
    axes = _argument(node, "dim")
    if axes is None:  # all, or as many of the last as lengths are given
        axes = range(-len(_argument(node, "s") or shape), 0)
    return prod(
        (size(shape[a]) for a in ([axes] if isinstance(axes, int) else axes)), start=formula(1)
    )


# --- patterns of masks ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A rule by which queries see keys; the last query stands at the last key."""

    seen: Callable[[int, int, int], int]
    """(position of a query, keys, width) -> keys that it sees"""
    pairs: Callable[[Formula, Formula, int], Formula]
    """(queries, keys, width) -> the sum of ``seen`` over the queries"""

    def counts(self, queries: int, keys: int, width: int) -> list[int]:
        return [self.seen(keys - queries + i, keys, width) for i in range(queries)]


def _half(size: Formula) -> Formula:
    return size * Fraction(1, 2)


def _within(n: Formula, width: int) -> Formula:
    """The sum of min(j, width) for j from 1 to n: a triangle, and rows of ``width`` beyond it."""
    near = minimum(n, formula(width))
    return _half(near * near + near) + (n - near) * width


def _in_chunks(n: Formula, width: int) -> Formula:
    """The sum of j % width + 1 for j from 0 to n - 1: whole triangles, and one that is begun."""
    whole, rest = n // width, n % formula(width)
    return whole * (width * (width + 1) // 2) + _half(rest * rest + rest)


_FULL = _Pattern(lambda p, keys, width: keys, lambda q, k, width: q * k)
_CAUSAL = _Pattern(
    lambda p, keys, width: p + 1,
    lambda q, k, width: _half(k * k + k) - _half((k - q) * (k - q) + (k - q)),
)
_WITH_A_WIDTH = (
    # the last ``width`` keys up to a query's own
    _Pattern(
        lambda p, keys, width: min(p + 1, width),
        lambda q, k, width: _within(k, width) - _within(k - q, width),
    ),
    # those of its chunk of ``width`` up to its own
    _Pattern(
        lambda p, keys, width: p % width + 1,
        lambda q, k, width: _in_chunks(k, width) - _in_chunks(k - q, width),
    ),
    # less than ``width`` away on either side
    _Pattern(
        lambda p, keys, width: min(p + 1, width) + min(keys - p, width) - 1,
        lambda q, k, width: _within(k, width) - _within(k - q, width) + _within(q, width) - q,
    ),
)


# --- running a mask -------------------------------------------------------------------------------


class _Unknown(Exception):
    """A mask that cannot be run with numbers, or not at such a size."""


@dataclass(slots=True)
class _Masks:
    """The attentions of a graph, and what their masks let through."""

    data: Mapping[Node, torch.Tensor | None]
    written: Collection[Node]
    size: Callable[[Any], Formula]
    samples: Sequence[Sizes]
    constant: set[Node] = field(default_factory=set)
    """What no input reaches."""
    made: dict[Any, dict[Node, Any]] = field(default_factory=dict)
    """What constant nodes make, at each sample and with each number that stands in for another."""

    def note_constants(self, nodes: Iterable[Node]) -> None:
        """Find what no input reaches."""
        for node in nodes:
            given = node.op == "placeholder"
            free = node in self.data if given else self.constant.issuperset(_reads(node))
            if node.op != "output" and node not in self.written and (free or _is_size(node)):
                self.constant.add(node)

    def extent(self, node: Node) -> dict[Node, Formula]:
        """The extent of a call and, where it ends an attention, of the others in that."""
        name, kind = base_name(str(node.target)), kind_of(str(node.target))
        if kind is Kind.ATTENTION:
            return self.of_one_op(node)
        if name in MATRIX_PRODUCTS:
            return self.of_products(node)
        if "_pool" in name and (window := _argument(node, "kernel_size")):
            return {node: formula(_window(name, window))}
        if name.startswith("fft_") and kind is Kind.REDUCTION:
            return {node: _points(name, node, self.size)}
        return {}

    def of_products(self, product: Node) -> dict[Node, Formula]:
        """Of an attention whose probabilities are multiplied with the values by ``product``."""
        probabilities = product.args[0]
        if not self._of_two(product):
            return {}
        try:
            between, scores = self._between(probabilities)
            softmaxes = [n for n in between if kind_of(str(n.target)) is Kind.SOFTMAX]
            if not softmaxes or not scores:
                return {}
            queries, keys = map(self.size, probabilities.meta["val"].shape[-2:])

            def run(sizes: Sizes, instead: Mapping[int, int]) -> torch.Tensor:
                made = dict.fromkeys(scores)
                for score in scores:
                    value = score.meta["val"]
                    made[score] = torch.zeros(self._shape(value, sizes), dtype=value.dtype)
                return self._run(between, made, probabilities, sizes, instead)

            pairs = self._pairs(run, self._numbers(between), queries, keys)
        except _Unknown:
            return {}
        square = [
            node
            for node in (*scores, *softmaxes)
            if [*map(self.size, node.meta["val"].shape[-2:])] == [queries, keys]
        ]
        return {} if pairs is None else dict.fromkeys([*square, product], pairs)

    def of_one_op(self, node: Node) -> dict[Node, Formula]:
        """Of an attention in one op."""
        if getattr(node.target, "_schema", None) is None:
            return {}  # its mask is a function
        mask = next(filter(None, (_argument(node, n) for n in ("attn_mask", "attn_bias"))), None)
        causal = bool(_argument(node, "is_causal"))
        read, kept = (argument.meta["val"] for argument in node.args[:2])
        queries, keys = self.size(read.shape[-2]), self.size(kept.shape[-2])

        def run(sizes: Sizes, instead: Mapping[int, int]) -> torch.Tensor:
            shape = [queries.evaluate(sizes), keys.evaluate(sizes)]
            seen: Any = torch.ones(shape, dtype=torch.bool)
            if causal:
                seen = seen.tril()
            if mask is not None:
                made = self._run(between, {}, mask, sizes, instead)
                hides = made if made.dtype is torch.bool else made.float().exp() != 0
                seen = seen & hides
            return seen

        try:
            between, scores = ([], []) if mask is None else self._between(mask)
            if scores:
                return {}
            pairs = self._pairs(run, self._numbers(between), queries, keys)
        except _Unknown:
            return {}
        return {} if pairs is None else {node: pairs}

    def _of_two(self, product: Node) -> bool:
        """Whether inputs reach both operands, as a query and a key."""
        return self.constant.isdisjoint(n for n in product.args[:2] if isinstance(n, Node))

    def _between(self, last: Node) -> tuple[list[Node], list[Node]]:
        """(what makes ``last`` from products on, in order; those products).

        Raises _Unknown where values that are no scores have a part in it, and where scores are
        compared with each other or chosen among.
        """
        between: set[Node] = set()
        scores: set[Node] = set()
        stack = [last]
        while stack:
            node = stack.pop()
            if node in between or node in scores or _is_size(node):
                continue
            product = base_name(str(node.target)) in MATRIX_PRODUCTS
            if product and node not in self.constant:
                if not self._of_two(node):
                    raise _Unknown
                scores.add(node)
                continue
            between.add(node)
            varies = node not in self.constant
            if (node.op == "placeholder" and varies) or node in self.written:
                raise _Unknown
            if len(between) > LONGEST or (varies and _chooses(node)):
                raise _Unknown
            stack += _reads(node)
        return sorted(between), sorted(scores)  # fx orders nodes as the graph does

    def _shape(self, value: torch.Tensor, sizes: Sizes) -> list[int]:
        shape = [self.size(axis).evaluate(sizes) for axis in value.shape]
        if prod(shape) > LARGEST:
            raise _Unknown
        return shape

    def _run(
        self, between: Sequence[Node], made: dict[Node, Any], last: Node, sizes: Sizes,
        instead: Mapping[int, int],
    ) -> torch.Tensor:  # fmt: skip
        """What ``last`` makes of what is ``made`` already, with some whole numbers replaced."""
        known = self.made.setdefault((*sizes.items(), *instead.items()), {})

        def value(node: Node) -> Any:
            if _is_size(node):
                given = node.meta["val"]
                return given if isinstance(given, int) else self.size(given).evaluate(sizes)
            return known[node] if node in self.constant else made[node]

        try:
            for node in between:
                if node in known:
                    continue
                result = self._made_by(node, value, sizes, instead)
                (known if node in self.constant else made)[node] = result
            return value(last)
        except _Unknown:
            raise
        except Exception as error:  # a kernel that the code's ops do not have, or no such size
            raise _Unknown from error

    def _made_by(
        self, node: Node, value: Callable[[Node], Any], sizes: Sizes, instead: Mapping[int, int]
    ) -> Any:
        if node.op == "placeholder":
            data = self.data[node]
            if data is None:
                raise _Unknown
            return data
        for tensor in _tensors(node.meta.get("val")):
            self._shape(tensor, sizes)

        def given(argument: Any) -> Any:
            if isinstance(argument, Node):
                return value(argument)
            if isinstance(argument, torch.device):
                return torch.device("cpu")
            return argument

        args = torch.fx.node.map_aggregate(node.args, given)
        kwargs = torch.fx.node.map_aggregate(node.kwargs, given)
        if instead and _is_arithmetic(node):
            args = tuple(_stand_in(argument, instead) for argument in args)
        return node.target(*args, **kwargs)

    def _numbers(self, between: Iterable[Node]) -> list[int]:
        """The whole numbers that a mask is computed with."""
        return sorted({
            abs(argument)
            for node in between
            if node in self.constant and _is_arithmetic(node)
            for argument in node.args
            if type(argument) is int and abs(argument) > 1
        })  # fmt: skip

    def _pairs(
        self, run: Callable[[Sizes, Mapping[int, int]], torch.Tensor], numbers: Sequence[int],
        queries: Formula, keys: Formula,
    ) -> Formula | None:  # fmt: skip
        """The pairs that a mask lets through, None where the counts are those of no pattern."""
        places = [(queries.evaluate(sizes), keys.evaluate(sizes)) for sizes in self.samples]
        if not places or any(q > k for q, k in places):
            return None

        def counted(instead: Mapping[int, int]) -> list[list[int]]:
            return [_counts(run(sizes, instead)) for sizes in self.samples]

        patterns = [(_FULL, 0, 0), (_CAUSAL, 0, 0)]
        patterns += [
            (p, number, more) for number in numbers for p in _WITH_A_WIDTH for more in (0, 1)
        ]
        plain = counted({})

        left = []
        for pattern, number, more in patterns:
            if [pattern.counts(q, k, number + more) for q, k in places] == plain:
                left.append((pattern, number, more))
        for number in numbers:
            if len({str(p.pairs(queries, keys, n + more)) for p, n, more in left}) < 2:
                break
            for other in INSTEAD:
                changed = counted({number: other})
                left = [
                    (p, n, more)
                    for p, n, more in left
                    if [p.counts(q, k, (other if n == number else n) + more) for q, k in places]
                    == changed
                ]
        found = {str(f): f for f in (p.pairs(queries, keys, n + more) for p, n, more in left)}
        return found.popitem()[1] if len(found) == 1 else None


def _counts(probabilities: torch.Tensor) -> list[int]:
    """Keys that each query sees. Raises _Unknown where sequences or heads differ in it."""
    seen = (probabilities != 0).sum(-1).reshape(-1, probabilities.shape[-2])
    if not bool((seen == seen[0]).all()):
        raise _Unknown
    counts: list[int] = seen[0].tolist()
    return counts


def _tensors(made: Any) -> list[torch.Tensor]:
    return [t for t in (made if isinstance(made, list | tuple) else [made])
            if isinstance(t, torch.Tensor)]  # fmt: skip


def _reads(node: Node) -> Sequence[Node]:
    """The nodes whose values a node goes by: of some it takes shape and dtype alone."""
    return () if base_name(str(node.target)) in READS_NO_DATA else node.all_input_nodes


def _is_size(node: Node) -> bool:
    return isinstance(node.meta.get("val"), int | torch.SymInt)


def _is_arithmetic(node: Node) -> bool:
    return kind_of(str(node.target)) is Kind.ELEMENTWISE


def _stand_in(argument: Any, instead: Mapping[int, int]) -> Any:
    if type(argument) is not int or abs(argument) not in instead:
        return argument
    return instead[abs(argument)] if argument > 0 else -instead[-argument]


def _chooses(node: Node) -> bool:
    """Whether an op makes numbers of places, or truths, of the scores; a maximum may as well."""
    whole = any(not t.is_floating_point() for t in _tensors(node.meta.get("val")))
    return whole and base_name(str(node.target)) not in ("max", "min")
