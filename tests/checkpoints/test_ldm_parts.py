"""Parts of a model out of one file, out of folders of diffusers, and the memory that takes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
import transformers

from mmvideo.apis import VideoInferencer
from mmvideo.checkpoints.files import read_tensors, write_tensors
from mmvideo.checkpoints.layouts.ldm import PREFIXES, diffusers_to_ldm
from mmvideo.checkpoints.save import save_part
from mmvideo.checkpoints.single_file import (
    TEXT_ENCODER,
    UNET,
    VAE,
    describe_part,
    read_model_part,
    read_single_file,
)
from mmvideo.checkpoints.sources import hub_file, is_weight_file, plan, resolve, weight_file
from mmvideo.config_check import check
from mmvideo.editors.facts import read_facts
from mmvideo.editors.parts import build_unet, weight_files
from mmvideo.errors import ConfigError, WeightsError
from mmvideo.models.borrowed import build_text_encoder, build_tokenizer, build_vae

ROOT = Path(__file__).parents[2]
WIDTHS = (32, 64, 128, 128)
DIM = 48


def drawn(seed, build):
    torch.manual_seed(seed)
    return build().eval()


@pytest.fixture(scope='module')
def parts():
    """Stable Diffusion 1.5 with a tenth of its widths, as diffusers builds it."""
    text = transformers.CLIPTextConfig(
        vocab_size=600, hidden_size=DIM, intermediate_size=96, num_hidden_layers=2,
        projection_dim=DIM, **TEXT_ENCODER,
    )  # fmt: skip
    sizes = dict(block_out_channels=WIDTHS)
    return SimpleNamespace(
        unet=drawn(
            0,
            lambda: diffusers.UNet2DConditionModel.from_config(
                UNET | sizes | dict(cross_attention_dim=DIM)
            ),
        ),
        vae=drawn(1, lambda: diffusers.AutoencoderKL.from_config(VAE | sizes)),
        text_encoder=drawn(2, lambda: transformers.CLIPTextModel(text)),
    )


@pytest.fixture(scope='module')
def content(parts):
    """The file's tensors, float16 as people share them, with what trainers leave in it."""
    half = {
        name: {k: v.half() for k, v in module.state_dict().items()}
        for name, module in vars(parts).items()
    }
    tensors = diffusers_to_ldm(half)
    stem = 'cond_stage_model.transformer.text_model.embeddings.position_ids'
    return {**tensors, stem: torch.arange(77)[None], 'betas': torch.ones(1000)}


@pytest.fixture(scope='module')
def folder(tmp_path_factory, content):
    """``sd.safetensors``, ``sd.ckpt`` (nested, with an EMA copy), ``novae`` and a lone VAE."""
    folder = tmp_path_factory.mktemp('files')
    write_tensors(folder / 'sd.safetensors', content)
    ema = {
        'model_ema.' + key.removeprefix('model.').replace('.', ''): value * 2
        for key, value in content.items()
        if key.startswith(PREFIXES['unet'])
    }
    torch.save({'state_dict': {**content, **ema}, 'epoch': 2}, folder / 'sd.ckpt')
    prefix = PREFIXES['vae']
    vae = {k.removeprefix(prefix): v for k, v in content.items() if k.startswith(prefix)}
    write_tensors(folder / 'vae.safetensors', {**vae, 'loss.logvar': torch.ones(())})
    rest = {k: v for k, v in content.items() if not k.startswith(prefix)}
    write_tensors(folder / 'novae.safetensors', rest)
    return folder


def assert_same(found, expected):
    level = 'text_model.'
    state = {k.removeprefix(level): v for k, v in found.state_dict().items()}
    for key, value in expected.state_dict().items():
        assert torch.equal(state.pop(key.removeprefix(level)), value.half().float()), key
    assert not state


@pytest.mark.parametrize('name', ['sd.safetensors', 'sd.ckpt'])
def test_each_part_takes_its_share_of_one_file(folder, parts, name, caplog):
    path = str(folder / name)
    caplog.set_level(logging.INFO, logger='mmvideo.checkpoints.single_file')
    assert_same(build_unet(dict(type='VideoUNet', from_pretrained=path)), parts.unet)
    assert '1 tensors left out: the noise schedule' in caplog.text
    assert_same(build_vae(from_pretrained=path, subfolder='vae'), parts.vae)
    encoder = build_text_encoder(from_pretrained=path, subfolder='text_encoder')
    assert_same(encoder, parts.text_encoder)
    assert encoder.config.hidden_act == 'quick_gelu'
    half = build_vae(from_pretrained=path, dtype='float16')
    assert half.dtype == torch.float16 and half.config.scaling_factor == 0.18215


