"""What torch noted of the sizes, in words: each set of sizes against a count of all of them."""

import re

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod

from tests.support.examples import examples
from tracer.capture import capture
from tracer.capture.errors import Untraceable
from tracer.capture.guards import judged, same_work
from tracer.formula import const, var
from tracer.program import Node, Program, Value
from tracer.reach import holds

SEQ, BATCH, PAST = sympy.symbols("s1 s2 s3", positive=True, integer=True)
NAMED = {SEQ: "seq", BATCH: "batch", PAST: "past"}
BOUNDS = {"seq": (2, 5000), "batch": (2, 300), "past": (2, 3000)}
PADDED = SEQ + Mod(256 - Mod(SEQ, 256), 256)  # up to a multiple of 256

WORDS = {
    "seq <= 704": [sympy.Le(SEQ, 704)],
    "past <= 4093": [sympy.Gt(-PAST - 1, -4095)],
    "seq >= 5": [sympy.Ge(SEQ, n) for n in (3, 4, 5)],
    "3 <= seq <= 9": [sympy.Ge(SEQ, 3), sympy.Lt(SEQ, 10)],
    "seq is not 2048": [sympy.Ne(SEQ, 2048)],
    "seq <= 511": [sympy.Ne(SEQ, 512), sympy.Le(SEQ, 512)],
    "seq >= 3": [sympy.Ne(SEQ - 1, 1)],
    "seq is not one of 7, 9, 400": [sympy.Ne(SEQ, n) for n in (400, 7, 9)],
    "seq <= 256": [sympy.Le(PADDED, 256), sympy.Eq(FloorDiv(PADDED, 256), 1)],
    "seq <= 255": [sympy.Gt(Mod(256 - Mod(SEQ, 256), 256), 0), sympy.Le(PADDED, 256)],
    "seq is not a multiple of 256": [sympy.Gt(Mod(256 - Mod(SEQ, 256), 256), 0)],
    "seq is a multiple of 64": [sympy.Eq(Mod(SEQ, 64), 0)],
    "seq is a multiple of 64 and 128 <= seq <= 1024": [
        sympy.Eq(Mod(SEQ, 64), 0),
        sympy.Gt(SEQ, 100),
        sympy.Lt(SEQ, 1088),
    ],
    "seq <= 2047": [sympy.Eq(SEQ, 2048 - Max(0, 2048 - SEQ)), sympy.Ne(Min(2048, SEQ), 2048)],
    # no simple set: as torch says it, what adds nothing left out
    "Ne(Mod(seq, 64), 3)": [sympy.Ne(Mod(SEQ, 64), 3), sympy.Ge(SEQ, 2)],
    # a number too large for 64 bits
    "seq**9 <= 10000000000000000000000": [sympy.Le(SEQ**9, 10**22)],
    # a condition on two sizes, over what is left of each
    "past + seq <= 4094": [sympy.Gt(-PAST - SEQ, -4095)],
    "seq <= 127": [sympy.Le(128 * FloorDiv(SEQ, 128), 0), BATCH * FloorDiv(SEQ, 128) < 2],
    "": [sympy.Ge(SEQ, 2), sympy.Ne(BATCH * SEQ, 1), sympy.true],
}


def here(guards: list) -> dict[str, int]:
    """Sizes at which all of ``guards`` hold."""
    sizes = ({"seq": seq, "batch": 3, "past": 11} for seq in range(2, 5001))
    return next(s for s in sizes if all(true(guard, **s) for guard in guards))


def true(guard, **sizes: int) -> bool:
    return bool(guard.subs({symbol: sizes[name] for symbol, name in NAMED.items()}))


def said(words: str, **sizes: int) -> bool:
    """Whether a phrase says that the sizes are among those that it speaks of."""
    for part in words.split(" and "):
        if match := re.fullmatch(r"(\w+) is (not )?(a multiple of )?(\d+)", part):
            name, no, multiple, number = match.groups()
            size, number = sizes[name], int(number)
            if (size % number == 0 if multiple else size == number) is bool(no):
                return False
        elif match := re.fullmatch(r"(\w+) is not one of (.*)", part):
            if str(sizes[match[1]]) in match[2].split(", "):
                return False
        elif match := re.fullmatch(r"(\d+) <= (\w+) <= (\d+)", part):
            if not int(match[1]) <= sizes[match[2]] <= int(match[3]):
                return False
        elif not holds(part, sizes):
            return False
    return True


@pytest.mark.parametrize(("words", "guards"), WORDS.items(), ids=WORDS)
def test_conditions_are_said_in_words(words, guards):
    bounds = {**BOUNDS, "past": (2, 10_000)}
    found, exception = judged(guards, NAMED, bounds, here(guards))
    assert (" and ".join(found), exception) == (words, "")


