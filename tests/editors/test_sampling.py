"""What ``infer`` promises: a sample depends on its own prompt, picture and seed, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_calls import caller, distance, pictures
from torch import Tensor

from mmvideo.errors import InputError, UserError
from mmvideo.models.conditioning.affinity import affinity_at_inference
from mmvideo.models.conditioning.text import chunks_needed, encode_prompts, token_chunks

PROMPTS = ['a red fish', 'a blue car', 'a car']
FAST = dict(video_length=4, num_inference_steps=2, guidance_scale=3.0)
make = caller(**FAST)
LONG = ' '.join(['a red fish', 'a blue car'] * 4)  # 24 tokens where 10 fit


@pytest.fixture
def calls(animatediff: Any, pia: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Batch sizes and inputs of every call of the denoisers."""
    seen: list[tuple] = []
    for editor in (animatediff, pia):
        forward = editor.unet.forward

        def spy(sample: Tensor, *args: Any, _forward: Any = forward, **kwargs: Any) -> Tensor:
            seen.append((sample.clone(), *args))
            return _forward(sample, *args, **kwargs)

        monkeypatch.setattr(editor.unet, 'forward', spy)
    return seen


def test_batch_equals_each_alone(animatediff: Any) -> None:
    negative = ['', 'a car', '']
    together = make(animatediff, PROMPTS, negative_prompt=negative, seed=5)
    assert together.shape == (3, 3, 4, 16, 16)
    for index, prompt in enumerate(PROMPTS):
        alone = make(animatediff, prompt, negative_prompt=negative[index], seed=5 + index)
        assert distance(together[index : index + 1], alone) <= 1e-5
    assert distance(together[:1], together[1:2]) > 1e-3


def test_pia_batch_equals_each_alone(pia: Any) -> None:
    images, seeds = pictures(3), [9, 2, 40]
    together = make(pia, PROMPTS, image=images, seed=seeds, motion_scale=2)
    for index, prompt in enumerate(PROMPTS):
        alone = make(pia, prompt, image=images[index], seed=seeds[index], motion_scale=2)
        assert distance(together[index : index + 1], alone) <= 1e-5


def test_prompt_decides(animatediff: Any) -> None:
    samples = make(animatediff, PROMPTS[:2], seed=[3, 3])
    assert distance(samples[:1], samples[1:]) > 1e-4


@pytest.mark.parametrize('guidance', [0.0, 1.0, 1.5])
def test_guidance_of_one_or_less_runs_one_half(
    animatediff: Any, calls: list, guidance: float
) -> None:
    make(animatediff, PROMPTS, seed=0, guidance_scale=guidance)
    assert [len(call[0]) for call in calls] == [6 if guidance > 1 else 3] * 2
    assert [len(call[2]) for call in calls] == [6 if guidance > 1 else 3] * 2


def test_without_guidance_the_negative_prompt_changes_nothing(animatediff: Any) -> None:
    plain = make(animatediff, PROMPTS[0], seed=0, guidance_scale=1.0)
    assert distance(plain, make(animatediff, PROMPTS[0], negative_prompt='a car', seed=0,
                                guidance_scale=1.0)) == 0  # fmt: skip


def test_sampling_moves_without_guidance(animatediff: Any) -> None:
    """Steps are taken in either case (a public editor steps only with guidance)."""
    states: list[Tensor] = []
    make(animatediff, 'a car', seed=0, guidance_scale=1.0,
         callback=lambda step, steps, latents: states.append(latents))  # fmt: skip
    assert len(states) == 2 and distance(*states) > 1e-3


# --- prompts ------------------------------------------------------------------------------------


def test_long_prompts_are_cut_into_chunks_and_lose_nothing(animatediff: Any) -> None:
    tokenizer = animatediff.tokenizer
    chunks = token_chunks(tokenizer, LONG)
    assert len(chunks) == 3 and {len(chunk) for chunk in chunks} == {12}
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    words = [token for chunk in chunks for token in chunk if token not in special]
    assert tokenizer.decode(words).split() == LONG.split()
    states = encode_prompts(tokenizer, animatediff.text_encoder, [LONG])
    assert states.shape == (1, 36, 16)
    parts = [animatediff.text_encoder(torch.tensor([chunk])).last_hidden_state for chunk in chunks]
    assert distance(states, torch.cat(parts, 1)) <= 1e-6


def test_the_end_of_a_long_prompt_counts(animatediff: Any) -> None:
    other = LONG.removesuffix('car') + 'fish'
    assert chunks_needed(animatediff.tokenizer, other) == 3
    assert distance(make(animatediff, LONG, seed=0), make(animatediff, other, seed=0)) > 1e-5


def test_long_prompts_do_not_change_their_batch_mates(animatediff: Any) -> None:
    prompts = ['a red fish', LONG, 'a blue car']
    together = make(animatediff, prompts, seed=3)
    for index, prompt in enumerate(prompts):
        alone = make(animatediff, prompt, seed=3 + index)
        assert distance(together[index : index + 1], alone) <= 1e-5


