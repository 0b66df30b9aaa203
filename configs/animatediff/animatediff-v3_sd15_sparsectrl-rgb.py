# AnimateDiff v3 that meets pictures at some frames: --control-video PICTURE --control-frames 0.
_base_ = 'animatediff-v3_sd15.py'

# The authors run SparseCtrl with the domain adapter that v3 was trained with.
model = dict(
    adapters=[dict(type='LoRA', from_pretrained='catalog://v3_sd15_adapter')],
    controls=[dict(type='SparseCtrl', from_pretrained='catalog://sparsectrl-rgb')],
)
