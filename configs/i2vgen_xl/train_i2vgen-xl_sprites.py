# A small I2VGen-XL for the sprite world goes on with whole clips, from the weights of
# train_i2vgen-xl_sprites_short.py. VAE, text encoder and image encoder are frozen, as they were for
# the published model.
_base_ = ['i2vgen-xl_sprites.py', '../_base_/train.py']

model = dict(
    trainable=['^unet'],
    caption_dropout=0.0,
    condition_dropout=0.1,
    clip_fps=8,
    train_clip_skip=0,
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    # At each rate a sprite goes as fast as its caption says, so in one clip the further the lower
    # the rate is.
    dataset=dict(
        type='CachedLatents',
        dataset=dict(type='SpriteWorld', length=3000, num_frames=16, fps=[6, 8, 12, 16]),
        vae={{_base_.model.vae}},
        cache_dir='work_dirs/sprites/cache',
        num_clips=3000,
        first_frame=True,
    ),
    sampler=dict(type='ResumableSampler'),
    collate_fn=dict(type='default_collate'),
)
train_cfg = dict(max_iters=6000)
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(no_decay_1d=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=200, T_max=5800, eta_min=2e-5),
]
custom_hooks = [
    dict(type='NonFiniteGuard'),
    dict(type='EMAHook', decay=0.998),
    dict(type='SampleHook', interval=1000, arguments={{_base_.infer}}),
    dict(type='ExportHook', dtype='float16'),
]
