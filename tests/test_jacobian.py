"""Jacobian spectra against autograd and numpy, and against networks whose Jacobians are known."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zanalysis.analyzers.block_lanczos import extreme_singular_values
from zanalysis.analyzers.jacobian import jacobian_singular_values
from zanalysis.errors import InputError


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Matrices this small gain nothing from threads, and wait for them where other tests run beside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def literal(model, x):
    """One sample after another, by autograd's own Jacobian and numpy's SVD."""
    rows = []
    for sample in x:
        jacobian = torch.autograd.functional.jacobian(lambda s: model(s.clone()[None])[0], sample)
        matrix = jacobian.reshape(-1, sample.numel()).double().numpy()
        rows.append(np.linalg.svd(matrix, compute_uv=False))
    return np.stack(rows)


class First(nn.Module):
    """A recurrent layer that returns its outputs alone."""

    def __init__(self, kind):
        super().__init__()
        self.layer = kind(3, 4, batch_first=True)

    def forward(self, x):
        return self.layer(x)[0]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.layer(x, x, x)[0]


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.branch = nn.Linear(width, width)
        nn.init.zeros_(self.branch.weight)

    def forward(self, x):
        return x + self.branch(x).relu()


class Square(torch.autograd.Function):
    """An operation of the old kind, which torch.func refuses."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


class Squares(nn.Module):
    def forward(self, x):
        return Square.apply(x)


def convolutional():
    return nn.Sequential(
        nn.ReLU(inplace=True),
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


CASES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 4)), (7,)),
    "wide": (lambda: nn.Sequential(nn.Linear(2, 9), nn.GELU(), nn.Linear(9, 11)), (2,)),
    "convolution": (convolutional, (2, 4, 4)),
    "layernorm": (lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Softmax(-1)), (6,)),
    "attention": (Attention, (3, 8)),
    "transformer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (3, 8)),
    "lstm": (lambda: First(nn.LSTM), (3, 3)),
    "gru": (lambda: First(nn.GRU), (3, 3)),
    "old function": (lambda: nn.Sequential(nn.Linear(4, 4), Squares(), nn.Linear(4, 3)), (4,)),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_autograd_and_numpy_whatever_the_layers(name):
    build, shape = CASES[name]
    torch.manual_seed(0)
    model = build().double().train()
    x = torch.randn(3, *shape, dtype=torch.float64)
    ours = jacobian_singular_values(model, x)
    assert all(module.training for module in model.modules())
    expected = literal(model.eval(), x.clone())
    assert ours.dtype == torch.float64
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-12 * expected.max())
    k = min(3, expected.shape[1])
    for smallest, wanted in ((False, slice(0, k)), (True, slice(expected.shape[1] - k, None))):
        for method in ("dense", "lanczos"):
            some = jacobian_singular_values(model, x, k=k, smallest=smallest, method=method)
            np.testing.assert_allclose(
                some.numpy(), expected[:, wanted], rtol=1e-8, atol=1e-10 * expected.max()
            )


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    samples=st.integers(1, 4),
    memory=st.sampled_from([1, 2000, 2**28]),
    seed=st.integers(0, 2**20),
)
def test_property_a_linear_network_has_the_spectrum_of_its_product(widths, samples, memory, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(*[nn.Linear(a, b) for a, b in pairwise(widths)]).double()
    product = np.eye(widths[0])
    for layer in model:
        product = layer.weight.detach().numpy() @ product
    expected = np.linalg.svd(product, compute_uv=False)
    x = torch.randn(samples, widths[0], dtype=torch.float64)
    ours = jacobian_singular_values(model, x, memory=memory)
    np.testing.assert_allclose(
        ours.numpy(), np.tile(expected, (samples, 1)), rtol=1e-9, atol=1e-13 * expected[0]
    )
    assert (ours[:, :-1] >= ours[:, 1:]).all()


def test_an_identity_initialized_residual_network_is_exactly_isometric():
    model = nn.Sequential(*[Residual(24) for _ in range(6)])
    x = torch.randn(5, 24)
    assert (jacobian_singular_values(model, x) == 1.0).all()
    double = jacobian_singular_values(model.double(), x.double(), k=24, method="lanczos")
    np.testing.assert_allclose(double.numpy(), 1.0, rtol=0, atol=1e-13)


def test_relu_and_partial_identity_count_the_active_inputs():
    model = nn.Sequential(nn.Linear(6, 10, bias=False), nn.ReLU(), nn.Linear(10, 6, bias=False))
    nn.init.eye_(model[0].weight)
    nn.init.eye_(model[2].weight)
    x = torch.tensor([[1.0, -1, 2, -2, 3, 4], [-1.0] * 6])
    ours = jacobian_singular_values(model, x)
    assert ours.tolist() == [[1, 1, 1, 1, 0, 0], [0] * 6]


@pytest.mark.parametrize(
    ("dtype", "strengths", "rtol"),
    [
        (torch.float64, [1.0, 1e-9, 1e-12], 1e-3),
        (torch.float64, [1.0, 0.5, 2e-3], 1e-12),
        (torch.float32, [1.0, 1e-5, 1e-7], 1e-7),
        (torch.float32, [1.0, 0.5, 2e-3], 1e-9),
    ],
)
def test_a_thin_jacobian_keeps_its_small_singular_values(dtype, strengths, rtol):
    """The squares of some are below the rounding of the largest one's: a Gram matrix would lose them."""
    model = nn.Linear(40, 3, bias=False, dtype=dtype)
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((side, 3)))[0] for side in (3, 40))
    model.weight.data = torch.from_numpy(left * strengths @ right.T).to(dtype)
    expected = np.linalg.svd(model.weight.detach().double().numpy(), compute_uv=False)
    ours = jacobian_singular_values(model, torch.zeros(2, 40, dtype=dtype))
    np.testing.assert_allclose(ours.numpy(), np.tile(expected, (2, 1)), rtol=rtol)


