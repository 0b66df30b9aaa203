# Motion modules begin on the frozen text-to-image model, with clips whose paths have their
# middle in the middle of the frame: there a heading says where each frame has its sprite.
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
    timestep_range=(200, 1000),
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(
        type='CachedLatents',
        dataset=dict(type='SpriteWorld', length=1200, num_frames=16, paths='centred'),
        vae={{_base_.model.vae}},
        cache_dir='work_dirs/sprites/cache',
        num_clips=1200,
    ),
    sampler=dict(type='ResumableSampler'),
    collate_fn=dict(type='default_collate'),
)
train_cfg = dict(max_iters=1500)
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(no_decay_1d=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=200, T_max=1300, eta_min=5e-4),
]
custom_hooks = [
    dict(type='NonFiniteGuard'),
    dict(type='EMAHook', decay=0.998),
    dict(type='SampleHook', interval=500, arguments={{_base_.infer}}),
    dict(type='ExportHook', dtype='float16'),
]
