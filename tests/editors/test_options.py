"""Windows, FreeU, FreeNoise and changing arguments through ``infer``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_calls import caller, distance, picture
from torch import Tensor

from mmvideo.diffusion.windows import SCHEDULES
from mmvideo.editors.motion import clip_affinity
from mmvideo.errors import InputError
from mmvideo.models.conditioning.text import encode_prompts
from mmvideo.registry import MODELS

PROMPTS = ['a red fish', 'a blue car']
FAST = dict(num_inference_steps=2, guidance_scale=3.0, seed=0)
make = caller(video_length=4, **FAST)
LONG = ' '.join(['a red fish', 'a blue car'] * 4)  # 24 tokens where 10 fit


# --- windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize('schedule', [s for s in SCHEDULES if s != 'looped'])
def test_one_window_is_plain_to_the_bit(animatediff: Any, pia: Any, schedule: str) -> None:
    windows = dict(length=6, schedule=schedule)
    plain = make(animatediff, PROMPTS, video_length=6)
    assert torch.equal(plain, make(animatediff, PROMPTS, video_length=6, windows=windows))
    shared = dict(image=picture(), motion_scale=2, strength=0.5)
    plain = make(pia, 'a car', **shared)
    assert torch.equal(plain, make(pia, 'a car', **shared, windows=windows))


@pytest.mark.parametrize('schedule', SCHEDULES)
def test_a_clip_longer_than_the_positions(animatediff: Any, calls: list, schedule: str) -> None:
    """The denoiser never sees more frames than a window, so its memory does not grow."""
    samples = make(animatediff, 'a car', video_length=21, windows=dict(length=8, schedule=schedule))
    assert samples.shape == (1, 3, 21, 16, 16) and samples.isfinite().all()
    assert max(call['sample'].shape[2] for call in calls) == 8
    assert samples.diff(dim=2).abs().amax(dim=(0, 1, 3, 4)).min() > 0


def test_windows_of_a_batch_equal_each_alone(animatediff: Any) -> None:
    settings = dict(video_length=11, windows=dict(length=8, overlap=3, schedule='uniform'))
    together = make(animatediff, PROMPTS, **settings)
    alone = make(animatediff, PROMPTS[1], **settings | dict(seed=1))
    assert distance(together[1:], alone) <= 1e-5


def test_windows_share_their_noise(animatediff: Any, calls: list) -> None:
    """Windows that begin with different noise put things in different places."""
    shared = dict(video_length=16, num_inference_steps=1, guidance_scale=1.0)
    make(animatediff, 'a car', **shared, windows=dict(length=8, overlap=0))
    first, second = (call['sample'][0] for call in calls)  # frames 0 to 7 and 8 to 15
    for frame in range(8):
        group = frame // 2 * 2  # a quarter of a window is shuffled together
        same = [torch.equal(second[:, frame], first[:, other]) for other in range(8)]
        assert sum(same) == 1 and any(same[group : group + 2])
    calls.clear()
    make(animatediff, 'a car', **shared, windows=dict(length=8, overlap=0, noise='random'))
    assert torch.equal(calls[0]['sample'][0], first)
    assert not torch.equal(calls[1]['sample'][0], second)
    assert all((calls[1]['sample'][0][:, f] - first[:, f]).abs().max() > 0.1 for f in range(8))


def test_pia_sees_the_affinity_of_each_windows_frames(pia: Any, calls: list) -> None:
    curve = {0: 1.0, 19: 0.05}
    make(pia, 'a car', image=picture(), video_length=20, motion_scale=curve,
         windows=dict(length=8, overlap=2))  # fmt: skip
    expected = clip_affinity(curve, 20, (0,))
    starts = (0, 6, 12)
    assert len(calls) == 2 * len(starts)
    for index, call in enumerate(calls):
        start = starts[index % 3]
        mask = call['sample'][:, 4, :, 0, 0]
        assert torch.equal(mask, expected[start : start + 8].expand(2, -1))


def test_looped_windows_have_no_seam(animatediff: Any) -> None:
    """Turning the noise by a frame turns the clip; a plain clip has its own first frame."""
    noise = torch.randn(1, 4, 12, 8, 8, generator=torch.Generator().manual_seed(4))
    settings = dict(video_length=12, windows=dict(length=1, overlap=0, schedule='looped'))
    plain = make(animatediff, 'a car', latents=noise, **settings)
    turned = make(animatediff, 'a car', latents=noise.roll(1, 2), **settings)
    assert distance(plain.roll(1, 2), turned) <= 1e-5


def test_latents_are_decoded_in_a_stream(animatediff: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of a long clip come chunk by chunk and are those of the whole."""
    settings = dict(video_length=20, windows=dict(length=8))
    whole = make(animatediff, 'a car', **settings)
    latents = animatediff.infer('a car', **FAST, **settings, output_type='latent')['latents']
    assert latents.shape == (1, 4, 20, 8, 8)
    sizes: list[int] = []
    decode = animatediff.vae.decode

    def spy(chunk: Tensor) -> Any:
        sizes.append(len(chunk))
        return decode(chunk)

    monkeypatch.setattr(animatediff.vae, 'decode', spy)
    chunks = animatediff.decode_chunks(latents[0].transpose(0, 1), 3)
    first = next(chunks)
    assert sizes == [3]  # nothing is decoded before it is asked for
    frames = torch.cat([first, *chunks]).transpose(0, 1)[None]
    assert distance(frames, whole) <= 1e-6 and max(sizes) == 3
    with pytest.raises(InputError, match="output_type='latents'.*Did you mean 'latent'"):
        make(animatediff, 'a car', output_type='latents')


