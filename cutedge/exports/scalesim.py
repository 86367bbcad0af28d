"""The matrix products of a trace, and an array with its buffers, as SCALE-Sim 3 reads them.

Its run takes three files: a topology (one product a row: ``scalesim -i gemm -t``), a configuration
(``-c``), and a layout (``-l``), of which it reads what is in it and uses nothing while its custom
layouts are off. Its words are bytes, its buffers have whole KiB, and its bandwidths are whole.
"""

import re
from collections.abc import Iterable, Sequence

from costmodels import Dataflow
from tracer.graph import Gemm, OpGraph

Products = Sequence[tuple[str, Gemm]]
"""(name, product) in the order in which they run; ``batch`` says how many."""

HEAD = "Layer, M, N, K, Sparsity,"
LAYOUT = "Layer,\nany," + "1," * 20 + "\n"
"""A head and a row: it asks for a file."""


def products_of(graph: OpGraph) -> list[tuple[str, Gemm]]:
    """The ops of a graph that are matrix products; those made once at load are not among them."""
    return [
        (op.name, op.cost.gemm)
        for op in graph.ops
        if op.cost.gemm is not None and not op.is_constant
    ]


def topology(products: Iterable[tuple[str, Gemm]]) -> str:
    """A row a product; one of several (heads, groups, experts) has a row for each of them.

    >>> print(topology([("scores", Gemm(batch=2, m=8, n=8, k=4))]), end="")
    Layer, M, N, K, Sparsity,
    scores.0, 8, 8, 4, 1:1,
    scores.1, 8, 8, 4, 1:1,
    """
    rows = [HEAD]
    for name, gemm in products:
        for number in range(gemm.batch):
            called = name if gemm.batch == 1 else f"{name}.{number}"
            rows.append(f"{called}, {gemm.m}, {gemm.n}, {gemm.k}, 1:1,")
    return "\n".join(rows) + "\n"


def offsets_of(products: Products) -> tuple[int, int]:
    """Addresses of the right operand and of the result at which no product's matrices overlap."""
    right = max(gemm.m * gemm.k for _, gemm in products)
    return right, right + max(gemm.k * gemm.n for _, gemm in products)


def configuration(
    name: str,
    dataflow: Dataflow,
    rows: int,
    columns: int,
    kib: tuple[int, int, int],
    words_per_cycle: int,
    *,
    read_words_per_cycle: int | None = None,
    offsets: tuple[int, int],
) -> str:
    """The array, the KiB of its buffers (left operand, right one, result), and what fills them.

    Each of the three has a port of its own to the DRAM, with so many words a cycle. ``Bandwidth`` is
    that of the results alone (SCALE-Sim 3.0.0): the operands' is what their banks have
    (``read_words_per_cycle``; the same unless it is given). ``offsets`` are the addresses of the
    right operand and the result.
    """
    reads = words_per_cycle if read_words_per_cycle is None else read_words_per_cycle
    lines = [
        "[general]",
        "run_name = " + re.sub(r"[^\w.-]", "-", name),  # it names a folder too
        "",
        "[architecture_presets]",
        f"ArrayHeight = {rows}",
        f"ArrayWidth = {columns}",
        f"IfmapSramSzkB = {kib[0]}",
        f"FilterSramSzkB = {kib[1]}",
        f"OfmapSramSzkB = {kib[2]}",
        "IfmapOffset = 0",
        f"FilterOffset = {offsets[0]}",
        f"OfmapOffset = {offsets[1]}",
        f"Dataflow = {dataflow}",
        f"Bandwidth = {words_per_cycle}",
        "ReadRequestBuffer = 512",
        "WriteRequestBuffer = 512",
        "",
        "[layout]",
        "IfmapCustomLayout = False",
        "FilterCustomLayout = False",
        f"IfmapSRAMBankBandwidth = {reads}",
        "IfmapSRAMBankNum = 1",
        "IfmapSRAMBankPort = 2",
        f"FilterSRAMBankBandwidth = {reads}",
        "FilterSRAMBankNum = 1",
        "FilterSRAMBankPort = 2",
        "",
        "[sparsity]",
        "SparsitySupport = false",
        "",
        "[run_presets]",
        "InterfaceBandwidth = USER",
        "UseRamulatorTrace = False",
    ]
    return "\n".join(lines) + "\n"
