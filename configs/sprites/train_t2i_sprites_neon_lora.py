# The other drawing style once more, as a LoRA beside the frozen model in place of new weights.
# It is used with: --lora work_dirs/train_t2i_sprites_neon_lora/export/lora
_base_ = 'train_t2i_sprites_neon.py'

model = dict(
    trainable=[],
    lora=dict(rank=8, alpha=8, targets=[r'attn\d\.to_(q|k|v|out\.0)$', r'conv[12]$']),
)
