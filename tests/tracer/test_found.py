"""Configs as they are found, old, damaged and of vendors: traced rightly, or a line that leads on.

The files are written by hand in the forms that are met; sizes and counts of parameters are those
that are published of the models.
"""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.checkpoints import storage_of
from tests.support import ROOT
from tests.support.configs import LLAMA
from tests.support.examples import examples
from tests.support.inprocess import invoke
from tests.support.traces import captured
from tracer.capture import capture, quiet
from tracer.capture.models import build, settle
from tracer.errors import CutedgeError, InputError
from tracer.presets import find_config

FOLDER = ROOT / "tests" / "reference" / "configs"

LLAMA_7B = 2 * 32000 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096
MISTRAL_7B = 7_241_732_096
READ_AS = "read as numbers, which its config has as texts: "

BUILT: dict[str, tuple[str, int, str]] = {
    "llama-2-rope-null": ("LlamaForCausalLM", LLAMA_7B, ""),
    "vicuna-linear": ("LlamaForCausalLM", LLAMA_7B, ""),
    "linear-factor-as-text": ("LlamaForCausalLM", LLAMA_7B, f"{READ_AS}rope_scaling.factor '4.0'"),
    # sixteen more words, in the table and in the head
    "codellama-theta-as-text": (
        "LlamaForCausalLM",
        LLAMA_7B + 2 * 16 * 4096,
        f"{READ_AS}rope_theta '1000000'",
    ),
    "llama-3.1-rope": ("LlamaForCausalLM", 8_030_261_248, ""),
    "tinyllama-utf16": ("LlamaForCausalLM", 1_100_048_384, ""),
    "llama-mlx": ("LlamaForCausalLM", LLAMA_7B, ""),
    "mistral-yarn": ("MistralForCausalLM", MISTRAL_7B, ""),
    "mistral-gptq": ("MistralForCausalLM", MISTRAL_7B, ""),
    "mixtral-capital-type": (
        "MixtralForCausalLM",
        46_702_792_704,
        "knows no model_type 'Mixtral': it is traced as mixtral, the type of MixtralForCausalLM",
    ),
    "phi-3-su": ("Phi3ForCausalLM", 3_821_079_552, ""),
    "bert-byte-order-mark": ("BertForMaskedLM", 109_514_298, ""),
    "gpt2-no-type": (
        "GPT2LMHeadModel",
        124_439_808,
        "its config has no model_type: it is traced as gpt2, the type of GPT2LMHeadModel",
    ),
    "opt-no-type": ("OPTForCausalLM", 125_239_296, "its config has no model_type"),
    "pythia-own-type": (
        "GPTNeoXForCausalLM",
        162_322_944,
        "knows no model_type 'pythia': it is traced as gpt_neox, the type of GPTNeoXForCausalLM",
    ),
    "falcon-auto-map": ("FalconForCausalLM", 6_921_720_704, ""),
    "deepseek-v2-auto-map": ("DeepseekV2ForCausalLM", 15_706_484_224, ""),
    "qwen2-old-window": ("Qwen2ForCausalLM", 494_032_768, ""),
    "gemma-two-activations": ("GemmaForCausalLM", 2_506_172_416, ""),
    "distilbert-own-names": ("DistilBertForMaskedLM", 66_985_530, ""),
    "roberta-no-architectures": ("RobertaForCausalLM", 124_697_433, ""),
    "whisper-tiny": ("WhisperForConditionalGeneration", 37_760_640, ""),
    # published with a head of 1000 classes, 86,567,656; here it has ten
    "vit-labels": ("ViTForImageClassification", 86_567_656 - 990 * (768 + 1), ""),
    "clip-twice": ("CLIPModel", 151_277_313, ""),
    "bloom-own-names": ("BloomForCausalLM", 559_214_592, ""),
}
"""Config -> (the class of the model, its parameters, what is said of the config)."""

