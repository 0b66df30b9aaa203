# It goes on from the published weights; the whole denoiser is trained.
_base_ = ['i2vgen-xl.py', '../_base_/clips.py', '../_base_/train.py']

model = dict(
    unet=dict(gradient_checkpointing=True),
    trainable=['^unet'],
    # As published: no caption is dropped. Guidance needs some samples without text and embedding.
    caption_dropout=0.0,
    condition_dropout=0.1,
    noise_offset=0.1,
)
train_dataloader = dict(
    batch_size=2,
    dataset=dict(num_frames=16, fps=8, size=(256, 448)),
)
train_cfg = dict(max_iters=20000)
optim_wrapper = dict(optimizer=dict(lr=3e-5, weight_decay=0.0))
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=False, begin=0, T_max=20000),
]
custom_hooks = [
    dict(type='NonFiniteGuard'),
    dict(type='EMAHook', decay=0.9999),
    dict(
        type='SampleHook',
        interval=2000,
        arguments=dict(
            prompt='a red fish moving left on the sea',
            image='package://sprites/examples/fish.png',
            height=256,
            width=448,
            target_fps=8,
            num_inference_steps=25,
            seed=0,
        ),
    ),
    dict(type='ExportHook', dtype='float16'),
]
