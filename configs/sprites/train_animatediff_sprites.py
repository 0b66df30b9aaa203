# Stage 4: motion modules learn on the frozen text-to-image model.
_base_ = ['animatediff_sprites.py', '../_base_/train.py']

model = dict(
    motion_module=dict(
        _delete_=True,
        type='MotionModule',
        num_attention_heads=4,
        max_positions=32,
        norm_scope='frame',
    ),
    unet=dict(motion_mid_block=True),
    trainable=['motion_modules'],
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(
        type='CachedLatents',
        dataset=dict(type='SpriteWorld', length=2500, num_frames=16),
        vae={{_base_.model.vae}},
        cache_dir='work_dirs/sprites/cache',
        num_clips=2500,
    ),
    sampler=dict(type='ResumableSampler'),
    collate_fn=dict(type='default_collate'),
)
train_cfg = dict(max_iters=2000)
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(no_decay_1d=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=200, T_max=1800, eta_min=2e-5),
]
custom_hooks = [
    dict(type='NonFiniteGuard'),
    dict(type='EMAHook', decay=0.998),
    dict(type='SampleHook', interval=500, arguments={{_base_.infer}}),
    dict(type='ExportHook', dtype='float16'),
]
