# SVD-XT: the same network, trained on for 25 frames.
_base_ = 'svd.py'

base = 'catalog://svd-xt'
model = dict(
    vae=dict(from_pretrained=base),
    image_encoder=dict(from_pretrained=base),
    unet=dict(from_pretrained=base),
)
infer = dict(
    video_length=25, num_inference_steps=30, min_guidance_scale=1.5, max_guidance_scale=3.0
)
