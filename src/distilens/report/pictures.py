"""Images, masks and maps as data URIs, so that a page needs no second file."""

import base64
import io
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image

from distilens.report.colours import FLAT, MAP_WEIGHT, TABLE

# Pixels of the longer side as stored; the page scales the picture down, or up only a little.
SIDE = 160


def normalise_map(values: Float[np.ndarray, "h w"], *, signed: bool) -> Float[np.ndarray, "h w"] | str:
    """A map scaled to 0 to 1 for drawing, or a text with the reason why it cannot be drawn.

    Signed maps count by their absolute value, others by their positive part; then (x - min) / (max - min) over the image.
    A map without any positive value is an "empty map": scaled, it would show rounding noise as evidence.
    """
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        return "map is not finite"
    values = np.abs(values) if signed else np.maximum(values, 0.0)
    low, high = values.min(), values.max()
    if high <= 0:
        return "empty map"
    # A constant map marks no place, whatever its value; float32 means may differ in the last bit.
    if high - low <= FLAT * high:
        return "flat map"
    return (values - low) / (high - low)


def image_uri(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """The image; small images are enlarged by whole factors, so that their pixels stay squares."""
    return encode_image(enlarge(image), sharp=is_small(image))


def mask_uri(image: UInt8[np.ndarray, "h w 3"], mask: Shaped[np.ndarray, "h w"]) -> str:
    """The image, darkened outside the evidence mask, with the mask's outline."""
    large = enlarge(image)
    inside = fit_mask(mask, large)
    shown = np.where(inside[..., None], large, (large * 0.25).astype(np.uint8))
    return encode_image(outline_mask(shown, inside), sharp=is_small(image))


def overlay_uri(
    image: UInt8[np.ndarray, "h w 3"],
    values: Float[np.ndarray, "a b"],
    mask: Shaped[np.ndarray, "h w"] | None = None,
) -> str:
    """A normalised map over the grey image, with the mask's outline, if any.

    The map may have any grid; it is resized bilinearly. The image is grey, so that colour belongs only to the map.
    """
    large = enlarge(image)
    height, width = large.shape[:2]
    small = Image.fromarray(np.asarray(values, dtype=np.float32))
    resized = np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))
    colours = TABLE[np.clip(resized * 255, 0, 255).round().astype(np.uint8)]
    grey = np.asarray(Image.fromarray(large).convert("L"), dtype=np.float32)[..., None]
    mixed = (MAP_WEIGHT * colours + (1 - MAP_WEIGHT) * grey).round().astype(np.uint8)
    if mask is not None and np.any(mask):
        mixed = outline_mask(mixed, fit_mask(mask, large))
    return encode_image(mixed, sharp=False)


def strongest_place(values: Float[np.ndarray, "h w"]) -> str:
    """Where a map is strongest, in words, for screen readers: `upper left`, `centre`, …"""
    row, column = np.unravel_index(int(np.argmax(values)), values.shape)
    vertical = ("upper", "middle", "lower")[int(3 * row / values.shape[0])]
    horizontal = ("left", "centre", "right")[int(3 * column / values.shape[1])]
    return "centre" if (vertical, horizontal) == ("middle", "centre") else f"{vertical} {horizontal}"


def is_small(image: UInt8[np.ndarray, "h w 3"]) -> bool:
    """Whether the image is so small that pixels are shown as squares, and lossless storage is cheap."""
    return max(image.shape[:2]) * 3 <= SIDE


def enlarge(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """The image with its longer side near `SIDE`: enlarged by whole factors (nearest neighbour), or shrunk smoothly."""
    height, width = image.shape[:2]
    if max(height, width) > SIDE:
        factor = SIDE / max(height, width)
        size = max(1, round(width * factor)), max(1, round(height * factor))
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    factor = SIDE // max(height, width)
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def fit_mask(mask: Shaped[np.ndarray, "h w"], large: UInt8[np.ndarray, "H W 3"]) -> Bool[np.ndarray, "H W"]:
    """The mask at the size of the enlarged image."""
    height, width = large.shape[:2]
    small = Image.fromarray((np.asarray(mask) > 0).astype(np.uint8) * 255)
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST)) > 127


def outline_mask(pixels: UInt8[np.ndarray, "H W 3"], inside: Bool[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """The picture with a white line inside the mask's border and a black one outside, visible on any background."""
    pixels = pixels.copy()
    pixels[grow_region(inside) & ~inside] = 0
    pixels[inside & grow_region(~inside)] = 255
    return pixels


def grow_region(region: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """The region and its four-connected neighbours, without wrapping around the picture's border."""
    result = region.copy()
    result[1:] |= region[:-1]
    result[:-1] |= region[1:]
    result[:, 1:] |= region[:, :-1]
    result[:, :-1] |= region[:, 1:]
    return result


def encode_image(pixels: UInt8[np.ndarray, "H W 3"], *, sharp: bool) -> str:
    """A data URI: PNG if edges must stay sharp (these images are small), WebP for smooth pictures."""
    return sharp_uri(pixels.tobytes(), pixels.shape[:2]) if sharp else uri_of(pixels, "WEBP", quality=82)


@lru_cache(maxsize=256)
def sharp_uri(pixels: bytes, shape: tuple[int, int]) -> str:
    """A PNG as a data URI, cached, because every panel shows the same images and masks."""
    return uri_of(np.frombuffer(pixels, dtype=np.uint8).reshape(*shape, 3), "PNG", optimize=True)


def uri_of(pixels: UInt8[np.ndarray, "H W 3"], kind: str, **how: int) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **how)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
