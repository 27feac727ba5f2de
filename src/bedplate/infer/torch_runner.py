"""Steps in torch's own operations: on a GPU, where there is no compiler, and as the slow twin of the compiled trunk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bedplate.infer.cuda_graphs import Decode, Record, few_each
from bedplate.infer.step import PAGE, Packed, Shape, States, Step
from bedplate.infer.torch_step import Group, Inputs, inputs
from bedplate.model.feed_forward import Experts, FeedForward
from bedplate.model.foundation import FoundationModel
from bedplate.model.projection import Adapter, Projection
from bedplate.model.rotary import Rotation, rotate, rotation


class TorchRunner:
    """A Runner. Uses the model's own weights; nobody may change them meanwhile."""

    def __init__(self, model: FoundationModel, shape: Shape, device: torch.device, dtype: torch.dtype, record: Record | None = None) -> None:
        """Make room for keys and values.

        Args:
            model: it is moved to the device and the number type.
            shape: how much of everything; the number type is not taken from it.
            device: where to compute.
            dtype: of products, keys and values.
            record: how steps of few positions a sequence are made quicker, such as `cuda_graphs`; None: they are computed like all.
        """
        config = self.config = model.config
        self.pages, self.most_positions, context = shape.pages, shape.positions, shape.context
        self.name = f"torch {str(dtype).removeprefix('torch.')} {device}"
        self.device, self.dtype = device, dtype
        self._model = model if next(model.parameters()).dtype == dtype else model.to(dtype)
        self._model.to(device)
        room = ((shape.pages + 1) * PAGE, config.num_key_value_heads, config.head_dim)
        self._keys = [torch.zeros(room, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self._values = [torch.zeros(room, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        scaling = config.rope_scaling
        self._dynamic = scaling is not None and scaling.rope_type == "dynamic"
        self._angles = rotation(config, min(context, config.max_position_embeddings) if self._dynamic else context, device)
        self._adapters: dict[str, Mapping[str, Adapter]] = {}
        self._decode = None if record is None else Decode(lambda step: self._states(step)[0], config.hidden_size, shape.pages, device, dtype, record)

    @torch.inference_mode()
    def run(self, step: Step) -> States:
        """The states of a step's positions."""
        if self._decode is not None and few_each(step):
            return States(self._decode.states(step).cpu().numpy(), None)
        last, mean = self._states(inputs(step, self.device, self.dtype))
        return States(last.cpu().numpy(), None if mean is None else mean.cpu().numpy())

    def _states(self, step: Inputs) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"] | None]:
        """The last states, and the mean of some layers' where it is asked for; float32."""
        config, (x, position, until, slot) = self.config, step[:4]
        cosine, sine = self._angles.cos[position], self._angles.sin[position]
        angles = Rotation(cosine[:, None], sine[:, None])  # [n 1 e], as heads stand beside positions here
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
            for group in step.groups:
                attended[group.rows.flatten()] = self._attend(number, group, queries, position, until, window)
            x = x + self._project(step, f"{prefix}.self_attn.o_proj", attention.o_proj, attended.flatten(1))
            normed = layer.post_attention_layernorm(x)
            x = x + self._feed_forward(step, f"{prefix}.mlp", layer.mlp, normed)
            if mean is not None and step.layers is not None and number >= config.num_hidden_layers - step.layers:
                mean += F.layer_norm(x.float(), (x.shape[-1],)) / step.layers
        return self._model.model.norm(x).float(), mean

    def _feed_forward(self, step: Inputs, name: str, mlp: FeedForward | Experts, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        if isinstance(mlp, Experts):  # no adapter is on them
            routed: Tensor = mlp(x)
            return routed
        gate, up = (self._project(step, f"{name}.{part}", getattr(mlp, part), x) for part in ("gate_proj", "up_proj"))
        return self._project(step, f"{name}.down_proj", mlp.down_proj, F.silu(gate) * up)

    def _project(self, step: Inputs, name: str, projection: Projection, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        weight = projection.matrix(self.dtype)
        y = F.linear(x, weight)
        changes = [(0, len(x), projection.adapter), *((start, end, self._adapters[adapter].get(name)) for start, end, adapter in step.segments)]
        for start, end, change in changes:
            if change is not None:
                part = y[start:end] + (x[start:end] @ change.A.to(x).t()) @ change.B.to(x).t() * change.scale
                if change.magnitude is not None:
                    part = part * (change.magnitude / change.direction_norm(weight.float())).to(x)
                y[start:end] = part
        return y if projection.bias is None else y + projection.bias

    def _attend(self, layer: int, group: Group, queries: Tensor, position: Tensor, until: Tensor, window: int | None) -> Float[Tensor, "m h e"]:
        """Attention of sequences that have as many positions in this step."""
        places = torch.arange(group.slots.shape[1], device=self.device)
        seen = places <= until[group.rows][..., None]  # [s t l]
        if window is not None:
            seen &= places > position[group.rows][..., None] - window
        keys, values = (cache[layer][group.slots].transpose(1, 2) for cache in (self._keys, self._values))  # [s k l e]
        # The queries that share keys stand one behind the other, as if they were more positions: no kernel has to repeat keys, and every one takes them.
        (s, t), (k, e) = group.rows.shape, (keys.shape[1], keys.shape[3])
        asked = queries[group.rows].view(s, t, k, -1, e).permute(0, 2, 3, 1, 4)  # [s k g t e]
        shared = asked.shape[2]
        mask = seen[:, None, None].expand(s, 1, shared, t, -1).reshape(s, 1, shared * t, -1)
        attended = F.scaled_dot_product_attention(asked.reshape(s, k, shared * t, e), keys, values, attn_mask=mask)
        return attended.view(s, k, shared, t, e).permute(0, 3, 1, 2, 4).reshape(s * t, k * shared, e)

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
