"""``docs/against-scalesim.md``: 200 random products in SCALE-Sim 3.0.0, and what cutedge says of them.

``make scalesim`` writes the page from ``tests/reference/scalesim_runs.csv``. ``python -m tools.scalesim
PYTHON`` first runs the products that are not in there yet; PYTHON is one that has scalesim 3.0.0 and a
numpy below 2.
"""

import csv
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from pathlib import Path

from costmodels.array_memory import MOST_WORDS, OPERANDS, Buffers, MemoryCost, memory_cost
from costmodels.arrays import gemm_cost, spans_of
from costmodels.devices import Array
from cutedge.exports.scalesim import configuration, offsets_of, topology
from tracer.graph import Gemm

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "tests" / "reference" / "scalesim_runs.csv"
PAGE = ROOT / "docs" / "against-scalesim.md"
RUNNER = Path(__file__).with_name("scalesim_run.py")

MANY = 200
MOST_CYCLES = 9_000
"""SCALE-Sim takes a second for some thousand."""
LARGEST_MATRIX = 30_000
"""Words of one: likewise."""

REPORTED = {
    "cycles_with_prefetch": "Total Cycles (incl. prefetch)",
    "cycles": "Total Cycles",
    "stall_cycles": "Stall Cycles",
    "sram_ifmap_reads": "SRAM IFMAP Reads",
    "sram_filter_reads": "SRAM Filter Reads",
    "sram_ofmap_writes": "SRAM OFMAP Writes",
    "dram_ifmap_reads": "DRAM IFMAP Reads",
    "dram_filter_reads": "DRAM Filter Reads",
    "dram_ofmap_writes": "DRAM OFMAP Writes",
}
"""Our name of a figure -> the column of its reports."""


@dataclass(frozen=True, slots=True)
class Run:
    """A product on an array in SCALE-Sim."""

    number: int
    kind: str
    """gemm, conv or depthwise; of the last two the product is im2col's, of one channel for depthwise."""
    m: int
    k: int
    n: int
    image: str
    """Of a convolution: height x width of the padded input, kernel, channels, filters, stride."""
    rows: int
    columns: int
    dataflow: str
    ifmap_kib: int
    filter_kib: int
    ofmap_kib: int
    words_per_cycle: int
    """``Bandwidth``: of the port of the results."""
    read_words_per_cycle: int
    """Of the ports of both operands."""
    figures: Mapping[str, int] = field(default_factory=dict)
    """By the names of ``REPORTED``; empty before it has run."""

    @property
    def array(self) -> Array:
        return Array(  # type: ignore[call-arg]
            self.dataflow, self.rows, self.columns, depth=None, tile_cycles=None, clock_hertz=1e8
        )

    @property
    def job(self) -> dict[str, object]:
        """What the runner takes."""
        kib = self.ifmap_kib, self.filter_kib, self.ofmap_kib
        product = [("product", Gemm(batch=1, m=self.m, n=self.n, k=self.k))]
        written = configuration(
            "run",
            self.dataflow,  # type: ignore[arg-type]
            self.rows,
            self.columns,
            kib,
            self.words_per_cycle,
            read_words_per_cycle=self.read_words_per_cycle,
            offsets=offsets_of(product),
        )
        if self.kind == "gemm":
            rows = topology(product)
        else:
            # A name with DP in it is a depthwise one to SCALE-Sim: a product a channel.
            name = "DP" if self.kind == "depthwise" else "conv"
            sizes = ", ".join(self.image.split())
            rows = (
                f"name, height, width, kernel, channels, filters, stride,\n{name}, {sizes}, 1:1,\n"
            )
        return {
            "id": self.number,
            "configuration": written,
            "topology": rows,
            "gemm": self.kind == "gemm",
        }


