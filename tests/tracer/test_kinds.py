"""From the names of ATen ops to kinds, and which arguments carry data."""

import pytest

from tracer.graph import Kind
from tracer.kinds import base_name, data_args, kind_of


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
        # along an axis, or all in all: a reduction; of two tensors: element by element
        ("aten.max.default", "max", Kind.REDUCTION),
        ("aten.max.dim", "max", Kind.REDUCTION),
        ("aten.max.other", "maximum", Kind.ELEMENTWISE),
        ("aten.min.other", "minimum", Kind.ELEMENTWISE),
        ("aten.never_heard_of.default", "never_heard_of", Kind.OTHER),
        ("output", "output", Kind.OTHER),
    ],
)
def test_names_and_kinds(target, name, kind):
    assert base_name(target) == name
    assert kind_of(target) is kind


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
