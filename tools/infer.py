#!/usr/bin/env python
"""Make the videos of a config, or make a finished video again from the recipe inside it."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmvideo.apis.cli import Parser, count, run_tool
from mmvideo.apis.flags import (
    adapter,
    annotator,
    given_arguments,
    memory_options,
    motion_scale,
    seed,
    word,
)

if TYPE_CHECKING:
    from mmvideo.apis.inferencer import VideoInferencer
    from mmvideo.apis.memory import Switches

EXAMPLES = """
examples:
  python tools/infer.py configs/sprites/pia_sprites.py
  python tools/infer.py configs/sprites/pia_sprites.py --image fish.png \\
      --prompt "a red fish moving left in the field" --motion-scale 1 --seed 1 2 3
  python tools/infer.py CONFIG --prompt "first clip" "second clip" --out folder/
  python tools/infer.py CONFIG --lora style.safetensors:0.8 --motion-lora v2_lora_ZoomIn.ckpt
  python tools/infer.py CONFIG --textual-inversion badhands.pt --negative-prompt badhands
  python tools/infer.py CONFIG --ip-adapter models/ip-adapter_sd15.safetensors:0.6 \\
      --ip-adapter-image face.png
  python tools/infer.py CONFIG --video dance.mp4 --video-start 24 --strength 0.6
  python tools/infer.py CONFIG --video dance.mp4 --inversion ddim --inversion-steps 50 \\
      --inversion-prompt "a man dancing" --prompt "a robot dancing"
  python tools/infer.py CONFIG --control control_v11p_sd15_openpose.pth:0.8 --control-video poses/
  python tools/infer.py CONFIG --control control_v11p_sd15_canny.pth --control-video dance.mp4 \\
      --annotator canny
  python tools/infer.py CONFIG --sparse-control v3_sd15_sparsectrl_scribble.ckpt \\
      --control-video sketch.png
  python tools/infer.py configs/svd/svd.py --image lake.png --motion-bucket-id 180 --fps 10
  python tools/infer.py CONFIG --num-frames 64 --windows 16 --dry-run
  python tools/infer.py CONFIG --num-frames 48 --windows 16 --window-schedule looped --free-init
  python tools/infer.py CONFIG --max-memory 6GiB
  python tools/infer.py CONFIG --offload model --vae-tiling 256 --decode-chunk 4
  python tools/infer.py CONFIG --prompt "$(printf '0: a lake in spring\\n8: a lake in winter')"
  python tools/infer.py outputs/pia_sprites.mp4                  the same frames again
  python tools/infer.py outputs/pia_sprites.mp4 --seed 7         its settings, another seed