REFUSED: dict[str, tuple[str, ...]] = {
    "baichuan": (
        "knows no model_type 'baichuan', and no architecture BaichuanForCausalLM",
        "(modeling_baichuan.BaichuanForCausalLM) is not run",
        "file.py:function",
    ),
    "refined-web": ("'RefinedWebModel'", "(modelling_RW.RWForCausalLM)", "file.py:function"),
    "class-misspelt": ("Is it GPTNeoForCausalLM (a gpt_neo)",),
    "llama-first-spelling": ("--set architectures=LlamaForCausalLM",),
    "mpt-own-spelling": ("--set architectures=MptForCausalLM",),
    "t5-positions": ("--set architectures=T5ForConditionalGeneration",),
    "layers-null": ("num_hidden_layers is null, expected int",),
    "meta-params": ("no model_type", 'add one, such as "model_type": "llama"'),
    "two-values": ("it has two values for 'hidden_size'",),
    "git-lfs": ("git lfs pull",),
    "web-page": ("is a page of HTML",),
    "adapter": ("is an adapter of someone/base-7b", "trace that"),
    "trailing-comma": ("is not valid JSON", "line 1"),
    "empty": ("it is empty",),
    "list": ("is no table of fields",),
}
"""Config -> what the line has that refuses it."""

HELPED = {
    "dynamic-rope": "--set rope_scaling=null",
    "unknown-rope": "--set rope_scaling=null",
    "padding-outside": "--set pad_token_id=0",
    "heads-as-text": "--set num_attention_heads=4",
    "unknown-activation": "--set hidden_act=silu",
}
"""Config -> the option with which it is traced."""


def test_every_config_of_the_folder_is_here() -> None:
    names = [*BUILT, *REFUSED, *HELPED]
    assert len(names) == len(set(names)) >= 40
    assert sorted(names) == sorted(file.stem for file in FOLDER.iterdir())


@pytest.mark.parametrize("name", BUILT)
def test_the_model_is_the_published_one(name: str) -> None:
    wanted, parameters, says = BUILT[name]
    _, config = find_config(str(FOLDER / f"{name}.json"))
    with quiet():
        notes = settle(config, {}, model=name)[1]
        module = build(config, {}, model=name, dtype="float32", attn="eager")
    assert type(module).__name__ == wanted
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters
    assert says in " ".join(notes)
    assert bool(says) == any("n_ctx" not in note for note in notes)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT)
def test_it_is_traced(name: str, tmp_path: Path) -> None:
    if name == "clip-twice":
        pytest.skip("its towers are traced each alone")
    sizes = () if name == "vit-labels" else ("--seq", "8")
    file = FOLDER / f"{name}.json"
    done = invoke("trace", file, *sizes, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert f"({BUILT[name][0]})" in done.stdout
    assert BUILT[name][2] in " ".join(done.stderr.split())


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_model_that_is_known_leads_on(name: str, tmp_path: Path) -> None:
    done = invoke("trace", FOLDER / f"{name}.json", "--out", tmp_path / "out")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("error: ")
    for text in REFUSED[name]:
        assert text in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", HELPED)
@pytest.mark.few(1)
def test_an_option_that_is_advised_helps(name: str) -> None:
    _, config = find_config(str(FOLDER / f"{name}.json"))
    with pytest.raises(InputError) as refused:
        capture(config, model="m", seq=8, symbolic=False)
    assert str(refused.value).endswith(f" It is traced with {HELPED[name]}.")
    key, value = HELPED[name].removeprefix("--set ").split("=")
    (overrides,) = [{key: json.loads(value) if value != "silu" else value}]
    captured(config, model="m", seq=8, symbolic=False, overrides=overrides)


def test_an_option_that_does_not_help_is_not_advised() -> None:
    """Without its rotary scaling it has still an activation that is not known."""
    odd = {"rope_scaling": {"type": "spiral"}, "hidden_act": ["gelu"]}
    refused = refusal({**LLAMA, **odd})
    assert refused
    assert "It is traced with" not in refused
    assert "rope_scaling=null" not in refused


def refusal(config: dict[str, Any], **options: Any) -> str:
    """What is said of a config that is not traced; empty for one that is."""
    try:
        capture(config, model="m", seq=8, symbolic=False, **options)
    except CutedgeError as refused:
        return str(refused)
    return ""


@pytest.mark.slow
def test_a_model_of_two_towers_reads_both_or_says_what_is_missing() -> None:
    _, config = find_config(str(FOLDER / "clip-twice.json"))
    small = {f"{part}_config.num_hidden_layers": 1 for part in ("text", "vision")}
    refused = refusal(config, overrides=small)
    if refused:
        assert "It reads pixel_values too, which this trace does not give." in refused
        assert refused.endswith("It is traced with --set architectures=CLIPTextModel.")


# --- how the checkpoint is stored -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told", "stored"),
    [
        (
            "quantize_config.json",
            {"bits": 4, "group_size": 128, "desc_act": False},
            "gptq-int4-g128",
        ),
        (
            "quant_config.json",
            {"w_bit": 4, "q_group_size": 64, "zero_point": True, "version": "GEMM"},
            "awq-int4-g64",
        ),
        (
            "hf_quant_config.json",
            {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}},
            "nvfp4",
        ),
    ],
)
def test_a_file_beside_the_config_says_how_it_is_stored(
    name: str, told: dict[str, Any], stored: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / name).write_text(json.dumps(told))
    for asked in (tmp_path, tmp_path / "config.json"):
        found, unknown = storage_of(find_config(str(asked))[1])
        assert (found and found.name, unknown) == (stored, None)
    own = {**LLAMA, "quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    found, _ = storage_of(find_config(str(tmp_path))[1])
    assert (found and found.name) == "fp8"
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / name).write_text("{")
    with pytest.raises(InputError, match=f"{name} is damaged"):
        find_config(str(tmp_path))


