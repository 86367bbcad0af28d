"""Writes docs/schema: a JSON Schema of what each command prints with ``--json``.

``python -m tools.schemas`` (`make reference`). Columns of tables and fields of dataclasses say what
they are where they are defined; what a command adds to them stands here.
"""

import json
from collections.abc import Mapping
from typing import Any

from cli.app import JSON_VERSION
from costmodels.array_memory import MemoryCost
from costmodels.arrays import GemmCost, Options
from costmodels.calibrate import Calibration, Fit
from costmodels.cost_table import COSTS
from costmodels.designs import OnDevice
from costmodels.devices import Array, Device
from costmodels.energy import Picojoules
from costmodels.fit_engine import Residual
from costmodels.flops import FlopTotals
from costmodels.limits import Limits
from costmodels.links import FIGURES, Link
from costmodels.memory import MemoryNeed
from costmodels.packing import SizedPacking
from costmodels.parameters import Breakdown, Count
from costmodels.roofline import DeviceTime, Share
from cutedge._calibrate import Written
from cutedge._carried import BesideOptimum, Words
from cutedge._design_table import DESIGN, DESIGNS, TAKEN
from cutedge._plan import Plan, PlannedPhase, PlanPoint
from cutedge._sweep import Swept
from cutedge.runtime.leaks import MaskProof, SecrecyProof
from cutedge.runtime.packed import Packed, PackedGroup
from cutedge.runtime.verify import Verdict
from cutedge.sweeping.point_files import SWEEP
from partition.conditions import OF_OPS, OF_SECRETS, OF_TENSORS
from partition.crossover import Crossover, Point
from partition.explain import Bottleneck, Relief, Savings, TransferGroup
from partition.ladder import Exposure, LadderStep
from partition.packs import Pack
from partition.policy import Policy, Rule, Secret
from partition.prices import Price
from partition.protects import Protect
from partition.run import Run
from partition.schedule import Schedule
from partition.schedule_table import SCHEDULE
from partition.schemes import Protection
from partition.seen import Derived
from partition.summary_table import SUMMARY
from partition.tables import TRANSFERS
from tools.describe import (
    Schema,
    columns,
    dataclass_keys,
    field_key,
    field_words,
    key,
    listed,
    nullable,
    record,
    write,
)
from tracer.captured import Checked
from tracer.graph import TraceMeta
from tracer.presets import describe
from tracer.serde import OF_A_TRACE, RUN, TENSORS, description

FOLDER = "docs/schema"

_ANY_OBJECT: Schema = {"type": "object"}
"""With keys of the user's: columns of a query, a model's own config."""

_COUNTS = Mapping[str, int]


def _where(words: str = "Where the tables were written.") -> Schema:
    return key(str, words)


def _sizes() -> dict[str, Schema]:
    return columns(RUN, "batch", "seq", "past") | columns(SWEEP, "source")


def _unsupported() -> Schema:
    return key(_COUNTS, "Target of ops without a formula -> how many: no total of FLOPs has them.")


def _parameters() -> dict[str, Schema]:
    return {
        **dataclass_keys(TraceMeta, "parameters"),
        "active_parameters": key(
            int,
            "Those that take part in the arithmetic of one token, as they are published: all but "
            "the experts that it does not go to, and tables that it looks up a row of.",
        ),
    }


def _not_run() -> Schema:
    return key(_COUNTS, "Module of which no parameter is read -> how many parameters it has.")


def _trace() -> Schema:
    flops = dataclass_keys(FlopTotals)
    expr = str | None
    return {
        "folder": _where(),
        "cached": key(bool, "Whether the trace came from the cache of traces."),
        **columns(RUN, "model"),
        **dataclass_keys(TraceMeta, "model_class"),
        **columns(RUN, "phase"),
        **_sizes(),
        **dataclass_keys(TraceMeta, "dtype", "attn", "logits", "symbolic"),
        "overrides": key(_ANY_OBJECT, "What --set changed in the config: field -> value."),
        "ops": key(int, "How many ops there are."),
        "ops_by_kind": key(_COUNTS, "Kind of op -> how many there are."),
        **_parameters(),
        "parameter_bytes": key(int, "Bytes of all parameters, tied weights once."),
        "not_run": _not_run(),
        "assumptions": key(list[str], "What FLOPs and bytes take to hold of values, in words."),
        "product_flops": flops["products"],
        "product_flops_status": flops["products_status"],
        "product_flops_expr": flops["products_expr"],
        "causal_product_flops": flops["causal"],
        "causal_product_flops_expr": flops["causal_expr"],
        "routed_product_flops": flops["routed"],
        "routed_product_flops_expr": flops["routed_expr"],
        "other_flops": flops["other"],
        "coverage": flops["coverage"],
        "unsupported": _unsupported(),
        "products_missing": flops["products_missing"],
        "cache_bytes": key(int, "Bytes of the cached state that is read."),
        "cache_bytes_expr": key(expr, "`cache_bytes` as a formula; null at fixed sizes."),
        "cache_bytes_after": key(int, "Bytes of the cached state afterwards."),
        "cache_bytes_after_expr": key(
            expr, "`cache_bytes_after` as a formula; null at fixed sizes."
        ),
        "largest_tensors": key(
            listed(
                record(
                    {
                        **columns(TRANSFERS, "tensor_group"),
                        "count": key(int, "How many are alike."),
                        **columns(TENSORS, "shape", "bytes", "bytes_expr", "seq_degree"),
                    }
                )
            ),
            "The kinds of tensor that take most bytes each, the largest first.",
        ),
        "warnings": key(list[str], "What was warned of."),
    }


