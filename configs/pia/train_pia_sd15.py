# It goes on from the published modules: the fine-tuned UNet that PIA began from is not public.
_base_ = ['pia_sd15.py', '../_base_/clips.py', '../_base_/train.py']

model = dict(
    unet=dict(gradient_checkpointing=True),
    # 'webvid' belongs to 256 px, 16 frames at stride 4; tools/affinity_stats.py measures others.
    condition_module=dict(condition_dropout=0.2, statistics='webvid'),
    trainable=['motion_modules', r'^unet\.conv_in'],
    caption_dropout=0.1,
)
train_dataloader = dict(
    batch_size=4,
    dataset=dict(num_frames=16, stride=4, size=256, pipeline=[dict(type='AddAffinity')]),
)
# 48,000 steps were found good, 72,000 the end.
train_cfg = dict(max_iters=48000)
# As published: batch 4 x 16 a process, AdamW, constant rate, clipped at 1.0, no average.
optim_wrapper = dict(accumulative_counts=16, optimizer=dict(lr=1e-4))
default_hooks = dict(checkpoint=dict(interval=2000))
custom_hooks = [
    dict(type='NonFiniteGuard'),
    dict(
        type='SampleHook',
        interval=2000,
        arguments=dict(
            prompt='a red fish moving left on the sea',
            image='package://sprites/examples/fish.png',
            height=256,
            width=256,
            motion_scale=2,
            num_inference_steps=25,
            guidance_scale=7.5,
            seed=0,
        ),
    ),
    dict(type='ExportHook', dtype='float16'),
]
