"""The spectral quantities against literal float64 references, known answers and each other."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zanalysis.analyzers import spectrum
from zanalysis.analyzers.metrics import plan
from zanalysis.analyzers.residual import Residual
from zanalysis.errors import InputError

SCALARS = ("rank", "rank_margin", "stable_rank", "effective_rank", "spectral_norm")
SCALARS += ("frobenius_norm", "nuclear_norm", "condition_number")
EPS = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def singular_values(A):
    return np.linalg.svd(np.asarray(A, dtype=np.float64), compute_uv=False)


def literal(A, tau):
    """Return every scalar, written out."""
    s = singular_values(A)
    p = s / s.sum()
    return {
        "rank": float((s > tau).sum()),
        "rank_margin": float(abs(s - tau).min()),
        "stable_rank": float((s**2).sum() / s[0] ** 2),
        "effective_rank": math.exp(-sum(x * math.log(x) for x in p if x > 0)),
        "spectral_norm": float(s[0]),
        "frobenius_norm": math.sqrt(float((s**2).sum())),
        "nuclear_norm": float(s.sum()),
        "condition_number": float(s[0] / s[-1]),
    }


def rounding_tau(W, eps):
    W = np.asarray(W, dtype=np.float64)
    reach = np.sqrt((W**2).sum(1).max()) + np.sqrt((W**2).sum(0).max())
    return 2 * (eps / 2 / math.sqrt(3)) * reach


def draw(m, n, seed=0):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (1, 7), (7, 1), (1, 1), (150, 140), (140, 400)])
def test_every_quantity_is_the_literal_one(shape, dtype):
    W = draw(*shape).to(dtype)
    exact = W.double().numpy()
    if dtype.itemsize < 4:
        tau = rounding_tau(exact, EPS[dtype])
    else:
        tau = max(shape) * EPS[dtype] * singular_values(exact)[0]
    expected = literal(exact, tau)
    for name in SCALARS:
        value = getattr(spectrum, name)(W)
        assert value.dtype == torch.float64
        if name == "condition_number" and singular_values(exact)[-1] <= tau:
            assert math.isnan(value)
            continue
        rel = 1e-4 if name == "stable_rank" else 1e-6
        assert float(value) == pytest.approx(expected[name], rel=rel), name
    assert np.allclose(spectrum.singular_values(W), singular_values(exact), rtol=1e-12, atol=1e-14)


def test_known_answers():
    W = torch.diag(torch.tensor([4.0, 2.0, 1.0, 1.0]))
    assert float(spectrum.effective_rank(W)) == pytest.approx(3.363586, abs=1e-6)
    assert float(spectrum.stable_rank(W)) == 1.375
    assert float(spectrum.nuclear_norm(W) / spectrum.spectral_norm(W)) == pytest.approx(2.0)
    assert float(spectrum.condition_number(W)) == pytest.approx(4.0)
    assert spectrum.rank(W, tolerance=1.0) == 2  # above, not at
    assert spectrum.rank(W, tolerance=0.999) == 4


@pytest.mark.parametrize("rank", [1, 40, 160])
@pytest.mark.parametrize("size", [160, 64])
def test_a_plan_gives_what_the_functions_give(size, rank):
    W = draw(size, rank) @ draw(rank, size, 1)
    for metrics in [("rank", "stable_rank"), ("rank", "rank_margin"), SCALARS, ("singular_values", "rank")]:
        measured = plan(metrics)
        values, _ = measured.evaluate(W, {"none": None})
        for key, got in zip(measured.keys, values, strict=True):
            alone = float(getattr(spectrum, key.metric)(W))
            rel = {"stable_rank": 1e-4, "rank_margin": 1e-2}.get(key.metric, 1e-6)
            assert float(got.value) == pytest.approx(alone, rel=rel, nan_ok=True), key
            if key.metric == "rank":
                tau = size * EPS[torch.float32] * singular_values(W)[0]
                assert float(got.tolerance) == pytest.approx(tau, rel=1e-8)


class TestStatuses:
    @pytest.mark.parametrize("n", [4, 200])
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_nonfinite(self, n, bad):
        W = draw(n, n)
        W[1, 2] = bad
        assert spectrum.status(W) == "nonfinite"
        assert all(math.isnan(getattr(spectrum, name)(W)) for name in SCALARS)
        assert spectrum.singular_values(W).isnan().all()
        batch = torch.stack([W, draw(n, n)])
        assert spectrum.status(batch) == ["nonfinite", "ok"]
        assert spectrum.rank(batch).isnan().tolist() == [True, False]

    @pytest.mark.parametrize("n", [4, 200])
    def test_zero(self, n):
        W = torch.zeros(n, n)
        assert spectrum.status(W) == "zero"
        assert spectrum.rank(W) == spectrum.spectral_norm(W) == spectrum.frobenius_norm(W) == 0
        assert spectrum.rank_margin(W) == spectrum.nuclear_norm(W) == 0
        for name in ("stable_rank", "effective_rank", "condition_number"):
            assert math.isnan(getattr(spectrum, name)(W)), name
        assert spectrum.status(W, reference=W) == "zero"
        assert spectrum.rank(torch.eye(n), reference="identity") == 0

    @pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0, 0), (2, 3, 0)])
    def test_empty(self, shape):
        W = torch.zeros(shape)
        words = spectrum.status(W)
        assert words == ("empty" if W.ndim == 2 else ["empty", "empty"])
        assert all(getattr(spectrum, name)(W).isnan().all() for name in SCALARS)
        assert spectrum.singular_values(W).numel() == 0
        assert plan(SCALARS).evaluate(W, {"none": None})[0][0].code.max() == 3

    def test_no_matrices_at_all(self):
        assert spectrum.rank(torch.zeros(0, 3, 4)).shape == (0,)
        assert spectrum.stable_rank(torch.zeros(0, 300, 300)).shape == (0,)

    @pytest.mark.parametrize(("dtype", "n"), [(torch.bfloat16, 200), (torch.float16, 1024)])
    def test_numpys_rule_decides_nothing_in_16_bit(self, dtype, n):
        W = (draw(n, 3) @ draw(3, n, 1)).to(dtype)
        assert spectrum.status(W, tolerance="numpy") == "below_noise"
        assert math.isnan(spectrum.rank(W, tolerance="numpy"))
        assert spectrum.rank(W) == 3

    def test_an_absolute_tolerance_above_everything_counts_none(self):
        W = draw(200, 200)
        assert spectrum.status(W, tolerance=1e3) == "below_noise"
        assert spectrum.rank(W, tolerance=1e3) == 0
        assert float(spectrum.rank_margin(W, tolerance=1e3)) == pytest.approx(
            1e3 - singular_values(W)[0], rel=1e-8
        )

    def test_no_common_diagonal(self):
        W = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
        assert spectrum.status(W, reference="identity") == "no_common_diagonal"
        assert math.isnan(spectrum.rank(W, reference="identity"))

    def test_condition_number_below_noise(self):
        measured, _ = plan("condition_number").evaluate(torch.ones(3, 3), {"none": None})
        assert math.isnan(measured[0].value)
        assert int(measured[0].code) == 4


class TestExtremes:
    @pytest.mark.parametrize("n", [20, 200])
    @pytest.mark.parametrize("scale", [1e200, 1e-200, 1e300])
    def test_float64_far_from_one(self, n, scale):
        W = draw(n, n).double()
        for name in SCALARS:
            factor = scale if name.endswith(("norm", "margin")) else 1.0
            got, plain = float(getattr(spectrum, name)(W * scale)), float(getattr(spectrum, name)(W))
            assert got / factor == pytest.approx(plain, rel=1e-8), name

    @pytest.mark.parametrize("n", [20, 200])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_the_largest_number_of_a_dtype(self, n, dtype):
        most = torch.finfo(dtype).max
        W = torch.full((n, n), most, dtype=dtype)
        assert spectrum.rank(W) == 1
        assert float(spectrum.spectral_norm(W)) == pytest.approx(n * most, rel=1e-9)
        assert float(spectrum.stable_rank(W)) == pytest.approx(1.0, rel=1e-4)  # its stated error

    def test_subnormal_float32(self):
        W = torch.diag(torch.linspace(1, 2, 200) * 1e-40)
        exact = singular_values(W)
        assert float(spectrum.spectral_norm(W)) == pytest.approx(exact[0], rel=1e-8)
        assert spectrum.rank(W) == 200

    def test_outlier_rows_in_bfloat16(self):
        W = draw(256, 4) @ draw(4, 256, 1)
        W[7] *= 300
        assert spectrum.rank(W.bfloat16()) == 4

    def test_fourteen_decades(self):
        values = 10.0 ** -np.arange(15)
        rng = np.random.default_rng(0)
        U, V = (np.linalg.qr(rng.standard_normal((200, 15)))[0] for _ in range(2))
        W = torch.from_numpy(U * values @ V.T)
        assert spectrum.rank(W) == 14  # σ₁₅ = 1e-14 is below 200 · eps = 4.4e-14
        assert spectrum.rank(W, tolerance=3e-8) == 8


class TestViewsAndReferences:
    K = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(3))

    @pytest.mark.parametrize(
        ("view", "literal_view"),
        [
            ("out", lambda k: k.reshape(6, 36)),
            ("in", lambda k: np.moveaxis(k, 1, 0).reshape(4, 54)),
            (lambda w: w[:, :, 1, 1], lambda k: k[:, :, 1, 1]),
        ],
        ids=["out", "in", "callable"],
    )
    def test_views(self, view, literal_view):
        expected = singular_values(literal_view(self.K.numpy()))
        assert np.allclose(spectrum.singular_values(self.K, view=view), expected)

    def test_taps(self):
        got = spectrum.singular_values(self.K, view="taps")
        for tap in range(9):
            assert np.allclose(got[tap], singular_values(self.K[:, :, tap // 3, tap % 3]))

    @pytest.mark.parametrize("n", [12, 200])
    @pytest.mark.parametrize("scale", [1.0, 0.37])
    def test_identity(self, n, scale):
        W = torch.eye(n) * scale
        W[:5, :5] += draw(5, 5)
        alpha = float(torch.tensor(scale))
        assert float(spectrum.identity_scale(W)) == alpha
        difference = W.double().numpy() - alpha * np.eye(n)
        tau = n * EPS[torch.float32] * max(singular_values(W)[0], alpha)
        measured, _ = plan("rank", ("identity",)).evaluate(W, {"identity": "identity"})
        assert float(measured[0].tolerance) == pytest.approx(tau, rel=1e-8)
        assert spectrum.rank(W, reference="identity") == (singular_values(difference) > tau).sum() == 5
        assert spectrum.support(W, reference="identity") == (5, 5)

    def test_identity_of_a_kernel(self):
        K = torch.zeros(4, 6, 3, 3)
        K[:, :4, 1, 1] = 0.5 * torch.eye(4)
        K[0, 1, 0, 2] = 3.0
        for view in ("out", "in", lambda w: w.flatten(1)):
            assert spectrum.rank(K, reference="identity", view=view) == 1
        assert float(spectrum.identity_scale(K)) == 0.5
        assert spectrum.rank(K, reference="identity", view="taps").tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0]

    @pytest.mark.parametrize("n", [30, 200])
    def test_tolerance_grows_with_the_reference(self, n):
        start, update = 100 * draw(n, n), draw(n, 2, 1) @ draw(2, n, 2)
        W = 0.5 * start + update
        difference = W.double().numpy() - start.double().numpy()
        for tolerance in ("numpy", "rounding"):
            if tolerance == "numpy":
                largest = max(singular_values(W)[0], singular_values(start)[0])
                tau = n * EPS[torch.float32] * largest
            else:
                tau = max(rounding_tau(W, EPS[torch.float32]), rounding_tau(start, EPS[torch.float32]))
            exact = singular_values(difference)
            used = spectrum.threshold(Residual.of(W, start), tolerance)
            assert float(used) == pytest.approx(tau, rel=1e-8)
            assert spectrum.rank(W, reference=start, tolerance=tolerance) == (exact > tau).sum()

    def test_the_weight_is_left_alone(self):
        for W in (draw(150, 150).double(), torch.eye(150), draw(150, 150)):
            before = W.clone()
            for reference in (None, "identity", torch.ones_like(W)):
                for name in (*SCALARS, "support"):
                    getattr(spectrum, name)(W, reference=reference)
            assert torch.equal(W, before)

    def test_errors_say_what_to_do(self):
        with pytest.raises(InputError, match="pass the weight, not its bias"):
            spectrum.rank(torch.zeros(3))
        with pytest.raises(InputError, match="convert the tensor first"):
            spectrum.rank(torch.zeros(3, 3, dtype=torch.int64))
        with pytest.raises(InputError, match="weight's own shape"):
            spectrum.rank(torch.zeros(3, 3), reference=torch.zeros(3, 4))
        with pytest.raises(InputError, match="did you mean 'rounding'"):
            spectrum.rank(torch.zeros(3, 3), tolerance="roundin")


@pytest.mark.parametrize("n", [6, 150])
def test_a_batch_is_its_matrices(n):
    batch = torch.stack([draw(n, n + 3, seed) for seed in range(3)] + [torch.zeros(n, n + 3)])
    for name in SCALARS:
        together = getattr(spectrum, name)(batch)
        alone = torch.stack([getattr(spectrum, name)(W) for W in batch])
        assert torch.allclose(together, alone, rtol=1e-6, equal_nan=True), name


SIZES = st.sampled_from([(5, 5), (9, 4), (3, 40), (33, 33), (130, 135), (150, 131)])


@st.composite
def matrices(draw_one):
    """Return a matrix in its dtype, and its rank by construction where it has one."""
    m, n = draw_one(SIZES)
    rng = np.random.default_rng(draw_one(st.integers(0, 10**6)))
    dtype = draw_one(st.sampled_from(list(EPS)))
    kind = draw_one(st.sampled_from(["low", "decades", "near", "repeated", "outlier", "sparse"]))
    scale = 10.0 ** draw_one(st.sampled_from([-4, 0, 3] if dtype.itemsize < 4 else [-20, -3, 0, 15]))
    size = min(m, n)
    rank = int(rng.integers(1, max(2, size // 4)))
    built = None
    if kind in ("low", "outlier", "repeated", "sparse") or dtype.itemsize < 4:
        A = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n))
        if kind == "outlier":
            A[rng.integers(m)] *= 100
        if kind == "repeated":
            A = A[rng.integers(0, m, m)]
        if kind == "sparse":
            A[rng.random(m) < 0.3] = 0
    else:
        U = np.linalg.qr(rng.standard_normal((m, size)))[0]
        V = np.linalg.qr(rng.standard_normal((n, size)))[0]
        if kind == "decades":
            values = 10 ** -np.linspace(0, float(rng.choice([7, 14])), size)
        else:
            values = np.r_[1.0, np.full(size - 1, 1e-3)]
            tau = max(m, n) * EPS[dtype]
            values[1 : 1 + size // 2] = tau * (1 + rng.choice([-1, 1], size // 2) * 10 ** rng.uniform(-6, -1))
        A = U * values @ V.T
    W = torch.from_numpy(A * scale).to(dtype)
    coarse = dtype == torch.bfloat16 or (dtype == torch.float16 and scale >= 1)  # else subnormal
    if coarse and kind in ("low", "outlier") and rank <= size // 4 and size >= 33:
        built = rank
    return W, built


def compare(case):
    W, built = case
    if not W.isfinite().all():  # float16 ends at 65,504
        assert spectrum.status(W) == "nonfinite"
        assert math.isnan(spectrum.rank(W))
        return
    exact = singular_values(W.double())
    if W.dtype.itemsize < 4:
        tau = rounding_tau(W.double(), EPS[W.dtype])
    else:
        tau = max(W.shape) * EPS[W.dtype] * exact[0]
    residual = Residual.of(W)
    got, used, _ = spectrum.rank_of(residual, "default")
    assert float(used) == pytest.approx(tau, rel=1e-8)
    # Where a singular value is within float64 rounding of τ, two decompositions may differ, too.
    noise = 1e-8 * tau + 64 * EPS[torch.float64] * exact[0]
    low, high = (exact > tau + noise).sum(), (exact > tau - noise).sum()
    assert low <= float(got) <= high
    if built is not None:
        assert float(got) == built
    stable = float(spectrum.stable_rank(W))
    assert 1 <= stable <= min(W.shape)
    if exact[0] > 0 and float(got) > 0:
        assert stable <= float(got) * (1 + 1e-4) + 1e-3
        assert stable == pytest.approx((exact**2).sum() / exact[0] ** 2, rel=1e-4)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(matrices())
def test_every_integer_rank_is_the_decompositions(case):
    compare(case)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, derandomize=True)
@given(matrices())
def test_a_thousand_integer_ranks(case):
    compare(case)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([(12, 20), (140, 133)]), st.integers(1, 12))
def test_invariance(seed, shape, rank):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
    U = np.linalg.qr(rng.standard_normal((shape[0],) * 2))[0]
    V = np.linalg.qr(rng.standard_normal((shape[1],) * 2))[0]
    plain = torch.from_numpy(A).float()
    turned = torch.from_numpy(U @ A @ V).float()
    mixed = plain[rng.permutation(shape[0])][:, rng.permutation(shape[1])]
    for other, rel in ((mixed, 1e-6), (turned, 1e-4), (plain.mT, 1e-6)):
        for name in ("rank", "stable_rank", "effective_rank", "spectral_norm", "frobenius_norm"):
            wanted = float(getattr(spectrum, name)(plain))
            wide = max(rel, 1e-4) if name in ("stable_rank", "effective_rank") else rel
            assert float(getattr(spectrum, name)(other)) == pytest.approx(wanted, rel=wide), name


def test_distinct_rows_are_a_metric_of_the_matrix_as_stored():
    W = torch.ones(6, 4)
    W[3:] = torch.arange(4.0)
    W[5] += 1
    (plain, residual), _ = plan(("distinct_rows",), ("none", "tensor")).evaluate(
        W, {"none": None, "tensor": torch.ones(6, 4)}
    )
    assert (plain.value.item(), residual.value.item()) == (3, 3)
    batch = torch.stack((W, torch.ones(6, 4)))
    assert plan("distinct_rows").evaluate(batch, {"none": None})[0][0].value.tolist() == [3, 1]


@pytest.mark.parametrize("trial", range(12))
def test_splitting_off_the_identity_changes_no_number(trial):
    # float32, so that the SVD of the whole matrix, the reference here, is exact enough for every tolerance.
    g = torch.Generator().manual_seed(trial)
    m, n = torch.randint(130, 220, (2,), generator=g).tolist()
    alpha = (1.0, 0.5, -0.25)[trial % 3]
    W = torch.zeros(m, n)
    W.diagonal().fill_(alpha)
    rows, columns = (torch.randperm(size, generator=g)[: 5 + 4 * trial] for size in (m, n))
    W[rows[:, None], columns] += torch.randn(len(rows), len(columns), generator=g)
    assert Residual.of(W, "identity").learned is not None
    D = W.double() - alpha * torch.eye(m, n, dtype=torch.float64)
    expected = torch.linalg.svdvals(D)
    torch.testing.assert_close(
        spectrum.singular_values(W, reference="identity"), expected, rtol=1e-9, atol=1e-12
    )
    found = spectrum.support(W, reference="identity")
    assert found == ((D != 0).any(1).sum(), (D != 0).any(0).sum())
    norms = max(torch.linalg.svdvals(W.double())[0].item(), abs(alpha))
    tau = spectrum.threshold(Residual.of(W, "identity")).item()
    assert tau == pytest.approx(max(m, n) * torch.finfo(torch.float32).eps * norms, rel=1e-6)
    assert spectrum.rank(W, reference="identity") == (expected > tau).sum()
    assert spectrum.rank(W, reference="identity", tolerance=1e-4) == (expected > 1e-4).sum()
    ratio = (expected.square().sum() / expected[0] ** 2).item()
    assert spectrum.stable_rank(W, reference="identity").item() == pytest.approx(ratio, rel=1e-4)
    assert spectrum.frobenius_norm(W, reference="identity").item() == pytest.approx(
        D.norm().item(), rel=1e-12
    )


@pytest.mark.parametrize("reference", [None, "identity", "tensor"])
def test_eight_bit_floats_are_taken_as_what_they_stand_for(reference):
    exact = (4 * draw(12, 9)).round() / 4
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        W = exact.to(dtype)
        other = torch.zeros(12, 9) if reference == "tensor" else reference
        for name in SCALARS:
            tolerance = {"tolerance": 0.5} if name in ("rank", "rank_margin") else {}
            got = getattr(spectrum, name)(W, reference=other, **tolerance)
            if name != "condition_number":
                same = float(getattr(spectrum, name)(W.double(), reference=other, **tolerance))
                assert float(got) == pytest.approx(same, rel=1e-12)
        assert float(spectrum.identity_scale(W)) == 1
        tau = spectrum.threshold(Residual.of(W))
        assert float(tau) == pytest.approx(rounding_tau(W.double(), torch.finfo(dtype).eps))


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a[::-1],
        lambda a: a[:, ::-2],
        lambda a: a.astype(">f4"),
        lambda a: a[::-1].astype(">f8"),
        lambda a: np.broadcast_to(a, (2, *a.shape)),
        lambda a: a.tolist(),
    ],
    ids=["reversed", "backwards columns", "big-endian", "both", "read-only", "lists"],
)
def test_arrays_of_any_layout_work(change):
    a = np.arange(12, dtype=np.float32).reshape(4, 3) + 0.5
    given = change(a)
    expected = spectrum.frobenius_norm(np.array(given, dtype=np.float64))
    assert torch.allclose(spectrum.frobenius_norm(given), expected, rtol=1e-12)


def test_a_reference_may_be_an_array():
    W = np.eye(3) + np.diag([1.0, 0.0, 0.0])
    assert spectrum.rank(W, reference=np.eye(3)) == 1


NO_MATRIX = [
    ("abc", "got str .* expected a tensor, an array or nested lists"),
    (None, "got NoneType .* expected a tensor"),
    ([[1.0, 2.0], [3.0]], "all rows of one length"),
    (np.array([["a", "b"]]), "got ndarray .* expected a tensor"),
    (torch.eye(3).to_sparse(), "layout torch.sparse_coo, expected a dense one"),
    (torch.empty(3, 3, device="meta"), "meta device, which has a shape but no numbers"),
    (torch.eye(3, dtype=torch.complex64), "got dtype torch.complex64, expected a real"),
    (torch.eye(3, dtype=torch.int8), "got dtype torch.int8, expected a real"),
    ([[1, 2], [3, 4]], "got dtype torch.int64, expected a real"),
]


def _kind(value):
    return "" if isinstance(value, str) else type(value).__name__


@pytest.mark.parametrize(("given", "says"), NO_MATRIX, ids=_kind)
@pytest.mark.parametrize("name", ["rank", "stable_rank", "status", "identity_scale"])
def test_what_is_no_matrix_is_refused_with_a_sentence(name, given, says):
    with pytest.raises(InputError, match=says):
        getattr(spectrum, name)(given)


# As a reference None and a word mean something else.
@pytest.mark.parametrize(
    ("given", "says"), [c for c in NO_MATRIX if not (c[0] is None or isinstance(c[0], str))], ids=_kind
)
def test_a_reference_that_is_no_matrix_is_refused_too(given, says):
    with pytest.raises(InputError, match=says):
        spectrum.rank(torch.eye(3), reference=given)


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation:UserWarning")
def test_quantized_weights_are_refused_with_a_sentence():
    W = torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8)
    with pytest.raises(InputError, match="dequantize or convert"):
        spectrum.rank(W)


@pytest.mark.parametrize("scale", [1e200, 1e-200, 1e300, 1e-300])
def test_the_rounding_rule_neither_overflows_nor_vanishes(scale):
    W = draw(6, 4).double() * scale
    assert spectrum.rank(W, tolerance="rounding") == 4
    tau = float(spectrum.threshold(Residual.of(W), "rounding")) / scale
    assert tau == pytest.approx(rounding_tau(draw(6, 4), EPS[torch.float64]), rel=1e-12)
    assert spectrum.rank(torch.stack((W, W / scale, 0 * W)), tolerance="rounding").tolist() == [4, 4, 0]


@pytest.mark.parametrize("shape", [(20, 90), (90, 20), (130, 400), (400, 130), (40, 50)])
@pytest.mark.parametrize("smallest", [0.5, 1e-2, 1e-4, 1e-7, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_whole_spectrum_of_wide_and_tall_matrices(shape, smallest, dtype):
    rng = np.random.default_rng(1)
    U, V = (np.linalg.qr(rng.standard_normal((size, min(shape))))[0] for size in shape)
    W = torch.from_numpy(U * np.geomspace(1, max(smallest, 1e-12), min(shape)) @ V.T).to(dtype)
    exact = singular_values(W.double())
    found = spectrum.singular_values(W).numpy()
    assert np.allclose(found, exact, rtol=1e-9, atol=1e-14)
    assert np.allclose(found[exact > 1e-5], exact[exact > 1e-5], rtol=2e-9, atol=0)


def test_wide_kernels_take_the_short_way(monkeypatch):
    monkeypatch.setattr(torch.linalg, "svdvals", lambda A: pytest.fail("a decomposition of everything"))
    W = draw(140, 400)
    assert float(spectrum.nuclear_norm(W)) == pytest.approx(singular_values(W).sum(), rel=1e-12)
