"""The best single cut between parts of a model, against trying all with the accounting alone."""

import json
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given

from costmodels.flops import annotate
from costmodels.links import Links, load_link
from costmodels.machine import Machine
from partition.accounting import account
from partition.layers import topological_cut
from partition.objective import problem_of
from partition.optimise import place
from partition.placement import Placement
from partition.policy import load_policy
from partition.problem import InfeasibleError
from partition.setting import Setting
from tests.support.examples import examples
from tests.support.graphs import HOME, graphs
from tests.support.inprocess import invoke
from tracer.capture import capture, capture_function
from tracer.graph import Kind, OpGraph
from tracer.stacks import blocks

LINKS = Links(load_link("none"))

FILE = """
import torch
from torch import nn


def stage(a, b):
    return nn.Sequential(nn.Linear(a, b), nn.ReLU())


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleList([stage(512, 256), stage(256, 128), stage(128, 64)])
        self.decoder = nn.ModuleList([stage(64, 8), stage(8, 128), stage(128, 256)])

    def forward(self, x):
        for part in (*self.encoder, *self.decoder):
            x = part(x)
        return x


class Residual(nn.Module):
    def __init__(self, a, b, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b)
        self.conv2, self.bn2 = nn.Conv2d(b, b, 3, 1, 1), nn.BatchNorm2d(b)
        self.relu = nn.ReLU()
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(a, b, 1, stride), nn.BatchNorm2d(b))

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU()
        self.layer1 = nn.Sequential(Residual(8, 8, 1), Residual(8, 8, 1))
        self.layer2 = nn.Sequential(Residual(8, 12, 2), Residual(12, 12, 1))
        self.layer3 = nn.Sequential(Residual(12, 20, 2), Residual(20, 20, 1))
        self.fc = nn.Linear(20, 10)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class Double(nn.Sequential):
    def __init__(self, a, b):
        super().__init__(nn.Conv2d(a, b, 3, 1, 1), nn.ReLU(), nn.Conv2d(b, b, 3, 1, 1), nn.ReLU())


class UNet(nn.Module):
    # Each way up reads what the way down made at its size: a cut in the middle sends all of that.

    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.down3 = Double(3, 4), Double(4, 8), Double(8, 16)
        self.pool, self.wide = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.up2, self.up1 = Double(24, 8), Double(12, 4)
        self.out = nn.Conv2d(4, 1, 1)

    def forward(self, x):
        one = self.down1(x)
        two = self.down2(self.pool(one))
        three = self.down3(self.pool(two))
        x = self.up2(torch.cat([self.wide(three), two], 1))
        return self.out(self.up1(torch.cat([self.wide(x), one], 1)))


class Towers(nn.Module):
    # A narrow place in the first tower, and a result of the second that is smaller than its input.

    def __init__(self):
        super().__init__()
        self.left = nn.ModuleList([stage(64, 32), stage(32, 2), stage(2, 32)])
        self.right = nn.ModuleList([stage(256, 16), stage(16, 1)])
        self.join = nn.Linear(33, 5)

    def forward(self, x, y):
        for part in self.left:
            x = part(x)
        for part in self.right:
            y = part(y)
        return self.join(torch.cat([x, y], -1))


class Shared(nn.Module):
    # One layer, called again and again.

    def __init__(self):
        super().__init__()
        self.embed, self.layer, self.head = nn.Linear(6, 9), stage(9, 9), nn.Linear(9, 3)

    def forward(self, x):
        x = self.embed(x)
        for _ in range(3):
            x = self.layer(x)
        return self.head(x)


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, 8))

    def forward(self, x):
        return torch.relu(x @ self.weight) @ self.weight


def autoencoder(batch=1):
    return Autoencoder(), torch.randn(batch, 512)


def resnet():
    return ResNet().eval(), torch.randn(1, 3, 16, 16)


def unet():
    return UNet(), torch.randn(1, 3, 16, 16)


def sequential():
    widths = (20, 9, 30, 4, 17, 6)
    layers = [nn.Linear(a, b) for a, b in zip(widths, widths[1:])]
    return nn.Sequential(*(m for one in layers for m in (one, nn.ReLU()))), torch.randn(3, 20)


def towers():
    return Towers(), (torch.randn(1, 64), torch.randn(1, 256))


def shared():
    return Shared(), torch.randn(2, 6)


def whole():
    return Whole(), torch.randn(2, 8)


def linear():
    return nn.Linear(8, 4), torch.randn(2, 8)
"""

