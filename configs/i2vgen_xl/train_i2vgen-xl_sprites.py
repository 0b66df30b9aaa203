# A small I2VGen-XL for the sprite world. Its denoiser begins with nothing, as narrow as that of the
# small Stable Video Diffusion. VAE, text encoder and image encoder are frozen, as they were for the
# published model.
_base_ = ['i2vgen-xl_sprites.py', '../_base_/train.py']

over_time = dict(type='TemporalTransformer', head_channels=16)
model = dict(
    unet=dict(
        _delete_=True,
        type='VideoUNet',
        sample_size=16,
        block_out_channels=(40, 64),
        down_block_types=('DownBlock3D', 'CrossAttnDownBlock3D'),
        up_block_types=('CrossAttnUpBlock3D', 'UpBlock3D'),
        layers_per_block=1,
        cross_attention_dim=128,
        # Heads of 16 channels; the finest level has no attention.
        attention_head_dim=(1, 4),
        use_linear_projection=True,
        norm_num_groups=8,
        transformer_in=dict(type='TemporalTransformer', head_channels=16, num_attention_heads=4),
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
    train_clip_skip=0,
)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    # At each rate a sprite goes as fast as its caption says, so in one clip the further the lower
    # the rate is.
    dataset=dict(
        type='CachedLatents',
        dataset=dict(type='SpriteWorld', length=3000, num_frames=16, fps=[6, 8, 12, 16]),
        vae={{_base_.model.vae}},
        cache_dir='work_dirs/sprites/cache',
        num_clips=3000,
        first_frame=True,
    ),
    sampler=dict(type='ResumableSampler'),
    collate_fn=dict(type='default_collate'),
)
train_cfg = dict(max_iters=6000)
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(no_decay_1d=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=200, T_max=5800, eta_min=2e-5),
]
custom_hooks = [
    dict(type='NonFiniteGuard'),
    dict(type='EMAHook', decay=0.998),
    dict(type='SampleHook', interval=1000, arguments={{_base_.infer}}),
    dict(type='ExportHook', dtype='float16'),
]
