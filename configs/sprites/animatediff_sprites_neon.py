# The same motion modules on the personalised model, whose style they never saw.
_base_ = 'animatediff_sprites.py'

model = dict(unet=dict(subfolder='unet_neon'))
test_evaluator = dict(style='neon')
