"""Magnitude pruning: a literal reference, torch.nn.utils.prune as a peer, and what it leaves alone."""

import copy
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from zanalysis.analyzers.pruning import pruned, pruning_curve
from zanalysis.errors import InputError

bounded = settings(max_examples=60, derandomize=True, deadline=None, database=None)


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 5), nn.Embedding(6, 7)
        )


def linear(values, dtype=torch.float32):
    weight = torch.tensor(values, dtype=dtype)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def bits(model):
    return {name: value.detach().numpy().tobytes() for name, value in model.state_dict().items()}


def literal(matrices, sparsity, scope):
    """Prune lists of numbers entry by entry, smallest first, the earliest first among equals."""
    groups = (
        [list(range(len(matrices)))] if scope == "global" else [[layer] for layer in range(len(matrices))]
    )
    result = [list(matrix) for matrix in matrices]
    for group in groups:
        places = [(abs(matrices[layer][i]), layer, i) for layer in group for i in range(len(matrices[layer]))]
        for _, layer, i in sorted(places)[: round(sparsity * len(places))]:
            result[layer][i] = 0.0
    return result


class TestWhatIsPruned:
    @bounded
    @given(
        st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=12), min_size=1, max_size=4),
        st.floats(0, 1),
        st.sampled_from(["layer", "global"]),
    )
    def test_equals_the_literal_reference_with_ties(self, matrices, sparsity, scope):
        model = nn.Sequential(*[linear([[float(x) for x in row]]) for row in matrices])
        before = bits(model)
        with pruned(model, sparsity, scope):
            got = [layer.weight.flatten().tolist() for layer in model]
        assert got == literal(matrices, sparsity, scope)
        assert bits(model) == before

    @pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.25, 0.5, 0.77, 0.999, 1.0])
    def test_agrees_with_torch_in_each_layer(self, sparsity):
        model, peer = network(), network()
        for layer in (peer[0], peer[3], peer[4]):
            prune.l1_unstructured(layer, "weight", amount=sparsity)
        with pruned(model, sparsity):
            for index in (0, 3, 4):
                assert torch.equal(model[index].weight, peer[index].weight)
            for index in (0, 3):
                assert torch.equal(model[index].bias, peer[index].bias)

    @pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.25, 0.5, 0.77, 0.999, 1.0])
    def test_agrees_with_torch_globally(self, sparsity):
        model, peer = network(), network()
        prune.global_unstructured(
            [(peer[index], "weight") for index in (0, 3, 4)], prune.L1Unstructured, amount=sparsity
        )
        with pruned(model, sparsity, "global"):
            for index in (0, 3, 4):
                assert torch.equal(model[index].weight, peer[index].weight)

    def test_magnitude_counts_and_not_the_signed_value(self):
        model = linear([[-5.0, 1.0], [2.0, -3.0]])
        with pruned(model, 0.5):
            assert model.weight.tolist() == [[-5.0, 0.0], [0.0, -3.0]]

    def test_half_a_weight_rounds_to_even(self):
        model = linear([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
        curve = pruning_curve(model, lambda m: 0.0, [0.25, 0.75])  # 1.5 and 4.5 of 6
        assert curve["pruned"] == [2, 4]

    def test_ties_across_layers_take_the_first_layer_first(self):
        model = nn.Sequential(linear([[1.0, 1.0]]), linear([[1.0], [1.0]]))
        with pruned(model, 0.75, "global"):
            assert [layer.weight.flatten().tolist() for layer in model] == [[0.0, 0.0], [0.0, 1.0]]

    def test_many_equal_magnitudes_go_in_row_major_order_whatever_the_strides(self):
        model = linear(torch.ones(60, 70).tolist())
        model.weight.data = torch.ones(70, 60).T
        assert not model.weight.is_contiguous()
        with pruned(model, 0.5):
            flat = model.weight.flatten()
            assert flat[:2100].eq(0).all()
            assert flat[2100:].eq(1).all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_dtypes(self, dtype):
        model = linear([[-4.0, 0.5], [2.0, 1.0]], dtype)
        with pruned(model, 0.5):
            assert model.weight.tolist() == [[-4.0, 0.0], [2.0, 0.0]]

    def test_dtypes_may_mix_globally(self):
        model = nn.Sequential(linear([[1.0, 4.0]], torch.bfloat16), linear([[2.0], [3.0]], torch.float64))
        with pruned(model, 0.5, "global"):
            assert model[0].weight.tolist() == [[0.0, 4.0]]
            assert model[1].weight.tolist() == [[0.0], [3.0]]

    def test_a_tied_weight_counts_once(self):
        model = nn.Sequential(linear([[1.0, 2.0], [3.0, 4.0]]), linear([[0.0, 0.0], [0.0, 0.0]]))
        model[1].weight = model[0].weight
        curve = pruning_curve(model, lambda m: 0.0, [0.5], "global")
        assert (curve["pruned"], curve["kept"]) == ([2], [2])
        model[1].weight = nn.Parameter(model[0].weight.data)  # another Parameter over the same storage
        assert pruning_curve(model, lambda m: 0.0, [0.5], "global")["kept"] == [2]
        with pruned(model, 0.5):
            assert model[1].weight.tolist() == [[0.0, 0.0], [3.0, 4.0]]
        assert model[1].weight.tolist() == [[1.0, 2.0], [3.0, 4.0]]

    @pytest.mark.parametrize("layers", ["3", ["3"], lambda name: name == "3"])
    def test_layers_by_name_or_predicate(self, layers):
        model = network()
        before = bits(model)
        with pruned(model, 1.0, layers=layers):
            changed = [name for name, value in bits(model).items() if value != before[name]]
        assert changed == ["3.weight"]

    def test_names_are_free_of_wrappers(self):
        model = nn.DataParallel(network())
        assert pruning_curve(model, lambda m: 0.0, [1.0], layers="3")["pruned"] == [180]

    def test_infinite_weights_go_last(self):
        model = linear([[float("inf"), 1.0, -float("inf")]])
        with pruned(model, 1 / 3):
            assert model.weight.tolist() == [[float("inf"), 0.0, -float("inf")]]


class TestWhatIsLeftAlone:
    @bounded
    @given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(["layer", "global"]))
    def test_restores_bit_for_bit_also_when_nested(self, outer, inner, scope):
        model = network()
        with torch.no_grad():
            model[3].weight.view(-1)[:3] = torch.tensor([-0.0, 1e-42, float("inf")])
        before = bits(model)
        with pruned(model, outer, scope):
            between = bits(model)
            with pruned(model, inner, scope):
                pass
            assert bits(model) == between
        assert bits(model) == before

    @pytest.mark.parametrize("scope", ["layer", "global"])
    def test_restores_after_an_exception(self, scope):
        model = network()
        before = bits(model)
        with pytest.raises(RuntimeError, match="on purpose"), pruned(model, 0.9, scope):
            raise RuntimeError("on purpose")
        assert bits(model) == before
        with pytest.raises(ZeroDivisionError, match="division by zero"):
            pruning_curve(model, lambda m: 1 / 0, [0.9], scope)
        assert bits(model) == before

    def test_restores_what_the_block_itself_trained(self):
        model = network()
        before = bits(model)
        with pruned(model, 0.3), torch.no_grad():
            for index in (0, 3, 4):
                model[index].weight.fill_(7.0)
        assert bits(model) == before

    def test_touches_nothing_else(self):
        model = network()
        model[0].requires_grad_(False)
        model[3].weight.grad = torch.full_like(model[3].weight, 2.0)
        model[1].eval()
        identities = [id(p) for p in model.parameters()]
        storages = [p.data_ptr() for p in model.parameters()]
        flags = [p.requires_grad for p in model.parameters()]
        modes = [m.training for m in model.modules()]
        random.seed(1), np.random.seed(1)
        states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
        with pruned(model, 0.5) as same:
            assert same is model
            assert [p.requires_grad for p in model.parameters()] == flags
            assert torch.is_grad_enabled()
        pruning_curve(model, lambda m: 0.0, [0.1, 0.9], "global")
        assert [id(p) for p in model.parameters()] == identities
        assert [p.data_ptr() for p in model.parameters()] == storages
        assert [p.requires_grad for p in model.parameters()] == flags
        assert [m.training for m in model.modules()] == modes
        assert model[3].weight.grad.eq(2).all()
        assert model[4].weight.grad is None
        assert torch.equal(torch.get_rng_state(), states[0])
        assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]

    def test_pruned_weights_can_be_differentiated(self):
        model = linear([[1.0, 3.0]])
        with pruned(model, 0.5):
            model(torch.tensor([[2.0, 5.0]])).sum().backward()
        assert model.weight.grad.tolist() == [[2.0, 5.0]]


