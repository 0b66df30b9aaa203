"""ControlNet and SparseCtrl as parts of an editor: read from a file, checked against its model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from mmvideo.checkpoints.control import read_control
from mmvideo.checkpoints.layouts import FAMILIES
from mmvideo.checkpoints.load import load_into, without_weights
from mmvideo.checkpoints.sources import resolve, weight_file
from mmvideo.errors import ConfigError, WeightsError
from mmvideo.models.adapters.base import Adapter
from mmvideo.models.adapters.control_encoder import ControlEncoder, control_arguments
from mmvideo.models.unet.context import NormScope, check_norm_scope
from mmvideo.registry import MODELS

MOST_SCALE = 10


@MODELS.register_module()
class ControlNet(nn.Module, Adapter):
    """A ControlNet for Stable Diffusion 1.5: a picture for every frame says where things are.

    Reads the original files (control_v11p_sd15_canny.pth, ...) and diffusers' folders.

    Args:
        from_pretrained: file, folder, hub id or ``package://NAME``.
        name: what messages call it; None takes the file's own name.
        subfolder: folder inside the source.
        weight_name: file inside the source, where it has several.
        revision: branch, tag or commit on the hub.
        scale: how strongly it works: a number, or keyframes such as ``{0: 1.0, 8: 0.2}``; a call
            may say another.
        start: share of the steps after which it begins; a call may say another.
        end: share of the steps after which it stops, likewise.

    Raises:
        WeightsError: a file that is missing, damaged or no ControlNet.
    """

    filenames: ClassVar[tuple[str, ...]] = (
        'diffusion_pytorch_model.safetensors',
        'diffusion_pytorch_model.fp16.safetensors',
        'diffusion_pytorch_model.bin',
    )
    sparse: ClassVar[bool] = False

    def __init__(
        self,
        from_pretrained: str | Path,
        name: str | None = None,
        subfolder: str | None = None,
        weight_name: str | None = None,
        revision: str | None = None,
        scale: Any = 1.0,
        start: float = 0.0,
        end: float = 1.0,
    ) -> None:
        nn.Module.__init__(self)
        Adapter.__init__(self, from_pretrained, name, subfolder, weight_name, revision)
        self.scale, self.start, self.end = scale, start, end
        config = None
        if weight_name is None and weight_file(from_pretrained, revision) is None:
            config = resolve(
                from_pretrained, subfolder, filenames=('config.json',), revision=revision
            )
        self._fill(config)
        self.requires_grad_(False)
        self.eval()

    def _fill(self, config: Path | None) -> None:
        weights = read_control(self.path, config)
        if weights.sparse != self.sparse:
            kinds = ('ControlNet', 'SparseCtrl')
            raise WeightsError(
                f'{self.path} is {FAMILIES[weights.family].title}: its type is '
                f'{kinds[weights.sparse]!r}, not {kinds[self.sparse]!r}'
            )
        with without_weights():
            self.net = ControlEncoder(**control_arguments(weights.config, self._norm_scope()))
        self.net_config = dict(weights.config)  # as diffusers writes it
        load_into(self.net, weights.tensors, f'the {type(self).__name__} {self.path}', 'float32')

    def _norm_scope(self) -> NormScope:
        return 'frame'

    @classmethod
    def check(cls, config: Mapping[str, Any]) -> None:
        """Refuse shares of the steps that cannot be.

        Raises:
            ConfigError: naming the key and the value.
        """
        start, end = config.get('start', 0.0), config.get('end', 1.0)
        for key, value in (('start', start), ('end', end)):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigError(f'{cls.__name__}: {key}={value!r}, expected a number in [0, 1]')
        if not 0 <= start < end <= 1:
            raise ConfigError(
                f'{cls.__name__}: start={start!r}, end={end!r}: expected 0 <= start < end <= 1'
            )

    def check_fits(self, unet: Any, vae_scale: int) -> None:
        """Raise WeightsError unless it was made for a model like this one.

        Args:
            unet: the denoiser.
            vae_scale: pixels along one side of a latent cell.
        """
        factor = 1 if self.net.sees_latents else vae_scale
        for what, theirs, own in (
            ('channels of the levels', self.net.block_out_channels, unet.block_out_channels),
            ('channels of prompt tokens', self.net.cross_attention_dim, unet.cross_attention_dim),
            ('channels of latents', self.net.in_channels, unet.out_channels),
            ('skip connections', len(self.net.residual_channels), _skips(unet)),
            ('pixels of a latent', self.net.picture_scale, factor),
        ):
            if theirs != own:
                raise WeightsError(
                    f'{self.path} does not fit this model: {what} are {theirs}, the model has {own}'
                )

    def features(self, pictures: Tensor, frames: tuple[int, ...], num_frames: int) -> Tensor:
        """What the network sees of the pictures, the same in every step: [R, T, C, H, W].

        Args:
            pictures: [R, T, 3, H, W] in [-1, 1].
            frames: which frames they are: all.
            num_frames: T.
        """
        assert len(frames) == num_frames == pictures.shape[1]
        return self.net.embed((pictures + 1) / 2)


@MODELS.register_module()
class SparseCtrl(ControlNet):
    """SparseCtrl for AnimateDiff v3: pictures on some frames say what all shall be.

    Reads v3_sd15_sparsectrl_rgb.ckpt and v3_sd15_sparsectrl_scribble.ckpt, and diffusers' folders.

    Args:
        norm_scope: statistics of its motion modules' norms: ``'frame'`` as in the official code,
            or ``'clip'`` as in diffusers.
        others: see ``ControlNet``.
    """

    sparse = True

    def __init__(
        self,
        from_pretrained: str | Path,
        name: str | None = None,
        subfolder: str | None = None,
        weight_name: str | None = None,
        revision: str | None = None,
        scale: Any = 1.0,
        start: float = 0.0,
        end: float = 1.0,
        norm_scope: NormScope = 'frame',
    ) -> None:
        check_norm_scope(norm_scope, 'norm_scope')
        self.__dict__['norm_scope'] = norm_scope  # plain data, which a module may hold early
        super().__init__(from_pretrained, name, subfolder, weight_name, revision, scale, start, end)

    def _norm_scope(self) -> NormScope:
        return self.__dict__['norm_scope']

    def features(self, pictures: Tensor, frames: tuple[int, ...], num_frames: int) -> Tensor:
        """See ``ControlNet.features``.

        Args:
            pictures: [R, K, 3, H, W] in [-1, 1], or latents [R, K, C, H, W] where the network
                sees these.
            frames: which frames they are, K of them.
            num_frames: T.
        """
        seen = pictures if self.net.sees_latents else (pictures + 1) / 2
        count, _, channels, height, width = seen.shape
        whole = seen.new_zeros(count, num_frames, channels + 1, height, width)
        for place, frame in enumerate(frames):
            whole[:, frame, :-1] = seen[:, place]
            whole[:, frame, -1] = 1  # the mask of frames that have a picture
        return self.net.embed(whole)


def _skips(unet: Any) -> int:
    stages = unet.down_blocks
    return 1 + sum(len(stage.resnets) + len(stage.downsamplers) for stage in stages)
