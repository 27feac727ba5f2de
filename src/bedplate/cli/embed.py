"""`bedplate embed`: vectors for files of any sense."""

from __future__ import annotations

import io
import json
from pathlib import Path

from bedplate.cli.app import Here, ModelFolder


def embed(model: ModelFolder, files: list[str], *, out: Path | None = None, layers: int | None = None, console: Here) -> None:
    """Vectors for files of any sense.

    Args:
        model: a model folder.
        files: files, folders, archives or globs.
        out: where to write them: .npy, .csv or .jsonl; without it they are only counted (or printed with --json).
        layers: how many of the last layers are averaged; by default the upper half.
    """
    import numpy as np

    from bedplate.adapt.base import Base
    from bedplate.core.errors import ConfigError
    from bedplate.core.files import write_bytes
    from bedplate.infer.embed import embed as embed_files

    if out is not None and out.suffix not in (".npy", ".csv", ".jsonl"):
        raise ConfigError(f"{out} is of no known kind", "end its name in .npy, .csv or .jsonl")
    made = embed_files(Base.load(model), files, layers)
    if out is not None:
        if out.suffix == ".npy":
            buffer = io.BytesIO()
            np.save(buffer, made.vectors, allow_pickle=False)
            write_bytes(out, buffer.getvalue())
        elif out.suffix == ".csv":
            lines = [f"{json.dumps(name)},{sense}," + ",".join(f"{v:.6g}" for v in row) for name, sense, row in zip(made.names, made.senses, made.vectors)]
            header = "name,sense," + ",".join(f"v{i}" for i in range(made.vectors.shape[1]))
            write_bytes(out, ("\n".join([header, *lines]) + "\n").encode())
        else:
            numbers = [[round(float(v), 6) for v in row] for row in made.vectors]
            rows = (json.dumps({"name": n, "sense": s, "vector": v}) for n, s, v in zip(made.names, made.senses, numbers))
            write_bytes(out, ("\n".join(rows) + "\n").encode())
    skipped = f"; {len(made.skipped)} skipped" if made.skipped else ""
    console.say(f"{len(made.names)} vectors of {made.vectors.shape[1]} numbers" + (f" in {out}" if out else "") + skipped)
    for name, reason in made.skipped[:5]:
        console.say(f"skipped {name}: {reason}")
    vectors = None if out is not None else [[round(float(v), 6) for v in row] for row in made.vectors]
    console.data({"names": made.names, "senses": made.senses, "width": made.vectors.shape[1], "out": str(out) if out else None, "vectors": vectors})
