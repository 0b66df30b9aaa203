# The parts that every sprite model shares, from the weights inside the package.
weights = 'package://sprites'
model = dict(
    vae=dict(type='AutoencoderKL', from_pretrained=weights, subfolder='vae'),
    text_encoder=dict(type='CLIPTextModel', from_pretrained=weights, subfolder='text_encoder'),
    tokenizer=dict(type='CLIPTokenizer', from_pretrained=weights, subfolder='tokenizer'),
    scheduler=dict(
        type='DDIMScheduler',
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule='scaled_linear',
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type='v_prediction',
    ),
    unet=dict(type='VideoUNet', from_pretrained=weights, subfolder='unet'),
)
