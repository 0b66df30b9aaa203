"""Pictures as prompts of an editor: from the arguments of ``infer`` to what the denoiser sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmvideo.errors import InputError
from mmvideo.models.adapters.base import adapter_name
from mmvideo.models.adapters.cross_attention import cross_attentions, is_silent
from mmvideo.models.adapters.ip_adapter import IPAdapter, join_keys
from mmvideo.models.conditioning.image_prompt import AdapterPrompt, ImagePrompts, spread_prompts
from mmvideo.models.unet.context import ImageKeys

ARGUMENTS = ('image', 'scale', 'masks', 'image_embeds')


def image_prompts(values: Mapping[str, Any]) -> ImagePrompts:
    """Those of the arguments of ``infer`` that are about IP-Adapters."""
    return ImagePrompts(**{key: values.get(f'ip_adapter_{key}') for key in ARGUMENTS})


def check_image_prompts(
    model: Mapping[str, Any],
    given: ImagePrompts,
    frames: int,
    size: tuple[int, int] | None,
) -> None:
    """Refuse what cannot work, from the config alone.

    Args:
        model: ``cfg.model``.
        given: the arguments.
        frames: of the clip.
        size: its height and width in pixels, None where a picture says them.
    """
    configs = [c for c in model.get('adapters') or () if c['type'] == 'IPAdapter']
    names = [
        adapter_name(c['from_pretrained'], c.get('name'), c.get('weight_name')) for c in configs
    ]
    spread_prompts(given, names, [c.get('scale', 1.0) for c in configs], frames, size)


def prepare_image_prompts(
    editor: Any, given: ImagePrompts, frames: int, size: tuple[int, int]
) -> list[AdapterPrompt]:
    """The arguments for the adapters that an editor has, checked and with pictures decoded."""
    adapters = _adapters(editor)
    prompts = spread_prompts(
        given,
        [adapter.name for adapter in adapters],
        [adapter.scale for adapter in adapters],
        frames,
        size,
        cross_attentions(editor.unet) if adapters else (),
    )
    for adapter, prompt in zip(adapters, prompts, strict=True):
        _check_features(adapter, prompt)
    return prompts


def image_keys(
    editor: Any,
    prompts: Sequence[AdapterPrompt],
    size: tuple[int, int],
    samples: int,
    guided: bool,
) -> dict[nn.Module, list[ImageKeys]]:
    """What the denoiser's layers see of the pictures, in every step.

    Args:
        editor: with ``ip_adapters``.
        prompts: of ``prepare_image_prompts``.
        size: of the latents, (H, W).
        samples: clips, which all see the same pictures.
        guided: whether an unguided half comes first, which sees none.
    """
    parts = []
    for adapter, prompt in zip(_adapters(editor), prompts, strict=True):
        if is_silent(prompt.scale):
            continue
        tokens = adapter.tokens(_features(adapter, prompt, guided))
        parts.append(
            adapter.image_keys(editor.unet, tokens, prompt.scale, prompt.masks, size, samples)
        )
    return join_keys(parts)


def _adapters(editor: Any) -> list[IPAdapter]:
    return list(getattr(editor, 'ip_adapters', ()))


def _features(adapter: IPAdapter, prompt: AdapterPrompt, guided: bool) -> Tensor:
    """[R, F, I, E] or [R, F, I, S, E]; R = 2 with guidance, the half without a picture first."""
    if prompt.embeds is not None:
        seen, unseen = prompt.embeds[-1:], prompt.embeds[:-1]
    else:
        seen, unseen = _encoded(adapter, prompt)[None], None
    if not guided:
        return seen
    if unseen is None or not len(unseen):
        blank = adapter.blank()
        assert blank is not None, 'checked before'
        unseen = blank.to(seen).expand_as(seen)
    return torch.cat([unseen, seen])


def _encoded(adapter: IPAdapter, prompt: AdapterPrompt) -> Tensor:
    """[F, I, E] or [F, I, S, E]; a picture that several frames share is encoded once."""
    assert prompt.pictures is not None
    flat = [picture for row in prompt.pictures for picture in row]
    once = {id(picture): picture for picture in flat}
    features = adapter.encode(list(once.values()))
    place = {key: index for index, key in enumerate(once)}
    index = torch.tensor([place[id(picture)] for picture in flat], device=features.device)
    return features[index].unflatten(0, (len(prompt.pictures), -1))


def _check_features(adapter: IPAdapter, prompt: AdapterPrompt) -> None:
    """What can be refused before anything is computed."""
    embeds = prompt.embeds
    if embeds is None:
        if prompt.pictures is not None and adapter.image_encoder is None:
            adapter.encode([])  # says so
        return
    dims, width = 4 + adapter.image_proj.hidden, adapter.image_proj.features
    if embeds.dim() != dims or embeds.shape[-1] != width:
        shape = f'[2 or 1, I, S, {width}]' if dims == 5 else f'[2 or 1, I, {width}]'
        found = [embeds.shape[0], *embeds.shape[2:]]
        raise InputError(
            f'ip_adapter_image_embeds has the shape {found}: the IP-Adapter {adapter.name!r} '
            f'expects {shape}.'
        )
    if len(embeds) == 1 and adapter.image_proj.hidden and adapter.image_encoder is None:
        raise InputError(
            'ip_adapter_image_embeds has no unguided half and the IP-Adapter '
            f'{adapter.name!r} has no image encoder to compute it: give both halves, the '
            'unguided one first.'
        )
