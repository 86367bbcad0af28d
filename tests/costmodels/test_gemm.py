"""``cutedge gemm``: the figures of the reference documents, and requests that are refused."""

import csv
import json

import pytest

from tests.support import REFERENCE
from tests.support.inprocess import invoke


def gemm(*args: object) -> dict:
    done = invoke("cutedge", "gemm", *map(str, args), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def rows(name: str) -> list[dict[str, str]]:
    with (REFERENCE / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", rows("systolic_gemm.csv"), ids=lambda row: "-".join(row.values()))
@pytest.mark.parametrize("device", ["chip-8x8", "systolic-128x128"])
def test_cycles_of_the_simulator(row, device):
    m, k, n, cycles = (int(row[key]) for key in ("M", "K", "N", "cycles"))
    found = gemm(
        m,
        k,
        n,
        "--device",
        device,
        "--mode",
        row["dataflow"],
        "--rows",
        row["rows"],
        "--cols",
        row["cols"],
    )
    assert found["cycles"] == cycles
    assert found["utilisation"] == pytest.approx(m * k * n / (cycles * 64))
    assert found["seconds"] == cycles / 100e6
    true = gemm(m, k, n, "--mode", row["dataflow"], "--count", "true")
    assert true["cycles"] == cycles + 1


Q, KV, FFN = (1, 2048, 2048), (1, 2048, 256), (1, 2048, 5632)
LAYER = [Q] * 2 + [KV] * 2 + [FFN] * 2 + [(1, 5632, 2048)]
ITEMS = {
    # (model, item): the products that it is the sum of
    ("-", "cycles per 8x8x8 tile"): [(8, 8, 8)],
    ("tinyllama-1.1b", "tiles of a [1 x 2048] x [2048 x 2048] matmul"): [Q],
    ("tinyllama-1.1b", "time of one 2048x2048 matmul"): [Q],
    ("tinyllama-1.1b", "tiles of gate_proj / up_proj (2048x5632)"): [FFN],
    ("tinyllama-1.1b", "tiles of down_proj (5632x2048)"): [(1, 5632, 2048)],
    ("tinyllama-1.1b", "time of one FFN matmul"): [FFN],
    ("tinyllama-1.1b", "attention projections per layer with num_key_value_heads=32"): [Q] * 4,
    ("tinyllama-1.1b", "FFN per layer"): [FFN, FFN, (1, 5632, 2048)],
    ("tinyllama-1.1b", "tiles per layer"): [Q] * 4 + [FFN] * 3,
    ("tinyllama-1.1b", "tiles of the whole model (22 layers)"): ([Q] * 4 + [FFN] * 3) * 22,
    ("tinyllama-1.1b", "tiles of k_proj / v_proj with the model's real 4 KV heads"): [KV],
    ("tinyllama-1.1b", "time per token with the real 4 KV heads and lm_head"): LAYER * 22
    + [(1, 2048, 32000)],
    ("llama-2-7b", "tiles per layer"): [(1, 4096, 4096)] * 4 + [(1, 4096, 11008)] * 3,
    **{
        (model, "tiles per layer"): [(1, 768, 768)] * 4 + [(1, 768, 3072)] * 2
        for model in ("gpt2", "bert-base", "distilbert")
    },
    ("tinyllama-1.1b", "q_proj time"): [Q],
    ("tinyllama-1.1b", "up_proj time"): [FFN],
    ("distilbert", "tiles of a 768x768 matmul"): [(1, 768, 768)],
    ("distilbert", "time of a 768x768 matmul"): [(1, 768, 768)],
    ("distilbert", "tiles of an FFN matmul (768x3072)"): [(1, 768, 3072)],
    ("distilbert", "time of an FFN matmul"): [(1, 768, 3072)],
    ("edge-10m", "tiles of a 256x256 matmul"): [(1, 256, 256)],
    ("edge-10m", "time of a 256x256 matmul"): [(1, 256, 256)],
    ("edge-10m", "tiles of an FFN matmul (256x1024)"): [(1, 256, 1024)],
    ("edge-10m", "time of an FFN matmul"): [(1, 256, 1024)],
    ("-", "pipeline depth 4 on 65536 tiles"): [(1, 2048, 2048, "--pipeline-depth", 4)],
}
UNITS = {
    "tiles": ("tiles", 1),
    "cycles": ("cycles", 1),
    "ms": ("seconds", 1e3),
    "s": ("seconds", 1),
}


@pytest.mark.parametrize(
    "row",
    [row for row in rows("chip_8x8.csv") if row["status"] not in ("option", "estimate")],
    ids=lambda row: f"{row['source']} {row['model']} {row['item']}",
)
def test_figures_of_the_chip(row):
    key, factor = UNITS[row["unit"]]
    products = ITEMS[row["model"], row["item"]]
    costs = {one: gemm(*one, "--device", "chip-8x8")[key] for one in set(products)}
    found = factor * sum(costs[one] for one in products)
    assert found == pytest.approx(float(row["derived_value"]), rel=1e-12)
    # The document rounds a product's 348.65 ms to 349 before it takes four of them: 1396.
    if row["status"] == "reproduce" and not row["item"].startswith("attention projections"):
        digits = len(row["reference_value"].partition(".")[2])
        assert f"{found:.{digits}f}" == row["reference_value"]


def test_the_keys_of_the_json():
    found = gemm(1, 2048, 2048)
    assert found["device"] == "chip-8x8"
    assert (
        found
        | {
            "tiles": 65536,
            "cycles": 34865152,
            "seconds": 0.34865152,
            "utilisation": 0.125,
            "useful_macs": 2048**2,
            "padded_macs": 8 * 2048**2,
            "lost_by_m": 7 / 8,
            "lost_by_k": 0,
            "lost_by_n": 0,
            "sent_bytes": 4 * (2048 + 2048**2),
            "received_bytes": 4 * 2048,
            "host_link": "axi-lite",
            "count": "true",
            "overlap": None,
            "chips": 1,
        }
        == found
    )


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (["--batch", 3], {"tiles": 3 * 65536, "sent_bytes": 12 * (2048 + 2048**2)}),
        (["--chips", 4], {"cycles": 8716288, "tiles": 65536}),
        (["--int8-speedup", 2], {"cycles": 17432576, "received_bytes": 2048}),
        (["--sparsity", 0.9], {"cycles": 3486516}),
        (["--sparsity", 0.9, "--sparsity-speedup", 5], {"cycles": 6973031}),
        (["--dtype", "bfloat16"], {"received_bytes": 4096, "cycles": 34865152}),
        # ceil(1/8) * ceil(2048/8) * (2048 + 8 + 8 - 2) - 1; then 256 folds of 2048 and 14.
        (["--mode", "os"], {"dataflow": "os", "tiles": 256, "cycles": 256 * 2062 - 1}),
        (["--mode", "os", "--overlap", "double-buffered"], {"cycles": 256 * 2048 + 14 - 1}),
        # 16 rows and 4 columns: ceil(2048/16) * ceil(2048/4) * (1 + 32 + 4 - 2) - 1.
        (["--mode", "ws", "--rows", 16, "--cols", 4], {"rows": 16, "cycles": 128 * 512 * 35 - 1}),
    ],
    ids=str,
)
def test_options(options, changes):
    found = gemm(1, 2048, 2048, *options)
    assert found | changes == found


