"""What the shapes of an attention's tensors do not tell of its work: its extent, as a formula.

Of both products, the softmax, or one op for all, that is the pairs of a query and a key that the
mask lets through. What lies between the scores and the probabilities is run with numbers, at
several small sizes and with all scores equal: a pair is hidden where its probability is nothing.
Where a mask keeps the best of some scores (an index that picks k keys), it is run with other scores
as well. A formula is taken only where it gives what was counted for every query of every run.
"""

import operator
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod
from typing import Any

import torch
from torch.fx import Node

from tracer.capture.arguments import argument, draws, op_name, written
from tracer.formula import Formula, const, formula, minimum, var
from tracer.graph import Kind
from tracer.kinds import MATRIX_PRODUCTS, data_args, kind_of

Sizes = Mapping[str, int]
Size = Formula | int

LARGEST = 2**22
"""Elements of the largest tensor that is computed in order to count."""
LONGEST = 200
"""Ops between scores and probabilities, and in the making of a mask, beyond which a mask is not run."""
INSTEAD = (2, 3, 5)
"""Small numbers that stand in for a number of the mask's code (the width of a window), so that few
tokens show what it does."""
BIAS = 9000
"""A number that code adds to scores hides none where all that it may be are smaller: masks of numbers
that are finite begin at ten thousand."""
SEEDS = (1, 2)
"""Of the scores that a mask which chooses among them is run with, beside equal ones."""
_WHATEVER = ("max", "min", "topk")
"""Make numbers of places of scores that no count of pairs goes by."""
_ADDING = ("baddbmm", "addmm")
"""Products that add to what their first operand holds."""


def find_extents(
    nodes: Sequence[Node],
    data: Mapping[Node, torch.Tensor | None],
    written: Collection[Node],
    size: Callable[[Any], Formula],
    samples: Sequence[Sizes],
) -> tuple[dict[Node, Formula], dict[Node, str]]:
    """The extents of those ``nodes`` of an exported graph for which they are known, and of the
    attentions that they are not known for why.

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
    return found, masks.unknown


@contextmanager
def _one_thread() -> Iterator[None]:
    """For tensors so small that to wake threads takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# --- patterns of masks ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A rule by which queries see keys."""

    seen: Callable[[int, int, int], int]
    """(position of a query, keys, width) -> keys that it sees"""
    pairs: Callable[[Formula, Formula, int], Formula]
    """(queries, all keys up to the last query, width) -> the sum of ``seen`` over the queries"""
    forgets: bool = False
    """Whether it holds by the place in the whole sequence, of which a cache may keep the end alone;
    else the last query stands at the last key."""

    def counts(self, sizes: Sizes, queries: int, keys: int, width: int) -> list[int]:
        """Keys that each query sees."""
        first = sizes["past"] if self.forgets else keys - queries
        return [self.seen(first + i, keys, width) for i in range(queries)]


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
        forgets=True,
    ),
    # less than ``width`` away on either side
    _Pattern(
        lambda p, keys, width: min(p + 1, width) + min(keys - p, width) - 1,
        lambda q, k, width: _within(k, width) - _within(k - q, width) + _within(q, width) - q,
    ),
)


# --- running a mask -------------------------------------------------------------------------------


