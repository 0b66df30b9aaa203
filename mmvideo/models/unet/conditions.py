"""What a family tells its trunk besides noise, time and prompt, each through a module of its own.

A module says with ``takes`` which condition it embeds, with ``role`` what becomes of the result:

    time      [N, E], added to the time embedding
    tokens    [N, L, D], joined to the prompt's
    channels  [N, C, T, H, W], joined to the noisy latents; modules that take the same condition
              are applied one after the other

Shapes: N batch, T frames, C channels, H W latent size, P = H*W places, L tokens, D width of
tokens, E time embedding width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from mmvideo.errors import ConfigError, InputError, nearest
from mmvideo.models.unet.attention import Attention, FeedForward
from mmvideo.models.unet.embeddings import TimestepEmbedding, timestep_sinusoid
from mmvideo.models.unet.motion import attend_frames
from mmvideo.models.unet.resnet import picture_convolution
from mmvideo.registry import MODELS

Role = Literal['time', 'tokens', 'channels']
# Parts of the trunk itself.
_TAKEN_NAMES = (
    *('conv_in', 'transformer_in', 'time_embedding', 'down_blocks', 'mid_block', 'up_blocks'),
    *('conv_norm_out', 'conv_out'),
)


@dataclass(frozen=True)
class TrunkSizes:
    """Sizes of the trunk that its embeddings fit.

    Attributes:
        latents: C of the latents.
        channels: of the finest level, and of the sinusoid of time.
        time: E.
        tokens: D.
    """

    latents: int
    channels: int
    time: int
    tokens: int


def build_embeddings(
    configs: Mapping[str, Mapping[str, Any]], sizes: TrunkSizes
) -> dict[str, nn.Module]:
    """The modules by name, which is that of their parameters, in the order of the config."""
    modules = {}
    for name, config in configs.items():
        if name in _TAKEN_NAMES or not name.isidentifier():
            raise ConfigError(f'embeddings: {name!r} is taken or no name, choose another')
        if 'type' not in config:
            raise ConfigError(f"embeddings.{name} has no 'type': expected dict(type=...)")
        module = MODELS.build({**config, 'sizes': sizes})
        if not hasattr(module, 'role'):
            raise ConfigError(f'embeddings.{name}: {config["type"]} embeds no condition')
        modules[name] = module
    return modules


def extra_channels(modules: Iterable[nn.Module]) -> int:
    """How many channels the embeddings join to the latents."""
    last: dict[str, Any] = {m.takes: m.out_channels for m in modules if m.role == 'channels'}  # type: ignore[misc]
    return sum(last.values())


def check_conditions(modules: Iterable[nn.Module], given: Mapping[str, Tensor]) -> None:
    """Raise InputError unless each condition that the embeddings take is there, and no other."""
    taken = sorted({str(module.takes) for module in modules})
    for name in given:
        if name not in taken:
            raise InputError(
                f'conditions: this model takes no {name!r}, expected {taken or "none"}.'
                f'{nearest(name, taken)}'
            )
    absent = [name for name in taken if name not in given]
    if absent:
        raise InputError(f'conditions: this model needs {absent}, given: {sorted(given)}')


def embed(
    modules: Iterable[nn.Module], role: Role, conditions: Mapping[str, Tensor], sample: Tensor
) -> list[Tensor]:
    """The conditions as the embeddings of one role make them.

    Args:
        modules: all embeddings of the trunk.
        role: which of them.
        conditions: by name.
        sample: [N, C, T, H, W] noisy latents, for sizes and precision.
    """
    results: list[Tensor] = []
    joined: dict[str, Tensor] = {}
    for module in modules:
        if module.role != role:
            continue
        name = str(module.takes)
        result = module(joined.get(name, conditions[name]), sample)
        if role == 'channels':
            joined[name] = result
        else:
            results.append(result)
    return results + list(joined.values())


@MODELS.register_module()
class TimeIdsEmbedding(TimestepEmbedding):
    """SVD's numbers of a clip: frames a second - 1, motion bucket, strength of added noise.

    Args:
        sizes: of the trunk, which gives them.
        channels: of the sinusoid of each number.
        count: how many numbers.
    """

    role: Role = 'time'
    takes = 'added_time_ids'

    def __init__(self, sizes: TrunkSizes, channels: int = 256, count: int = 3) -> None:
        super().__init__(channels * count, sizes.time)
        self.channels, self.count = channels, count

    def forward(self, x: Tensor, sample: Tensor) -> Tensor:  # type: ignore[override]
        """[N, count] -> [N, E]."""
        _check_shape(self.takes, x, (sample.shape[0], self.count))
        wave = timestep_sinusoid(x.flatten(), self.channels).unflatten(0, x.shape)
        return super().forward(wave.flatten(1).to(sample.dtype))


@MODELS.register_module()
class FpsEmbedding(nn.Sequential):
    """I2VGen-XL's frames a second, beside the time."""

    role: Role = 'time'
    takes = 'fps'

    def __init__(self, sizes: TrunkSizes) -> None:
        super().__init__(
            nn.Linear(sizes.channels, sizes.time),
            nn.SiLU(),
            nn.Linear(sizes.time, sizes.time),
        )
        self.channels = sizes.channels

    def forward(self, x: Tensor, sample: Tensor) -> Tensor:  # type: ignore[override]
        """[N] -> [N, E]."""
        _check_shape(self.takes, x, (sample.shape[0],))
        return super().forward(timestep_sinusoid(x, self.channels).to(sample.dtype))


