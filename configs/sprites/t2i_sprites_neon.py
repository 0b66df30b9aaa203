# The personalised model: the same captions drawn in neon.
_base_ = 't2i_sprites.py'

model = dict(unet=dict(subfolder='unet_neon'))
