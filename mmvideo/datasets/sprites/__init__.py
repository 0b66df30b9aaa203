"""The sprite world: procedurally drawn clips that face where they go, with captions."""

from mmvideo.datasets.sprites.dataset import SpriteWorld, is_held_out
from mmvideo.datasets.sprites.grammar import VOCABULARY, caption, captions, parse_caption, words
from mmvideo.datasets.sprites.palette import COLOURS, STYLES
from mmvideo.datasets.sprites.places import PLACES, background
from mmvideo.datasets.sprites.shapes import KINDS
from mmvideo.datasets.sprites.turning import TurningSprites
from mmvideo.datasets.sprites.world import (
    HEADINGS,
    PACES,
    Scene,
    path,
    render,
    render_at,
    render_frame,
    sample_scene,
)

__all__ = [
    'COLOURS',
    'HEADINGS',
    'KINDS',
    'PACES',
    'PLACES',
    'STYLES',
    'VOCABULARY',
    'Scene',
    'SpriteWorld',
    'TurningSprites',
    'background',
    'caption',
    'captions',
    'is_held_out',
    'parse_caption',
    'path',
    'render',
    'render_at',
    'render_frame',
    'sample_scene',
    'words',
]
