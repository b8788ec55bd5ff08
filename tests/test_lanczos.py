"""σ₁ by Lanczos against the full spectrum, cold, warm, along real trainings and against adversaries."""

import numpy as np
import pytest
import torch

from zanalysis.analyzers import lanczos, norms
from zanalysis.analyzers.lanczos import LOOSE, TIGHT, WarmStart, top_singular
from zanalysis.analyzers.metrics import plan
from zanalysis.analyzers.residual import Residual
from zanalysis.analyzers.spectrum import spectral_norm, stable_rank


def literal_stable_rank(W):
    values = np.linalg.svd(np.asarray(W, dtype=np.float64), compute_uv=False)
    return float((values**2).sum() / values[0] ** 2)


def with_spectrum(values, seed, columns=None):
    generator = torch.Generator().manual_seed(seed)
    values = torch.as_tensor(values, dtype=torch.float64)
    n = len(values)
    left = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(columns or n, n, generator=generator, dtype=torch.float64))[0]
    return left @ torch.diag(values) @ right.mT


SPECTRA = {
    "gaussian": np.linalg.svd(np.random.default_rng(0).standard_normal((200, 200)), compute_uv=False),
    "linear": np.linspace(1, 0.1, 200),
    "power": np.arange(1, 201) ** -0.5,
    "twins": np.r_[1.0006, 1.0, np.linspace(0.5, 0, 198)],
    "close": np.r_[1.002, 1.0, np.linspace(0.99, 0, 198)],
    "fourteen decades": 10 ** np.linspace(0, -14, 200),
    "identity": np.ones(200),
    "identity and a direction": np.r_[1.01, np.ones(199)],
    "rank one": np.r_[1.0, np.zeros(199)],
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cold_start_finds_the_top_of_any_spectrum(name, dtype):
    A = with_spectrum(SPECTRA[name], 3, 260).to(dtype)
    exact = np.linalg.svd(A.double().numpy(), compute_uv=False)[0]
    assert top_singular(A, LOOSE).value == pytest.approx(exact, rel=LOOSE / 2)
    assert float(spectral_norm(A)) == pytest.approx(exact, rel=1e-8)
    assert float(stable_rank(A)) == pytest.approx(literal_stable_rank(A), rel=1e-4)


def test_a_sloppier_bound_would_be_wrong_on_twins():
    """Many starts: the bound that ignores close pairs fails on one in four of these."""
    A = torch.diag(torch.as_tensor(SPECTRA["twins"]))
    generator = torch.Generator().manual_seed(1)
    starts = torch.randn(200, 200, generator=generator, dtype=torch.float64)
    worst = max(1 - (top_singular(A, LOOSE, start).value / 1.0006) ** 2 for start in starts)
    assert worst <= 1e-4


def test_the_bound_is_a_bound():
    for seed in range(5):
        A = torch.randn(160, 140, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        exact = float(torch.linalg.svdvals(A)[0])
        for tolerance in (1e-2, LOOSE, TIGHT):
            top = top_singular(A, tolerance)
            assert top.error <= tolerance
            assert -1e-12 <= (exact**2 - top.value**2) / top.value**2 <= max(top.error, 1e-12)


class TestAdversaries:
    """A matrix whose top is orthogonal to everything the last record has seen."""

    @pytest.mark.parametrize("excess", [1.0, 0.1, 0.01])
    def test_a_new_direction_is_found(self, excess):
        n = 256
        warm = WarmStart()
        W = torch.diag(torch.linspace(1, 0.05, n))
        assert Residual.of(W, warm=warm).stable_rank > 1
        W[n - 1, n - 1] = 1 + excess  # the old top vectors are orthogonal to the new one, exactly
        found = float(Residual.of(W, warm=warm).stable_rank)
        assert found == pytest.approx(literal_stable_rank(W), rel=1e-4)

    def test_two_singular_values_that_cross_slowly(self):
        warm = WarmStart()
        for step in range(41):
            shift = (step - 20) * 1e-4
            W = torch.diag(torch.cat([torch.tensor([1 + shift, 1 - shift]), torch.linspace(0.9, 0, 198)]))
            found = float(Residual.of(W, warm=warm).stable_rank)
            assert found == pytest.approx(literal_stable_rank(W), rel=1e-4), step

    def test_a_stale_start_of_another_shape_is_ignored(self):
        warm = WarmStart()
        for shape in [(200, 150), (200, 160), (130, 300)]:
            W = torch.randn(shape, generator=torch.Generator().manual_seed(2))
            assert float(Residual.of(W, warm=warm).stable_rank) == pytest.approx(
                literal_stable_rank(W), rel=1e-4
            )

    def test_a_poisoned_start_costs_time_only(self):
        W = torch.diag(torch.linspace(1, 0.05, 200))
        warm = WarmStart()
        assert Residual.of(W, warm=warm).stable_rank > 1
        for key in warm.vectors:
            warm.vectors[key] = torch.eye(200)[-6:]
        assert float(Residual.of(W, warm=warm).stable_rank) == pytest.approx(literal_stable_rank(W), rel=1e-4)


def training(optimizer, scale, steps, every, width=160):
    """A small network on the digits; yields the hidden weight at each record."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.data / 16, dtype=torch.float32)
    y = torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(0)
    sizes = [(width, 64), (width, width), (10, width)]
    weights = [
        (torch.randn(size, generator=generator) * scale / size[1] ** 0.5).requires_grad_() for size in sizes
    ]
    optimizer = optimizer(weights)
    for step in range(steps):
        if step % every == 0:
            yield weights[1].detach().clone()
        batch = torch.randint(len(x), (64,), generator=generator)
        hidden = x[batch]
        for weight in weights[:-1]:
            hidden = torch.relu(hidden @ weight.mT)
        loss = torch.nn.functional.cross_entropy(hidden @ weights[-1].mT, y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("optimizer", "scale"),
    [
        (lambda w: torch.optim.SGD(w, 0.1, momentum=0.9), 1.0),
        (lambda w: torch.optim.Adam(w, 3e-3), 1.0),
        (lambda w: torch.optim.Adam(w, 1e-2), 1e-2),
    ],
    ids=["momentum", "adam", "small initialization"],
)
def test_along_a_real_training_every_record_is_right(optimizer, scale):
    warm, steps, start = WarmStart(), plan(("stable_rank",), ("none", "init")), None
    for W in training(optimizer, scale, 200, 4):
        start = W if start is None else start
        measured, _ = steps.evaluate(W, {"none": None, "init": start}, warm=warm)
        assert float(measured[0].value) == pytest.approx(literal_stable_rank(W), rel=1e-4)
        if not torch.equal(W, start):
            update = W.double() - start.double()
            assert float(measured[1].value) == pytest.approx(literal_stable_rank(update), rel=1e-4)


def test_warm_starts_save_steps():
    cold, warm, kept = [], [], None
    for W in training(lambda w: torch.optim.SGD(w, 0.1, momentum=0.9), 1.0, 120, 4):
        cold.append(top_singular(W, LOOSE).steps)
        top = top_singular(W, LOOSE, kept)
        kept = top.leading
        warm.append(top.steps)
    assert np.sum(warm) < 0.8 * np.sum(cold)


def test_nobodys_random_numbers_are_spent():
    before = torch.get_rng_state()
    spectral_norm(torch.randn(200, 200, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_same_question_has_the_same_answer():
    W = torch.randn(300, 200, generator=torch.Generator().manual_seed(0))
    assert stable_rank(W) == stable_rank(W)


def twins(seed, size):
    """A spectrum with two singular values that a start may mistake for each other, and such a start."""
    rng = np.random.default_rng(seed)
    values = np.sort(rng.uniform(0.1, 0.97, size))[::-1].copy()
    values[0], values[1] = 1.0, 1 - 4e-4
    start = rng.standard_normal(size)
    start[0] *= 1e-3  # almost nothing of the first vector
    return torch.diag(torch.from_numpy(values)).float(), torch.from_numpy(start).float()


@pytest.mark.parametrize("seed", range(5))
def test_a_start_that_misses_the_top_is_found_out(seed):
    A, start = twins(seed, 200)
    missed = top_singular(A, LOOSE, start)
    assert missed.error <= LOOSE
    assert missed.value < 1 - 3e-4  # that some singular value is near is all that a residual shows
    assert not norms.at_most(A, missed.value * (1 + LOOSE) ** 0.5)


@pytest.mark.parametrize("proved", [512, 100], ids=["by the proof", "by a second start"])
@pytest.mark.parametrize("seed", range(5))
def test_the_norm_is_right_where_the_first_start_misses_it(seed, proved, monkeypatch):
    A, start = twins(seed, 200)
    monkeypatch.setattr(norms, "PROVED", proved)
    monkeypatch.setattr(
        lanczos, "_random", lambda like, seed=0: (start * 1e-4 ** (torch.arange(200) == 0)).to(like)
    )
    assert float(spectral_norm(A)) == pytest.approx(1, rel=1e-9)
    if proved == 512:
        assert float(stable_rank(A)) == pytest.approx(literal_stable_rank(A), rel=1e-6)


def test_the_proof_proves_no_more_than_is_true():
    for seed in range(20):
        A = torch.randn(140 + seed, 300 - seed, generator=torch.Generator().manual_seed(seed))
        A = A.mT if seed % 2 else A
        exact = float(torch.linalg.svdvals(A.double())[0])
        assert norms.at_most(A, exact * (1 + 2e-5))
        assert not norms.at_most(A, exact * (1 - 1e-5))
        assert norms.at_most(A.double(), exact * (1 + 1e-11))
        assert not norms.at_most(A.double(), exact * (1 - 1e-11))


@pytest.mark.parametrize("seed", range(30))
def test_near_twins_in_random_directions(seed):
    rng = np.random.default_rng(seed)
    values = np.linspace(0.1, 1, int(rng.integers(130, 260)))
    values[-2] = 1 - 10 ** rng.uniform(-4, -3)
    A = with_spectrum(values, seed, len(values) + 20).float()
    assert float(stable_rank(A)) == pytest.approx(literal_stable_rank(A), rel=1e-4)
