"""The ops that a device carries out for whoever sent its plan: the list, and what is refused."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from cutedge.runtime import RunError
from cutedge.runtime.interpreter import LOOK_BYTES, Instructions, Interpreter
from cutedge.runtime.ops import ALLOWED, DRAWN, EQUATION, WORDS, operation, refused
from cutedge.runtime.wire import Spec
from tracer.capture import capture
from tracer.errors import InputError
from tracer.graph import OpGraph
from tracer.kinds import _KINDS, MATRIX_PRODUCTS, READS_NO_DATA, base_name, writes_in_place
from tracer.presets import preset, preset_names
from tracer.program import Invocation, Sharing

TYPES = {
    "Tensor",
    "int",
    "bool",
    "float",
    "number",
    "ScalarType",
    "Device",
    "Layout",
    "MemoryFormat",
    "str",
    "Generator",  # which no plan can give
}
"""What an argument may be, alone, in a list, or left out."""


def target_of(name: str) -> str:
    return f"aten.{name}" if "." in name else f"aten.{name}.default"


def schemas() -> Mapping[str, Any]:
    """Every overload of ATen, by its op's name, a point and its own."""
    found = {}
    for full in torch._C._dispatch_get_all_op_names():
        library, _, name = full.partition("::")
        if library == "aten":
            op, _, overload = name.partition(".")
            packet = getattr(torch.ops.aten, op)
            if hasattr(packet, overload or "default"):
                found[f"aten.{op}.{overload or 'default'}"] = getattr(
                    packet, overload or "default"
                )._schema
    return found


# --- the list -------------------------------------------------------------------------------------


def test_every_overload_in_the_list_is_one_of_torchs_and_makes_its_results_of_its_arguments() -> (
    None
):
    found = schemas()
    assert len(found) > 2000
    for target in map(target_of, ALLOWED):
        schema = found[target]
        written = [
            n
            for n, place in enumerate(schema.arguments)
            if place.alias_info is not None and place.alias_info.is_write
        ]
        assert written == ([0] if writes_in_place(target) else []), target
        assert schema.returns, target
        assert {str(made.real_type) for made in schema.returns} <= {"Tensor", "List[Tensor]"}, (
            target
        )
        for place in schema.arguments:
            plain = str(place.real_type)
            for wrapped in ("Optional[", "List[", "Optional["):
                plain = plain.removeprefix(wrapped)
            assert plain.rstrip("]") in TYPES, (target, place.name)
            if plain.rstrip("]") == "str":
                assert place.name == "equation" or place.name in WORDS, (target, place.name)


def test_no_text_that_an_op_takes_could_be_a_path() -> None:
    words = [word for words in WORDS.values() for word in words]
    assert all(word.isalpha() and len(word) < 12 for word in words)
    assert EQUATION.fullmatch("...ij, jk -> ...ik")
    for path in ("/etc/passwd", "a/b", "a\\b", "~", "a_b", "a" * 201, ""):
        assert not EQUATION.fullmatch(path)


@pytest.mark.parametrize(
    "name",
    [
        "aten.from_file.default",
        "aten.set_.source_Storage",
        "aten.resize_.default",
        "aten.data_ptr.default",
        "aten._local_scalar_dense.default",
        "aten.record_stream.default",
        "aten._debug_has_internal_overlap.default",
        "aten.item.default",
        "aten.rand.generator",
        "aten._cudnn_init_dropout_state.default",
        "aten.to_sparse.default",
        "aten.bernoulli_.Tensor",
        "aten.bincount.default",
        "aten.nonzero.default",
        "aten.pin_memory.default",
        "aten._assert_async.msg",
        "aten.__class__.__setattr__",
        "aten.add.__class__",
        "aten.add",
        "aten.add.Tensor.__call__",
        "aten..default",
        "aten.add.Tensor.default",
        "ATEN.add.Tensor",
        "prims.device_put.default",
        "profiler._record_function_enter_new.default",
        "quantized.linear.default",
        "transformers.grouped_mm_fallback_backward.default",
        "__class__.__setattr__.x",
        "torch.ops.load_library",
        "",
        ".",
        "..",
        "\x00",
    ],
)
def test_what_is_in_no_list_is_refused_by_name(name: str) -> None:
    instructions = instructions_of(name, [], made=[Spec("float32", (1,))])
    with pytest.raises(RunError) as caught:
        Interpreter(instructions)
    shown = name.replace("\x00", "?")
    assert str(caught.value) == (
        f"op 0 ({shown}): it is in no list of ops that are carried out here"
    )


