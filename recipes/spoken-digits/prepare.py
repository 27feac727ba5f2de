"""The recordings of FSDD as a zip -> sounds/*.wav and examples.jsonl: audio, label, speaker.

    python recipes/spoken-digits/prepare.py SOURCE FOLDER [MOST]
"""

import json
import sys
import zipfile
from pathlib import Path


def prepare(source: Path, folder: Path, most: int = 10**9) -> Path:
    """Write the examples, every so many-th recording where fewer are wanted; their file."""
    rows = []
    (folder / "sounds").mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(source) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".wav"))
        for name in names[:: max(1, len(names) // most)]:
            digit, speaker, _ = Path(name).stem.split("_")
            (folder / "sounds" / Path(name).name).write_bytes(archive.read(name))
            rows.append({"audio": f"sounds/{Path(name).name}", "label": digit, "speaker": speaker})
    path = folder / "examples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:4]))
