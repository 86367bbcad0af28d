"""The command that goes over a grid of models, sizes, policies and machines."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from cli.app import command, say, warn
from cli.options import Json
from cutedge.sweeping import BackendName

Texts = list[str] | None

Numbers = "also 64..4096 (its doubles), 64..4096:64 (steps)"


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