def test_an_op_of_another_library_is_the_one_that_mixtures_of_experts_need() -> None:
    found = operation("transformers.grouped_mm_fallback.default").function
    assert str(found._schema).startswith("transformers::grouped_mm_fallback(Tensor input, Tensor")


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_what_draws_random_values_is_given_a_seed(name: str) -> None:
    assert operation(target_of(name)).may_draw


def test_a_seed_goes_to_what_draws_and_to_nothing_else() -> None:
    def drawn(target: str, args: list[Any], draw: int | None) -> list[torch.Tensor]:
        instructions = instructions_of(target, args, made=[ROW], given=(ROW,))
        return carried_out(
            replace(instructions, invocations={0: Invocation(args, {}, (), draw)}), torch.ones(3)
        )

    (one,), (same,), (other,) = (drawn("aten.rand.default", [[3]], seed) for seed in (5, 5, 6))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    with pytest.raises(RunError, match="it draws random values, and is given no seed"):
        drawn("aten.rand.default", [[3]], None)
    with pytest.raises(RunError, match="is given a seed"):
        drawn("aten.relu.default", [X], 5)
    with pytest.raises(RunError, match="is given a seed"):
        drawn("aten.rand.default", [[3]], -1)
    (off,) = drawn("aten.dropout.default", [X, 0.5, False], None)
    assert torch.equal(off, torch.ones(3))
    with pytest.raises(RunError, match="it draws random values, and is given no seed"):
        drawn("aten.dropout.default", [X, 0.5, True], None)


# --- what models need -----------------------------------------------------------------------------

_REASONS = {
    "its size is the data's": """masked_select nonzero bincount argwhere _unique2
        unique_consecutive unique_dim""",
    "it takes a function": "flex_attention",
    "it takes and returns the state of random numbers": """_scaled_dot_product_flash_attention
        _scaled_dot_product_cudnn_attention _scaled_dot_product_fused_attention_overrideable""",
    "no device here is an MPS": "_scaled_dot_product_attention_math_for_mps",
    "it is for training": "embedding_renorm",
    "it reads or writes where the numbers in a tensor say": """_unsafe_index _unsafe_index_put put
        as_strided_scatter segment_reduce _embedding_bag _embedding_bag_forward_only
        _pack_padded_sequence _pad_packed_sequence pad_sequence max_unpool2d max_unpool3d nll_loss
        nll_loss_forward nll_loss_nd""",
    "a kernel of torch's own, behind an op that is carried out": """_addmm_activation
        _batch_norm_impl_index _batch_norm_no_update _batch_norm_with_update
        _native_batch_norm_legit _conv_depthwise2d _convolution_mode _mixed_dtypes_linear
        _scaled_mm_v2 _slow_conv2d_forward _weight_int4pack_mm _weight_int4pack_mm_for_cpu
        _weight_int8pack_mm conv_depthwise3d convolution_overrideable slow_conv3d
        slow_conv3d_forward slow_conv_dilated2d slow_conv_dilated3d slow_conv_transpose2d
        slow_conv_transpose3d thnn_conv2d""",
    "a draw that no model's forward has": """_sample_dirichlet _standard_gamma binomial
        feature_alpha_dropout normal_functional rrelu_with_noise""",
    "no model has it": "nextafter",
}
UNKNOWN = {name: why for why, names in _REASONS.items() for name in names.split()}
"""Ops that the tracer knows the kind of, and that are not carried out; and why."""


def test_what_the_tracer_knows_the_kind_of_is_carried_out() -> None:
    carried_out = {base_name(target_of(name)) for name in ALLOWED}
    known = {*_KINDS, *MATRIX_PRODUCTS, *READS_NO_DATA} & {*map(base_name, schemas())}
    assert known - carried_out - {*UNKNOWN} == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-3.2-1b", "gpt-oss-20b", "mobilebert"])
