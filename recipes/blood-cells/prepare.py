"""The zip of BCCD -> cells cut out of their photographs: few/LABEL/*.png, judged/LABEL/*.png, and unlabelled/*.png of the photographs to learn from.

    python recipes/blood-cells/prepare.py SOURCE FOLDER [PHOTOGRAPHS [LABELS]]
"""

import io
import sys
import zipfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

MARGIN = 0.1
"""Of a box's side, kept around it."""


def prepare(source: Path, folder: Path, most: int = 10**9, labels: int = 20) -> Path:
    """Write the cells of so many photographs; the folder of the labelled ones."""
    seen: Counter[str] = Counter()
    with zipfile.ZipFile(source) as archive:
        root = next(name for name in archive.namelist() if name.endswith("ImageSets/Main/test.txt")).removesuffix("ImageSets/Main/test.txt")
        judged = set(archive.read(f"{root}ImageSets/Main/test.txt").decode().split())
        names = sorted(name for name in archive.namelist() if name.startswith(f"{root}Annotations/") and name.endswith(".xml"))
        for name in names[:most]:
            photograph = Path(name).stem
            picture = Image.open(io.BytesIO(archive.read(f"{root}JPEGImages/{photograph}.jpg"))).convert("RGB")
            for number, cell in enumerate(ElementTree.fromstring(archive.read(name)).iter("object")):
                label = str(cell.findtext("name"))
                left, top, right, bottom = (int(cell.findtext(f"bndbox/{side}") or 0) for side in ("xmin", "ymin", "xmax", "ymax"))
                if right - left < 8 or bottom - top < 8:
                    continue
                wide, high = MARGIN * (right - left), MARGIN * (bottom - top)
                cut = picture.crop((int(left - wide), int(top - high), int(right + wide), int(bottom + high))).resize((32, 32))
                places = [f"judged/{label}"] if photograph in judged else ["unlabelled", *([f"few/{label}"] if seen[label] < labels else [])]
                seen[label] += photograph not in judged
                for place in places:
                    (folder / place).mkdir(parents=True, exist_ok=True)
                    cut.save(folder / place / f"{photograph}-{number}.png")
    return folder / "few"


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:5]))
