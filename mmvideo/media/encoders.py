"""One clip to the bytes of one format, with a text inside: mp4, gif, webp, png.

An encoder writes a whole file to a path that nobody else knows yet; names and renaming are
``mmvideo.media.writers``'s. Pictures come one after the other, uint8 [H, W, 3], and none is kept in
memory: a clip of any length needs that of a few. The text is ASCII.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

PNG_KEY = 'mmvideo'  # keyword of the iTXt chunk


class Encoder(Protocol):
    """Writes the pictures that it is given; ``finish`` once, after the last one, then ``close``."""

    def add(self, picture: np.ndarray) -> None:
        """One more picture, uint8 [H, W, 3]."""

    def finish(self) -> None:
        """Complete the file."""

    def close(self) -> None:
        """Let go of everything, whether the file is complete or not."""


class Mp4Encoder:
    """H.264, encoded as the pictures come."""

    def __init__(
        self, path: Path, height: int, width: int, fps: float, text: str | None = None
    ) -> None:
        import av

        self._container = av.open(str(path), 'w', format='mp4', options={'movflags': '+faststart'})
        if text is not None:
            self._container.metadata['comment'] = text
        # A fixed number of threads: x264's bits depend on it, and a replay must not differ.
        options = {'crf': '14', 'preset': 'medium', 'threads': '4'}
        self._stream = self._container.add_stream('libx264', rate=_rate(fps), options=options)
        self._stream.height, self._stream.width = height + height % 2, width + width % 2
        self._stream.pix_fmt = 'yuv420p'
        # The matrix that readers assume who ignore the tag, and that others read from it.
        self._stream.codec_context.colorspace = 6
        self._stream.codec_context.color_range = 1
        self._stream.codec_context.color_primaries = 1
        self._stream.codec_context.color_trc = 1

    def add(self, picture: np.ndarray) -> None:
        """See ``Encoder``."""
        import av

        frame = av.VideoFrame.from_ndarray(_even(picture), format='rgb24').reformat(
            format='yuv420p', dst_colorspace=6, dst_color_range=1
        )
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """See ``Encoder``."""
        self._container.mux(self._stream.encode())
        self._container.close()

    def close(self) -> None:
        """See ``Encoder``."""
        self._container.close()


class Spool:
    """Pictures waiting on the disk, without a name, to be read again in any order."""

    def __init__(self, folder: Path, height: int, width: int) -> None:
        self.shape = (height, width, 3)
        self.count = 0
        # closed by close(), and by the system with the process
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def append(self, picture: np.ndarray) -> None:
        """One more picture."""
        self._file.write(np.ascontiguousarray(picture).data)
        self.count += 1

    def __getitem__(self, index: int) -> np.ndarray:
        size = int(np.prod(self.shape))
        self._file.seek(index * size)
        return np.frombuffer(self._file.read(size), np.uint8).reshape(self.shape)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(self.count))

    def close(self) -> None:
        """Give the disk back."""
        self._file.close()


class GifEncoder:
    """256 colours chosen over the whole clip, errors diffused.

    The palette is there only after the last picture, so they wait in a ``Spool``, as large as
    their pixels, until a second pass. One of the first pictures alone would miss what comes later.
    """

    def __init__(
        self, path: Path, height: int, width: int, fps: float, text: str | None = None
    ) -> None:
        self._path, self._rate, self._text = path, _rate(fps), text
        self._spool = Spool(path.parent, height, width)
        self._palette = _Filters((height, width), self._rate, 'palettegen', 'stats_mode=full')

    def add(self, picture: np.ndarray) -> None:
        """See ``Encoder``."""
        self._spool.append(picture)
        self._palette.push(picture)

    def finish(self) -> None:
        """See ``Encoder``."""
        import av

        [palette] = self._palette.end()
        with av.open(str(self._path), 'w', format='gif') as container:
            stream = container.add_stream('gif', rate=self._rate)
            stream.height, stream.width = self._spool.shape[:2]
            stream.pix_fmt = 'pal8'
            for frame in self._coloured(palette):
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        if self._text is not None:
            _comment_gif(self._path, self._text.encode('ascii'))

    def _coloured(self, palette: Any) -> Iterator[Any]:
        use = _Filters(
            self._spool.shape[:2], self._rate, 'paletteuse', 'dither=sierra2_4a', palette
        )
        for picture in self._spool:
            use.push(picture)
            yield from use.ready()
        yield from use.end()

    def close(self) -> None:
        """See ``Encoder``."""
        self._spool.close()


class _Filters:
    """One of FFmpeg's filters over pictures, which may have a palette as its second input."""

    def __init__(
        self,
        size: tuple[int, ...],
        rate: Fraction,
        name: str,
        options: str,
        palette: Any = None,
    ) -> None:
        import av
        from av.filter import Graph

        height, width = size
        self._rate, self._count, graph = rate, 0, Graph()
        self._source = graph.add_buffer(
            width=width,
            height=height,
            format=av.VideoFormat('rgb24', width, height),
            time_base=1 / rate,
        )
        middle, self._sink = graph.add(name, options), graph.add('buffersink')
        self._source.link_to(middle, 0, 0)
        second = None
        if palette is not None:
            second = graph.add_buffer(
                width=palette.width,
                height=palette.height,
                format=palette.format,
                time_base=1 / rate,
            )
            second.link_to(middle, 0, 1)
        middle.link_to(self._sink)
        graph.configure()
        self._graph = graph
        if second is not None:
            palette.pts, palette.time_base = 0, 1 / rate
            second.push(palette)
            second.push(None)

    def push(self, picture: np.ndarray) -> None:
        import av

        frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
        frame.pts, frame.time_base = self._count, 1 / self._rate
        self._source.push(frame)
        self._count += 1

    def ready(self) -> Iterator[Any]:
        """What the filter gives now."""
        while True:
            try:
                frame = self._sink.pull()
            except (EOFError, BlockingIOError):
                return
            yield frame

    def end(self) -> list[Any]:
        """What it gives when nothing more comes."""
        self._source.push(None)
        return list(self.ready())


