"""Splits and subsets, and the sets of JPEG files, on small ones that Pillow writes."""

import dataclasses
import io
import zipfile
import zlib

import numpy as np
import pytest
import torch
from experiment_cases import job_of
from PIL import Image

from zanalysis.errors import InputError, ZAnalysisError
from zanalysis.experiments.augmentations import Statistics, crop_boxes, standardized
from zanalysis.experiments.data import Dataset, MemorySplit, decoding, imagenets, load
from zanalysis.experiments.data.choosing import stratified
from zanalysis.experiments.feeding import feed_of

WNIDS = ["n03", "n01", "n02"]


def jpeg(width=64, height=64, mode="RGB", seed=0, form="JPEG"):
    # Smooth, so that decoding and resizing have something to agree on.
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3)).astype(np.uint8))
    out = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(out, form)
    return out.getvalue()


def pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)


def tiny_files():
    files = {"wnids.txt": "\n".join(WNIDS).encode() + b"\n", "words.txt": b"n01\ta thing\n"}
    for k, wnid in enumerate(WNIDS):
        for i in range(3):
            mode = "L" if (k, i) == (0, 1) else "RGB"
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = jpeg(seed=10 * k + i, mode=mode)
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"n01_0.JPEG\t0\t0\t63\t63\n"
    lines = []
    for i in range(6):
        files[f"val/images/val_{i}.JPEG"] = jpeg(seed=100 + i)
        lines.append(f"val_{i}.JPEG\t{WNIDS[i % 3]}\t0\t0\t63\t63")
    files["val/val_annotations.txt"] = "\n".join(lines).encode() + b"\n"
    files["test/images/test_0.JPEG"] = jpeg()
    return files


def write_folder(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_zip(path, files, top="tiny-imagenet-200/"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(top + name, content)


def test_tiny_imagenet_is_read_from_its_zip_and_from_its_folder(tmp_path):
    files = tiny_files()
    (tmp_path / "a").mkdir()
    write_zip(tmp_path / "a" / "tiny-imagenet-200.zip", files)
    write_folder(tmp_path / "b" / "tiny-imagenet" / "tiny-imagenet-200", files)
    packed, unpacked = load("tiny-imagenet", tmp_path / "a"), load("tiny-imagenet", tmp_path / "b")
    assert packed.fingerprint == unpacked.fingerprint
    assert (packed.image, packed.classes) == ((3, 64, 64), 3)
    names = [f"train/{wnid}/images/{wnid}_{i}.JPEG" for wnid in sorted(WNIDS) for i in range(3)]
    expected = np.stack([pixels(files[name]) for name in names])
    assert np.array_equal(packed.train.images.numpy(), expected)
    assert packed.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert packed.test.labels.tolist() == [sorted(WNIDS).index(WNIDS[i % 3]) for i in range(6)]
    assert np.array_equal(packed.test.images[4].numpy(), pixels(files["val/images/val_4.JPEG"]))
    # The grey one has three equal channels.
    grey = packed.train.images[names.index("train/n03/images/n03_1.JPEG")]
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])


