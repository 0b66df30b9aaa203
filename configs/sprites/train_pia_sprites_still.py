# The condition channels learn to show a given picture, on single frames that are their own
# condition. A step sees 32 pictures instead of the 2 of two clips, and nothing but copying lowers
# its loss; from clips alone the other frames were denoised as if there were no picture.
_base_ = 'train_pia_sprites.py'

model = dict(
    motion_module=dict(subfolder='motion_adapter'),
    condition_loss_weight=1.0,
    timestep_range=(0, 1000),
)
train_dataloader = dict(batch_size=32, dataset=dict(num_frames=1))
train_cfg = dict(max_iters=1500)
# The condition's channels begin at zero, so they learn faster than the modules.
optim_wrapper = dict(
    optimizer=dict(lr=1e-3), paramwise_cfg=dict(lr_mult={r'^unet[.]conv_in': 10.0})
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, T_max=1400, eta_min=2e-4),
]
