"""The command that goes over a grid of models, sizes, policies and machines."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from cli import complete
from cli.app import command, say, warn
from cli.options import Json, Settings
from cutedge.sweeping import BackendName

Texts = list[str] | None

Numbers = "also 64..4096 (its doubles), 64..4096:64 (steps)"
_TOKENS = f"New tokens of a prefill, with commas; {Numbers}; none: the model's own size."
_BUFFERS = "KiB of an array's buffers: a third each, or each (left+right+result: 16+64+16)."


def _many(help: str, *names: str) -> Any:
    return Option(*names, help=f"{help}; again for another.")


@command("cutedge sweep llama-3.2-1b --seq 64..4096 --policy min-cut --policy layers")
def sweep(
    model: Annotated[Texts, Argument(metavar="MODEL", help="As for trace, one or more.")] = None,
    grid: Annotated[
        Path | None,
        Option(help="A .toml file with the same keys as the options; options go before it."),
    ] = None,
    phase: Annotated[Texts, _many("prefill, decode or encoder")] = None,
    batch: Annotated[Texts, _many(f"Sequences; {Numbers}")] = None,
    seq: Annotated[Texts, _many("New tokens a sequence in a prefill, as --batch")] = None,
    past: Annotated[Texts, _many("Cached tokens, as --batch")] = None,
    new: Annotated[
        Texts, _many("Tokens of a whole generation after --seq ones, as --batch")
    ] = None,
    policy: Annotated[Texts, _many("A policy's name, or a .toml file")] = None,
    decode_policy: Annotated[
        Texts, _many("With --new: of the steps; --policy when left out")
    ] = None,
    wire_dtype: Annotated[Texts, _many("What floats cross in; native: their own dtypes")] = None,
    pack: Annotated[Texts, _many("As for partition, range+q8_0 is both; none: nothing")] = None,
    residency: Annotated[Texts, _many("run or call")] = None,
    home: Annotated[Texts, _many("As for partition")] = None,
    accel: Annotated[Texts, _many("As for partition, one in each point")] = None,
    pair: Annotated[Texts, _many("HOME+ACCEL, in place of each --home with each --accel")] = None,
    link: Annotated[Texts, _many("A link's name, or a .toml file")] = None,
    pipeline_depth: Annotated[Texts, _many("Of arrays, as for cost")] = None,
    int8_speedup: Annotated[Texts, _many("Of arrays, as for cost, or none")] = None,
    sparsity: Annotated[Texts, _many("Of arrays, as for cost")] = None,
    sparsity_speedup: Annotated[Texts, _many("Of arrays, as for cost, or none")] = None,
    chips: Annotated[Texts, _many("Of arrays, as for cost")] = None,
    engine: Annotated[Texts, _many("As for partition; none: the physical bound")] = None,
    execution: Annotated[Texts, _many("eager, graph or fused, as for partition")] = None,
    weights_at: Annotated[Texts, _many("home or device, as for partition")] = None,
    schedule: Annotated[Texts, _many("serial or overlap, as for partition, or none")] = None,
    requests: Annotated[Texts, _many("With --schedule: runs in flight, as --batch")] = None,
    dtype: Annotated[str | None, Option(help="As for trace.")] = None,
    attn: Annotated[str | None, Option(help="As for trace.")] = None,
    logits: Annotated[str | None, Option(help="As for trace.")] = None,
    weights: Annotated[Texts, _many("As for cost; none: as the config says")] = None,
    kv_dtype: Annotated[Texts, _many("As for cost; none: as the config says")] = None,
    time_limit: Annotated[
        float, Option(min=0.1, help="Seconds that a search for one optimum may take.")
    ] = 60.0,
    backend: Annotated[
        BackendName, Option(help="local: processes of this machine; dask, ray: a cluster's.")
    ] = "local",
    scheduler: Annotated[
        str | None, Option(help="The address of the cluster: tcp://10.0.0.2:8786.")
    ] = None,
    jobs: Annotated[
        int | None, Option(min=1, help="Local processes; one a core when left out.")
    ] = None,
    out: Annotated[Path | None, Option(help="Directory for the data set.")] = None,
    as_json: Json = False,
) -> None:
    """Work out every point of a grid into one data set; what is there is not done again."""
    options = {key: value for key, value in locals().items() if key != "as_json"}
    import cutedge
    from cli.printing import print_json, print_table
    from tracer.words import counted

    made = cutedge.sweep(**options, warn=warn)
    if as_json:
        print_json(asdict(made))
        return
    say(
        f"{made.rows:,} points in {counted(made.files, 'file')}; {made.files_kept} of these files "
        "were there already"
    )
    print_table("placement, points>", [(how, f"{count:,}") for how, count in made.placed.items()])
    say(f"written to {made.folder}")


@command("cutedge design tinyllama-1.1b --seq 1,128 --rows 4..64 --columns 4..64 --max-area 2")
def design(
    model: Annotated[list[str], Argument(metavar="MODEL", help="As for trace, one or more.")],
    seq: Annotated[str, Option(help=_TOKENS)] = "1,128",
    past: Annotated[str | None, Option(help="Cached tokens, as --seq.")] = None,
    phase: Annotated[
        Literal["prefill", "decode", "encoder"], Option(help="As for trace.")
    ] = "prefill",
    rows: Annotated[str, Option(help="Of a systolic array, as --seq.")] = "8..64",
    columns: Annotated[str, Option(help="Likewise.")] = "8..64",
    arrays: Annotated[str, Option(help="How many, on one DRAM, as --seq.")] = "1",
    dataflow: Annotated[str, Option(help="What stays in the cells: os, ws, is.")] = "os,ws,is",
    sram_kib: Annotated[str, Option(help=_BUFFERS)] = "24..384",
    dram_gb_per_second: Annotated[str | None, Option(help="As --seq; 6.4 when left out.")] = None,
    dram_words_per_cycle: Annotated[str | None, Option(help="In its place: elements.")] = None,
    clock_mhz: Annotated[str, Option(help="As --seq.")] = "500",
    dtype: Annotated[str, Option(help="Of all elements.")] = "int8",
    overlap: Annotated[Literal["none", "double-buffered"], Option(help="As for gemm.")] = "none",
    device: Annotated[
        str | None,
        Option(help="An array beside designs no larger.", autocompletion=complete.devices),
    ] = None,
    max_area: Annotated[float | None, Option(help="Square millimetres, at most.")] = None,
    pareto: Annotated[str, Option(help="What is compared.")] = "seconds,joules,area",
    area: Annotated[str, Option(help="Area figures, or a .toml file.")] = "dally-45nm",
    energy: Annotated[str, Option(help="Energy figures, or a .toml file.")] = "horowitz-45nm",
    overrides: Settings = None,
    out: Annotated[Path | None, Option(help="Directory for designs.parquet: all points.")] = None,
    report: Annotated[Path | None, Option(help="A page with a chart of each run.")] = None,
    as_json: Json = False,
) -> None:
    """Work out every design of a chip for models: which are best, what limits them, what doubles it."""
    options = {k: v for k, v in locals().items() if k not in ("out", "report", "as_json")}
    import cutedge
    from cli.printing import print_all, print_json
    from cutedge._design_words import shown

    made = cutedge.design(**options)
    warn(*made.warnings)
    written = [made.save(out)] if out else []
    written += [made.report(report)] if report else []
    if as_json:
        print_json({**made.summary, "files": [str(path) for path in written]})
    else:
        print_all(shown(made, written))