@pytest.mark.few(1)
def test_what_a_preset_is_traced_to_is_carried_out(
    name: str, traced: Callable[..., OpGraph]
) -> None:
    assert (
        refused(op.target for op in traced(name, seq=16, overrides={"num_hidden_layers": 2}).ops)
        == []
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_what_any_preset_is_traced_to_is_carried_out(name: str, phase: str) -> None:
    sizes: dict[str, Any] = {"seq": 16} if phase == "prefill" else {"phase": phase, "past": 16}
    try:
        graph = capture(preset(name), model=name, **sizes).graph
    except InputError:
        assert phase == "decode"  # an encoder has none
        return
    assert refused(op.target for op in graph.ops) == []


# --- arguments ------------------------------------------------------------------------------------


def instructions_of(
    target: str,
    args: list[Any],
    *,
    made: list[Spec],
    given: tuple[Spec, ...] = (),
    shared: tuple[Sharing, ...] = (),
    **kwargs: Any,
) -> Instructions:
    """Op 0, of tensors 100, 101, ..., which makes tensors 0, 1, ..."""
    specs = {**dict(enumerate(made)), **{100 + n: spec for n, spec in enumerate(given)}}
    return Instructions(
        invocations={0: Invocation(args, kwargs, shared)},
        targets={0: target},
        made={0: tuple(range(len(made)))},
        everywhere={},
        specs=specs,
        uses={},
    )


X, Y = {"value": 100}, {"value": 101}
ROW = Spec("float32", (3,))
"""Three numbers."""


def carried_out(instructions: Instructions, *given: torch.Tensor) -> list[torch.Tensor]:
    interpreter = Interpreter(instructions)
    interpreter.begin()
    interpreter.put({100 + n: tensor for n, tensor in enumerate(given)})
    return interpreter._carry_out(0)


@pytest.mark.parametrize(
    ("target", "args", "kwargs", "said"),
    [
        ("aten.add.Tensor", [X, X], {"alpha": {"float": "1"}}, "alpha is {'float': '1'}, which"),
        ("aten.add.Tensor", [X, "1"], {}, "other is 1, which is no Tensor"),
        ("aten.add.Tensor", [X, [X]], {}, "which is no Tensor"),
        ("aten.add.Tensor", [X, {"value": 7}], {}, "other is {'value': 7}, which is no Tensor"),
        ("aten.add.Tensor", [X, {"value": True}], {}, "which is no Tensor"),
        ("aten.add.Tensor", [X, {"value": [100]}], {}, "which is no Tensor"),
        ("aten.add.Tensor", [X, {"value": 100, "like": 100}], {}, "which is no Tensor"),
        ("aten.add.Tensor", [X, {"float": "0x1p4"}], {}, "which is no Tensor"),
        ("aten.add.Tensor", [X, {"complex": "1 + 2j"}], {}, "which is no Tensor"),
        ("aten.add.Tensor", [X, X], {"other": X}, "it is given other twice"),
        ("aten.add.Tensor", [X, X], {"out": X}, "it takes no out"),
        ("aten.add.Tensor", [X, X, 1, 2], {}, "it takes 3 arguments, not 4"),
        ("aten.add.Tensor", [X, 2**63], {}, "which is no Tensor"),
        ("aten.add.Tensor", [X, {}], {}, "which is no Tensor"),
        ("aten.add.Tensor", [X], {}, "failed: "),
        ("aten.relu.default", [], {"self": {"__class__": 100}}, "which is no Tensor"),
        ("aten.zeros.default", [[3]], {"dtype": {"dtype": "ones"}}, "which is no Optional[ScalarT"),
        ("aten.zeros.default", [[3]], {"dtype": {"dtype": "__class__"}}, "which is no Optional"),
        ("aten.zeros.default", [[3]], {"dtype": {"dtype": ["float32"]}}, "which is no Optional"),
        ("aten.zeros.default", [[3]], {"layout": {"layout": "sparse_coo"}}, "which is no Optional"),
        ("aten.zeros.default", [[3]], {"device": {"device": "cuda:7"}}, "which is no Optional"),
        ("aten.zeros.default", [[3]], {"device": "meta"}, "which is no Optional[Device]"),
        ("aten.zeros.default", [[3]], {"pin_memory": True}, "pin_memory is True, which is no Opt"),
        ("aten.zeros.default", [["3"]], {}, "size is ['3'], which is no List[int]"),
        ("aten.zeros.default", [[[3]]], {}, "which is no List[int]"),
        ("aten.zeros.default", [{"float": "inf"}], {}, "which is no List[int]"),
        (
            "aten.contiguous.default",
            [X],
            {"memory_format": {"memory_format": "strided"}},
            "which is no MemoryFormat",
        ),
        (
            "aten.div.Tensor_mode",
            [X, X],
            {"rounding_mode": "/etc/passwd"},
            "rounding_mode is /etc/passwd, which is no Optional[str]",
        ),
        ("aten.gelu.default", [X], {"approximate": "floor"}, "which is no str"),
        ("aten.einsum.default", ["i,i->i; import os", [X, X]], {}, "which is no str"),
        ("aten.einsum.default", ["i->j", [X]], {}, "failed: "),
        ("aten.add_.Tensor", [1.0, X], {}, "it writes in place, and is given no tensor first"),
        ("aten.add_.Tensor", [], {"self": X, "other": X}, "it writes in place, and is given no"),
        (
            "aten.batch_norm.default",
            [X, None, None, X, X, True, 0.1, 1e-5, False],
            {},
            "it would change its running statistics",
        ),
        (
            "aten.native_batch_norm.default",
            [X, None, None, X, X, True, 0.1, 1e-5],
            {},
            "it would change its running statistics",
        ),
    ],
)
def test_arguments_are_of_their_types(
    target: str, args: list[Any], kwargs: dict[str, Any], said: str
) -> None:
    with pytest.raises(RunError) as caught:
        Interpreter(instructions_of(target, args, made=[ROW], given=(ROW,), **kwargs))
    assert str(caught.value).startswith(f"op 0 ({target})")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_op_whose_arguments_are_of_their_types_is_carried_out() -> None:
    one, other = torch.arange(3.0), torch.ones(3)
    [made] = carried_out(
        instructions_of("aten.add.Tensor", [X, Y], made=[ROW], given=(ROW, ROW), alpha=2),
        one,
        other,
    )
    assert torch.equal(made, one + 2)
    [made] = carried_out(
        instructions_of(
            "aten.div.Tensor_mode", [X, 2], made=[ROW], given=(ROW,), rounding_mode="floor"
        ),
        one,
    )
    assert made.tolist() == [0.0, 0.0, 1.0]
    [made] = carried_out(
        instructions_of(
            "aten.full.default",
            [[3], {"float": "-inf"}],
            made=[ROW],
            dtype={"dtype": "float32"},
            layout={"layout": "strided"},
            device={"device": None},
            pin_memory=False,
        )
    )
    assert made.tolist() == [float("-inf")] * 3
    [made] = carried_out(
        instructions_of(
            "aten.einsum.default", ["i,i->", [X, Y]], made=[Spec("float32", ())], given=(ROW, ROW)
        ),
        one,
        other,
    )
    assert made == 3


def test_what_is_written_in_place_is_a_copy() -> None:
    one = torch.arange(3.0)
    [made] = carried_out(instructions_of("aten.add_.Tensor", [X, 1], made=[ROW], given=(ROW,)), one)
    assert made.tolist() == [1.0, 2.0, 3.0]
    assert one.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("target", "args"),
    [
        ("aten.empty.memory_format", [[1000]]),
        ("aten.empty_like.default", [{"like": 100}]),
        ("aten.new_empty.default", [{"like": 100}, [1000]]),
        ("aten.new_empty_strided.default", [{"like": 100}, [1000], [1]]),
    ],
)
def test_nobody_reads_what_others_left_in_memory(target: str, args: list[Any]) -> None:
    spec = Spec("float32", (1000,))
    for _ in range(20):  # what is freed is what is given out next
        torch.full((1000,), 7.0)
        [made] = carried_out(instructions_of(target, args, made=[spec], given=(spec,)))
        assert not made.any()


