"""What weights are, and how a config uses them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmvideo.apis.progress import size
from mmvideo.checkpoints.catalog import entries
from mmvideo.checkpoints.files import sha256
from mmvideo.checkpoints.layouts import FAMILIES, LORA_FAMILIES, MOTION_FAMILIES, Identity, identify
from mmvideo.checkpoints.opened import Opened, open_weights

_BASES = {
    'sd15': 'Stable Diffusion 1.5',
    'sd2': 'Stable Diffusion 2',
    'sdxl': 'Stable Diffusion XL',
    'sdxl refiner': 'the refiner of Stable Diffusion XL',
    'svd': 'Stable Video Diffusion',
    'i2vgen_xl': 'I2VGen-XL',
}
_ADAPTERS = {'motion_lora': 'MotionLoRA', 'textual_inversion': 'TextualInversion'}
_SINGLE = {
    'unet': "unet=dict(type='VideoUNet', from_pretrained={0!r})",
    'vae': "vae=dict(type='AutoencoderKL', from_pretrained={0!r})",
    'clip_text': "text_encoder=dict(type='CLIPTextModel', from_pretrained={0!r})",
}


def inspect(
    source: str | Path,
    subfolder: str | None = None,
    *,
    variant: str | None = None,
    revision: str | None = None,
) -> dict[str, Any]:
    """Everything that a source tells about itself, as plain data.

    Args:
        source: File, folder, hub id, ``package://NAME`` or ``catalog://NAME``.
        subfolder: Folder inside the source.
        variant: Which files of a source, such as 'fp16'.
        revision: Branch, tag or commit on the hub.

    Returns:
        ``source`` and ``parts``: one by the name '' for weights by themselves, or one for each part
        of a pipeline.

    Raises:
        WeightsError: The weights cannot be read, or are of no known kind.
    """
    opened = open_weights(source, subfolder, variant=variant, revision=revision)
    parts = opened.parts or {'': opened}
    name = str(source) if subfolder is None else f'{source}/{subfolder}'
    return {
        'source': name,
        'parts': {part: _facts(found, name, part) for part, found in parts.items()},
    }


def lines(facts: dict[str, Any]) -> list[str]:
    """The facts of ``inspect`` for people."""
    found: list[str] = []
    for name, part in facts['parts'].items():
        head = f'{facts["source"]}/{name}' if name else facts['source']
        found += ['', f'{head}: {part["title"]}'] if found else [f'{head}: {part["title"]}']
        found += [f'  {label}: {value}' for label, value in _rows(part)]
        if part['config']:
            found += ['  in a config:', *(f'    {line}' for line in part['config'].split('\n'))]
    return found


def _facts(opened: Opened, source: str, part: str) -> dict[str, Any]:
    found = identify(opened.tensors)
    whole = found.total
    return {
        'family': found.family,
        'title': found.title,
        'version': found.version,
        'layout': found.layout,
        'base': found.base,
        'precision': list(found.precision),
        'tensors': whole.tensors,
        'parameters': whole.parameters,
        'shares': {name: asdict(share) for name, share in found.parts.items()},
        'positions': found.positions,
        'mid_block': found.mid_block,
        'widths': list(found.widths),
        'rank': list(found.rank) if found.rank else None,
        'norm_scopes': found.norm_scopes,
        'betas': asdict(found.betas) if found.betas else None,
        'first_channels': found.first_channels,
        'note': FAMILIES[found.family].note,
        'files': [_file(path) for path in opened.paths],
        'config': snippet(found, source, part),
    }


def _file(path: Path) -> dict[str, Any]:
    length, digest = path.stat().st_size, sha256(path)
    names = [
        entry.name
        for entry in entries().values()
        if any(known.sha256 and known.fits(length, digest) for known in entry.known)
    ]
    return {'path': str(path), 'size': length, 'sha256': digest, 'published_as': names}


def _rows(part: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and text of what is known."""
    scopes = ', '.join(f'{name}={scope!r}' for name, scope in part['norm_scopes'].items())
    betas = part['betas']
    rank = part['rank'] and sorted(set(part['rank']))
    rows = [
        ('version', part['version']),
        ('layout', part['layout']),
        ('base model', _BASES.get(part['base'], part['base'])),
        ('precision', ', '.join(part['precision'])),
        ('tensors', f'{part["tensors"]:,} with {part["parameters"]:,} parameters'),
        *((f'  {name}', f'{share["tensors"]:,} with {share["parameters"]:,}')
          for name, share in part['shares'].items() if len(part['shares']) > 1),
        ('rank', rank and ' to '.join(map(str, rank))),
        ('channels', ', '.join(map(str, part['widths']))),
        ('frame positions', part['positions'] and str(part['positions'])),
        ('module in the middle', None if part['mid_block'] is None
         else 'yes' if part['mid_block'] else 'no'),
        ('norm scopes', scopes),
        ('trained with', betas and f'{betas["beta_schedule"]} betas, '
         f'{betas["beta_start"]} to {betas["beta_end"]}'),
        ('first channels', part['first_channels']),
        ('note', part['note']),
    ]  # fmt: skip
    for file in part['files']:
        known = ''.join(f', published as {name}' for name in file['published_as'])
        rows.append(('file', f'{file["path"]}, {size(file["size"])}{known}'))
        rows.append(('sha256', file['sha256']))
    return [(label, text) for label, text in rows if text]


def snippet(found: Identity, source: str, part: str = '') -> str:
    """Lines of ``model`` in a config that uses the weights; empty where no model here does."""
    if found.family in MOTION_FAMILIES and found.family not in ('pia_unet', 'unet_motion'):
        return _motion_snippet(found, source)
    kind = 'LoRA' if found.family in LORA_FAMILIES else ''
    kind = _ADAPTERS.get(found.family, kind)
    if found.family.startswith('ip_adapter') and found.family != 'ip_adapter_faceid':
        kind = 'IPAdapter'
    if kind:
        return f'model = dict(adapters=[dict(type={kind!r}, from_pretrained={source!r})])'
    if found.family == 'ldm' and found.base == 'sd15':
        shares = {'unet': 'unet', 'vae': 'vae', 'text_encoder': 'clip_text'}
        rows = [_SINGLE[family].format(source) for name, family in shares.items()
                if name in found.parts]  # fmt: skip
        return 'model = dict(\n' + ''.join(f'    {row},\n' for row in rows) + ')'
    if found.family in _SINGLE:
        row = _SINGLE[found.family].format(source)
        row = row[:-1] + f', subfolder={part!r})' if part else row
        return f'model = dict({row})'
    return ''


def _motion_snippet(found: Identity, source: str) -> str:
    scopes = found.norm_scopes
    rows = [f'type={"PIA" if found.family == "pia" else "AnimateDiff"!r},']
    if 'resnet_norm_scope' in scopes:
        rows.append(f'unet=dict(resnet_norm_scope={scopes["resnet_norm_scope"]!r}),')
    norm = f', norm_scope={scopes["motion_norm_scope"]!r}' if scopes else ''
    rows.append(f"motion_module=dict(type='MotionModule', from_pretrained={source!r}{norm}),")
    if found.family == 'pia':
        rows += ["condition_module=dict(type='PIACondition'),", "first_channels='pia',"]
    if found.betas is not None:
        betas = ', '.join(f'{key}={value!r}' for key, value in asdict(found.betas).items())
        rows.append(f'scheduler=dict({betas}),')
    return 'model = dict(\n' + ''.join(f'    {row}\n' for row in rows) + ')'
