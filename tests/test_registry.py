"""The registries build what is registered, and import nothing because a config says so."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from mmvideo import registry
from mmvideo.registry import MODELS, SCHEDULERS, TOKENIZERS, UnknownTypeError

NODES = [name for name in dir(registry) if isinstance(getattr(registry, name), registry.Registry)]


def test_every_root_node_has_a_child():
    import mmengine.registry as root

    roots = {name for name in dir(root) if isinstance(getattr(root, name), root.Registry)}
    assert roots <= set(NODES)
    assert {'SCHEDULERS', 'TOKENIZERS'} <= set(NODES)


@pytest.mark.parametrize('node', NODES)
@pytest.mark.parametrize('name', ['os.system', 'subprocess.getoutput', 'torch.load'])
def test_dotted_names_are_refused(node, name):
    with pytest.raises(UnknownTypeError, match='dotted path'):
        getattr(registry, node).get(name)


@pytest.mark.parametrize(
    ('node', 'typed', 'near'),
    [
        (MODELS, 'AutoEncoderKL', 'AutoencoderKL'),
        (MODELS, 'CLIPTextModle', 'CLIPTextModel'),
        (SCHEDULERS, 'DDIMSheduler', 'DDIMScheduler'),
        (TOKENIZERS, 'CLIPTokeniser', 'CLIPTokenizer'),
    ],
)
def test_misspelt_names_get_their_neighbour(node, typed, near):
    with pytest.raises(UnknownTypeError, match=f"Did you mean '{near}'"):
        node.get(typed)
    assert near in node.names()
    assert node.get(f'mmvideo.{near}') is node.get(near)


def test_borrowed_parts_build_through_the_registries():
    assert type(SCHEDULERS.build(dict(type='DDIMScheduler'))).__name__ == 'DDIMScheduler'
    assert len(TOKENIZERS.build(dict(type='CLIPTokenizer', vocab=['fish']))) > 512


def test_a_command_in_a_config_never_runs(tmp_path):
    """In a child process, for MODELS as MMEngine would build it."""
    script = textwrap.dedent("""
        import sys
        from mmvideo.registry import MODELS, UnknownTypeError
        try:
            MODELS.build(dict(type='subprocess.getoutput', cmd=f'touch {sys.argv[1]}/ran'))
        except (UnknownTypeError, KeyError):
            sys.exit(7)
    """)
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, '-c', script, str(tmp_path)], env=environment)
    assert done.returncode == 7
    assert not (tmp_path / 'ran').exists()