OWN = ("autoencoder", "resnet", "unet", "sequential", "towers", "shared")

SMALL = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
TYPES: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "resnet": (
        {
            "embedding_size": 4,
            "hidden_sizes": [8, 16, 24],
            "depths": [1, 2, 2],
            "layer_type": "basic",
        },
        {"batch": 1},
    ),
    "vit": ({**SMALL, "num_hidden_layers": 3, "image_size": 16, "patch_size": 8}, {"batch": 1}),
    "t5": (
        {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "num_layers": 3, "vocab_size": 64},
        {"seq": 5, "source": 7},
    ),
    "mixtral": (
        {**SMALL, "num_hidden_layers": 3, "num_key_value_heads": 1, "num_local_experts": 3},
        {"seq": 5},
    ),
    "gpt2": ({"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 64}, {"seq": 5}),
    "bert": ({**SMALL, "num_hidden_layers": 3}, {"seq": 5}),
}


MADE = tuple(f"{kind} of transformers" for kind in TYPES)


class Models(dict[str, OpGraph]):
    """The models, each traced when it is first asked for."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        path.write_text(FILE)

    def __missing__(self, name: str) -> OpGraph:
        kind, of_transformers, _ = name.partition(" of transformers")
        if of_transformers:
            config, sizes = TYPES[kind]
            traced = capture({"model_type": kind, **config}, model=kind, symbolic=False, **sizes)
        else:
            traced = capture_function(str(self.path), name)
        self[name] = annotate(traced.graph)
        return self[name]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("layers") / "networks.py")


def setting(**options: object) -> Setting:
    return Setting(Machine(HOME, ("gpu",), LINKS), **options)


def moved(graph: OpGraph, at_home: set[int]) -> int:
    """The bytes that cross with some ops at home and all others away, by the accounting."""
    devices = [
        None
        if graph.is_everywhere(op.id)
        else HOME
        if op.kind in (Kind.INPUT, Kind.OUTPUT) or op.id in at_home
        else "gpu"
        for op in graph.ops
    ]
    same = ("by hand",) * len(devices)
    where = Placement(HOME, tuple(devices), (False,) * len(devices), same)
    return account(graph, where, LINKS).totals.payload_bytes


def running(graph: OpGraph) -> list[int]:
    return [
        op.id
        for op in graph.ops
        if op.kind not in (Kind.INPUT, Kind.OUTPUT) and not graph.is_everywhere(op.id)
    ]


def between_parts(graph: OpGraph) -> Iterator[int]:
    """How many ops run before each place that lies between two parts of one module.

    For each module: whatever it does itself aside, the op before and the op after are of two of its
    parts, or of two calls of one.
    """
    order = running(graph)
    paths = [graph.ops[op].module_path.split(".") for op in order]
    paths = [[] if path == [""] else path for path in paths]
    modules = {tuple(path[:depth]) for path in paths for depth in range(len(path))}
    for module in modules:
        depth = len(module)
        inside = [n for n, path in enumerate(paths) if tuple(path[:depth]) == module]
        parts = [n for n in inside if len(paths[n]) > depth]
        for last, first in pairwise(parts):
            own = list(range(last + 1, first))
            if all(paths[n] == list(module) for n in own) and (
                own or paths[last][depth] != paths[first][depth]
            ):
                yield from range(last + 1, first + 1)


def whole_blocks(graph: OpGraph, prefixes: Sequence[str]) -> list[set[int]]:
    """The ops of each block, by the path of its list: the first number after it is the block's."""
    found: dict[str, set[int]] = {}
    for op in running(graph):
        path = graph.ops[op].module_path
        for prefix in prefixes:
            start = f"{prefix}." if prefix else ""
            if path.startswith(start) and path[len(start) :].split(".")[0]:
                found.setdefault(start + path[len(start) :].split(".")[0], set()).add(op)
    return list(found.values())


STACKS = {
    "autoencoder": ["encoder", "decoder"],
    "gpt2 of transformers": ["transformer.h"],
    "towers": ["left", "right"],
    "resnet": ["layer1", "layer2", "layer3"],
    "vit of transformers": ["vit.layers"],
    "t5 of transformers": ["decoder.block"],
    "mixtral of transformers": ["model.layers"],
    "bert of transformers": ["bert.encoder.layer"],
}
"""The lists of blocks of which one is on each side."""


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.few(1)
def test_the_repeated_stacks_of_a_model(models, name):
    graph = models[name]
    assert set(blocks(graph)) == set(map(frozenset, whole_blocks(graph, STACKS[name])))


def test_the_blocks_of_a_module_without_lists_are_parts_that_are_called_alike(models):
    """``up2`` comes before ``up1``; each is a ``Double``, made of convolutions and ReLUs."""
    graph = models["unet"]
    assert set(blocks(graph)) == {
        frozenset(op for op in running(graph) if graph.ops[op].module_path.startswith(f"{part}."))
        for part in ("down1", "down2", "down3", "up2", "up1")
    }


def test_a_list_in_a_list_is_a_repeated_stack_too(models):
    """A stage of a ResNet is a block, and so is a residual block in it, and a convolution there.

    Stages of 1, 2 and 2 blocks: the list of the first stage repeats nothing.
    """
    graph = models["resnet of transformers"]
    inside = "resnet.encoder.stages"
    wanted = {f"{inside}.{n}" for n in range(3)}
    wanted |= {f"{inside}.{n}.layers.{b}" for n in (1, 2) for b in (0, 1)}
    wanted |= {
        f"{inside}.{n}.layers.{b}.layer.{c}"
        for n in range(3)
        for b in range(min(n, 1) + 1)
        for c in (0, 1)
    }
    assert set(blocks(graph)) == {
        frozenset(
            op for op in running(graph) if f"{graph.ops[op].module_path}.".startswith(f"{part}.")
        )
        for part in wanted
    }


def test_without_a_repeated_stack_what_has_parameters_is_a_block(models):
    """The three calls of ``shared``'s layer are of one module, no stack; ReLUs weigh nothing."""
    graph = models["shared"]
    linears = [op.id for op in graph.ops if op.kind is Kind.LINEAR]
    assert len(linears) == 5
    assert blocks(graph) == [frozenset({op}) for op in linears]


def divided(at_home: set[int], whole: Sequence[frozenset[int]]) -> bool:
    return any(block <= at_home for block in whole) and any(not block & at_home for block in whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "autoencoder",
        "unet",
        "shared",
        "gpt2 of transformers",
        "resnet of transformers",
        *sorted(
            {*OWN, *MADE}
            - {
                "autoencoder",
                "unet",
                "shared",
                "towers",
                "gpt2 of transformers",
                "resnet of transformers",
            }
        ),
    ],
)
@pytest.mark.few(5)
def test_the_best_cut_is_that_of_trying_all(models, name):
    """Every place between two parts, in the order of execution; of equal ones the last.

    In these models all runs before a cut or after it, so that there is no other cut between parts.
    """
    graph = models[name]
    order, whole = running(graph), blocks(graph)
    tried = {
        (moved(graph, at_home), -len(at_home))
        for at in between_parts(graph)
        if divided(at_home := set(order[:at]), whole)
    }
    placed = place(graph, load_policy("layers"), setting())
    assert placed.solution is not None
    assert placed.solution.proven
    here = sum(device == HOME for device in placed.placement.devices)
    ends = sum(op.kind in (Kind.INPUT, Kind.OUTPUT) for op in graph.ops)
    ends -= sum(op.kind is Kind.INPUT and graph.is_everywhere(op.id) for op in graph.ops)
    assert (placed.solution.objective, ends - here) == min(tried)
    beside = topological_cut(problem_of(graph, load_policy("layers"), setting()))
    assert beside is not None
    assert beside.objective_value <= placed.solution.objective


