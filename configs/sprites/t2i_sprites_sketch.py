# The personalised model: the same captions drawn in pencil, by a LoRA beside the plain model.
_base_ = 't2i_sprites.py'

model = dict(
    adapters=[dict(type='LoRA', from_pretrained='package://sprites', subfolder='lora_sketch')]
)
