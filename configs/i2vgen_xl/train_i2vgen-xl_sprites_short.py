# A small I2VGen-XL for the sprite world begins with windows of four frames, from eight clips a step
# instead of two: what is to be learnt first, to stay where the picture is, needs no long clip. Its
# image layers are those of the text-to-image model, what sees time begins as nothing.
_base_ = 'train_i2vgen-xl_sprites.py'

over_time = dict(type='TemporalTransformer', head_channels=16, norm_num_groups=16)
model = dict(
    unet=dict(
        _delete_=True,
        type='VideoUNet',
        image_weights=dict(from_pretrained='package://sprites', subfolder='unet'),
        sample_size=16,
        block_out_channels=(48, 112),
        down_block_types=('DownBlock3D', 'CrossAttnDownBlock3D'),
        up_block_types=('CrossAttnUpBlock3D', 'UpBlock3D'),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        use_linear_projection=True,
        norm_num_groups=16,
        transformer_in=dict(
            type='TemporalTransformer',
            head_channels=16,
            num_attention_heads=3,
            norm_num_groups=16,
        ),
        temporal_slots=dict(temp_convs=dict(type='TemporalConv'), temp_attentions=over_time),
        embeddings=dict(
            fps_embedding=dict(type='FpsEmbedding'),
            image_latents_context_embedding=dict(type='ImageLatentTokens'),
            context_embedding=dict(type='ImageTokens', tokens=4),
            image_latents_proj_in=dict(type='ImageLatentChannels'),
            image_latents_temporal_encoder=dict(type='ImageLatentsOverTime'),
        ),
    ),
)
# The picture is the first frame of a window, so the clip's own is of no use.
train_dataloader = dict(batch_size=8, dataset=dict(num_frames=4, first_frame=False))
train_cfg = dict(max_iters=1500)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, T_max=1400, eta_min=3e-4),
]
