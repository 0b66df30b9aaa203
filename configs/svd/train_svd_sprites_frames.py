# A small Stable Video Diffusion for the sprite world begins with single frames: a moment of a clip,
# and the clip's first frame as the picture. A step sees 32 clips instead of 4 and has to draw the
# picture's sprite where it is by then, which few clips at a time taught too slowly.
#
# Looks are given by the picture, so a narrower denoiser than the text-to-image model's is enough.
# The picture encoder is trained along with it, because this world has no CLIP to begin with.
_base_ = 'train_svd_sprites.py'

model = dict(
    trainable=['^unet', '^image_encoder'],
    image_encoder=dict(
        _delete_=True,
        type='CLIPVisionModelWithProjection',
        hidden_size=96,
        intermediate_size=192,
        projection_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
    ),
    unet=dict(
        _delete_=True,
        type='VideoUNet',
        sample_size=16,
        in_channels=8,
        block_out_channels=(40, 64),
        down_block_types=('DownBlockSpatioTemporal', 'CrossAttnDownBlockSpatioTemporal'),
        up_block_types=('CrossAttnUpBlockSpatioTemporal', 'UpBlockSpatioTemporal'),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=8,
        use_linear_projection=True,
        temporal_mixing='learned_with_images',
        embeddings=dict(add_embedding=dict(type='TimeIdsEmbedding', channels=64)),
        num_frames=14,
    ),
    # Little enough noise to see where the sprite is.
    sigma_mean=0.0,
    sigma_std=1.4,
)
train_dataloader = dict(batch_size=32, dataset=dict(num_frames=1))
