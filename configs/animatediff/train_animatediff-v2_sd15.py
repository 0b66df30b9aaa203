# The recipe of the second stage of AnimateDiff.
_base_ = ['animatediff-v2_sd15.py', '../_base_/clips.py', '../_base_/train.py']

model = dict(
    # New modules, zero at the end, on the frozen image model.
    motion_module=dict(
        _delete_=True,
        type='MotionModule',
        num_attention_heads=8,
        max_positions=32,
        norm_scope='frame',
    ),
    unet=dict(motion_mid_block=True, gradient_checkpointing=True),
    trainable=['motion_modules'],
    caption_dropout=0.1,
)
train_dataloader = dict(
    batch_size=4,
    dataset=dict(num_frames=16, stride=4, size=256),
)
# The official configuration names no length; its authors report five days on eight A100.
train_cfg = dict(max_iters=100000)
# As published: AdamW, constant rate, clipped at 1.0, no average. bf16 takes fp16's place.
optim_wrapper = dict(optimizer=dict(lr=1e-4))
default_hooks = dict(checkpoint=dict(interval=2000))
custom_hooks = [
    dict(type='NonFiniteGuard'),
    dict(
        type='SampleHook',
        interval=2000,
        arguments=dict(
            prompt=['a red fish moving left on the sea', 'a blue car moving right in the city'],
            height=256,
            width=256,
            num_inference_steps=25,
            guidance_scale=7.5,
            seed=0,
        ),
    ),
    dict(type='ExportHook', dtype='float16'),
]
