"""IP-Adapter: pictures as a prompt, by attention of their own beside the text's.

Every cross-attention layer gets a second pair of key and value projections for the pictures'
tokens, and adds what its queries find there (Ye et al. 2023, section 3.2.2). The denoiser itself
stays as it is: what the pairs project is handed to it from outside, see ``ImageKeys``. As the
tokens are the same in every step, they are projected once a clip.

Parameter names are those of the public files.

Shapes: N batch, R guidance halves, T frames, F = 1 or T, I pictures of an adapter, L tokens a
picture, D width of the prompt's tokens, E features, S tokens of the image encoder, H W latent size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvideo.checkpoints.files import read_tensors
from mmvideo.checkpoints.load import load_into, without_weights
from mmvideo.checkpoints.sources import local_root
from mmvideo.errors import ConfigError, InputError, WeightsError
from mmvideo.models.adapters.base import Adapter
from mmvideo.models.adapters.cross_attention import (
    CrossAttention,
    check_scale,
    cross_attentions,
    is_silent,
    scale_at,
)
from mmvideo.models.adapters.image_encoder import (
    USUAL_FOLDER,
    encoder_config,
    encoder_files,
    processor_config,
)
from mmvideo.models.adapters.image_projection import projection_of
from mmvideo.models.unet.context import ImageKeys
from mmvideo.registry import MODELS

if TYPE_CHECKING:
    from PIL import Image

_CHUNK = 8  # pictures that the encoder sees at once


class ImageLayer(nn.Module):
    """The second key and value projection of one cross-attention layer."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(width, channels, bias=False)
        self.to_v_ip = nn.Linear(width, channels, bias=False)


