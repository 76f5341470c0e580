"""Previews are drawn by the model's own postprocessing, in 2-D and 3-D, and carry the pixel size."""

from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import Logger
from PIL import Image
from torch.utils.data import DataLoader

from cyto_dl.callbacks import ImagePreviews
from cyto_dl.data.image import read_image
from cyto_dl.errors import ConfigError
from cyto_dl.model.heads import ProjectionHead
from cyto_dl.model.utils import postprocessing

DIMS = pytest.mark.parametrize("spatial_dims", [2, 3])
NAMES = ["raw", "seg_target", "seg", "dna_target", "dna"]


class PreviewLogger(Logger):
    name, version = "previews", 0

    def __init__(self):
        super().__init__()
        self.previews = []

    def log_previews(self, paths, epoch):
        self.previews.append((epoch, list(paths)))

    def log_metrics(self, metrics, step=None): ...

    def log_hyperparams(self, params): ...


def run(model, trainer, loader, spatial_dims, **loading):
    torch.manual_seed(0)
    trainer.fit(model, loader(spatial_dims, patch=16), loader(spatial_dims, **loading))
    return model


@DIMS
def test_inputs_targets_and_predictions_are_saved_with_the_pixel_size(
    tmp_path, make_model, loader, make_trainer, spatial_dims
):
    spacing_um = (0.5, 0.2, 0.1)[-spatial_dims:]
    model = make_model(spatial_dims)
    trainer = make_trainer(ImagePreviews(str(tmp_path)))
    run(model, trainer, loader, spatial_dims, num_images=1, spacing_um=spacing_um)
    folder = tmp_path / "valid" / "epoch_000"
    names = {f"cell_{name}{suffix}" for name in NAMES for suffix in (".png", ".ome.tif")}
    assert {path.name for path in folder.iterdir()} == names

    (batch,) = loader(spatial_dims, num_images=1)
    logits = model.eval().window(batch["raw"], model.network)
    drawn = {
        "raw": postprocessing.rescale(batch["raw"][0]),
        "seg_target": postprocessing.rescale(batch["seg"][0]),
        "seg": postprocessing.connected_components(logits["seg"][0], min_size=4),
        "dna": postprocessing.identity(logits["dna"][0]),
    }
    for name, expected in drawn.items():
        saved = read_image(folder / f"cell_{name}.ome.tif", spatial_dims=spatial_dims)
        assert saved.array.dtype == expected.numpy().dtype
        assert np.array_equal(saved.array, expected.numpy())
        assert saved.spacing_um == pytest.approx(spacing_um)


@DIMS
def test_a_target_that_an_image_lacks_is_not_drawn(tmp_path, make_model, loader, make_trainer, spatial_dims):
    def without_first_seg(batch):
        return batch | {"seg": batch["seg"][1:], "present": {"seg": torch.tensor([1])}}

    (batch,) = loader(spatial_dims, num_images=2, batch_size=2)
    model, trainer = make_model(spatial_dims), make_trainer(ImagePreviews(str(tmp_path)))
    trainer.fit(model, loader(spatial_dims, patch=16), DataLoader([without_first_seg(batch)], batch_size=None))
    drawn = {path.name for path in (tmp_path / "valid" / "epoch_000").glob("*.png")}
    assert drawn == {f"cell_{name}.png" for name in NAMES if name != "seg_target"} | {
        f"cell-2_{name}.png" for name in NAMES
    }
    second = read_image(tmp_path / "valid/epoch_000/cell-2_seg_target.ome.tif", spatial_dims=spatial_dims)
    assert np.array_equal(second.array, postprocessing.rescale(batch["seg"][1]).numpy())


@DIMS
def test_a_batch_without_any_target_of_a_task_shows_none(tmp_path, make_model, loader, make_trainer, spatial_dims):
    def without_seg(batch):
        there = {key: value for key, value in batch.items() if key != "seg"}
        return there | {"present": {"seg": torch.tensor([], dtype=torch.long)}}

    (batch,) = loader(spatial_dims, num_images=1)
    model, trainer = make_model(spatial_dims), make_trainer(ImagePreviews(str(tmp_path)))
    trainer.fit(model, loader(spatial_dims, patch=16), DataLoader([without_seg(batch)], batch_size=None))
    drawn = {path.name for path in (tmp_path / "valid" / "epoch_000").glob("*.png")}
    assert drawn == {f"cell_{name}.png" for name in NAMES if name != "seg_target"}


