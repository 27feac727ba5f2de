"""Runners: the compiled trunk, torch's operations and the model itself say the same of every family; nothing else in a batch changes a bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paged import CONTEXT, apart, embedded, plainly, shape, through

from bedplate.core.errors import ConfigError
from bedplate.infer.cpu.choose import FEW_REQUESTS
from bedplate.infer.cpu.runner import CpuRunner
from bedplate.infer.cpu.structs import INT4
from bedplate.infer.engine_settings import EngineSettings
from bedplate.infer.torch_runner import TorchRunner
from bedplate.model.config import RopeScaling
from bedplate.model.foundation import FoundationModel
from bedplate.testing.models import EXPERTS, FAMILIES, family_model, tiny_config

PRECISIONS = ("float32", "int8", "int4")
INT8_ERROR = 0.06
"""Largest relative error of states in int8; random weights are the hardest to round."""
EXACT = {"rtol": 2e-4, "atol": 2e-4}


def torch_runner(model, **changes):
    return TorchRunner(model, shape(**changes), torch.device("cpu"), torch.float32)


class Rounded(TorchRunner):
    """The slow twin of int8: weights rounded for each output, activations for each row and group, keys and values in half precision."""

    def __init__(self, model):
        super().__init__(model, shape(), torch.device("cpu"), torch.float32)

    def _project(self, step, name, projection, x):
        y = rounded(x, group_of(x.shape[1])) @ rounded(projection.matrix(), x.shape[1]).t()
        return y if projection.bias is None else y + projection.bias

    def _attend(self, layer, group, queries, position, until, window):
        kept = self._keys, self._values
        self._keys, self._values = ([part.half().float() for part in cache] for cache in kept)
        attended = super()._attend(layer, group, queries, position, until, window)
        self._keys, self._values = kept
        return attended


def group_of(inputs):
    return max((g for g in range(4, min(64, inputs) + 1, 4) if inputs % g == 0), default=0)


def rounded(x, group):
    if not group_of(x.shape[1]):
        return x
    parts = x.view(x.shape[0], -1, group)
    scale = parts.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return ((parts / scale).round() * scale).view_as(x)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return family_model(request.param)


@pytest.fixture(scope="module")
def runners(model):
    opened = {precision: CpuRunner(model, shape(precision, threads=2)) for precision in PRECISIONS}
    yield opened
    for runner in opened.values():
        runner.close()


def test_three_ways_to_one_state(model, runners):
    sequences = embedded(model, (1, 16, 45, 17))
    compiled, slow = through(runners["float32"], sequences, (7, 16, 31)), through(torch_runner(model), sequences, (16, 20))
    for x, a, b in zip(sequences, compiled, slow):
        expected = plainly(model, x)
        np.testing.assert_allclose(a, expected, **EXACT)
        np.testing.assert_allclose(b, expected, **EXACT)
    states = np.concatenate(compiled)[:50]
    expected = model.logits(torch.from_numpy(states)).detach().numpy()
    for runner in (runners["float32"], torch_runner(model)):
        logits = runner.logits(states)
        np.testing.assert_allclose(logits, expected, **EXACT)
        assert np.array_equal(runner.likeliest(logits), logits.argmax(1))


@pytest.mark.parametrize("name", EXPERTS)
def test_torch_computes_experts(name):
    model = family_model(name)
    sequences = embedded(model, (1, 16, 45, 17))
    for x, states in zip(sequences, through(torch_runner(model), sequences, (16, 20))):
        np.testing.assert_allclose(states, plainly(model, x), **EXACT)
    with pytest.raises(ConfigError, match="experts"):
        CpuRunner(model, shape())


def test_int8_is_what_its_slow_twin_says_and_near_the_exact_state(model, runners):
    sequences = embedded(model, (40, 23), seed=1)
    fast, twin = through(runners["int8"], sequences, (16, 19)), through(Rounded(model), sequences)
    for x, a, b in zip(sequences, fast, twin):
        exact = plainly(model, x)
        assert apart(a, exact) < INT8_ERROR
        assert apart(a, b) < 0.5 * apart(a, exact) or apart(a, b) < 1e-4, (apart(a, b), apart(a, exact))
    states = np.concatenate(fast)[:20]
    exact, twin = model.head.detach().numpy(), rounded(model.head.detach(), model.head.shape[1]).numpy()
    logits, inputs = runners["int8"].logits(states), rounded(torch.from_numpy(states), group_of(states.shape[1])).numpy()
    np.testing.assert_allclose(logits, inputs @ twin.T, rtol=1e-4, atol=1e-4)
    assert apart(logits, states @ exact.T) < INT8_ERROR


def in_four_bits(model):
    """The model with every row of its projections on a line of 16 numbers, so that 4 bits lose nothing."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("_proj.weight"):
                low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
                step = (high - low) / 15
                weight.copy_(((weight - low) / step).round() * step + low)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_came_in_four_bits_lose_nothing(family):
    model = in_four_bits(family_model(family))
    runner = CpuRunner(model, shape("int4", threads=2))
    kinds = {matrix.kind for layer in runner._layers for matrix in (layer.qkv, layer.output, layer.gate_up, layer.down)}
    sizes = {model.config.hidden_size, model.config.intermediate_size, model.config.num_attention_heads * model.config.head_dim}
    assert (INT4 in kinds) == any(any(size % group == 0 for group in (16, 32, 48, 64)) for size in sizes)
    sequences = embedded(model, (40, 23), seed=1)
    for x, states in zip(sequences, through(runner, sequences, (16, 19))):
        assert apart(states, plainly(model, x)) < INT8_ERROR
    runner.close()


