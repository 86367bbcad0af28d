"""A small systolic array with buffers, word by word and cycle by cycle: slow, from the rules alone."""

from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product

FORMS = {"ifmap": "mk", "filter": "kn", "ofmap": "mn"}
TILED = {"os": "mn", "ws": "kn", "is": "km"}

Word = tuple[int, int]


@dataclass
class Run:
    """What one product has moved."""

    cycles: int = 0
    reads: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FORMS, 0))
    writes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FORMS, 0))
    array_reads: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FORMS, 0))
    array_writes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FORMS, 0))

    @property
    def words(self) -> int:
        return sum(self.reads.values()) + sum(self.writes.values())


def chunks(size: int, span: int) -> list[list[int]]:
    return [list(range(at, min(at + span, size))) for at in range(0, size, span)]


def walked(
    dataflow: str,
    rows: int,
    columns: int,
    buffers: dict[str, int],
    bandwidth: Fraction,
    sizes: dict[str, int],
    outer: str,
) -> Run:
    """One product [m, k] x [k, n], its tiled axes gone through with ``outer`` outside."""
    run = Run()
    spans = dict(zip(TILED[dataflow], (rows, columns), strict=True))
    (inner,) = set(spans) - {outer}
    parts = {axis: chunks(sizes[axis], spans.get(axis, sizes[axis])) for axis in "mkn"}
    folds = [{outer: a, inner: b} for a, b in product(parts[outer], parts[inner])]
    for fold in folds:
        fold.update({axis: parts[axis][0] for axis in "mkn" if axis not in fold})

    def needs(name: str, fold: dict[str, list[int]]) -> set[Word]:
        one, other = FORMS[name]
        return set(product(fold[one], fold[other]))

    whole = {
        name: needs(name, {axis: list(range(sizes[axis])) for axis in "mkn"}) for name in FORMS
    }
    largest = {name: max(len(needs(name, fold)) for fold in folds) for name in FORMS}
    keeps = {name: len(whole[name]) <= buffers[name] for name in FORMS}
    holds = {name: 2 * largest[name] <= buffers[name] for name in FORMS}

    # What comes and goes with each fold, from what lies in each buffer when it starts.
    there: dict[str, set[Word]] = {name: set() for name in FORMS}
    begun: set[Word] = set()  # results that something has been added to
    come: list[dict[str, int]] = []
    go: list[int] = []
    for number, fold in enumerate(folds):
        arriving = {}
        for name in FORMS:
            wanted = needs(name, fold)
            lacking = wanted - there[name]
            if name == "ofmap":
                lacking &= begun
            arriving[name] = len(lacking)
            there[name] = there[name] | wanted if keeps[name] else wanted
        come.append(arriving)
        result = needs("ofmap", fold)
        begun |= result
        later = [needs("ofmap", one) for one in folds[number + 1 :]]
        again = any(result & one for one in later)
        stays = again and (keeps["ofmap"] or (holds["ofmap"] and bool(later[0] & result)))
        if not stays:
            there["ofmap"] -= result
        go.append(0 if stays else len(result))
        for name in ("ifmap", "filter"):
            if not (keeps[name] or holds[name]):
                there[name] = set()
        # What passes the cells is read whole; what stays in them once, when it is put there.
        run.array_reads["ifmap"] += len(needs("ifmap", fold))
        run.array_reads["filter"] += len(needs("filter", fold))
        run.array_writes["ofmap"] += len(result)
        first = min(fold["k"]) == 0
        run.array_reads["ofmap"] += 0 if first else len(result)
    for arriving in come:
        for name, count in arriving.items():
            run.reads[name] += count
    run.writes["ofmap"] = sum(go)

    # Cycle by cycle: a stage ends when its fold is computed and its words have moved.
    load = 0 if dataflow == "os" else rows
    streamed = next(axis for axis in "mkn" if axis not in spans)
    computing = load + sizes[streamed] + rows + columns - 2
    waits = {name: keeps[name] or holds[name] for name in FORMS}

    def stage(words: int, cycles: int) -> None:
        moved, taken = Fraction(0), 0
        while moved < words or taken < cycles:
            moved, taken = moved + bandwidth, taken + 1
        run.cycles += taken

    stage(sum(count for name, count in come[0].items() if waits[name]), 0)
    for number in range(len(folds)):
        words = sum(count for name, count in come[number].items() if not waits[name])
        words += 0 if waits["ofmap"] else go[number]
        if number + 1 < len(folds):
            words += sum(count for name, count in come[number + 1].items() if waits[name])
        if number and waits["ofmap"]:
            words += go[number - 1]
        stage(words, computing)
    stage(go[-1] if waits["ofmap"] else 0, 0)
    return run
