"""The span analyzer against the float64 SVD of the stacked activations, and known answers."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from zanalysis.analyzers.span import ActivationSpan, activation_span, as_samples
from zanalysis.errors import InputError


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Matrices this small gain nothing from threads, and wait for them where other tests run beside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


EPS = {
    torch.float64: 2.220446049250313e-16,
    torch.float32: 1.1920928955078125e-07,
    torch.float16: 0.0009765625,
    torch.bfloat16: 0.0078125,
}


def low_rank(samples, features, rank, dtype, seed=0):
    rng = np.random.default_rng(seed)
    product = rng.standard_normal((samples, rank)) @ rng.standard_normal((rank, features))
    return torch.from_numpy(product).to(dtype)


def literal_dimension(z):
    """Count by the definition, with numpy's float64 SVD of all samples at once."""
    sigma = np.linalg.svd(z.double().numpy(), compute_uv=False)
    return float((sigma > z.shape[1] * EPS[z.dtype] * sigma[0]).sum())


def fed(z, batch, **options):
    span = ActivationSpan(z.shape[1], **options)
    for part in z.split(batch):
        span.update(part)
    return span


TEN_SHAPES = [
    # samples, features, rank, batch
    (500, 1, 1, 64),
    (700, 2, 1, 100),
    (1000, 3, 2, 999),
    (5000, 8, 5, 512),
    (300, 16, 16, 50),
    (40, 64, 20, 7),
    (2000, 64, 63, 300),
    (64, 64, 64, 64),
    (30, 200, 30, 4),
    (3000, 200, 120, 700),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("samples", "features", "rank", "batch"), TEN_SHAPES)
def test_equals_the_svd_of_the_stacked_matrix(samples, features, rank, batch, dtype):
    z = low_rank(samples, features, rank, dtype)
    span = fed(z, batch)
    dimension = span.dimension()
    assert dimension.item() == literal_dimension(z) == min(rank, samples)
    assert dimension.dtype == torch.float64
    assert dimension.ndim == 0
    assert span.samples == samples


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    samples=st.integers(1, 60),
    features=st.integers(1, 24),
    rank=st.integers(0, 24),
    batch=st.integers(1, 60),
    dtype=st.sampled_from(list(EPS)),
    decades=st.floats(0, 9),
    scale=st.sampled_from([1.0, 1e-3, 1e2]),
    cut=st.integers(0, 60),
    seed=st.integers(0, 2**20),
)
def test_property_equal_to_the_svd_however_split_and_merged(
    samples, features, rank, batch, dtype, decades, scale, cut, seed
):
    rng = np.random.default_rng(seed)
    strengths = scale * 10 ** -np.linspace(0, decades, rank)
    z = rng.standard_normal((samples, rank)) * strengths @ rng.standard_normal((rank, features))
    z = torch.from_numpy(z).to(dtype)
    sigma = np.linalg.svd(z.double().numpy(), compute_uv=False)
    tau = features * EPS[dtype] * sigma[0]
    # Neither way decides what lies at the tolerance itself.
    assume(not ((sigma > tau * 0.5) & (sigma < tau * 2)).any())
    expected = float((sigma > tau).sum())
    merged = fed(z[:cut], batch).merge(fed(z[cut:], batch)) if 0 < cut < samples else fed(z, batch)
    for span in (fed(z, batch), merged):
        reading = span.reading()
        if sigma[0] > 0 and features * EPS[dtype] >= 1:
            assert reading.status == "below_noise"
        else:
            assert reading.dimension.item() == expected
        assert expected <= span.support.item() == (z != 0).any(0).sum().item()
        assert expected <= min(samples, features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_merge_equals_the_span_of_both_and_leaves_its_parts_alone(dtype):
    z = low_rank(900, 50, 30, dtype)
    left, right = fed(z[:400, :], 64), fed(z[400:], 128)
    before = left.dimension().item(), right.dimension().item(), left.samples, right.samples
    merged = left.merge(right)
    assert merged.samples == 900
    assert merged.dimension().item() == literal_dimension(z) == 30
    torch.testing.assert_close(merged.singular_values(), fed(z, 900).singular_values(), rtol=1e-12, atol=2e-5)
    assert before == (left.dimension().item(), right.dimension().item(), left.samples, right.samples)
    again = ActivationSpan(50).merge(left)
    again.update(z[400:])
    assert again.dimension().item() == 30
    assert left.samples == 400


def test_merge_sees_directions_that_only_one_part_has():
    left, right = ActivationSpan(6), ActivationSpan(6)
    left.update(torch.eye(6)[:2])
    right.update(torch.eye(6)[1:5])
    assert left.merge(right).dimension().item() == 5
    assert right.merge(left).support.item() == 5


def test_singular_values_against_numpy():
    for dtype, atol in ((torch.float32, 1e-8), (torch.float64, 1e-14)):
        z = low_rank(300, 20, 12, dtype)
        sigma = np.linalg.svd(z.double().numpy(), compute_uv=False)
        ours = fed(z, 37).singular_values().numpy()
        np.testing.assert_allclose(ours, sigma, rtol=1e-10, atol=2 * atol * sigma[0])


def test_the_tolerance_is_features_eps_sigma_and_knows_no_samples():
    """A weak direction stays, however often the samples are repeated; numpy's rule loses it."""
    z = torch.diag(torch.tensor([1.0] * 15 + [3e-5]))
    once, often = fed(z, 16), fed(z.repeat(4000, 1), 512, stop="never")
    assert once.dimension().item() == often.dimension().item() == 16
    assert often.dimension("numpy").item() == 15
    sigma = 4000**0.5
    assert often.reading().tolerance.item() == pytest.approx(16 * EPS[torch.float32] * sigma, rel=1e-9)
    assert often.reading("numpy").tolerance.item() == pytest.approx(
        64000 * EPS[torch.float32] * sigma, rel=1e-9
    )


def test_an_absolute_tolerance_counts_what_lies_above_it():
    span = fed(torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0] + [0.0] * 12)), 5)
    assert [span.dimension(t).item() for t in (9.0, 8.0, 7.9, 3.0, 0.5)] == [0, 0, 1, 2, 4]
    assert span.reading(3.0).tolerance.item() == 3.0