class _Unknown(Exception):
    """A mask that cannot be run with numbers, or not at such a size, and why."""


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
    unknown: dict[Node, str] = field(default_factory=dict)
    """Attentions without an extent -> why."""

    def note_constants(self, nodes: Iterable[Node]) -> None:
        """Find what no input reaches."""
        for node in nodes:
            given = node.op == "placeholder"
            free = node in self.data if given else self.constant.issuperset(_reads(node))
            settled = node not in self.written or (not given and self._settled(node))
            fixed = node.op != "output" and settled and not draws(node)
            if fixed and (free or _is_size(node)):
                self.constant.add(node)

    def extent(self, node: Node) -> dict[Node, Formula]:
        """The extent of a call and, where it ends an attention, of the others in that."""
        name, kind = op_name(node), kind_of(str(node.target))
        if kind is Kind.ATTENTION:
            return self.of_one_op(node)
        if name in MATRIX_PRODUCTS:
            return self.of_products(node)
        return {}

    def of_products(self, product: Node) -> dict[Node, Formula]:
        """Of an attention whose probabilities are multiplied with the values by ``product``."""
        probabilities = product.args[0]
        if not isinstance(probabilities, Node) or not self._of_two(product):
            return {}
        try:
            between, scores = self._between(probabilities)
            softmaxes = [n for n in between if kind_of(str(n.target)) is Kind.SOFTMAX]
            if not softmaxes or not scores:
                return {}
            queries, keys = map(self.size, probabilities.meta["val"].shape[-2:])

            def run(sizes: Sizes, instead: Mapping[int, int], seed: int) -> torch.Tensor:
                made = self._filled(between, scores, sizes, seed)
                return self._run(between, made, probabilities, sizes, instead)

            if all(map(_hides_nothing, between)):  # at any size, also one that is too large to run
                pairs = queries * keys
            else:
                pairs = self._pairs(run, between, queries, keys)
        except _Unknown as why:
            if _after_softmax(probabilities):
                self.unknown[product] = str(why)
            return {}
        square = [
            node
            for node in (*scores, *softmaxes)
            if [*map(self.size, node.meta["val"].shape[-2:])] == [queries, keys]
        ]
        return dict.fromkeys([*square, product], pairs)

    def of_one_op(self, node: Node) -> dict[Node, Formula]:
        """Of an attention in one op."""
        if getattr(node.target, "_schema", None) is None:
            self.unknown[node] = "its mask is a function that is handed to one op"
            return {}
        mask = next(filter(None, (argument(node, n) for n in ("attn_mask", "attn_bias"))), None)
        causal = bool(argument(node, "is_causal"))
        read, kept = (argument.meta["val"] for argument in node.args[:2])
        queries, keys = self.size(read.shape[-2]), self.size(kept.shape[-2])

        def run(sizes: Sizes, instead: Mapping[int, int], seed: int) -> torch.Tensor:
            shape = [queries.evaluate(sizes), keys.evaluate(sizes)]
            seen: Any = torch.ones(shape, dtype=torch.bool)
            if causal:
                seen = seen.tril()
            if mask is not None:
                scored = self._filled(between, scores, sizes, seed)
                made = self._run(between, scored, mask, sizes, instead)
                hides = made if made.dtype is torch.bool else made.float().exp() != 0
                seen = seen & hides
            return seen

        try:
            between, scores = ([], []) if mask is None else self._between(mask)
            if scores and not any(map(_picks, between)):
                raise _Unknown("scores of another product are added to its own")
            return {node: self._pairs(run, between, queries, keys)}
        except _Unknown as why:
            self.unknown[node] = str(why)
            return {}

    def _filled(
        self, between: Sequence[Node], scores: Sequence[Node], sizes: Sizes, seed: int
    ) -> dict[Node, Any]:
        """Scores to run a mask with: all equal, or with a ``seed`` all different."""
        draw = torch.Generator().manual_seed(seed)
        made: dict[Node, Any] = {}
        for score in scores:
            if score not in between:  # else it adds to something, which is made first
                shape, dtype = self._shape(score.meta["val"], sizes), score.meta["val"].dtype
                drawn = torch.rand(shape, generator=draw) if seed else torch.zeros(shape)
                made[score] = drawn.to(dtype)
        return made

    def _of_two(self, product: Node) -> bool:
        """Whether inputs reach both operands, as a query and a key."""
        adds = op_name(product) in _ADDING
        operands = product.args[1:3] if adds else product.args[:2]
        if not all(isinstance(n, Node) for n in operands):
            return False  # an einsum is told what to multiply first
        return self.constant.isdisjoint(n for n in operands if isinstance(n, Node))

    def _settled(self, node: Node) -> bool:
        """Whether a node in whose memory some op writes is what it makes to all that read it: it is
        written by its one reader, or before anything reads it."""
        readers = [user for user in node.users if node in _reads(user)]
        return len(readers) == 1 or not any(self._writes(user, node) for user in readers)

    def _writes(self, user: Node, node: Node) -> bool:
        if node in written(user):
            return True
        return user in self.written and any(self._writes(one, user) for one in user.users)

    def _between(self, last: Node) -> tuple[list[Node], list[Node]]:
        """(what makes ``last`` from products on, in order; those products).

        A product that adds to something is among both. Raises _Unknown where values that are no
        scores have a part in it, and where scores are compared with each other.
        """
        between: set[Node] = set()
        scores: set[Node] = set()
        stack = [last]
        while stack:
            node = stack.pop()
            if node in between or node in scores or _is_size(node):
                continue
            product = op_name(node) in MATRIX_PRODUCTS
            if product and node not in self.constant:
                if not self._of_two(node):
                    raise _Unknown("what inputs make beside its scores has a part in its mask")
                scores.add(node)
                if op_name(node) in _ADDING:
                    between.add(node)
                    stack += [n for n in node.args[:1] if isinstance(n, Node)]
                continue
            between.add(node)
            varies = node not in self.constant
            if node.op == "placeholder" and varies:
                raise _Unknown("what inputs make beside its scores has a part in its mask")
            if node in self.written and not self._settled(node):
                raise _Unknown("its mask is written in place, in parts")
            if len(between) > LONGEST:
                raise _Unknown(f"its mask is made by more than {LONGEST} ops")
            if varies and self._compares(node):
                raise _Unknown("it compares scores with each other: what it hides goes by the data")
            stack += _reads(node)
        return sorted(between), sorted(scores)  # fx orders nodes as the graph does

    def _compares(self, node: Node) -> bool:
        """Whether an op makes numbers of places, or truths, of floats that inputs reach; a maximum
        may as well, and one that takes the k best takes k of them whatever they are."""
        whole = any(not t.is_floating_point() for t in _tensors(node.meta.get("val")))
        floats = (
            t.is_floating_point()
            for read in _reads(node)
            if read not in self.constant
            for t in _tensors(read.meta.get("val"))
        )
        kept = node.target is operator.getitem or op_name(node) in _WHATEVER
        return whole and not kept and any(floats)

    def _shape(self, value: torch.Tensor, sizes: Sizes) -> list[int]:
        shape = [self.size(axis).evaluate(sizes) for axis in value.shape]
        if prod(shape) > LARGEST:
            raise _Unknown(f"its mask is too large to be run: {' x '.join(map(str, shape))}")
        return shape

    def _run(
        self,
        between: Sequence[Node],
        made: dict[Node, Any],
        last: Node,
        sizes: Sizes,
        instead: Mapping[int, int],
    ) -> torch.Tensor:
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
            raise _Unknown("its mask cannot be run by itself at few tokens") from error

    def _made_by(
        self, node: Node, value: Callable[[Node], Any], sizes: Sizes, instead: Mapping[int, int]
    ) -> Any:
        if node.op == "placeholder":
            data = self.data[node]
            if data is None or (not data.is_floating_point() and bool((data.abs() > 1).any())):
                # what a window's width may be must show as a number of the code
                raise _Unknown(
                    "a buffer has a part in its mask whose numbers are not those of code"
                )
            return data
        for tensor in _tensors(node.meta.get("val")):
            self._shape(tensor, sizes)

        def given(argument: Any) -> Any:
            if isinstance(argument, Node):
                return value(argument)
            if isinstance(argument, torch.device):
                return torch.device("cpu")
            return argument

        if node not in self.constant and op_name(node) in _ADDING:
            factor = argument(node, "beta")
            shape = self._shape(node.meta["val"], sizes)
            return (value(node.args[0]) * (1 if factor is None else factor)).expand(shape).clone()
        args = torch.fx.node.map_aggregate(node.args, given)
        if _picks(node):
            best = next((instead[n] for n in self._width(node) if n in instead), args[1])
            return node.target(args[0], min(best, args[0].shape[-1]), *args[2:], **node.kwargs)
        kwargs = torch.fx.node.map_aggregate(node.kwargs, given)
        if instead and _is_arithmetic(node):
            args = tuple(_stand_in(argument, instead) for argument in args)
            kwargs = {name: _stand_in(argument, instead) for name, argument in kwargs.items()}
        return node.target(*args, **kwargs)

    def _numbers(self, between: Iterable[Node]) -> list[int]:
        """The whole numbers that a mask is computed with, or takes the best of."""
        told = (
            [*node.args, *node.kwargs.values()]
            if node in self.constant and _is_arithmetic(node)
            else self._width(node)
            for node in between
        )
        return sorted(
            {
                int(abs(number))
                for numbers in told
                for number in numbers
                if type(number) in (int, float) and 1 < abs(number) < 2**31 and number % 1 == 0
            }
        )

    def _width(self, node: Node) -> list[int]:
        """How many an op takes the best of: that, or a size that is no more than it."""
        if not _picks(node):
            return []
        width = node.args[1]
        if isinstance(width, Node):
            return [int(n) for n in re.findall(r"\d+", str(self.size(width.meta["val"])))]
        return [width] if isinstance(width, int) else []

    def _hidden(self, between: Iterable[Node]) -> Iterator[int]:
        """The integers in the sizes that a mask is computed with, which no symbol replaces.

        An offset that is 0 in every sample is left out. So a trace with fewer cached tokens than a
        window holds is not used for more of them (``Task.alike``).
        """
        for node in between:
            slices = op_name(node) == "slice"
            if _is_arithmetic(node) or slices or op_name(node) == "arange":
                if slices and self._is_bias(node.args[0]):
                    continue
                sizes = (self.size(n.meta["val"]) for n in node.all_input_nodes if _is_size(n))
                at_work = (s for s in sizes if any(s.evaluate(one) for one in self.samples))
                yield from (int(n) for size in at_work for n in re.findall(r"\d+", str(size)))

    def _is_bias(self, node: Any) -> bool:
        """Whether a tensor, or what it is a slice of, is the same at all sizes and hides nothing
        wherever it is added to scores."""
        while isinstance(node, Node) and op_name(node) == "slice":
            node = node.args[0]
        if not isinstance(node, Node) or node not in self.constant:
            return False
        for known in self.made.values():
            held = known.get(node)
            shape = node.meta["val"].shape
            if isinstance(held, torch.Tensor) and all(isinstance(axis, int) for axis in shape):
                return held.is_floating_point() and bool((held.abs() < BIAS).all())
        return False

    def _pairs(
        self,
        run: Callable[[Sizes, Mapping[int, int], int], torch.Tensor],
        between: Sequence[Node],
        queries: Formula,
        keys: Formula,
    ) -> Formula:
        """The pairs that a mask lets through. Raises _Unknown where they are those of no pattern.

        Where several give the same counts, because no sample is as long as a window, small numbers
        stand in for those of the mask's code: the right pattern changes as the counts do.
        """
        numbers = self._numbers(between)
        pasts = {sizes["past"] for sizes in self.samples}
        past = const(pasts.pop()) if len(pasts) == 1 else var("past")
        seeds = SEEDS if any(map(_picks, between)) else ()

        def counted(instead: Mapping[int, int]) -> list[list[int]]:
            first = [_counts(run(sizes, instead, 0)) for sizes in self.samples]
            for seed in seeds:
                for sizes, counts in zip(self.samples, first, strict=True):
                    seen = run(sizes, instead, seed) != 0
                    if bool((seen.sum(-1) != torch.tensor(counts)).any()):
                        raise _Unknown("how many pairs its mask keeps goes by the data")
            return first

        def fits(one: _Candidate, instead: Mapping[int, int], counts: list[list[int]]) -> bool:
            pattern, number, more = one
            width = instead.get(number, number) + more
            return counts == [
                pattern.counts(sizes, queries.evaluate(sizes), keys.evaluate(sizes), width)
                for sizes in self.samples
            ]

        def formulas() -> dict[str, Formula]:
            found = {}
            for pattern, number, more in left:
                end = past + queries if pattern.forgets else keys
                pairs = pattern.pairs(queries, end, number + more)
                found[str(pairs)] = pairs
            return found

        left: list[_Candidate] = [(_FULL, 0, 0), (_CAUSAL, 0, 0)]
        left += [(p, number, more) for number in numbers for p in _WITH_A_WIDTH for more in (0, 1)]
        if not self.samples:
            raise _Unknown("there is no size to run its mask at")
        for instead in ({}, *({n: other} for n in numbers for other in INSTEAD)):
            if instead and len(formulas()) < 2:
                break
            counts = counted(instead)
            left = [one for one in left if fits(one, instead, counts)]
        limits = [n for n in self._hidden(between) if n > keys.evaluate(self.samples[-1])]
        if limits:
            raise _Unknown(f"its mask compares sizes with {limits[0]}, and no run is as long")
        found = formulas()
        if len(found) != 1:
            raise _Unknown("its mask is no triangle, window, chunk or square")
        return found.popitem()[1]


