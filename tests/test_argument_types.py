"""Values that work are never refused, however narrow the annotations of other libraries are."""

import pytest
import yaml

from cyto_dl.argument_types import in_words, parameters

TAKEN = """
monai.transforms.RandAffined: {prob: 1, rotate_range: 0.5, mode: [bilinear, 0], device: cpu, spatial_size: 64}
monai.transforms.RandZoomd: {min_zoom: 0.8, max_zoom: [1, 1.2], mode: [area, nearest], align_corners: [false, null]}
monai.transforms.RandRotated: {range_x: [-0.3, 0.3], range_y: 0, dtype: [float32, null], padding_mode: border}
monai.transforms.Rand3DElasticd: {sigma_range: [5, 8], magnitude_range: [100, 200], spatial_size: -1}
monai.transforms.RandGridDistortiond: {num_cells: [5, 4], distort_limit: 0.1, mode: [bilinear, nearest]}
monai.transforms.RandGaussianSharpend: {alpha: 10, sigma1_x: [0.5, 1]}
monai.transforms.RandCoarseDropoutd: {holes: 1, spatial_size: 8, fill_value: [0, 1]}
monai.transforms.ThresholdIntensityd: {threshold: 5, above: [true, false], cval: [0, 1]}
monai.transforms.HistogramNormalized: {min: 0.5, max: 1.5}
monai.transforms.Spacingd: {pixdim: 1, mode: [3, 0], max_pixdim: [2, 2, 2]}
monai.transforms.NormalizeIntensityd: {subtrahend: [100, 200], divisor: 20, dtype: float32}
monai.transforms.ScaleIntensityRanged: {a_min: 100, a_max: 4000, b_min: null, b_max: null}
monai.transforms.EnsureTyped: {dtype: float32, device: cpu}
monai.transforms.OneOf: {transforms: [{_target_: monai.transforms.RandFlipd, keys: raw}], weights: [1]}
monai.networks.nets.UNet: {strides: [[1, 2, 2], 2], kernel_size: [3, 3], norm: [GROUP, {num_groups: 2}], act: PRELU}
monai.networks.nets.BasicUNet: {features: [8, 8, 16, 32, 32, 8], norm: batch, dropout: [alpha, {p: 0.1}]}
monai.networks.nets.SwinUNETR: {window_size: 7, norm_name: instance, depths: [1, 1, 1, 1]}
monai.networks.nets.AttentionUnet: {channels: [8, 16], strides: [2], dropout: 0}
monai.networks.nets.UNETR: {img_size: [64, 64], norm_name: [instance, {affine: true}], feature_size: 8}
monai.networks.blocks.Convolution: {strides: 1, padding: same}
monai.losses.DiceCELoss: {weight: [1, 2], smooth_nr: 0, reduction: MEAN}
monai.losses.TverskyLoss: {alpha: 0, beta: 1}
monai.losses.FocalLoss: {gamma: 2, alpha: 0.25, weight: 2}
monai.losses.SSIMLoss: {spatial_dims: 2, data_range: 1, win_size: [7, 7], kernel_sigma: [1, 1.5]}
torch.optim.SGD: {lr: 1, momentum: 0.9, nesterov: true}
torch.optim.Adam: {lr: 0.001, betas: [0.5, 0.999], foreach: null}
torch.optim.lr_scheduler.OneCycleLR: {max_lr: [0.01], total_steps: 1.0e+3, anneal_strategy: linear}
torch.optim.lr_scheduler.ReduceLROnPlateau: {mode: max, min_lr: [0, 0.1], patience: 5}
torch.optim.lr_scheduler.CosineAnnealingWarmRestarts: {T_0: 10, eta_min: 0}
torchmetrics.classification.MulticlassJaccardIndex: {num_classes: 3, average: MACRO}
lightning.pytorch.Trainer: {max_steps: 1.0e+5, max_time: {hours: 1.5}, precision: 32, devices: auto}
lightning.pytorch.callbacks.ModelCheckpoint: {save_last: link, every_n_train_steps: 500, save_top_k: -1}
lightning.pytorch.callbacks.StochasticWeightAveraging: {swa_lrs: 0.01, device: cpu}
lightning.pytorch.callbacks.Timer: {duration: {hours: 1.5}}
"""

NOT_TAKEN = """
monai.transforms.RandAffined: {prob: often}
monai.transforms.ScaleIntensityd: {channel_wise: "yes"}
monai.networks.nets.DynUNet: {in_channels: one, kernel_size: wide, res_block: "on"}
monai.losses.DiceCELoss: {lambda_dice: half, sigmoid: "no"}
torch.optim.AdamW: {lr: "1e-3", betas: [0.9, x]}
torch.optim.lr_scheduler.CosineAnnealingLR: {T_max: ten}
torch.nn.Dropout: {p: x}
lightning.pytorch.Trainer: {max_epochs: "10", precision: bf16mixed}
cyto_dl.data.RandFlipsd: {prob: half, spatial_axes: -1}
cyto_dl.data.DataframeDatamodule: {batch_size: [8], num_workers: "2", patch_shape: 32, scales: 2}
"""


def each_of(listed):
    return [(name, key, value) for name, given in yaml.safe_load(listed).items() for key, value in given.items()]


@pytest.mark.parametrize(("name", "key", "value"), each_of(TAKEN))
def test_what_a_class_of_another_library_does_with_more_than_its_annotation_says_is_not_refused(name, key, value):
    assert parameters(name)[key].takes(value)


@pytest.mark.parametrize(("name", "key", "value"), each_of(NOT_TAKEN))
def test_text_where_a_number_belongs_is_refused_and_of_our_own_classes_every_other_type(name, key, value):
    assert not parameters(name)[key].takes(value)


def test_what_is_taken_is_said_in_words():
    assert in_words(parameters("monai.transforms.NormalizeIntensityd")["subtrahend"].annotation) == "numbers or null"
    assert in_words(parameters("torch.optim.AdamW")["lr"].annotation) == "a number"
    assert in_words(dict[str, int] | None) == "a mapping to a whole number or null"


def test_a_class_that_cannot_be_imported_has_no_parameters():
    assert parameters("no_such_module.Net") == {}
