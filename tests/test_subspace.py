"""σ₁ refined from the last record's leading vectors, against the full spectrum: error, bound, and what it misses."""

import numpy as np
import pytest
import torch

from zanalysis.analyzers import norms
from zanalysis.analyzers.counting import _by_squares
from zanalysis.analyzers.lanczos import WarmStart, top_singular
from zanalysis.analyzers.metrics import plan
from zanalysis.analyzers.residual import Residual
from zanalysis.analyzers.small import stable_ranks
from zanalysis.analyzers.spectrum import stable_rank
from zanalysis.analyzers.subspace import KEPT, Refined, refined


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def literal(W):
    values = np.linalg.svd(np.asarray(W, dtype=np.float64), compute_uv=False)
    return float((values**2).sum() / values[0] ** 2)


def leading(A):
    return torch.linalg.svd(A.double())[2][:KEPT].float()


@pytest.mark.parametrize("change", [0.0, 1e-4, 1e-3, 1e-2, 1e-1])
@pytest.mark.parametrize("shape", [(300, 200), (400, 400)])
def test_the_bound_holds_whatever_has_changed(shape, change):
    """Below by rounding of float32 (1e-6), above by what the bound says."""
    for seed in range(8):
        A = draw(*shape, seed=seed)
        vectors = leading(A)
        A = A + change * draw(*shape, seed=100 + seed)
        found = refined(A, vectors, seed, 0.0)
        exact = float(torch.linalg.svdvals(A.double())[0]) ** 2
        assert -2e-6 <= (exact - found.square) / found.square <= found.error + 2e-6
        torch.testing.assert_close(found.vectors @ found.vectors.mT, torch.eye(KEPT), atol=2e-5, rtol=0)


def test_a_small_change_is_certified_and_a_large_one_is_not():
    A = draw(500, 400)
    vectors = leading(A)
    assert refined(A + 1e-3 * draw(500, 400, seed=1), vectors, 0, 0.0).error <= norms.REFINED
    assert refined(draw(500, 400, seed=2), vectors, 0, 0.0).error > norms.REFINED


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_the_basis_stays_orthonormal_where_nothing_is_left(rank):
    A = draw(300, rank) @ draw(rank, 250, seed=1)
    found = refined(A, leading(A), 0, 0.0)
    exact = float(torch.linalg.svdvals(A.double())[0]) ** 2
    assert found.square == pytest.approx(exact, rel=2e-6)


def test_near_twins_in_the_block_do_no_harm():
    n = 256
    values = torch.cat([torch.tensor([1.0, 1 - 1e-6, 1 - 3e-6]), torch.linspace(0.8, 0.1, n - 3)])
    left, right = (torch.linalg.qr(draw(n, n, seed=seed).double())[0] for seed in (1, 2))
    A = (left @ torch.diag(values.double()) @ right.mT).float()
    found = refined(A + 1e-4 * draw(n, n, seed=3) / n**0.5, leading(A), 0, 0.0)
    assert found.error <= 1e-5


def test_what_is_orthogonal_and_barely_larger_is_found_by_the_next_check_and_said(monkeypatch):
    """Between two checks only chance sees it; the check does, and the record says how long it may have been so."""
    monkeypatch.setattr(norms, "ALWAYS_PROVED", 0)
    n = 256
    W = torch.diag(torch.linspace(1, 0.05, n))
    warm, steps = WarmStart(), plan("stable_rank")
    values = []
    for record in range(norms.CHECKED_EVERY + 2):
        if record == 1:
            W[n - 1, n - 1] = 1.0005
        values.append(float(steps.evaluate(W, {"none": None}, warm=warm)[0][0].value))
    assert values[0] == pytest.approx(literal(torch.diag(torch.linspace(1, 0.05, n))), rel=1e-4)
    assert values[-1] == pytest.approx(literal(W), rel=1e-4)
    assert len(warm.missed) <= 1
    late = sum(abs(value / literal(W) - 1) > 1e-4 for value in values[1:])
    assert late <= norms.CHECKED_EVERY
    assert bool(warm.missed) == bool(late)


def test_always_proved_sizes_are_right_at_every_record():
    n = norms.ALWAYS_PROVED
    W = torch.diag(torch.linspace(1, 0.05, n))
    warm, steps = WarmStart(), plan("stable_rank")
    for record in range(12):
        W[n - 1 - record, n - 1 - record] = 1 + 5e-4 * record
        value = float(steps.evaluate(W, {"none": None}, warm=warm)[0][0].value)
        assert value == pytest.approx(literal(W), rel=1e-4), record
    assert not warm.missed