def test_diffusers_reads_the_same_file_to_the_same_pictures(folder, parts, tmp_path):
    path = folder / 'sd.safetensors'
    parts.unet.save_config(tmp_path / 'unet')
    parts.vae.save_config(tmp_path / 'vae')
    where = dict(config=str(tmp_path), local_files_only=True)
    unet = diffusers.UNet2DConditionModel.from_single_file(str(path), subfolder='unet', **where)
    vae = diffusers.AutoencoderKL.from_single_file(str(path), subfolder='vae', **where)
    ours = build_unet(dict(type='VideoUNet', from_pretrained=str(path))).eval()
    torch.manual_seed(0)
    latents, context = torch.randn(2, 4, 8, 8), torch.randn(2, 5, DIM)
    with torch.no_grad():
        expected = unet.float()(latents, torch.tensor(500), context).sample
        found = ours(latents[:, :, None], torch.tensor(500), context)[:, :, 0]
        assert expected.std() > 0.01 and (found - expected).abs().max() <= 1e-5
        expected = vae.float().decode(latents).sample
        found = build_vae(from_pretrained=str(path)).decode(latents).sample
        assert (found - expected).abs().max() <= 1e-5
        picture = torch.rand(1, 3, 16, 16)
        found = build_vae(from_pretrained=str(path)).encode(picture).latent_dist.mean
        assert (found - vae.encode(picture).latent_dist.mean).abs().max() <= 1e-5


def test_the_ema_copy_is_a_choice_of_the_unet(folder, parts):
    config = dict(type='VideoUNet', from_pretrained=str(folder / 'sd.ckpt'))
    ema = build_unet(dict(config, ema=True))
    expected = parts.unet.conv_in.weight.half() * 2
    assert torch.equal(ema.conv_in.weight, expected.float())
    assert_same(build_unet(config), parts.unet)
    with pytest.raises(WeightsError, match='leave ema=True out'):
        build_unet(dict(config, from_pretrained=str(folder / 'sd.safetensors'), ema=True))
    with pytest.raises(ConfigError, match='needs a from_pretrained'):
        build_unet(dict(type='VideoUNet', ema=True))
    with pytest.raises(WeightsError, match='is a folder'):
        read_model_part(str(folder), 'unet', ema=True)


def test_the_key_ema_belongs_to_the_unet_alone(folder):
    path = str(folder / 'sd.ckpt')
    model = dict(
        type='TextToImage',
        unet=dict(type='VideoUNet', from_pretrained=path, ema=True),
        vae=dict(type='AutoencoderKL', from_pretrained=path),
        text_encoder=dict(type='CLIPTextModel', from_pretrained=path),
        tokenizer=dict(type='CLIPTokenizer', vocab=['a']),
        scheduler=dict(type='DDIMScheduler'),
    )
    check(dict(model=model), 'x.py')
    model['vae']['ema'] = True
    with pytest.raises(ConfigError, match=r"model\.vae: AutoencoderKL takes no 'ema'"):
        check(dict(model=model), 'x.py')
    facts = read_facts(model)
    assert (facts.vae_scale, facts.default_size) == (8, 512)
    assert weight_files(model) == [folder / 'sd.ckpt']


def test_a_plan_counts_each_part_of_a_file_once(folder, parts, tmp_path):
    path = str(folder / 'sd.safetensors')
    config = tmp_path / 'a.py'
    config.write_text(f"""model = dict(
        type='TextToImage',
        unet=dict(type='VideoUNet', from_pretrained={path!r}),
        vae=dict(type='AutoencoderKL', from_pretrained={path!r}),
        text_encoder=dict(type='CLIPTextModel', from_pretrained={path!r}),
        tokenizer=dict(type='CLIPTokenizer', vocab=['a']),
        scheduler=dict(type='DDIMScheduler'),
    )\ninfer = dict(prompt='a')""")
    plan = VideoInferencer(config, device='cpu').plan()
    found = {part.name: part.parameters for part in plan.parts}
    for name, module in vars(parts).items():
        assert found[name] == sum(p.numel() for p in module.parameters())
    assert (plan.height, plan.width) == (512, 512)
    assert plan.weights_bytes == 4 * sum(found[name] for name in vars(parts))


