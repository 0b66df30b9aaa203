# A LoRA beside the frozen denoiser, in image and temporal layers. Use it with
#   python tools/infer.py configs/svd/svd.py --lora FOLDER/export/lora
_base_ = 'train_svd.py'

model = dict(
    trainable=[],
    # Of the attention to the picture's one token, queries and keys have no effect.
    lora=dict(rank=16, alpha=16, targets=[r'attn1\.to_(q|k|v|out\.0)$', r'attn2\.to_(v|out\.0)$']),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