def test_a_refinement_costs_fewer_products_than_a_search(monkeypatch):
    A = draw(600, 500)
    searches = []
    monkeypatch.setattr(norms, "top_singular", lambda *given: searches.append(1) or top_singular(*given))
    warm = WarmStart()
    for record in range(10):
        norms.loose_square(A + 1e-4 * record * draw(600, 500, seed=5), warm, "A")
    assert len(searches) == 1


class TestSmall:
    def test_of_any_shapes_together(self):
        matrices = [
            draw(*shape, seed=i)
            for i, shape in enumerate([(16, 144), (128, 64), (10, 40), (40, 16), (16, 16)])
        ]
        expected = [literal(matrix) for matrix in matrices]
        assert stable_ranks(matrices).tolist() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_of_sixteen_bits(self, dtype):
        matrix = draw(24, 90).to(dtype)
        assert stable_ranks([matrix]).tolist() == pytest.approx([literal(matrix.double())], rel=1e-5)

    @pytest.mark.parametrize("scale", [0.0, 1e-20, 1e20, float("nan"), float("inf")])
    def test_what_is_remarkable_is_left_to_others(self, scale):
        assert stable_ranks([draw(8, 9) * scale, draw(8, 9)]).isnan().tolist() == [True, False]

    def test_repeated_rows_have_stable_rank_one(self):
        assert stable_ranks([draw(1, 50).expand(20, 50)]).tolist() == pytest.approx([1.0], rel=1e-6)

    def test_it_is_the_stable_rank(self):
        matrix = draw(100, 300, seed=9)
        assert stable_ranks([matrix]).item() == pytest.approx(float(stable_rank(matrix)), rel=1e-5)


@pytest.mark.parametrize("how", ["by a check", "by its direction"])
def test_what_was_seen_late_is_an_event_of_the_record(monkeypatch, caplog, how):
    """A refinement that does not see the new direction at all, until a check does, or that sees it of itself."""
    from hooks import RankTracker, every

    def blind(A, vectors, *more):
        return Refined(1.0, 0.0, vectors, 1.0) if how == "by a check" else refined(A, vectors, *more)

    monkeypatch.setattr(norms, "ALWAYS_PROVED", 0)
    monkeypatch.setattr(norms, "CHECKED_EVERY", 4)
    monkeypatch.setattr(norms, "refined", blind)
    model = torch.nn.Linear(200, 200, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.diag(torch.linspace(1, 0.05, 200)))
    with RankTracker(model, schedule=every(1), metrics="stable_rank") as tracker:
        with torch.no_grad():
            model.weight[199, 199] = 1.0003 if how == "by a check" else 10.0
        for _ in range(4):
            tracker.step()
    values = tracker.table()["value"]
    assert values.iloc[-1] == pytest.approx(literal(model.weight.detach()), rel=1e-4)
    assert "a direction that was not followed before" in caplog.text
    late = abs(values[1:] / values.iloc[-1] - 1) > 1e-4
    assert late.sum() == (3 if how == "by a check" else 0)


@pytest.mark.parametrize(("off", "decided"), [(1e-9, False), (-1e-9, False), (1e-3, True), (-1e-3, True)])
def test_a_small_gram_matrix_counts_only_what_is_not_within_rounding_of_the_tolerance(off, decided):
    W = draw(40, 60)
    values = torch.linalg.svdvals(W.double())
    tau = values[20] * (1 + off)
    found = _by_squares(Residual.of(W, wants=("rank",)), tau)
    assert (found is not None) == decided
    if found is not None:
        assert float(found) == int((values > tau).sum())


def test_among_small_layers_measured_together_each_has_its_own_status():
    from hooks import RankTracker, every

    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8, bias=False) for _ in range(3)))
    with torch.no_grad():
        model[1].weight.zero_()
        model[2].weight[0, 0] = torch.nan
    with RankTracker(model, schedule=every(1), metrics="stable_rank") as tracker:
        table = tracker.table()
    assert table["status"].tolist() == ["ok", "zero", "nonfinite"]
    assert table["value"].isna().tolist() == [False, True, True]
