"""Initializations against scipy, the paper's definitions and themselves."""

import math

import pytest
import scipy.linalg
import torch
from torch import nn

from zanalysis import initializers as init
from zanalysis.errors import InputError, NotBuiltYetError

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("m", range(8))
def test_hadamard_is_sylvesters(m):
    ours = init.hadamard(m, dtype=torch.float64)
    assert torch.equal(ours, torch.from_numpy(scipy.linalg.hadamard(2**m)).double())


@pytest.mark.parametrize("m", [-1, 21, 1.0, True])
def test_hadamard_refuses_other_sizes(m):
    with pytest.raises(InputError, match="a whole number from 0 to 20"):
        init.hadamard(m)


@pytest.mark.parametrize(("p", "q"), [(3, 5), (5, 3), (4, 4), (1, 6)])
def test_partial_identity_is_definition_1(p, q):
    expected = torch.tensor([[float(i == j) for j in range(q)] for i in range(p)])
    assert torch.equal(init.partial_identity_(torch.full((p, q), torch.nan)), expected)


@pytest.mark.parametrize(("p", "q"), [(100, 30), (64, 17), (5, 4), (2, 1), (2048, 784)])
def test_zero_of_a_growing_layer_is_algorithm_1(p, q):
    m = math.ceil(math.log2(p))
    dense = scipy.linalg.hadamard(2**m).astype(float)
    for normalization, c in (("orthonormal", 2 ** (-m / 2)), ("paper", 2 ** (-(m - 1) / 2))):
        expected = c * torch.from_numpy(dense[:p, :q])
        ours = init.zero_(torch.empty(p, q, dtype=torch.float64), normalization)
        torch.testing.assert_close(ours, expected, rtol=4e-16, atol=0)


def test_orthonormal_columns_where_rows_are_complete():
    weight = init.hadamard_(torch.empty(64, 20, dtype=torch.float64))
    torch.testing.assert_close(weight.T @ weight, torch.eye(20, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("shape", [(8, 8, 3, 3), (4, 8, 5, 5), (8, 3, 3, 3), (8, 4, 1), (6, 3, 3, 1, 3)])
def test_kernels_carry_it_on_the_centre_tap(shape):
    kernel = init.zero_(torch.full(shape, torch.nan))
    centre = kernel[(slice(None), slice(None), *(size // 2 for size in shape[2:]))]
    assert torch.equal(centre, init.zero_(torch.empty(shape[:2])))
    assert kernel.count_nonzero() == centre.count_nonzero()


def test_even_kernels_are_refused():
    with pytest.raises(InputError, match="size 2×3 has no centre tap"):
        init.zero_(torch.empty(4, 4, 2, 3))


def test_vectors_are_refused():
    with pytest.raises(InputError, match=r"shape \[4\], expected a matrix"):
        init.partial_identity_(torch.empty(4))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(100, 30), (30, 100), (33, 7, 3, 3)])
def test_deterministic_ones_touch_no_generator_and_round_once(dtype, shape):
    before = torch.get_rng_state()
    first, second = (init.zero_(torch.empty(shape, dtype=dtype)) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, second)
    assert torch.equal(first, init.zero_(torch.empty(shape, dtype=torch.float64)).to(dtype))


def test_perturbed_identity_is_its_mean_and_spread():
    weight = init.perturbed_identity_(torch.empty(400, 400), 0.1, torch.Generator().manual_seed(0))
    noise = weight - torch.eye(400)
    assert abs(noise.mean()) < 5 * 0.1 / 400
    assert abs(noise.std() / 0.1 - 1) < 0.01
    with pytest.raises(InputError, match="expected a positive number"):
        init.perturbed_identity_(torch.empty(2, 2), 0.0)


def test_gi_initializations_of_figure_3():
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    assert init.gi_(model) is model
    assert all(torch.equal(m.weight, torch.eye(*m.weight.shape)) for m in model if isinstance(m, nn.Linear))
    assert all(not m.bias.any() for m in model if isinstance(m, nn.Linear))
    init.gi_(model, "hadamard")
    assert torch.equal(model[0].weight, init.hadamard_(torch.empty(16, 6)))
    assert torch.equal(model[2].weight, torch.eye(16))


@pytest.mark.parametrize(
    ("model", "kind", "says"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "standard", "belongs to another layer"),
        (nn.ReLU(), "standard", "this model has none"),
        (nn.Linear(2, 2), "zero", "expected 'standard' or 'hadamard'"),
    ],
)
def test_gi_refuses_what_it_is_not_defined_for(model, kind, says):
    with pytest.raises(InputError, match=says):
        init.gi_(model, kind)


def test_unknown_normalization_and_whole_modules_are_refused():
    with pytest.raises(InputError, match="unknown normalization 'unit'"):
        init.hadamard_(torch.empty(4, 2), "unit")
    with pytest.raises(NotBuiltYetError, match="zero_"):
        init.zero_(nn.Linear(2, 2))
