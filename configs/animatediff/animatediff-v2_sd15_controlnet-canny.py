# AnimateDiff v2 whose frames follow the edges of a clip: --control-video EDGES.
_base_ = 'animatediff-v2_sd15.py'

model = dict(controls=[dict(type='ControlNet', from_pretrained='catalog://controlnet-canny')])