class TestTheCurve:
    def test_known_answer(self):
        model = nn.Sequential(linear([[4.0, 3.0]]), linear([[2.0], [1.0]]))
        total = lambda m: sum(p.sum() for p in m.parameters())  # noqa: E731
        curve = pruning_curve(model, total, [0.5, 0.0, 1.0], "global")
        assert curve == {
            "scope": ["global"] * 3,
            "sparsity": [0.5, 0.0, 1.0],
            "pruned": [2, 0, 4],
            "kept": [2, 4, 0],
            "score": [7.0, 10.0, 0.0],
        }
        assert pruning_curve(model, total, [0.5])["score"] == [6.0]

    def test_each_row_starts_from_the_unpruned_weights(self):
        model = network()
        grid = [0.9, 0.1, 0.5]
        measure = lambda m: float(m[3].weight.detach().abs().sum())  # noqa: E731
        curve = pruning_curve(model, measure, grid)
        for sparsity, score in zip(grid, curve["score"], strict=True):
            twin = copy.deepcopy(model)
            with pruned(twin, sparsity):
                assert measure(twin) == score

    def test_is_a_data_frame_as_it_stands(self):
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame(pruning_curve(network(), lambda m: 1.0, np.linspace(0, 1, 5)))
        assert frame.columns.tolist() == ["scope", "sparsity", "pruned", "kept", "score"]
        assert (frame["pruned"] + frame["kept"]).eq(3 * 4 * 9 + 36 * 5 + 42).all()

    def test_no_sparsities_give_no_rows(self):
        assert pruning_curve(network(), lambda m: 1.0, [])["score"] == []


