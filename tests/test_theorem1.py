"""Theorem 1: every verdict of every claim, on real small trainings and on fabricated records."""

import json
import re

import numpy as np
import pytest
import torch
from torch import nn

import zanalysis as za
from hooks import RankTracker, every
from zanalysis import initializers
from zanalysis.errors import InputError
from zanalysis.runfile import RunWriter, Series
from zanalysis.verify import exact_cases
from zanalysis.verify.theorem1 import SPAN
from zanalysis.verify.verdict import Verdict, combined, plain

CLAIMS = ["(i)", "(ii)", "(iii)", "Lemma 1", "Lemma 2", "linear control", "second cap"]
N_X, N_H, N_Y = 6, 24, 4


def mlp(n_x=N_X, n_h=N_H, n_y=N_Y, activation=nn.ReLU, bias=False, dtype=torch.float32, kind="standard"):
    layers = [
        nn.Linear(n_x, n_h, bias),
        activation(),
        nn.Linear(n_h, n_h, bias),
        activation(),
        nn.Linear(n_h, n_y, bias),
    ]
    return initializers.gi_(nn.Sequential(*layers).to(dtype), kind).model


def trained(path, model, optimizer=None, steps=60, metrics=("support", "rank"), spoil=None, **settings):
    """Train on a fixed random teacher with the tracker attached; return the run's path."""
    generator = torch.Generator().manual_seed(0)
    dtype = next(model.parameters()).dtype
    inputs = torch.rand(200, model[0].in_features, generator=generator).to(dtype)
    labels = torch.randint(0, model[-1].out_features, (200,), generator=generator)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.2)
    settings = {"schedule": every(20), "reference": "identity", **settings}
    with RankTracker(model, optimizer, path, metrics=metrics, **settings) as tracker:
        for step in range(steps):
            batch = torch.randperm(200, generator=generator)[:32]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
            if spoil is not None and step == steps // 2:
                spoil(model)
        hidden = torch.relu(inputs @ model[0].weight.T).detach()
        tracker.log(**{SPAN + "1": float(za.rank(hidden))})
    return path


def verdict(runs, claim):
    return next(v for v in za.verify_theorem1(runs) if v.claim == claim)


def test_claims_come_in_order_with_their_numbers(tmp_path):
    verdicts = za.verify_theorem1(trained(tmp_path / "a.h5", mlp()))
    assert [v.claim for v in verdicts] == CLAIMS
    stored = json.loads(json.dumps(plain(verdicts)))
    assert all(set(row) == {"claim", "verdict", "bound", "measured", "why"} for row in stored)
    with pytest.raises(InputError, match="no run was given"):
        za.verify_theorem1([])


@pytest.mark.parametrize("n_h", [N_X, 16, 24])
def test_ii_holds_at_every_width_by_the_exact_support(tmp_path, n_h):
    model = mlp(n_h=n_h)
    found = verdict(trained(tmp_path / "a.h5", model), "(ii)")
    assert (found.verdict, found.bound) == ("holds", N_X)
    residual = model[2].weight.detach().numpy() - np.eye(n_h)
    assert found.measured == min((residual != 0).any(1).sum(), (residual != 0).any(0).sum())
    assert {"step", "support_rows", "support_columns", "rank (default)", "run"} <= set(found.evidence)


DECAYING = {
    "SGD": lambda p: torch.optim.SGD(p, 0.2, weight_decay=1e-4),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-4),
    "Adam": lambda p: torch.optim.Adam(p, 1e-3, weight_decay=1e-4),
    "AdamW": lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=1e-4),
}


@pytest.mark.parametrize("name", sorted(DECAYING))
def test_ii_holds_under_weight_decay_and_says_what_the_decay_does(tmp_path, name):
    model = mlp()
    found = verdict(trained(tmp_path / "a.h5", model, DECAYING[name](model.parameters())), "(ii)")
    assert found.verdict == "holds"
    assert found.measured <= N_X
    alpha = model[2].weight[-1, -1].item()
    assert 0 < alpha < 1
    assert (
        f"Weight decay 0.0001 under {'SGD' if name == 'momentum' else name} shrinks the identity" in found.why
    )
    assert f"α = {alpha:.6g}" in found.why
    # What the sentence says of I itself is so: against it, nearly every row is in the support.
    assert int(((model[2].weight.detach() - torch.eye(N_H)) != 0).any(1).sum()) == N_H


