"""Systems with a known trajectory: against the exact solution, autograd, and the tracker."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import zanalysis as za
from hooks import every
from zanalysis.errors import InputError
from zanalysis.experiments.factorization import (
    STARTS,
    Factorization,
    descend,
    initial_factors,
    product,
    target_of,
    train,
)
from zanalysis.experiments.linear_modes import emergence_time, exact_modes
from zanalysis.verify.glrl_part import judge_spectrum

# Half-rise times for s = 1 and starts of 1e-2, 1e-4, 1e-6, to their last printed digit.
HALF_RISE = {2: (2.30, 4.61, 6.91), 3: (3.77, 20.7, 99.1), 4: (4.68, 49.7, 499.7)}


@pytest.mark.parametrize("depth", HALF_RISE)
def test_half_rise_times(depth):
    times = [emergence_time(1.0, start, 0.5, depth) for start in (1e-2, 1e-4, 1e-6)]
    assert times == pytest.approx(HALF_RISE[depth], rel=3e-3)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_emergence_times_solve_the_differential_equation(depth):
    value, start = 2.0, 1e-3
    time = emergence_time(value, start, 0.9, depth)
    solved = solve_ivp(
        lambda _, u: depth * u ** (2 - 2 / depth) * (value - u), (0, time), [start], rtol=1e-10, atol=1e-14
    )
    assert solved.y[0, -1] == pytest.approx(0.9 * value, rel=1e-6)


def test_exact_modes_agree_with_emergence_times():
    times = [emergence_time(s, 1e-4, 0.75) for s in (4.0, 2.0)]
    assert np.diag(exact_modes([4.0, 2.0], 1e-4, times)) == pytest.approx([3.0, 1.5], rel=1e-9)
    assert exact_modes([4.0], 1e-4, [1e6]) == pytest.approx(4.0)


def test_impossible_rises_are_refused():
    for start, fraction in ((0.0, 0.5), (0.6, 0.5), (1e-3, 1.0)):
        with pytest.raises(InputError, match="choose start < fraction"):
            emergence_time(1.0, start, fraction)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_emergence_times_of_a_trained_network_are_those_of_theory(depth):
    # Gradient descent with steps of 0.002 is off by O(step): 1 % of the time and the distance of two records.
    values, start, rate = [4.0, 2.0, 1.0], 1e-3, 0.002
    expected = np.array([emergence_time(s, start, (1 + start / s) / 2, depth) for s in values]) / rate
    system = Factorization(
        target_of(values, 8, 8),
        depth=depth,
        start="aligned",
        scale=start,
        rate=rate,
        steps=int(2 * expected[-1]),
    )
    record = descend(system, every(10))
    verdict = judge_spectrum(record.steps, record.spectra(), (8, 8), reference="none")
    emergence = verdict.evidence[verdict.evidence["criterion"] == "emergence"]
    assert verdict.verdict == "holds"
    np.testing.assert_allclose(emergence["value"], expected, rtol=0.01, atol=10)


def test_two_layers_follow_the_exact_solution():
    values, start, rate = [3.0, 1.5], 1e-3, 0.001
    system = Factorization(
        target_of(values, 6, 9), width=12, start="aligned", scale=start, rate=rate, steps=4000
    )
    record = descend(system, every(40))
    found = record.spectra()[:, :2]
    # O(step), as the plain Euler method is: 0.017 at a step of 1e-3 and s = 4.
    assert np.abs(found - exact_modes(values, start, record.steps * rate)).max() < 0.02
    layer = record.spectra(0)[:, :2]
    np.testing.assert_allclose(layer, np.sqrt(found), rtol=1e-6)


@pytest.mark.parametrize("start", STARTS)
def test_starts_have_the_scale_they_are_given(start):
    system = Factorization(target_of([2, 1], 9, 12), depth=3, width=16, start=start, scale=1e-3)
    factors = initial_factors(system)
    assert [f.shape for f in factors] == [(16, 12), (16, 16), (9, 16)]
    values = np.linalg.svd(product(factors), compute_uv=False)
    if start in ("aligned", "balanced", "identity"):
        assert values == pytest.approx(1e-3)
    else:
        assert 1e-4 < values[0] < 1e-2
    if start in ("aligned", "balanced"):
        for below, above in pairwise(factors):
            np.testing.assert_allclose(above.T @ above, below @ below.T, atol=1e-12)


def test_unknown_starts_and_depths_are_refused():
    with pytest.raises(InputError, match="unknown start 'zero'"):
        initial_factors(Factorization(np.eye(3), start="zero"))
    with pytest.raises(InputError, match="got depth 0"):
        initial_factors(Factorization(np.eye(3), depth=0))


MANNERS = {
    "whole": {},
    "completion": {"observed": (np.random.default_rng(0).random((8, 9)) < 0.7).astype(float)},
    "covariance": {"variances": np.linspace(0.2, 2, 9)},
    "minibatch": {"batch": 16, "noise": 0.1, "variances": np.linspace(0.2, 2, 9)},
}


@pytest.mark.parametrize("manner", MANNERS)
def test_written_out_gradients_are_those_of_autograd_and_the_record_that_of_the_tracker(manner, tmp_path):
    system = Factorization(
        target_of([3, 1], 8, 9),
        depth=3,
        width=10,
        start="gaussian",
        scale=0.3,
        rate=0.02,
        steps=60,
        **MANNERS[manner],
    )
    own = descend(system, every(10))
    run = za.open_run(train(system, tmp_path / "a.h5", schedule=every(10)))
    for layer in range(3):
        recorded = run.spectra(str(layer), reference="init")
        assert recorded.steps.tolist() == own.steps.tolist()
        values = own.spectra(layer, "init")
        np.testing.assert_allclose(recorded.values[:, : values.shape[1]], values, atol=1e-10)
