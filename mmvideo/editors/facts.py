"""What a model can do, from its config alone: no weight is read for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmvideo.checkpoints.files import read_json
from mmvideo.checkpoints.sources import is_weight_file, resolve
from mmvideo.editors.parts import split_source
from mmvideo.errors import WeightsError

# What Stable Diffusion 1.5 has, where a config does not say.
SAMPLE_SIZE = 64  # latent cells along a side of a picture
_VAE_LEVELS = 4


@dataclass(frozen=True)
class Facts:
    """Limits and defaults of a model.

    Attributes:
        vae_scale: pixels along a side of one latent cell.
        latent_channels: channels of a latent.
        sample_size: side of a latent that the model was trained on, in cells.
        max_frames: positions of the motion modules; None without a limit that a config tells.
        levels: stages of the denoiser on its way down.
        num_frames: length of the clips of training, where the denoiser's config tells.
        deepest: see ``VideoUNet.deepest``.
        told_guidance: whether the denoiser has guidance in itself, see
            ``VideoUNet.time_cond_proj_dim``.
    """

    vae_scale: int
    latent_channels: int
    sample_size: int
    max_frames: int | None
    levels: int = 4
    num_frames: int | None = None
    deepest: int = 11
    told_guidance: bool = False

    @property
    def default_size(self) -> int:
        """Side of a picture in pixels when a call names none."""
        return self.sample_size * self.vae_scale


def read_facts(model: Mapping[str, Any]) -> Facts:
    """The facts of ``cfg.model``; reads ``config.json`` files, never weights.

    Of a part whose ``config.json`` is not here while the hub cannot be asked, it is Stable
    Diffusion 1.5's, see ``unread``: mistakes of a call are found all the same.
    """
    vae = _settings(model.get('vae'))
    levels = len(vae_widths(vae)) or _VAE_LEVELS
    unet = _settings(model.get('unet'))
    size = unet.get('sample_size') or SAMPLE_SIZE
    stages = len(unet.get('block_out_channels', ())) or 4
    return Facts(
        vae_scale=2 ** (levels - 1),
        latent_channels=vae.get('latent_channels', 4),
        sample_size=size if isinstance(size, int) else size[0],
        max_frames=_max_frames(model.get('motion_module')),
        levels=stages,
        num_frames=unet.get('num_frames'),
        deepest=_deepest(unet.get('layers_per_block', 2), stages),
        told_guidance=unet.get('time_cond_proj_dim') is not None,
    )


def vae_widths(settings: Mapping[str, Any]) -> Sequence[int]:
    """Channels of a VAE's levels; empty where its settings do not tell."""
    return settings.get('block_out_channels') or settings.get('decoder_block_out_channels') or ()


def _deepest(layers: int | Sequence[int], stages: int) -> int:
    """Layers and changes of size on the denoiser's way down."""
    return (layers * stages if isinstance(layers, int) else sum(layers)) + stages - 1


def text_layers(model: Mapping[str, Any]) -> int | None:
    """Layers of the text encoder; None where only its weights tell."""
    part = model.get('text_encoder') or {}
    source = part.get('from_pretrained')
    if source is not None and is_weight_file(source):
        return None
    settings = _settings(part)
    return settings.get('text_config', settings).get('num_hidden_layers', 12)


def unread(model: Mapping[str, Any]) -> dict[str, WeightsError]:
    """Parts of which ``read_facts`` knows no ``config.json``, and what the hub's absence says."""
    found = {}
    for name in ('unet', 'vae', 'motion_module'):
        try:
            _read(model.get(name))
        except WeightsError as error:
            if not _is_unreachable(error):
                raise
            found[name] = error
    return found


def _settings(part: Mapping[str, Any] | None) -> dict[str, Any]:
    """As ``_read``, but the config's own keys alone where the hub cannot be asked."""
    try:
        return _read(part)
    except WeightsError as error:
        if not _is_unreachable(error):
            raise
        return split_source(part or {})[1]


def _is_unreachable(error: WeightsError) -> bool:
    from mmvideo.checkpoints.hub import HubUnreachableError  # the client library is slow to import

    return isinstance(error, HubUnreachableError)


def _read(part: Mapping[str, Any] | None) -> dict[str, Any]:
    """A part's architecture: its ``config.json``, with the config's own keys over it."""
    where, keys = split_source(part or {})
    source = where.pop('from_pretrained', None)
    if source is None:
        return keys
    if is_weight_file(source):
        return keys
    place = {k: v for k, v in where.items() if k in ('subfolder', 'revision')}
    return {**read_json(resolve(source, filenames=('config.json',), **place)), **keys}


def _max_frames(part: Mapping[str, Any] | None) -> int | None:
    if part is None:
        return None
    settings = _settings(part)
    limit = settings.get('max_positions') or settings.get('motion_max_seq_length')
    if limit is None and not part.get('from_pretrained'):
        return 32
    return limit