NAMED = "train/n01/images/n01_1.JPEG"
TINY_FAULTS = {
    "corrupt image": ({NAMED: jpeg()[:-200]}, r"n01_1\.JPEG.*cannot be read as a JPEG file: .*truncated"),
    "empty image": ({NAMED: b""}, r"n01_1\.JPEG.*cannot be read as a JPEG file: it is none"),
    "another format": ({NAMED: jpeg(form="GIF", mode="P")}, r"n01_1\.JPEG.*it is none"),
    "another size": ({NAMED: jpeg(32, 64)}, r"n01_1\.JPEG.* has 32×64 pixels, expected 64×64"),
    "no class": ({"wnids.txt": b""}, r"wnids\.txt.* should name each class once"),
    "a class twice": ({"wnids.txt": b"n01\nn01\n"}, r"wnids\.txt.* should name each class once"),
    "classes that are no text": ({"wnids.txt": b"\xff\xfe"}, r"wnids\.txt.* is no text"),
    "a missing class": ({"wnids.txt": b"n01\nn02\nn03\nn04\n"}, r"n04"),
    "a class without images": ({f"train/n01/images/n01_{i}.JPEG": None for i in range(3)}, r"n01/images.*"),
    "empty annotations": ({"val/val_annotations.txt": b""}, r"val_annotations\.txt.* is empty"),
    "an unknown class": (
        {"val/val_annotations.txt": b"val_0.JPEG\tn09\t0\n"},
        r"annotations\.txt.*, line 1, should",
    ),
    "a path": (
        {"val/val_annotations.txt": b"../../train/n01/images/n01_0.JPEG\tn01\n"},
        "line 1, should be a file",
    ),
    "a class not annotated": ({"val/val_annotations.txt": b"val_0.JPEG\tn01\n"}, "names no image of n02"),
    "a missing image": ({"val/images/val_3.JPEG": None}, r"val_3\.JPEG"),
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("case", sorted(TINY_FAULTS))
def test_faults_of_tiny_imagenet_are_named(tmp_path, case, packed):
    changed, says = TINY_FAULTS[case]
    files = {name: content for name, content in {**tiny_files(), **changed}.items() if content is not None}
    if packed:
        write_zip(tmp_path / "tiny-imagenet-200.zip", files)
    else:
        write_folder(tmp_path / "tiny-imagenet-200", files)
    with pytest.raises(ZAnalysisError, match=says):
        load("tiny-imagenet", tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more"])
def test_an_archive_that_is_none_is_named(tmp_path, content):
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(content)
    with pytest.raises(ZAnalysisError, match=r"cannot read .*tiny-imagenet-200\.zip: .*zip"):
        load("tiny-imagenet", tmp_path)


def test_bits_that_flipped_in_an_archive_are_noticed(tmp_path):
    path = tmp_path / "tiny-imagenet-200.zip"
    write_zip(path, tiny_files())
    content = bytearray(path.read_bytes())
    content[content.index(b"n01_0.JPEG") + 200] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ZAnalysisError, match=r"cannot read .*n01_0\.JPEG in .*zip: "):
        load("tiny-imagenet", tmp_path)


def test_a_file_that_unpacks_to_too_much_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("zanalysis.experiments.data.imagenets.MOST_BYTES", 1 << 16)
    write_zip(tmp_path / "tiny-imagenet-200.zip", {**tiny_files(), NAMED: bytes(1 << 20)})
    with pytest.raises(ZAnalysisError, match=r"n01_1\.JPEG in .* holds more than 65536 bytes"):
        load("tiny-imagenet", tmp_path)


def test_an_image_that_claims_too_many_pixels_is_left():
    header = bytearray(jpeg(form="PNG"))
    header[16:24] = (30_000).to_bytes(4, "big") * 2  # without its checksum the header would be refused anyway
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    with pytest.raises(ZAnalysisError, match=r"a\.png cannot be read as a JPEG file: .*900000000 pixels"):
        decoding.opened(bytes(header), "a.png")


@pytest.fixture
def folders(tmp_path):
    sizes = [(300, 400), (500, 280), (230, 230), (640, 256)]
    files = {}
    for k, wnid in enumerate(WNIDS):
        for i, (width, height) in enumerate(sizes):
            mode = ["RGB", "L", "CMYK", "RGB"][i]
            files[f"train/{wnid}/{wnid}_{i}.JPEG"] = jpeg(width, height, mode, seed=10 * k + i)
        files[f"val/{wnid}/ILSVRC_{k}.JPEG"] = jpeg(*sizes[k], seed=50 + k, form="PNG" if k == 0 else "JPEG")
    write_folder(tmp_path / "imagenet", files)
    return tmp_path, files


def test_imagenet_folders_are_decoded_when_asked(folders):
    root, files = folders
    loaded = load("imagenet", root)
    assert (len(loaded.train), len(loaded.test), loaded.classes) == (12, 3, 3)
    assert (loaded.image, loaded.features) == ((3, 224, 224), 3 * 224 * 224)
    assert loaded.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    images, labels = loaded.train.batch([5, 0])
    assert (images.shape, images.dtype, labels.tolist()) == ((2, 3, 224, 224), torch.float32, [1, 0])
    # Literally: the shorter side to 256, then the centre.
    image = Image.open(io.BytesIO(files["train/n02/n02_1.JPEG"])).convert("RGB")
    resized = image.resize((int(256 * 500 / 280), 256), Image.Resampling.BILINEAR)
    left, top = round((resized.width - 224) / 2), 16
    expected = (
        np.asarray(resized)[top : top + 224, left : left + 224].transpose(2, 0, 1).astype(np.float32) / 255
    )
    assert torch.equal(images[0], torch.from_numpy(expected))
    with pytest.raises(InputError, match="imagenet is not kept in memory; take batches of it"):
        _ = loaded.train_images
    assert loaded.train.batch([])[0].shape == (0, 3, 224, 224)


def test_random_resized_crops_of_files_follow_the_generator(folders):
    root, files = folders
    train = load("imagenet", root).train
    draws = [train.batch([0, 1, 2], resized_crop=torch.Generator().manual_seed(s))[0] for s in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    # Literally, the second image by its box.
    boxes = crop_boxes(
        torch.tensor([400, 280, 230]), torch.tensor([300, 500, 230]), torch.Generator().manual_seed(3)
    )
    top, left, height, width = (int(side[1]) for side in boxes)
    image = Image.open(io.BytesIO(files["train/n01/n01_1.JPEG"])).convert("RGB")
    cut = image.crop((left, top, left + width, top + height)).resize((224, 224), Image.Resampling.BILINEAR)
    assert torch.equal(
        draws[0][1], torch.from_numpy(np.asarray(cut).transpose(2, 0, 1).astype(np.float32) / 255)
    )


def test_folders_are_standardized_without_decoding_them_all(folders, monkeypatch):
    job = dataclasses.replace(job_of("table-2-imagenet", "zero"), data=load("imagenet", folders[0]))
    opened = []
    monkeypatch.setattr(
        imagenets, "_centre", lambda path, one=imagenets._centre: opened.append(path) or one(path)
    )
    feed = feed_of(job)
    assert opened == []  # of a million files that would take hours, at each start of a training
    (images, labels), (raw, same) = feed.test_batch(torch.arange(3)), job.data.test.batch([0, 1, 2])
    assert torch.equal(labels, same)
    assert torch.equal(images, standardized(raw, Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))))


