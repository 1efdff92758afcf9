"""Videos by PyAV (limner[video]): mp4 and webm for players, mkv without loss."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np

from limner.settings import need

BT709 = 1  # the number of its primaries, transfer and matrix
LIMITED = 1  # range of values: black is 16
TICK = Fraction(
    1, 90_000
)  # second, where frames have times of their own: whole numbers of it at 24, 25, 29.97, 30


def check_pyav() -> None:
    """Raises LimnerError where PyAV is missing, before long work."""
    need("av", "Videos are written by PyAV, which is not installed", "video")


class Video:
    """A video of one stream [H, W, 3 or 4]. Colours are BT.709 in 4:2:0, or RGB where nothing is lost."""

    longest = 16384  # pixels a side, of H.264 and VP9

    def __init__(
        self,
        to: Path | IO[bytes],
        kind: str,
        size: tuple[int, int],
        alpha: bool,
        rate: Fraction,
        unit: Fraction,
    ):
        """``kind``: mp4, webm or matroska; ``rate``: frames a second on average; ``unit`` of times, in seconds."""
        av = need("av", "Videos are written by PyAV, which is not installed", "video")
        codec, self.format, options = {
            "mp4": ("libx264", "yuv420p", {"crf": "15"}),
            "webm": ("libvpx-vp9", "yuva420p" if alpha else "yuv420p",
                     {"crf": "20", "b": "0", "cpu-used": "4", "auto-alt-ref": "0" if alpha else "1"}),
            "matroska": ("ffv1", "bgra" if alpha else "bgr0", {"level": "3"}),
        }[kind]  # fmt: skip
        self.unit, self._at, self._frame = unit, 0, av.VideoFrame.from_ndarray
        # The index is moved to the front, so that a page plays while it loads: for that the file is opened again.
        quick = {"movflags": "+faststart"} if kind == "mp4" and isinstance(to, Path) else {}
        self._file = av.open(to, "w", format=kind, options=quick)
        self._stream: Any = self._file.add_stream(codec, rate=rate, options=options)
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = self.format
        context = self._stream.codec_context
        context.time_base = unit
        self._colours: dict[str, str] = {}
        if kind != "matroska":
            context.color_primaries = context.color_trc = context.colorspace = BT709
            context.color_range = LIMITED
            self._colours = {"dst_colorspace": "ITU709", "dst_color_range": "MPEG"}

    def add(self, pixels: np.ndarray, units: int) -> None:
        """A frame, shown for so many units."""
        frame = self._frame(np.ascontiguousarray(pixels), format="rgba" if pixels.shape[2] == 4 else "rgb24")
        frame = frame.reformat(format=self.format, interpolation="AREA", **self._colours)
        frame.pts, frame.time_base, frame.duration = self._at, self.unit, units
        self._at += units
        self._file.mux(self._stream.encode(frame))

    def close(self) -> None:
        self._file.mux(self._stream.encode(None))
        self.abandon()

    def abandon(self) -> None:
        self._file.close()
