"""Low-rank adapters: every public way to name them, translated to and from one.

Ours are PEFT's names with the part before them: ``unet.PATH.lora_A.weight`` [r, in, ...],
``unet.PATH.lora_B.weight`` [out, r, ...], ``unet.PATH.alpha`` [] and, of LyCORIS' Tucker form,
``unet.PATH.lora_mid.weight`` [r, r, kh, kw]; likewise ``text_encoder.`` and ``text_encoder_2.``.
PATH is the layer's name in diffusers' UNet and in transformers' CLIP with its ``text_model`` level.
An absent alpha means the rank: the change is ``up @ down`` as it stands.

Source of the names: kohya-ss/sd-scripts networks/lora.py, LyCORIS (LoCon), diffusers
loaders/lora_conversion_utils.py, guoyww/AnimateDiff (MotionLoRA, domain adapter).

Files are recognised after ``read_tensors``, which takes off a ``unet.`` that all keys share.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from mmvideo.checkpoints.layouts.table import Layout, Row
from mmvideo.errors import WeightsError

_STAGES = ('down_blocks.{block}', 'mid_block', 'up_blocks.{block}')
_OF_TRANSFORMER = ('{proj}', *(f'transformer_blocks.{{layer}}.{inner}' for inner in (
    '{attn}.{qkv}', '{attn}.to_out.0', 'ff.net.0.proj', 'ff.net.2',
)))  # fmt: skip
_OF_STAGE = (
    'resnets.{item}.{resnet}',
    *(f'{kind}.{{item}}.{name}' for kind in ('attentions', 'motion_modules')
      for name in _OF_TRANSFORMER),
    'downsamplers.0.conv',
    'upsamplers.0.conv',
)  # fmt: skip
_UNET = (
    'conv_in',
    'conv_out',
    'time_embedding.linear_{half}',
    'add_embedding.linear_{half}',
    *(f'{stage}.{name}' for stage in _STAGES for name in _OF_STAGE),
)
_TEXT = (
    'text_model.encoder.layers.{layer}.self_attn.{side}_proj',
    'text_model.encoder.layers.{layer}.mlp.{fc}',
    'text_projection',
)
_NAMES = {
    'block': r'\d+',
    'item': r'\d+',
    'half': '[12]',
    'proj': 'proj_in|proj_out',
    'attn': 'attn[12]',
    'qkv': 'to_[qkv]',
    'side': 'q|k|v|out',
    'fc': 'fc[12]',
    'resnet': 'conv1|conv2|time_emb_proj|conv_shortcut',
    'way': '[AB]',
    'adapter': r'\w+',
    # What a UNet's keys begin with when the part's name was taken off.
    'unet': r'(?:conv_in|conv_out|time_embedding|add_embedding|transformer_in|(?:down|up)_blocks'
            r'|mid_block)(?:\.\w+)*?',
    'path': r'\w+(?:\.\w+)*?',
    'part': 'unet|text_encoder|text_encoder_2',
    'text': 'text_encoder|text_encoder_2',
    'encoder': r'encoder(?:\.\w+)*?',
}  # fmt: skip
_KOHYA_ENDS = (
    ('lora_down.weight', 'lora_A.weight'),
    ('lora_up.weight', 'lora_B.weight'),
    ('lora_mid.weight', 'lora_mid.weight'),
    ('alpha', 'alpha'),
)
# LDM's layers (see layouts/ldm.py) inside a resnet.
_LDM_RESNET = {
    'in_layers_2': 'conv1',
    'out_layers_3': 'conv2',
    'emb_layers_1': 'time_emb_proj',
    'skip_connection': 'conv_shortcut',
}


def _kohya(names: Iterable[tuple[str, str]]) -> Iterator[Row]:
    for theirs, ours in names:
        for their_end, our_end in _KOHYA_ENDS:
            yield Row(f'{theirs}.{their_end}', f'{ours}.{our_end}')


def _flat(prefix: str, part: str, paths: Iterable[str]) -> list[tuple[str, str]]:
    """Kohya writes a layer's dots as underscores; a table can read them back, a rule cannot."""
    return [(prefix + path.replace('.', '_'), f'{part}.{path}') for path in paths]