def test_eps_is_that_of_the_stored_dtype_the_coarsest_or_the_one_given():
    z = low_rank(200, 20, 4, torch.float32) + 1e-4 * low_rank(200, 20, 20, torch.float32, seed=1)
    assert fed(z, 64).dimension().item() == 20
    assert fed(z, 64, dtype=torch.bfloat16).dimension().item() == 4
    mixed = ActivationSpan(20, stop="never")
    mixed.update(z[:100])
    mixed.update(z[100:].double())
    assert mixed.dimension().item() == 20
    mixed.update(z[:1].half())
    assert mixed.dimension().item() < 20
    # A float32 product of rank 4 is of full rank to float64: rounding noise counts there.
    assert fed(low_rank(200, 20, 4, torch.float32), 64, dtype=torch.float64).dimension().item() == 20


def test_sixteen_bit_activations_are_below_noise_unless_asked_by_rounding():
    for dtype, features in ((torch.bfloat16, 128), (torch.float16, 1024)):
        z = low_rank(300, features, 40, dtype) if features == 128 else low_rank(1100, features, 40, dtype)
        span = fed(z, 128)
        reading = span.reading()
        assert reading.status == span.status == "below_noise"
        assert reading.dimension.isnan()
        assert reading.tolerance > 0
        assert span.reading("rounding").status == "ok"
        assert span.dimension("rounding").item() == 40
    assert fed(low_rank(200, 64, 1, torch.bfloat16), 64).dimension().item() == 1


def test_the_rounding_tolerance_is_the_formula():
    z = low_rank(100, 12, 3, torch.bfloat16)
    wide = z.double()
    formula = 2 * (EPS[z.dtype] / 2 / 3**0.5) * (wide.norm(dim=1).max() + wide.norm(dim=0).max())
    assert fed(z, 9).reading("rounding").tolerance.item() == pytest.approx(formula.item(), rel=1e-12)
    assert fed(z, 9, exact=True).reading("rounding").tolerance.item() == pytest.approx(
        formula.item(), rel=1e-12
    )


