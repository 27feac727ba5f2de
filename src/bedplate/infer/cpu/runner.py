"""Steps on a processor: packed weights, pages of keys and values, one call into the compiled trunk a step."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bedplate.core.errors import ConfigError
from bedplate.infer.cpu.build import library
from bedplate.infer.cpu.pack import Packer
from bedplate.infer.cpu.structs import LANES, Change, Layer, Matrix, Scratch, StepIn, Trunk, at, check
from bedplate.infer.step import PAGE, Packed, Shape, States, Step
from bedplate.model.foundation import FoundationModel
from bedplate.model.projection import Adapter
from bedplate.model.rotary import rotation

HEADS_AT_ONCE = 4
"""Queries whose scores are held side by side (attention.h)."""


class CpuRunner:
    """A Runner. Weights are copied; the model is not needed afterwards, but for embedding."""

    def __init__(self, model: FoundationModel, shape: Shape) -> None:
        """Pack a model's weights.

        Args:
            model: an adapter that it carries is part of it.
            shape: precision, and how much of everything.
        Raises:
            ConfigError: the model computes something that the compiled trunk does not.
            ResourceError: there is no compiled trunk.
        """
        precision, pages, context = shape.precision, shape.pages, shape.context
        self._precision = precision
        config = self.config = model.config
        if config.rope_scaling is not None and config.rope_scaling.rope_type == "dynamic":
            raise ConfigError("angles that depend on the length are not in the compiled trunk", "torch computes them")
        if config.num_experts:
            raise ConfigError(f"the experts of a {config.model_type} are not in the compiled trunk", "torch computes them")
        self.pages, self.most_positions, self.name = pages, shape.positions, f"cpu {precision}"
        self._library = library()
        check(self._library)
        self._library.pool_open.restype = ctypes.c_void_p
        self._pool = ctypes.c_void_p(self._library.pool_open(shape.threads))
        self._packer = Packer(self._library, self._pool)
        turned = rotation(config, context, model.head.device)
        half = config.head_dim // 2
        self._cosine, self._sine = (np.ascontiguousarray(part[:, :half].cpu().numpy()) for part in turned)
        self._model = model
        self._adapters: dict[str, tuple[Packer, Any]] = {}
        self._unchanged = (Change * config.num_hidden_layers)()
        number = np.float32 if precision == "float32" else np.float16
        value_width = -(-config.head_dim // LANES) * LANES
        # np.zeros leaves untouched pages to the system; what a masked lane reads is a number, never a NaN.
        self._cache = [
            np.zeros((pages, config.num_key_value_heads, width, PAGE), number)
            for _ in range(config.num_hidden_layers)
            for width in (config.head_dim, value_width)
        ]
        self._layers = (Layer * config.num_hidden_layers)()
        layers: Any = model.model.layers
        for number_of, layer in enumerate(layers):
            attention, feed = layer.self_attn, layer.mlp
            pack = self._packer
            self._layers[number_of] = Layer(
                pack.vector(layer.input_layernorm.weight),
                pack.vector(layer.post_attention_layernorm.weight),
                pack.vector(attention.q_norm.weight, value_width) if config.qk_norm else None,
                pack.vector(attention.k_norm.weight, value_width) if config.qk_norm else None,
                pack.side_by_side([attention.q_proj, attention.k_proj, attention.v_proj], precision),
                pack.side_by_side([attention.o_proj], precision),
                pack.side_by_side([feed.gate_proj, feed.up_proj], precision),
                pack.side_by_side([feed.down_proj], precision),
                at(self._cache[2 * number_of]),
                at(self._cache[2 * number_of + 1]),
                (config.sliding_window or 0) if number_of in config.sliding_layers else 0,
                number_of not in config.no_rope_layers,
            )
        self._trunk = Trunk(
            self._layers,
            self._packer.vector(model.model.norm.weight),
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.num_hidden_layers,
            config.hidden_size,
            config.intermediate_size,
            precision != "float32",
            config.rms_norm_eps,
        )
        self._head: Matrix = self._packer.matrix(model.head, None, "int8" if precision == "int4" else precision)  # in 4 bits: +7.7% perplexity
        self._logits = np.empty((shape.rows, (-(-config.vocab_size // LANES) + 1) * LANES), np.float32)
        self._context, self._threads, self._ranks = context, shape.threads, LANES
        self._make_room(shape.positions)

    def _make_room(self, positions: int) -> None:
        """Workplaces for steps of so many positions."""
        self.most_positions = positions
        self._scratch, self._room = self._workplaces(max(positions, len(self._logits)), self._context, self._threads)

    def _workplaces(self, n: int, context: int, threads: int) -> tuple[Scratch, dict[str, np.ndarray[Any, Any]]]:
        config = self.config
        attended = config.num_attention_heads * config.head_dim
        widest = max(config.hidden_size, attended, config.intermediate_size)

        def panels(width: int) -> int:
            return (-(-width // LANES) + 1) * LANES  # stride_of in matrix.h

        scores = HEADS_AT_ONCE * (panels(context) + PAGE)
        room: dict[str, np.ndarray[Any, Any]] = {
            "x": np.zeros(n * widest + LANES, np.float32),
            "qkv": np.zeros(n * panels(attended + 2 * config.num_key_value_heads * config.head_dim), np.float32),
            "attended": np.zeros(n * panels(config.hidden_size), np.float32),
            "gate_up": np.zeros(n * panels(2 * config.intermediate_size) + LANES, np.float32),
            "low": np.zeros(n * self._ranks, np.float32),
            "scores": np.zeros(threads * scores, np.float32),
            "scale": np.zeros(n * -(-widest // 4), np.float32),
            "bytes": np.zeros(n * widest + LANES, np.int8),
            "total": np.zeros(n * -(-widest // 4), np.int32),
        }
        return Scratch(*[at(array) for array in room.values()], scores, n * self._ranks), room

    def run(self, step: Step) -> States:
        """The states of a step's positions; `step.x` is overwritten with them."""
        n, count = len(step.x), len(step.segments)
        if n > self.most_positions:
            self._make_room(n)
        cosine, sine = self._cosine[step.position], self._sine[step.position]
        start = np.array([s.start for s in step.segments], np.int32)
        end = np.array([s.end for s in step.segments], np.int32)
        changes = (ctypes.c_void_p * max(1, count))(*[ctypes.addressof(self._adapters[s.adapter][1]) for s in step.segments])
        mean = None if step.layers is None else np.zeros_like(step.x)
        whole = (at(a) for a in (step.x, step.sequence, step.position, step.until, step.slot, cosine, sine, step.table, start, end))
        collect_from = 0 if step.layers is None else self.config.num_hidden_layers - step.layers
        asked = StepIn(*whole, ctypes.addressof(changes), at(mean), n, step.table.shape[1], count, collect_from)
        self._library.trunk_run(self._pool, ctypes.byref(self._trunk), ctypes.byref(asked), ctypes.byref(self._scratch))
        return States(step.x, mean)

    def logits(self, states: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m v"]:
        """Logits of states."""
        states = np.ascontiguousarray(states)
        assert len(states) <= len(self._logits)
        self._library.head_run(
            self._pool, ctypes.byref(self._head), ctypes.c_void_p(at(states)), len(states), ctypes.c_void_p(at(self._logits)), ctypes.byref(self._scratch)
        )
        return self._logits[: len(states), : self.config.vocab_size]

    def likeliest(self, logits: Float[np.ndarray, "m v"]) -> Int[np.ndarray, "m"]:
        """The first of the largest logits of each row."""
        assert logits.strides[1] == logits.itemsize
        found = np.empty(len(logits), np.int32)
        self._library.largest_of(
            self._pool, ctypes.c_void_p(logits.ctypes.data), len(logits), logits.shape[1], logits.strides[0] // 4, ctypes.c_void_p(at(found))
        )
        return found

    def pack(self, adapters: Mapping[str, Adapter]) -> Packed:
        """An adapter's factors; in bfloat16 where weights are rounded, too."""
        packer = Packer(self._library)
        changes = (Change * self.config.num_hidden_layers)()
        groups = (("self_attn", ("q_proj", "k_proj", "v_proj")), ("self_attn", ("o_proj",)), ("mlp", ("gate_proj", "up_proj")), ("mlp", ("down_proj",)))
        widest = 0
        layers: Any = self._model.model.layers
        for number, layer in enumerate(layers):
            made = []
            for parent, names in groups:
                found = [adapters.get(f"model.layers.{number}.{parent}.{one}") for one in names]
                made.append(packer.low_rank([getattr(getattr(layer, parent), one) for one in names], found, self._precision))
                widest = max(widest, made[-1].ranks)
            changes[number] = Change(*made)
        return Packed(packer.bytes, (packer, changes, widest))

    def put(self, name: str, packed: Packed) -> None:
        """Keep an adapter's factors, and room for what they come to."""
        packer, changes, widest = packed.parts
        self._adapters[name] = packer, changes
        self._ranks = max(self._ranks, widest)
        if self._ranks * max(self.most_positions, len(self._logits)) > self._scratch.low_room:
            self._make_room(self.most_positions)

    def drop(self, name: str) -> None:
        """Forget an adapter."""
        del self._adapters[name]

    def close(self) -> None:
        """End the threads."""
        if self._pool:
            self._library.pool_close(self._pool)
            self._pool = ctypes.c_void_p(None)
