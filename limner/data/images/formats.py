"""The format of a file that cannot be read as an image, from its content or suffix, and what to do about it."""

from __future__ import annotations

import codecs
import re
import struct
import zlib
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import PurePosixPath
from typing import IO

from PIL import TiffImagePlugin, features

from limner.settings import join_words

# Of images; the last three are looked at only to be listed as problems.
SUFFIXES = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .mpo .gif .webp .avif .avifs .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .pfm .tga "
    ".ico .jp2 .j2k .dds .pcx .qoi .heic .heif .jxl".split()
)
# Of films, which a data set of clips reads.
FILMS = frozenset(".mp4 .m4v .mov .mkv .webm .avi .wmv .flv .mpg .mpeg .mts .m2ts .3gp .ogv".split())

_CONVERT = "convert it to PNG or JPEG"
_FRAMES = "save its frames as PNG or GIF"
_ARRAY = "save its images as PNG files"
_UNPACK = "unpack it"
_AGAIN = "download it again"

_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (  # offset, bytes there, what it is, what to do
    (0, b"\xff\x0a", "JPEG XL", _CONVERT),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", _CONVERT),
    (0, b"II\xbc\x01", "JPEG XR", _CONVERT),
    (0, b"8BPS", "a Photoshop document", _CONVERT),
    (0, b"gimp xcf", "a GIMP document", _CONVERT),
    (0, b"%PDF", "a PDF document", "save its pages as PNG or JPEG"),
    (0, b"%!PS", "a PostScript (EPS) drawing", _CONVERT),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript (EPS) drawing", _CONVERT),
    (0, b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF)", _CONVERT),
    (40, b" EMF", "a Windows metafile (EMF)", _CONVERT),
    (0, b"icns", "a macOS icon (ICNS)", _CONVERT),
    (0, b"v/1\x01", "an OpenEXR image", "convert it to a float TIFF or to PNG"),
    (0, b"#?R", "a Radiance HDR image", "convert it to a float TIFF or to PNG"),
    (0, b"SIMPLE  =", "a FITS image", "convert it to TIFF or PNG"),
    (128, b"DICM", "a DICOM image", "convert it to TIFF or PNG"),
    (0, b"PF\n", "a PFM image with colours", "convert it to TIFF or PNG"),
    (0, b"P7\n", "a PAM image", _CONVERT),
    (0, b"BPG\xfb", "a BPG image", _CONVERT),
    (0, b"FLIF", "a FLIF image", _CONVERT),
    (0, b"\0\0\x02\0", "a Windows cursor (CUR)", _CONVERT),
    (0, b"II\x1a\0\0\0HEAPCCDR", "a camera's raw file (CRW)", _CONVERT),
    (8, b"CR\x02\0", "a camera's raw file (CR2)", _CONVERT),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw file (RAF)", _CONVERT),
    (0, b"IIRO", "a camera's raw file (ORF)", _CONVERT),
    (0, b"IIU\0", "a camera's raw file (RW2)", _CONVERT),
    (0, b"FOVb", "a camera's raw file (X3F)", _CONVERT),
    (0, b"\x1aE\xdf\xa3", "a film (Matroska or WebM)", _FRAMES),
    (8, b"AVI ", "a film (AVI)", _FRAMES),
    (0, b"FLV\x01", "a film (FLV)", _FRAMES),
    (0, b"\0\0\x01\xba", "a film (MPEG)", _FRAMES),
    (0, b"\0\0\x01\xb3", "a film (MPEG)", _FRAMES),
    (0, b"0&\xb2u\x8ef\xcf\x11", "a film (WMV)", _FRAMES),
    (8, b"WAVE", "sound", "remove it"),
    (0, b"OggS", "sound or a film (Ogg)", "remove it"),
    (0, b"ID3", "sound", "remove it"),
    (0, b"fLaC", "sound", "remove it"),
    (0, b"\x93NUMPY", "a NumPy array", _ARRAY),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", _ARRAY),
    (0, b"MATLAB 5.0", "a MATLAB file", _ARRAY),
    (0, b"PAR1", "a parquet table", "give it to Limner as a .parquet file"),
    (0, b"SQLite format 3", "a database", _ARRAY),
    (0, b"PK\x03\x04", "a zip archive", _UNPACK),
    (0, b"7z\xbc\xaf'\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!", "a rar archive", _UNPACK),
    (0, b"BZh", "compressed by bzip2", _UNPACK),
    (0, b"\xfd7zXZ", "compressed by xz", _UNPACK),
    (0, b"(\xb5/\xfd", "compressed by zstd", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"\x7fELF", "a program", "remove it"),
    (0, b"MZ", "a program", "remove it"),
    (0, b"bplist", "a macOS property list", "remove it"),
    (0, b"\0\x05\x16\x07", "a macOS resource fork", "remove it"),
)
_BRANDS = {  # of ISO media files ("....ftyp"): ISO 14496-12, 23008-12
    **dict.fromkeys("heic heix heim heis hevc hevx hevm hevs mif1 msf1 miaf".split(), "HEIC"),
    **dict.fromkeys(("avif", "avis", "avio"), "AVIF"),
    "jxl ": "JPEG XL",
    "crx ": "a camera's raw file (CR3)",
}
_MARKS = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be", codecs.BOM_UTF8: "utf-8"}
_TEXTS = (  # what text begins with, in lower case; tried in turn
    (rb"version https://git-lfs", "a pointer of Git LFS, not the file itself", "run git lfs pull"),
    (rb"\s*<(!doctype html|html|head|body)", "a web page", _AGAIN),
    (rb"\s*<.{0,4000}?<svg[\s>]|\s*<svg[\s>]", "an SVG drawing", _CONVERT),
    (rb"\s*<\?xml", "XML text", _AGAIN),
    (rb"\s*[\[{]\s*[\"\[{\]}0-9]", "JSON text", _AGAIN),
)
_SUFFIXES = {  # of files that are not read as images, by what they are
    "SVG drawings": ".svg .svgz",
    "Photoshop documents": ".psd .psb",
    "documents of painting programs": ".xcf .kra .ora .clip .ai .afphoto",
    "raw files of cameras": ".cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .dng .raf .orf .rw2 .pef .srw .x3f .3fr .iiq .erf",
    "HEIC and HEIF images": ".hif .heics .heifs .avci",
    "JPEG XR images": ".jxr .wdp .hdp",
    "HDR images": ".exr .hdr .rgbe",
    "scientific images": ".fits .fit .fts .dcm .dicom .nii .mrc .mha .mhd .nrrd .czi .lif .nd2 .svs .ndpi",
    "icons": ".icns .cur .ani",
    "PostScript and PDF documents": ".eps .ps .pdf",
    "Windows metafiles": ".wmf .emf",
    "films": ".mp4 .m4v .mov .mkv .webm .avi .wmv .flv .mpg .mpeg .ts .mts .m2ts .3gp .ogv .vob",
    "sound": ".wav .mp3 .flac .ogg .m4a .aac .opus",
    "NumPy arrays": ".npy .npz",
    "HDF5 files": ".h5 .hdf5 .hdf",
    "MATLAB files": ".mat",
    "idx-ubyte files": ".idx1-ubyte .idx3-ubyte .idx",
    "pickles": ".pkl .pickle",
    "TFRecord files": ".tfrecord .tfrecords",
    "tables": ".parquet .arrow .feather .csv .tsv .xlsx .xls .jsonl .ndjson .db .sqlite .lmdb .mdb",
    "archives": ".zip .tar .gz .tgz .bz2 .xz .7z .rar .zst",
    "other images": ".jls .bpg .flif .sgi .rgb .bw .xbm .xpm .ras .sun .pam .xwd .djvu .ktx .ktx2 .basis .vtf",
}
_BY_SUFFIX = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
_IMAGES = (*tuple(_SUFFIXES)[:11], "other images")
_ARRAYS = ("NumPy arrays", "HDF5 files", "MATLAB files", "idx-ubyte files", "pickles", "TFRecord files")
_ADVICE = {
    **dict.fromkeys(_IMAGES, "convert them to PNG or JPEG"),
    "films": "choose --data.frames 16 and a family that takes clips, or save their frames as PNG,",
    **dict.fromkeys(_ARRAYS, "save their images as PNG"),
}