@MODELS.register_module()
class ImageTokens(nn.Sequential):
    """I2VGen-XL's global view of the picture: a CLIP image embedding as a few tokens."""

    role: Role = 'tokens'
    takes = 'image_embeddings'

    def __init__(self, sizes: TrunkSizes, tokens: int = 4) -> None:
        super().__init__(
            nn.Linear(sizes.tokens, sizes.time),
            nn.SiLU(),
            nn.Linear(sizes.time, tokens * sizes.tokens),
        )
        self.tokens, self.width = tokens, sizes.tokens

    def forward(self, x: Tensor, sample: Tensor) -> Tensor:  # type: ignore[override]
        """[N, D] -> [N, L, D]."""
        _check_shape(self.takes, x, (sample.shape[0], self.width))
        return super().forward(x.to(sample.dtype)).unflatten(1, (self.tokens, -1))


@MODELS.register_module()
class ImageLatentTokens(nn.Sequential):
    """I2VGen-XL's local view of the picture: its latent, the first frame's, as 8x8 tokens."""

    role: Role = 'tokens'
    takes = 'image_latents'

    def __init__(self, sizes: TrunkSizes) -> None:
        c = sizes.latents
        super().__init__(
            picture_convolution(c, 8 * c),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d((32, 32)),
            nn.Conv2d(8 * c, 16 * c, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(16 * c, sizes.tokens, 3, stride=2, padding=1),
        )

    def forward(self, x: Tensor, sample: Tensor) -> Tensor:  # type: ignore[override]
        """[N, C, T, H, W] -> [N, 64, D]."""
        _check_shape(self.takes, x, sample.shape)
        return super().forward(x[:, :, 0].to(sample.dtype)).flatten(2).transpose(1, 2)


@MODELS.register_module()
class ImageLatentChannels(nn.Sequential):
    """I2VGen-XL's latents of the picture and the frames' places in the clip, frame by frame."""

    role: Role = 'channels'
    takes = 'image_latents'

    def __init__(self, sizes: TrunkSizes) -> None:
        c = self.out_channels = sizes.latents
        super().__init__(
            picture_convolution(c, 4 * c),
            nn.SiLU(),
            picture_convolution(4 * c, 4 * c),
            nn.SiLU(),
            picture_convolution(4 * c, c),
        )

    def forward(self, x: Tensor, sample: Tensor) -> Tensor:  # type: ignore[override]
        """[N, C, T, H, W] -> [N, C, T, H, W]."""
        _check_shape(self.takes, x, sample.shape)
        frames = x.transpose(1, 2).flatten(0, 1).to(sample.dtype)
        return super().forward(frames).unflatten(0, (-1, x.shape[2])).transpose(1, 2)


@MODELS.register_module()
class ImageLatentsOverTime(nn.Module):
    """I2VGen-XL's attention over frames for what ``ImageLatentChannels`` gives.

    Args:
        sizes: of the trunk, which gives them.
        heads: attention heads, each as wide as the latents.
        gain: factor on the result. The official code adds it twice, and its weights were trained
            so: 2. diffusers adds it once: 1.
    """

    role: Role = 'channels'
    takes = 'image_latents'

    def __init__(self, sizes: TrunkSizes, heads: int = 2, gain: float = 2.0) -> None:
        super().__init__()
        c = self.out_channels = sizes.latents
        self.gain = gain
        self.norm1 = nn.LayerNorm(c)
        self.attn1 = Attention(c, heads, head_channels=c)
        self.ff = FeedForward(c, gated=False)

    def forward(self, x: Tensor, sample: Tensor) -> Tensor:
        """[N, C, T, H, W] -> [N, C, T, H, W]."""
        y = x.permute(0, 2, 3, 4, 1).flatten(2, 3)  # N T P C
        y = y + attend_frames(self.attn1, self.norm1(y))
        y = self.gain * (y + self.ff(y))
        return y.unflatten(2, x.shape[-2:]).permute(0, 4, 1, 2, 3)


def _check_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != tuple(shape):
        raise InputError(
            f'conditions: {name} has shape {tuple(value.shape)}, expected {tuple(shape)}'
        )
