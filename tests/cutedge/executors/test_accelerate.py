"""accelerate reads what is written for it: modules run where the placement has them."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest

import cutedge
from cutedge.executors import accelerate as ours
from tracer.errors import InputError
from tracer.graph import OpGraph

real = pytest.importorskip("accelerate")

TINY = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 99,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def trace() -> cutedge.Trace:
    return cutedge.trace(TINY, seq=5)


def model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TINY)).eval()


def run_by_accelerate(entries: Mapping[str, Any], devices: Mapping[Any, str]) -> dict[str, str]:
    """Leaf module -> the device that it ran on; home computes."""
    import torch

    there = {path: devices[device] for path, device in entries.items()}
    # At the end accelerate brings the answer home, and meta has no data to bring.
    built = real.dispatch_model(model(), there, main_device="cpu", skip_keys=["logits"])
    ran: dict[str, str] = {}

    def record(path: str) -> Callable[..., None]:
        return lambda module, given, made: ran.update(
            {path: str((made[0] if isinstance(made, tuple) else made).device)}
        )

    for path, module in built.named_modules():
        if not list(module.children()):
            module.register_forward_hook(record(path))
    with torch.no_grad():
        built(torch.arange(5).reshape(1, 5), use_cache=False)
    return ran


def test_modules_run_where_the_placement_has_them(trace: cutedge.Trace):
    """A second device that is there on any machine is torch's ``meta``: it has shapes alone."""
    given = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu"}
    given |= {"model.layers.1": 0, "model.layers.2": 0, "model.norm": 0, "lm_head": 0}
    split = trace.partition(cutedge.placement(json.dumps(given)))
    words = split.words_for("accelerate")
    assert json.loads(words.text) == given
    assert words.beside["main_device"] == "cpu"
    ran = run_by_accelerate(given, {"cpu": "cpu", 0: "meta"})
    where = split.split.placement.devices
    for op in trace.graph.ops:
        device = {"tee": "cpu", "gpu": "meta", None: None}[where[op.id]]
        if device and op.module_path in ran:
            assert ran[op.module_path] == device, op
    assert {ran["model.layers.0.mlp.up_proj"], ran["lm_head"]} == {"cpu", "meta"}


def test_weights_that_are_sent_are_loaded_by_hooks_and_the_answer_stays(
    trace: cutedge.Trace, tmp_path
):
    """What lies at home and runs on the accelerator is offloaded: here from disk, to a cpu."""
    import torch

    given = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.layers.0": 0}
    given |= {"model.layers.1": "cpu", "model.layers.2": 0, "model.norm": 0, "lm_head": "cpu"}
    whole = json.dumps({"device_map": given, "main_device": 0})
    split = trace.partition(cutedge.placement(whole))
    written = json.loads(split.words_for("accelerate").text)
    assert written == {"device_map": given, "main_device": 0}
    placed = split.split.placement
    sent = {trace.graph.ops[op].module_path for op in placed.streams}
    assert {path.removeprefix("model.layers.1").split(".")[0] for path in sent} == {"", "lm_head"}
    # By hand: four products of 32 x 32 (two for 2 of 4 heads), three of 32 x 64, two norms; the head.
    block = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
    assert split.split.sent_weight_bytes == 4 * (block + 32 * 99)
    there = {p: "disk" if d == "cpu" else "cpu" for p, d in written["device_map"].items()}
    built = real.dispatch_model(model(), there, main_device="cpu", offload_dir=tmp_path)
    hooked = {
        path
        for path, module in built.named_modules()
        if getattr(getattr(module, "_hf_hook", None), "offload", False)
        and list(module.parameters(recurse=False))
    }
    assert hooked == sent
    ids = torch.arange(5).reshape(1, 5)
    with torch.no_grad():
        torch.testing.assert_close(
            built(ids, use_cache=False).logits, model()(ids, use_cache=False).logits
        )