def kind_of(name: str) -> str:
    """What a file of this name is, in the plural: 'SVG drawings', or '.abc files' where that is all one can say."""
    name = name.lower()
    suffix = PurePosixPath(name).suffix
    if "-ubyte" in name:
        return "idx-ubyte files"
    return _BY_SUFFIX.get(suffix, f"{suffix[:20]} files" if suffix else "files without a suffix")


def advice(kinds: Mapping[str, int]) -> list[str]:
    """What to do about files that are not read as images, one sentence for each remedy."""
    by_act: dict[str, Counter[str]] = {}
    for kind, count in kinds.items():
        if act := _ADVICE.get(kind):
            by_act.setdefault(act, Counter())[kind] += count
    return [f"{in_words(counts)} are not read: {act} to train on them." for act, counts in by_act.items()]


def in_words(kinds: Mapping[str, int]) -> str:
    return join_words([f"{count:,} {kind}" for kind, count in Counter(kinds).most_common()], "and")


def not_read(file: IO[bytes]) -> str:
    """Why a file that Pillow does not know cannot be read: what it is, and what to do."""
    file.seek(0)
    start = file.read(4096)
    if found := _named(start) or _tiff(file, start) or _jpeg(start + file.read(2**18)):
        what, act = found
        return f"{what}, which is not read: {act}" if act in (_CONVERT, _FRAMES, _ARRAY) else f"{what}: {act}"
    return "not an image, or its start is damaged"