def test_four_bits_only_where_few_run_and_nothing_is_lost():
    model = family_model("qwen3")
    few, many = EngineSettings(most_running=FEW_REQUESTS), EngineSettings(most_running=FEW_REQUESTS + 1)
    assert few.derive(model).precision == many.derive(model).precision == "int8"
    in_four_bits(model)
    assert few.derive(model).precision == "int4" and many.derive(model).precision == "int8"
    assert EngineSettings(precision="int4").derive(model).precision == "int4"
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 5] *= 1.5  # of one matrix only
    assert few.derive(model).precision == "int8"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nothing_else_changes_a_bit(model, runners, precision):
    """Company, portions, pages, threads."""
    sequences = embedded(model, (33, 5, 64, 18), seed=2)
    rng = np.random.default_rng(3)
    alone = [through(runners[precision], [x])[0] for x in sequences]
    for borders in ((), range(64), (1, 16, 17, 40)):
        together = through(runners[precision], sequences, borders, rng.permutation(64))
        assert all(np.array_equal(a, b) for a, b in zip(alone, together)), borders
    logits = [runners[precision].logits(x)[-1].copy() for x in alone]
    assert np.array_equal(runners[precision].logits(np.stack([x[-1] for x in alone])), np.stack(logits))
    for threads in (1, 3):
        runner = CpuRunner(model, shape(precision, threads=threads))
        assert all(np.array_equal(a, b) for a, b in zip(alone, through(runner, sequences, (9,))))
        runner.close()


@settings(max_examples=25)
@given(st.data())
def test_any_portions_on_any_pages(data):
    model = SMALL
    lengths = data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=4))
    borders = data.draw(st.sets(st.integers(1, 49)))
    pages = data.draw(st.permutations(range(64)))
    sequences = embedded(model, lengths, seed=sum(lengths))
    for precision, runner in SMALL_RUNNERS.items():
        made = through(runner, sequences, borders, pages)
        for x, states in zip(sequences, made):
            assert np.array_equal(states, through(runner, [x])[0])
            if precision == "float32":
                np.testing.assert_allclose(states, plainly(model, x), **EXACT)


