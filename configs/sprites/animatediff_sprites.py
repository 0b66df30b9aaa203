# AnimateDiff on the sprite world: motion modules on the frozen text-to-image model.
_base_ = '../_base_/sprites.py'

model = dict(
    type='AnimateDiff',
    unet=dict(resnet_norm_scope='frame'),
    motion_module=dict(
        type='MotionModule',
        from_pretrained='package://sprites',
        subfolder='motion_adapter',
        norm_scope='frame',
    ),
    predict=dict(num_inference_steps=25, guidance_scale=3.0),
)
infer = dict(
    prompt=[
        'a red fish moving left on the sea',
        'a blue car moving right in the city',
        'a green rocket moving up in space',
        'a yellow beetle moving quickly down in the field',
    ],
    video_length=16,
    num_inference_steps=25,
    guidance_scale=3.0,
    seed=0,
    fps=8,
)
# tools/test.py: captions of combinations that training never saw.
test_dataloader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(type='SpriteWorld', split='held_out', length=200, num_frames=16),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
)
test_cfg = dict(type='TestLoop')
test_evaluator = dict(type='SpriteMetric', style='flat', layout='CTHW')