def _named(start: bytes) -> tuple[str, str] | None:
    """What a file is by its first bytes, and what to do."""
    for at, magic, what, act in _MAGIC:
        if start.startswith(magic, at):
            return what, act
    if start[4:8] == b"ftyp":
        return _iso_media(start)
    if start[:2] == b"\x1f\x8b":
        return _gzip(start)
    if start[:3] == b"\0\0\x08" and start[3:4] in b"\x01\x02\x03\x04":
        return "an idx-ubyte file", _ARRAY
    if re.match(rb"\x80[\x02-\x05][}\](c\x95]", start):
        return "a pickle, which could run code", _ARRAY
    if not start.strip(b"\0"):
        return "nothing but zero bytes", _AGAIN
    return _text(start)


def avif_code_points(start: bytes) -> tuple[int, int] | None:
    """(primaries, transfer) of ITU-T H.273 that the first bytes of an AVIF file say."""
    at = start.find(b"colrnclx")
    return struct.unpack_from(">HH", start, at + 8) if 0 < at <= len(start) - 12 else None  # type: ignore[return-value]


def _iso_media(start: bytes) -> tuple[str, str]:
    end = max(16, min(int.from_bytes(start[:4], "big"), 256))
    brands = [start[i : i + 4].decode("latin-1") for i in (8, *range(16, end, 4))]
    if found := next((_BRANDS[brand] for brand in brands if brand in _BRANDS), None):
        # A sequence of images may be mif1 or msf1 first, and say its codec after it.
        if found == "HEIC" and brands[0] in ("mif1", "msf1", "miaf") and {"avif", "avis"} & set(brands):
            found = "AVIF"
        if found == "AVIF" and features.check("avif"):
            return "AVIF, but its start is damaged", _AGAIN
        return found, _CONVERT
    return "a film (MP4 or MOV)", _FRAMES


def _gzip(start: bytes) -> tuple[str, str]:
    inside = b""
    with suppress(zlib.error):
        inside = zlib.decompressobj(31).decompress(start, 4096)
    found = _named(inside) if inside and inside[:2] != b"\x1f\x8b" else None
    if found and found[0] == "an SVG drawing":
        return "an SVG drawing (.svgz)", _CONVERT
    return (f"{found[0]}, compressed by gzip", found[1]) if found else ("compressed by gzip", _UNPACK)


def _text(start: bytes) -> tuple[str, str] | None:
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            start = start[len(mark) :].decode(encoding, "replace").encode()
    for pattern, what, act in _TEXTS:
        if re.match(pattern, start.lower(), re.DOTALL):
            return what, act
    odd = sum(byte < 9 or 13 < byte < 32 for byte in start)
    if start and odd == 0:
        with suppress(UnicodeDecodeError):
            codecs.getincrementaldecoder("utf-8")().decode(start)  # a character may be cut at the end
            return "text, not an image", "remove it, or " + _AGAIN
    return None


def _tiff(file: IO[bytes], start: bytes) -> tuple[str, str] | None:
    """The form of a TIFF that Pillow does not read."""
    if start[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(start[: 16 if b"+" in start[2:4] else 8])
        file.seek(tags.next)
        tags.load(file)
        bits, samples = tags.get(258, (1,)), tags.get(277, 1)
        kind = {1: "integers", 2: "signed integers", 3: "floats", 5: "complex integers", 6: "complex numbers"}
        numbers = kind.get(tags.get(339, (1,))[0], "values")
        form = f"a TIFF of {samples} {'channel' if samples == 1 else 'channels'} of {bits[0]}-bit {numbers}"
        method = tags.get(259, 1)
        if method not in TiffImagePlugin.COMPRESSION_INFO:
            form = f"a TIFF compressed by method {method}"
        elif samples in (1, 3, 4) and _reads(samples, bits[0], tags.get(339, (1,))[0], start[:2]):
            return None  # damaged, as such forms are read
    except Exception:  # a damaged directory
        return None
    return form, "save it as 8 or 16 bits of 1, 3 or 4 channels, or as 32-bit floats of 1 channel"


def _reads(samples: int, bits: int, numbers: int, order: bytes) -> bool:
    """Whether Pillow reads TIFFs of so many channels of ``numbers``: integers (1), signed (2) or floats (3)."""
    if samples == 1 and bits == 32:
        return (numbers == 1 and order == b"II") or numbers in (2, 3)
    return bits <= 16 and numbers <= 2


def _jpeg(start: bytes) -> tuple[str, str] | None:
    """The form of a JPEG that Pillow does not read."""
    at = 2
    while start[:2] == b"\xff\xd8" and at + 5 <= len(start) and start[at] == 0xFF:
        marker, (size,) = start[at + 1], struct.unpack_from(">H", start, at + 2)
        if marker == 0xF7:
            return "JPEG-LS", _CONVERT
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if marker in (0xC3, 0xC7, 0xCB, 0xCF):
                return "a lossless JPEG", _CONVERT
            return (f"a JPEG of {start[at + 4]} bits", _CONVERT) if start[at + 4] != 8 else None
        at += 2 + size
    return None
