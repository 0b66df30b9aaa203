#!/usr/bin/env python
"""Make the videos of a config, or make a finished video again from the recipe inside it."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmvideo.apis.cli import Parser, count, run_tool

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
  python tools/infer.py CONFIG --ip-adapter models/ip-adapter_sd15.safetensors:0.6 \\
      --ip-adapter-image face.png
  python tools/infer.py CONFIG --video dance.mp4 --video-start 24 --strength 0.6
  python tools/infer.py CONFIG --video dance.mp4 --inversion ddim --inversion-steps 50 \\
      --inversion-prompt "a man dancing" --prompt "a robot dancing"
  python tools/infer.py CONFIG --control control_v11p_sd15_openpose.pth:0.8 --control-video poses/
  python tools/infer.py CONFIG --sparse-control v3_sd15_sparsectrl_scribble.ckpt \\
      --control-video sketch.png
  python tools/infer.py configs/svd/svd.py --image lake.png --motion-bucket-id 180 --fps 10
  python tools/infer.py CONFIG --num-frames 64 --windows 16 --dry-run
  python tools/infer.py CONFIG --max-memory 6GiB
  python tools/infer.py CONFIG --offload model --vae-tiling 256 --decode-chunk 4
  python tools/infer.py CONFIG --prompt "$(printf '0: a lake in spring\\n8: a lake in winter')"
  python tools/infer.py outputs/pia_sprites.mp4                  the same frames again
  python tools/infer.py outputs/pia_sprites.mp4 --seed 7         its settings, another seed
"""


def seed(text: str) -> int:
    """A seed of the command line."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f'{text!r}: expected an integer from 0 to 2^63 - 1')
    return value


def motion_scale(text: str) -> int | float | str:
    """A table's number or name, or one affinity of a list."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def adapter(kind: str) -> Callable[[str], dict[str, Any]]:
    """A reader of ``FILE`` or ``FILE:SCALE``."""

    def read(text: str) -> dict[str, Any]:
        source, colon, scale = text.rpartition(':')
        try:
            value = float(scale) if colon and source else None
        except ValueError:
            value = None
        if value is None:
            return dict(type=kind, from_pretrained=text)
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f'{text!r}: expected a finite scale after the colon')
        return dict(type=kind, from_pretrained=source, scale=value)

    return read


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__, EXAMPLES)
    parser.add_argument('config', help='a config, a model name, or a video with its recipe inside')
    what = parser.add_argument_group('what to make (default: what the config says)')
    add = what.add_argument
    add('--prompt', nargs='+', metavar='TEXT',
        help='one video each; with lines such as "0: spring", "8: summer" it changes')  # fmt: skip
    add('--negative-prompt', nargs='+', metavar='TEXT', help='what to steer away from')
    add('--image', nargs='+', metavar='PATH', help='the picture to animate; several: one each')
    add('--video', metavar='PATH', help='a clip, or a folder of frames, to start from')
    add('--video-start', type=int, metavar='N', help='which frame of it is the first')
    add('--video-stride', type=count, metavar='N', help='take every Nth frame of it')
    add('--inversion', metavar='TYPE',
        help='ddim: start from the noise that the clip would have come from')  # fmt: skip
    add('--inversion-steps', type=count, metavar='N', help='steps of the way back to it')
    add('--inversion-prompt', metavar='TEXT', help='what the clip shows; default: the prompt')
    add('--control-video', nargs='+', metavar='PATH',
        help='what each control sees: a clip, a folder of frames or a picture')  # fmt: skip
    add('--control-frames', nargs='+', type=int, metavar='N',
        help='which frames the pictures of the (last) SparseCtrl are')  # fmt: skip
    add('--seed', nargs='+', type=seed, metavar='N', help='several: one video each')
    add('--num-frames', type=count, metavar='N', help='frames of a video')
    add('--windows', type=count, metavar='N',
        help='make a longer video than the model sees, in windows of N frames')  # fmt: skip
    add('--steps', type=count, metavar='N', help='steps of the scheduler')
    add('--guidance-scale', type=float, metavar='X', help='1 is without guidance')
    add('--guidance-interval', nargs=2, type=float, metavar='X',
        help='guidance only between these shares of the steps, such as 0.0 0.8')  # fmt: skip
    add('--deep-cache', type=count, metavar='N',
        help='run the whole denoiser in every Nth step only, an approximation')  # fmt: skip
    add('--motion-scale', nargs='+', type=motion_scale, metavar='K',
        help='amount of motion: 0 to 8, a name such as fit-loop-small, or affinities')  # fmt: skip
    add('--condition-frame', nargs='+', type=int, metavar='N',
        help='which frame the picture is; several: of as many pictures for a video')  # fmt: skip
    add(
        '--strength',
        type=float,
        metavar='X',
        help='1 starts from noise, less from the picture or --video',
    )
    add('--motion-bucket-id', type=float, metavar='N',
        help='amount of motion, 0 to 255 (Stable Video Diffusion)')  # fmt: skip
    add('--noise-aug-strength', type=float, metavar='X',
        help='noise on the picture: more is less like it (the same)')  # fmt: skip
    add('--min-guidance-scale', type=float, metavar='X', help='of the first frame (the same)')
    add('--max-guidance-scale', type=float, metavar='X', help='of the last frame (the same)')
    add('--target-fps', type=int, metavar='N',
        help='frames a second that the model is told, not the file (I2VGen-XL)')  # fmt: skip
    add('--clip-skip', type=int, metavar='N', help='layers of the text encoder to leave out')
    add('--height', type=count, metavar='H', help='pixels')
    add('--width', type=count, metavar='W', help='pixels')
    how = parser.add_argument_group('how to run and where to write')
    add = how.add_argument
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
    add('--lora', action='append', type=adapter('LoRA'), default=[], metavar='FILE[:SCALE]',
        help='a LoRA for this call; repeat it for more')  # fmt: skip
    add('--ip-adapter', action='append', type=adapter('IPAdapter'), default=[],
        metavar='FILE[:SCALE]', help='likewise, with image_encoder/ beside the file')  # fmt: skip
    add('--ip-adapter-image', nargs='+', metavar='PATH',
        help='pictures as prompts, one for each IP-Adapter or all for one')  # fmt: skip
    add('--motion-lora', action='append', type=adapter('MotionLoRA'), default=[],
        metavar='FILE[:SCALE]', help='likewise, of the motion modules')  # fmt: skip
    add('--control', action='append', type=adapter('ControlNet'), default=[],
        metavar='FILE[:SCALE]', help='a ControlNet for this call; repeat it for more')  # fmt: skip
    add('--sparse-control', action='append', type=adapter('SparseCtrl'), default=[],
        metavar='FILE[:SCALE]', help='likewise a SparseCtrl, after those of --control')  # fmt: skip
    add('--fps', type=float, metavar='N', help='frames a second of the file')
    add('--out', metavar='PATH', help='an mp4, gif, webp or png to write, or a folder')
    parser.add_cfg_options(how)
    add('--allow-other-weights', action='store_true',
        help='make a recipe again although the weight files have changed')  # fmt: skip
    add('--dry-run', action='store_true', help='say what would be done; read no weights')
    add('--quiet', action='store_true', help='print nothing but errors')
    return parser.parse_args()


