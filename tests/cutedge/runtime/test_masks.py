"""Masked partitions run for real: what crosses, what comes out, and who answers wrongly."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from costmodels.links import Links, load_link
from cutedge.runtime import RunError
from cutedge.runtime.home import workers
from cutedge.runtime.interpreter import Interpreter
from cutedge.runtime.leaks import Witness, masked_alone
from cutedge.runtime.masks import Masking
from cutedge.runtime.transforms import Randomness
from cutedge.runtime.wire import Channel
from partition.policy import Policy, Rule
from partition.protects import Protect
from partition.schemes import Protection, false_accept
from partition.seen import How, What, seen
from tests.support import running
from tests.support.examples import examples
from tests.support.inprocess import invoke
from tests.support.masking import hidden, protecting
from tests.support.models import ANY, WEIGHTS, Model, Prepared, by_seed, placed
from tests.support.products import PRODUCTS, margins, protected_run, protected_runs
from tests.support.running import MODEL, TOKEN, given, listening, tiny


@pytest.fixture(scope="module")
def there() -> Iterator[dict[str, tuple[str, int]]]:
    """Two workers that serve one run after another."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(listening()).address for name in ("gpu", "gpu2")}


WAYS = {
    "pad": {"weights": Protection("one-time-pad")},
    "blocks and check": {"activations": Protection("embedded-additive", check="freivalds")},
    "mod 2^32": {"weights": Protection("one-time-pad-mod")},
    "rank one": {each: Protection("rank-one") for each in ("weights", "activations")},
    "online": {"weights": Protection("one-time-pad", pads="online")},
    "pad and check": {"weights": Protection("one-time-pad", check="freivalds", trials=2)},
    "mod 2^64 online": {"weights": Protection("one-time-pad-mod", bits=64, pads="online")},
    "mod and check": {"weights": Protection("one-time-pad-mod", check="freivalds")},
    "orthogonal": {"weights": Protection("orthogonal", check="freivalds")},
    "tokens": {each: Protection("permutation") for each in ("weights", "activations")},
    "channels": {
        each: Protection("permutation", axis="channels", check="freivalds")
        for each in ("weights", "activations")
    },
    "check": {each: Protection("freivalds") for each in ("weights", "activations")},
}