def test_what_is_printed():
    done = invoke("cutedge", "gemm", "1", "2048", "2048", "--batch", "2")
    lines = done.stdout.splitlines()
    assert lines[0] == "2 x [1 x 2048] x [2048 x 2048] on chip-8x8"
    for words in ("131,072", "69,730,304", "0.69730304", "12.50%", "87.5% of M", "axi-lite"):
        assert words in done.stdout
    done = invoke("cutedge", "gemm", "1", "2048", "256", "--device", "systolic-8x8")
    for words in ("output-stationary", "65,983", "as SCALE-Sim prints it"):
        assert words in done.stdout
    done = invoke("cutedge", "gemm", "1", "2048", "256", "--mode", "os", "--count", "true")
    assert "65,984" in done.stdout
    assert "SCALE-Sim" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--device", "rtx-4090"], ["rtx-4090 is no array", "cutedge cost --device rtx-4090"]),
        (["--device", "chip"], ["unknown device 'chip'", "mean chip-8x8"]),
        (["--device", "systolic-8x8", "--mode", "fixed"], ["--mode fixed", "no tile_cycles"]),
        (["--rows", 16], ["--rows and --cols are of systolic arrays", "chip-8x8"]),
        (["--cols", 16], ["--rows and --cols are of systolic arrays", "chip-8x8"]),
        (["--count", "true"], ["--count is of systolic arrays"]),
        (["--mode", "os", "--pipeline-depth", 2], ["pipeline depth is of fixed tiles"]),
        (["--sparsity", 1], ["sparsity must be from 0 to less than 1"]),
        (["--sparsity-speedup", 5], ["needs the sparsity"]),
        (["--int8-speedup", 0.5], ["int8 speedup must be from 1"]),
        (["--dtype", "flot32"], ["--dtype 'flot32'", "mean float32"]),
    ],
    ids=str,
)
def test_requests_that_are_refused(arguments, says):
    done = invoke("cutedge", "gemm", "1", "2", "3", *map(str, arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for words in says:
        assert words in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["0", "2", "3"],
        ["1", "0", "3"],
        ["1", "2", "0"],
        ["1", "2"],
        ["1", "2", "x"],
        ["1", "2", "3.5"],
        ["1", "2", str(2**31)],
        ["1", "2", "3", "--batch", "0"],
        ["1", "2", "3", "--chips", "0"],
        ["1", "2", "3", "--pipeline-depth", "0"],
        ["1", "2", "3", "--rows", "0", "--mode", "os"],
        ["1", "2", "3", "--mode", "row"],
        ["1", "2", "3", "--mode", "os", "--count", "half"],
        ["1", "2", "3", "--mode", "os", "--overlap", "half"],
    ],
    ids=" ".join,
)
def test_the_command_line_itself(arguments):
    done = invoke("cutedge", "gemm", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_the_largest_product_that_may_be_asked_for():
    most = 2**31 - 1
    found = gemm(most, most, most, "--batch", most)
    assert found["cycles"] == most * (2**28) ** 3 * 532
    cells = gemm(1, 1, 1, "--mode", "os", "--rows", most, "--cols", most, "--chips", most)
    assert cells["cycles"] == 2 * most - 2
    assert found["useful_macs"] == most**4
    assert found["utilisation"] == pytest.approx(1)