def given_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says about the editor's arguments; None is not said."""
    scale, frames = args.motion_scale, args.condition_frame
    places = args.control_frames
    controls = max(1, len(args.control_video or ()))
    values = {
        'prompt': args.prompt,
        'negative_prompt': args.negative_prompt,
        'image': args.image,
        'video': given_clip(args),
        'inversion': given_inversion(args),
        'control_videos': args.control_video,
        'control_frames': [*[None] * (controls - 1), places] if places else None,
        'seed': args.seed,
        'video_length': args.num_frames,
        'windows': args.windows,
        'num_inference_steps': args.steps,
        'guidance_scale': args.guidance_scale,
        'guidance_interval': args.guidance_interval,
        'deep_cache': args.deep_cache,
        'motion_scale': scale[0] if scale and len(scale) == 1 else scale,
        'condition_frame': frames[0] if frames and len(frames) == 1 else frames,
        'strength': args.strength,
        'motion_bucket_id': args.motion_bucket_id,
        'noise_aug_strength': args.noise_aug_strength,
        'min_guidance_scale': args.min_guidance_scale,
        'max_guidance_scale': args.max_guidance_scale,
        'target_fps': args.target_fps,
        'clip_skip': args.clip_skip,
        'ip_adapter_image': args.ip_adapter_image,
        'decode_chunk_size': args.decode_chunk,
        'height': args.height,
        'width': args.width,
    }
    return {name: value for name, value in values.items() if value is not None}


def given_clip(args: argparse.Namespace) -> Any:
    """The clip to start from, or the part of it that the command line asks for."""
    cut = {'start': args.video_start, 'stride': args.video_stride}
    said = {name: value for name, value in cut.items() if value is not None}
    if said and args.video is None:
        from mmvideo.errors import InputError

        raise InputError('--video-start and --video-stride are about a clip: give it with --video')
    return dict(clip=args.video, **said) if said else args.video


def memory_options(args: argparse.Namespace) -> dict[str, Any]:
    """Settings of the model that the command line's flags about memory stand for."""
    options: dict[str, Any] = {}
    if args.offload:
        options['model.offload'] = args.offload
    if args.vae_tiling:
        whole = args.vae_tiling is True
        options['model.vae_tiling'] = True if whole else dict(tile=args.vae_tiling)
    if args.vae_slicing:
        options['model.vae_slicing'] = True
    return options


def given_inversion(args: argparse.Namespace) -> dict[str, Any] | None:
    """The settings of the inversion that the command line asks for."""
    values = {
        'type': args.inversion,
        'num_inference_steps': args.inversion_steps,
        'prompt': args.inversion_prompt,
    }
    said = {name: value for name, value in values.items() if value is not None}
    return said or None


def check_files(args: argparse.Namespace) -> None:
    """What can be refused before anything slow is imported."""
    from mmvideo.errors import InputError, nearest

    for image in [*(args.image or []), *(args.ip_adapter_image or [])]:
        path = Path(image).expanduser()
        if not path.is_file() and '://' not in image:
            names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise InputError(f'{image}: there is no such picture.{nearest(path.name, names)}')
    for clip in [*([args.video] if args.video else []), *(args.control_video or [])]:
        path = Path(clip).expanduser()
        if not path.exists() and '://' not in clip:
            names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise InputError(f'{clip}: there is no such clip.{nearest(path.name, names)}')


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
        adapters=[*args.lora, *args.motion_lora, *args.ip_adapter],
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
    arguments = given_arguments(args)
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
