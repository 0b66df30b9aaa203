# A training of a kilobyte's size on the sprite world: AnimateDiff on a base with random weights.
_base_ = ['../apis/tiny_pia.py', '../../configs/_base_/train.py']

model = dict(
    _delete_=True,
    type='AnimateDiff',
    vae={{_base_.model.vae}},
    text_encoder={{_base_.model.text_encoder}},
    tokenizer={{_base_.model.tokenizer}},
    scheduler={{_base_.model.scheduler}},
    unet={{_base_.model.unet}},
    motion_module={{_base_.model.motion_module}},
    trainable=['motion_modules'],
)
infer = dict(_delete_=True)
train_dataloader = dict(
    batch_size=1,
    num_workers=0,
    dataset=dict(type='SpriteWorld', length=16, num_frames=3, size=32, captions=False),
    sampler=dict(type='ResumableSampler'),
    collate_fn=dict(type='default_collate'),
)
train_cfg = dict(max_iters=3)
# A large epsilon: where a gradient is rounding noise, plain Adam takes a whole step of its sign.
optim_wrapper = dict(dtype='float32', optimizer=dict(lr=1e-2, eps=1e-3))
param_scheduler = [dict(type='LinearLR', start_factor=0.5, by_epoch=False, begin=0, end=4)]
custom_hooks = [dict(type='NonFiniteGuard'), dict(type='EMAHook', decay=0.9)]
visualizer = dict(vis_backends=[dict(type='LocalVisBackend')])
