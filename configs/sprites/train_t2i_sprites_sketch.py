# Another drawing style as a LoRA beside the plain model, which keeps what it knows of
# captions.
_base_ = ['t2i_sprites.py', '../_base_/train.py']

model = dict(
    trainable=[],
    lora=dict(rank=16, alpha=16, targets=[r'attn\d\.to_(q|k|v|out\.0)$', r'conv[12]$']),
)
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    dataset=dict(
        type='CachedLatents',
        dataset=dict(type='SpriteWorld', length=3000, num_frames=1, style='sketch'),
        vae={{_base_.model.vae}},
        cache_dir='work_dirs/sprites/cache',
        num_clips=3000,
    ),
    sampler=dict(type='ResumableSampler'),
    collate_fn=dict(type='default_collate'),
)
train_cfg = dict(max_iters=2600)
optim_wrapper = dict(optimizer=dict(lr=2e-3), paramwise_cfg=dict(no_decay_1d=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, T_max=2500, eta_min=2e-5),
]
custom_hooks = [
    dict(type='NonFiniteGuard'),
    dict(type='EMAHook', decay=0.998),
    dict(type='SampleHook', interval=1000, arguments={{_base_.infer}}),
    dict(type='ExportHook', dtype='float16'),
]
