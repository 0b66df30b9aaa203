# The parts of Stable Diffusion 1.5, from the hub or from a folder of the same layout.
# A personalised model in that layout takes its place when `base` names it.
base = 'catalog://sd15'
model = dict(
    vae=dict(type='AutoencoderKL', from_pretrained=base, subfolder='vae'),
    text_encoder=dict(type='CLIPTextModel', from_pretrained=base, subfolder='text_encoder'),
    tokenizer=dict(type='CLIPTokenizer', from_pretrained=base, subfolder='tokenizer'),
    # Motion modules were trained on linear betas; the image model's own are scaled_linear.
    scheduler=dict(
        type='DDIMScheduler',
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule='linear',
        clip_sample=False,
        steps_offset=1,
    ),
    unet=dict(type='VideoUNet', from_pretrained=base, subfolder='unet'),
)