def _derived() -> Schema:
    return key(
        {
            "type": "object",
            "additionalProperties": listed(
                record(
                    {
                        **columns(TRANSFERS, "tensor_id", "tensor_name", "label"),
                        "secret_tensor_name": key(str, "The secret tensor that it is nearest to."),
                        **dataclass_keys(Derived, "ops", "linear", "recoverable"),
                        "targets": key(list[str], "The ATen calls of these ops."),
                    }
                )
            ),
        },
        "Device that is not trusted -> what it gets that arithmetic has made of secrets.",
    )


_LEFT_OUT = {
    "at_least": key(bool, "Whether the seconds leave out what is not known."),
    "left_out": key(list[str], "What they leave out: `the launch time of h100-cc`."),
}
_STORAGE = {
    "weights": key(str | None, "What parameters are stored in; null for their dtype."),
    "kv_dtype": key(str | None, "What cached keys and values are stored in; null for their dtype."),
}


def _schedule() -> dict[str, Schema]:
    rate = float | None
    return {
        **dataclass_keys(
            Schedule,
            *("schedule", "requests", "makespan_seconds", "serial_seconds", "bound_seconds"),
            "at_least",
        ),
        "requests_per_second": key(rate, "Requests over the makespan; null where that is 0."),
        "most_requests_per_second": key(
            rate, "What the busiest resource lets through, however many there are; null likewise."
        ),
        "limited_by": key(str | None, "The busiest resource; null likewise."),
        "busy_seconds": key(Mapping[str, float], "Resource -> what its ops or transfers take."),
        "idle_shares": key(
            Mapping[str, float], "Resource -> the share of the makespan in which it stands still."
        ),
        "critical_path": key(
            listed(record(columns(SCHEDULE))),
            "What takes time on the critical path, as in `schedule.parquet`.",
        ),
    }


_EXTRAS = ("topological_cut", "beside_optimum", "derived", "ladder", "prices", *_schedule())
"""Keys of a partition that only some have."""


def _partition() -> dict[str, Schema]:
    relief = dataclass_keys(
        Relief, *(name for name in Relief.__dataclass_fields__ if name != "placement")
    )
    return {
        "folder": _where(),
        **_sizes(),
        **columns(RUN),
        **_STORAGE,
        **columns(SUMMARY),
        "cycles": key(Mapping[str, int | None], description(SUMMARY.field("cycles"))),
        "left_out": _LEFT_OUT["left_out"],
        "tokens": key(int | None, "New tokens of the batch; null where `run_seconds` is."),
        "chips": field_key(Run, "chips"),
        **{
            f"{part}_share": key(float | None, f"The part of `run_seconds` that {what} takes.")
            for part, what in (
                ("home", "home"),
                ("accelerator", "computing away"),
                ("link", "moving"),
            )
        },
        **_schedule(),
        "objective_gap": key(
            float | None,
            "How far the placement may be from the best, as a share of its cost: 0 is optimal.",
        ),
        "topological_cut": key(
            {
                "anyOf": [
                    record(
                        {
                            "objective_value": key(
                                int, "What the best cut of the op graph at any op costs."
                            ),
                            "after": key(list[str], "The tensors that it cuts."),
                        }
                    ),
                    {"type": "null"},
                ]
            },
            "Of a policy that cuts between layers: the best cut at any op; null for others.",
        ),
        "beside_optimum": key(
            {"anyOf": [record(dataclass_keys(BesideOptimum)), {"type": "null"}]},
            "Of an executor's placement (--placement): the best beside it; null where not known.",
        ),
        "exposed": key(
            listed(
                record(
                    dataclass_keys(Exposure)
                    | {"words": key(str, "What it sees, as a person says it.")}
                )
            ),
            "What each accelerator that is not trusted gets to see.",
        ),
        "derived": _derived(),
        "ladder": key(list[LadderStep], "With --explain: the steps from offload-linear to here."),
        "prices": key(list[Price], "With --explain: what each rule, secret and protection costs."),
        "unsupported": _unsupported(),
        "top_transfers": key(
            listed(
                record(
                    {
                        **columns(TRANSFERS, "tensor_group", "direction"),
                        **dataclass_keys(TransferGroup, "count"),
                        "each_payload_bytes": key(int, "Bytes of one of them, without framing."),
                        **dataclass_keys(TransferGroup, "payload_bytes", "share"),
                        **columns(TRANSFERS, "seq_degree"),
                    }
                )
            ),
            "Transfers in groups that are alike, the heaviest first.",
        ),
        "bottleneck": key(
            {
                "anyOf": [
                    record(
                        {
                            **dataclass_keys(
                                Bottleneck, "name", "transfers", "payload_bytes", "share"
                            ),
                            **columns(TRANSFERS, "seq_degree"),
                            "relief": key(
                                {"anyOf": [record(relief), {"type": "null"}]},
                                "The step that saves most of those tried; null where not one saves any.",
                            ),
                        }
                    ),
                    {"type": "null"},
                ]
            },
            "The kind of tensor that makes most of the traffic; null where nothing crosses.",
        ),
    }


