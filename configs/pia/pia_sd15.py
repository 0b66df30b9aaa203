# PIA on Stable Diffusion 1.5: a picture and a prompt become an animation.
# The picture here is an example; give yours with --image, and a --prompt that describes it.
_base_ = '../_base_/sd15.py'

model = dict(
    type='PIA',
    unet=dict(resnet_norm_scope='clip'),
    motion_module=dict(
        type='MotionModule',
        from_pretrained='catalog://pia',
        norm_scope='frame',
    ),
    condition_module=dict(type='PIACondition'),
    # The published weights' own first channels; 'base' where the UNet is a personalised one.
    first_channels='pia',
)
infer = dict(
    prompt='a red rowing boat on the sea, gentle waves, flat illustration',
    negative_prompt='blurry, low quality, distorted, watermark, text',
    image='package://examples/boat.png',
    video_length=16,
    motion_scale=1,
    num_inference_steps=25,
    guidance_scale=7.5,
    seed=0,
    fps=8,
)
