"""AnimateDiff's motion modules, and the convolution of PIA's condition beside them.

Source of the names: guoyww/AnimateDiff animatediff/models/motion_module.py (original layout),
diffusers MotionAdapter (ours), open-mmlab/PIA (conv_in of the condition).
"""

from __future__ import annotations

from mmvideo.checkpoints.layouts.table import Layout, Row

_T = '{module}.temporal_transformer'
_B = '.transformer_blocks.{layer}'


def motion_rows(attentions: int = 2) -> tuple[Row, ...]:
    """Rows of a motion module whose blocks have so many temporal attentions."""
    copies = tuple(str(index) for index in range(attentions))
    each = tuple(
        row
        for index in range(attentions)
        for row in (
            Row(
                f'{_T}{_B}.attention_blocks.{index}.{{linear}}.{{kind}}',
                f'{{module}}{_B}.attn{index + 1}.{{linear}}.{{kind}}',
            ),
            Row(f'{_T}{_B}.norms.{index}.{{kind}}', f'{{module}}{_B}.norm{index + 1}.{{kind}}'),
        )
    )
    return (
        Row(_T + '.norm.{kind}', '{module}.norm.{kind}'),
        Row(_T + '.proj_in.{kind}', '{module}.proj_in.{kind}'),
        Row(_T + '.proj_out.{kind}', '{module}.proj_out.{kind}'),
        *each,
        Row(
            _T + _B + '.attention_blocks.{copy}.pos_encoder.pe',
            '{module}' + _B + '.pos_embed.pe',
            copies=copies,
        ),
        Row(_T + _B + '.ff_norm.{kind}', '{module}' + _B + '.norm3.{kind}'),
        Row(_T + _B + '.ff.{inner}.{kind}', '{module}' + _B + '.ff.{inner}.{kind}'),
    )


ANIMATEDIFF = Layout(
    'an AnimateDiff motion module',
    # pia.ckpt has the condition's convolution beside the modules.
    (*motion_rows(), Row('conv_in.{kind}', 'conv_in.{kind}')),
)