simple = st.builds(
    lambda build, number: build(number),
    st.sampled_from(
        [
            lambda n: sympy.Le(SEQ, n),
            lambda n: sympy.Ge(SEQ, n),
            lambda n: sympy.Ne(SEQ, n),
            lambda n: sympy.Ne(3 * SEQ, 6 * n),
            lambda n: sympy.Eq(Mod(SEQ, 1 + n % 8), 0),
            lambda n: sympy.Ne(Mod(SEQ, 1 + n % 8), 0),
            lambda n: sympy.Ne(Mod(SEQ, n), 1),
            lambda n: sympy.Eq(FloorDiv(SEQ + n - 1, n), 1),
            lambda n: sympy.Ne(Min(SEQ, n), n),
            lambda n: sympy.Le(SEQ**2 - 2 * n * SEQ, n),
            lambda n: sympy.Eq(Max(1, SEQ - n), SEQ - n),
            lambda n: sympy.Or(sympy.Lt(SEQ, n), sympy.Gt(SEQ, n + 5)),
        ]
    ),
    st.integers(2, 120),
)


@examples(10)
@given(st.lists(simple, min_size=1, max_size=3))
def test_words_speak_of_exactly_the_sizes_at_which_the_conditions_hold(guards):
    holding = [s for s in range(2, 130) if all(true(g, seq=s, batch=2, past=2) for g in guards)]
    for seq in holding[:1]:
        if len(holding) == 1:
            with pytest.raises(Untraceable, match=f"fixes seq at {seq}$"):
                judged(guards, NAMED, {"seq": (2, 129)}, {"seq": seq})
            return
        found, _ = judged(guards, NAMED, {"seq": (2, 129)}, {"seq": seq})
        spoken = [s for s in range(2, 130) if all(said(words, seq=s) for words in found)]
        assert spoken == holding


def test_a_single_size_is_no_formula():
    with pytest.raises(Untraceable, match=r"its code fixes seq at 64$"):
        judged([sympy.Eq(SEQ, 64)], NAMED, BOUNDS, {"seq": 64, "batch": 3, "past": 11})


@pytest.mark.parametrize(
    ("guard", "where"),
    [
        (sympy.Le(SEQ, 64), "seq >= 65"),
        (sympy.Eq(Mod(SEQ, 64), 0), "seq is not a multiple of 64"),
        (sympy.Ne(Mod(SEQ, 100), 0), "seq is a multiple of 100"),
        (sympy.Le(SEQ + PAST, 90), "past + seq <= 90 does not hold"),
    ],
)
def test_where_the_code_takes_another_way_is_said_in_words(guard, where):
    with pytest.raises(Untraceable) as caught:
        judged([guard], NAMED, BOUNDS, {"seq": 100, "batch": 3, "past": 11})
    assert str(caught.value).endswith(f"its code takes another way where {where}")
    assert not holds(caught.value.condition, {"seq": 100, "past": 11})  # as the cache reads it


def test_what_fails_at_the_very_size_alone_is_an_exception():
    guards = [sympy.Ne(128 * SEQ, 12800), sympy.Le(SEQ, 100)]
    sizes = {"seq": 100, "batch": 3, "past": 11}
    assert judged(guards, NAMED, BOUNDS, sizes) == (["seq <= 100"], "seq is 100")
    assert judged(guards, NAMED, BOUNDS, sizes | {"seq": 99}) == (["seq <= 99"], "")


# --- a coincidence of sizes -----------------------------------------------------------------------


def chain(*targets: str, size=8) -> Program:
    """Ops in a row; those in brackets are views of what they read."""
    program = Program([Value("float32", (const(4), const(8)), "x")])
    for number, target in enumerate(targets):
        view = target.startswith("[")
        out = program.add(Value("float32", (const(4), size), alias_of=0 if view else None))
        program.nodes.append(Node(target, (number,), (out,), "", "", is_view=view))
    return program


def test_the_same_work_is_the_same_ops_on_the_same_memory():
    sizes = {"seq": 8}
    one = chain("relu", "tanh", size=var("seq"))
    assert same_work(one, chain("relu", "tanh", size=const(8)), sizes)
    assert not same_work(one, chain("relu", "tanh", size=const(9)), sizes)
    assert not same_work(one, chain("tanh", "relu", size=const(8)), sizes)
    assert not same_work(one, chain("relu", size=const(8)), sizes)
    # a view more, but each op reads what it read
    assert same_work(chain("[slice]", "relu", size=const(8)), chain("relu", size=const(8)), sizes)
    other = chain("relu", "tanh", size=const(8))
    other.nodes[1] = Node("tanh", (0,), (2,), "", "")
    assert not same_work(one, other, sizes)


GATED = {
    "model_type": "qwen3_5_text",
    "architectures": ["Qwen3_5ForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "vocab_size": 128,
    "num_hidden_layers": 1,
    "layer_types": ["linear_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}


@pytest.mark.slow
def test_a_coincidence_that_changes_nothing_leaves_the_formulas():
    """Chunks of 64 tokens: at 64 a tensor is contiguous that is not at any size below."""
    captured = capture(GATED, model="m", seq=64)
    assert captured.graph.meta.symbolic == ("batch", "seq")
    assert captured.warnings == ("the formulas hold where seq <= 64",)
    fresh = capture(GATED, model="m", seq=64, symbolic=False).graph
    rows = [
        [
            (op.target, op.module_path, [t.shape for t in graph.outputs(op.id)])
            for op in graph.ops
            if not op.is_view
        ]
        for graph in (captured.graph, fresh)
    ]
    assert rows[0] == rows[1]
    assert capture(GATED, model="m", seq=48).warnings == ("the formulas hold where seq <= 63",)
