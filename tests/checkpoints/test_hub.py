"""Files of the hub, against a server on this machine: resumed, verified, recorded, offline."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import save

from mmvideo.apis import download as api
from mmvideo.checkpoints import catalog, hashes, transfer
from mmvideo.checkpoints import hub as hub_files
from mmvideo.checkpoints.files import read_tensors
from mmvideo.checkpoints.sources import is_weight_file, plan, resolve, resolve_weights
from mmvideo.errors import WeightsError

REPO = 'some/model'
WEIGHTS = 'diffusion_pytorch_model.safetensors'


def weights(seed: int = 0, count: int = 50_000) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    return save({'x': torch.randn(count, generator=generator)})


@pytest.fixture
def files(hub):
    hub.repositories[REPO] = {'config.json': b'{"a": 1}', WEIGHTS: weights(), 'README.md': b'#'}
    return hub.repositories[REPO]


@pytest.fixture
def cache(tmp_path):
    return tmp_path / 'home' / 'hub'


def rests(cache):
    """What a finished download must not leave."""
    return [p.name for p in cache.rglob('*') if p.name.endswith(('.incomplete', '.part'))]


def test_a_file_is_fetched_once_into_the_layout_of_the_hub(hub, files, cache):
    (found,) = resolve_weights(REPO)
    assert found.read_bytes() == files[WEIGHTS]
    digest = hashlib.sha256(files[WEIGHTS]).hexdigest()
    repository = cache / 'models--some--model'
    assert found == repository / 'snapshots' / hub.commit / WEIGHTS
    assert found.is_symlink() and found.resolve() == repository / 'blobs' / digest
    assert (repository / 'refs' / 'main').read_text() == hub.commit
    assert not rests(cache)
    before = len(hub.requests)
    assert resolve_weights(REPO) == [found]
    assert len(hub.requests) == before
    from huggingface_hub import hf_hub_download, scan_cache_dir

    hub.transfers.clear()
    assert hf_hub_download(REPO, WEIGHTS, cache_dir=cache) == str(found)
    assert not hub.transfers
    scanned = scan_cache_dir(cache)
    assert not scanned.warnings and [r.repo_id for r in scanned.repos] == [REPO]


def test_a_cut_connection_is_resumed_in_the_same_call(hub, files, cache, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, 'DOWNLOAD_CHUNK_SIZE', 10_000)
    hub.cut = [60_000, 50_000]
    (found,) = resolve_weights(REPO)
    assert found.read_bytes() == files[WEIGHTS]
    firsts = [first for _, first in hub.transfers]
    assert len(firsts) == 3 and firsts[0] == 0 < firsts[1] <= 60_000 < firsts[2] <= 110_000


def test_a_download_that_broke_off_goes_on_in_the_next_call(hub, files, cache, monkeypatch):
    broken_after(monkeypatch, files[WEIGHTS][:70_000])
    with pytest.raises(transfer.BrokenDownloadError, match=r'70000 of \d+ bytes are here'):
        transfer.download(REPO, WEIGHTS)
    monkeypatch.undo_transfer()
    assert len(rests(cache)) == 1
    found = transfer.download(REPO, WEIGHTS)
    assert hub.transfers == [(WEIGHTS, 70_000)]
    assert found.read_bytes() == files[WEIGHTS] and not rests(cache)


def broken_after(monkeypatch, data):
    """The next transfers write ``data`` and then lose the connection for good."""
    real = transfer.http_get

    def lost(url, file, **options):
        file.write(data)
        raise ConnectionResetError('connection reset by peer')

    monkeypatch.setattr(transfer, 'http_get', lost)
    monkeypatch.undo_transfer = lambda: monkeypatch.setattr(transfer, 'http_get', real)


def test_a_server_without_ranges_starts_again(hub, files, cache, monkeypatch):
    broken_after(monkeypatch, files[WEIGHTS][:70_000])
    with pytest.raises(transfer.BrokenDownloadError):
        transfer.download(REPO, WEIGHTS)
    monkeypatch.undo_transfer()
    hub.ignore_range = True
    assert transfer.download(REPO, WEIGHTS).read_bytes() == files[WEIGHTS]


def test_wrong_bytes_are_refused_and_deleted(hub, files, cache):
    hub.corrupt = True
    with pytest.raises(hashes.DamagedError, match='damaged.*the hub says'):
        resolve_weights(REPO)
    assert not rests(cache) and not list(cache.rglob(WEIGHTS))
    assert not hashes.recorded(cache)
    hub.corrupt = False
    assert resolve_weights(REPO)[0].read_bytes() == files[WEIGHTS]


def test_a_partial_file_with_wrong_bytes_is_not_used(hub, files, cache):
    remote = transfer.look_up(REPO, WEIGHTS, None)
    blobs = cache / 'models--some--model' / 'blobs'
    blobs.mkdir(parents=True)
    transfer.partial_path(blobs / remote.etag).write_bytes(b'x' * 1000)
    with pytest.raises(hashes.DamagedError):
        transfer.download(REPO, WEIGHTS)
    assert transfer.download(REPO, WEIGHTS).read_bytes() == files[WEIGHTS]


def test_small_files_are_compared_with_their_git_hash(hub, files, cache):
    assert resolve(REPO, filenames=('config.json',)).read_bytes() == files['config.json']
    blob = next((cache / 'models--some--model' / 'blobs').iterdir())
    blob.write_bytes(b'{"a": 2}')
    with pytest.raises(hashes.DamagedError):
        hub_files.verify_file(REPO, 'config.json')
    assert not hashes.recorded(cache)  # texts are not recorded


def test_the_hash_is_recorded_first_and_checked_afterwards(hub, files, cache):
    first = files[WEIGHTS]
    resolve_weights(REPO)
    records = hashes.recorded(cache)
    assert list(records) == [f'{REPO}/{WEIGHTS}@main']
    assert records[f'{REPO}/{WEIGHTS}@main'].sha256 == hashlib.sha256(first).hexdigest()
    assert hashes.records_path(cache) == cache.parent / 'hub.sha256.json'
    shutil.rmtree(cache)  # a person who makes room
    files[WEIGHTS], hub.commit = weights(1), 'd' * 40
    with pytest.raises(WeightsError, match='has changed') as caught:
        resolve_weights(REPO)
    for part in (WEIGHTS, REPO, 'd' * 40, hashlib.sha256(first).hexdigest(), '--accept-change'):
        assert part in str(caught.value)
    count = len(hub.transfers)
    (found,) = api.download(REPO, WEIGHTS, accept_change=True)
    assert found.read_bytes() == files[WEIGHTS]
    assert len(hub.transfers) == count  # the whole file was there already
    assert hashes.recorded(cache)[f'{REPO}/{WEIGHTS}@main'].commit == 'd' * 40
    shutil.rmtree(cache)
    assert resolve_weights(REPO)[0].read_bytes() == files[WEIGHTS]


@pytest.fixture
def published(monkeypatch, hub):
    """A catalogue with one file, of which a size and the first digits of a hash are published."""
    data = weights(3)
    known = (catalog.Known(len(data), hashlib.sha256(data).hexdigest()[:12]),)
    entry = catalog.Entry('thing', 'pia', REPO, 'thing.ckpt', known=known, note='a thing')
    folder = catalog.Entry('whole', 'unet', REPO, parts=('unet', 'vae'), revision=hub.commit)
    table = {'thing': entry, 'whole': folder}
    monkeypatch.setattr(catalog, 'entries', lambda: table)
    monkeypatch.setattr(api, 'entries', lambda: table)
    hub.repositories[REPO] = {'thing.ckpt': data, 'config.json': b'{}', 'model_index.json': b'{}'}
    for part in ('unet', 'vae', 'safety_checker'):
        hub.repositories[REPO] |= {
            f'{part}/config.json': json.dumps({'part': part}).encode(),
            f'{part}/diffusion_pytorch_model.bin': b'old',
            f'{part}/{WEIGHTS}': weights(len(part), 100),
            f'{part}/diffusion_pytorch_model.fp16.safetensors': weights(9, 50),
        }
    return hub


def test_a_catalogue_name_is_its_file_or_folder(published):
    assert is_weight_file('catalog://thing') and not is_weight_file('catalog://whole')
    (planned,) = plan('catalog://thing')
    assert (planned.name, planned.present) == ('thing.ckpt', False)
    (found,) = resolve_weights('catalog://thing')
    assert found.name == 'thing.ckpt' and 'x' in read_tensors(found)
    assert resolve('catalog://whole', 'vae', filenames=('config.json',)).parent.name == 'vae'
    assert [f.name for f in plan('catalog://whole', 'unet')] == [
        'unet/config.json', f'unet/{WEIGHTS}',
    ]  # fmt: skip
    with pytest.raises(WeightsError, match="no 'thong'. Did you mean 'thing'"):
        resolve_weights('catalog://thong')


def test_another_file_than_the_published_one_is_refused(published, cache):
    published.repositories[REPO]['thing.ckpt'] = weights(4)
    with pytest.raises(WeightsError, match='not the published file') as caught:
        resolve_weights('catalog://thing')
    assert '--accept-change' in str(caught.value)
    api.download('thing', accept_change=True)
    assert resolve_weights('catalog://thing')[0].read_bytes() == weights(4)
    assert [r.accepted for r in hashes.recorded(cache).values()] == [True]


def test_what_a_folder_name_fetches(published):
    fetched = [p.relative_to(p.parents[1]).as_posix() for p in api.download('whole')]
    assert fetched[1:] == [
        'unet/config.json', f'unet/{WEIGHTS}', 'vae/config.json', f'vae/{WEIGHTS}',
    ]  # fmt: skip
    half = api.wanted('whole', variant='fp16').files
    assert [f for f in half if f.startswith('vae/')] == [
        'vae/config.json', 'vae/diffusion_pytorch_model.fp16.safetensors',
    ]  # fmt: skip
    assert not any('safety_checker' in f for f in api.wanted(REPO).files)
    lines = api.list_files(api.wanted('whole'))
    assert all('here' in line for line in lines[1:]) and len(lines) == 6
    with pytest.raises(WeightsError, match="no weights of the variant 'int8'"):
        api.wanted('whole', variant='int8')
    with pytest.raises(WeightsError, match="Did you mean 'thing.ckpt'"):
        api.wanted(REPO, 'thing.ckp')


def test_verify_names_every_damaged_or_missing_file(published, cache):
    api.download('whole')
    assert len(api.verify('whole')) == 5
    for link in cache.rglob(WEIGHTS):
        with open(link.resolve(), 'r+b') as file:
            file.seek(200)
            file.write(b'\xff')
    next(cache.rglob('vae/config.json')).unlink()
    with pytest.raises(WeightsError) as caught:
        api.verify('whole')
    message = str(caught.value)
    assert message.count('is damaged') == 2 and 'vae/config.json' in message
    assert 'is not here' in message and f'tools/download.py {REPO}' in message


def test_offline_says_what_is_missing_and_how_to_get_it(published, monkeypatch, cache):
    from huggingface_hub import constants

    resolve_weights('catalog://thing')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    asked = len(published.requests)
    assert resolve_weights('catalog://thing')[0].is_file()
    assert len(api.verify('thing')) == 1
    with pytest.raises(WeightsError) as caught:
        resolve('catalog://whole', 'vae', filenames=('config.json',))
    for part in (
        *('catalog://whole', REPO, 'vae/config.json', 'tools/download.py whole', 'HF_HOME'),
        'HF_HUB_OFFLINE is set',
    ):
        assert part in str(caught.value)
    shutil.rmtree(cache)
    with pytest.raises(WeightsError, match='tools/download.py whole'):
        api.download('whole')
    with pytest.raises(WeightsError, match='thing.ckpt'):
        api.download('thing')
    assert len(published.requests) == asked


@pytest.mark.parametrize(
    ('source', 'file', 'words'),
    [
        ('nobody/none', None, 'neither a folder here nor a repository'),
        (REPO, 'absent.ckpt', "no file 'absent.ckpt'"),
        ('a b/c', None, 'neither a folder here'),
    ],
)
def test_wrong_names_are_refused(hub, files, source, file, words):
    with pytest.raises(WeightsError, match=words):
        api.download(source, file)


def test_a_wrong_revision_is_named(hub, files):
    with pytest.raises(WeightsError, match="no revision 'v9'"):
        hub_files.fetch(REPO, None, ['config.json'], 'v9')


def test_no_connection_at_all_is_one_error(hub, files, monkeypatch):
    from huggingface_hub import constants

    nowhere = 'http://127.0.0.1:9'
    monkeypatch.setattr(constants, 'ENDPOINT', nowhere)
    template = nowhere + '/{repo_id}/resolve/{revision}/{filename}'
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
    with pytest.raises(hub_files.HubUnreachableError, match='cannot be reached'):
        resolve_weights(REPO)
    assert [f.size for f in plan(REPO)] == [None, None]


def test_something_that_is_no_hub_is_refused(hub, files):
    hub.commit = '../../outside'
    with pytest.raises(WeightsError, match='no hub'):
        transfer.download(REPO, 'config.json')


def test_a_full_disk_is_said_before_anything_is_fetched(hub, files, monkeypatch, cache):
    usage = shutil.disk_usage(cache.parents[1])._replace(free=1000)
    monkeypatch.setattr(transfer.shutil, 'disk_usage', lambda folder: usage)
    with pytest.raises(WeightsError, match='bytes more, and the disk'):
        resolve_weights(REPO)
    assert not hub.transfers


def test_damaged_records_are_an_error_not_a_new_start(hub, files, cache):
    resolve_weights(REPO)
    path = hashes.records_path(cache)
    path.write_text('{"a": {"b": 1}}')
    with pytest.raises(WeightsError, match='hub.sha256.json holds no records'):
        hub_files.verify_file(REPO, WEIGHTS)
    path.write_text('{"a": ')
    with pytest.raises(WeightsError, match='no JSON'):
        hub_files.verify_file(REPO, WEIGHTS)


def test_records_can_be_kept_elsewhere(hub, files, cache, tmp_path, monkeypatch):
    monkeypatch.setenv('MMVIDEO_HASHES', str(tmp_path / 'mine' / 'hashes.json'))
    resolve_weights(REPO)
    assert list(json.loads((tmp_path / 'mine' / 'hashes.json').read_text()))
    assert not (cache.parent / 'hub.sha256.json').exists()


def test_progress_is_ten_plain_lines():
    lines: list[str] = []
    report = api.Lines(lines.append)
    for done in range(0, 1001):
        report('a.ckpt', done * 10**6, 10**9)
    assert len(lines) == 11
    assert lines[0].startswith('a.ckpt: 0 B of 1 GB (0 %)')
    assert lines[-1] == 'a.ckpt: 1 GB of 1 GB (100 %)'