UNMET = {
    "random weights": (lambda: reset(mlp()), {}, "does not start as the identity"),
    "sigmoid": (lambda: mlp(activation=nn.Sigmoid), {}, "Sigmoid does not vanish at 0"),
    "N_x > N_h": (lambda: mlp(n_x=30), {}, "N_h ≥ N_x, N_y is not met: .* 24 dimensions, N_x = 30"),
    "a shifted activation": (
        lambda: mlp(activation=lambda: nn.Hardtanh(0.5, 1.0)),
        {},
        "Hardtanh does not vanish at 0",
    ),
    "alpha dropout": (
        lambda: mlp(activation=lambda: nn.AlphaDropout(0.2)),
        {},
        "AlphaDropout does not vanish at 0",
    ),
    "an unknown module": (lambda: mlp(activation=Identity), {}, r"type \S*Identity is not part"),
    "an offset": (lambda: Offset(), {}, "the parameter offset is not part"),
    "bias": (lambda: biased(mlp(bias=True)), {}, "the bias 0.bias is not zero at step 0"),
    "normalization": (
        lambda: mlp(activation=lambda: nn.BatchNorm1d(N_H, affine=False)),
        {},
        "BatchNorm1d is not part",
    ),
    "a function": (lambda: Functional(), {}, "no activation function is recorded"),
    "a layer left out": (mlp, {"layers": ["0", "2"]}, "not recorded as a perceptron with at least three"),
    "a late start": (mlp, {"start": 5}, "begins at step 5"),
    "no support": (mlp, {"metrics": ("rank",)}, "support against the identity is not recorded"),
    "no identity": (mlp, {"reference": None}, "support against the identity is not recorded"),
}


def reset(model):
    torch.manual_seed(0)
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return model


def biased(model):
    with torch.no_grad():
        model[0].bias[0] = 0.5
    return model