def test_zero_features_stay_exactly_zero():
    for dtype in (torch.float32, torch.float64):
        z = torch.zeros(500, 40, dtype=dtype)
        z[:, [3, 17, 39]] = low_rank(500, 3, 3, dtype)
        span = fed(z, 99)
        assert span.support.item() == 3
        assert span.dimension().item() == 3
        values = span.singular_values()
        assert (values[:3] > 0).all()
        assert (values[3:] == 0).all()
    tiny = torch.zeros(3, 4)
    tiny[0, 1] = 1e-45
    assert fed(tiny, 1).support.item() == 1


def test_a_defined_answer_for_every_odd_input():
    span = ActivationSpan(5)
    assert span.status == "empty"
    assert span.dimension().isnan()
    assert span.singular_values().shape == (0,)
    span.update(torch.zeros(0, 5))
    assert (span.status, span.samples) == ("empty", 0)
    span.update(torch.zeros(4, 5))
    assert span.reading()[0].item() == 0
    assert span.status == "zero"
    span.update(torch.ones(5))
    assert (span.dimension().item(), span.status, span.samples) == (1, "ok", 5)
    few = fed(torch.eye(5)[:3], 2)
    assert (few.dimension().item(), few.status) == (3, "too_few_samples")
    assert fed(torch.ones(3, 5), 2).status == "ok"
    assert ActivationSpan(0).status == "empty"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_value_that_is_not_finite_spoils_the_span_for_good(bad, dtype):
    span = fed(low_rank(400, 6, 6, dtype), 50)
    z = low_rank(20, 6, 6, dtype)
    z[7, 2] = bad
    span.update(z)
    span.update(low_rank(400, 6, 6, dtype))
    assert span.status == "nonfinite"
    assert span.dimension().isnan()
    fresh = fed(z, 20)
    assert fresh.dimension().isnan()
    assert fresh.singular_values().isnan().all()


def test_extreme_scales_neither_overflow_nor_vanish():
    z = low_rank(100, 9, 4, torch.float64)
    for scale in (1e150, 1e-150):
        assert fed(z * scale, 30).dimension().item() == 4
    z = low_rank(100, 30, 4, torch.float32)
    for scale in (1e36, 1e-30):
        assert fed(z * scale, 30).dimension().item() == 4


def test_it_stops_once_full_and_the_answer_is_the_same():
    z = torch.randn(5000, 12, generator=torch.Generator().manual_seed(0))
    span, all_of_it = fed(z, 100), fed(z, 100, stop="never")
    assert span.skipped > 4000
    assert all_of_it.skipped == 0
    assert span.dimension().item() == all_of_it.dimension().item() == literal_dimension(z) == 12
    assert span.samples == 5000
    with pytest.raises(InputError, match="stop='never'"):
        span.singular_values()
    assert all_of_it.singular_values().shape == (12,)
    merged = span.merge(span)
    assert (merged.samples, merged.skipped, merged.dimension().item()) == (10000, 2 * span.skipped, 12)


def test_what_either_part_skipped_counts_in_the_tolerance_of_both():
    z = torch.randn(3000, 12, generator=torch.Generator().manual_seed(0))
    left, right = fed(z[:100], 10), fed(z[100:], 100)
    assert (left.skipped > 0, right.skipped > 2000) == (True, True)
    sigma = np.linalg.svd(z.double().numpy(), compute_uv=False)[0]
    for merged in (left.merge(right), right.merge(left)):
        assert merged.skipped == left.skipped + right.skipped
        assert merged.reading().tolerance.item() >= 12 * EPS[torch.float32] * sigma


