"""The recordings of FSDD as a zip -> learned/*.wav and learned.jsonl, judged/*.wav and judged.jsonl: audio, label, speaker.

The last speaker by name is judged, whole. His recordings lie apart, so that a base can learn from the others' without having heard him.

    python recipes/spoken-digits/prepare.py SOURCE FOLDER [MOST]
"""

import json
import sys
import zipfile
from pathlib import Path


def prepare(source: Path, folder: Path, most: int = 10**9) -> Path:
    """Write the examples, every so many-th recording where fewer are wanted; the file to learn from."""
    rows: dict[str, list[dict[str, str]]] = {"learned": [], "judged": []}
    with zipfile.ZipFile(source) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".wav"))
        last = max(Path(name).stem.split("_")[1] for name in names)
        for name in names[:: max(1, len(names) // most)]:
            digit, speaker, _ = Path(name).stem.split("_")
            part = "judged" if speaker == last else "learned"
            (folder / part).mkdir(parents=True, exist_ok=True)
            (folder / part / Path(name).name).write_bytes(archive.read(name))
            rows[part].append({"audio": f"{part}/{Path(name).name}", "label": digit, "speaker": speaker})
    for part, found in rows.items():
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return folder / "learned.jsonl"


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:4]))