class TestRefusals:
    @pytest.mark.parametrize("sparsity", [-0.1, 1.1, float("nan"), float("inf"), "0.5", None, True])
    def test_sparsity(self, sparsity):
        model = network()
        with pytest.raises(InputError, match=r"^sparsity is .*; expected a number from 0 to 1"):
            pruned(model, sparsity).__enter__()
        with pytest.raises(InputError, match=r"^sparsity is .*; expected a number from 0 to 1"):
            pruning_curve(model, lambda m: pytest.fail("evaluated"), [0.5, sparsity])

    def test_scope(self):
        with pytest.raises(InputError, match=r"scope='globl' is not a scope; did you mean 'global'\?"):
            pruned(network(), 0.5, "globl").__enter__()

    def test_no_weights(self):
        with pytest.raises(InputError, match="BatchNorm2d has no weight to work on: expected at least one"):
            pruned(nn.BatchNorm2d(4), 0.5).__enter__()
        with pytest.raises(InputError, match="has no weight to work on"):
            pruned(network(), 0.5, layers=lambda name: False).__enter__()

    def test_unknown_layer(self):
        with pytest.raises(InputError, match="no layer '7' to work on; known: 0, 3, 4"):
            pruned(network(), 0.5, layers=["0", "7"]).__enter__()

    def test_shape_not_known_yet(self):
        with pytest.raises(InputError, match="The shape of 'weight' is not known yet; run the model once"):
            pruned(nn.LazyLinear(3), 0.5).__enter__()

    @pytest.mark.parametrize("scope", ["layer", "global"])
    def test_nan_weights_and_nothing_is_changed(self, scope):
        model = network()
        with torch.no_grad():
            model[4].weight[1, 1] = float("nan")
        before = bits(model)
        with pytest.raises(InputError, match="'4' holds NaN, which has no magnitude"):
            pruned(model, 0.5, scope).__enter__()
        assert bits(model) == before

    @pytest.mark.parametrize("answer", [None, "good", torch.zeros(2), [1.0]])
    def test_evaluation_that_is_no_number(self, answer):
        model = network()
        before = bits(model)
        with pytest.raises(InputError, match=r"evaluate\(model\) returned .*; expected one number"):
            pruning_curve(model, lambda m: answer, [0.5])
        assert bits(model) == before
