"""The small language of the sprite world: captions from scenes, and scenes from captions.

a red fish moving left in the field          a red fish heading quickly up in space
an orange car standing still in the city     a red fish facing left, standing still in the snow
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np

from mmvideo.datasets.sprites.palette import COLOURS
from mmvideo.datasets.sprites.places import PLACES
from mmvideo.datasets.sprites.shapes import KINDS
from mmvideo.datasets.sprites.world import HEADINGS, Scene
from mmvideo.errors import InputError, nearest

VERBS = ('moving', 'going', 'heading')
ADVERBS = {'slow': 'slowly', 'steady': '', 'fast': 'quickly'}
STANDING = 'standing still'
PHRASES = {
    'field': 'in the field',
    'desert': 'in the desert',
    'sea': 'on the sea',
    'snow': 'in the snow',
    'city': 'in the city',
    'space': 'in space',
}
_FREE_WORDS = {'a', 'an', 'in', 'on', 'the', 'standing', 'facing', *VERBS}
_MEANINGS: dict[str, tuple[str, str]] = {
    **{word: ('kind', word) for word in KINDS},
    **{word: ('colour', word) for word in COLOURS},
    **{word: ('place', word) for word in PLACES},
    **{word: ('heading', word) for word in HEADINGS},
    **{word: ('pace', pace) for pace, word in ADVERBS.items() if word},
    'still': ('pace', 'still'),
}
# Every word that a caption can hold; commas are no words.
VOCABULARY: tuple[str, ...] = tuple(sorted(_FREE_WORDS | set(_MEANINGS)))


def words(caption: str) -> list[str]:
    """The words of a caption: lower case, split at spaces and punctuation."""
    return re.findall(r'[^\s,.;:!?]+', caption.lower())


def _motions(heading: str, pace: str) -> list[str]:
    """Every way to say how a sprite moves."""
    if pace == 'still':
        return [STANDING, f'facing {heading}, {STANDING}']
    return [' '.join(filter(None, (verb, ADVERBS[pace], heading))) for verb in VERBS]


def _sentence(kind: str, colour: str, place: str, motion: str) -> str:
    article = 'an' if colour[0] in 'aeiou' else 'a'
    return f'{article} {colour} {kind} {motion} {PHRASES[place]}'


def caption(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """Describe a scene; ``rng`` picks among the ways to say it, without it the first is taken."""
    motions = _motions(scene.heading, scene.pace)
    motion = motions[0 if rng is None else rng.integers(len(motions))]
    return _sentence(scene.kind, scene.colour, scene.place, motion)


def captions(scene: Scene | Mapping[str, str]) -> Iterator[str]:
    """Every caption that describes a scene."""
    said = scene if isinstance(scene, Mapping) else vars(scene)
    for motion in _motions(said['heading'], said['pace']):
        yield _sentence(said['kind'], said['colour'], said['place'], motion)


def parse_caption(caption: str) -> dict[str, str | None]:
    """Read a caption back: kind, colour, place, heading and pace, None for what it leaves open.

    Raises:
        InputError: for a word outside the vocabulary, two values for one attribute, or a caption
            without kind or colour.
    """
    said: dict[str, str | None] = dict.fromkeys(('kind', 'colour', 'place', 'heading', 'pace'))
    found = words(caption)
    for word in found:
        if word in _FREE_WORDS:
            continue
        if word not in _MEANINGS:
            raise InputError(f'unknown word {word!r} in {caption!r}.{nearest(word, VOCABULARY)}')
        field, value = _MEANINGS[word]
        if said[field] not in (None, value):
            raise InputError(f'{caption!r} names two values of {field}: {said[field]}, {value}')
        said[field] = value
    for field in ('kind', 'colour'):
        if said[field] is None:
            valid = ', '.join(KINDS if field == 'kind' else COLOURS)
            raise InputError(f'{caption!r} names no {field}; one of {valid}')
    if said['pace'] is None and any(verb in found for verb in VERBS):
        said['pace'] = 'steady'
    return said