def test_a_tensor_that_is_asked_for_its_shape_alone_has_no_numbers_of_others() -> None:
    spec = Spec("float32", (1000,))
    torch.full((1,), 7.0)
    [made] = carried_out(
        instructions_of("aten.abs.default", [{"like": 100}], made=[spec], given=(spec,))
    )
    assert not made.any()


# --- sizes ----------------------------------------------------------------------------------------

HUGE = 10**15
BIG = Spec("float32", (HUGE,))


@pytest.mark.parametrize(
    ("target", "args", "made", "said"),
    [
        (
            "aten.zeros.default",
            [[HUGE]],
            [ROW],
            f": it makes float32 [{HUGE}]; announced: float32 [3]",
        ),
        ("aten.zeros.default", [[HUGE]], [BIG], ": it makes 4,000,000,000,000,000 bytes, and may "),
        (
            "aten.repeat.default",
            [X, [HUGE]],
            [ROW],
            f": it makes float32 [{3 * HUGE}]; announced: float32 [3]",
        ),
        ("aten.zeros.default", [[2**62, 2**62]], [ROW], " failed: "),
        ("aten.zeros.default", [[-1]], [ROW], " failed: "),
        ("aten.arange.default", [{"float": "inf"}], [ROW], " failed: "),
        (
            "aten.relu.default",
            [X],
            [Spec("float64", (3,))],
            ": it makes float32 [3]; announced: float64 [3]",
        ),
        (
            "aten.relu.default",
            [X],
            [ROW, ROW],
            ": it makes float32 [3]; announced: float32 [3], float32 [3]",
        ),
        ("aten.relu.default", [X], [], ": it makes float32 [3]; announced: "),
        (
            "aten.topk.default",
            [X, 1],
            [Spec("float32", (1,))],
            ": it makes float32 [1], int64 [1]; announced: float32 [1]",
        ),
        ("aten.pad.default", [X, [HUGE, 0]], [ROW], f"it makes float32 [{HUGE + 3}]; announced: "),
        ("aten.nonzero_static.default", [X], [ROW], "it is in no list"),
        ("aten.index.Tensor", [X, [{"value": 101}]], [ROW], " failed: "),
        ("aten.repeat_interleave.self_Tensor", [X, {"value": 102}], [ROW], " failed: "),
        (
            "aten.unbind.int",
            [{"value": 103}],
            [ROW],
            f": it makes {HUGE:,} tensors, and 1 were announced",
        ),
        ("aten.split.Tensor", [{"value": 103}, 1], [ROW], f"it makes {HUGE:,} tensors, and 1 were"),
        ("aten.split.Tensor", [{"value": 103}, 0], [ROW], f"it makes {HUGE:,} tensors, and 1 were"),
        ("aten.chunk.default", [{"value": 103}, HUGE], [ROW], f"it makes {HUGE:,} tensors, and 1"),
        ("aten.chunk.default", [X, HUGE], [ROW], "it makes 3 tensors, and 1 were announced"),
        ("aten.tensor_split.sections", [X, HUGE], [ROW], f"it makes {HUGE:,} tensors, and 1 were"),
        ("aten.unbind.int", [X, 9], [ROW], " failed: "),
    ],
)
def test_what_an_op_makes_is_what_was_announced(
    target: str, args: list[Any], made: list[Spec], said: str
) -> None:
    given = (ROW, Spec("bool", (3,)), Spec("int64", (3,)), Spec("bool", (HUGE, 0)))
    with pytest.raises(RunError) as caught:
        Interpreter(instructions_of(target, args, made=made, given=given))
    assert f"op 0 ({target}){said}" in str(caught.value) or said in str(caught.value)