@DIMS
def test_a_png_shows_the_middle_plane_in_8_bits(tmp_path, make_model, loader, make_trainer, spatial_dims):
    run(make_model(spatial_dims), make_trainer(ImagePreviews(str(tmp_path))), loader, spatial_dims, num_images=1)
    (batch,) = loader(spatial_dims, num_images=1)
    image = postprocessing.rescale(batch["raw"][0]).numpy()[0]
    expected = image[len(image) // 2] if spatial_dims == 3 else image
    png = np.asarray(Image.open(tmp_path / "valid/epoch_000/cell_raw.png"))
    assert np.array_equal(png, expected)
    assert Image.open(tmp_path / "valid/epoch_000/cell_dna.png").mode == "L"


def test_the_literal_postprocessing_block_saves_8_bit_images(tmp_path, make_model, loader, make_trainer):
    block = {
        "input": {"raw": partial(postprocessing.rescale), "seg": partial(postprocessing.rescale)},
        "prediction": {"seg": partial(postprocessing.sigmoid_rescale)},
    }
    run(make_model(postprocessing=block), make_trainer(ImagePreviews(str(tmp_path))), loader, 2, num_images=1)
    for name in ("raw", "seg_target", "seg"):
        assert read_image(tmp_path / f"valid/epoch_000/cell_{name}.ome.tif", spatial_dims=2).array.dtype == np.uint8


def draw_png(tmp_path, make_model, loader, make_trainer, function, logits):
    class Fixed(torch.nn.Module):
        activation = "sigmoid"

        def forward(self, features):
            return logits.expand(len(features), *logits.shape) + 0 * features.sum()

    heads = {"seg": {"head": Fixed(), "loss": torch.nn.BCEWithLogitsLoss(), "metrics": {}}}
    arguments = {"task_heads": heads, "postprocessing": {"prediction": {"seg": function}}}
    model = make_model(**arguments, inference={"roi_size": [64, 64]})
    trainer = make_trainer(ImagePreviews(str(tmp_path)))
    trainer.fit(model, loader(2), loader(2, num_images=1))
    return np.asarray(Image.open(tmp_path / "valid/epoch_000/cell_seg.png"))


def test_labels_are_coloured_each_by_its_own_colour(tmp_path, make_model, loader, make_trainer):
    logits = torch.full((1, 64, 64), -5.0)
    for column in range(5):
        logits[:, 10:20, column * 12 : column * 12 + 8] = 5.0
    png = draw_png(tmp_path, make_model, loader, make_trainer, postprocessing.connected_components, logits)
    assert png.shape == (64, 64, 3)
    assert len(np.unique(png.reshape(-1, 3), axis=0)) == 6
    assert (png[logits[0] < 0] == 0).all()
    assert (png[logits[0] > 0].max(axis=1) == 255).all()  # bright


def test_a_mask_is_white_and_low_probabilities_stay_dark(tmp_path, make_model, loader, make_trainer):
    logits = torch.full((1, 64, 64), -5.0)
    logits[:, :32] = 5
    mask = draw_png(tmp_path / "mask", make_model, loader, make_trainer, postprocessing.sigmoid_threshold, logits)
    assert np.unique(mask).tolist() == [0, 255]
    low = torch.full((1, 64, 64), -5.0)
    grey = draw_png(tmp_path / "grey", make_model, loader, make_trainer, postprocessing.sigmoid_rescale, low)
    assert grey.max() <= 2  # sigmoid(-5) * 255 = 1.7: not stretched


def test_files_of_one_name_in_several_folders_are_kept_apart(tmp_path, make_model, loader, make_trainer):
    run(make_model(), make_trainer(ImagePreviews(str(tmp_path), num_images=3)), loader, 2, num_images=4, batch_size=2)
    saved = {path.name for path in (tmp_path / "valid/epoch_000").glob("*_raw.png")}
    assert saved == {"cell_raw.png", "cell-2_raw.png", "cell-3_raw.png"}


def test_previews_are_saved_every_n_epochs_and_logged(tmp_path, make_model, loader, make_trainer):
    logger = PreviewLogger()
    trainer = make_trainer(ImagePreviews(str(tmp_path), every_n_epochs=2, num_images=1), max_epochs=4, logger=logger)
    run(make_model(), trainer, loader, 2, num_images=2)
    assert sorted(path.name for path in (tmp_path / "valid").iterdir()) == ["epoch_000", "epoch_002"]
    assert [epoch for epoch, _ in logger.previews] == [0, 2]
    folder = tmp_path / "valid" / "epoch_002"
    files = [folder / f"cell_{name}{suffix}" for name in NAMES for suffix in (".ome.tif", ".png")]
    assert logger.previews[1][1] == files


def test_the_sanity_check_and_other_validations_save_nothing(tmp_path, make_model, loader, make_trainer):
    trainer = make_trainer(ImagePreviews(str(tmp_path / "previews")), num_sanity_val_steps=2, max_epochs=0)
    trainer.fit(make_model(), loader(patch=16), loader(num_images=1))
    trainer.validate(make_model(), loader(num_images=1), verbose=False)
    assert not (tmp_path / "previews").exists()


def test_images_of_other_scale_and_projections_have_their_own_pixel_size(tmp_path, make_model, loader, make_trainer):
    heads = {"plane": {"head": ProjectionHead(4, 1), "loss": torch.nn.MSELoss()}}
    model = make_model(3, task_heads=heads, postprocessing=None, inference={"roi_size": [16, 32, 32]})
    batches = list(loader(3, num_images=1, spacing_um=(0.5, 0.2, 0.1)))
    batches[0]["plane"] = batches[0]["raw"].amax(2)
    trainer = make_trainer(ImagePreviews(str(tmp_path)))
    trainer.fit(model, DataLoader(batches, batch_size=None), DataLoader(batches, batch_size=None))
    saved = read_image(tmp_path / "valid/epoch_000/cell_plane.ome.tif", spatial_dims=2)
    assert saved.array.shape == (1, 32, 32)
    assert saved.spacing_um == pytest.approx((0.2, 0.1))


def test_a_model_without_postprocessing_is_refused(tmp_path, make_trainer):
    with pytest.raises(ConfigError, match="ImagePreviews cannot draw a BoringModel"):
        make_trainer(ImagePreviews(str(tmp_path))).fit(BoringModel())
