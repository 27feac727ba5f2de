"""Speaks words to WAV files with the packaged espeak-ng. Run as a program of its own, so that the synthesiser is never part of ours:

    python -m bedplate.advise.tour.speech FOLDER < words.json      # [{"file": "0.wav", "text": "seven", "voice": "en-us", "speed": 150}, ...]
"""

from __future__ import annotations

import ctypes
import json
import sys
import wave
from pathlib import Path
from typing import Any

_RETRIEVAL = 2  # espeak-ng's speak_lib.h: AUDIO_OUTPUT_SYNCHRONOUS, samples go to a callback
_UTF8 = 1
_RATE = 1


def speak(folder: Path, words: list[dict[str, Any]]) -> int:
    """Write one file a word; the sample rate."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = int(library.espeak_Initialize(_RETRIEVAL, 0, str(espeakng_loader.get_data_path()).encode(), 0))
    if rate <= 0:
        raise RuntimeError("espeak-ng did not start")
    spoken = bytearray()

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)  # type: ignore[untyped-decorator]
    def take(samples: Any, count: int, _: Any) -> int:
        if samples and count > 0:
            spoken.extend(ctypes.string_at(samples, 2 * count))
        return 0

    library.espeak_SetSynthCallback(take)
    for word in words:
        spoken.clear()
        library.espeak_SetVoiceByName(str(word["voice"]).encode())
        library.espeak_SetParameter(_RATE, int(word["speed"]), 0)
        text = str(word["text"]).encode()
        library.espeak_Synth(text, len(text) + 1, 0, 0, 0, _UTF8, None, None)
        library.espeak_Synchronize()
        with wave.open(str(folder / str(word["file"])), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(rate)
            sound.writeframes(bytes(spoken))
    return rate


if __name__ == "__main__":
    speak(Path(sys.argv[1]), json.load(sys.stdin))