def test_what_is_expanded_is_not_copied_where_there_is_no_room() -> None:
    """An expansion takes no memory whatever it is announced as; its copy does."""
    one = torch.ones(1)
    given = (Spec("float32", (1,)),)
    [made] = carried_out(
        instructions_of("aten.expand.default", [X, [HUGE]], made=[BIG], given=given), one
    )
    for target in ("aten.contiguous.default", "aten.clone.default", "aten.relu.default"):
        with pytest.raises(
            RunError, match=rf"op 0 \({target}\): it makes 4,000,000,000,000,000 by"
        ):
            carried_out(instructions_of(target, [X], made=[BIG], given=(BIG,)), made)


def test_memory_is_looked_at_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many results that are small each: 17 of an eighth of what may be made unseen."""
    looks: list[str] = []
    monkeypatch.setattr(
        "cutedge.runtime.interpreter.free_bytes", lambda device: looks.append(device) or 2**62
    )
    numel = LOOK_BYTES // 8 // 4
    spec = Spec("float32", (numel,))
    interpreter = Interpreter(instructions_of("aten.zeros.default", [[numel]], made=[spec]))
    for _ in range(17):
        interpreter.unseen_bytes += 0
        interpreter._carry_out(0)
    assert interpreter.unseen_bytes == 8 * numel * 4  # counted anew after the ninth
    monkeypatch.setattr("cutedge.runtime.interpreter.free_bytes", lambda device: LOOK_BYTES)
    many = Spec("uint8", (LOOK_BYTES + 1,))
    with pytest.raises(RunError, match=r"it makes 67,108,865 bytes, and may take 67,108,864"):
        Interpreter(
            instructions_of(
                "aten.zeros.default", [[LOOK_BYTES + 1]], made=[many], dtype={"dtype": "uint8"}
            )
        )


def test_memory_that_is_shared_is_counted() -> None:
    shared = Sharing(101, 1, ((3,), (HUGE,), 0), ((3,), (1,), 0))
    instructions = instructions_of(
        "aten.add_.Tensor", [X, 1], made=[ROW, ROW], given=(ROW, ROW), shared=(shared,)
    )
    with pytest.raises(RunError, match=r"op 0 \(aten.add_.Tensor\): it makes 8,000,000,000,000,0"):
        Interpreter(instructions)