def test_the_cut_of_an_autoencoder_is_in_the_middle_of_its_decoder(models):
    """8 numbers after decoder.0 and 256 results, of 4 bytes; 128 and 256 before the encoder's last.

    Between encoder and decoder 64 and 256 cross: 1,280 bytes.
    """
    placed = place(models["autoencoder"], load_policy("layers"), setting())
    assert placed.solution is not None
    assert placed.solution.objective == 4 * (8 + 256) == 1056
    assert placed.solution.cut == "after decoder.0"


def test_what_a_stack_does_not_wait_for_is_on_the_better_side(models):
    """The second tower at home sends 1 number in place of its 256; the first is cut at 2.

    With 5 results, of 4 bytes: 2 + 1 + 5. In the order of execution the second tower is away when
    the first is cut, and the best is to cut the second after its first layer: 32 + 16 + 5.
    """
    graph = models["towers"]
    placed = place(graph, load_policy("layers"), setting())
    assert placed.solution is not None
    assert placed.solution.cut == "after left.1"
    assert placed.solution.objective == 4 * (2 + 1 + 5)
    order = running(graph)
    in_order = [set(order[:at]) for at in between_parts(graph)]
    costs = [moved(graph, at) for at in in_order if divided(at, blocks(graph))]
    assert min(costs) == 4 * (32 + 16 + 5)


