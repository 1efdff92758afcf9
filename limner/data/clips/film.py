"""Films (MP4, WebM, MOV, MKV, AVI), read frame by frame by PyAV: upright, with square pixels, in sRGB."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from typing import IO, Any

import numpy as np
from PIL import Image

from limner.data.images.formats import not_read
from limner.data.images.header import Header
from limner.data.images.limits import Unusable, check_size
from limner.settings import need

# Of a frame; the most that level 6.2 of H.264 allows (ITU-T H.264, table A-1). A decoder holds up to 16 of them.
MOST_PIXELS = 139_264 * 256
ROUNDING = 0.001  # seconds: Matroska's time stamps are whole milliseconds
# Only containers of films: FFmpeg also reads play lists, which name other files.
_CONTAINERS = "mov,mp4,matroska,webm,avi,asf,flv,mpeg,mpegvideo,mpegts,ogg"
_TRANSFERS = {16: "PQ", 18: "HLG"}  # ITU-T H.273
_BT2020, _BT709, _BT601, _UNSTATED = 9, 1, 5, 2
_OF_DEFINITION = 720  # rows from which a film that states no colours has those of BT.709
_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    -180: Image.Transpose.ROTATE_180,
    -90: Image.Transpose.ROTATE_270,
}
_ALPHA = {
    "vp8": "libvpx",
    "vp9": "libvpx-vp9",
}  # decoders that read the layer of alpha; FFmpeg's own pass it over


class Film:
    """The pictures of an open film. Raises Unusable for what is none, or is refused."""

    def __init__(self, av: Any, container: Any, hdr: str):
        self._av, self._container = av, container
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        self.sound = bool(container.streams.audio)
        if not streams:
            raise Unusable("it has sound and no pictures" if self.sound else "it has no stream of pictures")
        self._stream = streams[0]
        self._codec = self._stream.codec_context
        width, height = self._codec.width, self._codec.height
        if width * height == 0:
            raise Unusable("its size is not known: it is damaged, or too large")
        check_size(width, height)
        if width * height > MOST_PIXELS:
            most = f"over {MOST_PIXELS / 1e6:.0f} million pixels a frame"
            raise Unusable(f"{width:,}x{height:,} is {most}: scale it down first")
        if self._codec.format is None:
            raise Unusable("its codec is not known, or its start is damaged")
        _refuse_hdr(self._codec, hdr)
        parts = self._codec.format.components
        self.alpha = len(parts) in (2, 4)
        self.grey = len(parts) < 3 and not self._codec.format.has_palette
        if self._stream.metadata.get("alpha_mode") == "1" and (name := _ALPHA.get(self._codec.name)):
            self._codec, self.alpha = av.CodecContext.create(name, "r"), True
        # Films are read side by side; threads of one film would wait for one another.
        self._codec.thread_count = 1
        self.unread = 0  # packets that could not be decoded
        # Time of the last frame so far, and the longest that one was shown.
        self._last, self._longest = 0.0, 0.0
        self._aspect, self._interlaced = float(self._stream.sample_aspect_ratio or 1), False

    @property
    def expected(self) -> int:
        """How many frames the file's index has, without empty ones and those to pass over; 0 where it has none."""
        if not self._stream.frames:  # Matroska's index has only some of them
            return 0
        return sum(entry.size > 0 and not entry.is_discard for entry in self._stream.index_entries)

    @property
    def rate(self) -> float | None:
        """Frames a second, as the file says."""
        rate = self._stream.average_rate
        return float(rate) if rate else None

    def frames(self) -> Iterator[tuple[float, Any]]:
        """Time in seconds and frame of PyAV, in the order in which they are shown; damaged ones are passed over."""
        unit, rate = self._stream.time_base, self._stream.average_rate
        time = -1.0
        for frame in self._whole(self._decoded()):
            if frame.is_corrupt:
                self.unread += 1
                continue
            stated = None if frame.pts is None or unit is None else float(frame.pts * unit)
            if (
                stated is None or stated <= time
            ):  # without a time, or back in time, as where films were joined
                stated = time + 1 / float(rate or 25)
            self._longest = max(self._longest, stated - time if time >= 0 else 0)
            time = self._last = stated
            yield time, frame

    def _whole(self, frames: Iterator[Any]) -> Iterator[Any]:
        """The same frames; those of a film whose first one is interlaced have their lines joined."""
        first = next(frames, None)
        if first is None:
            return
        frames = chain([first], frames)
        self._interlaced = first.interlaced_frame
        if not self._interlaced:
            yield from frames
            return
        graph = self._av.filter.Graph()
        graph.link_nodes(
            graph.add_buffer(template=self._stream), graph.add("bwdif", "send_frame"), graph.add("buffersink")
        ).configure()
        empty = self._av.error.BlockingIOError, EOFError
        for frame in chain(frames, [None]):
            graph.push(frame)
            with suppress(*empty):
                while True:
                    yield graph.pull()

    def _decoded(self) -> Iterator[Any]:
        error = self._av.error
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except (StopIteration, EOFError):
                return
            except error.FFmpegError:  # cut: what follows cannot be found
                self.unread += 1
                return
            try:
                yield from self._codec.decode(packet)
            except EOFError:
                return
            except error.FFmpegError:
                self.unread += 1

    def image(self, frame: Any) -> Image.Image:
        """A frame as L, RGB or RGBa (premultiplied), upright."""
        form = "rgba" if self.alpha else "gray" if self.grey else "rgb24"
        way = self._av.video.reformatter.Interpolation
        stated = frame.colorspace
        if stated == _UNSTATED:
            stated = _BT709 if frame.height >= _OF_DEFINITION else _BT601
        pixels = frame.to_ndarray(
            format=form,
            src_colorspace=stated,
            interpolation=way.BILINEAR | way.ACCURATE_RND | way.FULL_CHR_H_INT,
            threads=1,
        )
        image = Image.fromarray(pixels)
        if turn := _TURNS.get(int(frame.rotation)):
            image = image.transpose(turn)
        return image.convert("RGBa") if self.alpha else image

    def aspect(self, frame: Any) -> float:
        """How wide a pixel is, of the upright frame, in its heights."""
        return 1 / self._aspect if int(frame.rotation) in (90, -90) else self._aspect

    def traits(self, frame: Any) -> set[str]:
        """What is done to the film, by one of its frames: see `notes.TRAITS`."""
        has = {
            "sound": self.sound, "turned": int(frame.rotation) != 0, "oblong": self.aspect(frame) != 1,
            "interlaced": self._interlaced,
        }  # fmt: skip
        return {name for name, is_so in has.items() if is_so}

    def lost(self, read: int) -> str:
        """What of the film is missing where ``read`` frames were read to its end; "" for nothing.

        Damaged H.264 decodes to fewer frames without an error, so they are counted.
        """
        stated = max(read, self.expected)
        if self.rate and (end := self._end()):
            missing = (end - self._last) * self.rate - 1
            longest = max(1.0, self._longest * self.rate)  # in frames: the last may be shown for as long
            stated = max(stated, read + round(missing) if missing > 1.5 * longest else read)
        if read >= stated and not self.unread:
            return ""
        of = f"{read:,} of its {stated:,} frames" if stated > read else f"all but {self.unread:,} parts of it"
        return f"cut or damaged: {of} can be read, and are used"

    def _end(self) -> float | None:
        """The time in seconds at which the pictures end, as the file says; sound may go on for longer."""
        stream, length = self._stream, self._container.duration  # in its unit of time, and in microseconds
        if stream.duration and stream.time_base:
            return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        if stated := re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", "")):
            return 3600 * int(stated[1]) + 60 * int(stated[2]) + float(stated[3])
        if self.sound or not length:
            return None
        return (length + (self._container.start_time or 0)) / 1e6

    def header(self) -> Header:
        """What the film is, from its header and its first frame. Raises Unusable where there is none."""
        first = next((frame for _, frame in self.frames()), None)
        if first is None:
            raise Unusable("no frame of it can be decoded: its start is damaged or cut off")
        turned = int(first.rotation) in (90, -90)
        width, height = (first.height, first.width) if turned else (first.width, first.height)
        aspect = self.aspect(first)
        length = self._container.duration
        frames = self.expected or round((length or 0) / 1e6 * (self.rate or 0))
        return Header(
            self._container.format.name.partition(",")[0].upper(), self._codec.pix_fmt or first.format.name,
            max(1, round(width * aspect)), height, 8, 4 if self.alpha else 1 if self.grey else 3, max(frames, 1),
        )  # fmt: skip


