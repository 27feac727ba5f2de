"""The arithmetic against the modules themselves: parameters by part, products counted while a step runs, bytes that the backward pass keeps."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bedplate.modality.sequence import Batch
from bedplate.modality.specs import SENSES, ImageSpec, SenseSpecs
from bedplate.model.arithmetic import flops_per_token, flops_per_unit, largest_rows, memory, parameters
from bedplate.model.config import PRESETS, preset
from bedplate.model.cross_entropy import CHUNK
from bedplate.model.foundation import FoundationModel
from bedplate.testing.corpora import tiny_specs


def made_up(rows: int, t: int, vocabulary: int, spec: ImageSpec | None, units: int) -> Batch:
    """Rows of random tokens, the first of each followed by `units` units; everything is a target."""
    sense = torch.zeros(rows, t, dtype=torch.int8)
    sense[:, 1 : 1 + units] = SENSES.index("image")
    n, here = rows * units, {}
    if spec is not None:
        here = {"image": torch.randn(n, spec.unit_width)}
    zeros = torch.zeros(rows, t, dtype=torch.int32)
    return Batch(
        tokens=torch.randint(20, vocabulary, (rows, t)), sense=sense, document=zeros, block=zeros, token_loss=torch.ones(rows, t, dtype=torch.bool),
        units=here, grid={name: torch.zeros(n, 3, dtype=torch.long) for name in here}, unit_loss={name: torch.ones(n, dtype=torch.bool) for name in here},
        isolated=False,
    )  # fmt: skip


def product(_out: Any, left: Any, right: Any, *_rest: Any, **_named: Any) -> int:
    """FLOPs of an in-place product, which torch's counter leaves out."""
    return 2 * int(torch.Size(left).numel()) * int(right[-1])


def transposed(x: Any, matrix: Any, *_rest: Any, **_named: Any) -> int:
    """FLOPs of oneDNN's product, which torch's counter does not know."""
    return 2 * int(torch.Size(x).numel()) * int(matrix[0])


UNCOUNTED = {torch.ops.aten.addmm_: product, torch.ops.aten.baddbmm_: product, torch.ops.mkldnn._linear_pointwise: transposed}


@pytest.mark.parametrize(("size", "rows", "t", "units"), [("nano", 4, 512, 0), ("micro", 3, 512, 0), ("micro", 2, 512, 256), ("micro", 2, 1024, 512)])
def test_flops_and_kept_bytes_are_those_of_a_step(size, rows, t, units):
    spec = ImageSpec() if units else None
    config = preset(size, PRESETS[size].vocabulary, SenseSpecs(image=spec))
    model = FoundationModel(config)
    model.initialise(0)
    batch = made_up(rows, t, config.vocab_size, spec, units)
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(x):
        if (storage := x.untyped_storage()).data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        sum(model.losses(batch, torch.Generator().manual_seed(0)).sums.values()).backward()
    share = units / t
    expected = (1 - share) * flops_per_token(config, t) + (share * flops_per_unit(config, "image", t) if units else 0)
    # The block kernel computes a whole diagonal block where causal attention needs half of it.
    assert counter.get_total_flops() / (rows * t) == pytest.approx(expected, rel=0.05)
    peak = sum(kept.values()) + CHUNK * config.vocab_size * 4  # the backward pass begins beside a chunk of logits
    assert peak < memory(config, rows, t, unit_share=share).activations < 1.15 * peak


@pytest.mark.parametrize("size", PRESETS)
def test_counted_parameters_are_the_modules_own(size):
    for senses in (SenseSpecs(), tiny_specs()):
        config = preset(size, PRESETS[size].vocabulary, senses)
        with torch.device("meta"):
            model = FoundationModel(config)
        counted = parameters(config)

        def numbers(start: str, model: FoundationModel = model) -> int:
            return sum(p.numel() for name, p in model.named_parameters() if name.startswith(start))

        assert counted.embedding == numbers("model.embed_tokens") and counted.head == numbers("lm_head")
        assert counted.layers == numbers("model.layers") + numbers("model.norm")
        assert set(counted.senses) == set(senses.present())
        for sense, count in counted.senses.items():
            assert count == numbers(f"unit_embeddings.{sense}") + numbers(f"unit_heads.{sense}")
        assert counted.total == numbers("")
    named = {"nano": 1e6, "micro": 5e6, "mini": 20e6, "small": 125e6, "base": 350e6, "1b": 1e9, "3b": 3e9, "8b": 8e9}
    assert parameters(preset(size, PRESETS[size].vocabulary)).total == pytest.approx(named[size], rel=0.15)


def test_the_state_of_the_optimisers_is_counted_by_what_each_keeps():
    """Muon keeps one number a trunk matrix entry, AdamW two of everything else, all float32."""
    config = preset("micro", 8192, tiny_specs())
    with torch.device("meta"):
        model = FoundationModel(config)
    trunk = sum(p.numel() for name, p in model.named_parameters() if name.startswith("model.layers") and p.ndim == 2)
    total = sum(p.numel() for p in model.parameters())
    counted = memory(config, 1, 512)
    assert (counted.weights, counted.gradients, counted.optimiser) == (4 * total, 4 * total, 4 * trunk + 8 * (total - trunk))


def test_the_largest_number_of_rows_fits_and_one_more_does_not():
    config = preset("micro", 8192, tiny_specs())
    assert flops_per_unit(config, "image", 512, draws=4) > flops_per_unit(config, "image", 512)
    for free in (1 << 30, 4 << 30):
        for width in (2, 4):
            rows = largest_rows(config, 512, free, bytes_per_value=width)
            assert memory(config, rows, 512, bytes_per_value=width).total <= free < memory(config, rows + 1, 512, bytes_per_value=width).total
    assert largest_rows(config, 512, 1 << 20) == 0
