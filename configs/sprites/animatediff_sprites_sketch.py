# The same motion modules on the personalised model, whose style they never saw.
_base_ = 'animatediff_sprites.py'

model = dict(
    adapters=[
        dict(
            type='LoRA',
            from_pretrained='package://sprites',
            subfolder='lora_sketch',
            # What moves where is decided in the first steps, by what the motion modules know; how
            # it is drawn in the later ones.
            scale={'steps': {0.0: 0.2, 0.5: 1.0}},
        )
    ]
)
test_evaluator = dict(style='sketch')
