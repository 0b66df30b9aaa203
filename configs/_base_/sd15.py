# The parts of Stable Diffusion 1.5, from the hub or from a folder of the same layout.
# A config that inherits from this puts a personalised model in its place part by part, such as
# model = dict(unet=dict(from_pretrained='FOLDER')); `base` is read here only.
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
