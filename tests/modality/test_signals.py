"""Pictures, sounds, clips and series: decoded, cut into units, put back together."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bedplate.core.errors import DataError
from bedplate.modality import audio, image, series, video
from bedplate.modality.senses import HANDLERS, unit_count
from bedplate.modality.specs import AudioSpec, ImageSpec, SeriesSpec, VideoSpec


def png(array, mode=None, **options):
    out = io.BytesIO()
    Image.fromarray(array, mode).save(out, options.pop("format", "PNG"), **options)
    return out.getvalue()


@given(st.integers(1, 8), st.integers(1, 8), st.sampled_from([1, 3]), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_pictures_survive_cutting_exactly(rows, columns, channels, seed):
    spec = ImageSpec(size=64, patch=4, channels=channels, mean=0.3, std=0.2)
    pixels = np.random.default_rng(seed).integers(0, 256, (4 * rows, 4 * columns, channels), dtype=np.uint8)
    units = image.cut(pixels, spec)
    assert units.values.shape == (rows * columns, spec.unit_width) and unit_count("image", pixels.shape, spec) == rows * columns
    assert units.grid[-1].tolist() == [0, rows - 1, columns - 1]
    assert np.array_equal(image.join(units.values, units.grid, spec), pixels)


def test_units_are_in_reading_order_and_normalised():
    spec = ImageSpec(size=8, patch=4, channels=1, mean=0.5, std=0.25)
    pixels = np.zeros((8, 8, 1), np.uint8)
    pixels[:4, 4:] = 255
    units = image.cut(pixels, spec)
    assert units.values.mean(1).tolist() == [-2.0, 2.0, -2.0, -2.0]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK", "I;16", "LA"])
def test_every_kind_of_pixel_becomes_rgb(mode):
    source = Image.fromarray(np.full((40, 60), 200, np.uint16)) if mode == "I;16" else Image.new("RGB", (60, 40), (250, 10, 10)).convert(mode)
    out = io.BytesIO()
    source.save(out, "TIFF" if mode in ("CMYK", "I;16") else "PNG")
    pixels = image.decode(out.getvalue(), ImageSpec(size=32, patch=4, channels=3))
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and max(pixels.shape[:2]) == 32 and pixels.shape[0] < pixels.shape[1]


def test_a_picture_is_turned_upright():
    picture = Image.new("L", (32, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    out = io.BytesIO()
    picture.save(out, "JPEG", exif=exif)
    assert image.decode(out.getvalue(), ImageSpec(size=32, patch=4, channels=1)).shape == (32, 16, 1)


def test_transparency_is_laid_on_white():
    clear = np.zeros((16, 16, 4), np.uint8)
    assert image.decode(png(clear), ImageSpec(size=16, patch=4)).min() == 255


def test_small_pictures_grow_large_ones_shrink_and_others_stay():
    spec = ImageSpec(size=32, patch=4, channels=1)
    shape = {side: image.decode(png(np.zeros((side, side), np.uint8)), spec).shape[0] for side in (8, 20, 28, 100)}
    assert shape == {8: 32, 20: 20, 28: 28, 100: 32}


@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2], lambda d: d[:20], lambda d: b"\x00" * 50, lambda d: b""])
def test_a_damaged_picture_is_a_data_error(damage):
    rng = np.random.default_rng(0)
    data = png(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8), format="JPEG")
    with pytest.raises(DataError):
        image.decode(damage(data), ImageSpec())


def test_a_picture_that_claims_too_much_is_refused():
    data = bytearray(png(np.zeros((4, 4), np.uint8)))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(DataError):
        image.decode(bytes(data), ImageSpec())


def tone(frequency, seconds=1.0, rate=16_000):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("frequency", [220.0, 440.0, 1500.0])
def test_a_tone_keeps_its_pitch_through_units_and_back(frequency):
    spec = AudioSpec(sample_rate=16_000)
    frames = audio.decode(audio.encode(tone(frequency), 16_000), spec)
    units = audio.cut(frames, spec)
    back = audio.to_waveform(audio.join(units.values, units.grid, spec)[: len(frames)], spec, iterations=24)
    strongest = np.fft.rfftfreq(len(back), 1 / 16_000)[np.abs(np.fft.rfft(back)).argmax()]
    assert strongest == pytest.approx(frequency, rel=0.04)


def test_units_of_sound_keep_the_frames():
    spec = AudioSpec(mean=-4, std=3)
    frames = np.random.default_rng(0).normal(-4, 2, (41, 80)).astype(np.float16)
    units = audio.cut(frames, spec)
    assert len(units.values) == unit_count("audio", frames.shape, spec) == 11
    np.testing.assert_allclose(audio.join(units.values, units.grid, spec)[:41], frames, atol=0.01)


def test_resampling_keeps_length_and_pitch():
    half = audio.resample(tone(300), 16_000, 8_000)
    assert abs(len(half) - 8000) < 50
    assert np.fft.rfftfreq(len(half), 1 / 8000)[np.abs(np.fft.rfft(half)).argmax()] == pytest.approx(300, abs=3)


def test_long_sounds_come_in_pieces():
    spec = AudioSpec(max_s=1.0)
    pieces = audio.decode_pieces(audio.encode(tone(200, 2.5), 16_000), spec)
    assert [len(p) for p in pieces] == [101, 101, 51]


def test_a_wav_whose_header_lies_gives_what_is_there_or_an_error():
    data = bytearray(audio.encode(tone(200, 0.2), 16_000))
    data[40:44] = (2**31).to_bytes(4, "little")
    assert len(audio.decode(bytes(data), AudioSpec())) <= 22
    with pytest.raises(DataError):
        audio.decode(bytes(data[:44]), AudioSpec())


def test_clips_survive_cutting(tmp_path):
    spec = VideoSpec(size=16, patch=8, frames=2, channels=1)
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 1), dtype=np.uint8)
    units = video.cut(frames, spec)
    assert len(units.values) == unit_count("video", frames.shape, spec) == 12
    assert np.array_equal(video.join(units.values, units.grid, spec)[:5], frames)
    again = video.decode(video.encode(np.repeat(frames, 3, -1)), VideoSpec(size=16, patch=8, frames_per_s=8))
    assert again.shape[1:] == (16, 16, 3) and len(again) >= 4


@given(st.lists(st.floats(-1e6, 1e6), min_size=32, max_size=200))
@settings(max_examples=50, deadline=None)
def test_series_invert_and_are_not_scaled_by_their_future(values):
    spec = SeriesSpec(points=16)
    array = np.array(values)
    scale = series.normalisation(array)
    units = series.cut(array, spec)
    back = series.join(units.values, units.grid, spec, scale)[: len(array)]
    inside = np.abs((array - scale.mean) / scale.std) < series.MOST_SPREADS
    np.testing.assert_allclose(back[inside], array[inside], rtol=1e-3, atol=1e-3 * max(1, np.abs(array).max()))
    later = array.copy()
    later[len(later) // 2 + 1 :] += 1e5
    assert series.normalisation(later) == scale


@given(st.sampled_from(sorted(HANDLERS)), st.binary(max_size=400), st.integers(0, 3))
@settings(max_examples=120, deadline=None)
def test_any_bytes_give_a_value_or_a_data_error(sense, data, head):
    heads = (b"", b"\x89PNG\r\n\x1a\n", b"RIFF\x00\x00\x00\x00WAVEfmt ", b"\xff\xd8\xff\xe0")
    decoders = {"image": (image.decode, ImageSpec()), "audio": (audio.decode, AudioSpec()), "video": (video.decode, VideoSpec())}
    if sense in decoders:
        decode, spec = decoders[sense]
        try:
            assert decode(heads[head] + data, spec).size
        except DataError as error:
            assert error.hint


def test_dicom_is_read_where_its_reader_is(tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="a part of the extra `medical`")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.Rows = dataset.Columns = 16
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 1, 16, 16, 15, 0
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.PixelData = np.tile(np.arange(16, dtype=np.uint16) * 100, (16, 1)).tobytes()
    path = tmp_path / "x.dcm"
    pydicom.dcmwrite(path, dataset)
    pixels = image.decode(path.read_bytes(), ImageSpec(size=16, patch=4, channels=1))
    assert pixels[0, 0, 0] == 255 and pixels[0, -1, 0] == 0
