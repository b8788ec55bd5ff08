"""Copies among neurons, zero gradients and known initializations: exact answers, and a literal reference."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zanalysis.analyzers.symmetry import (
    dead_units,
    distinct_rows,
    first_moved,
    recognize_start,
    row_groups,
    zero_gradient,
)
from zanalysis.errors import InputError


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Matrices this small gain nothing from threads, and wait for them where other tests run beside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def literal_groups(rows, tolerance):
    """Compare each row with the first row of each group, one by one."""
    firsts, labels = [], []
    for row in rows:
        for label, first in enumerate(firsts):
            if np.linalg.norm(row - first) <= tolerance * max(np.linalg.norm(row), np.linalg.norm(first)):
                labels.append(label)
                break
        else:
            labels.append(len(firsts))
            firsts.append(row)
    return labels


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    rows=st.integers(0, 12),
    columns=st.integers(1, 5),
    kinds=st.integers(1, 5),
    noise=st.sampled_from([0.0, 1e-8, 1e-3]),
    tolerance=st.sampled_from([0.0, 1e-6, 1e-2, 0.5]),
    seed=st.integers(0, 2**20),
)
def test_property_groups_equal_the_literal_ones(rows, columns, kinds, noise, tolerance, seed):
    rng = np.random.default_rng(seed)
    W = rng.integers(-2, 3, (kinds, columns))[rng.integers(0, kinds, rows)].astype(float)
    W = W + noise * rng.standard_normal(W.shape)
    labels = row_groups(torch.from_numpy(W), tolerance=tolerance)
    assert labels.dtype == torch.int64
    assert labels.tolist() == literal_groups(W, tolerance)
    count = distinct_rows(torch.from_numpy(W), tolerance=tolerance)
    assert count.dtype == torch.float64
    assert count.item() == len(set(labels.tolist()))
    # Permuting rows, or columns, of exact copies changes no count.
    if noise == 0 and tolerance < 0.1:
        shuffled = torch.from_numpy(W[rng.permutation(rows)][:, rng.permutation(columns)])
        assert distinct_rows(shuffled, tolerance=tolerance).item() == count.item()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_copies_are_found_up_to_rounding_in_every_dtype(dtype):
    rng = torch.Generator().manual_seed(0)
    W = torch.randn(20, 300, generator=rng, dtype=torch.float64).to(dtype).repeat(5, 1)
    ulps = torch.randint(-1, 2, W.shape, generator=rng).to(dtype) * torch.finfo(dtype).eps
    assert distinct_rows(W).item() == 20
    assert row_groups(W).tolist() == list(range(20)) * 5
    assert distinct_rows(W + ulps * W).item() == 20
    assert distinct_rows(W + ulps * W, tolerance=0).item() == 100
    far = W.double().clone()
    far[20:] *= 1 + 40 * torch.finfo(dtype).eps
    assert distinct_rows(far.to(dtype)).item() == 40


def test_rows_need_not_be_of_one_block():
    W = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).repeat(300, 1)
    assert distinct_rows(W).item() == 7
    assert row_groups(W).tolist() == list(range(7)) * 300


def test_the_bias_and_the_scale_tell_neurons_apart_or_not():
    W = torch.tensor([[1.0, 2.0], [1.0, 2.0], [2.0, 4.0], [-1.0, -2.0], [0.0, 0.0]])
    assert distinct_rows(W).item() == 4
    assert distinct_rows(W, torch.tensor([1.0, 0, 0, 0, 0])).item() == 5
    assert row_groups(W, up_to_scale=True).tolist() == [0, 0, 0, 1, 2]
    assert distinct_rows(W, torch.tensor([1.0, 1, 2, -1, 0]), up_to_scale=True).item() == 3
    kernel = W.reshape(5, 1, 1, 2)
    assert distinct_rows(kernel).item() == 4


def test_a_chain_of_small_steps_does_not_join_its_ends():
    W = torch.tensor([[1.0], [1.4], [1.9], [2.7]], dtype=torch.float64)
    assert row_groups(W, tolerance=0.3).tolist() == [0, 0, 1, 1]


def test_odd_layers_have_defined_answers():
    assert distinct_rows(torch.zeros(6, 4)).item() == 1
    assert distinct_rows(torch.zeros(0, 4)).item() == 0
    assert distinct_rows(torch.zeros(3, 0)).item() == 1
    broken = torch.ones(4, 2)
    broken[2, 0] = torch.nan
    assert distinct_rows(broken).isnan()
    assert row_groups(broken).tolist() == [0, 0, -1, 0]
    huge = torch.tensor([[1e300, 0.0], [-1e300, 0.0], [1e300, 0.0]], dtype=torch.float64)
    assert row_groups(huge).tolist() == [0, 1, 0]
    tiny = torch.tensor([[3e-300], [3e-300], [4e-300]], dtype=torch.float64)
    assert row_groups(tiny).tolist() == [0, 0, 1]
    with pytest.raises(InputError, match="expected a floating weight"):
        distinct_rows(torch.zeros(3))
    with pytest.raises(InputError, match="expected a floating weight"):
        distinct_rows(torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(InputError, match=r"bias of shape \(3,\), got \(2,\)"):
        distinct_rows(torch.zeros(3, 3), torch.zeros(2))
    with pytest.raises(InputError, match="relative to the row norm"):
        distinct_rows(torch.zeros(3, 3), tolerance=1.0)


def test_hadamard_copies_are_as_many_as_the_paper_leaves_unsaid():
    """Row i of a Hadamard matrix cut to N_x columns depends on i mod 2^ceil(log2 N_x) only."""
    H = torch.from_numpy(scipy.linalg.hadamard(128)).float()
    for n_x in (3, 17, 32, 33):
        assert distinct_rows(H[:, :n_x]).item() == 2 ** math.ceil(math.log2(n_x))


def test_dead_units_have_nothing_coming_in():
    W = torch.tensor([[0.0, 0.0], [0.0, -0.0], [1e-45, 0.0], [torch.nan, 0.0]])
    assert dead_units(W).tolist() == [True, True, False, False]
    assert dead_units(W, torch.tensor([1.0, 0, 0, 0])).tolist() == [False, True, False, False]
    assert dead_units(torch.zeros(2, 3, 3, 3)).tolist() == [True, True]


def test_zero_gradient_is_exact_and_none_is_not_zero():
    assert zero_gradient(torch.zeros(3, 3)).item() == 1.0
    assert zero_gradient(torch.tensor([0.0, 1e-45])).item() == 0.0
    assert zero_gradient(None).isnan()
    assert zero_gradient(torch.zeros(0)).isnan()
    assert zero_gradient(torch.tensor([0.0, torch.nan])).isnan()
    assert zero_gradient(torch.zeros(2)).dtype == torch.float64


def test_first_moved_names_the_first_step_of_a_difference():
    layer = torch.nn.Linear(3, 3)
    torch.nn.init.zeros_(layer.weight)
    dead = torch.full((2,), torch.nan)

    def run():
        for step in range(0, 40, 10):
            if step == 20:
                layer.weight.data[1, 1] += 1e-30
            if step == 30:
                layer.weight.data.zero_()
            yield step, {"layer": layer.weight, "dead": dead}

    moved = first_moved(run())
    assert moved["layer"] == 20.0
    assert math.isnan(moved["dead"])
    rows = [
        (0, "a", 1.0),
        (0, "b", math.nan),
        (3, "a", 1.0),
        (3, "b", math.nan),
        (7, "b", 2.0),
        (9, "b", 3.0),
    ]
    moved = first_moved(rows)
    assert moved["b"] == 7.0
    assert math.isnan(moved["a"])
    assert first_moved([]) == {}
    with pytest.raises(InputError, match="step 1 follows step 2"):
        first_moved([(2, "a", 0.0), (1, "a", 0.0)])


SHAPES = [(4, 4), (3, 7), (7, 3), (50, 30), (64, 64)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_starts_are_recognized_as_matrices_and_as_centre_taps(shape, dtype):
    sylvester = torch.from_numpy(scipy.linalg.hadamard(64)[: shape[0], : shape[1]]).to(dtype)
    gaussian = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    starts = {
        "identity": [torch.eye(*shape, dtype=dtype), -0.37 * torch.eye(*shape, dtype=dtype)],
        "hadamard": [sylvester * 2**-2.5, -sylvester],
        "zero": [torch.zeros(shape, dtype=dtype)],
        "constant": [torch.full(shape, 1 / 3, dtype=dtype)],
        "other": [gaussian, sylvester.flip(0), gaussian.sign()],
    }
    flipped = sylvester.clone()
    flipped[-1, -1] *= -1
    nearly = torch.eye(*shape, dtype=dtype)
    nearly[1, 1] *= 1 + torch.finfo(dtype).eps
    broken = torch.eye(*shape, dtype=dtype)
    broken[0, 0] = torch.nan
    off = torch.eye(*shape, dtype=dtype)
    off[0, 1] = 1e-30
    starts["other"] += [flipped, nearly, broken, off]
    for word, matrices in starts.items():
        for matrix in matrices:
            assert recognize_start(matrix) == word
            kernel = torch.zeros(*shape, 3, 5, dtype=dtype)
            kernel[:, :, 1, 2] = matrix
            assert recognize_start(kernel) == word
            assert recognize_start(matrix[:, :, None, None]) == word
            assert recognize_start(matrix[:, :, None]) == word


def test_kernels_that_only_look_alike_are_other():
    kernel = torch.zeros(4, 4, 3, 3)
    kernel[:, :, 0, 0] = torch.eye(4)
    assert recognize_start(kernel) == "other"
    kernel[:, :, 1, 1] = torch.eye(4)
    assert recognize_start(kernel) == "other"
    even = torch.zeros(4, 4, 2, 2)
    even[:, :, 1, 0] = torch.eye(4)
    assert recognize_start(even) == "other"
    assert recognize_start(torch.ones(4, 4, 3, 3)) == "constant"
    assert recognize_start(torch.zeros(4, 4, 2, 2)) == "zero"
    assert recognize_start(torch.ones(4, 1)) == "constant"
    with pytest.raises(InputError, match="at least two dimensions"):
        recognize_start(torch.zeros(4))
