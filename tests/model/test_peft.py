"""PEFT's format against peft itself, both ways: same logits, same gradients' places, and refusals of what is not computed here."""

import json

import pytest
import torch

from bedplate.core.errors import DataError, IntegrityError
from bedplate.model.adapters import AdapterShape, Merged, attach, projections, trained
from bedplate.model.formats import peft as ours
from bedplate.model.foundation import FoundationModel

transformers = pytest.importorskip("transformers", reason="a part of the extra `oracle`")
peft = pytest.importorskip("peft", reason="a part of the extra `oracle`")

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {"llama": ("Llama", {"attention_bias": True}), "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True})}
SHAPES = {
    "lora": AdapterShape(4, 8.0),
    "rslora": AdapterShape(4, 6.5, rslora=True),
    "dora": AdapterShape(4, 8.0, dora=True),
    "some": AdapterShape(3, 6.0, targets=("q_proj", "v_proj", "down_proj"), dropout=0.1),
}
ids = torch.randint(3, 96, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=FAMILIES)
def base(request, tmp_path_factory):
    name, changes = FAMILIES[request.param]
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**SIZES, **changes))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.15)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return folder


def stir(weights):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in weights:
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))


def their_base(base):
    return transformers.AutoModelForCausalLM.from_pretrained(base)


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_peft_loads_ours(base, shape, tmp_path):
    model = FoundationModel.read(base)
    plain = model.forward_tokens(ids)
    attach(model, SHAPES[shape])
    stir(trained(model).values())
    ours.write(tmp_path, model, SHAPES[shape], "base")
    theirs = peft.PeftModel.from_pretrained(their_base(base), tmp_path).eval()
    logits = model.eval().forward_tokens(ids)
    torch.testing.assert_close(logits, theirs(ids).logits, rtol=0, atol=1e-4)
    assert (logits - plain).abs().max() > 0.1
    Merged(model)
    torch.testing.assert_close(model.forward_tokens(ids), theirs.merge_and_unload()(ids).logits, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("asked", [
    {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "use_dora": True},
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"], "use_rslora": True, "init_lora_weights": "gaussian"},
    {"r": 4, "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"down_proj": 6}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}},
    {"r": 4, "target_modules": ["v_proj"], "layers_to_transform": [1], "lora_dropout": 0.2},
], ids=["lora", "dora", "rslora", "patterns", "one-layer"])  # fmt: skip
def test_we_load_what_peft_wrote(base, asked, tmp_path):
    theirs = peft.get_peft_model(their_base(base), peft.LoraConfig(task_type="CAUSAL_LM", **asked))
    stir(p for name, p in theirs.named_parameters() if "lora_" in name)
    theirs.save_pretrained(tmp_path)
    model = FoundationModel.read(base)
    plain = model.forward_tokens(ids)
    ours.put_on(model, ours.read(tmp_path, model))
    torch.testing.assert_close(model.forward_tokens(ids), theirs.eval()(ids).logits, rtol=0, atol=1e-4)
    assert (model.forward_tokens(ids) - plain).abs().max() > 1e-3


def test_a_step_learns_what_peft_learns(base):
    """The same start, one step of plain descent: the same loss before and after."""
    model = FoundationModel.read(base)
    weights = attach(model, SHAPES["lora"])
    theirs = peft.get_peft_model(their_base(base), peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_" in name:
                place, part = name.removeprefix(ours.PREFIX).split(".lora_")
                p.copy_(weights[f"{place}.adapter.{part[0]}"])
    losses = []
    for step in range(3):
        mine = torch.nn.functional.cross_entropy(model.forward_tokens(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        other = theirs(ids, labels=ids).loss
        losses.append((float(mine.detach()), float(other.detach())))
        for loss, trained_weights in ((mine, weights.values()), (other, [p for p in theirs.parameters() if p.requires_grad])):
            grads = torch.autograd.grad(loss, list(trained_weights))
            with torch.no_grad():
                for p, g in zip(trained_weights, grads):
                    p.sub_(0.5 * g)
    assert all(abs(a - b) < 1e-4 for a, b in losses) and losses[2][0] < losses[0][0]


@pytest.mark.parametrize("change,said", [
    ({"peft_type": "IA3"}, "IA3"),
    ({"bias": "all"}, "biases"),
    ({"modules_to_save": ["score"]}, "score"),
    ({"init_lora_weights": "pissa_niter_16"}, "pissa"),
    ({"use_qalora": True}, "use_qalora"),
    ({"rank_pattern": {"(a+)+b": 3}}, "repeats"),
])  # fmt: skip
def test_what_is_not_computed_is_refused(base, change, said, tmp_path):
    model = FoundationModel.read(base)
    attach(model, SHAPES["lora"])
    ours.write(tmp_path, model, SHAPES["lora"], "base")
    path = tmp_path / ours.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=said):
        ours.read(tmp_path, model)


def test_damage_and_misfits_are_told(base, tmp_path):
    model = FoundationModel.read(base)
    with pytest.raises(DataError, match="no adapter_config.json"):
        ours.read(tmp_path, model)
    attach(model, SHAPES["lora"])
    ours.write(tmp_path, model, SHAPES["lora"], "base")
    config = json.loads((tmp_path / ours.CONFIG).read_text())
    for change in ({"r": 5}, {"use_dora": True}, {"r": "many"}, {"lora_alpha": None}):
        (tmp_path / ours.CONFIG).write_text(json.dumps(config | change))
        with pytest.raises(IntegrityError):
            ours.read(tmp_path, model)
    (tmp_path / ours.CONFIG).write_text(json.dumps(config))
    (tmp_path / ours.WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(IntegrityError, match="cannot be read"):
        ours.read(tmp_path, model)
    assert all(p.adapter for _, p in projections(model))