def _plan() -> dict[str, Schema]:
    return {
        "written": key(list[str], "The partitions' folders, then the frontier's table and chart."),
        **columns(RUN, "model", "policy"),
        **columns(SUMMARY, "granularity"),
        **columns(RUN, "machine"),
        "memory_bytes": key(Mapping[str, int], "Device -> what it may hold, as --memory says."),
        **dataclass_keys(Plan, "unit"),
        "cost": key(float, "Of all phases, each as often as it runs."),
        **dataclass_keys(Plan, "least_cost", "proven"),
        "price": key(float, "What it costs that all phases have one placement."),
        **_LEFT_OUT,
        "phases": key(
            listed(
                record(
                    {
                        "phase": key(str, "prefill, decode or encoder."),
                        **dataclass_keys(PlannedPhase, "runs", "cost", "alone_cost"),
                        **columns(SUMMARY, "calls", "total_payload_bytes", "run_seconds"),
                        "taken_bytes": key(
                            Mapping[str, int], "Device -> the most that lies there at a time."
                        ),
                    }
                )
            ),
            "Each phase under the placement.",
        ),
        "points": key(list[PlanPoint], "With --frontier: the best with less and less memory."),
        **dataclass_keys(Plan, "whole"),
        "warnings": key(list[str], "Where the policy does less than it says."),
    }


def _compared() -> Schema:
    keys = (
        _partition()
        | dataclass_keys(Savings)
        | {
            "baseline": key(str, "The policy that savings are against."),
            "usable": key(
                bool | None, "With --within: whether a token is fast enough; null: unknown."
            ),
            "times_too_slow": key(
                float | None,
                "With --within: how many times too slow; null where usable or unknown.",
            ),
        }
    )
    return record(keys, (*_EXTRAS, "usable", "times_too_slow"))


def _over() -> dict[str, Schema]:
    size = {name: key(int, f"A size of {name}.") for name in ("batch", "seq", "past", "source")}
    best = dataclass_keys(Point, "best", "values")
    change = dataclass_keys(Crossover, "before", "after")
    return {
        **columns(RUN, "model"),
        "over": key(str, "The size that is varied."),
        "unit": key(str, "Of the values: seconds of the run, or bytes of payload."),
        "schedule": key(str, "With --schedule: the one that seconds are of."),
        "points": key(
            listed(record(size | best | _LEFT_OUT, tuple(size))), "The best policy at each size."
        ),
        "crossovers": key(
            listed(record(size | change, tuple(size))), "Where the best policy changes."
        ),
    }


def _cost() -> Schema:
    array = columns(COSTS, "cycles", "tiles") | {
        "useful_macs": key(int | None, "Multiply-accumulates of the products; null off arrays."),
        "padded_macs": key(int | None, "What their tiles hold, padding included; null off arrays."),
    }
    shares = {
        "flops": key(int, "FLOPs of the ops that have them."),
        "traffic_bytes": key(int, "Bytes read and written."),
        "intensity": key(float | None, "FLOPs a byte read or written; null where there is none."),
        "seconds_by_bound": key(Mapping[str, float], "compute, memory, overhead -> seconds."),
    }
    rows = record(dataclass_keys(Share) | {"intensity": shares["intensity"]})
    return record(
        {
            **columns(COSTS, "device", "engine", "execution"),
            **_STORAGE,
            "parameter_bytes": key(int, "Bytes of all parameters as stored, tied weights once."),
            "seconds": key(float, "Of all ops that have seconds there: what a run takes."),
            **_LEFT_OUT,
            "joules": key(
                float | None,
                "Energy of these ops, and of what the device draws meanwhile whatever it does; null "
                "where it has no figure.",
            ),
            "energy_at_least": key(bool, "Whether `joules` leaves out what is not known."),
            "compulsory_bytes": key(
                int, "What every program with these results reads and writes, however it fuses ops."
            ),
            "least_seconds": key(
                float | None,
                "What no such program stays below: those bytes, or the products, at the device's "
                "own rates; null where it has none.",
            ),
            "seconds_coverage": field_key(DeviceTime, "coverage"),
            "missing": field_key(DeviceTime, "missing"),
            "refused_kinds": key(
                Mapping[str, int], "kind -> ops of a kind that the device does not run."
            ),
            **shares,
            **array,
            "double_buffered_cycles": _BUFFERED,
            "host_link": key(str | None, "The link that an array's operands come over."),
            "link_seconds": key(
                float | None, "What it takes for all products' operands and results."
            ),
            **dataclass_keys(MemoryNeed),
            "fits": key(bool | None, "Whether the memory holds all that; null where not known."),
            "paged_share": field_key(DeviceTime, "paged_share"),
            **{
                f"by_{what}": key(listed(rows), f"The same by {what}.")
                for what in ("kind", "layer", "module")
            },
            "table": key(str, "The costs table that was written."),
        },
        tuple(shares),
    )


