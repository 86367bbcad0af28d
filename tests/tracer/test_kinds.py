"""From the names of ATen ops to kinds, and which arguments carry data."""

import pytest

from costmodels.formulas import REGISTRY
from costmodels.traffic import has_own_rule
from tracer.graph import Kind
from tracer.kinds import base_name, data_args, is_known, kind_of, moves


@pytest.mark.parametrize(
    ("target", "name", "kind"),
    [
        ("aten.add.Tensor", "add", Kind.ELEMENTWISE),
        ("aten.add_.Tensor", "add", Kind.ELEMENTWISE),
        ("aten.__and__.Tensor", "__and__", Kind.ELEMENTWISE),
        ("aten._softmax.default", "_softmax", Kind.SOFTMAX),
        ("aten.linear.default", "linear", Kind.MATMUL),  # until a parameter makes it a linear
        ("aten.conv1d.default", "conv1d", Kind.MATMUL),
        ("aten.log_sigmoid.default", "log_sigmoid", Kind.ELEMENTWISE),
        ("aten.linalg_solve_triangular.default", "linalg_solve_triangular", Kind.MATMUL),
        ("aten.lstm.input", "lstm", Kind.MATMUL),
        ("aten.special_expit.default", "sigmoid", Kind.ELEMENTWISE),
        ("aten.max_pool2d.default", "max_pool2d", Kind.REDUCTION),
        ("aten.col2im.default", "col2im", Kind.COPY),
        ("aten.reshape_as.default", "reshape_as", Kind.COPY),
        # along an axis, or all in all: a reduction; of two tensors: element by element
        ("aten.max.default", "max", Kind.REDUCTION),
        ("aten.max.dim", "max", Kind.REDUCTION),
        ("aten.max.other", "maximum", Kind.ELEMENTWISE),
        ("aten.min.other", "minimum", Kind.ELEMENTWISE),
        ("aten.never_heard_of.default", "never_heard_of", Kind.OTHER),
        ("output", "output", Kind.OTHER),
        # what a library that is not torch's own calls so is another op
        ("prims.add.default", "add", Kind.ELEMENTWISE),
        ("mine.add.default", "mine::add", Kind.OTHER),
        ("mine.matmul.default", "mine::matmul", Kind.OTHER),
        ("max.other.default", "max::other", Kind.OTHER),
        ("quantized.linear.default", "quantized::linear", Kind.OTHER),
        ("transformers.grouped_mm_fallback.default", "grouped_mm_fallback", Kind.MATMUL),
        ("mine.grouped_mm_fallback.default", "mine::grouped_mm_fallback", Kind.OTHER),
    ],
)
def test_names_and_kinds(target, name, kind):
    assert base_name(target) == name
    assert kind_of(target) is kind


def test_an_op_of_another_library_is_in_no_table():
    """It may do anything to the values that it reads, whatever it is called."""
    for name in ("add", "view", "softmax", "split", "zeros_like", "sum", "embedding", "slice_copy"):
        target = f"mine.{name}.default"
        assert not is_known(target), name
        assert data_args(target, ("x", "y")) == ("x", "y")
        assert moves(target, 2, 1, same_size=False) == [(0, 0), (1, 0)]
        assert base_name(target) not in REGISTRY
        assert not has_own_rule(target)


@pytest.mark.parametrize(
    ("target", "read"),
    [
        ("aten.add.Tensor", "xy"),
        ("aten.where.self", "xy"),
        ("aten.to.dtype", "xy"),
        # dtype or shape alone come from the second
        ("aten.to.other", "x"),
        ("aten.type_as.default", "x"),
        ("aten.expand_as.default", "x"),
        ("aten.view_as.default", "x"),
        ("aten.reshape_as.default", "x"),
        # and here from the first
        ("aten.zeros_like.default", ""),
        ("aten.new_full.default", ""),
    ],
)
def test_arguments_that_only_give_a_dtype_or_a_shape_are_not_read(target, read):
    assert data_args(target, ("x", "y")) == tuple(read)
