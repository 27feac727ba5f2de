"""Steps in torch's own operations: on a GPU, where there is no compiler, and as the slow twin of the compiled trunk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bedplate.infer.step import PAGE, Packed, Shape, States, Step
from bedplate.model.feed_forward import Experts, FeedForward
from bedplate.model.foundation import FoundationModel
from bedplate.model.projection import Adapter, Projection
from bedplate.model.rotary import Rotation, rotate, rotation


class TorchRunner:
    """A Runner. Uses the model's own weights; nobody may change them meanwhile."""

    def __init__(self, model: FoundationModel, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        """Make room for keys and values.

        Args:
            model: it is moved to the device and the number type.
            shape: how much of everything; the number type is not taken from it.
            device: where to compute.
            dtype: of products, keys and values.
        """
        config = self.config = model.config
        self.pages, self.most_positions, context = shape.pages, shape.positions, shape.context
        self.name = f"torch {str(dtype).removeprefix('torch.')} {device}"
        self.device, self.dtype = device, dtype
        self._model = model if next(model.parameters()).dtype == dtype else model.to(dtype)
        self._model.to(device)
        room = (shape.pages * PAGE, config.num_key_value_heads, config.head_dim)
        self._keys = [torch.zeros(room, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self._values = [torch.zeros(room, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        scaling = config.rope_scaling
        self._dynamic = scaling is not None and scaling.rope_type == "dynamic"
        self._angles = rotation(config, min(context, config.max_position_embeddings) if self._dynamic else context, device)
        self._adapters: dict[str, Mapping[str, Adapter]] = {}

    @torch.inference_mode()
    def run(self, step: Step) -> States:
        """The states of a step's positions."""
        config, device = self.config, self.device
        x = torch.from_numpy(step.x).to(device, self.dtype)
        position, until, slot = (torch.from_numpy(a.astype(np.int64)).to(device) for a in (step.position, step.until, step.slot))
        cosine, sine = self._angles.cos[position], self._angles.sin[position]
        angles = Rotation(cosine[:, None], sine[:, None])  # [n 1 e], as heads stand beside positions here
        groups = _groups(step, device)
        mean = torch.zeros_like(x, dtype=torch.float32) if step.layers is not None else None
        layers: Any = self._model.model.layers
        for number, layer in enumerate(layers):
            attention, prefix = layer.self_attn, f"model.layers.{number}"
            normed = layer.input_layernorm(x)
            queries, keys, values = (
                self._project(step, f"{prefix}.self_attn.{name}", getattr(attention, name), normed).view(len(x), -1, config.head_dim)
                for name in ("q_proj", "k_proj", "v_proj")
            )
            queries, keys = attention.q_norm(queries), attention.k_norm(keys)
            if number not in config.no_rope_layers:
                queries, keys = rotate(queries, angles), rotate(keys, angles)
            # What is kept is finite: a page's next owner reads all of it, and nothing times infinity is no number.
            self._keys[number][slot], self._values[number][slot] = keys.nan_to_num(), values.nan_to_num()
            window = config.sliding_window if number in config.sliding_layers else None
            attended = torch.empty_like(queries)
            for group in groups:
                attended[group.rows.flatten()] = self._attend(number, group, queries, position, until, window)
            x = x + self._project(step, f"{prefix}.self_attn.o_proj", attention.o_proj, attended.flatten(1))
            normed = layer.post_attention_layernorm(x)
            x = x + self._feed_forward(step, f"{prefix}.mlp", layer.mlp, normed)
            if mean is not None and step.layers is not None and number >= config.num_hidden_layers - step.layers:
                mean += F.layer_norm(x.float(), (x.shape[-1],)) / step.layers
        last: np.ndarray = self._model.model.norm(x).float().cpu().numpy()
        return States(last, None if mean is None else mean.cpu().numpy())

    def _feed_forward(self, step: Step, name: str, mlp: FeedForward | Experts, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        if isinstance(mlp, Experts):  # no adapter is on them
            routed: Tensor = mlp(x)
            return routed
        gate, up = (self._project(step, f"{name}.{part}", getattr(mlp, part), x) for part in ("gate_proj", "up_proj"))
        return self._project(step, f"{name}.down_proj", mlp.down_proj, F.silu(gate) * up)

    def _project(self, step: Step, name: str, projection: Projection, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        weight = projection.matrix(self.dtype)
        y = F.linear(x, weight)
        for start, end, adapter in step.segments:
            change = self._adapters[adapter].get(name)
            if change is not None:
                part = y[start:end] + (x[start:end] @ change.A.to(x).t()) @ change.B.to(x).t() * change.scale
                if change.magnitude is not None:
                    part = part * (change.magnitude / change.direction_norm(weight.float())).to(x)
                y[start:end] = part
        return y if projection.bias is None else y + projection.bias

    def _attend(self, layer: int, group: _Group, queries: Tensor, position: Tensor, until: Tensor, window: int | None) -> Float[Tensor, "m h e"]:
        """Attention of sequences that have as many positions in this step."""
        places = torch.arange(group.slots.shape[1], device=self.device)
        seen = places <= until[group.rows][..., None]  # [s t l]
        if window is not None:
            seen &= places > position[group.rows][..., None] - window
        asked = queries[group.rows].transpose(1, 2)  # [s h t e]
        keys, values = (cache[layer][group.slots].transpose(1, 2) for cache in (self._keys, self._values))  # [s k l e]
        grouped = self.config.num_attention_heads != self.config.num_key_value_heads
        attended = F.scaled_dot_product_attention(asked, keys, values, attn_mask=seen[:, None], enable_gqa=grouped)
        return attended.transpose(1, 2).flatten(0, 1)

    @torch.inference_mode()
    def logits(self, states: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m v"]:
        """Logits of states."""
        made: np.ndarray = self._model.logits(torch.from_numpy(states).to(self.device, self.dtype)).float().cpu().numpy()
        return made

    def likeliest(self, logits: Float[np.ndarray, "m v"]) -> Int[np.ndarray, "m"]:
        """The first of the largest logits of each row."""
        found: np.ndarray = logits.argmax(1)
        return found

    def pack(self, adapters: Mapping[str, Adapter]) -> Packed:
        """An adapter's factors on the device."""
        moved = {key: adapter.to(self.device) for key, adapter in adapters.items()}
        return Packed(sum(p.numel() * p.element_size() for adapter in moved.values() for p in adapter.parameters()), moved)

    def put(self, name: str, packed: Packed) -> None:
        """Keep an adapter's factors."""
        self._adapters[name] = packed.parts

    def drop(self, name: str) -> None:
        """Forget an adapter."""
        del self._adapters[name]

    def close(self) -> None:
        """Let go of the cache."""
        self._keys, self._values, self._adapters = [], [], {}


class _Group:
    """Sequences with equally many positions in a step."""

    def __init__(self, rows: Int[Tensor, "s t"], slots: Int[Tensor, "s l"]) -> None:
        self.rows, self.slots = rows, slots


def _groups(step: Step, device: torch.device) -> list[_Group]:
    starts = np.flatnonzero(np.append(True, step.sequence[1:] != step.sequence[:-1]))
    counts = np.diff(np.append(starts, len(step.sequence)))
    groups = []
    for count in np.unique(counts).tolist():
        first = starts[counts == count]
        rows = first[:, None] + np.arange(count)
        longest = int(step.until[rows].max()) + 1
        pages = step.table[step.sequence[first], : -(-longest // PAGE)].astype(np.int64)
        slots = (pages[:, :, None] * PAGE + np.arange(PAGE)).reshape(len(first), -1)
        groups.append(_Group(torch.from_numpy(rows.astype(np.int64)).to(device), torch.from_numpy(slots).to(device)))
    return groups