class Functional(nn.Module):
    """A perceptron whose activation is called inside forward, where no record can see it."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([m for m in mlp() if isinstance(m, nn.Linear)])

    def __getitem__(self, index):
        return self.layers[index]

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)


class Identity(nn.Module):
    """No identity at all."""

    def forward(self, x):
        return x + 1


class Offset(nn.Module):
    """A perceptron with a parameter that its layers know nothing of."""

    def __init__(self):
        super().__init__()
        self.layers = mlp()
        self.offset = nn.Parameter(torch.ones(N_X))

    def __getitem__(self, index):
        return self.layers[index]

    def forward(self, x):
        return self.layers(x + self.offset)


@pytest.mark.parametrize("name", sorted(UNMET))
def test_ii_is_inconclusive_and_names_the_unmet_hypothesis(tmp_path, name):
    build, settings, says = UNMET[name]
    found = verdict(trained(tmp_path / "a.h5", build(), **settings), "(ii)")
    assert found.verdict == "inconclusive"
    assert re.search(says, found.why)


def test_ii_is_violated_where_the_record_truly_breaks_the_bound(tmp_path):
    def spoil(model):
        with torch.no_grad():
            model[2].weight[N_X : N_X + 3] += torch.rand(3, N_H, generator=torch.Generator().manual_seed(1))
            model[2].weight[:, N_X : N_X + 3] += torch.rand(
                N_H, 3, generator=torch.Generator().manual_seed(2)
            )

    found = verdict(trained(tmp_path / "a.h5", mlp(), spoil=spoil), "(ii)")
    assert found.verdict == "violated"
    assert found.measured > found.bound == N_X
    assert "with every hypothesis met" in found.why


def test_ii_is_inconclusive_where_the_training_diverged(tmp_path):
    def spoil(model):
        with torch.no_grad():
            model[2].weight[0, 0] = torch.nan

    found = verdict(trained(tmp_path / "a.h5", mlp(), spoil=spoil), "(ii)")
    assert (found.verdict, found.measured) == ("inconclusive", None)
    assert "is nonfinite at step" in found.why


@pytest.mark.parametrize(
    ("activation", "bound"), [(nn.ReLU, 5), (nn.Tanh, 12), (nn.GELU, 12), (nn.LeakyReLU, 12)]
)
def test_the_bound_of_other_activations_counts_the_outputs(tmp_path, activation, bound):
    run = trained(tmp_path / "a.h5", mlp(n_x=5, n_h=32, n_y=12, activation=activation))
    found = verdict(run, "(ii)")
    assert (found.verdict, found.bound) == ("holds", bound)
    # Tight: with N_y > N_x it is the outputs' number that is reached.
    assert found.measured == bound


@pytest.mark.parametrize("missing", [1, 3])
def test_a_relu_missing_behind_one_weight_loosens_the_bound(tmp_path, missing):
    model = mlp(n_x=5, n_h=32, n_y=12)
    del model[missing]
    found = verdict(trained(tmp_path / "a.h5", model), "(ii)")
    assert (found.verdict, found.bound) == ("holds", 12)


def test_two_linear_maps_in_a_row_reach_the_looser_bound(tmp_path):
    layers = [nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 12)]
    model = initializers.gi_(nn.Sequential(*layers)).model
    found = verdict(trained(tmp_path / "a.h5", model), "(ii)")
    assert (found.verdict, found.bound, found.measured) == ("holds", 12, 12)


class Perceptron(nn.Module):
    """A perceptron with a forward of its own, which leaves out what it registers, where asked to."""

    def __init__(self, used, **sizes):
        super().__init__()
        self.layers = nn.ModuleList(mlp(**sizes))
        self.used = used

    def __getitem__(self, index):
        return self.layers[index]

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = layer(x) if isinstance(layer, nn.Linear) or i in self.used else x
        return x


def test_ii_is_judged_on_a_class_of_ones_own_with_what_is_recorded(tmp_path):
    found = verdict(trained(tmp_path / "a.h5", Perceptron((1, 3))), "(ii)")
    assert (found.verdict, found.bound) == ("holds", N_X)
    # Where the ReLU stands is not recorded: 12 does not refute 5, since 12 outputs may be the bound.
    found = verdict(trained(tmp_path / "b.h5", Perceptron((), n_x=5, n_h=32, n_y=12)), "(ii)")
    assert (found.verdict, found.bound, found.measured) == ("inconclusive", 5, 12)
    assert "where the activation stands is not recorded" in found.why


def test_ii_holds_under_dropout(tmp_path):
    model = mlp()
    model.insert(2, nn.Dropout(0.3))
    model[0].in_features = N_X
    with RankTracker(
        model,
        torch.optim.SGD(model.parameters(), 0.1),
        tmp_path / "a.h5",
        reference="identity",
        metrics="support",
    ):
        pass
    assert verdict(tmp_path / "a.h5", "(ii)").verdict == "holds"


def test_an_idle_diagonal_that_differs_is_not_called_learning(tmp_path):
    def spoil(model):
        with torch.no_grad():
            model[2].weight[-1, -1] = 0.5

    found = verdict(trained(tmp_path / "a.h5", mlp(), spoil=spoil), "(ii)")
    assert found.verdict == "inconclusive"
    assert "no_common_diagonal at step 40" in found.why
    assert "which gradient descent does not do" in found.why


def test_decay_that_leaves_the_identity_alone_is_not_spoken_of(tmp_path):
    model = mlp()
    groups = [
        {"params": [model[0].weight], "weight_decay": 0.01},
        {"params": [model[2].weight, model[4].weight]},
    ]
    found = verdict(trained(tmp_path / "a.h5", model, torch.optim.SGD(groups, 0.2)), "(ii)")
    assert found.verdict == "holds"
    assert "Weight decay" not in found.why


def test_a_linear_network_is_a_perceptron_too(tmp_path):
    found = verdict(trained(tmp_path / "a.h5", mlp(activation=nn.Identity)), "(ii)")
    assert (found.verdict, found.bound) == ("holds", N_X)


def test_ii_judges_only_the_runs_it_is_about(tmp_path):
    runs = [trained(tmp_path / "a.h5", mlp()), trained(tmp_path / "b.h5", mlp(kind="hadamard"))]
    found = verdict(runs, "(ii)")
    assert found.verdict == "holds"
    assert sorted(part.verdict for part in found.parts) == ["holds", "inconclusive"]


def test_i_holds_and_a_random_network_shows_it(tmp_path):
    found = verdict(trained(tmp_path / "a.h5", reset(mlp())), "(i)")
    assert (found.verdict, found.bound, found.measured) == ("holds", N_H, N_H)
    assert "a: 2 − I has rank 24 of 24 at step 0" in found.why


def test_i_would_notice_a_perturbation_that_is_not_full_rank(monkeypatch):
    monkeypatch.setattr(
        exact_cases, "perturbed_identity_", lambda w, std, g: initializers.partial_identity_(w)
    )
    found = exact_cases.perturbed_identities(16)
    assert (found.verdict, found.measured) == ("violated", 0)


def test_iii_holds_by_the_span_of_a_recorded_run(tmp_path):
    found = verdict(trained(tmp_path / "a.h5", mlp(kind="hadamard")), "(iii)")
    assert found.verdict == "holds"
    assert found.measured > found.bound == N_X


def test_iii_shows_the_numbers_that_decide(tmp_path):
    # A run no wider than its input is no Hadamard run: its span, below the bound, decides nothing.
    found = verdict(trained(tmp_path / "a.h5", mlp(n_x=16, n_h=16, kind="hadamard")), "(iii)")
    assert (found.verdict, found.bound, found.measured) == ("holds", 24, 32)
    assert "no recorded run shows it" in found.why


def test_iii_would_notice_a_span_that_is_not_wider(monkeypatch):
    monkeypatch.setattr(exact_cases, "hadamard_", initializers.partial_identity_)
    assert exact_cases.static_span(24, 64).verdict == "violated"


def test_a_power_of_two_of_inputs_needs_training_to_break_the_bound():
    # H I* has then only N_x distinct rows, however large N_h.
    assert exact_cases.static_span(64, 256).measured == 64
    assert exact_cases.static_span(63, 256).measured > 63


def test_lemma_1_and_its_failure(monkeypatch):
    assert exact_cases.lemma_1().verdict == "holds"
    # 40 outer products: a family has 40 rows, their sum 12 of them.
    monkeypatch.setattr(exact_cases, "rank", lambda a: torch.tensor(2.0 if a.shape[0] == 40 else 3.0))
    found = exact_cases.lemma_1()
    assert (found.verdict, found.bound, found.measured) == ("violated", 2, 3)


def test_lemma_2_holds_although_its_four_vectors_are_dependent():
    found = exact_cases.lemma_2()
    assert (found.verdict, found.bound, found.measured) == ("holds", 4, 4)
    (equation,) = found.parts
    assert (equation.verdict, equation.measured) == ("violated", 3)
    images = found.evidence.to_numpy()
    assert (images[0] + images[1] == images[2] + images[3]).all()
    assert np.linalg.matrix_rank(images) == 4


def test_linear_control_and_its_failure(monkeypatch):
    assert exact_cases.linear_control().measured == 24
    monkeypatch.setattr(exact_cases, "rank", lambda a, **_: torch.tensor(25.0))
    assert exact_cases.linear_control().verdict == "violated"


def capped(
    tmp_path, name="a", dtype=torch.float64, normalization="orthonormal", n_h=64, spoil=None, decay=0.0
):
    model = mlp(n_h=n_h, dtype=dtype)
    initializers.hadamard_(model[0].weight, normalization)
    optimizer = torch.optim.SGD(model.parameters(), 0.2, weight_decay=decay)
    return trained(tmp_path / f"{name}.h5", model, optimizer, spoil=spoil)


def untie(model):
    with torch.no_grad():
        model[2].weight += 1e-3 * torch.rand(
            model[2].weight.shape, generator=torch.Generator().manual_seed(3)
        )


def test_second_cap_holds_in_float64_whatever_the_width(tmp_path):
    # p + N_y = 8 + 4; with 64 and 256 units the orthonormal factor is a power of two.
    runs = [capped(tmp_path, f"w{n_h}", n_h=n_h) for n_h in (64, 256)]
    found = verdict(runs, "second cap")
    assert (found.verdict, found.bound) == ("holds", 12)
    assert len(found.parts) == 2
    assert all(N_X < part.measured <= 12 for part in found.parts)


@pytest.mark.parametrize(
    ("settings", "expected", "says"),
    [
        ({"dtype": torch.float32}, "inconclusive", "record it in float64"),
        ({"decay": 1e-4}, "inconclusive", "weight decay shrinks the identity"),
        ({"spoil": untie}, "violated", r"rank \d+ > p \+ N_y = 12"),
        ({"spoil": untie, "normalization": "paper"}, "inconclusive", "no power of two"),
    ],
)
def test_second_cap_is_judged_only_where_it_can_be(tmp_path, settings, expected, says):
    found = verdict(capped(tmp_path, **settings), "second cap")
    assert found.verdict == expected
    assert re.search(says, found.why)


@pytest.mark.parametrize("module", [nn.Dropout(0.3), nn.RReLU()])
def test_second_cap_is_not_refuted_by_random_modules(tmp_path, module):
    model = mlp(n_h=64, dtype=torch.float64, kind="hadamard")
    model[1] = nn.Sequential(nn.ReLU(), module)
    found = verdict(trained(tmp_path / "a.h5", model), "second cap")
    assert found.verdict == "inconclusive"
    assert "draws random numbers" in found.why


def test_second_cap_says_where_the_width_alone_ensures_it(tmp_path):
    found = verdict(capped(tmp_path, n_h=8, normalization="paper"), "second cap")
    assert found.verdict == "holds"
    assert "which N_h = 8 alone ensures" in found.why


def test_second_cap_without_a_hadamard_run_is_inconclusive(tmp_path):
    assert verdict(trained(tmp_path / "a.h5", mlp()), "second cap").verdict == "inconclusive"


def test_a_run_without_layers_or_steps_is_inconclusive(tmp_path):
    RunWriter(tmp_path / "empty.h5", [Series("a", "weight", "none", "none", "stable_rank")]).close()
    assert verdict(tmp_path / "empty.h5", "(ii)").verdict == "inconclusive"


def test_parts_are_combined_without_letting_the_undecided_vote():
    def part(judgement):
        return Verdict("c", judgement, None, None, "")

    assert combined([part("holds"), part("inconclusive")]) == "holds"
    assert combined([part("holds"), part("violated")]) == "violated"
    assert combined([part("inconclusive")]) == combined([]) == "inconclusive"