def _gemm() -> dict[str, Schema]:
    seconds = float | None
    return {
        **columns(COSTS, "device"),
        **{name: key(int, f"{name} of the product [m, k] x [k, n].") for name in ("m", "k", "n")},
        "batch": key(int, "How many such products."),
        **dataclass_keys(Array),
        "count": key(str, "scalesim: the number of the last cycle, from 0; true: how many."),
        "overlap": key(str | None, "Whether folds load while others stream; null of fixed tiles."),
        **dataclass_keys(Options),
        "host_link": key(str | None, "The link to the array's host."),
        **{
            name: key({"type": "integer" if name in _WHOLE else "number"}, schema["description"])
            for name, schema in _gemm_cost().items()
        },
        "double_buffered_cycles": _BUFFERED,
        "total_cycles": key(int | None, "`cycles` and `stall_cycles`; null without buffers."),
        "bound": key(str | None, "compute or dram: what takes longer; null without buffers."),
        **{name: _moved(name, about) for name, about in field_words(MemoryCost).items()},
        "link_seconds": key(seconds, "What operands and result take on the host link."),
        "run_seconds": key(seconds, "Computing and the link, one after another."),
        "overlapped_seconds": key(seconds, "The longer of both: the two at once, at best."),
        **_LEFT_OUT,
        "picojoules": key(
            nullable(record(_levels())),
            "Energy by level, beside what the device draws anyway; null where it has no figures of "
            "operations.",
        ),
        "joules": key(float | None, "All of it that is known; null likewise."),
        "energy_at_least": key(bool, "Whether that leaves out what is not known."),
    }


def _levels() -> dict[str, Schema]:
    about = field_words(Picojoules)
    kinds = dict.fromkeys(about, float | None) | {"sram": Mapping[str, float | None]}
    return {name: key(kinds[name], about[name]) for name in about}


def _design() -> dict[str, Schema]:
    design = columns(DESIGN) | columns(TAKEN)
    device = {
        **columns(COSTS, "device"),
        **columns(DESIGN),
        "dataflow": key(str, "As of a design, or fixed."),
        **columns(TAKEN, "cycles"),
        **dataclass_keys(OnDevice, "stall_cycles"),
        "total_cycles": key(
            int | None, "`cycles` and `stall_cycles`; null where these are not known."
        ),
        **columns(TAKEN, "seconds", "joules"),
        "useful_share": key(
            float, "Of a design's multipliers and cycles, of what fixed tiles multiply."
        ),
        "padding_share": key(float, "Likewise, what is multiplied by padding."),
    }
    for name in ("ifmap_kib", "filter_kib", "ofmap_kib", "dram_bytes_per_second"):
        del device[name]  # of a device these are in its own description
    run = {
        **columns(OF_A_TRACE),
        "macs": key(int, "Multiply-accumulates of all matrix products."),
        "best": key(
            nullable(record(design)),
            "Of those that are small enough and at most 1 % slower than the fastest, the one that takes "
            "the least energy, then area; null where not one is small enough.",
        ),
        "device": key(nullable(record(device)), "The run on --device; null without."),
        "limit": key(str | None, "What limits the best design, and what doubles its speed."),
        "times_as_fast": key(
            Mapping[str, float],
            "Of the best design: what there is twice as much of -> its speedup.",
        ),
        "device_limit": key(str | None, "Likewise of the device; null without one."),
        "device_times_as_fast": key(Mapping[str, float], "Likewise of the device."),
        "pareto": key(listed(record(design)), "The designs that no other one is better than."),
    }
    return {
        "designs": key(int, "How many designs there are."),
        "points": key(int, "Designs times runs."),
        **columns(DESIGNS, "dtype", "overlap"),
        "area_figures": key(str, "What the area figures are called."),
        "energy_figures": key(str, "What the energy figures are called."),
        "max_square_millimetres": key(float | None, "What a design may have; null for no limit."),
        "compared": key(list[str], "What makes one design better than another."),
        "runs": key(listed(record(run)), "One for each model and size."),
        "files": key(list[str], "What was written, with --out and --report."),
    }


def _moved(name: str, about: str) -> Schema:
    """Of a field of ``MemoryCost``: cycles, or words by operand."""
    kind = int | None if name.endswith("cycles") else dict[str, int] | None
    return key(kind, f"{about.rstrip('.')}; null without buffers.")


