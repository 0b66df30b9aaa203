# The parts of Stable Video Diffusion, from the hub or from a folder of the same layout.
base = 'catalog://svd'
model = dict(
    type='StableVideoDiffusion',
    vae=dict(type='AutoencoderKLTemporalDecoder', from_pretrained=base, subfolder='vae'),
    image_encoder=dict(
        type='CLIPVisionModelWithProjection', from_pretrained=base, subfolder='image_encoder'
    ),
    # Noise levels of Karras et al. 2022 between those that the model was trained on.
    scheduler=dict(
        type='EulerDiscreteScheduler',
        prediction_type='v_prediction',
        timestep_type='continuous',
        timestep_spacing='leading',
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    ),
    unet=dict(type='VideoUNet', from_pretrained=base, subfolder='unet'),
)
