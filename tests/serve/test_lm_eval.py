"""The public harness asks a gateway over HTTP (local-completions), and hears what the model itself says."""

import pytest
import torch
from serve_gateway import serving

from bedplate.adapt.base import Base
from bedplate.core.generation import Ask, Sampling, whole
from bedplate.infer.native import Native
from bedplate.testing.bases import tiny_base
from bedplate.testing.slow_engine import SlowEngine

pytest.importorskip("lm_eval", reason="lm-eval is in the extra `harness`")

CONTEXTS = ["the quiet river carries", "children count lamps", "rain and birds"]
ENDS = [" small boats past stone bridges", " and birds return", " before winter"]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def base(base_folder):
    return Base.load(base_folder)


@pytest.fixture(scope="module")
def native(base):
    made = Native(SlowEngine(base))
    yield made
    made.close()


@torch.inference_mode()
def log_likelihood(base, context, end):
    """Of the end behind the context, and whether each of its tokens is the likeliest; by one pass of the model, no mark before the text."""
    ids = base.encoder.encode(context + end).astype("int64").tolist()
    known = len(base.encoder.encode(context))
    hidden = base.model.model(base.model.model.embed_tokens(torch.tensor([ids])), None, None)
    numbers = base.model.logits(hidden)[0].float().log_softmax(-1)
    said = [(float(numbers[at - 1, ids[at]]), int(numbers[at - 1].argmax()) == ids[at]) for at in range(known, len(ids))]
    return sum(value for value, _ in said), all(likeliest for _, likeliest in said)


@pytest.mark.parametrize("how", [{}, {"tokenized_requests": False}, {"batch_size": 2}, {"num_concurrent": 3}])
def test_log_likelihoods_and_answers_are_those_of_the_model_itself(tmp_path, monkeypatch, base_folder, base, native, how):
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with serving(tmp_path, fake=native, close=False) as served:
        monkeypatch.setenv("OPENAI_API_KEY", served.key)
        far = LocalCompletionsAPI(
            base_url=f"{served.url}/v1/completions", model="fake", tokenizer_backend="huggingface", tokenizer=str(base_folder), max_length=128, max_retries=1, **how
        )
        pairs = [Instance("loglikelihood", {}, (context, end), n) for n, (context, end) in enumerate(zip(CONTEXTS, ENDS))]
        for pair, (there, likeliest_there) in zip(pairs, far.loglikelihood(pairs)):
            here, likeliest_here = log_likelihood(base, *pair.args)
            assert there == pytest.approx(here, abs=1e-3) and likeliest_here == likeliest_there
        asked = [Instance("generate_until", {}, (context, {"until": ["\n"], "max_gen_toks": 6}), n) for n, context in enumerate(CONTEXTS)]
        assert far.generate_until(asked) == [whole(native, Ask(prompt=context, sampling=Sampling(6, stop=("\n",))))[0] for context in CONTEXTS]
        texts = [Instance("loglikelihood_rolling", {}, (context,), n) for n, context in enumerate(CONTEXTS)]
        assert all(value < 0 for value in far.loglikelihood_rolling(texts))


def test_without_a_tokenizer_it_can_still_ask_for_answers(tmp_path, monkeypatch, native):
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    with serving(tmp_path, fake=native, close=False) as served:
        monkeypatch.setenv("OPENAI_API_KEY", served.key)
        far = LocalCompletionsAPI(base_url=f"{served.url}/v1/completions", model="fake", tokenizer_backend=None, max_retries=1)
        asked = [Instance("generate_until", {}, (CONTEXTS[0], {"until": ["\n"], "max_gen_toks": 4}), 0)]
        assert far.generate_until(asked) == far.generate_until(asked)
