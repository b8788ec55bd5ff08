"""Metrics from parts of a matrix: equal to those of the whole, and without bringing it together."""

import itertools

import pytest
import torch

from zanalysis.analyzers.metrics import plan
from zanalysis.analyzers.parts import length, takes_maximum
from zanalysis.analyzers.residual import Residual
from zanalysis.analyzers.sharded import Of, Op, Part, Shards, evaluate_shards
from zanalysis.analyzers.statuses import STATUSES

SCALARS = (
    "rank",
    "stable_rank",
    "effective_rank",
    "spectral_norm",
    "frobenius_norm",
    "nuclear_norm",
    "condition_number",
    "support",
    "identity_scale",
)
WHOLE = {"rank", "support_rows", "support_columns", "distinct_rows"}


class Together:
    """Parts of one matrix in one process, adding up as several would; counts what is asked."""

    def __init__(self, W, reference=None, rows=1, columns=1, replicas=1):
        self.W, self.reference = W, reference
        self.split = "both" if rows > 1 and columns > 1 else "columns" if columns > 1 else "rows"
        m, n = W.shape
        # torch.chunk, as DTensor splits: the last parts may be shorter, or empty.
        cut = [_chunks(m, rows), _chunks(n, columns)]
        self.asked = []
        self.gathered = 0
        self.parts = [
            Part(
                W[i][:, j],
                i,
                j,
                (m, n),
                self.split,
                reference[i][:, j] if isinstance(reference, torch.Tensor) else None,
                counts=replica == 0,
            )
            for i, j, replica in itertools.product(*cut, range(replicas))
        ]

    def ask(self, op, of, scale=1.0, vector=None):
        self.asked.append(op)
        answers = torch.stack([part.answer(op, of, scale, vector) for part in self.parts])
        assert answers.shape[1] == length(op, tuple(self.W.shape), self.split)
        return answers.amax(0) if takes_maximum(op) else answers.sum(0)

    def gather(self):
        self.gathered += 1
        return Residual.of(self.W, self.reference)

    @property
    def shards(self):
        return Shards(tuple(self.W.shape), self.split, self.W.dtype, self.W.device, self.ask, self.gather)


def _chunks(size, count):
    pieces = list(torch.arange(size).chunk(count))
    return pieces + [torch.arange(0)] * (count - len(pieces))


def measured(together, metrics, tolerance="default"):
    name = "none" if together.reference is None else "tensor"
    name = "identity" if isinstance(together.reference, str) else name
    asked = plan(metrics, (name,), tolerance)
    eps = torch.finfo(together.W.dtype).eps
    found, spectra = evaluate_shards(asked, lambda index: together.shards, [eps])
    expected, whole = asked.evaluate(together.W, {name: together.reference})
    return asked.keys, found, expected, spectra.get(name), whole.get(name)


def assert_equal(together, metrics, tolerance="default"):
    keys, found, expected, spectrum, whole = measured(together, metrics, tolerance)
    for key, got, want in zip(keys, found, expected, strict=True):
        assert STATUSES[int(got.code)] == STATUSES[int(want.code)], key
        exact = key.metric in WHOLE
        rtol = 0 if exact else 1e-4 if key.metric == "stable_rank" else 1e-6
        torch.testing.assert_close(got.value, want.value, rtol=rtol, atol=0, equal_nan=True, msg=str(key))
        torch.testing.assert_close(got.tolerance, want.tolerance, rtol=1e-6, atol=0, equal_nan=True)
    if whole is not None:
        torch.testing.assert_close(
            spectrum, whole, rtol=1e-6, atol=1e-12 * float(whole.max()), equal_nan=True
        )


def low_rank(m, n, rank, dtype=torch.float32):
    return (torch.randn(m, rank) @ torch.randn(rank, n)).to(dtype)


