# Stage 5: the condition channels and the motion modules learn to animate a given picture.
_base_ = ['pia_sprites.py', '../_base_/train.py']

model = dict(
    motion_module=dict(subfolder='motion_adapter'),
    condition_module=dict(
        condition_dropout=0.1, statistics='configs/sprites/affinity_sprites.json'
    ),
    trainable=['motion_modules', r'^unet\.conv_in'],
)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(
        type='CachedLatents',
        dataset=dict(type='SpriteWorld', length=4000, num_frames=16, paths='varied'),
        vae={{_base_.model.vae}},
        cache_dir='work_dirs/sprites/cache',
        num_clips=4000,
        affinity=True,
    ),
    sampler=dict(type='ResumableSampler'),
    collate_fn=dict(type='default_collate'),
)
train_cfg = dict(max_iters=4000)
optim_wrapper = dict(optimizer=dict(lr=6e-4), paramwise_cfg=dict(no_decay_1d=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=200, T_max=3800, eta_min=2e-5),
]
custom_hooks = [
    dict(type='NonFiniteGuard'),
    dict(type='EMAHook', decay=0.998),
    dict(type='SampleHook', interval=1000, arguments={{_base_.infer}}),
    dict(type='ExportHook', dtype='float16'),
]
