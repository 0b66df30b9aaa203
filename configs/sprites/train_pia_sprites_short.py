# The motion modules meet the picture in windows of four frames, from eight clips a step
# instead of two. What is to be learnt first, to stay where the picture is, needs no long clip.
_base_ = 'train_pia_sprites.py'

train_dataloader = dict(batch_size=8, dataset=dict(num_frames=4))
train_cfg = dict(max_iters=1600)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, T_max=1550, eta_min=1e-4),
]
