"""`DataframeDatamodule`: from a manifest and a list of transforms to batches.

manifest -> rows per split -> CachedDataset (load, preprocess) -> PatchDataset (train) | WholeImages -> batches
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any

from lightning import LightningDataModule, Trainer

from cyto_dl.data.arguments import key_problems, loader_problems, number_problems
from cyto_dl.data.axes import check_axes
from cyto_dl.data.cache import CachedDataset
from cyto_dl.data.check import (
    Described,
    check_channels,
    check_depths,
    check_dtypes,
    check_leakage,
    check_patch_shape,
    check_sizes,
    describe_rows,
)
from cyto_dl.data.collate import collate
from cyto_dl.data.dry_run import check_without_targets
from cyto_dl.data.labels import CheckLabelsd, read_problems, uncertain_rows
from cyto_dl.data.loader import ImageLoader, PatchSampler, ResumableLoader, RowSampler
from cyto_dl.data.manifest import InMemory, Row, Rows, collect_rows, read_manifest
from cyto_dl.data.patches import Encoder, PatchDataset, WholeImages
from cyto_dl.data.stages import Stages, for_source, made_targets, readers, stages
from cyto_dl.data.tables import SPLITS
from cyto_dl.data.transforms import ReadImaged
from cyto_dl.errors import ConfigError, ManifestError, list_problems

logger = logging.getLogger(__name__)

WORKERS = ("num_workers", "multiprocessing_context")  # of torch's DataLoader, for reading ahead of the training
SPLITS_OF_STAGE = {"fit": ("train", "valid"), "validate": ("valid",), "test": ("test",), "predict": ("predict",)}


class DataframeDatamodule(LightningDataModule):
    """The images of a manifest as batches.

    A batch is {key: float32 tensor BC(Z)YX, "path": the sources' paths, "spacing_um": their pixel sizes or None}. Where
    rows lack a target, the batch holds those of the others, and "present" says whose they are (see `collate`). A target
    may have a whole multiple of the source's voxels along an axis, or a fraction, or lack the leading axes.

    Args:
        path: A folder with train.csv, valid.csv, test.csv, predict.csv; or one .csv or .parquet file; or in memory a
            table, a list of rows or {split: rows}, whose values may be arrays.
        columns: Batch key -> column of the manifest. A row needs its source and at least one target.
        transforms: {load, preprocess, augment}, one list, or one list per split (see `cyto_dl.data.stages`).
        source_key: The key of the source; the other keys are targets. Default: the first of `columns`.
        scales: Target key -> how many of its voxels lie along one of the source: one whole number, or one per axis.
            Checked before a training; a target without it may have any scale that is the same for all images.
        split_column: The column of the splits, when the manifest is one file.
        cache_dir: Where preprocessed images are kept across epochs and runs; None computes them each time.
        patch_shape: What training sees, (Z)YX; None for whole images.
        patches_per_image: How many patches an epoch takes of each image.
        foreground_key: The key whose non-zero voxels are the foreground.
        foreground_fraction: The fraction of patches centred on foreground; the others are anywhere.
        seed: Other seeds give other patches.
        batch_size: Patches in a training batch. Other splits have whole images, one by one.
        loader_kwargs: Everything else goes to torch's DataLoader.
    """

    def __init__(
        self,
        *,
        path: str | PathLike[str] | InMemory,
        columns: Mapping[str, str],
        transforms: Mapping[str, Sequence[Any]] | Sequence[Any],
        source_key: str | None = None,
        scales: Mapping[str, int | Sequence[int]] | None = None,
        split_column: str | None = None,
        cache_dir: str | None = None,
        patch_shape: Sequence[int] | None = None,
        patches_per_image: int = 1,
        foreground_key: str | None = None,
        foreground_fraction: float = 0.0,
        seed: int = 0,
        batch_size: int = 1,
        **loader_kwargs: Any,
    ) -> None:
        super().__init__()
        self.path = path
        self.columns = dict(columns)
        self.source_key = source_key or next(iter(self.columns), "")
        self.scales = dict(scales or {})
        self.transforms = transforms
        self.split_column = split_column
        self.cache_dir = cache_dir
        self.patch_shape = None if patch_shape is None else tuple(patch_shape)
        self.patches_per_image = patches_per_image
        self.foreground_key = foreground_key
        self.foreground_fraction = foreground_fraction
        self.seed = seed
        self.batch_size = batch_size
        self.loader_kwargs = loader_kwargs
        self.encoders: dict[str, Encoder] = {}  # by target; the model that trains sets those of its heads
        self.labels: frozenset[str] = frozenset()  # the targets that are labels; set in the same way
        self._rows: Rows | None = None
        self._described: dict[str, list[list[Described]]] = {}  # the headers of the splits that were set up
        self._checked: set[str | None] = set()  # stages whose images need no second look at their headers
        self._keeps_size = False  # whether preprocessing is known to leave the images' size as it is in the files
        self._check_arguments()
        self.stages = self._stages()

    def setup(self, stage: str | None = None) -> None:
        """Read the manifest and check every image of the stage's splits, before the first step.

        Raises:
            ManifestError: With everything that is wrong with the table and its images, at once.
        """
        if stage in self._checked:
            return
        wanted = [split for split in SPLITS_OF_STAGE.get(stage or "", tuple(self.rows)) if split in self.rows]
        problems = [check_leakage(self.rows, source_key=self.source_key)]
        for split in wanted:
            reads = {key: reader.selection for key, reader in readers(self._stages_of(split).load).items()}
            self._described[split], unreadable = describe_rows(self.rows[split], reads)
            problems.append(unreadable)
        described = [row for split in wanted for row in self._described[split]]
        problems.append(check_channels(described))
        if self._keeps_size:
            problems.append(check_sizes(described, self.source_key, self.scales))
        warnings = check_dtypes(described, self.source_key)
        if self._keeps_size and self.patch_shape is not None:
            trained = self._described["train"] if "train" in wanted else []
            problems.append(check_patch_shape(trained, self.source_key, self.patch_shape))
            others = [row for split in wanted if split != "train" for row in self._described[split]]
            warnings += check_depths(others, self.source_key, self.patch_shape[0])
        for warning in warnings:
            logger.warning("%s", warning)
        self._refuse(*problems)
        self._checked.add(stage)

    def require(self, *splits: str) -> None:
        """Raise unless the manifest has rows of each of these splits.

        Raises:
            ManifestError: With the splits that there are, and how many rows each has.
        """
        for split in splits:
            self._rows_of(split)

    def check_labels(self, keys: Collection[str]) -> None:
        """Say which targets are label images, and look for fractions and negative numbers in them.

        Read are those of all splits that `setup` has seen whose header allows for such numbers; through the cache, so
        once per file. What is read later is checked then, on whole images too.

        Raises:
            ManifestError: With all label images that cannot be used.
        """
        self.labels = frozenset(keys) & frozenset(self.columns)
        problems: list[str] = []
        workers = {name: self.loader_kwargs[name] for name in WORKERS if name in self.loader_kwargs}
        for split, described in self._described.items():
            if numbers := uncertain_rows(described, self.labels):
                logger.info("reading %d label images of the split '%s' to check their numbers", len(numbers), split)
                problems += read_problems(self._samples(split), numbers, workers=workers)
        self._refuse(problems)

    @property
    def rows(self) -> Rows:
        """The rows of each split, read once."""
        if self._rows is None:
            how: dict[str, Any] = {
                "columns": self.columns,
                "split_column": self.split_column,
                "source_key": self.source_key,
                "optional": made_targets(self.transforms),
            }
            if isinstance(self.path, str | PathLike):
                self._rows = read_manifest(self.path, **how)
            else:
                self._rows = collect_rows(self.path, **how)
        return self._rows

    def has_targets(self, split: str) -> bool:
        """Whether any image of a split has a target that a prediction can be compared with."""
        targets = set(self.columns) - {self.source_key}
        return any(targets & row.keys() for row in self.rows.get(split, ()))

    @property
    def made_in_validation(self) -> frozenset[str]:
        """The targets that validation makes of its sources too, such as the hidden pixels of `BlindSpotd`."""
        return self._made_in("valid")

    def may_have(self, split: str, targets: Collection[str]) -> bool:
        """Whether the manifest says that an image of a split has all of these targets, or transforms make them."""
        listed = (set(targets) & set(self.columns)) - self._made_in(split)
        return any(listed <= row.keys() for row in self.rows.get(split, ()))

    def train_dataloader(self) -> ResumableLoader:
        """Random patches, augmented, in an order that depends on the seed and the epoch."""
        dataset = PatchDataset(
            self._samples("train"),
            augment=self.stages["train"].augment,
            encoders=self.encoders,
            patch_shape=self.patch_shape,
            patches_per_image=self.patches_per_image,
            foreground_key=self.foreground_key,
            foreground_fraction=self.foreground_fraction,
            seed=self.seed,
        )
        sampler = PatchSampler(len(dataset.samples), self.patches_per_image, seed=self.seed)
        arguments = self._loader_arguments(dataset.samples)
        loader = ResumableLoader(dataset, batch_size=self.batch_size, sampler=sampler, **arguments)
        if self.trainer is not None:
            loader.num_unfinished = partial(_num_unfinished, self.trainer)
        return loader

    def val_dataloader(self) -> ImageLoader:
        """Whole images, one by one, in the order of the manifest."""
        return self._whole_images("valid")

    def test_dataloader(self) -> ImageLoader:
        """Whole images, one by one, in the order of the manifest."""
        return self._whole_images("test")

    def predict_dataloader(self) -> ImageLoader:
        """Whole images without targets, one by one, in the order of the manifest."""
        return self._whole_images("predict")

    def _whole_images(self, split: str) -> ImageLoader:
        samples = self._samples(split)
        arguments = self._loader_arguments(samples) | {"drop_last": False}
        images = WholeImages(samples, augment=self._stages_of(split).augment)
        return ImageLoader(images, batch_size=1, sampler=RowSampler(len(samples)), **arguments)

    def _samples(self, split: str) -> CachedDataset:
        found = self._stages_of(split)
        is_seen_once = split == "predict"  # and without targets
        checks = [CheckLabelsd(self.labels)] if self.labels and not is_seen_once else []
        return CachedDataset(
            self._rows_of(split),
            (*found.load, *found.preprocess, *checks),
            source_key=self.source_key,
            target_keys=() if is_seen_once else [key for key in self.columns if key != self.source_key],
            cache_dir=None if is_seen_once else self.cache_dir,
        )

    def _made_in(self, split: str) -> frozenset[str]:
        augment = self._stages_of(split).augment
        return frozenset(transform.target_key for transform in augment if hasattr(transform, "target_key"))

    def _rows_of(self, split: str) -> list[Row]:
        if split not in self.rows:
            there = ", ".join(f"{name} ({len(rows)})" for name, rows in self.rows.items())
            raise ManifestError(
                f"{self._name}: there are no rows of the split '{split}'; there are {there}. "
                "Add a file or rows for it, or name the column of the splits in data.split_column."
            )
        return self.rows[split]

    def _stages_of(self, split: str) -> Stages:
        return self.stages[split] if split in self.stages else stages(self.transforms, split=split)  # raises

    def _stages(self) -> dict[str, Stages]:
        """The transforms of every split that has any, tried without targets where there are none."""
        per_split = isinstance(self.transforms, Mapping) and set(self.transforms) <= set(SPLITS)
        found = {split: stages(self.transforms, split=split) for split in (self.transforms if per_split else SPLITS)}
        for each in found.values():
            self._check_readers(each)
            check_axes(each.augment, {key: reader.spatial_dims for key, reader in readers(each.load).items()})
        if "predict" in found:
            self._keeps_size = check_without_targets(found["predict"], self.source_key)
            found["predict"] = Stages(*(tuple(for_source(part, self.source_key)) for part in found["predict"]))
        return found

    def _check_arguments(self) -> None:
        problems = key_problems(
            self.columns,
            source_key=self.source_key,
            foreground_key=self.foreground_key,
            foreground_fraction=self.foreground_fraction,
            scales=self.scales,
        )
        problems += number_problems(
            patches_per_image=self.patches_per_image, batch_size=self.batch_size, patch_shape=self.patch_shape
        )
        if problems := problems + loader_problems(self.loader_kwargs):
            raise ConfigError(f"the data configuration cannot be used:\n{list_problems(problems)}")

    def _check_readers(self, found: Stages) -> None:
        read = readers(found.load)
        unread = [key for key in self.columns if key not in read]
        if unread and len(found.load) == sum(isinstance(transform, ReadImaged) for transform in found.load):
            raise ConfigError(
                f"no transform reads '{unread[0]}' of data.columns. Add it to the keys of a cyto_dl.data.ReadImaged "
                "in data.transforms.load."
            )

    def _loader_arguments(self, samples: CachedDataset) -> dict[str, Any]:
        optional = tuple(sorted(frozenset().union(*samples.missing)))
        return {"collate_fn": partial(collate, optional=optional), **self.loader_kwargs}

    def _refuse(self, *problems: Sequence[str]) -> None:
        if any(problems):
            raise ManifestError(f"{self._name}: the images cannot be used:\n{list_problems(*problems)}")

    @property
    def _name(self) -> str:
        return str(self.path) if isinstance(self.path, str | PathLike) else "data.path"


def _num_unfinished(trainer: Trainer) -> int:
    """How many batches were fetched and not yet trained on, by Lightning's count."""
    progress = trainer.fit_loop.epoch_loop.batch_progress.state_dict()["current"]
    return int(progress["ready"] - progress["processed"])
