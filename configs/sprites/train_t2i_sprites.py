# Text to image everywhere in the frame, from the weights of train_t2i_sprites_near.py.
_base_ = ['t2i_sprites.py', '../_base_/train.py']

model = dict(trainable=['^unet', '^text_encoder'])
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    dataset=dict(
        type='CachedLatents',
        dataset=dict(type='SpriteWorld', length=40000, num_frames=1),
        vae={{_base_.model.vae}},
        cache_dir='work_dirs/sprites/cache',
        num_clips=40000,
    ),
    sampler=dict(type='ResumableSampler'),
    collate_fn=dict(type='default_collate'),
)
train_cfg = dict(max_iters=7000)
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(no_decay_1d=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=300),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=300, T_max=6700, eta_min=2e-5),
]
custom_hooks = [
    dict(type='NonFiniteGuard'),
    dict(type='EMAHook', decay=0.999),
    dict(type='SampleHook', interval=1000, arguments={{_base_.infer}}),
    dict(type='ExportHook', dtype='float16'),
]