def test_a_giant_sample_after_stopping_is_seen():
    """Full at first, and no longer: σ₁ grows, and with it the tolerance."""
    z = torch.randn(5000, 12, generator=torch.Generator().manual_seed(0))
    for size, expected in ((1e9, 1), (1e2, 12)):
        giant = torch.zeros(1, 12)
        giant[0, 0] = size
        span = fed(z, 100)
        assert span.skipped > 4000
        span.update(giant)
        assert literal_dimension(torch.cat([z, giant])) == expected
        assert span.dimension().item() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_settles_where_nothing_new_comes_and_wakes_where_something_does(dtype):
    z = low_rank(6000, 24, 18, dtype)
    span = fed(z, 100, stop="settled")
    assert span.skipped > 5000
    assert fed(z, 100).skipped == 0
    assert (span.dimension().item(), span.status) == (18, "ok")
    new = torch.zeros(300, 24, dtype=dtype)
    new[:, 3] = torch.linspace(1, 2, 300).to(dtype)
    skipped = span.skipped
    span.update(new)
    assert span.skipped == skipped
    reading = span.reading()
    assert literal_dimension(torch.cat([z, new])) == 19
    assert reading.dimension.item() == 19 or (reading.status, reading.dimension.isnan().item()) == (
        "not_converged",
        True,
    )
    # A tolerance above some of the values cannot be decided without the samples skipped.
    assert span.reading(float(fed(z, 100).singular_values()[9])).status == "not_converged"


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    ranks=st.lists(st.integers(1, 10), min_size=1, max_size=6),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    cut=st.integers(0, 6),
)
def test_property_settling_never_gives_a_wrong_number(ranks, dtype, cut):
    """Batches of different spans, fed to one span and to two that are merged."""
    parts = [low_rank(80, 10, rank, dtype, seed) for seed, rank in enumerate(ranks)]
    z = torch.cat(parts)
    whole, left, right = (ActivationSpan(10, stop="settled") for _ in range(3))
    for index, part in enumerate(parts):
        for piece in part.split(10):
            whole.update(piece)
            (left if index < cut else right).update(piece)
    for span in (whole, left.merge(right)):
        reading = span.reading()
        assert span.samples == len(z)
        if reading.status == "not_converged":
            assert span.skipped > 0
        else:
            assert reading.dimension.item() == literal_dimension(z)


def test_settled_spans_of_one_and_the_same_kind_merge():
    basis = torch.linalg.qr(torch.randn(64, 40, generator=torch.Generator().manual_seed(0)))[0].T
    mixtures = torch.randn(4000, 40, generator=torch.Generator().manual_seed(1))
    z = mixtures @ basis
    left, right = fed(z[:2000], 100, stop="settled"), fed(z[2000:], 100, stop="settled")
    assert left.skipped > 1000
    assert right.skipped > 1000
    assert left.merge(right).dimension().item() == 40


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    scales=st.lists(st.integers(-3, 8), min_size=2, max_size=8),
    features=st.integers(1, 6),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)
def test_property_skipping_never_changes_a_number(scales, features, dtype):
    parts = [
        (
            low_rank(30, features, features, torch.float64, seed)
            * 10.0 ** (scale if dtype != torch.float16 else scale / 4)
        )
        for seed, scale in enumerate(scales)
    ]
    parts = [part.to(dtype) for part in parts]
    span = ActivationSpan(features)
    for part in parts:
        span.update(part)
    z = torch.cat(parts)
    sigma = np.linalg.svd(z.double().numpy(), compute_uv=False)
    tau = features * EPS[dtype] * sigma[0]
    assume(not ((sigma > tau * 0.9) & (sigma < tau * 1.1)).any())
    reading = span.reading()
    if reading.dimension.isnan():
        assert reading.status == "not_converged"
        assert span.skipped > 0
    else:
        assert reading.dimension.item() == (sigma > tau).sum()


def test_bounds_that_leave_the_dimension_open_give_nan():
    """The weak direction is skipped while full, and a giant then lifts τ to where it would have counted."""
    wide = ActivationSpan(2, dtype=torch.float16)
    wide.update(torch.eye(2).repeat(10, 1))
    wide.update(torch.tensor([[0.0, 100.0]]))
    assert wide.skipped == 1
    wide.update(torch.tensor([[20000.0, 0.0]]))
    assert wide.skipped == 1
    reading = wide.reading()
    assert reading.status == "not_converged"
    assert reading.dimension.isnan()
    # An absolute tolerance that the bounds do decide is decided.
    assert wide.dimension(1e4).item() == 1
    assert wide.dimension(1.0).item() == 2


def test_memory_does_not_grow_with_the_samples():
    for dtype in (torch.float32, torch.float64):
        span = ActivationSpan(32)
        batch = low_rank(4096, 32, 20, dtype)
        span.update(batch)
        once = len(pickle.dumps(span))
        for _ in range(20):
            span.update(batch)
        assert span.samples == 21 * 4096
        assert len(pickle.dumps(span)) <= once + 4096
        assert once < 40_000
        assert pickle.loads(pickle.dumps(span)).dimension().item() == 20


