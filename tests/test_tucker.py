"""Tucker-2 against literal float64 references, known answers, tensorly and its own identities."""

import itertools
import math
import threading

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

from zanalysis.analyzers.evbmf import _tau, evbmf
from zanalysis.analyzers.tucker import (
    compress,
    tucker2,
    tucker2_error_surface,
    tucker_curve,
    tucker_parameters,
    tucker_ranks,
)
from zanalysis.errors import InputError

bounded = settings(max_examples=40, derandomize=True, deadline=None, database=None)
shapes = st.tuples(st.integers(1, 7), st.integers(1, 6), st.lists(st.integers(1, 3), max_size=3)).map(
    lambda s: (s[0], s[1], *s[2])
)


def kernel(*shape, seed=0, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def low_rank(c_out, c_in, taps, r_out, r_in, seed=0):
    """A kernel of exactly these two ranks."""
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal(s) for s in ((c_out, r_out), (c_in, r_in), (r_out, r_in, taps))]
    return torch.from_numpy(np.einsum("or,is,rst->oit", *parts))


def literal_hosvd_error(W, r_out, r_in):
    """Project W on the leading singular vectors of its own two unfoldings, and measure what is lost."""
    W = W.numpy().astype(np.float64)
    out = np.linalg.svd(W.reshape(W.shape[0], -1))[0][:, :r_out]
    into = np.linalg.svd(np.moveaxis(W, 1, 0).reshape(W.shape[1], -1))[0][:, :r_in]
    kept = np.einsum("op,pi...->oi...", out @ out.T, W)
    kept = np.einsum("ij,oj...->oi...", into @ into.T, kept)
    return np.linalg.norm(W - kept) / np.linalg.norm(W)


