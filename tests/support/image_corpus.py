"""Small images in many forms, and small files made to do harm: for test_malformed_images.py and image_fuzzer.py."""

from __future__ import annotations

import base64
import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from PIL import Image, features

Image.init()  # all formats that Pillow has
HEIGHT, WIDTH = 19, 26
ORIENTATION_TAG = 0x0112


def picture(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Any:
    """Return smooth noise, (height, width, 3), with an edge in it."""
    rng = np.random.default_rng(seed)
    few = rng.integers(0, 256, (height // 7 + 2, width // 7 + 2, 3), dtype=np.uint8)
    pixels = cv2.resize(few, (width, height), interpolation=cv2.INTER_CUBIC)
    pixels[height // 3 :, width // 2 :, 1] ^= 0x55
    return pixels


def by_pillow(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010E] = "a tag in front of it"
    exif[ORIENTATION_TAG] = orientation
    return exif


# ---- PNG, part by part -----------------------------------------------------------------------------------------------

PNG_START = b"\x89PNG\r\n\x1a\n"
GRAY, RGB, PALETTE, GRAY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, bits: int, color: int, *, interlaced: bool = False) -> bytes:
    return PNG_START + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, int(interlaced)))


def png_rows(samples: Any, bits: int) -> bytes:
    """Return rows of samples, (height, width, channels), packed, each behind the filter 'none'."""
    height, width, channels = samples.shape
    if bits == 16:
        packed = samples.astype(">u2").view(np.uint8).reshape(height, -1)
    elif bits == 8:
        packed = samples.astype(np.uint8).reshape(height, width * channels)
    else:
        each_bit = samples.astype(np.uint8).reshape(height, -1, 1) >> np.arange(bits - 1, -1, -1) & 1
        packed = np.packbits(each_bit.reshape(height, -1), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in packed)


def png(
    samples: Any,
    bits: int,
    color: int,
    *,
    before: bytes = b"",
    after: bytes = b"",
    interlaced: bool = False,
    step: int = 1 << 30,
    level: int = 9,
) -> bytes:
    """Return a PNG; ``before`` and ``after`` are chunks around its pixels, which come in pieces of ``step`` bytes."""
    height, width = samples.shape[:2]
    passes = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)]
    parts = [samples[y::dy, x::dx] for y, dy, x, dx in passes] if interlaced else [samples]
    packed = zlib.compress(b"".join(png_rows(part, bits) for part in parts if part.size), level)
    data = b"".join(chunk(b"IDAT", packed[at : at + step]) for at in range(0, len(packed), step))
    return png_header(width, height, bits, color, interlaced=interlaced) + before + data + after + chunk(b"IEND")


def repaired(content: bytes | bytearray) -> bytes:
    """Return a PNG with right checksums, as far as its chunks can be followed."""
    fixed = bytearray(content)
    at = 8
    while at + 12 <= len(fixed):
        (length,) = struct.unpack_from(">I", fixed, at)
        end = at + 12 + length
        if end > len(fixed):
            break
        struct.pack_into(">I", fixed, end - 4, zlib.crc32(fixed[at + 4 : end - 4]))
        at = end
    return bytes(fixed)


