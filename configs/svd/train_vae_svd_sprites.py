# The small VAE of the sprite world with a decoder that sees time. It begins as the shipped VAE, in
# which every frame is decoded by itself; its encoder is frozen, so that latents stay what they are.
_base_ = '../_base_/train.py'

model = dict(
    type='Autoencoder',
    vae=dict(
        type='AutoencoderKLTemporalDecoder',
        image_weights=dict(from_pretrained='package://sprites', subfolder='vae'),
    ),
    trainable=['^vae.decoder'],
    kl_weight=0.0,
    l1_weight=0.1,
    latent_noise=0.25,
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(
        type='SpriteWorld',
        length=100000,
        num_frames=8,
        paths='loose',
        style=['flat', 'flat', 'sketch', 'neon'],
        captions=False,
    ),
    sampler=dict(type='ResumableSampler'),
    collate_fn=dict(type='default_collate'),
)
train_cfg = dict(max_iters=1500)
optim_wrapper = dict(optimizer=dict(lr=5e-4, weight_decay=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, T_max=1400, eta_min=1e-5),
]
custom_hooks = [
    dict(type='NonFiniteGuard'),
    dict(type='EMAHook', decay=0.995),
    dict(type='SampleHook', interval=500),
    dict(type='ExportHook', dtype='float16'),
]
