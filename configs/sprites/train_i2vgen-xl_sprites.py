# An I2VGen-XL of the sprite world, the whole denoiser from random weights. There is no image
# encoder for this world: the picture comes in through its latent, beside the noise and as tokens.
_base_ = ['../_base_/sprites.py', '../_base_/train.py']

over_time = dict(type='TemporalTransformer', head_channels=16)
model = dict(
    type='I2VGenXL',
    unet=dict(
        _delete_=True,
        type='VideoUNet',
        sample_size=16,
        block_out_channels=(48, 112),
        down_block_types=('DownBlock3D', 'CrossAttnDownBlock3D'),
        up_block_types=('CrossAttnUpBlock3D', 'UpBlock3D'),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=(3, 7),
        use_linear_projection=True,
        norm_num_groups=16,
        transformer_in=dict(type='TemporalTransformer', head_channels=16, num_attention_heads=8),
        temporal_slots=dict(temp_convs=dict(type='TemporalConv'), temp_attentions=over_time),
        embeddings=dict(
            fps_embedding=dict(type='FpsEmbedding'),
            image_latents_context_embedding=dict(type='ImageLatentTokens'),
            context_embedding=dict(type='ImageTokens', tokens=4),
            image_latents_proj_in=dict(type='ImageLatentChannels'),
            image_latents_temporal_encoder=dict(type='ImageLatentsOverTime'),
        ),
    ),
    trainable=['^unet'],
    caption_dropout=0.0,
    condition_dropout=0.1,
    clip_fps=8,
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(
        type='CachedLatents',
        dataset=dict(type='SpriteWorld', length=2000, num_frames=16, paths='varied'),
        vae={{_base_.model.vae}},
        cache_dir='work_dirs/sprites/cache',
        num_clips=2000,
    ),
    sampler=dict(type='ResumableSampler'),
    collate_fn=dict(type='default_collate'),
)
train_cfg = dict(max_iters=20000)
optim_wrapper = dict(optimizer=dict(lr=6e-4), paramwise_cfg=dict(no_decay_1d=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=300),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=300, T_max=19700, eta_min=2e-5),
]
custom_hooks = [
    dict(type='NonFiniteGuard'),
    dict(type='EMAHook', decay=0.999),
    dict(
        type='SampleHook',
        interval=1000,
        arguments=dict(
            prompt='a red fish moving left on the sea',
            image='package://sprites/examples/fish.png',
            height=64,
            width=64,
            target_fps=8,
            num_inference_steps=25,
            guidance_scale=3.0,
            seed=0,
        ),
    ),
    dict(type='ExportHook', dtype='float16'),
]
