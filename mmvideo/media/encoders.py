"""One clip to the bytes of one format, with a text inside: mp4, gif, webp, png.

Each ``encode_*`` writes a whole file to a path that nobody else knows yet; names and renaming are
``mmvideo.media.writers``'s. Frames are uint8 [T, H, W, 3]; the text is ASCII.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

PNG_KEY = 'mmvideo'  # keyword of the iTXt chunk


def encode_mp4(path: Path, frames: np.ndarray, fps: float, text: str | None) -> None:
    import av

    frames = _even(frames)
    with av.open(str(path), 'w', format='mp4', options={'movflags': '+faststart'}) as container:
        if text is not None:
            container.metadata['comment'] = text
        # A fixed number of threads: x264's bits depend on it, and a replay must not differ.
        options = {'crf': '14', 'preset': 'medium', 'threads': '4'}
        stream = container.add_stream('libx264', rate=_rate(fps), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = 'yuv420p'
        # The matrix that readers assume who ignore the tag, and that others read from it.
        stream.codec_context.colorspace = 6
        stream.codec_context.color_range = 1
        stream.codec_context.color_primaries = 1
        stream.codec_context.color_trc = 1
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(picture, format='rgb24').reformat(
                format='yuv420p', dst_colorspace=6, dst_color_range=1
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def encode_gif(path: Path, frames: np.ndarray, fps: float, text: str | None) -> None:
    import av

    rate = _rate(fps)
    with av.open(str(path), 'w', format='gif') as container:
        stream = container.add_stream('gif', rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = 'pal8'
        for frame in _with_palette(frames, rate):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if text is not None:
        path.write_bytes(_gif_with_comment(path.read_bytes(), text.encode('ascii')))


def _with_palette(frames: np.ndarray, rate: Fraction) -> Iterator[Any]:
    """One palette of 256 colours chosen over the whole clip, errors diffused."""
    import av
    from av.filter import Graph

    graph = Graph()
    height, width = frames.shape[1:3]
    pixels = av.VideoFormat('rgb24', width, height)
    source = graph.add_buffer(width=width, height=height, format=pixels, time_base=1 / rate)
    split = graph.add('split')
    palette = graph.add('palettegen', 'stats_mode=full')
    use = graph.add('paletteuse', 'dither=sierra2_4a')
    sink = graph.add('buffersink')
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    for index, picture in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
        frame.pts, frame.time_base = index, 1 / rate
        source.push(frame)
    source.push(None)
    with contextlib.suppress(EOFError, BlockingIOError):
        while True:
            yield sink.pull()


def _gif_with_comment(gif: bytes, comment: bytes) -> bytes:
    """Insert a comment extension (GIF89a, section 24) before the first picture."""
    # The global colour table follows 13 bytes of header where the top bit of byte 10 says so.
    flags = gif[10]
    start = 13 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
    blocks = [comment[i : i + 255] for i in range(0, len(comment), 255)]
    body = b''.join(bytes([len(block)]) + block for block in blocks)
    return gif[:start] + b'\x21\xfe' + body + b'\x00' + gif[start:]


def encode_webp(path: Path, frames: np.ndarray, fps: float, text: str | None) -> None:
    from PIL import Image

    pictures = [Image.fromarray(picture) for picture in frames]
    # Rounded moments, not rounded durations: 24 frames a second stay a second.
    moments = [round(1000 * i / fps) for i in range(len(pictures) + 1)]
    extra = {} if text is None else {'exif': _exif(text)}
    pictures[0].save(
        path, format='WEBP', save_all=True, append_images=pictures[1:], loop=0, quality=92,
        method=4, duration=[b - a for a, b in itertools.pairwise(moments)], **extra,
    )  # fmt: skip


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


def _even(frames: np.ndarray) -> np.ndarray:
    height, width = frames.shape[1:3]
    if height % 2 == 0 and width % 2 == 0:
        return frames
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode='edge')


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)