def test_subsets_of_folders_keep_their_files(folders):
    root, _ = folders
    whole = load("imagenet", root)
    few = whole.subset(train=6, test=3)
    assert few.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert few.fingerprint != whole.fingerprint
    kept = stratified(whole.train.labels, 6, 0)
    assert torch.equal(few.train.batch([0, 5])[0], whole.train.batch(kept[[0, 5]])[0])


def test_faults_of_folders_are_named(folders):
    root, _ = folders
    top = root / "imagenet"
    broken = top / "train" / "n02" / "n02_0.JPEG"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ZAnalysisError, match=r"n02_0\.JPEG cannot be read as a JPEG file"):
        load("imagenet", root).train.batch([4])
    for k in range(4):
        (top / "train" / "n03" / f"n03_{k}.JPEG").unlink()
    with pytest.raises(ZAnalysisError, match=r"train/n03 holds no image; every class needs some"):
        load("imagenet", root)
    (top / "train" / "n03").rmdir()
    with pytest.raises(ZAnalysisError, match=r"train lacks the class n03, which .*val has"):
        load("imagenet", root)
    for path in sorted((top / "val").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    with pytest.raises(ZAnalysisError, match="val holds no folder of a class; move its images"):
        load("imagenet", root)


def test_what_cannot_be_fetched_says_where_to_ask(tmp_path, monkeypatch):
    monkeypatch.delenv("ZANALYSIS_DATA", raising=False)
    with pytest.raises(
        ZAnalysisError, match=r"imagenet is not given to the public.*image-net\.org.*Put the folders"
    ):
        load("imagenet")
    with pytest.raises(ZAnalysisError, match=r"imagenet is not in .*: put the folders .* or a mirror\)\.$"):
        load("imagenet", tmp_path)


def toy(labels, side=2):
    labels = torch.tensor(labels)
    images = torch.arange(len(labels) * side * side, dtype=torch.uint8).reshape(-1, 1, side, side)
    return Dataset("toy", MemorySplit(images, labels), MemorySplit(images[:4], labels[:4]), 3)


def splitmix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def literal_subset(samples, classes, seed):
    # One sample of each class, the classes taking turns.
    start = splitmix(seed)
    hashes = [splitmix((start + (i + 1) * 0x9E3779B97F4A7C15) % 2**64) for i in range(samples)]
    return sorted(min(range(label, samples, classes), key=hashes.__getitem__) for label in range(classes))


def test_a_subset_is_the_same_on_every_machine():
    # Known answers: a change of these numbers changes which samples every published subset holds.
    labels = torch.arange(1000) % 10
    for seed, known in ((0, KNOWN_0), (1, KNOWN_1)):
        assert stratified(labels, 10, seed).tolist() == known == literal_subset(1000, 10, seed)
    random, numpy = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    stratified(labels, 500, 7)
    assert torch.equal(random, torch.random.get_rng_state())
    assert np.array_equal(numpy, np.random.get_state()[1])


KNOWN_0 = [254, 319, 366, 410, 428, 503, 572, 707, 735, 821]
KNOWN_1 = [151, 198, 235, 307, 429, 472, 536, 730, 824, 913]


def test_a_subset_is_stratified_and_nested():
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.choice(3, 1000, p=[0.6, 0.3, 0.1]))
    for count in (1, 7, 100, 333, 1000):
        chosen = stratified(labels, count, 0)
        assert len(chosen) == count
        assert (chosen.diff() > 0).all()
        share = torch.bincount(labels[chosen], minlength=3) - count * torch.bincount(labels) / 1000
        assert share.abs().max() < 1
    balanced = torch.arange(1000) % 10
    few, more = (set(stratified(balanced, n, 5).tolist()) for n in (50, 400))
    assert few < more