SMALL = family_model("qwen3")
SMALL_RUNNERS = {precision: CpuRunner(SMALL, shape(precision)) for precision in PRECISIONS}


@pytest.mark.parametrize("kind", ["float32", "int8", "torch"])
def test_pictures_see_themselves_both_ways(model, runners, kind):
    """Inside a page, over pages, at a page's edge, two side by side; words behind them."""
    runner = torch_runner(model) if kind == "torch" else runners[kind]
    sequences = embedded(model, (60, 40), seed=4)
    blocks = [np.zeros(60, np.int32), np.zeros(40, np.int32)]
    blocks[0][3:9], blocks[0][14:34], blocks[0][34:48] = 1, 2, 3
    blocks[1][16:32] = 1
    together = through(runner, sequences, (3, 9, 34, 48), blocks=blocks, permutation=np.random.default_rng(0).permutation(64))
    for x, block, states in zip(sequences, blocks, together):
        expected = plainly(model, x, block)
        assert apart(plainly(model, x), expected) > 0.01
        if kind == "int8":
            assert apart(states, expected) < INT8_ERROR and np.array_equal(states, through(runner, [x], blocks=[block])[0])
        else:
            np.testing.assert_allclose(states, expected, **EXACT)


@pytest.mark.parametrize("kind", ["float32", "int8", "torch"])
def test_the_mean_of_the_last_layers(model, runners, kind):
    runner = torch_runner(model) if kind == "torch" else runners[kind]
    x = embedded(model, (37,), seed=5)[0]
    for layers in range(1, model.config.num_hidden_layers + 1):
        collected = []
        with torch.inference_mode():
            model.model(torch.from_numpy(x)[None], None, None, collected)
        expected = torch.stack([torch.nn.functional.layer_norm(one, one.shape[-1:]) for one in collected[-layers:]]).mean(0)[0].numpy()
        last, mean = through(runner, [x], (20,), layers=layers)
        assert np.array_equal(last[0], through(runner, [x])[0]) or kind == "torch"
        if kind == "int8":
            assert apart(mean[0], expected) < INT8_ERROR
        else:
            np.testing.assert_allclose(mean[0], expected, **EXACT)


@pytest.mark.parametrize("kind", ["float32", "int8", "int4", "torch"])
def test_what_is_no_number_stays_with_its_sequence(kind):
    """A page's former owner left infinities in the lanes that its next owner does not use."""
    runner = torch_runner(SMALL) if kind == "torch" else CpuRunner(SMALL, shape(kind))
    mad, sane = embedded(SMALL, (CONTEXT, 37))
    expected = through(runner, [sane])[0]
    mad[::3], mad[1::3] = np.nan, 1e38
    through(runner, [mad])
    assert np.array_equal(through(runner, [sane])[0], expected) or kind == "torch"
    np.testing.assert_allclose(through(runner, [sane])[0], expected, **EXACT)
    runner.close()


def test_angles_that_depend_on_the_length_are_left_to_torch():
    config = FAMILIES["llama-odd"]
    model = FoundationModel(type(config)(**{**vars(config), "rope_scaling": RopeScaling("dynamic", 2.0)}))
    with pytest.raises(ConfigError, match="length"):
        CpuRunner(model, shape())


def test_a_step_that_is_longer_than_the_workplaces_gets_its_room():
    model = FoundationModel(tiny_config()).eval()
    small, large = CpuRunner(model, shape(positions=20, rows=20)), CpuRunner(model, shape())
    assert (through(small, embedded(model, (21,)))[0] == through(large, embedded(model, (21,)))[0]).all() and small.most_positions == 21
    large.close()
    small.close()


def test_more_rows_than_there_is_room_for_is_an_error_of_ours():
    model = FoundationModel(tiny_config()).eval()
    runner = CpuRunner(model, shape(positions=20, rows=20))
    with pytest.raises(AssertionError):
        runner.logits(np.zeros((21, 32), np.float32))
    runner.close()
