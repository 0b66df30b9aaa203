"""Installation of mmvideo; the requirements are the lists in ``requirements/``."""

from __future__ import annotations

import ast
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def read_version() -> str:
    """``__version__`` of ``mmvideo/version.py``, which is read and not imported."""
    tree = ast.parse((HERE / 'mmvideo' / 'version.py').read_text(encoding='utf-8'))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__version__':
            return str(ast.literal_eval(node.value))
    raise ValueError('mmvideo/version.py sets no __version__')


def read_requirements(name: str) -> list[str]:
    """The lines of ``requirements/<name>.txt`` without comments."""
    lines = (HERE / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    stripped = (line.split('#')[0].strip() for line in lines)
    return [line for line in stripped if line]


extras = {name: read_requirements(name) for name in ('tests', 'train', 'demo')}
extras['all'] = sorted({line for lines in extras.values() for line in lines})

setup(
    name='mmvideo',
    version=read_version(),
    description='Image animation with video diffusion: AnimateDiff and PIA on MMEngine',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='mmvideo contributors',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=('mmvideo', 'mmvideo.*')),
    package_data={
        'mmvideo': [
            'checkpoints/catalog.json',
            *(f'weights/**/*.{suffix}' for suffix in ('safetensors', 'json', 'txt', 'png')),
        ]
    },
    install_requires=read_requirements('runtime'),
    extras_require=extras,
    zip_safe=False,
)