def test_between_named_layers():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 4)
    ).double()
    x = torch.randn(3, 5, dtype=torch.float64)
    hidden = model[0](x).detach()
    parts = {
        (None, None): (x, model),
        ("0", None): (hidden, model[1:]),
        ("0", "2"): (hidden, model[1:3]),
        ("1", "2"): (hidden.relu(), model[2:3]),
        (None, "0"): (x, model[:1]),
        ("2", "3"): (model[:3](x).detach(), model[3:4]),
        ("4", "4"): (torch.zeros(3, 4, dtype=torch.float64), nn.Identity()),
    }
    for (source, target), (start, part) in parts.items():
        plain = nn.Sequential(*[nn.ReLU() if isinstance(m, nn.ReLU) else m for m in part.children()])
        for method in ("dense", "lanczos"):
            ours = jacobian_singular_values(model, x, source=source, target=target, method=method)
            np.testing.assert_allclose(ours.numpy(), literal(plain, start.clone()), rtol=1e-8, atol=1e-10)


def test_tokens_start_at_the_embedding():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(12, 3)).double()
    tokens = torch.randint(0, 11, (2, 3))
    ours = jacobian_singular_values(model, tokens, source="0")
    expected = np.linalg.svd(model[2].weight.detach().numpy(), compute_uv=False)
    np.testing.assert_allclose(ours.numpy(), np.tile(expected, (2, 1)), rtol=1e-12)
    with pytest.raises(InputError, match="name the layer to start from"):
        jacobian_singular_values(model, tokens)


def test_tuples_are_differentiated_by_their_first_tensor():
    torch.manual_seed(0)
    model = nn.LSTM(3, 4, batch_first=True).double()
    x = torch.randn(2, 2, 3, dtype=torch.float64)
    expected = literal(lambda s: model(s)[0], x)
    np.testing.assert_allclose(jacobian_singular_values(model, x).numpy(), expected, rtol=1e-9)
    stacked = nn.ModuleDict({"lstm": model, "head": nn.Linear(4, 2).double()})
    stacked.forward = lambda s: stacked["head"](stacked["lstm"](s)[0])
    ours = jacobian_singular_values(stacked, x, source="lstm")
    weight = np.linalg.svd(stacked["head"].weight.detach().numpy(), compute_uv=False)
    np.testing.assert_allclose(ours.numpy(), np.tile(np.sort(np.repeat(weight, 2))[::-1], (2, 1)), rtol=1e-12)


def test_lanczos_is_chosen_where_few_values_of_a_large_map_are_asked():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 150), nn.Tanh(), nn.Linear(150, 120)).double()
    x = torch.randn(2, 200, dtype=torch.float64)
    expected = literal(model, x)
    np.testing.assert_allclose(jacobian_singular_values(model, x, k=2), expected[:, :2], rtol=1e-9)
    np.testing.assert_allclose(
        jacobian_singular_values(model, x, k=60, memory=500_000), expected[:, :60], rtol=1e-9
    )
    single = jacobian_singular_values(model.float(), x.float(), k=2, method="lanczos")
    np.testing.assert_allclose(single, expected[:, :2], rtol=1e-5)


def test_what_is_not_certified_is_nan():
    torch.manual_seed(0)
    model = nn.Linear(400, 300).double()
    ours = jacobian_singular_values(model, torch.zeros(1, 400).double(), k=1, method="lanczos", memory=1)
    assert ours.isnan().all()


