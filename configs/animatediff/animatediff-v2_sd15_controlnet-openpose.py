# AnimateDiff v2 whose frames follow the body poses of a clip: --control-video POSES.
_base_ = 'animatediff-v2_sd15.py'

model = dict(controls=[dict(type='ControlNet', from_pretrained='catalog://controlnet-openpose')])