def test_lone_parts_load(folder, parts, tmp_path):
    assert_same(build_vae(from_pretrained=str(folder / 'vae.safetensors')), parts.vae)
    # A whole CLIP, for its text half.
    text = {f'text_model.{k}': v.half() for k, v in parts.text_encoder.state_dict().items()}
    image = {
        'vision_model.embeddings.patch_embedding.weight': torch.ones(2, 3, 4, 4),
        'logit_scale': torch.ones(()),
    }
    path = write_tensors(tmp_path / 'clip.safetensors', {**text, **image})
    assert_same(build_text_encoder(from_pretrained=str(path)), parts.text_encoder)
    half = {k: v.half() for k, v in parts.vae.state_dict().items()}
    for name, tensors in (
        ('whole.safetensors', diffusers_to_ldm({'vae': half})), ('ours.safetensors', half),
    ):  # fmt: skip
        write_tensors(tmp_path / name, tensors)
        assert_same(build_vae(from_pretrained=str(tmp_path / name)), parts.vae)
    # A config.json beside names what no tensor tells.
    path = save_part(tmp_path / 'vae', {**parts.vae.config, 'scaling_factor': 0.5}, parts.vae)
    assert build_vae(from_pretrained=str(path)).config.scaling_factor == 0.5


def test_what_a_file_lacks_is_said_with_the_way_out(folder):
    novae = str(folder / 'novae.safetensors')
    with pytest.raises(WeightsError, match=r'novae\.safetensors holds no vae.*subfolder=.vae'):
        build_vae(from_pretrained=novae)
    build_unet(dict(type='VideoUNet', from_pretrained=novae))
    lone = str(folder / 'vae.safetensors')
    with pytest.raises(WeightsError, match='holds no text_encoder'):
        build_text_encoder(from_pretrained=lone)
    with pytest.raises(WeightsError, match=r'weight file.*vocab\.json.*subfolder=.tokenizer'):
        build_tokenizer(from_pretrained=novae, subfolder='tokenizer')
    with pytest.raises(WeightsError, match=r"Did you mean 'novae\.safetensors'"):
        build_vae(from_pretrained=str(folder / 'novea.safetensors'))


def test_a_part_in_the_place_of_another_is_refused(parts, tmp_path):
    path = write_tensors(tmp_path / 'a.safetensors', parts.vae.state_dict())
    with pytest.raises(WeightsError, match='is an AutoencoderKL, expected an image UNet'):
        build_unet(dict(type='VideoUNet', from_pretrained=str(path)))
    with pytest.raises(WeightsError, match='expected a CLIP text encoder'):
        build_text_encoder(from_pretrained=str(path))
    with pytest.raises(WeightsError, match='holds no EMA weights'):
        read_single_file(path, 'vae', ema=True)


def test_an_incomplete_file_names_what_is_missing(content, tmp_path):
    absent = PREFIXES['unet'] + 'input_blocks.4.0.in_layers.2.weight'
    path = write_tensors(tmp_path / 'a.ckpt', {k: v for k, v in content.items() if k != absent})
    with pytest.raises(WeightsError, match=r'no down_blocks\.1\.resnets\.0\.conv1\.weight'):
        build_unet(dict(type='VideoUNet', from_pretrained=str(path)))
    path = write_tensors(tmp_path / 'b.ckpt', {k: v for k, v in content.items() if 'fc2' not in k})
    with pytest.raises(WeightsError, match=r'4 missing: .*mlp\.fc2'):
        build_text_encoder(from_pretrained=str(path))
    with pytest.raises(WeightsError, match='unet has no'):
        describe_part('unet', {}, 'x')


# Whole pipelines --------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def pipeline(tmp_path_factory, parts):
    """A folder that diffusers wrote, in two variants."""
    folder = tmp_path_factory.mktemp('pipeline')
    for name, module in vars(parts).items():
        module.save_pretrained(folder / name)
        module.save_pretrained(folder / name, variant='fp16')
        for path in (folder / name).glob('*.fp16.*'):
            tensors = read_tensors(path)
            write_tensors(path, {k: (v * 2).half() for k, v in tensors.items()})
    index = dict(
        _class_name='StableDiffusionPipeline', safety_checker=[None, None],
        unet=['diffusers', 'UNet2DConditionModel'], vae=['diffusers', 'AutoencoderKL'],
        text_encoder=['transformers', 'CLIPTextModel'], tokenizer=['transformers', 'CLIPTokenizer'],
    )  # fmt: skip
    (folder / 'model_index.json').write_text(json.dumps(index))
    return folder


def test_whole_pipelines_and_their_variants(pipeline, parts):
    source = str(pipeline)
    unet = build_unet(dict(type='VideoUNet', from_pretrained=source, subfolder='unet'))
    assert torch.equal(unet.conv_in.weight, parts.unet.conv_in.weight)
    for build, name in ((build_vae, 'vae'), (build_text_encoder, 'text_encoder')):
        plain = build(from_pretrained=source, subfolder=name)
        other = build(from_pretrained=source, subfolder=name, variant='fp16')
        for key, value in other.state_dict().items():
            assert torch.equal(value, (plain.state_dict()[key] * 2).half().float())


