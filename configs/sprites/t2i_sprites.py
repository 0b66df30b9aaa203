# Pictures of sprites from captions.
_base_ = '../_base_/sprites.py'

model = dict(type='TextToImage')
infer = dict(
    prompt=[
        'a red fish moving left in the field',
        'a blue car moving right in the city',
        'a green rocket moving up in space',
        'a yellow boat standing still on the sea',
        'a purple beetle moving slowly down in the desert',
        'a white plane moving quickly right in the snow',
        'a pink comet moving left in space',
        'an orange arrow moving up in the field',
    ],
    num_inference_steps=25,
    guidance_scale=3.0,
    seed=0,
)
