# I2VGen-XL: a picture and a prompt become a clip of 1280x704.
# The picture here is an example; give yours with --image, and a --prompt that describes it.
base = 'catalog://i2vgen-xl'
model = dict(
    type='I2VGenXL',
    vae=dict(type='AutoencoderKL', from_pretrained=base, subfolder='vae'),
    text_encoder=dict(type='CLIPTextModel', from_pretrained=base, subfolder='text_encoder'),
    tokenizer=dict(type='CLIPTokenizer', from_pretrained=base, subfolder='tokenizer'),
    image_encoder=dict(
        type='CLIPVisionModelWithProjection', from_pretrained=base, subfolder='image_encoder'
    ),
    feature_extractor=dict(
        type='CLIPImageProcessor', from_pretrained=base, subfolder='feature_extractor'
    ),
    # Cosine betas whose last timestep is noise alone; the denoiser predicts v.
    scheduler=dict(
        type='DDIMScheduler',
        beta_schedule='squaredcos_cap_v2',
        prediction_type='v_prediction',
        rescale_betas_zero_snr=True,
        # The official sampler ends at the first step's noise level; diffusers has True.
        set_alpha_to_one=False,
        clip_sample=False,
        steps_offset=1,
        timestep_spacing='leading',
    ),
    unet=dict(type='VideoUNet', from_pretrained=base, subfolder='unet'),
)
infer = dict(
    prompt='a red rowing boat on the sea, gentle waves, flat illustration',
    negative_prompt='blurry, low resolution, distorted, motionless, disfigured, ugly faces',
    image='package://examples/boat.png',
    video_length=16,
    target_fps=16,
    height=704,
    width=1280,
    num_inference_steps=50,
    guidance_scale=9.0,
    clip_skip=1,
    seed=0,
    fps=16,
)
