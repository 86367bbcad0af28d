"""Runs ZigZag: by a Python that has it, which need not have ours.

The input is ``{"hardware", "mapping", "workload", "options"}``: names of files of its own, or the text
of one. The output is ``{"energy", "latency", "macs", "mac", "accesses"}``; of the last each is
``[operand, level, bits of the memory, "read" or "write", accesses, bits of one, what one takes]``,
summed over the layers.
"""

import contextlib
import io
import json
import logging
import sys
import tempfile
from pathlib import Path

import zigzag
from zigzag.api import get_hardware_performance_zigzag

INPUTS = Path(zigzag.__file__).parent / "inputs"
WAYS = {"read": ("rd_out_to_low", "rd_out_to_high"), "write": ("wr_in_by_low", "wr_in_by_high")}


def main():
    logging.disable(logging.WARNING)
    job = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        given = {}
        for what in ("hardware", "mapping", "workload"):
            if "\n" in job[what]:
                given[what] = str(Path(folder, f"{what}.yaml"))
                Path(given[what]).write_text(job[what])
            else:
                given[what] = str(INPUTS / what / job[what])
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            energy, latency, found = get_hardware_performance_zigzag(
                given["workload"],
                given["hardware"],
                given["mapping"],
                dump_folder=folder,
                pickle_filename=f"{folder}/found.pickle",
                **job["options"],
            )
    layers = [layer for layer, _ in found[0][1]]
    accesses = {}
    for layer in layers:
        for operand, by_level in layer.memory_word_access.items():
            memory_operand = layer.memory_operand_links.layer_to_mem_op(operand)
            levels = layer.accelerator.memory_hierarchy.get_memory_levels(mem_op=memory_operand)
            for counts, level in zip(by_level, levels, strict=False):
                for way, directions in WAYS.items():
                    for direction in counts.data:
                        if str(direction) not in directions or not counts.get(direction):
                            continue
                        key = str(operand), level.name, level.memory_instance.size, way
                        bits = level.get_max_bandwidth(memory_operand, direction)
                        cost = level.read_energy if way == "read" else level.write_energy
                        accesses.setdefault((*key, bits, cost), 0)
                        accesses[(*key, bits, cost)] += counts.get(direction)
    macs = sum(layer.layer.total_mac_count for layer in layers)
    unit = layers[0].accelerator.operational_array.unit.energy_cost
    rows = [[*key[:4], count, *key[4:]] for key, count in accesses.items()]
    whole = {"energy": energy, "latency": latency, "macs": macs, "mac": unit, "accesses": rows}
    json.dump(whole, sys.stdout)


if __name__ == "__main__":
    main()