class TestErrorSurface:
    @pytest.mark.parametrize(
        "shape", [(5, 4, 3, 3), (7, 2, 3), (2, 6), (9, 2, 1, 1), (3, 3, 2, 2, 2), (1, 1)]
    )
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_every_entry_is_the_literal_error(self, shape, dtype):
        W = kernel(*shape, dtype=dtype)
        surface = tucker2_error_surface(W)
        assert surface.shape == shape[:2]
        assert surface.dtype == torch.float64
        for i, j in itertools.product(range(shape[0]), range(shape[1])):
            assert surface[i, j].item() == pytest.approx(literal_hosvd_error(W, i + 1, j + 1), abs=1e-12)

    @bounded
    @given(shapes, st.integers(0, 10**6), st.sampled_from([1e-200, 1.0, 1e150]))
    def test_falls_in_both_ranks_and_ends_at_zero(self, shape, seed, scale):
        surface = tucker2_error_surface(kernel(*shape, seed=seed) * scale)
        assert (surface.diff(dim=0) <= 0).all()
        assert (surface.diff(dim=1) <= 0).all()
        assert surface[-1, -1] == 0
        assert (surface < 1).all()

    @bounded
    @given(shapes, st.integers(0, 10**6))
    def test_lies_between_the_tails_of_the_two_unfoldings(self, shape, seed):
        W = kernel(*shape, seed=seed)
        surface = tucker2_error_surface(W).numpy() ** 2
        total = W.square().sum().item()
        tails = []
        for mode in (0, 1):
            s = np.linalg.svd(np.moveaxis(W.numpy(), mode, 0).reshape(shape[mode], -1), compute_uv=False)
            energy = np.zeros(shape[mode])
            energy[: len(s)] = s**2 / total
            tails.append(np.append(np.cumsum(energy[::-1])[::-1], 0)[1:])
        out, into = tails[0][:, None], tails[1][None, :]
        assert (surface >= np.maximum(out, into) - 1e-12).all()
        assert (surface <= out + into + 1e-12).all()

    @bounded
    @given(st.integers(0, 10**6), st.sampled_from([1e-6, 1.0, 1e6]))
    def test_is_invariant_to_scale_rotation_and_swaps_with_the_channels(self, seed, scale):
        W = kernel(6, 4, 3, 2, seed=seed)
        turn = torch.linalg.qr(kernel(6, 6, seed=seed + 1)).Q
        surface = tucker2_error_surface(W)
        turned = torch.einsum("op,pi...->oi...", turn, W) * scale
        assert torch.allclose(tucker2_error_surface(turned), surface, rtol=0, atol=1e-12)
        assert torch.allclose(tucker2_error_surface(W.transpose(0, 1)), surface.T, rtol=0, atol=1e-12)

    def test_of_a_matrix_is_the_tail_of_its_singular_values(self):
        singular_values = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
        surface = tucker2_error_surface(torch.diag(singular_values))
        expected = [(sum(s**2 for s in (4, 2, 1, 1)[r:]) / 22) ** 0.5 for r in (1, 2, 3, 4)]
        assert surface.diagonal().tolist() == pytest.approx(expected, rel=1e-14)

    @pytest.mark.parametrize("size", [1e-4, 1e-8, 1e-11, 1e-13])
    def test_small_errors_keep_their_digits(self, size):
        rng = np.random.default_rng(3)
        out, into = (np.linalg.qr(rng.standard_normal((n, n)))[0] for n in (12, 10))
        # Orthogonal slices of norms 1, 1/2 and `size`: the error at (2, 2) is size / ‖·‖ by construction.
        core = np.zeros((12, 10))
        core[0, 0], core[1, 1], core[2, 2] = 1, 0.5, size
        surface = tucker2_error_surface(torch.from_numpy(out @ core @ into.T))
        assert surface[1, 1].item() == pytest.approx(size / math.sqrt(1.25 + size**2), abs=2e-15)

    def test_a_weak_direction_of_float64_is_resolved(self):
        rng = np.random.default_rng(4)
        out, into = (np.linalg.qr(rng.standard_normal((n, n)))[0] for n in (12, 10))
        core = np.zeros((12, 10))
        core[0, 0], core[1, 1] = 1, 1e-8
        surface = tucker2_error_surface(torch.from_numpy(out @ core @ into.T))
        assert surface[0, 0].item() == pytest.approx(1e-8, rel=1e-6)
        assert surface[1, 1] < 1e-15

    def test_exact_ranks_show(self):
        surface = tucker2_error_surface(low_rank(20, 15, 9, 4, 3))
        assert surface[3, 2] < 1e-14
        assert surface[2, 2] > 1e-2
        assert surface[3, 1] > 1e-2

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_what_the_same_numbers_give(self, dtype):
        W = kernel(6, 5, 3, 3).to(dtype)
        assert torch.allclose(tucker2_error_surface(W), tucker2_error_surface(W.double()), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_nan_where_not_finite(self, bad):
        W = kernel(3, 4, 2)
        W[1, 2, 0] = bad
        assert tucker2_error_surface(W).isnan().all()

    def test_nan_where_undefined(self):
        assert tucker2_error_surface(torch.zeros(3, 4, 2)).isnan().all()
        assert tucker2_error_surface(torch.zeros(3, 4, 0)).isnan().all()
        assert tucker2_error_surface(torch.zeros(3, 0, 2)).shape == (3, 0)
        assert tucker2_error_surface(torch.zeros(0, 2)).shape == (0, 2)

    def test_refuses_what_is_no_kernel(self):
        with pytest.raises(
            InputError, match=r"1-dimensional torch.float32 tensor; expected floating numbers as"
        ):
            tucker2_error_surface(torch.ones(3))
        with pytest.raises(InputError, match=r"2-dimensional torch.int64 tensor"):
            tucker2_error_surface(torch.ones(3, 3, dtype=torch.int64))


class TestTucker2:
    @pytest.mark.parametrize("shape", [(4, 3, 3, 3), (8, 2, 1, 1), (2, 9, 2), (4, 4)])
    @pytest.mark.parametrize("refine", [False, True])
    def test_every_pair_of_ranks(self, shape, refine):
        W = kernel(*shape)
        surface = tucker2_error_surface(W)
        for r_out, r_in in itertools.product(range(1, shape[0] + 1), range(1, shape[1] + 1)):
            found = tucker2(W, (r_out, r_in), refine)
            assert found.core.shape == (r_out, r_in, *shape[2:])
            for factor in (found.factor_out, found.factor_in):
                eye = torch.eye(factor.shape[1], dtype=torch.float64)
                assert torch.allclose(factor.T @ factor, eye, rtol=0, atol=1e-12)
            left = torch.linalg.vector_norm(W - found.kernel()) / torch.linalg.vector_norm(W)
            assert found.error.item() == pytest.approx(left.item(), abs=1e-14)
            hosvd = surface[r_out - 1, r_in - 1].item()
            if refine:
                assert found.error <= hosvd + 1e-14
            else:
                assert found.error.item() == pytest.approx(hosvd, abs=1e-13)

    def test_refinement_is_tensorlys_hooi(self):
        W = kernel(10, 8, 3, 3)
        with tensorly.backend_context("pytorch", local_threadsafe=True):
            _, errors = tensorly.decomposition.partial_tucker(W, rank=[4, 3], modes=[0, 1], tol=1e-10)
        refined = tucker2(W, (4, 3)).error.item()
        assert refined == pytest.approx(float(errors[-1]), rel=1e-3)
        assert refined < tucker2(W, (4, 3), refine=False).error.item() - 1e-3

    def test_exact_low_rank_is_found(self):
        W = low_rank(20, 15, 9, 4, 3)
        for refine in (False, True):
            assert tucker2(W, (4, 3), refine).error < 1e-14

    def test_the_core_carries_the_scale(self):
        W = kernel(4, 3, 2) * 1e-30
        assert torch.allclose(tucker2(W, (4, 3)).kernel(), W, rtol=1e-12, atol=0)

    def test_zero_kernel(self):
        found = tucker2(torch.zeros(4, 3, 2), (2, 2))
        assert found.error.isnan()
        assert found.core.eq(0).all()
        assert torch.equal(found.factor_out.T @ found.factor_out, torch.eye(2, dtype=torch.float64))

    def test_leaves_no_trace_in_tensorly_numpy_or_torch(self):
        W = kernel(6, 5, 3).requires_grad_()
        states = (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
        backend = "numpy"
        tensorly.set_backend(backend)  # whatever an earlier test has left
        found = tucker2(W, (5, 1))
        assert not found.core.requires_grad
        elsewhere = []
        thread = threading.Thread(target=lambda: elsewhere.append(tensorly.get_backend()))
        thread.start()
        thread.join()
        assert (tensorly.get_backend(), elsewhere) == (backend, [backend])
        assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states

    @pytest.mark.parametrize("ranks", [(0, 1), (5, 1), (1, 4), (-1, 2)])
    def test_refuses_ranks_out_of_range(self, ranks):
        with pytest.raises(InputError, match="do not fit a kernel with 4 output and 3 input channels"):
            tucker2(kernel(4, 3, 2), ranks)

    @pytest.mark.parametrize("ranks", [3, (1,), (1, 2, 3), (1.0, 2), "ab", None])
    def test_refuses_what_are_no_ranks(self, ranks):
        with pytest.raises(InputError, match=r"expected two whole numbers \(r_out, r_in\)"):
            tucker2(kernel(4, 3, 2), ranks)

    def test_refuses_nan(self):
        with pytest.raises(InputError, match="The kernel holds NaN or infinities"):
            tucker2(kernel(4, 3, 2) * math.nan, (1, 1))


def literal_free_energy(gamma, rows, columns, sigma2):
    """The objective of the noise variance as it is published, component by component."""
    alpha = rows / columns
    tau = _tau(alpha)
    limit = (1 + tau) * (1 + alpha / tau)
    total = 0.0
    for g in gamma:
        x = g**2 / (columns * sigma2)
        total += x - math.log(x)
        if x > limit:
            t = 0.5 * (x - (1 + alpha) + math.sqrt((x - (1 + alpha)) ** 2 - 4 * alpha))
            total += math.log(t + 1) + alpha * math.log(t / alpha + 1) - t
    return total


_KAPPA = {1: 2.512862, 0.5: 2.5210, 0.25: 2.5452, 1 / 9: 2.5925, 0.05: 2.6569, 0.01: 2.8288, 0.001: 3.1330}
_PLANTED = [(0.05, 0, 1.0252), (0.1, 1, 1.0662), (0.2, 8, 1.0130), (0.5, 8, 1.0121), (3, 8, 1.0121)]


class TestVariationalBayes:
    @pytest.mark.parametrize(("alpha", "kappa"), _KAPPA.items())
    def test_kappa(self, alpha, kappa):
        assert _tau(alpha) / math.sqrt(alpha) == pytest.approx(kappa, abs=6e-5)

    def test_threshold_of_known_noise(self):
        found = evbmf(kernel(20, 50), noise_variance=1.0)
        assert found.threshold == pytest.approx(12.7447, abs=5e-5)
        assert found.noise_variance == 1

    @pytest.mark.parametrize(("mode", "noise"), [(2, 829.858), (3, 828.912)])
    def test_known_integers(self, mode, noise):
        K = torch.from_numpy(np.random.RandomState(0).randint(100, size=(3, 3, 32, 64))).double()
        found = evbmf(K.movedim(mode, 0).flatten(1))
        assert found.rank == 1
        assert found.noise_variance == pytest.approx(noise, abs=5e-4)

    @pytest.mark.parametrize(("size", "rank", "noise"), _PLANTED)
    @pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-5, 1e-100, 1e100])
    @pytest.mark.parametrize("tall", [False, True])
    def test_planted_rank_at_every_scale_and_orientation(self, size, rank, noise, scale, tall):
        rng = np.random.default_rng(0)
        Y = rng.standard_normal((64, 8)) @ rng.standard_normal((8, 576)) * size
        Y = torch.from_numpy(Y + rng.standard_normal((64, 576))) * scale
        found = evbmf(Y.T if tall else Y)
        assert found.rank == rank
        assert found.noise_variance / scale**2 == pytest.approx(noise, abs=6e-5)
        assert found.singular_values.shape == (rank,)

    def test_shrinkage(self):
        L, M, noise = 8, 20, 0.5
        V = torch.zeros(L, M, dtype=torch.float64)
        V.diagonal()[:2] = torch.tensor([30.0, 12.0])
        expected = []
        for g in (30.0, 12.0):
            q = 1 - (L + M) * noise / g**2
            expected.append(g / 2 * (q + math.sqrt(q**2 - 4 * L * M * noise**2 / g**4)))
        for matrix in (V, V.T):
            assert evbmf(matrix, noise).singular_values.tolist() == pytest.approx(expected, rel=1e-12)

    @bounded
    @given(
        st.integers(2, 12),
        st.integers(0, 30),
        st.lists(st.floats(0.5, 60), max_size=6),
        st.integers(0, 10**6),
        st.booleans(),
    )
    def test_noise_is_the_global_minimum(self, rows, more, planted, seed, gapped):
        columns = rows + more
        rng = np.random.default_rng(seed)
        V = rng.standard_normal((rows, columns)) * (0.01 if gapped else 1)
        for value in planted:
            u, v = rng.standard_normal(rows), rng.standard_normal(columns)
            V += value * np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v))
        gamma = np.linalg.svd(V, compute_uv=False)
        highest = (gamma**2).sum() / (rows * columns)
        found = evbmf(torch.from_numpy(V)).noise_variance
        assert found <= highest * (1 + 1e-12)
        here = literal_free_energy(gamma, rows, columns, found)
        least = min(
            literal_free_energy(gamma, rows, columns, s)
            for s in np.geomspace(gamma[-1] ** 2 / columns, highest, 400)
        )
        assert here <= least + 1e-9 * abs(least) + 1e-9

    @pytest.mark.parametrize("shape", [(64, 64), (64, 576), (576, 64), (1, 9), (9, 1)])
    def test_rank_zero_is_legitimate(self, shape):
        assert evbmf(kernel(*shape)).rank == 0
        assert evbmf(torch.eye(*shape)).rank == 0
        assert evbmf(torch.zeros(shape)).rank == 0

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_exact_low_rank(self, dtype):
        rng = np.random.default_rng(5)
        V = torch.from_numpy(rng.standard_normal((60, 5)) @ rng.standard_normal((5, 40)))
        assert evbmf(V.to(dtype)).rank == 5
        V = torch.zeros(20, 30, dtype=dtype)
        V.diagonal()[:3] = torch.tensor([3.0, 2.0, 1.0])
        assert evbmf(V).rank == 3

    def test_refusals(self):
        with pytest.raises(
            InputError, match=r"evbmf got a 3-dimensional torch.float32 tensor; expected a matrix"
        ):
            evbmf(torch.ones(2, 2, 2))
        with pytest.raises(InputError, match="expected a matrix of finite floating numbers"):
            evbmf(torch.tensor([[1.0, math.nan]]))
        for noise in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(InputError, match=r"noise_variance=.*; expected a positive number"):
                evbmf(torch.ones(2, 2), noise)


