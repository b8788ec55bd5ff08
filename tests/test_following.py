"""Stable ranks that nobody waits for: launched, finished later, followed along a training; here on the CPU."""

import numpy as np
import pytest
import torch
from torch import nn

from zanalysis.analyzers.following import CHECKED_EVERY, ENOUGH, Follower, finished
from zanalysis.analyzers.statuses import STATUSES


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def literal(W):
    values = np.linalg.svd(np.asarray(W, dtype=np.float64), compute_uv=False)
    return float((values**2).sum() / values[0] ** 2)


def record(follower, matrices, arrived=True):
    launched = follower.launch(matrices)
    answer = finished(launched.sums.cpu(), min(matrices[0].shape))
    if arrived:
        follower.learn(answer, launched)
    return answer.values.tolist(), [STATUSES[code] for code in answer.codes]


def weights_along_a_training(steps, every):
    model = nn.Sequential(nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 10))
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=i) / parameter.shape[-1] ** 0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(steps):
        if step % every == 0:
            yield [model[0].weight.detach().clone(), model[2].weight.detach().clone()]
        x = draw(64, 200, seed=1000 + step)
        loss = (model(x) - x[:, :10].sign()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("late", [0, 1], ids=["the host keeps up", "the host is a record behind"])
def test_every_record_that_says_ok_is_right_along_a_training(late):
    followers = [Follower(), Follower()]
    waiting, converged, of = [[], []], 0, 0
    for weights in weights_along_a_training(160, 2):
        for follower, queue, W in zip(followers, waiting, weights, strict=True):
            launched = follower.launch([W])
            queue.append((finished(launched.sums, min(W.shape)), launched))
            if len(queue) > late:
                follower.learn(*queue.pop(0))
            answer = queue[-1][0] if late else finished(launched.sums, min(W.shape))
            of += 1
            if STATUSES[answer.codes[0]] == "ok":
                converged += 1
                assert float(answer.values[0]) == pytest.approx(literal(W), rel=1e-4)
            else:
                assert STATUSES[answer.codes[0]] == "not_converged"
                assert answer.values.isnan().all()
    assert converged >= 0.9 * of


def test_matrices_of_one_shape_are_followed_together_each_with_its_own_status():
    good = draw(80, 60)
    bad = draw(80, 60, seed=1)
    bad[3, 4] = torch.nan
    values, words = record(Follower(), [good, torch.zeros(80, 60), bad])
    assert words == ["ok", "zero", "nonfinite"]
    assert values[0] == pytest.approx(literal(good), rel=1e-4)
    assert np.isnan(values[1:]).all()


@pytest.mark.parametrize("shape", [(5, 400), (400, 5), (20, 20), (2, 2), (130, 500)])
def test_any_shape(shape):
    W = draw(*shape)
    values, words = record(Follower(), [W])
    assert words == ["ok"]
    assert values[0] == pytest.approx(literal(W), rel=1e-4)


@pytest.mark.parametrize("rank", [1, 3])
def test_low_ranks_where_the_krylov_space_ends(rank):
    W = draw(100, rank) @ draw(rank, 90, seed=1)
    follower = Follower()
    for _ in range(4):
        values, words = record(follower, [W])
        assert words == ["ok"]
        assert values[0] == pytest.approx(literal(W), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_taken_as_they_are_stored(dtype):
    W = draw(120, 90).to(dtype)
    assert record(Follower(), [W])[0][0] == pytest.approx(literal(W.double()), rel=1e-4)


def test_what_overflows_is_not_converged_and_never_a_number():
    values, words = record(Follower(), [draw(40, 30) * 1e30])
    assert words == ["not_converged"]
    assert np.isnan(values[0])


def test_the_answer_sets_the_number_of_blocks():
    hard, easy = Follower(depth=1), Follower()
    W = draw(600, 600)
    record(hard, [W])
    assert hard.depth == 2
    E = torch.diag(
        torch.cat([torch.tensor([10.0]), torch.rand(299, generator=torch.Generator().manual_seed(0))])
    )
    depths = []
    for _ in range(20):
        record(easy, [E])
        depths.append(easy.depth)
    assert depths == sorted(depths, reverse=True)
    assert depths[-1] == 1


def test_a_direction_orthogonal_to_all_is_found_at_the_next_check_at_the_latest():
    n = 300
    W = torch.diag(torch.linspace(1, 0.05, n))
    follower = Follower()
    record(follower, [W])
    W[n - 1, n - 1] = 1.2
    last = [record(follower, [W]) for _ in range(CHECKED_EVERY)][-1]
    assert last[1] == ["ok"]
    assert last[0][0] == pytest.approx(literal(W), rel=1e-4)


def test_the_bound_holds():
    for seed in range(10):
        W = draw(200, 150, seed=seed)
        launched = Follower(depth=2 + seed).launch([W])
        answer = finished(launched.sums, 150)
        k = launched.basis.shape[1]
        projected = launched.sums[0, 2 : 2 + k * k].reshape(k, k)
        top = float(torch.linalg.eigvalsh((projected + projected.mT) / 2)[-1])
        exact = float(torch.linalg.svdvals(W.double())[0]) ** 2
        assert (exact - top) / top <= answer.error + 1e-6
        assert (answer.error <= ENOUGH) == (STATUSES[answer.codes[0]] == "ok")


def test_nobodys_random_numbers_are_spent():
    before = torch.get_rng_state()
    record(Follower(), [draw(40, 30)])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.cuda
def test_nothing_synchronizes_on_a_gpu():
    W = draw(512, 768).cuda()
    follower = Follower()
    for _ in range(3):  # libraries are loaded at the first
        launched = follower.launch([W])
        follower.learn(finished(launched.sums.cpu(), 512), launched)
    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = follower.launch([W])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert float(finished(launched.sums.cpu(), 512).values[0]) == pytest.approx(literal(W.cpu()), rel=1e-4)
