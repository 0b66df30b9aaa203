# A training of a kilobyte's size on the sprite world: Stable Video Diffusion's temporal layers.
_base_ = ['../apis/tiny_svd.py', '../../configs/_base_/train.py']

model = dict(trainable=[r'^unet\..*(temporal_|time_pos_embed|time_mixer)'])
infer = dict(_delete_=True)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(type='SpriteWorld', length=8, num_frames=3, size=32, captions=False),
    sampler=dict(type='ResumableSampler'),
    collate_fn=dict(type='default_collate'),
)
train_cfg = dict(max_iters=2)
optim_wrapper = dict(dtype='float32')
visualizer = dict(vis_backends=[dict(type='LocalVisBackend')])