# --- FreeU and FreeNoise --------------------------------------------------------------------------


def test_free_u_of_ones_is_plain_and_published_values_are_not(build: Callable) -> None:
    for kind in ('AnimateDiff', 'TextToImage'):
        editor = build(kind)
        arguments = dict(FAST, prompt='a car')
        arguments |= dict(video_length=4) if kind == 'AnimateDiff' else {}
        plain = editor.infer(**arguments)['samples']
        ones = dict(s1=1.0, s2=1.0, b1=1.0, b2=1.0)
        assert distance(plain, editor.infer(**arguments, free_u=ones)['samples']) <= 1e-5
        assert distance(plain, editor.infer(**arguments, free_u=True)['samples']) > 1e-4
        assert torch.equal(plain, editor.infer(**arguments)['samples'])  # nothing stays


def test_free_noise_of_a_clip_that_fits_is_plain(animatediff: Any) -> None:
    """Public code fails here: it looks at the windows before it compares the lengths."""
    plain = make(animatediff, PROMPTS)
    settings = dict(context_length=None, noise_type='random')
    assert torch.equal(plain, make(animatediff, PROMPTS, free_noise=settings))


def test_free_noise_takes_batches_generators_and_prompts_that_change(animatediff: Any) -> None:
    settings = dict(video_length=12, free_noise=dict(context_length=8, context_stride=4))
    prompts = [{0: 'a red fish', 6: 'a blue car'}, 'a car']
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    together = make(animatediff, prompts, generator=generators, **settings)
    alone = make(animatediff, prompts[0], **settings | dict(seed=3))
    assert distance(together[:1], alone) <= 1e-5
    assert distance(together[1:], make(animatediff, 'a car', **settings | dict(seed=4))) <= 1e-5


def test_free_noise_takes_embeddings(animatediff: Any) -> None:
    """A public pipeline drops them, and fails or shows something else."""
    settings = dict(video_length=12, free_noise=dict(context_length=8, context_stride=4))
    spoken = {
        text: encode_prompts(animatediff.tokenizer, animatediff.text_encoder, [text], 1).detach()
        for text in ('a red fish', 'a car', '')
    }
    given = dict(negative_prompt_embeds=spoken[''], **settings)
    red, car = (
        make(animatediff, prompt_embeds=spoken[text], **given) for text in ('a red fish', 'a car')
    )
    assert distance(red, car) > 1e-3
    assert distance(red, make(animatediff, 'a red fish', **settings)) <= 1e-5
    each = spoken['a red fish'][:, None].repeat(1, 12, 1, 1)
    each[:, 6:] = spoken['a car']
    changing = make(animatediff, prompt_embeds=each, **given)
    keys = {0: 'a red fish', 6: 'a car', 'interpolation': 'step'}
    assert distance(changing, make(animatediff, keys, **settings)) <= 1e-5


def test_free_noise_leaves_nothing_behind(pia: Any) -> None:
    """Public code rebuilds the motion modules, and fails to bring some of them back."""
    names, plain = list(pia.state_dict()), make(pia, 'a car', image=picture())
    long = make(pia, 'a car', image=picture(), video_length=12, free_noise=True)
    assert long.shape[2] == 12 and list(pia.state_dict()) == names
    assert torch.equal(plain, make(pia, 'a car', image=picture()))