_Candidate = tuple[_Pattern, int, int]
"""(pattern, a number of the mask's code or 0, how much more than that is the width)"""


def _counts(probabilities: torch.Tensor) -> list[int]:
    """Keys that each query sees. Raises _Unknown where sequences or heads differ in it."""
    seen = (probabilities != 0).sum(-1).reshape(-1, probabilities.shape[-2])
    if not bool((seen == seen[0]).all()):
        raise _Unknown("sequences or heads of a batch differ in what they see")
    counts: list[int] = seen[0].tolist()
    return counts


def _tensors(made: Any) -> list[torch.Tensor]:
    return [
        t
        for t in (made if isinstance(made, list | tuple) else [made])
        if isinstance(t, torch.Tensor)
    ]


def _reads(node: Node) -> Sequence[Node]:
    """The nodes whose values a node goes by: of some it takes shape and dtype alone."""
    return data_args(str(node.target), tuple(node.all_input_nodes))


def _is_size(node: Node) -> bool:
    return isinstance(node.meta.get("val"), int | torch.SymInt)


def _is_arithmetic(node: Node) -> bool:
    """Whether a whole number that an op is told is one to compute with, rather than an axis."""
    return kind_of(str(node.target)) is Kind.ELEMENTWISE or op_name(node) in _BANDS