class TestRanks:
    @bounded
    @given(shapes, st.integers(0, 10**6), st.floats(0, 1))
    def test_by_error_is_the_cheapest_that_will_do(self, shape, seed, allowed):
        W = kernel(*shape, seed=seed)
        ranks = tucker_ranks(W, "error", allowed)
        cost = lambda r: r[0] * shape[0] + r[0] * r[1] * math.prod(shape[2:]) + r[1] * shape[1]  # noqa: E731
        pairs = itertools.product(range(1, shape[0] + 1), range(1, shape[1] + 1))
        errors = {pair: literal_hosvd_error(W, *pair) for pair in pairs}
        assume(all(abs(error - allowed) > 1e-10 for error in errors.values()))
        within = [pair for pair, error in errors.items() if error <= allowed]
        assert ranks in within
        assert cost(ranks) == min(map(cost, within)) == tucker_parameters(shape, ranks)

    @bounded
    @given(shapes, st.integers(0, 10**6), st.floats(0, 1))
    def test_by_energy(self, shape, seed, kept):
        W = kernel(*shape, seed=seed)
        for mode, rank in enumerate(tucker_ranks(W, "energy", kept)):
            s = np.linalg.svd(np.moveaxis(W.numpy(), mode, 0).reshape(shape[mode], -1), compute_uv=False)
            share = np.cumsum(s**2) / (s**2).sum()
            assert share[rank - 1] >= kept - 1e-12
            assert rank == 1 or share[rank - 2] < kept + 1e-12

    def test_known_answers(self):
        W = torch.diag(torch.tensor([4.0, 2.0, 1.0, 1.0]))
        assert tucker_ranks(W, "energy", 16 / 22) == (1, 1)
        assert tucker_ranks(W, "energy", 16.1 / 22) == (2, 2)
        assert tucker_ranks(W, "error", (2 / 22) ** 0.5 + 1e-9) == (2, 2)
        assert tucker_ranks(W, "error", 0.0) == (4, 4)
        assert tucker_ranks(W, "error", 1.0) == (1, 1)

    def test_by_variational_bayes_each_mode_has_its_own(self):
        W = 3 * low_rank(40, 12, 9, 5, 2, seed=1) + kernel(40, 12, 9)
        assert tucker_ranks(W) == tucker_ranks(W * 1e-6) == (5, 2)
        assert tucker_ranks(W.transpose(0, 1)) == (2, 5)
        assert tucker_ranks(W.float().reshape(40, 12, 3, 3)) == (5, 2)

    def test_floor(self):
        identity = torch.eye(6)[..., None]
        assert tucker_ranks(identity) == (1, 1)
        assert tucker_ranks(identity, floor=0) == (0, 0)
        assert tucker_ranks(torch.zeros(3, 8, 3), floor=4) == (3, 4)
        for rule, threshold in (("evb", None), ("error", 0.1), ("energy", 0.9)):
            assert tucker_ranks(torch.zeros(3, 8, 3), rule, threshold) == (1, 1)

    def test_refusals(self):
        W = kernel(3, 4, 2)
        with pytest.raises(InputError, match="rule='evbmf' is not a rule for ranks; did you mean 'evb'"):
            tucker_ranks(W, "evbmf")
        with pytest.raises(InputError, match="rule='error' came with threshold=None; expected a number"):
            tucker_ranks(W, "error")
        with pytest.raises(InputError, match=r"rule='evb' came with threshold=0.5; .* None for 'evb'"):
            tucker_ranks(W, "evb", 0.5)
        with pytest.raises(InputError, match="threshold is nan; expected a number from 0 to 1"):
            tucker_ranks(W, "energy", math.nan)
        with pytest.raises(InputError, match="floor=-1; expected a whole number"):
            tucker_ranks(W, floor=-1)
        with pytest.raises(InputError, match="The kernel holds NaN or infinities"):
            tucker_ranks(W * math.inf)