def test_with_windows_only_the_noise_is_free_noises(animatediff: Any, calls: list) -> None:
    noise = dict(context_length=8, noise_type='repeat_context')
    make(animatediff, 'a car', video_length=16, free_noise=noise, windows=dict(length=8))
    assert all(call['controls'].windows is None for call in calls)
    assert torch.equal(calls[0]['sample'], calls[2]['sample'])  # frames 0 to 7 and 8 to 15


# --- prompts and guidance that change -------------------------------------------------------------


def test_equal_keys_are_plain(animatediff: Any) -> None:
    plain = make(animatediff, 'a car', negative_prompt='a fish')
    keys = dict(negative_prompt={0: 'a fish', 3: 'a fish'}, guidance_scale={0: 3.0, 3: 3.0})
    assert distance(plain, make(animatediff, {0: 'a car', 2: 'a car'}, **keys)) <= 1e-5
    assert torch.equal(plain, make(animatediff, 'a car', negative_prompt='a fish',
                                   guidance_scale=[3.0] * 4))  # fmt: skip


def test_the_denoiser_sees_each_frames_prompt(animatediff: Any, calls: list) -> None:
    make(animatediff, '0: a red fish\n2: a blue car\ninterpolation: step')
    make(animatediff, 'a red fish')
    make(animatediff, 'a blue car')
    changing, fish, car = (call['text'] for call in calls[::2])
    assert changing.shape[0] == 8  # two halves of four frames
    rows = changing.unflatten(0, (2, 4))[1]
    assert distance(rows[:2], fish[1:].expand(2, -1, -1)) <= 1e-6
    assert distance(rows[2:], car[1:].expand(2, -1, -1)) <= 1e-6


def test_windows_see_the_prompts_of_their_frames(animatediff: Any, calls: list) -> None:
    prompt = {0: 'a red fish', 8: 'a blue car'}
    make(animatediff, prompt, video_length=12, windows=dict(length=8, overlap=4),
         guidance_scale=1.0)  # fmt: skip
    first, second = calls[0]['text'], calls[1]['text']
    assert distance(first[4:], second[:4]) <= 1e-6 and distance(first[:1], second[:1]) > 1e-3


def test_prompts_of_different_lengths_do_not_split_a_clip(animatediff: Any) -> None:
    """A web UI's extension makes two clips where a prompt passes 75 tokens."""
    samples = make(animatediff, {0: 'a car', 3: LONG}, negative_prompt={0: '', 2: LONG})
    assert samples.shape == (1, 3, 4, 16, 16)
    ends = make(animatediff, {0: 'a car', 3: LONG + ' red'}, negative_prompt={0: '', 2: LONG})
    assert distance(samples, ends) > 1e-6


def test_guidance_of_each_frame(animatediff: Any) -> None:
    """A frame with a scale of 1 or less has the conditional prediction, as a clip without has."""
    one = dict(num_inference_steps=1)
    states: dict[str, list] = {'curve': [], 'plain': [], 'without': []}

    def keep(name: str) -> Callable:
        return lambda step, steps, latents: states[name].append(latents)

    curve = {0: 0.5, 1: 3.0, 3: 5.0, 'interpolation': 'step'}
    make(animatediff, 'a car', guidance_scale=curve, callback=keep('curve'), **one)
    make(animatediff, 'a car', guidance_scale=3.0, callback=keep('plain'), **one)
    make(animatediff, 'a car', guidance_scale=1.0, callback=keep('without'), **one)
    changing, plain, without = (states[name][0] for name in ('curve', 'plain', 'without'))
    assert distance(changing[:, :, 1:3], plain[:, :, 1:3]) == 0
    assert distance(changing[:, :, :1], without[:, :, :1]) <= 1e-5
    assert distance(changing[:, :, 3:], plain[:, :, 3:]) > 1e-4


# --- motion ---------------------------------------------------------------------------------------


def test_motion_factors_of_one_are_plain(animatediff: Any) -> None:
    plain = make(animatediff, 'a car')
    ones = dict(motion_scale={'down': 1.0, 'up.1': 1}, motion_strength=1)
    assert torch.equal(plain, make(animatediff, 'a car', **ones))
    written = dict(motion_scale={0: 1.0, 3: 1.0}, motion_strength=[1.0] * 4)
    assert distance(plain, make(animatediff, 'a car', **written)) <= 1e-6


def test_without_motion_strength_a_frame_is_a_picture_by_itself(animatediff: Any) -> None:
    noise = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    other = noise.clone()
    other[:, :, 1:] = 0
    alone = {0: 0.0, 1: 1.0, 'interpolation': 'step'}
    for strength, touched in ((0, False), (alone, False), (1.0, True)):
        one, two = (make(animatediff, 'a car', latents=n, motion_strength=strength)[:, :, 0]
                    for n in (noise, other))  # fmt: skip
        assert (distance(one, two) > 1e-5) == touched


