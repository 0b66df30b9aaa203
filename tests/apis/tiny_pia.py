# A PIA with random weights, small enough to run in a second; its pictures mean nothing.
model = dict(
    type='PIA',
    vae=dict(
        type='AutoencoderKL',
        down_block_types=('DownEncoderBlock2D',) * 2,
        up_block_types=('UpDecoderBlock2D',) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    ),
    text_encoder=dict(
        type='CLIPTextModel',
        vocab_size=1000,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
    ),
    tokenizer=dict(type='CLIPTokenizer', vocab=['a', 'red', 'fish'], model_max_length=12),
    scheduler=dict(
        type='DDIMScheduler',
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule='linear',
        clip_sample=False,
        steps_offset=1,
    ),
    unet=dict(
        type='VideoUNet',
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
        up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    ),
    motion_module=dict(
        type='MotionModule', num_attention_heads=2, norm_num_groups=4, max_positions=8
    ),
    condition_module=dict(type='PIACondition'),
)
infer = dict(
    prompt='a red fish',
    image='tiny.png',
    video_length=4,
    num_inference_steps=3,
    guidance_scale=2.0,
    seed=0,
)
