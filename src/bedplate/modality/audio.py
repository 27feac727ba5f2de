"""Sound: any file soundfile or PyAV reads -> mono at the spec's rate -> log-mel frames -> units, and back to a waveform by Griffin-Lim."""

from __future__ import annotations

import functools
import io
import wave

import av
import numpy as np
import soundfile
from jaxtyping import Float, Int

from bedplate.core.errors import DataError
from bedplate.modality.specs import AudioSpec
from bedplate.modality.units import Units, grid_of

LOG_FLOOR = 1e-5
"""Mel energies are taken as at least this before the logarithm: quiet is a constant, not minus infinity."""

LONGEST_S = 4 * 3600
"""A file that claims to be longer is not decoded further."""

LogMel = Float[np.ndarray, "f m"]


def decode(data: bytes, spec: AudioSpec) -> LogMel:
    """Log-mel frames of the first `spec.max_s` seconds. `decode_pieces` gives the whole.

    Raises:
        DataError: there is no readable sound in it.
    """
    return decode_pieces(data, spec)[0]


def decode_pieces(data: bytes, spec: AudioSpec) -> list[LogMel]:
    """Log-mel frames in pieces of at most `spec.max_s` seconds, pieces under a tenth of a second left out."""
    waveform = read_waveform(data, spec.sample_rate)
    piece = round(spec.max_s * spec.sample_rate)
    parts = [waveform[start : start + piece] for start in range(0, len(waveform), piece)]
    kept = [part for part in parts if len(part) >= spec.sample_rate // 10] or parts[:1]
    return [log_mel(part, spec) for part in kept]


def rate_and_length(data: bytes) -> tuple[int, float]:
    """(sample rate, seconds) of a sound."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            return int(sound.samplerate), sound.frames / sound.samplerate
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, ZeroDivisionError):
        samples, rate = _with_av(data)
        return rate, len(samples) / max(rate, 1)


def read_waveform(data: bytes, sample_rate: int) -> Float[np.ndarray, "n"]:
    """Mono samples in -1..1 at `sample_rate`."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            # Read in blocks: a lying header must not make us ask for its claimed length at once.
            blocks = []
            left = LONGEST_S * sound.samplerate
            while left > 0 and len(block := sound.read(min(left, 1 << 20), dtype="float32", always_2d=True)):
                blocks.append(block.mean(1))
                left -= len(block)
            samples, rate = (np.concatenate(blocks) if blocks else np.zeros(0, np.float32)), sound.samplerate
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError):
        samples, rate = _with_av(data)
    if not len(samples):
        raise DataError("the sound has no samples", "the file is empty or its header lies about its length")
    return resample(np.nan_to_num(samples, posinf=1.0, neginf=-1.0).clip(-4, 4), rate, sample_rate)


def _with_av(data: bytes) -> tuple[Float[np.ndarray, "n"], int]:
    blocks: list[np.ndarray] = []
    rate = 0
    try:
        with av.open(io.BytesIO(data)) as container:
            if not container.streams.audio:
                raise DataError("there is no sound in the file", "it holds other streams only")
            stream = container.streams.audio[0]
            rate = int(stream.rate)
            resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
            for frame in container.decode(stream):
                blocks += [part.to_ndarray().reshape(-1) for part in resampler.resample(frame)]
                if sum(map(len, blocks[-1:])) and len(blocks) * len(blocks[0]) > LONGEST_S * rate:
                    break
    except DataError:
        raise
    except Exception as error:  # FFmpeg's errors are many, and a damaged end still leaves a good beginning
        if not blocks:
            raise DataError(f"not a readable sound: {error}", "the file is damaged or its codec is unknown") from error
    return (np.concatenate(blocks).astype(np.float32) if blocks else np.zeros(0, np.float32)), rate


def resample(samples: Float[np.ndarray, "n"], rate: int, wanted: int) -> Float[np.ndarray, "m"]:
    """Another sample rate: polyphase windowed sinc, by FFmpeg's resampler (a library we already have; scipy would be 100 MB for this)."""
    if rate == wanted:
        return samples.astype(np.float32)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples, np.float32)[None], format="flt", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="flt", layout="mono", rate=wanted)
    parts = [part.to_ndarray().reshape(-1) for part in [*resampler.resample(frame), *resampler.resample(None)]]
    result: np.ndarray = np.concatenate(parts).astype(np.float32)
    return result


def log_mel(samples: Float[np.ndarray, "n"], spec: AudioSpec) -> LogMel:
    """Natural logarithm of mel energies, one frame a hop; float16 is exact enough (steps of 0.01 at most)."""
    magnitudes = np.abs(_stft(samples, spec))
    frames: np.ndarray = np.log(np.maximum(magnitudes @ _mel(spec), LOG_FLOOR)).astype(np.float16)
    return frames


