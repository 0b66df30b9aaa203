# The denoiser's text layers and the text encoder learn along with the motion modules,
# which see words through them alone. A single picture tells little of "still" or "slowly", so
# sprites that should stand drifted where they face; hence the paces, too.
_base_ = 'train_animatediff_sprites.py'

model = dict(
    trainable=['motion_modules', r'^unet\..*attn2\.', '^text_encoder'],
    timestep_range=(300, 1000),
)
train_dataloader = dict(
    dataset=dict(
        dataset=dict(paces=('still', 'still', 'slow', 'slow', 'steady', 'fast'), seed=1),
    )
)
train_cfg = dict(max_iters=5000)
# The text encoder knows its words already and goes on gently.
optim_wrapper = dict(optimizer=dict(lr=6e-4), paramwise_cfg=dict(lr_mult={'^text_encoder': 0.4}))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, T_max=4900, eta_min=1e-5),
]