def test_long_negative_prompts(animatediff: Any) -> None:
    together = make(animatediff, PROMPTS[:2], negative_prompt=[LONG, ''], seed=3)
    alone = make(animatediff, PROMPTS[1], negative_prompt='', seed=4)
    assert distance(together[1:], alone) <= 1e-5


# --- seeds, generators, latents -----------------------------------------------------------------


def test_several_videos_of_a_prompt(animatediff: Any) -> None:
    samples = make(animatediff, PROMPTS[:2], num_videos_per_prompt=2, seed=7)
    assert len(samples) == 4
    for index, (prompt, seed) in enumerate([(0, 7), (0, 8), (1, 9), (1, 10)]):
        alone = make(animatediff, PROMPTS[prompt], seed=seed)
        assert distance(samples[index : index + 1], alone) <= 1e-5


def test_several_videos_of_each_picture(pia: Any) -> None:
    images = pictures(2)
    samples = make(pia, PROMPTS[:2], image=images, num_videos_per_prompt=2, seed=7)
    alone = make(pia, PROMPTS[1], image=images[1], seed=10)
    assert distance(samples[3:], alone) <= 1e-5


def test_seed_lists_and_generator_lists_are_the_same(animatediff: Any) -> None:
    by_seed = make(animatediff, PROMPTS, seed=[4, 99, 7])
    generators = [torch.Generator().manual_seed(seed) for seed in (4, 99, 7)]
    assert torch.equal(by_seed, make(animatediff, PROMPTS, generator=generators))


def test_one_seed_counts_up(animatediff: Any) -> None:
    by_list = make(animatediff, PROMPTS, seed=[4, 5, 6])
    assert torch.equal(make(animatediff, PROMPTS, seed=4), by_list)


def test_without_a_seed_every_call_differs(animatediff: Any) -> None:
    assert distance(make(animatediff, 'a car'), make(animatediff, 'a car')) > 1e-4


def test_the_global_generator_is_neither_read_nor_moved(animatediff: Any) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = make(animatediff, 'a car', seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first, make(animatediff, 'a car', seed=0))


def test_without_a_seed_the_global_generator_is_not_seeded_anew(animatediff: Any) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    make(animatediff, 'a car')
    assert torch.initial_seed() == 1 and torch.equal(torch.get_rng_state(), before)


def test_seeds_have_64_bits(animatediff: Any) -> None:
    last = 2**64 - 1
    by_list = make(animatediff, PROMPTS[:2], seed=[last - 1, last])
    assert torch.equal(make(animatediff, PROMPTS[:2], seed=last - 1), by_list)
    assert distance(by_list[:1], make(animatediff, PROMPTS[0], seed=0)) > 1e-4
    for seed in (last, 2**64):
        with pytest.raises(InputError, match=f'seed={2**64}: expected an integer from 0 to {last}'):
            make(animatediff, PROMPTS[:2], seed=seed)


def test_given_latents_are_the_noise(animatediff: Any) -> None:
    noise = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(12))
    samples = make(animatediff, PROMPTS[:2], latents=noise)
    assert torch.equal(samples, make(animatediff, PROMPTS[:2], latents=noise, seed=3))
    generator = torch.Generator().manual_seed(13)
    assert distance(make(animatediff, PROMPTS[0], generator=generator), samples[:1]) > 1e-4
    with pytest.raises(InputError, match='latents'):
        make(animatediff, PROMPTS, latents=noise)


@pytest.mark.parametrize(
    'shape', [(1, 4, 5, 8, 8), (1, 3, 4, 8, 8), (1, 4, 4, 8, 6), (1, 4, 8, 8)], ids=str
)
def test_latents_of_a_wrong_shape_are_refused(animatediff: Any, shape: tuple) -> None:
    with pytest.raises(InputError, match=r'latents.*\[1, 4, 4, 8, 8\]'):
        make(animatediff, 'a car', latents=torch.zeros(shape))


# --- PIA ----------------------------------------------------------------------------------------


def test_every_sample_starts_from_its_own_noised_picture(pia: Any) -> None:
    """Both public codes start the whole batch from the first picture."""
    images = pictures(2)
    arguments = dict(strength=0.5, num_inference_steps=4)
    together = make(pia, PROMPTS[:2], image=images, seed=[1, 2], **arguments)
    alone = make(pia, PROMPTS[1], image=images[1], seed=2, **arguments)
    assert distance(together[1:], alone) <= 1e-5
    swapped = make(pia, PROMPTS[:2], image=images[::-1], seed=[1, 2], **arguments)
    assert distance(together[1:], swapped[1:]) > 1e-4


