# The motion modules see sprites that turn where their caption changes, beside those that go
# straight: from straight ones alone they learn that a sprite keeps its way whatever its frames are
# told.
_base_ = 'train_animatediff_sprites.py'

model = dict(changing_captions=True, timestep_range=(300, 1000))
train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            _delete_=True,
            type='TurningSprites',
            world=dict(
                type='SpriteWorld',
                length=2500,
                num_frames=16,
                seed=2,
                paces=('still', 'slow', 'slow', 'steady', 'fast'),
            ),
            share=0.4,
        ),
    )
)
train_cfg = dict(max_iters=2000)
optim_wrapper = dict(optimizer=dict(lr=6e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, T_max=1900, eta_min=1e-5),
]