SPLITS = [
    pytest.param({"rows": 2}, id="rows"),
    pytest.param({"rows": 3}, id="uneven rows"),
    pytest.param({"columns": 3}, id="uneven columns"),
    pytest.param({"rows": 2, "columns": 2}, id="both"),
    pytest.param({"rows": 2, "replicas": 2}, id="replicas"),
]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("shape", [(50, 20), (20, 50), (31, 31), (2, 40), (400, 150)])
def test_every_metric_is_that_of_the_whole(shape, split):
    assert_equal(Together(torch.randn(shape), **split), (*SCALARS, "singular_values"))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("wanted", ["rank", "stable_rank", "spectral_norm", "support", "identity_scale"])
@pytest.mark.parametrize("shape", [(300, 140), (140, 300)])
def test_each_metric_alone_is_that_of_the_whole(shape, split, wanted):
    W = low_rank(*shape, 9)
    W[5], W[:, 7] = 0, 0
    assert_equal(Together(W, **split), wanted)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("metric", ["stable_rank", "spectral_norm", "frobenius_norm", "support"])
def test_what_is_a_sum_brings_nothing_together(split, metric):
    together = Together(torch.randn(300, 140), **split)
    assert_equal(together, metric)
    assert together.gathered == 0


@pytest.mark.parametrize(
    ("shape", "split"), [((300, 140), {"rows": 3}), ((140, 300), {"columns": 2}), ((140, 140), {"rows": 2})]
)
def test_a_rank_comes_from_the_gram_matrix_of_the_unsplit_side(shape, split):
    together = Together(low_rank(*shape, 40), **split)
    assert_equal(together, ("rank", "stable_rank", "support"))
    assert together.gathered == 0
    assert together.asked.count(Op.GRAM) == 1


def test_a_spectrum_comes_from_it_where_it_resolves_it():
    together = Together(torch.randn(300, 140), rows=2)
    assert_equal(together, ("singular_values", "effective_rank", "nuclear_norm"))
    assert together.gathered == 0
    together = Together(torch.randn(300, 140) * torch.logspace(0, -7, 140), rows=2)
    assert_equal(together, ("singular_values", "effective_rank", "nuclear_norm"))
    assert together.gathered == 1


def test_above_the_size_of_proofs_lanczos_needs_only_products():
    torch.manual_seed(3)
    together = Together(torch.randn(1100, 1050), rows=2)
    assert_equal(together, "stable_rank")
    assert set(together.asked) <= {Op.LOOK, Op.NORMS, Op.NORMAL}


@pytest.mark.parametrize("near", [2.0, 2.0 + 2.0**-22, 2.0 - 2.0**-22])
def test_a_singular_value_within_rounding_of_the_tolerance_is_left_to_the_whole(near):
    W = torch.zeros(6, 3)
    W[0, 0], W[1, 1], W[2, 2] = 4.0, near, 1.0
    together = Together(W, rows=2)
    assert_equal(together, "rank", 2.0)
    assert together.gathered == 1