_BUFFERED = key(
    int | None,
    "What fixed tiles take where one computes while the next comes in and the one before goes out; "
    "null where it is not known what their cycles hold.",
)

_WHOLE = ("tiles", "cycles", "useful_macs", "padded_macs", "sent_bytes", "received_bytes")


def _gemm_cost() -> dict[str, Schema]:
    return {name: key(float, about) for name, about in field_words(GemmCost).items()}


def _generation() -> dict[str, Schema]:
    seconds, share = float | None, "Null where not all of it is known."
    return {
        **columns(RUN, "model"),
        "dtype": key(str, "Of parameters and activations."),
        "batch": key(int, "Sequences."),
        "prompt": key(int, "Tokens of the prompt."),
        "cached_prompt": key(int, "Of these, the tokens that lie in the cache already."),
        "new": key(int, "Tokens that are made; the prefill makes the first."),
        "machine": key(str, "Home, accelerator and link."),
        "wire_dtype": key(str | None, "What floats cross in; null for their own dtypes."),
        **columns(SUMMARY, "pack"),
        **columns(RUN, "residency"),
        "policy": key(str, "What placed the prefill."),
        "decode_policy": key(str, "What placed the steps after it."),
        **{
            name: key(bool | None, f"Whether no allowed {what} costs less; null without objective.")
            for name, what in (("optimal", "prefill"), ("decode_optimal", "first step"))
        },
        "placed_at_past": key(int, "The cached tokens at which the steps were placed."),
        "draft": key(str | None, "The model that proposes tokens; null without one."),
        "draft_weights": key(str | None, "What its weights are stored in; null for their dtype."),
        "draft_tokens": key(int | None, "How many it proposes a round."),
        "accept": key(float | None, "How likely a proposed token is taken."),
        "expected_tokens": key(float | None, "Tokens that a round is expected to make."),
        "calls": key(int, "Of the prefill and of all steps."),
        "total_payload_bytes": key(int, "All that crosses: prefill, cache that moves, steps."),
        **columns(SUMMARY, "payload_status"),
        "prefill_payload_bytes": key(int, "What crosses in the prefill."),
        "moved_cache_bytes": key(int, "Of the cache, what decode reads on another device."),
        "cache_bytes": key(int, "Cached state after the last step."),
        "ttft_seconds": key(seconds, f"Until the first token: the prefill. {share}"),
        **{
            f"tpot_{which}_seconds": key(seconds, f"Of {what} after the first. Null without any.")
            for which, what in (
                ("first", "the first token"),
                ("last", "the last token"),
                ("mean", "a token, on average,"),
            )
        },
        "total_seconds": key(seconds, f"Prefill, moving cache and steps, in turn. {share}"),
        "tokens_per_second": key(seconds, f"New tokens of all sequences by all seconds. {share}"),
        **_LEFT_OUT,
        "ttft_joules": key(seconds, "Energy of the prefill. Null where it is not known."),
        **{
            f"step_{which}_joules": key(seconds, f"Energy of {what}. Null without any.")
            for which, what in (
                ("first", "the first token after the first"),
                ("last", "the last token"),
                ("mean", "a token after the first, on average"),
            )
        },
        "total_joules": key(seconds, f"Energy of prefill, moving cache and steps. {share}"),
        "joules_per_token": key(seconds, "`total_joules` over the tokens of all sequences."),
        "energy_at_least": key(bool, "Whether these leave out what is not known."),
        "last_step_saves_bytes": key(
            int | None, "What the last step would save, placed for itself; null without objective."
        ),
        "last_step_saves_seconds": key(seconds, "The same in seconds."),
        "warnings": key(
            list[str],
            "What holds at some of the steps, what of the machine cannot be so, and where a policy "
            "does less than it says in a phase.",
        ),
    }


def _params() -> dict[str, Schema]:
    part = record(dataclass_keys(Count) | {"total": key(int, "Both.")})
    parts: Schema = {"type": "object", "additionalProperties": part}
    words = dataclass_keys(Breakdown, "tied", "unread")
    heads = int | None
    return {
        **columns(RUN, "model"),
        **dataclass_keys(TraceMeta, "model_class"),
        "not_run": _not_run(),
        **_parameters(),
        "parts": key(parts, "Part of the model -> its parameters."),
        "lm_head_tied_params": words["tied"],
        "unread_params": words["unread"],
        "attention": key(str | None, "MHA, GQA or MQA; null where the graph does not show it."),
        "query_heads": key(heads, "Heads of queries; null where the graph does not show them."),
        "kv_heads": key(heads, "Heads of keys and values; null likewise."),
        "layers": key({"type": "object", "additionalProperties": parts}, "Layer -> its parts."),
    }


