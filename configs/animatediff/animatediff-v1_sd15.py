# AnimateDiff v1 (mm_sd_v15) on Stable Diffusion 1.5: at most 24 frames.
_base_ = 'animatediff-v2_sd15.py'

model = dict(
    unet=dict(resnet_norm_scope='clip'),
    motion_module=dict(from_pretrained='catalog://animatediff-v1'),
)
