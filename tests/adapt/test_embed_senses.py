"""Embed across senses: what belongs to a text may be a picture or a series, and what does not belong as well."""

import json

import numpy as np
import pytest
from adaptations import done
from PIL import Image

from bedplate.adapt.loop import prepare
from bedplate.adapt.settings import AdaptSettings, ExampleSettings, MethodSettings, TrainSettings
from bedplate.core.errors import DataError
from bedplate.infer.worker import Worker

COLOURS = {"river": (20, 40, 220), "lamps": (240, 220, 60), "stone": (120, 120, 120), "birds": (10, 10, 10)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight pictures of each word's colour, beside the tables that name them."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for word, colour in COLOURS.items():
        for n in range(8):
            pixels = np.clip(np.array(colour) + rng.normal(0, 12, (28, 28, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{word}{n}.png")
    return folder


@pytest.fixture
def table(folder, request):
    """Writes rows beside the pictures."""

    def write(rows):
        path = folder / f"{abs(hash(request.node.name))}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def settings(base_folder, file, to, **train):
    made = TrainSettings(**{"threads": 1, "epochs": 12, "lr": 2e-3, "examples_per_step": 8, **train})
    return AdaptSettings(base_folder, to, "embed", ExampleSettings(file, held_out=0.25), MethodSettings("full"), train=made)


def test_pictures_come_near_to_their_words(base_folder, folder, table, tmp_path):
    rows = [{"text": f"the {word}", "positive_image": f"{word}{n}.png"} for n in range(8) for word in COLOURS]
    asked = settings(base_folder, table(rows), tmp_path / "adapter")
    about = done(asked).about
    assert about["scores"]["loss"] < about["scores_before"]["loss"]
    worker = Worker.load(base_folder, asked.to)
    words = np.array([one.vector for one in worker.predict([f"the {word}" for word in COLOURS])])
    seen = np.array([one.vector for one in worker.predict([{"image": str(folder / f"{word}{n}.png")} for word in COLOURS for n in (0, 5)])])
    assert np.mean((words @ seen.T).argmax(0) == np.repeat(np.arange(4), 2)) >= 0.75  # by chance a quarter


def test_what_a_row_gives_becomes_a_sequence_each(base, base_folder, folder, table, tmp_path):
    red, blue = "river0.png", "stone0.png"
    rows = [
        {"text": "a", "positive_image": red, "negative_image": blue},
        {"image": red, "positive": "rivers", "positive_image": blue, "negatives": ["lamps", "stone"]},
        {"image": blue, "positive_series": [1.0, 2.0, 3.0], "negative": "x"},
        {"text": "b", "positive_image": red},
    ]
    prepared = prepare(settings(base_folder, table(rows), tmp_path / "adapter", epochs=1), base)
    items = sorted([*prepared.items, *prepared.held_out], key=lambda item: item.row)
    assert [[sorted(one.units) for one in item.sequences] for item in items] == [
        [[], ["image"], ["image"]], [["image"], ["image"], [], []], [["image"], ["series"], []], [[], ["image"]],
    ]  # fmt: skip
    assert items[0].target[0] == items[3].target[0] != items[0].target[1]  # the same picture is no fair negative of itself
    assert len({*items[1].target}) == 3


@pytest.mark.parametrize(("row", "said"), [
    ({"text": "a"}, "no 'positive', nor 'positive_image'"), ({"text": "a", "positive_video": "x"}, "row 1"), ({"text": "a", "positive_image": "gone.png"}, "cannot be read"),
])  # fmt: skip
def test_rows_that_lack_it_are_refused(base, base_folder, table, tmp_path, row, said):
    with pytest.raises(DataError, match=said):
        prepare(settings(base_folder, table([row] * 4), tmp_path / "adapter"), base)
