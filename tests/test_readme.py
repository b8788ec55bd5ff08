"""The README's Python, run as written, one block after the other."""

import re
from pathlib import Path

import numpy as np

README = Path(__file__).parent.parent / "README.md"


def test_every_python_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 13
    names = {}
    for block in [blocks[0], *blocks]:  # what stands in a script is run more than once
        exec(compile(block, "README.md", "exec"), names)
    assert names["stable"]["step"].tolist() == [0, 50, 100, 150, 200]
    assert names["losses"].columns.tolist() == ["step", "loss"]
    ours = names["stable"]["value"].to_numpy()
    np.testing.assert_array_equal(names["values"][("2", "stable_rank")].to_numpy(), ours)