def png_images() -> Iterator[tuple[str, bytes]]:
    pixels = picture()
    gray = pixels[..., :1]
    alpha = picture(seed=1)[..., :1]
    wide = np.random.default_rng(2).integers(0, 65536, (HEIGHT, WIDTH, 4), dtype=np.uint16)
    for bits in (1, 2, 4, 8):
        yield f"png gray {bits}", png(gray >> (8 - bits), bits, GRAY)
        palette = chunk(b"PLTE", np.random.default_rng(bits).integers(0, 256, 3 << bits, dtype=np.uint8).tobytes())
        transparent = chunk(b"tRNS", bytes(range(0, 200, 100)))
        yield f"png palette {bits}", png(gray >> (8 - bits), bits, PALETTE, before=palette)
        yield f"png palette {bits} tRNS", png(gray >> (8 - bits), bits, PALETTE, before=palette + transparent)
    yield "png gray 16", png(wide[..., :1], 16, GRAY)
    yield "png gray 8 tRNS", png(gray, 8, GRAY, before=chunk(b"tRNS", b"\0\x50"))
    yield "png gray alpha 8", png(np.dstack([gray, alpha]), 8, GRAY_ALPHA)
    yield "png gray alpha 16", png(wide[..., :2], 16, GRAY_ALPHA)
    yield "png rgb 8", png(pixels, 8, RGB)
    yield "png rgb 8 tRNS", png(pixels, 8, RGB, before=chunk(b"tRNS", b"\0\1\0\2\0\3"))
    yield "png rgb 8 pieces", png(pixels, 8, RGB, step=100)
    yield "png rgb 8 palette", png(pixels, 8, RGB, before=chunk(b"PLTE", bytes(30)))
    yield "png rgb 16", png(wide[..., :3], 16, RGB)
    yield "png rgb alpha 8", png(np.dstack([pixels, alpha]), 8, RGB_ALPHA)
    yield "png rgb alpha 16", png(wide, 16, RGB_ALPHA)
    yield "png rgb 8 interlaced", png(pixels, 8, RGB, interlaced=True)
    yield "png gray 16 interlaced", png(wide[..., :1], 16, GRAY, interlaced=True)
    yield "png gray 1 interlaced", png(gray >> 7, 1, GRAY, interlaced=True)
    yield "png rgb 8 filtered", by_pillow(Image.fromarray(pixels), "png")
    text = chunk(b"tEXt", b"Title\0of it") + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"long" * 99))
    about = chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"sRGB", b"\0") + chunk(b"pHYs", bytes(9)) + text
    yield "png rgb 8 texts", png(pixels, 8, RGB, before=about, after=text)
    yield "png rgb 8 EXIF 8", by_pillow(Image.fromarray(pixels), "png", exif=exif_of(8))
    frames = [Image.fromarray(picture(seed=seed)) for seed in (1, 2)]
    animated: dict[str, Any] = {"save_all": True, "append_images": frames}
    yield "png animated", by_pillow(Image.fromarray(pixels), "png", **animated)
    yield "png animated, still apart", by_pillow(Image.fromarray(pixels), "png", **animated, default_image=True)


# ---- JPEG ------------------------------------------------------------------------------------------------------------


def jpeg_images() -> Iterator[tuple[str, bytes]]:
    image = Image.fromarray(picture())
    for progressive in (False, True):
        name = "jpeg progressive" if progressive else "jpeg"
        options: dict[str, Any] = {"progressive": progressive}
        for number, factor in enumerate(["444", "422", "420"]):
            yield f"{name} {factor}", by_pillow(image, "jpeg", subsampling=number, **options)
        yield f"{name} gray", by_pillow(image.convert("L"), "jpeg", **options)
        yield f"{name} cmyk", by_pillow(image.convert("CMYK"), "jpeg", quality=50, **options)
        yield f"{name} EXIF 6", by_pillow(image, "jpeg", exif=exif_of(6), **options)
    for factor in ("411", "440"):
        sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{factor}")]
        yield f"jpeg {factor}", cv2.imencode(".jpg", picture(), sampling)[1].tobytes()
    yield "jpeg restarts", by_pillow(image, "jpeg", restart_marker_blocks=1)
    yield "jpeg worst", by_pillow(image, "jpeg", quality=1)
    yield "jpeg best", by_pillow(image, "jpeg", quality=100, subsampling=0)
    yield "jpeg kept rgb", by_pillow(image, "jpeg", keep_rgb=True)
    yield "jpeg one pixel", by_pillow(Image.fromarray(picture(1, 1)), "jpeg")
    yield "jpeg profile", by_pillow(image, "jpeg", icc_profile=bytes(200), comment=b"no comment")
    content = by_pillow(image, "jpeg")
    thumbnail = by_pillow(Image.fromarray(picture(8, 8)), "jpeg")
    yield "jpeg thumbnail", content[:2] + segment(0xE2, thumbnail) + content[2:]


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def jpeg_segments(content: bytes) -> list[tuple[int, bytes]]:
    """Return a JPEG's segments behind the first marker; that of a scan has its coded pixels with it."""
    segments = []
    at = 2
    while content[at + 1] != 0xD9:
        marker, length = struct.unpack_from(">BH", content, at + 1)
        end = at + 2 + length
        while marker == 0xDA and (content[end] != 0xFF or content[end + 1] in (0, *range(0xD0, 0xD8))):
            end += 1
        segments.append((marker, content[at:end]))
        at = end
    return segments


# ---- BMP, WebP, and what is not decoded ------------------------------------------------------------------------------


