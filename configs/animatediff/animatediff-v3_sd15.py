# AnimateDiff v3 (v3_sd15_mm) on Stable Diffusion 1.5, without its domain adapter.
_base_ = 'animatediff-v2_sd15.py'

model = dict(motion_module=dict(from_pretrained='catalog://animatediff-v3'))