def test_a_subset_changes_the_fingerprint_and_nothing_else():
    whole = toy([0, 1, 2] * 20)
    few = whole.subset(train=30)
    assert torch.bincount(few.train_labels).tolist() == [10, 10, 10]
    prints = {whole.fingerprint, few.fingerprint, whole.subset(test=2).fingerprint}
    prints |= {whole.subset(train=30, seed=1).fingerprint}
    assert len(prints) == 4
    assert whole.subset().fingerprint == whole.subset(train=60, test=4).fingerprint == whole.fingerprint
    assert (few.name, few.classes, few.image) == ("toy", 3, (1, 2, 2))


@pytest.mark.parametrize("count", [0, -1, 61])
def test_a_subset_that_cannot_be_is_refused(count):
    with pytest.raises(
        InputError, match=f"toy has 60 train samples, so a subset has 1 to 60 of them, not {count}"
    ):
        toy([0, 1, 2] * 20).subset(train=count)
    with pytest.raises(InputError, match="the seed of a subset is 0 to"):
        toy([0, 1, 2] * 20).subset(seed=-1)


def test_a_batch_holds_what_was_asked_for_in_that_order():
    data = toy([0, 1, 2] * 20)
    images, labels = data.train.batch(torch.tensor([7, 0, 7]))
    literal = data.train.images.numpy()[[7, 0, 7]].astype(np.float32) / 255
    assert np.array_equal(images.numpy(), literal)
    assert labels.tolist() == [1, 0, 1]
    assert data.train.batch(range(0))[0].shape == (0, 1, 2, 2)
    assert torch.equal(data.train_images, data.train.batch(range(60))[0][:, 0])


@pytest.mark.parametrize(
    ("indices", "says"),
    [
        ([60], "there is no sample 60: the split has 60"),
        ([-1], "there is no sample -1"),
        ([0.5], "indices are a list of integers, got .* of float32"),
        (torch.zeros(60, dtype=torch.bool), "indices are a list of integers, got .* of bool"),
        ([[1, 2]], r"indices are a list of integers, got \(1, 2\)"),
    ],
)
def test_indices_that_are_none_are_refused(indices, says):
    with pytest.raises(InputError, match=says):
        toy([0, 1, 2] * 20).train.batch(indices)


def test_images_in_memory_are_cropped_and_resized_by_the_generator():
    split = load("digits").train
    before = torch.random.get_rng_state()
    images, _ = split.batch([0, 1, 2], resized_crop=torch.Generator().manual_seed(0))
    assert images.shape == (3, 1, 8, 8)
    assert not torch.equal(images, split.batch([0, 1, 2])[0])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.cuda
def test_a_split_on_a_device_gives_the_same_bits():
    split = load("digits").train
    there = split.to("cuda")
    for source in (split, there):
        images, labels = source.batch(range(100), "cuda")
        assert images.device.type == labels.device.type == "cuda"
        assert torch.equal(images.cpu(), split.batch(range(100))[0])
