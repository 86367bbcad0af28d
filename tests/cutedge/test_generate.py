"""A generation is the sum of its steps: each traced, placed and counted by itself."""

import json
import random
from importlib.resources import files
from itertools import pairwise
from math import fsum
from pathlib import Path
from typing import Any

import duckdb
import pytest

import cutedge
from tests.support.inprocess import invoke
from tests.support.presets import WINDOWED
from tracer.errors import InputError
from tracer.presets import preset

MACHINE = "tee-tdx+h100-cc@pcie5-x16-cc"
SHALLOW = {**preset("edge-10m"), "num_hidden_layers": 1}
WINDOW = {**WINDOWED, "sliding_window": 12, "num_hidden_layers": 1}


MASKING = "tee-tdx+rtx-4090@pcie5-x16"
MASKED = (
    "masked_payload_bytes",
    "unmasked_payload_bytes",
    "pad_bytes",
    "offline_flops",
    "home_mask_flops",
)


def alone(model: Any, past: int, policy: str, **options: Any) -> dict[str, Any]:
    """The summary of one step of decode."""
    split = cutedge.trace(model, phase="decode", past=past).partition(policy, **options)
    return split.summary


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("fuse-attention", {"machine": MACHINE}),
        ("min-cut-norm-home", {"machine": MACHINE, "wire_dtype": "bfloat16"}),
        ("offload-linear", {"machine": MACHINE, "residency": "call"}),
        ("slalom-verified", {"machine": MASKING}),
        ("masked-all", {"machine": MASKING, "wire_dtype": "bfloat16"}),
        pytest.param("private-optimal", {"machine": MASKING}, marks=pytest.mark.slow),
        pytest.param(
            "host-chip",
            {"machine": "ryzen-7950x+chip-8x8@axi-lite", "chips": 4},
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.few(3)
def test_a_generation_is_the_sum_of_its_steps(policy: str, options: dict[str, Any]) -> None:
    made = cutedge.generate("edge-10m", prompt=64, new=5, policy=policy, **options)
    prompt = cutedge.trace("edge-10m", seq=64, cache=True).partition(policy, **options).summary
    steps = [alone("edge-10m", past, policy, **options) for past in range(64, 68)]
    for step, wanted in zip(made.steps, steps, strict=True):
        assert step.calls == wanted["calls"]
        assert step.transfers == wanted["transfers"]
        assert step.total_payload_bytes == wanted["total_payload_bytes"]
        assert step.run_seconds == pytest.approx(wanted["run_seconds"], rel=1e-12)
        assert step.run_joules == pytest.approx(wanted["run_joules"], rel=1e-12)
    found, all_of_it = made.summary, [prompt, *steps]
    for figure in ("calls", "total_payload_bytes", *MASKED):
        assert found[figure] == sum(one[figure] for one in all_of_it)
    assert found["ttft_seconds"] == prompt["run_seconds"]
    assert found["total_seconds"] == pytest.approx(fsum(one["run_seconds"] for one in all_of_it))
    joules = fsum(one["run_joules"] for one in all_of_it)
    assert found["total_joules"] == pytest.approx(joules)
    assert found["joules_per_token"] == pytest.approx(joules / 5)
    assert found["ttft_joules"] == prompt["run_joules"]
    assert found["energy_at_least"]
    assert found["tpot_mean_seconds"] == pytest.approx(
        fsum(one["run_seconds"] for one in steps) / 4
    )
    assert found["tpot_first_seconds"] == made.steps[0].run_seconds
    assert found["tpot_last_seconds"] == made.steps[-1].run_seconds
    assert found["tokens_per_second"] == pytest.approx(5 / found["total_seconds"])
    # 4 layers x 2 x 4 heads x 64 x 4 bytes for each of 68 tokens
    assert found["cache_bytes"] == 4 * 2 * 4 * 64 * 4 * 68


def test_a_cache_that_decode_reads_elsewhere_moves_once() -> None:
    """4 layers x 2 x 256 values x 64 tokens x 4 bytes; in bfloat16 on the wire half of that."""
    policies = {"policy": "all-home", "decode_policy": "min-cut"}
    made = cutedge.generate("edge-10m", prompt=64, new=3, machine=MACHINE, **policies)
    assert made.moved_cache_bytes == 4 * 2 * 256 * 64 * 4
    assert {(move.source, move.destination) for move in made.moves} == {("tee-tdx", "h100-cc")}
    steps = [alone("edge-10m", past, "min-cut", machine=MACHINE) for past in (64, 65)]
    moved = sum(step["total_payload_bytes"] for step in steps)
    assert made.total_payload_bytes == made.moved_cache_bytes + moved
    whole = made.summary["ttft_seconds"] + fsum(step["run_seconds"] for step in steps)
    assert made.move_seconds is not None
    assert made.summary["total_seconds"] == pytest.approx(whole + made.move_seconds)
    joules = made.summary["ttft_joules"] + fsum(step["run_joules"] for step in steps)
    moving = made.moved_cache_bytes * 52e-12  # what a byte takes on PCIe 5.0; nothing frames it
    moving += 70 * made.move_seconds  # what the card draws meanwhile; home has no figure
    assert made.summary["total_joules"] == pytest.approx(joules + moving)
    half = cutedge.generate(
        "edge-10m", prompt=64, new=3, machine=MACHINE, wire_dtype="bfloat16", **policies
    )
    assert half.moved_cache_bytes == made.moved_cache_bytes // 2
    stays = cutedge.generate("edge-10m", prompt=64, new=3, machine=MACHINE, policy="min-cut")
    assert stays.moves == ()


@pytest.mark.parametrize(("prompt", "new"), [(12, 2), (11, 3), (8, 8)])
@pytest.mark.slow
def test_a_window_is_another_program_and_is_counted_as_it_is(prompt: int, new: int) -> None:
    """Past 12 tokens a step no longer makes its cache longer: it holds the 11 before its own."""
    made = cutedge.generate(
        WINDOW, prompt=prompt, new=new, policy="offload-linear", machine=MACHINE
    )
    for step in made.steps:
        wanted = alone(WINDOW, step.past, "offload-linear", machine=MACHINE)
        assert step.total_payload_bytes == wanted["total_payload_bytes"], step.past
        assert step.run_seconds == pytest.approx(wanted["run_seconds"]), step.past
    assert made.summary["cache_bytes"] == 2 * 2 * 16 * 4 * 11  # 2 heads of keys and of values


def test_steps_cost_more_over_a_longer_cache_and_the_prefill_is_the_first_token() -> None:
    made = cutedge.generate("edge-10m", prompt=16, new=20, policy="fuse-attention", machine=MACHINE)
    assert [step.past for step in made.steps] == list(range(16, 35))
    seconds = [step.run_seconds for step in made.steps]
    assert all(a < b for a, b in pairwise(seconds))
    assert made.table.num_rows == 19
    one = cutedge.generate("edge-10m", prompt=16, new=1, policy="fuse-attention", machine=MACHINE)
    assert one.steps == ()
    assert one.summary["total_seconds"] == one.summary["ttft_seconds"]
    assert one.summary["tpot_mean_seconds"] is None


def test_one_device_alone_needs_no_link() -> None:
    made = cutedge.generate("edge-10m", prompt=16, new=3, policy="all-home", home="a100-80g")
    prompt = cutedge.trace("edge-10m", seq=16, cache=True)
    split = prompt.partition("all-home", home="a100-80g", link="pcie4-x16")
    assert made.summary["ttft_seconds"] == split.summary["run_seconds"]
    assert made.summary["tpot_mean_seconds"] is not None
    assert made.summary["left_out"] == ["the launch time of a100-80g"]


@pytest.mark.slow
def test_what_lies_in_the_cache_already_is_not_read_again() -> None:
    made = cutedge.generate(
        SHALLOW, prompt=64, cached_prompt=48, new=3, policy="fuse-attention", machine=MACHINE
    )
    rest = cutedge.trace(SHALLOW, seq=16, past=48, cache=True)
    split = rest.partition("fuse-attention", machine=MACHINE).summary
    assert made.summary["ttft_seconds"] == split["run_seconds"]
    assert (made.summary["prompt"], made.summary["cached_prompt"]) == (64, 48)
    assert [step.past for step in made.steps] == [64, 65]
    whole = cutedge.generate(SHALLOW, prompt=64, new=3, policy="fuse-attention", machine=MACHINE)
    assert made.steps == whole.steps
    assert made.total_payload_bytes < whole.total_payload_bytes
    with pytest.raises(InputError, match="at least one is read"):
        cutedge.generate("edge-10m", prompt=64, cached_prompt=64)


@pytest.mark.slow
def test_a_draft_proposes_and_the_model_checks() -> None:
    """Of 3 tokens at 1/2 each round makes 1 + 1/2 + 1/4 + 1/8 = 1.875; 7 more take 4 rounds.

    They begin after 0, 1.875, 3.75 and 5.625 tokens. Each is three steps of the draft and one pass
    of the model over four tokens, whose logits are all wanted.
    """
    options = {"policy": "fuse-attention", "machine": MACHINE}
    made = cutedge.generate(
        SHALLOW, prompt=32, new=8, draft=SHALLOW, accept=0.5, tokens=3, **options
    )
    found = made.summary
    assert found["expected_tokens"] == 1.875
    assert [step.past for step in made.steps] == [32, 33, 35, 37]
    assert [step.tokens for step in made.steps] == [1.875, 1.875, 1.875, 7 - 5.625]
    assert found["new"] == 8
    passes, proposals = [], []
    for past in (32, 33, 35, 37):
        check = cutedge.trace(SHALLOW, seq=4, past=past, cache=True, logits="all")
        passes.append(check.partition("fuse-attention", machine=MACHINE).summary)
        proposals += [alone(SHALLOW, past + k, **options) for k in range(3)]
    prompt = cutedge.trace(SHALLOW, seq=32, cache=True).partition(**options).summary
    parts = [prompt, prompt, *passes, *proposals]
    for figure in ("calls", "total_payload_bytes"):
        assert found[figure] == sum(part[figure] for part in parts)
    assert found["total_seconds"] == pytest.approx(fsum(part["run_seconds"] for part in parts))
    assert found["tpot_first_seconds"] == pytest.approx(
        (passes[0]["run_seconds"] + fsum(p["run_seconds"] for p in proposals[:3])) / 1.875
    )


@pytest.mark.slow
def test_a_draft_has_a_weight_format_of_its_own() -> None:
    """Each of its steps reads so many bytes of weights less; the model's own passes do not."""
    options = {"prompt": 8, "new": 3, "policy": "all-home", "home": "a100-80g"}
    plain = cutedge.generate(SHALLOW, draft=SHALLOW, accept=0.0, tokens=1, **options)
    made = cutedge.generate(
        SHALLOW, draft=SHALLOW, draft_weights="q8_0", accept=0.0, tokens=1, **options
    )
    assert (plain.summary["draft_weights"], made.summary["draft_weights"]) == (None, "q8_0")
    step = cutedge.trace(SHALLOW, phase="decode", past=8)
    alone = {"policy": "all-home", "home": "a100-80g"}
    saved = [
        traced.partition(**alone).summary["home_seconds"]
        for traced in (step, step.stored(weights="q8_0"))
    ]
    assert saved[0] > 1.5 * saved[1]
    assert plain.steps[0].run_seconds - made.steps[0].run_seconds == pytest.approx(
        saved[0] - saved[1]
    )
    prompt = plain.ttft_seconds  # of the model, not of its draft
    assert made.ttft_seconds == prompt
    assert made.total_seconds < plain.total_seconds


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"draft_weights": "q4_0"}, "those of a draft model"),
        ({"draft": "edge-10m"}, "draft and accept go together"),
        ({"accept": 0.5}, "draft and accept go together"),
        ({"draft": "edge-10m", "accept": 1.5}, "a likelihood from 0 to 1"),
        ({"draft": "edge-10m", "accept": 0.5, "tokens": 0}, "of 1 or more tokens"),
    ],
)
def test_drafts_that_cannot_be(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        cutedge.generate("edge-10m", prompt=8, new=2, **wrong)


def without_latency(folder: Path) -> Path:
    """A link whose latency is not known."""
    text = (files("costmodels") / "data" / "links" / "pcie5-x16.toml").read_text("utf-8")
    (folder / "timeless.toml").write_text(text[: text.index("[sent_latency_seconds]")])
    return folder / "timeless.toml"


@pytest.mark.slow
def test_what_the_seconds_leave_out_is_said(tmp_path: Path) -> None:
    machine = f"tee-tdx+h100-cc@{without_latency(tmp_path)}"
    of: dict[str, Any] = {"prompt": 16, "new": 2}
    found = cutedge.generate("edge-10m", machine=machine, **of).summary
    launches = ["the launch time of tee-tdx", "the launch time of h100-cc"]
    assert (found["at_least"], found["left_out"]) == (True, ["the latency of timeless", *launches])
    loop = "tee-tdx+h100-cc@loopback"
    timed = cutedge.generate("edge-10m", machine=loop, **of).summary
    assert (timed["at_least"], timed["left_out"]) == (True, launches)
    away = cutedge.generate("edge-10m", machine=loop, engine="h100-cc=vllm", **of).summary
    assert (away["at_least"], away["left_out"]) == (True, launches[:1])
    whole = cutedge.generate("edge-10m", machine=loop, engine="vllm", **of).summary
    assert (whole["at_least"], whole["left_out"]) == (False, [])
    none = cutedge.generate("edge-10m", prompt=16, new=2).summary
    assert none["total_seconds"] is none["tokens_per_second"] is None


def test_a_step_that_is_placed_anew_saves_nothing_or_more() -> None:
    made = cutedge.generate("edge-10m", prompt=16, new=30, policy="min-cut", machine=MACHINE)
    assert made.anew is not None
    best = alone("edge-10m", 44, "min-cut", machine=MACHINE)
    assert made.anew[0] == made.steps[-1].total_payload_bytes - best["total_payload_bytes"] >= 0
    fixed = cutedge.generate("edge-10m", prompt=16, new=3, machine=MACHINE)
    assert fixed.anew is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("bert-base",), "takes no cache of keys and values"),
        (("edge-10m", "--accel", "a", "--accel", "b"), "generate takes one accelerator"),
        (("edge-10m", "--policy", "mincut"), "Did you mean min-cut"),
        (("edge-10m", "--decode-policy", "fastest"), "fastest counts seconds"),
        (("edge-11m",), "Did you mean edge-10m"),
        pytest.param(("t5.json",), "an encoder runs before its decoder", marks=pytest.mark.slow),
        (("own.py:f",), "says itself what runs"),
    ],
)
def test_what_cannot_be_generated_is_said(
    words: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = {"model_type": "t5", "num_layers": 1, "num_decoder_layers": 1, "d_model": 32}
    Path("t5.json").write_text(json.dumps(small | {"d_ff": 32, "num_heads": 2, "d_kv": 16}))
    done = invoke("generate", *words, "--prompt", "8", "--new", "2")
    assert done.returncode in (1, 2)
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_command_says_it_in_words(tmp_path: Path) -> None:
    machine = f"tee-tdx+h100-cc@{without_latency(tmp_path)}"
    words = ("edge-10m", "--prompt", "64", "--new", "3", "--machine", machine)
    shown = invoke("generate", *words, "--policy", "all-home", "--decode-policy", "min-cut").stdout
    assert shown.startswith("edge-10m: 3 tokens after 1 x 64, float32; all-home, then min-cut on ")
    assert "cache that moves" in shown
    assert "first token after at least " in shown
    assert "placed as the step over 64; placed anew, the last would be no better" in shown
    found = json.loads(invoke("generate", *words, "--json").stdout)
    assert found["calls"] == 26 * 3


# --- many of them at once --------------------------------------------------------------------------

SWEPT = (
    "calls",
    "total_payload_bytes",
    "moved_cache_bytes",
    "ttft_seconds",
    "tpot_first_seconds",
    "tpot_last_seconds",
    "tpot_mean_seconds",
    "total_seconds",
    "tokens_per_second",
    "at_least",
    "payload_status",
    "ttft_joules",
    "step_first_joules",
    "step_last_joules",
    "step_mean_joules",
    "total_joules",
    "joules_per_token",
    "energy_at_least",
    *MASKED,
)


def swept(model: Any, folder: Path, **axes: Any) -> list[dict[str, Any]]:
    """The rows of a sweep over generations, each held against ``generate`` at that point."""
    rows = cutedge.sweep(model, folder, jobs=1, warn=lambda _: None, **axes)
    found = duckdb.sql(f"FROM '{folder}/**/*.parquet' ORDER BY ALL").fetchdf().to_dict("records")
    assert len(found) == rows.rows
    return [{k: None if v != v else v for k, v in row.items()} for row in found]


def held_against_generate(model: Any, row: dict[str, Any], **options: Any) -> None:
    alone = cutedge.generate(
        model,
        prompt=int(row["seq"]),
        new=int(row["new"]),
        batch=int(row["batch"]),
        policy=row["policy"],
        decode_policy=row["decode_policy"],
        machine=f"{row['home']}+{row['accelerator']}@{row['link']}",
        wire_dtype=row["wire_dtype"],
        pack=row["pack"] and row["pack"].split("+"),
        residency=row["residency"],
        **options,
    ).summary
    for name in SWEPT:
        if isinstance(alone[name], float):
            assert row[name] == pytest.approx(alone[name], rel=1e-12), (name, row)
        else:
            assert row[name] == alone[name], (name, row)


@pytest.mark.slow
def test_points_of_a_sweep_are_generations(tmp_path: Path) -> None:
    """Moves, packs, an unknown link, one token alone; each point against ``generate``."""
    axes = {
        "seq": [16, 64],
        "new": [1, 2, 9],
        "policy": ["all-home", "fuse-attention", "min-cut-norm-home"],
        "decode_policy": ["all-home", "min-cut"],
        "pair": ["tee-tdx+h100-cc", "tee+gpu"],
        "link": ["1gbe", "zmq-ipc"],
        "wire_dtype": "bfloat16",
        "pack": ["none", "range+zstd:1KiB"],
    }
    rows = swept("edge-10m", tmp_path / "s", **axes)
    assert len(rows) == 2 * 3 * 3 * 2 * 2 * 2 * 2
    assert {row["phase"] for row in rows} == {"generate"}
    assert {row["run_seconds"] for row in rows} == {None}
    for row in random.Random(0).sample(rows, 4):
        held_against_generate("edge-10m", row)
    moving = [row for row in rows if row["moved_cache_bytes"]]
    held_against_generate("edge-10m", random.Random(1).choice(moving))


@pytest.mark.slow
def test_generations_under_masks(tmp_path: Path) -> None:
    """Pads are of one run: those of all steps are summed. One row has no mask of ``rank-one``."""
    policies = ["slalom", "masked-all", "rank-one"]
    axes = {"seq": [16, 64], "new": [1, 9], "policy": policies}
    pair = {"pair": "tee-tdx+rtx-4090", "link": "pcie5-x16", "wire_dtype": ["native", "bfloat16"]}
    rows = swept("edge-10m", tmp_path / "s", **axes, **pair)
    assert len(rows) == 2 * 2 * 3 * 2
    for row in random.Random(0).sample(rows, 3):
        held_against_generate("edge-10m", row)
    steps = {
        (row["policy"], row["new"]): row["masked_payload_bytes"]
        for row in rows
        if (row["seq"], row["wire_dtype"]) == (64, None)
    }
    assert steps["rank-one", 9] == steps["rank-one", 1] > 0
    assert steps["slalom", 9] > steps["slalom", 1] > 0
    made = cutedge.generate("edge-10m", prompt=64, new=9, policy="rank-one", machine=MASKING)
    # 6 linears and 2 products in each of 4 layers, and the head
    assert "step: rank-one hides nothing of a single row: 33 ops" in " ".join(made.warnings)


@pytest.mark.slow
def test_generations_of_a_sweep_go_through_a_window(tmp_path: Path) -> None:
    config = tmp_path / "window.json"
    config.write_text(json.dumps({**WINDOW, "architectures": ["MistralForCausalLM"]}))
    axes = {"seq": [8, 12], "new": [1, 7], "policy": ["offload-linear", "min-cut"]}
    machine = {"pair": "tee-tdx+h100-cc", "link": "pcie5-x16-cc", "residency": ["run", "call"]}
    for row in swept(str(config), tmp_path / "s", **axes, **machine):
        held_against_generate(str(config), row)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"new": 2, "phase": "decode"}, "leave phase out"),
        ({"new": 2, "past": 7}, "leave past out"),
        ({"new": 2, "schedule": "overlap"}, "leave schedule out"),
        ({"decode_policy": "min-cut"}, "give new .tokens. too"),
        ({"new": "0"}, "0 is less than 1"),
    ],
)
def test_what_is_no_generation_of_a_sweep(axes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cutedge.sweep("edge-10m", "nowhere", **axes)
