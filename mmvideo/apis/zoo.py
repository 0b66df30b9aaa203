"""Configs by the names that the metafiles give them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from mmvideo.errors import ConfigError, nearest, nearest_beside


def config_roots() -> list[Path]:
    """Folders of configs, nearest first: here, beside the package, inside an installed package."""
    package = Path(__file__).parents[1]
    candidates = [Path('configs'), package.parent / 'configs', package / '.mim' / 'configs']
    return [path for path in candidates if path.is_dir()]


def model_names() -> dict[str, Path]:
    """Every model name of a ``metafile.yml`` and its config."""
    names: dict[str, Path] = {}
    for root in config_roots():
        for metafile in sorted(root.glob('*/metafile.yml')):
            for name, config in _models(metafile):
                names.setdefault(name, root.parent / config)
    return names


@cache
def _models(metafile: Path) -> list[tuple[str, str]]:
    import yaml

    try:
        content = yaml.safe_load(metafile.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f'{metafile} is no YAML: {error}') from None
    models = content.get('Models', []) if isinstance(content, dict) else []
    return [(str(m['Name']), str(m['Config'])) for m in models if {'Name', 'Config'} <= set(m)]


def find_config(name: str | Path) -> Path:
    """The config that ``name`` is the path or the model name of.

    Raises:
        ConfigError: naming the nearest model or file.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    names = model_names()
    if str(name) in names:
        return names[str(name)]
    hint = nearest_beside(path) or nearest(path.stem, names)
    if path.suffix == '.py' or len(path.parts) > 1:
        raise ConfigError(f'{name}: there is no such config.{hint}')
    raise ConfigError(
        f'{name!r} is neither a config file nor a model name of a metafile.{hint} '
        f'Names: {", ".join(sorted(names)[:12]) or "none"}.'
    )
