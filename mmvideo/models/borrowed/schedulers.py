"""The samplers of diffusers, under their class names."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from mmvideo.checkpoints.files import read_json
from mmvideo.checkpoints.sources import resolve
from mmvideo.errors import ConfigError
from mmvideo.models.borrowed.signatures import constructor_keys
from mmvideo.models.borrowed.source import check_keys
from mmvideo.registry import SCHEDULERS

SCHEDULER_NAMES = (
    'DDIMScheduler',
    'DDPMScheduler',
    'DEISMultistepScheduler',
    'DPMSolverMultistepScheduler',
    'DPMSolverSinglestepScheduler',
    'EulerAncestralDiscreteScheduler',
    'EulerDiscreteScheduler',
    'HeunDiscreteScheduler',
    'KDPM2AncestralDiscreteScheduler',
    'KDPM2DiscreteScheduler',
    'LCMScheduler',
    'LMSDiscreteScheduler',
    'PNDMScheduler',
    'TCDScheduler',
    'UniPCMultistepScheduler',
)
_SOURCE_KEYS = ('from_pretrained', 'subfolder', 'revision')


def _register(name: str) -> None:
    def build(
        from_pretrained: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        **keys: Any,
    ) -> Any:
        check_keys(name, keys, accepted())
        settings = _read(name, from_pretrained, subfolder, revision) | keys
        return _class(name).from_config(settings)

    def accepted() -> set[str]:
        return {*constructor_keys('diffusers', name), *_SOURCE_KEYS}

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""Build a diffusers ``{name}``.

    Args:
        from_pretrained: Folder, hub id or ``package://NAME`` with a ``scheduler_config.json``, of
            this or a compatible scheduler.
        subfolder: Folder of the part inside the source.
        revision: Branch, tag or commit on the hub.
        **keys: Keys of the class; with ``from_pretrained`` they override its config.
    """
    build.accepted = accepted  # type: ignore[attr-defined]
    SCHEDULERS.register_module(name=name, module=build)


def _read(
    name: str, source: str | None, subfolder: str | None, revision: str | None
) -> dict[str, Any]:
    if source is None:
        return {}
    path = resolve(source, subfolder, filenames=('scheduler_config.json',), revision=revision)
    config = read_json(path)
    # Another family's config, such as flow matching's, has no betas to take over.
    if 'beta_schedule' not in config and config.get('_class_name') != name:
        found = config.get('_class_name', 'no scheduler')
        raise ConfigError(f'{path} describes {found}, which has no betas; a {name} needs them')
    return config


def _class(name: str) -> Any:
    import diffusers

    found = getattr(diffusers, name)
    lacking = getattr(found, '_backends', ())  # diffusers puts a dummy in the place of the class
    if lacking:
        needed = [package for package in lacking if find_spec(package) is None]
        raise ConfigError(f'{name} needs {" and ".join(needed)}: pip install {" ".join(needed)}')
    return found


for _name in SCHEDULER_NAMES:
    _register(_name)
