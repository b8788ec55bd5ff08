"""One tensor at a time: what a checkpoint larger than it should be costs in memory."""

import json
import struct
import subprocess
import sys

import numpy as np
import pytest

CODE = """
import resource, sys
from zanalysis import cli
sys.argv = ["zanalysis", "analyze", sys.argv[1], "--json", "--quiet"]
try:
    cli.main()
except SystemExit as end:
    assert not end.code, end.code
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr)
"""


def write(path, shapes):
    """Write a safetensors file of random float32 tensors, one at a time."""
    header, end = {}, 0
    for i, shape in enumerate(shapes):
        start, end = end, end + 4 * shape[0] * shape[1]
        header[f"layer{i}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    generator = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for shape in shapes:
            generator.standard_normal(shape[0] * shape[1], dtype=np.float32).tofile(file)


def analyzed(path):
    result = subprocess.run(
        [sys.executable, "-c", CODE, str(path)], capture_output=True, text=True, timeout=3000
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), int(result.stderr.split()[-1])


@pytest.mark.slow
def test_4_gib_are_analyzed_in_less_than_one_and_a_half(tmp_path):
    path = tmp_path / "large.safetensors"
    write(path, [[4096, 4096], *[[16384, 1024]] * 62, [1024, 16384]])
    assert path.stat().st_size > 1 << 32
    rows, peak = analyzed(path)
    path.unlink()
    assert len(rows) == 128
    assert {row["status"] for row in rows} == {"ok"}
    assert peak < 1.5 * (1 << 30)
