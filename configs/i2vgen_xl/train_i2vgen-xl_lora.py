# A LoRA beside the frozen denoiser, in image and temporal layers. Use it with
#   python tools/infer.py configs/i2vgen_xl/i2vgen-xl.py --lora FOLDER/export/lora
_base_ = 'train_i2vgen-xl.py'

model = dict(
    trainable=[],
    lora=dict(rank=16, alpha=16, targets=[r'attn\d\.to_(q|k|v|out\.0)$']),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
