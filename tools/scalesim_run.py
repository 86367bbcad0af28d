"""Runs SCALE-Sim 3.0.0: by a Python that has it, which need not have ours.

Each line of the input is ``{"id", "configuration", "topology", "gemm"}``, with the files' text; each
line of the output ``{"id", "layers": [{column of its reports: value}]}``.
"""

import contextlib
import csv
import io
import json
import sys
import tempfile
from pathlib import Path

from scalesim.scale_sim import scalesim

LAYOUT = "Layer,\n" + "any," + "1," * 20 + "\n"


def reports(job):
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        (at / "run.cfg").write_text(job["configuration"])
        (at / "topology.csv").write_text(job["topology"])
        (at / "layout.csv").write_text(LAYOUT)
        with contextlib.redirect_stdout(io.StringIO()):
            run = scalesim(
                save_disk_space=True,
                verbose=False,
                config=str(at / "run.cfg"),
                topology=str(at / "topology.csv"),
                layout=str(at / "layout.csv"),
                input_type_gemm=job["gemm"],
            )
            run.run_scale(top_path=str(at / "out"))
        tables = [
            list(csv.DictReader(file.read_text().splitlines(), skipinitialspace=True))
            for name in ("COMPUTE_REPORT.csv", "DETAILED_ACCESS_REPORT.csv")
            for file in (at / "out").rglob(name)
        ]
        return [
            {key: value for key, value in (one | other).items() if key and value}
            for one, other in zip(*tables, strict=True)
        ]


if __name__ == "__main__":
    for line in sys.stdin:
        job = json.loads(line)
        layers = reports(job)
        sys.stdout.write(json.dumps({"id": job["id"], "layers": layers}) + "\n")
        sys.stdout.flush()