def network(dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 6, (3, 1), stride=2, padding=(2, 1), dilation=(2, 1), padding_mode="circular"),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, groups=2),
            nn.Flatten(),
            nn.Linear(36, 2),
        )
    return model.to(dtype)


def images(dtype=torch.float64):
    return kernel(2, 3, 7, 7, dtype=dtype)


def bits(model):
    return {name: value.detach().numpy().tobytes() for name, value in model.state_dict().items()}


class TestCurve:
    def test_rows(self):
        model, x = network(), images()
        before, W = bits(model), model[3].weight.detach().clone()
        pairs = [(6, 8), (2, 3), (1, 1)]
        seen = []

        def evaluate(m):
            seen.append(m[3].weight.detach().clone())
            return m(x).sum()

        model.eval()
        curve = tucker_curve(model, evaluate, "3", pairs)
        assert list(curve) == ["layer", "rank_out", "rank_in", "error", "parameters", "score"]
        assert list(zip(curve["rank_out"], curve["rank_in"], strict=True)) == pairs
        assert curve["parameters"] == [tucker_parameters(W.shape, pair) for pair in pairs]
        assert curve["score"][0] == pytest.approx(model(x).sum().item(), rel=1e-12)
        for pair, error, weight in zip(pairs, curve["error"], seen, strict=True):
            assert torch.equal(weight, tucker2(W, pair).kernel())
            assert error == tucker2(W, pair).error
        assert bits(model) == before

    def test_scores_are_those_of_the_compressed_network(self):
        model, x = network().eval(), images()
        curve = tucker_curve(model, lambda m: m(x).square().sum(), "3", [(2, 3)])
        small, _ = compress(model, {"3": (2, 3)})
        assert curve["score"] == [pytest.approx(small(x).square().sum().item(), rel=1e-10)]

    def test_restores_after_an_exception(self):
        model = network()
        before = bits(model)
        with pytest.raises(ZeroDivisionError, match="division by zero"):
            tucker_curve(model, lambda m: 1 / 0, "3", [(1, 1)])
        assert bits(model) == before

    def test_refusals(self):
        with pytest.raises(InputError, match="no layer '4' to work on; known: 0, 3, 5, 7"):
            tucker_curve(network(), lambda m: 0.0, "4", [(1, 1)])
        with pytest.raises(InputError, match=r"layer=\['3'\]; expected one layer's name"):
            tucker_curve(network(), lambda m: 0.0, ["3"], [(1, 1)])
        with pytest.raises(InputError, match="do not fit a kernel with 6 output and 8 input channels"):
            tucker_curve(network(), lambda m: pytest.fail("evaluated"), "3", [(1, 1), (7, 1)])