def test_a_map_that_accelerate_infers_is_read(trace: cutedge.Trace):
    whole = model()
    block = sum(p.numel() * 4 for p in whole.model.layers[0].parameters())
    memory = {0: 32 * 99 * 4 + 2 * block + 1000, "cpu": 2**30}
    inferred = real.infer_auto_device_map(
        whole, max_memory=memory, no_split_module_classes=["LlamaDecoderLayer"]
    )
    assert set(inferred.values()) == {0, "cpu"}
    split = trace.partition(cutedge.placement(json.dumps(inferred)))
    again = ours.parse(split.words_for("accelerate").text)
    at = ours.place(trace.graph, again, ("tee", "gpu"))
    assert at.devices == tuple(split.split.placement.devices)
    # What it puts on the accelerator is no more than it was told to, and what it is by our count.
    held = split.split.traffic.resident_bytes["gpu"]
    assert 32 * 99 * 4 + block <= held <= memory[0]


@pytest.mark.parametrize(
    ("entries", "fewest"),
    [
        ({"model": 0, "lm_head": 0}, {"": 0}),
        ({"model": 0, "lm_head": "cpu"}, {"model": 0, "lm_head": "cpu"}),
        (
            {"model.embed_tokens": "cpu", "model.layers": 0, "model.norm": "cpu", "lm_head": "cpu"},
            {
                "model.embed_tokens": "cpu",
                "model.layers": 0,
                "model.norm": "cpu",
                "model.rotary_emb": "cpu",
                "lm_head": "cpu",
            },
        ),
    ],
)
def test_entries_are_as_few_as_say_it(trace: cutedge.Trace, entries: Any, fewest: Any):
    given = json.dumps({"device_map": entries, "main_device": "cpu"})
    told = trace.partition(cutedge.placement(given)).words_for("accelerate").text
    assert json.loads(told) == fewest


def test_it_says_what_each_device_holds(trace: cutedge.Trace):
    entries = {"model.embed_tokens": "cpu", "model.layers": 0, "model.norm": 0, "lm_head": 0}
    given = json.dumps({"device_map": entries, "main_device": "cpu"})
    split = trace.partition(cutedge.placement(given))
    told = split.words_for("accelerate").beside["max_memory"]
    held = split.split.traffic.resident_bytes
    assert told == {"cpu": held["tee"], "0": held["gpu"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "the device_map is no JSON"),
        ("{}", "the device_map is empty"),
        ('{"": 0, "lm_head": 1}', "is of the whole model, and here are others"),
        ('{"model": "gpu7"}', "write a number (or cuda:0), cpu or disk"),
        ('{"model": 3, "lm_head": 0}', "on 3, and here are 1 accelerators"),
        ('{"modl": 0, "lm_head": 0}', "'modl' is no module of llama. Did you mean model"),
        ('{"model.layers.9": 0, "": 0}', "here are others"),
        ('{"model.layers.9": 0, "model": 0, "lm_head": 0}', "'model.layers.9' is no module"),
        ('{"model": 0}', "no entry is of lm_head.weight"),
        (
            '{"model.embed_tokens": 0, "model.norm": 0, "lm_head": 0, "model.layers.0": 0, '
            '"model.layers.1": 0, "model.layers.2.self_attn": 0, "model.layers.2.mlp": "cpu", '
            '"model.layers.2.input_layernorm": 0, "model.layers.2.post_attention_layernorm": 0}',
            "of model.layers.2 reads from gpu and tee, and accelerate moves nothing between",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_line(trace: cutedge.Trace, text: str, said: str):
    if "reads from" in said:
        text = json.dumps({"device_map": json.loads(text), "main_device": "cpu"})
    with pytest.raises(InputError, match=re.escape(said)) as error:
        trace.partition(cutedge.placement(text))
    assert "\n" not in str(error.value)


def test_what_is_not_in_a_graph_may_have_an_entry(traced: Callable[..., OpGraph]):
    """A dropout does nothing, and ``infer_auto_device_map`` names it all the same."""
    graph = traced("gpt2", seq=16, overrides={"n_layer": 2})
    parts = ("wte", "wpe", "drop", "h", "ln_f")
    told = ours.parse(json.dumps({**{f"transformer.{p}": 0 for p in parts}, "lm_head": 0}))
    assert "tee" not in ours.place(graph, told, ("tee", "gpu")).devices[1:-1]
