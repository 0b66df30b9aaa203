# AnimateDiff v2 (mm_sd_v15_v2) on Stable Diffusion 1.5: also a motion module in the middle.
_base_ = '../_base_/sd15.py'

model = dict(
    type='AnimateDiff',
    unet=dict(resnet_norm_scope='frame'),
    motion_module=dict(
        type='MotionModule',
        from_pretrained='catalog://animatediff-v2',
        norm_scope='frame',
    ),
)
infer = dict(
    prompt=[
        'a sailing boat on a calm sea at sunset, golden light, detailed',
        'a waterfall in a green forest, mist, morning light, detailed',
        'a woman with a red scarf walking through snowfall, portrait, detailed',
        'a campfire at night under a starry sky, embers rising, detailed',
    ],
    negative_prompt='blurry, low quality, distorted, watermark, text',
    video_length=16,
    height=512,
    width=512,
    num_inference_steps=25,
    guidance_scale=7.5,
    seed=0,
    fps=8,
)