_BANDS = ("tril", "triu")
"""Keep what is on one side of a diagonal, which a number says."""


def _stand_in(argument: Any, instead: Mapping[int, int]) -> Any:
    if type(argument) not in (int, float) or abs(argument) not in instead:
        return argument
    return instead[abs(argument)] if argument > 0 else -instead[-argument]


def _picks(node: Node) -> bool:
    """Whether an op takes the k best along the last axis."""
    return op_name(node) == "topk" and argument(node, "dim") in (-1, None)


_IN_PLACE = ("mul", "dropout", "to", "_to_copy", "contiguous", "clone", "type_as")
"""Scale, cast or copy: each number stays where it is."""
_SEES_ALL = (*_IN_PLACE, "div", "softmax", "_softmax", "safe_softmax")


def _hides_nothing(node: Node) -> bool:
    """Whether an op of scores keeps each in its place: it casts or scales them, or is a softmax."""
    alone = sum(not _is_size(read) for read in node.all_input_nodes) == 1
    return alone and op_name(node) in _SEES_ALL


_HANDS_ON = (*_IN_PLACE, "view", "reshape", "expand", "slice", "masked_fill", "nan_to_num")


def _after_softmax(node: Any) -> bool:
    """Whether a tensor is that of a softmax, but for what masks, casts or views it."""
    while isinstance(node, Node) and op_name(node) in _HANDS_ON:
        node = node.args[0]
    return isinstance(node, Node) and kind_of(str(node.target)) is Kind.SOFTMAX