def test_a_row_that_is_not_finite_is_nan_and_the_others_stand():
    class Root(nn.Module):
        def forward(self, x):
            return x.sqrt()

    x = torch.tensor([[1.0, 4.0], [0.0, 1.0], [-1.0, 1.0], [4.0, 1.0]])
    for method in ("dense", "lanczos"):
        ours = jacobian_singular_values(Root(), x, method=method)
        assert ours.isnan().all(1).tolist() == [False, True, True, False]
        np.testing.assert_allclose(ours[[0, 3]], [[0.5, 0.25], [0.5, 0.25]], rtol=1e-6)


def fingerprint(model):
    return (
        [m.training for m in model.modules()],
        [(name, id(b), b.tolist()) for name, b in model.named_buffers()],
        [
            (name, id(p), p.requires_grad, p.grad if p.grad is None else p.grad.tolist())
            for name, p in model.named_parameters()
        ],
        [dict(getattr(m, name)) for m in model.modules() for name in vars(m) if name.endswith("_hooks")],
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
    )


def test_the_model_and_the_generator_are_as_they_were():
    torch.manual_seed(0)
    model = convolutional().train()
    model[2].eval()
    model[1].weight.requires_grad_(False)
    model(torch.randn(4, 2, 4, 4)).sum().backward()
    x = torch.randn(3, 2, 4, 4)
    kept, before = x.clone(), fingerprint(model)
    for method in ("dense", "lanczos"):
        jacobian_singular_values(model, x, method=method, source="1", target="7")
        jacobian_singular_values(model, x, method=method)
    assert fingerprint(model) == before
    assert torch.equal(x, kept)
    with pytest.raises(RuntimeError, match="expected input"):
        jacobian_singular_values(model, torch.ones(3, 5, 4, 4), source="1")
    assert fingerprint(model) == before


def test_the_mode_is_eval_whatever_it_was():
    """In train mode BatchNorm would see a single sample, and dropout would zero a half."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)).double()
    model[1].running_var.fill_(4.0)
    x = torch.randn(2, 6, dtype=torch.float64)
    weight = model[0].weight.detach().numpy() / np.sqrt(4.0 + model[1].eps)
    expected = np.tile(np.linalg.svd(weight, compute_uv=False), (2, 1))
    np.testing.assert_allclose(jacobian_singular_values(model.train(), x), expected, rtol=1e-10)


def test_input_errors_say_what_is_wrong():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(9, 9))
    model.forward = lambda x: model[1](model[0](model[0](x)))
    x = torch.zeros(2, 4)
    with pytest.raises(InputError, match="did you mean 'dense'"):
        jacobian_singular_values(model, x, method="dens")
    with pytest.raises(InputError, match=r"between 1 and min\(outputs, inputs\) = 3"):
        jacobian_singular_values(model, x, k=4)
    with pytest.raises(InputError, match="no layer 'x'"):
        jacobian_singular_values(model, x, source="x")
    with pytest.raises(InputError, match="'0' is called 2 times"):
        jacobian_singular_values(model, x, source="0")
    with pytest.raises(InputError, match="'0' is called 2 times"):
        jacobian_singular_values(model, x, target="0")
    with pytest.raises(InputError, match="'2' is called 0 times"):
        jacobian_singular_values(model, x, target="2")
    with pytest.raises(InputError, match="'0' runs before '1'"):
        jacobian_singular_values(model, x, source="1", target="0")
    with pytest.raises(InputError, match="no samples"):
        jacobian_singular_values(model, x[:0])


def spectrum(name):
    rng = np.random.default_rng(0)
    return {
        "repeated": [2.0] * 6 + [1.0] * 40 + [0.0] * 4,
        "decades": np.logspace(0, -12, 50),
        "flat": np.linspace(1.0, 0.9, 50),
        "random": rng.random(50),
        "identity": np.ones(50),
        "zero": np.zeros(50),
    }[name]


@pytest.mark.parametrize("name", ["repeated", "decades", "flat", "random", "identity", "zero"])
@pytest.mark.parametrize("shape", [(50, 50), (90, 50), (50, 90)])
def test_lanczos_finds_either_end_of_any_spectrum(name, shape):
    rng = np.random.default_rng(1)
    left, right = (np.linalg.qr(rng.standard_normal((side, 50)))[0] for side in shape)
    A = torch.from_numpy((left * spectrum(name)) @ right.T)
    sigma = np.linalg.svd(A.numpy(), compute_uv=False)
    before = torch.get_rng_state()
    for k in (1, 7, 50):
        for smallest in (False, True):
            ours = extreme_singular_values(
                lambda v: A @ v, lambda u: A.T @ u, shape, k, smallest=smallest, tolerance=1e-10
            )
            expected = sigma[-k:] if smallest else sigma[:k]
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10 * max(sigma[0], 1e-300))
    assert torch.equal(before, torch.get_rng_state())
