# AnimateDiff v3 that follows sketches at some frames: --control-video SKETCH --control-frames 0.
_base_ = 'animatediff-v3_sd15_sparsectrl-rgb.py'

model = dict(controls=[dict(type='SparseCtrl', from_pretrained='catalog://sparsectrl-scribble')])
