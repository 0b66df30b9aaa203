# Stage 7: the denoiser's text layers and the text encoder learn along with the motion modules. In
# single pictures nothing tells "standing still" from "moving slowly", so the layers that read the
# caption had no reason to pass these words on, and motion modules see words through them alone.
_base_ = 'train_animatediff_sprites.py'

model = dict(trainable=['motion_modules', r'^unet\..*attn2\.', '^text_encoder'])
train_cfg = dict(max_iters=3000)
# What knows pictures already goes on gently.
optim_wrapper = dict(
    optimizer=dict(lr=8e-4),
    paramwise_cfg=dict(lr_mult={r'attn2\.': 0.4, '^text_encoder': 0.15}),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, T_max=2900, eta_min=2e-5),
]