@pytest.mark.parametrize(('strength', 'steps'), [(1.0, 5), (0.6, 3), (0.2, 1)])
def test_strength_shortens_the_sampling(pia: Any, calls: list, strength: float, steps: int) -> None:
    make(pia, 'a car', image=pictures(1)[0], seed=0, strength=strength, num_inference_steps=5)
    assert len(calls) == steps


def test_strength_without_a_step_left_is_refused(pia: Any) -> None:
    with pytest.raises(InputError, match='strength'):
        make(pia, 'a car', image=pictures(1)[0], strength=0.1, num_inference_steps=5)


@pytest.mark.parametrize('frame', [0, 2])
@pytest.mark.parametrize('scale', [2, 'loop-small', [1.0, 0.6, 0.4]])
def test_the_denoiser_sees_picture_and_affinity(
    pia: Any, calls: list, frame: int, scale: Any
) -> None:
    make(pia, 'a car', image=pictures(1)[0], seed=0, motion_scale=scale, condition_frame=frame)
    affinity = affinity_at_inference(scale, 4, frame)
    assert affinity[frame] == 1 and len(affinity.unique()) > 1
    for sample, *_ in calls:
        assert sample.shape == (2, 9, 4, 8, 8)
        mask = affinity.view(1, 4, 1, 1).expand(2, 4, 8, 8)
        assert torch.equal(sample[:, 4], mask)
        assert distance(sample[:, 5:, :1].expand(-1, -1, 4, -1, -1), sample[:, 5:]) == 0
        assert torch.equal(sample[0], sample[1])  # both halves of guidance
    assert torch.equal(calls[0][0][:, 5:], calls[1][0][:, 5:])


def test_motion_scale_changes_the_result(pia: Any) -> None:
    image = pictures(1)[0]
    results = [make(pia, 'a car', image=image, seed=0, motion_scale=s) for s in (0, 2, [1.0, 0.2])]
    assert distance(results[0], results[1]) > 1e-5 and distance(results[1], results[2]) > 1e-5


def test_one_prompt_for_several_pictures_and_the_other_way(pia: Any) -> None:
    images = pictures(2)
    samples = make(pia, 'a car', image=images, seed=0)
    assert distance(samples[1:], make(pia, 'a car', image=images[1], seed=1)) <= 1e-5
    samples = make(pia, PROMPTS, image=images[0], seed=0)
    assert distance(samples[2:], make(pia, PROMPTS[2], image=images[0], seed=2)) <= 1e-5


# --- shapes and refusals ------------------------------------------------------------------------


def test_decoding_in_chunks_changes_nothing(animatediff: Any) -> None:
    whole = make(animatediff, PROMPTS[:2], seed=0, decode_chunk_size=16)
    assert distance(whole, make(animatediff, PROMPTS[:2], seed=0, decode_chunk_size=3)) <= 1e-6
    assert whole.dtype == torch.float32 and whole.min() >= 0 and whole.max() <= 1


def test_pictures_are_clips_of_one_frame(build: Callable) -> None:
    samples = build('TextToImage').infer(PROMPTS, num_inference_steps=2, seed=0)['samples']
    assert samples.shape == (3, 3, 1, 16, 16)


def test_sizes_that_are_no_square(animatediff: Any) -> None:
    assert make(animatediff, 'a car', height=8, width=24, seed=0).shape == (1, 3, 4, 8, 24)


def test_callback_counts(animatediff: Any) -> None:
    seen: list[tuple] = []
    make(animatediff, 'a car', callback=lambda *state: seen.append((*state[:2], state[2].shape)))
    assert seen == [(1, 2, (1, 4, 4, 8, 8)), (2, 2, (1, 4, 4, 8, 8))]


REFUSED = [
    (dict(video_length=9), 'num_frames=9.*8 frames'),
    (dict(video_length=0), 'num_frames=0'),
    (dict(height=15), 'height=15.*such as 14 or 16'),
    (dict(num_inference_steps=0), 'num_inference_steps=0'),
    (dict(guidance_scale=float('nan')), 'guidance_scale'),
    (dict(seed=-1), 'seed=-1'),
    (dict(seed=[1, 2]), '2 seeds for 1'),
    (dict(generator=[torch.Generator()] * 2), '2 generators'),
    (dict(negative_prompt=['a', 'b']), 'negative_prompt'),
    (dict(num_videos_per_prompt=0), 'num_videos_per_prompt=0'),
    (dict(eta=2.0), 'eta=2.0'),
    (dict(decode_chunk_size=0), 'decode_chunk_size=0'),
    (dict(prompt=[]), 'prompt is missing'),
    (dict(prompt=[3]), 'prompt must be text'),
]


@pytest.mark.parametrize(('change', 'message'), REFUSED, ids=[next(iter(c)) for c, _ in REFUSED])
def test_refused_before_any_work(animatediff: Any, calls: list, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(animatediff, **{'prompt': 'a car', **change})
    assert calls == []