def to_waveform(frames: LogMel, spec: AudioSpec, iterations: int = 48, seed: int = 0) -> Float[np.ndarray, "n"]:
    """Samples whose log-mel frames are close to `frames`.

    Magnitudes come from the mel bands by non-negative multiplicative updates, phases by Griffin-Lim with momentum.
    Source: Griffin and Lim (1984); Perraudin, Balazs and Sondergaard (2013) for the momentum.
    """
    bands = np.exp(np.asarray(frames, np.float32))
    weights = _mel(spec)  # [bins m]
    magnitudes = np.maximum(bands @ np.linalg.pinv(weights), 1e-6).astype(np.float32)
    for _ in range(30):
        magnitudes *= (bands @ weights.T) / np.maximum((magnitudes @ weights) @ weights.T, 1e-9)
    magnitudes[bands.max(1) <= 2 * LOG_FLOOR] = 0
    random = np.random.default_rng(seed)
    phases = np.exp(2j * np.pi * random.random(magnitudes.shape)).astype(np.complex64)
    before = np.zeros_like(phases)
    samples = _istft(magnitudes * phases, spec)
    for _ in range(iterations):
        again = _stft(samples, spec)[: len(magnitudes)].astype(np.complex64)
        phases = again + 0.99 * (again - before)
        phases /= np.maximum(np.abs(phases), 1e-9)
        before = again
        samples = _istft(magnitudes * phases, spec)
    loudest = float(np.abs(samples).max(initial=0.0))
    return samples if loudest <= 1 else samples / loudest


def cut(frames: LogMel, spec: AudioSpec) -> Units:
    """Units of `spec.frames` frames; a last one that is not full is filled with silence."""
    filled = np.asarray(frames, np.float32)
    if missing := -len(frames) % spec.frames:
        filled = np.concatenate([filled, np.full((missing, spec.mels), np.log(LOG_FLOOR), np.float32)])
    values = (filled.reshape(-1, spec.unit_width) - spec.mean) / spec.std
    return Units(values.astype(np.float32), grid_of(len(values), 1, 1))


def join(values: Float[np.ndarray, "n p"], grid: Int[np.ndarray, "n 3"], spec: AudioSpec) -> LogMel:
    """The inverse of `cut`, filling included."""
    ordered = values[np.argsort(grid[:, 0], kind="stable")]
    return (ordered * spec.std + spec.mean).reshape(-1, spec.mels).astype(np.float16)


def encode(samples: Float[np.ndarray, "n"], sample_rate: int) -> bytes:
    """WAV bytes, 16 bit."""
    out = io.BytesIO()
    with wave.open(out, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(sample_rate)
        sound.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return out.getvalue()


def _sizes(spec: AudioSpec) -> tuple[int, int, int]:
    """(window, hop, transform) in samples."""
    window, hop = round(spec.sample_rate * spec.window_ms / 1000), round(spec.sample_rate * spec.hop_ms / 1000)
    return window, hop, 1 << (window - 1).bit_length()


def _window(spec: AudioSpec) -> Float[np.ndarray, "w"]:
    window = _sizes(spec)[0]
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)).astype(np.float32)


def _stft(samples: np.ndarray, spec: AudioSpec) -> np.ndarray:
    window, hop, transform = _sizes(spec)
    padded = np.pad(samples, (window // 2, window))
    count = 1 + len(samples) // hop
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][:count]
    return np.fft.rfft(frames * _window(spec), transform).astype(np.complex64)


def _istft(spectra: np.ndarray, spec: AudioSpec) -> np.ndarray:
    window, hop, transform = _sizes(spec)
    pieces = np.fft.irfft(spectra, transform)[:, :window].astype(np.float32) * _window(spec)
    length = (len(pieces) - 1) * hop + window
    samples, weight = np.zeros(length, np.float32), np.zeros(length, np.float32)
    square = _window(spec) ** 2
    for number, piece in enumerate(pieces):
        samples[number * hop : number * hop + window] += piece
        weight[number * hop : number * hop + window] += square
    result: np.ndarray = (samples / np.maximum(weight, 1e-3))[window // 2 : length - window // 2]
    return result


@functools.lru_cache(maxsize=8)
def _mel(spec: AudioSpec) -> Float[np.ndarray, "bins m"]:
    """Triangles on the mel scale 2595 log10(1 + f/700), each of unit area in bins."""
    transform = _sizes(spec)[2]
    frequencies = np.linspace(0, spec.sample_rate / 2, transform // 2 + 1)
    top = 2595 * np.log10(1 + spec.sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, spec.mels + 2) / 2595) - 1)
    rising = (frequencies[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies[:, None]) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling))
    # The lowest triangles can be narrower than a bin and fall between two: give each its nearest bin.
    nearest = np.abs(frequencies[:, None] - edges[1:-1]).argmin(0)
    empty = triangles.sum(0) == 0
    triangles[nearest[empty], np.flatnonzero(empty)] = 1
    weights: np.ndarray = (triangles / triangles.sum(0)).astype(np.float32)
    return weights
