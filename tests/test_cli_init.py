"""`zanalysis init`, as a user meets it."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from zanalysis import cli
from zanalysis import initializers as init

NETS = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))

def tied():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
    model[1].weight = model[0].weight
    return model, len

def recurrent():
    return nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 3))

def even():
    return nn.Sequential(nn.Conv2d(3, 8, 2))

def fails():
    raise RuntimeError("no luck")

def nothing():
    return 3
"""


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run the command line in this process and an own folder; return exit code, results and messages."""
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "init_nets.py").write_text(NETS)
    (tmp_path / "init_broken.py").write_text("this is no Python")
    monkeypatch.delitem(sys.modules, "init_nets", raising=False)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["zanalysis", "init", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_weights_are_written_as_the_library_sets_them(command, tmp_path):
    random = torch.get_rng_state()
    code, results, messages = command("zero", "init_nets:build", "--out", "zero.pt")
    assert (code, messages) == (0, "the weights are in zero.pt\n")
    assert torch.equal(random, torch.get_rng_state())
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    assert results == f"{init.zero_(model)}\n"
    stored = torch.load(tmp_path / "zero.pt", weights_only=True)
    assert all(torch.equal(stored[name], tensor) for name, tensor in model.state_dict().items())
    assert [path.name for path in tmp_path.glob("*zero*")] == ["zero.pt"]


def test_seeds_and_options(command, tmp_path):
    words = ("skipinit", "init_nets:build", "--out", "a.safetensors")
    code, _, messages = command(*words, "--option", "alpha=0.5")
    assert code == 2
    assert "SkipInit needs a learnable scalar" in messages
    files = {}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        out = tmp_path / f"{name}.safetensors"
        code, results, _ = command(
            "kaiming", "init_nets:build", "--out", out, "--seed", seed, "--option", "mode=fan_out", "-q"
        )
        assert (code, results) == (0, "")
        files[name] = load_file(out)["0.weight"]
    assert torch.equal(files["a"], files["b"])
    assert not torch.equal(files["a"], files["c"])
    generator = torch.Generator().manual_seed(3)
    expected = torch.empty(8, 3, 3, 3)
    nn.init.kaiming_normal_(expected, mode="fan_out", nonlinearity="relu", generator=generator)
    assert torch.equal(files["a"], expected)


def test_tied_weights_are_written_under_each_name(command, tmp_path):
    code, results, _ = command("zero", "init_nets:tied", "--out", "tied.safetensors")
    assert code == 0
    assert "0.weight is one parameter with 1.weight" in results
    assert load_file(tmp_path / "tied.safetensors").keys() == {"0.weight", "1.weight"}


def test_what_is_unknown_is_in_the_report_and_follows_the_seed(command, tmp_path):
    files = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        code, results, _ = command("zero", "init_nets:recurrent", "--out", f"{name}.pt", "--seed", seed)
        assert code == 0
        assert "unknown: left as they were" in results
        files.append(torch.load(tmp_path / f"{name}.pt", weights_only=True)["1.weight_ih_l0"])
    assert torch.equal(files[0], files[1])
    assert not torch.equal(files[0], files[2])


def test_the_list_has_every_name_and_its_options(command):
    code, results, _ = command("list")
    assert code == 0
    for name in init.INITIALIZATIONS:
        assert f" {name} " in results
    assert "std (required)" in results
    assert command("list", "init_nets:build")[0] == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["zreo", "init_nets:build", "--out", "a.pt"], "unknown initialization 'zreo'; did you mean 'zero'?"),
        (["zreo"], "unknown initialization 'zreo'"),
        (["zero"], "zanalysis init zero needs what builds the model, package.module:function."),
        (["zero", "init_nets:build"], "zanalysis init zero needs --out"),
        (["zero", "init_nets:nope", "--out", "a.pt"], "there is no 'init_nets:nope'"),
        (["zero", "init_broken:build", "--out", "a.pt"], "importing init_broken:build raised SyntaxError"),
        (["zero", "init_nets:fails", "--out", "a.pt"], "raised RuntimeError: no luck"),
        (["zero", "init_nets:nothing", "--out", "a.pt"], "returned int, expected a torch.nn.Module"),
        (["zero", "init_nets:even", "--out", "a.pt"], "0.weight: a kernel of size 2×2 has no centre tap"),
        (["zero", "init_nets:build", "--out", "a.bin"], "unknown suffix '.bin'"),
        (["zero", "init_nets:build", "--out", "no/a.pt"], "there is no folder no"),
        (["zero", "init_nets:build", "--out", "a.pt", "--option", "normalization"], "expected KEY=VALUE"),
        (
            ["zero", "init_nets:build", "--out", "a.pt", "--option", "normal=1"],
            "zero has no option 'normal'; did you mean 'normalization'",
        ),
        (["zero", "init_nets:build", "--out", "a.pt", "--option", "seed=1"], "pass --seed"),
        (["perturbed-identity", "init_nets:build", "--out", "a.pt"], "needs the option 'std'"),
        (["kaiming", "init_nets:build", "--out", "a.pt", "--option", "mode=3"], "unknown mode 3"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(command, tmp_path, words, says):
    code, results, messages = command(*words)
    assert (code, results) == (2, "")
    assert says in messages
    assert "Traceback" not in messages
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".pt", ".part", ".bin")]


def test_a_file_that_is_there_is_kept_unless_asked(command, tmp_path):
    (tmp_path / "a.pt").write_text("mine")
    words = ("zero", "init_nets:build", "--out", "a.pt")
    code, _, messages = command(*words)
    assert code == 2
    assert "a.pt exists already" in messages
    assert (tmp_path / "a.pt").read_text() == "mine"
    assert command(*words, "--overwrite")[0] == 0
    assert torch.load(tmp_path / "a.pt", weights_only=True)


@pytest.mark.slow
def test_in_a_process_of_its_own(tmp_path):
    (tmp_path / "init_nets.py").write_text(NETS)
    words = [sys.executable, "-m", "zanalysis.cli", "init", "zero", "init_nets:build", "--out", "zero.pt"]
    for expected in (0, 2):
        result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == expected, result.stderr


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_the_system_refuses_to_write_is_one_sentence(command, tmp_path, suffix):
    # As long as a name may be, so that no longer one fits beside it.
    name = "w" * (255 - len(suffix)) + suffix
    code, _, messages = command("zero", "init_nets:build", "--out", name)
    assert code == 2
    assert messages == f"zanalysis: cannot write {name}: File name too long.\n"
    assert not list(tmp_path.glob("*www*"))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_have_the_permissions_of_other_files(command, tmp_path, suffix):
    assert command("zero", "init_nets:build", "--out", f"zero{suffix}")[0] == 0
    (tmp_path / "other").touch()
    assert (tmp_path / f"zero{suffix}").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("seed", ["-1", str(2**63), str(10**30)])
def test_a_seed_that_is_none_is_refused(command, tmp_path, seed):
    code, _, messages = command("kaiming", "init_nets:build", "--out", "a.pt", "--seed", seed)
    assert code == 2
    assert messages == f"zanalysis: got seed = {seed}, expected a whole number from 0 to {2**63 - 1}.\n"
    assert not (tmp_path / "a.pt").exists()


@pytest.mark.parametrize(
    ("key", "instead"), [("generator", "--seed"), ("out", "--out"), ("build", "the second")]
)
def test_what_is_no_option_of_an_initialization_says_what_is_meant(command, key, instead):
    code, _, messages = command("kaiming", "init_nets:build", "--out", "a.pt", "--option", f"{key}=3")
    assert code == 2
    assert f"{key} is no option of an initialization" in messages
    assert instead in messages
