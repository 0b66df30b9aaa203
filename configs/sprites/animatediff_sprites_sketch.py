# The same motion modules on the personalised model, whose style they never saw.
_base_ = 'animatediff_sprites.py'

model = dict(
    adapters=[dict(type='LoRA', from_pretrained='package://sprites', subfolder='lora_sketch')]
)
test_evaluator = dict(style='sketch')