def _limits() -> dict[str, Schema]:
    return {
        **columns(RUN, "model"),
        **columns(COSTS, "device"),
        "compute_dtype": key(str, "The dtype whose peak the device computes at."),
        "units": key(str, "true: counts; reference: parameters in 2**30, cached values in 2**20."),
        **_STORAGE,
        "weight_bits": key(float, "Bits a parameter, on average over what linears read."),
        "kv_bits": key(float, "Bits a cached value."),
        "prompt": key(int, "Tokens of the prompt."),
        **_parameters(),
        **dataclass_keys(Limits),
    }


def _device() -> Schema:
    fields = {name: about for name, about in dataclass_keys(Device).items() if name != "name"}
    array = dataclass_keys(Array) | {
        "peak_flops_per_second": key(float, "What a product that leaves no cell idle reaches.")
    }
    return record(
        {
            **columns(COSTS, "device"),
            **fields,
            "device": key(str, "The device's name."),
            "array": key(
                {"anyOf": [record(array), {"type": "null"}]}, fields["array"]["description"]
            ),
            "ridge_flops_per_byte": key(
                Mapping[str, float],
                "dtype -> FLOPs a byte of memory traffic above which compute is the bound.",
            ),
        }
    )


def _link() -> Schema:
    fields = dataclass_keys(Link)
    known = {name: key(_or_null(fields[name]), fields[name]["description"]) for name in FIGURES}
    return record(
        {
            "link": fields["name"],
            "description": fields["description"],
            **known,
            "sources": fields["sources"],
        }
    )


def _or_null(schema: Schema) -> Schema:
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    kinds = ["number" if kind == "integer" else kind for kind in kinds]
    return {"type": list(dict.fromkeys([*kinds, "null"]))}


def _verify() -> Schema:
    measured = {
        "run": "The whole run.",
        "home": "Computing at home.",
        "accelerator": "Computing on the accelerators.",
    }
    both: dict[str, Schema] = {}
    for part, about in measured.items():
        both[f"{part}_seconds_predicted"] = key(float | None, f"{about} Null where not known.")
        both[f"{part}_seconds_measured"] = key(float, about)
    return record(
        {
            **columns(SUMMARY, "policy", "link"),
            **columns(RUN, "wire"),
            **columns(SUMMARY, "wire_dtype", "residency"),
            **dataclass_keys(Verdict),
            "bytes_equal": key(bool, "Whether each transfer and call was as predicted."),
            "answer_equal": key(
                bool, "Whether the results are the unsplit model's, within tolerance."
            ),
            **both,
            **_LEFT_OUT,
            "seconds_predicted": columns(SUMMARY, "seconds")["seconds"],
            "seconds_measured": key(float, "Of all transfers."),
            "load_seconds": key(
                Mapping[str, float], "Accelerator -> handing plan and weights to its worker."
            ),
            "peak_memory_bytes": key(_COUNTS, "Device -> the most memory that its process had."),
            "ran_on": key(Mapping[str, str], "Device -> what its ops ran on here."),
            "measured_calls": key(str, "The table of measured calls that was written."),
            "secrets": key(
                SecrecyProof | None, "What was shown of the policy's secrets; null without any."
            ),
            "masks": key(
                MaskProof | None, "What was shown of what masks hide; null where no op is masked."
            ),
            "packed": key(
                {
                    "anyOf": [
                        record(
                            {
                                **dataclass_keys(Packed, "max_abs_difference"),
                                "is_lossless": key(
                                    bool, "Whether packing gives back what it was given."
                                ),
                                "groups": key(
                                    listed(
                                        record(
                                            {
                                                **dataclass_keys(PackedGroup),
                                                "ratio": key(
                                                    float, "Packed bytes over bytes, as measured."
                                                ),
                                            }
                                        )
                                    ),
                                    "What crossed packed, alike tensors together.",
                                ),
                            }
                        ),
                        {"type": "null"},
                    ]
                },
                "What packing did; null where nothing was packed.",
            ),
        }
    )


def _policy() -> Schema:
    anything = {"type": "array", "items": {"type": ["string", "integer"]}}
    rule = dataclass_keys(Rule, "place", "weights_at", "reason", "optional")
    secret = dataclass_keys(Secret, "reason", "optional", "derived", "allow_masked")

    def conditions(names: tuple[str, ...]) -> dict[str, Schema]:
        return {name: key(anything, f"Condition: {name}; any of these.") for name in names}

    own = dataclass_keys(Policy, "description", "default", "objective", "cut")
    of_rules, of_secrets = conditions(OF_OPS), conditions(OF_SECRETS)
    protect = dataclass_keys(Protect, "reason", "optional") | dataclass_keys(Protection)
    of_packs, pack = (
        conditions(tuple(OF_TENSORS)),
        dataclass_keys(SizedPacking, "at_least_bytes") | dataclass_keys(Pack, "reason", "optional"),
    )
    pack["packing"] = key(
        str, "The packing, by name; with best the several of which the fastest is taken."
    )
    return record(
        {
            "policy": field_key(Policy, "name"),
            **own,
            "secrets": key(
                listed(record(of_secrets | secret, (*of_secrets, "derived", "allow_masked"))),
                "What accelerators that are not trusted may not see.",
            ),
            "rules": key(
                listed(record(of_rules | rule, (*of_rules, "weights_at"))),
                "The first that matches an op places it.",
            ),
            "protects": key(
                listed(record(of_rules | protect, (*of_rules,))),
                "Which ops run masked where they are away: the first that names an op decides.",
            ),
            "packs": key(
                listed(record(of_packs | pack, (*of_packs,))),
                "What crosses packed: the first that names a tensor, and can pack it, does.",
            ),
        }
    )