def _ldm_names(xl: bool) -> Iterator[tuple[str, str]]:
    """Layers of the original UNet (``input_blocks_1_1_...``), which has three blocks a level."""
    yield 'lora_unet_input_blocks_0_0', 'unet.conv_in'
    yield 'lora_unet_out_2', 'unet.conv_out'
    for index, half in ((0, 1), (2, 2)):
        yield f'lora_unet_time_embed_{index}', f'unet.time_embedding.linear_{half}'
        yield f'lora_unet_label_emb_0_{index}', f'unet.add_embedding.linear_{half}'
    levels = 3 if xl else 4
    for level in range(levels):
        for item in range(2):
            block = f'input_blocks_{3 * level + item + 1}'
            yield from _ldm_layer(block, f'down_blocks.{level}', item)
        if level < levels - 1:
            yield (
                f'lora_unet_input_blocks_{3 * level + 3}_0_op',
                f'unet.down_blocks.{level}.downsamplers.0.conv',
            )
        for item in range(3):
            block = f'output_blocks_{3 * level + item}'
            yield from _ldm_layer(block, f'up_blocks.{level}', item)
        if level < levels - 1:
            # It follows the attention, which the coarsest level of Stable Diffusion 1 has not.
            place = 1 if level == 0 and not xl else 2
            yield (
                f'lora_unet_output_blocks_{3 * level + 2}_{place}_conv',
                f'unet.up_blocks.{level}.upsamplers.0.conv',
            )
    for index, (kind, item) in enumerate((('resnets', 0), ('attentions', 0), ('resnets', 1))):
        yield from _ldm_inner(f'lora_unet_middle_block_{index}', f'unet.mid_block.{kind}.{item}')


def _ldm_layer(block: str, stage: str, item: int) -> Iterator[tuple[str, str]]:
    yield from _ldm_inner(f'lora_unet_{block}_0', f'unet.{stage}.resnets.{item}')
    yield from _ldm_inner(f'lora_unet_{block}_1', f'unet.{stage}.attentions.{item}')


