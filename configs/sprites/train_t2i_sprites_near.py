# Text to image from nothing, of sprites near the middle of the frame; the text encoder
# learns along with the denoiser. Where a sprite may be anywhere, its place is decided before its
# heading is seen, and a training of 7000 steps did not connect the words of heading to anything;
# near the middle they are learnt in a few hundred, and kept when the sprites spread out.
_base_ = ['t2i_sprites.py', '../_base_/train.py']

# Every word of the sprite captions, one token each.
words = [
    'a',
    'an',
    'arrow',
    'beetle',
    'blue',
    'boat',
    'car',
    'city',
    'comet',
    'desert',
    'down',
    'facing',
    'field',
    'fish',
    'going',
    'green',
    'heading',
    'in',
    'left',
    'moving',
    'on',
    'orange',
    'pink',
    'plane',
    'purple',
    'quickly',
    'red',
    'right',
    'rocket',
    'sea',
    'slowly',
    'snow',
    'space',
    'standing',
    'still',
    'the',
    'up',
    'white',
    'yellow',
]
model = dict(
    text_encoder=dict(
        _delete_=True,
        type='CLIPTextModel',
        vocab_size=650,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=24,
    ),
    tokenizer=dict(_delete_=True, type='CLIPTokenizer', vocab=words, model_max_length=24),
    unet=dict(
        _delete_=True,
        type='VideoUNet',
        sample_size=16,
        down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'),
        up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'),
        block_out_channels=(48, 112),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    ),
    trainable=['^unet', '^text_encoder'],
)
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    dataset=dict(
        type='CachedLatents',
        dataset=dict(type='SpriteWorld', length=8000, num_frames=1, spread=0.1),
        vae={{_base_.model.vae}},
        cache_dir='work_dirs/sprites/cache',
        num_clips=8000,
    ),
    sampler=dict(type='ResumableSampler'),
    collate_fn=dict(type='default_collate'),
)
train_cfg = dict(max_iters=4000)
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(no_decay_1d=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=300),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=300, T_max=3700, eta_min=2e-5),
]
custom_hooks = [
    dict(type='NonFiniteGuard'),
    dict(type='EMAHook', decay=0.999),
    dict(type='SampleHook', interval=1000, arguments={{_base_.infer}}),
    dict(type='ExportHook', dtype='float16'),
]
