# A small Stable Video Diffusion for the sprite world goes on with whole clips, from the weights of
# train_svd_sprites_frames.py.
_base_ = ['../_base_/svd_sprites.py', '../_base_/train.py']

model = dict(
    trainable=['^unet'],
    # How far and where to is decided at levels of 5 to 30, looks are given: as much weight there as
    # SVD-XT's training had.
    sigma_mean=1.0,
    sigma_std=1.6,
    augmentation_mean=-3.0,
    augmentation_std=0.5,
    condition_dropout=0.1,
)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    # The motion is drawn freely: only motion bucket and frames a second tell how far it goes, and
    # only the sprite's heading tells where to.
    dataset=dict(
        type='CachedLatents',
        dataset=dict(
            type='SpriteWorld',
            length=3000,
            num_frames=14,
            paths='free',
            fps=[6, 8, 12, 16],
            captions=False,
        ),
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
    dict(
        type='SampleHook',
        interval=1000,
        arguments=dict(
            image=[
                'package://sprites/examples/fish.png',
                'package://sprites/examples/car.png',
                'package://sprites/examples/rocket.png',
                'package://sprites/examples/beetle.png',
            ],
            height=64,
            width=64,
            video_length=14,
            num_inference_steps=20,
            max_guidance_scale=2.0,
            fps=8,
            motion_bucket_id=160,
            decode_chunk_size=14,
            seed=0,
        ),
    ),
    dict(type='ExportHook', dtype='float16'),
]