class TestCompress:
    @pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
    @pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
    def test_full_ranks_compute_the_same(self, kind, mode):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = kind(3, 5, 3, stride=2, padding=2, dilation=2, padding_mode=mode, dtype=torch.float64)
        x = kernel(2, 3, *(7,) * (model.weight.ndim - 2))
        small, report = compress(model, (5, 3))
        assert torch.allclose(small(x), model(x), rtol=0, atol=1e-10)
        assert report.layers[0].error < 1e-12

    def test_a_network_at_full_ranks_computes_the_same(self):
        model, x = network(), images()
        before = bits(model)
        small, report = compress(model, (8, 8), input=x)
        assert [layer.layer for layer in report.layers] == ["0", "3"]
        assert report.left == {"5": "it has 2 groups"}
        model.eval(), small.eval()
        assert torch.allclose(small(x), model(x), rtol=0, atol=1e-10)
        assert bits(model) == before

    def test_the_copy_computes_with_the_approximated_kernel(self):
        model, x = network().eval(), images()
        small, report = compress(model, {"3": (2, 3)}, refine=False)
        W = model[3].weight.detach().clone()
        assert report.layers[0].error == pytest.approx(literal_hosvd_error(W, 2, 3), abs=1e-12)
        assert report.left["0"] == "it is not among the layers that ranks were given for"
        with torch.no_grad():
            model[3].weight.copy_(tucker2(W, (2, 3), refine=False).kernel())
        assert torch.allclose(small(x), model(x), rtol=0, atol=1e-10)

    @pytest.mark.parametrize("ranks", [(2, 3), {"0": (4, 2), "3": (1, 5)}])
    def test_counts_are_exact(self, ranks):
        model, x = network(), images()
        small, report = compress(model, ranks, input=x)
        for module, counted in (
            (model, report.multiplications_before),
            (small, report.multiplications_after),
        ):
            with FlopCounterMode(display=False) as counter:
                module.eval()(x)
            assert counter.get_total_flops() == 2 * counted
        assert report.parameters_before == sum(p.numel() for p in model.parameters())
        assert report.parameters_after == sum(p.numel() for p in small.parameters())
        for layer in report.layers:
            index = int(layer.layer)
            assert layer.parameters_before == sum(p.numel() for p in model[index].parameters())
            assert layer.parameters_after == sum(p.numel() for p in small[index].parameters())
        saved = sum(layer.multiplications_before - layer.multiplications_after for layer in report.layers)
        assert report.multiplications_before - report.multiplications_after == saved

    def test_counts_by_hand(self):
        model = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        _, report = compress(model, (4, 2), input=torch.zeros(5, 16, 8, 8))
        (layer,) = report.layers
        assert (layer.parameters_before, layer.parameters_after) == (16 * 32 * 9 + 32, 32 + 72 + 128 + 32)
        assert (layer.per_output_before, layer.per_output_after, layer.per_input_after) == (4608, 200, 32)
        assert layer.multiplications_before == 5 * 16 * 4608 == report.multiplications_before
        assert layer.multiplications_after == 5 * (16 * 200 + 64 * 32) == report.multiplications_after
        assert compress(model, (4, 2))[1].multiplications_after is None

    def test_keeps_everything_else(self):
        model = network(torch.float32)
        model.eval()
        model[3].train()
        model[3].weight.requires_grad_(False)
        state = torch.get_rng_state()
        small, _ = compress(model, (2, 2), input=images(torch.float32))
        assert torch.equal(torch.get_rng_state(), state)
        assert [m.training for m in small[3].modules()] == [True] * 4
        assert not small[0].training
        assert not small.training
        assert [p.requires_grad for p in small[3].parameters()] == [False, False, False, True]
        assert {p.dtype for p in small.parameters()} == {torch.float32}
        assert torch.equal(small[3].expand.bias, model[3].bias)
        assert small[3].expand.bias is not model[3].bias
        assert small[0].expand.bias is None
        assert isinstance(model[0], nn.Conv2d)

    def test_a_module_used_twice_is_replaced_in_both_places(self):
        convolution = nn.Conv2d(4, 4, 3, padding=1, dtype=torch.float64)
        model = nn.ModuleDict({"a": convolution, "b": nn.Sequential(convolution)})
        small, report = compress(model, (2, 2))
        assert small["a"] is small["b"][0]
        assert [layer.layer for layer in report.layers] == ["a"]

    def test_a_rule_leaves_what_it_cannot_make_smaller(self):
        model = nn.Sequential(
            nn.Conv2d(12, 40, 3, dtype=torch.float64), nn.Conv2d(40, 3, 1, dtype=torch.float64)
        )
        W = 3 * low_rank(40, 12, 9, 5, 2, seed=1) + kernel(40, 12, 9)
        with torch.no_grad():
            model[0].weight.copy_(W.reshape(40, 12, 3, 3))
        small, report = compress(model)
        assert [(layer.rank_out, layer.rank_in) for layer in report.layers] == [(5, 2), (1, 1)]
        assert small[0].core.weight.shape == (5, 2, 3, 3)
        _, report = compress(model, "error", threshold=0.0)
        assert report.layers == ()
        assert report.left["1"] == "at the ranks (3, 40) it would not become smaller"

    def test_what_cannot_be_replaced_says_why(self):
        class Own(nn.Conv1d):
            pass

        tied, twin, first = nn.Conv1d(2, 2, 3), nn.Conv1d(2, 2, 3), nn.Conv1d(2, 2, 3)
        twin.weight = tied.weight
        normed = parametrizations.weight_norm(nn.Conv1d(2, 2, 3))
        model = nn.ModuleList([first, tied, twin, normed, Own(2, 2, 3)])
        _, report = compress(model, (1, 1))
        assert [layer.layer for layer in report.layers] == ["0"]
        assert report.left["1"] == report.left["2"] == "its weight is tied to another layer's"
        assert report.left["3"].startswith("its weight is computed from other tensors")
        assert report.left["4"] == "it is a Own, which may compute something else"

    def test_refusals(self):
        with pytest.raises(InputError, match="Linear has no convolution to compress; expected a Conv1d"):
            compress(nn.Linear(2, 2))
        with pytest.raises(InputError, match="ranks='erorr' is not a rule; did you mean 'error'"):
            compress(network(), "erorr")
        with pytest.raises(InputError, match=r"threshold=0.5 belongs to a rule"):
            compress(network(), (1, 1), threshold=0.5)
        with pytest.raises(InputError, match="no layer '9' to work on"):
            compress(network(), {"9": (1, 1)})
        with pytest.raises(InputError, match=r"Layer '3': ranks=\(7, 1\) do not fit a kernel with 6 output"):
            compress(network(), {"3": (7, 1)})
        with pytest.raises(InputError, match="do not fit a kernel with 8 output and 8 input"):
            compress(network(), (0, 1))
        with pytest.raises(InputError, match="Layer '0': rule='energy' came with threshold=None"):
            compress(network(), "energy")
        with pytest.raises(InputError, match="Sequential cannot be copied: Only Tensors created explicitly"):
            compress(nn.Sequential(prune.identity(nn.Conv1d(2, 2, 3), "weight")))
        broken = network()
        with torch.no_grad():
            broken[3].weight[0, 0] = math.nan
        with pytest.raises(InputError, match="Layer '3': The kernel holds NaN"):
            compress(broken)
