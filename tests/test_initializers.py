"""Initializations against scipy, the paper's definitions and themselves."""

import math

import pytest
import scipy.linalg
import torch
from torch import nn

from zanalysis import initializers as init
from zanalysis.errors import InputError

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
    assert init.gi_(model).model is model
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


@pytest.mark.parametrize("fill", [init.hadamard_, init.zero_])
@pytest.mark.parametrize(
    "target", [torch.empty(4, 2), torch.empty(2, 4), nn.Linear(2, 2)], ids=["tall", "wide", "module"]
)
def test_unknown_normalizations_are_refused(fill, target):
    with pytest.raises(InputError, match="unknown normalization 'unit'"):
        fill(target, "unit")


FILLS = {
    "hadamard_": init.hadamard_,
    "partial_identity_": init.partial_identity_,
    "zero_": init.zero_,
    "perturbed_identity_": lambda tensor: init.perturbed_identity_(tensor, 0.1),
}


@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.ones(4, 2, dtype=torch.int64), "dtype torch.int64, expected a floating dtype"),
        (torch.ones(4, 2, dtype=torch.bool), "dtype torch.bool, expected a floating dtype"),
        (torch.ones(4, 2, dtype=torch.complex64), "dtype torch.complex64, expected a floating dtype"),
        (torch.ones(4, 2).to(torch.float8_e4m3fn), "dtype torch.float8_e4m3fn, whose eight bits mean"),
        (torch.ones(1, 1).expand(3, 3), r"expanded tensor of shape \[3, 3\].*share memory"),
        (torch.ones(4, 1).expand(4, 2), "call .clone\\(\\) first"),
        ([[1.0]], "got list, expected a tensor to fill in place"),
    ],
    ids=["integers", "truth values", "complex", "eight bits", "expanded", "expanded columns", "lists"],
)
def test_what_cannot_hold_the_result_is_refused_and_left_alone(name, tensor, says):
    before = tensor.clone() if isinstance(tensor, torch.Tensor) else torch.tensor(tensor)
    with pytest.raises(InputError, match=says):
        FILLS[name](tensor)
    assert torch.equal(torch.as_tensor(tensor).to(torch.complex64), before.to(torch.complex64))


@pytest.mark.parametrize("name", FILLS)
def test_on_the_meta_device_nothing_is_filled(name):
    tensor = torch.empty(1 << 15, 4, device="meta")
    assert FILLS[name](tensor) is tensor
    assert tensor.is_meta


@pytest.mark.parametrize(
    "shape", [(1, 1), (2, 1), (1, 2), (5, 8), (8, 5), (33, 3), (3, 33), (64, 64), (100, 65)]
)
def test_only_the_part_of_hadamards_matrix_that_is_needed_is_the_same(shape):
    m = max(0, max(shape) - 1).bit_length()
    whole = init.hadamard(m, dtype=torch.float64)[: shape[0], : shape[1]] * math.sqrt(2.0**-m)
    assert torch.equal(init.hadamard_(torch.empty(shape, dtype=torch.float64)), whole)


def test_a_tall_hadamard_is_built_without_the_square_one():
    weight = init.hadamard_(torch.empty(1 << 17, 2))  # the square one would take 128 GiB
    assert torch.equal(weight[:, 0], torch.full((1 << 17,), 2**-8.5))
    assert torch.equal(weight[:4, 1].sign(), torch.tensor([1.0, -1.0, 1.0, -1.0]))
    assert init.hadamard_(torch.empty(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("value", ["a", None, math.nan, math.inf, True, [1.0, 2.0]])
def test_numbers_that_are_none_are_refused(value):
    with pytest.raises(InputError, match=r"got std = .*expected a finite number"):
        init.perturbed_identity_(torch.empty(2, 2), value)
    with pytest.raises(InputError, match=r"got gain = .*expected a finite number"):
        init.partial_identity_(torch.empty(2, 2), value)
