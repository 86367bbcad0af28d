"""The matrix products of a trace as a workload of ZigZag: YAML, a list of layers.

A layer is ``O[b][k] += I[b][c] * W[c][k]``: b are our rows (m), c is summed over (k), k are our columns
(n). Each layer names itself as the source of its operands: they come from outside, since what lies
between two products (a softmax, a norm) is no layer of ZigZag's.
"""

from collections.abc import Iterable

from tracer.graph import Gemm

Products = Iterable[tuple[str, Gemm, int]]
"""(name, product, bits of an element)"""


def workload(products: Products) -> str:
    """A layer a product; one of several (heads, groups, experts) has a layer for each of them.

    >>> print(workload([("scores", Gemm(batch=1, m=8, n=4, k=16), 32)]), end="")
    - id: 0
      name: scores
      operator_type: Gemm
      equation: O[b][k]+=I[b][c]*W[c][k]
      dimension_relations: []
      loop_dims: [B, C, K]
      loop_sizes: [8, 16, 4]
      operand_precision: {W: 32, I: 32, O: 32, O_final: 32}
      operand_source: {I: 0, W: 0}
    """
    layers: list[str] = []
    for name, gemm, bits in products:
        for number in range(gemm.batch):
            at, called = len(layers), name if gemm.batch == 1 else f"{name}.{number}"
            layers.append(
                f"- id: {at}\n"
                f"  name: {called}\n"
                "  operator_type: Gemm\n"
                "  equation: O[b][k]+=I[b][c]*W[c][k]\n"
                "  dimension_relations: []\n"
                "  loop_dims: [B, C, K]\n"
                f"  loop_sizes: [{gemm.m}, {gemm.k}, {gemm.n}]\n"
                f"  operand_precision: {{W: {bits}, I: {bits}, O: {bits}, O_final: {bits}}}\n"
                f"  operand_source: {{I: {at}, W: {at}}}\n"
            )
    return "".join(layers)
