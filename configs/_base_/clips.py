# Your own clips: data/clips/clips.csv has the columns video and caption, see docs/training.md.
train_dataloader = dict(
    num_workers=4,
    dataset=dict(
        type='VideoTextDataset',
        root='data/clips',
        annotations='data/clips/clips.csv',
    ),
    sampler=dict(type='ResumableSampler'),
    collate_fn=dict(type='default_collate'),
)