def _ldm_inner(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    if '.resnets.' in ours:
        for name, our_name in _LDM_RESNET.items():
            yield f'{theirs}_{name}', f'{ours}.{our_name}'
    else:
        for path in _OF_TRANSFORMER:
            yield f'{theirs}_{path.replace(".", "_")}', f'{ours}.{path}'


def _kohya_layout(name: str, unet: Iterable[tuple[str, str]], text: tuple[str, ...]) -> Layout:
    parts = ('text_encoder', 'text_encoder_2')
    texts = [pair for at, prefix in enumerate(text) for pair in _flat(prefix, parts[at], _TEXT)]
    return Layout(name, tuple(_kohya([*unet, *texts])), _NAMES)


_PLAIN = _flat('lora_unet_', 'unet', _UNET)
_ONE, _TWO = ('lora_te_',), ('lora_te1_', 'lora_te2_')
KOHYA = _kohya_layout('a LoRA of kohya', _PLAIN, _ONE)
KOHYA_XL = _kohya_layout('a LoRA of kohya with two text encoders', _PLAIN, _TWO)
KOHYA_LDM = _kohya_layout("a LoRA of kohya with LDM's names", list(_ldm_names(False)), _ONE)
KOHYA_LDM_XL = _kohya_layout("an SDXL LoRA of kohya with LDM's names", list(_ldm_names(True)), _TWO)

_END = '.lora_{way}.weight'
_PEFT = (
    # transformers 5 has no level text_model.
    Row('{text}.encoder.{path}' + _END, '{text}.text_model.encoder.{path}' + _END, only_read=True),
    Row('{part}.{path}' + _END, '{part}.{path}' + _END),
    *(
        Row(theirs + end, ours + _END, only_read=True)
        for end in (_END, '.lora_{way}.{adapter}.weight')
        for theirs, ours in (
            ('{text}.encoder.{path}', '{text}.text_model.encoder.{path}'),
            ('{unet}', 'unet.{unet}'),
            ('base_model.model.{unet}', 'unet.{unet}'),
            ('base_model.model.{encoder}', 'text_encoder.text_model.{encoder}'),
            ('base_model.model.text_model.{path}', 'text_encoder.text_model.{path}'),
            ('{part}.{path}', '{part}.{path}'),
        )
    ),
    Row('{part}.{path}.alpha', '{part}.{path}.alpha'),
    Row('{unet}.alpha', 'unet.{unet}.alpha', only_read=True),
)
_WAYS = (('down', 'A'), ('up', 'B'))
_DIFFUSERS = (
    *(
        Row(f'{theirs}.{way}.weight', f'{ours}.lora_{letter}.weight', only_read=read)
        for theirs, ours, read in (
            ('{text}.encoder.{path}.lora_linear_layer', '{text}.text_model.encoder.{path}', True),
            ('{text}.{path}.lora_linear_layer', '{text}.{path}', False),
            ('unet.{path}.lora', 'unet.{path}', False),
            ('{unet}.lora', 'unet.{unet}', True),
        )
        for way, letter in _WAYS
    ),
    # Newer releases of diffusers write its own names for attention only, PEFT's for the rest.
    *_PEFT,
)
_LINEARS = (('{qkv}', '{qkv}'), ('to_out', 'to_out.0'))


def _processors(theirs: str, ours: str, only_read: bool = False) -> tuple[Row, ...]:
    return tuple(
        Row(
            f'{theirs}.processor.{name}_lora.{way}.weight',
            f'{ours}.{linear}.lora_{letter}.weight',
            only_read=only_read,
        )
        for name, linear in _LINEARS
        for way, letter in _WAYS
    )


_OLD_TEXT = tuple(
    Row(
        f'{{text}}.{{path}}.self_attn.to_{side}_lora.{way}.weight',
        f'{{text}}.{{path}}.self_attn.{side}_proj.lora_{letter}.weight',
    )
    for side in ('q', 'k', 'v', 'out')
    for way, letter in _WAYS
)
_MOTION_BLOCK = '{module}.temporal_transformer.transformer_blocks.{layer}.attention_blocks'
_MOTION = tuple(
    row
    for index in (0, 1)
    for row in _processors(
        f'{_MOTION_BLOCK}.{index}',
        f'unet.{{module}}.transformer_blocks.{{layer}}.attn{index + 1}',
    )
)

PEFT_LORA = Layout('a LoRA of PEFT', _PEFT, _NAMES)
DIFFUSERS_LORA = Layout('a LoRA of diffusers', _DIFFUSERS, _NAMES)
PROCESSOR_LORA = Layout(
    "a LoRA of diffusers' attention processors",
    (
        *_processors('unet.{path}', 'unet.{path}'),
        *_processors('{unet}', 'unet.{unet}', only_read=True),
        *_OLD_TEXT,
    ),
    _NAMES,
)
MOTION_LORA = Layout('a MotionLoRA', _MOTION, _NAMES)
DOMAIN_ADAPTER = Layout(
    "AnimateDiff's domain adapter", _processors('{unet}', 'unet.{unet}'), _NAMES
)

LORA_LAYOUTS = {
    'kohya': KOHYA,
    'kohya_xl': KOHYA_XL,
    'kohya_ldm': KOHYA_LDM,
    'kohya_ldm_xl': KOHYA_LDM_XL,
    'motion_lora': MOTION_LORA,
    'domain_adapter': DOMAIN_ADAPTER,
    'processor': PROCESSOR_LORA,
    'diffusers': DIFFUSERS_LORA,
    'peft': PEFT_LORA,
}
_OTHER_KINDS = {
    'hada_w1': 'LoHa',
    'lokr_w1': 'LoKr',
    'dora_scale': 'DoRA',
    'lora_magnitude_vector': 'DoRA',
    'oft_blocks': 'OFT',
    'a1.weight': 'GLoRA',
}
_LORA_KEY = re.compile(
    r'lora_(?:unet|te|te1|te2)_.*'
    r'|.*\.lora_[AB](?:\.\w+)?\.weight'
    r'|.*[._]lora\.(?:down|up)\.weight'
    r'|.*\.lora_linear_layer\.(?:down|up)\.weight'
)


def is_lora(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any key is one of a low-rank adapter."""
    return any(_LORA_KEY.fullmatch(key) for key in tensors)


def lora_kind(tensors: Mapping[str, Tensor]) -> str:
    """How a file names its low-rank adapter: a key of ``LORA_LAYOUTS``.

    Raises:
        WeightsError: A kind that is no plain LoRA, such as LoHa or DoRA, or none at all.
    """
    for key in tensors:
        kind = next((kind for end, kind in _OTHER_KINDS.items() if f'.{end}' in key), None)
        if kind is not None:
            raise WeightsError(
                f'these tensors are a {kind} ({key}), which is not supported; expected a LoRA or '
                'LoCon'
            )
    if any(key.startswith('lora_') for key in tensors):
        ldm = any(re.match(r'lora_unet_(?:input|output|middle)_block', key) for key in tensors)
        two = any(re.match(r'lora_te[12]_', key) for key in tensors) or _is_xl(tensors)
        return 'kohya' + ('_ldm' if ldm else '') + ('_xl' if two else '')
    if any('.temporal_transformer.' in key for key in tensors):
        return 'motion_lora'
    if any(key.endswith('_lora.down.weight') for key in tensors):
        return 'processor'
    if any('.lora.down.' in key or '.lora_linear_layer.' in key for key in tensors):
        return 'diffusers'
    if any('.lora_A.' in key for key in tensors):
        return 'peft'
    raise WeightsError(f'these tensors are no LoRA; the first are: {", ".join(list(tensors)[:5])}')


def lora_to_ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A low-rank adapter of any layout under our names, see the module's head.

    Raises:
        WeightsError: A kind that is no plain LoRA, a key that its table does not know, or a half
            of a pair that is missing.
    """
    layout = LORA_LAYOUTS[lora_kind(tensors)]
    found = layout.to_ours(tensors)
    for name in found:
        stem, end = split_lora_key(name)
        other = {'lora_A.weight': 'lora_B.weight', 'lora_B.weight': 'lora_A.weight'}.get(end)
        for needed in [other] if other else ['lora_A.weight', 'lora_B.weight']:
            if f'{stem}.{needed}' not in found:
                raise WeightsError(f'{layout.name}: {name} has no {stem}.{needed} beside it')
    return found


def split_lora_key(name: str) -> tuple[str, str]:
    """``unet.PATH.lora_A.weight`` as (``unet.PATH``, ``lora_A.weight``)."""
    for end in ('lora_A.weight', 'lora_B.weight', 'lora_mid.weight', 'alpha'):
        if name.endswith('.' + end):
            return name[: -len(end) - 1], end
    raise AssertionError(f'{name} is no name of a LoRA')


def lora_base(ours: Mapping[str, Tensor]) -> str | None:
    """The base model, 'sd15', 'sd2' or 'sdxl', from a LoRA under our names; None where unclear."""
    if any(name.startswith('text_encoder_2.') for name in ours):
        return 'sdxl'
    widths = {768: 'sd15', 1024: 'sd2', 2048: 'sdxl'}
    for name, value in ours.items():
        spatial = name.startswith('unet.') and '.motion_modules.' not in name
        if spatial and name.endswith(('attn2.to_k.lora_A.weight', 'attn2.to_v.lora_A.weight')):
            return widths.get(value.shape[1])
    return _base_of_places(ours)


def _base_of_places(ours: Mapping[str, Tensor]) -> str | None:
    """Without the prompt's width: motion modules tell by the place of their widest levels."""
    for name, value in ours.items():
        if re.match(r'unet\.(?:down_blocks\.3|up_blocks\.3|mid_block)\.motion_modules', name):
            return 'sd15'
        if name.startswith('unet.up_blocks.2.motion_modules.') and name.endswith('lora_A.weight'):
            return {640: 'sd15', 320: 'sdxl'}.get(value.shape[1])
    return None


def _is_xl(tensors: Mapping[str, Tensor]) -> bool:
    down = (v for k, v in tensors.items() if re.search(r'attn2_to_[kv]\.lora_down\.weight', k))
    return any(value.shape[1] == 2048 for value in down)
