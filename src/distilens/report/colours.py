"""The colours of maps and their opacity. Without torch, so that writing a page from files does not import it."""

import numpy as np
from jaxtyping import UInt8

# Every tenth of viridis (CC0, matplotlib): dark to light in even steps, so it works without colour vision too.
ANCHORS = ("440154", "482475", "414487", "355f8d", "2a788e", "21918c", "22a884", "44bf70", "7ad151", "bddf26", "fde725")
MAP_WEIGHT = 0.62  # opacity of the map's colour over the grey image
FLAT = 1e-6  # a map whose values differ by less than this share of the largest value marks no place


def colour_table() -> UInt8[np.ndarray, "256 3"]:
    """The 256 colours of maps, weakest first, interpolated between the anchors."""
    anchors = np.array([[int(anchor[at : at + 2], 16) for at in (0, 2, 4)] for anchor in ANCHORS], dtype=float)
    positions = np.linspace(0, len(ANCHORS) - 1, 256)
    channels = [np.interp(positions, np.arange(len(ANCHORS)), anchors[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


TABLE = colour_table()