# --- configs that are damaged ---------------------------------------------------------------------

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside),
    max_leaves=6,
)
WHOLE: dict[str, Any] = {
    **LLAMA,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "rope_scaling": {"type": "linear", "factor": 2.0},
    "torch_dtype": "float16",
    "auto_map": {"AutoModelForCausalLM": "own.Own"},
    "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 16},
}
SHAPES = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")


@st.composite
def damaged(draw: Callable[..., Any]) -> tuple[bytes, dict[str, Any]]:
    """(the text of a config that was damaged, what became of each field)."""
    config = json.loads(json.dumps(WHOLE))
    for _ in range(draw(st.integers(1, 2))):
        key = draw(st.sampled_from([*WHOLE, "layer_types", "text_config"]))
        table = config
        if isinstance(config.get(key), dict) and config[key] and draw(st.booleans()):
            table, key = config[key], draw(st.sampled_from(sorted(config[key])))
        if draw(st.integers(0, 3)) == 0:
            table.pop(key, None)
        else:
            table[key] = draw(JUNK)
    if type(config.get("num_hidden_layers")) is int and config["num_hidden_layers"] <= 10_000:
        config["num_hidden_layers"] = min(config["num_hidden_layers"], 3)  # to be quick
    text = json.dumps(config)
    if draw(st.integers(0, 5)) == 0:  # a value that is given again
        text = f'{text[:-1]}, "hidden_size": {draw(st.integers(1, 99))}}}'
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16"]))
    return text.encode(encoding, "surrogatepass"), config


@examples(10)
@given(damaged())
def test_a_damaged_config_is_traced_as_it_says_or_refused(case: tuple[bytes, dict]) -> None:
    """Its model has the sizes that the file has, or what it lacks is said."""
    data, config = case
    made, notes = _made(data)
    if made is None:
        (refused,) = notes
        assert 0 < len(refused) < 1500
        assert "\n" not in refused
        return
    settings = made.config
    for name in SHAPES:
        if name in config:
            assert getattr(settings, name) == config[name] or any(name in n for n in notes), name
    if "model_type" not in config or config["model_type"] != "llama":
        assert any("it is traced as" in note for note in notes)
    said = storage_of({**config})[1]
    told = config.get("quantization_config")
    if told and told != WHOLE["quantization_config"] and not isinstance(told, dict):
        assert said is not None


def _made(data: bytes) -> tuple[Any, tuple[str, ...]]:
    """(the model of a config's file, notes) as a trace begins, or (None, why there is no model)."""
    with TemporaryDirectory() as folder, quiet():
        file = Path(folder) / "m.json"
        file.write_bytes(data)
        try:
            config = find_config(str(file))[1]
            notes = settle(config, {}, model="m")[1]
            return build(config, {}, model="m", dtype="float32", attn="eager"), notes
        except CutedgeError as refused:
            return None, (str(refused),)


@pytest.mark.slow
@examples(4)
@given(damaged())
def test_a_damaged_config_is_traced_or_refused_whole(case: tuple[bytes, dict]) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "m.json"
        file.write_bytes(case[0])
        done = invoke("trace", file, "--seq", "4", "--out", Path(folder) / "out")
        assert "Traceback" not in done.stderr
        assert done.returncode in (0, 1, 2)
        if done.returncode:
            assert not (Path(folder) / "out").exists()