def test_update_keeps_nothing_of_the_caller():
    for dtype in (torch.float32, torch.float64):
        z = low_rank(10, 12, 5, dtype)
        kept, span = z.clone(), ActivationSpan(12)
        span.update(z)
        assert torch.equal(z, kept)
        z.zero_()
        assert span.dimension().item() == 5


def test_leading_dimensions_are_samples_and_layouts_are_views_of_them():
    z = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    expected = np.stack([z[n, :, h, w].numpy() for n in range(2) for h in range(4) for w in range(5)])
    np.testing.assert_array_equal(as_samples(z).numpy(), expected)
    np.testing.assert_array_equal(as_samples(z, "channels_first").numpy(), expected)
    np.testing.assert_array_equal(as_samples(z, "channels_last").numpy(), z.numpy().reshape(24, 5))
    np.testing.assert_array_equal(as_samples(z, "flatten").numpy(), z.numpy().reshape(2, 60))
    assert as_samples(z[0]).shape == (12, 5)
    span = ActivationSpan(5)
    span.update(z)
    assert span.samples == 24


def test_a_sketch_counts_a_small_dimension_and_refuses_a_full_one():
    z = low_rank(600, 500, 30, torch.float32)
    span = fed(z, 100, max_features=120)
    assert span.sketched
    assert (span.dimension().item(), span.status, span.support.item()) == (30, "ok", 500)
    assert span.singular_values().shape == (120,)
    sigma = np.linalg.svd(z.double().numpy(), compute_uv=False)
    assert span.singular_values()[0].item() == pytest.approx(sigma[0], rel=0.5)
    left, right = fed(z[:300], 100, max_features=120), fed(z[300:], 100, max_features=120)
    assert left.merge(right).dimension().item() == 30
    full = fed(low_rank(600, 500, 300, torch.float32), 100, max_features=120)
    assert (full.status, full.skipped) == ("not_converged", full.skipped)
    assert full.dimension().isnan()
    assert not fed(z[:, :50], 100, max_features=120).sketched
    with pytest.raises(InputError, match="column norms"):
        span.reading("rounding")


def test_what_cannot_be_decided_is_refused():
    gram = fed(low_rank(100, 20, 5, torch.float32), 50)
    with pytest.raises(InputError, match=r"below 1e-06 .* exact=True"):
        gram.dimension(1e-7)
    exact = fed(low_rank(100, 20, 5, torch.float32), 50, exact=True)
    assert exact.dimension().item() == 5
    assert exact.dimension(1e-7).item() == 20
    with pytest.raises(InputError, match="enlarge it"):
        exact.dimension(0.0)
    with pytest.raises(InputError, match="exact=True"):
        fed(low_rank(100, 20, 5, torch.float64), 50, exact=False).dimension()
    with pytest.raises(InputError, match="did you mean 'numpy'"):
        gram.dimension("nunpy")
    with pytest.raises(InputError, match="not negative"):
        gram.dimension(-1.0)
    with pytest.raises(InputError, match=r"expected floating activations \[..., 20\]"):
        gram.update(torch.zeros(3, 21))
    with pytest.raises(InputError, match="expected floating"):
        gram.update(torch.zeros(3, 20, dtype=torch.int64))
    with pytest.raises(InputError, match="cannot merge spans"):
        gram.merge(ActivationSpan(21))
    with pytest.raises(InputError, match="same exact="):
        gram.merge(exact)
    with pytest.raises(InputError, match="must not be negative"):
        ActivationSpan(-1)
    with pytest.raises(InputError, match="at least 1"):
        ActivationSpan(3, max_features=0)
    with pytest.raises(InputError, match="did you mean 'never'"):
        ActivationSpan(3, stop="nevr")
    with pytest.raises(InputError, match="floating dtype"):
        ActivationSpan(3, dtype=torch.int32)
    with pytest.raises(InputError, match="needs a batch dimension"):
        as_samples(torch.zeros(3), "flatten")
    with pytest.raises(InputError, match="did you mean 'flatten'"):
        as_samples(torch.zeros(3, 3), "flaten")