def test_model_index_tells_what_a_folder_lacks(pipeline):
    source = str(pipeline)
    listed = r"subfolder, of \['text_encoder', 'tokenizer', 'unet', 'vae'\]"
    with pytest.raises(WeightsError, match=f'a StableDiffusionPipeline: name a part as {listed}'):
        build_vae(from_pretrained=source)
    with pytest.raises(WeightsError, match="lists 'tokenizer', so the copy of this Stable"):
        build_tokenizer(from_pretrained=source, subfolder='tokenizer')
    with pytest.raises(WeightsError, match="without 'image_encoder'; its parts: .*'unet', 'vae'"):
        resolve(source, 'image_encoder', filenames=('config.json',))
    with pytest.raises(WeightsError, match=r'no .*\.bf16\.safetensors.*so the copy'):
        build_vae(from_pretrained=source, subfolder='vae', variant='bf16')


# Files on the hub -------------------------------------------------------------------------------


def test_a_file_of_the_hub_is_told_from_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'models').mkdir()
    assert hub_file('some/model/v1-5.safetensors') == ('some/model', 'v1-5.safetensors')
    assert hub_file('some/model/sub/a b.ckpt') == ('some/model', 'sub/a b.ckpt')
    for source in (
        'some/model', 'some/v1-5.safetensors', 'some/model/vae', 'some/model/../v1-5.ckpt',
        'models/sd/v1-5.ckpt', '/some/model/v1-5.ckpt', './some/model/v1-5.ckpt',
        'package://some/model/v1-5.ckpt', Path('some/model/v1-5.ckpt'),
    ):  # fmt: skip
        assert hub_file(source) is None
    with pytest.raises(WeightsError, match='does not exist'):
        is_weight_file('models/sd/v1-5.ckpt')
    (file,) = plan('some/model/v1-5.safetensors', 'vae')
    assert (file.name, file.present) == ('v1-5.safetensors', False)
    with pytest.raises(WeightsError, match=r'some/model.*cannot be reached to fetch v1-5\.ckpt'):
        weight_file('some/model/v1-5.ckpt')


CHILD = """
import ctypes, gc, json, sys
import torch
from mmvideo.checkpoints.sources import plan, resolve
from mmvideo.errors import WeightsError
from mmvideo.models.borrowed import build_vae

def resident():
    gc.collect()
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # what is free is not held against it
    if trim is not None:
        trim(0)
    fields = dict(line.split(':') for line in open('/proc/self/status') if line.startswith('Rss'))
    return {name: int(value.split()[0]) * 1024 for name, value in fields.items()}

(file,) = plan('some/model/v1-5.safetensors')
try:
    resolve('some/model', 'vae', filenames=('config.json',))
except WeightsError as error:
    message = str(error)
build_vae(from_pretrained='some/model/v1-5.safetensors', dtype='float16')  # libraries are here now
before = resident() if sys.platform == 'linux' else None
vae = build_vae(from_pretrained='some/model/v1-5.safetensors', dtype='float16')
after = resident() if before else None
weights = sum(p.nbytes for p in vae.parameters())
total = float(vae.encoder.conv_in.weight.detach().double().sum())
print(json.dumps(dict(before=before, after=after, weights=weights, size=file.size, sum=total,
                      error=message)))
"""


def test_a_file_of_the_hub_is_mapped_and_gives_its_memory_back(content, parts, tmp_path):
    """In a process of its own, whose cache is filled as the hub's client fills it."""
    repository = tmp_path / 'hub' / 'models--some--model'
    snapshot = repository / 'snapshots' / ('a' * 40)
    ballast = {'loss.ballast': torch.ones(64 * 2**18)}  # 64 MiB that nobody asked for
    path = write_tensors(snapshot / 'v1-5.safetensors', {**content, **ballast})
    (repository / 'refs').mkdir()
    (repository / 'refs' / 'main').write_text('a' * 40)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    environment = {**os.environ, 'HF_HUB_CACHE': str(tmp_path / 'hub'), 'PYTHONPATH': paths}
    environment['CUDA_VISIBLE_DEVICES'] = ''
    child = subprocess.run(
        [sys.executable, '-c', CHILD], env=environment, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr[-3000:]
    found = json.loads(child.stdout.splitlines()[-1])
    assert found['size'] == path.stat().st_size
    expected = float(parts.vae.encoder.conv_in.weight.detach().half().double().sum())
    assert abs(found['sum'] - expected) < 1e-9
    assert 'some/model' in found['error']
    if found['before'] is None:
        return
    grown = {name: found['after'][name] - size for name, size in found['before'].items()}
    # The VAE's own 10 MB; of the file's 100 MB neither what was copied nor what was not asked for.
    assert grown['RssAnon'] < 1.2 * found['weights']
    assert grown['RssFile'] < 0.2 * found['weights'] < ballast['loss.ballast'].nbytes