def test_float64_and_margins_and_functions_take_the_whole_at_once():
    def trace(matrix):
        return float(matrix.sum())

    tall = Together(torch.randn(60, 20), rows=2).shards
    fine = Together(torch.randn(60, 20, dtype=torch.float64), rows=2).shards
    wide = Together(torch.randn(20, 60), rows=2).shards
    assert not tall.needs_whole(("rank", "singular_values", "stable_rank"))
    assert all(tall.needs_whole((metric,)) for metric in ("rank_margin", "distinct_rows", trace))
    assert fine.needs_whole(("rank",))
    assert wide.needs_whole(("rank",))
    assert not wide.needs_whole(("stable_rank", "support", "spectral_norm"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("split", SPLITS)
def test_every_stored_dtype(dtype, split):
    assert_equal(Together(low_rank(70, 30, 4, dtype), **split), ("rank", "stable_rank", "spectral_norm"))


@pytest.mark.parametrize("tolerance", ["numpy", "rounding", 1e-4, 3.0])
@pytest.mark.parametrize("split", SPLITS)
def test_every_tolerance(tolerance, split):
    assert_equal(Together(low_rank(70, 30, 4), **split), "rank", tolerance)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    "W",
    [
        torch.zeros(9, 5),
        torch.full((9, 5), torch.nan),
        torch.eye(9, 5).index_fill(0, torch.tensor(8), -torch.inf),
        torch.full((9, 5), 1e-42),
        torch.full((9, 5), 3e38),
        torch.full((40, 12), 1e-200, dtype=torch.float64),
        torch.full((40, 12), 1e200, dtype=torch.float64),
    ],
    ids=["zero", "nan", "inf", "subnormal", "huge", "tiny", "huge64"],
)
def test_every_status(W, split):
    assert_equal(Together(W, **split), SCALARS)


@pytest.mark.parametrize("split", SPLITS)
def test_an_update_is_measured_part_by_part(split):
    W0 = torch.randn(150, 140)
    W = W0 + 1e-2 * low_rank(150, 140, 5)
    assert_equal(Together(W, W0, **split), SCALARS[:-1])
    assert_equal(Together(W0.clone(), W0, **split), SCALARS[:-1])
    assert_equal(Together(W, W0, **split), "rank", "rounding")


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("shape", [(150, 140), (12, 20)])
def test_the_identity_is_subtracted_part_by_part(shape, split):
    W = 0.75 * torch.eye(*shape)
    W[3:8, 2:9] += torch.randn(5, 7)
    for case in (W, 0.5 * torch.eye(*shape), torch.randn(shape)):
        assert_equal(Together(case, "identity", **split), SCALARS)
        assert_equal(Together(case, "identity", **split), ("rank", "support"), "rounding")
    W[-1, 1] = torch.nan
    assert_equal(Together(W, "identity", **split), SCALARS)
    assert_equal(Together(torch.diag(torch.arange(1.0, 6.0)), "identity", **split), SCALARS)


def test_a_warm_start_changes_no_number():
    from zanalysis.analyzers.lanczos import WarmStart

    warm, W = WarmStart(), torch.randn(1200, 1100)
    asked = plan("stable_rank")
    counts = []
    for _ in range(3):
        W += 1e-3 * torch.randn_like(W)
        together = Together(W, columns=2)
        found, _ = evaluate_shards(asked, lambda _, t=together: t.shards, [1e-7], None, warm)
        want, _ = asked.evaluate(W, {"none": None})
        torch.testing.assert_close(found[0].value, want[0].value, rtol=1e-4, atol=0)
        counts.append(together.asked.count(Op.NORMAL))
    assert counts[1] < counts[0]


def test_a_part_that_fails_makes_an_error_and_not_a_number():
    together = Together(torch.randn(30, 20), rows=2)

    def ask(op, of, scale=1.0, vector=None):
        if op == Op.GRAM:
            raise RuntimeError("a part is lost")
        return together.ask(op, of, scale, vector)

    from dataclasses import replace

    told = []
    found, _ = evaluate_shards(
        plan(("rank", "support")),
        lambda index: replace(together.shards, ask=ask),
        [1e-7],
        lambda key, error: told.append((key.metric, str(error))),
    )
    assert [STATUSES[int(m.code)] for m in found] == ["error", "ok", "ok"]
    assert told == [("rank", "a part is lost")]


def test_a_residual_of_parts_asks_for_nothing_it_was_not_asked_for():
    together = Together(torch.randn(300, 140), rows=2)
    assert_equal(together, "support")
    assert set(together.asked) == {Op.LOOK}


def test_parts_cover_the_diagonal_once():
    W = torch.randn(7, 9)
    together = Together(W, rows=3, columns=2)
    torch.testing.assert_close(together.ask(Op.DIAGONAL, Of.WEIGHT), W.diagonal().double())
