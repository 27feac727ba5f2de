"""The SpamAssassin corpus as a zip -> examples.jsonl: text (subject and body as a reader sees them), label, subject.

Headers are left out: in this corpus they tell when and where a mail was collected, and a model would learn that.

    python recipes/spam/prepare.py SOURCE FOLDER [MOST]
"""

import json
import re
import sys
import zipfile
from pathlib import Path

from bedplate.modality.text import from_mail


def prepare(source: Path, folder: Path, most: int = 10**9) -> Path:
    """Write the examples, every so many-th mail where fewer are wanted; their file."""
    rows = []
    with zipfile.ZipFile(source) as archive:
        names = sorted(name for name in archive.namelist() if re.search(r"(ham|spam)[^/]*/[^/]+$", name) and not name.endswith(".json"))
        for name in names[:: max(1, len(names) // most)]:
            text = from_mail(archive.read(name))
            if text.strip():
                subject = re.sub(r"^((re|fwd?):\s*)+", "", text.partition("\n")[0].removeprefix("Subject: ").strip().lower())
                rows.append({"text": text, "label": "ham" if "ham" in Path(name).parent.name else "spam", "subject": subject})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "examples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:4]))
