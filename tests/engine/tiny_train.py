# A training of a kilobyte's size on the sprite world: AnimateDiff on a base with random weights.
_base_ = '../../configs/_base_/train.py'

model = dict(
    type='AnimateDiff',
    vae=dict(
        type='AutoencoderKL',
        down_block_types=('DownEncoderBlock2D',) * 2,
        up_block_types=('UpDecoderBlock2D',) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    ),
    text_encoder=dict(
        type='CLIPTextModel',
        vocab_size=700,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=24,
    ),
    tokenizer=dict(type='CLIPTokenizer', vocab=['a', 'red', 'fish'], model_max_length=24),
    scheduler=dict(
        type='DDIMScheduler', beta_start=0.00085, beta_end=0.012, beta_schedule='linear'
    ),
    unet=dict(
        type='VideoUNet',
        sample_size=16,
        block_out_channels=(8, 8),
        down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'),
        up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    ),
    motion_module=dict(type='MotionModule', num_attention_heads=2, max_positions=4),
    trainable=['motion_modules'],
)
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