def _models() -> Schema:
    heads = {
        "type": "The model_type of its config.",
        "layers": "Blocks of the decoder or encoder.",
        "hidden": "Width of the hidden states.",
        "heads": "Heads of queries.",
        "kv_heads": "Heads of keys and values.",
        "vocabulary": "Tokens that it knows.",
        "positions": "Longest sequence that its config names.",
        "experts": "Experts that a token goes to, of all; null of a dense model.",
    }
    assert list(heads) == list(describe({}))
    return record(
        {
            "model": key(str, "The name for trace."),
            **{
                name: key((str if name in ("type", "experts") else int) | None, about)
                for name, about in heads.items()
            },
            "config": key(_ANY_OBJECT, "Its config, as in a config.json."),
        }
    )


def _checked() -> dict[str, Schema]:
    words = dataclass_keys(Checked, "phase", "refused")
    return {
        **columns(RUN, "model"),
        **dataclass_keys(TraceMeta, "model_class"),
        "phases": key(
            listed(
                record(
                    {
                        **words,
                        "tried": key(
                            listed(
                                record(
                                    {
                                        "way": key(str, "A way of tracing."),
                                        "failure": key(
                                            str | None, "Why it failed; null where it held."
                                        ),
                                    }
                                )
                            ),
                            "Ways of tracing, one after the other until one held.",
                        ),
                        "symbolic": key(
                            list[str] | None, "The sizes that formulas are in; null: refused."
                        ),
                        "ops": key(int | None, "How many ops there are; null likewise."),
                        "repeated_layers": key(
                            int | None, "Layers that are copies of a traced one."
                        ),
                        "unrepeated_reason": key(
                            str | None, "Why every layer was traced; null where copies serve."
                        ),
                        "coverage": key(
                            float | None, "Share of the ops that work with known FLOPs."
                        ),
                        "unsupported": key(
                            Mapping[str, int] | None, "Target of ops without a formula -> how many."
                        ),
                        "notes": key(list[str], "At which other sizes the trace holds, in words."),
                    }
                )
            ),
            "Each phase of the model, and how far it can be traced.",
        ),
    }


def _written() -> dict[str, Schema]:
    return {"file": key(str, "The file that was written."), "bytes": key(int, "Its size.")}


def _graph() -> dict[str, Schema]:
    return {
        **columns(RUN, "model"),
        "policy": key(str | None, "The partition that is drawn; null for the graph alone."),
        "ops": key(int, "How many ops there are."),
        "edges": key(int, "How many edges between ops there are."),
    }


def _products() -> dict[str, Schema]:
    return {**columns(RUN, "model"), "products": key(int, "How many matrix products there are.")}


def _timeline() -> dict[str, Schema]:
    return {
        **_written(),
        **columns(SUMMARY, "policy"),
        "timelines": key(
            listed(
                record(
                    {
                        "name": key(str, "predicted or measured."),
                        "seconds": key(float, "How long it is."),
                        "at_least": _LEFT_OUT["at_least"],
                        "tracks": key(list[str], "Rows of slices: devices, and links each way."),
                        **{
                            f"{what}s": key(int, f"Slices of {what}s.")
                            for what in ("call", "transfer", "op")
                        },
                    }
                )
            ),
            "What the file shows.",
        ),
    }


def _calibrated() -> dict[str, Schema]:
    return {
        "link_file": key(str, "The link file that was written."),
        **dataclass_keys(Calibration),
        "measured_total_seconds": key(float, "Of all calls."),
        "fitted_total_seconds": key(float, "What the equations say of all calls."),
    }


def _calibrated_ops() -> dict[str, Schema]:
    residual = dataclass_keys(Residual) | {
        "relative": key(float, "What is fitted over what was measured, less 1.")
    }
    return {
        "about": key(str, "What was measured, in a line."),
        "files": key(listed(record(dataclass_keys(Written))), "The files that were written."),
        "residuals": key(listed(record(residual)), "Of ops with their shapes, or of rows."),
        "measured_total_seconds": key(float, "Of all that was fitted."),
        "fitted_total_seconds": key(float, "What the figures say of it."),
        "left_out_seconds": key(
            Mapping[str, float], "Op or kernel of a profile that is not counted -> its seconds."
        ),
        "equations": key(
            tuple[Fit, ...], "Of the copies of a profile, one each way, as for a log of calls."
        ),
        "warnings": key(list[str], "What the measurements cannot tell, in sentences."),
    }