"""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__, EXAMPLES)
    parser.usage = '%(prog)s CONFIG [--option VALUE ...]'
    parser.add_argument('config', help='a config, a model name, or a video with its recipe inside')
    for add_flags in (add_what, add_sampling, add_length, add_motion, add_clip, add_controls,
                      add_adapters, add_machine, add_output):  # fmt: skip
        add_flags(parser)
    return parser.parse_args()


def add_what(parser: Parser) -> None:
    """What is to be seen."""
    add = parser.add_argument_group('what to make (default: what the config says)').add_argument
    add('--prompt', nargs='+', metavar='TEXT',
        help='one video each; with lines such as "0: spring", "8: summer" it changes')  # fmt: skip
    add('--negative-prompt', nargs='+', metavar='TEXT', help='what to steer away from')
    add('--image', nargs='+', metavar='PATH', help='the picture to animate; several: one each')
    add('--seed', nargs='+', type=seed, metavar='N', help='several: one video each')
    add('--num-frames', type=count, metavar='N', help='frames of a video')
    add('--height', type=count, metavar='H', help='pixels')
    add('--width', type=count, metavar='W', help='pixels')
    add('--clip-skip', type=int, metavar='N', help='layers of the text encoder to leave out')


def add_sampling(parser: Parser) -> None:
    """How the denoiser is used."""
    add = parser.add_argument_group('sampling').add_argument
    add('--steps', type=count, metavar='N', help='steps of the scheduler')
    add('--eta', type=float, metavar='X', help='noise in each step of DDIM and TCD, 0 to 1')
    add('--guidance-scale', type=float, metavar='X', help='1 is without guidance')
    add('--guidance-interval', nargs=2, type=float, metavar='X',
        help='guidance only between these shares of the steps, such as 0.0 0.8')  # fmt: skip
    add('--deep-cache', type=count, metavar='N',
        help='run the whole denoiser in every Nth step only, an approximation')  # fmt: skip
    add('--free-u', nargs='*', type=float, metavar='X',
        help='weigh skip connections anew; with factors: S1 S2 B1 B2')  # fmt: skip
    add('--free-init', nargs='?', const=True, metavar='METHOD',
        help='sample again from the low frequencies: butterworth, gaussian or ideal')  # fmt: skip


def add_length(parser: Parser) -> None:
    """Videos longer than the model sees."""
    add = parser.add_argument_group('long videos').add_argument
    add('--windows', type=count, metavar='N',
        help='make a longer video than the model sees, in windows of N frames')  # fmt: skip
    add('--window-schedule', metavar='NAME',
        help='static, uniform (moving), looped (a video that closes) or batched')  # fmt: skip
    add('--window-overlap', type=int, metavar='N', help='frames that neighbours share')
    add('--window-stride', type=int, metavar='N',
        help='spacings: 2 has windows of every second frame too (uniform and looped)')  # fmt: skip
    add('--window-fusion', metavar='NAME',
        help='weight by place: flat, pyramid, relative or overlap-linear')  # fmt: skip
    add('--window-noise', metavar='TYPE', help='as --free-noise, which windows have unasked')
    add('--free-noise', nargs='?', const=True, metavar='TYPE',
        help='noise that repeats and attention in windows: shuffle_context, repeat_context, '
        'random')  # fmt: skip


def add_motion(parser: Parser) -> None:
    """How much moves; settings of single families."""
    add = parser.add_argument_group('motion').add_argument
    add('--motion-scale', nargs='+', type=motion_scale, metavar='K',
        help='amount of motion: 0 to 8, a name such as fit-loop-small, or affinities')  # fmt: skip
    add('--condition-frame', nargs='+', type=int, metavar='N',
        help='which frame the picture is; several: of as many pictures for a video')  # fmt: skip
    add('--condition-rule', metavar='NAME',
        help='with several pictures the nearest counts, or the official rule')  # fmt: skip
    add('--motion-bucket-id', type=float, metavar='N',
        help='amount of motion, 0 to 255 (Stable Video Diffusion)')  # fmt: skip
    add('--noise-aug-strength', type=float, metavar='X',
        help='noise on the picture: more is less like it (the same)')  # fmt: skip
    add('--min-guidance-scale', type=float, metavar='X', help='of the first frame (the same)')
    add('--max-guidance-scale', type=float, metavar='X', help='of the last frame (the same)')
    add('--target-fps', type=int, metavar='N',
        help='frames a second that the model is told, not the file (I2VGen-XL)')  # fmt: skip


def add_clip(parser: Parser) -> None:
    """A clip to start from."""
    add = parser.add_argument_group('a video from a video').add_argument
    add('--video', metavar='PATH', help='a clip, or a folder of frames, to start from')
    add('--video-start', type=int, metavar='N', help='which frame of it is the first')
    add('--video-stride', type=count, metavar='N', help='take every Nth frame of it')
    add('--strength', type=float, metavar='X',
        help='1 starts from noise, less from the picture or --video')  # fmt: skip
    add('--inversion', metavar='TYPE',
        help='ddim: start from the noise that the clip would have come from')  # fmt: skip
    add('--inversion-steps', type=count, metavar='N', help='steps of the way back to it')
    add('--inversion-prompt', metavar='TEXT', help='what the clip shows; default: the prompt')


def add_controls(parser: Parser) -> None:
    """ControlNet and SparseCtrl. Of what has several values, one is for all controls."""
    add = parser.add_argument_group('controls (several values: one for each)').add_argument
    add('--control', action='append', type=adapter('ControlNet'), default=[],
        metavar='FILE[:SCALE]', help='a ControlNet for this call; repeat it for more')  # fmt: skip
    add('--sparse-control', action='append', type=adapter('SparseCtrl'), default=[],
        metavar='FILE[:SCALE]', help='likewise a SparseCtrl, after those of --control')  # fmt: skip
    add('--control-video', nargs='+', metavar='PATH',
        help='what each control sees: a clip, a folder of frames or a picture')  # fmt: skip
    add('--annotator', nargs='+', type=annotator, metavar='NAME',
        help='make that of footage: canny[:LOW,HIGH], or of controlnet_aux '
        'NAME:WEIGHTS')  # fmt: skip
    add('--control-frames', nargs='+', type=int, metavar='N',
        help='which frames the pictures of the (last) SparseCtrl are')  # fmt: skip
    add('--control-scale', nargs='+', type=float, metavar='X', help='how strongly they work')
    add('--control-start', nargs='+', type=float, metavar='X',
        help='share of the steps after which they begin')  # fmt: skip
    add('--control-end', nargs='+', type=float, metavar='X', help='and after which they stop')
    add('--guess-mode', action='store_true', default=None,
        help='follow them even without a prompt')  # fmt: skip


def add_adapters(parser: Parser) -> None:
    """What is attached to the model for this call."""
    add = parser.add_argument_group('adapters (repeat a flag for more)').add_argument
    add('--lora', action='append', type=adapter('LoRA'), default=[], metavar='FILE[:SCALE]',
        help='a LoRA for this call')  # fmt: skip
    add('--motion-lora', action='append', type=adapter('MotionLoRA'), default=[],
        metavar='FILE[:SCALE]', help='likewise, of the motion modules')  # fmt: skip
    add('--textual-inversion', action='append', type=word, default=[], metavar='FILE[:TOKEN]',
        help='a word for prompts; default: the one in the file')  # fmt: skip
    add('--ip-adapter', action='append', type=adapter('IPAdapter'), default=[],
        metavar='FILE[:SCALE]', help='with image_encoder/ beside the file')  # fmt: skip
    add('--ip-adapter-image', nargs='+', metavar='PATH',
        help='pictures as prompts, one for each IP-Adapter or all for one')  # fmt: skip


def add_machine(parser: Parser) -> None:
    """Where it runs and how much memory it takes."""
    add = parser.add_argument_group('device and memory').add_argument
    add('--device', metavar='D', help='cpu, cuda, cuda:1, mps; default: a GPU if there is one')
    add('--dtype', metavar='T', help='float32, bfloat16 or float16')
    add('--offload', choices=('model', 'group', 'sequential'),
        help='weights wait in main memory; a part, stage or layer at a time comes')  # fmt: skip
    add('--vae-tiling', nargs='?', type=count, const=True, metavar='PIXELS',
        help='large pictures go through the VAE in tiles of this size')  # fmt: skip
    add('--vae-slicing', action='store_true', help='and one after the other')
    add('--max-memory', metavar='SIZE',
        help='choose these so that it should suffice, such as 6GiB; see doctor.py')  # fmt: skip
    add('--decode-chunk', type=count, metavar='N', help='frames that are decoded at once')


def add_output(parser: Parser) -> None:
    """Files, and what is said."""
    group = parser.add_argument_group('what to write and to say')
    add = group.add_argument
    add('--out', metavar='PATH', help='an mp4, gif, webp or png to write, or a folder')
    add('--fps', type=float, metavar='N', help='frames a second of the file')
    parser.add_cfg_options(group)
    add('--allow-other-weights', action='store_true',
        help='make a recipe again although the weight files have changed')  # fmt: skip
    add('--dry-run', action='store_true', help='say what would be done; read no weights')
    add('--quiet', action='store_true', help='print nothing but errors')


def check_files(args: argparse.Namespace) -> None:
    """What can be refused before anything slow is imported."""
    from mmvideo.errors import InputError, nearest_beside

    for image in [*(args.image or []), *(args.ip_adapter_image or [])]:
        path = Path(image).expanduser()
        if not path.is_file() and '://' not in image:
            raise InputError(f'{image}: there is no such picture.{nearest_beside(path)}')
    for clip in [*([args.video] if args.video else []), *(args.control_video or [])]:
        path = Path(clip).expanduser()
        if not path.exists() and '://' not in clip:
            raise InputError(f'{clip}: there is no such clip.{nearest_beside(path)}')


def open_inferencer(
    args: argparse.Namespace, options: dict[str, Any], dtype: str | None
) -> VideoInferencer:
    """The inferencer of a command line, with more options of the config; reads no weights."""
    from mmvideo.apis.inferencer import VideoInferencer
    from mmvideo.config import parse_cfg_options

    given = {**parse_cfg_options(args.cfg_options), **memory_options(args)}
    return VideoInferencer(
        args.config,
        device=args.device,
        dtype=dtype,
        cfg_options={**given, **options},
        allow_other_weights=args.allow_other_weights,
        adapters=[*args.lora, *args.motion_lora, *args.textual_inversion, *args.ip_adapter],
        controls=[*args.control, *args.sparse_control],
    )


def fitting(
    inferencer: VideoInferencer, args: argparse.Namespace, arguments: dict[str, Any]
) -> Switches:
    """The cheapest switches with which the call should need at most ``--max-memory``."""
    from mmvideo.apis.memory import cheapest, read_size, rows
    from mmvideo.apis.progress import size
    from mmvideo.errors import InputError

    limit = read_size(args.max_memory)
    table = rows(inferencer.plan(args.out, args.fps, **arguments))
    row = cheapest(table, limit)
    if row is None:
        least = min(table, key=lambda row: row.needed)
        with_what = f' with {least.switches.flags}' if least.switches.flags else ''
        raise InputError(
            f'--max-memory {args.max_memory}: the least that this call should need is '
            f'{size(least.needed)}{with_what}. Take a smaller --height and --width, or --windows.'
        )
    if not args.quiet:
        flags = row.switches.flags or 'no switches'
        print(f'{flags}: about {size(row.needed)}', file=sys.stderr)
    return row.switches


def run(args: argparse.Namespace) -> None:
    """Make the videos and say where they are."""
    check_files(args)
    inferencer = open_inferencer(args, {}, args.dtype)
    arguments = given_arguments(args, inferencer.defaults)
    if args.max_memory is not None:
        switches = fitting(inferencer, args, arguments)
        inferencer = open_inferencer(args, switches.options, switches.dtype or args.dtype)
        if switches.chunk is not None:
            arguments['decode_chunk_size'] = switches.chunk
    if args.dry_run:
        print('\n'.join(inferencer.plan(args.out, args.fps, **arguments).lines()))
        return
    for note in inferencer.notes:
        print(f'note: {note}', file=sys.stderr)
    from mmvideo.apis.progress import duration, size

    start = time.monotonic()

    def report(path: Path) -> None:
        if not args.quiet:
            spent = duration(time.monotonic() - start)
            print(f'{path}: {size(path.stat().st_size)} after {spent}', flush=True)

    inferencer(
        args.out,
        args.fps,
        progress=not args.quiet,
        on_file=report,
        return_samples=False,
        **arguments,
    )


def main() -> int:
    """The exit code, see ``run_tool``."""
    return run_tool(run, parse_args(), interrupted='the video in the making was not written')


if __name__ == '__main__':
    sys.exit(main())
