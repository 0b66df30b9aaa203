# SVD-XT 1.1: fine-tuned at one rate and motion bucket, fps=7 (told as 6) and 127.
_base_ = 'svd-xt.py'

base = 'catalog://svd-xt-1-1'
model = dict(
    vae=dict(from_pretrained=base),
    image_encoder=dict(from_pretrained=base),
    unet=dict(from_pretrained=base),
)
