# An I2VGen-XL with random weights, small enough to run in a second; its pictures mean nothing.
_base_ = '../apis/tiny_pia.py'

model = dict(
    _delete_=True,
    type='I2VGenXL',
    vae={{_base_.model.vae}},
    text_encoder=dict(
        type='CLIPTextModel',
        vocab_size=1000,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
    ),
    tokenizer=dict(
        type='CLIPTokenizer', vocab=['a', 'red', 'fish', 'blue', 'car'], model_max_length=12
    ),
    image_encoder=dict(
        type='CLIPVisionModelWithProjection',
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=16,
    ),
    feature_extractor=dict(type='CLIPImageProcessor', image_size=16),
    scheduler=dict(
        type='DDIMScheduler',
        beta_schedule='squaredcos_cap_v2',
        prediction_type='v_prediction',
        rescale_betas_zero_snr=True,
        clip_sample=False,
        steps_offset=1,
    ),
    unet=dict(
        type='VideoUNet',
        block_out_channels=(8, 16),
        down_block_types=('CrossAttnDownBlock3D', 'DownBlock3D'),
        up_block_types=('UpBlock3D', 'CrossAttnUpBlock3D'),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        norm_num_groups=4,
        transformer_in=dict(type='TemporalTransformer', head_channels=4, num_attention_heads=8),
        temporal_slots=dict(
            temp_convs=dict(type='TemporalConv'),
            temp_attentions=dict(type='TemporalTransformer', head_channels=4),
        ),
        embeddings=dict(
            fps_embedding=dict(type='FpsEmbedding'),
            image_latents_context_embedding=dict(type='ImageLatentTokens'),
            context_embedding=dict(type='ImageTokens', tokens=4),
            image_latents_proj_in=dict(type='ImageLatentChannels'),
            image_latents_temporal_encoder=dict(type='ImageLatentsOverTime'),
        ),
    ),
)
infer = dict(
    _delete_=True,
    prompt='a red fish',
    image='../apis/tiny.png',
    height=16,
    width=24,
    video_length=3,
    num_inference_steps=2,
    guidance_scale=2.0,
    seed=0,
    fps=8,
)
