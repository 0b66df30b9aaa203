# Stable Video Diffusion: a picture becomes 14 frames. Give yours with --image.
_base_ = '../_base_/svd.py'

infer = dict(
    image='package://examples/boat.png',
    video_length=14,
    height=576,
    width=1024,
    num_inference_steps=25,
    min_guidance_scale=1.0,
    max_guidance_scale=2.5,
    fps=7,
    motion_bucket_id=127,
    noise_aug_strength=0.02,
    decode_chunk_size=4,
    seed=0,
)