def bmp(
    width: int, height: int, bits: int, data: bytes, *, compression: int = 0, colors: int = 0, masks: bytes = b""
) -> bytes:
    """Return a BMP with a palette of grays; ``height`` is negative where rows go down."""
    palette = b"".join(bytes([value * 255 // max(colors - 1, 1)] * 3 + [0]) for value in range(colors))
    pixels_at = 54 + len(masks) + len(palette)
    information = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, colors, 0)
    return struct.pack("<2sIII", b"BM", pixels_at + len(data), 0, pixels_at) + information + masks + palette + data


def bmp_images() -> Iterator[tuple[str, bytes]]:
    pixels = picture()
    image = Image.fromarray(pixels)
    yield "bmp 24", by_pillow(image, "bmp")
    yield "bmp 32", by_pillow(image.convert("RGBA"), "bmp")
    yield "bmp 8", by_pillow(image.convert("L"), "bmp")
    yield "bmp 1", by_pillow(image.convert("1"), "bmp")
    yield "bmp 4", bmp(WIDTH, HEIGHT, 4, bytes(range(16)) * HEIGHT, colors=16)
    rows_down = np.pad(pixels[..., ::-1].reshape(HEIGHT, -1), ((0, 0), (0, -3 * WIDTH % 4))).tobytes()
    yield "bmp 24 down", bmp(WIDTH, -HEIGHT, 24, rows_down)
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    sixteen = np.random.default_rng(3).integers(0, 65536, (HEIGHT, WIDTH), dtype="<u2").tobytes()
    yield "bmp 16 masks", bmp(WIDTH, HEIGHT, 16, sixteen, compression=3, masks=masks)
    yield "bmp 16", bmp(WIDTH, HEIGHT, 16, sixteen)
    # Runs, then literal pixels (padded to two bytes), then the end of the row; at last the end of the picture.
    rle8_row = bytes([20, 7, 0, 5, 1, 2, 3, 4, 5, 0, 1, 99, 0, 0])
    yield "bmp runs 8", bmp(WIDTH, HEIGHT, 8, rle8_row * HEIGHT + b"\0\1", compression=1, colors=256)
    rle4_row = bytes([20, 0x3C, 0, 4, 0x12, 0x34, 2, 0x59, 0, 0])
    yield "bmp runs 4", bmp(WIDTH, HEIGHT, 4, rle4_row * HEIGHT + b"\0\1", compression=2, colors=16)
    old = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, 24)
    yield "bmp old", struct.pack("<2sIII", b"BM", 26 + len(rows_down), 0, 26) + old + rows_down


def webp_images() -> Iterator[tuple[str, bytes]]:
    image = Image.fromarray(picture())
    with_alpha = Image.fromarray(np.dstack([picture(), picture(seed=1)[..., :1]]))
    yield "webp lossy", by_pillow(image, "webp")
    yield "webp lossless", by_pillow(image, "webp", lossless=True)
    yield "webp lossy alpha", by_pillow(with_alpha, "webp")
    yield "webp lossless alpha", by_pillow(with_alpha, "webp", lossless=True)
    yield "webp lossy EXIF 7", by_pillow(image, "webp", exif=exif_of(7))
    yield "webp lossless profile", by_pillow(image, "webp", lossless=True, icc_profile=bytes(200), exif=exif_of(2))

    frame = Image.fromarray(picture(seed=1))
    yield "webp animated", by_pillow(image, "webp", save_all=True, append_images=[frame, image])
    yield "webp animated alpha", by_pillow(with_alpha, "webp", lossless=True, save_all=True, append_images=[frame])


def other_images() -> Iterator[tuple[str, bytes]]:
    """Yield what DecodeMat does not take, though OpenCV may."""
    image = Image.fromarray(picture())
    yield "gif", by_pillow(image, "gif")
    yield "tiff", by_pillow(image, "tiff")
    yield "tiff lzw", by_pillow(image, "tiff", compression="tiff_lzw")
    yield "ppm", by_pillow(image, "ppm")
    yield "jpeg 2000", cv2.imencode(".jp2", picture(64, 64))[1].tobytes()


def more_images() -> Iterator[tuple[str, bytes]]:
    """Yield what DecodeMat takes besides where more_formats names all, as far as the installed Pillow writes it."""
    image = Image.fromarray(picture())
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        yield f"tiff {mode}", by_pillow(image.convert(mode), "tiff")
        yield f"tiff {mode} lzw", by_pillow(image.convert(mode), "tiff", compression="tiff_lzw")
    for compression in ("tiff_adobe_deflate", "packbits", "jpeg"):
        yield f"tiff {compression}", by_pillow(image, "tiff", compression=compression)
    yield "tiff YCbCr jpeg", by_pillow(image.convert("YCbCr"), "tiff", compression="jpeg")
    for compression in ("group3", "group4"):
        yield f"tiff {compression}", by_pillow(image.convert("1"), "tiff", compression=compression)
    yield "tiff EXIF 6", by_pillow(image, "tiff", exif=exif_of(6))
    for compression in (None, "tiff_lzw"):  # from Pillow 11.1 on; before, it is no BigTIFF
        yield f"tiff BigTIFF {compression}", by_pillow(image, "tiff", big_tiff=True, compression=compression)
    yield "gif", by_pillow(image, "gif")
    yield "gif gray", by_pillow(image.convert("L"), "gif", comment=b"no comment")
    frames = [Image.fromarray(picture(seed=seed)) for seed in (1, 2)]
    yield "gif animated", by_pillow(image, "gif", save_all=True, append_images=frames, transparency=3)
    if features.check_codec("jpg_2000"):
        for mode in ("L", "LA", "RGB", "RGBA"):
            yield f"jpeg2000 {mode}", by_pillow(image.convert(mode), "jpeg2000")
        yield "jpeg2000 lossy", by_pillow(image, "jpeg2000", irreversible=True, quality_layers=[20, 5])
        yield "jpeg2000 tiles", by_pillow(image, "jpeg2000", tile_size=(16, 16))
        yield "jpeg2000 codestream", by_pillow(image, "jpeg2000", no_jp2=True)
    if "AVIF" in Image.SAVE:
        yield "avif 420", by_pillow(image, "avif")
        yield "avif 444", by_pillow(image, "avif", subsampling="4:4:4", speed=10)
        yield "avif gray", by_pillow(image.convert("L"), "avif")
        yield "avif alpha", by_pillow(image.convert("RGBA"), "avif")
        yield "avif EXIF 6", by_pillow(image, "avif", exif=exif_of(6))


# The picture below, 26 x 19, in a frame of 64 x 64, as pillow-heif 1.8.1 wrote it with quality 30.
SMALL_HEIC = base64.b64decode(
    "AAAAGGZ0eXBoZWljAAAAAG1pZjFoZWljAAABfG1ldGEAAAAAAAAAIWhkbHIAAAAAAAAAAHBpY3QAAAAAAAAAAAAAAAAAAAAAImlsb2MAAAAAREAA"
    "AQABAAAAAAGcAAEAAAAAAAAAnQAAACNpaW5mAAAAAAABAAAAFWluZmUCAAAAAAEAAGh2YzEAAAAADnBpdG0AAAAAAAEAAAD8aXBycAAAANxpcGNv"
    "AAAAdWh2Y0MBA3AAAACQAAAAAAAe8AD8/fj4AAAPA2AAAQAYQAEMAf//A3AAAAMAkAAAAwAAAwAeugJAYQABAClCAQEDcAAAAwCQAAADAAADAB6g"
    "IIEFluqumubgIaDAgAAADIAAAAMAhGIAAQAGRAHBc8GJAAAAE2NvbHJuY2x4AAEADQAGgAAAABRpc3BlAAAAAAAAAEAAAABAAAAAKGNsYXAAAAAa"
    "AAAAAQAAABMAAAAB////2gAAAAL////TAAAAAgAAABBwaXhpAAAAAAMICAgAAAAYaXBtYQAAAAAAAAABAAEFgQIDBYQAAAClbWRhdAAAAJkoAa8Z"
    "IeevF+9b0jjzQuJz9aSYNZP91ZA7WWySBinkg3o13lJvbuxPkRLBjfwooa4qv25qTf/VxHQHV6/dXDxMvVVK7i2YJm8+HroNJWR0EC5Pn+99od6A"
    "2zjnD+COjoqrdt5EWZMS8dpjGldN5Cb0Izm5O1OChlALWYJxHpTdI2vY93yJHs6A81AT9XnjshbpPI0wqNWnJGA="
)


def decoded_images() -> dict[str, bytes]:
    """Return images that are decoded, by name."""
    return dict(itertools.chain(jpeg_images(), png_images(), webp_images(), bmp_images()))


def all_images() -> dict[str, bytes]:
    return {**decoded_images(), **dict(other_images())}


def large_images(side: int = 1500) -> Iterator[tuple[str, bytes]]:
    """Yield images whose decoders need the most memory for their pixels."""
    color = cv2.resize(picture(), (side, side))
    image = Image.fromarray(color)
    with_alpha = Image.fromarray(np.dstack([color, color[..., :1]]))
    yield "jpeg 444", by_pillow(image, "jpeg", subsampling=0)
    yield "jpeg progressive 444", by_pillow(image, "jpeg", subsampling=0, progressive=True)
    yield "jpeg progressive cmyk", by_pillow(image.convert("CMYK"), "jpeg", subsampling=0, progressive=True)
    yield "jpeg progressive EXIF 5", by_pillow(image, "jpeg", subsampling=0, progressive=True, exif=exif_of(5))
    sixteen = np.dstack([color, color[..., :1]]).astype(np.uint16) * 257
    yield "png rgb alpha 16", png(sixteen, 16, RGB_ALPHA, level=1)
    yield "png rgb alpha 16 interlaced", png(sixteen, 16, RGB_ALPHA, level=1, interlaced=True)
    yield "png gray 1", png(color[..., :1] >> 7, 1, GRAY)
    yield "webp lossy", by_pillow(image, "webp", method=0)
    yield "webp lossless", by_pillow(image, "webp", lossless=True, method=0, quality=0)
    yield "webp lossy alpha", by_pillow(with_alpha, "webp", method=0)
    yield "bmp 32", by_pillow(with_alpha, "bmp")


def more_large_images(side: int = 1000) -> Iterator[tuple[str, bytes]]:
    """Yield images of DecodeMat's more_formats whose decoders need the most memory for their pixels."""
    color = cv2.resize(picture(), (side, side))
    with_alpha = Image.fromarray(color).convert("RGBA")
    yield "tiff rgba", by_pillow(with_alpha, "tiff")
    yield "tiff cmyk lzw", by_pillow(Image.fromarray(color).convert("CMYK"), "tiff", compression="tiff_lzw")
    sixteen = np.dstack([color, color[..., :1]]).astype(np.uint16) * 257
    yield "tiff 16", cv2.imencode(".tiff", sixteen, [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1].tobytes()
    yield "gif", by_pillow(Image.fromarray(color), "gif")
    if features.check_codec("jpg_2000"):
        yield "jpeg2000 rgba", by_pillow(with_alpha, "jpeg2000")
    if "AVIF" in Image.SAVE:
        yield "avif alpha", by_pillow(with_alpha, "avif", subsampling="4:4:4", speed=10)
        yield "avif EXIF 5", by_pillow(with_alpha, "avif", speed=10, exif=exif_of(5))


# ---- small files made to do harm -------------------------------------------------------------------------------------


def exif_bomb(entries: int, size: int) -> bytes:
    """Return EXIF data with the same long text under each of its entries: to be copied once per entry."""
    known = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x8298)
    text_at = 8 + 2 + 12 * entries + 4
    table = b"".join(struct.pack("<HHII", known[i % 6], 2, size, text_at) for i in range(entries))
    return b"II*\0" + struct.pack("<IH", 8, entries) + table + bytes(4) + b"A" * size


def progressive_bomb(side: int, scans: int) -> bytes:
    """Return a JPEG of side x side pixels whose last scan, of a few bytes, comes again and again."""
    content = by_pillow(Image.new("L", (side, side), 77), "jpeg", progressive=True)
    segments = jpeg_segments(content)
    last = next(data for marker, data in reversed(segments) if marker == 0xDA)
    smallest = min((data for marker, data in segments if marker == 0xDA), key=len)
    again = smallest if len(smallest) < len(last) else last
    return content[:2] + b"".join(data for _, data in segments) + again * scans + b"\xff\xd9"


def sequential_bomb(side: int, scans: int) -> bytes:
    """Return a JPEG whose three channels have a scan each, empty, again and again: none of them progressive."""
    content = by_pillow(Image.new("RGB", (side, side)), "jpeg")
    head = b"".join(data for marker, data in jpeg_segments(content) if marker != 0xDA)
    each = b"".join(segment(0xDA, bytes([1, channel, 0x00, 0, 63, 0])) for channel in (1, 2, 3))
    return content[:2] + head + each * (scans // 3) + b"\xff\xd9"


def bombs() -> Iterator[tuple[str, bytes, str]]:
    """Yield (name, file, expected outcome) of files that would take long or much, for their size."""
    pixels = picture()
    rows = png_rows(pixels, 8)
    text = zlib.compress(bytes(7_900_000), 9)
    for kind, data in {
        b"zTXt": b"k\0\0" + text,
        b"iTXt": b"k\0\1\0\0\0" + text,
        b"iCCP": b"k\0\0" + zlib.compress(bytes(20_000_000), 9),
    }.items():
        for name, many in (("once", 1), ("often", 300 if kind != b"iCCP" else 20)):
            bomb = chunk(kind, data) * many
            yield f"png {kind.decode()} {name} before", png(pixels, 8, RGB, before=bomb), "image"
            yield f"png {kind.decode()} {name} after", png(pixels, 8, RGB, after=bomb), "image"
    yield "png eXIf", png(pixels, 8, RGB, before=chunk(b"eXIf", exif_bomb(65_000, 2_000_000))), "image"
    huge = zlib.compress(rows + bytes(100_000_000))
    yield "png huge pixels", png_header(WIDTH, HEIGHT, 8, RGB) + chunk(b"IDAT", huge) + chunk(b"IEND"), "no result"
    nothing = png_header(4000, 4000, 16, RGB_ALPHA, interlaced=True) + chunk(b"IDAT", zlib.compress(b""))
    yield "png no pixels", nothing + chunk(b"IEND"), "no result"
    chunks = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IDAT") * 1_000_000 + chunk(b"IEND")
    yield "png a million chunks", png_header(WIDTH, HEIGHT, 8, RGB) + chunks, "no result"
    too_large = png_header(0x7FFFFFFF, 0x7FFFFFFF, 8, RGB) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND")
    yield "png sides of 2^31", too_large, "DecodeError"

    jpeg = by_pillow(Image.fromarray(pixels), "jpeg")
    exif = segment(0xE1, b"Exif\0\0" + exif_bomb(2_500, 35_000))
    yield "jpeg EXIF", jpeg[:2] + exif * 200 + jpeg[2:], "image"
    yield "jpeg segments", jpeg[:2] + segment(0xE2, b"") * 1_000_000 + jpeg[2:], "no result"
    yield "jpeg tables", jpeg[:2] + jpeg_segments(jpeg)[1][1] * 3_900 + jpeg[2:], "image"
    yield "jpeg scans", progressive_bomb(4000, 20_000), "DecodeError"
    yield "jpeg scans, one by one", sequential_bomb(4000, 20_000), "DecodeError"
    frame = jpeg.index(b"\xff\xc0") + 5
    for name, height, width in (("", 65535, 65535), (" wide", 1, 65535), (" high", 65535, 1), (" empty", 0, 26)):
        resized = jpeg[:frame] + struct.pack(">HH", height, width) + jpeg[frame + 4 :]
        yield f"jpeg {height} x {width}{name}", resized, "DecodeError" if height == width else "any"

    webp = by_pillow(Image.fromarray(pixels), "webp", exif=exif_of(1))
    at = webp.rindex(b"EXIF")
    bomb = exif_bomb(65_000, 2_000_000)
    content = webp[8:at] + b"EXIF" + struct.pack("<I", len(bomb)) + bomb
    yield "webp EXIF", b"RIFF" + struct.pack("<I", len(content)) + content, "image"
    canvas = bytearray(webp)
    canvas[24:30] = b"\x01\0\0\x01\0\0"  # 2 x 2, with an image of 26 x 19 inside
    yield "webp canvas too small", bytes(canvas), "any"

    yield "bmp 65535 x 2000", bmp(65535, 2000, 24, bytes(100)), "DecodeError"
    yield "bmp 2000 x 7000", bmp(2000, 7000, 24, bytes(100)), "no result"
    yield "bmp height -2^31", bmp(1, -(1 << 31), 24, bytes(100)), "DecodeError"
    yield "bmp width -2^31", bmp(-(1 << 31), 1, 24, bytes(100)), "DecodeError"
    yield "bmp nothing in runs", bmp(4000, 4000, 8, b"\0\1", compression=1, colors=256), "any"
    yield "bmp runs to nowhere", bmp(4000, 4000, 8, b"\0\2\xff\xff" * 500_000, compression=1, colors=256), "any"
