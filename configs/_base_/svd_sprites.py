# The parts of a small Stable Video Diffusion, whose pictures are those of the sprite world.
weights = 'package://sprites'
model = dict(
    type='StableVideoDiffusion',
    vae=dict(type='AutoencoderKLTemporalDecoder', from_pretrained=weights, subfolder='vae_svd'),
    image_encoder=dict(
        type='CLIPVisionModelWithProjection', from_pretrained=weights, subfolder='image_encoder'
    ),
    # Small pictures drown in less noise than large ones: 80 is enough for 16x16 latents.
    scheduler=dict(
        type='EulerDiscreteScheduler',
        prediction_type='v_prediction',
        timestep_type='continuous',
        timestep_spacing='leading',
        use_karras_sigmas=True,
        sigma_min=0.01,
        sigma_max=80.0,
    ),
    unet=dict(type='VideoUNet', from_pretrained=weights, subfolder='unet_svd'),
)
