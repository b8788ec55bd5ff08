"""The account of what recording costs: by metric, in the file, and honest about who pays."""

import numpy as np
import pytest

from zanalysis.runfile import RunWriter, Series
from zanalysis.runfile.reader import open_run

SERIES = (Series("a", "weight", "none", "none", "rank"),)


def written(path, seconds, mode="x", start=0, **more):
    writer = RunWriter(path, SERIES, mode=mode, start=start, **more)
    writer.append(start, np.ones(1), np.ones(1), np.zeros(1, np.uint8), np.empty((0, 16)))
    writer.overhead(seconds, 10.0)
    writer.close()
    return open_run(path).overhead


def test_the_parts_of_the_account_are_those_the_writer_was_given(tmp_path):
    table = written(tmp_path / "run.h5", {"rank": 1.0, "writing": 0.5}, parts=("rank", "writing", "probe"))
    assert table["part"].tolist() == ["rank", "writing", "probe", "total"]
    assert table["seconds"].tolist() == [1.0, 0.5, 0.0, 1.5]
    assert table["share"].tolist() == pytest.approx([0.1, 0.05, 0.0, 0.15])


def test_a_resumed_run_begins_a_new_account_with_its_own_parts(tmp_path):
    # As it was before the parts could be chosen: such a file is read, and goes on.
    table = written(tmp_path / "run.h5", {"metrics": 2.0})
    assert table["part"].tolist() == ["metrics", "writing", "total"]
    table = written(tmp_path / "run.h5", {"rank": 1.0}, mode="a", start=1, parts=("rank", "writing"))
    assert table["part"].tolist() == ["rank", "writing", "total"]
    assert table["seconds"].tolist() == [1.0, 0.0, 1.0]
    assert open_run(tmp_path / "run.h5").steps.tolist() == [0, 1]