def _table() -> dict[str, Schema]:
    return {"table": key(str, "The table's name."), **_written()}


def _rows(name: str, row: Schema, about: str) -> dict[str, Schema]:
    return {name: key(listed(row), about)}


def _shapes() -> dict[str, tuple[str, dict[str, Schema], tuple[str, ...]]]:
    """Command (with what makes it answer otherwise) -> (title, keys, those not always there)."""
    return {
        "trace": ("What was traced.", _trace(), ()),
        "partition": ("A placement and what it moves.", _partition(), _EXTRAS),
        "partition-plan": ("With --mix or --frontier: a plan of memory.", _plan(), ()),
        "compare": (
            "Placements side by side.",
            _rows("partitions", _compared(), "One for each trace directory and policy."),
            (),
        ),
        "compare-over": ("With --over: the best policy at each size.", _over(), ("schedule",)),
        "generate": ("A whole generation.", _generation(), ()),
        "sweep": ("What a sweep made.", dataclass_keys(Swept), ()),
        "report": (
            "A page.",
            {
                "page": key(str, "The page that was written."),
                "pictures": key(list[str], "Its drawings, with --png."),
                "headlines": key(Mapping[str, str], "Policy -> the headline of its sheet."),
            },
            (),
        ),
        "verify": (
            "Runs against predictions.",
            _rows("runs", _verify(), "One for each policy."),
            (),
        ),
        "query": (
            "The answer to a query.",
            {
                "columns": key(list[str], "The names of the columns, in order."),
                "rows": key(listed(_ANY_OBJECT), "Each row: column -> value."),
            },
            (),
        ),
        "export-perfetto": ("A timeline.", _timeline(), ()),
        "export-model-explorer": (
            "A graph for Model Explorer.",
            _graph()
            | {
                "files": key(listed(record(_written())), "The graph, and node data to lay over it.")
            },
            (),
        ),
        "export-graphml": ("A graph.", _graph() | _written(), ()),
        "export-dot": ("A graph.", _graph() | _written(), ()),
        "export-placement": (
            "A placement in the words of an executor.",
            {
                **dataclass_keys(Words, "executor", "policy", "text", "exact"),
                "beside": key({"type": "object"}, field_words(Words)["beside"]),
                "stopped_ops": field_key(Words, "stopped"),
                **dataclass_keys(Words, "stops", "payload_bytes", "nearest_payload_bytes"),
                "file": key(str | None, "With --out: the file that was written."),
            },
            (),
        ),
        "export-scalesim": (
            "The matrix products and an array, for SCALE-Sim.",
            _products() | {"files": key(listed(record(_written())), "What was written.")},
            (),
        ),
        "export-stream": (
            "The products, and what lies between them, for Stream.",
            _products() | _written(),
            (),
        ),
        "export-zigzag": ("The matrix products, for ZigZag.", _products() | _written(), ()),
        "export-csv": ("A table.", _table(), ()),
        "export-json": ("A table.", _table(), ()),
        "cost": (
            "What a trace takes on devices.",
            _rows("costs", _cost(), "One for each device."),
            (),
        ),
        "limits": ("How fast a model can be at best.", _limits(), ()),
        "params": ("Where a model's parameters are.", _params(), ()),
        "models": (
            "Models that are known by name.",
            _rows("models", _models(), "One for each model."),
            (),
        ),
        "models-check": ("With --check: how far a model can be traced.", _checked(), ()),
        "policies": ("Policies.", _rows("policies", _policy(), "One for each policy."), ()),
        "devices": ("Devices.", _rows("devices", _device(), "One for each device."), ()),
        "gemm": ("One matrix product on an array.", _gemm(), ()),
        "design": ("Designs of a chip for models.", _design(), ()),
        "links": ("Links.", _rows("links", _link(), "One for each link."), ()),
        "calibrate": ("A link fitted to measured calls.", _calibrated(), ()),
        "calibrate-ops": (
            "Devices, engines and links fitted to a profile or a benchmark.",
            _calibrated_ops(),
            (),
        ),
        "error": (
            "On standard error: why a command failed.",
            {
                "error": key(str, "The thing and the fix, in a line."),
                "exit_code": key(int, "1: a sound request failed on the way; 2: it was wrong."),
            },
            (),
        ),
        "warning": (
            "On standard error, an object a line.",
            {"warning": key(str, "What to be aware of.")},
            (),
        ),
    }


def schemas() -> dict[str, Schema]:
    """Name -> the schema of what ``cutedge NAME --json`` prints."""
    version: dict[str, Any] = {
        "description": "Of this shape: one more where a key goes or means another thing.",
        "const": JSON_VERSION,
    }
    return {
        name: {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": title,
            **record({"version": version, **keys}, optional),
        }
        for name, (title, keys, optional) in _shapes().items()
    }


def texts() -> dict[str, str]:
    """The files, by their path in the repository."""
    return {
        f"{FOLDER}/{name}.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        for name, schema in schemas().items()
    }


if __name__ == "__main__":
    write(texts())