@pytest.mark.parametrize("name", ["whole", "linear"])
def test_a_model_without_parts_that_follow_each_other_is_an_error(models, name):
    with pytest.raises(InfeasibleError, match="no two layers to cut between: no two of its modul"):
        place(models[name], load_policy("layers"), setting())


# --- the best cut of the graph --------------------------------------------------------------------


def closed_sets(graph: OpGraph) -> Iterator[set[int]]:
    """Every set of ops with all that they wait for."""
    order = running(graph)
    waits = {op: {t.op for t in graph.flowing(op)} & set(order) for op in order}
    for size in range(len(order) + 1):
        for chosen in map(set, combinations(order, size)):
            if all(waits[op] <= chosen for op in chosen):
                yield chosen


@given(graph=graphs(max_ops=10))
@examples(20)
def test_the_best_cut_of_a_graph_is_that_of_trying_every_closed_set(graph):
    problem = problem_of(graph, load_policy("layers"), setting())
    whole = blocks(graph)
    found = topological_cut(problem)
    values = [moved(graph, chosen) for chosen in closed_sets(graph) if divided(chosen, whole)]
    assert (None if found is None else found.objective_value) == min(values, default=None)


def test_the_best_cut_of_a_graph_says_what_it_lies_after(models):
    problem = problem_of(models["towers"], load_policy("layers"), setting())
    found = topological_cut(problem)
    assert found is not None
    assert found.objective_value == 4 * (2 + 1 + 5)
    assert found.after == ("relu_1 (left.1.1)", "relu_4 (right.1.1)")


# --- what is said of it ---------------------------------------------------------------------------


def test_a_cut_is_said_by_name_with_the_best_one_of_the_graph_beside_it(tmp_path):
    (tmp_path / "networks.py").write_text(FILE)
    to = str(tmp_path / "t")
    assert invoke("trace", f"{tmp_path / 'networks.py'}:autoencoder", "--out", to).returncode == 0
    said = invoke("partition", to, "--policy", "layers").stdout
    assert (
        "optimal for bytes: 1,056 bytes (0.0010 MiB) by trying every cut; no cut between two "
        "layers that is allowed has less\n"
        "the cut is after decoder.0; the best one of the op graph, at any op, is 1,056 bytes "
        "(0.0010 MiB), after relu_3 (decoder.0.1)\n"
    ) in said
    plain = json.loads(invoke("partition", to, "--policy", "layers", "--json").stdout)
    assert plain["cut"] == "after decoder.0"
    assert plain["topological_cut"] == {"objective_value": 1056, "after": ["relu_3 (decoder.0.1)"]}
    asked = invoke(
        "cutedge", "query", "SELECT cut, objective_value FROM summary", "--trace", to, "--json"
    )
    assert json.loads(asked.stdout)["rows"] == [{"cut": "after decoder.0", "objective_value": 1056}]
    whole = json.loads(invoke("partition", to, "--policy", "min-cut", "--json").stdout)
    assert (whole["cut"], whole["topological_cut"]) == (None, None)
