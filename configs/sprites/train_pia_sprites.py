# The condition channels and the motion modules learn to animate a given picture.
_base_ = ['pia_sprites.py', '../_base_/train.py']

# What 98 % of the scores in 1500 clips stay below, by the distance from the condition frame. Scaled
# by the very largest, a few sprites unlike their ground, a motion scale asks of all the others for
# more than they have room for. Measured by:
# python tools/affinity_stats.py configs/sprites/train_pia_sprites.py --clips 1500 --percentile 98
affinity_maximum = [
    0.0,
    10.825,
    16.099,
    20.390,
    23.655,
    25.906,
    27.494,
    28.227,
    27.930,
    27.444,
    27.474,
    28.173,
    29.457,
    30.394,
    31.135,
    31.738,
]
model = dict(
    motion_module=dict(subfolder='pia'),
    condition_module=dict(
        condition_dropout=0.1,
        statistics=dict(minimum=[0.0] * 16, maximum=affinity_maximum),
    ),
    condition_loss_weight=4.0,
    timestep_range=(400, 1000),
    trainable=['motion_modules', r'^unet\.conv_in'],
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(
        type='CachedLatents',
        dataset=dict(
            type='SpriteWorld',
            length=4000,
            num_frames=16,
            paths='loose',
            # Slow ones have the least room before the edge of the frame.
            paces=['still', 'slow', 'slow', 'slow', 'steady', 'steady', 'fast', 'fast'],
        ),
        vae={{_base_.model.vae}},
        cache_dir='work_dirs/sprites/cache',
        num_clips=4000,
        affinity=True,
    ),
    sampler=dict(type='ResumableSampler'),
    collate_fn=dict(type='default_collate'),
)
train_cfg = dict(max_iters=5500)
# At higher rates, and with a rate of its own for the condition's channels, two clips a step undo
# what the stage before has learnt.
optim_wrapper = dict(optimizer=dict(lr=5e-4), paramwise_cfg=dict(no_decay_1d=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, T_max=5450, eta_min=2e-5),
]
custom_hooks = [
    dict(type='NonFiniteGuard'),
    dict(type='EMAHook', decay=0.998),
    dict(type='SampleHook', interval=500, arguments={{_base_.infer}}),
    dict(type='ExportHook', dtype='float16'),
]