@contextmanager
def opened(source: IO[bytes], hdr: str) -> Iterator[Film]:
    """The film in a file; ``hdr`` is that of ``DataOptions``. Raises Unusable, and LimnerError without PyAV."""
    av = need("av", "Films are read by PyAV, which is missing", "video")
    av.logging.set_level(None)
    if not source.read(1):
        raise Unusable("the file is empty")
    source.seek(0)
    try:
        limits = {"format_whitelist": _CONTAINERS, "max_pixels": str(MOST_PIXELS)}  # opening decodes a frame
        container = av.open(source, "r", options=limits, metadata_errors="replace")
    except av.error.FFmpegError:
        raise Unusable(_no_film(source)) from None
    with container:
        yield Film(av, container, hdr)


def _no_film(source: IO[bytes]) -> str:
    """Why a file cannot be opened as a film."""
    source.seek(0)
    start = source.read(2**16)
    if start[4:8] == b"ftyp" and b"moov" not in start:
        return "it was cut before its index, which MP4 and MOV have at their end: copy or record it again"
    why = not_read(source)
    return "its start is damaged" if "film" in why or "its start" in why else why


def _refuse_hdr(codec: Any, hdr: str) -> None:
    """Raises Unusable for more than 8 bits, or colours beyond sRGB, unless they are to be clipped."""
    if hdr == "clip":
        return
    bits = max((part.bits for part in codec.format.components), default=8)
    found = [f"{bits} bits"] if bits > 8 else []
    found += [_TRANSFERS[codec.color_trc]] if codec.color_trc in _TRANSFERS else []
    found += ["BT.2020"] if _BT2020 in (codec.color_primaries, codec.colorspace) else []
    if found:
        how = "convert it to 8 bits of BT.709, or choose --data.hdr clip, which takes its values as they are"
        raise Unusable(f"a film of high dynamic range ({', '.join(found)}): {how}")


def rgb_of(film: Film, frame: Any) -> np.ndarray:
    """uint8 [H, W], or [H, W, C] of colours, of a frame with square pixels, at its own height."""
    image, aspect = film.image(frame), film.aspect(frame)
    if aspect != 1:
        image = image.resize((max(1, round(image.width * aspect)), image.height), Image.Resampling.BICUBIC)
    return np.asarray(image)
