"""The model against transformers, against slow twins, and against leaks; on disk, and against tampering."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bedplate.core.errors import BedplateError, ConfigError, DataError, IntegrityError
from bedplate.data.loader import Loader, LoaderSettings
from bedplate.modality.sequence import Batch
from bedplate.modality.specs import SENSES
from bedplate.model.batch import to_torch
from bedplate.model.config import ModelConfig, preset
from bedplate.model.cross_entropy import cross_entropy_sum
from bedplate.model.flow import FlowHead
from bedplate.model.formats.config_json import from_json, to_json
from bedplate.model.foundation import FoundationModel, attention_mask
from bedplate.model.transformer import Cache
from bedplate.testing.corpora import tiny_corpus, tiny_specs
from bedplate.testing.models import tiny_config, tiny_model

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    corpus = tiny_corpus(tmp_path_factory.mktemp("corpora") / "c")
    return to_torch(Loader(corpus, LoaderSettings(seed=1)).batch(0, 30, 128))


@pytest.fixture(scope="module")
def model():
    return tiny_model(senses=tiny_specs(), random=True)


# Oracles.


def test_logits_equal_transformers_in_both_directions(tmp_path, model):
    transformers = pytest.importorskip("transformers", reason="a part of the extra `oracle`")
    ids = torch.randint(0, 320, (2, 40), generator=torch.Generator().manual_seed(0))
    for ours in (model, tiny_model(random=True)):
        ours.save(tmp_path / "m")
        theirs = transformers.Qwen3ForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
        with torch.no_grad():
            torch.testing.assert_close(ours.forward_tokens(ids), theirs(ids).logits, rtol=0, atol=1e-4)
        for parameter in theirs.parameters():
            parameter.data.normal_(0, 0.2)
        back = tiny_model()
        state = {k: v for k, v in theirs.state_dict().items() if k != "lm_head.weight"}
        back.load_state_dict(state)
        with torch.no_grad():
            torch.testing.assert_close(back.forward_tokens(ids), theirs(ids).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunked_cross_entropy_equals_the_plain_one(chunk):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 16, generator=generator, requires_grad=True)
    head = torch.randn(33, 16, generator=generator, requires_grad=True)
    targets = torch.randint(0, 33, (50,), generator=generator)
    outcomes = []
    for loss in (cross_entropy_sum(hidden, head, targets, chunk), torch.nn.functional.cross_entropy(hidden @ head.T, targets, reduction="sum")):
        gradients = torch.autograd.grad(3 * loss, (hidden, head))
        outcomes.append((loss, *gradients))
    for ours, plain in zip(*outcomes):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(cross_entropy_sum(hidden, head, targets, chunk), outcomes[1][0])


@pytest.mark.parametrize("ends", [range(7, 21), [7, 20], [1, 4, 5, 13, 20], [20]], ids=str)
def test_a_cache_gives_what_the_whole_pass_gives(model, ends):
    ids = torch.randint(0, 320, (3, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model.forward_tokens(ids)
        cache = Cache(2)
        parts = [model.forward_tokens(ids[:, start:end], cache) for start, end in zip([0, *ends], ends)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)


# Leaks.


def changed(batch, **columns):
    return Batch(**{**batch.__dict__, **columns})


def test_the_future_and_other_documents_do_not_leak(model, batch):
    with torch.no_grad():
        before = model.hidden(batch)
        tokens = batch.tokens.clone()
        later = (batch.document >= 1) & (batch.sense == 0)
        tokens[later] = (tokens[later] + 7) % 320
        units = {}
        for sense, values in batch.units.items():
            here = batch.sense == SENSES.index(sense)
            units[sense] = torch.where((batch.document[here] >= 1)[:, None], values + 1, values)
        after = model.hidden(changed(batch, tokens=tokens, units=units))
    first = batch.document == 0
    assert first.any() and torch.equal(before[first], after[first])
    assert not torch.equal(before[later], after[later])


def test_known_patches_see_each_other_and_the_rest_only_the_past(model, batch):
    row, column = np.argwhere((batch.block > 0).numpy())[-1]
    block = batch.block[row, column]
    members = (batch.block[row] == block) & (batch.document[row] == batch.document[row, column])
    mask = attention_mask(batch)[row, 0]
    first, last = members.nonzero()[0, 0], members.nonzero()[-1, 0]
    assert mask[first, last] and not mask[first, last + 1]
    causal = torch.ones_like(mask).tril()
    outside = ~(members[:, None] & members[None])
    assert not (mask & ~causal & outside & (batch.block[row][:, None] == 0)).any()


def test_text_rows_need_no_mask():
    assert attention_mask(Batch(*[torch.zeros(1, 4)] * 5, {}, {}, {}, isolated=False)) is None


# Losses.


def test_noise_does_not_depend_on_what_is_a_target(model, batch):
    generator = torch.Generator()
    everything = {sense: torch.ones_like(wanted) for sense, wanted in batch.unit_loss.items()}
    nothing = {sense: torch.zeros_like(wanted) for sense, wanted in batch.unit_loss.items()}
    half = {sense: torch.arange(len(wanted)) % 2 == 0 for sense, wanted in batch.unit_loss.items()}
    rest = {sense: ~wanted for sense, wanted in half.items()}
    with torch.no_grad():
        sums = [model.losses(changed(batch, unit_loss=u), generator.manual_seed(5)).sums for u in (everything, half, rest, nothing)]
    for name in sums[0]:
        if name != "text":
            torch.testing.assert_close(sums[1][name] + sums[2][name], sums[0][name], rtol=1e-4, atol=1e-3)
            assert float(sums[3][name]) == 0
    assert set(sums[0]) == set(model.loss_names())


def test_a_flow_head_learns_a_distribution():
    """Two points, chosen by the condition: after a few hundred steps samples land on the right one."""
    torch.manual_seed(0)
    head = FlowHead(2, 4, 64, 2)
    optimiser = torch.optim.AdamW(head.parameters(), 2e-3)
    points = torch.tensor([[1.5, -1.0], [-1.5, 1.0]])
    generator = torch.Generator().manual_seed(0)
    grid = torch.zeros(128, 3, dtype=torch.long)
    for _ in range(250):
        which = torch.randint(0, 2, (128,), generator=generator)
        condition = head.conditions(torch.nn.functional.one_hot(which, 4).float(), grid)
        loss = head.loss_sum(points[which], condition, torch.ones(128), generator) / 128
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    which = torch.arange(128) % 2
    with torch.no_grad():
        made = head.sample(head.conditions(torch.nn.functional.one_hot(which, 4).float(), grid), torch.randn((128, 2), generator=generator))
    assert ((made - points[which]).norm(dim=1) < 0.4).float().mean() > 0.95


# Shapes.


def test_bad_shapes_and_sizes_are_refused_with_what_would_do():
    with pytest.raises(ConfigError, match="micro"):
        preset("mikro", 100)
    with pytest.raises(ConfigError, match="1, 2, 4"):
        preset("nano", 100, overrides={"num_key_value_heads": 3})
    with pytest.raises(ConfigError):
        preset("nano", 100, overrides={"layers": 3})
    assert preset("nano", 100, overrides={"num_hidden_layers": 5}).num_hidden_layers == 5


def test_configs_survive_json():
    config = tiny_config(senses=tiny_specs())
    assert from_json(json.loads(json.dumps(to_json(config)))) == config
    assert isinstance(config, ModelConfig)


# On disk.


def test_a_saved_model_is_the_same_model(tmp_path, model, batch):
    manifest = model.save(tmp_path / "m", parents={"corpus": "abc"})
    again = FoundationModel.load(tmp_path / "m")
    assert manifest.parents == {"corpus": "abc"} and again.config == model.config
    with torch.no_grad():
        assert torch.equal(again.hidden(batch), model.hidden(batch))


def test_tampering_and_pickles_are_refused(tmp_path, model):
    model.save(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match="changed"):
        FoundationModel.load(tmp_path / "m")
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(DataError, match="safetensors"):
        FoundationModel.load(tmp_path / "m")


@given(st.sampled_from(["config.json", "model.safetensors"]), st.binary(max_size=200), st.integers(0, 400))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_a_clear_error(tmp_path, name, data, at):
    folder = tmp_path / "m"
    tiny_model(vocab_size=64).save(folder)
    before = (folder / name).read_bytes()
    (folder / name).write_bytes(before[:at] + data + before[at + len(data) :])
    try:
        FoundationModel.load(folder, verifier=lambda f, kind: None)  # as if somebody had sealed the damage
    except BedplateError as error:
        assert error.hint


def test_a_config_that_asks_for_too_much_gets_no_room(tmp_path):
    folder = tmp_path / "m"
    tiny_model(vocab_size=64).save(folder)
    whole = json.loads((folder / "config.json").read_text())
    for change in ({"num_hidden_layers": 10**9}, {"vocab_size": 10**12}, {"hidden_size": 10**9}, {"vocab_size": 63}):
        (folder / "config.json").write_text(json.dumps(whole | change))
        with pytest.raises(IntegrityError, match="numbers|layers"):
            FoundationModel.load(folder, verifier=lambda f, kind: None)
    ids = {"bedplate": {**whole["bedplate"], "special_ids": {"<|pad|>": 64}}}
    (folder / "config.json").write_text(json.dumps(whole | ids))
    with pytest.raises(IntegrityError, match="pad"):
        FoundationModel.load(folder, verifier=lambda f, kind: None)


def test_a_saved_model_is_as_readable_as_any_file(tmp_path, model):
    model.save(tmp_path / "m")
    plain = tmp_path / "plain"
    plain.touch()
    assert {path.stat().st_mode for path in (tmp_path / "m").iterdir()} == {plain.stat().st_mode}


def test_the_first_format_is_still_read():
    model = FoundationModel.load(GOLDEN / "model-1")
    ids = torch.arange(10)[None]
    with torch.no_grad():
        logits = model.forward_tokens(ids)[0, -1, :4]
    torch.testing.assert_close(logits, torch.tensor(json.loads((GOLDEN / "model-1.json").read_text())), rtol=1e-3, atol=1e-4)
