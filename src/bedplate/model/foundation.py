"""The model: trunk, senses and heads; what a batch costs it, what it knows of a batch, and how it lies on disk.

A thing at position i is predicted from the state at i-1, whatever its sense. On disk a model is a Hugging Face folder (config.json,
model.safetensors, tokenizer.json) with a manifest; the text half is an ordinary Qwen3.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bedplate.core.artifact import Manifest, seal, verify
from bedplate.core.errors import DataError, IntegrityError
from bedplate.modality.sequence import Batch
from bedplate.modality.specs import SENSES
from bedplate.model.adapters import quantise
from bedplate.model.arithmetic import parameters
from bedplate.model.config import ModelConfig
from bedplate.model.cross_entropy import cross_entropy_sum
from bedplate.model.flow import UnitHeads
from bedplate.model.formats import hugging_face
from bedplate.model.formats.hugging_face import is_code
from bedplate.model.projection import Projection
from bedplate.model.quantise import BLOCK, Bits
from bedplate.model.senses import UnitEmbedding
from bedplate.model.transformer import Cache, Trunk

_RESTORE = "restore the model folder from a copy"
REGRESSION_WEIGHT = 0.5
DRIFT_SHARE = 0.5
DRIFT_MOST = 0.3
"""With DRIFT_SHARE, a row's units come in with noise of a spread up to DRIFT_MOST, so that generation survives its own small errors."""


class LossSums(NamedTuple):
    """Losses of a batch as sums over their targets. A name is the sense, or the sense and the kind of loss ("image_flow")."""

    sums: dict[str, Tensor]
    weights: dict[str, float]
    """Share of each in what is minimised, once divided by its targets."""


