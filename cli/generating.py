"""The command that follows a whole generation: a prompt, then token after token."""

from dataclasses import asdict
from typing import Annotated, Literal

from typer import Option

from cli import complete
from cli.app import command, say, warn
from cli.options import Costs, Json, MachineOptions, Model, Search, Settings

Policy = Annotated[
    str | None,
    Option(help="As --policy, for the steps after the prefill.", autocompletion=complete.policies),
]


Proposer = Annotated[
    str | None, Option(help="A smaller model that proposes tokens.", autocompletion=complete.models)
]


@command("cutedge generate llama-3.2-1b --prompt 1024 --new 256 --policy fuse-attention")
def generate(
    model: Model,
    machine: MachineOptions,
    timing: Costs,
    search: Search,
    prompt: Annotated[int, Option(min=1, help="Tokens of the prompt.")] = 1024,
    new: Annotated[int, Option(min=1, help="Tokens to make; the prefill makes the first.")] = 256,
    policy: Annotated[
        str, Option(help="A policy's name, or a .toml file.", autocompletion=complete.policies)
    ] = "offload-linear",
    decode_policy: Policy = None,
    cached_prompt: Annotated[
        int, Option(min=0, help="Tokens of the prompt that lie in the cache already.")
    ] = 0,
    draft: Proposer = None,
    draft_weights: Annotated[
        str | None, Option(help="What the weights of --draft are stored in, as --weights.")
    ] = None,
    accept: Annotated[
        float | None, Option(help="How likely a token of --draft is taken, 0 to 1.")
    ] = None,
    tokens: Annotated[int, Option(min=1, help="Tokens that --draft proposes a round.")] = 4,
    batch: Annotated[int, Option(min=1, help="Sequences.")] = 1,
    dtype: Annotated[str | None, Option(help="As for trace.")] = None,
    attn: Annotated[Literal["eager", "sdpa"], Option(help="As for trace.")] = "eager",
    overrides: Settings = None,
    as_json: Json = False,
) -> None:
    """Say what a whole generation takes: time to the first token, time a token, bytes, calls."""
    groups = {**asdict(machine), **asdict(timing), **asdict(search)}
    options = {"prompt": prompt, "new": new, "policy": policy, "decode_policy": decode_policy}
    more = {"cached_prompt": cached_prompt, "draft": draft, "accept": accept, "tokens": tokens}
    more["draft_weights"] = draft_weights
    traced = {"batch": batch, "dtype": dtype, "attn": attn, "overrides": overrides}
    import cutedge
    from cli.printing import print_json, print_table
    from cutedge._rows import generation_rows
    from cutedge._words import generation_sentences

    made = cutedge.generate(model, **options, **more, **traced, **groups)  # type: ignore[arg-type]
    warn(*made.warnings)
    if as_json:
        print_json(made.summary)
        return
    first, *others = generation_sentences(made)
    say(f"{first}\n")
    print_table(*generation_rows(made))
    for line in ("", *others):
        say(line)
