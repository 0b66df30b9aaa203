# Motion modules go on with paths anywhere, from the weights of
# train_animatediff_sprites_centred.py.
_base_ = ['animatediff_sprites.py', '../_base_/train.py']

model = dict(trainable=['motion_modules'], timestep_range=(200, 1000))
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
train_cfg = dict(max_iters=2600)
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(no_decay_1d=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=200, T_max=2400, eta_min=2e-5),
]
custom_hooks = [
    dict(type='NonFiniteGuard'),
    dict(type='EMAHook', decay=0.998),
    dict(type='SampleHook', interval=500, arguments={{_base_.infer}}),
    dict(type='ExportHook', dtype='float16'),
]