class FoundationModel(nn.Module):
    """One network for every sense of its config."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        specs = config.senses.present()
        self.unit_embeddings = nn.ModuleDict({sense: UnitEmbedding(spec.unit_width, config.hidden_size) for sense, spec in specs.items()})
        self.unit_heads = nn.ModuleDict(
            {sense: UnitHeads(spec.unit_width, config.hidden_size, config.flow_width, config.flow_blocks) for sense, spec in specs.items()}
        )
        self.run_trunk: Callable[..., Tensor] = self.model.forward
        """The trunk as the training loop wants it run: itself, or compiled."""

    def initialise(self, seed: int) -> None:
        """Fresh weights: matrices of spread 1/sqrt(inputs), tables of 0.02, everything that writes into the stream zero."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                last = name.split(".")[-2]
                if parameter.ndim == 1:
                    parameter.fill_(1.0 if "norm" in last else 0.0)
                elif last in ("o_proj", "down_proj", "modulate", "last", "leave", "end"):
                    parameter.zero_()
                else:
                    spread = 0.02 if last in ("embed_tokens", "lm_head") else parameter.shape[1] ** -0.5
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)

    @property
    def head(self) -> Tensor:
        """The output matrix [v d]."""
        head: Tensor = self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight
        return head

    # What a batch costs.

    def losses(self, batch: Batch, generator: torch.Generator) -> LossSums:
        """The losses of a batch (torch tensors), differentiable.

        Args:
            batch: packed rows.
            generator: source of all noise; drawn per unit in order of position, the same whatever the targets are.
        """
        x = self.embed(batch, generator)
        hidden = self.run_trunk(x, attention_mask(batch))
        before = hidden[:, :-1]
        wanted = batch.token_loss[:, 1:] & (batch.sense[:, 1:] == 0)
        sums = {"text": cross_entropy_sum(before[wanted], self.head, batch.tokens[:, 1:][wanted])}
        weights = {"text": 1.0}
        for sense, units in batch.units.items():
            here = batch.sense == SENSES.index(sense)  # [b t]
            heads: Any = self.unit_heads[sense]
            preceding = before[here[:, 1:]]  # [n d]: states that predict the units
            targets = batch.unit_loss[sense].float()
            condition = heads.flow.conditions(preceding, batch.grid[sense])
            sums[f"{sense}_flow"] = heads.flow.loss_sum(units, condition, targets, generator)
            sums[f"{sense}_regression"] = heads.regression_sum(preceding, units, targets)
            following = torch.cat([batch.sense[:, 1:], torch.zeros_like(batch.sense[:, :1])], 1)[here] != SENSES.index(sense)
            sums[f"{sense}_end"] = heads.end_sum(hidden[here], following.float(), targets)
            weights |= {f"{sense}_flow": 1.0, f"{sense}_regression": REGRESSION_WEIGHT, f"{sense}_end": 1.0}
        return LossSums(sums, weights)

    def loss_names(self) -> list[str]:
        """Every name that `losses` can give."""
        return ["text", *(f"{sense}_{kind}" for sense in self.config.senses.present() for kind in ("flow", "regression", "end"))]

    def embed(self, batch: Batch, generator: torch.Generator | None = None) -> Float[Tensor, "b t d"]:
        """Positions as vectors. With a generator, units of some rows come in noisy (see DRIFT_SHARE)."""
        x: Tensor = self.model.embed_tokens(batch.tokens)
        for sense, units in batch.units.items():
            here = batch.sense == SENSES.index(sense)
            if generator is not None:
                rows = here.shape[0]
                drift = torch.rand((2, rows), generator=generator, device=units.device)
                spread = torch.where(drift[0] < DRIFT_SHARE, drift[1] * DRIFT_MOST, 0.0)
                row_of_unit = here.nonzero()[:, 0]
                units = units + spread[row_of_unit, None] * torch.randn(units.shape, generator=generator, device=units.device)
            embedded = self.unit_embeddings[sense](units, batch.grid[sense])
            x = x.masked_scatter(here[..., None], embedded.to(x.dtype))
        return x

    # What it knows.

    def hidden(self, batch: Batch, layers: int | None = None) -> Float[Tensor, "b t d"]:
        """Features of every position.

        Args:
            batch: packed rows (torch).
            layers: None: the state after the last norm; n: the mean of the last n layers' streams, each normalised (better for probes).
        """
        collected: list[Tensor] = []
        last: Tensor = self.model(self.embed(batch), attention_mask(batch), None, collected)
        if layers is None:
            return last
        chosen = [nn.functional.layer_norm(x, (x.shape[-1],)) for x in collected[-layers:]]
        return torch.stack(chosen).mean(0)

    def forward_tokens(self, tokens: Int[Tensor, "b t"], cache: Cache | None = None) -> Float[Tensor, "b t v"]:
        """Logits of pure text."""
        return self.logits(self.model(self.model.embed_tokens(tokens), None, cache))

    def logits(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... v"]:
        """Token logits of states."""
        return nn.functional.linear(hidden, self.head)

    # On disk.

    @property
    def bits(self) -> Bits | None:
        """In how many bits the layers' projections are kept; None: exactly."""
        return next((module.quantised.bits for module in self.modules() if isinstance(module, Projection) and module.quantised is not None), None)

    def write_out(self) -> None:
        """Keep every projection exactly again, with the numbers that few bits left."""
        for module in self.modules():
            if isinstance(module, Projection):
                module.write_out()
        self.config = replace(self.config, bits=None)

    def save(
        self,
        folder: Path,
        *,
        tokenizer: Path | None = None,
        parents: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        shard_bytes: int = hugging_face.SHARD_BYTES,
    ) -> Manifest:
        """Write a model folder, manifest last.

        Args:
            folder: where; made when missing.
            tokenizer: a tokenizer.json, or a folder whose tokenizer files and chat template are copied in.
            parents: role -> digest, such as {"corpus": ...}.
            settings: what it was trained with.
            about: facts about it.
            dtype: type of the stored weights; None: as they are.
            shard_bytes: largest file of weights.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").unlink(missing_ok=True)  # an older one must not vouch for new files
        hugging_face.write(folder, replace(self.config, bits=self.bits), self.state_dict(), tokenizer=tokenizer, dtype=dtype, shard_bytes=shard_bytes)
        return seal(folder, "model", parents=parents, settings=settings, about=about)

    @classmethod
    def load(cls, folder: Path, verifier: Callable[[Path, str], Manifest] = verify, dtype: torch.dtype | None = None) -> FoundationModel:
        """Read a model folder; digests are always checked.

        Args:
            folder: a model folder.
            verifier: checks it; a policy may ask for more than digests.
            dtype: type of the weights in memory; None: as they are stored.
        Raises:
            DataError: it is not a model, or holds pickles.
            IntegrityError: a digest does not hold or the tensors do not fit the config.
        """
        if pickled := hugging_face.pickles(folder):
            raise DataError(f"{folder} holds {pickled[0]}, which may run code when it is read", "convert it to safetensors on a machine you can lose")
        verifier(folder, "model")
        return cls.read(folder, dtype)

    @classmethod
    def read(cls, folder: Path, dtype: torch.dtype | None = None) -> FoundationModel:
        """Read any Hugging Face folder of a family that the trunk computes. Nobody vouches for its files; `load` asks the manifest first.

        Weights stay in the mapped file until they are used; changing them changes memory, never the file.

        Args:
            folder: config.json and safetensors.
            dtype: type of the weights in memory; None: as they are stored. Training wants float32. Matrices in few bits stay as they are.
        Raises:
            DataError: it is not a model that the trunk computes, or holds pickles only.
            IntegrityError: it is damaged.
        """
        config = hugging_face.read_config(folder)
        tensors = hugging_face.read_tensors(folder, config)
        try:
            held, asked = _numbers(config, tensors), parameters(config).total
            if held != asked:  # said before anything is made: a config may ask for anything
                raise IntegrityError(f"{folder}: the weights hold {held:,} numbers, the config asks for {asked:,}", _misfit(config, tensors))
            with torch.device("meta"):
                model = cls(config)
                if config.bits is not None:
                    quantise(model, config.bits)
            widest = dtype or functools.reduce(torch.promote_types, {tensor.dtype for name, tensor in tensors.items() if not is_code(name)})
            model.load_state_dict({name: tensor if is_code(name) else tensor.to(widest) for name, tensor in tensors.items()}, strict=True, assign=True)
        except (RuntimeError, ValueError, TypeError, OverflowError) as error:
            raise IntegrityError(f"{folder}: the weights do not fit the config: {str(error).splitlines()[-1].strip()}", _RESTORE) from error
        return model.eval()


def _numbers(config: ModelConfig, tensors: Mapping[str, Tensor]) -> int:
    """How many the tensors hold. A matrix in few bits is filled up to whole blocks, so of those only blocks are compared."""
    if config.bits is None:
        return sum(tensor.numel() for tensor in tensors.values())
    blocks = sum(tensor.numel() for name, tensor in tensors.items() if name.endswith(".quantised.scales"))
    plain = sum(tensor.numel() for name, tensor in tensors.items() if not is_code(name))
    asked = parameters(config).total
    return asked if 0 <= blocks * BLOCK - (asked - plain) < BLOCK * len(tensors) else plain + blocks * BLOCK


def _misfit(config: ModelConfig, tensors: Mapping[str, Tensor]) -> str:
    """What a folder's weights have too many or too few of, as far as a small model of the same kind can say."""
    with torch.device("meta"):
        few = replace(config, num_experts=min(1, config.num_experts), num_experts_per_tok=min(1, config.num_experts), dense_layers=config.dense_layers and (0,))
        small = FoundationModel(replace(few, num_hidden_layers=2, hidden_size=config.head_dim, sliding_layers=(), no_rope_layers=()))
    kinds = {_kind(name) for name in small.state_dict()}
    found = {_kind(name) for name in tensors}
    told = [f"{word} {sorted(names)[0]}" for word, names in (("unknown:", found - kinds), ("missing:", kinds - found)) if names]
    return f"{', '.join(told)}: not the tensors of such a {config.model_type}" if told else _RESTORE


def _kind(name: str) -> str:
    """A tensor's name with its layer's number as N."""
    return re.sub(r"\.\d+\.", ".N.", name)


def attention_mask(batch: Batch) -> Bool[Tensor, "b 1 t t"] | None:
    """True where a position may look at another: the same document, and the past or the same block. None: plain causal."""
    if not batch.isolated:
        return None
    t = batch.tokens.shape[1]
    past = torch.ones(t, t, dtype=torch.bool, device=batch.tokens.device).tril_()
    block = batch.block
    together = (block[:, :, None] == block[:, None, :]) & (block[:, :, None] > 0)
    same = batch.document[:, :, None] == batch.document[:, None, :]
    mask: Tensor = (same & (past | together))[:, None]
    return mask