def drawn() -> Iterator[Run]:
    """The products, the same each time."""
    dice = random.Random(20)
    number = 0
    while number < MANY:
        kind = (
            "gemm",
            "gemm",
            "gemm",
            "gemm",
            "gemm",
            "gemm",
            "gemm",
            "gemm",
            "conv",
            "depthwise",
        )[number % 10]
        image = ""
        if kind == "gemm":
            m, k, n = (dice.choice((1, *[int(2 ** dice.uniform(2, 9))] * 9)) for _ in range(3))
        else:
            kernel, stride = dice.choice((1, 2, 3, 5)), dice.choice((1, 1, 2))
            padding = dice.randrange(kernel)
            height, width = (dice.randint(kernel, 16) + 2 * padding for _ in range(2))
            channels = dice.randint(1, 12)
            filters = 1 if kind == "depthwise" else dice.randint(1, 40)
            out = [-(-(size - kernel + stride) // stride) for size in (height, width)]
            m, k, n = out[0] * out[1], kernel * kernel * channels, filters
            if kind == "depthwise":
                k = kernel * kernel
            image = f"{height} {width} {kernel} {kernel} {channels} {filters} {stride}"
        run = Run(
            number,
            kind,
            m,
            k,
            n,
            image,
            dice.randint(4, 32),
            dice.randint(4, 32),
            dice.choice(("os", "ws", "is")),
            *(dice.choice((1, 1, 2, 4, 8, 16, 64)) for _ in range(3)),
            words_per_cycle=(words := dice.choice((1, 2, 4, 8, 10, 16, 32))),
            read_words_per_cycle=dice.choice((words, words, 100)),
        )
        if max(m * k, k * n, m * n) <= LARGEST_MATRIX and computed(run) <= MOST_CYCLES:
            yield run
            number += 1


def computed(run: Run) -> int:
    """Folds times what each takes, without what the arrays' closed forms leave to choice."""
    spans = spans_of(run.array)
    sizes = {"m": run.m, "k": run.k, "n": run.n}
    folds = 1
    for axis, span in spans.items():
        folds *= -(-sizes[axis] // span)
    (streamed,) = {*sizes} - {*spans}
    return folds * (sizes[streamed] + 2 * run.rows + run.columns)


def kept() -> list[Run]:
    """The runs that are written down."""
    if not RUNS.exists():
        return []
    with RUNS.open(encoding="utf-8") as file:
        return [_read(row) for row in csv.DictReader(file)]


def _read(row: Mapping[str, str]) -> Run:
    words = {"kind", "image", "dataflow"}
    own = {f.name: row[f.name] for f in fields(Run) if f.name != "figures"}
    given = {name: text if name in words else int(text) for name, text in own.items()}
    return Run(**given, figures={name: int(row[name]) for name in REPORTED})  # type: ignore[arg-type]


def run_missing(python: str) -> None:
    """Run what is not written down yet; each run is written as it ends."""
    there = {run.number for run in kept()}
    missing = {run.number: run for run in drawn() if run.number not in there}
    names = [f.name for f in fields(Run) if f.name != "figures"]
    with (
        tempfile.TemporaryFile("w+") as asked,
        RUNS.open("a", encoding="utf-8", newline="") as file,
    ):
        asked.write("".join(json.dumps(run.job) + "\n" for run in missing.values()))
        asked.seek(0)
        running = subprocess.Popen(
            [python, "-I", str(RUNNER)], stdin=asked, stdout=subprocess.PIPE, text=True
        )
        table = csv.writer(file, lineterminator="\n")
        if not there:
            table.writerow([*names, *REPORTED])
        for line in running.stdout or ():
            done = json.loads(line)
            run, layers = missing[done["id"]], done["layers"]
            first = {name: layers[0][column] for name, column in REPORTED.items()}
            if any(
                {name: one[column] for name, column in REPORTED.items()} != first for one in layers
            ):
                raise SystemExit(f"the channels of {run} differ")
            table.writerow([asdict(run)[name] for name in names] + [*first.values()])
            file.flush()


INPUTS = ("ifmap", "filter")

READS = {
    "once": "a matrix that fits into half a buffer comes once, in whole lines of its port; the empty "
    "rows or columns of the last folds are fetched like words",
    "in halves": "a matrix that does not fit is fetched in whole halves of the buffer, and no half "
    "comes twice",
    "again": "halves come again. The prefetcher goes through the matrix round and round, and what a "
    "skewed fold reads lies on both sides of a border between halves: for a word that has just left it "
    "goes all the way round. cutedge gives a fold the part that it needs",
}
"""How often SCALE-Sim reads an operand, and why that is not what cutedge counts."""

TIMES = {
    "no sum read back": "partial sums go to the DRAM and none comes back for the next fold to add to: "
    "cutedge reads them, and takes longer",
    "more than the DRAM moves": "the port of the results writes more words than its bandwidth times "
    "all cycles: what is left at the end goes out beside the half that is still going out",
    "alike": "within a tenth",
    "reads again": "the port of an operand is kept busy with halves that were there before, and each "
    "wait for one is added twice",
    "fills, computes, drains": "without a stall: a whole half of each operand's buffer is filled before "
    "the first cycle, and the results that lie in theirs leave after the last one. In cutedge the first "
    "fold waits for its own operands, and all else moves beside the computing",
    "stalls": "each half comes once. The array waits for the port of the results, through which all "
    "partial sums go, or for an operand: that wait is added twice (without the second addition in its "
    "code SCALE-Sim stalls half as long there), and it holds the empty rows and columns of folds too",
}
"""Why the cycles of SCALE-Sim, its first fill and its last drain included, are not those of cutedge; the
first one that holds."""


@dataclass(frozen=True, slots=True)
class Beside:
    """A run of SCALE-Sim, and what cutedge says of the product."""

    run: Run
    computing: int
    """Cycles without stalls."""
    memory: MemoryCost
    """With a DRAM that is as fast as the three ports: see ``beside``."""
    reads: Mapping[str, str]
    """Operand -> one of ``READS``."""
    time: str
    """One of ``TIMES``."""

    @property
    def cycles(self) -> int:
        return int(self.computing + self.memory.stall_cycles)

    @property
    def off(self) -> float:
        return self.cycles / self.run.figures["cycles_with_prefetch"] - 1

    @property
    def exact(self) -> dict[str, tuple[int, int]]:
        """Figure -> (SCALE-Sim's, ours), of those that must be the same."""
        figures = self.run.figures
        return {
            "cycles without stalls": (figures["cycles"] - figures["stall_cycles"], self.computing),
            **{
                f"SRAM reads of {one}": (
                    figures[f"sram_{one}_reads"],
                    int(self.memory.sram_reads[one]),
                )
                for one in INPUTS
            },
            "SRAM writes of ofmap": (
                figures["sram_ofmap_writes"],
                int(self.memory.sram_writes["ofmap"]),
            ),
        }


def beside(run: Run) -> Beside:
    """cutedge has one DRAM for all three matrices: one that takes as long for their words as the
    slowest of the three ports does."""
    sizes = run.m, run.k, run.n
    kib = {"ifmap": run.ifmap_kib, "filter": run.filter_kib, "ofmap": run.ofmap_kib}
    ports = dict.fromkeys(INPUTS, run.read_words_per_cycle) | {"ofmap": run.words_per_cycle}

    def memory(bandwidth: Fraction) -> MemoryCost:
        words = (1024 * each for each in kib.values())
        return memory_cost(run.array, Buffers(*words, bandwidth), *sizes)

    moved = memory(Fraction(1))
    words = {one: moved.dram_reads[one] + moved.dram_writes[one] for one in OPERANDS}
    slowest = max(Fraction(int(words[one]), ports[one]) for one in OPERANDS)
    made = memory((sum(words.values()) / slowest).limit_denominator(MOST_WORDS))
    reads = {one: _reads(run, one, kib[one]) for one in INPUTS}
    computing = int(gemm_cost(run.array, *sizes).cycles)
    figures = run.figures
    theirs = figures["cycles_with_prefetch"]
    moves = {
        one: figures[f"dram_{one}_{'writes' if one == 'ofmap' else 'reads'}"] for one in OPERANDS
    }
    off = (computing + int(made.stall_cycles)) / theirs - 1
    if off > 0.1 and made.dram_reads["ofmap"]:
        time = "no sum read back"
    elif any(moves[one] > ports[one] * theirs for one in OPERANDS):
        time = "more than the DRAM moves"
    elif abs(off) <= 0.1:
        time = "alike"
    elif "again" in reads.values():
        time = "reads again"
    else:
        time = "stalls" if figures["stall_cycles"] else "fills, computes, drains"
    return Beside(run, computing, made, reads, time)


def fetched(run: Run, operand: str) -> int:
    """Words that the prefetcher goes through for a whole matrix: its folds are filled up along one
    axis, never along the other."""
    length = {"m": run.m, "k": run.k, "n": run.n}
    padded = {axis: -(-length[axis] // span) * span for axis, span in spans_of(run.array).items()}
    if operand == "ifmap":
        return padded["m"] * run.k if run.dataflow != "ws" else run.m * padded["k"]
    return padded["n"] * run.k if run.dataflow != "is" else run.n * padded["k"]


def _reads(run: Run, operand: str, kib: int) -> str:
    found, line = run.figures[f"dram_{operand}_reads"], run.read_words_per_cycle
    half = -(-512 * kib // line) * line
    once = -(-fetched(run, operand) // line) * line
    if once <= half:
        if found != once:
            raise SystemExit(f"{run}: {operand} comes {found} times, not {once}")
        return "once"
    if found % half:
        raise SystemExit(f"{run}: {operand} does not come in halves")
    return "in halves" if found // half <= -(-fetched(run, operand) // (512 * kib)) else "again"


_TOP = """# Against SCALE-Sim

{many} random products in SCALE-Sim 3.0.0, and what `gemm --count scalesim` says of them. Made by
`make scalesim` from `tests/reference/scalesim_runs.csv`, which `python -m tools.scalesim PYTHON` fills
(PYTHON has scalesim 3.0.0 and a numpy below 2).

{kinds}. Output, weight and input
stationary arrays of 4 to 32 rows and columns, buffers of 1 to 64 KiB, 1 to 32 words a cycle; few sizes
are multiples of an array's. A convolution is given to SCALE-Sim as one, over its padded image, a
depthwise one as it has them (a product a channel); to cutedge both are the products that `trace` makes
of them. Where the stride does not divide what the kernel leaves of an image, SCALE-Sim's result has a
row or column more than a convolution's: the product has it here too.

## What must be the same

| figure | the same, of {many} |
|---|---|
"""

_PORTS = """
## What the DRAM moves

SCALE-Sim 3.0.0 has three ports to its DRAM, each with a bandwidth of its own. `Bandwidth` in its
configuration is that of the results' port; the operands' ports have what their SRAM banks have
(`IfmapSRAMBankBandwidth`, `FilterSRAMBankBandwidth`). A run that gives `Bandwidth` alone reads past it:
with banks of 100 words and a `Bandwidth` of 2, 459,200 words of weights come in 9,711 cycles
(`tests/reference/scalesim_memory.csv`). {wide} of these runs have banks of 100 words, in the others all
three ports have the same.

| an operand comes | operands | why its count is not that of cutedge |
|---|---|---|
"""

_WRITES = """
Results: its buffer is a queue. Of weight and input stationary arrays each partial sum leaves for the
DRAM, and none comes back: M x N for each fold along K, of {folded} of the products more than M x N.
cutedge adds up what fits into the buffer, and reads back what does not. No operand comes fewer times
than it must, neither there nor here; but a line that is sent half empty counts as a whole one there.

## Cycles

Both with all stalls, the first fill and the last drain. cutedge has one DRAM for all: here it takes as
long for its words as the slowest of the three ports would.

| | runs | within a tenth | why |
|---|---|---|---|
"""

_SOUND = """
SCALE-Sim is sound where each operand comes once or in halves, no port moves more than it can, no stall
is added twice (there is none), and no sum that should be read back is not: {sound} runs. There it fills,
computes and drains one after the other, and cutedge lies between its cycles of computing and those of
all three in {between} of them. Where filling and draining are at most a tenth of its cycles, {short} of
{shorts} are within a tenth.

## The furthest of each class

| | run | M x K x N | array | KiB | words a cycle | SCALE-Sim | cutedge | off |
|---|---|---|---|---|---|---|---|---|
"""


def page() -> str:
    """The page, from the runs that are written down."""
    all_runs = [beside(run) for run in kept()]
    kinds = Counter(one.run.kind for one in all_runs)
    lines = [
        _TOP.format(
            many=len(all_runs),
            kinds=", ".join(
                f"{kinds[kind]} {words}"
                for kind, words in (
                    ("gemm", "products"),
                    ("conv", "convolutions"),
                    ("depthwise", "depthwise convolutions"),
                )
            ),
        )
    ]
    for figure in all_runs[0].exact:
        same = sum(theirs == ours for theirs, ours in (one.exact[figure] for one in all_runs))
        lines.append(f"| {figure} | {same} |\n")
    wide = sum(one.run.read_words_per_cycle == 100 for one in all_runs)
    lines.append(_PORTS.format(wide=wide))
    reads = Counter(why for one in all_runs for why in one.reads.values())
    lines += [f"| {name} | {reads[name]} | {why} |\n" for name, why in READS.items()]
    folded = sum(
        one.run.figures["dram_ofmap_writes"] >= 2 * one.run.m * one.run.n for one in all_runs
    )
    lines.append(_WRITES.format(folded=folded))
    for name, why in TIMES.items():
        these = [one for one in all_runs if one.time == name]
        near = sum(abs(one.off) <= 0.1 for one in these)
        lines.append(f"| {name} | {len(these)} | {near} | {why} |\n")
    sound = [one for one in all_runs if is_sound(one)]
    short = [one for one in sound if moving(one) <= 0.1 * one.run.figures["cycles_with_prefetch"]]
    lines.append(
        _SOUND.format(
            sound=len(sound),
            between=sum(is_between(one) for one in sound),
            short=sum(abs(one.off) <= 0.1 for one in short),
            shorts=len(short),
        )
    )
    for name in TIMES:
        these = sorted(
            (one for one in all_runs if one.time == name),
            key=lambda one: abs(one.off),
            reverse=True,
        )
        for one in these[:3]:
            run = one.run
            lines.append(
                f"| {name} | {run.number} {run.kind} {run.dataflow} | {run.m} x {run.k} x {run.n} | "
                f"{run.rows} x {run.columns} | {run.ifmap_kib}, {run.filter_kib}, {run.ofmap_kib} | "
                f"{run.read_words_per_cycle} in, {run.words_per_cycle} out | "
                f"{run.figures['cycles_with_prefetch']:,} | {one.cycles:,} | {one.off:+.1%} |\n"
            )
    return "".join(lines)


def is_sound(one: Beside) -> bool:
    """Whether SCALE-Sim's cycles are those of a memory that could be built."""
    return (
        "again" not in one.reads.values()
        and not one.run.figures["stall_cycles"]
        and one.time not in ("more than the DRAM moves", "no sum read back")
    )


def moving(one: Beside) -> int:
    """Cycles of SCALE-Sim before the first and after the last of its array."""
    return one.run.figures["cycles_with_prefetch"] - one.run.figures["cycles"]


def is_between(one: Beside) -> bool:
    """Whether ours are no fewer than its cycles of computing, and no more than those with filling and
    draining; but for the cycle or two of a latency that each side counts elsewhere."""
    figures = one.run.figures
    return figures["cycles"] <= one.cycles <= figures["cycles_with_prefetch"] + 2


def main() -> None:
    if len(sys.argv) > 1:
        run_missing(sys.argv[1])
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