def test_motion_by_block_and_by_frame(animatediff: Any) -> None:
    values = [1.0, {'mid': 0.5, 'up': 0.5}, {'up': 0.5}, {'up': 0.5, 'up.0': 1.0}, {'up.1': 0.5}]
    results = [make(animatediff, 'a car', motion_strength=value) for value in values]
    assert torch.equal(results[1], results[2])  # this model has no motion module in the middle
    assert torch.equal(results[3], results[4])
    assert distance(results[0], results[2]) > 1e-5 and distance(results[2], results[3]) > 1e-5
    sharper = make(animatediff, 'a car', motion_scale={0: 1.0, 3: 2.0})
    assert distance(results[0], sharper) > 1e-6


# --- refusals -------------------------------------------------------------------------------------

REFUSED = [
    (dict(video_length=9), 'windows=dict\\(length=8\\)'),
    (dict(windows=dict(length=8, overlap=8)), 'overlap=8.*less than the window'),
    (dict(windows=dict(length=9)), 'length=9.*positions for 8 frames'),
    (dict(windows=dict(lenght=8)), "Did you mean 'length'"),
    (dict(windows=dict(schedule='loop')), "Did you mean 'looped'"),
    (dict(windows=dict(fusion='pyramids')), "Did you mean 'pyramid'"),
    (dict(windows=dict(schedule='batched', overlap=2)), 'batched windows do not overlap'),
    (dict(windows=dict(stride=2)), "'static' windows have adjacent frames"),
    (dict(windows=dict(length=0)), 'windows.length=0'),
    (dict(windows='static'), "windows='static': expected a dict"),
    (dict(free_init=dict(num_iters=0)), 'free_init.num_iters=0'),
    (dict(free_init=dict(method='buttersworth')), "Did you mean 'butterworth'"),
    (dict(free_init=dict(spatial_stop_frequency=2)), 'spatial_stop_frequency=2'),
    (dict(free_init=dict(order=0)), 'free_init.order=0'),
    (dict(free_init=dict(use_fast_sampling='yes')), "use_fast_sampling='yes'"),
    (dict(free_u=dict(b3=1.0)), "free_u takes no 'b3'"),
    (dict(free_u=dict(b1=float('nan'))), 'free_u.b1=nan'),
    (dict(free_noise=dict(noise_type='repeat')), "Did you mean 'repeat_context'"),
    (dict(free_noise=dict(context_stride=9)), 'context_stride=9'),
    (dict(free_noise=dict(context_length=9)), 'context_length=9.*8 frames'),
    (dict(guidance_scale={0: 1.0, 4: 2.0}), 'guidance_scale: the key 4 lies beyond'),
    (dict(guidance_scale=-1), 'guidance_scale=-1'),
    (dict(prompt={0: 'a', 4: 'b'}), 'prompt: the key 4 lies beyond'),
    (dict(negative_prompt={0: 'a', 9: 'b'}), 'negative_prompt: the key 9 lies beyond'),
    (dict(motion_strength={'down.2': 1.0}), "no block 'down.2'.*Did you mean 'down.[01]'"),
    (dict(motion_strength={'up': 11}), r"motion_strength\['up'\]=11"),
    (dict(motion_strength={0: 1.0, 7: 2.0}), 'motion_strength: the key 7 lies beyond'),
]


@pytest.mark.parametrize(('change', 'words'), REFUSED, ids=[str(change) for change, _ in REFUSED])
def test_refused_with_and_without_weights(
    animatediff: Any, tiny_config: Callable, calls: list, change: dict, words: str
) -> None:
    arguments = {'prompt': 'a car', 'video_length': 4, **change}
    model = tiny_config('AnimateDiff')
    for refuse in (
        lambda: animatediff.infer(**arguments),
        lambda: MODELS.get('AnimateDiff').check(model, arguments),
    ):
        with pytest.raises(InputError, match=words):
            refuse()
    assert calls == []


def test_what_an_editor_does_not_take(tiny_config: Callable) -> None:
    check = MODELS.get('TextToImage').check
    with pytest.raises(InputError, match="takes no 'windows'"):
        check(tiny_config('TextToImage'), dict(prompt='a car', windows=8))
    check(tiny_config('TextToImage'), dict(prompt='a car', free_u=True))
