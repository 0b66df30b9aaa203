# The sprite family begins with an image VAE with 4 latent channels at a quarter of the size.
_base_ = '../_base_/train.py'

model = dict(
    type='Autoencoder',
    vae=dict(
        type='AutoencoderKL',
        down_block_types=('DownEncoderBlock2D',) * 3,
        up_block_types=('UpDecoderBlock2D',) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    ),
    kl_weight=1e-6,
    l1_weight=0.1,
)
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    dataset=dict(
        type='SpriteWorld', length=200000, num_frames=1, style=['flat', 'flat', 'sketch', 'neon']
    ),
    sampler=dict(type='ResumableSampler'),
    collate_fn=dict(type='default_collate'),
)
train_cfg = dict(max_iters=3600)
optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=200, T_max=3400, eta_min=2e-5),
]
custom_hooks = [
    dict(type='NonFiniteGuard'),
    dict(type='EMAHook', decay=0.995),
    dict(type='SampleHook', interval=600),
    dict(type='ExportHook', dtype='float16'),
]