@MODELS.register_module()
class IPAdapter(nn.Module, Adapter):
    """An IP-Adapter for Stable Diffusion 1.5 and what is built on it.

    Reads ip-adapter_sd15 (also light and vit-G), ip-adapter-plus, -plus-face and -full-face, as
    their tensors tell.

    Args:
        from_pretrained: file, folder, hub id or ``package://NAME``.
        name: what the editor's methods call it; None takes the file's own name.
        subfolder: folder inside the source.
        weight_name: file inside the source, where it has several.
        revision: branch, tag or commit on the hub.
        scale: how strongly the pictures work, see ``scale_at``; a call may say another.
        image_encoder: folder of the image encoder: a name stands for one beside the weights, with
            a slash for one from the root of the source. Or the config of a
            ``CLIPVisionModelWithProjection``. None is without: then embeddings are the input.
        image_processor: config of a ``CLIPImageProcessor``; None takes the encoder folder's, or
            CLIP's own at the size that the encoder takes.

    Raises:
        WeightsError: a file that is missing, damaged or no IP-Adapter.
    """

    filenames = ('ip-adapter_sd15.safetensors', 'ip-adapter_sd15.bin')

    def __init__(
        self,
        from_pretrained: str | Path,
        name: str | None = None,
        subfolder: str | None = None,
        weight_name: str | None = None,
        revision: str | None = None,
        scale: Any = 1.0,
        image_encoder: str | Mapping[str, Any] | None = USUAL_FOLDER,
        image_processor: Mapping[str, Any] | None = None,
    ) -> None:
        nn.Module.__init__(self)
        Adapter.__init__(self, from_pretrained, name, subfolder, weight_name, revision)
        self.set_scale(scale)
        self.encoder_config = encoder_config(image_encoder, from_pretrained, subfolder, revision)
        self.processor_config = dict(image_processor) if image_processor else None
        self.encoder_files = encoder_files(self.encoder_config)
        self.image_encoder: Any = None  # read when attached, where another adapter may have it
        self.image_processor: Any = None
        self._fill(read_tensors(self.path))
        self.requires_grad_(False)
        self.eval()

    def _fill(self, tensors: Mapping[str, Tensor]) -> None:
        what = f'the IP-Adapter {self.path}'
        groups: dict[str, dict[str, Tensor]] = {'image_proj': {}, 'ip_adapter': {}}
        for key, value in tensors.items():
            group, _, rest = key.partition('.')
            if group not in groups:
                raise WeightsError(
                    f'{self.path} is no IP-Adapter: it holds {key!r}, expected names that begin '
                    "with 'image_proj.' or 'ip_adapter.'"
                )
            groups[group][rest] = value
        with without_weights():
            self.image_proj = projection_of(groups['image_proj'], what)
            self.ip_adapter = _layers(groups['ip_adapter'], what)
        whole = nn.ModuleDict({'image_proj': self.image_proj, 'ip_adapter': self.ip_adapter})
        load_into(whole, tensors, what, 'float32')

    @property
    def paths(self) -> list[Path]:
        """The weight files that the adapter was read from, the image encoder's too."""
        return [self.path, *self.encoder_files]

    # The protocol of adapters -----------------------------------------------------------------

    @classmethod
    def check(cls, config: Mapping[str, Any]) -> None:
        """Refuse a scale that cannot be, and an image encoder that is not there.

        Raises:
            ConfigError, WeightsError: naming the key and the value.
        """
        check_scale(config.get('scale', 1.0), name='scale', error=ConfigError)
        encoder = cls.encoder_of(config)
        source = None if encoder is None else encoder.get('from_pretrained')
        if source is not None and local_root(source) is not None:  # the hub is asked later
            encoder_files(encoder)

    @staticmethod
    def encoder_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
        """The config of the image encoder that an adapter's config asks for."""
        return encoder_config(
            config.get('image_encoder', USUAL_FOLDER),
            config['from_pretrained'],
            config.get('subfolder'),
            config.get('revision'),
        )

    def attach(self, editor: Any) -> None:
        """Become one of ``editor.ip_adapters``.

        Raises:
            WeightsError: made for another model; the editor is then unchanged.
        """
        self.check_fits(editor.unet)
        others: Sequence[IPAdapter] = getattr(editor, 'ip_adapters', ())
        self._open_encoder(others)
        self.to(device=editor.device, dtype=editor.dtype)
        if not others:
            editor.ip_adapters = nn.ModuleList()
        editor.ip_adapters.append(self)

    def detach(self, editor: Any) -> None:
        """Take back ``attach``."""
        left = [adapter for adapter in editor.ip_adapters if adapter is not self]
        del editor.ip_adapters
        if left:
            editor.ip_adapters = nn.ModuleList(left)

    def set_scale(self, scale: Any) -> None:
        """How strongly the pictures work where a call does not say it, see ``scale_at``.

        Raises:
            ConfigError: no scale.
        """
        check_scale(scale, name='scale', error=ConfigError)
        self.scale = scale

    def check_fits(self, unet: nn.Module) -> None:
        """Raise WeightsError unless the adapter was made for a denoiser like this one."""
        width: int = unet.cross_attention_dim  # type: ignore[assignment]
        theirs = self.image_proj.width
        if theirs != width:
            raise WeightsError(
                f'{self.path} is an IP-Adapter for prompt tokens of {theirs} channels'
                f'{_model_of(theirs)}; this model has {width}{_model_of(width)}'
            )
        places = cross_attentions(unet)
        if len(places) != len(self.ip_adapter):
            raise WeightsError(
                f'{self.path} is an IP-Adapter for {len(self.ip_adapter)} cross-attention layers; '
                f'this model has {len(places)}'
            )
        for place, layer in zip(places, self.layers(), strict=True):
            ours, found = place.module.to_k.weight.shape, layer.to_k_ip.weight.shape
            if ours != found:
                raise WeightsError(
                    f'{self.path}: the layer for {place.part}, block {place.block} is '
                    f'{list(found)}; this model has {list(ours)} there'
                )

    def layers(self) -> list[ImageLayer]:
        """In the order of ``cross_attentions``."""
        return list(self.ip_adapter.values())  # type: ignore[arg-type]

    # Pictures to features ---------------------------------------------------------------------

    def _open_encoder(self, others: Sequence[IPAdapter]) -> None:
        if self.encoder_config is None:
            return
        for other in others:
            if other.encoder_config == self.encoder_config:
                self.image_encoder = other.image_encoder
        if self.image_encoder is None:
            self.image_encoder = MODELS.build(self.encoder_config).requires_grad_(False)
        size, wanted = self._encoder_width(), self.image_proj.features
        if size != wanted:
            self.image_encoder = None
            raise WeightsError(
                f'{self.path} reads {wanted} features, its image encoder gives {size}: this is '
                'the encoder of another IP-Adapter'
            )
        config = self.processor_config or processor_config(
            self.encoder_config, self.image_encoder.config.image_size
        )
        self.image_processor = MODELS.build(config)

    def _encoder_width(self) -> int:
        config = self.image_encoder.config
        return config.hidden_size if self.image_proj.hidden else config.projection_dim

    def encode(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Features of RGB pictures, [I, E] or [I, S, E] as this adapter reads them.

        Raises:
            InputError: the adapter has no image encoder.
        """
        if self.image_encoder is None:
            raise InputError(
                f'ip_adapter_image: the IP-Adapter {self.name!r} has no image encoder; name one '
                'with image_encoder=... in its config, or give ip_adapter_image_embeds.'
            )
        pixels = [
            self.image_processor(picture, return_tensors='pt').pixel_values for picture in pictures
        ]
        return torch.cat([self._features(part) for part in torch.cat(pixels).split(_CHUNK)])

    def blank(self) -> Tensor | None:
        """Features of no picture, [E] or [S, E]: zeros, or those of a black square.

        None where an image encoder would be needed and there is none.
        """
        if not self.image_proj.hidden:
            return torch.zeros(self.image_proj.features)
        if self.image_encoder is None:
            return None
        size = self.image_encoder.config.image_size
        return self._features(torch.zeros(1, 3, size, size))[0]

    def _features(self, pixels: Tensor) -> Tensor:
        weight = next(self.image_encoder.parameters())
        pixels = pixels.to(weight)
        if not self.image_proj.hidden:
            return self.image_encoder(pixels).image_embeds
        return self.image_encoder(pixels, output_hidden_states=True).hidden_states[-2]

    # Features to what the denoiser sees -------------------------------------------------------

    def tokens(self, features: Tensor) -> Tensor:
        """[R, F, I, E] or [R, F, I, S, E] -> [R, F, I, L, D]."""
        weight = next(self.image_proj.parameters())
        flat = self.image_proj(features.flatten(0, 2).to(weight))
        return flat.unflatten(0, features.shape[:3])

    def image_keys(
        self,
        unet: nn.Module,
        tokens: Tensor,
        scale: Any = None,
        masks: Tensor | None = None,
        size: tuple[int, int] | None = None,
        samples: int = 1,
    ) -> dict[nn.Module, list[ImageKeys]]:
        """What each cross-attention layer of ``unet`` sees of the pictures.

        Args:
            unet: a ``VideoUNet`` that the adapter fits.
            tokens: [R, F, I, L, D], the unguided half first.
            scale: see ``scale_at``; None takes the adapter's own.
            masks: where each picture counts, [I, F', height, width] with F' 1 or T.
            size: latent (H, W), needed with masks.
            samples: clips that see these pictures; N is R * samples.

        Returns:
            For ``VideoUNet.forward(images=...)``. Several adapters' are joined by
            ``join_keys``. Layers with the scale zero are left out.

        Pictures share one attention, as in diffusers. With masks or a scale for each they are
        attended to one by one.
        """
        assert masks is None or size is not None, 'masks need the size of the latents'
        found: dict[nn.Module, list[ImageKeys]] = {}
        shrunk: dict[int, Tensor] = {}
        for place, layer in zip(cross_attentions(unet), self.layers(), strict=True):
            leaf = scale_at(self.scale if scale is None else scale, place)
            if masks is not None and size is not None and place.level not in shrunk:
                shrunk[place.level] = _shrink(masks, size, place.level)
            keys = _keys(layer, place, tokens, leaf, shrunk.get(place.level), samples)
            if keys:
                found[place.module] = keys
        return found


def join_keys(
    parts: Sequence[Mapping[nn.Module, Sequence[ImageKeys]]],
) -> dict[nn.Module, list[ImageKeys]]:
    """What several adapters show to each layer, together."""
    joined: dict[nn.Module, list[ImageKeys]] = {}
    for part in parts:
        for module, keys in part.items():
            joined.setdefault(module, []).extend(keys)
    return joined


def _keys(
    layer: ImageLayer,
    place: CrossAttention,
    tokens: Tensor,
    scale: float | Tensor | Sequence[float | Tensor],
    masks: Tensor | None,
    samples: int,
) -> list[ImageKeys]:
    """``masks``: [I, F', P, 1] at this layer; a scale may be one for each frame, [T]."""
    pictures, one = tokens.shape[2], isinstance(scale, (int, float, Tensor))
    if masks is None and one:
        groups: list[Any] = [(tokens.flatten(2, 3), scale, None)]
    else:
        each = [scale] * pictures if one else list(scale)  # type: ignore[arg-type]
        assert len(each) == pictures, (each, pictures)
        groups = [
            (tokens[:, :, i], each[i], None if masks is None else masks[i]) for i in range(pictures)
        ]
    keys = []
    for group, strength, mask in groups:  # R F L D
        if is_silent(strength):
            continue
        if isinstance(strength, Tensor):  # frames share keys and values, but no strength
            over = strength[:, None, None]  # T 1 1
            strength, mask = 1.0, over if mask is None else over * mask.to(over)
        k, v = layer.to_k_ip(group), strength * layer.to_v_ip(group)
        k, v = (_rows(place.module.split(x), samples) for x in (k, v))
        mask = None if mask is None else mask.to(v)
        keys.append(ImageKeys(k, v, group.shape[1], mask))
    return keys


def _rows(x: Tensor, samples: int) -> Tensor:
    """[R, F, L, heads, d] -> [R * samples * F, L, heads, d]."""
    return x.unsqueeze(1).expand(-1, samples, *(-1,) * (x.dim() - 1)).flatten(0, 2)


def _shrink(masks: Tensor, size: tuple[int, int], level: int) -> Tensor:
    """[I, F', height, width] -> [I, F', P, 1] for the places of a level."""
    height, width = size
    for _ in range(level):  # as the trunk's strided convolutions do
        height, width = (height + 1) // 2, (width + 1) // 2
    small = F.interpolate(masks.float(), (height, width), mode='bicubic')
    return small.flatten(2).unsqueeze(-1)


def _layers(tensors: Mapping[str, Tensor], what: str) -> nn.ModuleDict:
    """One pair for each key of a file, which counts attention layers and so has odd numbers."""
    numbers = sorted({int(key.split('.')[0]) for key in tensors if key.split('.')[0].isdigit()})
    layers = nn.ModuleDict()
    for number in numbers:
        weight = tensors.get(f'{number}.to_k_ip.weight')
        if weight is None or weight.dim() != 2:
            raise WeightsError(
                f'{what}: ip_adapter.{number}.to_k_ip.weight is missing or no matrix; this is '
                'another kind of adapter, such as FaceID with its LoRA'
            )
        layers[str(number)] = ImageLayer(*weight.shape)
    if not layers:
        raise WeightsError(f'{what} has no layers: expected ip_adapter.1.to_k_ip.weight and so on')
    return layers


def _model_of(width: int) -> str:
    known = {768: 'Stable Diffusion 1.x', 1024: 'Stable Diffusion 2.x', 2048: 'SDXL'}
    return f' ({known[width]})' if width in known else ''
