"""Images per second and core loaded from a folder of JPEGs, compared with torchvision's and timm's loaders.

Each reads, decodes, randomly crops to 224 pixels, flips and batches, in one process with one thread, taking
turns; processor time is measured. The photographs are crops of the two that scikit-learn ships, re-encoded
(quality 92): 1,000 of 500 x 375 pixels, ImageNet's average size, and 66 of 12 megapixels. Use --path for
another folder, with one folder per class.

    python benchmarks/loader.py
    python benchmarks/loader.py --path FOLDER
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import records
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

RESULTS = Path(__file__).parent / "results" / "loader.csv"
FIELDS = ["images", "loader", "repeat", "images_per_cpu_second"]
SIZE, BATCH = 224, 32


def photographs(folder: Path, count: int, width: int, height: int) -> Path:
    """Create JPEGs of two classes from two photographs."""
    generator = np.random.default_rng(0)
    for number in range(count):
        source = Image.fromarray(load_sample_images().images[number % 2])
        share = generator.uniform(0.5, 1)
        h = int(source.height * share)
        w = h * width // height
        left, top = (
            int(generator.uniform(0, most)) for most in (source.width - w, max(1, source.height - h))
        )
        # gendd also needs two test images
        path = folder / ("test" if number < 2 else "train") / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        crop = source.crop((left, top, left + w, top + h)).resize((width, height), Image.Resampling.BICUBIC)
        crop.save(path, quality=92)
    return folder


def of_gendd(folder: Path) -> Callable[[int], Iterable[torch.Tensor]]:
    from gendd.config import DataConfig
    from gendd.data import load_data, train_loader

    config = DataConfig(
        name="folder",
        path=str(folder),
        image_size=SIZE,
        augment="resized-crop",
        batch_size=BATCH,
        workers=0,
        in_memory=False,
        validation=0.0,
    )
    data = load_data(config)
    return lambda epoch: (batch.images for batch in train_loader(data, config, seed=0, epoch=epoch))


def of_torchvision(folder: Path) -> Callable[[int], Iterable[torch.Tensor]]:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, PILToTensor, RandomHorizontalFlip, RandomResizedCrop

    transform = Compose([RandomResizedCrop(SIZE), RandomHorizontalFlip(), PILToTensor()])
    images = ImageFolder(str(folder / "train"), transform)
    loader = torch.utils.data.DataLoader(images, BATCH, shuffle=True, drop_last=True)
    return lambda epoch: (batch[0] for batch in loader)


def of_timm(folder: Path) -> Callable[[int], Iterable[torch.Tensor]]:
    from timm.data.dataset_factory import create_dataset
    from timm.data.loader import create_loader

    images = create_dataset("", root=str(folder / "train"), split="train", is_training=True)
    create: Any = create_loader
    loader = create(
        images,
        (3, SIZE, SIZE),
        BATCH,
        is_training=True,
        use_prefetcher=False,
        color_jitter=None,
        re_prob=0.0,
        auto_augment=None,
        num_workers=0,
        persistent_workers=False,
        interpolation="bilinear",
        device=torch.device("cpu"),
    )
    return lambda epoch: (batch[0] for batch in loader)


LOADERS = {"gendd": of_gendd, "torchvision": of_torchvision, "timm": of_timm}


def rate(batches: Iterable[torch.Tensor]) -> float:
    """Return the images per second of processor time."""
    began, count = time.process_time(), 0
    for images in batches:
        assert images.shape[1:] == (3, SIZE, SIZE)
        count += len(images)
    return count / (time.process_time() - began)


def sets(given: str | None, root: Path) -> Iterator[tuple[str, Path]]:
    if given is not None:
        yield Path(given).name, Path(given)
        return
    yield "500 x 375", photographs(root / "middle", 1002, 500, 375)
    yield "4,000 x 3,000", photographs(root / "large", 66, 4000, 3000)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--path", help="a folder that holds train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        for name, folder in sets(given.path, Path(root)):
            made = {loader: make(folder) for loader, make in LOADERS.items()}
            rows: list[dict[str, Any]] = []
            for repeat in range(given.repeats):
                for loader, batches in made.items():
                    found = f"{rate(batches(repeat)):.2f}"
                    row = (name, loader, repeat, found)
                    rows.append(dict(zip(FIELDS, row, strict=True)))
                    print(*row, flush=True)
            records.replace(RESULTS, FIELDS, {"images": name}, rows)
            rates = {
                loader: [float(row["images_per_cpu_second"]) for row in rows if row["loader"] == loader]
                for loader in LOADERS
            }
            for loader in ("torchvision", "timm"):
                ratios = [own / other for own, other in zip(rates["gendd"], rates[loader], strict=True)]
                print(f"{name}: {statistics.median(ratios):.2f} times {loader}'s")


if __name__ == "__main__":
    main()
