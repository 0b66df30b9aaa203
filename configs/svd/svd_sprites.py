# A small Stable Video Diffusion on the sprite world: a picture becomes 14 frames.
_base_ = '../_base_/svd_sprites.py'

model = dict(
    predict=dict(num_inference_steps=20, fps=8, motion_bucket_id=127, max_guidance_scale=2.0),
)
infer = dict(
    image='package://sprites/examples/fish.png',
    video_length=14,
    height=64,
    width=64,
    num_inference_steps=20,
    min_guidance_scale=1.0,
    max_guidance_scale=2.0,
    fps=8,
    motion_bucket_id=127,
    noise_aug_strength=0.02,
    decode_chunk_size=14,
    seed=0,
    formats=['mp4', 'gif'],
)
# tools/test.py: first frames of combinations that training never saw.
test_dataloader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(
        type='SpriteWorld', split='held_out', length=200, num_frames=14, paths='free', fps=[8]
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
)
test_cfg = dict(type='TestLoop')
test_evaluator = dict(type='SpriteMetric', style='flat', layout='CTHW', motion='heading')
