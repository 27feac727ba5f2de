"""The senses: text, image, audio, video, series. Each file says how a file is decoded, cut into units and put back together. No torch."""
