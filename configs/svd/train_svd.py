# It goes on from the published weights; the whole denoiser is trained.
_base_ = ['svd.py', '../_base_/clips.py', '../_base_/train.py']

model = dict(
    unet=dict(gradient_checkpointing=True),
    trainable=['^unet'],
    # Of the logarithm of the noise level; SVD-XT's were mean 1.0.
    sigma_mean=0.7,
    sigma_std=1.6,
    augmentation_mean=-3.0,
    augmentation_std=0.5,
    condition_dropout=0.1,
    # Of clips without a column motion_bucket_id.
    train_motion_bucket_id=127,
)
train_dataloader = dict(
    batch_size=1,
    dataset=dict(num_frames=14, fps=7, size=(320, 512)),
)
train_cfg = dict(max_iters=10000)
optim_wrapper = dict(accumulative_counts=8, optimizer=dict(lr=1e-5))
custom_hooks = [
    dict(type='NonFiniteGuard'),
    dict(type='EMAHook', decay=0.9999),
    dict(
        type='SampleHook',
        interval=1000,
        arguments=dict(
            image='package://sprites/examples/fish.png',
            height=320,
            width=512,
            video_length=14,
            seed=0,
        ),
    ),
    dict(type='ExportHook', dtype='float16'),
]
