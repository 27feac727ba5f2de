"""Every family against transformers, both ways: its models read by us, ours read by it; caches, windows, scaled rotation, biases, heads."""

import json

import pytest
import torch

from bedplate.model.arithmetic import parameters
from bedplate.model.config import ModelConfig
from bedplate.model.foundation import FoundationModel
from bedplate.model.transformer import Cache

transformers = pytest.importorskip("transformers", reason="a part of the extra `oracle`")

LAYERS, LONGEST, T = 4, 64, 48
SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": LONGEST, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16}
DEEPSEEK = YARN | {"beta_fast": 8.0, "beta_slow": 2.0, "mscale": 0.9, "mscale_all_dim": 0.7, "truncate": False}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
MIXED = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]

CASES = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-wide-heads": ("Llama", {"head_dim": 16}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-linear": ("Llama", {"rope_parameters": LINEAR}),
    "llama-dynamic": ("Llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 20}),
    "llama-dynamic-unused": ("Llama", {"rope_parameters": DYNAMIC}),
    "llama-one-key-head": ("Llama", {"num_key_value_heads": 1}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 7}),
    "mistral-yarn": ("Mistral", {"sliding_window": None, "rope_parameters": YARN}),
    "qwen2": ("Qwen2", {}),
    "qwen2-tied-yarn": ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": YARN}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-tied": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
    "qwen3-biases-window": ("Qwen3", {"head_dim": 8, "attention_bias": True, "use_sliding_window": True, "sliding_window": 5, "layer_types": MIXED}),
    "qwen3-deepseek": ("Qwen3", {"head_dim": 16, "rope_parameters": DEEPSEEK}),
    "smollm3": ("SmolLM3", {}),
    "smollm3-untied-biases": ("SmolLM3", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True, "no_rope_layer_interval": 2}),
    "qwen3-moe": ("Qwen3Moe", {"head_dim": 16, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "norm_topk_prob": True}),
    "qwen3-moe-window": ("Qwen3Moe", {
        "num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "use_sliding_window": True, "sliding_window": 7, "attention_bias": True,
        "decoder_sparse_step": 2, "mlp_only_layers": [3],
    }),
    "mixtral": ("Mixtral", {"num_local_experts": 6, "num_experts_per_tok": 2}),
    "mixtral-window-tied": ("Mixtral", {"num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 6, "tie_word_embeddings": True}),
    "smollm3-window": ("SmolLM3", {"use_sliding_window": True, "sliding_window": 6, "no_rope_layers": [1, 0, 1, 0]}),
}
ids = torch.randint(3, 96, (2, T), generator=torch.Generator().manual_seed(0))


def randomise(module, seed):
    """Weights so large that every part matters, norms and biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (1.0 if parameter.ndim == 1 else 0.0))
    return module.eval()


def theirs_of(case, seed=0):
    name, changes = CASES[case]
    config = getattr(transformers, f"{name}Config")(**json.loads(json.dumps(SIZES | changes)))
    return randomise(getattr(transformers, f"{name}ForCausalLM")(config), seed)


@pytest.fixture(params=CASES)
def case(request):
    return request.param


@torch.no_grad()
def test_their_model_gives_the_same_logits_here(tmp_path, case):
    theirs = theirs_of(case)
    theirs.save_pretrained(tmp_path)
    ours = FoundationModel.read(tmp_path)
    torch.testing.assert_close(ours.forward_tokens(ids), theirs(ids).logits, rtol=0, atol=1e-4)
    assert parameters(ours.config).total == sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert (ours.config.begin_token_id, ours.config.end_token_ids) == (1, (2,))


@torch.no_grad()
def test_our_model_gives_the_same_logits_there(tmp_path, case):
    theirs_of(case).save_pretrained(tmp_path / "theirs")
    ours = randomise(FoundationModel.read(tmp_path / "theirs"), seed=1)
    ours.save(tmp_path / "ours")
    theirs, report = getattr(transformers, f"{CASES[case][0]}ForCausalLM").from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    torch.testing.assert_close(ours.forward_tokens(ids), theirs.eval()(ids).logits, rtol=0, atol=1e-4)
    assert FoundationModel.load(tmp_path / "ours").config == ours.config


@torch.no_grad()
@pytest.mark.parametrize("ends", [range(1, T + 1), [5, 30, 31, T]], ids=["one by one", "in pieces"])
def test_a_cache_gives_what_the_whole_pass_gives(tmp_path, case, ends):
    if case == "llama-dynamic":  # angles depend on the length, and keys in a cache keep the ones they were given, in every engine: up to the length that stretches
        ends = [end for end in ends if end <= 20]
    theirs_of(case).save_pretrained(tmp_path)
    ours = FoundationModel.read(tmp_path)
    cache = Cache(LAYERS)
    parts = [ours.forward_tokens(ids[:, start:end], cache) for start, end in zip([0, *ends], ends)]
    torch.testing.assert_close(torch.cat(parts, 1), ours.forward_tokens(ids[:, : ends[-1]]), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_what_is_special_in_a_case_matters(tmp_path):
    """A test of the tests: without its scaling, window or unturned layers a model gives other logits."""
    for case in ("llama-llama3", "llama-linear", "llama-dynamic", "mistral-yarn", "qwen3-deepseek", "mistral-window", "qwen2-window", "smollm3"):
        theirs_of(case).save_pretrained(tmp_path / case)
        ours = FoundationModel.read(tmp_path / case)
        plain = FoundationModel(ModelConfig(**{**vars(ours.config), "rope_scaling": None, "sliding_layers": (), "no_rope_layers": ()}))
        plain.load_state_dict(ours.state_dict())
        assert (plain.forward_tokens(ids) - ours.forward_tokens(ids)).abs().max() > 1e-2, case
