"""all_v1.json of legal_summarization (or a zip that holds it) -> examples.jsonl: prompt, completion, contract.

    python recipes/legal-summaries/prepare.py SOURCE FOLDER [MOST]
"""

import json
import sys
import zipfile
from pathlib import Path

ASK = "Say in one plain sentence what this means for me:\n\n"


def prepare(source: Path, folder: Path, most: int = 10**9) -> Path:
    """Write the examples; their file."""
    raw = zipfile.ZipFile(source).read("all_v1.json") if source.suffix == ".zip" else source.read_bytes()
    told = json.loads(raw)
    sections = list(told.values()) if isinstance(told, dict) else told
    kept = [one for one in sections if one["reference_summary"].strip()][:most]
    rows = [{"prompt": ASK + one["original_text"], "completion": one["reference_summary"], "contract": one["doc"]} for one in kept]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "examples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:4]))
