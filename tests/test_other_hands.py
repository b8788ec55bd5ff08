"""The run file in other hands: xarray, netCDF readers, pandas, plain HDF5 tools; and in those of the time to come."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from report_runs import small_run

import zanalysis as za
from hooks import RankTracker, every
from zanalysis.errors import InputError
from zanalysis.labelled import NOT_RECORDED
from zanalysis.runfile import Initial, RunWriter, Series, SpectrumKey
from zanalysis.runfile.schema import SCHEMA_VERSION

xarray = pytest.importorskip("xarray", reason="the package xarray is not installed")
pytest.importorskip("h5netcdf", reason="the package h5netcdf is not installed")
DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("run") / "run.h5")


def kept(version, kind, folder):
    """Unpack a run file as it was written by the software of its time."""
    path = folder / f"schema-{version}{kind}.h5"
    path.write_bytes(gzip.decompress((DATA / f"{path.name}.gz").read_bytes()))
    return path


def initial_weights(path):
    with h5py.File(path) as file:
        return [Initial(one.attrs["layer"], one.attrs["dtype"], one[:]) for one in file["initial"].values()]


def test_every_number_stands_under_its_coordinates(path):
    run = za.open_run(path)
    dataset = run.to_xarray()
    table = run.table()
    assert len(table) == 11 * len(run.series)
    for row in table.itertuples():
        at = {"step": row.step, "layer": row.layer, "tensor": row.tensor, "reference": row.reference}
        if row.tolerance_rule != "none":
            at["tolerance_rule"] = row.tolerance_rule
            np.testing.assert_equal(dataset[f"{row.metric}_tolerance"].sel(at).item(), row.tolerance)
        np.testing.assert_equal(dataset[row.metric].sel(at).item(), row.value)
        flags = dataset[f"{row.metric}_status"].sel(at)
        words = dict(zip(flags.attrs["flag_values"], flags.attrs["flag_meanings"].split(), strict=True))
        assert words[flags.item()] == row.status
    for key in run.spectrum_keys:
        found = dataset["singular_values"].sel(layer=key.layer, tensor=key.tensor, reference=key.reference)
        np.testing.assert_array_equal(found, run.spectra(*key).values)
    logged = dataset["logged"].to_pandas()
    np.testing.assert_array_equal(logged, run.logged()[["loss", "accuracy"]])
    assert logged.index.tolist() == run.logged()["step"].tolist()


def test_dimensions_units_and_settings_of_the_dataset(path):
    dataset = za.to_xarray(za.open_run(path))
    assert dataset["rank"].dims == ("step", "layer", "tensor", "reference", "tolerance_rule")
    assert dataset["stable_rank"].dims == ("step", "layer", "tensor", "reference")
    assert dataset["singular_values"].dims == ("step", "layer", "tensor", "reference", "index")
    assert dataset["logged"].dims == ("logged_step", "name")
    assert dataset["reference"].to_numpy().tolist() == ["none", "init"]  # in the order of the file
    assert dataset["rank"].attrs["units"] == "singular values"
    assert dataset["rank_tolerance"].attrs["units"] == "unit of the tensor"
    for name, variable in dataset.variables.items():
        assert variable.attrs["long_name"], name
    assert json.loads(dataset.attrs["run"])["model"]["type"] == dataset.attrs["model"] == "Sequential"


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_the_dataset_survives_netcdf(path, tmp_path, engine):
    pytest.importorskip("netCDF4" if engine == "netcdf4" else "h5netcdf")
    dataset = za.to_xarray(za.open_run(path))
    dataset.to_netcdf(tmp_path / "run.nc", engine=engine)
    with xarray.open_dataset(tmp_path / "run.nc", engine=engine) as back:
        assert back.identical(dataset)


def test_what_was_not_recorded_says_so(tmp_path):
    series = [
        Series("a", "weight", "none", "default", "rank"),
        Series("b", "weight", "init", "0.5", "rank"),
        Series("a", "gradient", "none", "none", "step"),
        Series("a", "gradient", "none", "none", "rank_status"),
    ]
    writer = RunWriter(tmp_path / "run.h5", series, [SpectrumKey("b", "weight", "init")], k=2)
    writer.append(5, np.arange(4.0), np.full(4, 0.25), np.zeros(4, np.uint8), np.array([[2.0, 1.0]]))
    writer.close()
    dataset = za.open_run(tmp_path / "run.h5").to_xarray()
    assert dataset.sizes == {
        "step": 1,
        "layer": 2,
        "tensor": 2,
        "reference": 2,
        "tolerance_rule": 2,
        "index": 2,
    }
    assert dataset["rank"].count() == 2
    assert (dataset["rank_status"] != NOT_RECORDED).sum() == 2
    cell = dataset["rank"].sel(layer="b", tensor="weight", reference="init", tolerance_rule="0.5")
    assert cell.item() == 1.0
    assert np.isnan(dataset["rank_tolerance"].sel(layer="a", reference="init")).all()
    spectrum = dataset["singular_values"].sel(layer="b", tensor="weight", reference="init")
    assert spectrum.to_numpy().tolist() == [[2.0, 1.0]]
    assert dataset["singular_values"].count() == 2
    # Names that are taken
    assert dataset["step_metric"].sel(layer="a", tensor="gradient", reference="none").item() == 2.0
    assert dataset["rank_status_metric"].sel(layer="a", tensor="gradient", reference="none").item() == 3.0


def test_a_run_without_a_record_is_an_empty_dataset(tmp_path):
    writer = RunWriter(tmp_path / "run.h5", [Series("a", "weight", "none", "none", "stable_rank")])
    dataset = za.open_run(tmp_path / "run.h5").to_xarray()  # while it is being written
    writer.close()
    assert dataset.sizes["step"] == 0
    assert dataset["stable_rank"].shape == (0, 1, 1, 1)


def test_without_xarray_it_says_what_to_install(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(za.ZAnalysisError, match=r"pip install 'zanalysis\[xarray\]'"):
        za.to_xarray(za.open_run(path))


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_each_group_opens_in_xarray_with_named_dimensions(path, engine):
    pytest.importorskip("netCDF4" if engine == "netcdf4" else "h5netcdf")
    run = za.open_run(path)
    named = {"phony_dims": "sort"} if engine == "h5netcdf" else {}
    with xarray.open_dataset(path, engine=engine, group="scalars", **named) as scalars:
        assert scalars["value"].dims == ("step", "series")
        assert {"layer", "tensor", "reference", "tolerance_rule", "metric"} <= set(scalars.coords)
        layers = [word.decode() if isinstance(word, bytes) else word for word in scalars["layer"].to_numpy()]
        assert layers == [one.layer for one in run.series]
        np.testing.assert_array_equal(scalars["step"], run.steps)
        np.testing.assert_array_equal(scalars["value"], run.arrays()[1])
        assert scalars["tolerance"].attrs["units"] == "unit of the tensor"
        assert scalars["status"].attrs["flag_meanings"].split()[:3] == ["ok", "nonfinite", "zero"]
    with xarray.open_dataset(path, engine=engine, group="spectra", **named) as spectra:
        assert spectra["value"].dims == ("step", "spectrum", "index")
        np.testing.assert_array_equal(spectra["step"], run.steps)
        np.testing.assert_array_equal(spectra["value"][:, 0], run.spectra(*run.spectrum_keys[0]).values)
    with xarray.open_dataset(path, engine=engine, group="logged", **named) as logged:
        assert logged["value"].dims == ("step",)
        assert logged.sizes["names"] == 2
    with xarray.open_dataset(path, engine=engine, group="overhead", **named) as overhead:
        assert overhead["seconds"].dims == ("part",)
        assert overhead["seconds"].attrs["units"] == "s"


def test_a_resumed_run_opens_in_xarray_too(mlp, tmp_path):
    model, optimizer, train = mlp
    settings = {"schedule": every(1), "metrics": ("singular_values",)}
    with RankTracker(model, optimizer, tmp_path / "run.h5", **settings):
        train(4)
    with RankTracker(model, optimizer, tmp_path / "run.h5", mode="a", start=2, **settings):
        train(3)
    with xarray.open_dataset(
        tmp_path / "run.h5", engine="h5netcdf", group="spectra", phony_dims="sort"
    ) as found:
        assert found["step"].to_numpy().tolist() == [0, 1, 2, 3, 4, 5]
        assert found["value"].shape[0] == 6


def test_every_dataset_describes_itself(path):
    lacking = []
    with h5py.File(path) as file:

        def look(name, thing):
            if isinstance(thing, h5py.Dataset) and not thing.attrs.get("description"):
                lacking.append(name)

        file.visititems(look)
        assert file["spectra/step"] == file["scalars/step"]
    assert lacking == []


def test_pandas_needs_nothing_of_ours(path):
    with h5py.File(path) as file:
        scalars = file["scalars"]
        columns = pd.MultiIndex.from_arrays([scalars[n].asstr()[:] for n in ("layer", "reference", "metric")])
        values = pd.DataFrame(scalars["value"][:], index=scalars["step"][:], columns=columns)
    table = za.open_run(path).table()
    ours = table[(table.layer == "5") & (table.reference == "init") & (table.metric == "support_rows")]
    np.testing.assert_array_equal(values["5", "init", "support_rows"], ours["value"])


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="HDF5's own tools (hdf5-tools) are not installed")
def test_the_tools_of_hdf5_read_every_dataset(path, tmp_path):
    shown = subprocess.run(["h5dump", path], capture_output=True, text=True, check=True)
    assert "error" not in shown.stderr
    assert 'ATTRIBUTE "description"' in shown.stdout
    listed = subprocess.run(["h5ls", "-r", path], capture_output=True, text=True, check=True).stdout
    assert "ERROR" not in listed
    assert "/events" in listed


def test_no_dataset_is_in_a_format_that_only_the_newest_hdf5_reads(path):
    # What HDF5 1.10 reads: version 3 of a datatype; HDF5 2.0 writes version 5 where it may.
    with h5py.File(path) as file:
        versions = {}
        file.visititems(
            lambda name, thing: versions.update({name: thing.id.get_type().encode()[2] >> 4})
            if isinstance(thing, h5py.Dataset) else None
        )  # fmt: skip
    assert set(versions.values()) <= {1, 2, 3}


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION + 1))
def test_runs_of_every_schema_version_are_read(version, tmp_path):
    run = za.open_run(kept(version, "", tmp_path))
    assert run.finished
    assert run.steps.tolist() == [0, 2, 4]
    table = run.table()
    assert len(table) == 48
    rank = table[(table.layer == "2") & (table.metric == "rank") & (table.reference == "none")]
    assert rank["value"].tolist() == [2.0] * 3
    assert rank["tolerance"].tolist() == pytest.approx([3 * np.finfo(np.float32).eps * 2] * 3, rel=1e-12)
    moved = table[(table.reference == "init") & (table.metric == "stable_rank")]
    assert moved["value"].isna().all()
    assert set(moved["status"]) == {"zero"}
    assert run.spectra("2").values[-1, :3].tolist() == pytest.approx([2.0, 1.0, np.nan], nan_ok=True)
    assert run.logged()["loss"].tolist() == [0.0, 0.25, 0.5, 0.75]
    assert run.events["kind"].tolist() == ["log"]
    assert run.to_xarray()["rank"].sel(layer="0", reference="none").to_numpy().ravel().tolist() == [2.0] * 3
    raw = za.open_run(kept(version, "-raw", tmp_path))
    assert torch.equal(raw.tensor("2", "weight", 4), torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]))
    assert torch.equal(raw.tensor("2", "activation", 2), torch.tensor([[0.75, 5.5]] * 2))


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION + 1))
def test_runs_of_every_schema_version_are_taken_up_again(version, tmp_path):
    path = kept(version, "", tmp_path)
    stored = za.open_run(path)
    series, spectra = stored.series, stored.spectrum_keys
    writer = RunWriter(
        path, series, spectra, stored.attributes, mode="a", start=4, initial=initial_weights(path)
    )
    count = len(stored.series)
    writer.append(4, np.ones(count), np.ones(count), np.zeros(count, np.uint8), np.zeros((4, 16)))
    writer.close()
    run = za.open_run(path)
    assert run.steps.tolist() == [0, 2, 4]
    assert set(run.table().query("step == 4")["value"]) == {1.0}
    assert run.events["kind"].tolist()[0] == "log"


def test_a_path_will_do_and_what_is_no_run_is_one_sentence(path):
    xarray.testing.assert_identical(za.to_xarray(path), za.to_xarray(za.open_run(path)))
    xarray.testing.assert_identical(za.to_xarray(str(path)), za.to_xarray(path))
    with pytest.raises(InputError, match="got DataFrame, expected a run or the path of one"):
        za.to_xarray(za.open_run(path).table())