def _comment_gif(path: Path, comment: bytes) -> None:
    """Put a comment extension (GIF89a, section 24) before the first picture."""
    blocks = [comment[i : i + 255] for i in range(0, len(comment), 255)]
    body = b''.join(bytes([len(block)]) + block for block in blocks)
    with open(path, 'r+b') as file:
        # The global colour table follows 13 bytes of header where the top bit of byte 10 says so.
        flags = file.read(11)[10]
        start = 13 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
        _insert(file, start, b'\x21\xfe' + body + b'\x00')


def _insert(file: BinaryIO, at: int, data: bytes, block: int = 2**20) -> None:
    """Make room in a file, from its end, a block at a time."""
    place = file.seek(0, os.SEEK_END)
    while place > at:
        size = min(block, place - at)
        place -= size
        file.seek(place)
        moved = file.read(size)
        file.seek(place + len(data))
        file.write(moved)
    file.seek(at)
    file.write(data)


class WebpEncoder:
    """Pillow's, which asks for the pictures itself and so finds them in a ``Spool``."""

    def __init__(
        self, path: Path, height: int, width: int, fps: float, text: str | None = None
    ) -> None:
        self._path, self._fps, self._text = path, fps, text
        self._spool = Spool(path.parent, height, width)

    def add(self, picture: np.ndarray) -> None:
        """See ``Encoder``."""
        self._spool.append(picture)

    def finish(self) -> None:
        """See ``Encoder``."""
        # Rounded moments, not rounded durations: 24 frames a second stay a second.
        moments = [round(1000 * i / self._fps) for i in range(self._spool.count + 1)]
        extra = {} if self._text is None else {'exif': _exif(self._text)}
        _film(self._spool).save(
            self._path, format='WEBP', save_all=True, loop=0, quality=92, method=4,
            duration=[b - a for a, b in itertools.pairwise(moments)], **extra,
        )  # fmt: skip

    def close(self) -> None:
        """See ``Encoder``."""
        self._spool.close()


def _film(spool: Spool) -> Any:
    """A picture of Pillow's with the frames of a spool, of which one is loaded at a time."""
    from PIL import Image

    class Film(Image.Image):
        n_frames = spool.count

        def seek(self, frame: int) -> None:
            self.__dict__.update(Image.fromarray(spool[frame]).__dict__)
            self._place = frame

        def tell(self) -> int:
            return self._place

    film = Film()
    film.seek(0)
    return film


def _exif(text: str) -> Any:
    from PIL import ExifTags, Image

    exif = Image.Exif()
    # EXIF 2.3, UserComment: eight bytes name the character code.
    comment = b'ASCII\x00\x00\x00' + text.encode('ascii')
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return exif


def encode_png(path: Path, picture: np.ndarray, text: str | None) -> None:
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    if text is not None:
        info.add_itxt(PNG_KEY, text)
    Image.fromarray(picture).save(path, format='PNG', pnginfo=info, compress_level=4)


def _even(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return picture
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode='edge')


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)