@pytest.mark.few(6)
@pytest.mark.parametrize("protections", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("wire_dtype", [None, "bfloat16", "float64"])
def test_a_masked_run_moves_what_is_predicted_and_answers_as_the_model(
    there, protections, wire_dtype
):
    """The tolerance is half of the digits; what is off is what the rounding of masks comes to."""
    made = hidden(protecting(protections), wire_dtype=wire_dtype)
    with workers(["gpu"], remote=there, token=TOKEN, timeout=60.0) as found:
        _, verdict = made.run(found)
    assert verdict.unequal == ()
    assert verdict.answer_equal
    assert verdict.max_abs_difference <= 2 * made.masking.epsilon * verdict.max_abs_result


def test_the_command_runs_masks_and_says_what_they_hid(tmp_path, monkeypatch):
    """13 inputs and results of the linears, 6 of the two products; pads 16 times as wide as values."""
    monkeypatch.chdir(tmp_path)
    done = invoke("cutedge", "verify", *MODEL, "--policy", "masked-all", "--json")
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(done.stdout)["runs"]
    assert run["bytes_equal"]
    assert run["answer_equal"]
    assert run["masks"]["leaks"] == []
    assert (run["masks"]["masked"], run["masks"]["tensors_compared"]) == (19, 21)
    assert run["masks"]["epsilon"] == pytest.approx(2**-23 * (1 + 16**2) ** 0.5)


class Nothing(Randomness):
    """Numbers that hide nothing."""

    def normal(self, shape):
        return torch.zeros(tuple(shape), dtype=torch.float64)

    def integers(self, shape, dtype):
        return torch.zeros(tuple(shape), dtype=dtype)

    def factors(self, shape):
        return torch.ones(tuple(shape), dtype=torch.float64)

    def orders(self, shape):
        return torch.arange(shape[-1]).expand(tuple(shape))


# --- any products, any masks ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Model]:
    return by_seed(PRODUCTS, tmp_path_factory.mktemp("own"))


def check_masked(made: Prepared, there: Mapping[str, tuple[str, int]]) -> None:
    """All that crosses is predicted, nothing that masks alone hide is there in plain, and each value
    of the answer is the unsplit model's but for what rounding and masks have it off by."""
    masking, model = made.masking, made.model
    witness = None
    if masking is not None:
        secrets = masked_alone(masking.graph, made.plan, model.runnable)
        witness = Witness.of(made.plan, made.graph, secrets, masking.fixed)
    with workers([*made.plan.accelerators], remote=there, token=TOKEN, timeout=60.0) as found:
        measured = made.load(found).run(model.given, witness=witness)
    assert made.judge(measured).unequal == ()
    if witness is not None:
        leaks = witness.prove(model.runnable, model.given, WEIGHTS, made.links).leaks
        assert not leaks, f"in plain: {leaks}"
    off = margins(made)
    for tensor, result in zip(made.plan.outputs, measured.results, strict=True):
        apart = (result.double() - model.reference[tensor].double()).abs()
        times = float((apart / off[tensor]).nan_to_num().max())
        assert bool((apart <= off[tensor]).all()), f"{times:.3g} times as far off as it may be"


@examples(8, ANY)
@hypothesis.given(seed=st.integers(0, 2), data=st.data())
def test_any_masks_of_a_random_graph(there, random_model, seed, data):
    check_masked(data.draw(protected_runs(random_model(seed))), there)


@pytest.mark.slow
@hypothesis.settings(parent=ANY, max_examples=300)
@hypothesis.given(seed=st.integers(0, 2**31), data=st.data())
def test_any_masks_of_many_random_graphs(there, random_model, seed, data):
    check_masked(data.draw(protected_runs(random_model(seed))), there)


OPEN = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (torch.nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        self.third(x)
        y = self.first(x)
        return torch.bmm(y, self.second(y).transpose(1, 2))

def build(seed=0):
    return Net(), (torch.ones(2, 3, 8),)
"""
"""A product that nobody reads, one that two read, and one of two."""


@pytest.mark.parametrize(
    ("scheme", "more"), [("freivalds", set()), ("permutation", set()), ("rank-one", {"linear_1"})]
)
def test_what_crosses_in_plain_too_is_hidden_by_no_mask(there, tmp_path, scheme, more):
    """The first product comes as it is, or in another order, and goes away under other masks."""
    model = by_seed(OPEN, tmp_path)(0)
    ways = {
        "linear_0": Protection("freivalds"),
        "linear_1": Protection(scheme),
        "linear_2": Protection("one-time-pad", check="freivalds"),
        "bmm_0": Protection("embedded-additive"),
    }
    ops = model.graph.ops
    where = placed(model.graph, ["gpu" if op.name in ways else "tee" for op in ops])
    protected = {op.id: ways[op.name] for op in ops if op.name in ways}
    made = protected_run(model, where, protected, Links(load_link("unix-socket")))
    assert made.masking is not None
    secrets = masked_alone(made.masking.graph, made.plan, model.runnable)
    found = {model.graph.tensors[t].name for t in secrets.carriers}
    assert found == {"linear_2", "transpose_0", "bmm_0"} | more
    check_masked(made, there)


@pytest.mark.parametrize(
    ("scheme", "name", "says"),
    [
        ("one-time-pad", "linear", "in plain"),
        ("one-time-pad-mod", "linear", "in plain"),
        ("rank-one", "linear", "in plain"),
        ("orthogonal", "linear", "as far off"),  # zeros turn everything to zeros
        ("embedded-additive", "bmm", "in plain"),
    ],
)
def test_masks_of_nothing_do_not_pass_for_masks(there, random_model, scheme, name, says):
    """The same check says no where numbers that nobody foresees are zeros and ones."""
    models = map(random_model, range(9))
    graph, model = next(
        (m.graph, m) for m in models if any(name in op.target for op in m.graph.ops)
    )
    op = next(op for op in graph.ops if name in op.target)
    where = placed(graph, ["gpu" if one is op else "tee" for one in graph.ops])
    links = Links(load_link("unix-socket"))
    made = protected_run(model, where, {op.id: Protection(scheme)}, links, source=Nothing())
    with pytest.raises(AssertionError, match=says):
        check_masked(made, there)


# --- what masks hide ------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [Randomness(0), Nothing()])
def test_plain_values_that_cross_are_known_again(there, source):
    """A pad of zeros leaves X as it is: each of the 13 tensors is found to be what it hides."""
    made = hidden("slalom", source=source)
    secrets = masked_alone(made.graph, made.plan, tiny())
    with workers(["gpu"], remote=there, token=TOKEN, timeout=60.0) as found:
        witness = Witness.of(made.plan, made.graph, secrets)
        made.load(found).run(given(), witness=witness)
    proof = witness.prove(tiny(), given(), running.WEIGHTS, made.links)
    assert len(secrets.named) == proof.tensors_compared == 13
    assert len(proof.leaks) == (13 if isinstance(source, Nothing) else 0)


def test_each_run_has_pads_of_its_own(there, monkeypatch):
    made, sent = hidden("slalom"), list[dict[int, torch.Tensor]]()
    send = Channel.send

    def seen(self: Channel, call: int, tensors: Any, *args: Any) -> Any:
        if args and call == 0:
            sent.append({t: value.clone() for t, value in tensors})
        return send(self, call, tensors, *args)

    monkeypatch.setattr(Channel, "send", seen)
    with workers(["gpu"], remote=there, token=TOKEN, timeout=60.0) as found:
        loaded = made.load(found)
        one, other = loaded.run(given()), loaded.run(given())
    (first,), (second,) = (run.values() for run in sent)
    pad = made.masking.scales[made.graph.masks[next(iter(sent[0]))].plain].rms * 16
    assert float((first - second).std()) == pytest.approx(2**0.5 * pad, rel=0.2)
    assert torch.allclose(one.results[0], other.results[0], atol=1e-4)


def test_no_worker_carries_out_what_home_does_for_masks():
    with pytest.raises(RunError, match=r"mask\.one-time-pad\.mask.*in no list"):
        Interpreter(hidden("slalom").plan.home.instructions)


SECRET = """
description = "Linears away as integers, whose inputs and results are secrets"
default = "home"
[[rule]]
kind = "linear"
place = "accelerator"
[[protect]]
kind = "linear"
scheme = "one-time-pad-mod"
{more}
[[secret]]
what = ["hidden_states", "logits"]
allow_masked = ["one-time-pad-mod"]
"""


@pytest.fixture
def secret(tmp_path, monkeypatch):
    """``verify`` of a policy with a secret that integers hide: (exit code, its only run, errors)."""
    monkeypatch.chdir(tmp_path)

    def verified(more: str = "") -> tuple[int, dict[str, Any], str]:
        (tmp_path / "secret.toml").write_text(SECRET.format(more=more))
        done = invoke("cutedge", "verify", *MODEL, "--policy", "secret.toml", "--json")
        (run,) = json.loads(done.stdout)["runs"] if done.stdout else ({},)
        return done.returncode, run, done.stderr

    return verified


@pytest.mark.parametrize(
    "more",
    ["", pytest.param('bits = 64\npads = "online"\ncheck = "freivalds"', marks=pytest.mark.slow)],
    ids=["32", "64"],
)
def test_a_secret_is_kept_under_a_mask_that_it_allows(secret, more):
    """All 13 inputs and results of the linears cross, masked, and none is a secret's values."""
    code, run, said = secret(more)
    assert code == 0, said
    assert run["secrets"]["secrets"] == 1
    assert run["secrets"]["untrusted"] == ["gpu"]
    assert run["secrets"]["tensors_compared"] == run["masks"]["tensors_compared"] == 13
    assert run["secrets"]["leaks"] == run["masks"]["leaks"] == []


def no_mask(mask: Any) -> Any:
    """How a mask is put on, with a pad of zeros in place of the one that recovery knows."""

    def left_out(self: Masking, op: int, of: int) -> Any:
        made = mask(self, op, of)
        return lambda values: made([values[0], torch.zeros_like(values[1])])

    return left_out


@pytest.mark.parametrize(
    ("wrong", "bits", "secrets", "masks"),
    [
        ("zeros", 32, 7, 13),
        pytest.param("no mask", 32, 4, 5, marks=pytest.mark.slow),
        pytest.param("zeros", 64, 7, 13, marks=pytest.mark.slow),
        pytest.param("no mask", 64, 4, 5, marks=pytest.mark.slow),
    ],
)
def test_a_secret_under_a_mask_of_nothing_is_a_leak(
    secret, monkeypatch, wrong, bits, secrets, masks
):
    """Integers in fixed point are known again as the floats that they stand for.

    Of 13 masked tensors 7 are hidden states or logits: what q, o, gate and the head read, what o, down
    and the head make. Where the pad is left out and taken away from each result all the same, the 5
    that are sent are what they are, and the results are nobody's.
    """
    if wrong == "zeros":
        monkeypatch.setattr(Randomness, "integers", Nothing.integers)
    else:
        monkeypatch.setattr(Masking, "_mask", no_mask(Masking._mask))
    code, run, said = secret(f"bits = {bits}")
    assert code == 1
    assert "tee to gpu in call 0 has the values of what a mask hides" in said
    assert (len(run["secrets"]["leaks"]), len(run["masks"]["leaks"])) == (secrets, masks)


# --- who answers wrongly --------------------------------------------------------------------------


@pytest.mark.parametrize("times", [0.01, 2.5])
def test_one_wrong_value_is_found_and_its_op_is_named(there, monkeypatch, times):
    """A change of twice the tolerance and more always is; of a hundredth the pads' rounding hides it."""
    made = hidden("slalom-verified")
    op = next(op for op in made.graph.plain.ops if op.module_path.endswith("down_proj"))
    (result,) = made.graph.outputs(made.graph.here[op.id])
    receive = Channel.receive

    def tampered(self: Channel, *args: Any) -> Any:
        arrived, moved = receive(self, *args)
        if result.id in arrived:
            arrived[result.id].view(-1)[7] += times * made.masking.tolerances[op.id]
        return arrived, moved

    monkeypatch.setattr(Channel, "receive", tampered)
    with workers(["gpu"], remote=there, token=TOKEN, timeout=60.0) as found:
        loaded = made.load(found)
        if times < 1:
            loaded.run(given())
            return
        with pytest.raises(RunError, match=rf"{op.name} \({op.module_path}\) was answered wrongly"):
            loaded.run(given())


TRIALS = 2000
MISSED = {
    "odd": ({7: 1}, 2.0**-32),
    "2^16": ({7: 2**16}, 2.0**-16),
    "3 * 2^30": ({7: 3 * 2**30}, 1 / 4),
    "2^31": ({7: 2**31}, 1 / 2),
    "2^31 and 2^30": ({7: 2**31, 8: -(2**30)}, 1 / 4),
    "what cancels": ({7: 5, 8: -5}, 2.0**-32),
}
"""Changes of values of one row, and how often they are missed: what is divisible by least counts."""


@pytest.mark.slow
def test_a_check_of_integers_misses_as_often_as_stated():
    """Home's own op, for 2,000 draws of r: to three standard deviations, sqrt(2000 p (1 - p)) each."""
    how = Protection("one-time-pad-mod", check="freivalds")
    which = (("module_path", ("*.down_proj",)),)
    rules = (Rule(which, "accelerator", ""),)
    made = hidden(Policy("one", "", "home", rules, protects=(Protect(which, how, ""),)))
    graph, masking, random = made.graph, made.masking, Randomness(1)
    (check,) = (op for op, (part, _) in graph.parts.items() if part == "check")
    _, x, *vectors = graph.inputs(check)
    (weights,) = (masking.data[copy] for copy in graph.copies)
    sent = random.integers(x.shape, torch.int32)
    right = sent @ weights.mT
    wrong = {name: right.clone() for name in MISSED}
    for name, (changes, _) in MISSED.items():
        for place, change in changes.items():
            wrong[name].view(-1)[place] += (change + 2**31) % 2**32 - 2**31
    missed = dict.fromkeys(MISSED, 0)
    for _ in range(TRIALS):
        one = Masking(graph, masking.alone, masking.scales, random)
        drawn = [one.data[t.id] for t in vectors]
        assert one.own[check]([right, sent, *drawn])[0] is right
        for name, y in wrong.items():
            with suppress(RunError):
                one.own[check]([y, sent, *drawn])
                missed[name] += 1
    for name, (changes, stated) in MISSED.items():
        lowest = min(change & -change for change in changes.values())
        assert false_accept(lowest, 0, bits=32) == stated
        off = abs(missed[name] - TRIALS * stated)
        assert off <= 3 * (TRIALS * stated * (1 - stated)) ** 0.5, name


@pytest.mark.parametrize("bits", [32, 64])
def test_the_least_digit_of_an_integer_is_found_to_be_wrong(there, monkeypatch, bits):
    """No tolerance: what crosses is checked mod 2^k, and not what home recovers as floats."""
    how = Protection("one-time-pad-mod", bits=bits, check="freivalds")
    made = hidden(protecting({"weights": how}))
    op = next(op for op in made.graph.plain.ops if op.module_path.endswith("down_proj"))
    (result,) = made.graph.outputs(made.graph.here[op.id])
    receive = Channel.receive

    def tampered(self: Channel, *args: Any) -> Any:
        arrived, moved = receive(self, *args)
        if result.id in arrived:
            arrived[result.id].view(-1)[7] += 1
        return arrived, moved

    monkeypatch.setattr(Channel, "receive", tampered)
    says = rf"{op.name} .* answered wrongly: .* mod 2\^{bits}, and nothing is rounded"
    with workers(["gpu"], remote=there, token=TOKEN, timeout=60.0) as found:
        loaded = made.load(found)
        with pytest.raises(RunError, match=says):
            loaded.run(given())


# --- what the tool says of attacks ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "what", "told"),
    [
        ("attention_probs", What.ATTENTION_SCORES, "a = sum(aR) / (sum(P + R) - 1)"),
        ("attention_scores", What.ATTENTION_SCORES, "up to two scalars"),
        (None, What.QKV, "up to one scalar"),
    ],
)
def test_the_tool_says_how_blocks_are_undone(label, what, told):
    """The example of each sort that is recoverable is an attack on a tensor of that sort."""
    made = hidden("masked-all")
    plain = made.graph.plain.tensors
    attacks = {
        f"{plain[one.plain].name}: {one.attack}": plain[one.plain].label
        for one in made.graph.masks.values()
        if one.attack
    }
    assert any(told in words and (label in (None, has)) for words, has in attacks.items())
    found = seen(made.graph, made.placement, made.traffic, ["gpu"])
    (sort,) = (one for one in found if one.what is what)
    assert sort.how is How.RECOVERABLE
    assert sort.example in attacks