class Network(nn.Module):
    """BatchNorm, dropout, an in-place ReLU behind each layer, and a block that is used twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(6 * 16, 10)
        self.twice = nn.Linear(10, 10)
        self.drop = nn.Dropout(0.5)
        self.unused = nn.Linear(2, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        x = self.relu(self.norm(self.conv(x)))
        x = self.relu(self.head(self.drop(x.flatten(1))))
        return self.twice(self.twice(x).relu_())


def network():
    torch.manual_seed(0)
    model = Network().train()
    model.norm.eval()
    return model


def fingerprint(model):
    """Everything a look into a model could leave a trace in."""
    hooks = [dict(getattr(m, name)) for m in model.modules() for name in vars(m) if name.endswith("_hooks")]
    return (
        [m.training for m in model.modules()],
        [(name, id(b), b.clone().tolist()) for name, b in model.named_buffers()],
        [(name, id(p), p.requires_grad, p.grad) for name, p in model.named_parameters()],
        hooks,
        torch.get_rng_state().tolist(),
    )


def test_activation_span_equals_stacked_outputs_of_the_model_in_eval_mode():
    model, x = network(), torch.randn(150, 3, 4, 4)
    before = fingerprint(model)
    spans = activation_span(model, x, ["conv", "norm", "head", "twice"], batch_size=64)
    assert fingerprint(model) == before
    assert list(spans) == ["conv", "norm", "head", "twice"]
    with torch.no_grad():
        conv = nn.functional.conv2d(x, model.conv.weight, model.conv.bias, padding=1)
        mean, var, eps = model.norm.running_mean, model.norm.running_var, model.norm.eps
        norm = (conv - mean[:, None, None]) / (var[:, None, None] + eps).sqrt()
        head = norm.relu().flatten(1) @ model.head.weight.T + model.head.bias
        first = head.relu() @ model.twice.weight.T + model.twice.bias
        second = first.relu() @ model.twice.weight.T + model.twice.bias
    stacked = {
        "conv": conv.permute(0, 2, 3, 1).reshape(-1, 6),
        "norm": norm.permute(0, 2, 3, 1).reshape(-1, 6),
        "head": head,
        "twice": torch.cat([first, second]),
    }
    for name, z in stacked.items():
        assert spans[name].samples == len(z)
        assert spans[name].dimension().item() == literal_dimension(z), name
        sigma = np.linalg.svd(z.double().numpy(), compute_uv=False)
        kept = activation_span(model, x, name, stop="never")[name].singular_values()
        np.testing.assert_allclose(kept.numpy(), sigma, rtol=1e-5, err_msg=name)


def test_activation_span_takes_batches_cuts_them_and_reads_no_more_than_it_needs():
    model = nn.Sequential(nn.Linear(4, 4))
    drawn = []

    def stream():
        for index in range(100):
            drawn.append(index)
            yield torch.randn(8, 4), torch.zeros(8)

    assert activation_span(model, stream(), "0", max_samples=20)["0"].samples == 20
    assert drawn == [0, 1, 2]
    data = torch.utils.data.TensorDataset(torch.randn(30, 4), torch.zeros(30))
    before = torch.get_rng_state()
    loader = torch.utils.data.DataLoader(data, batch_size=7, shuffle=True)
    assert activation_span(model, loader, "0")["0"].samples == 30
    assert torch.equal(before, torch.get_rng_state())
    assert activation_span(model, [torch.randn(5, 4)], "0", layout={"0": "flatten"})["0"].samples == 5
    assert activation_span(model, torch.randn(5, 4), "")[""].samples == 5


def test_layouts_follow_the_module_and_the_user():
    model = nn.Sequential(nn.Conv1d(3, 5, 3), nn.Identity())
    x = torch.randn(8, 3, 10)
    spans = activation_span(model, x, ["0", "1"])
    assert (spans["0"].features, spans["1"].features) == (5, 8)
    assert activation_span(model, x, "1", layout="channels_first")["1"].features == 5
    flat = activation_span(model, x, ["0", "1"], layout={"0": "flatten", "1": "channels_first"})
    assert (flat["0"].features, flat["1"].features) == (40, 5)
    lstm = nn.LSTM(3, 4, batch_first=True)
    assert activation_span(nn.Sequential(lstm), torch.randn(6, 5, 3), "0")["0"].samples == 30


def test_a_layer_that_is_never_called_is_empty_and_an_unknown_one_an_error():
    model = network()
    spans = activation_span(model, torch.randn(3, 3, 4, 4), ["unused", "head"])
    assert (spans["unused"].status, spans["head"].status) == ("empty", "too_few_samples")
    with pytest.raises(InputError, match="no layer 'haed': did you mean 'head'"):
        activation_span(model, torch.randn(3, 3, 4, 4), "haed")
    with pytest.raises(InputError, match="must be a tensor or start with one, got dict"):
        activation_span(model, [{"x": torch.zeros(1)}], "head")

    class Odd(nn.Module):
        def forward(self, x):
            return {"x": x}

    with pytest.raises(InputError, match="returned dict, not a tensor"):
        activation_span(nn.Sequential(Odd()), torch.zeros(2, 2), "0")


def test_an_exception_leaves_no_trace_either():
    model = network()
    before = fingerprint(model)

    def bad():
        torch.rand(3)
        yield torch.randn(4, 3, 4, 4)
        yield torch.randn(4, 7, 4, 4)

    with pytest.raises(RuntimeError, match="expected input"):
        activation_span(model, bad(), ["conv", "head"])
    assert fingerprint(model) == before


def test_a_backward_pass_that_waits_is_not_disturbed():
    model = network().train()
    loss = model(torch.randn(8, 3, 4, 4)).square().mean()
    activation_span(model, torch.randn(8, 3, 4, 4), "head")
    loss.backward()
    assert model.conv.weight.grad is not None


def test_the_span_of_the_theorem_in_small():
    """ZerO, Theorem 1: a partial identity keeps z in N_x coordinates exactly, a Hadamard matrix does not."""
    n_x, n_h = 10, 32
    x = torch.rand(400, n_x, generator=torch.Generator().manual_seed(1))
    hadamard = torch.ones(1, 1)
    for _ in range(5):
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    for weight, support, dimension in (
        (torch.eye(n_h, n_x), 10, 10),
        (hadamard[:, :n_x] / 32**0.5, None, None),
    ):
        model = nn.Sequential(nn.Linear(n_x, n_h, bias=False), nn.ReLU())
        model[0].weight.data = weight.clone()
        span = activation_span(model, x, "1")["1"]
        z = (x @ weight.T).relu()
        assert span.dimension().item() == literal_dimension(z)
        if support is None:
            assert span.dimension().item() > n_x
        else:
            assert (span.support.item(), span.dimension().item()) == (support, dimension)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 32, 50])
@pytest.mark.parametrize("first", [1, 10, 40])
def test_few_samples_are_kept_as_they_are_and_read_the_same(count, first):
    # Up to 16 samples of 32 features are kept, more are folded into a Gram matrix; either may be merged into the other.
    z, other = torch.randn(count, 32), torch.randn(first, 32) @ torch.diag(torch.arange(32.0))
    other[:, 5] = 0
    spans = [ActivationSpan(32, stop="never") for _ in range(2)]
    for span, rows in zip(spans, (z, other), strict=True):
        for part in rows.split(7):
            kept = part.clone()
            span.update(kept)
            kept.fill_(torch.nan)
    for span, rows in ((spans[0], z), (spans[1], other), (spans[0].merge(spans[1]), torch.cat([z, other]))):
        sigma = np.linalg.svd(rows.double().numpy(), compute_uv=False)
        expected = np.pad(sigma, (0, max(0, 32 - len(sigma))))[:32]
        np.testing.assert_allclose(span.singular_values().numpy(), expected, rtol=1e-9, atol=2e-8 * sigma[0])
        assert span.support == (rows != 0).any(0).sum()
        assert span.dimension() == (sigma > 32 * 2**-23 * sigma[0]).sum()
    assert [span.samples for span in spans] == [count, first]
    for span in spans:  # what was folded is not kept besides
        assert bool(span._kept.factor._few) == (span.samples <= 16)
